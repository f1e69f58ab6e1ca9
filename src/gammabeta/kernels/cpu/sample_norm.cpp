// Sample norms: one statistic for each sample and group of channels, over the group's channels and positions.
// LayerNorm, RMSNorm, GroupNorm, InstanceNorm. Samples are independent except in the gradients of the parameters.

#include "sample_norm.h"

#include "lines.h"
#include "norm.h"

namespace gammabeta {
namespace {

// The arguments that choose a sample norm's axes.
struct SampleAxesArguments {
  int64_t sample_axes, channel_axes, groups;
};

Geometry geometry_of(const Tensor& x, const SampleAxesArguments& axes, bool center) {
  Geometry geo(x);
  const Sizes& sizes = geo.sizes;
  geo.groups = axes.groups;
  geo.strides = contiguous_strides(sizes);
  for (int64_t i = 0; i < int64_t(sizes.size()); ++i)
    (i < axes.sample_axes ? geo.n : i < axes.sample_axes + axes.channel_axes ? geo.d : geo.s) *= sizes[size_t(i)];
  geo.d /= axes.groups;
  if (axes.sample_axes != 1 || axes.channel_axes != 1 || geo.s == 1 || !center || geo.channels() == 1) return geo;
  const Sizes last = channels_last_strides(sizes);
  geo.columns = !has_layout(x, sizes, geo.strides) && has_layout(x, sizes, last);
  if (geo.columns) geo.strides = last;
  return geo;
}

// Whether a group is taken as one line, each element with its own parameters. This includes groups of short channels,
// whose parameters are then repeated, so that a group is one loop.
bool is_lines(const Geometry& geo, bool masked) {
  return geo.s == 1 || (!geo.columns && !masked && geo.s <= 256 && geo.channels() * geo.s <= 65536);
}

double rstd_of(const RunningMoments& m, double eps) { return 1 / std::sqrt(m.m2 / (m.count > 1 ? m.count : 1) + eps); }

// Σ∂ℓ/∂z and Σ∂ℓ/∂z·(x − mean) of every sample and channel, for the gradients of the parameters.
struct ChannelSums {
  std::vector<double> sum, sum_x;
};

// The policy for the walks of norm.h. The index of the statistic of sample n and group g is n·groups + g.
template <class T>
class SampleAxes {
 public:
  // sums: filled by backward, else null.
  SampleAxes(const Problem<T>& p, const Statistics& statistics, ChannelSums* sums)
      : p_(p), geo_(p.geometry), channel_plane_(1, 0, geo_.s, 0), statistics_(statistics), sums_(sums) {
    if (!sums) return;
    for (const RunningMoments& m : statistics) rstd_.push_back(rstd_of(m, p.eps));
  }

  Partition partition(int) const {
    const int64_t statistics = geo_.n * geo_.groups;
    return {statistics, geo_.d, 1, geo_.d * geo_.s, 1, statistics >= 8};
  }
  PlaneWorker<T> worker() const { return {channel_plane_, nullptr, p_.finish}; }

  void moments(PlaneWorker<T>& worker, const T* x, int64_t i, int64_t from, int64_t to, RunningMoments& m) const {
    const bool whole_group = to - from == geo_.d;
    PlaneWork<T>& work = whole_group ? worker.second_with(group_plane(), p_.finish) : worker.work;
    work.mask = p_.mask_of(i / geo_.groups);
    work.moments(x + (i * geo_.d + from) * geo_.s, 0, work.plane.pieces(), p_.center, m);
  }
  template <class F>
  void for_each_plane(int64_t i, int64_t from, int64_t to, const F& f) const {
    const int64_t c = geo_.channels();
    for (int64_t j = i * geo_.d + from; j < i * geo_.d + to; ++j)
      f(PlanePart{j * geo_.s, j % c, 0, channel_plane_.pieces(), p_.mask_of(j / c)});
  }

  template <class F>
  void for_each_block(const F& f) const {
    const int64_t elements = geo_.channels() * geo_.s;
    const bool serial = geo_.n >= 8;  // enough samples to give each to one thread
    auto block = [&](int64_t i) { f(ColumnBlock{i * elements, geo_.s, i * geo_.groups, p_.mask_of(i), serial}); };
    if (serial)
      in_parallel(geo_.n, elements, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) block(i);
      });
    else
      for (int64_t i = 0; i < geo_.n; ++i) block(i);
  }
  bool block_of_all() const { return false; }

