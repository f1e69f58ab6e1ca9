// Sample norms: statistics over the channels (of a group) and positions of one sample. LayerNorm, RMSNorm, GroupNorm,
// InstanceNorm; nothing goes from one sample to another but the sums for the parameters' gradients.

#include "sample_norm.h"

#include "columns.h"
#include "lines.h"
#include "planes.h"

namespace gammabeta {
namespace {

struct Geometry {
  int64_t n = 1, groups, d = 1, s = 1;  // samples, groups, channels of a group, positions
  bool columns = false;
  Sizes sizes, strides;

  Geometry(const Tensor& x, int64_t sample_axes, int64_t channel_axes, int64_t groups_, bool center)
      : groups(groups_), sizes(vector_of(x.sizes())), strides(contiguous_strides(sizes)) {
    for (int64_t i = 0; i < int64_t(sizes.size()); ++i)
      (i < sample_axes ? n : i < sample_axes + channel_axes ? d : s) *= sizes[size_t(i)];
    d /= groups;
    if (sample_axes != 1 || channel_axes != 1 || s == 1 || !center || channels() == 1) return;
    const Sizes last = channels_last_strides(sizes);
    columns = !laid_out(x, sizes, strides) && laid_out(x, sizes, last);
    if (columns) strides = last;
  }

  int64_t channels() const { return groups * d; }
  int64_t elements() const { return n * channels() * s; }
  // Short channels are taken as elements with parameters of their own, repeated: a group is one loop then.
  bool lines(bool masked) const {
    return s == 1 || (!columns && !masked && s <= 256 && channels() * s <= 65536);
  }
  // Whether there are samples (and groups) enough to give each whole to one thread.
  bool whole_samples() const { return n >= 8; }
  bool whole_groups() const { return n * groups >= 8; }
};

template <class T>
struct Problem {
  typedef ArithmeticOf<T> A;
  const Geometry& geometry;
  Tensor x;
  MaybeTensor residual, g, g_total;
  Mask mask;
  Finish<A> finish;
  bool center, streamed;
  double eps;
  std::vector<double> weight, bias;  // of every channel
  bool has_bias;

  Problem(const Geometry& geometry_, const Tensor& x_, const MaybeTensor& residual_, const MaybeTensor& g_,
          const MaybeTensor& mask_, ScalarType dtype, const MaybeTensor& weight_, const MaybeTensor& bias_, double eps_,
          const std::string& activation, double slope, bool center_)
      : geometry(geometry_),
        x(brought_to(x_, dtype, geometry.sizes, geometry.strides)),
        mask(mask_),
        finish{activation_of(activation), A(slope)},
        center(center_),
        streamed(x_.numel() * int64_t(sizeof(T)) >= kStreamedBytes),
        eps(eps_),
        weight(values_of(weight_, geometry.channels(), 1)),
        bias(values_of(bias_, geometry.channels(), 0)),
        has_bias(bias_.has_value()) {
    if (residual_) residual = brought_to(*residual_, dtype, geometry.sizes, geometry.strides);
    if (g_) g = brought_to(*g_, dtype, geometry.sizes, geometry.strides);
  }

  static const T* data(const MaybeTensor& t) { return t ? static_cast<const T*>(t->const_data_ptr()) : nullptr; }
  const T* x_data() const { return static_cast<const T*>(x.const_data_ptr()); }
  // The mask of a sample's positions.
  const uint8_t* mask_of(int64_t sample) const { return mask.data() ? mask.data() + sample * geometry.s : nullptr; }

