// Depthwise convolution: lanes are channels, and each channel meets its own filter only.
//
// All three roles are one loop nest: a tile of neighbouring results of one row (role w: of pixels of y) meets
// the taps of the window. Along the row taps come in runs of up to 7 neighbours whose sources overlap: with a
// stride s, Q pixels and a run of K taps share (Q - 1) * s + K sources. Each source is loaded once and meets
// up to K of the Q pixels:
//
//   (Q - 1) * s + K loads of sources for K * Q multiply-adds: 16 for 42 with a row of a 3 x 3 window (K = 3,
//   Q = 14), 20 for 98 with one of 7 x 7
//
// Two multiply-adds a cycle of latency 4 need 8 running sums: Q is 14 where there are 32 registers and 7
// where there are 16, which divide the sizes that images have in practice. Roles y and x with up to 4 taps in
// a row take pairs of vectors of half as many pixels: as many sums, and twice as much of each pixel at once,
// which touches fewer pages at a time; where two rows are taken at a time (by_two_rows) one vector of each. A
// source on the padding is left out with all that it would meet: one test for up to K multiply-adds, and only
// in tiles at a border.
//
// All vectors of channels take their turn at a tile before the next tile (but for role w by rows), and rows
// follow each other: memory is read and written in its own order, and the rows of a window stay in the second
// cache. (A chunk of channels at a time, so that they would stay in the nearest, was up to twice as slow: the
// processor no longer knows what to fetch next.) What it does not foresee is the row furthest ahead, which no
// tile has touched yet (with a stride of 2 down the image, two of them): in large problems each vector of a
// tile asks for the next tile's pixels there, into the nearest cache where a tile's sources stay in it, else
// into the second and a little further. That is worth a factor of up to 2, and costs some hundredths where
// the last cache holds all.

#pragma once

#include "vectors/strand.h"
#include "gather/gather.h"

namespace gconv {
namespace {

// Taps in a run at most; of a stride of 2 they are 5. With 16 registers a plan has strands of two vectors
// only where the longest run is no longer than PAIRED_RUN.
constexpr int LONGEST_RUN = 7;
template <class S>
constexpr int longest_run(int stride) {
  return S::VECTORS == 2 && REGISTERS == 16 ? PAIRED_RUN : stride == 2 ? 5 : LONGEST_RUN;
}

// How many taps the next run of so many neighbours has: 7 of a row of 7 or of many, else up to 5. Six are
// three and three.
inline int64_t taps_of_run(int64_t neighbours, int64_t longest) {
  if (longest == 7 && (neighbours == 7 || neighbours > 10)) return 7;
  return ceil_div(neighbours, ceil_div(neighbours, minimum(longest, 5)));
}

// Calls f(Number<n>) for the n taps of a run.
template <int LONGEST, class F>
ALWAYS_INLINE void with_taps(int64_t n, const F& f) {
  if constexpr (LONGEST == 7)
    if (n == 7) return f(Number<7>{});
  with_number<LONGEST == 7 ? 5 : LONGEST>(n, f);
}
constexpr int TILE = depthwise_tile(REGISTERS), HALF_TILE = depthwise_half_tile(REGISTERS);

constexpr int64_t NONE = -1;  // no weights

constexpr uint64_t ALL_VALID = ~uint64_t{0};

// Bit j tells whether source first + j * apart lies in [0, sources).
ALWAYS_INLINE uint64_t valid_sources(int64_t first, int64_t apart, int64_t sources) {
  int64_t from = minimum(63, (maximum(-first, 0) + apart - 1) / apart);
  int64_t to = maximum(from, minimum(63, first < sources ? (sources - 1 - first) / apart + 1 : 0));
  return ((uint64_t{1} << to) - 1) & ~((uint64_t{1} << from) - 1);
}

// How far the neighbours among the sources of a tile lie from each other, in pixels. Where runs have one tap,
// as those of strides above 2 have, they are a stride apart.
inline int64_t distance(const Axis& width, int64_t longest = LONGEST_RUN) {
  return longest > 1 && width.stride / width.unit <= 2 ? width.unit : width.stride;
}

// Taps of the longest run of a problem.
template <class S>
int64_t longest_run(const Axis& width, int64_t channels) {
  return channels < S::LANES ? 1 : longest_run<S>(width.stride == width.unit ? 1 : 2);
}

struct Run {                // of taps whose sources are neighbours
  int64_t source, weights;  // of the first tap: offsets in elements
  int64_t column;           // the pixel of its source along the row
  int64_t taps;
  int64_t second = NONE;       // the weights that meet the same sources for the next row of results
  uint64_t valid = ALL_VALID;  // of a tile at an edge: a bit for each source that is not on the padding
};

struct Tile {
  const Run* runs;
  int64_t count;           // of runs
  int64_t source, result;  // offsets in elements, of the pixels that the runs' own are relative to and of the
                           // first result
  int64_t column;          // likewise along the row
  int64_t next;            // from the first result to that of the row that is summed with it
  int64_t ahead,
      before;  // offsets of sources to come in the row furthest ahead and the new one before it, or the same
  int64_t left;         // results from here to the end of the row or its cut
  int64_t weight_step;  // from one tap of a run to the next
  bool edge;            // whether some source of a tile may be on the padding
};

// The rows of a problem, one after the other.
class Rows {
  const Plan& plan;
  const Problem& p;
  const Gather& g;
  int64_t channels, longest;
  int64_t largest;  // results of the largest tile
  // What the rows of one depth have in common: for each phase of the height and the width the runs of all
  // taps, those of one tap of the height together, so that the runs of any row are neighbours.
  int64_t depth = -1;
  List<Run> runs, both;  // both: those of two rows at once
  List<int64_t> begin;   // of the runs of (phase of the height, phase of the width)
  List<int64_t> each;    // how many runs a tap of the height has, for each phase of the width

