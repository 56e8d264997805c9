// Roles y and x of wide groups with windows of 3 x 3 and no strides: Winograd's F(2 x 2, 3 x 3) (Lavin and
// Gray 2016, arxiv.org/abs/1509.09308), with 16 products for each channel, filter and square of 2 x 2
// results, where plain sums take 36.
//
//   results = A' [(G w G') * (B' x B)] A      * in each of 4 x 4 points, summed over the channels
//
//        1  0 -1  0          1    0    0           1  1  1  0
//   B' = 0  1  1  0      G = 1/2  1/2  1/2    A' = 0  1 -1 -1
//        0 -1  1  0          1/2 -1/2  1/2
//        0  1  0 -1          0    0    1
//
// Along one axis the results are m0 + m1 + m2 and m1 - m2 - m3, and of the four sources m0 alone holds the
// first and m3 alone the last: no result depends on a source outside its window, so a NaN, or a number larger
// than its neighbours, reaches as far as with plain sums. Rounding errors are as large as theirs from 8
// channels on, and half of them with 64. But infinities meet their negatives, and sums of huge numbers
// overflow: results that are not finite are summed again plainly.
//
// Windows of depth sum over their planes as over channels.

#pragma once

#include "gather/finish.h"
#include "gather/winograd_tile.h"

namespace gconv {
namespace {

template <class A>
class GatherWinograd {
  static constexpr int L = LANES<A>;
  using Tiles = WinogradTiles<A>;
  static constexpr int Q = Tiles::Q;
  static constexpr int64_t VECTORS = winograd_vectors(REGISTERS);
  const Plan& plan;
  const Problem& p;
  Type type;
  bool numbers;   // whether elements are numbers already
  int64_t bytes;  // of an element
  Gather g;
  const Finish<A>& finish;
  Tiles register_tiles;
  bool forward;
  int64_t vectors, blocks;  // of a group's filters, and of L of its channels
  int64_t low[2],
      dilation[2];  // of height and width: the first result's first source, and the distance of neighbours

  struct Stretch {  // of the squares of one combination of phases
    const Phase* depth;
    int64_t height, width;  // its first result
    int64_t rows, columns;  // of squares in a plane
    int64_t first, count;
  };

 public:
  GatherWinograd(const Plan& plan, Type type, Role role, const Problem& p, const Finish<A>& finish)
      : plan(plan), p(p), type(type), numbers(are_numbers<A>(type)), bytes(bytes_of<A>(type)), g(role, p),
        finish(finish), register_tiles(plan, type, p, g), forward(role == Role::y),
        vectors(ceil_div(g.results, L)), blocks(ceil_div(g.sources, L)) {
    for (int i = 0; i < 2; ++i) {
      dilation[i] = p.dilation[i + 1];
      low[i] = forward ? -p.low[i + 1]
                       : p.low[i + 1] - 2 * dilation[i];  // role x meets the taps from the last to the first
    }
  }

  void run(const void* x, const void* w, void* result, const Scratch& scratch,
           const Parallel& parallel) const {
    A* packed = static_cast<A*>(scratch.packed);
    char* zeros = static_cast<char*>(scratch.rest);  // elements
    memset(zeros, 0, g.source_channels() * bytes);
    if (!scratch.is_packed)
      for_each(parallel, g.groups * p.window[0] * blocks, 100 * L * vectors, [&](int64_t unit) {
        int64_t rest = unit / g.groups;  // neighbouring groups lie side by side in the kernel
        pack(unit % g.groups, rest / blocks, rest % blocks * L, static_cast<const char*>(w), packed);
      });

    List<Stretch> stretches;
    const Axis &depth = g.axis[0], &height = g.axis[1], &width = g.axis[2];
    for (int64_t d = 0; d < depth.phases.size; ++d)
      for (int64_t r = 0; r < minimum(dilation[0], height.results); ++r)
        for (int64_t c = 0; c < minimum(dilation[1], width.results); ++c) {
          int64_t rows = ceil_div(ceil_div(height.results - r, dilation[0]), 2);
          int64_t columns = ceil_div(ceil_div(width.results - c, dilation[1]), 2);
          int64_t squares = g.batch * depth.phases[d].count * rows * columns;
          for (int64_t i = 0; i < squares; i += plan.stretch)
            stretches.push({&depth.phases[d], r, c, rows, columns, i, minimum(plan.stretch, squares - i)});
        }
    auto some = [&](int64_t unit, const Part& part) {
      results(stretches[unit], part, static_cast<const char*>(x), w, packed, zeros,
              static_cast<char*>(result));
    };
    if (g.groups == 1 && stretches.size < 8 * parallel.threads)
      g.for_filters<L>(parallel, stretches.size, 2 * parallel.threads, some);  // each transforms all sources
    else
      g.for_stretches(parallel, stretches.size, some);
  }

