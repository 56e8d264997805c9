// Role w of wide groups: lanes are filters of one group, and each x is broadcast.
//
// The register tile is J channels by V vectors of filters of one tap, and it runs along the pixels of a patch:
//
//   for each pixel:  V loads of y;  for each of J channels: 1 broadcast load of x, V multiply-adds
//
// J + V loads for J * V multiply-adds: 8 for 12 with (J, V) = (6, 2), 9 for 8 with (8, 1).

#pragma once

#include "reduce.h"

namespace gconv {
namespace {

template <class T, int J, int V, bool PART>
void sum_products(const T* x, const T* y, const List<Segment>& segments, int64_t from, int64_t to, int64_t x_column,
                  int64_t y_column, Wide<T>* partial, int64_t channel_stride, int64_t lanes) {
  constexpr int L = LANES<Wide<T>>;
  Vector<T> sums[J][V] = {};
  for (int64_t s = 0; s < segments.size; ++s) {
    const T* theirs = x + segments[s].x + from * x_column;
    const T* ours = y + segments[s].y + from * y_column;
    for (int64_t column = from; column < to; ++column, theirs += x_column, ours += y_column) {
      Vector<T> out[V];
      UNROLL for (int v = 0; v < V; ++v) out[v] = PART && v == V - 1 ? load_first(ours + v * L, lanes) : load(ours + v * L);
      UNROLL for (int j = 0; j < J; ++j) {
        Vector<T> in = broadcast(theirs[j]);
        UNROLL for (int v = 0; v < V; ++v) sums[j][v] += in * out[v];
      }
    }
  }
  UNROLL for (int j = 0; j < J; ++j)
    UNROLL for (int v = 0; v < V; ++v) {
      Wide<T>* to_sum = partial + j * channel_stride + v * L;
      store(to_sum, load(to_sum) + sums[j][v]);
    }
}

template <class T>
class ReduceWide {
  using A = Wide<T>;
  static constexpr int L = LANES<A>;
  const Problem& p;
  int64_t vectors, taps, partial_size;  // [group][tap][channel][filter, in whole vectors]
  Patches patches;

 public:
  explicit ReduceWide(const Problem& p)
      : p(p), vectors(ceil_div(p.filters, L)), taps(p.window[0] * p.window[1] * p.window[2]),
        partial_size(p.groups * taps * p.channels * vectors * L), patches(p, pixels(p), partial_size, sizeof(A)) {}

  int64_t scratch_bytes() const { return patches.partitions * partial_size * (int64_t)sizeof(A); }

  void run(const T* x, const T* y, T* result, void* scratch, const Parallel& parallel) const {
    A* partial = static_cast<A*>(scratch);
    int64_t pieces = minimum(p.groups, ceil_div(4 * parallel.threads, patches.partitions));
    for_each(parallel, patches.partitions * pieces, 1 << 14, [&](int64_t unit) {
      int64_t partition = unit / pieces, piece = unit % pieces, size = partial_size / p.groups;
      int64_t first = p.groups * piece / pieces, last = p.groups * (piece + 1) / pieces;
      A* own = partial + partition * partial_size;
      memset(own + first * size, 0, (last - first) * size * sizeof(A));
      List<Segment> segments;
      for (int64_t i = patches.first_patch(partition); i < patches.first_patch(partition + 1); ++i)
        for (int64_t group = first; group < last; ++group) patch(i, group, x, y, own + group * size, segments);
    });
    int64_t work = p.channels * vectors * patches.partitions;
    for_each(parallel, p.groups * taps, work, [&](int64_t row) { add(row / taps, row % taps, partial, result); });
  }

 private:
  static int64_t pixels(const Problem& p) {
    return maximum(16, minimum(256, (1 << 15) / ((p.channels + p.filters) * (int64_t)sizeof(T))));
  }

  void patch(int64_t patch, int64_t group, const T* x, const T* y, A* partial, List<Segment>& segments) const {
    for (int64_t d = 0; d < p.window[0]; ++d)
      for (int64_t h = 0; h < p.window[1]; ++h) {
        patches.segments(patch, d, h, segments);
        if (!segments.size) continue;
        for (int64_t w = 0; w < p.window[2]; ++w) {
          int64_t from, to, tap = (d * p.window[1] + h) * p.window[2] + w;
          patches.columns_of(patch, w, from, to);
          if (from == to) continue;
          const T* source = x + group * p.channels + (w * p.dilation[2] - p.low[2]) * patches.in_channels;
          A* sums = partial + tap * p.channels * vectors * L;
          for (int64_t v = 0; v < vectors; v += 2) {
            int64_t filters = p.filters - v * L;
            const T* ours = y + group * p.filters + v * L;
            if (filters > L)
              channels<2>(filters < 2 * L, source, ours, segments, from, to, sums + v * L, filters - L);
            else
              channels<1>(filters < L, source, ours, segments, from, to, sums + v * L, filters);
          }
        }
      }
  }

  template <int V>
  void channels(bool part, const T* x, const T* y, const List<Segment>& segments, int64_t from, int64_t to, A* sums,
                int64_t lanes) const {
    int64_t x_column = p.strides[2] * patches.in_channels;
    for (int64_t j = 0, chunk; j < p.channels; j += chunk) {
      int64_t left = p.channels - j;
      if (V == 2)
        chunk = left == 8 ? 4 : left >= 6 ? 6 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
      else
        chunk = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
#define CASE(J)                                                                                                              \
  if (chunk == J) {                                                                                                          \
    if (part)                                                                                                                \
      sum_products<T, J, V, true>(x + j, y, segments, from, to, x_column, patches.out_channels, sums + j * vectors * L,      \
                                  vectors * L, lanes);                                                                       \
    else                                                                                                                     \
      sum_products<T, J, V, false>(x + j, y, segments, from, to, x_column, patches.out_channels, sums + j * vectors * L,     \
                                   vectors * L, lanes);                                                                      \
    continue;                                                                                                                \
  }
      if constexpr (V == 2) {
        CASE(6)
      } else {
        CASE(8)
      }
      CASE(4) CASE(2) CASE(1)
#undef CASE
    }
  }

  void add(int64_t group, int64_t tap, const A* partial, T* result) const {
    const A* from = partial + (group * taps + tap) * p.channels * vectors * L;
    for (int64_t j = 0; j < p.channels; ++j)
      for (int64_t v = 0; v < vectors; ++v) {
        const A* at = from + (j * vectors + v) * L;
        Vector<T> sum = load(at);
        for (int64_t i = 1; i < patches.partitions; ++i) sum += load(at + i * partial_size);
        T* to = result + (tap * p.channels + j) * patches.out_channels + group * p.filters + v * L;
        store_first(to, sum, p.filters - v * L);
      }
  }
};

}  // namespace
}  // namespace gconv