 public:
  // `longest`: taps of the longest run.
  Rows(const Plan& plan, const Problem& p, const Gather& g, int64_t largest, int64_t longest)
      : plan(plan), p(p), g(g), channels(p.groups), longest(longest), largest(largest) {}

  // How many units an image has: rows, or those two by two, of which the last in a plane may be alone.
  static int64_t units(const Plan& plan, const Gather& g) {
    return g.axis[0].results * ceil_div(g.axis[1].results, plan.rows);
  }
  // Into how many stretches a row is cut.
  static int64_t in_row(const Plan& plan, const Gather& g) {
    int64_t longest = 1;
    for (int64_t i = 0; i < g.axis[2].phases.size; ++i) longest = maximum(longest, g.axis[2].phases[i].count);
    return ceil_div(longest, plan.stretch);
  }

  template <class F, class F2>
  void unit(int64_t n, int64_t index, int64_t part, const F& tile, const F2& tile_of_two) {
    int64_t high = g.axis[1].results, in_plane = ceil_div(high, plan.rows), h = index % in_plane * plan.rows;
    int64_t first = index / in_plane * high + h;
    plan.rows == 2 && h + 1 < high ? two_rows(n, first, part, tile_of_two) : row(n, first, part, tile);
  }

 private:
  // Calls tile(Tile), which returns how many results it did, along stretch `part` of row `index` of image
  // `n`.
  template <class F>
  void row(int64_t n, int64_t index, int64_t part, const F& tile) {
    const Axis &height = g.axis[1], &width = g.axis[2];
    int64_t at_depth = index / height.results, at_height = index % height.results;
    if (at_depth != depth) lay_out(at_depth);
    const Phase& hp = height.phases[at_height % height.step];
    int64_t start = at_height / height.step * height.stride, first = hp.size, last = 0;
    for (int64_t b = 0; b < hp.size; ++b)
      if (int64_t source = hp.taps[b].source + start; source >= 0 && source < height.sources)
        first = minimum(first, b), last = b + 1;
    first = minimum(first, last);
    Tile t;
    for (int64_t w = 0; w < width.phases.size; ++w) {
      Run* all = runs.data + begin[at_height % height.step * width.phases.size + w] + first * each[w];
      t.count = (last - first) * each[w];
      along(t, all, w, n, at_height, start, part, height.stride > 1 && last - first > 1, tile);
    }
  }

