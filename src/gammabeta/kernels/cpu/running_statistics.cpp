// The update of running statistics, channel by channel, in double.
#include "running_statistics.h"

namespace gammabeta {
namespace {

// A vector that is read as double. The usual dtypes are read in place.
class Values {
 public:
  explicit Values(const Tensor& t) : dtype_(t.scalar_type()), stride_(t.stride(0)) {
    if (dtype_ != ScalarType::Float && dtype_ != ScalarType::Double && dtype_ != ScalarType::Long) {
      copied_ = values_of(t);
      dtype_ = ScalarType::Double;
      stride_ = 1;
      data_ = copied_.data();
    } else {
      data_ = t.const_data_ptr();
    }
  }
  Values(const Values&) = delete;

  double operator[](int64_t i) const {
    if (dtype_ == ScalarType::Float) return static_cast<const float*>(data_)[i * stride_];
    if (dtype_ == ScalarType::Double) return static_cast<const double*>(data_)[i * stride_];
    return double(static_cast<const int64_t*>(data_)[i * stride_]);
  }

 private:
  ScalarType dtype_;
  int64_t stride_;
  const void* data_;
  std::vector<double> copied_;
};

// running = (1 − share)·running + share·batch, in the channels whose batch statistics are finite.
template <class Share, class Batch>
void move(const Tensor& running, const std::vector<char>& finite, const Share& share, const Batch& batch) {
  const int64_t channels = int64_t(finite.size());
  const ScalarType dtype = running.scalar_type();
  auto each = [&](auto* data, int64_t stride) {
    using T = std::remove_reference_t<decltype(*data)>;
    for (int64_t c = 0; c < channels; ++c) {
      if (!finite[size_t(c)]) continue;
      const double old = double(data[c * stride]), s = share(c);
      data[c * stride] = T((1 - s) * old + s * batch(c));
    }
  };
  if (dtype == ScalarType::Float) {
    each(static_cast<float*>(running.mutable_data_ptr()), running.stride(0));
  } else if (dtype == ScalarType::Double) {
    each(static_cast<double*>(running.mutable_data_ptr()), running.stride(0));
  } else {
    std::vector<double> moved = values_of(running);
    each(moved.data(), 1);
    copy(running, tensor_of(moved, {channels}, dtype));
  }
}

}  // namespace

void move_running_statistics(MaybeTensor running_mean, MaybeTensor running_var, MaybeTensor num_batches_tracked,
                             MaybeTensor skipped_counts, Tensor mean, Tensor var, MaybeTensor count,
                             std::optional<double> momentum) {
  CheckChannelVectors("move_running_statistics_", "mean", mean)
      .values("running_mean", running_mean, true)
      .values("running_var", running_var, true)
      .number("num_batches_tracked", num_batches_tracked)
      .skipped("skipped", skipped_counts)
      .values("var", var)
      .count("count", count);
  const int64_t channels = mean.numel();
  const Values means(mean), vars(var);
  std::optional<Values> counts;
  if (count) counts.emplace(*count);
  // With a count n, var is the biased variance (divisor n) and is converted to the unbiased one (divisor n − 1).
  auto unbiased = [&](int64_t c) {
    if (!counts) return vars[c];
    const double n = (*counts)[c];
    return n > 1 ? vars[c] * n / (n - 1) : std::nan("");
  };
  std::vector<char> finite(static_cast<size_t>(channels));
  bool counted = channels == 0;
  for (int64_t c = 0; c < channels; ++c) {
    finite[size_t(c)] = std::isfinite(means[c]) && std::isfinite(unbiased(c));
    counted = counted || finite[size_t(c)];
  }
  int64_t* tracked = num_batches_tracked ? static_cast<int64_t*>(num_batches_tracked->mutable_data_ptr()) : nullptr;
  // `skipped` holds the count of each channel, then that of whole batches, then the last `tracked`: see
  // running_statistics.py.
  int64_t* skipped = nullptr;
  int64_t stride = 0;
  if (skipped_counts) {
    skipped = static_cast<int64_t*>(skipped_counts->mutable_data_ptr());
    stride = skipped_counts->stride(0);
    if (tracked && skipped[(channels + 1) * stride] != *tracked)
      for (int64_t c = 0; c <= channels; ++c) skipped[c * stride] = 0;
    for (int64_t c = 0; c < channels; ++c) skipped[c * stride] += !finite[size_t(c)];
    skipped[channels * stride] += !counted;
  }
  if (tracked) *tracked += counted;
  if (tracked && skipped) skipped[(channels + 1) * stride] = *tracked;
  if (!momentum && !tracked) return;
  auto share = [&](int64_t c) {
    if (momentum) return *momentum;
    const double missed = skipped ? double(skipped[c * stride] - skipped[channels * stride]) : 0.0;
    const double batches = double(*tracked) - missed;
    return 1 / (batches > 1 ? batches : 1);
  };
  if (running_mean) move(*running_mean, finite, share, [&](int64_t c) { return means[c]; });
  if (running_var) move(*running_var, finite, share, unbiased);
}

}  // namespace gammabeta
