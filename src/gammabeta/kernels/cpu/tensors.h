// Conversions between torch's tensors and what the kernels work on. Tensors that are read element by element get one
// dtype and layout; parameters become vectors of double; results get the dtype and layout that the schemas promise.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "checks.h"
#include "elements.h"
#include "text.h"

namespace gammabeta {

using torch::headeronly::ScalarType;
using Sizes = std::vector<int64_t>;

inline Sizes vector_of(torch::headeronly::IntHeaderOnlyArrayRef values) { return Sizes(values.begin(), values.end()); }

inline int32_t dtype_code(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Double:
      return aoti_torch_dtype_float64();
    case ScalarType::Float:
      return aoti_torch_dtype_float32();
    case ScalarType::BFloat16:
      return aoti_torch_dtype_bfloat16();
    case ScalarType::Half:
      return aoti_torch_dtype_float16();
    case ScalarType::Long:
      return aoti_torch_dtype_int64();
    case ScalarType::Bool:
      return aoti_torch_dtype_bool();
    default:
      refuse("gammabeta: expected float64, float32, bfloat16, float16, int64 or bool");
  }
}

// Raise where torch's C function failed. It returns no reason; torch has printed that on stderr.
inline void check(AOTITorchError error, const char* what) {
  if (error != AOTI_TORCH_SUCCESS)
    refuse(std::string("gammabeta: torch could not ") + what + ": is there memory for it?");
}

inline Tensor allocate(const Sizes& sizes, const Sizes& strides, ScalarType dtype) {
  AtenTensorHandle handle;
  check(aoti_torch_empty_strided(int64_t(sizes.size()), sizes.data(), strides.data(), dtype_code(dtype),
                                 aoti_torch_device_type_cpu(), 0, &handle),
        "allocate a result");
  return Tensor(handle);
}

inline void copy(const Tensor& to, const Tensor& from) {
  check(aoti_torch_copy_(to.get(), from.get(), 0), "copy a tensor");
}

inline Sizes contiguous_strides(const Sizes& sizes) {
  Sizes strides(sizes.size());
  int64_t stride = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= sizes[i] > 1 ? sizes[i] : 1;
  }
  return strides;
}

// (N, C, *S) with the channels last in memory.
inline Sizes channels_last_strides(const Sizes& sizes) {
  Sizes strides(sizes.size());
  int64_t stride = sizes[1];
  strides[1] = 1;
  for (size_t i = sizes.size(); i-- > 2;) {
    strides[i] = stride;
    stride *= sizes[i];
  }
  strides[0] = stride;
  return strides;
}

// Whether t has these strides. An axis of one element may have any.
inline bool has_layout(const Tensor& t, const Sizes& sizes, const Sizes& strides) {
  auto own = t.strides();
  for (size_t i = 0; i < sizes.size(); ++i)
    if (sizes[i] != 1 && own[i] != strides[i]) return false;
  return true;
}

// t itself where it has this dtype and layout, else a copy that has them.
inline Tensor converted_to(const Tensor& t, ScalarType dtype, const Sizes& sizes, const Sizes& strides) {
  if (t.scalar_type() == dtype && has_layout(t, sizes, strides)) return t;
  Tensor brought = allocate(sizes, strides, dtype);
  copy(brought, t);
  return brought;
}

// A result with the layout of torch.empty_like. The kernel writes to it directly, or to a tensor that is copied into
// it.
class Output {
 public:
  Output(const Tensor& like, ScalarType dtype, ScalarType computed, const Sizes& sizes, const Sizes& strides) {
    if (dtype == computed && has_layout(like, sizes, strides)) {
      result_ = written_ = allocate(sizes, vector_of(like.strides()), dtype);
      return;
    }
    std::array<StableIValue, 6> stack{torch::stable::detail::from(like),
                                      torch::stable::detail::from(std::optional<ScalarType>(dtype)),
                                      torch::stable::detail::from(std::optional<torch::headeronly::Layout>()),
                                      torch::stable::detail::from(std::optional<torch::stable::Device>()),
                                      torch::stable::detail::from(std::optional<bool>()),
                                      torch::stable::detail::from(std::optional<torch::headeronly::MemoryFormat>())};
    check(torch_call_dispatcher("aten::empty_like", "", stack.data(), TORCH_ABI_VERSION), "allocate a result");
    result_ = torch::stable::detail::to<Tensor>(stack[0]);
    written_ = dtype == computed && has_layout(result_, sizes, strides) ? result_ : allocate(sizes, strides, computed);
  }