  ChannelAffine<double> affine(int64_t i, int64_t channel) const {
    const RunningMoments& m = statistics_[size_t(i)];
    const double rstd = sums_ ? rstd_[size_t(i)] : rstd_of(m, p_.eps);
    return {m.mean, p_.weight[size_t(channel)] * rstd, p_.bias[size_t(channel)]};
  }

  bool constant() const { return false; }
  // Sums of γ·∂ℓ/∂z and γ·∂ℓ/∂z·(x − mean).
  void add(int64_t i, int64_t channel, double sum, double sum_x, GradientSums& sums) const {
    const size_t at = size_t(i / geo_.groups * geo_.channels() + channel);
    sums_->sum[at] = sum, sums_->sum_x[at] = sum_x;
    sums.sum += p_.weight[size_t(channel)] * sum;
    sums.sum_x += p_.weight[size_t(channel)] * sum_x;
  }
  // ∂ℓ/∂x = rstd·(γ·∂ℓ/∂z − Σγ·∂ℓ/∂z/n − x̂·Σx̂·γ·∂ℓ/∂z/n); without the first mean if x is not centered.
  Backprop<double> backprop(int64_t i, int64_t channel, const GradientSums& sums) const {
    const double rstd = rstd_[size_t(i)], n = std::max(statistics_[size_t(i)].count, 1.0);
    return {p_.weight[size_t(channel)] * rstd, -rstd * (rstd * rstd * sums.sum_x / n),
            p_.center ? -rstd * (sums.sum / n) : 0};
  }

 private:
  // A whole group. With a mask it is walked channel by channel, as the mask repeats.
  Plane<T> group_plane() const {
    return p_.mask.data() ? Plane<T>(geo_.d, geo_.s, geo_.s, 0) : Plane<T>(1, 0, geo_.d * geo_.s, 0);
  }

  const Problem<T>& p_;
  const Geometry& geo_;
  Plane<T> channel_plane_;
  const Statistics& statistics_;
  ChannelSums* sums_;
  std::vector<double> rstd_;  // of every statistic, in backward
};

// Lines: each element has its own parameters.

template <class T>
Lines<T> lines_of(const Problem<T>& p, bool has_bias) {
  typedef ArithmeticOf<T> A;
  const Geometry& geo = p.geometry;
  Lines<T> lines{geo.n, geo.groups, geo.d * geo.s, p.mask.data(), {}, {}, p.finish, p.center};
  auto repeat = [&](const std::vector<double>& of_channel, std::vector<A>& of_element) {
    for (double value : of_channel) of_element.insert(of_element.end(), size_t(geo.s), A(value));
  };
  lines.weight.reserve(size_t(lines.length()));
  repeat(p.weight, lines.weight);
  if (has_bias) repeat(p.bias, lines.bias);
  return lines;
}

// Writes y. Where `total` is given, x + residual is written to it and normalized.
template <class T>
void line_forward(const Problem<T>& p, const Lines<T>& lines, T* total, T* y, Statistics& statistics) {
  const Writer<T> writer(p.streamed);
  const T *x = total ? total : p.x_data(), *residual = p.residual_data();
  in_parallel(lines.n, lines.length(), [&](int64_t begin, int64_t end) {
    LineWork<T> work(lines);
    for (int64_t i = begin; i < end; ++i) {
      if (total) work.add(p.x_data(), residual, total, i);
      work.forward(x, total ? nullptr : residual, y, i, p.eps, writer, &statistics[size_t(i * lines.groups)]);
    }
    writer.done();
  });
}

// Mean and variance of every sample and group.
struct LineStatistics {
  const std::vector<double>&mean, &var;
};

// g_total is added to ∂ℓ/∂x unless it is null.
template <class T>
struct LineGradients {
  const T* g_total;
  T *g_x, *g_residual;
};