  // The same of this row and the next, which one phase holds: each row of sources meets its taps of both.
  template <class F>
  void two_rows(int64_t n, int64_t index, int64_t part, const F& tile) {
    const Axis &height = g.axis[1], &width = g.axis[2];
    int64_t at_depth = index / height.results, at_height = index % height.results;
    if (at_depth != depth) lay_out(at_depth);
    const Phase& hp = height.phases[0];
    both.size = 0;
    auto run = [&](int64_t i, int64_t k) { return runs[(ascends(hp) ? i : hp.size - 1 - i) * each[0] + k]; };
    for (int64_t i = 0; i <= hp.size;
         ++i) {  // the taps of the first row, and those of the second, a row further
      int64_t source = at_height + i + minimum(hp.taps[0].source, hp.taps[hp.size - 1].source);
      if (source < 0 || source >= height.sources) continue;
      for (int64_t k = 0; k < each[0]; ++k) {
        Run r = run(i < hp.size ? i : i - 1, k);
        if (i == hp.size) r.source += width.sources * channels, r.weights = NONE;
        if (i > 0) r.second = run(i - 1, k).weights;
        both.push(r);
      }
    }
    Tile t;
    t.count = both.size;
    along(t, both.data, 0, n, at_height, at_height, part, true, tile);
  }

  // Tiles along a row of the phase `w` of the width, of which the runs are known and `start` is the row that
  // they are relative to.
  template <class F>
  void along(Tile& t, Run* all, int64_t w, int64_t n, int64_t at_height, int64_t start, int64_t part,
             bool two_new, const F& tile) const {
    t.runs = all;
    const Axis &deep = g.axis[0], &height = g.axis[1], &width = g.axis[2];
    const Phase& wp = width.phases[w];
    int64_t image = (n * deep.sources * height.sources + start) * width.sources;
    int64_t result = ((n * deep.results + depth) * height.results + at_height) * width.results;
    t.weight_step = wp.size > 1 ? channels * (wp.taps[1].index - wp.taps[0].index) : 0;
    if (!ascends(wp)) t.weight_step = -t.weight_step;
    t.next = width.results * channels;
    int64_t end = minimum((part + 1) * plan.stretch, wp.count);
    for (int64_t q = part * plan.stretch; q < end;) {
      t.source = (image + q * width.stride) * channels, t.column = q * width.stride;
      t.result = (result + wp.first + q * width.step) * channels, t.left = end - q;
      t.edge = q < wp.inside || q + largest > wp.outside;
      for (int64_t i = 0; i < t.count; ++i)
        all[i].valid = t.edge
                           ? valid_sources(all[i].column + t.column, distance(width, longest), width.sources)
                           : ALL_VALID;
      int64_t furthest = t.count ? maximum(t.runs[0].source, t.runs[t.count - 1].source) : 0;
      t.ahead = t.source + furthest + (plan.near ? largest : TILE) * width.stride * channels;
      t.before = t.ahead - (two_new ? width.sources * channels : 0);
      q += tile(t);
    }
  }

  static bool ascends(const Phase& phase) {
    return phase.size < 2 || phase.taps[1].source > phase.taps[0].source;
  }

  void lay_out(int64_t at_depth) {
    depth = at_depth;
    runs.size = begin.size = each.size = 0;
    const Axis &deep = g.axis[0], &height = g.axis[1], &width = g.axis[2];
    const Phase& dp = deep.phases[depth % deep.step];
    for (int64_t h = 0; h < height.phases.size; ++h)
      for (int64_t w = 0; w < width.phases.size; ++w) {
        int64_t last = runs.size;
        begin.push(last);
        for (int64_t b = 0; b < height.phases[h].size; ++b) {
          last = runs.size;
          for (int64_t a = 0; a < dp.size; ++a) {
            int64_t source = dp.taps[a].source + depth / deep.step * deep.stride;
            if (source < 0 || source >= deep.sources) continue;
            const Tap& tap = height.phases[h].taps[b];
            push(width.phases[w], (source * height.sources + tap.source) * width.sources,
                 (dp.taps[a].index * p.window[1] + tap.index) * p.window[2]);
          }
        }
        if (h == 0) each.push(0);
        if (height.phases[h].size) each[w] = runs.size - last;
      }
  }

