// Roles y and x of wide groups: lanes are result channels of one group, and each source value is broadcast.
//
// The register tile is Q results by V vectors of filters:
//
//   for each tap, for each source channel:
//     V loads of weights;  for each of Q results: 1 broadcast load of x, V multiply-adds
//
// These are V + Q loads for V * Q multiply-adds: 8 for 12 with (V, Q) = (2, 6), 7 for 12 with (3, 4), 9 for 8
// with (1, 8). With 32 registers Q is 7, which divides the rows that images have in practice: 9 for 14 with V
// = 2.
//
// A tile's results are any Q pixels of the same phases, also of two rows or two images. A table of offsets
// says where each tap finds their sources. It is made once for a stretch and used for every group and filter.
// A tap that falls on the padding finds zeros. It is left out where it does so for the whole tile, or for the
// tile's first or last pixel: in the rows that images have in practice, tiles begin and end at borders.
//
// Sources are read where they are: numbers, or pairs of channels (vectors/products.h). Else, of half
// precision, those of a stretch and some groups are read as numbers first, and their results are written from
// numbers.

#pragma once

#include "gather/finish.h"

namespace gconv {
namespace {

// For the pixels from FIRST to LAST.
template <int FIRST, int LAST, class E, int Q, int V>
ALWAYS_INLINE void multiply(Vector<E> (&sums)[Q][V], const E* const (&x)[Q], const E* w, int64_t apart,
                            int64_t steps) {
  for (int64_t s = 0; s < steps; ++s, w += apart) {
    Vector<E> weight[V];
    UNROLL for (int v = 0; v < V; ++v) weight[v] = load(w + v * LANES<E>);
    UNROLL for (int q = FIRST; q < LAST; ++q) {
      Vector<E> source = broadcast(x[q][s]);
      UNROLL for (int v = 0; v < V; ++v) add_product<E>(sums[q][v], source, weight[v]);
    }
  }
}

template <class E>
class GatherWide {
  using A = Wide<E>;
  using Result = Stored<E>;
  static constexpr int L = LANES<E>;
  static constexpr int64_t TILES = wide_tiles(REGISTERS);
  const Plan& plan;
  const Problem& p;
  Type type;
  bool in_place;  // whether sources are read where they are
  Gather g;
  const Finish<A>& finish;
  int64_t steps;  // numbers or pairs of a group's sources
  int64_t unit;   // of a table's sources: numbers, pairs, or pixels where they are not read in place

  struct Stretch {  // of the results of one combination of phases
    const Phase *depth, *height, *width;
    int64_t first, count;
  };
  struct RowPart {  // of a stretch: its pixels in one row of the results
    int64_t first, count;
    int64_t image, depth, height, width;  // where its first pixel's sources are, but for the tap
  };
  struct Table {            // of a stretch; offsets are in numbers, of sources in what they are read as
    List<int64_t> taps;     // those that meet a source
    List<int64_t> sources;  // [tap][pixel], -1 on the padding
    List<int64_t> results;  // of each pixel
    int64_t padded;         // pixels, up to whole tiles
  };
  struct Near {  // of half precision: the sources and results of a stretch and some groups, as numbers
    List<int64_t> from, to;    // of each pixel that is read, and elements of each that is written
    List<A> sources, results;  // [pixel][channel]
  };
  struct Block {  // some vectors of a group's filters, and the group's sources
    const E* x;
    Gather::Weights<E> weights;
    const E* zeros;
    Result* result;
    int64_t filters;
    bool first_reader;  // of these sources
    const E* next;      // the weights that are read after these, or nullptr
  };

 public:
  GatherWide(const Plan& plan, Type type, Role role, const Problem& p, const Finish<A>& finish)
      : plan(plan), p(p), type(type), in_place(gconv::in_place<E>(type)), g(role, p), finish(finish),
        steps(g.sources / TERMS<E>), unit(in_place ? g.groups * steps : 1) {}

