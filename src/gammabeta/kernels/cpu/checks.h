// Checks of an op's arguments, made before any of them is read: the rules of gammabeta/op_checks.py, in its words and
// order.
//
// A check that passes allocates nothing. It calls torch's C functions directly, since the methods of
// torch::stable::Tensor raise messages with a path of the build.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>

#include "activation.h"

namespace gammabeta {

using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

enum class Dtypes { kFloating, kInt64, kBool };

// A shape as two runs of sizes. The second may be empty.
struct Shape {
  const int64_t* first;
  int64_t n_first;
  const int64_t* second = nullptr;
  int64_t n_second = 0;

  int64_t axes() const { return n_first + n_second; }
  int64_t operator[](int64_t i) const { return i < n_first ? first[i] : second[i - n_first]; }
};

// Throw an error that torch's dispatcher turns into a RuntimeError with the same message.
[[noreturn]] void refuse(const std::string& message);

// Checks one tensor: device, layout, dtype, shape, and whether its memory is there. If it is written, also that each
// element has its own memory. `beside` is the op's argument that the shape follows from, `of` the shape of that
// argument.
struct Check {
  const char* op;
  const char* beside;
  Shape of;

  // The sizes of the argument that the other shapes follow from.
  Shape base(const char* name, const Tensor& t, Dtypes dtypes) const;
  void operator()(const char* name, const Tensor& t, Dtypes dtypes, const Shape& shape, bool written = false) const;
  void operator()(const char* name, const MaybeTensor& t, Dtypes dtypes, const Shape& shape,
                  bool written = false) const {
    if (t) (*this)(name, *t, dtypes, shape, written);
  }
};

// Checks the arguments of a norm of x = (*samples, *channels, *positions), in the order of its schema. x comes first.
class CheckNorm {
 public:
  // A channel norm: one statistic for each channel, x's axis 1.
  CheckNorm(const char* op, const char* name, const Tensor& x);
  // A sample norm: one statistic for each sample and group of channels.
  CheckNorm(const char* op, const char* name, const Tensor& x, int64_t sample_axes, int64_t channel_axes,
            int64_t groups);
  // A sample norm over the last axes.
  CheckNorm(const char* op, const char* name, const Tensor& x, int64_t channel_axes);
  CheckNorm(const CheckNorm&) = delete;

  const CheckNorm& like_x(const char* name, const Tensor& t) const;
  const CheckNorm& like_x(const char* name, const MaybeTensor& t) const;
  const CheckNorm& parameter(const char* name, const MaybeTensor& t) const;
  const CheckNorm& mask(const MaybeTensor& t) const;
  const CheckNorm& statistic(const char* name, const Tensor& t) const;
  const CheckNorm& count(const Tensor& t) const;
  const CheckNorm& count(const MaybeTensor& t) const;
  const CheckNorm& activation(const std::string& name) const;
  const CheckNorm& eps(double eps) const;

 private:
  void set_shapes();
  Shape parameters() const { return {x_.first + sample_axes_, channel_axes_}; }
  Shape places() const;
  Shape statistics() const { return per_channel_ ? parameters() : Shape{samples_and_groups_, 2}; }

  Check check_;
  Shape x_;
  int64_t sample_axes_ = 1, channel_axes_ = 1, groups_ = 1;
  bool per_channel_ = false;
  int64_t samples_and_groups_[2] = {0, 0};
};

// Checks the arguments of an op on vectors of channels, in the order of its schema. mean comes first.
class CheckChannelVectors {
 public:
  CheckChannelVectors(const char* op, const char* name, const Tensor& mean);
  CheckChannelVectors(const CheckChannelVectors&) = delete;

  const CheckChannelVectors& values(const char* name, const MaybeTensor& t, bool written = false) const;
  const CheckChannelVectors& values(const char* name, const Tensor& t) const;
  const CheckChannelVectors& count(const char* name, const MaybeTensor& t) const;
  // Tensors that are written: one with two values more than channels, and a single number.
  const CheckChannelVectors& skipped(const char* name, const MaybeTensor& t) const;
  const CheckChannelVectors& number(const char* name, const MaybeTensor& t) const;

 private:
  Check check_;
  int64_t skipped_ = 0;
};

// The names of the activations as one text. `last`, if given, is the separator before the last name.
std::string activations(const char* separator, const char* last = nullptr);

}  // namespace gammabeta
