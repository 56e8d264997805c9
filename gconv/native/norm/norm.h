// Batch norm of an array of rows and channels, in four passes, and the mean over pixels, in one: a pass reads
// or writes each large array once.
//
//   moments   x                           -> mean and variance of each channel
//   apply     x, factors, residual        -> y = activation(z), z = (x - mean) * scale + bias + residual
//   sums      x, factors, residual, dy    -> for each channel the sum of dz and the sum of dz * (x - mean)
//   backward  x, factors, residual, dy,
//             terms                       -> dx = scale * dz + terms[0] + terms[1] * (x - mean), and dz for
//             the residual
//   totals    x of several images         -> for each image and channel the sum
//
// dz is dy where the activation lets it pass. z is computed again rather than stored. Factors are three rows
// of one number for each channel: mean, scale and bias.

#pragma once

#include "problem.h"

namespace gconv {

enum class Pass { moments, apply, sums, backward, totals };

struct Norm {
  int64_t rows, channels;
  int64_t partitions;  // sums are formed of so many parts of the rows: their order depends on nothing else
  bool relu;
  int64_t images = 1;  // totals: each has so many rows
};

// Buffers of a pass, nullptr where it has none. `factors`, `terms` and the first result of moments, sums and
// totals hold the type that sums are formed in; all other arrays hold the pass's type.
struct NormBuffers {
  const void *x, *factors, *residual, *dy, *terms;
  void *result, *residual_result;
  double*
      partial;  // moments and sums: 2 * partitions * channels numbers, totals: images * partitions * channels
};

// False where there is no memory for the lists that a pass works with.
using RunPass = bool (*)(Pass pass, const Norm& norm, const NormBuffers& buffers, const Parallel& parallel);

// The passes with one length of vectors: norm/unit.cc, compiled once for each.
struct NormUnit {
  const char* set;  // the instruction set
  RunPass run[4];   // by type: float32, float64, bfloat16 and float16
};

extern const NormUnit norm_baseline, norm_avx2, norm_avx512;

}  // namespace gconv
