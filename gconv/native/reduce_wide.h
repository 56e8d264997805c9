// Role w of wide groups: lanes are filters of one group, and each x is broadcast.
//
// The register tile is J channels by V vectors of filters of one tap, and it runs along the pixels of a patch:
//
//   for each pixel:  V loads of y;  for each of J channels: 1 broadcast load of x, V multiply-adds
//
// J + V loads for J * V multiply-adds: 8 for 12 with (J, V) = (6, 2), 9 for 8 with (8, 1). Few channels are one axis with the taps
// of a row: neighbours in x where there is a single group, as of an image's colours, else found by a table. Groups of 8 channels
// take 3 taps at a time: they use half of a line of x or y, and lines far apart do not stay in the nearest cache till the next tap.

#pragma once

#include "reduce.h"

namespace gconv {
namespace {

template <class T, int TAPS, int J, int V, bool PART, bool TABLE>
void sum_products(const T* x, int64_t x_tap, const int64_t* offsets, const T* y, const List<Segment>& segments, int64_t from,
                  int64_t to, int64_t x_column, int64_t y_column, Wide<T>* partial, int64_t tap_stride, int64_t channel_stride,
                  int64_t lanes) {
  constexpr int L = LANES<Wide<T>>;
  Vector<T> sums[TAPS][J][V] = {};
  int64_t offset[J];
  UNROLL for (int j = 0; j < J; ++j) offset[j] = TABLE ? offsets[j] : j;
  for (int64_t s = 0; s < segments.size; ++s) {
    const T* theirs = x + segments[s].x + from * x_column;
    const T* ours = y + segments[s].y + from * y_column;
    for (int64_t column = from; column < to; ++column, theirs += x_column, ours += y_column) {
      Vector<T> out[V];
      UNROLL for (int v = 0; v < V; ++v) out[v] = PART && v == V - 1 ? load_first(ours + v * L, lanes) : load(ours + v * L);
      UNROLL for (int t = 0; t < TAPS; ++t)
        UNROLL for (int j = 0; j < J; ++j) {
          Vector<T> in = broadcast(theirs[t * x_tap + offset[j]]);
          UNROLL for (int v = 0; v < V; ++v) sums[t][j][v] += in * out[v];
        }
    }
  }
  UNROLL for (int t = 0; t < TAPS; ++t)
    UNROLL for (int j = 0; j < J; ++j)
      UNROLL for (int v = 0; v < V; ++v) {
        Wide<T>* to_sum = partial + t * tap_stride + j * channel_stride + v * L;
        store(to_sum, load(to_sum) + sums[t][j][v]);
      }
}

template <class T>
class ReduceWide {
  using A = Wide<T>;
  static constexpr int L = LANES<A>;
  static constexpr bool MANY = REGISTERS == 32;
  static constexpr int64_t CHANNELS = 96, VECTORS = 6;  // of a block at most: its sums and its part of a patch stay in the caches
  const Problem& p;
  int64_t taps, high, wide;  // a block's channels and vectors
  int64_t down, across, block_size, partial_size;  // [group][block][tap][channel][filter, in whole vectors]
  Patches patches;

 public:
  explicit ReduceWide(const Problem& p)
      : p(p), taps(p.window[0] * p.window[1] * p.window[2]), high(even(p.channels, CHANNELS)),
        wide(even(ceil_div(p.filters, L), VECTORS)), down(ceil_div(p.channels, high)), across(ceil_div(p.filters, wide * L)),
        block_size(taps * high * wide * L), partial_size(p.groups * down * across * block_size),
        patches(p, pixels(), partial_size, sizeof(A), p.groups * down * across) {}

  int64_t scratch_bytes() const { return patches.partitions * partial_size * (int64_t)sizeof(A); }

