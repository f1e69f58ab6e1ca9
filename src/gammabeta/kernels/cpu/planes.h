// A plane: one channel (or group) of a tensor whose positions are contiguous, that is N rows of S elements, a stride
// apart. It is walked in pieces: a part of a long row, or several short rows gathered into one buffer.
#pragma once

#include "elements.h"

namespace gammabeta {

template <class T>
class Plane {
 public:
  typedef ArithmeticOf<T> A;

  // mask_stride: the distance from one row's mask to the next.
  Plane(int64_t n, int64_t stride, int64_t s, int64_t mask_stride) : stride_(stride), s_(s), mask_stride_(mask_stride) {
    rows_of_piece_ = s < kPiece<T> ? kPiece<T> / (s > 0 ? s : 1) : 1;
    if (rows_of_piece_ > n) rows_of_piece_ = n > 0 ? n : 1;
    // Only short rows are gathered; longer ones are worked on in place.
    if (s >= kNotGathered) rows_of_piece_ = 1;
    pieces_of_row_ = rows_of_piece_ > 1 || s <= kPiece<T> ? 1 : (s + kPiece<T> - 1) / kPiece<T>;
    n_ = n;
    pieces_ = rows_of_piece_ > 1 ? (n + rows_of_piece_ - 1) / rows_of_piece_ : n * pieces_of_row_;
  }

  int64_t pieces() const { return pieces_; }
  bool gathers() const { return rows_of_piece_ > 1; }

  struct Piece {
    int64_t row, rows, first, length;  // `length` elements of each row, starting at `first`
    int64_t size() const { return rows * length; }
  };

  Piece piece(int64_t i) const {
    if (gathers()) {
      const int64_t row = i * rows_of_piece_, left = n_ - row;
      return {row, left < rows_of_piece_ ? left : rows_of_piece_, 0, s_};
    }
    const int64_t row = i / pieces_of_row_, first = i % pieces_of_row_ * kPiece<T>, left = s_ - first;
    return {row, 1, first, pieces_of_row_ == 1 ? s_ : left < kPiece<T> ? left : kPiece<T>};
  }

  // How many neighbouring channels to take together, piece by piece, so that memory is read in longer stretches than a
  // short row. As many as stay in the second-level cache between the two passes, which both read `tensors` tensors.
  int64_t interleaved(int tensors) const {
    if (gathers()) return 1;
    const int64_t channel = n_ * s_ * int64_t(sizeof(T)) * tensors, row = s_ * int64_t(sizeof(T));
    int64_t together = 1;
    while (2 * together * channel <= kInterleavedBytes && together * row < kStretchBytes) together *= 2;
    return together;
  }

  // The first element of a piece that is not gathered.
  int64_t begin(const Piece& p) const { return p.row * stride_ + p.first; }

  const A* load(const T* plane, const Piece& p, A* buffer) const {
    if (!gathers()) return read(plane + p.row * stride_ + p.first, p.length, buffer);
    convert_rows(plane + p.row * stride_, stride_, buffer, s_, p.rows, s_);
    return buffer;
  }

  const uint8_t* load_mask(const uint8_t* mask, const Piece& p, uint8_t* buffer) const {
    if (!gathers() || mask_stride_ == s_) return mask + p.row * mask_stride_ + p.first;
    for (int64_t r = 0; r < p.rows; ++r) std::memcpy(buffer + r * s_, mask + (p.row + r) * mask_stride_, size_t(s_));
    return buffer;
  }

  A* destination(const Writer<T>& writer, T* plane, const Piece& p, A* buffer) const {
    return gathers() ? buffer : writer.destination(plane + p.row * stride_ + p.first, buffer);
  }

  void flush(const Writer<T>& writer, const A* values, T* plane, const Piece& p) const {
    if (!gathers()) return writer.flush(values, plane + p.row * stride_ + p.first, p.length);
    convert_rows(values, s_, plane + p.row * stride_, stride_, p.rows, s_);
  }

 private:
  static constexpr int64_t kNotGathered = 512, kInterleavedBytes = int64_t(512) << 10,
                           kStretchBytes = int64_t(16) << 10;
  int64_t n_, stride_, s_, mask_stride_, rows_of_piece_, pieces_of_row_, pieces_;
};

// The backward map of one channel: g_x = a·g + b·(x − mean) + c.
template <class A>
struct Backprop {
  A a, b, c;
};

template <class T>
struct PlaneWork {
  typedef ArithmeticOf<T> A;
  const Loops<A>& loops = gammabeta::loops<A>();
  const StoredLoops<T>& stored = gammabeta::stored_loops<T>();
  Plane<T> plane;
  const uint8_t* mask;
  Finish<A> finish;
  std::unique_ptr<Buffers<T>> buffers{new Buffers<T>};

  PlaneWork(const Plane<T>& plane_, const uint8_t* mask_, Finish<A> finish_)
      : plane(plane_), mask(mask_), finish(finish_) {}

