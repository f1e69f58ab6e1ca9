// The loops for any processor, and the choice between them and the faster ones.
#include "rows.inc"
#include "stored_rows.inc"

#include <cstdlib>

namespace gammabeta {

#if defined(__x86_64__)
extern const Rows<float>&rows_float_avx2, &rows_float_avx512;
extern const Rows<double>&rows_double_avx2, &rows_double_avx512;
extern const Storage&storage_avx2, &storage_avx512;
extern const StoredRows<float>&stored_float_avx2, &stored_float_avx512;
extern const StoredRows<double>&stored_double_avx2, &stored_double_avx512;
extern const StoredRows<bfloat16>&stored_bfloat16_avx2, &stored_bfloat16_avx512;
extern const StoredRows<float16>&stored_float16_avx2, &stored_float16_avx512;
#endif

namespace {

enum InstructionSet { kBaseline, kAvx2, kAvx512 };

// What the processor has, or less where GAMMABETA_ISA asks for less.
InstructionSet choose() {
  InstructionSet has = kBaseline;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) has = kAvx2;
  if (has == kAvx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd"))
    has = kAvx512;
#endif
  const char* asked = std::getenv("GAMMABETA_ISA");
  if (asked && std::strcmp(asked, "baseline") == 0) return kBaseline;
  if (asked && std::strcmp(asked, "avx2") == 0 && has > kAvx2) return kAvx2;
  return has;
}

InstructionSet chosen() {
  static const InstructionSet set = choose();
  return set;
}

}  // namespace

#if defined(__x86_64__)
#define GAMMABETA_CHOSEN(table, here) \
  (chosen() == kAvx512 ? table##_avx512 : chosen() == kAvx2 ? table##_avx2 : here)
#else
#define GAMMABETA_CHOSEN(table, here) here
#endif

template <>
const Rows<float>& rows<float>() {
  return GAMMABETA_CHOSEN(rows_float, kRows<float>);
}

template <>
const Rows<double>& rows<double>() {
  return GAMMABETA_CHOSEN(rows_double, kRows<double>);
}

template <>
const StoredRows<float>& stored_rows<float>() {
  return GAMMABETA_CHOSEN(stored_float, kStoredRows<float>);
}

template <>
const StoredRows<double>& stored_rows<double>() {
  return GAMMABETA_CHOSEN(stored_double, kStoredRows<double>);
}

template <>
const StoredRows<bfloat16>& stored_rows<bfloat16>() {
  return GAMMABETA_CHOSEN(stored_bfloat16, kStoredRows<bfloat16>);
}

template <>
const StoredRows<float16>& stored_rows<float16>() {
  return GAMMABETA_CHOSEN(stored_float16, kStoredRows<float16>);
}

const Storage& storage() { return GAMMABETA_CHOSEN(storage, kStorage); }

const char* instruction_set() {
  switch (chosen()) {
    case kAvx512:
      return "AVX-512";
    case kAvx2:
      return "AVX2";
    default:
      return "baseline";
  }
}

}  // namespace gammabeta
