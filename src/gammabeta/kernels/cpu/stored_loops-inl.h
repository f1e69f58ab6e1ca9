// The loops of loops.h over values as they are stored: planes and lines. Builds on loops-inl.h, included before it.

namespace gammabeta {
namespace GAMMABETA_TARGET {
namespace {

typedef uint32_t Words __attribute__((vector_size(kRegister)));
typedef int32_t SignedWords __attribute__((vector_size(kRegister)));
typedef uint16_t Halves __attribute__((vector_size(kRegister / 2), aligned(2), may_alias));

// 16-bit values, each in the lower half of a word.
inline __attribute__((always_inline)) Words words_of(const void* x) {
#if defined(GAMMABETA_AVX512)
  return reinterpret_cast<Words>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(x))));
#elif defined(GAMMABETA_AVX2)
  return reinterpret_cast<Words>(_mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(x))));
#elif defined(__SSE2__)
  return reinterpret_cast<Words>(_mm_unpacklo_epi16(_mm_loadl_epi64(static_cast<const __m128i*>(x)), __m128i{}));
#elif defined(GAMMABETA_NEON)
  return reinterpret_cast<Words>(vmovl_u16(vld1_u16(static_cast<const uint16_t*>(x))));
#else
  return __builtin_convertvector(*static_cast<const Halves*>(x), Words);
#endif
}

inline __attribute__((always_inline)) Register<float> load(const bfloat16* x) {
  return reinterpret_cast<Register<float>>(words_of(x) << 16);
}

inline __attribute__((always_inline)) Register<float> load(const float16* x) {
#if defined(GAMMABETA_AVX512)
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
#elif defined(GAMMABETA_AVX2)
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
#elif defined(GAMMABETA_NEON)
  return reinterpret_cast<Register<float>>(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&x->bits))));
#else
  // As widen().
  const Words half = words_of(x), sign = (half & 0x8000) << 16, rest = (half & 0x7fff) << 13;
  const Register<float> scaled = reinterpret_cast<Register<float>>(rest) * from_bits(0x77800000);
  const SignedWords wide = reinterpret_cast<SignedWords>(rest) >= (0x7c00 << 13);
  return reinterpret_cast<Register<float>>((wide ? rest | 0x7f800000 : reinterpret_cast<Words>(scaled)) | sign);
#endif
}

