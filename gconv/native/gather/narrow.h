// Roles y and x of narrow groups: lanes are source channels (see lanes.h).
//
// The register tile is Q results of one row by K filters of the group, one vector of lanes each:
//
//   for each tap:  K loads of weights;  for each of Q results: 1 load of x, K multiply-adds
//
// which is K + Q loads for K * Q multiply-adds: 7 for 12 with four filters (K = 4, Q = 3), 10 for 24 with 32
// registers (Q = 6), 11 for 24 with eight filters (Q = 3). Two multiply-adds a cycle of latency 4 need 8
// running sums, and 16 registers hold 12 besides the weights.
//
// A sum over the channels of a group is a sum of lanes, done once per result after all taps: in a tree (see
// lanes.h) where a group has 2, 4 or 8 lanes and as many filters, or twice as many, and where all lanes that
// are loaded are one group's. Where a group has one lane it is a result already. Tiles that reach over a
// border carry a mask per tap that says which of the Q results meet a source; nothing is padded.
//
// A lane is a number, or a pair of channels (vectors/products.h).

#pragma once

#include "gather/finish.h"
#include "vectors/lanes.h"

namespace gconv {
namespace {

struct TapOfRow {  // offsets in bytes, so that a tap costs no multiplication
  int64_t source;  // of the first result's source
  int64_t weights;
  uint32_t mask;  // of the results that meet a source
};

template <class E, int Q, int K, bool EDGE>
ALWAYS_INLINE void accumulate(Vector<E> (&sums)[Q][K], const E* x, int64_t step, const TapOfRow* taps,
                              int64_t count, const E* weights) {
  constexpr int L = LANES<E>;
  int64_t step3 = 3 * step;
  for (int64_t t = 0; t < count; ++t) {
    // Every third source has a register; the next two are at one and two steps from it. (The compiler would
    // else compute each.)
    const char* from[(Q + 2) / 3];
    from[0] = reinterpret_cast<const char*>(x) + taps[t].source;
    UNROLL for (int i = 1; i < (Q + 2) / 3; ++i) {
      from[i] = from[i - 1] + step3;
      __asm__("" : "+r"(from[i]));
    }
    const E* w = reinterpret_cast<const E*>(reinterpret_cast<const char*>(weights) + taps[t].weights);
    uint32_t mask = taps[t].mask;
    auto source = [&](int q) __attribute__((always_inline)) {
      return load(reinterpret_cast<const E*>(from[q / 3] + q % 3 * step));
    };
    if constexpr (Q < K &&
                  !EDGE) {  // the sources are fewer: they stay in registers, and each weight comes and goes
      Vector<E> sources[Q];
      UNROLL for (int q = 0; q < Q; ++q) sources[q] = source(q);
      UNROLL for (int k = 0; k < K; ++k) {
        Vector<E> weight = load(w + k * L);
        UNROLL for (int q = 0; q < Q; ++q) add_product<E>(sums[q][k], sources[q], weight);
      }
      continue;
    }
    Vector<E> weight[K];
    UNROLL for (int k = 0; k < K; ++k) weight[k] = load(w + k * L);
    UNROLL for (int q = 0; q < Q; ++q) {
      if (EDGE && !(mask >> q & 1)) continue;
      Vector<E> ours = source(q);
      UNROLL for (int k = 0; k < K; ++k) add_product<E>(sums[q][k], ours, weight[k]);
    }
  }
}

template <class E>
class GatherNarrow {
  using A = Wide<E>;
  using Result = Stored<E>;
  static constexpr int L = LANES<E>;
  const Plan& plan;
  const Problem& p;
  Type type;
  bool in_place;  // whether elements are numbers already, or pairs
  int64_t bytes;  // of an element
  Gather g;
  const Finish<A>& finish;
  int64_t steps;  // lanes of a group's sources: numbers or pairs
  Lanes<E> lanes;
  bool direct;     // whether vectors are loaded from x: else sources are read as numbers first
  int64_t pixel;   // lanes from one source to the next
  int64_t beyond;  // how many lanes the last vector of a source has beyond it: they hold what follows
  int64_t image;   // lanes of an image's sources

 public:
  GatherNarrow(const Plan& plan, Type type, Role role, const Problem& p, const Finish<A>& finish)
      : plan(plan), p(p), type(type), in_place(gconv::in_place<E>(type)), bytes(bytes_of<A>(type)),
        g(role, p), finish(finish), steps(g.sources / TERMS<E>), lanes(g.groups, steps),
        direct(in_place && (lanes.vectors == 1 || steps % L == 0)),
        pixel(lanes.vectors == 1 ? g.groups * steps : lanes.blocks * lanes.vectors * L),
        beyond(first_lane(lanes.blocks - 1) + lanes.vectors * L - pixel),
        image(g.axis[0].sources * g.axis[1].sources * g.axis[2].sources * pixel) {}