  void run(const void* x, const void* w, void* result, const Scratch& scratch,
           const Parallel& parallel) const {
    E* zeros = static_cast<E*>(scratch.rest);
    memset(zeros, 0, steps * sizeof(E));
    const E* kernel = g.packed<E>(plan, parallel, type, w, scratch, 1);
    List<Stretch> stretches;
    for (int64_t a = 0; a < g.axis[0].phases.size; ++a)
      for (int64_t b = 0; b < g.axis[1].phases.size; ++b)
        for (int64_t c = 0; c < g.axis[2].phases.size; ++c) {
          const Phase *d = &g.axis[0].phases[a], *h = &g.axis[1].phases[b], *w = &g.axis[2].phases[c];
          int64_t pixels = g.batch * d->count * h->count * w->count;
          for (int64_t i = 0; i < pixels; i += plan.stretch)
            stretches.push({d, h, w, i, minimum(plan.stretch, pixels - i)});
        }
    auto some = [&](int64_t unit, const Part& part) {
      results(stretches[unit], part, static_cast<const char*>(x), kernel, zeros, static_cast<char*>(result));
    };
    if (g.groups == 1 && stretches.size < 8 * parallel.threads)
      g.for_filters<L>(parallel, stretches.size,
                       in_place ? parts_of(parallel, stretches.size, INT64_MAX) : 2 * parallel.threads, some);
    else
      g.for_stretches(parallel, stretches.size, some);
  }

 private:
  // The parts of rows that a stretch has, and where its results lie.
  void find(const Stretch& pixels, List<RowPart>& parts, List<int64_t>& results) const {
    const Axis &depth = g.axis[0], &height = g.axis[1], &width = g.axis[2];
    const Phase &dp = *pixels.depth, &hp = *pixels.height, &wp = *pixels.width;
    results.reserve(pixels.count);
    for (int64_t i = 0, count; i < pixels.count; i += count) {
      int64_t q = pixels.first + i, w = q % wp.count, row = q / wp.count;
      int64_t h = row % hp.count, d = row / hp.count % dp.count, n = row / hp.count / dp.count;
      count = minimum(wp.count - w, pixels.count - i);
      parts.push({i, count, n, d * depth.stride, h * height.stride, w * width.stride});
      int64_t rd = dp.first + d * depth.step, rh = hp.first + h * height.step, rw = wp.first + w * width.step;
      int64_t first = ((n * depth.results + rd) * height.results + rh) * width.results + rw;
      for (int64_t k = 0; k < count; ++k) results.push((first + k * width.step) * g.result_channels());
    }
  }

  // Where one tap finds the sources of a row's part; whether any is off the padding.
  bool follow(const RowPart& part, int64_t depth_tap, int64_t height_tap, int64_t width_tap,
              int64_t* sources) const {
    const Axis &depth = g.axis[0], &height = g.axis[1], &width = g.axis[2];
    int64_t d = part.depth + depth_tap, h = part.height + height_tap, w = part.width + width_tap;
    int64_t k = 0, from = 0, to = 0;
    if (d >= 0 && d < depth.sources && h >= 0 && h < height.sources) {
      from = minimum(part.count, maximum(0, -floor_div(w, width.stride)));
      to = maximum(from, minimum(part.count, floor_div(width.sources - 1 - w, width.stride) + 1));
    }
    int64_t first = ((part.image * depth.sources + d) * height.sources + h) * width.sources + w;
    sources += part.first;
    for (; k < from; ++k) sources[k] = -1;
    for (; k < to; ++k) sources[k] = (first + k * width.stride) * unit;
    for (; k < part.count; ++k) sources[k] = -1;
    return from < to;
  }

