// Roles y and x are one loop: every result gathers its sources, the pixels that its window meets.
//
//   role y   result o, source o * stride + tap * dilation - low
//   role x   result i, source (i + low - tap * dilation) / stride where that is whole
//
// Along one axis the results fall into phases, and all results of a phase use the same taps: with role y
// there is one phase; with role x the phase is the remainder by the stride, and a phase uses only the taps
// that meet it, so no product with the zeros between strides is ever formed. With a dilation and no stride
// the phase may be the remainder by the dilation: neighbours in a phase then share sources, which neighbours
// in the row do not. Result q of a phase is pixel first + q * step and meets, at each of the phase's taps,
// the source pixel tap.source + q * stride.

#pragma once

#include "plan.h"
#include "vectors/elements.h"
#include "vectors/work.h"

namespace gconv {
namespace {

struct Tap {
  int64_t index, source;
};

struct Phase {
  int64_t first, count;  // of results
  const Tap* taps;
  int64_t size;             // number of taps
  int64_t inside, outside;  // results from the one to the other find all of the taps' sources
};

struct Axis {
  int64_t sources, results, step, stride;
  int64_t unit;  // the sources of a phase's taps lie so far apart where they are neighbours
  List<Tap> taps;
  List<Phase> phases;

  void lay_out(Role role, int64_t in, int64_t out, int64_t window, int64_t strides, int64_t low,
               int64_t dilation, bool dilated) {
    bool forward = role == Role::y;
    sources = forward ? in : out, results = forward ? out : in;
    unit = dilated ? dilation : 1;
    if (dilated) return lay_out_by_dilation(forward ? 1 : -1, window, low);
    step = forward ? 1 : strides, stride = forward ? strides : 1;
    int64_t count = minimum(step, results);
    List<int64_t> end;  // of each phase's taps, by counting
    end.reserve(count + 1);
    for (int64_t r = 0; r <= count; ++r) end.push(0);
    auto remainder = [&](int64_t t) {
      return forward ? 0 : t * dilation - low - floor_div(t * dilation - low, step) * step;
    };
    for (int64_t t = 0; t < window; ++t)
      if (remainder(t) < count) ++end[remainder(t) + 1];
    for (int64_t r = 0; r < count; ++r) end[r + 1] += end[r];
    taps.reserve(window);
    List<int64_t> next;
    for (int64_t r = 0; r < count; ++r) next.push(end[r]);
    for (int64_t t = 0; t < window; ++t)
      if (int64_t r = remainder(t); r < count)
        taps[next[r]++] = {t, forward ? t * dilation - low : floor_div(r + low - t * dilation, step)};
    for (int64_t r = 0; r < count; ++r) push(r, taps.data + end[r], end[r + 1] - end[r]);
  }

  void lay_out_by_dilation(int64_t direction, int64_t window, int64_t low) {
    step = stride = unit;
    taps.reserve(unit * window);
    for (int64_t r = 0; r < unit; ++r)
      for (int64_t t = 0; t < window; ++t) taps.push({t, r + direction * (t * unit - low)});
    for (int64_t r = 0; r < unit; ++r) push(r, taps.data + r * window, window);
  }

  void push(int64_t first, const Tap* taps, int64_t size) {
    int64_t count = ceil_div(results - first, step), inside = 0, outside = count;
    for (int64_t t = 0; t < size; ++t) {
      inside = maximum(inside, -floor_div(taps[t].source, stride));
      outside = minimum(outside, floor_div(sources - 1 - taps[t].source, stride) + 1);
    }
    phases.push({first, count, taps, size, inside, maximum(inside, outside)});
  }
};

// What a unit of work has of the results of some pixels: some groups, or some filters of one of them. These
// are neighbouring channels.
struct Part {
  int64_t group, last_group, filter, last_filter;
  int64_t channel(int64_t of_group) const { return group * of_group + filter; }
  int64_t channels(int64_t of_group) const {
    return (last_group - group - 1) * of_group + last_filter - filter;
  }
};

// A problem seen from role y or x: what is gathered, what results, and where the kernel keeps each product's
// weight.
struct Gather {
  int64_t batch, groups, sources, results;  // channels per group on both sides
  int64_t taps;
  int64_t tap_stride, source_stride, group_stride, result_stride;  // of the kernel
  Axis axis[3];

