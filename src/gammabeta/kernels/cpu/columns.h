// A tensor whose channels are contiguous: one row of C columns for every sample and position. Several narrow rows are
// folded into one, so that the loops are long. Each column has its own sums, in A over a block of rows and then in
// double.
#pragma once

#include <vector>

#include "elements.h"
#include "planes.h"

namespace gammabeta {

template <class T>
class Columns {
 public:
  typedef ArithmeticOf<T> A;

  // m rows of c columns. mask has a value for each row, or is null.
  Columns(int64_t m, int64_t c, const uint8_t* mask, Finish<A> finish)
      : n_rows_(m),
        c_(c),
        mask_(mask),
        finish_(finish),
        loops_(gammabeta::loops<A>()),
        stored_(gammabeta::stored_loops<T>()) {
    if (!mask && c < kTile) {
      fold_ = kTile / c;
      const int64_t most = m / kRowsOfBlock;
      if (fold_ > most) fold_ = most > 1 ? most : 1;
    }
    width_ = fold_ * c_;
    folded_rows_ = n_rows_ / fold_;
    tail_ = n_rows_ % fold_ * c_;
    rows_of_chunk_ = (folded_rows_ + kChunks - 1) / kChunks;
    rows_of_chunk_ = (rows_of_chunk_ + kRowsOfBlock - 1) / kRowsOfBlock * kRowsOfBlock;
    chunks_ = rows_of_chunk_ > 0 ? (folded_rows_ + rows_of_chunk_ - 1) / rows_of_chunk_ : 0;
    if (chunks_ == 0) chunks_ = 1;
  }

  // A copy for another thread, with its own buffers.
  Columns(const Columns& other)
      : n_rows_(other.n_rows_),
        c_(other.c_),
        fold_(other.fold_),
        width_(other.width_),
        folded_rows_(other.folded_rows_),
        tail_(other.tail_),
        rows_of_chunk_(other.rows_of_chunk_),
        chunks_(other.chunks_),
        mask_(other.mask_),
        finish_(other.finish_),
        loops_(other.loops_),
        stored_(other.stored_),
        zeros_(size_t(kTile)),
        buffers_(new ColumnBuffers) {}

  int64_t chunks() const { return chunks_; }
  int64_t width() const { return width_; }
  int64_t elements_of_chunk() const { return (rows_of_chunk_ + 1) * width_; }

  // A vector with a value for each column, repeated for the rows that are folded into one.
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

  // Moments of one chunk. mean and m2 have width() values; all columns have the same count.
  void moments(const T* x, int64_t chunk, double* mean, double* m2, double* count) {
    A *shift = buffers_->shift, *sum = buffers_->sum, *squares = buffers_->sum_x;
    const std::vector<int64_t> valid = valid_rows(chunk);
    const int64_t n_valid = int64_t(valid.size());
    *count = double(n_valid);
    for (int64_t i = 0; i < width_; ++i) mean[i] = m2[i] = 0;
    for (int64_t block = 0; block < n_valid; block += kRowsOfBlock) {
      const int64_t end = std::min(block + kRowsOfBlock, n_valid);
      for (int64_t first = 0; first < width_; first += kTile) {
        const int64_t w = std::min(kTile, width_ - first);
        for (int64_t i = 0; i < w; ++i) sum[i] = squares[i] = 0;
        const T* group[kRowsOfBlock];
        const int64_t n = end - block;
        for (int64_t i = 0; i < n; ++i) group[i] = x + valid[size_t(block + i)] * width_ + first;
        // The shift is the mean of some of the values themselves: at most 8 times m2 is subtracted from the squares.
        stored_.column_mean(group, n, w, shift);
        stored_.column_deviations(group, n, w, ahead(first), shift, sum, squares);
        loops_.merge_deviations(w, double(block), double(end - block), shift, sum, squares, mean + first, m2 + first);
      }
    }
  }