  Lines<T> lines() const {
    Lines<T> l{geometry.n, geometry.groups, geometry.d * geometry.s, mask.data(), {}, {}, finish, center};
    auto repeat = [&](const std::vector<double>& of_channel, std::vector<A>& of_element) {
      for (double value : of_channel) of_element.insert(of_element.end(), size_t(geometry.s), A(value));
    };
    l.weight.reserve(size_t(l.length()));
    repeat(weight, l.weight);
    if (has_bias) repeat(bias, l.bias);
    return l;
  }
  // All of a group: with a mask channel by channel, as that repeats.
  Plane<T> group_plane() const {
    const int64_t d = geometry.d, s = geometry.s;
    return mask.data() ? Plane<T>(d, s, s, 0) : Plane<T>(1, 0, d * s, 0);
  }
  Plane<T> channel_plane() const { return Plane<T>(1, 0, geometry.s, 0); }
};

// Statistics of sample n and group g at n·groups + g.
using Statistics = std::vector<RunningMoments>;

double rstd_of(const RunningMoments& m, double eps) {
  return 1 / std::sqrt(m.m2 / (m.count > 1 ? m.count : 1) + eps);
}

// Forward.

template <class T>
void line_forward(const Problem<T>& p, const T* added_x, T* total, T* y, Statistics& statistics) {
  const Lines<T> lines = p.lines();
  const Writer<T> writer(p.streamed);
  const T *x = total ? total : p.x_data(), *residual = p.data(p.residual);
  in_parallel(lines.n, lines.length(), [&](int64_t begin, int64_t end) {
    LineWork<T> work(lines);
    for (int64_t i = begin; i < end; ++i) {
      if (total) work.add(added_x, residual, total, i);
      work.forward(x, total ? nullptr : residual, y, i, p.eps, writer, &statistics[size_t(i * lines.groups)]);
    }
    writer.done();
  });
}

template <class T>
Affine<ArithmeticOf<T>> affine_of(const Problem<T>& p, const RunningMoments& m, int64_t channel) {
  typedef ArithmeticOf<T> A;
  return {A(m.mean), A(p.weight[size_t(channel)] * rstd_of(m, p.eps)), A(p.bias[size_t(channel)])};
}

template <class T>
void plane_forward(const Problem<T>& p, T* y, Statistics& statistics) {
  const Geometry& geo = p.geometry;
  const int64_t d = geo.d, s = geo.s, c = geo.channels();
  const T *x = p.x_data(), *residual = p.data(p.residual);
  const Writer<T> writer(p.streamed);
  const Plane<T> whole = p.group_plane(), single = p.channel_plane();
  auto write = [&](int64_t sample_channel, const RunningMoments& m) {
    return [&, sample_channel](PlaneWork<T>& work) {
      const int64_t at = sample_channel * s;
      work.mask = p.mask_of(sample_channel / c);
      work.apply(x + at, residual ? residual + at : nullptr, y + at, 0, single.pieces(),
                 affine_of(p, m, sample_channel % c), writer);
    };
  };
  if (geo.whole_groups()) {
    in_parallel(geo.n * geo.groups, d * s, [&](int64_t begin, int64_t end) {
      PlaneWork<T> group(whole, nullptr, p.finish), channel(single, nullptr, p.finish);
      for (int64_t i = begin; i < end; ++i) {
        RunningMoments& m = statistics[size_t(i)];
        group.mask = p.mask_of(i / geo.groups);
        group.moments(x + i * d * s, 0, whole.pieces(), p.center, m);
        for (int64_t j = i * d; j < (i + 1) * d; ++j) write(j, m)(channel);
      }
      writer.done();
    });
    return;
  }
  std::vector<RunningMoments> of_channel(static_cast<size_t>(geo.n * c));
  in_parallel(geo.n * c, s, [&](int64_t begin, int64_t end) {
    PlaneWork<T> channel(single, nullptr, p.finish);
    for (int64_t i = begin; i < end; ++i) {
      channel.mask = p.mask_of(i / c);
      channel.moments(x + i * s, 0, single.pieces(), p.center, of_channel[size_t(i)]);
    }
  });
  for (size_t i = 0; i < of_channel.size(); ++i) {
    const RunningMoments& m = of_channel[i];
    statistics[i / size_t(d)].merge(m.count, m.mean, m.m2);
  }
  in_parallel(geo.n * c, s, [&](int64_t begin, int64_t end) {
    PlaneWork<T> channel(single, nullptr, p.finish);
    for (int64_t i = end - 1; i >= begin; --i) write(i, statistics[size_t(i / d)])(channel);
    writer.done();
  });
}

// f(begin, end) for the chunks of one sample: in threads where the samples are not.
template <class F>
void over_chunks(bool serial, int64_t chunks, int64_t elements, const F& f) {
  if (serial)
    f(0, chunks);
  else
    in_parallel(chunks, elements, f);
}

template <class F>
void over_samples(const Geometry& geo, const F& f) {
  if (geo.whole_samples())
    in_parallel(geo.n, geo.channels() * geo.s, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) f(i, true);
    });
  else
    for (int64_t i = 0; i < geo.n; ++i) f(i, false);
}