  void run(const T* x, const T* y, T* result, void* scratch, const Parallel& parallel) const {
    A* partial = static_cast<A*>(scratch);
    int64_t blocks = down * across, pieces = minimum(p.groups, ceil_div(4 * parallel.threads, patches.partitions * blocks));
    for_each(parallel, patches.partitions * blocks * pieces, 1 << 14, [&](int64_t unit) {
      int64_t partition = unit / pieces / blocks, first = unit / pieces % blocks, piece = unit % pieces;
      A* own = partial + partition * partial_size;
      auto each = [&](const auto& f) {  // the unit's blocks, the same of several groups
        for (int64_t g = p.groups * piece / pieces; g < p.groups * (piece + 1) / pieces; ++g) f(g * blocks + first);
      };
      each([&](int64_t block) { memset(own + block * block_size, 0, block_size * sizeof(A)); });
      List<Segment> segments;
      for (int64_t i = patches.first_patch(partition); i < patches.first_patch(partition + 1); ++i)
        each([&](int64_t block) { patch(i, at(block), x, y, own + block * block_size, segments); });
    });
    for_each(parallel, p.groups * blocks * taps, high * wide * patches.partitions, [&](int64_t unit) {
      finish(at(unit / taps), unit % taps, partial + unit * high * wide * L, result);
    });
  }

 private:
  struct Block {
    int64_t group, channel, filter, channels, filters;  // of its group, from the first on so many
  };

  Block at(int64_t block) const {
    int64_t j = block / across % down * high, k = block % across * wide * L;
    return {block / across / down, j, k, minimum(high, p.channels - j), minimum(wide * L, p.filters - k)};
  }

  // The largest part of `size` in as few equal parts, up to a limit, as will do.
  static int64_t even(int64_t size, int64_t limit) { return ceil_div(size, ceil_div(size, limit)); }

  int64_t pixels() const { return maximum(16, minimum(256, (1 << 15) / ((high + wide * L) * (int64_t)sizeof(T)))); }

  // Whether the channels of a row's taps are neighbours in x.
  bool neighbours() const { return p.groups == 1 && p.dilation[2] == 1; }
  // Whether they are one axis of a matrix product: fewer than fill a tile, where a table finds them (measured).
  bool one_row() const { return p.window[2] > 1 && p.channels <= (neighbours() ? CHANNELS / 4 : 7); }
  // How many of the taps that are left in a row are taken together.
  int64_t together(int64_t left) const {
    bool eight = MANY && L == 8 && p.channels == 8 && p.filters <= 8;
    return one_row() ? left : !eight ? 1 : left == 4 ? 2 : minimum(left, 3);
  }

  void patch(int64_t patch, const Block& block, const T* x, const T* y, A* partial, List<Segment>& segments) const {
    x += block.group * p.channels + block.channel, y += block.group * p.filters + block.filter;
    for (int64_t d = 0; d < p.window[0]; ++d)
      for (int64_t h = 0; h < p.window[1]; ++h) {
        patches.segments(patch, d, h, segments);
        if (!segments.size) continue;
        int64_t row = (d * p.window[1] + h) * p.window[2];
        for (int64_t w = 0, taps; w < p.window[2]; w += taps) {
          int64_t first, last, from, to;
          taps = together(p.window[2] - w);
          patches.columns_of(patch, w, first, to), patches.columns_of(patch, w + taps - 1, from, last);
          first = maximum(first, from), last = maximum(first, minimum(last, to));  // the columns that all of the taps find
          taps_of(row, w, taps, block, x, y, segments, first, last, partial);
          for (int64_t t = w; t < w + taps && taps > 1; ++t) {
            patches.columns_of(patch, t, from, to);
            taps_of(row, t, 1, block, x, y, segments, from, first < last ? minimum(to, first) : to, partial);
            if (first < last) taps_of(row, t, 1, block, x, y, segments, maximum(from, last), to, partial);
          }
        }
      }
  }