  // Merge the chunks' moments (width() values each) and the tail of x into the moments of the c columns.
  void merge(const T* x, const double* means, const double* m2s, const double* counts, RunningMoments* out) const {
    std::vector<A> buffer(static_cast<size_t>(tail_ > 0 ? tail_ : 1));
    const A* tail = tail_ > 0 ? read(x + folded_rows_ * width_, tail_, buffer.data()) : nullptr;
    // Chunk by chunk for all columns, since a chunk has one count.
    std::vector<double> mean(means, means + width_), m2(m2s, m2s + width_);
    double count = counts[0];
    for (int64_t chunk = 1; chunk < chunks_; ++chunk) {
      if (counts[chunk] == 0) continue;
      const double n = count + counts[chunk], share = counts[chunk] / n, weight = count * share;
      const double *other = means + chunk * width_, *other_m2 = m2s + chunk * width_;
      for (int64_t j = 0; j < width_; ++j) {
        const double delta = other[j] - mean[size_t(j)];
        mean[size_t(j)] += delta * share;
        m2[size_t(j)] += other_m2[j] + delta * delta * weight;
      }
      count = n;
    }
    for (int64_t i = 0; i < c_; ++i) {
      RunningMoments m;
      for (int64_t j = i; j < width_; j += c_) m.merge(count, mean[size_t(j)], m2[size_t(j)]);
      for (int64_t j = i; j < tail_; j += c_) m.merge(1, double(tail[j]), 0);
      out[i] = m;
    }
  }

  void apply(const T* x, const T* residual, T* y, int64_t chunk, const Parameters& p, const Writer<T>& writer) {
    for_each_tile(chunk, [&](int64_t at, int64_t first, int64_t w, bool valid) {
      if (!valid) return writer.zero(y + at, w);
      const A *mean = &p.mean[size_t(first)], *scale = &p.scale[size_t(first)], *shift = &p.shift[size_t(first)];
      if (applies_in_place() && writer.can_store_to(y + at))
        return stored_.apply_columns(x + at, residual ? residual + at : nullptr, y + at, w, mean, scale, shift, finish_,
                                     writer.streamed());
      const A* r = residual ? read(residual + at, w, buffers_->residual) : nullptr;
      A* out = writer.destination(y + at, buffers_->out);
      loops_.apply_columns(read(x + at, w, buffers_->x), r, out, w, mean, scale, shift, finish_);
      writer.flush(out, y + at, w);
    });
    writer.done();
  }

  // Write Σ∂ℓ/∂z and Σ∂ℓ/∂z·(x − mean) of one chunk to sum and sum_x, width() values each. Unless null, g_residual gets
  // ∂ℓ/∂z, and g_x gets scale·∂ℓ/∂z, which is ∂ℓ/∂x where the statistics are constants.
  void gradient_sums(const T* g, const T* x, const T* residual, T* g_residual, T* g_x, int64_t chunk,
                     const Parameters& p, const Writer<T>& writer, double* sum, double* sum_x) {
    A *part = buffers_->sum, *part_x = buffers_->sum_x;
    for (int64_t i = 0; i < width_; ++i) sum[i] = sum_x[i] = 0;
    const std::vector<int64_t> valid = valid_rows(chunk);
    const int64_t n_valid = int64_t(valid.size()), tail = chunk == chunks_ - 1 ? tail_ : 0;
    auto group = [&](const int64_t* rows, int64_t n, int64_t first, int64_t w) {
      reduce_rows(g, x, residual, g_residual, g_x, rows, n, first, w, p, writer);
    };
    for (int64_t i = 0; i < kTile; ++i) part[i] = part_x[i] = 0;
    const int64_t rows_together = reduces_in_place(g_residual, g_x) ? kRowsOfBlock : kRowsAtOnce;
    for (int64_t block = 0; block < n_valid; block += kRowsOfBlock) {
      const int64_t end = std::min(block + kRowsOfBlock, n_valid);
      for (int64_t first = 0; first < width_; first += kTile) {
        const int64_t w = std::min(kTile, width_ - first);
        for (int64_t row = block; row < end; row += rows_together) {
          const int64_t n = std::min<int64_t>(rows_together, end - row);
          group(&valid[size_t(row)], n, first, w);
        }
        loops_.add_and_clear(part, sum + first, w);
        loops_.add_and_clear(part_x, sum_x + first, w);
      }
    }
    for (int64_t first = 0; first < tail; first += kTile) {
      const int64_t w = std::min(kTile, tail - first);
      group(&folded_rows_, 1, first, w);
      loops_.add_and_clear(part, sum + first, w);
      loops_.add_and_clear(part_x, sum_x + first, w);
    }
    if (mask_) zero_masked(g_residual, g_x, chunk);
    writer.done();
  }

