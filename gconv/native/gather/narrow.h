// Roles y and x of narrow groups: lanes are source channels (see lanes.h).
//
// Each tile (narrow_tile.h) has some results of one row. Tiles that reach over a border carry a mask per tap
// that says which of the results meet a source; nothing is padded. Sources are read where they are, but for
// half precision, blocks of several vectors and the end of x, of which rows are read as lanes first.

#pragma once

#include "gather/narrow_tile.h"

namespace gconv {
namespace {

template <class E>
class GatherNarrow {
  using A = Wide<E>;
  static constexpr int L = LANES<E>;
  const Plan& plan;
  const Problem& p;
  Type type;
  bool in_place;  // whether elements are numbers already, or pairs
  int64_t bytes;  // of an element
  Gather g;
  const Finish<A>& finish;
  int64_t steps;  // lanes of a group's sources: numbers, pairs, or an even and an odd one
  Lanes<E> lanes;
  int64_t vectors;  // of a block
  LaneSums<E> lane_sums;
  int64_t stored;  // bytes of a result as a tile stores it
  bool direct;     // whether vectors are loaded from x: else sources are read as numbers first
  int64_t pixel;   // lanes from one source to the next
  int64_t beyond;  // how many lanes the last vector of a source has beyond it: they hold what follows
  int64_t image;   // lanes of an image's sources

 public:
  GatherNarrow(const Plan& plan, Type type, Role role, const Problem& p, const Finish<A>& finish)
      : plan(plan), p(p), type(type), in_place(gconv::in_place<E>(type)), bytes(bytes_of<A>(type)),
        g(role, p), finish(finish), steps(g.sources / (plan.even_odd ? 2 : TERMS<E>)), lanes(g.groups, steps),
        vectors(plan.even_odd ? 2 : lanes.vectors), lane_sums(plan, g, lanes, finish, steps, type),
        stored(lane_sums.at_once ? bytes : sizeof(A)), direct(in_place && (vectors == 1 || steps % L == 0)),
        pixel(vectors == 1 ? g.groups * steps : lanes.blocks * vectors * L),
        beyond(first_lane(lanes.blocks - 1) + vectors * L - pixel),
        image(g.axis[0].sources * g.axis[1].sources * g.axis[2].sources * pixel) {}

  void run(const void* x, const void* w, void* result, const Scratch& scratch,
           const Parallel& parallel) const {
    E* weights = static_cast<E*>(scratch.packed);
    if (!scratch.is_packed)
      for_each(parallel, lanes.blocks, g.taps * tap_stride(), [&](int64_t block) {
        with_element<E>(
            type, [&](auto element) { pack(block, static_cast<const decltype(element)*>(w), weights); });
      });
    // A unit is some stretches of rows.
    int64_t longest = 0;
    for (int64_t i = 0; i < g.axis[2].phases.size; ++i) longest = maximum(longest, g.axis[2].phases[i].count);
    int64_t in_row = ceil_div(longest, plan.stretch);
    int64_t stretches = g.batch * g.axis[0].results * g.axis[1].results * in_row;
    int64_t work =
        minimum(longest, plan.stretch) * g.axis[2].phases.size * g.taps * g.results * lanes.blocks * vectors;
    int64_t per_unit =
        maximum(1, minimum(WORK / maximum(work, 1), ceil_div(stretches, 4 * parallel.threads)));
    int64_t parts =
        minimum(lanes.blocks, maximum(1, 2 * parallel.threads / maximum(stretches, 1)));  // of the channels
    parts = maximum(1, minimum(parts, work / WORK));
    for_each(parallel, ceil_div(stretches, per_unit) * parts, 1 << 14, [&](int64_t unit) {
      int64_t part = unit % parts, first = unit / parts * per_unit,
              last = minimum(first + per_unit, stretches);
      Lists lists;
      Part blocks{lanes.blocks * part / parts, lanes.blocks * (part + 1) / parts};
      // Rows that were read are kept from one row of results to the next.
      int64_t rows = stretches / in_row;
      for (int64_t i = first; i < last; ++i)
        row(direct ? i / in_row : i % rows, direct ? i % in_row : i / rows, blocks,
            static_cast<const char*>(x), weights, static_cast<char*>(result), lists);
      fence();
    });
  }