// The upper halves of words.
inline __attribute__((always_inline)) Halves upper_halves(Words v) {
#if defined(GAMMABETA_AVX512)
  const __m512i odd = _mm512_set_epi16(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1, 31, 29, 27, 25, 23,
                                       21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
  return reinterpret_cast<Halves>(_mm512_castsi512_si256(_mm512_permutexvar_epi16(odd, reinterpret_cast<__m512i>(v))));
#elif defined(GAMMABETA_AVX2)
  const __m256i words = reinterpret_cast<__m256i>(v >> 16);
  return reinterpret_cast<Halves>(_mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
#elif defined(__SSE2__)
  const __m128i words = reinterpret_cast<__m128i>(v);
  return reinterpret_cast<Halves>(_mm_cvtsi128_si64(_mm_packs_epi32(_mm_srai_epi32(words, 16), words)));
#elif defined(GAMMABETA_NEON)
  return reinterpret_cast<Halves>(vshrn_n_u32(reinterpret_cast<uint32x4_t>(v), 16));
#else
  return __builtin_convertvector(v >> 16, Halves);
#endif
}

inline __attribute__((always_inline)) Halves halves_of(const bfloat16*, Register<float> v) {
  const Words bits = reinterpret_cast<Words>(v), nearest_even = bits + 0x7fff + ((bits >> 16) & 1);
  return upper_halves(v == v ? nearest_even : Words{} + 0x7fc00000);
}

inline __attribute__((always_inline)) Halves halves_of(const float16*, Register<float> v) {
#if defined(GAMMABETA_AVX512)
  return reinterpret_cast<Halves>(_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(GAMMABETA_AVX2)
  return reinterpret_cast<Halves>(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(GAMMABETA_NEON)
  return reinterpret_cast<Halves>(vcvt_f16_f32(reinterpret_cast<float32x4_t>(v)));
#else
  // As narrow().
  const Words bits = reinterpret_cast<Words>(v), rest = bits & 0x7fffffff;
  const SignedWords size = reinterpret_cast<SignedWords>(rest);
  const Words small = reinterpret_cast<Words>(reinterpret_cast<Register<float>>(rest) + 0.5f) - 0x3f000000;
  Words half = (rest + 0xfff + ((rest >> 13) & 1) - 0x38000000) >> 13;
  half = size < 0x38800000 ? small : half;
  half = size >= 0x477ff000 ? Words{} + 0x7c00 : half;
  half = size > 0x7f800000 ? Words{} + 0x7e00 : half;
  return upper_halves((half << 16) | (bits & 0x80000000));
#endif
}

// Past the caches.
template <class Value>
inline __attribute__((always_inline)) void stream_value(void* to, Value v) {
#if defined(GAMMABETA_AVX512)
  if constexpr (sizeof v == 64) return _mm512_stream_si512(static_cast<__m512i*>(to), reinterpret_cast<__m512i>(v));
#endif
#if defined(GAMMABETA_AVX2) || defined(GAMMABETA_AVX512)
  if constexpr (sizeof v == 32) return _mm256_stream_si256(static_cast<__m256i*>(to), reinterpret_cast<__m256i>(v));
#endif
#if defined(__SSE2__)
  if constexpr (sizeof v == 16) return _mm_stream_si128(static_cast<__m128i*>(to), reinterpret_cast<__m128i>(v));
  if constexpr (sizeof v == 8) return _mm_stream_si64(static_cast<long long*>(to), reinterpret_cast<long long>(v));
#endif
  std::memcpy(to, &v, sizeof v);
}

template <bool kStreamed, class A>
inline __attribute__((always_inline)) void store(A* to, Register<A> v) {
  if constexpr (kStreamed)
    stream_value(to, v);
  else
    *reinterpret_cast<Register<A>*>(to) = v;
}
template <bool kStreamed>
inline __attribute__((always_inline)) void store(bfloat16* to, Register<float> v) {
  if constexpr (kStreamed)
    stream_value(to, halves_of(to, v));
  else
    *reinterpret_cast<Halves*>(to) = halves_of(to, v);
}
template <bool kStreamed>
inline __attribute__((always_inline)) void store(float16* to, Register<float> v) {
  if constexpr (kStreamed)
    stream_value(to, halves_of(to, v));
  else
    *reinterpret_cast<Halves*>(to) = halves_of(to, v);
}

// A single value.
inline float load_one(float x) { return x; }
inline double load_one(double x) { return x; }
inline float load_one(bfloat16 x) { return from_bits(uint32_t(x.bits) << 16); }
inline float load_one(float16 x) { return widen(x.bits); }
inline void store_one(float* to, float v) { *to = v; }
inline void store_one(double* to, double v) { *to = v; }
inline void store_one(bfloat16* to, float v) { store_bfloat16(&v, &to->bits, 1); }
inline void store_one(float16* to, float v) { to->bits = narrow(v); }

template <class T>
inline __attribute__((always_inline)) Vector<float> load_vector_of_halves(const T* x) {
  Vector<float> v;
  for (int i = 0; i < kRegistersOfVector; ++i) v.part[i] = load(x + i * kLanesOfRegister<float>);
  return v;
}
inline __attribute__((always_inline)) Vector<float> load_vector(const bfloat16* x) { return load_vector_of_halves(x); }
inline __attribute__((always_inline)) Vector<float> load_vector(const float16* x) { return load_vector_of_halves(x); }

template <class T>
struct StoredDeviations {
  typedef ArithmeticOf<T> A;
  const T* x;
  A shift;
  __attribute__((always_inline)) void vector(int64_t i, Vector<A>& s, Vector<A>& q) const {
    s = load_vector(x + i) - shift;
    q = s * s;
  }
  __attribute__((always_inline)) void scalar(int64_t i, A& s, A& q) const {
    s = load_one(x[i]) - shift;
    q = s * s;
  }
};

template <class T, class A>
void stored_deviations(const T* x, int64_t n, A shift, A* sum, A* squares) {
  sum_pairs<A>(n, StoredDeviations<T>{x, shift}, sum, squares);
}

template <class T>
struct StoredWeightedProducts {
  typedef ArithmeticOf<T> A;
  const T *g, *x;
  const A* weight;
  A mean;
  __attribute__((always_inline)) void vector(int64_t i, Vector<A>& s, Vector<A>& q) const {
    s = load_vector(g + i) * load_vector(weight + i);
    q = s * (load_vector(x + i) - mean);
  }
  __attribute__((always_inline)) void scalar(int64_t i, A& s, A& q) const {
    s = load_one(g[i]) * weight[i];
    q = s * (load_one(x[i]) - mean);
  }
};

template <class T, class A>
void stored_gradient_sums_line(const T* g, const T* x, const A* weight, int64_t n, A mean, A* sum, A* sum_x) {
  sum_pairs<A>(n, StoredWeightedProducts<T>{g, x, weight, mean}, sum, sum_x);
}

template <bool kBias, bool kStreamed, class T, class A>
void apply_line_loop(const T* x, T* y, int64_t n, A mean, A rstd, const A* weight, const A* bias, int64_t ahead) {
  constexpr int w = kLanesOfRegister<A>;
  int64_t i = 0;
  for (; i + w <= n; i += w) {
    __builtin_prefetch(x + i + ahead, 0, 2);
    Register<A> z = (load(x + i) - mean) * rstd * load(weight + i);
    if (kBias) z += load(bias + i);
    store<kStreamed>(y + i, z);
  }
  for (; i < n; ++i) {
    const A z = (load_one(x[i]) - mean) * rstd * weight[i];
    store_one(y + i, kBias ? z + bias[i] : z);
  }
}

template <class T, class A>
void stored_apply_line(const T* x, T* y, int64_t n, A mean, A rstd, const A* weight, const A* bias, int64_t ahead,
                       bool streamed) {
  if (bias)
    (streamed ? apply_line_loop<true, true, T, A> : apply_line_loop<true, false, T, A>)(x, y, n, mean, rstd, weight,
                                                                                        bias, ahead);
  else
    (streamed ? apply_line_loop<false, true, T, A> : apply_line_loop<false, false, T, A>)(x, y, n, mean, rstd, weight,
                                                                                          bias, ahead);
}

// The parameters' sums are loaded and stored once for all lines: for a single line they would be most of the work.
template <int kLines, bool kBias, bool kStreamed, class T, class A>
void gradient_lines_loop(int64_t stride, const T* g, const T* x, const T* g_total, T* g_x, int64_t n, const A* weight,
                         const LineBackprop<A>* back, A* __restrict g_weight, A* __restrict g_bias) {
  constexpr int w = kLanesOfRegister<A>;
  LineBackprop<A> of[kLines];
  for (int r = 0; r < kLines; ++r) of[r] = back[r];
  int64_t i = 0;
  for (; i + w <= n; i += w) {
    const Register<A> by = load(weight + i);
    Register<A> sum_x = load(g_weight + i), sum = {};
    if (kBias) sum = load(g_bias + i);
    for (int r = 0; r < kLines; ++r) {
      const int64_t at = i + r * stride;
      __builtin_prefetch(g + at + kLines * stride, 0, 2);
      __builtin_prefetch(x + at + kLines * stride, 0, 2);
      const Register<A> g_y = load(g + at), d = load(x + at) - of[r].mean, scaled = g_y * of[r].a;
      Register<A> out = scaled * by + (d * of[r].b + of[r].c);
      if (g_total) out += load(g_total + at);
      store<kStreamed>(g_x + at, out);
      sum_x += scaled * d;
      if (kBias) sum += g_y;
    }
    store<false>(g_weight + i, sum_x);
    if (kBias) store<false>(g_bias + i, sum);
  }
  for (; i < n; ++i)
    for (int r = 0; r < kLines; ++r) {
      const int64_t at = i + r * stride;
      const A g_y = load_one(g[at]), d = load_one(x[at]) - of[r].mean, scaled = g_y * of[r].a;
      const A out = scaled * weight[i] + (d * of[r].b + of[r].c);
      store_one(g_x + at, g_total ? out + load_one(g_total[at]) : out);
      g_weight[i] += scaled * d;
      if (kBias) g_bias[i] += g_y;
    }
}

template <int kLines, class T, class A>
void gradient_lines_with(int64_t stride, const T* g, const T* x, const T* g_total, T* g_x, int64_t n, const A* weight,
                         const LineBackprop<A>* back, A* g_weight, A* g_bias, bool streamed) {
  auto loop =
      g_bias
          ? (streamed ? gradient_lines_loop<kLines, true, true, T, A> : gradient_lines_loop<kLines, true, false, T, A>)
          : (streamed ? gradient_lines_loop<kLines, false, true, T, A>
                      : gradient_lines_loop<kLines, false, false, T, A>);
  loop(stride, g, x, g_total, g_x, n, weight, back, g_weight, g_bias);
}

template <class T, class A>
void stored_gradient_apply_line(int lines, int64_t stride, const T* g, const T* x, const T* g_total, T* g_x, int64_t n,
                                const A* weight, const LineBackprop<A>* back, A* g_weight, A* g_bias, bool streamed) {
  (lines == kLinesAtOnce
       ? gradient_lines_with<kLinesAtOnce, T, A>
       : gradient_lines_with<1, T, A>)(stride, g, x, g_total, g_x, n, weight, back, g_weight, g_bias, streamed);
}

// Planes: relu and relu6 clamp z to [0, high], and give no gradient where it is not inside.

template <class A>
struct Clamp {
  bool clamps;
  A high;

  explicit Clamp(Finish<A> finish) : clamps(finish.activation != kNone), high(bound_of<A>(finish.activation)) {}
};

template <bool kClamped, bool kResidual, bool kStreamed, class T, class A>
void apply_plane_loop(const T* x, const T* residual, T* y, int64_t n, ChannelAffine<A> f, A high) {
  constexpr int w = kLanesOfRegister<A>;
  const Register<A> zero = {}, most = zero + high;
  int64_t i = 0;
  for (; i + w <= n; i += w) {
    Register<A> z = (load(x + i) - f.mean) * f.scale + f.shift;
    if (kResidual) z += load(residual + i);
    if (kClamped) {
      z = z < zero ? zero : z;
      z = z > most ? most : z;
    }
    store<kStreamed>(y + i, z);
  }
  for (; i < n; ++i) {
    A z = (load_one(x[i]) - f.mean) * f.scale + f.shift;
    if (kResidual) z += load_one(residual[i]);
    store_one(y + i, kClamped ? clamp_to(z, A(0), high) : z);
  }
}

template <bool kClamped, bool kResidual, class T, class A>
void apply_plane_with(const T* x, const T* residual, T* y, int64_t n, ChannelAffine<A> f, A high, bool streamed) {
  (streamed ? apply_plane_loop<kClamped, kResidual, true, T, A>
            : apply_plane_loop<kClamped, kResidual, false, T, A>)(x, residual, y, n, f, high);
}

template <class T, class A>
void stored_apply_plane(const T* x, const T* residual, T* y, int64_t n, ChannelAffine<A> f, Finish<A> finish,
                        bool streamed) {
  const Clamp<A> clamp(finish);
  auto loop = clamp.clamps ? (residual ? apply_plane_with<true, true, T, A> : apply_plane_with<true, false, T, A>)
                           : (residual ? apply_plane_with<false, true, T, A> : apply_plane_with<false, false, T, A>);
  loop(x, residual, y, n, f, clamp.high, streamed);
}

// 0 where z is clamped, g elsewhere, also where z is NaN.
template <bool kClamped, bool kResidual, class T, class A>
struct PlaneGradient {
  const T *g, *x, *residual;
  ChannelAffine<A> f;
  A high;

  __attribute__((always_inline)) Register<A> at(int64_t i, Register<A> d) const {
    const Register<A> g_y = load(g + i), zero = {}, most = zero + high;
    if (!kClamped) return g_y;
    Register<A> z = d * f.scale + f.shift;
    if (kResidual) z += load(residual + i);
    return (z <= zero) | (z >= most) ? zero : g_y;
  }
  __attribute__((always_inline)) A at_one(int64_t i, A d) const {
    if (!kClamped) return load_one(g[i]);
    A z = d * f.scale + f.shift;
    if (kResidual) z += load_one(residual[i]);
    return (z <= 0) | (z >= high) ? A(0) : load_one(g[i]);
  }

  __attribute__((always_inline)) void vector(int64_t i, Vector<A>& s, Vector<A>& q) const {
    for (int p = 0; p < kRegistersOfVector; ++p) {
      const int64_t j = i + p * kLanesOfRegister<A>;
      const Register<A> d = load(x + j) - f.mean;
      s.part[p] = at(j, d);
      q.part[p] = s.part[p] * d;
    }
  }
  __attribute__((always_inline)) void scalar(int64_t i, A& s, A& q) const {
    const A d = load_one(x[i]) - f.mean;
    s = at_one(i, d);
    q = s * d;
  }
};

template <bool kClamped, bool kResidual, class T, class A>
void plane_sums_loop(const T* g, const T* x, const T* residual, int64_t n, ChannelAffine<A> f, A high, A* sum,
                     A* sum_x) {
  sum_pairs<A>(n, PlaneGradient<kClamped, kResidual, T, A>{g, x, residual, f, high}, sum, sum_x);
}

template <class T, class A>
void stored_gradient_sums_plane(const T* g, const T* x, const T* residual, int64_t n, ChannelAffine<A> f,
                                Finish<A> finish, A* sum, A* sum_x) {
  const Clamp<A> clamp(finish);
  auto loop = !clamp.clamps ? plane_sums_loop<false, false, T, A>
              : residual    ? plane_sums_loop<true, true, T, A>
                            : plane_sums_loop<true, false, T, A>;
  loop(g, x, residual, n, f, clamp.high, sum, sum_x);
}

template <bool kClamped, bool kResidual, bool kStreamed, class T, class A>
void gradient_plane_loop(const T* g, const T* x, const T* residual, T* g_x, T* g_residual, int64_t n,
                         ChannelAffine<A> f, A a, A b, A c, A high) {
  constexpr int w = kLanesOfRegister<A>;
  const PlaneGradient<kClamped, kResidual, T, A> gradient{g, x, residual, f, high};
  int64_t i = 0;
  for (; i + w <= n; i += w) {
    const Register<A> d = load(x + i) - f.mean, g_z = gradient.at(i, d);
    store<kStreamed>(g_x + i, g_z * a + (d * b + c));
    if (kResidual) store<kStreamed>(g_residual + i, g_z);
  }
  for (; i < n; ++i) {
    const A d = load_one(x[i]) - f.mean, g_z = gradient.at_one(i, d);
    store_one(g_x + i, g_z * a + (d * b + c));
    if (kResidual) store_one(g_residual + i, g_z);
  }
}

template <bool kClamped, bool kResidual, class T, class A>
void gradient_plane_with(const T* g, const T* x, const T* residual, T* g_x, T* g_residual, int64_t n,
                         ChannelAffine<A> f, A a, A b, A c, A high, bool streamed) {
  (streamed
       ? gradient_plane_loop<kClamped, kResidual, true, T, A>
       : gradient_plane_loop<kClamped, kResidual, false, T, A>)(g, x, residual, g_x, g_residual, n, f, a, b, c, high);
}

template <class T, class A>
void stored_gradient_apply_plane(const T* g, const T* x, const T* residual, T* g_x, T* g_residual, int64_t n,
                                 ChannelAffine<A> f, A a, A b, A c, Finish<A> finish, bool streamed) {
  const Clamp<A> clamp(finish);
  auto loop = clamp.clamps
                  ? (g_residual ? gradient_plane_with<true, true, T, A> : gradient_plane_with<true, false, T, A>)
                  : (g_residual ? gradient_plane_with<false, true, T, A> : gradient_plane_with<false, false, T, A>);
  loop(g, x, residual, g_x, g_residual, n, f, a, b, c, clamp.high, streamed);
}

}  // namespace
}  // namespace GAMMABETA_TARGET
}  // namespace gammabeta