 private:
  // [group][block of V vectors][point][depth tap][source channel][lane], zeros beyond the last filter: of one
  // group and depth tap, the L channels from `first` on.
  void pack(int64_t group, int64_t tap, int64_t first, const char* w, A* packed) const {
    int64_t count = minimum(L, g.sources - first), rows = p.window[0] * g.sources;
    int64_t from = tap * 9 * g.tap_stride + first * g.source_stride + group * g.group_stride;
    for (int64_t v = 0, block; v < vectors; v += block) {
      block = block_of(vectors - v, VECTORS);
      A* to =
          packed + (group * vectors + v) * 16 * (rows * L + plan.gap) + (tap * g.sources + first) * block * L;
      int64_t point = rows * block * L + plan.gap;
      for (int64_t u = 0; u < block; ++u, to += L) {
        A squares[9][L * L];
        for (int t = 0; t < 9; ++t) {
          int64_t at = from + (forward ? t : 8 - t) * g.tap_stride + (v + u) * L * g.result_stride;
          g.square(type, w + at * bytes, count, g.results - (v + u) * L, squares[t], L);
        }
        for (int64_t s = 0; s < count; ++s) {
          Vector<A> half[4][3], points[4];
          UNROLL for (int j = 0; j < 3; ++j) {
            Vector<A> column[3];
            UNROLL for (int i = 0; i < 3; ++i) column[i] = load(squares[i * 3 + j] + s * L);
            Tiles::weights(column, points);
            UNROLL for (int i = 0; i < 4; ++i) half[i][j] = points[i];
          }
          UNROLL for (int i = 0; i < 4; ++i) {
            Tiles::weights(half[i], points);
            UNROLL for (int j = 0; j < 4; ++j) store(to + (i * 4 + j) * point + s * block * L, points[j]);
          }
        }
      }
    }
  }