// Writes ∂ℓ/∂x and ∂ℓ/∂residual, and sums x̂·∂ℓ/∂z and ∂ℓ/∂z of each element over the lines for the parameters.
template <class T>
void line_backward(const Problem<T>& p, const Lines<T>& lines, const LineStatistics& given, const LineGradients<T>& of,
                   std::vector<double>& g_weight, std::vector<double>& g_bias) {
  typedef ArithmeticOf<T> A;
  constexpr int64_t kLinesOfBlock = 64, kChunks = 64;  // lines summed in A; parts that threads share out
  const Loops<A>& loops = gammabeta::loops<A>();
  const int64_t length = lines.length(), n = lines.n;
  const int64_t blocks = (n + kLinesOfBlock - 1) / kLinesOfBlock;
  const int64_t lines_of_chunk = (blocks + kChunks - 1) / kChunks * kLinesOfBlock;
  const int64_t chunks = (n + lines_of_chunk - 1) / lines_of_chunk;
  const T *x = p.x_data(), *g = p.g_data(), *residual = p.residual_data();
  const Writer<T> writer(p.streamed);
  const bool wants_weight = !g_weight.empty(), wants_bias = !g_bias.empty();
  const bool of_z = LineWork<T>::gradient_is_of_z(lines, residual);
  std::vector<double> partial_weight(wants_weight ? size_t(chunks * length) : 0);
  std::vector<double> partial_bias(wants_bias ? size_t(chunks * length) : 0);
  in_parallel(chunks, 2 * lines_of_chunk * length, [&](int64_t begin, int64_t end) {
    LineWork<T> work(lines);
    std::vector<A> in_block(wants_weight || of_z ? size_t(length) : 0), bias_in_block(wants_bias ? size_t(length) : 0);
    A* sum_bias = wants_bias ? bias_in_block.data() : nullptr;
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t last = std::min(n, (chunk + 1) * lines_of_chunk);
      for (int64_t i = chunk * lines_of_chunk; i < last;) {
        const double *mean_G = &given.mean[size_t(i * lines.groups)], *var_G = &given.var[size_t(i * lines.groups)];
        const int count = of_z ? LineWork<T>::lines_together(lines, i, last) : 1;
        if (of_z)
          work.backward_lines(count, g, x, of.g_total, of.g_x, i, mean_G, var_G, p.eps, writer, in_block.data(),
                              sum_bias);
        else
          work.backward(g, x, residual, of.g_total, of.g_x, of.g_residual, i, mean_G, var_G, p.eps, writer,
                        wants_weight ? in_block.data() : nullptr, sum_bias);
        i += count;
        if (i % kLinesOfBlock != 0 && i < last) continue;
        if (wants_weight) loops.add_and_clear(in_block.data(), &partial_weight[size_t(chunk * length)], length);
        if (wants_bias) loops.add_and_clear(bias_in_block.data(), &partial_bias[size_t(chunk * length)], length);
      }
    }
    writer.done();
  });
  auto add_up = [&](const std::vector<double>& partial, std::vector<double>& of_channel) {
    const double* at = partial.data();
    for (int64_t chunk = 0; chunk < chunks; ++chunk)
      for (double& value : of_channel)
        for (int64_t i = 0; i < p.geometry.s; ++i) value += *at++;
  };
  add_up(partial_weight, g_weight);
  add_up(partial_bias, g_bias);
}

std::tuple<Tensor, Tensor, Tensor> tensors_of(const Statistics& statistics, const Geometry& geo, ScalarType x) {
  std::vector<double> mean(statistics.size()), var(mean), count(mean);
  for (size_t i = 0; i < statistics.size(); ++i) {
    mean[i] = statistics[i].mean;
    count[i] = statistics[i].count;
    var[i] = statistics[i].m2 / (count[i] > 1 ? count[i] : 1);
  }
  const Sizes sizes{geo.n, geo.groups};
  const ScalarType dtype = statistics_dtype(x);
  return {tensor_of(mean, sizes, dtype), tensor_of(var, sizes, dtype), tensor_of(count, sizes, ScalarType::Long)};
}

Tensor parameter_gradient(const std::vector<double>& values, const MaybeTensor& parameter, const Tensor& x) {
  return parameter ? tensor_of(values, vector_of(parameter->sizes()), parameter->scalar_type()) : absent_gradient(x);
}

