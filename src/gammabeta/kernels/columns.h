// A tensor whose channels are contiguous: rows of C columns, one for every sample and position. Narrow rows are taken
// several as one, so that the loops are long; sums are kept for each column, in A over some rows and then in double.
#pragma once

#include <vector>

#include "elements.h"
#include "planes.h"

namespace gammabeta {

template <class T>
class Columns {
 public:
  typedef ArithmeticOf<T> A;

  // m rows of c columns; mask has a value for each row, or is null.
  Columns(int64_t m, int64_t c, const uint8_t* mask, Finish<A> finish)
      : m_(m), c_(c), mask_(mask), finish_(finish), rows_(gammabeta::rows<A>()) {
    if (!mask && c < kTile) {
      folds_ = kTile / c;
      const int64_t most = m / kRowsOfBlock;
      if (folds_ > most) folds_ = most > 1 ? most : 1;
    }
    width_ = folds_ * c_;
    folded_rows_ = m_ / folds_;
    rest_ = m_ % folds_ * c_;
    rows_of_chunk_ = (folded_rows_ + kChunks - 1) / kChunks;
    rows_of_chunk_ = (rows_of_chunk_ + kRowsOfBlock - 1) / kRowsOfBlock * kRowsOfBlock;
    chunks_ = rows_of_chunk_ > 0 ? (folded_rows_ + rows_of_chunk_ - 1) / rows_of_chunk_ : 0;
    if (chunks_ == 0) chunks_ = 1;
  }

  int64_t chunks() const { return chunks_; }
  int64_t width() const { return width_; }
  int64_t elements_of_chunk() const { return (rows_of_chunk_ + 1) * width_; }

  // A vector with a value for each column, repeated for the rows that are taken as one.
  std::vector<A> repeated(const double* values) const {
    std::vector<A> all(static_cast<size_t>(width_));
    for (int64_t i = 0; i < width_; ++i) all[size_t(i)] = A(values[i % c_]);
    return all;
  }

  struct Parameters {
    std::vector<A> mean, scale, shift;
  };
  struct Backprops {
    std::vector<A> a, b, c;
  };

  // Moments of one chunk: mean and m2 have width() values; the count is the same for all.
  void moments(const T* x, int64_t chunk, double* mean, double* m2, double* count) {
    std::vector<A> vectors(size_t(3 * kTile));
    A *shift = vectors.data(), *sum = shift + kTile, *squares = sum + kTile;
    const std::vector<int64_t> valid = rows_of(chunk);
    *count = double(valid.size());
    for (int64_t first = 0; first < width_; first += kTile) {
      const int64_t w = width_ - first < kTile ? width_ - first : kTile;
      for (int64_t i = 0; i < w; ++i) mean[first + i] = m2[first + i] = 0;
      for (size_t block = 0; block < valid.size(); block += kRowsOfBlock) {
        const size_t end = block + kRowsOfBlock < valid.size() ? block + kRowsOfBlock : valid.size();
        for (int64_t i = 0; i < w; ++i) sum[i] = squares[i] = 0;
        for (size_t row = block; row < end; row += kRowsAtOnce) {
          const int64_t n = int64_t(end - row) < kRowsAtOnce ? int64_t(end - row) : kRowsAtOnce;
          const A* group[kRowsAtOnce];
          load(x, &valid[row], n, first, w, x_buffer_, group);
          // About the mean of some of the values themselves: what is taken from the squares is at most 8 times m2.
          if (row == block) rows_.column_mean(group, n, w, shift);
          rows_.column_deviations(group, n, w, shift, sum, squares);
        }
        rows_.merge_deviations(w, double(block), double(end - block), shift, sum, squares, mean + first, m2 + first);
      }
    }
  }

  // Of the chunks' moments (width() values each) and the rest of x those of the c columns.
  void merge(const T* x, const double* means, const double* m2s, const double* counts, RunningMoments* out) const {
    std::vector<A> buffer(static_cast<size_t>(rest_ > 0 ? rest_ : 1));
    const A* rest = rest_ > 0 ? read(x + folded_rows_ * width_, rest_, buffer.data()) : nullptr;
    for (int64_t i = 0; i < c_; ++i) {
      RunningMoments m;
      for (int64_t chunk = 0; chunk < chunks_; ++chunk)
        for (int64_t j = i; j < width_; j += c_)
          m.merge(counts[chunk], means[chunk * width_ + j], m2s[chunk * width_ + j]);
      for (int64_t j = i; j < rest_; j += c_) m.merge(1, double(rest[j]), 0);
      out[i] = m;
    }
  }

