// Roles y and x of depthwise convolution (see nest.h): the register tile holds the sums of Q results by V
// vectors of channels, and each run of taps loads its K * V weights once; or of Q results in each of two
// rows.

#pragma once

#include "depthwise/nest.h"

namespace gconv {
namespace {

template <class T>
class GatherDepthwise {
  using A = Wide<T>;
  static constexpr int L = LANES<A>;
  const Plan& plan;
  const Problem& p;
  Gather g;
  int64_t channels, vectors;

 public:
  GatherDepthwise(const Plan& plan, Role role, const Problem& p)
      : plan(plan), p(p), g(role, p, plan.dilated_phases), channels(p.groups),
        vectors(ceil_div(channels, L)) {}

  void run(const T* x, const T* w, T* result, void* scratch, const Parallel& parallel) const {
    const A* weights = reinterpret_cast<const A*>(w);
    if (plan.packed) {
      A* wide = static_cast<A*>(scratch);
      for (int64_t i = 0; i < plan.packed; ++i) wide[i] = value(w[i]);
      weights = wide;
    }
    // Neighbouring units are neighbouring rows. Channels are shared out only where there are few rows.
    int64_t rows = Rows::units(plan, g), in_row = Rows::in_row(plan, g), all = g.batch * in_row * rows;
    int64_t parts = maximum(1, minimum(vectors / 4, 4 * parallel.threads / maximum(all, 1)));
    int64_t work = plan.rows * plan.stretch * g.axis[2].phases.size * g.taps * ceil_div(vectors, parts);
    bool paired = plan.vectors == 2;
    for_ranges(parallel, all * parts, minimum(work, 1 << 20), [&](int64_t first, int64_t last) {
      Rows of(plan, p, g, plan.tile);
      for (int64_t unit = first; unit < last; ++unit) {
        int64_t row = unit % rows, part = unit / rows % parts, rest = unit / rows / parts;
        int64_t from = vectors * part / parts, to = vectors * (part + 1) / parts;
        auto one = [&](const Tile& t) {
          return paired && plan.near ? tile<HALF_TILE, 2, false, true>(t, from, to, x, weights, result)
                 : paired            ? tile<HALF_TILE, 2>(t, from, to, x, weights, result)
                 : plan.tile == HALF_TILE || t.left <= HALF_TILE
                     ? tile<HALF_TILE, 1>(t, from, to, x, weights, result)
                     : tile<TILE, 1>(t, from, to, x, weights, result);
        };
        auto two = [&](const Tile& t) {
          return plan.near ? tile<HALF_TILE, 1, true, true>(t, from, to, x, weights, result)
                           : tile<HALF_TILE, 1, true>(t, from, to, x, weights, result);
        };
        of.unit(rest / in_row, row, rest % in_row, one, two);
      }
      fence();
    });
  }

 private:
  template <int Q, int V, bool TWO = false, bool NEAR = false>
  int64_t tile(const Tile& t, int64_t from, int64_t to, const T* x, const A* weights, T* result) const {
    bool streams = plan.past_caches && whole_lines<T, V>(result + from * L, channels);
    auto some = [&](auto count, int64_t v) {
      if (plan.past_caches)
        for (int u = 0; u < count; ++u)
          fetch_sources<NEAR>(t, x + (v + u) * L, g.axis[2], channels, Q, v + u);
      with_stride(g.axis[2], t.edge || t.left<Q, (v + count) * L> channels,
                  [&](auto stride, auto edge, auto part) {
                    const T* sources = x + t.source + v * L;
                    if constexpr (!TWO)
                      sum<Q, count, stride, edge, part>(t, channels - v * L, sources, weights + v * L,
                                                        result + t.result + v * L, streams && count == V);
                    else if constexpr (stride == 1 && REGISTERS == 32)
                      sum_two<Q, edge, part>(t, channels - v * L, sources, weights + v * L,
                                             result + t.result + v * L, streams);
                  });
    };
    int64_t v = from;
    for (; v + V <= to; v += V) some(Number<V>{}, v);
    for (; v < to; ++v) some(Number<1>{}, v);
    return Q;
  }

