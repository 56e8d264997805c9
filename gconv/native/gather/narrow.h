// Roles y and x of narrow groups: lanes are source channels (see lanes.h).
//
// The register tile is Q results of one row by K filters of the group, one vector of lanes each:
//
//   for each tap:  K loads of weights;  for each of Q results: 1 load of x, K multiply-adds
//
// which is K + Q loads for K * Q multiply-adds: 7 for 12 with four filters (K = 4, Q = 3), 10 for 24 with 32
// registers (Q = 6), 11 for 24 with eight filters (Q = 3). Two multiply-adds a cycle of latency 4 need 8
// running sums, and 16 registers hold 12 besides the weights.
//
// A sum over the channels of a group is a sum of lanes, done once per result after all taps: in a tree (see
// lanes.h) where a group has 2, 4 or 8 channels and as many filters, and where all lanes that are loaded are
// one group's. Where a group has one channel its lanes are results already. Tiles that reach over a border
// carry a mask per tap that says which of the Q results meet a source; nothing is padded.

#pragma once

#include "gather/gather.h"
#include "vectors/lanes.h"

namespace gconv {
namespace {

struct TapOfRow {  // offsets in bytes, so that a tap costs no multiplication
  int64_t source;  // of the first result's source
  int64_t weights;
  uint32_t mask;  // of the results that meet a source
};

template <class T, int Q, int K, bool EDGE, bool PART>
ALWAYS_INLINE void accumulate(Vector<T> (&sums)[Q][K], const T* x, int64_t step, const TapOfRow* taps,
                              int64_t count, const Wide<T>* weights, int64_t lanes) {
  constexpr int L = LANES<Wide<T>>;
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
    const Wide<T>* w =
        reinterpret_cast<const Wide<T>*>(reinterpret_cast<const char*>(weights) + taps[t].weights);
    uint32_t mask = taps[t].mask;
    auto source = [&](int q) __attribute__((always_inline)) {
      const T* at = reinterpret_cast<const T*>(from[q / 3] + q % 3 * step);
      return PART ? load_first(at, lanes) : load(at);
    };
    if constexpr (Q < K &&
                  !EDGE) {  // the sources are fewer: they stay in registers, and each weight comes and goes
      Vector<T> sources[Q];
      UNROLL for (int q = 0; q < Q; ++q) sources[q] = source(q);
      UNROLL for (int k = 0; k < K; ++k) {
        Vector<T> weight = load(w + k * L);
        UNROLL for (int q = 0; q < Q; ++q) sums[q][k] += sources[q] * weight;
      }
      continue;
    }
    Vector<T> weight[K];
    UNROLL for (int k = 0; k < K; ++k) weight[k] = load(w + k * L);
    UNROLL for (int q = 0; q < Q; ++q) {
      if (EDGE && !(mask >> q & 1)) continue;
      Vector<T> ours = source(q);
      UNROLL for (int k = 0; k < K; ++k) sums[q][k] += ours * weight[k];
    }
  }
}

template <class T>
class GatherNarrow {
  using A = Wide<T>;
  static constexpr int L = LANES<A>;
  const Plan& plan;
  const Problem& p;
  Gather g;
  Lanes<A> lanes;

 public:
  GatherNarrow(const Plan& plan, Role role, const Problem& p)
      : plan(plan), p(p), g(role, p), lanes(g.groups, g.sources) {}

  void run(const T* x, const T* w, T* result, void* scratch, const Parallel& parallel) const {
    A* weights = static_cast<A*>(scratch);
    for_each(parallel, lanes.blocks, g.taps * g.results * lanes.vectors * L,
             [&](int64_t block) { pack(block, w, weights); });
    // A unit is some stretches of rows.
    int64_t longest = 0;
    for (int64_t i = 0; i < g.axis[2].phases.size; ++i) longest = maximum(longest, g.axis[2].phases[i].count);
    int64_t in_row = ceil_div(longest, plan.stretch);
    int64_t stretches = g.batch * g.axis[0].results * g.axis[1].results * in_row;
    int64_t work = minimum(longest, plan.stretch) * g.axis[2].phases.size * g.taps * g.results *
                   lanes.blocks * lanes.vectors;
    int64_t per_unit =
        maximum(1, minimum(WORK / maximum(work, 1), ceil_div(stretches, 4 * parallel.threads)));
    int64_t parts =
        minimum(lanes.blocks, maximum(1, 2 * parallel.threads / maximum(stretches, 1)));  // of the channels
    parts = maximum(1, minimum(parts, work / WORK));
    for_each(parallel, ceil_div(stretches, per_unit) * parts, 1 << 14, [&](int64_t unit) {
      int64_t part = unit % parts, first = unit / parts * per_unit,
              last = minimum(first + per_unit, stretches);
      Lists lists;
      for (int64_t i = first; i < last; ++i)
        row(i / in_row, i % in_row, lanes.blocks * part / parts, lanes.blocks * (part + 1) / parts, x,
            weights, result, lists);
      fence();
    });
  }