  void apply(const T* x, const T* residual, T* y, int64_t chunk, const Parameters& p, const Writer<T>& writer) {
    each_row(chunk, [&](int64_t at, int64_t first, int64_t w, bool valid) {
      if (!valid) return writer.zero(y + at, w);
      const A* r = residual ? read(residual + at, w, residual_buffer_) : nullptr;
      A* out = writer.place(y + at, out_buffer_);
      rows_.apply_v(read(x + at, w, x_buffer_), r, out, w, &p.mean[first], &p.scale[first], &p.shift[first], finish_);
      writer.put(out, y + at, w);
    });
    writer.done();
  }

  // Σ∂ℓ/∂z and Σ∂ℓ/∂z·(x − mean) of one chunk, width() values each, into sum and sum_x. Unless null, ∂ℓ/∂z goes to
  // g_residual and scale·∂ℓ/∂z, which is ∂ℓ/∂x where the statistics are constants, to g_x.
  void gradient_sums(const T* g, const T* x, const T* residual, T* g_residual, T* g_x, int64_t chunk,
                     const Parameters& p, const Writer<T>& writer, double* sum, double* sum_x) {
    std::vector<A> vectors(size_t(3 * kTile));
    A *part = vectors.data(), *part_x = part + kTile, *zeros = part_x + kTile;
    for (int64_t i = 0; i < width_; ++i) sum[i] = sum_x[i] = 0;
    const std::vector<int64_t> valid = rows_of(chunk);
    const int64_t rest = chunk == chunks_ - 1 ? rest_ : 0;
    for (int64_t first = 0; first < width_; first += kTile) {
      const int64_t w = width_ - first < kTile ? width_ - first : kTile;
      size_t row = 0;
      while (row < valid.size()) {
        const int64_t left = int64_t(valid.size() - row), n = left < kRowsAtOnce ? left : kRowsAtOnce;
        gradient_group(g, x, residual, g_residual, g_x, &valid[row], n, first, w, p, writer, zeros, part, part_x);
        row += size_t(n);
        if (row % kRowsOfBlock == 0) {
          rows_.drain(part, sum + first, w);
          rows_.drain(part_x, sum_x + first, w);
        }
      }
      if (first < rest) {
        const int64_t m = rest - first < kTile ? rest - first : kTile;
        gradient_group(g, x, residual, g_residual, g_x, &folded_rows_, 1, first, m, p, writer, zeros, part, part_x);
      }
      rows_.drain(part, sum + first, w);
      rows_.drain(part_x, sum_x + first, w);
    }
    if (mask_) zero_masked(g_residual, g_x, chunk);
    writer.done();
  }

  // The chunks' sums, width() values each, added up for each of the c columns.
  void add_up(const double* sums, double* out) const {
    for (int64_t i = 0; i < c_; ++i) {
      double s = 0;
      for (int64_t chunk = 0; chunk < chunks_; ++chunk)
        for (int64_t j = i; j < width_; j += c_) s += sums[chunk * width_ + j];
      out[i] = s;
    }
  }

  void gradient_apply(const T* g, const T* x, const T* residual, T* g_x, T* g_residual, int64_t chunk,
                      const Parameters& p, const Backprops& back, const Writer<T>& writer) {
    each_row(chunk, [&](int64_t at, int64_t first, int64_t w, bool valid) {
      if (!valid) {
        writer.zero(g_x + at, w);
        if (g_residual) writer.zero(g_residual + at, w);
        return;
      }
      const A* v = read(x + at, w, x_buffer_);
      const A* g_z = finished(g + at, v, residual ? residual + at : nullptr, first, w, p, g_buffer_, residual_buffer_,
                              z_buffer_);
      A* out = writer.place(g_x + at, out_buffer_);
      rows_.gradient_apply_v(g_z, v, out, w, &p.mean[first], &back.a[first], &back.b[first], &back.c[first]);
      writer.put(out, g_x + at, w);
      if (g_residual) store(g_z, g_residual + at, w, writer);
    });
    writer.done();
  }

 private:
  static constexpr int64_t kTile = 512;         // columns at once
  static constexpr int64_t kRowsOfBlock = 64;   // rows whose sums are kept in A
  static constexpr int64_t kChunks = 64;        // parts that threads share out: how many there are fixes the result

