// Roles y and x of depthwise convolution (see nest.h): the register tile holds the sums of Q results by V
// strands of channels, and each run of taps loads its K * V weights once; or of Q results in each of two
// rows.

#pragma once

#include "depthwise/nest.h"
#include "gather/finish.h"

namespace gconv {
namespace {

template <class S>
class GatherDepthwise {
  using T = typename S::Element;
  using Numbers = typename S::Numbers;
  static constexpr int L = S::LANES;
  static constexpr bool ENDS = std::is_same_v<T, Wide<T>>;  // whether what follows may be done in registers
  // Tiles that fill lines of the cache one after the other: in half precision AVX2's have half of each.
  static constexpr int TILES_OF_LINE = sizeof(T) == 2 ? 2 : 1;
  const Plan& plan;
  const Problem& p;
  Gather g;
  const Finish<Wide<T>>& finish;
  int64_t channels, strands;
  bool ends;  // whether it is

 public:
  GatherDepthwise(const Plan& plan, Role role, const Problem& p, const Finish<Wide<T>>& finish)
      : plan(plan), p(p), g(role, p, plan.dilated_phases), finish(finish), channels(p.groups),
        strands(ceil_div(channels, L)), ends(finish.ending.any && channels >= L) {}

  void run(const void* sources, const void* kernel, void* results, const Scratch&,
           const Parallel& parallel) const {
    const T *x = static_cast<const T*>(sources), *weights = static_cast<const T*>(kernel);
    T* result = static_cast<T*>(results);
    // Neighbouring units are neighbouring rows. Channels are shared out only where there are few rows.
    int64_t rows = Rows::units(plan, g), in_row = Rows::in_row(plan, g), all = g.batch * in_row * rows;
    int64_t parts = maximum(1, minimum(strands / 4, 4 * parallel.threads / maximum(all, 1)));
    int64_t work = plan.rows * plan.stretch * g.axis[2].phases.size * g.taps * ceil_div(strands, parts);
    bool paired = plan.vectors == 2;
    int64_t longest = longest_run<S>(g.axis[2], channels);
    for_ranges(parallel, all * parts, minimum(work, 1 << 20), [&](int64_t first, int64_t last) {
      Rows of(plan, p, g, plan.tile, longest);
      for (int64_t unit = first; unit < last; ++unit) {
        int64_t row = unit % rows, part = unit / rows % parts, rest = unit / rows / parts;
        int64_t from = strands * part / parts, to = strands * (part + 1) / parts;
        int64_t channel = from * L, step = g.axis[2].step * channels;
        auto finished = [&](const Tile& t, int64_t done,
                            int64_t rows) {  // while it lies in the nearest cache
          for (int64_t r = 0; r < rows && finish.any() && !ends; ++r)
            finish.tile({nullptr, t.result + r * t.next + channel, step}, minimum(done, t.left), channel,
                        minimum(to * L, channels) - channel);
          return done;
        };
        auto sum_one = [&](const Tile& t) {
          if (channels < L) return tile_of_part<HALF_TILE>(t, x, weights, result);
          if constexpr (S::VECTORS == 2)
            return plan.near ? tile<HALF_TILE, 1, true>(t, from, to, x, weights, result)
                             : tile<HALF_TILE, 1>(t, from, to, x, weights, result);
          if constexpr (S::VECTORS == 1) {
            if (paired && plan.near) return tile<HALF_TILE, 2, true>(t, from, to, x, weights, result);
            if (paired) return tile<HALF_TILE, 2>(t, from, to, x, weights, result);
            if (plan.tile == HALF_TILE || t.left <= HALF_TILE)
              return tile<HALF_TILE, 1>(t, from, to, x, weights, result);
            return tile<TILE, 1>(t, from, to, x, weights, result);
          }
        };
        auto sum_both = [&](const Tile& t) -> int64_t {
          if constexpr (S::VECTORS == 2) return t.left;  // strands of two vectors have no rows in pairs
          return plan.near ? tile_of_two<HALF_TILE, true>(t, from, to, x, weights, result)
                           : tile_of_two<HALF_TILE, false>(t, from, to, x, weights, result);
        };
        auto one = [&](const Tile& t) { return finished(t, sum_one(t), 1); };
        auto two = [&](const Tile& t) { return finished(t, sum_both(t), 2); };
        of.unit(rest / in_row, row, rest % in_row, one, two);
      }
      fence();
    });
  }

