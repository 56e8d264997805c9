// Role w of wide groups: lanes are filters of one group, and each x is broadcast.
//
// Few channels are one axis with the taps of a row: neighbours in x where there is a single group, as of an
// image's colours, else found by a table. Fours and eights of channels that meet a single vector take 3 taps
// at a time.
//
// A group's channels are a small part of each pixel, and pixels lie far apart: a power of two apart they
// share a few sets of the nearest cache, and each is on a page of its own. Where they are read often, a
// stretch's part of the block is therefore packed first, y once and x for each row of taps: tens of KiB of a
// thread's own. Half precision is always packed: it is widened then, or put into pairs of pixels.

#pragma once

#include "reduce/wide_tile.h"

namespace gconv {
namespace {

template <class E>
class ReduceWide {
  using A = Wide<E>;
  static constexpr int L = LANES<E>;
  static constexpr bool MANY = REGISTERS == 32;
  const Plan& plan;
  const Problem p;
  Type type;
  bool apart;  // whether no pair of pixels shares one with the next: where a row has a single tap
  int64_t taps, high, wide;          // a block's channels and vectors
  int64_t down, across, block_size;  // partial sums: [group][block][tap][channel][filter, in whole vectors]
  Stretches stretches;

 public:
  ReduceWide(const Plan& plan, Type type, const Problem& p)
      : plan(plan), p(with_long_rows(p)), type(type),
        apart(TERMS<E> == 2 && p.window[2] == 1 && plan.block_channels % 2 == 0), taps(taps_of(p)),
        high(plan.block_channels), wide(plan.block_vectors), down(ceil_div(p.channels, high)),
        across(ceil_div(p.filters, wide * L)), block_size(taps * high * wide * L), stretches(plan, this->p) {}

