// A string argument of an operator.

#pragma once

#include <torch/csrc/stable/library.h>

#include <string>

namespace gammabeta {

// torch's own conversion to std::string, up to 2.13, allocates a string that it never frees: 32 bytes a call
// (pytorch/pytorch, issue 191340). That is little, but it stays between the activations of a training step, whose
// memory malloc can then not join and use again: a process grows by megabytes a step.
struct Text {
  std::string value;

  operator const std::string&() const { return value; }
};

}  // namespace gammabeta

namespace torch::stable::detail {

template <>
struct ToImpl<gammabeta::Text> {
  static gammabeta::Text call(StableIValue given, uint64_t, bool) {
    const StringHandle handle = to<StringHandle>(given);
    size_t length;
    const char* data;
    STABLE_TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
    STABLE_TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &data));
    gammabeta::Text text{std::string(data, length)};
    STABLE_TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
    return text;
  }
};

}  // namespace torch::stable::detail
