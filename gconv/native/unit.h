// The kernels of one length of vectors of one instruction set, for the types whose sums are formed in float
// or in double, or those of wide groups that take pairs of bfloat16: unit.cc, compiled once for each.

#pragma once

#include "epilogue.h"
#include "plan.h"

namespace gconv {

struct Unit {
  Vectors vectors;
  // Executes a plan for these vectors. `first` and `second` are the role's operands: (x, w), (y, w) or (x,
  // y), of type `type`. Role w has no epilogue. False where there is no memory for the lists that a kernel
  // works with: the call has begun and was left.
  bool (*run)(const Plan& plan, Type type, Role role, const Problem& problem, const void* first,
              const void* second, void* result, const Scratch& scratch, const Epilogue& epilogue,
              const Parallel& parallel);
};

// `float` for float32, bfloat16 and float16, `double` for float64.
#define GCONV_UNITS(set) extern const Unit set##_float, set##_double

#define GCONV_PAIRS(set) extern const Unit set##_pairs

GCONV_UNITS(baseline);
GCONV_UNITS(avx2);
GCONV_UNITS(avx512);
extern const Unit avx512_short_float;  // float64 takes avx2's
GCONV_PAIRS(avx512);
GCONV_PAIRS(avx512_short);

}  // namespace gconv