template <class T>
typename Columns<T>::Parameters column_parameters(const Problem<T>& p, const Columns<T>& columns,
                                                  const RunningMoments* of_group) {
  const Geometry& geo = p.geometry;
  std::vector<double> mean(size_t(geo.channels())), scale(mean);
  for (int64_t i = 0; i < geo.channels(); ++i) {
    const RunningMoments& m = of_group[i / geo.d];
    mean[size_t(i)] = m.mean;
    scale[size_t(i)] = p.weight[size_t(i)] * rstd_of(m, p.eps);
  }
  return {columns.repeated(mean.data()), columns.repeated(scale.data()), columns.repeated(p.bias.data())};
}

template <class T>
void column_forward(const Problem<T>& p, T* y, Statistics& statistics) {
  const Geometry& geo = p.geometry;
  const int64_t c = geo.channels();
  const Writer<T> writer(p.streamed);
  over_samples(geo, [&](int64_t sample, bool serial) {
    const int64_t at = sample * geo.s * c;
    const T *x = p.x_data() + at, *residual = p.residual ? p.data(p.residual) + at : nullptr;
    const auto columns = std::make_unique<Columns<T>>(geo.s, c, p.mask_of(sample), p.finish);
    const int64_t chunks = columns->chunks(), width = columns->width();
    std::vector<double> means(size_t(chunks * width)), m2s(means), counts(static_cast<size_t>(chunks));
    over_chunks(serial, chunks, columns->elements_of_chunk(), [&](int64_t begin, int64_t end) {
      auto own = std::make_unique<Columns<T>>(*columns);
      for (int64_t i = begin; i < end; ++i)
        own->moments(x, i, &means[size_t(i * width)], &m2s[size_t(i * width)], &counts[size_t(i)]);
    });
    std::vector<RunningMoments> of_channel(static_cast<size_t>(c));
    columns->merge(x, means.data(), m2s.data(), counts.data(), of_channel.data());
    RunningMoments* of_group = &statistics[size_t(sample * geo.groups)];
    for (int64_t i = 0; i < c; ++i) {
      const RunningMoments& m = of_channel[size_t(i)];
      of_group[i / geo.d].merge(m.count, m.mean, m.m2);
    }
    const auto parameters = column_parameters(p, *columns, of_group);
    over_chunks(serial, chunks, columns->elements_of_chunk(), [&](int64_t begin, int64_t end) {
      auto own = std::make_unique<Columns<T>>(*columns);
      for (int64_t i = end - 1; i >= begin; --i) own->apply(x, residual, y + at, i, parameters, writer);
    });
  });
}

// Backward. Sums of sample n and channel c at n·channels + c.

struct Sums {
  std::vector<double> sum, sum_x;  // Σ∂ℓ/∂z and Σ∂ℓ/∂z·(x − mean)
};

// ∂ℓ/∂x of a sample's group: γ·rstd·∂ℓ/∂z and these two besides.
struct OfGroup {
  double by_x, by_one;
};

template <class T>
OfGroup of_group(const Problem<T>& p, const RunningMoments& m, const double* sum, const double* sum_x,
                 int64_t first_channel) {
  double s = 0, q = 0;
  for (int64_t i = 0; i < p.geometry.d; ++i) {
    s += p.weight[size_t(first_channel + i)] * sum[i];
    q += p.weight[size_t(first_channel + i)] * sum_x[i];
  }
  const double rstd = rstd_of(m, p.eps), n = m.count > 1 ? m.count : 1;
  return {-rstd * (rstd * rstd * q / n), p.center ? -rstd * (s / n) : 0};
}

