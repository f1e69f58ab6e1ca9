// The loops of loops.h, compiled once for every instruction set, and the choice between them at their first call.
#include "loops.h"

#include <cstdlib>
#include <cstring>
#include <limits>

#if !defined(GAMMABETA_TARGET)

namespace gammabeta {
namespace {

// All loops of one instruction set.
struct Target {
  const char* name;
  Loops<float> loops_float;
  Loops<double> loops_double;
  StoredLoops<float> stored_float;
  StoredLoops<double> stored_double;
  StoredLoops<bfloat16> stored_bfloat16;
  StoredLoops<float16> stored_float16;
  Storage storage;
};

}  // namespace
}  // namespace gammabeta

#define GAMMABETA_THIS_SOURCE "loops.cpp"
#include "foreach_target.h"
#endif

#include "loops-inl.h"
#include "stored_loops-inl.h"
#include "stored_columns-inl.h"

namespace gammabeta {
namespace GAMMABETA_TARGET {
namespace {

#if defined(GAMMABETA_AVX512)
constexpr const char* kName = "AVX-512";
#elif defined(GAMMABETA_AVX2)
constexpr const char* kName = "AVX2";
#elif defined(GAMMABETA_NEON)
constexpr const char* kName = "NEON";
#else
constexpr const char* kName = "baseline";
#endif

constexpr Target kTarget = {kName,
                            kLoops<float>,
                            kLoops<double>,
                            kStoredLoops<float>,
                            kStoredLoops<double>,
                            kStoredLoops<bfloat16>,
                            kStoredLoops<float16>,
                            kStorage};

}  // namespace
}  // namespace GAMMABETA_TARGET
}  // namespace gammabeta

#if defined(GAMMABETA_BASELINE)  // the last pass: what exists once

namespace gammabeta {
namespace {

// The best instruction set of the processor, or a lower one where GAMMABETA_ISA names it.
const Target& choose() {
  const char* variable = std::getenv("GAMMABETA_ISA");
  const auto asked = [&](const char* name) { return variable && std::strcmp(variable, name) == 0; };
  if (asked("baseline")) return baseline::kTarget;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool has_avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                          __builtin_cpu_supports("avx512cd");
  if (has_avx512 && !asked("avx2")) return avx512::kTarget;
  return has_avx2 ? avx2::kTarget : baseline::kTarget;
#elif defined(__aarch64__)
  return neon::kTarget;
#else
  return baseline::kTarget;
#endif
}

const Target& target() {
  static const Target& chosen = choose();
  return chosen;
}

}  // namespace

template <>
const Loops<float>& loops<float>() {
  return target().loops_float;
}
template <>
const Loops<double>& loops<double>() {
  return target().loops_double;
}

template <>
const StoredLoops<float>& stored_loops<float>() {
  return target().stored_float;
}
template <>
const StoredLoops<double>& stored_loops<double>() {
  return target().stored_double;
}
template <>
const StoredLoops<bfloat16>& stored_loops<bfloat16>() {
  return target().stored_bfloat16;
}
template <>
const StoredLoops<float16>& stored_loops<float16>() {
  return target().stored_float16;
}

const Storage& storage() { return target().storage; }

const char* instruction_set() { return target().name; }

}  // namespace gammabeta

#endif
