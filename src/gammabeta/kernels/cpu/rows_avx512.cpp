// The loops for x86-64-v4 and newer processors.
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>

// For rows.inc: the compiler's own macros stand for its command line, not for a region (g++ before 13, clang++).
#define GAMMABETA_AVX512
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("arch=x86-64-v4"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
#endif
#include "rows.inc"
#include "stored_rows.inc"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace gammabeta {
const Rows<float>& rows_float_avx512 = kRows<float>;
const Rows<double>& rows_double_avx512 = kRows<double>;
const Storage& storage_avx512 = kStorage;
const StoredRows<float>& stored_float_avx512 = kStoredRows<float>;
const StoredRows<double>& stored_double_avx512 = kStoredRows<double>;
const StoredRows<bfloat16>& stored_bfloat16_avx512 = kStoredRows<bfloat16>;
const StoredRows<float16>& stored_float16_avx512 = kStoredRows<float16>;
}  // namespace gammabeta
#endif
