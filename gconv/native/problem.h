// One grouped convolution, as the plan and the kernels see it, and how the work on it is shared out.
//
// The form is T(x, w, y) = <y, conv(x, w)>, always with three spatial axes (lower ranks have leading axes of
// size 1):
//
//   x  (batch, in[0], in[1], in[2], groups * channels)
//   w  (window[0], window[1], window[2], channels, groups * filters)
//   y  (batch, out[0], out[1], out[2], groups * filters)
//
// Output o meets input o * strides + tap * dilation - low, where that lies inside. `out` need not be what a
// padding `high` would give: it says how many outputs there are.

#pragma once

#include <cstdint>

namespace gconv {

enum class Role { y, x, w };              // which of the three arguments is the result
enum class Type { f32, f64, bf16, f16 };  // sums are formed in f32, of f64 in f64

struct Problem {
  int64_t batch;
  int64_t in[3], out[3], window[3], strides[3], low[3], dilation[3];
  int64_t groups, channels, filters;
  bool plain;   // whether each result must be the plain sum of its products
  bool widens;  // whether results of half precision are float32: sums that are not rounded
  bool frozen;  // whether the kernel is the same in every call of a program, which then packs it once
  bool gated;   // whether the sources are multiplied by one number for each image and channel
};

// Covers [0, units) with ranges of at least `grain` units, but for each thread's last. Runs body(argument,
// first, last) for each of them, in any order and on any thread, and returns when all are done. A body
// returns false where it found no memory, and throws nothing; then run() returns false too, and ranges that
// have not begun are left out.
struct Parallel {
  using Body = bool (*)(void* argument, int64_t first, int64_t last);
  bool (*run)(const Parallel& self, int64_t units, int64_t grain, Body body, void* argument);
  int64_t threads;
};

// Memory of a call. Roles y and x pack their kernel into `packed`, unless an earlier call has.
struct Scratch {
  void* packed;
  bool is_packed;
  void* rest;
};

// What follows is compiled once per instruction set and must not be shared by the linker: of several copies
// of an inline function it keeps one, which may be that of an instruction set that the processor does not
// have.
namespace {

constexpr int64_t LINE = 64;  // bytes that a cache fetches and keeps together

// The first line that begins at an address or after it: LINE - 1 bytes further on at most.
inline char* line_from(void* address) {
  return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(address) + LINE - 1) / LINE * LINE);
}

inline int64_t minimum(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t maximum(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }  // a >= 0, b > 0
// b > 0. Mostly it is a stride of 1, and dividing takes as long as twenty additions.
inline int64_t floor_div(int64_t a, int64_t b) { return b == 1 ? a : a / b - (a % b < 0); }

inline Type result_type(Type type, const Problem& p) { return p.widens ? Type::f32 : type; }

inline int64_t taps_of(const Problem& p) { return p.window[0] * p.window[1] * p.window[2]; }

// Whether a single tap meets every pixel: no strides and no padding.
inline bool meets_every_pixel(const Problem& p) {
  bool all = taps_of(p) == 1;
  for (int i = 0; i < 3; ++i) all &= p.strides[i] == 1 && p.low[i] == 0 && p.in[i] == p.out[i];
  return all;
}

// The same kernel gradient with as long rows as there can be: all pixels are one where a single tap meets
// them.
inline Problem with_long_rows(Problem p) {
  if (!meets_every_pixel(p)) return p;
  p.in[2] = p.out[2] = p.batch * p.out[0] * p.out[1] * p.out[2];
  p.batch = p.in[0] = p.in[1] = p.out[0] = p.out[1] = 1;
  return p;
}

// Channels per group of what role y or x reads and of what results; of role w, those of the kernel.
inline int64_t sources_of(Role role, const Problem& p) { return role == Role::x ? p.filters : p.channels; }
inline int64_t results_of(Role role, const Problem& p) { return role == Role::x ? p.channels : p.filters; }

}  // namespace
}  // namespace gconv
