// What an op is handed, checked before anything of it is read: the rules of gammabeta/op_checks.py, in its words and order.
//
// A check that passes allocates nothing. What it asks torch for are the C functions themselves: the methods of
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

// A shape in two runs of sizes, of which the second may be empty.
struct Shape {
  const int64_t* first;
  int64_t n_first;
  const int64_t* second = nullptr;
  int64_t n_second = 0;

  int64_t axes() const { return n_first + n_second; }
  int64_t operator[](int64_t i) const { return i < n_first ? first[i] : second[i - n_first]; }
};

// Throws what torch's dispatcher hands on as RuntimeError, the message as it is.
[[noreturn]] void refuse(const std::string& message);

// One tensor: where it is, layout, dtype, shape, and whether its memory is there; of one that is written, whether each
// element has memory of its own. `beside` is the op's argument that the shape follows, `of` its shape.
struct Check {
  const char* op;
  const char* beside;
  Shape of;

  // Returns the sizes of an argument that others follow, whose shape is not known before.
  Shape base(const char* name, const Tensor& t, Dtypes dtypes) const;
  void operator()(const char* name, const Tensor& t, Dtypes dtypes, const Shape& shape, bool written = false) const;
  void operator()(const char* name, const MaybeTensor& t, Dtypes dtypes, const Shape& shape,
                  bool written = false) const {
    if (t) (*this)(name, *t, dtypes, shape, written);
  }
};

// The arguments of a norm, x = (*samples, *channels, *positions), in the order of its schema; x comes first.
class CheckNorm {
 public:
  // A channel norm: statistics are of each channel, x's axis 1.
  CheckNorm(const char* op, const char* name, const Tensor& x);
  // A sample norm: statistics are of each sample and group of channels.
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

// The arguments of an op on vectors of channels, in the order of its schema; mean comes first.
class CheckChannelVectors {
 public:
  CheckChannelVectors(const char* op, const char* name, const Tensor& mean);
  CheckChannelVectors(const CheckChannelVectors&) = delete;

  const CheckChannelVectors& values(const char* name, const MaybeTensor& t, bool written = false) const;
  const CheckChannelVectors& values(const char* name, const Tensor& t) const;
  const CheckChannelVectors& count(const char* name, const MaybeTensor& t) const;
  // Written: two more than channels, and one number.
  const CheckChannelVectors& skipped(const char* name, const MaybeTensor& t) const;
  const CheckChannelVectors& number(const char* name, const MaybeTensor& t) const;

 private:
  Check check_;
  int64_t skipped_ = 0;
};

// The names of the activations in one text, with `last` before the last one.
std::string activations(const char* separator, const char* last = nullptr);

}  // namespace gammabeta