  void* data() const { return written_.mutable_data_ptr(); }

  Tensor result() {
    if (written_.get() != result_.get()) copy(result_, written_);
    return result_;
  }

 private:
  Tensor result_, written_;
};

inline Tensor absent_gradient(const Tensor& t) { return allocate({0}, {1}, t.scalar_type()); }

inline ScalarType promoted(ScalarType a, ScalarType b) {
  if (a == b) return a;
  return a == ScalarType::Double || b == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline ScalarType statistics_dtype(ScalarType x) { return x == ScalarType::Double ? x : ScalarType::Float; }

// The values of a small floating-point or int64 tensor of any dtype and layout.
inline std::vector<double> values_of(const Tensor& tensor) {
  Sizes sizes = vector_of(tensor.sizes());
  const ScalarType dtype = tensor.scalar_type();
  const bool wide = dtype == ScalarType::Double || dtype == ScalarType::Float || dtype == ScalarType::Long;
  Tensor t = converted_to(tensor, wide ? dtype : ScalarType::Float, sizes, contiguous_strides(sizes));
  const int64_t n = t.numel();
  std::vector<double> values(static_cast<size_t>(n));
  const void* data = t.const_data_ptr();
  for (int64_t i = 0; i < n; ++i)
    values[size_t(i)] = dtype == ScalarType::Double ? static_cast<const double*>(data)[i]
                        : dtype == ScalarType::Long ? double(static_cast<const int64_t*>(data)[i])
                                                    : double(static_cast<const float*>(data)[i]);
  return values;
}

inline std::vector<double> values_of(const MaybeTensor& tensor, int64_t n, double otherwise) {
  return tensor ? values_of(*tensor) : std::vector<double>(size_t(n), otherwise);
}

// A small tensor with these values.
inline Tensor tensor_of(const std::vector<double>& values, const Sizes& sizes, ScalarType dtype) {
  const bool narrow = dtype == ScalarType::Half || dtype == ScalarType::BFloat16;
  Tensor t = allocate(sizes, contiguous_strides(sizes), narrow ? ScalarType::Float : dtype);
  void* data = t.mutable_data_ptr();
  for (size_t i = 0; i < values.size(); ++i) {
    if (dtype == ScalarType::Double)
      static_cast<double*>(data)[i] = values[i];
    else if (dtype == ScalarType::Long)
      static_cast<int64_t*>(data)[i] = int64_t(values[i]);
    else
      static_cast<float*>(data)[i] = float(values[i]);
  }
  return narrow ? converted_to(t, dtype, sizes, contiguous_strides(sizes)) : t;
}

// The activation of this name, which was checked.
inline Activation activation_of(const std::string& name) {
  int i = 0;
  while (name != kActivations[i]) ++i;
  return Activation(i);
}

// A boolean mask, made contiguous; null where there is none.
class Mask {
 public:
  explicit Mask(const MaybeTensor& mask) {
    if (!mask) return;
    const Sizes sizes = vector_of(mask->sizes());
    dense_ = converted_to(*mask, ScalarType::Bool, sizes, contiguous_strides(sizes));
    data_ = static_cast<const uint8_t*>(dense_->const_data_ptr());
  }
  const uint8_t* data() const { return data_; }

 private:
  MaybeTensor dense_;
  const uint8_t* data_ = nullptr;
};

// Call f(T{}) with the element type of the dtype.
template <class F>
inline auto with_type(ScalarType dtype, const F& f) {
  switch (dtype) {
    case ScalarType::Double:
      return f(double{});
    case ScalarType::BFloat16:
      return f(bfloat16{});
    case ScalarType::Half:
      return f(float16{});
    default:
      return f(float{});
  }
}

// Call f(begin, end) over [0, n) in torch's threads. Each thread gets at least as much work as waking it costs.
template <class F>
void in_parallel(int64_t n, int64_t elements_of_item, const F& f) {
  constexpr int64_t kElementsOfThread = 16384;
  const int64_t grain = elements_of_item > 0 ? kElementsOfThread / elements_of_item : kElementsOfThread;
  torch::stable::parallel_for(0, n, grain > 1 ? grain : 1, f);
}

}  // namespace gammabeta
