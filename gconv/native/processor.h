// Which instruction sets this processor has: those that the kernels are compiled for.

#pragma once

#ifdef __x86_64__
#include <cpuid.h>

namespace gconv {
namespace {

inline bool has_avx2() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  __builtin_cpu_init();
  // Clang 14 does not know the name of F16C.
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __get_cpuid(1, &a, &b, &c, &d) &&
         (c & bit_F16C);
}

inline bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

inline bool has_avx512_bf16() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return has_avx512() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);
}

// Whether the instruction that adds both products of pairs of bfloat16 gains: on AMD's processors it takes as
// long as a multiply-add of numbers. On Intel's Emerald Rapids it takes four times as long (2026-11-30, with
// vectors of either length), and layers took 1.3 to 3.3 times as long in bfloat16 as in float32.
inline bool has_fast_pairs() {
  __builtin_cpu_init();
  return has_avx512_bf16() && __builtin_cpu_is("amd");
}

// Whether vectors of 512 bits take two passes through the arithmetic units, so that two of half the length
// are as fast: in AMD's Zen 4, of family 19h the only one that has AVX-512.
inline bool has_two_passes() {
  unsigned a = 0, b, c, d;
  __builtin_cpu_init();
  return __builtin_cpu_is("amd") && __get_cpuid(1, &a, &b, &c, &d) && (a >> 8 & 15) + (a >> 20 & 255) == 0x19;
}

}  // namespace
}  // namespace gconv
#else

namespace gconv {
namespace {

inline bool has_two_passes() { return false; }

}  // namespace
}  // namespace gconv
#endif
