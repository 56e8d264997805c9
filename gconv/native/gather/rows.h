// Roles y and x of one group of few sources, as an image's colours, row by row (row_tile.h). The taps of a
// row are one tap, whose sources are neighbours in x. Those of a tile over a border are copied, with zeros
// for the padding.

#pragma once

#include "gather/row_tile.h"

namespace gconv {
namespace {

template <class E>
class GatherRows {
  using A = Wide<E>;
  using Result = Stored<E>;
  using Lists = RowLists<E>;
  static constexpr int L = LANES<E>;
  static constexpr int64_t WORK = 1 << 15;  // multiply-adds of vectors in a unit
  const Plan& plan;
  const Problem& p;
  Type type;
  bool in_place;  // whether sources are read where they are
  int64_t bytes;  // of an element
  Gather g;
  const Finish<A>& finish;
  int64_t steps;    // numbers or pairs of a group's sources
  int64_t columns;  // of sources in a row
  int64_t span;     // columns that the taps of a row meet
  RowTiles<E> tiles;

 public:
  GatherRows(const Plan& plan, Type type, Role role, const Problem& p, const Finish<A>& finish)
      : plan(plan), p(p), type(type), in_place(gconv::in_place<E>(type)), bytes(bytes_of<A>(type)),
        g(role, p), finish(finish), steps(g.sources / TERMS<E>), columns(g.axis[2].sources),
        span(p.window[2]), tiles(plan, type, p, g, finish) {}

  void run(const void* sources, const void* w, void* results, const Scratch& scratch,
           const Parallel& parallel) const {
    const char* x = static_cast<const char*>(sources);
    char* result = static_cast<char*>(results);
    const Axis& width = g.axis[2];
    bool backwards =
        width.phases.size && span > 1 && width.phases[0].taps[0].source > width.phases[0].taps[1].source;
    const E* kernel = g.packed<E>(plan, parallel, type, w, scratch, backwards ? span : 1);
    int64_t rows = g.batch * g.axis[0].results * g.axis[1].results;
    int64_t in_row = ceil_div(width.results, plan.stretch), stretches = rows * in_row;
    int64_t work = minimum(width.results, plan.stretch) * g.taps * g.sources * ceil_div(g.results, L);
    int64_t per_unit =
        maximum(1, minimum(WORK / maximum(work, 1), ceil_div(stretches, 16 * parallel.threads)));
    for_each(parallel, ceil_div(stretches, per_unit), per_unit * work, [&](int64_t unit) {
      Lists lists;
      for (int64_t i = unit * per_unit; i < minimum(stretches, (unit + 1) * per_unit); ++i) {
        int64_t row = i / in_row, first = i % in_row * plan.stretch;
        find(row, lists.rows);
        const Phase& taps = width.phases[0];
        int64_t column = minimum(taps.taps[0].source, taps.taps[taps.size - 1].source) + first * width.stride;
        char* to = result + (row * width.results + first) * g.results * bytes;
        int64_t count = minimum(plan.stretch, width.results - first);
        one_row(column, count, x, kernel, to, lists);
        tiles.finish_pixels(row * width.results + first, count, 0, g.results);
      }
      fence();
    });
  }

 private:
  // The rows of taps that meet a source from a row of results.
  void find(int64_t index, List<RowOfTaps>& rows) const {
    const Axis &depth = g.axis[0], &height = g.axis[1];
    int64_t h = index % height.results, d = index / height.results % depth.results;
    int64_t n = index / height.results / depth.results;
    const Phase &dp = depth.phases[d % depth.step], &hp = height.phases[h % height.step];
    rows.size = 0;
    for (int64_t a = 0; a < dp.size; ++a) {
      int64_t sd = dp.taps[a].source + d / depth.step * depth.stride;
      if (sd < 0 || sd >= depth.sources) continue;
      for (int64_t b = 0; b < hp.size; ++b) {
        int64_t sh = hp.taps[b].source + h / height.step * height.stride;
        if (sh < 0 || sh >= height.sources) continue;
        int64_t row = (n * depth.sources + sd) * height.sources + sh;
        int64_t tap = g.tap(dp.taps[a].index, hp.taps[b].index, 0, p);
        rows.push({row * columns * steps, tap * steps});
      }
    }
  }

  // `count` results of a row of the only group, the first of which finds its first source in `column`.
  void one_row(int64_t column, int64_t count, const char* x, const E* kernel, char* result,
               Lists& lists) const {
    if (in_place)
      return tiles.template blocks<false>({reinterpret_cast<const E*>(x), columns, steps, column, count,
                                           reinterpret_cast<Result*>(result), g.results},
                                          0, kernel, lists, 0, g.results);
    if constexpr (TERMS<E> == 1) read_row(column, count, x, kernel, result, lists);
  }

  // The same of half precision, as numbers.
  void read_row(int64_t column, int64_t count, const char* x, const A* kernel, char* result,
                Lists& lists) const {
    int64_t met = (count - 1) * g.axis[2].stride + span;
    with_element<A>(type, [&](auto element) {
      tiles.copy(reinterpret_cast<const decltype(element)*>(x), column, met, columns, lists.rows, steps,
                 lists.sources);
    });
    for (int64_t i = 0; i < lists.rows.size; ++i) lists.rows[i].source = i * met * g.sources;
    lists.results.reserve(count * g.results);
    tiles.template blocks<false>(
        {lists.sources.data, met, g.sources, 0, count, lists.results.data, g.results}, 0, kernel, lists, 0,
        g.results);
    finish.results.write(lists.results.data, count * g.results, result);
  }
};

}  // namespace
}  // namespace gconv
