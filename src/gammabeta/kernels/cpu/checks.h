// What an op is handed, checked before anything of it is read: the rules of gammabeta/op_checks.py, in its words and order.
//
// A check that passes allocates nothing. What it asks torch for are the C functions themselves: the methods of
// torch::stable::Tensor raise messages with a path of the build.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>

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
class Arguments {
 public:
  // A channel norm: statistics are of each channel, x's axis 1.
  Arguments(const char* op, const char* name, const Tensor& x);
  // A sample norm: statistics are of each sample and group of channels.
  Arguments(const char* op, const char* name, const Tensor& x, int64_t sample_axes, int64_t channel_axes,
            int64_t groups);
  // A sample norm over the last axes.
  Arguments(const char* op, const char* name, const Tensor& x, int64_t channel_axes);
  Arguments(const Arguments&) = delete;

  const Arguments& like_x(const char* name, const Tensor& t) const;
  const Arguments& like_x(const char* name, const MaybeTensor& t) const;
  const Arguments& parameter(const char* name, const MaybeTensor& t) const;
  const Arguments& mask(const MaybeTensor& t) const;
  const Arguments& statistic(const char* name, const Tensor& t) const;
  const Arguments& count(const Tensor& t) const;
  const Arguments& count(const MaybeTensor& t) const;
  const Arguments& activation(const std::string& name) const;
  const Arguments& eps(double eps) const;

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
class OfChannels {
 public:
  OfChannels(const char* op, const char* name, const Tensor& mean);
  OfChannels(const OfChannels&) = delete;

  const OfChannels& values(const char* name, const MaybeTensor& t, bool written = false) const;
  const OfChannels& values(const char* name, const Tensor& t) const;
  const OfChannels& count(const char* name, const MaybeTensor& t) const;
  // Written: two more than channels, and one number.
  const OfChannels& skipped(const char* name, const MaybeTensor& t) const;
  const OfChannels& number(const char* name, const MaybeTensor& t) const;

 private:
  Check check_;
  int64_t skipped_ = 0;
};

// The names of the activations, in the order of Activation. Loading compares them with gammabeta/activations.py.
constexpr const char* kActivations[] = {"none", "relu", "relu6", "leaky_relu", "silu", "hardswish", "gelu"};

// Their names in one text, with `last` before the last one.
std::string activations(const char* separator, const char* last = nullptr);

}  // namespace gammabeta