 private:
  struct Lists {  // of the row that is worked on, and of a tile at its border
    List<TapOfRow> taps, edge;
    List<uint32_t> masks;
  };
  static constexpr int64_t WORK = 1 << 17;  // multiply-adds of vectors in a unit

  // [block][tap][vector][filter][lane]
  void pack(int64_t block, const T* w, A* packed) const {
    A* to_block = packed + block * g.taps * tap_stride();
    for (int64_t v = 0; v < lanes.vectors; ++v) {
      int64_t offset[L], used = lanes.offsets(block, v, g.group_stride, g.source_stride, offset);
      for (int64_t tap = 0; tap < g.taps; ++tap)
        for (int64_t k = 0; k < g.results; ++k) {
          const T* from = w + tap * g.tap_stride + k * g.result_stride;
          A* to = to_block + tap * tap_stride() + (v * g.results + k) * L;
          for (int64_t l = 0; l < L; ++l) to[l] = l < used ? value(from[offset[l]]) : A{};
        }
    }
  }

  // One stretch of one row of results: which taps of the outer axes meet it, then each phase along the row.
  void row(int64_t index, int64_t stretch, int64_t from, int64_t to, const T* x, const A* weights, T* result,
           Lists& lists) const {
    const Axis &depth = g.axis[0], &height = g.axis[1], &width = g.axis[2];
    int64_t h = index % height.results, d = index / height.results % depth.results,
            n = index / height.results / depth.results;
    const Phase &dp = depth.phases[d % depth.step], &hp = height.phases[h % height.step];
    T* to_row = result + index * width.results * g.result_channels();
    for (int64_t i = 0; i < width.phases.size; ++i) {
      const Phase& wp = width.phases[i];
      lists.taps.size = 0;
      for (int64_t a = 0; a < dp.size; ++a) {
        int64_t sd = dp.taps[a].source + d / depth.step * depth.stride;
        if (sd < 0 || sd >= depth.sources) continue;
        for (int64_t b = 0; b < hp.size; ++b) {
          int64_t sh = hp.taps[b].source + h / height.step * height.stride;
          if (sh < 0 || sh >= height.sources) continue;
          for (int64_t c = 0; c < wp.size; ++c) {
            int64_t pixel =
                ((n * depth.sources + sd) * height.sources + sh) * width.sources + wp.taps[c].source;
            int64_t tap = g.tap(dp.taps[a].index, hp.taps[b].index, wp.taps[c].index, p);
            lists.taps.push({pixel * g.source_channels() * (int64_t)sizeof(T),
                             tap * tap_stride() * (int64_t)sizeof(A), 0});
          }
        }
      }
      int64_t first = stretch * plan.stretch, last = minimum(first + plan.stretch, wp.count);
      for (int64_t k = 0, filters; k < g.results; k += filters) {
        filters = minimum(plan.vectors, g.results - k);
        auto of = [&](auto count) {
          tiles<narrow_tile(REGISTERS, count), count>(wp, first, last, k, from, to, x, weights, to_row,
                                                      lists);
        };
        if constexpr (L > 8 && REGISTERS == 32)
          if (filters == 8) of(Number<8>{});
        if (filters == 4) of(Number<4>{});
        if (filters == 3) of(Number<3>{});
        if (filters == 2) of(Number<2>{});
        if (filters == 1) of(Number<1>{});
      }
    }
  }

  template <int Q, int K>
  void tiles(const Phase& phase, int64_t first, int64_t last, int64_t k, int64_t from, int64_t to, const T* x,
             const A* weights, T* row, Lists& lists) const {
    const Axis& width = g.axis[2];
    for (int64_t q = first; q < last; q += Q) {
      int64_t count = minimum(Q, last - q);
      const T* source = x + q * width.stride * g.source_channels();
      T* to_tile = row + (phase.first + q * width.step) * g.result_channels();
      if (count == Q && q >= phase.inside && q + Q <= phase.outside) {
        blocks<Q, K, false>(count, k, from, to, source, weights, to_tile, lists.taps);
        continue;
      }
      mask_taps(phase, q, count, lists);
      blocks<Q, K, true>(count, k, from, to, source, weights, to_tile, lists.edge);
    }
  }

  // The taps of a tile at a border, with their masks, which depend on the tap's column alone.
  void mask_taps(const Phase& phase, int64_t first, int64_t count, Lists& lists) const {
    const Axis& width = g.axis[2];
    lists.masks.size = lists.edge.size = 0;
    for (int64_t t = 0; t < phase.size; ++t) {
      int64_t source = phase.taps[t].source + first * width.stride;
      uint32_t mask = 0;
      for (int64_t i = 0; i < count; ++i, source += width.stride)
        mask |= uint32_t(source >= 0 && source < width.sources) << i;
      lists.masks.push(mask);
    }
    for (int64_t t = 0; t < lists.taps.size; ++t)
      if (uint32_t mask = lists.masks[t % phase.size])
        lists.edge.push({lists.taps[t].source, lists.taps[t].weights, mask});
  }

