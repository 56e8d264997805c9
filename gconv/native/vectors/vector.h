// What is done with vectors: loads and stores, of all lanes or the first ones, and permutations.

#pragma once

#include "problem.h"
#include "vectors/half.h"

namespace gconv {
namespace {

// --- loads and stores --------------------------------------------------------------------------------------

template <class T>
ALWAYS_INLINE Vector<T> load(const T* from) {
  if constexpr (sizeof(T) == 2) {
    Half h;
    memcpy(&h, from, sizeof h);
    return widen(h, T{});
  } else {
    Vector<T> v{};
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

#ifdef __AVX512F__
// A mask register with the first `count` lanes.
ALWAYS_INLINE uint32_t first_lanes(int64_t count) { return count >= 32 ? ~0u : (1u << count) - 1; }
#elif defined(__AVX2__)
// A vector with ones in the first `words` 32-bit words.
ALWAYS_INLINE __m256i first_words(int64_t words) {
  static const int32_t bits[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bits + 8 - (words < 8 ? words : 8)));
}
#endif

// The first `count` elements, and zeros in the other lanes; nothing beyond them is touched.
template <class T>
ALWAYS_INLINE Vector<T> load_first(const T* from, int64_t count) {
#if defined(__AVX512F__) && VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 8) return (Vector<T>)_mm512_maskz_loadu_pd(first_lanes(count), from);
  if constexpr (sizeof(T) == 4) return (Vector<T>)_mm512_maskz_loadu_ps(first_lanes(count), from);
  if constexpr (sizeof(T) == 2) return widen((Half)_mm256_maskz_loadu_epi16(first_lanes(count), from), T{});
#elif defined(__AVX512F__)
  if constexpr (sizeof(T) == 8) return (Vector<T>)_mm256_maskz_loadu_pd(first_lanes(count), from);
  if constexpr (sizeof(T) == 4) return (Vector<T>)_mm256_maskz_loadu_ps(first_lanes(count), from);
  if constexpr (sizeof(T) == 2) return widen((Half)_mm_maskz_loadu_epi16(first_lanes(count), from), T{});
#else
#if defined(__AVX2__) && VECTOR_BYTES == 32
  if constexpr (sizeof(T) >= 4)
    return (Vector<T>)_mm256_maskload_ps(reinterpret_cast<const float*>(from),
                                         first_words(count * (sizeof(T) / 4)));
#endif
  if (sizeof(T) == 2 && count >= LANES<Wide<T>>) return load(from);
  T lanes[LANES<Wide<T>>] = {};
  for (int64_t i = 0; i < count && i < LANES<Wide<T>>; ++i) lanes[i] = from[i];
  return load(lanes);
#endif
}

template <class T>
ALWAYS_INLINE void store_first(T* to, Vector<T> v, int64_t count) {
#if defined(__AVX512F__) && VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 8) return _mm512_mask_storeu_pd(to, first_lanes(count), (__m512d)v);
  if constexpr (sizeof(T) == 4) return _mm512_mask_storeu_ps(to, first_lanes(count), (__m512)v);
  if constexpr (sizeof(T) == 2)
    return _mm256_mask_storeu_epi16(to, first_lanes(count), (__m256i)narrow(v, T{}));
#elif defined(__AVX512F__)
  if constexpr (sizeof(T) == 8) return _mm256_mask_storeu_pd(to, first_lanes(count), (__m256d)v);
  if constexpr (sizeof(T) == 4) return _mm256_mask_storeu_ps(to, first_lanes(count), (__m256)v);
  if constexpr (sizeof(T) == 2) return _mm_mask_storeu_epi16(to, first_lanes(count), (__m128i)narrow(v, T{}));
#else
#if defined(__AVX2__) && VECTOR_BYTES == 32
  if constexpr (sizeof(T) >= 4)
    return _mm256_maskstore_ps(reinterpret_cast<float*>(to), first_words(count * (sizeof(T) / 4)), (__m256)v);
#endif
  if (sizeof(T) == 2 && count >= LANES<Wide<T>>) return store(to, v);
  T lanes[LANES<Wide<T>>];
  store(lanes, v);
  for (int64_t i = 0; i < count && i < LANES<Wide<T>>; ++i) to[i] = lanes[i];
#endif
}

// The first lanes of a vector of numbers, and zeros.
template <class V>
ALWAYS_INLINE V first_of(V v, int64_t count) {
  using A = std::remove_reference_t<decltype(v[0])>;
  A lanes[sizeof(V) / sizeof(A)];
  memcpy(lanes, &v, sizeof v);
  return load_first(lanes, count);
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

// Keeps in a register what is used several times: GCC would load it again for each use, and loads are what
// kernels are short of.
template <class V>
ALWAYS_INLINE void keep(V& vector) {
#if defined(__AVX512F__)
  __asm__("" : "+v"(vector));
#elif defined(__x86_64__) && VECTOR_BYTES <= 32 && (defined(__AVX2__) || VECTOR_BYTES == 16)
  __asm__("" : "+x"(vector));
#elif defined(__aarch64__) && VECTOR_BYTES == 16
  __asm__("" : "+w"(vector));
#else
  __asm__("" : "+m"(vector));  // of several registers, which only the fuzzer has
#endif
}

#if defined(__AVX512F__) || (defined(__AVX2__) && VECTOR_BYTES == 32)
constexpr bool STREAMS = true;
#else
constexpr bool STREAMS = false;
#endif

// Whole lines may be stored past the cache: what is stored in parts would be fetched first. So may results
// where rows of `channels` of them are whole lines, and V vectors that are stored one after the other are
// too. Other threads see them after fence().
template <class T, int V>
bool whole_lines(const T* result, int64_t channels) {
  int64_t address = reinterpret_cast<intptr_t>(result), row = channels * (int64_t)sizeof(T);
  return STREAMS && V * LANES<Wide<T>> * sizeof(T) % LINE == 0 && address % LINE == 0 && row % LINE == 0;
}

template <class T>
ALWAYS_INLINE void stream(T* to, Vector<T> v) {
#if defined(__AVX512F__) && VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 2)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to), (__m256i)narrow(v, T{}));
  else
    _mm512_stream_ps(reinterpret_cast<float*>(to), (__m512)v);
#elif defined(__AVX2__) && VECTOR_BYTES == 32
  if constexpr (sizeof(T) == 2)
    _mm_stream_si128(reinterpret_cast<__m128i*>(to), (__m128i)narrow(v, T{}));
  else
    _mm256_stream_ps(reinterpret_cast<float*>(to), (__m256)v);
#else
  store(to, v);
#endif
}

ALWAYS_INLINE void fence() {
#ifdef __AVX2__
  _mm_sfence();
#endif
}

// Lane i is from[index[i]]; nothing beyond from[count - 1] is touched.
template <class T>
ALWAYS_INLINE Vector<T> gather(const T* from, const int32_t (&index)[LANES<Wide<T>>], int64_t largest,
                               int64_t count) {
  constexpr int L = LANES<Wide<T>>;
#if defined(__AVX2__) && (VECTOR_BYTES == 32 || defined(__AVX512F__))
  if constexpr (sizeof(Wide<T>) == 4)
    if (largest < L && count >= L) {  // of as many neighbours as lanes, by one permutation
      typename VectorOf<int, VECTOR_BYTES>::type lanes;
      memcpy(&lanes, index, sizeof lanes);
#if VECTOR_BYTES == 64
      return (Vector<T>)_mm512_maskz_permutexvar_ps(ALL, (__m512i)lanes, (__m512)load(from));
#else
      return (Vector<T>)_mm256_permutevar8x32_ps((__m256)load(from), (__m256i)lanes);
#endif
    }
#endif
  (void)largest, (void)count;
  if constexpr (sizeof(T) == 2) {
    Half bits{};
    UNROLL for (int i = 0; i < L; ++i) bits[i] = from[index[i]].bits;
    return widen(bits, T{});
  } else {
    Vector<T> v{};
    UNROLL for (int i = 0; i < L; ++i) v[i] = from[index[i]];
    return v;
  }
}

// The lanes of two vectors that have these numbers, of the second those that follow the first's.
template <int... NUMBER, class V>
ALWAYS_INLINE V pick(V a, V b) {
#if __has_builtin(__builtin_shufflevector)
  return __builtin_shufflevector(a, b, NUMBER...);
#else  // GCC 11
  constexpr bool FOUR_BYTES = sizeof(V) == 4 * sizeof...(NUMBER);
  using Numbers = typename VectorOf<std::conditional_t<FOUR_BYTES, int32_t, int64_t>, sizeof(V)>::type;
  return __builtin_shuffle(a, b, Numbers{NUMBER...});
#endif
}

// A square of values, its rows in vectors, to its columns: log2(size) rounds, of which each swaps the
// off-diagonal halves of squares half as large as those of the round before.
template <int HALF, class V, size_t... LANE>
ALWAYS_INLINE void swap_halves(V& a, V& b, std::index_sequence<LANE...>) {
  constexpr int N = sizeof...(LANE);
  V low = pick<(LANE & HALF ? (int)LANE - HALF + N : (int)LANE)...>(a, b);
  b = pick<(LANE & HALF ? (int)LANE + N : (int)LANE + HALF)...>(a, b);
  a = low;
}

template <int HALF, class V, size_t N>
ALWAYS_INLINE void transpose(V (&rows)[N]) {
  UNROLL for (int i = 0; i < (int)N; ++i)
    if (!(i & HALF)) swap_halves<HALF>(rows[i], rows[i + HALF], std::make_index_sequence<N>{});
  if constexpr (HALF > 1) transpose<HALF / 2>(rows);
}

}  // namespace
}  // namespace gconv
