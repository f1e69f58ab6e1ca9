// Channel norms: one statistic for each channel, over batch and positions. BatchNorm.
//
// Where positions are contiguous, channels are taken one after the other, with both passes over a channel while it is
// cached; few large channels are cut into parts. Where channels are contiguous (channels_last, and (N, C)), each pass
// goes over the whole tensor.

#include "channel_norm.h"

#include "norm.h"

namespace gammabeta {
namespace {

// Each channel is a group of its own.
Geometry geometry_of(const Tensor& x) {
  Geometry geo(x);
  const Sizes &sizes = geo.sizes, last = channels_last_strides(sizes);
  geo.n = sizes[0], geo.groups = sizes[1];
  for (size_t i = 2; i < sizes.size(); ++i) geo.s *= sizes[i];
  geo.columns =
      geo.s == 1 || (geo.groups > 1 && !has_layout(x, sizes, contiguous_strides(sizes)) && has_layout(x, sizes, last));
  geo.strides = geo.columns ? last : contiguous_strides(sizes);
  return geo;
}

// The policy for the walks of norm.h. `count` is used by backward; it is empty where the statistics are constants.
template <class T>
class ChannelAxes {
 public:
  ChannelAxes(const Problem<T>& p, const Tensor& x, const Statistics& statistics, const std::vector<double>& count)
      : p_(p),
        geo_(p.geometry),
        plane_(geo_.n, geo_.channels() * geo_.s, geo_.s, geo_.s),
        statistics_(statistics),
        single_(statistics_dtype(x.scalar_type()) == ScalarType::Float),
        count_(count) {}

  // tensors: how many are read by both passes.
  Partition partition(int tensors) const {
    constexpr int64_t kPiecesPerPart = 32;
    const int64_t size = geo_.n * geo_.s;
    // Decided by the shape, not by the number of threads.
    const bool whole = geo_.groups >= 32 || size <= 65536;
    return {geo_.groups, plane_.pieces(), kPiecesPerPart, size, plane_.interleaved(tensors), whole};
  }
  PlaneWorker<T> worker() const { return {plane_, p_.mask.data(), p_.finish}; }

  void moments(PlaneWorker<T>& worker, const T* x, int64_t channel, int64_t from, int64_t to, RunningMoments& m) const {
    worker.work.moments(x + channel * geo_.s, from, to, true, m);
  }
  template <class F>
  void for_each_plane(int64_t channel, int64_t from, int64_t to, const F& f) const {
    f(PlanePart{channel * geo_.s, channel, from, to, p_.mask.data()});
  }

  template <class F>
  void for_each_block(const F& f) const {
    f(ColumnBlock{0, geo_.n * geo_.s, 0, p_.mask.data(), false});
  }
  bool block_of_all() const { return true; }

  ChannelAffine<double> affine(int64_t, int64_t channel) const {
    const RunningMoments& m = statistics_[size_t(channel)];
    const double mean = returned(m.mean), var = returned(m.m2 / (m.count > 1 ? m.count : 1));
    return {mean, p_.weight[size_t(channel)] / std::sqrt(var + p_.eps), p_.bias[size_t(channel)]};
  }

  bool constant() const { return count_.empty(); }
  // Sums of ∂ℓ/∂z and of x̂·∂ℓ/∂z.
  void add(int64_t, int64_t channel, double sum, double sum_x, GradientSums& sums) const {
    sums.sum += sum;
    sums.sum_x += sum_x * rstd(channel);
  }
  // ∂ℓ/∂x = γ/σ'·(∂ℓ/∂z − Σ∂ℓ/∂z/n − x̂·Σx̂·∂ℓ/∂z/n)
  Backprop<double> backprop(int64_t, int64_t channel, const GradientSums& sums) const {
    const double scale = p_.weight[size_t(channel)] * rstd(channel);
    if (constant()) return {scale, 0, 0};
    const double n = std::max(count_[size_t(channel)], 1.0);
    return {scale, -scale * rstd(channel) * (sums.sum_x / n), -scale * (sums.sum / n)};
  }

 private:
  // A statistic as it is returned: so y can be made again from the statistics, with the same bits.
  double returned(double statistic) const { return single_ ? double(float(statistic)) : statistic; }
  double rstd(int64_t channel) const { return 1 / std::sqrt(statistics_[size_t(channel)].m2 + p_.eps); }