template <class T>
void plane_backward(const Problem<T>& p, const Statistics& statistics, Sums& sums, T* g_x, T* g_residual) {
  typedef ArithmeticOf<T> A;
  const Geometry& geo = p.geometry;
  const int64_t d = geo.d, s = geo.s, c = geo.channels();
  const T *x = p.x_data(), *g = p.data(p.g), *residual = p.data(p.residual);
  // ∂ℓ/∂z, where it is written anyway, not rounded and costs more to make than to read.
  const bool costly = p.finish.activation == kSilu || p.finish.activation == kGelu;
  const bool kept = g_residual && costly && !Writer<T>::kConverts;
  const Writer<T> writer(p.streamed), near(false);
  const Plane<T> single = p.channel_plane();
  auto reduce = [&](PlaneWork<T>& work, int64_t i) {
    const int64_t at = i * s;
    work.mask = p.mask_of(i / c);
    work.gradient_sums(g + at, x + at, residual ? residual + at : nullptr, kept ? g_residual + at : nullptr, 0,
                       single.pieces(), affine_of(p, statistics[size_t(i / d)], i % c), near, &sums.sum[size_t(i)],
                       &sums.sum_x[size_t(i)]);
  };
  auto write = [&](PlaneWork<T>& work, PlaneWork<T>& plain, int64_t i, const OfGroup& group) {
    const int64_t at = i * s;
    const Affine<A> f = affine_of(p, statistics[size_t(i / d)], i % c);
    const Backprop<A> back{f.scale, A(group.by_x), A(group.by_one)};
    work.mask = plain.mask = p.mask_of(i / c);
    if (kept)
      plain.gradient_apply(g_residual + at, x + at, nullptr, g_x + at, nullptr, 0, single.pieces(), f, back, writer);
    else
      work.gradient_apply(g + at, x + at, residual ? residual + at : nullptr, g_x + at,
                          g_residual ? g_residual + at : nullptr, 0, single.pieces(), f, back, writer);
  };
  auto group_of = [&](int64_t i) {
    return of_group(p, statistics[size_t(i)], &sums.sum[size_t(i * d)], &sums.sum_x[size_t(i * d)], i * d % c);
  };
  const Finish<A> none{kNone, A(0)};
  if (geo.whole_groups()) {
    in_parallel(geo.n * geo.groups, d * s, [&](int64_t begin, int64_t end) {
      PlaneWork<T> work(single, nullptr, p.finish), plain(single, nullptr, none);
      for (int64_t i = begin; i < end; ++i) {
        for (int64_t j = i * d; j < (i + 1) * d; ++j) reduce(work, j);
        const OfGroup group = group_of(i);
        for (int64_t j = i * d; j < (i + 1) * d; ++j) write(work, plain, j, group);
      }
      writer.done();
    });
    return;
  }
  in_parallel(geo.n * c, s, [&](int64_t begin, int64_t end) {
    PlaneWork<T> work(single, nullptr, p.finish);
    for (int64_t i = begin; i < end; ++i) reduce(work, i);
  });
  std::vector<OfGroup> groups;
  for (int64_t i = 0; i < geo.n * geo.groups; ++i) groups.push_back(group_of(i));
  in_parallel(geo.n * c, s, [&](int64_t begin, int64_t end) {
    PlaneWork<T> work(single, nullptr, p.finish), plain(single, nullptr, none);
    for (int64_t i = end - 1; i >= begin; --i) write(work, plain, i, groups[size_t(i / d)]);
    writer.done();
  });
}