  void run(const void* x, const void* y, void* result, const Scratch& scratch,
           const Parallel& parallel) const {
    A* partial = static_cast<A*>(scratch.rest);
    // A unit has the same filters of several groups, and of each several blocks of channels: they share
    // packed y.
    int64_t slices = parts_of(parallel, plan.partitions * across, down);
    int64_t parts = parts_of(parallel, plan.partitions * across * slices, p.groups);
    for_each(parallel, plan.partitions * across * slices * parts, 1 << 14, [&](int64_t unit) {
      int64_t part = unit % parts, slice = unit / parts % slices, k = unit / parts / slices % across;
      int64_t partition = unit / parts / slices / across;
      A* own = partial + partition * plan.packed;
      auto each = [&](const auto& f) {
        for (int64_t g = p.groups * part / parts; g < p.groups * (part + 1) / parts; ++g)
          for (int64_t j = down * slice / slices; j < down * (slice + 1) / slices; ++j)
            f((g * down + j) * across + k);
      };
      each([&](int64_t block) { memset(own + block * block_size, 0, block_size * sizeof(A)); });
      Lists lists;
      for (int64_t i = stretches.first_of(partition); i < stretches.first_of(partition + 1); ++i) {
        lists.from.size = lists.to.size = 0, lists.group = -1;
        for (int64_t w = 0, from, to; w < p.window[2]; ++w)
          stretches.columns_of(i, w, from, to), lists.from.push(from), lists.to.push(to);
        each([&](int64_t block) { sum(lists, i, at(block), x, y, own + block * block_size); });
      }
    });
    int64_t blocks = down * across;
    for_each(parallel, p.groups * blocks * taps, high * wide * plan.partitions, [&](int64_t unit) {
      with_element<A>(result_type(type, p), [&](auto element) {
        finish(at(unit / taps), unit % taps, partial + unit * high * wide * L,
               static_cast<decltype(element)*>(result));
      });
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

  // Whether the channels of a row's taps are neighbours in x.
  bool neighbours() const { return p.groups == 1 && p.dilation[2] == 1; }
  // How many of the taps that are left in a row are taken together.
  int64_t together(int64_t left) const {
    return plan.one_axis                    ? left
           : plan.together > 1 && left == 4 ? 2
                                            : minimum(left, plan.together > 1 ? 3 : 1);
  }

  struct Lists {  // of a stretch
    List<RowPair> rows, packed;
    List<int64_t> from, to;  // the columns that find each tap of a row
    KeptRows<E> kept;        // rows of x that were packed: taps of several rows meet them
    int64_t group;           // of which y is packed, or -1
    const E* packed_y;
    List<E> x, y;  // packed: [row][pixel][channel] and [pixel][filter], each block's own
  };

  void sum(Lists& lists, int64_t index, const Block& block, const void* x, const void* y, A* partial) const {
    int64_t first_x = block.group * p.channels + block.channel,
            first_y = block.group * p.filters + block.filter;
    lists.kept.forget();
    // Vectors of y are loaded whole, and sums of lanes beyond the filters are dropped. But nothing beyond y
    // may be loaded.
    int64_t rows = stretches.first_row(index) + stretches.rows_in(index);
    int64_t end = (rows - 1) * p.out[2] + stretches.first_column(index) + stretches.columns_in(index);
    int64_t left = p.batch * p.out[0] * p.out[1] * p.out[2] - end;  // pixels
    int64_t beyond = first_y + ceil_div(block.filters, L) * L - (left + 1) * stretches.out_channels;
    bool packs_y = plan.packs_y || beyond > 0;
    if (packs_y && lists.group != block.group)
      with_element<E>(type, [&](auto element) {
        lists.packed_y = pack_y(lists, index, block, static_cast<const decltype(element)*>(y) + first_y);
        lists.group = block.group;
      });
    for (int64_t d = 0; d < p.window[0]; ++d)
      for (int64_t h = 0; h < p.window[1]; ++h, partial += p.window[2] * high * wide * L) {
        stretches.rows_of(index, d, h, lists.rows);
        if (!lists.rows.size) continue;
        for (int64_t s = 0; s < lists.rows.size && packs_y; ++s)
          lists.rows[s].y = packed_pixel(lists, index, lists.rows[s].pixel) * wide * L / (1 + apart);
        for (int64_t w = 0, size; w < p.window[2]; w += size) {
          size = plan.packs_x && !plan.packs_rows ? 1 : p.window[2];
          int64_t step = plan.packs_x ? high : stretches.in_channels, source = w * p.dilation[2] - p.low[2];
          WidePass<E> at{};
          at.x_tap = p.dilation[2] * step,
          at.x_column = (plan.packs_x && !plan.packs_rows ? 1 : p.strides[2]) * step / (1 + apart);
          at.y_column = packs_y ? wide * L / (1 + apart) : stretches.out_channels, at.rows = &lists.rows,
          at.channels = block.channels;
          if (plan.packs_x)
            with_element<E>(type, [&](auto element) {
              auto* elements = static_cast<const decltype(element)*>(x) + first_x;
              at.x = pack_x(lists, index, w, size, block, elements), at.rows = &lists.packed;
            });
          else
            at.x = static_cast<const E*>(x) + first_x + source * step;
          at.y = packs_y ? lists.packed_y : static_cast<const E*>(y) + first_y;
          row(lists, at, w, size, block, partial);
        }
      }
  }

  // So many channels of a pixel as numbers; or, as pairs, of it and the next one, if it has one.
  template <class T>
  static void put(const T* pixel, const T* next, int64_t count, E* to) {
    if constexpr (TERMS<E> == 1)
      read(pixel, count, to);
    else
      for (int64_t c = 0; c < count; c += L) {
        Vector<E> pairs = pairs_of(pixel + c, (next ? next : pixel) + c, count - c);
        store(to + c, next ? pairs : first_terms<E>(pairs));
      }
  }

  // Where column 0 of the row of a stretch that begins with `pixel` lies in packed y, in pixels.
  int64_t packed_pixel(const Lists& lists, int64_t index, int64_t pixel) const {
    if (!apart) return pixel - stretches.first_column(index);
    int64_t columns = lists.to[0] - lists.from[0];
    return pixel / stretches.columns_in(index) * (columns + columns % 2) - lists.from[0];
  }

  // A stretch's pixels, row by row; of pairs that do not overlap every other, of those that the tap meets.
  template <class T>
  const E* pack_y(Lists& lists, int64_t index, const Block& block, const T* y) const {
    int64_t columns = stretches.columns_in(index), skip = 0, last = (block.filters - 1) / L * L;
    y += (stretches.first_row(index) * p.out[2] + stretches.first_column(index)) * stretches.out_channels;
    int64_t row = columns * stretches.out_channels;  // as long as a stretch's, or the only one
    if (apart) skip = lists.from[0] - stretches.first_column(index), columns = lists.to[0] - lists.from[0];
    E *packed = lists.y.reserve(stretches.rows_in(index) * columns * wide * L + wide * L), *to = packed;
    for (int64_t r = 0; r < stretches.rows_in(index); ++r, y += row)
      for (int64_t c = 0; c < columns; c += 1 + apart, to += wide * L) {
        const T* pixel = y + (skip + c) * stretches.out_channels;
        put(pixel, c + 1 < columns ? pixel + stretches.out_channels : nullptr, block.filters, to);
        if (plan.twice && block.filters - last <= L / 2)
          store(to + last, twice(load(to + last), std::make_index_sequence<L>{}));
      }
    return packed;
  }

  // The pixels that some taps from `w` on meet: all from the first to the last, or of a single tap those that
  // it meets. The rows in lists.packed begin where these now lie.
  template <class T>
  const E* pack_x(Lists& lists, int64_t index, int64_t w, int64_t size, const Block& block,
                  const T* x) const {
    int64_t from = lists.from[w], until = lists.to[w], first, last, step = 1,
            source = w * p.dilation[2] - p.low[2];
    if (size > 1) {
      first = stretches.first_column(index) * p.strides[2] + source;
      last = first + (stretches.columns_in(index) - 1) * p.strides[2] + (size - 1) * p.dilation[2];
      first = maximum(first, 0), last = minimum(last, p.in[2] - 1);
    } else {
      step = p.strides[2], first = from * step + source, last = first + (until - from - 1) * step;
    }
    int64_t count = last < first ? 0 : (last - first) / step + 1, length = count * high;
    int64_t next = p.strides[2];  // from the pixel that a column meets to that of the next one
    auto pack_row = [&](const RowPair& row, E* to) {
      const T* pixel = x + row.x + first * stretches.in_channels;
      int64_t by = 1 + apart;
      for (int64_t i = 0; i < count; i += by, pixel += by * step * stretches.in_channels, to += high)
        put(pixel, first + i * step + next <= last ? pixel + next * stretches.in_channels : nullptr,
            block.channels, to);
    };
    lists.packed.size = 0;
    if (size > 1) {
      int64_t before = (source - first) * high;  // from the first pixel that is packed to column 0
      lists.kept.begin(plan.stretch_rows, first, length + L);
      for (const RowPair& row : lists.rows) {
        int64_t at = lists.kept.place(row.x, [&](E* to) { pack_row(row, to); });
        lists.packed.push({at + before, row.y, row.pixel});
      }
      return lists.kept.all();
    }
    E *packed = lists.x.reserve(lists.rows.size * (length + high) + L), *to_row = packed;
    for (const RowPair& row : lists.rows) {
      pack_row(row, to_row);
      lists.packed.push({to_row - packed - from * high / (1 + apart), row.y, row.pixel});
      to_row += (count + 1) / (1 + apart) * high;
    }
    return packed;
  }

  // The taps of a row from `w` on, of which `at` has the first: as many together as a column finds.
  void row(const Lists& lists, WidePass<E>& at, int64_t w, int64_t size, const Block& block,
           A* partial) const {
    const E *x = at.x, *y = at.y;
    at.x_tap *= !plan.shares_sources, at.y_tap = -at.y_column * plan.shares_sources;
    for (int64_t begin = w, end; begin < w + size; begin = end) {
      end = minimum(begin + together(p.window[2] - begin), w + size);
      // The taps in the order in which columns find them, from 0 on; a column finds those that have come and
      // are not gone.
      auto tap = [&](int64_t i) { return plan.shares_sources ? begin + i : end - 1 - i; };
      auto from = [&](int64_t i) { return lists.from[tap(i)] + plan.shares_sources * (tap(i) - w); };
      auto to = [&](int64_t i) { return lists.to[tap(i)] + plan.shares_sources * (tap(i) - w); };
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

  void vectors(WidePass<E>& at, const Block& block, A* sums) const {
    for (int64_t v = 0, count; v < block.filters; v += count * L, at.y += count * L, sums += count * L) {
      int64_t left = block.filters - v;
      bool last = plan.twice && left <= L / 2, before = plan.twice && !last && left <= L + L / 2;
      count = left > L && !before ? 2 : 1;
      if (last)
        channels<1, true>(at, sums);
      else
        count == 2 ? channels<2, false>(at, sums) : channels<1, false>(at, sums);
    }
  }

  // All channels; TWICE: two at a time.
  template <int V, bool TWICE>
  void channels(const WidePass<E>& at, A* sums) const {
    int64_t size = at.channels / (1 + TWICE), row = (1 + TWICE) * wide * L;
    if (at.taps == 1) return rows<V, false, TWICE>(at, size, sums);
    if (plan.one_axis) {
      int64_t all = at.taps * at.channels;
      return neighbours() ? rows<V, false, false>(at, all, sums) : rows<V, true, false>(at, all, sums);
    }
    if constexpr (V == 1) {
      int64_t j = 0;
      for (; MANY && j + 8 <= size; j += 8) some_taps<8, TWICE>(at, j, sums + j * row);
      for (; j < size; j += 4) some_taps<4, TWICE>(at, j, sums + j * row);
    } else {
      WidePass<E> one = at;
      for (one.taps = 1; one.taps <= at.taps;
           ++one.taps, one.x += at.x_tap, one.y += at.y_tap, sums += high * wide * L)
        rows<V, false, TWICE>(one, size, sums);
    }
  }

  template <int J, bool TWICE>
  void some_taps(const WidePass<E>& at, int64_t first, A* sums) const {
    auto some = [&](auto taps) {
      plan.shares_sources ? add<taps, J, 1, false, true, TWICE>(at, first, nullptr, sums)
                          : add<taps, J, 1, false, !MANY, TWICE>(at, first, nullptr, sums);
    };
    at.taps == 3 ? some(Number<3>{}) : some(Number<2>{});
  }

  // Tiles of J channels, or of twice as many, from the first on or as a table has them.
  template <int TAPS, int J, int V, bool TABLE, bool SHARE, bool TWICE>
  void add(const WidePass<E>& at, int64_t first, const int64_t* offsets, A* sums) const {
    sum_products<E, TAPS, J, V, TABLE, SHARE, TWICE>(at, first * (1 + TWICE), offsets, sums, high * wide * L,
                                                     (1 + TWICE) * wide * L);
  }

  template <int V, bool TABLE, bool TWICE>
  void rows(const WidePass<E>& at, int64_t count, A* sums) const {
    constexpr int MOST = V == 2 ? 6 : 8;
    int64_t offsets[MOST];
    for (int64_t j = 0, size; j < count; j += size, sums += size * (1 + TWICE) * wide * L) {
      int64_t left = count - j;
      if (V == 2)
        size = left == 8 ? 4 : left >= 6 ? 6 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
      else
        size = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
      for (int64_t i = 0; TABLE && i < size; ++i) offsets[i] = (j + i) / high * at.x_tap + (j + i) % high;
      int64_t first = TABLE ? 0 : j;
      if (size == MOST) add<1, MOST, V, TABLE, false, TWICE>(at, first, offsets, sums);
      if (size == 4) add<1, 4, V, TABLE, false, TWICE>(at, first, offsets, sums);
      if (size == 2) add<1, 2, V, TABLE, false, TWICE>(at, first, offsets, sums);
      if (size == 1) add<1, 1, V, TABLE, false, TWICE>(at, first, offsets, sums);
    }
  }

  template <class T>
  void finish(const Block& block, int64_t tap, const A* partial, T* result) const {
    constexpr auto all = std::make_index_sequence<L>{};
    result +=
        (tap * p.channels + block.channel) * stretches.out_channels + block.group * p.filters + block.filter;
    for (int64_t j = 0; j < block.channels; ++j, partial += wide * L, result += stretches.out_channels)
      for (int64_t v = 0; v < block.filters; v += L) {
        bool twice = plan.twice && block.filters - v <= L / 2;
        const A* at = partial + v - (twice && j % 2 ? wide * L : 0);  // both lie where the first channel does
        Vector<A> sum = load(at);
        for (int64_t i = 1; i < plan.partitions; ++i) sum += load(at + i * plan.packed);
        store_first(result + v,
                    !twice  ? sum
                    : j % 2 ? every_other<1>(sum, all)
                            : every_other<0>(sum, all),
                    block.filters - v);
      }
  }
};

}  // namespace
}  // namespace gconv