  // With `dilated`, neighbours in a phase along the rows are one dilation apart.
  Gather(Role role, const Problem& p, bool dilated = false) {
    bool forward = role == Role::y;
    batch = p.batch, groups = p.groups, taps = taps_of(p);
    sources = sources_of(role, p), results = results_of(role, p);
    tap_stride = p.channels * p.groups * p.filters, group_stride = p.filters;
    source_stride = forward ? p.groups * p.filters : 1, result_stride = forward ? 1 : p.groups * p.filters;
    for (int i = 0; i < 3; ++i)
      axis[i].lay_out(role, p.in[i], p.out[i], p.window[i], p.strides[i], p.low[i], p.dilation[i],
                      dilated && i == 2);
  }

  // A square of the kernel, L source channels by L results or what there is of it, as rows of results.
  template <class T>
  void square(const T* from, int64_t sources, int64_t results, Wide<T>* to, int64_t step) const {
    if (result_stride != 1) return transposed(from, sources, result_stride, results, to, step);
    for (int64_t s = 0; s < sources; ++s, from += source_stride, to += step)
      store(to, results >= LANES<Wide<T>> ? load(from) : load_first(from, results));
  }
  // The same of pairs of source channels, in pairs.
  void square(const Bf16* from, int64_t sources, int64_t results, Pair* to, int64_t step) const {
    if (result_stride != 1)
      return transposed(reinterpret_cast<const Pair*>(from), sources, result_stride / 2, results, to, step);
    for (int64_t s = 0; s < sources; ++s, from += 2 * source_stride, to += step)
      store(to, pairs_of(from, from + source_stride, results));
  }
  // The same for a type that is known when it runs.
  template <class A>
  __attribute__((noinline)) void square(Type type, const void* from, int64_t sources, int64_t results, A* to,
                                        int64_t step) const {
    with_element<A>(type, [&](auto element) {
      square(static_cast<const decltype(element)*>(from), sources, results, to, step);
    });
  }
  // Source channels are neighbours.
  template <class T, class E>
  static void transposed(const T* from, int64_t sources, int64_t apart, int64_t results, E* to,
                         int64_t step) {
    constexpr int L = LANES<E>;
    Vector<T> rows[L] = {};
    for (int64_t f = 0; f < minimum(L, results); ++f)
      rows[f] = sources == L ? load(from + f * apart) : load_first(from + f * apart, sources);
    transpose<L / 2>(rows);
    for (int64_t s = 0; s < sources; ++s, to += step) store(to, rows[s]);
  }

  // The kernel as tiles of results' vectors read it: [group][block of V vectors][tap][source channel or pair
  // of them][lane], zeros beyond the last filter; of each `reversed` taps, which is a row's or 1, the last
  // comes first. Or the kernel as it is, where the plan has no room for a packed one.
  template <class E>
  const E* packed(const Plan& plan, const Parallel& parallel, Type type, const void* w,
                  const Scratch& scratch, int64_t reversed) const {
    if (!plan.packed) return static_cast<const E*>(w);
    E* to = static_cast<E*>(scratch.packed);
    if (scratch.is_packed) return to;
    with_element<E>(
        type, [&](auto element) { pack(parallel, static_cast<const decltype(element)*>(w), to, reversed); });
    return to;
  }
  template <class T, class E>
  void pack(const Parallel& parallel, const T* w, E* packed, int64_t reversed) const {
    constexpr int L = LANES<E>;
    constexpr int64_t ROWS =
        32;  // of the kernel, packed at a time: of the other role's, whole lines of the cache
    int64_t steps = sources / TERMS<E>, rows = taps * steps, chunks = ceil_div(rows, ROWS);
    int64_t vectors = ceil_div(results, L);
    for_each(parallel, groups * chunks, ROWS * vectors * L, [&](int64_t unit) {
      int64_t group = unit % groups, first = unit / groups * ROWS,
              last = minimum(rows, first + ROWS);            // neighbouring groups
      for (int64_t v = 0, block; v < vectors; v += block) {  // lie side by side in w
        block = block_of(vectors - v, 3);
        E* to = packed + (group * vectors + v) * rows * L;
        for (int64_t row = first, count; row < last; row += count) {
          int64_t s = row % steps, tap = row / steps;
          count = minimum(minimum(L, last - row), steps - s);
          tap += reversed - 1 - 2 * (tap % reversed);
          const T* from = w + tap * tap_stride + s * TERMS<E> * source_stride + group * group_stride;
          for (int64_t u = 0; u < block; ++u)
            square(from + (v + u) * L * result_stride, count, results - (v + u) * L,
                   to + row * block * L + u * L, block * L);
        }
      }
    });
  }

