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

// Whether role y or x of wide groups is taken in squares of 2 x 2 results (gather_winograd.h). In products of a channel and a filter,
// a square costs up to 25, the kernel 64 once, and a pixel of plain sums 8, for borders miss some of its 9 (measured).
inline bool by_squares(Role role, const Problem& p) {
  int64_t sources = role == Role::y ? p.channels : p.filters;
  if (role == Role::w || p.plain || sources < 8) return false;
  double squares = double(p.batch), pixels = double(p.batch);
  for (int i = 1; i < 3; ++i) {
    int64_t results = role == Role::y ? p.out[i] : p.in[i], phases = p.dilation[i] < results ? p.dilation[i] : results;
    if (p.window[i] != 3 || p.strides[i] != 1 || results < 1) return false;
    squares *= double(((results + phases - 1) / phases + 1) / 2 * phases), pixels *= double(results);
  }
  return 25 * squares + 64 < 8 * pixels;
}

// Covers [0, units) with ranges of at least `grain` units, runs body(argument, first, last) for each of them, in any order and on
// any thread, and returns when all are done.
struct Parallel {
  using Body = void (*)(void* argument, int64_t first, int64_t last);
  void (*run)(const Parallel& self, int64_t units, int64_t grain, Body body, void* argument);
  int64_t threads;
};

// The kernels of one instruction set, for vectors of so many bytes. `first` and `second` are the role's operands: (x, w), (y, w) or
// (x, y).
struct Kernels {
  const char* name;
  int64_t vector_bytes;
  int64_t (*scratch_bytes)(Role role, Type type, const Problem& problem);
  void (*run)(Role role, Type type, const Problem& problem, const void* first, const void* second, void* result, void* scratch,
              const Parallel& parallel);
};

}  // namespace gconv
