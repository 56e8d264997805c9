// Roles y and x of a single tap that meets every pixel: a matrix product. All pixels are one row
// (row_tile.h). Sources may be multiplied by one number for each image and channel before, by a gate: then a
// stretch of them is copied, and the products never become an array.

#pragma once

#include "gather/row_tile.h"

namespace gconv {
namespace {

template <class E>
class GatherMatrix {
  using A = Wide<E>;
  using Result = Stored<E>;
  using Lists = RowLists<E>;
  static constexpr int L = LANES<E>;
  static constexpr int64_t NEAR = 512 << 10;  // bytes of sources that stay in the second cache
  const Plan& plan;
  Type type;
  bool in_place;  // whether sources are read where they are
  bool cold;      // whether weights come from memory or the last cache
  Gather g;
  const Finish<A>& finish;
  const A* gate;    // of each image the channels' numbers, or nullptr
  int64_t steps;    // numbers or pairs of a group's sources
  int64_t pixels;   // of an image
  int64_t columns;  // of all images
  RowTiles<E> tiles;

 public:
  GatherMatrix(const Plan& plan, Type type, Role role, const Problem& p, const Finish<A>& finish,
               const void* gate)
      : plan(plan), type(type), in_place(gconv::in_place<E>(type)), cold(Gather::is_cold(plan, p)),
        g(role, p), finish(finish), gate(static_cast<const A*>(gate)), steps(g.sources / TERMS<E>),
        pixels(p.in[0] * p.in[1] * p.in[2]), columns(g.batch * pixels), tiles(plan, type, p, g, finish) {}

  void run(const void* sources, const void* w, void* results, const Scratch& scratch,
           const Parallel& parallel) const {
    const char* x = static_cast<const char*>(sources);
    char* result = static_cast<char*>(results);
    const E* kernel = g.packed<E>(plan, parallel, type, w, scratch, 1);
    int64_t stretches = ceil_div(columns, plan.stretch);
    // With a gate each unit copies its sources, so that units of pixels are better where there are enough.
    if (in_place && g.groups == 1 && !plan.by_pixels && stretches < (gate ? 2 : 8) * parallel.threads)
      return by_filters(parallel, stretches, reinterpret_cast<const E*>(x), kernel,
                        reinterpret_cast<Result*>(result));
    g.for_stretches(parallel, stretches, [&](int64_t unit, const Part& part) {
      Lists lists;
      lists.rows.push({0, 0});
      int64_t first = unit * plan.stretch, count = minimum(plan.stretch, columns - first);
      product(first, count, part.group, part.last_group, x, kernel, result, lists);
      tiles.finish_pixels(first, count, part.group * g.results, (part.last_group - part.group) * g.results);
    });
  }

 private:
  // A matrix product of few pixels: a unit has some of the filters. Where weights come from memory it has all
  // pixels, if their sources stay near and there are enough units.
  void by_filters(const Parallel& parallel, int64_t stretches, const E* x, const E* kernel,
                  Result* result) const {
    int64_t pairs = ceil_div(g.results, L) / 2;
    bool near = columns * steps * int64_t(sizeof(E)) <= NEAR && pairs >= 6 * parallel.threads;
    bool all = tiles.crowded || (cold && near);
    int64_t stretch = all ? columns : plan.stretch;
    if (all) stretches = 1;
    // Where each unit copies its sources there is one for each thread.
    bool copies = gate || crowds(steps);
    int64_t most = copies ? parallel.threads : parts_of(parallel, stretches, INT64_MAX);
    g.for_filters<L>(parallel, stretches, most, [&](int64_t unit, const Part& part) {
      Lists lists;
      lists.rows.push({0, 0});
      int64_t first = unit * stretch, count = minimum(stretch, columns - first);
      Row<E> row{x, columns, steps, first, count, result + first * g.results, g.results};
      tiles.template blocks<true>(apart(row, 0, lists), 0, kernel, lists, part.filter, part.last_filter);
      tiles.finish_pixels(first, count, part.filter, part.last_filter - part.filter);
    });
  }

