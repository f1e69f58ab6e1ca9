// Lines: samples without positions (LayerNorm, RMSNorm), as G groups of D elements, each element with its own
// parameters. A line is walked in pieces that stay in the nearest cache from the first pass to the last.
#pragma once

#include <vector>

#include "elements.h"
#include "planes.h"

namespace gammabeta {

template <class T>
struct Lines {
  typedef ArithmeticOf<T> A;
  int64_t n, groups, d;
  const uint8_t* mask;          // one for each line, or null
  std::vector<A> weight, bias;  // of groups·d; bias may be empty
  Finish<A> finish;
  bool center;

  int64_t length() const { return groups * d; }
  const A* bias_at(int64_t i) const { return bias.empty() ? nullptr : &bias[size_t(i)]; }
};

template <class T>
class LineWork {
 public:
  typedef ArithmeticOf<T> A;

  explicit LineWork(const Lines<T>& lines)
      : lines_(lines),
        plane_(1, 0, lines.d, 0),
        work_(plane_, nullptr, lines.finish),
        loops_(work_.loops),
        stored_(work_.stored) {}

  // total = x + residual, rounded as it is stored.
  void add(const T* x, const T* residual, T* total, int64_t line) {
    Buffers<T>& b = *work_.buffers;
    const Writer<T> writer(false);
    const int64_t begin = line * lines_.length(), end = begin + lines_.length();
    for (int64_t i = begin; i < end; i += kPiece<T>) {
      const int64_t w = std::min(kPiece<T>, end - i);
      A* out = writer.destination(total + i, b.out);
      loops_.apply_plane(read(x + i, w, b.x), read(residual + i, w, b.residual), out, w, A(0), A(1), A(0),
                         {kNone, A(0)});
      writer.flush(out, total + i, w);
    }
  }

  void forward(const T* x, const T* residual, T* y, int64_t line, double eps, const Writer<T>& writer,
               RunningMoments* moments) {
    Buffers<T>& b = *work_.buffers;
    const int64_t d = lines_.d;
    if (lines_.mask && !lines_.mask[line]) return writer.zero(y + line * lines_.length(), lines_.length());
    for (int64_t group = 0; group < lines_.groups; ++group) {
      const int64_t at = line * lines_.length() + group * d;
      RunningMoments& m = moments[group];
      work_.moments(x + at, 0, plane_.pieces(), lines_.center, m);
      const A mean = A(m.mean), rstd = A(1 / std::sqrt(m.m2 / m.count + eps));
      if (!residual && lines_.finish.activation == kNone) {
        forward_without_finish(x + at, y + at, group * d, mean, rstd, writer);
        continue;
      }
      for (int64_t i = 0; i < d; i += kPiece<T>) {
        const int64_t w = std::min(kPiece<T>, d - i), c = group * d + i;
        const A* v = read(x + at + i, w, b.x);
        const A* r = residual ? read(residual + at + i, w, b.residual) : nullptr;
        A* out = writer.destination(y + at + i, b.out);
        loops_.apply_line(v, r, out, w, mean, rstd, &lines_.weight[size_t(c)], lines_.bias_at(c), lines_.finish);
        writer.flush(out, y + at + i, w);
      }
    }
  }

  // Whether the incoming gradient is ∂ℓ/∂z itself. Then backward_lines can be used.
  static bool gradient_is_of_z(const Lines<T>& lines, const T* residual) {
    return !residual && !lines.mask && lines.finish.activation == kNone;
  }
  // How many of the lines [i, end) backward_lines takes together: as many as are still cached for the second pass.
  static int lines_together(const Lines<T>& lines, int64_t i, int64_t end) {
    constexpr int64_t kBytes = int64_t(256) << 10;  // of x and g
    const int64_t bytes = 2 * kLinesAtOnce * lines.d * int64_t(sizeof(T));
    return end - i >= kLinesAtOnce && bytes <= kBytes ? kLinesAtOnce : 1;
  }

  // backward() of `count` lines. mean_G and var_G are those of the first line. g_weight is not null.
  void backward_lines(int count, const T* g, const T* x, const T* g_total, T* g_x, int64_t line, const double* mean_G,
                      const double* var_G, double eps, const Writer<T>& writer, A* g_weight, A* g_bias) {
    const int64_t d = lines_.d, length = lines_.length();
    for (int64_t group = 0; group < lines_.groups; ++group) {
      const int64_t at = line * length + group * d;
      const A* weight = &lines_.weight[size_t(group * d)];
      LineBackprop<A> back[kLinesAtOnce];
      bool streamed = writer.streamed();
      for (int r = 0; r < count; ++r) {
        const int64_t first = at + r * length;
        const A mean = A(mean_G[r * lines_.groups + group]);
        const double rstd = 1 / std::sqrt(var_G[r * lines_.groups + group] + eps);
        double sum = 0, sum_x = 0;
        for (int64_t i = 0; i < d; i += kPiece<T>) {
          A s, q;
          stored_.gradient_sums_line(g + first + i, x + first + i, weight + i, std::min(kPiece<T>, d - i), mean, &s,
                                     &q);
          sum += double(s), sum_x += double(q);
        }
        back[r] = {mean, A(rstd), A(-rstd * (rstd * rstd * sum_x / double(d))),
                   lines_.center ? A(-rstd * (sum / double(d))) : A(0)};
        streamed = streamed && writer.can_store_to(g_x + first);
      }
      stored_.gradient_apply_line(count, length, g + at, x + at, g_total ? g_total + at : nullptr, g_x + at, d, weight,
                                  back, g_weight + group * d, g_bias ? g_bias + group * d : nullptr, streamed);
    }
  }