  template <int Q, int V, int STRIDE, bool EDGE, bool PART>
  __attribute__((noinline)) void sum(const Tile& t, int64_t lanes, const T* x, const A* weights, T* to,
                                     bool streams) const {
    const Axis& width = g.axis[2];
    int64_t between = apart<STRIDE>(width);
    Vector<T> sums[Q][V] = {};
    for (const Run* r = t.runs; r < t.runs + t.count; ++r) {
      uint64_t valid = EDGE ? valid_sources(r->column + t.column, between, width.sources) : 0;
#define CASE(K)                                                                            \
  case K: {                                                                                \
    if constexpr (V > 1 && K > PAIRED_RUN) break;                                          \
    Vector<T> weight[K][V];                                                                \
    UNROLL                                                                                 \
    for (int k = 0; k < K; ++k) UNROLL                                                     \
    for (int v = 0; v < V; ++v) {                                                          \
      const A* at = weights + r->weights + k * t.weight_step + v * L;                      \
      weight[k][v] = PART ? load_first(at, lanes - v * L) : load(at);                      \
    }                                                                                      \
    slide<T, Q, K, STRIDE, EDGE, PART, V>(                                                 \
        x + r->source, between * channels, valid,                                          \
        lanes, [&](Vector<T> source, int v, int k, int q) __attribute__((always_inline)) { \
          sums[q][v] += source * weight[k][v];                                             \
        });                                                                                \
    break;                                                                                 \
  }
      switch (r->taps) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) }
#undef CASE
    }
    int64_t step = width.step * channels;
    UNROLL for (int q = 0; q < Q; ++q, to += step) {
      if (EDGE && q >= t.left) break;
      UNROLL for (int v = 0; v < V; ++v) {
        if (PART)
          store_first(to + v * L, sums[q][v], lanes - v * L);
        else
          streams ? stream(to + v * L, sums[q][v]) : store(to + v * L, sums[q][v]);
      }
    }
  }

  template <int Q, bool EDGE, bool PART>
  __attribute__((noinline)) void sum_two(const Tile& t, int64_t lanes, const T* x, const A* weights, T* to,
                                         bool streams) const {
    Vector<T> first[Q] = {}, second[Q] = {};
    auto load_weights = [&](int64_t from, Vector<T>(&weight)[TWO_ROWS_RUN], int taps)
        __attribute__((always_inline)) {
      UNROLL for (int k = 0; k < taps; ++k) {
        const A* at = weights + from + k * t.weight_step;
        weight[k] = PART ? load_first(at, lanes) : load(at);
      }
    };
    for (const Run* r = t.runs; r < t.runs + t.count; ++r) {
      uint64_t valid = EDGE ? valid_sources(r->column + t.column, 1, g.axis[2].sources) : 0;
      Vector<T> w1[TWO_ROWS_RUN], w2[TWO_ROWS_RUN];
#define SLIDE(K, SUMS)                \
  slide<T, Q, K, 1, EDGE, PART>(      \
      x + r->source, channels, valid, \
      lanes, [&](Vector<T> source, int, int k, int q) __attribute__((always_inline)) { SUMS; })
#define CASE(K)                                                            \
  case K:                                                                  \
    if (r->second == NONE) {                                               \
      load_weights(r->weights, w1, K);                                     \
      SLIDE(K, first[q] += source * w1[k]);                                \
    } else if (r->weights == NONE) {                                       \
      load_weights(r->second, w2, K);                                      \
      SLIDE(K, second[q] += source * w2[k]);                               \
    } else {                                                               \
      load_weights(r->weights, w1, K);                                     \
      load_weights(r->second, w2, K);                                      \
      SLIDE(K, (first[q] += source * w1[k], second[q] += source * w2[k])); \
    }                                                                      \
    break;
      switch (r->taps) { CASE(1) CASE(2) CASE(3) }
#undef CASE
#undef SLIDE
    }
    UNROLL for (int q = 0; q < Q; ++q, to += channels) {
      if (EDGE && q >= t.left) break;
      if (PART)
        store_first(to, first[q], lanes), store_first(to + t.next, second[q], lanes);
      else
        streams ? (stream(to, first[q]), stream(to + t.next, second[q]))
                : (store(to, first[q]), store(to + t.next, second[q]));
    }
  }
};

}  // namespace
}  // namespace gconv