 private:
  template <int Q, int V, bool NEAR = false>
  int64_t tile(const Tile& t, int64_t from, int64_t to, const T* x, const T* weights, T* result) const {
    bool streams =
        plan.streams && !ends &&
        finish.results.template whole_lines<T, TILES_OF_LINE * V * S::VECTORS>(result + from * L, channels);
    auto some = [&](auto count, int64_t v) {
      fetch_sources<NEAR>(t, x, Q, v, count);
      Together at = together<S, count>(v, channels);
      bool edge = t.edge || t.left < Q, whole = streams && count == V;
      with_stride(g.axis[2], [&](auto stride) {
        if constexpr (Q == TILE && stride == 2)  // as fast with the test for edges
          sum<Q, count, stride, true>(t, at, x, weights, result, whole);
        else
          edge ? sum<Q, count, stride, true>(t, at, x, weights, result, whole)
               : sum<Q, count, stride, false>(t, at, x, weights, result, whole);
      });
    };
    int64_t v = from;
    for (; v + V <= to; v += V) some(Number<V>{}, v);
    for (; v < to; ++v) some(Number<1>{}, v);
    return Q;
  }

  template <int Q, bool NEAR>
  int64_t tile_of_two(const Tile& t, int64_t from, int64_t to, const T* x, const T* weights,
                      T* result) const {
    bool streams = plan.streams && !ends &&
                   finish.results.template whole_lines<T, S::VECTORS>(result + from * L, channels);
    for (int64_t v = from; v < to; ++v) {
      fetch_sources<NEAR>(t, x, Q, v, 1);
      int64_t first = together<S, 1>(v, channels).first;
      if constexpr (REGISTERS == 32 && S::VECTORS == 1)
        t.edge || t.left < Q ? sum_two<Q, true>(t, first, x, weights, result, streams)
                             : sum_two<Q, false>(t, first, x, weights, result, streams);
    }
    return Q;
  }

  template <bool NEAR>
  ALWAYS_INLINE void fetch_sources(const Tile& t, const T* x, int64_t pixels, int64_t first,
                                   int64_t count) const {
    for (int64_t v = first; v < first + count && plan.past_caches; ++v)
      gconv::fetch_sources<NEAR, S>(t, x + v * L, g.axis[2], channels, pixels, v);
  }

  template <int Q, int V, int STRIDE, bool EDGE>
  __attribute__((noinline)) void sum(const Tile& t, Together at, const T* x, const T* weights, T* to,
                                     bool streams) const {
    const S strand;
    const Axis& width = g.axis[2];
    int64_t last = at.last;
    x += t.source + at.first, weights += at.first, to += t.result + at.first;
    int64_t between = distance(width);
    Numbers sums[Q][V] = {};
    for (const Run* r = t.runs; r < t.runs + t.count; ++r) {
      uint64_t valid = r->valid;
      with_taps<V == 2 ? PAIRED_RUN : longest_run<S>(STRIDE)>(
          r->taps, [&](auto taps) __attribute__((always_inline)) {
            constexpr int K = taps;
            Numbers weight[K][V];
            UNROLL for (int k = 0; k < K; ++k) UNROLL
            for (int v = 0; v < V; ++v)
              weight[k][v] = strand.load(weights + r->weights + k * t.weight_step +
                                         (V > 1 && v == V - 1 ? last : v * L));
            slide<Q, K, STRIDE, EDGE, false, V>(
                strand, x + r->source, between * channels, valid,
                last, [&](Numbers source, int v, int k, int q) __attribute__((always_inline)) {
                  S::add_product(sums[q][v], source, weight[k][v]);
                });
          });
    }
    int64_t step = width.step * channels;
    auto to_pixel = [&](int q) __attribute__((always_inline)) {
      return to + (EDGE && q >= t.left ? 0 : q * step);
    };
    auto offset = [&](int v) __attribute__((always_inline)) { return V > 1 && v == V - 1 ? last : v * L; };
    if constexpr (ENDS)
      if (ends) {
        UNROLL for (int v = 0; v < V; ++v)
          finish.ending.template column<true>(sums, v, to_pixel, offset(v), at.first + offset(v), L);
      }
    UNROLL for (int q = 0; q < Q; ++q) {
      if (EDGE && q >= t.left) break;
      UNROLL for (int v = 0; v < V; ++v)
        finish.results.store_strand(strand, to_pixel(q) + offset(v), sums[q][v], L, streams);
    }
  }