  void results(const Stretch& squares, const Part& part, const char* x, const void* w, const A* packed,
               const char* zeros, char* result) const {
    int64_t tiles = ceil_div(squares.count, Q), taps = squares.depth->size;
    List<int64_t> offsets, outputs;
    find(squares, tiles * Q, reinterpret_cast<intptr_t>(zeros) - reinterpret_cast<intptr_t>(x), offsets,
         outputs);
    int64_t point = taps * blocks * Q * L;
    List<A> halves;  // what register_tiles.multiply() leaves
    List<A> buffer;  // [tile][point][depth tap][block of channels][square][lane], in whole lines of the cache
    A* points = buffer.reserve(tiles * 16 * point);
    A near[4 * Q * VECTORS * L];  // of half precision: a tile's results, as numbers
    int64_t near_outputs[4 * Q];
    for (int i = 0; i < 4 * Q; ++i) near_outputs[i] = i * VECTORS * L;
    for (int64_t group = part.group; group < part.last_group; ++group) {
      const char* source = x + group * g.sources * bytes;
      with_element<A>(type, [&](auto element) {
        for (int64_t t = 0; t < tiles; ++t)
          for (int64_t a = 0; a < taps; ++a)
            for (int64_t q = 0; q < Q; ++q)
              transform<decltype(element)>(source, &offsets[((a * tiles + t) * Q + q) * 16],
                                           points + t * 16 * point + (a * blocks * Q + q) * L, point);
      });
      int64_t last = ceil_div(part.last_filter, L);
      for (int64_t v = part.filter / L, block; v < last; v += block) {
        block = block_of(vectors - v, VECTORS);
        const A* weight = packed + (group * vectors + v) * 16 * (p.window[0] * g.sources * L + plan.gap);
        char* to_group = result + (group * g.results + v * L) * bytes;
        int64_t filters = minimum(g.results - v * L, block * L), half = 8 * Q * block * L;
        // Weights that are read once meet all tiles, a row of points at a time, which stays in a near cache.
        int64_t together = plan.once ? tiles : 1;
        A* rows = halves.reserve(together * half);
        for (int64_t t = 0; t < tiles; ++t) {
          const int64_t* tile_outputs = &outputs[t * Q * 4];
          bool finite = true;
          with_number<VECTORS>(block, [&](auto V) {
            if (!plan.once || t == 0)
              register_tiles.template multiply<V>(*squares.depth, points + t * 16 * point, point, weight,
                                                  together, rows);
            finite = register_tiles.template results<V>(plan.once ? rows + t * half : rows, filters,
                                                        numbers ? tile_outputs : near_outputs,
                                                        numbers ? reinterpret_cast<A*>(to_group) : near);
          });
          with_element<A>(type, [&](auto element) {
            using T = decltype(element);
            T* to = reinterpret_cast<T*>(to_group);
            const Results<A> out = finish.results;
            for (int i = 0; i < 4 * Q && !numbers; ++i)
              for (int64_t f = 0; f < filters && tile_outputs[i] >= 0; f += L)
                out.store(to + tile_outputs[i] + f, load(near + i * VECTORS * L + f), filters - f, false);
            if (finite) return;
            const T* weights = static_cast<const T*>(w) + group * g.group_stride + v * L * g.result_stride;
            plainly(*squares.depth, source, &offsets[t * Q * 16], tiles * Q * 16, weights, filters,
                    tile_outputs, near, to);
          });
        }
      }
    }
    int64_t channel = part.channel(g.results);
    if (finish.any()) finish({outputs.data, channel, 0}, tiles * Q * 4, channel, part.channels(g.results));
  }

  // Where the squares' sources lie, [depth tap][square][4][4] in bytes from x, and their results,
  // [square][2][2] in elements, -1 for what is not there. The padding is zeros somewhere else.
  void find(const Stretch& squares, int64_t padded, int64_t padding, List<int64_t>& offsets,
            List<int64_t>& outputs) const {
    const Axis &depth = g.axis[0], &height = g.axis[1], &width = g.axis[2];
    const Phase& phase = *squares.depth;
    int64_t source = g.source_channels() * bytes, row = width.sources * source, plane = height.sources * row;
    int64_t result = g.result_channels(), result_row = width.results * result,
            result_plane = height.results * result_row;
    offsets.reserve(phase.size * padded * 16);
    outputs.reserve(padded * 4);
    int64_t column = squares.first % squares.columns, rest = squares.first / squares.columns;
    int64_t line = rest % squares.rows, d = rest / squares.rows % phase.count,
            n = rest / squares.rows / phase.count;
    for (int64_t q = 0; q < padded; ++q) {
      bool real = q < squares.count;
      int64_t h = squares.height + 2 * line * dilation[0], w = squares.width + 2 * column * dilation[1];
      int64_t from = real ? (n * depth.results + phase.first + d * depth.step) * result_plane : -1;
      spread<2>(from, h, dilation[0], height.results, result_row, w, dilation[1], width.results, result, -1,
                &outputs[q * 4]);
      for (int64_t a = 0; a < phase.size; ++a) {
        int64_t s = phase.taps[a].source + d * depth.stride;
        from = real && s >= 0 && s < depth.sources ? (n * depth.sources + s) * plane : -1;
        spread<4>(from, h + low[0], dilation[0], height.sources, row, w + low[1], dilation[1], width.sources,
                  source, padding, &offsets[(a * padded + q) * 16]);
      }
      if (++column == squares.columns) column = 0, ++line;
      if (line == squares.rows) line = 0, ++d;
      if (d == phase.count) d = 0, ++n;
    }
  }

