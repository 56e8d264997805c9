// Role w of wide groups: lanes are filters of one group, and each x is broadcast.
//
// The register tile is J channels by V vectors of filters of one tap, and it runs along the pixels of a patch:
//
//   for each pixel:  V loads of y;  for each of J channels: 1 broadcast load of x, V multiply-adds
//
// J + V loads for J * V multiply-adds: 8 for 12 with (J, V) = (6, 2), 9 for 8 with (8, 1). Few channels are one axis with the taps
// of a row: neighbours in x where there is a single group, as of an image's colours, else found by a table. Whole eights of channels
// that meet an odd vector take 3 taps at a time. Where neighbouring taps are as far apart as columns, they share each x, which they
// meet in neighbouring columns: 8 + 3 loads for 24 multiply-adds. Else they share y: 1 + 24 loads.
//
// A group's channels are a small part of each pixel, and pixels lie far apart: a power of two apart they share a few sets of the
// nearest cache, and each is on a page of its own. Where they are read often, a patch's part of the block is therefore packed
// first, y once and x for each row of taps: some ten KiB of a thread's own. Half precision is always packed: it is widened then.

#pragma once

#include "reduce.h"

namespace gconv {
namespace {

// Some taps of a row, which meet the columns from one to another of the rows of a patch.
template <class A>
struct Taps {
  const A *x, *y;              // the first tap's, of column 0 in a segment that begins at 0
  int64_t x_tap, y_tap;        // from what a tap meets to what the next one does
  int64_t x_column, y_column;  // from a column to the next
  const List<Segment>* segments;
  int64_t from, to;  // columns; of x, where taps share each
  int64_t taps, channels;
};

template <class A, int TAPS, int J, int V, bool PART, bool TABLE, bool SHARE>
void sum_products(const Taps<A>& at, int64_t first, const int64_t* offsets, A* partial, int64_t tap_stride, int64_t channel_stride,
                  int64_t lanes) {
  constexpr int L = LANES<A>;
  Vector<A> sums[TAPS][J][V] = {};
  int64_t offset[J];
  UNROLL for (int j = 0; j < J; ++j) offset[j] = TABLE ? offsets[j] : j;
  const int64_t x_tap = at.x_tap, y_tap = at.y_tap, x_column = at.x_column, y_column = at.y_column, columns = at.to - at.from;
  const A *x = at.x + first + at.from * x_column, *y = at.y + at.from * y_column;
  for (const Segment *segment = at.segments->data, *end = segment + at.segments->size; segment < end; ++segment) {
    const A *theirs = x + segment->x, *ours = y + segment->y;
    for (int64_t left = columns; left > 0; --left, theirs += x_column, ours += y_column) {
      Vector<A> out[SHARE ? TAPS : 1][V];
      UNROLL for (int t = 0; t < (SHARE ? TAPS : 1); ++t)
        UNROLL for (int v = 0; v < V; ++v) {
          const A* vector = ours + t * y_tap + v * L;
          out[t][v] = PART && v == V - 1 ? load_first(vector, lanes) : load(vector);
        }
      UNROLL for (int j = 0; j < J; ++j) {
        Vector<A> in;
        UNROLL for (int t = 0; t < TAPS; ++t) {
          if (!SHARE || t == 0) in = broadcast(theirs[t * x_tap + offset[j]]);
          UNROLL for (int v = 0; v < V; ++v) sums[t][j][v] += in * out[SHARE ? t : 0][v];
        }
      }
    }
  }
  UNROLL for (int t = 0; t < TAPS; ++t)
    UNROLL for (int j = 0; j < J; ++j)
      UNROLL for (int v = 0; v < V; ++v) {
        A* to_sum = partial + t * tap_stride + j * channel_stride + v * L;
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
  bool share;                      // whether taps that are taken together share each x, for different columns
  bool packs_x, packs_y, by_rows;  // what is packed; x for all taps of a row at a time, or for each of them

 public:
  explicit ReduceWide(const Problem& p)
      : p(p), taps(p.window[0] * p.window[1] * p.window[2]), high(even(p.channels, CHANNELS)),
        wide(even(ceil_div(p.filters, L), VECTORS)), down(ceil_div(p.channels, high)), across(ceil_div(p.filters, wide * L)),
        block_size(taps * high * wide * L), partial_size(p.groups * down * across * block_size),
        patches(p, pixels(), partial_size, sizeof(A), p.groups * down * across),
        share(!one_row() && p.dilation[2] == p.strides[2]) {
    choose_packing();
  }

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
      Patch patch;
      for (int64_t i = patches.first_patch(partition); i < patches.first_patch(partition + 1); ++i) {
        patch.from.size = patch.to.size = 0;
        for (int64_t w = 0, from, to; w < p.window[2]; ++w)
          patches.columns_of(i, w, from, to), patch.from.push(from), patch.to.push(to);
        each([&](int64_t block) { sum(patch, i, at(block), x, y, own + block * block_size); });
      }
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

  int64_t pixels() const { return maximum(16, minimum(256, (1 << 15) / ((high + wide * L) * (int64_t)sizeof(A)))); }

  // What is packed (measured): what is read often, where pixels share few sets of the nearest cache, and y where its vectors cross
  // lines.
  void choose_packing() {
    int64_t tiles = ceil_div(high, wide > 1 ? 6 : 8), in = patches.in_channels, out = patches.out_channels;
    int64_t passes = p.window[0] * p.window[1] * ceil_div(p.window[2], together(p.window[2]));
    bool x_often = passes * ceil_div(wide, 2) >= 4, y_often = passes * tiles * minimum(wide, 2) >= 10;
    auto far = [](int64_t channels, int64_t bytes) { return channels * (int64_t)sizeof(T) % bytes == 0; };
    packs_x = sizeof(T) == 2 || (x_often && far(in, 2048)) || (y_often && far(out, 2048)) ||
              (x_often && y_often && far(in, 1024) && far(out, 1024));
    packs_y = packs_x || (y_often && p.filters % L);
    int64_t span = (patches.columns - 1) * p.strides[2] + (p.window[2] - 1) * p.dilation[2] + 1;
    by_rows = p.window[2] > 1 && span < patches.columns * p.window[2];
  }

  // Whether the channels of a row's taps are neighbours in x.
  bool neighbours() const { return p.groups == 1 && p.dilation[2] == 1; }
  // Whether they are one axis of a matrix product: fewer than fill a tile, where a table finds them (measured).
  bool one_row() const { return p.window[2] > 1 && p.channels <= (neighbours() ? CHANNELS / 4 : 7); }
  // How many of the taps that are left in a row are taken together.
  int64_t together(int64_t left) const {
    bool eights = MANY && wide % 2 == 1 && p.channels % 8 == 0 && high % 8 == 0;
    return one_row() ? left : !eights ? 1 : left == 4 ? 2 : minimum(left, 3);
  }

  struct Patch {
    List<Segment> segments, packed;
    List<int64_t> from, to;  // the columns that find each tap of a row
    List<A> x, y;            // packed: [segment][pixel][channel] and [pixel][filter], each block's own
  };

  void sum(Patch& patch, int64_t index, const Block& block, const T* x, const T* y, A* partial) const {
    x += block.group * p.channels + block.channel, y += block.group * p.filters + block.filter;
    if (packs_y) pack_y(patch, index, block, y);
    for (int64_t d = 0; d < p.window[0]; ++d)
      for (int64_t h = 0; h < p.window[1]; ++h, partial += p.window[2] * high * wide * L) {
        patches.segments(index, d, h, patch.segments);
        if (!patch.segments.size) continue;
        for (int64_t s = 0; s < patch.segments.size && packs_y; ++s)
          patch.segments[s].y = (patch.segments[s].pixel - patches.first_column(index)) * wide * L;
        for (int64_t w = 0, size; w < p.window[2]; w += size) {
          size = packs_x && !by_rows ? 1 : p.window[2];
          int64_t step = packs_x ? high : patches.in_channels, source = w * p.dilation[2] - p.low[2];
          Taps<A> at{};
          at.x_tap = p.dilation[2] * step, at.x_column = (packs_x && !by_rows ? 1 : p.strides[2]) * step;
          at.y_column = packs_y ? wide * L : patches.out_channels, at.segments = &patch.segments, at.channels = block.channels;
          if constexpr (sizeof(T) == sizeof(A)) at.x = x + source * step, at.y = y;
          if (packs_x) at.x = pack_x(patch, index, w, size, block, x), at.segments = &patch.packed;
          if (packs_y) at.y = line(patch.y);
          row(patch, at, w, size, block, partial);
        }
      }
  }

  // Room for so many items from the beginning of a line of the cache on.
  static A* room(List<A>& list, int64_t size) {
    list.reserve(size + LINE / sizeof(A));
    return line(list);
  }
  static A* line(List<A>& list) { return reinterpret_cast<A*>((reinterpret_cast<intptr_t>(list.data) + LINE - 1) / LINE * LINE); }

  // Widens `size` items, and overwrites what follows them up to a whole vector.
  static void copy(const T* from, int64_t size, A* to) {
    int64_t i = 0;
    for (; i + L <= size; i += L) store(to + i, load(from + i));
    if (i < size) store(to + i, load_first(from + i, size - i));
  }

  void pack_y(Patch& patch, int64_t index, const Block& block, const T* y) const {
    int64_t rows = patches.rows_in(index), columns = patches.columns_in(index), step = wide * L;
    A* to = room(patch.y, rows * columns * step);
    y += (patches.first_row(index) * p.out[2] + patches.first_column(index)) * patches.out_channels;
    for (int64_t i = 0; i < rows; ++i, y += (p.out[2] - columns) * patches.out_channels)
      for (int64_t k = 0; k < columns; ++k, y += patches.out_channels, to += step) copy(y, block.filters, to);
  }

  // The pixels that some taps from `w` on meet: all from the first to the last, or of a single tap those that it meets. The segments
  // in patch.packed begin where these now lie.
  const A* pack_x(Patch& patch, int64_t index, int64_t w, int64_t size, const Block& block, const T* x) const {
    int64_t from = patch.from[w], to = patch.to[w], first, last, step = 1, source = w * p.dilation[2] - p.low[2];
    if (size > 1) {
      first = patches.first_column(index) * p.strides[2] + source;
      last = first + (patches.columns_in(index) - 1) * p.strides[2] + (size - 1) * p.dilation[2];
      first = maximum(first, 0), last = minimum(last, p.in[2] - 1), from = 0;
    } else {
      step = p.strides[2], first = from * step + source, last = first + (to - from - 1) * step;
    }
    int64_t count = last < first ? 0 : (last - first) / step + 1;
    A* packed = room(patch.x, patch.segments.size * count * high + L), *next = packed;
    int64_t before = size > 1 ? (source - first) * high : -from * high;  // from the first pixel that is packed to column 0
    patch.packed.size = 0;
    for (int64_t s = 0; s < patch.segments.size; ++s) {
      const Segment& segment = patch.segments[s];
      const T* pixel = x + segment.x + first * patches.in_channels;
      patch.packed.push({next - packed + before, segment.y, segment.pixel});
      for (int64_t i = 0; i < count; ++i, pixel += step * patches.in_channels, next += high) copy(pixel, block.channels, next);
    }
    return packed;
  }

  // The taps of a row from `w` on, of which `at` has the first: as many together as a column finds.
  void row(const Patch& patch, Taps<A> at, int64_t w, int64_t size, const Block& block, A* partial) const {
    const A *x = at.x, *y = at.y;
    at.x_tap *= !share, at.y_tap = -at.y_column * share;
    for (int64_t begin = w, end; begin < w + size; begin = end) {
      end = minimum(begin + together(p.window[2] - begin), w + size);
      // The taps in the order in which columns find them, from 0 on; a column finds those that have come and are not gone.
      auto tap = [&](int64_t i) { return share ? begin + i : end - 1 - i; };
      auto from = [&](int64_t i) { return patch.from[tap(i)] + share * (tap(i) - w); };
      auto to = [&](int64_t i) { return patch.to[tap(i)] + share * (tap(i) - w); };
      int64_t come = 0, gone = 0, all = end - begin;
      for (at.from = from(0); gone < all; at.from = at.to) {
        while (come < all && from(come) <= at.from) ++come;
        while (gone < come && to(gone) <= at.from) ++gone;
        at.to = come < all ? from(come) : to(all - 1);
        if (gone == come) continue;
        int64_t first = minimum(tap(gone), tap(come - 1));
        at.to = minimum(at.to, to(gone)), at.taps = come - gone;
        at.x = x + (first - w) * at.x_tap, at.y = y + (first - w) * at.y_tap;
        vectors(at, block, partial + first * high * wide * L);
      }
    }
  }

  void vectors(Taps<A> at, const Block& block, A* sums) const {
    for (int64_t v = 0; v < block.filters; v += 2 * L, at.y += 2 * L, sums += 2 * L) {
      int64_t filters = packs_y ? ceil_div(block.filters - v, L) * L : block.filters - v;  // packed vectors are whole
      if (filters > L)
        filters < 2 * L ? channels<2, true>(at, sums, filters - L) : channels<2, false>(at, sums, 0);
      else
        filters < L ? channels<1, true>(at, sums, filters) : channels<1, false>(at, sums, 0);
    }
  }

  template <int V, bool PART>
  void channels(const Taps<A>& at, A* sums, int64_t lanes) const {
    if (at.taps == 1) return rows<V, PART, false>(at, at.channels, sums, lanes);
    if (one_row()) {
      int64_t all = at.taps * at.channels;
      return neighbours() ? rows<V, PART, false>(at, all, sums, lanes) : rows<V, PART, true>(at, all, sums, lanes);
    }
    if constexpr (MANY && V == 1) {
      for (int64_t j = 0; j < at.channels; j += 8, sums += 8 * wide * L)
        share ? at.taps == 3 ? add<3, 8, V, PART, false, true>(at, j, nullptr, sums, lanes)
                             : add<2, 8, V, PART, false, true>(at, j, nullptr, sums, lanes)
        : at.taps == 3 ? add<3, 8, V, PART, false, false>(at, j, nullptr, sums, lanes)
                       : add<2, 8, V, PART, false, false>(at, j, nullptr, sums, lanes);
    } else {
      Taps<A> one = at;
      for (one.taps = 1; one.taps <= at.taps; ++one.taps, one.x += at.x_tap, one.y += at.y_tap, sums += high * wide * L)
        rows<V, PART, false>(one, at.channels, sums, lanes);
    }
  }

  // Tiles of J channels, from the first on or as a table has them.
  template <int TAPS, int J, int V, bool PART, bool TABLE, bool SHARE>
  void add(const Taps<A>& at, int64_t first, const int64_t* offsets, A* sums, int64_t lanes) const {
    sum_products<A, TAPS, J, V, PART, TABLE, SHARE>(at, first, offsets, sums, high * wide * L, wide * L, lanes);
  }

  template <int V, bool PART, bool TABLE>
  void rows(const Taps<A>& at, int64_t count, A* sums, int64_t lanes) const {
    constexpr int MOST = V == 2 ? 6 : 8;
    int64_t offsets[MOST];
    for (int64_t j = 0, chunk; j < count; j += chunk, sums += chunk * wide * L) {
      int64_t left = count - j;
      if (V == 2)
        chunk = left == 8 ? 4 : left >= 6 ? 6 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
      else
        chunk = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
      for (int64_t i = 0; TABLE && i < chunk; ++i) offsets[i] = (j + i) / high * at.x_tap + (j + i) % high;
      int64_t first = TABLE ? 0 : j;
      if (chunk == MOST) add<1, MOST, V, PART, TABLE, false>(at, first, offsets, sums, lanes);
      if (chunk == 4) add<1, 4, V, PART, TABLE, false>(at, first, offsets, sums, lanes);
      if (chunk == 2) add<1, 2, V, PART, TABLE, false>(at, first, offsets, sums, lanes);
      if (chunk == 1) add<1, 1, V, PART, TABLE, false>(at, first, offsets, sums, lanes);
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
