// The walk that all norms share: a first pass reduces the elements of every statistic, a second pass writes the
// results.
//
// Which elements share a statistic is a policy: ChannelAxes (channel_norm.cpp) or SampleAxes (sample_norm.cpp). The
// policy says how many statistics there are, which planes or columns belong to each, and which coefficients follow from
// the sums. How often the tensor is read, by which thread and in which order is decided here, once for both.
//
// How a tensor is cut depends on its shape, layout and dtype only, never on the number of threads.
#pragma once

#include <optional>

#include "columns.h"
#include "planes.h"
#include "tensors.h"

namespace gammabeta {

// n samples of groups·d channels at s positions.
struct Geometry {
  int64_t n = 1, groups = 1, d = 1, s = 1;
  bool columns = false;  // channels are contiguous in memory, not positions
  Sizes sizes, strides;  // strides: of the layout that the kernel works on

  explicit Geometry(const Tensor& x) : sizes(vector_of(x.sizes())) {}

  int64_t channels() const { return groups * d; }
  int64_t elements() const { return n * channels() * s; }
};

// The arguments that all ops share, as references to those of the op.
struct NormArguments {
  const MaybeTensor &weight, &bias, &residual, &mask;
  double eps;
  const std::string& activation;
  double slope;
  bool center = true;
};
inline const MaybeTensor kAbsent;
inline const std::string kNoActivation = "none";

using Statistics = std::vector<RunningMoments>;

// The inputs of an op, in one dtype and layout.
template <class T>
struct Problem {
  typedef ArithmeticOf<T> A;
  const Geometry& geometry;
  Tensor x;
  MaybeTensor residual, g;
  Mask mask;
  Finish<A> finish;
  bool center, streamed;
  double eps;
  std::vector<double> weight, bias;  // of every channel

  Problem(const Geometry& geometry_, const Tensor& x_, const MaybeTensor& g_, const NormArguments& arguments,
          ScalarType dtype)
      : geometry(geometry_),
        x(converted_to(x_, dtype, geometry.sizes, geometry.strides)),
        mask(arguments.mask),
        finish{activation_of(arguments.activation), A(arguments.slope)},
        center(arguments.center),
        streamed(x_.numel() * int64_t(sizeof(T)) >= kStreamedBytes),
        eps(arguments.eps),
        weight(values_of(arguments.weight, geometry.channels(), 1)),
        bias(values_of(arguments.bias, geometry.channels(), 0)) {
    if (arguments.residual) residual = converted_to(*arguments.residual, dtype, geometry.sizes, geometry.strides);
    if (g_) g = converted_to(*g_, dtype, geometry.sizes, geometry.strides);
  }

  static const T* data(const MaybeTensor& t) { return t ? static_cast<const T*>(t->const_data_ptr()) : nullptr; }
  const T* x_data() const { return static_cast<const T*>(x.const_data_ptr()); }
  const T* g_data() const { return data(g); }
  const T* residual_data() const { return data(residual); }
  // The mask of one sample's positions.
  const uint8_t* mask_of(int64_t sample) const { return mask.data() ? mask.data() + sample * geometry.s : nullptr; }
};

template <class T>
T* offset(T* data, int64_t elements) {
  return data ? data + elements : nullptr;
}

// The two sums over ∂ℓ/∂z that ∂ℓ/∂x needs. Their weights depend on the policy.
struct GradientSums {
  double sum = 0, sum_x = 0;

  void merge(const GradientSums& other) { sum += other.sum, sum_x += other.sum_x; }
};

// A part of one channel's plane: pieces [begin, end) of the plane that begins `at` elements into the tensor.
struct PlanePart {
  int64_t at, channel, begin, end;
  const uint8_t* mask;
};

// Rows of all channels that are reduced together: those of all samples, or of one. They begin `at` elements into the
// tensor.
struct ColumnBlock {
  int64_t at, rows, first_statistic;
  const uint8_t* mask;
  bool serial;  // whether other threads are busy with other blocks
};

// The passes of one call: reduce only, write only (by given statistics or sums), or both.
struct Passes {
  bool reduce, write;
};

// How the statistics are distributed over threads.
struct Partition {
  int64_t statistics;      // how many there are
  int64_t steps;           // of each: the pieces of a channel, or the channels of a group
  int64_t steps_per_part;  // taken by one thread where a statistic is cut into parts
  int64_t elements;        // of each statistic
  int64_t interleaved;     // neighbouring statistics taken together, step by step
  bool whole;              // whether there are enough statistics to give each to one thread

