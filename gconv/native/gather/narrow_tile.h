// The register tile of roles y and x of narrow groups: Q results of one row by K filters of the group, one
// vector of lanes each:
//
//   for each tap:  K loads of weights;  for each of Q results: 1 load of x, K multiply-adds
//
// which is K + Q loads for K * Q multiply-adds: 7 for 12 with four filters (K = 4, Q = 3), 10 for 24 with 32
// registers (Q = 6), 11 for 24 with eight filters (Q = 3). Two multiply-adds a cycle of latency 4 need 8
// running sums, and 16 registers hold 12 besides the weights.
//
// A sum over the channels of a group is a sum of lanes, done once per result after all taps: in a tree (see
// lanes.h) where a group has 2, 4 or 8 lanes and as many filters, or twice as many, and where all lanes that
// are loaded are one group's. Where a group has one lane it is a result already.
//
// A lane is a number, or a pair of channels (vectors/products.h); or two channels of bfloat16 as numbers, the
// even ones of a block in one vector and the odd ones in the next (vectors/strand.h). Trees are two there, of
// even filters and of odd ones, whose results are rounded together.

#pragma once

#include "gather/finish.h"
#include "vectors/strand.h"

namespace gconv {
namespace {

struct TapOfRow {  // offsets in bytes, so that a tap costs no multiplication
  int64_t source;  // of the first result's source
  int64_t weights;
  uint32_t mask;  // of the results that meet a source
};

template <class E, int Q, int K, bool EDGE>
ALWAYS_INLINE void accumulate(Vector<E> (&sums)[Q][K], const E* x, int64_t step, const TapOfRow* taps,
                              int64_t count, const E* weights) {
  constexpr int L = LANES<E>;
  int64_t step3 = 3 * step;
  for (int64_t t = 0; t < count; ++t) {
    // Every third source has a register; the next two are at one and two steps from it. (The compiler would
    // else compute each.)
    const char* from[(Q + 2) / 3];
    from[0] = reinterpret_cast<const char*>(x) + taps[t].source;
    UNROLL for (int i = 1; i < (Q + 2) / 3; ++i) {
      from[i] = from[i - 1] + step3;
      __asm__("" : "+r"(from[i]));
    }
    const E* w = reinterpret_cast<const E*>(reinterpret_cast<const char*>(weights) + taps[t].weights);
    uint32_t mask = taps[t].mask;
    auto source = [&](int q) __attribute__((always_inline)) {
      return load(reinterpret_cast<const E*>(from[q / 3] + q % 3 * step));
    };
    if constexpr (Q < K &&
                  !EDGE) {  // the sources are fewer: they stay in registers, and each weight comes and goes
      Vector<E> sources[Q];
      UNROLL for (int q = 0; q < Q; ++q) sources[q] = source(q);
      UNROLL for (int k = 0; k < K; ++k) {
        Vector<E> weight = load(w + k * L);
        UNROLL for (int q = 0; q < Q; ++q) add_product<E>(sums[q][k], sources[q], weight);
      }
      continue;
    }
    Vector<E> weight[K];
    UNROLL for (int k = 0; k < K; ++k) weight[k] = load(w + k * L);
    UNROLL for (int q = 0; q < Q; ++q) {
      if (EDGE && !(mask >> q & 1)) continue;
      Vector<E> ours = source(q);
      UNROLL for (int k = 0; k < K; ++k) add_product<E>(sums[q][k], ours, weight[k]);
    }
  }
}

// What becomes of a tile's sums: the lanes of each group are added up, and the results stored.
template <class E>
class LaneSums {
  using A = Wide<E>;
  static constexpr int L = LANES<E>;
  const Plan& plan;
  const Gather& g;
  const Lanes<E>& lanes;
  const Results<A> results;
  const Type type;
  const int64_t steps;  // lanes of a group's sources
  const bool alone;     // whether the lanes that are loaded are one group's
  const bool in_twos;   // whether the even and the odd one of two neighbouring channels are rounded at once

  bool lane_is_result() const { return steps == 1 && (g.results == 2 || g.results == 4); }
  bool in_vectors() const { return plan.tree || (lane_is_result() && !alone); }

 public:
  // Whether results are stored as elements of the operands' type. Others of half precision are numbers, in a
  // buffer: to round them one by one would take long.
  const bool at_once;

  LaneSums(const Plan& plan, const Gather& g, const Lanes<E>& lanes, const Finish<A>& finish, int64_t steps,
           Type type)
      : plan(plan), g(g), lanes(lanes), results(finish.results), type(type), steps(steps),
        alone(lanes.vectors > 1 || g.groups == 1 || steps == L),
        in_twos(plan.even_odd || (type == Type::bf16 && g.sources == 1 && g.results == 2)),
        at_once(in_place<E>(type) || in_twos || (type == Type::f16 && in_vectors())) {}

