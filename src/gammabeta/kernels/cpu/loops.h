// The vectorized loops that all kernels are made of, over contiguous values of one type. Nothing else is vectorized.
//
// Each loop exists once for every instruction set (loops.cpp) and is called through a table, so that one binary runs on
// any processor. A is the type of the arithmetic, float or double; 16-bit values are converted before and after.
//
// The suffix of a loop says which parameters it takes, and so where it is called:
//   _plane    scalars: those of one channel (planes.h)
//   _columns  vectors with a value for every element (columns.h)
//   _line     one mean and one standard deviation, with a vector of weights (lines.h)
#pragma once

#include <cstdint>

#include "activation.h"

namespace gammabeta {

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

// The type of the arithmetic on values stored as T.
template <class T>
struct Arithmetic {
  typedef float type;
};
template <>
struct Arithmetic<double> {
  typedef double type;
};
template <class T>
using ArithmeticOf = typename Arithmetic<T>::type;

template <class A>
struct Finish {
  Activation activation;
  A slope;
};

template <class A>
struct Loops {
  A (*sum)(const A* x, int64_t n);
  // Σ(x − shift) and Σ(x − shift)².
  void (*deviations)(const A* x, int64_t n, A shift, A* sum, A* squares);
  // y = activation((x − mean)·scale + shift + residual); residual may be null.
  void (*apply_plane)(const A* x, const A* residual, A* y, int64_t n, A mean, A scale, A shift, Finish<A> finish);
  void (*apply_columns)(const A* x, const A* residual, A* y, int64_t n, const A* mean, const A* scale, const A* shift,
                        Finish<A> finish);
  // y = activation((x − mean)·rstd·weight + bias + residual); bias and residual may be null.
  void (*apply_line)(const A* x, const A* residual, A* y, int64_t n, A mean, A rstd, const A* weight, const A* bias,
                     Finish<A> finish);
  // g_z = g·activation'(z), with z as the apply of the same suffix computes it.
  void (*finish_gradient_plane)(const A* g, const A* x, const A* residual, A* g_z, int64_t n, A mean, A scale, A shift,
                                Finish<A> finish);
  void (*finish_gradient_columns)(const A* g, const A* x, const A* residual, A* g_z, int64_t n, const A* mean,
                                  const A* scale, const A* shift, Finish<A> finish);
  void (*finish_gradient_line)(const A* g, const A* x, const A* residual, A* g_z, int64_t n, A mean, A rstd,
                               const A* weight, const A* bias, Finish<A> finish);
  // Σg and Σg·(x − mean).
  void (*gradient_sums_plane)(const A* g, const A* x, int64_t n, A mean, A* sum, A* sum_x);
  // Σg·weight and Σg·weight·(x − mean).
  void (*gradient_sums_line)(const A* g, const A* x, const A* weight, int64_t n, A mean, A* sum, A* sum_x);
  // g_x = a·g + b·(x − mean) + c.
  void (*gradient_apply_plane)(const A* g, const A* x, A* g_x, int64_t n, A mean, A a, A b, A c);
  void (*gradient_apply_columns)(const A* g, const A* x, A* g_x, int64_t n, const A* mean, const A* a, const A* b,
                                 const A* c);
  // g_x = a·g·weight + b·(x − mean) + c and, unless null, g_weight += g·(x − mean)·a, g_bias += g.
  void (*gradient_apply_line)(const A* g, const A* x, const A* weight, A* g_x, int64_t n, A mean, A a, A b, A c,
                              A* g_weight, A* g_bias);
  // Merge the moments (mean, m2) of `count` values with those of `more` values. Of these, sum and squares are given:
  // the sum of their deviations from shift, and that of the squared deviations.
  void (*merge_deviations)(int64_t n, double count, double more, const A* shift, const A* sum, const A* squares,
                           double* mean, double* m2);
  // total += part; part = 0.
  void (*add_and_clear)(A* part, double* total, int64_t n);
  // y = mask ? x : fill.
  void (*select)(const A* x, const uint8_t* mask, A fill, A* y, int64_t n);
  // Copy n_rows rows of n values. A stride is the distance from one row to the next.
  void (*copy_rows)(const A* from, int64_t from_stride, A* to, int64_t to_stride, int64_t n_rows, int64_t n);
};

template <class A>
const Loops<A>& loops();
template <>
const Loops<float>& loops<float>();
template <>
const Loops<double>& loops<double>();

// The forward map of one channel: (x − mean)·scale + shift.
template <class A>
struct ChannelAffine {
  A mean, scale, shift;
};

// The backward map of one line: g_x = a·g·weight + b·(x − mean) + c.
template <class A>
struct LineBackprop {
  A mean, a, b, c;
};
constexpr int kLinesAtOnce = 4;

// Loops over values as they are stored: 16-bit values are converted in registers when they are read and written.
// `streamed` writes past the caches. It needs a y or g_x that is aligned to 64 bytes (16-bit values: 32).
template <class T>
struct StoredLoops {
  typedef ArithmeticOf<T> A;
  // Σ(x − shift) and Σ(x − shift)².
  void (*deviations)(const T* x, int64_t n, A shift, A* sum, A* squares);
  // y = (x − mean)·rstd·weight + bias; bias may be null. Prefetches the value `ahead` elements later.
  void (*apply_line)(const T* x, T* y, int64_t n, A mean, A rstd, const A* weight, const A* bias, int64_t ahead,
                     bool streamed);
  // Σg·weight and Σg·weight·(x − mean).
  void (*gradient_sums_line)(const T* g, const T* x, const A* weight, int64_t n, A mean, A* sum, A* sum_x);
  // For `lines` lines (1 or kLinesAtOnce), a stride apart: g_x as in LineBackprop, plus g_total unless that is null.
  // Over these lines g_weight += Σa·g·(x − mean) and, unless null, g_bias += Σg.
  void (*gradient_apply_line)(int lines, int64_t stride, const T* g, const T* x, const T* g_total, T* g_x, int64_t n,
                              const A* weight, const LineBackprop<A>* back, A* g_weight, A* g_bias, bool streamed);
  // For no activation, relu and relu6: y = activation(z), z = (x − mean)·scale + shift + residual; residual may be
  // null.
  void (*apply_plane)(const T* x, const T* residual, T* y, int64_t n, ChannelAffine<A> f, Finish<A> finish,
                      bool streamed);
  // Σg_z and Σg_z·(x − mean), g_z = g·activation'(z).
  void (*gradient_sums_plane)(const T* g, const T* x, const T* residual, int64_t n, ChannelAffine<A> f,
                              Finish<A> finish, A* sum, A* sum_x);
  // g_x = a·g_z + b·(x − mean) + c and g_residual = g_z; residual and g_residual are both null or both given.
  void (*gradient_apply_plane)(const T* g, const T* x, const T* residual, T* g_x, T* g_residual, int64_t n,
                               ChannelAffine<A> f, A a, A b, A c, Finish<A> finish, bool streamed);
  // For every column: the mean of the first 8 rows, or of 4, 2 or 1 where there are fewer.
  void (*column_mean)(const T* const* rows, int64_t n_rows, int64_t n, A* mean);
  // For every column: sum += Σ(x − shift), squares += Σ(x − shift)². Prefetches `ahead` bytes later, unless that is 0.
  void (*column_deviations)(const T* const* rows, int64_t n_rows, int64_t n, int64_t ahead, const A* shift, A* sum,
                            A* squares);
  // For every column: sum += Σg, sum_x += Σg·(x − mean).
  void (*column_gradient_sums)(const T* const* g, const T* const* x, int64_t n_rows, int64_t n, int64_t ahead,
                               const A* mean, A* sum, A* sum_x);
  // As apply_plane, and g_x = a·g + b·(x − mean) + c, with a parameter for every element.
  void (*apply_columns)(const T* x, const T* residual, T* y, int64_t n, const A* mean, const A* scale, const A* shift,
                        Finish<A> finish, bool streamed);
  void (*gradient_apply_columns)(const T* g, const T* x, T* g_x, int64_t n, const A* mean, const A* a, const A* b,
                                 const A* c, bool streamed);
};

template <class T>
const StoredLoops<T>& stored_loops();
template <>
const StoredLoops<float>& stored_loops<float>();
template <>
const StoredLoops<double>& stored_loops<double>();
template <>
const StoredLoops<bfloat16>& stored_loops<bfloat16>();
template <>
const StoredLoops<float16>& stored_loops<float16>();

// Conversions of 16-bit floating point (as bits), and stores past the caches.
struct Storage {
  void (*load_bfloat16)(const uint16_t* from, float* to, int64_t n);
  void (*load_float16)(const uint16_t* from, float* to, int64_t n);
  void (*store_bfloat16)(const float* from, uint16_t* to, int64_t n);
  void (*store_float16)(const float* from, uint16_t* to, int64_t n);
  void (*stream)(const void* from, void* to, int64_t bytes);
  void (*fence)();
};
const Storage& storage();

const char* instruction_set();

}  // namespace gammabeta