  void results(const Stretch& pixels, const Part& part, const char* x, const E* kernel, const E* zeros,
               char* result) const {
    Table table;
    table.padded = ceil_div(pixels.count, TILES) * TILES;
    List<RowPart> parts;
    find(pixels, parts, table.results);
    const Phase &dp = *pixels.depth, &hp = *pixels.height, &wp = *pixels.width;
    for (int64_t a = 0; a < dp.size; ++a)
      for (int64_t b = 0; b < hp.size; ++b)
        for (int64_t c = 0; c < wp.size; ++c) {
          table.sources.reserve(table.sources.size + table.padded);
          int64_t* to = table.sources.data + table.sources.size;
          bool any = false;
          int64_t da = dp.taps[a].source, hb = hp.taps[b].source, wc = wp.taps[c].source;
          for (int64_t i = 0; i < parts.size; ++i) any |= follow(parts[i], da, hb, wc, to);
          if (!any) continue;  // overwritten by the next tap
          for (int64_t i = pixels.count; i < table.padded; ++i) to[i] = -1;
          table.sources.size += table.padded;
          table.taps.push(g.tap(dp.taps[a].index, hp.taps[b].index, wp.taps[c].index, p));
        }
    if (in_place) {
      const E* first = reinterpret_cast<const E*>(x) + part.group * steps;
      Result* to = reinterpret_cast<Result*>(result) + part.group * g.results + part.filter;
      groups(table, part, first, kernel, zeros, to);
      return finish_part(table.results, part);
    }
    if constexpr (TERMS<E> == 1) from_near(table, part, x, kernel, zeros, result);
  }

  // Half precision, as numbers.
  void from_near(Table& table, const Part& part, const char* x, const A* kernel, const A* zeros,
                 char* result) const {
    Near near;
    int64_t at_once = minimum(part.last_group - part.group, number_pixels(table, near));
    int64_t width = minimum(at_once * g.results, part.channels(g.results));
    for (int64_t& source : table.sources) source = source < 0 ? -1 : source * at_once * g.sources;
    for (int64_t i = 0; i < table.results.size; ++i)
      near.to.push(table.results[i]), table.results[i] = i * width;
    near.sources.reserve(near.from.size * at_once * g.sources + L);
    near.results.reserve(table.results.size * width);
    for (Part some = part; some.group < part.last_group; some.group = some.last_group) {
      some.last_group = minimum(some.group + at_once, part.last_group);
      with_element<A>(type, [&](auto element) {
        auto* sources = reinterpret_cast<const decltype(element)*>(x) + some.group * g.sources;
        auto* results = reinterpret_cast<decltype(element)*>(result) + some.channel(g.results);
        for (int64_t i = 0; i < near.from.size; ++i)
          read(sources + near.from[i] * g.source_channels(), (some.last_group - some.group) * g.sources,
               near.sources.data + i * at_once * g.sources);
        groups(table, some, near.sources.data, kernel, zeros, near.results.data);
        for (int64_t i = 0; i < near.to.size; ++i)
          finish.results.write(near.results.data + i * width, some.channels(g.results), results + near.to[i]);
      });
      finish_part(near.to, some);
    }
  }

  void finish_part(const List<int64_t>& results, const Part& part) const {
    int64_t channel = part.channel(g.results);
    if (finish.any() && !finish.ending.any)
      finish({results.data, channel, 0}, results.size, channel, part.channels(g.results));
  }

  // Half precision: numbers the pixels that a table's taps meet, and puts these numbers into the table.
  // Returns of how many groups their sources stay in the nearer caches.
  int64_t number_pixels(Table& table, Near& near) const {
    constexpr int64_t ROOM = 1 << 14;  // numbers
    int64_t first = INT64_MAX, last = 0;
    for (int64_t source : table.sources)
      if (source >= 0) first = minimum(first, source), last = maximum(last, source);
    // Where they are too far apart for a list of all in between, a pixel has a number for each tap.
    List<int32_t> number;
    int64_t all = last < first ? 0 : last - first + 1;
    bool listed = all <= 8 * table.sources.size;
    if (listed) number.reserve(all);
    for (int64_t i = 0; i < all && listed; ++i) number.push(-1);
    for (int64_t& source : table.sources) {
      if (source < 0) continue;
      int64_t found = near.from.size;
      if (listed) {
        int32_t& known = number[source - first];
        if (known < 0) known = int32_t(found);
        found = known;
      }
      if (found == near.from.size) near.from.push(source);
      source = found;
    }
    return maximum(1, ROOM / maximum(1, near.from.size * g.sources));
  }

