// Roles y and x where neighbouring results meet neighbouring sources, so that no table has to say where.
// Lanes are result channels of one group, and each source value is broadcast, as in wide.h.
//
// The register tile is Q results of one row by V vectors of filters:
//
//   for each tap of a row, for each source channel:
//     V loads of weights;  for each of Q results: 1 broadcast load of x, V multiply-adds
//
// These are V + Q loads for V * Q multiply-adds. The Q results are all as far apart, so a few addresses reach
// them and a tile has more of them than with a table: with 32 registers 14 of up to two vectors, 16 loads for
// 28 multiply-adds.
//
// Two kinds of problems are such:
//
//   rows     one group of few sources, as an image's colours. The taps of a row are one tap, whose sources
//   are
//            neighbours in x. Those of a tile over a border are copied, with zeros for the padding.
//   matrix   a single tap that meets every pixel: a matrix product. All pixels are one row.
//
// Sources are read where they are: numbers, or pairs of channels (vectors/products.h). Else, of half
// precision, those of a stretch are read as numbers first, and its results are written from numbers.

#pragma once

#include "gather/finish.h"

namespace gconv {
namespace {

// Weights that are read next: a tile asks for its share of them while it multiplies. They come from memory or
// the last cache, since a network has more weights than the nearer ones hold, and row by row, which the
// processor does not foresee.
template <class E>
struct Ahead {
  const E* first;
  int64_t apart;       // from one row to the next
  int64_t row, share;  // the tile's first row, and how many it asks for in 256 of its own
};

template <int V, class E>
ALWAYS_INLINE void fetch(const Ahead<E>& next, int64_t s) {
  const E* row = next.first + (next.row + s * next.share / 256) * next.apart;
  UNROLL for (int v = 0; v < V; ++v) __builtin_prefetch(row + v * LANES<E>, 0, 2);
}

// For Q results whose sources lie one `step` after the other, a row of taps or the single tap: `length`
// sources. The weights of one and of the next lie `apart`.
template <class E, int Q, int V, class... Next>
ALWAYS_INLINE void multiply_row(Vector<E> (&sums)[Q][V], const E* x, int64_t step, const E* w, int64_t apart,
                                int64_t length, const Next&... next) {
  const E* from[(Q + 2) / 3];  // every third has a register, as in narrow.h
  from[0] = x;
  UNROLL for (int i = 1; i < (Q + 2) / 3; ++i) from[i] = from[i - 1] + 3 * step;
  for (int64_t s = 0; s < length; ++s, w += apart) {
    Vector<E> weight[V];
    UNROLL for (int v = 0; v < V; ++v) weight[v] = load(w + v * LANES<E>);
    (fetch<V>(next, s), ...);
    UNROLL for (int q = 0; q < Q; ++q) {
      Vector<E> source = broadcast(from[q / 3][q % 3 * step]);
      UNROLL for (int v = 0; v < V; ++v) add_product<E>(sums[q][v], source, weight[v]);
    }
    UNROLL for (int i = 0; i < (Q + 2) / 3; ++i) {
      ++from[i];
      __asm__("" : "+r"(from[i]));
    }
  }
}

template <class E>
class GatherRows {
  using A = Wide<E>;
  using Result = Stored<E>;
  static constexpr int L = LANES<E>;
  static constexpr bool MANY = REGISTERS == 32;
  static constexpr int64_t WORK = 1 << 15;    // multiply-adds of vectors in a unit
  static constexpr int64_t NEAR = 512 << 10;  // bytes of sources that stay in the second cache
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
  bool crowded;     // whether weights are copied

  struct RowOfTaps {  // the source at column 0, and the row of the packed kernel
    int64_t source, weights;
  };
  // Neighbouring results of a row, and their sources. Those of half precision are numbers that were read, or
  // that will be written.
  struct Row {
    const E* x;                 // column 0 of the first row of taps
    int64_t columns, channels;  // of x, in numbers or pairs: what is left out is padding
    int64_t column, count;      // the first source's column, and how many results there are
    Result* result;
    int64_t step;  // from one result to the next
  };
  struct Lists {
    List<RowOfTaps> rows;
    // The sources of a tile over a border, of each of the rows; or of pixels that crowd the nearest cache.
    List<E> copies;
    List<A> sources, results;  // of half precision: as numbers
    List<E> weights;           // of some filters, where those of the kernel crowd a cache
  };