  // Where N x N pixels from (h, w) on lie in a plane that begins at `from`; `missing` for those that do not.
  template <int N>
  static void spread(int64_t from, int64_t h, int64_t down, int64_t height, int64_t row, int64_t w,
                     int64_t right, int64_t width, int64_t pixel, int64_t missing, int64_t* to) {
    int64_t columns[N];
    for (int j = 0; j < N; ++j, w += right) columns[j] = w >= 0 && w < width ? w * pixel : -1;
    for (int i = 0; i < N; ++i, h += down) {
      int64_t start = from >= 0 && h >= 0 && h < height ? from + h * row : -1;
      for (int j = 0; j < N; ++j) *to++ = (start | columns[j]) < 0 ? missing : start + columns[j];
    }
  }

  template <class T>
  static const T* at(const char* x, int64_t bytes) {
    return reinterpret_cast<const T*>(reinterpret_cast<intptr_t>(x) + bytes);
  }

  // The sources of one square and depth tap.
  template <class T>
  void transform(const char* x, const int64_t* offsets, A* to, int64_t point) const {
    for (int64_t c = 0; c < g.sources; c += L, to += Q * L) {
      Vector<A> half[4][4];
      UNROLL for (int j = 0; j < 4; ++j) {
        Vector<A> column[4];
        UNROLL for (int i = 0; i < 4; ++i) {
          const T* from = at<T>(x, offsets[i * 4 + j]) + c;
          column[i] = g.sources - c >= L ? load(from) : load_first(from, g.sources - c);
        }
        Tiles::sources(column);
        UNROLL for (int i = 0; i < 4; ++i) half[i][j] = column[i];
      }
      UNROLL for (int i = 0; i < 4; ++i) {
        Tiles::sources(half[i]);
        UNROLL for (int j = 0; j < 4; ++j) store(to + (i * 4 + j) * point, half[i][j]);
      }
    }
  }

  // What is not finite in a tile by plain sums, product by product. Where a source is no number the results
  // are none already, as they should: a diverged training has many of them.
  template <class T>
  __attribute__((noinline)) void plainly(const Phase& depth, const char* x, const int64_t* offsets,
                                         int64_t tap_step, const T* w, int64_t filters,
                                         const int64_t* outputs, const A* near, T* result) const {
    for (int k = 0; k < 4 * Q; ++k) {
      if (outputs[k] < 0) continue;
      auto source = [&](int64_t a, int t) {
        return at<T>(x, offsets[a * tap_step + k / 4 * 16 + (k / 2 % 2 + t / 3) * 4 + k % 2 + t % 3]);
      };
      bool are_all = true;  // sources are numbers
      for (int64_t a = 0; a < depth.size; ++a)
        for (int t = 0; t < 9; ++t)
          for (int64_t s = 0; s < g.sources && are_all; ++s)
            are_all = value(source(a, t)[s]) == value(source(a, t)[s]);
      for (int64_t f = 0; f < filters && are_all; ++f) {
        A found = numbers ? value(result[outputs[k] + f]) : near[k * VECTORS * L + f], sum = 0;
        if (found - found == 0) continue;
        for (int64_t a = 0; a < depth.size; ++a)
          for (int t = 0; t < 9; ++t) {
            const T* weight =
                w + (depth.taps[a].index * 9 + (forward ? t : 8 - t)) * g.tap_stride + f * g.result_stride;
            for (int64_t s = 0; s < g.sources; ++s)
              sum += value(source(a, t)[s]) * value(weight[s * g.source_stride]);
          }
        finish.results.store_one(result + outputs[k] + f, sum);
      }
    }
  }
};

}  // namespace
}  // namespace gconv
