// The loops of loops.h over values of the arithmetic's type, for the instruction set of the current pass
// (foreach_target.h). Everything here has internal linkage: of an inline function shared between instruction sets the
// linker would keep any one.
//
// Sums are taken in a fixed number of lanes, whatever the width of the registers, and added up in a fixed order.

namespace gammabeta {
namespace GAMMABETA_TARGET {
namespace {

// One register: as many bytes as the instruction set has.
#if defined(GAMMABETA_AVX512)
constexpr int kRegister = 64;
#elif defined(GAMMABETA_AVX2)
constexpr int kRegister = 32;
#else
constexpr int kRegister = 16;
#endif

template <class A>
struct RegisterOf;
template <>
struct RegisterOf<float> {
  typedef float type __attribute__((vector_size(kRegister), aligned(4), may_alias));
};
template <>
struct RegisterOf<double> {
  typedef double type __attribute__((vector_size(kRegister), aligned(8), may_alias));
};
template <class A>
using Register = typename RegisterOf<A>::type;
template <class A>
constexpr int kLanesOfRegister = kRegister / sizeof(A);

template <class A>
inline __attribute__((always_inline)) Register<A> load(const A* x) {
  return *reinterpret_cast<const Register<A>*>(x);
}

// The lanes of a sum: 64 bytes, in as many registers as that takes. A compiler would keep a vector type that is wider
// than its registers in memory.
template <class A>
constexpr int kLanes = 64 / sizeof(A);
constexpr int kRegistersOfVector = 64 / kRegister;

template <class A>
struct Vector {
  Register<A> part[kRegistersOfVector];