  // The runs of one row of taps, in the order of their sources.
  void push(const Phase& phase, int64_t row, int64_t tap) {
    auto at = [&](int64_t i) { return phase.taps[ascends(phase) ? i : phase.size - 1 - i]; };
    const Axis& width = g.axis[2];
    for (int64_t i = 0, taps; i < phase.size; i += taps) {
      taps = 1;
      if (width.stride / width.unit <= 2)
        while (i + taps < phase.size && at(i + taps).source == at(i).source + taps * width.unit) ++taps;
      taps = taps_of_run(taps, longest);
      runs.push({(row + at(i).source) * channels, (tap + at(i).index) * channels, at(i).source, taps});
    }
  }
};

// Asks for a cache line of each of `pixels` pixels, with the first of the strands that share it; NEAR: into
// the nearest cache.
template <bool NEAR, class S, class T>
ALWAYS_INLINE void fetch(const T* at, int64_t step, int64_t pixels, int64_t strand) {
  if (strand * S::LANES * (int64_t)sizeof(T) % LINE == 0)
    for (int64_t i = 0; i < pixels; ++i) __builtin_prefetch(at + i * step, 0, NEAR ? 3 : 2);
}

template <bool NEAR, class S, class T>
ALWAYS_INLINE void fetch_sources(const Tile& t, const T* x, const Axis& width, int64_t channels,
                                 int64_t results, int64_t strand) {
  int64_t step = width.unit * channels, pixels = results * minimum(width.stride / width.unit, 2);
  fetch<NEAR, S>(x + t.ahead, step, pixels, strand);
  if (t.before != t.ahead) fetch<NEAR, S>(x + t.before, step, pixels, strand);
}

// Strands of channels that are taken together. There are as many whole ones as the channels fill, and the
// last of all ends with the last channel: it overlaps the one before it, and some results are summed twice,
// to the same.
struct Together {
  int64_t first;  // channel of the first strand
  int64_t last;   // channels from there to the first of the last strand
};
template <class S, int V>
ALWAYS_INLINE Together together(int64_t strand, int64_t channels) {
  constexpr int L = S::LANES;
  int64_t first = strand * L, last = minimum(first + (V - 1) * L, channels - L);
  return V == 1 ? Together{last, 0} : Together{first, last - first};
}

// Calls meet(source, v, k, q) for each of V strands of channels, tap k of a run and pixel q of a tile;
// `valid` has a bit for each source that is not on the padding. The last of the strands lies `last` channels
// from the first. With PART there is one, of which `last` is how many lanes are used.
template <int Q, int K, int STRIDE, bool EDGE, bool PART, int V = 1, class S, class F>
ALWAYS_INLINE void slide(const S& strand, const typename S::Element* x, int64_t step, uint64_t valid,
                         int64_t last, const F& meet) {
  UNROLL for (int j = 0; j < (Q - 1) * STRIDE + K; ++j, x += step) {
    if (STRIDE > K && j % STRIDE >= K) continue;
    if (EDGE && !(valid >> j & 1)) continue;
    UNROLL for (int v = 0; v < V; ++v) {
      typename S::Numbers source =
          PART ? strand.load_first(x, last) : strand.load(x + (V > 1 && v == V - 1 ? last : v * S::LANES));
      if (K > 1) S::keep(source);
      UNROLL for (int k = 0; k < K; ++k)
        if (j >= k && (j - k) % STRIDE == 0 && (j - k) / STRIDE < Q) meet(source, v, k, (j - k) / STRIDE);
    }
  }
}

// Calls f with compile-time values of these.
template <class F>
ALWAYS_INLINE void with_stride(const Axis& width, const F& f) {
  // Strides above 2 have runs of one tap, whose sources are `stride` pixels apart: as with a stride of 1 and
  // longer steps.
  width.stride / width.unit == 2 ? f(Number<2>{}) : f(Number<1>{});
}

}  // namespace
}  // namespace gconv