  // From one pixel of a copy to the next, so that the pixels of a tile do not crowd the nearest cache.
  static int64_t step_of_copy(int64_t sources) {
    return sources + LINE / int64_t(sizeof(E)) * crowds(sources);
  }
  // Whether the pixels of a tile do, so many numbers after each other.
  static bool crowds(int64_t step) {
    return is_crowded(row_tile(REGISTERS, 1), step * int64_t(sizeof(E)), NEAREST_SETS);
  }

  // Pixels of a group that a tile reads side by side: from a copy if there is a gate, or if they would crowd
  // the nearest cache. XLA's product of 49 pixels and 3072 sources took 0.75 of the time before.
  Row<E> apart(Row<E> row, int64_t group, Lists& lists) const {
    if (!gate && !crowds(row.channels)) return row;
    int64_t step = step_of_copy(steps);
    E* to = lists.copies.reserve(row.count * step);
    for (int64_t i = 0; i < row.count; ++i) {
      const E* from = row.x + (row.column + i) * row.channels;
      if constexpr (TERMS<E> == 1)
        if (gate) {
          multiply(from, gate_of(row.column + i, group), steps, to + i * step);
          continue;
        }
      memcpy(to + i * step, from, steps * sizeof(E));
    }
    row.x = to, row.columns = row.count, row.channels = step, row.column = 0;
    return row;
  }

  // The gate of a pixel's sources from a group's on.
  const A* gate_of(int64_t pixel, int64_t group) const {
    return gate + pixel / pixels * g.source_channels() + group * g.sources;
  }
  static void multiply(const A* from, const A* by, int64_t count, A* to) {
    int64_t i = 0;
    for (; i + L <= count; i += L) store(to + i, load(from + i) * load(by + i));
    for (; i < count; ++i) to[i] = from[i] * by[i];
  }

  // A matrix product: `count` pixels of the groups from one to another.
  void product(int64_t first, int64_t count, int64_t from, int64_t to, const char* x, const E* kernel,
               char* result, Lists& lists) const {
    int64_t outputs = g.result_channels();
    if (in_place)
      for (int64_t group = from; group < to; ++group)
        tiles.template blocks<true>(
            apart({reinterpret_cast<const E*>(x) + group * steps, columns, g.groups * steps, first, count,
                   reinterpret_cast<Result*>(result) + first * outputs + group * g.results, outputs},
                  group, lists),
            group, kernel, lists, 0, g.results);
    else if constexpr (TERMS<E> == 1)
      read_pixels(first, count, from, to, x, kernel, result, lists);
  }

  // The same of half precision, as numbers.
  void read_pixels(int64_t first, int64_t count, int64_t from, int64_t to, const char* x, const A* kernel,
                   char* result, Lists& lists) const {
    int64_t all = g.source_channels(), outputs = g.result_channels();
    constexpr int64_t ROOM = 1 << 16;  // numbers
    int64_t at_once = maximum(1, minimum(ROOM / (count * g.sources), to - from));
    lists.sources.reserve(count * step_of_copy(at_once * g.sources) + L);
    lists.results.reserve(count * at_once * g.results);
    for (int64_t group = from, many; group < to; group += many) {
      many = minimum(at_once, to - group);
      int64_t sources = many * g.sources, step = step_of_copy(sources), results = many * g.results;
      with_element<A>(type, [&](auto element) {
        auto* theirs = reinterpret_cast<const decltype(element)*>(x) + first * all + group * g.sources;
        auto* ours = reinterpret_cast<decltype(element)*>(result) + first * outputs + group * g.results;
        for (int64_t i = 0; i < count; ++i) {
          A* numbers = lists.sources.data + i * step;
          read(theirs + i * all, sources, numbers);
          if (gate) multiply(numbers, gate_of(first + i, group), sources, numbers);
        }
        for (int64_t i = 0; i < many; ++i)
          tiles.template blocks<true>({lists.sources.data + i * g.sources, count, step, 0, count,
                                       lists.results.data + i * g.results, results},
                                      group + i, kernel, lists, 0, g.results);
        for (int64_t i = 0; i < count; ++i)
          finish.results.write(lists.results.data + i * results, results, ours + i * outputs);
      });
    }
  }
};

}  // namespace
}  // namespace gconv
