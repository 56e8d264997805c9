#include "cost.h"

#include <cmath>
#include <initializer_list>

namespace gconv {
namespace {

// Cycles of each count, and of a call's lists and loops.
struct Prices {
  Kernel kernel;
  bool gradient;  // role w
  double vectors, starts, tiles, numbers, packed, call;
};

// Fitted to measured times, float32, with both lengths of AVX-512's vectors on Zen 4 (2026-11-28): about
// 7,000 runs of all kernels, on one thread for the layers of `benchmarks`, samples of its seeds 1 to 3 and 3
// x 3 windows, on two for the rows of benchmarks/results/tune. First by least squares, then so that the
// choice loses least. Winograd's price of packing was then doubled, after kernels of 2^20 to 2^22 weights.
// `python -m benchmarks.tune` measures how much the choice loses.
const Prices PRICES[] = {
    {Kernel::depthwise, false, 0.59, 6.1, 7.9, 56, 0, 700},
    {Kernel::winograd, false, 0.67, 4.8, 0, 0, 32, 0},
    {Kernel::matrix, false, 0.51, 20, 0, 0, 5.7, 740},
    {Kernel::rows, false, 0.55, 22, 49, 3.4, 2.6, 550},
    {Kernel::wide, false, 0.54, 15, 32, 4.6, 5.0, 2800},
    {Kernel::narrow, false, 0.47, 9.6, 39, 0.68, 4.2, 4300},
    {Kernel::depthwise, true, 0.67, 13, 0, 74, 2.6, 610},
    {Kernel::wide, true, 0.34, 4.0, 2.9, 340, 15, 350},
    {Kernel::narrow, true, 0.48, 3.1, 6.5, 1.2, 9.2, 500},
};

double larger(double a, double b) { return a > b ? a : b; }
double smaller(double a, double b) { return a < b ? a : b; }
double tiles_in(double results, double tile) { return std::ceil(results / tile); }

// Pairs of an output and a tap that meet a source, along one axis.
double pairs_along(const Problem& p, int axis) {
  constexpr int64_t MOST = 64;  // taps that are counted one by one
  if (p.window[axis] > MOST) return double(p.out[axis]) * double(minimum(p.window[axis], p.in[axis]));
  int64_t pairs = 0, s = p.strides[axis];
  for (int64_t t = 0; t < p.window[axis]; ++t) {
    int64_t first = t * p.dilation[axis] - p.low[axis];  // source of output 0
    int64_t from = first < 0 ? ceil_div(-first, s) : 0,
            to = first < p.in[axis] ? (p.in[axis] - 1 - first) / s + 1 : 0;
    pairs += maximum(0, minimum(to, p.out[axis]) - from);
  }
  return double(pairs);
}

// A problem as all kernels count it. Results are those of y in role w.
struct Sums {
  double images, groups, sources, results, taps, across;  // across: taps of a row
  double rows, row;                                       // rows of results, and results in one
  double phases, longest;                                 // of a row
  double outer, inner;  // pairs of a row and the taps of the outer axes, and of a row's results and its taps
  double lanes, registers;
  double terms;     // source channels of a lane, 2 of pairs; in role w products that it adds at once
  double crossing;  // loads of x for each vector: where pixels do not begin at a multiple of it, lines are
                    // crossed