  // A part, with whose first channels x and the result begin.
  void groups(const Table& table, const Part& part, const E* x, const E* kernel, const E* zeros,
              Result* result) const {
    int64_t vectors = ceil_div(part.last_filter, L);
    for (int64_t group = part.group; group < part.last_group; ++group, x += steps)
      for (int64_t v = part.filter / L, block; v < vectors; v += block) {
        block = block_of(vectors - v, 3);
        Gather::Weights<E> w = g.weights(plan, kernel, group, v, block);
        int64_t filters = minimum(block * L, g.results - v * L);
        const E* next = w.first + (plan.packed ? g.taps * steps : 1) * block * L;
        if (!g.asks_for_weights(plan, p)) next = nullptr;
        bool first_reader = in_place && v == part.filter / L;
        Result* to = result + (group - part.group) * g.results + v * L - part.filter;
        with_number<3>(block, [&](auto V) {
          tiles<wide_tile(REGISTERS, V), V>(table, {x, w, zeros, to, filters, first_reader, next});
        });
      }
  }

  template <int Q, int V>
  __attribute__((noinline)) void tiles(const Table& table, const Block& block) const {
    const E *x = block.x, *zeros = block.zeros, *weights = block.weights.first;
    int64_t apart = block.weights.source;
    Result* result = block.result;
    int64_t filters = block.filters, channel = finish.ending.any ? finish.results.offset(result) : 0;
    bool streams = in_place && plan.streams && !finish.ending.any &&
                   finish.results.template whole_lines<Result, V>(result, g.results);
    for (int64_t first = 0; first < table.results.size; first += Q) {
      Vector<E> sums[Q][V] = {};
      bool asks = block.first_reader && first + Q < table.results.size;  // for the next tile's sources
      // The tile's share of each tap's next weights, as row_tile.h asks for them.
      int64_t pixels = table.results.size, from = steps * first / pixels;
      int64_t to = block.next ? steps * minimum(first + Q, pixels) / pixels : from;
      for (int64_t t = 0; t < table.taps.size; ++t) {
        const E* source[Q];
        const int64_t* offset = table.sources.data + t * table.padded + first;
        int64_t missing = -1;  // where all sources are on the padding
        UNROLL for (int q = 0; q < Q; ++q) missing &= offset[q];
        if (missing == -1) continue;
        UNROLL for (int q = 0; q < Q; ++q) source[q] = offset[q] < 0 ? zeros : x + offset[q];
        const E* w = weights + table.taps[t] * block.weights.tap;
        for (int64_t c = 0; c < (asks ? steps : 0); c += LINE / sizeof(E)) UNROLL
        for (int q = 0; q < Q; ++q) __builtin_prefetch(x + offset[Q + q] + c);
        for (int64_t s = from; s < to; ++s) UNROLL
        for (int v = 0; v < V; ++v)
          __builtin_prefetch(block.next + table.taps[t] * block.weights.tap + s * apart + v * L);
        if (offset[0] == -1)
          multiply<1, Q, E>(sums, source, w, apart, steps);
        else if (offset[Q - 1] == -1)
          multiply<0, Q - 1, E>(sums, source, w, apart, steps);
        else
          multiply<0, Q, E>(sums, source, w, apart, steps);
      }
      int64_t count = minimum(Q, table.results.size - first);
      const int64_t* places = table.results.data + first;
      auto at = [&](int q) __attribute__((always_inline)) { return result + places[q < count ? q : 0]; };
      finish.template put<E>(sums, at, count, channel, filters, streams);
    }
  }
};

}  // namespace
}  // namespace gconv