  __attribute__((always_inline)) Vector operator+(Vector b) const {
    for (int i = 0; i < kRegistersOfVector; ++i) b.part[i] = part[i] + b.part[i];
    return b;
  }
  __attribute__((always_inline)) Vector operator-(Vector b) const {
    for (int i = 0; i < kRegistersOfVector; ++i) b.part[i] = part[i] - b.part[i];
    return b;
  }
  __attribute__((always_inline)) Vector operator*(Vector b) const {
    for (int i = 0; i < kRegistersOfVector; ++i) b.part[i] = part[i] * b.part[i];
    return b;
  }
  __attribute__((always_inline)) Vector operator-(A b) const {
    Vector v;
    for (int i = 0; i < kRegistersOfVector; ++i) v.part[i] = part[i] - b;
    return v;
  }
  __attribute__((always_inline)) void operator+=(Vector b) { *this = *this + b; }
};

template <class A>
inline __attribute__((always_inline)) Vector<A> load_vector(const A* x) {
  Vector<A> v;
  for (int i = 0; i < kRegistersOfVector; ++i) v.part[i] = load(x + i * kLanesOfRegister<A>);
  return v;
}

template <class A>
inline __attribute__((always_inline)) void store_vector(A* x, Vector<A> v) {
  for (int i = 0; i < kRegistersOfVector; ++i) *reinterpret_cast<Register<A>*>(x + i * kLanesOfRegister<A>) = v.part[i];
}

// The sum of all lanes, adding one half to the other each time.
template <class A>
inline __attribute__((always_inline)) A sum_of_lanes(Vector<A> v) {
  typedef A Quarter __attribute__((vector_size(16), aligned(sizeof(A))));
  Quarter q;
#if defined(GAMMABETA_AVX512) || defined(GAMMABETA_AVX2)
  typedef A Half __attribute__((vector_size(32), aligned(sizeof(A))));
#if defined(GAMMABETA_AVX512)
  Half halves[2];
  std::memcpy(halves, &v, sizeof v);
  const Half h = halves[0] + halves[1];
#else
  const Half h = v.part[0] + v.part[1];
#endif
  Quarter quarters[2];
  std::memcpy(quarters, &h, sizeof h);
  q = quarters[0] + quarters[1];
#else
  q = (v.part[0] + v.part[2]) + (v.part[1] + v.part[3]);
#endif
  if constexpr (sizeof(A) == 4)
    return (q[0] + q[2]) + (q[1] + q[3]);
  else
    return q[0] + q[1];
}

// v with 0 in all lanes but the last n. Used for the end of a row, which is read together with what precedes it.
template <class A>
inline __attribute__((always_inline)) Vector<A> last_lanes(Vector<A> v, int64_t n) {
  A all[2 * kLanes<A>] = {};
  store_vector(all + kLanes<A>, v);
  for (int i = 0; i < kLanes<A>; ++i) all[kLanes<A> + i] = i < kLanes<A> - n ? A(0) : all[kLanes<A> + i];
  return load_vector(all + kLanes<A>);
}

// Two sums over i in [0, n), of the pairs that terms.vector(i) and terms.scalar(i) give.
template <class A, class Terms>
inline __attribute__((always_inline)) void sum_pairs(int64_t n, const Terms& terms, A* first, A* second) {
  constexpr int w = kLanes<A>;
  if (n < w) {
    A s = 0, q = 0;
    for (int64_t i = 0; i < n; ++i) {
      A a, b;
      terms.scalar(i, a, b);
      s += a;
      q += b;
    }
    *first = s;
    *second = q;
    return;
  }
  Vector<A> a0 = {}, a1 = {}, b0 = {}, b1 = {}, a, b;
  int64_t i = 0;
  for (; i + 2 * w <= n; i += 2 * w) {
    terms.vector(i, a, b);
    a0 += a;
    b0 += b;
    terms.vector(i + w, a, b);
    a1 += a;
    b1 += b;
  }
  if (i + w <= n) {
    terms.vector(i, a, b);
    a0 += a;
    b0 += b;
    i += w;
  }
  if (i < n) {
    terms.vector(n - w, a, b);
    a1 += last_lanes(a, n - i);
    b1 += last_lanes(b, n - i);
  }
  *first = sum_of_lanes(a0 + a1);
  *second = sum_of_lanes(b0 + b1);
}

template <class A>
A sum(const A* x, int64_t n) {
  constexpr int w = kLanes<A>;
  if (n < w) {
    A s = 0;
    for (int64_t i = 0; i < n; ++i) s += x[i];
    return s;
  }
  Vector<A> a = {}, b = {}, c = {}, d = {};
  int64_t i = 0;
  for (; i + 4 * w <= n; i += 4 * w) {
    a += load_vector(x + i);
    b += load_vector(x + i + w);
    c += load_vector(x + i + 2 * w);
    d += load_vector(x + i + 3 * w);
  }
  for (; i + w <= n; i += w) a += load_vector(x + i);
  if (i < n) b += last_lanes(load_vector(x + n - w), n - i);
  return sum_of_lanes((a + b) + (c + d));
}

template <class A>
struct Deviations {
  const A* x;
  A shift;
  __attribute__((always_inline)) void vector(int64_t i, Vector<A>& s, Vector<A>& q) const {
    Vector<A> d = load_vector(x + i) - shift;
    s = d;
    q = d * d;
  }
  __attribute__((always_inline)) void scalar(int64_t i, A& s, A& q) const {
    A d = x[i] - shift;
    s = d;
    q = d * d;
  }
};

template <class A>
void deviations(const A* x, int64_t n, A shift, A* sum, A* squares) {
  sum_pairs<A>(n, Deviations<A>{x, shift}, sum, squares);
}

template <class A>
struct GradientProducts {
  const A *g, *x;
  A mean;
  __attribute__((always_inline)) void vector(int64_t i, Vector<A>& s, Vector<A>& q) const {
    Vector<A> g_ = load_vector(g + i);
    s = g_;
    q = g_ * (load_vector(x + i) - mean);
  }
  __attribute__((always_inline)) void scalar(int64_t i, A& s, A& q) const {
    s = g[i];
    q = g[i] * (x[i] - mean);
  }
};

template <class A>
void gradient_sums_plane(const A* g, const A* x, int64_t n, A mean, A* sum, A* sum_x) {
  sum_pairs<A>(n, GradientProducts<A>{g, x, mean}, sum, sum_x);
}

template <class A>
struct WeightedGradientProducts {
  const A *g, *x, *weight;
  A mean;
  __attribute__((always_inline)) void vector(int64_t i, Vector<A>& s, Vector<A>& q) const {
    Vector<A> g_ = load_vector(g + i) * load_vector(weight + i);
    s = g_;
    q = g_ * (load_vector(x + i) - mean);
  }
  __attribute__((always_inline)) void scalar(int64_t i, A& s, A& q) const {
    A g_ = g[i] * weight[i];
    s = g_;
    q = g_ * (x[i] - mean);
  }
};

template <class A>
void gradient_sums_line(const A* g, const A* x, const A* weight, int64_t n, A mean, A* sum, A* sum_x) {
  sum_pairs<A>(n, WeightedGradientProducts<A>{g, x, weight, mean}, sum, sum_x);
}

// exp and Φ.

template <class A>
struct Exponential;
template <>
struct Exponential<float> {
  typedef uint32_t bits;
  static constexpr float lowest = -87.3f, flushed = -87.29f, highest = 88.3f, round = 12582912.0f;  // 1.5·2^23
  static constexpr float ln2_high = 0.693145751953125f, ln2_low = 1.42860677e-6f;
  static constexpr int mantissa = 23, bias = 127;
};
template <>
struct Exponential<double> {
  typedef uint64_t bits;
  static constexpr double lowest = -708.0, flushed = -707.99, highest = 709.0, round = 6755399441055744.0;  // 1.5·2^52
  static constexpr double ln2_high = 0.693147180369123816490, ln2_low = 1.90821492927058770002e-10;
  static constexpr int mantissa = 52, bias = 1023;
};

template <class A>
inline A bits_to(typename Exponential<A>::bits b) {
  A a;
  std::memcpy(&a, &b, sizeof a);
  return a;
}

// eˣ = 2ᵏ·eʳ, |r| ≤ ln2/2, by its Taylor polynomial. Relative error 1.2e-7 (float), 4e-16 (double). Outside the range
// in which 2ᵏ is a normal number, and from `flushed` on, it is 0 or infinite; NaN stays NaN.
//
// Those are chosen at the end. If x were clamped at the beginning, GCC would compute what follows a clamped x for every
// element beside the rest, and of z·sigmoid(z) that is z·1.2e-38: a subnormal number, which costs an Intel processor
// 150 cycles.
template <class A>
inline __attribute__((always_inline)) A exponential(A x) {
  typedef Exponential<A> E;
  A shifted = x * A(1.44269504088896340736) + E::round;
  A k = shifted - E::round;
  A r = (x - k * E::ln2_high) - k * E::ln2_low;
  A p;
  if (sizeof(A) == 4) {
    p = A(1.0 / 5040);
  } else {
    p = A(1.0 / 6227020800.0);
    p = p * r + A(1.0 / 479001600);
    p = p * r + A(1.0 / 39916800);
    p = p * r + A(1.0 / 3628800);
    p = p * r + A(1.0 / 362880);
    p = p * r + A(1.0 / 40320);
    p = p * r + A(1.0 / 5040);
  }
  p = p * r + A(1.0 / 720);
  p = p * r + A(1.0 / 120);
  p = p * r + A(1.0 / 24);
  p = p * r + A(1.0 / 6);
  p = p * r + A(0.5);
  p = p * r + A(1);
  p = p * r + A(1);
  // What is thrown away below is computed all the same without masks, as in AVX2, and is not to be subnormal. By the
  // same bound GCC would see that this changes no result, and leave it out.
  p = x < E::flushed ? A(0) : p;
  typename E::bits b;
  std::memcpy(&b, &shifted, sizeof b);
  A y = p * bits_to<A>((b << E::mantissa) + (typename E::bits(E::bias) << E::mantissa));
  y = x < E::lowest ? A(0) : y;
  return x > E::highest ? std::numeric_limits<A>::infinity() : y;
}

// By e^{−|z|}, which is 0 where it would be subnormal, so that no step towards the result is: 1/(1 + e^{−z}) is, from
// z = −87.3 to −88.7, and dividing by such an e^{−z} takes long.
template <class A>
inline __attribute__((always_inline)) A sigmoid(A z) {
  A e = exponential(z < 0 ? z : -z);
  A s = A(1) / (A(1) + e);
  return z < 0 ? e * s : s;
}

// erfc(u)·e^{u²}/t with t = 3/(3 + u), as a polynomial in s = 2t − 1. Interpolated at Chebyshev's nodes with mpmath.
// Relative error 2e-8 (float), 1e-17 (double).
inline __attribute__((always_inline)) float scaled_erfc(float s) {
  float p = 2.346841841e-5f;
  p = p * s + 7.026003744e-5f;
  p = p * s + -0.0001714378726f;
  p = p * s + -0.000991010881f;
  p = p * s + -0.0004088962232f;
  p = p * s + 0.008933822157f;
  p = p * s + 0.03984341939f;
  p = p * s + 0.1034905946f;
  p = p * s + 0.1967427444f;
  p = p * s + 0.2944647429f;
  return p * s + 0.3580023024f;
}

// Coefficients of Chebyshev's polynomials, summed by Clenshaw's recurrence.
constexpr double kErfc[26] = {
    0.471146074660290654,     0.377158949691565793,    0.118036033447495454,      0.0283623466996951515,
    0.00487175775760554639,   0.000459852387876544279, -0.0000214302223810531519, -0.0000130144736992413488,
    -8.80928358285351363e-7,  2.74648004797028445e-7,  4.41599189922378551e-8,    -6.39840838557548284e-9,
    -1.67683572124846442e-9,  1.94733547008900249e-10, 6.24744130346938523e-11,   -8.12455755224447789e-12,
    -2.33031461322197397e-12, 4.1910385392055441e-13,  8.19333526845820053e-14,   -2.33524720668878787e-14,
    -2.24425862088030799e-15, 1.281143014088019e-15,   1.10774148561971055e-18,   -6.44551652900603358e-17,
    6.47912478081578101e-18,  2.74327723439333436e-18};

inline __attribute__((always_inline)) double scaled_erfc(double s) {
  double b1 = 0, b2 = 0;
#pragma GCC unroll 26
  for (int j = 25; j > 0; --j) {
    double b = 2 * s * b1 - b2 + kErfc[j];
    b2 = b1;
    b1 = b;
  }
  return s * b1 - b2 + kErfc[0];
}

// Φ(z), and e^{−z²/2} for the density.
template <class A>
inline __attribute__((always_inline)) A normal_cdf(A z, A* gauss) {
  A u = (z < 0 ? -z : z) * A(0.70710678118654752440);
  A t = A(3) / (A(3) + u);
  *gauss = exponential(A(-0.5) * z * z);
  A tail = A(0.5) * t * *gauss * scaled_erfc(A(2) * t - A(1));
  return z < 0 ? tail : A(1) - tail;
}

template <class A>
inline __attribute__((always_inline)) A clamp_to(A z, A low, A high) {
  z = z < low ? low : z;
  return z > high ? high : z;
}

template <class A>
void activate(Activation activation, A slope, A* z, int64_t n) {
  switch (activation) {
    case kNone:
    case kRelu:
    case kRelu6:
      break;  // done where z is computed
    case kLeakyRelu:
      for (int64_t i = 0; i < n; ++i) z[i] = z[i] > 0 ? z[i] : slope * z[i];
      break;
    case kSilu:
      for (int64_t i = 0; i < n; ++i) z[i] = z[i] * sigmoid(z[i]);
      break;
    case kHardswish:
      for (int64_t i = 0; i < n; ++i) z[i] = z[i] * clamp_to(z[i] + A(3), A(0), A(6)) / A(6);
      break;
    case kGelu:
      for (int64_t i = 0; i < n; ++i) {
        A gauss;
        z[i] = z[i] * normal_cdf(z[i], &gauss);
      }
      break;
  }
}

// z becomes g·activation'(z).
template <class A>
void differentiate(Activation activation, A slope, const A* g, A* __restrict z, int64_t n) {
  const A one = 1, zero = 0;
  switch (activation) {
    case kNone:
      for (int64_t i = 0; i < n; ++i) z[i] = g[i];
      break;
    case kRelu:
    case kRelu6:
      break;  // done where z is computed
    case kLeakyRelu:
      for (int64_t i = 0; i < n; ++i) z[i] = z[i] > 0 ? g[i] : slope * g[i];
      break;
    case kSilu:
      for (int64_t i = 0; i < n; ++i) {
        A s = sigmoid(z[i]);
        z[i] = g[i] * (s * (one + z[i] * (one - s)));
      }
      break;
    case kHardswish:
      for (int64_t i = 0; i < n; ++i) {
        A inside = z[i] < 3 ? z[i] / A(3) + A(0.5) : one;
        z[i] = g[i] * (z[i] <= -3 ? zero : inside);
      }
      break;
    case kGelu:
      for (int64_t i = 0; i < n; ++i) {
        A gauss, cdf = normal_cdf(z[i], &gauss);
        z[i] = g[i] * (cdf + z[i] * (gauss * A(0.39894228040143267794)));
      }
      break;
  }
}

// What relu6 clamps z to. relu has no bound: NaN is neither below nor above any z, infinite ones neither.
template <class A>
inline A bound_of(Activation activation) {
  return activation == kRelu6 ? A(6) : std::numeric_limits<A>::quiet_NaN();
}

// z = affine(i) + residual, clamped to [0, high] where kClamped.
template <bool kClamped, class A, class Affine>
inline __attribute__((always_inline)) void apply_loop(const Affine& affine, const A* residual, A* __restrict y,
                                                      int64_t n, A high) {
  if (residual) {
    for (int64_t i = 0; i < n; ++i) {
      A z = affine(i) + residual[i];
      y[i] = kClamped ? clamp_to(z, A(0), high) : z;
    }
  } else {
    for (int64_t i = 0; i < n; ++i) {
      A z = affine(i);
      y[i] = kClamped ? clamp_to(z, A(0), high) : z;
    }
  }
}

template <class A, class Affine>
inline __attribute__((always_inline)) void apply(const Affine& affine, const A* residual, A* __restrict y, int64_t n,
                                                 Finish<A> finish) {
  if (finish.activation == kRelu || finish.activation == kRelu6) {
    apply_loop<true>(affine, residual, y, n, bound_of<A>(finish.activation));
  } else {
    apply_loop<false>(affine, residual, y, n, A(0));
    activate(finish.activation, finish.slope, y, n);
  }
}

template <class A, class Affine>
inline __attribute__((always_inline)) void finish_gradient(const Affine& affine, const A* g, const A* residual,
                                                           A* __restrict g_z, int64_t n, Finish<A> finish) {
  if (finish.activation == kRelu || finish.activation == kRelu6) {
    const A high = bound_of<A>(finish.activation);
    if (residual) {
      for (int64_t i = 0; i < n; ++i) {
        const A z = affine(i) + residual[i];
        g_z[i] = (z <= 0) | (z >= high) ? A(0) : g[i];
      }
    } else {
      for (int64_t i = 0; i < n; ++i) {
        const A z = affine(i);
        g_z[i] = (z <= 0) | (z >= high) ? A(0) : g[i];
      }
    }
    return;
  }
  apply_loop<false>(affine, residual, g_z, n, A(0));
  differentiate(finish.activation, finish.slope, g, g_z, n);
}

template <class A>
struct PlaneAffine {
  const A* x;
  A mean, scale, shift;
  __attribute__((always_inline)) A operator()(int64_t i) const { return (x[i] - mean) * scale + shift; }
};

template <class A>
struct ColumnsAffine {
  const A *x, *mean, *scale, *shift;
  __attribute__((always_inline)) A operator()(int64_t i) const { return (x[i] - mean[i]) * scale[i] + shift[i]; }
};

template <class A, bool kBias>
struct LineAffine {
  const A* x;
  A mean, rstd;
  const A *weight, *bias;
  __attribute__((always_inline)) A operator()(int64_t i) const {
    A z = (x[i] - mean) * rstd * weight[i];
    return kBias ? z + bias[i] : z;
  }
};

template <class A>
void apply_plane(const A* x, const A* residual, A* __restrict y, int64_t n, A mean, A scale, A shift,
                 Finish<A> finish) {
  apply(PlaneAffine<A>{x, mean, scale, shift}, residual, y, n, finish);
}

template <class A>
void apply_columns(const A* x, const A* residual, A* __restrict y, int64_t n, const A* mean, const A* scale,
                   const A* shift, Finish<A> finish) {
  apply(ColumnsAffine<A>{x, mean, scale, shift}, residual, y, n, finish);
}

template <class A>
void apply_line(const A* x, const A* residual, A* __restrict y, int64_t n, A mean, A rstd, const A* weight,
                const A* bias, Finish<A> finish) {
  if (bias)
    apply(LineAffine<A, true>{x, mean, rstd, weight, bias}, residual, y, n, finish);
  else
    apply(LineAffine<A, false>{x, mean, rstd, weight, bias}, residual, y, n, finish);
}

template <class A>
void finish_gradient_plane(const A* g, const A* x, const A* residual, A* g_z, int64_t n, A mean, A scale, A shift,
                           Finish<A> finish) {
  finish_gradient(PlaneAffine<A>{x, mean, scale, shift}, g, residual, g_z, n, finish);
}

template <class A>
void finish_gradient_columns(const A* g, const A* x, const A* residual, A* g_z, int64_t n, const A* mean,
                             const A* scale, const A* shift, Finish<A> finish) {
  finish_gradient(ColumnsAffine<A>{x, mean, scale, shift}, g, residual, g_z, n, finish);
}

template <class A>
void finish_gradient_line(const A* g, const A* x, const A* residual, A* g_z, int64_t n, A mean, A rstd, const A* weight,
                          const A* bias, Finish<A> finish) {
  if (bias)
    finish_gradient(LineAffine<A, true>{x, mean, rstd, weight, bias}, g, residual, g_z, n, finish);
  else
    finish_gradient(LineAffine<A, false>{x, mean, rstd, weight, bias}, g, residual, g_z, n, finish);
}

template <class A>
void gradient_apply_plane(const A* g, const A* x, A* __restrict g_x, int64_t n, A mean, A a, A b, A c) {
  for (int64_t i = 0; i < n; ++i) g_x[i] = a * g[i] + (b * (x[i] - mean) + c);
}

template <class A>
void gradient_apply_columns(const A* g, const A* x, A* __restrict g_x, int64_t n, const A* mean, const A* a, const A* b,
                            const A* c) {
  for (int64_t i = 0; i < n; ++i) g_x[i] = a[i] * g[i] + (b[i] * (x[i] - mean[i]) + c[i]);
}

template <class A>
void gradient_apply_line(const A* g, const A* x, const A* weight, A* __restrict g_x, int64_t n, A mean, A a, A b, A c,
                         A* __restrict g_weight, A* __restrict g_bias) {
  for (int64_t i = 0; i < n; ++i) {
    A d = x[i] - mean;
    g_x[i] = a * (g[i] * weight[i]) + (b * d + c);
    if (g_weight) g_weight[i] += g[i] * (d * a);
    if (g_bias) g_bias[i] += g[i];
  }
}

template <class A>
void merge_deviations(int64_t n, double count, double more, const A* shift, const A* sum, const A* squares,
                      double* __restrict mean, double* __restrict m2) {
  const double share = more / (count + more), weight = count * share, one = 1 / more;
  for (int64_t i = 0; i < n; ++i) {
    const double s = sum[i], at = double(shift[i]) + s * one;
    const double spread = double(squares[i]) - s * s * one, delta = at - mean[i];
    mean[i] += delta * share;
    m2[i] += (spread > 0 ? spread : spread * 0) + delta * delta * weight;
  }
}

template <class A>
void add_and_clear(A* __restrict part, double* __restrict total, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    total[i] += part[i];
    part[i] = 0;
  }
}

template <class A>
void select(const A* x, const uint8_t* mask, A fill, A* __restrict y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = mask[i] ? x[i] : fill;
}

// Copy one row. Where the last lanes are not full, they overlap with those before.
template <class A>
inline __attribute__((always_inline)) void copy_row(const A* from, A* to, int64_t n) {
  constexpr int w = kLanes<A>;
  if (n < w) {
    for (int64_t i = 0; i < n; ++i) to[i] = from[i];
    return;
  }
  for (int64_t i = 0; i + w <= n; i += w) store_vector(to + i, load_vector(from + i));
  store_vector(to + n - w, load_vector(from + n - w));
}

template <class A>
void copy_rows(const A* from, int64_t from_stride, A* to, int64_t to_stride, int64_t n_rows, int64_t n) {
  for (int64_t r = 0; r < n_rows; ++r) copy_row(from + r * from_stride, to + r * to_stride, n);
}

template <class A>
constexpr Loops<A> kLoops = {
    sum<A>,
    deviations<A>,
    apply_plane<A>,
    apply_columns<A>,
    apply_line<A>,
    finish_gradient_plane<A>,
    finish_gradient_columns<A>,
    finish_gradient_line<A>,
    gradient_sums_plane<A>,
    gradient_sums_line<A>,
    gradient_apply_plane<A>,
    gradient_apply_columns<A>,
    gradient_apply_line<A>,
    merge_deviations<A>,
    add_and_clear<A>,
    select<A>,
    copy_rows<A>,
};

// 16-bit floating point.

inline __attribute__((always_inline)) float from_bits(uint32_t bits) {
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}

inline __attribute__((always_inline)) uint32_t to_bits(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, sizeof bits);
  return bits;
}

void load_bfloat16(const uint16_t* from, float* __restrict to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = from_bits(uint32_t(from[i]) << 16);
}

void store_bfloat16(const float* from, uint16_t* __restrict to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits = to_bits(from[i]);
    uint32_t nearest_even = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    to[i] = uint16_t((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : nearest_even);
  }
}

// Conversion by bits, without instructions for it. A multiplication moves the exponent, so that subnormals come out
// right.
inline float widen(uint16_t half) {
  uint32_t sign = uint32_t(half & 0x8000) << 16, rest = uint32_t(half & 0x7fff) << 13;
  float f = rest >= (0x7c00u << 13) ? from_bits(rest | 0x7f800000) : from_bits(rest) * from_bits(0x77800000);
  return from_bits(to_bits(f) | sign);
}

inline uint16_t narrow(float f) {
  uint32_t bits = to_bits(f), sign = (bits >> 16) & 0x8000, rest = bits & 0x7fffffff;
  if (rest > 0x7f800000) return uint16_t(sign | 0x7e00);
  if (rest >= 0x477ff000) return uint16_t(sign | 0x7c00);  // from 65520 on it rounds to infinity
  if (rest < 0x38800000) {                                 // under 2^-14: added to 0.5, whose last bit is 2^-24
    uint32_t subnormal = to_bits(from_bits(rest) + 0.5f) - 0x3f000000;
    return uint16_t(sign | subnormal);
  }
  return uint16_t(sign | ((rest + 0xfff + ((rest >> 13) & 1) - 0x38000000) >> 13));
}

void load_float16(const uint16_t* from, float* __restrict to, int64_t n) {
  int64_t i = 0;
#if defined(GAMMABETA_AVX512)
  for (; i + 16 <= n; i += 16)
    _mm512_storeu_ps(to + i, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i))));
