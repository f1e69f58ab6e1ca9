// The rules of checks.h, and the errors that they raise.
#include "checks.h"

#include <sstream>
#include <stdexcept>

namespace gammabeta {
namespace {

struct Dtype {
  int32_t code;
  int64_t bytes;
};

const Dtype kFloatingDtypes[] = {{aoti_torch_dtype_float64(), 8},
                                 {aoti_torch_dtype_float32(), 4},
                                 {aoti_torch_dtype_bfloat16(), 2},
                                 {aoti_torch_dtype_float16(), 2}};
const Dtype kInt64Dtype{aoti_torch_dtype_int64(), 8}, kBoolDtype{aoti_torch_dtype_bool(), 1};
const int32_t kCpu = aoti_torch_device_type_cpu(), kStrided = aoti_torch_layout_strided();

// Bytes per element of the dtype, 0 where it is none of these.
int64_t bytes_of(int32_t code, Dtypes dtypes) {
  if (dtypes == Dtypes::kInt64) return code == kInt64Dtype.code ? kInt64Dtype.bytes : 0;
  if (dtypes == Dtypes::kBool) return code == kBoolDtype.code ? kBoolDtype.bytes : 0;
  for (const Dtype& dtype : kFloatingDtypes)
    if (code == dtype.code) return dtype.bytes;
  return 0;
}

const char* name_of(Dtypes dtypes) {
  if (dtypes == Dtypes::kInt64) return "int64";
  if (dtypes == Dtypes::kBool) return "bool";
  return "float64, float32, bfloat16 or float16";
}

struct Named {
  int32_t (*code)();
  const char* name;
};

template <size_t n>
std::string name_of(int32_t code, const Named (&names)[n]) {
  for (const Named& one : names)
    if (one.code() == code) return one.name;
  return "another (" + std::to_string(code) + ")";
}

std::string dtype_name(int32_t code) {
  static const Named names[] = {{aoti_torch_dtype_float64, "float64"},
                                {aoti_torch_dtype_float32, "float32"},
                                {aoti_torch_dtype_bfloat16, "bfloat16"},
                                {aoti_torch_dtype_float16, "float16"},
                                {aoti_torch_dtype_uint8, "uint8"},
                                {aoti_torch_dtype_uint16, "uint16"},
                                {aoti_torch_dtype_uint32, "uint32"},
                                {aoti_torch_dtype_uint64, "uint64"},
                                {aoti_torch_dtype_int8, "int8"},
                                {aoti_torch_dtype_int16, "int16"},
                                {aoti_torch_dtype_int32, "int32"},
                                {aoti_torch_dtype_int64, "int64"},
                                {aoti_torch_dtype_bool, "bool"},
                                {aoti_torch_dtype_complex32, "complex32"},
                                {aoti_torch_dtype_complex64, "complex64"},
                                {aoti_torch_dtype_complex128, "complex128"},
                                {aoti_torch_dtype_float8_e5m2, "float8_e5m2"},
                                {aoti_torch_dtype_float8_e4m3fn, "float8_e4m3fn"},
                                {aoti_torch_dtype_float8_e5m2fnuz, "float8_e5m2fnuz"},
                                {aoti_torch_dtype_float8_e4m3fnuz, "float8_e4m3fnuz"}};
  return name_of(code, names);
}

std::string layout_name(int32_t code) {
  static const Named names[] = {
      {aoti_torch_layout_sparse_coo, "sparse_coo"}, {aoti_torch_layout_sparse_csr, "sparse_csr"},
      {aoti_torch_layout_sparse_csc, "sparse_csc"}, {aoti_torch_layout_sparse_bsr, "sparse_bsr"},
      {aoti_torch_layout_sparse_bsc, "sparse_bsc"}, {aoti_torch_layout__mkldnn, "mkldnn"},
      {aoti_torch_layout_jagged, "jagged"}};
  return name_of(code, names);
}

std::string device_name(const Tensor& t, int32_t type) {
  static const Named names[] = {{aoti_torch_device_type_cpu, "cpu"},
                                {aoti_torch_device_type_cuda, "cuda"},
                                {aoti_torch_device_type_meta, "meta"},
                                {aoti_torch_device_type_xpu, "xpu"},
                                {aoti_torch_device_type_mps, "mps"}};
  int32_t index = -1;
  aoti_torch_get_device_index(t.get(), &index);
  return name_of(type, names) + (index < 0 ? "" : ":" + std::to_string(index));
}

std::string text_of(const Shape& shape) {
  std::string text = "(";
  for (int64_t i = 0; i < shape.axes(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + (shape.axes() == 1 ? ",)" : ")");
}

[[noreturn]] void refuse_argument(const char* op, const char* name, const std::string& expected,
                                  const std::string& got) {
  refuse(std::string("gammabeta::") + op + ": expected " + name + " " + expected + ", got " + got + ".");
}

// Raise where torch's C function has no answer, which is so for a tensor that is not a plain one.
void ask(AOTITorchError error, const char* op, const char* name) {
  if (error != AOTI_TORCH_SUCCESS)
    refuse_argument(op, name, "that is a plain tensor", "one that torch tells nothing of");
}

// Check device, layout and dtype. Returns the sizes, and the bytes per element.
Shape sizes_of(const Check& check, const char* name, const Tensor& t, Dtypes dtypes, int64_t* bytes) {
  int32_t device = 0, layout = 0, dtype = 0;
  const AtenTensorHandle handle = t.get();
  ask(aoti_torch_get_device_type(handle, &device), check.op, name);
  if (device != kCpu) {
    if (!check.of.first) refuse_argument(check.op, name, "on cpu", device_name(t, device));
    refuse("Expected all tensors to be on the same device, but found at least two devices, cpu and " +
           device_name(t, device) + "! (argument " + name + " of gammabeta::" + check.op + ", beside " + check.beside +
           ")");
  }
  ask(aoti_torch_get_layout(handle, &layout), check.op, name);
  if (layout != kStrided) refuse_argument(check.op, name, "of layout strided", layout_name(layout));
  ask(aoti_torch_get_dtype(handle, &dtype), check.op, name);
  *bytes = bytes_of(dtype, dtypes);
  if (*bytes == 0) refuse_argument(check.op, name, std::string("of dtype ") + name_of(dtypes), dtype_name(dtype));
  int64_t* sizes = nullptr;
  int64_t axes = 0;
  ask(aoti_torch_get_dim(handle, &axes), check.op, name);
  ask(aoti_torch_get_sizes(handle, &sizes), check.op, name);
  return {sizes, axes};
}

// Check that the storage reaches as far as sizes and strides: one that was resized or freed does not.
void check_memory(const Check& check, const char* name, const Tensor& t, const Shape& shape, int64_t bytes,
                  bool written) {
  int64_t *strides = nullptr, offset = 0, storage = 0;
  ask(aoti_torch_get_strides(t.get(), &strides), check.op, name);
  ask(aoti_torch_get_storage_offset(t.get(), &offset), check.op, name);
  ask(aoti_torch_get_storage_size(t.get(), &storage), check.op, name);
  uint64_t last = uint64_t(offset);
  bool shared = false;
  for (int64_t i = 0; i < shape.axes(); ++i) {
    if (shape[i] == 0) return;
    last += uint64_t(shape[i] - 1) * uint64_t(strides[i]);
    shared |= shape[i] > 1 && strides[i] == 0;
  }
  if ((last + 1) * uint64_t(bytes) > uint64_t(storage))
    refuse_argument(check.op, name, "with memory for shape " + text_of(shape),
                    "a storage of " + std::to_string(storage) + " bytes: it was resized or freed");
  if (written && shared)
    refuse_argument(check.op, name, "with memory for each of its elements, since it is written",
                    "strides " + text_of({strides, shape.axes()}) + ": clone() has it");
}

}  // namespace

void refuse(const std::string& message) { throw std::runtime_error(message); }

Shape Check::base(const char* name, const Tensor& t, Dtypes dtypes) const {
  int64_t bytes = 0;
  const Shape sizes = sizes_of({op, beside, {}}, name, t, dtypes, &bytes);
  // The number of elements, counting each empty axis as 1, must not overflow: geometries multiply these sizes.
  int64_t elements = 1;
  for (int64_t i = 0; i < sizes.axes(); ++i)
    if (sizes[i] > 1 && __builtin_mul_overflow(elements, sizes[i], &elements))
      refuse_argument(op, name, "with less than 2^63 elements", "shape " + text_of(sizes));
  check_memory(*this, name, t, sizes, bytes, false);
  return sizes;
}

void Check::operator()(const char* name, const Tensor& t, Dtypes dtypes, const Shape& shape, bool written) const {
  int64_t bytes = 0;
  const Shape sizes = sizes_of(*this, name, t, dtypes, &bytes);
  bool same = sizes.axes() == shape.axes();
  for (int64_t i = 0; same && i < shape.axes(); ++i) same = sizes[i] == shape[i];
  if (!same)
    refuse_argument(op, name, "of shape " + text_of(shape),
                    text_of(sizes) + ": " + beside + " is of shape " + text_of(of));
  check_memory(*this, name, t, sizes, bytes, written);
}

CheckNorm::CheckNorm(const char* op, const char* name, const Tensor& x)
    : check_{op, name, {}}, x_(check_.base(name, x, Dtypes::kFloating)), per_channel_(true) {
  set_shapes();
}

CheckNorm::CheckNorm(const char* op, const char* name, const Tensor& x, int64_t sample_axes, int64_t channel_axes,
                     int64_t groups)
    : check_{op, name, {}},
      x_(check_.base(name, x, Dtypes::kFloating)),
      sample_axes_(sample_axes),
      channel_axes_(channel_axes),
      groups_(groups) {
  set_shapes();
}

CheckNorm::CheckNorm(const char* op, const char* name, const Tensor& x, int64_t channel_axes)
    : check_{op, name, {}},
      x_(check_.base(name, x, Dtypes::kFloating)),
      sample_axes_(channel_axes < 1 || channel_axes > x_.axes() ? 0 : x_.axes() - channel_axes),
      channel_axes_(channel_axes) {
  set_shapes();
}

void CheckNorm::set_shapes() {
  check_.of = x_;
  const auto refuse_number = [&](const char* name, int64_t number) {
    refuse_argument(check_.op, name, name == std::string("channel_axes") ? "of 1 or more" : "of 0 or more",
                    std::to_string(number));
  };
  if (channel_axes_ < 1) refuse_number("channel_axes", channel_axes_);
  if (sample_axes_ < 0) refuse_number("sample_axes", sample_axes_);
  // Written without a sum, which may overflow.
  if (channel_axes_ > x_.axes() || sample_axes_ > x_.axes() - channel_axes_) {
    const uint64_t axes = uint64_t(sample_axes_) + uint64_t(channel_axes_);
    refuse_argument(check_.op, check_.beside,
                    "with " + std::to_string(axes) + (axes == 1 ? " axis or more" : " axes or more"),
                    "shape " + text_of(x_));
  }
  int64_t samples = 1, channels = 1;
  for (int64_t i = 0; i < sample_axes_; ++i) samples *= x_[i];
  for (int64_t i = sample_axes_; i < sample_axes_ + channel_axes_; ++i) channels *= x_[i];
  int64_t statistics = 0;
  if (groups_ < 1 || channels % groups_ != 0 || __builtin_mul_overflow(samples, groups_, &statistics))
    refuse_argument(check_.op, "groups",
                    "that divide the " + std::to_string(channels) + " channels of " + check_.beside,
                    std::to_string(groups_));
  samples_and_groups_[0] = samples;
  samples_and_groups_[1] = groups_;
}

Shape CheckNorm::places() const {
  const int64_t behind = sample_axes_ + channel_axes_;
  return {x_.first, sample_axes_, x_.first + behind, x_.axes() - behind};
}

const CheckNorm& CheckNorm::like_x(const char* name, const Tensor& t) const {
  check_(name, t, Dtypes::kFloating, x_);
  return *this;
}

const CheckNorm& CheckNorm::like_x(const char* name, const MaybeTensor& t) const {
  check_(name, t, Dtypes::kFloating, x_);
  return *this;
}

const CheckNorm& CheckNorm::parameter(const char* name, const MaybeTensor& t) const {
  check_(name, t, Dtypes::kFloating, parameters());
  return *this;
}

const CheckNorm& CheckNorm::mask(const MaybeTensor& t) const {
  check_("mask", t, Dtypes::kBool, places());
  return *this;
}

const CheckNorm& CheckNorm::statistic(const char* name, const Tensor& t) const {
  check_(name, t, Dtypes::kFloating, statistics());
  return *this;
}

const CheckNorm& CheckNorm::count(const Tensor& t) const {
  check_("count", t, Dtypes::kInt64, statistics());
  return *this;
}

const CheckNorm& CheckNorm::count(const MaybeTensor& t) const {
  check_("count", t, Dtypes::kInt64, statistics());
  return *this;
}

std::string activations(const char* separator, const char* last) {
  const size_t n = sizeof(kActivations) / sizeof(*kActivations);
  std::string text = kActivations[0];
  for (size_t i = 1; i < n; ++i) text += std::string(last && i == n - 1 ? last : separator) + kActivations[i];
  return text;
}

const CheckNorm& CheckNorm::activation(const std::string& name) const {
  for (const char* one : kActivations)
    if (name == one) return *this;
  refuse_argument(check_.op, "activation", activations(", ", " or "), name);
}

const CheckNorm& CheckNorm::eps(double eps) const {
  if (eps >= 0) return *this;
  std::ostringstream text;
  text << eps;
  refuse_argument(check_.op, "eps", "of 0 or more", text.str());
}

CheckChannelVectors::CheckChannelVectors(const char* op, const char* name, const Tensor& mean) : check_{op, name, {}} {
  const Shape shape = check_.base(name, mean, Dtypes::kFloating);
  if (shape.axes() != 1) refuse_argument(op, name, "with 1 axis", "shape " + text_of(shape));
  check_.of = shape;
  skipped_ = shape[0] + 2;
}

const CheckChannelVectors& CheckChannelVectors::values(const char* name, const MaybeTensor& t, bool written) const {
  check_(name, t, Dtypes::kFloating, check_.of, written);
  return *this;
}

const CheckChannelVectors& CheckChannelVectors::values(const char* name, const Tensor& t) const {
  check_(name, t, Dtypes::kFloating, check_.of);
  return *this;
}

const CheckChannelVectors& CheckChannelVectors::count(const char* name, const MaybeTensor& t) const {
  check_(name, t, Dtypes::kInt64, check_.of);
  return *this;
}

const CheckChannelVectors& CheckChannelVectors::skipped(const char* name, const MaybeTensor& t) const {
  check_(name, t, Dtypes::kInt64, {&skipped_, 1}, true);
  return *this;
}

const CheckChannelVectors& CheckChannelVectors::number(const char* name, const MaybeTensor& t) const {
  check_(name, t, Dtypes::kInt64, {&skipped_, 0}, true);
  return *this;
}

}  // namespace gammabeta