  // The rows of a chunk that count.
  std::vector<int64_t> rows_of(int64_t chunk) const {
    std::vector<int64_t> rows;
    const int64_t begin = chunk * rows_of_chunk_, end = last_of(chunk);
    rows.reserve(size_t(end > begin ? end - begin : 0));
    for (int64_t r = begin; r < end; ++r)
      if (!mask_ || mask_[r]) rows.push_back(r);
    return rows;
  }

  int64_t last_of(int64_t chunk) const {
    const int64_t end = (chunk + 1) * rows_of_chunk_;
    return end < folded_rows_ ? end : folded_rows_;
  }

  // f(position of the first element, first column, columns, whether it counts) for all tiles of all rows, from the
  // last one on: a pass before this one ended there, and that is what is still in the caches.
  template <class F>
  void each_row(int64_t chunk, const F& f) {
    if (chunk == chunks_ - 1)
      for (int64_t first = 0; first < rest_; first += kTile)
        f(folded_rows_ * width_ + first, first, rest_ - first < kTile ? rest_ - first : kTile, true);
    for (int64_t r = last_of(chunk) - 1; r >= chunk * rows_of_chunk_; --r)
      for (int64_t first = 0; first < width_; first += kTile)
        f(r * width_ + first, first, width_ - first < kTile ? width_ - first : kTile, !mask_ || mask_[r]);
  }

  void load(const T* x, const int64_t* which, int64_t n, int64_t first, int64_t w, A* buffer, const A** group) {
    for (int64_t i = 0; i < n; ++i) group[i] = read(x + which[i] * width_ + first, w, buffer + i * kTile);
  }

  const A* finished(const T* g, const A* x, const T* residual, int64_t first, int64_t w, const Parameters& p,
                    A* g_buffer, A* residual_buffer, A* z_buffer) {
    const A* gradient = read(g, w, g_buffer);
    if (finish_.activation == kNone) return gradient;
    const A* r = residual ? read(residual, w, residual_buffer) : nullptr;
    rows_.finish_gradient_v(gradient, x, r, z_buffer, w, &p.mean[first], &p.scale[first], &p.shift[first], finish_);
    return z_buffer;
  }

  void gradient_group(const T* g, const T* x, const T* residual, T* g_residual, T* g_x, const int64_t* which, int64_t n,
                      int64_t first, int64_t w, const Parameters& p, const Writer<T>& writer, const A* zeros, A* part,
                      A* part_x) {
    const A *xs[kRowsAtOnce], *gs[kRowsAtOnce];
    load(x, which, n, first, w, x_buffer_, xs);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t at = which[i] * width_ + first;
      gs[i] = finished(g + at, xs[i], residual ? residual + at : nullptr, first, w, p, g_buffer_ + i * kTile,
                       residual_buffer_, z_buffer_ + i * kTile);
      if (g_residual) store(gs[i], g_residual + at, w, writer);
      if (g_x) {
        A* out = writer.place(g_x + at, out_buffer_);
        rows_.gradient_apply_v(gs[i], xs[i], out, w, &p.mean[first], &p.scale[first], zeros, zeros);
        writer.put(out, g_x + at, w);
      }
    }
    rows_.column_gradient_sums(gs, xs, n, w, &p.mean[first], part, part_x);
  }

  void store(const A* values, T* to, int64_t w, const Writer<T>& writer) {
    A* out = writer.place(to, out_buffer_);
    if (out != values) std::memcpy(out, values, size_t(w) * sizeof(A));
    writer.put(out, to, w);
  }

  void zero_masked(T* g_residual, T* g_x, int64_t chunk) {
    for (int64_t r = chunk * rows_of_chunk_; r < last_of(chunk); ++r) {
      if (mask_[r]) continue;
      if (g_residual) std::memset(static_cast<void*>(g_residual + r * width_), 0, size_t(width_) * sizeof(T));
      if (g_x) std::memset(static_cast<void*>(g_x + r * width_), 0, size_t(width_) * sizeof(T));
    }
  }

  int64_t m_, c_, folds_ = 1, width_, folded_rows_, rest_, rows_of_chunk_, chunks_;
  const uint8_t* mask_;
  Finish<A> finish_;
  const Rows<A>& rows_;
  // For each thread a copy of this object.
  alignas(64) A x_buffer_[kTile * kRowsAtOnce], g_buffer_[kTile * kRowsAtOnce], z_buffer_[kTile * kRowsAtOnce];
  alignas(64) A residual_buffer_[kTile], out_buffer_[kTile];
};

}  // namespace gammabeta
