// The loops of loops.h over values as they are stored: down columns, and along rows with a parameter for every element.
// Builds on stored_loops-inl.h, included before it.

namespace gammabeta {
namespace GAMMABETA_TARGET {
namespace {

// Down a strip of columns whose sums stay in registers. The processor does not predict rows that are far apart, so each
// row prefetches `ahead` bytes later.
#if defined(GAMMABETA_AVX512)
constexpr int kStrip = 4;
#elif defined(GAMMABETA_AVX2)
constexpr int kStrip = 2;
#else
constexpr int kStrip = 1;
#endif

template <class T>
inline __attribute__((always_inline)) void prefetch_strip(const T* x, int64_t ahead) {
  constexpr int kBytes = kStrip * kLanes<ArithmeticOf<T>> * int(sizeof(T));
  for (int k = 0; k < kBytes; k += 64) __builtin_prefetch(reinterpret_cast<const char*>(x) + ahead + k, 0, 2);
}

template <class T, class A>
void column_gradient_sums(const T* const* g, const T* const* x, int64_t n_rows, int64_t n, int64_t ahead, const A* mean,
                          A* __restrict sum, A* __restrict sum_x) {
  constexpr int w = kLanes<A>;
  int64_t i = 0;
  for (; i + kStrip * w <= n; i += kStrip * w) {
    Vector<A> s[kStrip], q[kStrip], m[kStrip];
    for (int k = 0; k < kStrip; ++k) {
      s[k] = load_vector(sum + i + k * w);
      q[k] = load_vector(sum_x + i + k * w);
      m[k] = load_vector(mean + i + k * w);
    }
    int64_t r = 0;
    for (; r + 2 <= n_rows; r += 2) {
      const T *g0 = g[r] + i, *g1 = g[r + 1] + i, *x0 = x[r] + i, *x1 = x[r + 1] + i;
      if (ahead)
        prefetch_strip(g0, ahead), prefetch_strip(g1, ahead), prefetch_strip(x0, ahead), prefetch_strip(x1, ahead);
      for (int k = 0; k < kStrip; ++k) {
        const Vector<A> a = load_vector(g0 + k * w), b = load_vector(g1 + k * w);
        s[k] += a + b;
        q[k] += a * (load_vector(x0 + k * w) - m[k]) + b * (load_vector(x1 + k * w) - m[k]);
      }
    }
    if (r < n_rows)
      for (int k = 0; k < kStrip; ++k) {
        const Vector<A> a = load_vector(g[r] + i + k * w);
        s[k] += a;
        q[k] += a * (load_vector(x[r] + i + k * w) - m[k]);
      }
    for (int k = 0; k < kStrip; ++k) {
      store_vector(sum + i + k * w, s[k]);
      store_vector(sum_x + i + k * w, q[k]);
    }
  }
  for (int64_t r = 0; r < n_rows; ++r) {
    for (int64_t j = i; j < n; ++j) {
      const A g_j = load_one(g[r][j]);
      sum[j] += g_j;
      sum_x[j] += g_j * (load_one(x[r][j]) - mean[j]);
    }
  }
}

template <class T, class A>
void column_deviations(const T* const* rows, int64_t n_rows, int64_t n, int64_t ahead, const A* shift,
                       A* __restrict sum, A* __restrict squares) {
  constexpr int w = kLanes<A>;
  int64_t i = 0;
  for (; i + kStrip * w <= n; i += kStrip * w) {
    Vector<A> s[kStrip], q[kStrip], m[kStrip];
    for (int k = 0; k < kStrip; ++k) {
      s[k] = load_vector(sum + i + k * w);
      q[k] = load_vector(squares + i + k * w);
      m[k] = load_vector(shift + i + k * w);
    }
    int64_t r = 0;
    for (; r + 2 <= n_rows; r += 2) {
      const T *x0 = rows[r] + i, *x1 = rows[r + 1] + i;
      if (ahead) prefetch_strip(x0, ahead), prefetch_strip(x1, ahead);
      for (int k = 0; k < kStrip; ++k) {
        const Vector<A> a = load_vector(x0 + k * w) - m[k], b = load_vector(x1 + k * w) - m[k];
        s[k] += a + b;
        q[k] += a * a + b * b;
      }
    }
    if (r < n_rows)
      for (int k = 0; k < kStrip; ++k) {
        const Vector<A> a = load_vector(rows[r] + i + k * w) - m[k];
        s[k] += a;
        q[k] += a * a;
      }
    for (int k = 0; k < kStrip; ++k) {
      store_vector(sum + i + k * w, s[k]);
      store_vector(squares + i + k * w, q[k]);
    }
  }
  for (int64_t r = 0; r < n_rows; ++r) {
    for (int64_t j = i; j < n; ++j) {
      const A d = load_one(rows[r][j]) - shift[j];
      sum[j] += d;
      squares[j] += d * d;
    }
  }
}

// Of 8, 4, 2 or 1 rows, added pairwise: the mean of equal values is exactly that value.
template <class T, class A>
void column_mean(const T* const* rows, int64_t n_rows, int64_t n, A* __restrict mean) {
  const int64_t few = n_rows >= 8 ? 8 : n_rows >= 4 ? 4 : n_rows >= 2 ? 2 : 1;
  const A one = A(1) / A(few);
  constexpr int w = kLanesOfRegister<A>;
  int64_t i = 0;
  for (; i + w <= n; i += w) {
    Register<A> v[8] = {};  // GCC adds up more of them at once than asked, and those must be numbers too
    for (int64_t r = 0; r < few; ++r) v[r] = load(rows[r] + i);
    for (int64_t left = few / 2; left > 0; left /= 2)
      for (int64_t r = 0; r < left; ++r) v[r] = v[2 * r] + v[2 * r + 1];
    *reinterpret_cast<Register<A>*>(mean + i) = v[0] * one;
  }
  for (; i < n; ++i) {
    A v[8] = {};
    for (int64_t r = 0; r < few; ++r) v[r] = load_one(rows[r][i]);
    for (int64_t left = few / 2; left > 0; left /= 2)
      for (int64_t r = 0; r < left; ++r) v[r] = v[2 * r] + v[2 * r + 1];
    mean[i] = v[0] * one;
  }
}

template <bool kClamped, bool kResidual, bool kStreamed, class T, class A>
void apply_columns_loop(const T* x, const T* residual, T* y, int64_t n, const A* mean, const A* scale, const A* shift,
                        A high) {
  constexpr int w = kLanesOfRegister<A>;
  const Register<A> zero = {}, most = zero + high;
  int64_t i = 0;
  for (; i + w <= n; i += w) {
    Register<A> z = (load(x + i) - load(mean + i)) * load(scale + i) + load(shift + i);
    if (kResidual) z += load(residual + i);
    if (kClamped) {
      z = z < zero ? zero : z;
      z = z > most ? most : z;
    }
    store<kStreamed>(y + i, z);
  }
  for (; i < n; ++i) {
    A z = (load_one(x[i]) - mean[i]) * scale[i] + shift[i];
    if (kResidual) z += load_one(residual[i]);
    store_one(y + i, kClamped ? clamp_to(z, A(0), high) : z);
  }
}

template <bool kClamped, bool kResidual, class T, class A>
void apply_columns_with(const T* x, const T* residual, T* y, int64_t n, const A* mean, const A* scale, const A* shift,
                        A high, bool streamed) {
  (streamed ? apply_columns_loop<kClamped, kResidual, true, T, A>
            : apply_columns_loop<kClamped, kResidual, false, T, A>)(x, residual, y, n, mean, scale, shift, high);
}

template <class T, class A>
void stored_apply_columns(const T* x, const T* residual, T* y, int64_t n, const A* mean, const A* scale, const A* shift,
                          Finish<A> finish, bool streamed) {
  const Clamp<A> clamp(finish);
  auto loop = clamp.clamps
                  ? (residual ? apply_columns_with<true, true, T, A> : apply_columns_with<true, false, T, A>)
                  : (residual ? apply_columns_with<false, true, T, A> : apply_columns_with<false, false, T, A>);
  loop(x, residual, y, n, mean, scale, shift, clamp.high, streamed);
}

template <bool kStreamed, class T, class A>
void gradient_columns_loop(const T* g, const T* x, T* g_x, int64_t n, const A* mean, const A* a, const A* b,
                           const A* c) {
  constexpr int w = kLanesOfRegister<A>;
  int64_t i = 0;
  for (; i + w <= n; i += w)
    store<kStreamed>(
        g_x + i, Register<A>(load(g + i) * load(a + i) + ((load(x + i) - load(mean + i)) * load(b + i) + load(c + i))));
  for (; i < n; ++i) store_one(g_x + i, load_one(g[i]) * a[i] + ((load_one(x[i]) - mean[i]) * b[i] + c[i]));
}

template <class T, class A>
void stored_gradient_apply_columns(const T* g, const T* x, T* g_x, int64_t n, const A* mean, const A* a, const A* b,
                                   const A* c, bool streamed) {
  (streamed ? gradient_columns_loop<true, T, A> : gradient_columns_loop<false, T, A>)(g, x, g_x, n, mean, a, b, c);
}

template <class T>
constexpr StoredLoops<T> kStoredLoops = {
    stored_deviations<T, ArithmeticOf<T>>,           stored_apply_line<T, ArithmeticOf<T>>,
    stored_gradient_sums_line<T, ArithmeticOf<T>>,   stored_gradient_apply_line<T, ArithmeticOf<T>>,
    stored_apply_plane<T, ArithmeticOf<T>>,          stored_gradient_sums_plane<T, ArithmeticOf<T>>,
    stored_gradient_apply_plane<T, ArithmeticOf<T>>, column_mean<T, ArithmeticOf<T>>,
    column_deviations<T, ArithmeticOf<T>>,           column_gradient_sums<T, ArithmeticOf<T>>,
    stored_apply_columns<T, ArithmeticOf<T>>,        stored_gradient_apply_columns<T, ArithmeticOf<T>>,
};

}  // namespace
}  // namespace GAMMABETA_TARGET
}  // namespace gammabeta