 private:
  struct Lists {  // of the row that is worked on, and of a tile at its border
    List<TapOfRow> taps, edge;
    List<uint32_t> masks;
    KeptRows<E> sources;  // that were read as numbers, or copied
    List<A> results;      // of a stretch of a row, [pixel][channel], where they are not stored at once
  };
  struct Part {  // of the blocks, from one to another
    int64_t from, to;
  };
  static constexpr int64_t WORK = 1 << 17;  // multiply-adds of vectors in a unit

  // Where a block begins among a source's numbers. One of several vectors must not see its neighbour's
  // channels, which may be NaN; the unused lanes of a single vector never meet the others.
  int64_t first_lane(int64_t block) const {
    return vectors == 1 ? lanes.first_channel(block) : block * vectors * L;
  }

  // [block][tap][vector][filter][lane]
  template <class T>
  void pack(int64_t block, const T* w, E* packed) const {
    E* to_block = packed + block * g.taps * tap_stride();
    int64_t terms = plan.even_odd ? 2 : TERMS<E>;
    for (int64_t v = 0; v < vectors; ++v) {
      bool odd = plan.even_odd && v == 1;
      int64_t offset[L],
          used = lanes.offsets(block, odd ? 0 : v, g.group_stride, terms * g.source_stride, offset);
      for (int64_t tap = 0; tap < g.taps; ++tap)
        for (int64_t k = 0; k < g.results; ++k) {
          const T* from = w + tap * g.tap_stride + k * g.result_stride + odd * g.source_stride;
          E* to = to_block + tap * tap_stride() + (v * g.results + k) * L;
          auto lane = [&](const T* first) {
            if constexpr (TERMS<E> == 2)
              return Pair{first->bits | uint32_t(first[g.source_stride].bits) << 16};
            else
              return value(*first);
          };
          UNROLL for (int64_t l = 0; l < L; ++l) to[l] = l < used ? lane(from + offset[l]) : E{};
        }
    }
  }

  // One stretch of one row of results: which taps of the outer axes meet it, then each phase along the row.
  void row(int64_t index, int64_t stretch, Part part, const char* x, const E* weights, char* result,
           Lists& lists) const {
    const Axis& width = g.axis[2];
    int64_t begin = stretch * plan.stretch,
            pixels = minimum(plan.stretch * width.step, width.results - begin * width.step);
    char* to = result + (index * width.results + begin * width.step) * g.result_channels() * bytes;
    Columns columns{0, 0};
    int64_t later = g.batch - 1 - index / g.axis[1].results / g.axis[0].results;  // images
    if (!direct || later * image < beyond) {
      columns = met(begin);
      int64_t rows = minimum(p.window[0], g.axis[0].sources) * minimum(p.window[1], g.axis[1].sources);
      lists.sources.begin(rows, columns.first, columns.count * pixel + L);
    }
    if (!lane_sums.at_once) lists.results.reserve(pixels * g.result_channels());
    for (int64_t i = 0; i < width.phases.size; ++i) {
      const Phase& phase = width.phases[i];
      int64_t end = minimum(begin + plan.stretch, phase.count);
      if (end <= begin) continue;
      list_taps(index, phase, columns, part, x, lists);
      const E* sources = direct ? reinterpret_cast<const E*>(x) : lists.sources.all();
      char* to_phase = lane_sums.at_once ? to : reinterpret_cast<char*>(lists.results.data);
      to_phase += phase.first * g.result_channels() * stored;
      for (int64_t k = 0, filters; k < g.results; k += filters) {
        filters = minimum(plan.vectors, g.results - k);
        auto of = [&](auto count) {
          tiles<narrow_tile(REGISTERS, count), count>(phase, begin, end, k, part, sources, weights, to_phase,
                                                      lists);
        };
        if constexpr (L > 8 && REGISTERS == 32)
          if (filters == 8) of(Number<8>{});
        with_number<4>(filters, of);
      }
    }
    if (!lane_sums.at_once) write_part(lists.results.data, pixels, part, to);
    if (finish.any()) {
      int64_t channel = part.from * lanes.per_block * g.results;
      int64_t last = minimum(g.result_channels(), part.to * lanes.per_block * g.results);
      int64_t first = (index * width.results + begin * width.step) * g.result_channels() + channel;
      finish({nullptr, first, g.result_channels()}, pixels, channel, last - channel);
    }
  }

