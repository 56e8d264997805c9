// How narrow groups fill vectors: the lanes of a vector are channels of `x` (of the sources), whole groups
// side by side.
//
//   up to LANES channels per group    a block is one vector of as many whole groups as fit; the rest of its
//   lanes is not used more                              a block is one group, of several vectors
//
// In roles y and x a result is then a sum of lanes. Best are those that come to lie side by side as they are
// stored: add_lanes sums in a tree, of which each round makes one vector of two; zip puts the filters of a
// channel next to each other.
//
// In role w a vector that is at most half full can hold each filter twice, for two channels: twice makes it,
// broadcast_pair what it meets, and every_other takes the sums apart.

#pragma once

#include "vectors/work.h"

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
  // Lanes that may be loaded. A vector of one block of several must not see its neighbour's channels, which
  // may be NaN; in a block of one vector the unused lanes never meet the others.
  int64_t loaded(int64_t block, int64_t vector) const {
    if (vectors > 1) return used(block, vector);
    return minimum(groups * channels - first_channel(block), LANES<A>);
  }
  // Where each lane of a block's vector has its own in the kernel, whose groups and whose channels lie so far
  // apart. Returns how many lanes are used.
  int64_t offsets(int64_t block, int64_t vector, int64_t group_step, int64_t channel_step,
                  int64_t (&to)[LANES<A>]) const {
    int64_t count = used(block, vector);
    for (int64_t l = 0; l < count; ++l) {
      int64_t channel = vector * LANES<A> + l, group = channel / channels;
      to[l] = (block * per_block + group) * group_step + (channel - group * channels) * channel_step;
    }
    return count;
  }
};

// Of the first 2 * HALF vectors: lane i of every 2 * HALF lanes becomes the sum of these lanes of the i-th.
template <int HALF, class V, size_t N, size_t... LANE>
ALWAYS_INLINE void add_lanes(V (&v)[N], std::index_sequence<LANE...> all) {
  UNROLL for (int i = 0; i < HALF; ++i) {
    swap_halves<HALF>(v[i], v[i + HALF], all);
    v[i] += v[i + HALF];
  }
  if constexpr (HALF > 1) add_lanes<HALF / 2>(v, all);
}

// All first lanes of the vectors, all second lanes, and so on, with HALF that of their number.
template <int HALF, class V, size_t N, size_t... LANE>
ALWAYS_INLINE void zip(V (&v)[N], std::index_sequence<LANE...> all) {
  constexpr size_t L = sizeof...(LANE);
  UNROLL for (int i = 0; i < (int)N; ++i) {
    if (i & HALF) continue;
    V low = pick<(int)(LANE / 2 + LANE % 2 * L)...>(v[i], v[i + HALF]);
    v[i + HALF] = pick<(int)((L + LANE) / 2 + LANE % 2 * L)...>(v[i], v[i + HALF]);
    v[i] = low;
  }
  if constexpr (HALF > 1) zip<HALF / 2>(v, all);
}

// Two vectors' lanes in turn, SIZE of the one and SIZE of the other; HALF 0 is the first vector of these, 1
// the second.
template <int SIZE, int HALF, class V, size_t... LANE>
ALWAYS_INLINE V zip_by(V a, V b, std::index_sequence<LANE...>) {
  constexpr size_t L = sizeof...(LANE), FIRST = HALF * L / 2;
  return pick<(int)(FIRST + LANE / (2 * SIZE) * SIZE + LANE % SIZE + LANE / SIZE % 2 * L)...>(a, b);
}

// Two neighbours, one after the other in all lanes.
template <class A>
ALWAYS_INLINE Vector<A> broadcast_pair(const A* from) {
  Vector<A> v;
  if constexpr (sizeof(A) == 4) {
    uint64_t both;
    memcpy(&both, from, sizeof both);
    v = (decltype(v))(both - typename VectorOf<uint64_t, VECTOR_BYTES>::type{});
  } else {
    UNROLL for (int i = 0; i < LANES<A>; ++i) v[i] = from[i % 2];
  }
  return v;
}

template <class V, size_t... LANE>
ALWAYS_INLINE V swap_neighbours(V v, std::index_sequence<LANE...>) {
  return pick<(int)(LANE ^ 1)...>(v, v);
}

// The first half of the lanes, each twice; and every other lane, from FIRST on, in the first half.
template <class V, size_t... LANE>
ALWAYS_INLINE V twice(V v, std::index_sequence<LANE...>) {
  return pick<(int)(LANE / 2)...>(v, v);
}
template <int FIRST, class V, size_t... LANE>
ALWAYS_INLINE V every_other(V v, std::index_sequence<LANE...>) {
  return pick<(int)((2 * LANE + FIRST) % sizeof...(LANE))...>(v, v);
}

}  // namespace
}  // namespace gconv
