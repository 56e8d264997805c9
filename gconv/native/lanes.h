// How narrow groups fill vectors: the lanes of a vector are channels of `x` (of the sources), whole groups side by side.
//
//   up to LANES channels per group    a block is one vector of as many whole groups as fit; the rest of its lanes is not used
//   more                              a block is one group, of several vectors

#pragma once

#include "vector.h"

namespace gconv {
namespace {

template <class A>
struct Lanes {
  int64_t groups, channels;            // of the whole problem
  int64_t per_block, vectors, blocks;  // groups in a block, vectors of a block, number of blocks

  Lanes(int64_t groups, int64_t channels) : groups(groups), channels(channels) {
    per_block = channels < LANES<A> ? LANES<A> / channels : 1;
    vectors = ceil_div(channels, LANES<A>);
    blocks = ceil_div(groups, per_block);
  }
  int64_t first_channel(int64_t block) const { return block * per_block * channels; }
  int64_t groups_in(int64_t block) const { return minimum(per_block, groups - block * per_block); }
  // Lanes of a block's vector that hold something.
  int64_t used(int64_t block, int64_t vector) const {
    return minimum(groups_in(block) * channels - vector * LANES<A>, LANES<A>);
  }
  // Lanes that may be loaded. A vector of one block of several must not see its neighbour's channels, which may be NaN; in a
  // block of one vector the unused lanes never meet the others.
  int64_t loaded(int64_t block, int64_t vector) const {
    if (vectors > 1) return used(block, vector);
    return minimum(groups * channels - first_channel(block), LANES<A>);
  }
};

}  // namespace
}  // namespace gconv