  template <int Q, bool EDGE>
  __attribute__((noinline)) void sum_two(const Tile& t, int64_t channel, const T* x, const T* weights, T* to,
                                         bool streams) const {
    const S strand;
    x += t.source + channel, weights += channel, to += t.result + channel;
    Numbers sums[Q][2] = {};  // of the first row, and of the second
    for (const Run* r = t.runs; r < t.runs + t.count; ++r) {
      uint64_t valid = r->valid;
      with_number<TWO_ROWS_RUN>(
          r->taps, [&](auto taps) __attribute__((always_inline)) {
            constexpr int K = taps;
            Numbers w1[K], w2[K];
            auto weigh = [&](Numbers(&weight)[K], int64_t from) __attribute__((always_inline)) {
              UNROLL for (int k = 0; k < K; ++k) weight[k] = strand.load(weights + from + k * t.weight_step);
            };
            auto pass = [&](const auto& meet) __attribute__((always_inline)) {
              slide<Q, K, 1, EDGE, false>(strand, x + r->source, channels, valid, 0, meet);
            };
            if (r->second == NONE) {
              weigh(w1, r->weights);
              pass([&](Numbers source, int, int k, int q)
                       __attribute__((always_inline)) { S::add_product(sums[q][0], source, w1[k]); });
            } else if (r->weights == NONE) {
              weigh(w2, r->second);
              pass([&](Numbers source, int, int k, int q)
                       __attribute__((always_inline)) { S::add_product(sums[q][1], source, w2[k]); });
            } else {
              weigh(w1, r->weights), weigh(w2, r->second);
              pass([&](Numbers source, int, int k, int q) __attribute__((always_inline)) {
                S::add_product(sums[q][0], source, w1[k]), S::add_product(sums[q][1], source, w2[k]);
              });
            }
          });
    }
    auto to_pixel = [&](int q) __attribute__((always_inline)) {
      return to + (EDGE && q >= t.left ? 0 : q * channels);
    };
    if constexpr (ENDS)
      if (ends) {
        UNROLL for (int row = 0; row < 2; ++row)
          finish.ending.template column<true>(sums, row, to_pixel, row * t.next, channel, L);
      }
    UNROLL for (int q = 0; q < Q; ++q) {
      if (EDGE && q >= t.left) break;
      UNROLL for (int row = 0; row < 2; ++row)
        finish.results.store_strand(strand, to_pixel(q) + row * t.next, sums[q][row], L, streams);
    }
  }

  // Of fewer channels than a strand has lanes, one tap at a time.
  template <int Q>
  __attribute__((noinline)) int64_t tile_of_part(const Tile& t, const T* x, const T* weights,
                                                 T* result) const {
    const S strand;
    const Axis& width = g.axis[2];
    Numbers sums[Q] = {};
    for (const Run* r = t.runs; r < t.runs + t.count; ++r) {
      uint64_t valid = r->valid;
      Numbers weight = strand.load_first(weights + r->weights, channels);
      slide<Q, 1, 1, true, true>(
          strand, x + t.source + r->source, width.stride * channels, valid,
          channels, [&](Numbers source, int, int, int q) __attribute__((always_inline)) {
            S::add_product(sums[q], source, weight);
          });
    }
    const Results<Wide<T>> out = finish.results;
    T* to = result + t.result;
    UNROLL for (int q = 0; q < Q; ++q, to += width.step * channels) {
      if (q >= t.left) break;
      out.store_strand(strand, to, sums[q], channels, false);
    }
    return Q;
  }
};

}  // namespace
}  // namespace gconv
