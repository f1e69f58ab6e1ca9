// Channel norms: statistics over batch and positions, one for each channel. BatchNorm.
//
// Channels whose positions are contiguous are taken one after the other, both passes over each while it is in the cache;
// few and large ones are cut into parts. Where the channels are contiguous (channels_last, and (N, C)) the statistics
// take a pass over the whole tensor and what they are for takes another.

#include "channel_norm.h"

#include "columns.h"
#include "planes.h"

namespace gammabeta {
namespace {

struct Geometry {
  int64_t n, c, s;
  bool columns;
  Sizes sizes, strides;

  explicit Geometry(const Tensor& x) : sizes(vector_of(x.sizes())) {
    n = sizes[0], c = sizes[1], s = 1;
    for (size_t i = 2; i < sizes.size(); ++i) s *= sizes[i];
    const Sizes last = channels_last_strides(sizes);
    columns = s == 1 || (c > 1 && !laid_out(x, sizes, contiguous_strides(sizes)) && laid_out(x, sizes, last));
    strides = columns ? last : contiguous_strides(sizes);
  }
};

// What all of these ops take, brought to one dtype and layout.
template <class T>
struct Problem {
  typedef ArithmeticOf<T> A;
  Geometry geometry;
  Tensor x;
  MaybeTensor residual, g;
  Mask mask;
  Finish<A> finish;
  bool streamed;

  Problem(const Tensor& x_, const MaybeTensor& residual_, const MaybeTensor& g_, const MaybeTensor& mask_,
          ScalarType dtype, const std::string& activation, double slope)
      : geometry(x_),
        x(brought_to(x_, dtype, geometry.sizes, geometry.strides)),
        mask(mask_),
        finish{activation_of(activation), A(slope)},
        streamed(x_.numel() * int64_t(sizeof(T)) >= kStreamedBytes) {
    if (residual_) residual = brought_to(*residual_, dtype, geometry.sizes, geometry.strides);
    if (g_) g = brought_to(*g_, dtype, geometry.sizes, geometry.strides);
  }

  const T* x_data() const { return static_cast<const T*>(x.const_data_ptr()); }
  const T* residual_data() const { return residual ? static_cast<const T*>(residual->const_data_ptr()) : nullptr; }
  const T* g_data() const { return static_cast<const T*>(g->const_data_ptr()); }

  Plane<T> plane() const { return Plane<T>(geometry.n, geometry.c * geometry.s, geometry.s, geometry.s); }
  Columns<T> columns() const { return Columns<T>(geometry.n * geometry.s, geometry.c, mask.data(), finish); }