template <class T>
void column_backward(const Problem<T>& p, const Statistics& statistics, Sums& sums, T* g_x, T* g_residual) {
  typedef ArithmeticOf<T> A;
  const Geometry& geo = p.geometry;
  const int64_t c = geo.channels(), d = geo.d;
  const bool kept = g_residual && !Writer<T>::kConverts;
  const Writer<T> writer(p.streamed), near(false);
  over_samples(geo, [&](int64_t sample, bool serial) {
    const int64_t at = sample * geo.s * c;
    const T *x = p.x_data() + at, *g = p.data(p.g) + at, *residual = p.residual ? p.data(p.residual) + at : nullptr;
    T* g_r = g_residual ? g_residual + at : nullptr;
    const auto columns = std::make_unique<Columns<T>>(geo.s, c, p.mask_of(sample), p.finish);
    const auto plain = std::make_unique<Columns<T>>(geo.s, c, p.mask_of(sample), Finish<A>{kNone, A(0)});
    const int64_t chunks = columns->chunks(), width = columns->width(), elements = 2 * columns->elements_of_chunk();
    const RunningMoments* moments = &statistics[size_t(sample * geo.groups)];
    const auto parameters = column_parameters(p, *columns, moments);
    std::vector<double> sum(size_t(chunks * width)), sum_x(sum);
    over_chunks(serial, chunks, elements, [&](int64_t begin, int64_t end) {
      auto own = std::make_unique<Columns<T>>(*columns);
      for (int64_t i = begin; i < end; ++i)
        own->gradient_sums(g, x, residual, kept ? g_r : nullptr, nullptr, i, parameters, near, &sum[size_t(i * width)],
                           &sum_x[size_t(i * width)]);
    });
    double *sum_C = &sums.sum[size_t(sample * c)], *sum_x_C = &sums.sum_x[size_t(sample * c)];
    columns->add_up(sum.data(), sum_C);
    columns->add_up(sum_x.data(), sum_x_C);
    std::vector<double> a(static_cast<size_t>(c)), by_x(a), by_one(a);
    for (int64_t i = 0; i < c; i += d) {
      const RunningMoments& m = moments[i / d];
      const OfGroup group = of_group(p, m, sum_C + i, sum_x_C + i, i);
      for (size_t j = size_t(i); j < size_t(i + d); ++j) {
        a[j] = p.weight[j] * rstd_of(m, p.eps);
        by_x[j] = group.by_x;
        by_one[j] = group.by_one;
      }
    }
    const typename Columns<T>::Backprops back{columns->repeated(a.data()), columns->repeated(by_x.data()),
                                              columns->repeated(by_one.data())};
    over_chunks(serial, chunks, elements, [&](int64_t begin, int64_t end) {
      auto own = std::make_unique<Columns<T>>(kept ? *plain : *columns);
      for (int64_t i = end - 1; i >= begin; --i)
        own->gradient_apply(kept ? g_r : g, x, kept ? nullptr : residual, g_x + at, kept ? nullptr : g_r, i,
                            parameters, back, writer);
    });
  });
}