  // Add up the chunks' sums (width() values each) for each of the c columns.
  void add_up(const double* sums, double* out) const {
    for (int64_t i = 0; i < c_; ++i) out[i] = 0;
    for (int64_t chunk = 0; chunk < chunks_; ++chunk)
      for (int64_t j = 0; j < width_; j += c_)
        for (int64_t i = 0; i < c_; ++i) out[i] += sums[chunk * width_ + j + i];
  }

  void gradient_apply(const T* g, const T* x, const T* residual, T* g_x, T* g_residual, int64_t chunk,
                      const Parameters& p, const Backprops& back, const Writer<T>& writer) {
    for_each_tile(chunk, [&](int64_t at, int64_t first, int64_t w, bool valid) {
      if (!valid) {
        writer.zero(g_x + at, w);
        if (g_residual) writer.zero(g_residual + at, w);
        return;
      }
      const A *mean = &p.mean[size_t(first)], *a = &back.a[size_t(first)], *b = &back.b[size_t(first)],
              *c = &back.c[size_t(first)];
      if (finish_.activation == kNone && !g_residual && writer.can_store_to(g_x + at))
        return stored_.gradient_apply_columns(g + at, x + at, g_x + at, w, mean, a, b, c, writer.streamed());
      const A* v = read(x + at, w, buffers_->x);
      const A* g_z =
          gradient_of_z(g + at, v, residual ? residual + at : nullptr, first, w, p, buffers_->g, buffers_->z);
      A* out = writer.destination(g_x + at, buffers_->out);
      loops_.gradient_apply_columns(g_z, v, out, w, mean, a, b, c);
      writer.flush(out, g_x + at, w);
      if (g_residual) store(g_z, g_residual + at, w, writer);
    });
    writer.done();
  }

 private:
  static constexpr int64_t kTile = 2048 / sizeof(A);  // columns per tile
  static constexpr int64_t kRowsOfBlock = 64;         // rows whose sums are taken in A
  // Rows taken together where there is an activation: what stays in the nearest cache when converted.
  static constexpr int64_t kRowsAtOnce = Writer<T>::kConverts ? 8 : kRowsOfBlock;
  // Parts that threads share out. Their number is fixed, since the result depends on it.
  static constexpr int64_t kChunks = 64;

  struct ColumnBuffers {
    // x and g are used for conversions, z for activations.
    alignas(64) A x[kTile * 8], g[kTile * 8], z[kTile * kRowsAtOnce];
    alignas(64) A residual[kTile], out[kTile], shift[kTile], sum[kTile], sum_x[kTile];
  };

  // The rows of a chunk that the mask keeps.
  std::vector<int64_t> valid_rows(int64_t chunk) const {
    std::vector<int64_t> rows;
    const int64_t begin = chunk * rows_of_chunk_, end = end_of(chunk);
    rows.reserve(size_t(end > begin ? end - begin : 0));
    for (int64_t r = begin; r < end; ++r)
      if (!mask_ || mask_[r]) rows.push_back(r);
    return rows;
  }

  int64_t end_of(int64_t chunk) const {
    const int64_t end = (chunk + 1) * rows_of_chunk_;
    return end < folded_rows_ ? end : folded_rows_;
  }

  // Call f(position of the first element, first column, columns, whether the mask keeps it) for each tile of each row.
  template <class F>
  void for_each_tile(int64_t chunk, const F& f) {
    for (int64_t r = chunk * rows_of_chunk_; r < end_of(chunk); ++r)
      for (int64_t first = 0; first < width_; first += kTile)
        f(r * width_ + first, first, width_ - first < kTile ? width_ - first : kTile, !mask_ || mask_[r]);
    if (chunk == chunks_ - 1)
      for (int64_t first = 0; first < tail_; first += kTile)
        f(folded_rows_ * width_ + first, first, tail_ - first < kTile ? tail_ - first : kTile, true);
  }

  // Whether the loops over stored values can apply the finish.
  bool applies_in_place() const { return is_clamp(finish_.activation); }
  bool reduces_in_place(const T* g_residual, const T* g_x) const {
    return finish_.activation == kNone && !g_residual && !g_x;
  }