  const Problem<T>& p_;
  const Geometry& geo_;
  Plane<T> plane_;
  const Statistics& statistics_;
  const bool single_;
  const std::vector<double>& count_;
};

// Given statistics. With a count of 1, m2 is the variance.
Statistics given_statistics(const Tensor& mean, const Tensor& var) {
  const std::vector<double> mean_C = values_of(mean), var_C = values_of(var);
  Statistics statistics(mean_C.size());
  for (size_t i = 0; i < statistics.size(); ++i) statistics[i] = {1, mean_C[i], var_C[i]};
  return statistics;
}

// Returns y, or nothing where only the statistics are reduced.
MaybeTensor forward(const Tensor& x, const NormArguments& arguments, Passes passes, Statistics& statistics) {
  const MaybeTensor& residual = arguments.residual;
  const ScalarType dtype = residual ? promoted(x.scalar_type(), residual->scalar_type()) : x.scalar_type();
  const Geometry geo = geometry_of(x);
  return with_type(dtype, [&](auto type) -> MaybeTensor {
    typedef decltype(type) T;
    const Problem<T> p(geo, x, kAbsent, arguments, dtype);
    std::optional<Output> y;
    if (passes.write) y.emplace(x, dtype, dtype, geo.sizes, geo.strides);
    if (x.numel() > 0) {
      const std::vector<double> no_count;
      (geo.columns ? column_forward<T, ChannelAxes<T>>
                   : plane_forward<T, ChannelAxes<T>>)(p, ChannelAxes<T>(p, x, statistics, no_count), passes,
                                                       statistics, y ? static_cast<T*>(y->data()) : nullptr);
    }
    return y ? MaybeTensor(y->result()) : std::nullopt;
  });
}

// Mean, m2 (or the variance) and count.
std::tuple<Tensor, Tensor, Tensor> tensors_of(const Statistics& statistics, ScalarType x, bool variance) {
  const ScalarType dtype = statistics_dtype(x);
  std::vector<double> mean(statistics.size()), spread(mean), count(mean);
  for (size_t i = 0; i < statistics.size(); ++i) {
    mean[i] = statistics[i].mean;
    count[i] = statistics[i].count;
    spread[i] = variance ? statistics[i].m2 / (count[i] > 1 ? count[i] : 1) : statistics[i].m2;
  }
  const Sizes sizes{int64_t(statistics.size())};
  return {tensor_of(mean, sizes, dtype), tensor_of(spread, sizes, dtype), tensor_of(count, sizes, ScalarType::Long)};
}

// The statistics of the forward pass. count, the number of values of each, is absent where they are constants.
struct GivenStatistics {
  const Tensor &mean, &var;
  const MaybeTensor& count;
};

// Reduces the sums, and returns ∂ℓ/∂x and ∂ℓ/∂residual where they are written.
std::tuple<MaybeTensor, MaybeTensor> backward(const Tensor& g_y, const Tensor& x, const NormArguments& arguments,
                                              const GivenStatistics& given, Passes passes,
                                              std::vector<GradientSums>& sums) {
  const MaybeTensor& residual = arguments.residual;
  ScalarType dtype = promoted(x.scalar_type(), g_y.scalar_type());
  if (residual) dtype = promoted(dtype, residual->scalar_type());
  const Geometry geo = geometry_of(x);
  const Statistics statistics = given_statistics(given.mean, given.var);
  const std::vector<double> count = values_of(given.count, 0, 0);
  return with_type(dtype, [&](auto type) -> std::tuple<MaybeTensor, MaybeTensor> {
    typedef decltype(type) T;
    const Problem<T> p(geo, x, g_y, arguments, dtype);
    std::optional<Output> g_x, g_residual;
    if (passes.write) g_x.emplace(x, x.scalar_type(), dtype, geo.sizes, geo.strides);
    if (passes.write && residual) g_residual.emplace(*residual, residual->scalar_type(), dtype, geo.sizes, geo.strides);
    if (x.numel() > 0)
      (geo.columns ? column_backward<T, ChannelAxes<T>>
                   : plane_backward<T, ChannelAxes<T>>)(p, ChannelAxes<T>(p, x, statistics, count), passes, sums,
                                                        g_x ? static_cast<T*>(g_x->data()) : nullptr,
                                                        g_residual ? static_cast<T*>(g_residual->data()) : nullptr);
    return {g_x ? MaybeTensor(g_x->result()) : std::nullopt,
            g_residual ? MaybeTensor(g_residual->result()) : std::nullopt};
  });
}

std::vector<GradientSums> no_sums(const Tensor& x) { return std::vector<GradientSums>(size_t(x.size(1))); }

std::vector<double> sums_of(const std::vector<GradientSums>& sums, double GradientSums::* which) {
  std::vector<double> values;
  for (const GradientSums& one : sums) values.push_back(one.*which);
  return values;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> channel_norm_forward(Tensor x, MaybeTensor weight, MaybeTensor bias,
                                                                MaybeTensor residual, MaybeTensor mask, double eps,
                                                                Text activation, double slope) {
  CheckNorm("channel_norm_forward", "x", x)
      .parameter("weight", weight)
      .parameter("bias", bias)
      .like_x("residual", residual)
      .mask(mask)
      .activation(activation)
      .eps(eps);
  Statistics statistics(static_cast<size_t>(x.size(1)));
  const MaybeTensor y = forward(x, {weight, bias, residual, mask, eps, activation, slope}, {true, true}, statistics);
  auto [mean, var, count] = tensors_of(statistics, x.scalar_type(), true);
  return {*y, mean, var, count};
}

Tensor channel_apply_forward(Tensor x, Tensor mean, Tensor var, MaybeTensor weight, MaybeTensor bias,
                             MaybeTensor residual, MaybeTensor mask, double eps, Text activation, double slope) {
  CheckNorm("channel_apply_forward", "x", x)
      .statistic("mean", mean)
      .statistic("var", var)
      .parameter("weight", weight)
      .parameter("bias", bias)
      .like_x("residual", residual)
      .mask(mask)
      .activation(activation)
      .eps(eps);
  Statistics statistics = given_statistics(mean, var);
  return *forward(x, {weight, bias, residual, mask, eps, activation, slope}, {false, true}, statistics);
}

std::tuple<Tensor, Tensor, Tensor> channel_moments(Tensor x, MaybeTensor mask) {
  CheckNorm("channel_moments", "x", x).mask(mask);
  Statistics statistics(static_cast<size_t>(x.size(1)));
  forward(x, {kAbsent, kAbsent, kAbsent, mask, 0, kNoActivation, 0}, {true, false}, statistics);
  return tensors_of(statistics, x.scalar_type(), false);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> channel_norm_backward(Tensor g_y, Tensor x, MaybeTensor weight,
                                                                 MaybeTensor bias, MaybeTensor residual,
                                                                 MaybeTensor mask, Tensor mean, Tensor var,
                                                                 MaybeTensor count, double eps, Text activation,
                                                                 double slope) {
  CheckNorm("channel_norm_backward", "x", x)
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
  std::vector<GradientSums> sums = no_sums(x);
  auto [g_x, g_residual] =
      backward(g_y, x, {weight, bias, residual, mask, eps, activation, slope}, {mean, var, count}, {true, true}, sums);
  const Sizes sizes{x.size(1)};
  return {*g_x,
          weight ? tensor_of(sums_of(sums, &GradientSums::sum_x), sizes, weight->scalar_type()) : absent_gradient(x),
          bias ? tensor_of(sums_of(sums, &GradientSums::sum), sizes, bias->scalar_type()) : absent_gradient(x),
          g_residual ? *g_residual : absent_gradient(x)};
}

std::tuple<Tensor, Tensor> channel_backward_reduce(Tensor g_y, Tensor x, MaybeTensor weight, MaybeTensor bias,
                                                   MaybeTensor residual, MaybeTensor mask, Tensor mean, Tensor var,
                                                   double eps, Text activation, double slope) {
  CheckNorm("channel_backward_reduce", "x", x)
      .like_x("g_y", g_y)
      .parameter("weight", weight)
      .parameter("bias", bias)
      .like_x("residual", residual)
      .mask(mask)
      .statistic("mean", mean)
      .statistic("var", var)
      .activation(activation)
      .eps(eps);
  std::vector<GradientSums> sums = no_sums(x);
  backward(g_y, x, {weight, bias, residual, mask, eps, activation, slope}, {mean, var, kAbsent}, {true, false}, sums);
  const Sizes sizes{x.size(1)};
  const ScalarType dtype = statistics_dtype(x.scalar_type());
  return {tensor_of(sums_of(sums, &GradientSums::sum), sizes, dtype),
          tensor_of(sums_of(sums, &GradientSums::sum_x), sizes, dtype)};
}

std::tuple<Tensor, Tensor> channel_backward_apply(Tensor g_y, Tensor x, MaybeTensor weight, MaybeTensor bias,
                                                  MaybeTensor residual, MaybeTensor mask, Tensor mean, Tensor var,
                                                  Tensor sum_g, Tensor sum_g_xhat, Tensor count, double eps,
                                                  Text activation, double slope) {
  CheckNorm("channel_backward_apply", "x", x)
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
  const std::vector<double> sum_C = values_of(sum_g), sum_xhat_C = values_of(sum_g_xhat);
  std::vector<GradientSums> sums = no_sums(x);
  for (size_t i = 0; i < sums.size(); ++i) sums[i] = {sum_C[i], sum_xhat_C[i]};
  const MaybeTensor counts = count;
  auto [g_x, g_residual] = backward(g_y, x, {weight, bias, residual, mask, eps, activation, slope}, {mean, var, counts},
                                    {false, true}, sums);
  return {*g_x, g_residual ? *g_residual : absent_gradient(x)};
}

}  // namespace gammabeta
