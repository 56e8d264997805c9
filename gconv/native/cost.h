// What a plan costs: a model of its loops, by which the choice among the kernels that can do a problem is
// made.
//
// The model counts what the loops do and multiplies it by prices, which were fitted to measured times. It
// need not tell the time, only which of two kernels is faster.

#pragma once

#include "plan.h"

namespace gconv {

// What the loops of a plan do: in roles y and x of IMAGES images, so that the choice does not depend on the
// batch and an image has the same bits alone and in any batch; in role w of the batch, which it sums over.
// Two are between one and many: with four, Winograd took 512 channels of 7 x 7 images, whose packed kernel
// alone takes twice as long as all plain sums of one image.
constexpr int64_t IMAGES = 2;
struct Counts {
  double vectors;  // multiply-adds of vectors in the innermost loops, or loads where these are more
  double starts;   // of an innermost loop
  double tiles;    // register tiles; role w: times that a tile is added to its partial sums
  double numbers;  // that are handled one by one, of offset tables, borders and sums of lanes
  double packed;   // vectors of the packed kernel; role w: of partial sums, and of sources read as numbers
};

Counts count(Role role, Type type, const Problem& problem, const Plan& plan, int64_t registers);

// Cycles of one processor, of which a vector of 64 bytes takes twice as many with `two_passes`.
double cost_of(Role role, const Plan& plan, const Counts& counts, bool two_passes);

// Cycles if all lanes of the best vectors were used and nothing had to be loaded.
double least_cost(Role role, Type type, const Problem& problem, const Processor& processor);

}  // namespace gconv