  void run(const void* x, const void* w, void* result, void* scratch, const Parallel& parallel) const {
    E* weights = static_cast<E*>(scratch);
    for_each(parallel, lanes.blocks, g.taps * g.results * lanes.vectors * L, [&](int64_t block) {
      with_element<E>(type,
                      [&](auto element) { pack(block, static_cast<const decltype(element)*>(w), weights); });
    });
    // A unit is some stretches of rows.
    int64_t longest = 0;
    for (int64_t i = 0; i < g.axis[2].phases.size; ++i) longest = maximum(longest, g.axis[2].phases[i].count);
    int64_t in_row = ceil_div(longest, plan.stretch);
    int64_t stretches = g.batch * g.axis[0].results * g.axis[1].results * in_row;
    int64_t work = minimum(longest, plan.stretch) * g.axis[2].phases.size * g.taps * g.results *
                   lanes.blocks * lanes.vectors;
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
    List<A> results;      // of half precision: of a stretch of a row, [pixel][channel]
  };
  struct Part {  // of the blocks, from one to another
    int64_t from, to;
  };
  static constexpr int64_t WORK = 1 << 17;  // multiply-adds of vectors in a unit

  // Where a block begins among a source's numbers. One of several vectors must not see its neighbour's
  // channels, which may be NaN; the unused lanes of a single vector never meet the others.
  int64_t first_lane(int64_t block) const {
    return lanes.vectors == 1 ? lanes.first_channel(block) : block * lanes.vectors * L;
  }

