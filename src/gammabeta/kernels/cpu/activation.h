// The activations that a kernel can end in: the one place in C++ that lists them.
//
// A new one comes first in gammabeta/activations.py. Then it gets its enumerator and its name here, and its function
// and derivative in `activate` and `differentiate` (loops-inl.h), whose switches the compiler checks for completeness.
#pragma once

namespace gammabeta {

enum Activation : int { kNone, kRelu, kRelu6, kLeakyRelu, kSilu, kHardswish, kGelu };

// Their names, in the same order. Loading compares them with gammabeta/activations.py.
constexpr const char* kActivations[] = {"none", "relu", "relu6", "leaky_relu", "silu", "hardswish", "gelu"};

static_assert(sizeof(kActivations) / sizeof(*kActivations) == kGelu + 1, "a name for each Activation");

// Whether z is only clamped, or left alone: then the loops over stored values apply it.
constexpr bool is_clamp(Activation activation) {
  return activation == kNone || activation == kRelu || activation == kRelu6;
}

// Whether computing it costs more than a pass over memory.
constexpr bool is_expensive(Activation activation) { return activation == kSilu || activation == kGelu; }

}  // namespace gammabeta