// Gradients of the parameters from lines: sums of x̂·∂ℓ/∂z and ∂ℓ/∂z for each element.
template <class T>
void line_backward(const Problem<T>& p, const std::vector<double>& mean, const std::vector<double>& var, T* g_x,
                   T* g_residual, std::vector<double>& g_weight, std::vector<double>& g_bias) {
  typedef ArithmeticOf<T> A;
  constexpr int64_t kLinesOfBlock = 64, kChunks = 64;  // lines whose sums are kept in A; parts that threads share out
  const Lines<T> lines = p.lines();
  const Loops<A>& rows = gammabeta::loops<A>();
  const int64_t length = lines.length(), n = lines.n;
  const int64_t blocks = (n + kLinesOfBlock - 1) / kLinesOfBlock;
  const int64_t lines_of_chunk = (blocks + kChunks - 1) / kChunks * kLinesOfBlock;
  const int64_t chunks = (n + lines_of_chunk - 1) / lines_of_chunk;
  const T *x = p.x_data(), *g = p.data(p.g), *residual = p.data(p.residual), *g_total = p.data(p.g_total);
  const Writer<T> writer(p.streamed);
  const bool wants_weight = !g_weight.empty(), wants_bias = !g_bias.empty();
  const bool plain = LineWork<T>::plain(lines, residual);
  std::vector<double> partial_weight(wants_weight ? size_t(chunks * length) : 0);
  std::vector<double> partial_bias(wants_bias ? size_t(chunks * length) : 0);
  in_parallel(chunks, 2 * lines_of_chunk * length, [&](int64_t begin, int64_t end) {
    LineWork<T> work(lines);
    std::vector<A> in_block(wants_weight || plain ? size_t(length) : 0), bias_in_block(wants_bias ? size_t(length) : 0);
    A* sum_bias = wants_bias ? bias_in_block.data() : nullptr;
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t last = std::min(n, (chunk + 1) * lines_of_chunk);
      for (int64_t i = chunk * lines_of_chunk; i < last;) {
        const double *mean_G = &mean[size_t(i * lines.groups)], *var_G = &var[size_t(i * lines.groups)];
        const int count = plain ? LineWork<T>::at_once(lines, i, last) : 1;
        if (plain)
          work.backward_lines(count, g, x, g_total, g_x, i, mean_G, var_G, p.eps, writer, in_block.data(), sum_bias);
        else
          work.backward(g, x, residual, g_total, g_x, g_residual, i, mean_G, var_G, p.eps, writer,
                        wants_weight ? in_block.data() : nullptr, sum_bias);
        i += count;
        if (i % kLinesOfBlock != 0 && i < last) continue;
        if (wants_weight) rows.drain(in_block.data(), &partial_weight[size_t(chunk * length)], length);
        if (wants_bias) rows.drain(bias_in_block.data(), &partial_bias[size_t(chunk * length)], length);
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

std::tuple<Tensor, Tensor, Tensor> statistics_of(const Statistics& statistics, const Geometry& geo, ScalarType x) {
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
  return parameter ? tensor_of(values, vector_of(parameter->sizes()), parameter->scalar_type()) : nothing_like(x);
}

// Gradients by x, weight, bias and residual, g_total added to that by x.
std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& g_y, const Tensor& x, const Geometry& geo,
                                                    const MaybeTensor& weight, const MaybeTensor& bias,
                                                    const MaybeTensor& residual, const MaybeTensor& g_total,
                                                    const MaybeTensor& mask, const Tensor& mean, const Tensor& var,
                                                    const Tensor& count, double eps, const std::string& activation,
                                                    double slope, bool center) {
  ScalarType dtype = promoted(x.scalar_type(), g_y.scalar_type());
  if (residual) dtype = promoted(dtype, residual->scalar_type());
  if (g_total) dtype = promoted(dtype, g_total->scalar_type());
  const std::vector<double> mean_NG = values_of(mean), var_NG = values_of(var);
  std::vector<double> g_weight(weight ? size_t(geo.channels()) : 0), g_bias(bias ? size_t(geo.channels()) : 0);
  return with_type(dtype, [&](auto type) -> std::tuple<Tensor, Tensor, Tensor, Tensor> {
    typedef decltype(type) T;
    Problem<T> p(geo, x, residual, g_y, mask, dtype, weight, bias, eps, activation, slope, center);
    if (g_total) p.g_total = brought_to(*g_total, dtype, geo.sizes, geo.strides);
    Output g_x(x, x.scalar_type(), dtype, geo.sizes, geo.strides);
    std::optional<Output> g_residual;
    if (residual) g_residual.emplace(*residual, residual->scalar_type(), dtype, geo.sizes, geo.strides);
    T *g_x_data = static_cast<T*>(g_x.data()), *g_r = g_residual ? static_cast<T*>(g_residual->data()) : nullptr;
    if (geo.elements() > 0 && geo.lines(mask.has_value())) {
      line_backward(p, mean_NG, var_NG, g_x_data, g_r, g_weight, g_bias);
    } else if (geo.elements() > 0) {
      const int64_t c = geo.channels();
      const std::vector<double> count_NG = values_of(count);
      Statistics statistics(mean_NG.size());
      for (size_t i = 0; i < statistics.size(); ++i)
        statistics[i] = {count_NG[i], mean_NG[i], var_NG[i] * (count_NG[i] > 1 ? count_NG[i] : 1)};
      Sums sums{std::vector<double>(size_t(geo.n * c)), std::vector<double>(size_t(geo.n * c))};
      (geo.columns ? column_backward<T> : plane_backward<T>)(p, statistics, sums, g_x_data, g_r);
      for (int64_t i = 0; i < geo.n * c; ++i) {
        if (weight) g_weight[size_t(i % c)] += rstd_of(statistics[size_t(i / geo.d)], eps) * sums.sum_x[size_t(i)];
        if (bias) g_bias[size_t(i % c)] += sums.sum[size_t(i)];
      }
    }
    return {g_x.result(), parameter_gradient(g_weight, weight, x), parameter_gradient(g_bias, bias, x),
            g_residual ? g_residual->result() : nothing_like(x)};
  });
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> sample_norm_forward(Tensor x, int64_t sample_axes, int64_t channel_axes,
                                                               int64_t groups, MaybeTensor weight, MaybeTensor bias,
                                                               MaybeTensor residual, MaybeTensor mask, double eps,
                                                               std::string activation, double slope, bool center) {
  Arguments("sample_norm_forward", "x", x, sample_axes, channel_axes, groups)
      .parameter("weight", weight)
      .parameter("bias", bias)
      .like_x("residual", residual)
      .mask(mask)
      .activation(activation)
      .eps(eps);
  const Geometry geo(x, sample_axes, channel_axes, groups, center);
  const ScalarType dtype = residual ? promoted(x.scalar_type(), residual->scalar_type()) : x.scalar_type();
  Statistics statistics(static_cast<size_t>(geo.n * geo.groups));
  return with_type(dtype, [&](auto type) -> std::tuple<Tensor, Tensor, Tensor, Tensor> {
    typedef decltype(type) T;
    const Problem<T> p(geo, x, residual, std::nullopt, mask, dtype, weight, bias, eps, activation, slope, center);
    Output y(x, dtype, dtype, geo.sizes, geo.strides);
    T* y_data = static_cast<T*>(y.data());
    if (geo.elements() > 0) {
      if (geo.lines(mask.has_value()))
        line_forward<T>(p, nullptr, nullptr, y_data, statistics);
      else
        (geo.columns ? column_forward<T> : plane_forward<T>)(p, y_data, statistics);
    }
    auto [mean, var, count] = statistics_of(statistics, geo, x.scalar_type());
    return {y.result(), mean, var, count};
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> sample_norm_backward(Tensor g_y, Tensor x, int64_t sample_axes,
                                                                int64_t channel_axes, int64_t groups,
                                                                MaybeTensor weight, MaybeTensor bias,
                                                                MaybeTensor residual, MaybeTensor mask, Tensor mean,
                                                                Tensor var, Tensor count, double eps,
                                                                std::string activation, double slope, bool center) {
  Arguments("sample_norm_backward", "x", x, sample_axes, channel_axes, groups)
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
  const Geometry geo(x, sample_axes, channel_axes, groups, center);
  return backward(g_y, x, geo, weight, bias, residual, std::nullopt, mask, mean, var, count, eps, activation, slope,
                  center);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> add_sample_norm_forward(Tensor x, Tensor residual,
                                                                           int64_t channel_axes, MaybeTensor weight,
                                                                           MaybeTensor bias, double eps, bool center) {
  Arguments("add_sample_norm_forward", "x", x, channel_axes)
      .like_x("residual", residual)
      .parameter("weight", weight)
      .parameter("bias", bias)
      .eps(eps);
  const Geometry geo(x, x.dim() - channel_axes, channel_axes, 1, center);
  const ScalarType dtype = promoted(x.scalar_type(), residual.scalar_type());
  Statistics statistics(static_cast<size_t>(geo.n));
  return with_type(dtype, [&](auto type) -> std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> {
    typedef decltype(type) T;
    const Problem<T> p(geo, x, residual, std::nullopt, std::nullopt, dtype, weight, bias, eps, "none", 0, center);
    Output y(x, dtype, dtype, geo.sizes, geo.strides), total(x, dtype, dtype, geo.sizes, geo.strides);
    if (geo.elements() > 0)
      line_forward<T>(p, p.x_data(), static_cast<T*>(total.data()), static_cast<T*>(y.data()), statistics);
    auto [mean, var, count] = statistics_of(statistics, geo, dtype);
    return {y.result(), total.result(), mean, var, count};
  });
}

std::tuple<Tensor, Tensor, Tensor> add_sample_norm_backward(Tensor g_y, Tensor g_total, Tensor total,
                                                            int64_t channel_axes, MaybeTensor weight, MaybeTensor bias,
                                                            Tensor mean, Tensor var, Tensor count, double eps,
                                                            bool center) {
  Arguments("add_sample_norm_backward", "total", total, channel_axes)
      .like_x("g_y", g_y)
      .like_x("g_total", g_total)
      .parameter("weight", weight)
      .parameter("bias", bias)
      .statistic("mean", mean)
      .statistic("var", var)
      .count(count)
      .eps(eps);
  const Geometry geo(total, total.dim() - channel_axes, channel_axes, 1, center);
  auto [g, g_weight, g_bias, none] = backward(g_y, total, geo, weight, bias, std::nullopt, g_total, std::nullopt, mean,
                                              var, count, eps, "none", 0, center);
  return {g, g_weight, g_bias};
}

}  // namespace gammabeta