  // Write ∂ℓ/∂x (plus g_total unless null) to g_x and ∂ℓ/∂z to g_residual unless null. Add the gradients of the
  // parameters.
  void backward(const T* g, const T* x, const T* residual, const T* g_total, T* g_x, T* g_residual, int64_t line,
                const double* mean_G, const double* var_G, double eps, const Writer<T>& writer, A* g_weight,
                A* g_bias) {
    Buffers<T>& b = *work_.buffers;
    const int64_t d = lines_.d;
    if (lines_.mask && !lines_.mask[line]) {
      writer.zero(g_x + line * lines_.length(), lines_.length());
      if (g_residual) writer.zero(g_residual + line * lines_.length(), lines_.length());
      return;
    }
    for (int64_t group = 0; group < lines_.groups; ++group) {
      const int64_t at = line * lines_.length() + group * d;
      const A mean = A(mean_G[group]);
      const double rstd = 1 / std::sqrt(var_G[group] + eps);
      double sum = 0, sum_x = 0;
      const A *g_z = nullptr, *v = nullptr;
      for (int64_t i = 0; i < d; i += kPiece<T>) {
        const int64_t w = std::min(kPiece<T>, d - i), c = group * d + i;
        load(g, x, residual, at + i, c, w, mean, A(rstd), &g_z, &v);
        A s, q;
        loops_.gradient_sums_line(g_z, v, &lines_.weight[size_t(c)], w, mean, &s, &q);
        sum += double(s), sum_x += double(q);
      }
      const A scale = A(rstd), by_x = A(-rstd * (rstd * rstd * sum_x / double(d)));
      const A by_one = lines_.center ? A(-rstd * (sum / double(d))) : A(0);
      for (int64_t i = 0; i < d; i += kPiece<T>) {
        const int64_t w = std::min(kPiece<T>, d - i), c = group * d + i;
        if (d > kPiece<T>) load(g, x, residual, at + i, c, w, mean, scale, &g_z, &v);
        A* out = writer.destination(g_x + at + i, b.out);
        A* made = g_total ? b.masked_x : out;
        loops_.gradient_apply_line(g_z, v, &lines_.weight[size_t(c)], made, w, mean, scale, by_x, by_one,
                                   g_weight ? g_weight + c : nullptr, g_bias ? g_bias + c : nullptr);
        if (g_total)
          loops_.apply_plane(made, read(g_total + at + i, w, b.residual), out, w, A(0), A(1), A(0), {kNone, A(0)});
        writer.flush(out, g_x + at + i, w);
        if (g_residual) {
          A* to = writer.destination(g_residual + at + i, b.out);
          if (to != g_z) std::memcpy(to, g_z, size_t(w) * sizeof(A));
          writer.flush(to, g_residual + at + i, w);
        }
      }
    }
  }

 private:
  // y of a group's d values, without residual and activation. c: the position of the first value in the line.
  void forward_without_finish(const T* x, T* y, int64_t c, A mean, A rstd, const Writer<T>& writer) {
    const int64_t d = lines_.d;
    const A* weight = &lines_.weight[size_t(c)];
    if (writer.can_store_to(y))
      return stored_.apply_line(x, y, d, mean, rstd, weight, lines_.bias_at(c), d, writer.streamed());
    alignas(64) T part[kPart];
    for (int64_t i = 0; i < d; i += kPart) {
      const int64_t w = std::min(kPart, d - i);
      stored_.apply_line(x + i, part, w, mean, rstd, weight + i, lines_.bias_at(c + i), d, false);
      storage().stream(part, y + i, w * int64_t(sizeof(T)));
    }
  }

  static constexpr int64_t kPart = 512;

  void load(const T* g, const T* x, const T* residual, int64_t at, int64_t c, int64_t w, A mean, A rstd, const A** g_z,
            const A** v) {
    Buffers<T>& b = *work_.buffers;
    if (Writer<T>::kConverts) {
      prefetch(g + at + w, w);
      prefetch(x + at + w, w);
    }
    *g_z = read(g + at, w, b.g);
    *v = read(x + at, w, b.x);
    if (lines_.finish.activation == kNone) return;
    const A* r = residual ? read(residual + at, w, b.residual) : nullptr;
    loops_.finish_gradient_line(*g_z, *v, r, b.z, w, mean, rstd, &lines_.weight[size_t(c)], lines_.bias_at(c),
                                lines_.finish);
    *g_z = b.z;
  }

  const Lines<T>& lines_;
  Plane<T> plane_;
  PlaneWork<T> work_;
  const Loops<A>& loops_;
  const StoredLoops<T>& stored_;
};

}  // namespace gammabeta