  struct Columns {
    int64_t first, count;
  };

  // The columns of sources that the results of all phases from `begin` on meet.
  Columns met(int64_t begin) const {
    const Axis& width = g.axis[2];
    int64_t first = width.sources - 1, last = 0;
    for (int64_t i = 0; i < width.phases.size; ++i) {
      const Phase& phase = width.phases[i];
      int64_t end = minimum(begin + plan.stretch, phase.count);
      for (int64_t c = 0; c < phase.size && begin < end; ++c) {
        first = minimum(first, phase.taps[c].source + begin * width.stride);
        last = maximum(last, phase.taps[c].source + (end - 1) * width.stride);
      }
    }
    first = maximum(first, 0);
    return {first, maximum(0, minimum(last, width.sources - 1) - first + 1)};
  }

  // Lists the taps of a phase that meet a row of results. Their sources' offsets are in bytes of numbers.
  void list_taps(int64_t index, const Phase& phase, Columns columns, Part part, const char* x,
                 Lists& lists) const {
    const Axis &depth = g.axis[0], &height = g.axis[1], &width = g.axis[2];
    int64_t h = index % height.results, d = index / height.results % depth.results;
    int64_t n = index / height.results / depth.results;
    const Phase &dp = depth.phases[d % depth.step], &hp = height.phases[h % height.step];
    lists.taps.size = 0;
    for (int64_t a = 0; a < dp.size; ++a) {
      int64_t sd = dp.taps[a].source + d / depth.step * depth.stride;
      if (sd < 0 || sd >= depth.sources) continue;
      for (int64_t b = 0; b < hp.size; ++b) {
        int64_t sh = hp.taps[b].source + h / height.step * height.stride;
        if (sh < 0 || sh >= height.sources) continue;
        int64_t row = (n * depth.sources + sd) * height.sources + sh;
        int64_t source = row * width.sources * pixel;  // of the row's column 0
        // Nothing beyond the last source may be loaded.
        bool last = direct && (row + 1) * width.sources * pixel + beyond > g.batch * image;
        if (!direct || last) {
          source = lists.sources.place(row, [&](E* to) {
            read_part(x + (row * width.sources + columns.first) * g.source_channels() * bytes, columns.count,
                      part, to);
          }) - columns.first * pixel;
          if (last)
            source += (reinterpret_cast<intptr_t>(lists.sources.all()) - reinterpret_cast<intptr_t>(x)) /
                      (int64_t)sizeof(E);
        }
        for (int64_t c = 0; c < phase.size; ++c) {
          int64_t tap = g.tap(dp.taps[a].index, hp.taps[b].index, phase.taps[c].index, p);
          lists.taps.push({(source + phase.taps[c].source * pixel) * (int64_t)sizeof(E),
                           tap * tap_stride() * (int64_t)sizeof(E), 0});
        }
      }
    }
  }