  // Whether there are channels enough to give each whole to one thread. Not by how many threads there are.
  bool whole_channels() const { return geometry.c >= 32 || geometry.n * geometry.s <= 65536; }
};

constexpr int64_t kPiecesOfPart = 32;  // of a channel that is cut

int64_t parts_of(int64_t pieces) { return (pieces + kPiecesOfPart - 1) / kPiecesOfPart; }

// Two passes over each of the channels [begin, end), so many of them together.
template <class First, class Second>
void abreast(int64_t begin, int64_t end, int64_t together, int64_t pieces, const First& first, const Second& second) {
  for (int64_t i = begin; i < end; i += together) {
    const int64_t last = std::min(i + together, end), step = together > 1 ? 1 : pieces;
    for (int64_t piece = 0; piece < pieces; piece += step)
      for (int64_t j = i; j < last; ++j) first(j, piece, piece + step);
    for (int64_t piece = 0; piece < pieces; piece += step)
      for (int64_t j = i; j < last; ++j) second(j, piece, piece + step);
  }
}

template <class A>
Affine<A> affine(double mean, double var, double weight, double bias, double eps) {
  return {A(mean), A(weight / std::sqrt(var + eps)), A(bias)};
}

// ∂ℓ/∂x = γ/σ'·(∂ℓ/∂z − Σ∂ℓ/∂z/n − x̂·Σx̂·∂ℓ/∂z/n)
template <class A>
Backprop<A> backprop(double weight, double rstd, double sum, double sum_xhat, double n) {
  const double scale = weight * rstd, count = n > 1 ? n : 1;
  return {A(scale), A(-scale * rstd * (sum_xhat / count)), A(-scale * (sum / count))};
}

// Forward: moments, or y by given statistics, or both.

template <class T>
void plane_forward(const Problem<T>& p, RunningMoments* moments, bool take, T* y, const std::vector<double>& weight,
                   const std::vector<double>& bias, double eps) {
  typedef ArithmeticOf<T> A;
  const Plane<T> plane = p.plane();
  const int64_t c = p.geometry.c, s = p.geometry.s, size = p.geometry.n * s;
  const T *x = p.x_data(), *residual = p.residual_data();
  const Writer<T> writer(p.streamed);
  auto parameters = [&](int64_t i) {
    const RunningMoments& m = moments[i];
    return affine<A>(m.mean, m.m2 / (m.count > 1 ? m.count : 1), weight[size_t(i)], bias[size_t(i)], eps);
  };
  auto at = [&](const T* data, int64_t i) { return data ? data + i * s : nullptr; };
  auto write = [&](PlaneWork<T>& work, int64_t i, int64_t begin, int64_t end) {
    work.apply(at(x, i), at(residual, i), y + i * s, begin, end, parameters(i), writer);
  };
  if (p.whole_channels()) {
    in_parallel(c, size, [&](int64_t begin, int64_t end) {
      PlaneWork<T> work(plane, p.mask.data(), p.finish);
      abreast(begin, end, plane.abreast(1), plane.pieces(), [&](int64_t i, int64_t from, int64_t to) {
        if (take) work.moments(x + i * s, from, to, true, moments[i]);
      }, [&](int64_t i, int64_t from, int64_t to) {
        if (y) write(work, i, from, to);
      });
      writer.done();
    });
    return;
  }
  const int64_t parts = parts_of(plane.pieces());
  auto end_of = [&](int64_t part) { return std::min((part + 1) * kPiecesOfPart, plane.pieces()); };
  if (take) {
    std::vector<RunningMoments> partial(static_cast<size_t>(c * parts));
    in_parallel(c * parts, size / parts, [&](int64_t begin, int64_t end) {
      PlaneWork<T> work(plane, p.mask.data(), p.finish);
      for (int64_t i = begin; i < end; ++i)
        work.moments(x + i / parts * s, i % parts * kPiecesOfPart, end_of(i % parts), true, partial[size_t(i)]);
    });
    for (int64_t i = 0; i < c * parts; ++i)
      moments[i / parts].merge(partial[size_t(i)].count, partial[size_t(i)].mean, partial[size_t(i)].m2);
  }
  if (!y) return;
  in_parallel(c * parts, size / parts, [&](int64_t begin, int64_t end) {
    PlaneWork<T> work(plane, p.mask.data(), p.finish);
    for (int64_t i = end - 1; i >= begin; --i) write(work, i / parts, i % parts * kPiecesOfPart, end_of(i % parts));
    writer.done();
  });
}

template <class T>
typename Columns<T>::Parameters column_parameters(const Columns<T>& columns, const RunningMoments* moments, int64_t c,
                                                  const std::vector<double>& weight, const std::vector<double>& bias,
                                                  double eps) {
  std::vector<double> mean(static_cast<size_t>(c)), scale(mean), shift(mean);
  for (size_t i = 0; i < size_t(c); ++i) {
    const RunningMoments& m = moments[i];
    mean[i] = m.mean;
    scale[i] = weight[i] / std::sqrt(m.m2 / (m.count > 1 ? m.count : 1) + eps);
    shift[i] = bias[i];
  }
  return {columns.repeated(mean.data()), columns.repeated(scale.data()), columns.repeated(shift.data())};
}

template <class T>
void column_forward(const Problem<T>& p, RunningMoments* moments, bool take, T* y, const std::vector<double>& weight,
                    const std::vector<double>& bias, double eps) {
  const Columns<T> columns = p.columns();
  const int64_t chunks = columns.chunks(), width = columns.width();
  const T *x = p.x_data(), *residual = p.residual_data();
  if (take) {
    std::vector<double> means(static_cast<size_t>(chunks * width)), m2s(means), counts(static_cast<size_t>(chunks));
    in_parallel(chunks, columns.elements_of_chunk(), [&](int64_t begin, int64_t end) {
      auto own = std::make_unique<Columns<T>>(columns);
      for (int64_t i = begin; i < end; ++i) own->moments(x, i, &means[size_t(i * width)], &m2s[size_t(i * width)], &counts[size_t(i)]);
    });
    columns.merge(x, means.data(), m2s.data(), counts.data(), moments);
  }
  if (!y) return;
  const auto parameters = column_parameters(columns, moments, p.geometry.c, weight, bias, eps);
  const Writer<T> writer(p.streamed);
  in_parallel(chunks, columns.elements_of_chunk(), [&](int64_t begin, int64_t end) {
    auto own = std::make_unique<Columns<T>>(columns);
    for (int64_t i = end - 1; i >= begin; --i) own->apply(x, residual, y, i, parameters, writer);
  });
}

// Backward: the sums, or ∂ℓ/∂x from given ones, or both.

struct Sums {
  std::vector<double> sum, sum_xhat;  // Σ∂ℓ/∂z and Σx̂·∂ℓ/∂z, one a channel
};

// What the backward of a channel norm goes by; count is empty where the statistics are constants.
struct Backward {
  std::vector<double> mean, var, weight, bias, count;
  double eps;

