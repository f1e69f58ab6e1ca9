// Elements as they are stored (T) and as they are computed with (A), converted piece by piece in the nearest cache.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "loops.h"

namespace gammabeta {

// Outputs of at least this many bytes are written past the caches. That took a forward on 8 to 13 MB 0.28 ns per value
// instead of 0.4 to 0.7. Training steps of MobileNetV2 and EfficientNet-B0 took the same time with 4, 8, 12 and 24 MB
// here.
constexpr int64_t kStreamedBytes = int64_t(8) << 20;

inline void convert(const bfloat16* from, float* to, int64_t n) { storage().load_bfloat16(&from->bits, to, n); }
inline void convert(const float16* from, float* to, int64_t n) { storage().load_float16(&from->bits, to, n); }
inline void convert(const float* from, bfloat16* to, int64_t n) { storage().store_bfloat16(from, &to->bits, n); }
inline void convert(const float* from, float16* to, int64_t n) { storage().store_float16(from, &to->bits, n); }
inline void convert(const float* from, float* to, int64_t n) { std::memcpy(to, from, size_t(n) * sizeof(float)); }
inline void convert(const double* from, double* to, int64_t n) { std::memcpy(to, from, size_t(n) * sizeof(double)); }

// Convert n_rows rows of n elements. A stride is the distance from one row to the next.
template <class T>
void convert_rows(const T* from, int64_t from_stride, float* to, int64_t to_stride, int64_t n_rows, int64_t n) {
  for (int64_t r = 0; r < n_rows; ++r) convert(from + r * from_stride, to + r * to_stride, n);
}
template <class T>
void convert_rows(const float* from, int64_t from_stride, T* to, int64_t to_stride, int64_t n_rows, int64_t n) {
  for (int64_t r = 0; r < n_rows; ++r) convert(from + r * from_stride, to + r * to_stride, n);
}
inline void convert_rows(const float* from, int64_t from_stride, float* to, int64_t to_stride, int64_t n_rows,
                         int64_t n) {
  loops<float>().copy_rows(from, from_stride, to, to_stride, n_rows, n);
}
inline void convert_rows(const double* from, int64_t from_stride, double* to, int64_t to_stride, int64_t n_rows,
                         int64_t n) {
  loops<double>().copy_rows(from, from_stride, to, to_stride, n_rows, n);
}

// Prefetch n elements.
template <class T>
void prefetch(const T* from, int64_t n) {
  const char* line = reinterpret_cast<const char*>(from);
  for (int64_t byte = 0; byte < n * int64_t(sizeof(T)); byte += 64) __builtin_prefetch(line + byte, 0, 2);
}

// n elements for reading: in place where the type allows, else converted into the buffer.
template <class T>
const ArithmeticOf<T>* read(const T* from, int64_t n, ArithmeticOf<T>* buffer) {
  convert(from, buffer, n);
  return buffer;
}
inline const float* read(const float* from, int64_t, float*) { return from; }
inline const double* read(const double* from, int64_t, double*) { return from; }

// Writes results: directly, or through a buffer where they are converted or go past the caches.
template <class T>
class Writer {
 public:
  typedef ArithmeticOf<T> A;
  static constexpr bool kConverts = sizeof(T) != sizeof(A);

  explicit Writer(bool streamed) : streamed_(streamed) {}

  A* destination(T* to, A* buffer) const {
    if constexpr (!kConverts)
      if (!streamed_) return to;
    return buffer;
  }

  // Move what was written to destination(to, buffer) on to `to`.
  void flush(const A* buffer, T* to, int64_t n) const {
    if constexpr (kConverts) {
      if (!streamed_) return convert(buffer, to, n);
      constexpr int64_t kPart = 512;
      T part[kPart];
      for (int64_t i = 0; i < n; i += kPart) {
        const int64_t m = n - i < kPart ? n - i : kPart;
        convert(buffer + i, part, m);
        storage().stream(part, to + i, m * int64_t(sizeof(T)));
      }
    } else if (streamed_) {
      storage().stream(buffer, to, n * int64_t(sizeof(T)));
    }
  }

  void zero(T* to, int64_t n) const { std::memset(static_cast<void*>(to), 0, size_t(n) * sizeof(T)); }

  bool streamed() const { return streamed_; }

  // Whether a loop of StoredLoops may write directly to that address.
  bool can_store_to(const T* to) const {
    return !streamed_ || reinterpret_cast<uintptr_t>(to) % (kConverts ? 32 : 64) == 0;
  }

  void done() const {
    if (streamed_) storage().fence();
  }

 private:
  bool streamed_;
};

// Elements per piece: few enough that a handful of buffers stays in the nearest cache.
template <class T>
constexpr int64_t kPiece = (Writer<T>::kConverts ? 16384 : 8192) / sizeof(ArithmeticOf<T>);

// The buffers of one thread.
template <class T>
struct Buffers {
  typedef ArithmeticOf<T> A;
  alignas(64) A x[kPiece<T>], g[kPiece<T>], residual[kPiece<T>], masked_x[kPiece<T>], z[kPiece<T>], out[kPiece<T>];
  alignas(64) uint8_t mask[kPiece<T>];
};

inline int64_t count_true(const uint8_t* mask, int64_t n) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) count += mask[i] != 0;
  return count;
}

// Count, mean and sum of squared deviations, merged as Moments.merge does (Chan, Golub & LeVeque 1983, eq. 2.1).
struct RunningMoments {
  double count = 0, mean = 0, m2 = 0;

  void merge(double other_count, double other_mean, double other_m2) {
    if (other_count == 0) return;
    if (count == 0) {
      count = other_count, mean = other_mean, m2 = other_m2;
      return;
    }
    const double n = count + other_count, delta = other_mean - mean, share = other_count / n;
    m2 += other_m2 + delta * delta * (count * share);
    mean += delta * share;
    count = n;
  }

  void merge(const RunningMoments& other) { merge(other.count, other.mean, other.m2); }

  // Merge values by the sum of their deviations from shift and the sum of the squared deviations.
  void merge_deviations(double other_count, double shift, double sum, double squares) {
    if (other_count == 0) return;
    const double spread = squares - sum * sum / other_count;
    merge(other_count, shift + sum / other_count, spread > 0 ? spread : spread * 0);
  }
};

}  // namespace gammabeta