  // Merge the moments of the pieces [begin, end) into m. Deviations are taken from a shift near the mean: the mean of
  // the first kFirst values, later that of all pieces so far. What the shift makes us subtract from the squares is
  // bounded for any values: by n/kFirst times the piece's own m2, or by twice the m2 of all pieces so far.
  void moments(const T* x, int64_t begin, int64_t end, bool center, RunningMoments& m) {
    Buffers<T>& b = *buffers;
    for (int64_t i = begin; i < end; ++i) {
      const auto p = plane.piece(i);
      const int64_t n = p.size();
      if (!mask && !plane.gathers()) {
        piece_moments(x + plane.begin(p), n, center, m);
        continue;
      }
      const A* v = load_x(x, p);
      double count = double(n);
      A shift = 0, sum, squares;
      if (mask) {
        const uint8_t* valid = plane.load_mask(mask, p, b.mask);
        count = double(count_true(valid, n));
        if (count == 0) continue;
        if (center) {
          loops.select(v, valid, A(0), b.z, n);
          shift = A(double(loops.sum(b.z, n)) / count);
        }
        loops.select(v, valid, shift, b.masked_x, n);
        v = b.masked_x;
      } else if (center) {
        shift = m.count > 0 ? A(m.mean) : mean_of_first(v, n);
      }
      loops.deviations(v, n, shift, &sum, &squares);
      // The shift was far from this piece's mean after all: take the deviations again, from that mean.
      if (center && 32 * double(sum) * double(sum) > count * double(squares) && !mask) {
        shift += A(double(sum) / count);
        loops.deviations(v, n, shift, &sum, &squares);
      }
      if (center)
        m.merge_deviations(count, double(shift), double(sum), double(squares));
      else
        m.count += count, m.m2 += double(squares);
    }
  }

  // The same for n values in place.
  void piece_moments(const T* x, int64_t n, bool center, RunningMoments& m) {
    A shift = 0, sum, squares;
    if (center && m.count > 0) {
      shift = A(m.mean);
    } else if (center) {
      int64_t few = kFirst;
      while (few > n) few /= 2;
      stored.deviations(x, few < 16 ? 1 : few, A(0), &sum, &squares);
      shift = few < 16 ? sum : sum / A(few);
    }
    stored.deviations(x, n, shift, &sum, &squares);
    if (center && 32 * double(sum) * double(sum) > double(n) * double(squares)) {
      shift += A(double(sum) / double(n));
      stored.deviations(x, n, shift, &sum, &squares);
    }
    if (center)
      m.merge_deviations(double(n), double(shift), double(sum), double(squares));
    else
      m.count += double(n), m.m2 += double(squares);
  }

  void apply(const T* x, const T* residual, T* y, int64_t begin, int64_t end, const ChannelAffine<A>& f,
             const Writer<T>& writer) {
    Buffers<T>& b = *buffers;
    for (int64_t i = begin; i < end; ++i) {
      const auto p = plane.piece(i);
      const int64_t n = p.size();
      if (in_place(y, p, writer)) {
        const int64_t at = plane.begin(p);
        stored.apply_plane(x + at, residual ? residual + at : nullptr, y + at, n, f, finish, writer.streamed());
        continue;
      }
      const A* v = load_x(x, p);
      const A* r = residual ? plane.load(residual, p, b.residual) : nullptr;
      A* out = plane.destination(writer, y, p, b.out);
      if (mask) {
        loops.apply_plane(v, r, b.z, n, f.mean, f.scale, f.shift, finish);
        loops.select(b.z, plane.load_mask(mask, p, b.mask), A(0), out, n);
      } else {
        loops.apply_plane(v, r, out, n, f.mean, f.scale, f.shift, finish);
      }
      plane.flush(writer, out, y, p);
    }
  }

  // Load x and ∂ℓ/∂z of a piece. Where masked out, ∂ℓ/∂z is 0 and x is the mean.
  void load_gradient(const T* g, const T* x, const T* residual, const typename Plane<T>::Piece& p,
                     const ChannelAffine<A>& f, const A** g_z, const A** v) {
    Buffers<T>& b = *buffers;
    const int64_t n = p.size();
    if (loaded_gradient_ && loaded_gradient_ == x) {
      *g_z = loaded_g_z_;
      *v = loaded_;
      return;
    }
    *g_z = plane.load(g, p, b.g);
    *v = plane.load(x, p, b.x);
    if (finish.activation != kNone) {
      const A* r = residual ? plane.load(residual, p, b.residual) : nullptr;
      loops.finish_gradient_plane(*g_z, *v, r, b.z, n, f.mean, f.scale, f.shift, finish);
      *g_z = b.z;
    }
    if (mask) {
      const uint8_t* valid = plane.load_mask(mask, p, b.mask);
      loops.select(*g_z, valid, A(0), b.residual, n);
      loops.select(*v, valid, f.mean, b.masked_x, n);
      *g_z = b.residual;
      *v = b.masked_x;
    }
    if (plane.pieces() > 1) return;
    loaded_gradient_ = x;
    loaded_ = *v;
    loaded_g_z_ = *g_z;
  }