 public:
  GatherRows(const Plan& plan, Type type, Role role, const Problem& p, const Finish<A>& finish)
      : plan(plan), p(p), type(type), in_place(gconv::in_place<E>(type)), bytes(bytes_of<A>(type)),
        g(role, p), finish(finish), steps(g.sources / TERMS<E>), columns(g.axis[2].sources),
        span(p.window[2]), crowded(g.is_crowded<E>(plan)) {
    if (plan.kernel == Kernel::matrix) columns = g.batch * p.in[0] * p.in[1] * p.in[2];
  }

  void run(const void* sources, const void* w, void* results, void* scratch, const Parallel& parallel) const {
    const char* x = static_cast<const char*>(sources);
    char* result = static_cast<char*>(results);
    const Axis& width = g.axis[2];
    bool backwards =
        width.phases.size && span > 1 && width.phases[0].taps[0].source > width.phases[0].taps[1].source;
    const E* kernel = g.packed<E>(plan, parallel, type, w, scratch, backwards ? span : 1);
    if (plan.kernel == Kernel::matrix) {
      int64_t stretches = ceil_div(columns, plan.stretch);
      if (in_place && g.groups == 1 && stretches < 8 * parallel.threads)
        return by_filters(parallel, stretches, reinterpret_cast<const E*>(x), kernel,
                          reinterpret_cast<Result*>(result));
      return g.for_stretches(parallel, stretches, [&](int64_t unit, int64_t from, int64_t to) {
        Lists lists;
        lists.rows.push({0, 0});
        int64_t first = unit * plan.stretch, count = minimum(plan.stretch, columns - first);
        pixels(first, count, from, to, x, kernel, result, lists);
        finish_pixels(first, count, from * g.results, (to - from) * g.results);
      });
    }
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
        finish_pixels(row * width.results + first, count, 0, g.results);
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

  // Some channels of `count` pixels from one on.
  void finish_pixels(int64_t first, int64_t count, int64_t channel, int64_t channels) const {
    if (finish.any() && !finish.ending.any)
      finish({nullptr, first * g.result_channels() + channel, g.result_channels()}, count, channel, channels);
  }

  // A matrix product of few pixels: a unit has some of the filters, two vectors at a time as they are packed,
  // and a thread has all pixels of its filters one after the other. So each weight is read by one thread. Of
  // a kernel that is not packed a unit has all pixels, if their sources stay near and there are enough units.
  void by_filters(const Parallel& parallel, int64_t stretches, const E* x, const E* kernel,
                  Result* result) const {
    int64_t vectors = ceil_div(g.results, L), pairs = maximum(1, vectors / 2);
    bool near = columns * steps * int64_t(sizeof(E)) <= NEAR && pairs >= 6 * parallel.threads;
    bool all = crowded || (!plan.packed && near);
    int64_t stretch = all ? columns : plan.stretch;
    if (all) stretches = 1;
    // Each unit copies sources that would crowd the nearest cache: then there is one for each thread.
    int64_t parts = crowds(steps) ? minimum(pairs, parallel.threads) : parts_of(parallel, stretches, pairs);
    for_each(parallel, stretches * parts, 1 << 14, [&](int64_t unit) {
      Lists lists;
      lists.rows.push({0, 0});
      int64_t part = unit / stretches, first = unit % stretches * stretch;
      int64_t count = minimum(stretch, columns - first);
      int64_t from = 2 * (pairs * part / parts);
      int64_t to = part + 1 == parts ? vectors : 2 * (pairs * (part + 1) / parts);
      Row row{x, columns, steps, first, count, result + first * g.results, g.results};
      blocks<true>(apart(row, lists), 0, kernel, lists, from, to);
      finish_pixels(first, count, from * L, minimum(to * L, g.results) - from * L);
      fence();
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

  // Pixels that a tile reads side by side, from a copy if they would crowd the nearest cache: XLA's product
  // of 49 pixels and 3072 sources took 0.75 of the time before.
  Row apart(Row row, Lists& lists) const {
    if (!crowds(row.channels)) return row;
    int64_t step = step_of_copy(steps);
    E* to = lines(lists.copies, row.count * step);
    for (int64_t i = 0; i < row.count; ++i)
      memcpy(to + i * step, row.x + (row.column + i) * row.channels, steps * sizeof(E));
    row.x = to, row.columns = row.count, row.channels = step, row.column = 0;
    return row;
  }

  // A matrix product: `count` pixels of the groups from one to another.
  void pixels(int64_t first, int64_t count, int64_t from, int64_t to, const char* x, const E* kernel,
              char* result, Lists& lists) const {
    int64_t outputs = g.result_channels();
    if (in_place)
      for (int64_t group = from; group < to; ++group)
        blocks<true>(
            apart({reinterpret_cast<const E*>(x) + group * steps, columns, g.groups * steps, first, count,
                   reinterpret_cast<Result*>(result) + first * outputs + group * g.results, outputs},
                  lists),
            group, kernel, lists);
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
        for (int64_t i = 0; i < count; ++i) read(theirs + i * all, sources, lists.sources.data + i * step);
        for (int64_t i = 0; i < many; ++i)
          blocks<true>({lists.sources.data + i * g.sources, count, step, 0, count,
                        lists.results.data + i * g.results, results},
                       group + i, kernel, lists);
        for (int64_t i = 0; i < count; ++i)
          finish.results.write(lists.results.data + i * results, results, ours + i * outputs);
      });
    }
  }

  // `count` results of a row of the only group, the first of which finds its first source in `column`.
  void one_row(int64_t column, int64_t count, const char* x, const E* kernel, char* result,
               Lists& lists) const {
    if (in_place)
      return blocks<false>({reinterpret_cast<const E*>(x), columns, steps, column, count,
                            reinterpret_cast<Result*>(result), g.results},
                           0, kernel, lists);
    if constexpr (TERMS<E> == 1) read_row(column, count, x, kernel, result, lists);
  }

  // The same of half precision, as numbers.
  void read_row(int64_t column, int64_t count, const char* x, const A* kernel, char* result,
                Lists& lists) const {
    int64_t met = (count - 1) * g.axis[2].stride + span;
    with_element<A>(type, [&](auto element) {
      copy(reinterpret_cast<const decltype(element)*>(x), column, met, columns, lists.rows, steps,
           lists.sources);
    });
    for (int64_t i = 0; i < lists.rows.size; ++i) lists.rows[i].source = i * met * g.sources;
    lists.results.reserve(count * g.results);
    blocks<false>({lists.sources.data, met, g.sources, 0, count, lists.results.data, g.results}, 0, kernel,
                  lists);
    finish.results.write(lists.results.data, count * g.results, result);
  }

  // The vectors of a group's filters from the first to the last.
  template <bool MATRIX>
  void blocks(const Row& row, int64_t group, const E* kernel, Lists& lists, int64_t first = 0,
              int64_t last = INT64_MAX) const {
    int64_t vectors = ceil_div(g.results, L);
    // Rows that images have in practice are multiples of 7 or of 8.
    bool eights = row.count % 8 == 0 && row.count % 7;
    for (int64_t v = first, block; v < minimum(vectors, last); v += block) {
      block = block_of(vectors - v, 3);
      Gather::Weights<E> w = g.weights(plan, kernel, group, v, block);
      // Of a packed kernel, which is in the caches, nothing.
      Ahead<E> next{w.first, 0, 0, 0};
      if (!plan.packed) next = {w.first + block * L, w.source, 0, 0};
      if (crowded) w = g.side_by_side(w, block, lists.weights);
      int64_t filters = minimum(block * L, g.results - v * L);
      Result* to = row.result + v * L;
      with_number<3>(block, [&](auto V) {
        if constexpr (MANY && !MATRIX)
          if (eights) return tiles<false, 8, V>(row, 0, w, filters, to, lists, next);
        tiles<MATRIX, row_tile(REGISTERS, V), V>(row, 0, w, filters, to, lists, next);
      });
    }
  }

  // Results from `begin` to the end of a row. A rest of up to half a tile goes to smaller tiles, a longer one
  // to a tile that ends with it and sums some results to the same again.
  template <bool MATRIX, int Q, int V>
  void tiles(const Row& row, int64_t begin, const Gather::Weights<E>& w, int64_t filters, Result* result,
             Lists& lists, const Ahead<E>& next) const {
    // Whole tiles of a matrix product end in registers; others, which are rarer, once they are stored.
    constexpr bool ENDS = TERMS<E> == 1 && MATRIX && Q == row_tile(REGISTERS, V);
    bool ends = ENDS && finish.ending.any;
    bool streams = in_place && plan.streams && (!finish.any() || ends) &&
                   finish.results.template whole_lines<Result, V>(result, g.results);
    int64_t stride = g.axis[2].stride, wide = (Q - 1) * stride + span, step = stride * row.channels;
    for (int64_t q = begin; q < row.count; q += Q) {
      if constexpr (Q > 1 && Q != 8)
        if (int64_t rest = row.count - q; q == begin ? rest < Q : rest <= Q / 2)
          return tiles<MATRIX, Q / 2, V>(row, q, w, filters, result, lists, next);
      q = minimum(q, row.count - Q);
      int64_t first = row.column + q * stride;
      Vector<E> sums[Q][V] = {};
      if constexpr (MATRIX) {
        Ahead<E> ahead = next;
        ahead.row = steps * q / row.count, ahead.share = 256 * Q / row.count;
        multiply_row<E, Q, V>(sums, row.x + first * step, step, w.first, w.source, steps, ahead);
      } else {
        bool inside = first >= 0 && first + wide <= row.columns;
        if (!inside) copy(row.x, first, wide, row.columns, lists.rows, steps, lists.copies);
        for (int64_t i = 0; i < lists.rows.size; ++i) {
          const E* from =
              inside ? row.x + lists.rows[i].source + first * steps : lists.copies.data + i * wide * steps;
          multiply_row<E, Q, V>(sums, from, step, w.first + lists.rows[i].weights * V * L, V * L,
                                span * steps);
        }
      }
      Result* to = result + q * row.step;
      if constexpr (ENDS)
        if (const Ending<A> end = finish.ending; end.any) {
          int64_t channel = finish.results.offset(result) % g.result_channels();
          UNROLL for (int i = 0; i < Q; ++i, to += row.step) UNROLL
          for (int v = 0; v < V; ++v) {
            A* at = to + v * L;
            int64_t count = filters - v * L;
            Vector<A> ended = end(sums[i][v], at, channel + v * L, count);
            if (count < L)
              store_first(at, ended, count);
            else
              streams ? stream(at, ended) : store(at, ended);
          }
          continue;
        }
      const Results<A> out = finish.results;
      UNROLL for (int i = 0; i < Q; ++i, to += row.step) UNROLL
      for (int v = 0; v < V; ++v) out.store(to + v * L, sums[i][v], filters - v * L, streams);
      if (finish.ending.any) {
        int64_t offset = out.offset(result);
        finish.tile({nullptr, offset + q * row.step, row.step}, Q, offset % g.result_channels(), filters);
      }
    }
  }

  // The sources of so many columns of each row of taps, [row][column][channel], and zeros beyond the ends.
  // They are copied, or of half precision read as numbers.
  template <class T>
  static void copy(const T* x, int64_t first, int64_t wide, int64_t columns, const List<RowOfTaps>& rows,
                   int64_t channels, List<E>& copies) {
    copies.reserve(rows.size * wide * channels + L);
    int64_t from = minimum(maximum(first, 0), first + wide),
            to = maximum(from, minimum(first + wide, columns));
    E* end = copies.data;
    auto zeros = [&](int64_t count) {
      if (count) memset(end, 0, count * channels * sizeof(E)), end += count * channels;
    };
    for (int64_t i = 0; i < rows.size; ++i) {
      zeros(from - first);
      const T* source = x + rows[i].source + from * channels;
      int64_t count = (to - from) * channels;
      if constexpr (sizeof(T) == sizeof(E))
        memcpy(end, source, count * sizeof(E));
      else
        read(source, count, end);
      end += count;
      zeros(first + wide - to);
    }
  }
};

}  // namespace
}  // namespace gconv
