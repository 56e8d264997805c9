// Vectors of one instruction set, without intrinsics: GCC's and Clang's vector extensions.
//
// VECTOR_BYTES is the register's width. A kernel loads elements of any type T and computes in Wide<T>.

#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#ifdef __F16C__
#include <immintrin.h>
#endif

#define ALWAYS_INLINE inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32")

namespace gconv {
namespace {  // this code is compiled once per instruction set, so nothing of it may be shared by the linker

struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

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
template <class T>
using Vector = typename VectorOf<Wide<T>, VECTOR_BYTES>::type;  // of the type that T is computed in

using Half = VectorOf<uint16_t, VECTOR_BYTES / 2>::type;  // as many 16-bit elements as a vector has floats
using Word = VectorOf<uint32_t, VECTOR_BYTES>::type;
using Floats = VectorOf<float, VECTOR_BYTES>::type;

// --- from and to half precision --------------------------------------------------------------------------------------------

ALWAYS_INLINE Floats widen(Half h, Bf16) { return (Floats)(__builtin_convertvector(h, Word) << 16); }

ALWAYS_INLINE Half narrow(Floats f, Bf16) {  // to nearest even; a NaN stays one
  Word bits = (Word)f;
  Word rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  Word nan = (Word)(f != f);
  return __builtin_convertvector((rounded & ~nan) | (((bits >> 16) | 0x40) & nan), Half);
}

#if defined(__F16C__) && VECTOR_BYTES == 32
ALWAYS_INLINE Floats widen(Half h, F16) { return (Floats)_mm256_cvtph_ps((__m128i)h); }
ALWAYS_INLINE Half narrow(Floats f, F16) { return (Half)_mm256_cvtps_ph((__m256)f, _MM_FROUND_TO_NEAREST_INT); }
#else
ALWAYS_INLINE Floats select(Word mask, Floats a, Floats b) { return (Floats)(((Word)a & mask) | ((Word)b & ~mask)); }

ALWAYS_INLINE Floats widen(Half h, F16) {
  Word bits = __builtin_convertvector(h, Word), magnitude = (bits & 0x7fff) << 13, sign = (bits & 0x8000) << 16;
  Word exponent = magnitude & 0x0f800000;
  Word normal = magnitude + (112u << 23);
  normal += (Word)(exponent == 0x0f800000) & (112u << 23);                         // infinity and NaN
  Floats tiny = (Floats)(magnitude + (113u << 23)) - (Floats)(Word{} + (113u << 23));  // of subnormals, exact
  return (Floats)((Word)select((Word)(exponent == 0), tiny, (Floats)normal) | sign);
}

ALWAYS_INLINE Half narrow(Floats f, F16) {  // to nearest even
  Word bits = (Word)f, sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
  Word normal = (magnitude + 0xfff + ((magnitude >> 13) & 1) - (112u << 23)) >> 13;
  Floats shifted = (Floats)magnitude + (Floats)(Word{} + (126u << 23));  // 0.5 has one unit in the place of F16's smallest
  Word tiny = (Word)shifted - (126u << 23);
  Word small = (Word)(magnitude < (113u << 23));
  Word result = (tiny & small) | (normal & ~small);
  Word large = (Word)(magnitude >= (143u << 23));
  result = (result & ~large) | (0x7c00 & large);
  Word over = (Word)(result > 0x7c00);
  result = (result & ~over) | (0x7c00 & over);
  Word nan = (Word)(magnitude > 0x7f800000);
  result = (result & ~nan) | (0x7e00 & nan);
  return __builtin_convertvector(result | sign, Half);
}
#endif

// --- loads and stores ------------------------------------------------------------------------------------------------------

template <class T>
ALWAYS_INLINE Vector<T> load(const T* from) {
  if constexpr (sizeof(T) == 2) {
    Half h;
    memcpy(&h, from, sizeof h);
    return widen(h, T{});
  } else {
    Vector<T> v;
    memcpy(&v, from, sizeof v);
    return v;
  }
}

template <class T>
ALWAYS_INLINE void store(T* to, Vector<T> v) {
  if constexpr (sizeof(T) == 2) {
    Half h = narrow(v, T{});
    memcpy(to, &h, sizeof h);
  } else {
    memcpy(to, &v, sizeof v);
  }
}

// The first `count` elements, and zeros in the other lanes; nothing beyond them is touched.
template <class T>
ALWAYS_INLINE Vector<T> load_first(const T* from, int64_t count) {
#if defined(__AVX2__) && VECTOR_BYTES == 32
  if constexpr (sizeof(T) >= 4) {
    static const int32_t bits[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
    int64_t words = count * (int64_t)(sizeof(T) / 4);
    Word mask;
    memcpy(&mask, bits + 8 - (words < 8 ? words : 8), sizeof mask);
    typedef int v8si __attribute__((vector_size(32)));
    return (Vector<T>)__builtin_ia32_maskloadps256((const VectorOf<float, 32>::type*)from, (v8si)mask);
  }
#endif
  T lanes[LANES<Wide<T>>] = {};
  for (int64_t i = 0; i < count && i < LANES<Wide<T>>; ++i) lanes[i] = from[i];
  return load(lanes);
}

template <class T>
ALWAYS_INLINE void store_first(T* to, Vector<T> v, int64_t count) {
  T lanes[LANES<Wide<T>>];
  store(lanes, v);
  for (int64_t i = 0; i < count && i < LANES<Wide<T>>; ++i) to[i] = lanes[i];
}

template <class T>
ALWAYS_INLINE Wide<T> value(T x) {
  if constexpr (sizeof(T) == 2) {
    Half h{};
    h[0] = x.bits;
    return widen(h, T{})[0];
  } else {
    return x;
  }
}

template <class T>
ALWAYS_INLINE T rounded(Wide<T> x) {
  if constexpr (sizeof(T) == 2) {
    Floats f{};
    f[0] = x;
    return T{narrow(f, T{})[0]};
  } else {
    return x;
  }
}

template <class T>
ALWAYS_INLINE Vector<T> broadcast(T x) {
  return value(x) - Vector<T>{};  // unlike adding zero, folds to a broadcast: -0 stays -0
}

// Lane i is from[index[i]]; nothing beyond from[count - 1] is touched.
template <class T>
ALWAYS_INLINE Vector<T> gather(const T* from, const int32_t (&index)[LANES<Wide<T>>], int64_t largest, int64_t count) {
#if defined(__AVX2__) && VECTOR_BYTES == 32
  if constexpr (sizeof(T) == 4)
    if (largest < 8 && count >= 8) {
      typedef int Index __attribute__((vector_size(32)));
      Index lanes;
      memcpy(&lanes, index, sizeof lanes);
      return __builtin_ia32_permvarsf256(load(from), lanes);
    }
#endif
  (void)largest, (void)count;
  Vector<T> v;
  for (int i = 0; i < LANES<Wide<T>>; ++i) v[i] = value(from[index[i]]);
  return v;
}

// --- memory and work of one call -------------------------------------------------------------------------------------------

// A growing list whose code, unlike std::vector's, is this instruction set's own.
template <class T>
struct List {
  T* data = nullptr;
  int64_t size = 0, room = 0;
  List() = default;
  List(const List&) = delete;
  List& operator=(const List&) = delete;
  ~List() { free(data); }
  void reserve(int64_t more) {
    if (more <= room) return;
    room = more > 2 * room ? more : 2 * room;
    data = static_cast<T*>(realloc(data, room * sizeof(T)));
    if (!data) abort();
  }
  void push(const T& item) {
    if (size == room) reserve(size + 16);
    data[size++] = item;
  }
  const T& operator[](int64_t i) const { return data[i]; }
  T& operator[](int64_t i) { return data[i]; }
};

ALWAYS_INLINE int64_t minimum(int64_t a, int64_t b) { return a < b ? a : b; }
ALWAYS_INLINE int64_t maximum(int64_t a, int64_t b) { return a > b ? a : b; }
ALWAYS_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }  // a >= 0, b > 0
ALWAYS_INLINE int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0); }  // b > 0

// parallel.run with a lambda.
template <class F>
void for_each(const Parallel& parallel, int64_t units, const F& body) {
  parallel.run(parallel, units, [](void* f, int64_t unit) { (*static_cast<const F*>(f))(unit); }, const_cast<F*>(&body));
}

}  // namespace
}  // namespace gconv