  // How many bytes ahead to prefetch in each row: the next tile, or the first tile of the next block. With a mask 0, as
  // the next row that counts is not known.
  int64_t ahead(int64_t first) const {
    if (mask_) return 0;
    return (first + kTile < width_ ? kTile : kRowsOfBlock * width_ - first) * int64_t(sizeof(T));
  }

  void load(const T* x, const int64_t* rows, int64_t n, int64_t first, int64_t w, A* buffer, const A** group) {
    for (int64_t i = 0; i < n; ++i) group[i] = read(x + rows[i] * width_ + first, w, buffer + i * kTile);
  }

  const A* gradient_of_z(const T* g, const A* x, const T* residual, int64_t first, int64_t w, const Parameters& p,
                         A* g_buffer, A* z_buffer) {
    const A* gradient = read(g, w, g_buffer);
    if (finish_.activation == kNone) return gradient;
    const A* r = residual ? read(residual, w, buffers_->residual) : nullptr;
    loops_.finish_gradient_columns(gradient, x, r, z_buffer, w, &p.mean[size_t(first)], &p.scale[size_t(first)],
                                   &p.shift[size_t(first)], finish_);
    return z_buffer;
  }

  void reduce_rows(const T* g, const T* x, const T* residual, T* g_residual, T* g_x, const int64_t* rows, int64_t n,
                   int64_t first, int64_t w, const Parameters& p, const Writer<T>& writer) {
    if (reduces_in_place(g_residual, g_x)) {
      const T *xs[kRowsOfBlock], *gs[kRowsOfBlock];
      for (int64_t i = 0; i < n; ++i) xs[i] = x + rows[i] * width_ + first, gs[i] = g + rows[i] * width_ + first;
      return stored_.column_gradient_sums(gs, xs, n, w, ahead(first), &p.mean[size_t(first)], buffers_->sum,
                                          buffers_->sum_x);
    }
    const A *xs[kRowsAtOnce], *gs[kRowsAtOnce];
    load(x, rows, n, first, w, buffers_->x, xs);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t at = rows[i] * width_ + first;
      gs[i] = gradient_of_z(g + at, xs[i], residual ? residual + at : nullptr, first, w, p, buffers_->g + i * kTile,
                            buffers_->z + i * kTile);
      if (g_residual) store(gs[i], g_residual + at, w, writer);
      if (g_x) {
        A* out = writer.destination(g_x + at, buffers_->out);
        // The statistics are constants. x is not read, since 0·x is NaN where x is not finite.
        loops_.gradient_apply_columns(gs[i], gs[i], out, w, &p.mean[size_t(first)], &p.scale[size_t(first)],
                                      zeros_.data(), zeros_.data());
        writer.flush(out, g_x + at, w);
      }
    }
    stored_loops<A>().column_gradient_sums(gs, xs, n, w, 0, &p.mean[size_t(first)], buffers_->sum, buffers_->sum_x);
  }

  void store(const A* values, T* to, int64_t w, const Writer<T>& writer) {
    A* out = writer.destination(to, buffers_->out);
    if (out != values) std::memcpy(out, values, size_t(w) * sizeof(A));
    writer.flush(out, to, w);
  }

  void zero_masked(T* g_residual, T* g_x, int64_t chunk) {
    for (int64_t r = chunk * rows_of_chunk_; r < end_of(chunk); ++r) {
      if (mask_[r]) continue;
      if (g_residual) std::memset(static_cast<void*>(g_residual + r * width_), 0, size_t(width_) * sizeof(T));
      if (g_x) std::memset(static_cast<void*>(g_x + r * width_), 0, size_t(width_) * sizeof(T));
    }
  }

  int64_t n_rows_, c_, fold_ = 1, width_, folded_rows_, tail_, rows_of_chunk_, chunks_;
  const uint8_t* mask_;
  Finish<A> finish_;
  const Loops<A>& loops_;
  const StoredLoops<T>& stored_;
  // Only a thread's own copy has these.
  std::vector<A> zeros_;
  std::unique_ptr<ColumnBuffers> buffers_;
};

}  // namespace gammabeta