  // Add Σ∂ℓ/∂z to sum and Σ∂ℓ/∂z·(x − mean) to sum_x. Write ∂ℓ/∂z to g_residual unless that is null.
  void gradient_sums(const T* g, const T* x, const T* residual, T* g_residual, int64_t begin, int64_t end,
                     const ChannelAffine<A>& f, const Writer<T>& writer, double* sum, double* sum_x) {
    for (int64_t i = begin; i < end; ++i) {
      const auto p = plane.piece(i);
      const A *g_z, *v;
      A s, q;
      if (!g_residual && in_place(p)) {
        const int64_t at = plane.begin(p);
        stored.gradient_sums_plane(g + at, x + at, residual ? residual + at : nullptr, p.size(), f, finish, &s, &q);
        *sum += double(s);
        *sum_x += double(q);
        continue;
      }
      load_gradient(g, x, residual, p, f, &g_z, &v);
      loops.gradient_sums_plane(g_z, v, p.size(), f.mean, &s, &q);
      *sum += double(s);
      *sum_x += double(q);
      if (g_residual) store(g_z, g_residual, p, writer);
    }
  }

  void gradient_apply(const T* g, const T* x, const T* residual, T* g_x, T* g_residual, int64_t begin, int64_t end,
                      const ChannelAffine<A>& f, const Backprop<A>& back, const Writer<T>& writer) {
    Buffers<T>& b = *buffers;
    // Where the statistics are constants, ∂ℓ/∂x does not depend on x: g is read in place of x, since 0·x is NaN where x
    // is not finite. With an activation z needs x, so the loop in place, which takes one x for both, is not used then.
    const bool constant = back.b == A(0), unfinished = finish.activation == kNone;
    for (int64_t i = begin; i < end; ++i) {
      const auto p = plane.piece(i);
      const A *g_z, *v;
      if (!residual == !g_residual && (unfinished || !constant) && in_place(g_x, p, writer) &&
          (!g_residual || in_place(g_residual, p, writer))) {
        const int64_t at = plane.begin(p);
        stored.gradient_apply_plane(g + at, (constant ? g : x) + at, residual ? residual + at : nullptr, g_x + at,
                                    g_residual ? g_residual + at : nullptr, p.size(), f, back.a, back.b, back.c, finish,
                                    writer.streamed());
        continue;
      }
      load_gradient(g, x, residual, p, f, &g_z, &v);
      if (constant) v = g_z;
      A* out = plane.destination(writer, g_x, p, b.out);
      if (mask) {
        loops.gradient_apply_plane(g_z, v, b.g, p.size(), f.mean, back.a, back.b, back.c);
        loops.select(b.g, plane.load_mask(mask, p, b.mask), A(0), out, p.size());
      } else {
        loops.gradient_apply_plane(g_z, v, out, p.size(), f.mean, back.a, back.b, back.c);
      }
      plane.flush(writer, out, g_x, p);
      if (g_residual) store(g_z, g_residual, p, writer);
    }
  }

 private:
  static constexpr int64_t kFirst = 128;

  // Whether a piece is worked on in place, without buffers.
  bool in_place(const typename Plane<T>::Piece&) const {
    return !mask && !plane.gathers() && is_clamp(finish.activation);
  }
  bool in_place(const T* to, const typename Plane<T>::Piece& p, const Writer<T>& writer) const {
    return in_place(p) && writer.can_store_to(to + plane.begin(p));
  }

  // The mean of the first values: of a power of 2 of them, so that equal values have exactly their value as mean.
  A mean_of_first(const A* v, int64_t n) const {
    int64_t few = kFirst;
    while (few > n) few /= 2;
    return few < 16 ? v[0] : loops.sum(v, few) / A(few);
  }

  // A plane of a single piece stays loaded from one pass to the next.
  const A* load_x(const T* x, const typename Plane<T>::Piece& p) {
    if (loaded_x_ && loaded_x_ == x) return loaded_;
    const A* v = plane.load(x, p, buffers->x);
    if (plane.pieces() == 1) loaded_x_ = x, loaded_ = v;
    return v;
  }

  const T *loaded_x_ = nullptr, *loaded_gradient_ = nullptr;
  const A *loaded_ = nullptr, *loaded_g_z_ = nullptr;

  void store(const A* values, T* to, const typename Plane<T>::Piece& p, const Writer<T>& writer) {
    A* out = plane.destination(writer, to, p, buffers->out);
    if (out != values) std::memcpy(out, values, size_t(p.size()) * sizeof(A));
    plane.flush(writer, out, to, p);
  }
};

}  // namespace gammabeta