  int64_t tap_stride() const { return lanes.vectors * g.results * L; }

  template <int Q, int K, bool EDGE>
  void blocks(int64_t count, int64_t k, int64_t from, int64_t to, const T* x, const A* weights, T* tile,
              const List<TapOfRow>& taps) const {
    int64_t step = g.axis[2].stride * g.source_channels() * (int64_t)sizeof(T);
    int64_t block_stride = g.taps * lanes.vectors * g.results * L;
    // The pixels that this tile is the first to read are the next tile's, of the row furthest ahead.
    int64_t ahead = taps.size ? maximum(taps[0].source, taps[taps.size - 1].source) + Q * step : 0;
    for (int64_t block = from; block < to; ++block) {
      const T* source = x + lanes.first_channel(block);
      const A* w = weights + block * block_stride + k * L;
      if (block % 2 == 0) UNROLL
      for (int q = 0; q < Q; ++q)
        __builtin_prefetch(reinterpret_cast<const char*>(source) + ahead + q * step);
      Vector<T> sums[Q][K] = {};
      for (int64_t v = 0; v < lanes.vectors; ++v, source += L, w += g.results * L) {
        int64_t loaded = lanes.loaded(block, v);
        if (loaded == L)
          accumulate<T, Q, K, EDGE, false>(sums, source, step, taps.data, taps.size, w, L);
        else
          accumulate<T, Q, K, EDGE, true>(sums, source, step, taps.data, taps.size, w, loaded);
      }
      finish<Q, K>(sums, count, k, block, tile);
    }
  }

  // Sums the lanes of each group and stores filters k to k + K of the block's groups.
  template <int Q, int K>
  ALWAYS_INLINE void finish(Vector<T> (&sums)[Q][K], int64_t count, int64_t k, int64_t block, T* tile) const {
    int64_t step = g.axis[2].step * g.result_channels(), groups = lanes.groups_in(block);
    T* to = tile + block * lanes.per_block * g.results + k;
    std::make_index_sequence<L> all;
    if constexpr (K != 3 && K >= 2 && K < L) {
      if (plan.tree && plan.vectors == K) {
        bool streams = plan.past_caches && whole_lines<T, 1>(to, g.result_channels());
        UNROLL for (int q = 0; q < Q; ++q) {
          if (q >= count) break;
          add_lanes<K / 2>(sums[q], all);
          if (groups * K < L)
            store_first(to + q * step, sums[q][0], groups * K);
          else
            streams ? stream(to + q * step, sums[q][0]) : store(to + q * step, sums[q][0]);
        }
        return;
      }
    }
    if (lanes.vectors > 1 || g.groups == 1 ||
        g.sources == L) {  // a block is one group, and so are the lanes it loads
      constexpr int TREES = (Q * K + L - 1) / L;
      A sum[TREES * L];
      UNROLL for (int tree = 0; tree < TREES; ++tree) {
        Vector<T> part[L];
        UNROLL for (int i = 0; i < L; ++i) {
          int at = tree * L + i;
          part[i] = at < Q * K ? sums[at / K % Q][at % K] : Vector<T>{};
        }
        add_lanes<L / 2>(part, all);
        store(sum + tree * L, part[0]);
      }
      for (int64_t q = 0; q < count; ++q) UNROLL
      for (int f = 0; f < K; ++f) to[q * step + f] = rounded<T>(sum[q * K + f]);
      return;
    }
    if constexpr (K == 2 || K == 4)
      if (g.sources == 1 && g.results == K) {  // a lane is a result: side by side they lie by filters
        UNROLL for (int q = 0; q < Q; ++q) {
          if (q >= count) break;
          zip<K / 2>(sums[q], all);
          UNROLL for (int k = 0; k < K; ++k)
            if (int64_t left = groups * K - k * L; left >= L)
              store(to + q * step + k * L, sums[q][k]);
            else if (left > 0)
              store_first(to + q * step + k * L, sums[q][k], left);
        }
        return;
      }
    A lane[Q][K][L];
    memcpy(lane, sums, sizeof lane);
    for (int64_t q = 0; q < count; ++q)
      for (int64_t group = 0; group < groups; ++group)
        for (int64_t f = 0; f < K; ++f) {
          A sum = lane[q][f][group * g.sources];
          for (int64_t j = 1; j < g.sources; ++j) sum += lane[q][f][group * g.sources + j];
          to[q * step + group * g.results + f] = rounded<T>(sum);
        }
  }
};

}  // namespace
}  // namespace gconv
