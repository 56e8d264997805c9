// Roles y and x of depthwise convolution (see depthwise.h): the register tile holds the sums of Q results, and each run of taps loads
// its K weights once.

#pragma once

#include "depthwise.h"

namespace gconv {
namespace {

template <class T>
class GatherDepthwise {
  using A = Wide<T>;
  static constexpr int L = LANES<A>;
  const Problem& p;
  Gather g;
  int64_t channels, vectors;
  Cuts cuts;

 public:
  GatherDepthwise(Role role, const Problem& p)
      : p(p), g(role, p, TILE / 2), channels(p.groups), vectors(ceil_div(channels, L)), cuts(g, channels, sizeof(T)) {}

  // The kernel is used as it is, unless its elements are to be widened.
  int64_t scratch_bytes() const { return sizeof(T) == sizeof(A) ? 0 : g.taps * channels * (int64_t)sizeof(A); }

  void run(const T* x, const T* w, T* result, void* scratch, const Parallel& parallel) const {
    const A* weights = reinterpret_cast<const A*>(w);
    if (sizeof(T) != sizeof(A)) {
      A* wide = static_cast<A*>(scratch);
      for (int64_t i = 0; i < g.taps * channels; ++i) wide[i] = value(w[i]);
      weights = wide;
    }
    // Neighbouring units are neighbouring rows of one cut. Channels are shared out only where there are few rows.
    int64_t rows = g.axis[0].results * g.axis[1].results, all = g.batch * cuts.count * rows;
    int64_t chunks = maximum(1, minimum(vectors / 4, 4 * parallel.threads / maximum(all, 1)));
    int64_t work = minimum(cuts.size * g.axis[2].phases.size * g.taps * ceil_div(vectors, chunks), 1 << 20);
    for_ranges(parallel, all * chunks, work, [&](int64_t first, int64_t last) {
      Rows of(p, g, cuts.size);
      for (int64_t unit = first; unit < last; ++unit) {
        int64_t row = unit % rows, chunk = unit / rows % chunks, rest = unit / rows / chunks;
        int64_t from = vectors * chunk / chunks, to = vectors * (chunk + 1) / chunks;
        of.row(rest / cuts.count, row, rest % cuts.count, [&](const Tile& t) {
          return t.left > HALF_TILE ? tile<TILE>(t, from, to, x, weights, result) : tile<HALF_TILE>(t, from, to, x, weights, result);
        });
      }
    });
  }

 private:
  template <int Q>
  int64_t tile(const Tile& t, int64_t from, int64_t to, const T* x, const A* weights, T* result) const {
    for (int64_t v = from; v < to; ++v) {
      fetch_sources(t, x + v * L, g.axis[2], channels, Q, v);
      with_stride(g.axis[2], t.edge || t.left < Q, (v + 1) * L > channels, [&](auto stride, auto edge, auto part) {
        sum<Q, stride, edge, part>(t, channels - v * L, x + t.source + v * L, weights + v * L, result + t.result + v * L);
      });
    }
    return Q;
  }

  template <int Q, int STRIDE, bool EDGE, bool PART>
  __attribute__((noinline)) void sum(const Tile& t, int64_t lanes, const T* x, const A* weights, T* to) const {
    const Axis& width = g.axis[2];
    int64_t between = apart<STRIDE>(width);
    Vector<T> sums[Q] = {};
    for (const Run* r = t.runs; r < t.runs + t.count; ++r) {
      uint64_t valid = EDGE ? valid_sources(r->column + t.column, between, width.sources) : 0;
#define CASE(K)                                                                                          \
  case K: {                                                                                              \
    Vector<T> weight[K];                                                                                 \
    UNROLL for (int k = 0; k < K; ++k) {                                                                 \
      const A* at = weights + r->weights + k * t.weight_step;                                            \
      weight[k] = PART ? load_first(at, lanes) : load(at);                                               \
    }                                                                                                    \
    slide<T, Q, K, STRIDE, EDGE, PART>(                                                                  \
        x + r->source, between * channels, valid, lanes,                                                    \
        [&](Vector<T> source, int k, int q) __attribute__((always_inline)) { sums[q] += source * weight[k]; }); \
    break;                                                                                               \
  }
      switch (r->taps) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) }
#undef CASE
    }
    UNROLL for (int q = 0; q < Q; ++q, to += width.step * channels) {
      if (EDGE && q >= t.left) break;
      PART ? store_first(to, sums[q], lanes) : store(to, sums[q]);
    }
  }
};

}  // namespace
}  // namespace gconv