// Gradients by x (plus g_total), weight, bias and residual.
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;

struct GivenStatistics {
  const Tensor &mean, &var, &count;
};

Gradients backward(const Tensor& g_y, const Tensor& x, const Geometry& geo, const NormArguments& arguments,
                   const MaybeTensor& g_total, const GivenStatistics& given) {
  const MaybeTensor &residual = arguments.residual, &weight = arguments.weight, &bias = arguments.bias;
  ScalarType dtype = promoted(x.scalar_type(), g_y.scalar_type());
  if (residual) dtype = promoted(dtype, residual->scalar_type());
  if (g_total) dtype = promoted(dtype, g_total->scalar_type());
  const std::vector<double> mean_NG = values_of(given.mean), var_NG = values_of(given.var);
  const int64_t c = geo.channels();
  std::vector<double> g_weight(weight ? size_t(c) : 0), g_bias(bias ? size_t(c) : 0);
  return with_type(dtype, [&](auto type) -> Gradients {
    typedef decltype(type) T;
    const Problem<T> p(geo, x, g_y, arguments, dtype);
    Output g_x(x, x.scalar_type(), dtype, geo.sizes, geo.strides);
    std::optional<Output> g_residual;
    if (residual) g_residual.emplace(*residual, residual->scalar_type(), dtype, geo.sizes, geo.strides);
    T *g_x_data = static_cast<T*>(g_x.data()), *g_r = g_residual ? static_cast<T*>(g_residual->data()) : nullptr;
    if (geo.elements() > 0 && is_lines(geo, arguments.mask.has_value())) {
      MaybeTensor total;
      if (g_total) total = converted_to(*g_total, dtype, geo.sizes, geo.strides);
      line_backward(p, lines_of(p, bias.has_value()), {mean_NG, var_NG}, {p.data(total), g_x_data, g_r}, g_weight,
                    g_bias);
    } else if (geo.elements() > 0) {
      const std::vector<double> count_NG = values_of(given.count);
      Statistics statistics(mean_NG.size());
      for (size_t i = 0; i < statistics.size(); ++i)
        statistics[i] = {count_NG[i], mean_NG[i], var_NG[i] * (count_NG[i] > 1 ? count_NG[i] : 1)};
      ChannelSums of_channels{std::vector<double>(size_t(geo.n * c)), std::vector<double>(size_t(geo.n * c))};
      std::vector<GradientSums> sums(statistics.size());
      (geo.columns ? column_backward<T, SampleAxes<T>>
                   : plane_backward<T, SampleAxes<T>>)(p, SampleAxes<T>(p, statistics, &of_channels), {true, true},
                                                       sums, g_x_data, g_r);
      for (int64_t i = 0; i < geo.n * c; ++i) {
        const double rstd = rstd_of(statistics[size_t(i / geo.d)], p.eps);
        if (weight) g_weight[size_t(i % c)] += rstd * of_channels.sum_x[size_t(i)];
        if (bias) g_bias[size_t(i % c)] += of_channels.sum[size_t(i)];
      }
    }
    return {g_x.result(), parameter_gradient(g_weight, weight, x), parameter_gradient(g_bias, bias, x),
            g_residual ? g_residual->result() : absent_gradient(x)};
  });
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> sample_norm_forward(Tensor x, int64_t sample_axes, int64_t channel_axes,
                                                               int64_t groups, MaybeTensor weight, MaybeTensor bias,
                                                               MaybeTensor residual, MaybeTensor mask, double eps,
                                                               Text activation, double slope, bool center) {
  CheckNorm("sample_norm_forward", "x", x, sample_axes, channel_axes, groups)
      .parameter("weight", weight)
      .parameter("bias", bias)
      .like_x("residual", residual)
      .mask(mask)
      .activation(activation)
      .eps(eps);
  const Geometry geo = geometry_of(x, {sample_axes, channel_axes, groups}, center);
  const ScalarType dtype = residual ? promoted(x.scalar_type(), residual->scalar_type()) : x.scalar_type();
  Statistics statistics(static_cast<size_t>(geo.n * geo.groups));
  return with_type(dtype, [&](auto type) -> std::tuple<Tensor, Tensor, Tensor, Tensor> {
    typedef decltype(type) T;
    const Problem<T> p(geo, x, kAbsent, {weight, bias, residual, mask, eps, activation, slope, center}, dtype);
    Output y(x, dtype, dtype, geo.sizes, geo.strides);
    T* y_data = static_cast<T*>(y.data());
    if (geo.elements() > 0) {
      if (is_lines(geo, mask.has_value()))
        line_forward<T>(p, lines_of(p, bias.has_value()), nullptr, y_data, statistics);
      else
        (geo.columns ? column_forward<T, SampleAxes<T>>
                     : plane_forward<T, SampleAxes<T>>)(p, SampleAxes<T>(p, statistics, nullptr), {true, true},
                                                        statistics, y_data);
    }
    auto [mean, var, count] = tensors_of(statistics, geo, x.scalar_type());
    return {y.result(), mean, var, count};
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> sample_norm_backward(Tensor g_y, Tensor x, int64_t sample_axes,
                                                                int64_t channel_axes, int64_t groups,
                                                                MaybeTensor weight, MaybeTensor bias,
                                                                MaybeTensor residual, MaybeTensor mask, Tensor mean,
                                                                Tensor var, Tensor count, double eps, Text activation,
                                                                double slope, bool center) {
  CheckNorm("sample_norm_backward", "x", x, sample_axes, channel_axes, groups)
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
  const Geometry geo = geometry_of(x, {sample_axes, channel_axes, groups}, center);
  return backward(g_y, x, geo, {weight, bias, residual, mask, eps, activation, slope, center}, kAbsent,
                  {mean, var, count});
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> add_sample_norm_forward(Tensor x, Tensor residual,
                                                                           int64_t channel_axes, MaybeTensor weight,
                                                                           MaybeTensor bias, double eps, bool center) {
  CheckNorm("add_sample_norm_forward", "x", x, channel_axes)
      .like_x("residual", residual)
      .parameter("weight", weight)
      .parameter("bias", bias)
      .eps(eps);
  const Geometry geo = geometry_of(x, {x.dim() - channel_axes, channel_axes, 1}, center);
  const ScalarType dtype = promoted(x.scalar_type(), residual.scalar_type());
  const MaybeTensor added = residual;
  Statistics statistics(static_cast<size_t>(geo.n));
  return with_type(dtype, [&](auto type) -> std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> {
    typedef decltype(type) T;
    const Problem<T> p(geo, x, kAbsent, {weight, bias, added, kAbsent, eps, kNoActivation, 0, center}, dtype);
    Output y(x, dtype, dtype, geo.sizes, geo.strides), total(x, dtype, dtype, geo.sizes, geo.strides);
    if (geo.elements() > 0)
      line_forward<T>(p, lines_of(p, bias.has_value()), static_cast<T*>(total.data()), static_cast<T*>(y.data()),
                      statistics);
    auto [mean, var, count] = tensors_of(statistics, geo, dtype);
    return {y.result(), total.result(), mean, var, count};
  });
}

std::tuple<Tensor, Tensor, Tensor> add_sample_norm_backward(Tensor g_y, Tensor g_total, Tensor total,
                                                            int64_t channel_axes, MaybeTensor weight, MaybeTensor bias,
                                                            Tensor mean, Tensor var, Tensor count, double eps,
                                                            bool center) {
  CheckNorm("add_sample_norm_backward", "total", total, channel_axes)
      .like_x("g_y", g_y)
      .like_x("g_total", g_total)
      .parameter("weight", weight)
      .parameter("bias", bias)
      .statistic("mean", mean)
      .statistic("var", var)
      .count(count)
      .eps(eps);
  const Geometry geo = geometry_of(total, {total.dim() - channel_axes, channel_axes, 1}, center);
  const NormArguments arguments{weight, bias, kAbsent, kAbsent, eps, kNoActivation, 0, center};
  auto [g, g_weight, g_bias, none] = backward(g_y, total, geo, arguments, g_total, {mean, var, count});
  return {g, g_weight, g_bias};
}

}  // namespace gammabeta
