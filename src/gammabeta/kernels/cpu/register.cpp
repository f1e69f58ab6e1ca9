// Registers the kernels under the names of gammabeta/ops.py, and defines the module that Python imports.

#include <Python.h>

#include "channel_norm.h"
#include "running_statistics.h"
#include "sample_norm.h"

namespace {

std::string cpu_instruction_set() { return gammabeta::instruction_set(); }

std::string cpu_activations() { return gammabeta::activations(","); }

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(gammabeta, m) {
  m.def("cpu_instruction_set() -> str");
  m.def("cpu_activations() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(gammabeta, CompositeExplicitAutograd, m) {
  m.impl("cpu_instruction_set", TORCH_BOX(&cpu_instruction_set));
  m.impl("cpu_activations", TORCH_BOX(&cpu_activations));
}

STABLE_TORCH_LIBRARY_IMPL(gammabeta, CPU, m) {
  m.impl("channel_norm_forward", TORCH_BOX(&gammabeta::channel_norm_forward));
  m.impl("channel_norm_backward", TORCH_BOX(&gammabeta::channel_norm_backward));
  m.impl("channel_apply_forward", TORCH_BOX(&gammabeta::channel_apply_forward));
  m.impl("channel_moments", TORCH_BOX(&gammabeta::channel_moments));
  m.impl("channel_backward_reduce", TORCH_BOX(&gammabeta::channel_backward_reduce));
  m.impl("channel_backward_apply", TORCH_BOX(&gammabeta::channel_backward_apply));
  m.impl("move_running_statistics_", TORCH_BOX(&gammabeta::move_running_statistics));
  m.impl("sample_norm_forward", TORCH_BOX(&gammabeta::sample_norm_forward));
  m.impl("sample_norm_backward", TORCH_BOX(&gammabeta::sample_norm_backward));
  m.impl("add_sample_norm_forward", TORCH_BOX(&gammabeta::add_sample_norm_forward));
  m.impl("add_sample_norm_backward", TORCH_BOX(&gammabeta::add_sample_norm_backward));
}

extern "C" PyMODINIT_FUNC PyInit__cpu(void) {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_cpu", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