  // [block][tap][vector][filter][lane]
  template <class T>
  void pack(int64_t block, const T* w, E* packed) const {
    E* to_block = packed + block * g.taps * tap_stride();
    for (int64_t v = 0; v < lanes.vectors; ++v) {
      int64_t offset[L], used = lanes.offsets(block, v, g.group_stride, TERMS<E> * g.source_stride, offset);
      for (int64_t tap = 0; tap < g.taps; ++tap)
        for (int64_t k = 0; k < g.results; ++k) {
          const T* from = w + tap * g.tap_stride + k * g.result_stride;
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
    if (!in_place) lists.results.reserve(pixels * g.result_channels());
    for (int64_t i = 0; i < width.phases.size; ++i) {
      const Phase& phase = width.phases[i];
      int64_t end = minimum(begin + plan.stretch, phase.count);
      if (end <= begin) continue;
      list_taps(index, phase, columns, part, x, lists);
      const E* sources = direct ? reinterpret_cast<const E*>(x) : lists.sources.all();
      Result* to_phase = reinterpret_cast<Result*>(to);
      if constexpr (TERMS<E> == 1)
        if (!in_place) to_phase = lists.results.data;
      to_phase += phase.first * g.result_channels();
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
    if (!in_place) write_part(lists.results.data, pixels, part, to);
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
    if (lanes.vectors == 1 && count == channels) return read(from, pixels * channels, to);
    for (int64_t i = 0; i < pixels; ++i, from += channels, to += pixel)
      if (lanes.vectors == 1)
        read(from + first, count, to + first);
      else
        for (int64_t b = part.from; b < part.to; ++b) read(from + b * steps, steps, to + first_lane(b));
  }

  // Writes the results of a part of the blocks to some pixels.
  void write_part(const A* from, int64_t pixels, Part part, char* to) const {
    int64_t channels = g.result_channels(), first = part.from * lanes.per_block * g.results;
    int64_t count = minimum(channels, part.to * lanes.per_block * g.results) - first;
    if (count == channels) return write(from, pixels * channels, type, to);
    for (int64_t i = 0; i < pixels; ++i)
      write(from + i * channels + first, count, type, to + (i * channels + first) * bytes);
  }

  template <int Q, int K>
  void tiles(const Phase& phase, int64_t begin, int64_t end, int64_t k, Part part, const E* x,
             const E* weights, Result* result, Lists& lists) const {
    const Axis& width = g.axis[2];
    for (int64_t q = begin; q < end; q += Q) {
      int64_t count = minimum(Q, end - q);
      const E* source = x + q * width.stride * pixel;
      Result* to_tile = result + (q - begin) * width.step * g.result_channels();
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

  int64_t tap_stride() const { return lanes.vectors * g.results * L; }

  template <int Q, int K, bool EDGE>
  void blocks(int64_t count, int64_t k, Part part, const E* x, const E* weights, Result* tile,
              const List<TapOfRow>& taps) const {
    int64_t step = g.axis[2].stride * pixel * (int64_t)sizeof(E);
    int64_t block_stride = g.taps * lanes.vectors * g.results * L;
    // The pixels that this tile is the first to read are the next tile's, of the row furthest ahead.
    int64_t ahead = taps.size ? maximum(taps[0].source, taps[taps.size - 1].source) + Q * step : 0;
    for (int64_t block = part.from; block < part.to; ++block) {
      const E* source = x + first_lane(block);
      const E* w = weights + block * block_stride + k * L;
      if (block % 2 == 0) UNROLL
      for (int q = 0; q < Q; ++q)
        __builtin_prefetch(reinterpret_cast<const char*>(source) + ahead + q * step);
      Vector<E> sums[Q][K] = {};
      for (int64_t v = 0; v < lanes.vectors; ++v, source += L, w += g.results * L)
        accumulate<E, Q, K, EDGE>(sums, source, step, taps.data, taps.size, w);
      add_and_store<Q, K>(sums, count, k, block, tile);
    }
  }

  // Sums the lanes of each group and stores filters k to k + K of the block's groups.
  template <int Q, int K>
  ALWAYS_INLINE void add_and_store(Vector<E> (&sums)[Q][K], int64_t count, int64_t k, int64_t block,
                                   Result* tile) const {
    int64_t step = g.axis[2].step * g.result_channels(), groups = lanes.groups_in(block);
    Result* to = tile + block * lanes.per_block * g.results + k;
    std::make_index_sequence<L> all;
    if constexpr (K != 3 && K >= 2 && K < L) {
      if (plan.tree && plan.vectors == K) {
        constexpr int VECTORS = K * TERMS<E> > L ? 1 : TERMS<E>;
        bool streams = in_place && plan.streams && whole_lines<Result, VECTORS>(to, g.result_channels());
        UNROLL for (int q = 0; q < Q; ++q) {
          if (q >= count) break;
          int64_t left = groups * K;
          auto put = [&](Vector<E> sum, int64_t first) __attribute__((always_inline)) {
            Result* at = to + q * step + first;
            if (left - first < L)
              store_first(at, sum, left - first);
            else
              streams ? stream(at, sum) : store(at, sum);
          };
          if constexpr (TERMS<E> == 2)
            if (2 * steps == K) {  // two trees, of half the filters each, whose results are zipped by groups
              add_lanes<K / 4>(sums[q], all);
              add_lanes<K / 4>(reinterpret_cast<Vector<E>(&)[K / 2]>(sums[q][K / 2]), all);
              put(zip_by<K / 2, 0>(sums[q][0], sums[q][K / 2], all), 0);
              if (left > L) put(zip_by<K / 2, 1>(sums[q][0], sums[q][K / 2], all), L);
              continue;
            }
          add_lanes<K / 2>(sums[q], all);
          put(sums[q][0], 0);
        }
        return;
      }
    }
    if constexpr (K == 8) return;  // these are trees
    if (lanes.vectors > 1 || g.groups == 1 ||
        steps == L) {  // a block is one group, and so are the lanes it loads
      constexpr int TREES = (Q * K + L - 1) / L;
      A sum[TREES * L];
      // The lanes that a single narrow group leaves over hold the next pixel's channels.
      bool some = lanes.vectors == 1 && steps < L;
      UNROLL for (int tree = 0; tree < TREES; ++tree) {
        Vector<E> part[L];
        UNROLL for (int i = 0; i < L; ++i) {
          int at = tree * L + i;
          part[i] = at < Q * K ? sums[at / K % Q][at % K] : Vector<E>{};
          if (some) part[i] = first_of(part[i], steps);
        }
        add_lanes<L / 2>(part, all);
        store(sum + tree * L, part[0]);
      }
      for (int64_t q = 0; q < count; ++q) UNROLL
      for (int f = 0; f < K; ++f) to[q * step + f] = rounded<Result>(sum[q * K + f]);
      return;
    }
    if constexpr (K == 2 || K == 4)
      if (steps == 1 && g.results == K) {  // a lane is a result: side by side they lie by filters
        UNROLL for (int q = 0; q < Q; ++q) {
          if (q >= count) break;
          zip<K / 2>(sums[q], all);
          UNROLL for (int k = 0; k < K; ++k)
            if (int64_t left = groups * K - k * L; left >= L)
              store(to + q * step + k * L, sums[q][k]);
            else if (left > 0)
              store_first(to + q * step + k * L, sums[q][k], left);
        }
        return;
      }
    if constexpr (K == 1 && L > 2)
      if (steps == 2 && g.results == 1) {
        UNROLL for (int q = 0; q < Q; ++q) {
          if (q >= count) break;
          store_first(to + q * step, every_other<0>(sums[q][0] + swap_neighbours(sums[q][0], all), all),
                      groups);
        }
        return;
      }
    A lane[Q][K][L];
    memcpy(lane, sums, sizeof lane);
    for (int64_t q = 0; q < count; ++q)
      for (int64_t group = 0; group < groups; ++group)
        for (int64_t f = 0; f < K; ++f) {
          A sum = lane[q][f][group * steps];
          for (int64_t j = 1; j < steps; ++j) sum += lane[q][f][group * steps + j];
          to[q * step + group * g.results + f] = rounded<Result>(sum);
        }
  }
};

}  // namespace
}  // namespace gconv
