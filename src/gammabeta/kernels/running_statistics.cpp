#include "running_statistics.h"

namespace gammabeta {
namespace {

// A vector of values to read, in double. Those of the usual dtypes are read where they stand.
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

// running = (1 − share)·running + share·batch in the channels that count.
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
    torch::stable::copy_(const_cast<Tensor&>(running), tensor_of(moved, {channels}, dtype));
  }
}

}  // namespace

void move_running_statistics(MaybeTensor running_mean, MaybeTensor running_var, MaybeTensor num_batches_tracked,
                             MaybeTensor skipped_updates, Tensor mean, Tensor var, MaybeTensor count,
                             std::optional<double> momentum) {
  const int64_t channels = mean.numel();
  double batches = 0;
  if (num_batches_tracked)
    batches = double(++*static_cast<int64_t*>(num_batches_tracked->mutable_data_ptr()));
  const Values means(mean), vars(var);
  std::optional<Values> counts;
  if (count) counts.emplace(*count);
  // Given n, var is divided by it and becomes that divided by n − 1.
  auto unbiased = [&](int64_t c) {
    if (!counts) return vars[c];
    const double n = (*counts)[c];
    return n > 1 ? vars[c] * n / (n - 1) : std::nan("");
  };
  std::vector<char> finite(static_cast<size_t>(channels));
  for (int64_t c = 0; c < channels; ++c) finite[size_t(c)] = std::isfinite(means[c]) && std::isfinite(unbiased(c));
  int64_t* skipped = nullptr;
  int64_t stride = 0;
  if (skipped_updates) {
    skipped = static_cast<int64_t*>(skipped_updates->mutable_data_ptr());
    stride = skipped_updates->stride(0);
    for (int64_t c = 0; c < channels; ++c) skipped[c * stride] += !finite[size_t(c)];
  }
  auto share = [&](int64_t c) {
    if (momentum) return *momentum;
    const double counted = batches - (skipped ? double(skipped[c * stride]) : 0.0);
    return 1 / (counted > 1 ? counted : 1);
  };
  if (running_mean) move(*running_mean, finite, share, [&](int64_t c) { return means[c]; });
  if (running_var) move(*running_var, finite, share, unbiased);
}

}  // namespace gammabeta