  int64_t parts() const { return (steps + steps_per_part - 1) / steps_per_part; }
  int64_t begin(int64_t part) const { return part % parts() * steps_per_part; }
  int64_t end(int64_t part) const { return std::min(begin(part) + steps_per_part, steps); }
};

// The state of one thread. The second one is created where a walk needs it: for whole groups, or without the finish.
template <class T>
struct PlaneWorker {
  PlaneWork<T> work;
  std::optional<PlaneWork<T>> second;

  PlaneWorker(const Plane<T>& plane, const uint8_t* mask, Finish<ArithmeticOf<T>> finish) : work(plane, mask, finish) {}

  PlaneWork<T>& second_with(const Plane<T>& plane, Finish<ArithmeticOf<T>> finish) {
    if (!second) second.emplace(plane, work.mask, finish);
    return *second;
  }
};

// Call reduce(worker, statistic, first step, last step, result) for all steps, then write(worker, statistic, first
// step, last step). Where a statistic is cut into parts, their results are merged in order, and the second pass runs
// backwards, since what was read last is still cached.
template <class T, class Result, class MakeWorker, class Reduce, class Write>
void walk(const Partition& p, Passes passes, const Writer<T>& writer, std::vector<Result>& results,
          const MakeWorker& make_worker, const Reduce& reduce, const Write& write) {
  if (p.whole) {
    in_parallel(p.statistics, p.elements, [&](int64_t begin, int64_t end) {
      PlaneWorker<T> worker = make_worker();
      const int64_t step = p.interleaved > 1 ? 1 : p.steps;
      for (int64_t i = begin; i < end; i += p.interleaved) {
        const int64_t last = std::min(i + p.interleaved, end);
        for (int64_t at = 0; passes.reduce && at < p.steps; at += step)
          for (int64_t j = i; j < last; ++j) reduce(worker, j, at, at + step, results[size_t(j)]);
        for (int64_t at = 0; passes.write && at < p.steps; at += step)
          for (int64_t j = i; j < last; ++j) write(worker, j, at, at + step);
      }
      writer.done();
    });
    return;
  }
  const int64_t parts = p.parts(), all = p.statistics * parts, elements = p.elements / parts;
  if (passes.reduce) {
    std::vector<Result> partial(static_cast<size_t>(all));
    in_parallel(all, elements, [&](int64_t begin, int64_t end) {
      PlaneWorker<T> worker = make_worker();
      for (int64_t i = begin; i < end; ++i) reduce(worker, i / parts, p.begin(i), p.end(i), partial[size_t(i)]);
    });
    for (int64_t i = 0; i < all; ++i) results[size_t(i / parts)].merge(partial[size_t(i)]);
  }
  if (!passes.write) return;
  in_parallel(all, elements, [&](int64_t begin, int64_t end) {
    PlaneWorker<T> worker = make_worker();
    for (int64_t i = end - 1; i >= begin; --i) write(worker, i / parts, p.begin(i), p.end(i));
    writer.done();
  });
}

template <class A>
ChannelAffine<A> narrowed(const ChannelAffine<double>& f) {
  return {A(f.mean), A(f.scale), A(f.shift)};
}
template <class A>
Backprop<A> narrowed(const Backprop<double>& back) {
  return {A(back.a), A(back.b), A(back.c)};
}

// Planes: positions are contiguous.

template <class T, class Axes>
void plane_forward(const Problem<T>& p, const Axes& axes, Passes passes, Statistics& statistics, T* y) {
  typedef ArithmeticOf<T> A;
  const T *x = p.x_data(), *residual = p.residual_data();
  const Writer<T> writer(p.streamed);
  walk(
      axes.partition(1), passes, writer, statistics, [&] { return axes.worker(); },
      [&](PlaneWorker<T>& worker, int64_t i, int64_t from, int64_t to, RunningMoments& moments) {
        axes.moments(worker, x, i, from, to, moments);
      },
      [&](PlaneWorker<T>& worker, int64_t i, int64_t from, int64_t to) {
        axes.for_each_plane(i, from, to, [&](const PlanePart& part) {
          worker.work.mask = part.mask;
          const auto f = narrowed<A>(axes.affine(i, part.channel));
          worker.work.apply(x + part.at, offset(residual, part.at), y + part.at, part.begin, part.end, f, writer);
        });
      });
}

template <class T, class Axes>
void plane_backward(const Problem<T>& p, const Axes& axes, Passes passes, std::vector<GradientSums>& sums, T* g_x,
                    T* g_residual) {
  typedef ArithmeticOf<T> A;
  const T *x = p.x_data(), *g = p.g_data(), *residual = p.residual_data();
  // g_residual is written anyway, so it can hold ∂ℓ/∂z between the passes. Not where that would round it, nor where
  // computing ∂ℓ/∂z again is cheaper than writing it early.
  const bool g_z_kept =
      passes.reduce && passes.write && g_residual && is_expensive(p.finish.activation) && !Writer<T>::kConverts;
  const Writer<T> writer(p.streamed), cached(false);
  walk(
      axes.partition(residual && p.finish.activation != kNone ? 3 : 2), passes, writer, sums,
      [&] { return axes.worker(); },
      [&](PlaneWorker<T>& worker, int64_t i, int64_t from, int64_t to, GradientSums& result) {
        axes.for_each_plane(i, from, to, [&](const PlanePart& part) {
          worker.work.mask = part.mask;
          const auto f = narrowed<A>(axes.affine(i, part.channel));
          double sum = 0, sum_x = 0;
          worker.work.gradient_sums(g + part.at, x + part.at, offset(residual, part.at),
                                    g_z_kept ? g_residual + part.at : nullptr, part.begin, part.end, f, cached, &sum,
                                    &sum_x);
          axes.add(i, part.channel, sum, sum_x, result);
        });
      },
      [&](PlaneWorker<T>& worker, int64_t i, int64_t from, int64_t to) {
        axes.for_each_plane(i, from, to, [&](const PlanePart& part) {
          const auto f = narrowed<A>(axes.affine(i, part.channel));
          const auto back = narrowed<A>(axes.backprop(i, part.channel, sums[size_t(i)]));
          if (g_z_kept) {
            PlaneWork<T>& work = worker.second_with(worker.work.plane, {kNone, A(0)});
            work.mask = part.mask;
            work.gradient_apply(g_residual + part.at, x + part.at, nullptr, g_x + part.at, nullptr, part.begin,
                                part.end, f, back, writer);
          } else {
            worker.work.mask = part.mask;
            worker.work.gradient_apply(g + part.at, x + part.at, offset(residual, part.at), g_x + part.at,
                                       offset(g_residual, part.at), part.begin, part.end, f, back, writer);
          }
        });
      });
}

// Columns: channels are contiguous.

// Call f(first chunk, last chunk) for the chunks of one block, in threads unless the blocks are distributed over
// threads.
template <class F>
void for_chunks(const ColumnBlock& block, int64_t chunks, int64_t elements, const F& f) {
  if (block.serial)
    f(0, chunks);
  else
    in_parallel(chunks, elements, f);
}

// The parameters of a block's channels, repeated where rows are folded.
template <class T, class Axes>
typename Columns<T>::Parameters column_parameters(const Axes& axes, const Columns<T>& columns, const Geometry& geo,
                                                  const ColumnBlock& block) {
  std::vector<double> mean(size_t(geo.channels())), scale(mean), shift(mean);
  for (int64_t i = 0; i < geo.channels(); ++i) {
    const ChannelAffine<double> f = axes.affine(block.first_statistic + i / geo.d, i);
    mean[size_t(i)] = f.mean, scale[size_t(i)] = f.scale, shift[size_t(i)] = f.shift;
  }
  return {columns.repeated(mean.data()), columns.repeated(scale.data()), columns.repeated(shift.data())};
}

template <class T, class Axes>
typename Columns<T>::Backprops column_backprops(const Axes& axes, const Columns<T>& columns, const Geometry& geo,
                                                const ColumnBlock& block, const std::vector<GradientSums>& sums) {
  std::vector<double> a(size_t(geo.channels())), b(a), c(a);
  for (int64_t i = 0; i < geo.channels(); ++i) {
    const int64_t statistic = block.first_statistic + i / geo.d;
    const Backprop<double> back = axes.backprop(statistic, i, sums[size_t(statistic)]);
    a[size_t(i)] = back.a, b[size_t(i)] = back.b, c[size_t(i)] = back.c;
  }
  return {columns.repeated(a.data()), columns.repeated(b.data()), columns.repeated(c.data())};
}

template <class T, class Axes>
void column_forward(const Problem<T>& p, const Axes& axes, Passes passes, Statistics& statistics, T* y) {
  const Geometry& geo = p.geometry;
  const int64_t c = geo.channels();
  const Writer<T> writer(p.streamed);
  axes.for_each_block([&](const ColumnBlock& block) {
    const T *x = p.x_data() + block.at, *residual = offset(p.residual_data(), block.at);
    const Columns<T> columns(block.rows, c, block.mask, p.finish);
    const int64_t chunks = columns.chunks(), width = columns.width(), elements = columns.elements_of_chunk();
    if (passes.reduce) {
      std::vector<double> means(size_t(chunks * width)), m2s(means), counts(static_cast<size_t>(chunks));
      for_chunks(block, chunks, elements, [&](int64_t begin, int64_t end) {
        auto own = std::make_unique<Columns<T>>(columns);
        for (int64_t i = begin; i < end; ++i)
          own->moments(x, i, &means[size_t(i * width)], &m2s[size_t(i * width)], &counts[size_t(i)]);
      });
      Statistics of_channel(static_cast<size_t>(c));
      columns.merge(x, means.data(), m2s.data(), counts.data(), of_channel.data());
      for (int64_t i = 0; i < c; ++i)
        statistics[size_t(block.first_statistic + i / geo.d)].merge(of_channel[size_t(i)]);
    }
    if (!passes.write) return;
    const auto parameters = column_parameters(axes, columns, geo, block);
    for_chunks(block, chunks, elements, [&](int64_t begin, int64_t end) {
      auto own = std::make_unique<Columns<T>>(columns);
      for (int64_t i = end - 1; i >= begin; --i) own->apply(x, residual, y + block.at, i, parameters, writer);
    });
  });
}

template <class T, class Axes>
void column_backward(const Problem<T>& p, const Axes& axes, Passes passes, std::vector<GradientSums>& sums, T* g_x,
                     T* g_residual) {
  typedef ArithmeticOf<T> A;
  const Geometry& geo = p.geometry;
  const int64_t c = geo.channels();
  // With constant statistics ∂ℓ/∂x does not depend on the sums, so one pass is enough.
  const bool one_pass = passes.reduce && passes.write && axes.constant();
  const bool g_z_kept = passes.reduce && passes.write && g_residual && (one_pass || !Writer<T>::kConverts);
  // A block of one sample may still be cached in the second pass, one of all samples is not.
  const Writer<T> writer(p.streamed), cached(false), &first_writer = axes.block_of_all() ? writer : cached;
  axes.for_each_block([&](const ColumnBlock& block) {
    const T *x = p.x_data() + block.at, *g = p.g_data() + block.at, *residual = offset(p.residual_data(), block.at);
    T *g_x_block = offset(g_x, block.at), *g_r = offset(g_residual, block.at);
    const Columns<T> columns(block.rows, c, block.mask, p.finish);
    const int64_t chunks = columns.chunks(), width = columns.width(), elements = 2 * columns.elements_of_chunk();
    const auto parameters = column_parameters(axes, columns, geo, block);
    if (passes.reduce) {
      std::vector<double> sum(size_t(chunks * width)), sum_x(sum), sum_C(static_cast<size_t>(c)), sum_x_C(sum_C);
      for_chunks(block, chunks, elements, [&](int64_t begin, int64_t end) {
        auto own = std::make_unique<Columns<T>>(columns);
        for (int64_t i = begin; i < end; ++i)
          own->gradient_sums(g, x, residual, g_z_kept ? g_r : nullptr, one_pass ? g_x_block : nullptr, i, parameters,
                             first_writer, &sum[size_t(i * width)], &sum_x[size_t(i * width)]);
      });
      columns.add_up(sum.data(), sum_C.data());
      columns.add_up(sum_x.data(), sum_x_C.data());
      for (int64_t i = 0; i < c; ++i) {
        const int64_t statistic = block.first_statistic + i / geo.d;
        axes.add(statistic, i, sum_C[size_t(i)], sum_x_C[size_t(i)], sums[size_t(statistic)]);
      }
    }
    if (!passes.write || one_pass) return;
    const auto back = column_backprops(axes, columns, geo, block, sums);
    const Columns<T> without_finish(block.rows, c, block.mask, Finish<A>{kNone, A(0)});
    for_chunks(block, chunks, elements, [&](int64_t begin, int64_t end) {
      auto own = std::make_unique<Columns<T>>(g_z_kept ? without_finish : columns);
      for (int64_t i = end - 1; i >= begin; --i)
        own->gradient_apply(g_z_kept ? g_r : g, x, g_z_kept ? nullptr : residual, g_x_block, g_z_kept ? nullptr : g_r,
                            i, parameters, back, writer);
    });
  });
}

}  // namespace gammabeta