#elif defined(GAMMABETA_AVX2)
  for (; i + 8 <= n; i += 8)
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
#elif defined(GAMMABETA_NEON)
  for (; i + 4 <= n; i += 4) vst1q_f32(to + i, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from + i))));
#endif
  for (; i < n; ++i) to[i] = widen(from[i]);
}

void store_float16(const float* from, uint16_t* __restrict to, int64_t n) {
  int64_t i = 0;
#if defined(GAMMABETA_AVX512)
  for (; i + 16 <= n; i += 16)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i),
                        _mm512_cvtps_ph(_mm512_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
#elif defined(GAMMABETA_AVX2)
  for (; i + 8 <= n; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
#elif defined(GAMMABETA_NEON)
  for (; i + 4 <= n; i += 4) vst1_u16(to + i, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(from + i))));
#endif
  for (; i < n; ++i) to[i] = narrow(from[i]);
}

// Copy past the caches: a cache line that is written whole need not be read first, nor evict what is still needed.
void stream(const void* from, void* to, int64_t bytes) {
  const char* source = static_cast<const char*>(from);
  char* target = static_cast<char*>(to);
#if defined(__SSE2__)
  int64_t head = (64 - (reinterpret_cast<uintptr_t>(target) & 63)) & 63;
  if (head > bytes) head = bytes;
  std::memcpy(target, source, size_t(head));
  int64_t i = head;
  for (; i + 64 <= bytes; i += 64) {
#if defined(GAMMABETA_AVX512)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(target + i), _mm512_loadu_si512(source + i));
#elif defined(GAMMABETA_AVX2)
    for (int64_t j = i; j < i + 64; j += 32)
      _mm256_stream_si256(reinterpret_cast<__m256i*>(target + j),
                          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + j)));
#else
    for (int64_t j = i; j < i + 64; j += 16)
      _mm_stream_si128(reinterpret_cast<__m128i*>(target + j),
                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + j)));
#endif
  }
  std::memcpy(target + i, source + i, size_t(bytes - i));
#else
  std::memcpy(target, source, size_t(bytes));
#endif
}

void fence() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

constexpr Storage kStorage = {load_bfloat16, load_float16, store_bfloat16, store_float16, stream, fence};

}  // namespace
}  // namespace GAMMABETA_TARGET
}  // namespace gammabeta
