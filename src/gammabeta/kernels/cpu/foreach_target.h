// Compiles the including file once for every instruction set, as Highway's foreach_target.h does.
//
// The including file defines GAMMABETA_THIS_SOURCE as its own name and then includes this header, which includes that
// file again for each optional instruction set of the architecture. The rest of the file is compiled for the baseline.
// For each pass GAMMABETA_TARGET is the namespace of the instruction set, and one macro says which one it is:
// GAMMABETA_AVX512, GAMMABETA_AVX2, GAMMABETA_NEON or (in the last pass) GAMMABETA_BASELINE. The compiler's own macros
// describe its command line, not a target region (g++ before 13, clang++).
//
// Every header that defines an inline function must be included before this one: a function that is first seen inside a
// target region is compiled for that region, and the linker may keep it for all others.
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__x86_64__)

#define GAMMABETA_AVX2
#define GAMMABETA_TARGET avx2
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("arch=x86-64-v3"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
#endif
#include GAMMABETA_THIS_SOURCE
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef GAMMABETA_TARGET
#undef GAMMABETA_AVX2

#define GAMMABETA_AVX512
#define GAMMABETA_TARGET avx512
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("arch=x86-64-v4"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
#endif
#include GAMMABETA_THIS_SOURCE
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef GAMMABETA_TARGET
#undef GAMMABETA_AVX512

#elif defined(__aarch64__)

// Every aarch64 processor has NEON: its region is the command line's.
#define GAMMABETA_NEON
#define GAMMABETA_TARGET neon
#include GAMMABETA_THIS_SOURCE
#undef GAMMABETA_TARGET
#undef GAMMABETA_NEON

#endif

#define GAMMABETA_BASELINE
#define GAMMABETA_TARGET baseline