  // Some taps of a row, from tap `w` on, over the columns from one to another.
  void taps_of(int64_t row, int64_t w, int64_t taps, const Block& block, const T* x, const T* y, const List<Segment>& segments,
               int64_t from, int64_t to, A* partial) const {
    if (from >= to) return;
    Taps at{x + (w * p.dilation[2] - p.low[2]) * patches.in_channels, y, segments, from, to, taps, block.channels};
    A* sums = partial + (row + w) * high * wide * L;
    for (int64_t v = 0; v < block.filters; v += 2 * L, at.y += 2 * L, sums += 2 * L) {
      int64_t filters = block.filters - v;
      if (filters > L)
        filters < 2 * L ? channels<2, true>(at, sums, filters - L) : channels<2, false>(at, sums, 0);
      else
        filters < L ? channels<1, true>(at, sums, filters) : channels<1, false>(at, sums, 0);
    }
  }

  struct Taps {
    const T *x, *y;
    const List<Segment>& segments;
    int64_t from, to, taps, channels;
  };

  template <int V, bool PART>
  void channels(const Taps& at, A* sums, int64_t lanes) const {
    if (int64_t all = at.taps * at.channels; at.taps > 1 && one_row())
      return neighbours() ? rows<V, PART, false>(at, all, sums, lanes) : rows<V, PART, true>(at, all, sums, lanes);
    if constexpr (MANY && L == 8 && V == 1) {
      if (at.taps == 3) return add<3, 8, V, PART, false>(at, 0, nullptr, sums, lanes);
      if (at.taps == 2) return add<2, 8, V, PART, false>(at, 0, nullptr, sums, lanes);
    }
    rows<V, PART, false>(at, at.channels, sums, lanes);
  }

  // Tiles of J channels, from the first on or as a table has them.
  template <int TAPS, int J, int V, bool PART, bool TABLE>
  void add(const Taps& at, int64_t first, const int64_t* offsets, A* sums, int64_t lanes) const {
    sum_products<T, TAPS, J, V, PART, TABLE>(at.x + first, tap(), offsets, at.y, at.segments, at.from, at.to,
                                             p.strides[2] * patches.in_channels, patches.out_channels, sums, high * wide * L,
                                             wide * L, lanes);
  }

  int64_t tap() const { return p.dilation[2] * patches.in_channels; }  // from one to the next in x

  template <int V, bool PART, bool TABLE>
  void rows(const Taps& at, int64_t count, A* sums, int64_t lanes) const {
    constexpr int MOST = V == 2 ? 6 : 8;
    int64_t offsets[MOST];
    for (int64_t j = 0, chunk; j < count; j += chunk, sums += chunk * wide * L) {
      int64_t left = count - j;
      if (V == 2)
        chunk = left == 8 ? 4 : left >= 6 ? 6 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
      else
        chunk = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
      for (int64_t i = 0; TABLE && i < chunk; ++i) offsets[i] = (j + i) / high * tap() + (j + i) % high;
      int64_t first = TABLE ? 0 : j;
      if (chunk == MOST) add<1, MOST, V, PART, TABLE>(at, first, offsets, sums, lanes);
      if (chunk == 4) add<1, 4, V, PART, TABLE>(at, first, offsets, sums, lanes);
      if (chunk == 2) add<1, 2, V, PART, TABLE>(at, first, offsets, sums, lanes);
      if (chunk == 1) add<1, 1, V, PART, TABLE>(at, first, offsets, sums, lanes);
    }
  }

  void finish(const Block& block, int64_t tap, const A* partial, T* result) const {
    result += (tap * p.channels + block.channel) * patches.out_channels + block.group * p.filters + block.filter;
    for (int64_t j = 0; j < block.channels; ++j, partial += wide * L, result += patches.out_channels)
      for (int64_t v = 0; v < block.filters; v += L) {
        Vector<T> sum = load(partial + v);
        for (int64_t i = 1; i < patches.partitions; ++i) sum += load(partial + v + i * partial_size);
        store_first(result + v, sum, block.filters - v);
      }
  }
};

}  // namespace
}  // namespace gconv
