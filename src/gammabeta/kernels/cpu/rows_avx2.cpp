// The loops for x86-64-v3 and newer processors.
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>

// For rows.inc: the compiler's own macros stand for its command line, not for a region (g++ before 13, clang++).
#define GAMMABETA_AVX2
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("arch=x86-64-v3"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
#endif
#include "rows.inc"
#include "stored_rows.inc"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace gammabeta {
const Rows<float>& rows_float_avx2 = kRows<float>;
const Rows<double>& rows_double_avx2 = kRows<double>;
const Storage& storage_avx2 = kStorage;
const StoredRows<float>& stored_float_avx2 = kStoredRows<float>;
const StoredRows<double>& stored_double_avx2 = kStoredRows<double>;
const StoredRows<bfloat16>& stored_bfloat16_avx2 = kStoredRows<bfloat16>;
const StoredRows<float16>& stored_float16_avx2 = kStoredRows<float16>;
}  // namespace gammabeta
#endif