  // The weights of some vectors of a group's filters, as tiles read them: those of a tap, and of each source
  // channel in it, lie so far apart.
  template <class E>
  struct Weights {
    const E* first;
    int64_t tap, source;
  };

  // Those of `vectors` vectors from vector v on, in what packed() gives.
  template <class E>
  Weights<E> weights(const Plan& plan, const E* kernel, int64_t group, int64_t v, int64_t vectors) const {
    constexpr int L = LANES<E>;
    if (!plan.packed) return {kernel + group * group_stride + v * L, tap_stride, source_stride};
    int64_t steps = sources / TERMS<E>;
    return {kernel + (group * ceil_div(results, L) + v) * taps * steps * L, steps * vectors * L, vectors * L};
  }

  // Whether weights come from memory or the last cache: those that this call packs are in nearer ones.
  static bool is_cold(const Plan& plan, const Problem& p) { return !plan.packed || p.frozen; }
  // Whether a tile then asks for the next ones. Those of a kernel that is read as it is lie apart, row by
  // row, which no processor foresees. Packed ones lie in the order in which they are read; Intel's processors
  // still do not have them in time. With 2 threads of an Emerald Rapids, 2026-11-30, 12 products of 49 pixels
  // and 1024 x 1024 channels took 0.75 of the time, 24 of 400 x 400 channels 0.88; by Winograd's kernel 3 x 3
  // windows of 512 channels at 7 x 7 0.7. With 16 registers that is not measured.
  static bool asks_for_weights(const Plan& plan, const Problem& p) {
    return is_cold(plan, p) && (!plan.packed || REGISTERS == 32);
  }

  // Whether the plan reads the kernel as it is and its rows crowd a cache: what is read often is copied then.
  template <class A>
  bool is_crowded(const Plan& plan) const {
    return !plan.packed && gconv::is_crowded(taps * sources, source_stride * int64_t(sizeof(A)), SECOND_SETS);
  }

  // Those weights of a kernel that is read as it is, side by side.
  template <class A>
  Weights<A> side_by_side(const Weights<A>& weights, int64_t vectors, List<A>& room) const {
    int64_t length = vectors * LANES<A>;
    A* to = room.reserve(taps * sources * length);
    for (int64_t row = 0; row < taps * sources; ++row)
      for (int64_t i = 0; i < length; i += LANES<A>)
        store(to + row * length + i, load(weights.first + row * weights.source + i));
    return {to, sources * length, length};
  }

  // Calls f with each stretch and a part of its results: some of the groups, as many as keep the threads
  // busy. A thread has neighbouring parts at once.
  template <class F>
  void for_stretches(const Parallel& parallel, int64_t stretches, const F& f) const {
    int64_t parts = parts_of(parallel, stretches, groups);
    for_ranges(parallel, stretches * parts, 1 << 14, [&](int64_t first, int64_t last) {
      for (int64_t unit = first, many; unit < last; unit += many) {
        int64_t part = unit % parts;
        many = minimum(parts - part, last - unit);
        f(unit / parts, Part{groups * part / parts, groups * (part + many) / parts, 0, results});
        fence();
      }
    });
  }

  // The same of a single group: some of its filters, two vectors at a time as they are packed. A thread has
  // all stretches of its filters one after the other, so each weight is read by one thread.
  template <int L, class F>
  void for_filters(const Parallel& parallel, int64_t stretches, int64_t most, const F& f) const {
    int64_t pairs = maximum(1, ceil_div(results, L) / 2), parts = maximum(1, minimum(most, pairs));
    auto first_of = [&](int64_t part) { return part == parts ? results : pairs * part / parts * 2 * L; };
    for_ranges(parallel, stretches * parts, 1 << 14, [&](int64_t first, int64_t last) {
      for (int64_t unit = first, many; unit < last; unit += many) {
        int64_t part = unit / stretches;
        many = stretches == 1 ? last - unit : 1;
        f(unit % stretches, Part{0, 1, first_of(part), first_of(part + many)});
        fence();
      }
    });
  }

  int64_t source_channels() const { return groups * sources; }
  int64_t result_channels() const { return groups * results; }
  int64_t tap(int64_t d, int64_t h, int64_t w, const Problem& p) const {
    return (d * p.window[1] + h) * p.window[2] + w;
  }
};

}  // namespace
}  // namespace gconv