  Sums(Role role, const Problem& p, const Plan& plan, int64_t registers) : registers(double(registers)) {
    const int64_t* of = role == Role::x ? p.in : p.out;
    images = double(role == Role::w ? p.batch : IMAGES), groups = double(p.groups);
    terms = plan.by_pairs || plan.even_odd ? 2 : 1;
    sources = double(sources_of(role, p)) / (role == Role::w ? 1 : terms),
    results = double(results_of(role, p)), taps = double(taps_of(p));
    across = double(p.window[2]), rows = images * double(of[0]) * double(of[1]), row = double(of[2]);
    int64_t step = role == Role::x ? p.strides[2] : 1;
    phases = double(minimum(step, of[2])), longest = double(ceil_div(of[2], step));
    outer = images * pairs_along(p, 0) * pairs_along(p, 1), inner = pairs_along(p, 2);
    lanes = double(plan.lanes);
    // As many cross a line of the cache as a vector is long beside one.
    crossing = std::fmod(groups * sources, lanes) == 0 ? 1 : 1 + double(plan.bytes) / 64;
  }
};

// Calls f(size, times) for the sizes that `total` is taken in: as often as the first goes into it, then the
// next.
template <class F>
void take(double total, std::initializer_list<double> sizes, const F& f) {
  for (double size : sizes)
    if (double times = std::floor(total / size); times > 0) f(size, times), total -= times * size;
}

// Calls f(vectors, times) for the blocks of a group's results: see block_of.
template <class F>
void for_blocks(double vectors, int64_t most, const F& f) {
  bool odd = std::fmod(vectors, 2) == 1;
  double last = odd ? (most == 3 && vectors > 1 ? 3 : 1) : 0;
  if (vectors > last) f(2.0, (vectors - last) / 2);
  if (last) f(last, 1.0);
}

// Vectors of a tile of `pixels` by `vectors` for one source: multiply-adds, or loads where these are more. A
// load for all lanes takes as long as a multiply-add, one that is broadcast half of it.
double of_tile(double pixels, double vectors) { return larger(pixels * vectors, vectors + pixels / 2); }

Counts narrow(const Sums& s, const Plan& plan) {
  Counts c{};
  double per_block = s.sources < s.lanes ? std::floor(s.lanes / s.sources) : 1;
  double vectors = tiles_in(s.sources, s.lanes) * (plan.even_odd ? 2 : 1);
  double blocks = tiles_in(s.groups, per_block);
  bool whole = s.sources >= s.lanes || s.groups == 1;  // lanes of one group
  take(s.results, {double(plan.vectors), 3, 2, 1}, [&](double filters, double times) {
    double tile = narrow_tile(int(s.registers), int(filters)), in_row = tiles_in(s.longest, tile);
    double starts = smaller(s.outer * s.across * in_row, s.outer * s.inner);
    double pixels = smaller(s.longest / in_row, s.outer * s.inner / larger(starts, 1));
    double tiles = s.rows * s.phases * in_row * blocks * times;
    starts *= times;
    c.vectors += starts * blocks * vectors * larger(filters * pixels, filters + pixels * s.crossing);
    c.starts += starts * blocks * vectors, c.tiles += tiles;
    double results = s.rows * s.row * blocks * filters * times;
    if (plan.tree) {
      c.vectors += 2 * results / std::sqrt(filters);
    } else if (whole) {
      c.vectors += tiles * tiles_in(tile * filters, s.lanes) * 2 * s.lanes;
      c.numbers += results;
    } else if (plan.even_odd || (s.sources == 1 && s.results == filters && (filters == 2 || filters == 4))) {
      c.vectors += 2 * results;
    } else {
      // Each waits for the sum before it, and longer where it is read out of a stored vector of 64 bytes.
      c.numbers += (plan.bytes == 64 ? 2 : 1) * results * smaller(per_block, s.groups) * s.sources;
    }
  });
  c.packed = blocks * s.taps * vectors * s.results * s.lanes / 4;  // a number at a time
  return c;
}

Counts wide(Role role, const Problem& p, const Sums& s) {
  Counts c{};
  double every = s.rows * s.row * s.taps;  // pairs of a result and a tap of its phase
  if (role == Role::x) every /= double(p.strides[0]) * double(p.strides[1]) * double(p.strides[2]);
  for_blocks(tiles_in(s.results, s.lanes), 3, [&](double vectors, double times) {
    double tile = wide_tile(int(s.registers), int(vectors));
    double starts = times * s.groups * smaller(larger(every / tile, 1), s.outer * s.inner);
    c.vectors += starts * s.sources * of_tile(tile, vectors), c.starts += starts;
    c.tiles += times * s.groups * larger(1, s.rows * s.row / tile);
  });
  c.numbers = every + s.rows * s.row;  // of the table of offsets
  return c;
}

Counts rows(const Problem& p, const Plan& plan, const Sums& s) {
  Counts c{};
  for_blocks(tiles_in(s.results, s.lanes), 3, [&](double vectors, double times) {
    double largest = row_tile(int(s.registers), int(vectors));
    if (plan.kernel == Kernel::matrix) {
      double starts = times * s.groups * s.rows * s.row / largest;
      c.vectors += starts * s.sources * of_tile(largest, vectors), c.starts += starts;
      return;
    }
    double left = s.row, tiles = 0, first = smaller(largest, s.row);
    auto tile = [&](double size, double count) {
      tiles += count, left -= size * count;
      c.vectors += times * count * s.outer * s.across * s.sources * of_tile(size, vectors);
    };
    for (double size = largest; left > 0 && size >= 1; size = std::floor(size / 2)) {
      tile(size, std::floor(left / size));
      if (tiles && left > size / 2)
        tile(size, 1);  // overlaps the one before; a shorter rest goes to smaller tiles
    }
    c.starts += times * s.outer * tiles, c.tiles += times * s.rows * tiles;
    double copied = first * double(p.strides[2]) + s.across;  // at each end of a row
    c.numbers += times * s.outer * (tiles > 1 ? 2 : 1) * s.sources * copied / 8;
  });
  return c;
}

Counts winograd(Role role, const Problem& p, const Sums& s) {
  Counts c{};
  const int64_t* of = role == Role::x ? p.in : p.out;
  double tile = winograd_tile(int(s.registers)), squares = s.images * double(of[0]), remainders = 1;
  for (int i = 1; i < 3; ++i) {
    int64_t apart = minimum(p.dilation[i], of[i]);
    squares *= double(ceil_div(ceil_div(of[i], apart), 2)), remainders *= double(apart);
  }
  double tiles = s.groups * remainders * tiles_in(squares, tile), deep = double(p.window[0]);
  double vectors = tiles_in(s.results, s.lanes);
  for_blocks(vectors, winograd_vectors(int(s.registers)), [&](double block, double times) {
    c.vectors += times * tiles * 16 * s.sources * deep * of_tile(tile, block);
  });
  // The transforms: of a square's sources and of its results.
  c.vectors += tiles * tile * (40 * tiles_in(s.sources, s.lanes) * deep + 60 * vectors);
  c.starts = tiles * 16;
  c.packed = s.groups * vectors * s.sources * deep * 9;
  return c;
}

// How the rows of a depthwise problem are cut into runs of taps and, of role w, into tiles.
struct DepthwiseRow {
  double phases, longest, stride, run, runs;
  DepthwiseRow(Role role, const Problem& p, const Plan& plan, const Sums& s)
      : phases(s.phases), longest(s.longest) {
    stride = role == Role::x ? 1 : double(p.strides[2]);
    if (plan.dilated_phases)
      phases = double(p.dilation[2]), longest = double(ceil_div(int64_t(s.row), p.dilation[2])), stride = 1;
    double together = plan.dilated_phases || (stride <= 2 && p.dilation[2] == 1) ? s.across : 1;
    if (role == Role::x && p.strides[2] > 1)
      together = p.dilation[2] == 1 ? double(ceil_div(p.window[2], p.strides[2])) : 1;
    run = smaller(together, 7), runs = s.across / run;
  }
  // Sources of a tile of so many pixels and one run.
  double sources(double pixels) const { return (pixels - 1) * smaller(stride, run) + run; }
};

Counts depthwise(Role role, const Problem& p, const Plan& plan, const Sums& s) {
  Counts c{};
  const DepthwiseRow row(role, p, plan, s);
  double each = double(plan.strand) / s.lanes, vectors = each * tiles_in(s.groups, double(plan.strand));
  double half = depthwise_half_tile(int(s.registers)),
         large = each == 2 ? half : depthwise_tile(int(s.registers));
  double two = plan.rows == 2 ? 2 : 1;
  // Of two rows at a time, one row of sources more than one row's meets both.
  double shared = two == 2 ? (double(p.window[1]) + 1) / (2 * double(p.window[1])) : 1;
  double runs = s.outer * row.runs;
  auto tile = [&](double pixels, double times, double loads_and_stores) {
    c.vectors += times * vectors * runs *
                 larger(pixels * row.run, row.sources(pixels) * shared * s.crossing + loads_and_stores);
    c.starts += times * vectors * runs * shared;
  };
  if (role != Role::w) {
    double tiles = tiles_in(row.longest, double(plan.tile)), rest = std::fmod(row.longest, double(plan.tile));
    bool shorter = double(plan.tile) == large && rest > 0 && rest <= half;
    tile(double(plan.tile), tiles - shorter, row.run), tile(half, shorter, row.run);
    c.tiles = tiles * vectors * s.rows * row.phases / two;
    c.vectors += vectors * s.rows * s.row;
    c.numbers = s.rows * row.phases;
    return c;
  }
  if (plan.whole_rows) {
    double pass = whole_row_vectors(int(s.registers));
    c.vectors =
        vectors * runs * larger(s.row * row.run, s.row * (smaller(row.stride, row.run) + 1) + row.run);
    c.starts = tiles_in(vectors, pass) * runs * 2;
  } else {
    take(row.longest, {two == 1 ? large : half, half, 3, 1}, [&](double size, double times) {
      tile(size, times, 2 * row.run);
      c.vectors += times * vectors * s.rows * size;
    });
    if (plan.dilated_phases) c.vectors *= row.phases, c.starts *= row.phases;
  }
  c.numbers = s.rows;
  c.packed = vectors * s.taps * 16;
  return c;
}

Counts narrow_gradient(Type type, const Plan& plan, const Sums& s, const Problem& p) {
  Counts c{};
  double per_block = s.sources < s.lanes ? std::floor(s.lanes / s.sources) : 1;
  double vectors = tiles_in(s.sources, s.lanes), blocks = tiles_in(s.groups, per_block);
  double in_row = tiles_in(s.across, NARROW_TAPS), taps = s.across / in_row, all = blocks * vectors,
         passes = 0;
  take(s.results, {double(plan.vectors), 2, 1}, [&](double filters, double times) {
    passes += times;
    c.vectors += times * all * s.outer * s.row * in_row * larger(taps * filters, taps * s.crossing + filters);
    c.starts += times * all * s.outer * s.row * in_row;
    double visits = times * all * double(plan.stretches) * double(p.window[0] * p.window[1]) * in_row;
    c.tiles += visits * (1 + taps * filters / 4);
  });
  // Each y is spread over the lanes of its group: by one permutation where a vector holds all of a block's.
  // (That of 64 bytes is not counted: with it the kernel was still slower than with vectors of 32 bytes.)
  bool permutes = plan.bytes == 32 && smaller(per_block, s.groups) * s.results <= 8;
  c.numbers = blocks * s.rows * s.row * s.results *
              (permutes           ? 3
               : plan.bytes == 64 ? 1.6 * s.lanes
                                  : s.lanes);
  c.packed = blocks * vectors * s.results * s.taps * s.lanes / 4 + all * s.outer * in_row * passes;
  // With AVX2 depthwise took 0.70 (7 x 7, 384 channels) and 0.86 (31 x 31) of the time of this kernel, which
  // seemed to cost less: Zen 3, 2 threads, 2026-11-29.
  if (type == Type::bf16 && s.registers == 16 && s.sources == 1) c.vectors *= 1.4;
  if (type == Type::bf16 || type == Type::f16)
    c.packed += all * double(p.batch * p.in[0] * p.in[1]) * double(p.in[2]);
  return c;
}

Counts wide_gradient(const Plan& plan, const Sums& s, const Problem& p) {
  Counts c{};
  double vectors = tiles_in(s.results, s.lanes), taps = plan.one_axis ? 1 : double(plan.together);
  double channels = plan.one_axis ? s.sources * s.across : s.sources;
  double columns = (plan.one_axis ? s.outer * s.row : s.outer * s.inner) / s.terms;
  // `block` vectors at a time of so many channels, or of so many pairs of them. A pair that is broadcast is a
  // load of its own, never part of a multiply-add.
  auto pass = [&](double block, double blocks, double of, double load = 0.5) {
    take(of, {block == 2 ? 6.0 : 8.0, 4, 2, 1}, [&](double size, double times) {
      double loads = taps == 1 ? block + size * load : (taps * block + size * 2 * load) / taps;
      times *= s.groups * blocks;
      c.vectors += times * columns * larger(size * block, loads);
      c.starts += times * columns / taps;
      c.tiles += times * (plan.one_axis ? s.outer : s.outer * s.across / taps);
    });
  };
  double whole = vectors - plan.twice, pairs = std::floor(whole / 2);
  pass(2, pairs, channels), pass(1, whole - 2 * pairs, channels), pass(1, plan.twice, channels / 2, 1.25);
  double blocks =
      tiles_in(s.sources, double(plan.block_channels)) * tiles_in(vectors, double(plan.block_vectors));
  c.numbers =
      s.groups * blocks * double(plan.stretches) * double(p.window[0] * p.window[1]);  // visits of a block
  c.packed = s.groups * s.taps * s.sources * vectors;
  return c;
}

}  // namespace

Counts count(Role role, Type type, const Problem& p, const Plan& plan, int64_t registers) {
  const Sums s(role, p, plan, registers);
  bool gradient = role == Role::w;
  switch (plan.kernel) {
    case Kernel::depthwise: return depthwise(role, p, plan, s);
    case Kernel::winograd: return winograd(role, p, s);
    case Kernel::narrow: return gradient ? narrow_gradient(type, plan, s, p) : narrow(s, plan);
    default: break;
  }
  if (gradient) return wide_gradient(plan, s, p);
  Counts c = plan.kernel == Kernel::wide ? wide(role, p, s) : rows(p, plan, s);
  // The kernel is packed; that of role x is transposed. With few pixels it is read as it is, where it can be
  // (sizes.cc), and with many that counts little: so it does not count, for any number of images.
  bool as_it_is = role == Role::y && std::fmod(s.results, s.lanes) == 0;
  if (!as_it_is)
    c.packed = s.groups * s.taps * s.sources * tiles_in(s.results, s.lanes) * (role == Role::x ? 2 : 1);
  return c;
}

double cost_of(Role role, const Plan& plan, const Counts& c, bool two_passes) {
  double passes = plan.bytes == 64 && two_passes ? 2 : 1;
  for (const Prices& p : PRICES)
    if (p.kernel == plan.kernel && p.gradient == (role == Role::w))
      return p.vectors * passes * c.vectors + p.starts * c.starts + p.tiles * c.tiles +
             p.numbers * c.numbers + p.packed * c.packed + p.call;
  return INFINITY;
}

double least_cost(Role role, Type type, const Problem& p, const Processor& processor) {
  double best = 0;  // products in a cycle: two multiply-adds of vectors
  for (int i = 0; i < processor.lengths; ++i) {
    const Vectors& v = processor.vectors[i][int(type)];
    double lanes = double(v.bytes) / (type == Type::f64 ? 8 : 4);
    if (type == Type::bf16 && processor.pairs && !p.plain) lanes *= 2;
    best = larger(best, 2 * lanes / (v.bytes == 64 && processor.two_passes ? 2 : 1));
  }
  double products = double(p.out[0]) * double(p.out[1]) * double(p.out[2]) * double(taps_of(p)) *
                    double(p.groups * p.channels) * double(p.filters);
  return products * double(role == Role::w ? p.batch : IMAGES) / best;
}

}  // namespace gconv