  double rstd(int64_t i) const { return 1 / std::sqrt(var[size_t(i)] + eps); }
  bool constant() const { return count.empty(); }
  double n(int64_t i) const { return constant() ? 1 : count[size_t(i)]; }
};

template <class A>
Backprop<A> backprop_of(const Backward& b, const Sums& sums, int64_t i) {
  if (b.constant()) return {A(b.weight[size_t(i)] * b.rstd(i)), A(0), A(0)};
  return backprop<A>(b.weight[size_t(i)], b.rstd(i), sums.sum[size_t(i)], sums.sum_xhat[size_t(i)], b.n(i));
}

template <class T>
void plane_backward(const Problem<T>& p, const Backward& b, Sums& sums, bool take, T* g_x, T* g_residual) {
  typedef ArithmeticOf<T> A;
  const Plane<T> plane = p.plane();
  const int64_t c = p.geometry.c, s = p.geometry.s, size = p.geometry.n * s;
  const T *x = p.x_data(), *g = p.g_data(), *residual = p.residual_data();
  // Between the passes ∂ℓ/∂z is kept where it has to be written anyway, unless that would round it or it is cheaper to
  // make again than to write before its time.
  const bool costly = p.finish.activation == kSilu || p.finish.activation == kGelu;
  const bool kept = take && g_x && g_residual && costly && !Writer<T>::kConverts;
  const Writer<T> writer(p.streamed), near(false);
  auto f = [&](int64_t i) {
    return affine<A>(b.mean[size_t(i)], b.var[size_t(i)], b.weight[size_t(i)], b.bias[size_t(i)], b.eps);
  };
  auto at = [&](const T* data, int64_t i) { return data ? data + i * s : nullptr; };
  auto out = [&](T* data, int64_t i) { return data ? data + i * s : nullptr; };
  auto reduce = [&](PlaneWork<T>& work, int64_t i, int64_t begin, int64_t end, double* sum, double* sum_xhat) {
    double sum_x = 0;
    work.gradient_sums(g + i * s, x + i * s, at(residual, i), kept ? out(g_residual, i) : nullptr, begin, end, f(i), near, sum, &sum_x);
    *sum_xhat += sum_x * b.rstd(i);
  };
  auto write = [&](PlaneWork<T>& work, PlaneWork<T>& plain, int64_t i, int64_t begin, int64_t end) {
    const Backprop<A> back = backprop_of<A>(b, sums, i);
    if (kept)
      plain.gradient_apply(g_residual + i * s, x + i * s, nullptr, g_x + i * s, nullptr, begin, end, f(i), back, writer);
    else
      work.gradient_apply(g + i * s, x + i * s, at(residual, i), g_x + i * s, out(g_residual, i), begin, end, f(i), back, writer);
  };
  const Finish<A> none{kNone, A(0)};
  if (p.whole_channels()) {
    in_parallel(c, size, [&](int64_t begin, int64_t end) {
      PlaneWork<T> work(plane, p.mask.data(), p.finish), plain(plane, p.mask.data(), none);
      abreast(begin, end, plane.abreast(residual && p.finish.activation != kNone ? 3 : 2), plane.pieces(), [&](int64_t i, int64_t from, int64_t to) {
        if (take) reduce(work, i, from, to, &sums.sum[size_t(i)], &sums.sum_xhat[size_t(i)]);
      }, [&](int64_t i, int64_t from, int64_t to) {
        if (g_x) write(work, plain, i, from, to);
      });
      writer.done();
    });
    return;
  }
  const int64_t parts = parts_of(plane.pieces());
  auto end_of = [&](int64_t part) { return std::min((part + 1) * kPiecesOfPart, plane.pieces()); };
  if (take) {
    std::vector<double> sum(static_cast<size_t>(c * parts)), sum_xhat(sum);
    in_parallel(c * parts, size / parts, [&](int64_t begin, int64_t end) {
      PlaneWork<T> work(plane, p.mask.data(), p.finish);
      for (int64_t i = begin; i < end; ++i)
        reduce(work, i / parts, i % parts * kPiecesOfPart, end_of(i % parts), &sum[size_t(i)], &sum_xhat[size_t(i)]);
    });
    for (size_t i = 0; i < sum.size(); ++i) {
      sums.sum[i / size_t(parts)] += sum[i];
      sums.sum_xhat[i / size_t(parts)] += sum_xhat[i];
    }
  }
  if (!g_x) return;
  in_parallel(c * parts, size / parts, [&](int64_t begin, int64_t end) {
    PlaneWork<T> work(plane, p.mask.data(), p.finish), plain(plane, p.mask.data(), none);
    for (int64_t i = end - 1; i >= begin; --i)
      write(work, plain, i / parts, i % parts * kPiecesOfPart, end_of(i % parts));
    writer.done();
  });
}

template <class T>
void column_backward(const Problem<T>& p, const Backward& b, Sums& sums, bool take, T* g_x, T* g_residual) {
  typedef ArithmeticOf<T> A;
  Columns<T> columns = p.columns();
  const int64_t c = p.geometry.c, chunks = columns.chunks(), width = columns.width();
  const T *x = p.x_data(), *g = p.g_data(), *residual = p.residual_data();
  const Writer<T> writer(p.streamed);
  std::vector<RunningMoments> moments(static_cast<size_t>(c));
  for (size_t i = 0; i < size_t(c); ++i) moments[i] = {1, b.mean[i], b.var[i]};
  const auto parameters = column_parameters(columns, moments.data(), c, b.weight, b.bias, b.eps);
  const bool at_once = take && g_x && b.constant(), kept = take && g_x && g_residual && (at_once || !Writer<T>::kConverts);
  if (take) {
    std::vector<double> sum(static_cast<size_t>(chunks * width)), sum_x(sum);
    in_parallel(chunks, 2 * columns.elements_of_chunk(), [&](int64_t begin, int64_t end) {
      auto own = std::make_unique<Columns<T>>(columns);
      for (int64_t i = begin; i < end; ++i)
        own->gradient_sums(g, x, residual, kept ? g_residual : nullptr, at_once ? g_x : nullptr, i, parameters, writer,
                           &sum[size_t(i * width)], &sum_x[size_t(i * width)]);
    });
    columns.add_up(sum.data(), sums.sum.data());
    columns.add_up(sum_x.data(), sums.sum_xhat.data());
    for (int64_t i = 0; i < c; ++i) sums.sum_xhat[size_t(i)] *= b.rstd(i);
  }
  if (!g_x || at_once) return;
  std::vector<double> a_C(static_cast<size_t>(c)), b_C(a_C), c_C(a_C);
  for (int64_t i = 0; i < c; ++i) {
    const Backprop<double> back = backprop_of<double>(b, sums, i);
    a_C[size_t(i)] = back.a, b_C[size_t(i)] = back.b, c_C[size_t(i)] = back.c;
  }
  const typename Columns<T>::Backprops back{columns.repeated(a_C.data()), columns.repeated(b_C.data()), columns.repeated(c_C.data())};
  const Columns<T> plain(p.geometry.n * p.geometry.s, c, p.mask.data(), Finish<A>{kNone, A(0)});
  in_parallel(chunks, 2 * columns.elements_of_chunk(), [&](int64_t begin, int64_t end) {
    auto own = std::make_unique<Columns<T>>(kept ? plain : columns);
    for (int64_t i = end - 1; i >= begin; --i)
      own->gradient_apply(kept ? g_residual : g, x, kept ? nullptr : residual, g_x, kept ? nullptr : g_residual, i,
                          parameters, back, writer);
  });
}

std::vector<RunningMoments> given_moments(const Tensor& mean, const Tensor& var) {
  const std::vector<double> mean_C = values_of(mean), var_C = values_of(var);
  std::vector<RunningMoments> moments(mean_C.size());
  for (size_t i = 0; i < moments.size(); ++i) moments[i] = {1, mean_C[i], var_C[i]};
  return moments;
}

// y, or no y where only the moments are asked for.
MaybeTensor forward(const Tensor& x, std::vector<RunningMoments>& moments, bool take, bool write,
                    const MaybeTensor& weight, const MaybeTensor& bias, const MaybeTensor& residual,
                    const MaybeTensor& mask, double eps, const std::string& activation, double slope) {
  const ScalarType dtype = residual ? promoted(x.scalar_type(), residual->scalar_type()) : x.scalar_type();
  return with_type(dtype, [&](auto type) -> MaybeTensor {
    typedef decltype(type) T;
    const Problem<T> p(x, residual, std::nullopt, mask, dtype, activation, slope);
    std::optional<Output> y;
    if (write) y.emplace(x, dtype, dtype, p.geometry.sizes, p.geometry.strides);
    if (x.numel() > 0) {
      T* y_data = write ? static_cast<T*>(y->data()) : nullptr;
      const std::vector<double> weight_C = values_of(weight, p.geometry.c, 1), bias_C = values_of(bias, p.geometry.c, 0);
      (p.geometry.columns ? column_forward<T> : plane_forward<T>)(p, moments.data(), take, y_data, weight_C, bias_C, eps);
    }
    return write ? MaybeTensor(y->result()) : std::nullopt;
  });
}

std::tuple<Tensor, Tensor, Tensor> statistics_of(const std::vector<RunningMoments>& moments, ScalarType x, bool var) {
  const ScalarType dtype = statistics_dtype(x);
  std::vector<double> mean(moments.size()), spread(mean), count(mean);
  for (size_t i = 0; i < moments.size(); ++i) {
    mean[i] = moments[i].mean;
    count[i] = moments[i].count;
    spread[i] = var ? moments[i].m2 / (count[i] > 1 ? count[i] : 1) : moments[i].m2;
  }
  const Sizes sizes{int64_t(moments.size())};
  return {tensor_of(mean, sizes, dtype), tensor_of(spread, sizes, dtype), tensor_of(count, sizes, ScalarType::Long)};
}

// Sums where they are taken, ∂ℓ/∂x and ∂ℓ/∂residual where they are written.
std::tuple<MaybeTensor, MaybeTensor> backward(const Tensor& g_y, const Tensor& x, const Backward& b, Sums& sums,
                                              bool take, bool write, const MaybeTensor& residual,
                                              const MaybeTensor& mask, const std::string& activation, double slope) {
  ScalarType dtype = promoted(x.scalar_type(), g_y.scalar_type());
  if (residual) dtype = promoted(dtype, residual->scalar_type());
  return with_type(dtype, [&](auto type) -> std::tuple<MaybeTensor, MaybeTensor> {
    typedef decltype(type) T;
    const Problem<T> p(x, residual, g_y, mask, dtype, activation, slope);
    std::optional<Output> g_x, g_residual;
    if (write) g_x.emplace(x, x.scalar_type(), dtype, p.geometry.sizes, p.geometry.strides);
    if (write && residual)
      g_residual.emplace(*residual, residual->scalar_type(), dtype, p.geometry.sizes, p.geometry.strides);
    if (x.numel() > 0)
      (p.geometry.columns ? column_backward<T> : plane_backward<T>)(
          p, b, sums, take, g_x ? static_cast<T*>(g_x->data()) : nullptr,
          g_residual ? static_cast<T*>(g_residual->data()) : nullptr);
    return {g_x ? MaybeTensor(g_x->result()) : std::nullopt, g_residual ? MaybeTensor(g_residual->result()) : std::nullopt};
  });
}

Backward backward_by(const Tensor& x, const MaybeTensor& weight, const MaybeTensor& bias, const Tensor& mean,
                     const Tensor& var, const MaybeTensor& count, double eps) {
  const int64_t c = x.size(1);
  return {values_of(mean), values_of(var), values_of(weight, c, 1), values_of(bias, c, 0), values_of(count, 0, 0), eps};
}

Sums no_sums(const Tensor& x) {
  const size_t c = size_t(x.size(1));
  return {std::vector<double>(c), std::vector<double>(c)};
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> channel_norm_forward(Tensor x, MaybeTensor weight, MaybeTensor bias,
                                                                MaybeTensor residual, MaybeTensor mask, double eps,
                                                                std::string activation, double slope) {
  Arguments("channel_norm_forward", "x", x)
      .parameter("weight", weight)
      .parameter("bias", bias)
      .like_x("residual", residual)
      .mask(mask)
      .activation(activation)
      .eps(eps);
  std::vector<RunningMoments> moments(static_cast<size_t>(x.size(1)));
  const MaybeTensor y = forward(x, moments, true, true, weight, bias, residual, mask, eps, activation, slope);
  auto [mean, var, count] = statistics_of(moments, x.scalar_type(), true);
  return {*y, mean, var, count};
}

Tensor channel_apply_forward(Tensor x, Tensor mean, Tensor var, MaybeTensor weight, MaybeTensor bias,
                             MaybeTensor residual, MaybeTensor mask, double eps, std::string activation, double slope) {
  Arguments("channel_apply_forward", "x", x)
      .statistic("mean", mean)
      .statistic("var", var)
      .parameter("weight", weight)
      .parameter("bias", bias)
      .like_x("residual", residual)
      .mask(mask)
      .activation(activation)
      .eps(eps);
  std::vector<RunningMoments> moments = given_moments(mean, var);
  return *forward(x, moments, false, true, weight, bias, residual, mask, eps, activation, slope);
}

std::tuple<Tensor, Tensor, Tensor> channel_moments(Tensor x, MaybeTensor mask) {
  Arguments("channel_moments", "x", x).mask(mask);
  std::vector<RunningMoments> moments(static_cast<size_t>(x.size(1)));
  forward(x, moments, true, false, std::nullopt, std::nullopt, std::nullopt, mask, 0, "none", 0);
  return statistics_of(moments, x.scalar_type(), false);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> channel_norm_backward(Tensor g_y, Tensor x, MaybeTensor weight,
                                                                 MaybeTensor bias, MaybeTensor residual,
                                                                 MaybeTensor mask, Tensor mean, Tensor var,
                                                                 MaybeTensor count, double eps, std::string activation,
                                                                 double slope) {
  Arguments("channel_norm_backward", "x", x)
      .like_x("g_y", g_y)
      .parameter("weight", weight)
      .parameter("bias", bias)
      .like_x("residual", residual)
      .mask(mask)
      .statistic("mean", mean)
      .statistic("var", var)
      .count(count)
      .activation(activation)
      .eps(eps);
  const Backward b = backward_by(x, weight, bias, mean, var, count, eps);
  Sums sums = no_sums(x);
  auto [g_x, g_residual] = backward(g_y, x, b, sums, true, true, residual, mask, activation, slope);
  const Sizes sizes{x.size(1)};
  return {*g_x, weight ? tensor_of(sums.sum_xhat, sizes, weight->scalar_type()) : nothing_like(x),
          bias ? tensor_of(sums.sum, sizes, bias->scalar_type()) : nothing_like(x),
          g_residual ? *g_residual : nothing_like(x)};
}

std::tuple<Tensor, Tensor> channel_backward_reduce(Tensor g_y, Tensor x, MaybeTensor weight, MaybeTensor bias,
                                                   MaybeTensor residual, MaybeTensor mask, Tensor mean, Tensor var,
                                                   double eps, std::string activation, double slope) {
  Arguments("channel_backward_reduce", "x", x)
      .like_x("g_y", g_y)
      .parameter("weight", weight)
      .parameter("bias", bias)
      .like_x("residual", residual)
      .mask(mask)
      .statistic("mean", mean)
      .statistic("var", var)
      .activation(activation)
      .eps(eps);
  const Backward b = backward_by(x, weight, bias, mean, var, std::nullopt, eps);
  Sums sums = no_sums(x);
  backward(g_y, x, b, sums, true, false, residual, mask, activation, slope);
  const Sizes sizes{x.size(1)};
  const ScalarType dtype = statistics_dtype(x.scalar_type());
  return {tensor_of(sums.sum, sizes, dtype), tensor_of(sums.sum_xhat, sizes, dtype)};
}

std::tuple<Tensor, Tensor> channel_backward_apply(Tensor g_y, Tensor x, MaybeTensor weight, MaybeTensor bias,
                                                  MaybeTensor residual, MaybeTensor mask, Tensor mean, Tensor var,
                                                  Tensor sum_g, Tensor sum_g_xhat, Tensor count, double eps,
                                                  std::string activation, double slope) {
  Arguments("channel_backward_apply", "x", x)
      .like_x("g_y", g_y)
      .parameter("weight", weight)
      .parameter("bias", bias)
      .like_x("residual", residual)
      .mask(mask)
      .statistic("mean", mean)
      .statistic("var", var)
      .statistic("sum_g", sum_g)
      .statistic("sum_g_xhat", sum_g_xhat)
      .count(count)
      .activation(activation)
      .eps(eps);
  const Backward b = backward_by(x, weight, bias, mean, var, count, eps);
  Sums sums{values_of(sum_g), values_of(sum_g_xhat)};
  auto [g_x, g_residual] = backward(g_y, x, b, sums, false, true, residual, mask, activation, slope);
  return {*g_x, g_residual ? *g_residual : nothing_like(x)};
}

}  // namespace gammabeta