  // Of K filters of a block's groups, as sums of lanes. Those of the first pixel are stored from `to` on, and
  // those of each next one `step` elements later.
  template <int Q, int K>
  ALWAYS_INLINE void add_and_store(Vector<E> (&sums)[Q][K], int64_t count, int64_t block, char* to,
                                   int64_t step) const {
    int64_t groups = lanes.groups_in(block);
    const Results<A> out = results;
    const bool rounds = type == Type::f16 && at_once;  // stays in a register, as `out` does
    auto put = [&](int64_t offset, Vector<E> v, int64_t left, bool streams) __attribute__((always_inline)) {
      if constexpr (TERMS<E> == 2) return out.store(reinterpret_cast<Bf16*>(to) + offset, v, left, streams);
      if constexpr (sizeof(A) == 4)
        if (rounds) return out.store(reinterpret_cast<F16*>(to) + offset, v, left, streams);
      out.store(reinterpret_cast<A*>(to) + offset, v, left, streams);
    };
    auto put_one = [&](int64_t offset, A sum) __attribute__((always_inline)) {
      out.store_one(reinterpret_cast<Stored<E>*>(to) + offset, sum);
    };
    std::make_index_sequence<L> all;
    if constexpr (std::is_same_v<E, float> && K != 3)
      if (in_twos) return add_and_store_twos(sums, count, groups, reinterpret_cast<Bf16*>(to), step);
    if constexpr (K != 3 && K >= 2 && K < L) {
      if (plan.tree && plan.vectors == K) {
        constexpr int VECTORS = K * TERMS<E> > L ? 1 : TERMS<E>;
        bool streams = in_place<E>(type) && plan.streams &&
                       out.template whole_lines<Stored<E>, VECTORS>(reinterpret_cast<Stored<E>*>(to),
                                                                    g.result_channels());
        UNROLL for (int q = 0; q < Q; ++q) {
          if (q >= count) break;
          int64_t left = groups * K, at = q * step;
          if constexpr (TERMS<E> == 2)
            if (2 * steps == K) {  // two trees, of half the filters each, whose results are zipped by groups
              add_lanes<K / 4>(sums[q], all);
              add_lanes<K / 4>(reinterpret_cast<Vector<E>(&)[K / 2]>(sums[q][K / 2]), all);
              put(at, zip_by<K / 2, 0>(sums[q][0], sums[q][K / 2], all), left, streams);
              if (left > L) put(at + L, zip_by<K / 2, 1>(sums[q][0], sums[q][K / 2], all), left - L, streams);
              continue;
            }
          add_lanes<K / 2>(sums[q], all);
          put(at, sums[q][0], left, streams);
        }
        return;
      }
    }
    if constexpr (K == 8) return;  // these are trees
    if (alone) {
      constexpr int TREES = (Q * K + L - 1) / L;
      A sum[TREES * L];
      // The lanes that a single narrow group leaves over hold the next pixel's channels.
      bool some = lanes.vectors == 1 && steps < L;
      UNROLL for (int tree = 0; tree < TREES; ++tree) {
        Vector<E> part[L];
        UNROLL for (int i = 0; i < L; ++i) {
          int at = tree * L + i;
          part[i] = at < Q * K ? sums[at / K % Q][at % K] : Vector<E>{};
          if (some) part[i] = first_of(part[i], steps);
        }
        add_lanes<L / 2>(part, all);
        store(sum + tree * L, part[0]);
      }
      for (int64_t q = 0; q < count; ++q) UNROLL
      for (int f = 0; f < K; ++f) put_one(q * step + f, sum[q * K + f]);
      return;
    }
    if constexpr (K == 2 || K == 4)
      if (lane_is_result()) {  // side by side they lie by filters
        UNROLL for (int q = 0; q < Q; ++q) {
          if (q >= count) break;
          zip<K / 2>(sums[q], all);
          UNROLL for (int k = 0; k < K; ++k)
            if (int64_t left = groups * K - k * L; left > 0) put(q * step + k * L, sums[q][k], left, false);
        }
        return;
      }
    if constexpr (K == 1 && L > 2)
      if (steps == 2 && g.results == 1) {
        UNROLL for (int q = 0; q < Q; ++q) {
          if (q >= count) break;
          Vector<E> sum = every_other<0>(sums[q][0] + swap_neighbours(sums[q][0], all), all);
          put(q * step, sum, groups, false);
        }
        return;
      }
    A lane[Q][K][L];
    memcpy(lane, sums, sizeof lane);
    for (int64_t q = 0; q < count; ++q)
      for (int64_t group = 0; group < groups; ++group)
        for (int64_t f = 0; f < K; ++f) {
          A sum = lane[q][f][group * steps];
          for (int64_t j = 1; j < steps; ++j) sum += lane[q][f][group * steps + j];
          put_one(q * step + group * g.results + f, sum);
        }
  }

 private:
  // The same in bfloat16, where even channels are the lower halves of words and odd ones the upper halves.
  template <int Q, int K>
  ALWAYS_INLINE void add_and_store_twos(Vector<E> (&sums)[Q][K], int64_t count, int64_t groups, Bf16* to,
                                        int64_t step) const {
    const Results<A> out = results;
    if constexpr (K == 1) {
      UNROLL for (int q = 0; q < Q; ++q)
        if (q < count) out.store(to + q * step, sums[q][0], groups, false);
    } else {
      const EvenOddStrand strand;
      bool streams = plan.streams && out.template whole_lines<Bf16, 2>(to, g.result_channels());
      UNROLL for (int q = 0; q < Q; ++q) {
        if (q >= count) break;
        Vector<E> even[K / 2], odd[K / 2];
        UNROLL for (int i = 0; i < K / 2; ++i) even[i] = sums[q][2 * i], odd[i] = sums[q][2 * i + 1];
        if constexpr (K > 2) {
          std::make_index_sequence<L> all;
          add_lanes<K / 4>(even, all), add_lanes<K / 4>(odd, all);
        }
        out.store_strand(strand, to + q * step, EvenOdd{even[0], odd[0]}, groups * K, streams);
      }
    }
  }
};

}  // namespace
}  // namespace gconv
