// Vectors of one instruction set, without intrinsics: GCC's and Clang's vector extensions.
//
// VECTOR_BYTES is the register's width. A kernel loads elements of any type T and computes in Wide<T>.

#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#define ALWAYS_INLINE inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 64")
#define TEXT(macro) TEXT_OF(macro)  // what a macro stands for, in quotation marks
#define TEXT_OF(words) #words

namespace gconv {
namespace {  // this code is compiled once per instruction set, so nothing of it may be shared by the linker

struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

// Values that a lambda takes as a type, so that they are known when it is compiled. (std::integral_constant's
// conversion is a function that the linker may share.)
template <class T, T v>
struct Constant {
  static constexpr T value = v;
  constexpr operator T() const { return v; }
};
template <int n>
using Number = Constant<int, n>;
using True = Constant<bool, true>;
using False = Constant<bool, false>;

// Calls f(Number<n>) for an n from 1 to MOST.
template <int MOST, class F>
ALWAYS_INLINE void with_number(int64_t n, const F& f) {
  if (n == MOST)
    f(Number<MOST>{});
  else if constexpr (MOST > 1)
    with_number<MOST - 1>(n, f);
}

template <class T>
struct WideOf {
  using type = float;
};
template <>
struct WideOf<double> {
  using type = double;
};
template <class T>
using Wide = typename WideOf<T>::type;

template <class A, int bytes>
struct VectorOf {
  typedef A type __attribute__((vector_size(bytes)));
};
template <class A>
constexpr int LANES = VECTOR_BYTES / sizeof(A);
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int REGISTERS = 32;
#else
constexpr int REGISTERS = 16;
#endif
template <class T>
using Vector = typename VectorOf<Wide<T>, VECTOR_BYTES>::type;  // of the type that T is computed in

using Half = VectorOf<uint16_t, VECTOR_BYTES / 2>::type;  // as many 16-bit elements as a vector has floats
using Word = VectorOf<uint32_t, VECTOR_BYTES>::type;
using Floats = VectorOf<float, VECTOR_BYTES>::type;

}  // namespace
}  // namespace gconv