  // Reads the channels of a part of the blocks, of some pixels.
  void read_part(const char* x, int64_t pixels, Part part, E* to) const {
    if constexpr (TERMS<E> == 2)
      read_part_of(reinterpret_cast<const Pair*>(x), pixels, part, to);
    else
      with_element<A>(type, [&](auto element) {
        read_part_of(reinterpret_cast<const decltype(element)*>(x), pixels, part, to);
      });
  }
  template <class T>
  void read_part_of(const T* from, int64_t pixels, Part part, E* to) const {
    int64_t channels = g.groups * steps, first = lanes.first_channel(part.from);
    int64_t count = minimum(channels, lanes.first_channel(part.to - 1) + L) - first;
    if (plan.even_odd) {
      if constexpr (std::is_same_v<T, Bf16>) read_even_odd(from, pixels, part, to);
      return;
    }
    if (vectors == 1 && count == channels) return read(from, pixels * channels, to);
    for (int64_t i = 0; i < pixels; ++i, from += channels, to += pixel)
      if (vectors == 1)
        read(from + first, count, to + first);
      else
        for (int64_t b = part.from; b < part.to; ++b) read(from + b * steps, steps, to + first_lane(b));
  }
  // The same with the even and the odd channels of a block in two vectors.
  void read_even_odd(const Bf16* from, int64_t pixels, Part part, A* to) const {
    const EvenOddStrand strand;
    int64_t channels = g.source_channels();
    for (int64_t i = 0; i < pixels; ++i, from += channels, to += pixel)
      for (int64_t b = part.from; b < part.to; ++b) {
        int64_t at = first_lane(b), left = channels - at;
        EvenOdd both = left < 2 * L ? strand.load_first(from + at, left) : strand.load(from + at);
        store(to + at, both.even), store(to + at + L, both.odd);
      }
  }

  // Writes the results of a part of the blocks to some pixels.
  void write_part(const A* from, int64_t pixels, Part part, char* to) const {
    int64_t channels = g.result_channels(), first = part.from * lanes.per_block * g.results;
    int64_t count = minimum(channels, part.to * lanes.per_block * g.results) - first;
    if (count == channels) return finish.results.write(from, pixels * channels, to);
    for (int64_t i = 0; i < pixels; ++i)
      finish.results.write(from + i * channels + first, count, to + (i * channels + first) * bytes);
  }

  template <int Q, int K>
  void tiles(const Phase& phase, int64_t begin, int64_t end, int64_t k, Part part, const E* x,
             const E* weights, char* result, Lists& lists) const {
    const Axis& width = g.axis[2];
    for (int64_t q = begin; q < end; q += Q) {
      int64_t count = minimum(Q, end - q);
      const E* source = x + q * width.stride * pixel;
      char* to_tile = result + (q - begin) * width.step * g.result_channels() * stored;
      if (count == Q && q >= phase.inside && q + Q <= phase.outside) {
        blocks<Q, K, false>(count, k, part, source, weights, to_tile, lists.taps);
        continue;
      }
      mask_taps(phase, q, count, lists);
      blocks<Q, K, true>(count, k, part, source, weights, to_tile, lists.edge);
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

  int64_t tap_stride() const { return vectors * g.results * L; }

  template <int Q, int K, bool EDGE>
  void blocks(int64_t count, int64_t k, Part part, const E* x, const E* weights, char* tile,
              const List<TapOfRow>& taps) const {
    int64_t step = g.axis[2].stride * pixel * (int64_t)sizeof(E);
    int64_t apart = g.axis[2].step * g.result_channels();  // results of neighbours in the phase
    // The pixels that this tile is the first to read are the next tile's, of the row furthest ahead.
    int64_t ahead = taps.size ? maximum(taps[0].source, taps[taps.size - 1].source) + Q * step : 0;
    for (int64_t block = part.from; block < part.to; ++block) {
      const E* source = x + first_lane(block);
      const E* w = weights + block * g.taps * tap_stride() + k * L;
      if (direct && block % 2 == 0) UNROLL
      for (int q = 0; q < Q; ++q)
        __builtin_prefetch(reinterpret_cast<const char*>(source) + ahead + q * step);
      Vector<E> sums[Q][K] = {};
      for (int64_t v = 0; v < vectors; ++v, source += L, w += g.results * L)
        accumulate<E, Q, K, EDGE>(sums, source, step, taps.data, taps.size, w);
      char* to = tile + (block * lanes.per_block * g.results + k) * stored;
      lane_sums.template add_and_store<Q, K>(sums, count, block, to, apart);
    }
  }
};

}  // namespace
}  // namespace gconv
