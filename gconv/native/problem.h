// One grouped convolution, and how the work on it is handed out: what every instruction set's kernels are given.
//
// The form is T(x, w, y) = <y, conv(x, w)>, always with three spatial axes (lower ranks have leading axes of size 1):
//
//   x  (batch, in[0], in[1], in[2], groups * channels)
//   w  (window[0], window[1], window[2], channels, groups * filters)
//   y  (batch, out[0], out[1], out[2], groups * filters)
//
// Output o meets input o * strides + tap * dilation - low, where that lies inside. `out` need not be what a padding `high` would
// give: it says how many outputs there are.

#pragma once

#include <cstdint>

namespace gconv {

enum class Role { y, x, w };              // which of the three arguments is the result
enum class Type { f32, f64, bf16, f16 };  // sums are formed in f32, of f64 in f64

struct Problem {
  int64_t batch;
  int64_t in[3], out[3], window[3], strides[3], low[3], dilation[3];
  int64_t groups, channels, filters;
  bool plain;  // whether each result must be the plain sum of its products
  bool large;  // whether x and y together are more than the caches keep: what is written goes past them, what is read is asked for
};

// Covers [0, units) with ranges of at least `grain` units, but for each thread's last; runs body(argument, first, last) for each of
// them, in any order and on any thread, and returns when all are done. A body returns false where it found no memory, and throws
// nothing; then so does run(), and ranges that have not begun are left out.
struct Parallel {
  using Body = bool (*)(void* argument, int64_t first, int64_t last);
  bool (*run)(const Parallel& self, int64_t units, int64_t grain, Body body, void* argument);
  int64_t threads;
};

enum class Status { done, small_scratch, no_memory };  // of a call: complete, not begun, or begun and left

// The kernels of one instruction set, for vectors of so many bytes. `first` and `second` are the role's operands: (x, w), (y, w) or
// (x, y). run() asks for as many bytes of scratch as scratch_bytes() tells, which is -1 where there is no memory to find out.
struct Kernels {
  const char* name;
  int64_t vector_bytes;
  int64_t (*scratch_bytes)(Role role, Type type, const Problem& problem);
  Status (*run)(Role role, Type type, const Problem& problem, const void* first, const void* second, void* result, void* scratch,
                int64_t bytes, const Parallel& parallel);
};

// What follows is compiled once per instruction set and must not be shared by the linker: of several copies of an inline function
// it keeps one, which may be that of an instruction set that the processor does not have.
namespace {

inline bool is_depthwise(const Problem& p) { return p.channels == 1 && p.filters == 1; }
inline bool has_one_tap(const Problem& p) { return p.window[0] == 1 && p.window[1] == 1 && p.window[2] == 1; }

// Channels per group of what role y or x reads and of what results; of role w, those of the kernel.
inline int64_t sources_of(Role role, const Problem& p) { return role == Role::x ? p.filters : p.channels; }
inline int64_t results_of(Role role, const Problem& p) { return role == Role::x ? p.channels : p.filters; }

// Whether role y or x of wide groups is taken in squares of 2 x 2 results (gather_winograd.h), which come in tiles of up to 7 of
// one remainder by the dilation. A square takes as long as 3 results by plain sums, of which those at the borders are shorter
// (measured). Where most results are: a window that is deep beside its input, or sources of which few taps meet any, plain sums are
// shorter still, and round by their own products, not by those of the whole window.
//
// The same image must give the same bits alone and in any batch, so the choice is the one for a batch of IMAGES. Alone, an image of
// 4 x 4 to 6 x 6 then takes up to twice as long as by plain sums, and with 8 images or more 0.5 to 0.75 of their time (measured with
// AVX-512, 16 to 256 channels).
inline bool by_squares(Role role, const Problem& p) {
  constexpr int64_t IMAGES = 4;
  bool forward = role == Role::y;
  const int64_t *results = forward ? p.out : p.in, *sources = forward ? p.in : p.out;
  if (role == Role::w || p.plain || sources_of(role, p) < 8) return false;
  if (p.window[0] > 1 && results[0] < 2 * p.window[0]) return false;
  double squares = IMAGES * double(results[0]), all = squares, met = squares, remainders = 1;
  for (int i = 1; i < 3; ++i) {
    if (p.window[i] != 3 || p.strides[i] != 1 || results[i] < 1) return false;
    int64_t apart = p.dilation[i] < results[i] ? p.dilation[i] : results[i], most = (results[i] + apart - 1) / apart;
    squares *= double((most + 1) / 2), all *= double(results[i]), remainders *= double(apart);
    int64_t pairs = 0;  // of a result and a tap that meet a source
    for (int64_t t = 0; t < 3; ++t) {
      int64_t first = forward ? t * p.dilation[i] - p.low[i] : p.low[i] - t * p.dilation[i];  // source of result 0
      int64_t from = first < 0 ? -first : 0, to = sources[i] - first < results[i] ? sources[i] - first : results[i];
      if (to > from) pairs += to - from;
    }
    met *= double(pairs) / 3;
  }
  double tiles = __builtin_ceil(squares / 7);
  return 3 * remainders * tiles * 7 < all && 2 * met > all;
}

}  // namespace
}  // namespace gconv
