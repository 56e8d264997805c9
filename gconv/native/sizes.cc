#include "sizes.h"

namespace gconv {
namespace {

// One axis of a problem as roles y and x see it: see gather/gather.h.
struct Along {
  int64_t sources, results, step, stride;
  Along(Role role, const Problem& p, int axis, bool dilated = false) {
    bool forward = role != Role::x;
    sources = forward ? p.in[axis] : p.out[axis], results = forward ? p.out[axis] : p.in[axis];
    step = forward ? 1 : p.strides[axis], stride = forward ? p.strides[axis] : 1;
    if (dilated) step = stride = p.dilation[axis];
  }
  int64_t phases() const { return minimum(step, results); }
  int64_t longest() const { return ceil_div(results, step); }  // results of a phase
};

int64_t results_in_image(Role role, const Problem& p) {
  const int64_t* results = role == Role::x ? p.in : p.out;
  return results[0] * results[1] * results[2];
}

// The largest part of `size` in as few equal parts, up to a limit, as will do.
int64_t even(int64_t size, int64_t limit) { return ceil_div(size, maximum(1, ceil_div(size, limit))); }

int64_t packed_filters(const Call& c) {
  return c.p.groups * ceil_div(c.results, c.L) * c.taps * c.steps * c.L;
}

// How many tiles of so many results are worked on at once for the packed kernel's sake: up to 4, where 32
// such stretches are left.
int64_t tiles_at_once(const Call& c, int64_t tile) {
  return maximum(1, minimum(4, c.p.batch * results_in_image(c.role, c.p) / (32 * tile)));
}

// Role w: how many partial sums. Enough to keep threads busy, together with the blocks of the result that
// they can share. But each has so much to do that its sums are worth adding up, and all take no more memory
// than a quarter of the operands or a megabyte.
int64_t partitions_of(const Call& c, int64_t units, int64_t partial_size, int64_t blocks = 1) {
  constexpr int64_t WORTH = 1 << 15;  // multiply-adds
  const Problem& p = c.p;
  int64_t in = p.in[0] * p.in[1] * p.in[2] * p.groups * p.channels;
  int64_t out = p.out[0] * p.out[1] * p.out[2] * p.groups * p.filters;
  int64_t room = maximum(p.batch * (in + out) / 4, (1 << 20) / c.number) / maximum(partial_size, 1);
  double work = double(p.batch) * double(out) * double(p.channels);
  for (int64_t taps : p.window) work *= double(taps);
  int64_t most = work < 16 * WORTH ? ceil_div(int64_t(work), WORTH) : 16;
  return maximum(1, minimum(minimum(units, most), maximum(room, minimum(4, ceil_div(64, blocks)))));
}

// Role w: cuts y into stretches of about so many pixels: some of its rows, or a part of a long one.
void cut_rows(const Call& c, int64_t pixels, int64_t blocks, Plan& plan) {
  const Problem& p = c.p;
  plan.stretch_columns = maximum(1, minimum(p.out[2], pixels));
  int64_t all = p.batch * p.out[0] * p.out[1], rows = 1;
  if (plan.stretch_columns == p.out[2]) rows = maximum(1, minimum(pixels / plan.stretch_columns, all));
  // The same number of stretches, as even as can be.
  plan.stretch_rows = maximum(1, ceil_div(all, maximum(1, ceil_div(all, rows))));
  plan.stretches = p.out[2] ? ceil_div(all, plan.stretch_rows) * ceil_div(p.out[2], plan.stretch_columns) : 0;
  plan.partitions = partitions_of(c, plan.stretches, plan.packed, blocks);
  plan.scratch = plan.partitions * plan.packed * c.number;
}

void plan_depthwise(const Call& c, Plan& plan) {
  const Problem& p = c.p;
  int TILE = depthwise_tile(int(c.registers)), HALF = depthwise_half_tile(int(c.registers));
  int wide = whole_row_vectors(int(c.registers));
  int64_t apart = 1;  // taps of one phase: every so many
  if (c.role == Role::x)
    while (apart * p.dilation[2] % p.strides[2] && apart < p.window[2]) ++apart;
  int64_t run = ceil_div(p.window[2], apart);
  // A strand of bfloat16 is two vectors where registers hold the weights of a run then: tiles have half as
  // many pixels, and whole rows half as many strands. With AVX2, windows of 5 and 7 taps took up to 1.5 times
  // as long with two vectors, those of 3 and 4 taps down to 0.75: Zen 3, 2 threads, 2026-11-30.
  bool twice = c.type == Type::bf16 && (c.registers == 32 || (run <= PAIRED_RUN && p.groups >= 2 * c.L));
  if (twice) TILE = HALF, wide /= 2;
  plan.strand = twice ? 2 * c.L : c.L;
  int64_t strands = ceil_div(p.groups, plan.strand);
  const Along flat(c.role, p, 2);
  // With a dilation, neighbours in a phase then share sources, which neighbours in the row do not.
  plan.dilated_phases = p.strides[2] == 1 && p.window[2] > 1 && p.dilation[2] > 1 &&
                        p.window[2] <= flat.results && flat.results / p.dilation[2] >= TILE / 2;
  const Along depth(c.role, p, 0), height(c.role, p, 1), width(c.role, p, 2, plan.dilated_phases);

  // A stretch's rows of a window stay in the second cache.
  constexpr int64_t BYTES = 64 << 10;
  int64_t in_cache = BYTES / (p.groups * c.element * width.stride) / TILE;
  plan.stretch = minimum(maximum(1, width.longest()), maximum(in_cache, 1) * TILE);

  // Two rows at a time, where neighbouring rows are of one phase: with a 3 x 3 window 4 rows of sources then
  // meet 2 rows, where 3 meet 1, and most of the time goes into fetching them.
  bool plain = height.stride == 1 && height.step == 1 && width.stride == 1 && width.step == 1;
  bool two_rows = !twice && c.registers == 32 && plain && p.window[1] > 1 && p.dilation[1] == 1 &&
                  p.window[2] <= TWO_ROWS_RUN && height.results > 1 && p.groups >= c.L;
  if (c.role == Role::w) {
    // A tile of one row is as good where it has no rest, and whole rows with 2 taps.
    plan.rows = two_rows && p.out[2] % TILE && (p.window[2] == TWO_ROWS_RUN || strands < wide) ? 2 : 1;
    // Whole rows read memory in its own order. Where x and y are large and a row takes several passes, tiles
    // that ask for what is ahead are faster; so they are where they just fit a row and there are 16
    // registers.
    bool several = plan.past_caches && strands > wide && (p.strides[2] == 1 || c.registers == 16);
    plan.whole_rows = plan.rows == 1 && p.groups > c.L && p.groups >= plan.strand &&
                      (p.window[2] == 3 || p.window[2] == 4) &&
                      (plan.dilated_phases || (p.strides[2] <= 2 && p.dilation[2] == 1)) &&
                      (c.registers == 32 || p.out[2] != TILE) && !several;
    plan.tile = plan.rows == 2 ? HALF : TILE, plan.vectors = 1;
    if (plan.whole_rows) plan.vectors = minimum(strands, wide), plan.tile = 4;
    plan.packed = c.taps * strands * plan.strand;
    int64_t cuts = ceil_div(maximum(1, width.longest()), plan.stretch);
    plan.stretches = p.batch * cuts * depth.results * ceil_div(height.results, plan.rows);
    plan.partitions = partitions_of(c, plan.stretches, plan.packed);
    plan.scratch = plan.partitions * plan.packed * c.number;
  } else {
    plan.rows = two_rows ? 2 : 1;
    // Two vectors at a time touch fewer pages at once; more taps in a run would have more weights than
    // registers hold.
    plan.vectors = !twice && strands > 1 && run <= PAIRED_RUN ? 2 : 1;
    plan.tile = plan.vectors == 2 || two_rows ? HALF : TILE;
  }
  constexpr int64_t NEAR = 20 << 10;  // bytes of sources of all channels that a tile meets in several rows
  int64_t tile = c.role != Role::w && plan.tile == HALF ? HALF : TILE;
  double met = double(tile * width.stride) * double(p.window[1] * p.groups * c.element);
  plan.near = p.window[1] > 1 && met <= NEAR;
}

void plan_narrow(const Call& c, Plan& plan) {
  const Problem& p = c.p;
  int64_t channels = c.role == Role::w ? p.channels : c.steps;
  int64_t per_block = channels < c.L ? c.L / channels : 1;
  int64_t vectors = ceil_div(channels, c.L), blocks = ceil_div(p.groups, per_block);
  if (c.role == Role::w) {
    plan.packed = blocks * vectors * p.filters * c.taps * c.L;
    int64_t bytes = p.groups * (p.channels + p.filters) * c.element;
    cut_rows(c, maximum(16, minimum(maximum(16, 512 / p.filters), (1 << 17) / bytes)), 1, plan);
    plan.tile = minimum(p.window[2], NARROW_TAPS),
    plan.vectors = p.filters >= 4 && plan.tile <= 3 ? 4 : minimum(p.filters, 2);
    return;
  }
  // A tree: of pairs also where a group has half as many lanes as filters, if they are more than one.
  plan.tree = is_tree(c.steps, c.results, c.L, c.registers) || (plan.even_odd && c.results > 1) ||
              (plan.by_pairs && c.steps > 1 && is_tree(2 * c.steps, c.results, c.L, c.registers));
  plan.vectors = plan.tree ? c.results : minimum(c.results, 4);
  plan.tile = narrow_tile(int(c.registers), int(plan.vectors));
  plan.stretch = 64;
  plan.packed = blocks * c.results * c.taps * vectors * (plan.even_odd ? 2 : 1) * c.L;
  plan.scratch = plan.packed * c.number;
}

// Numbers of the packed kernel, or none where it is read as it is: to pack it takes a good part of the time
// of few pixels. On 2 threads of a Zen 4, 2026-11-28, 24 layers without packing took 0.2 to 0.7 of the time
// with 49 pixels and 0.9 to 1.0 with 196 to 784; more pixels were not measured. With 16 registers a tile has
// less to do while it asks for the next weights: on a Zen 3, 2026-11-29, it took 0.8 to 1.0 of the time with
// 49 pixels and 1.04 to 1.13 with 196 to 784. Where its rows crowd a cache, kernels copy what they read once
// for all pixels that one thread has.
int64_t packed_or_none(const Call& c) {
  const Problem& p = c.p;
  if (p.frozen) return packed_filters(c);
  const int64_t FEW = c.registers == 16 ? 128 : 1024, FEW_CROWDED = minimum(FEW, 256);
  bool fits = c.role == Role::y && c.element == c.number && c.results % c.L == 0;
  bool crowded = is_crowded(c.taps * c.sources, p.groups * p.filters * c.element, SECOND_SETS);
  bool few = p.batch * p.out[0] * p.out[1] * p.out[2] <= (crowded ? FEW_CROWDED : FEW);
  return fits && few ? 0 : packed_filters(c);
}

// Whether the weights of a single group fill a good part of the last cache, of which a large one is shared by
// many. They are then read once: by a stretch of all results, or as many as stay in the nearer caches. On 2
// threads of a Zen 3 with 32 MiB, 2026-11-29, 3 x 3 windows of 512 channels at 7 x 7 took 0.75 of the time by
// Winograd's kernel, and as long or longer with fewer channels; of an Emerald Rapids with 260 MiB 0.8.
bool reads_once(const Call& c, int64_t weights) {
  constexpr double SHARE = 32 << 20;
  return c.p.groups == 1 && double(weights * c.number) > (c.cache < SHARE ? c.cache : SHARE) / 4;
}
int64_t one_stretch(int64_t results, int64_t most, int64_t tile) {  // whole tiles
  return tile * maximum(1, minimum(ceil_div(results, tile), most / tile));
}

void plan_wide(const Call& c, Plan& plan) {
  int64_t tiles = wide_tiles(int(c.registers));
  plan.vectors = minimum(3, ceil_div(c.results, c.L));
  plan.tile = wide_tile(int(c.registers), int(plan.vectors));
  plan.stretch = tiles * maximum(1, minimum(tiles_at_once(c, tiles), 8192 / tiles / c.taps));
  if (reads_once(c, packed_filters(c)))
    plan.stretch = one_stretch(c.p.batch * results_in_image(c.role, c.p), 8192 / c.taps, tiles);
  plan.packed = packed_or_none(c), plan.scratch = (plan.packed + c.steps) * c.number;
}

// A matrix product of few pixels: whether threads share the pixels, one tile at a time, and not the filters.
// What the last layer left of its pixels in a thread's own caches then stays there, but each thread reads all
// weights. On 2 threads of an Emerald Rapids, whose cores are far from each other, 2026-11-30, 24 products of
// 196 pixels and 160 x 160 channels took 0.8 of the time, and as long where the weights were four times as
// large as sources and results. With 16 registers that is not measured.
bool share_pixels(const Call& c, const Plan& plan) {
  int64_t pixels = c.p.batch * results_in_image(c.role, c.p);
  bool few = ceil_div(pixels, plan.stretch) < 8 * plan.threads && pixels >= 2 * plan.threads * plan.tile;
  bool small = packed_filters(c) <= pixels * (c.steps + c.results);
  return c.registers == 32 && c.p.groups == 1 && plan.packed && few && small;
}

void plan_rows(const Call& c, Plan& plan) {
  plan.vectors = minimum(3, ceil_div(c.results, c.L));
  plan.tile = row_tile(int(c.registers), int(plan.vectors));
  plan.packed = packed_filters(c), plan.scratch = plan.packed * c.number;
  int64_t most = c.registers == 32 ? 224 : 192;  // results: eight tiles and more
  if (plan.kernel == Kernel::matrix) {
    plan.packed = packed_or_none(c), plan.scratch = plan.packed * c.number;
    plan.stretch = most / 8 * tiles_at_once(c, most / 8);
    plan.by_pixels = share_pixels(c, plan);
    if (plan.by_pixels) plan.stretch = most / 16;
    // Tiles of 16 registers fit any number of pixels; of 49, those of a third stretch would be one.
    if (c.registers == 16) plan.stretch = even(c.p.batch * results_in_image(c.role, c.p), plan.stretch);
    return;
  }
  const Along depth(c.role, c.p, 0), height(c.role, c.p, 1), width(c.role, c.p, 2);
  int64_t rows = c.p.batch * depth.results * height.results;
  plan.stretch = most;
  while (plan.stretch > most / 8 && rows * ceil_div(width.results, plan.stretch) < 4 * plan.threads)
    plan.stretch /= 2;
}

void plan_winograd(const Call& c, Plan& plan) {
  constexpr int64_t NEAR = 256 << 10, ONCE = 1 << 20;  // bytes of a stretch's transformed sources
  const Problem& p = c.p;
  int64_t vectors = ceil_div(c.results, c.L), chunks = ceil_div(c.sources, c.L);
  plan.tile = winograd_tile(int(c.registers));
  plan.vectors = minimum(winograd_vectors(int(c.registers)), vectors);
  int64_t point = p.window[0] * c.sources * c.L;
  plan.gap = is_crowded(16, point * plan.vectors * c.number, NEAREST_SETS) ? 16 : 0;
  plan.packed = p.groups * vectors * 16 * (point + plan.gap);
  plan.scratch = plan.packed * c.number + p.groups * c.sources * c.element;
  int64_t bytes = 16 * plan.tile * p.window[0] * chunks * c.L * c.number;
  plan.stretch = plan.tile * maximum(1, minimum(tiles_at_once(c, 4 * plan.tile), NEAR / bytes));
  const int64_t* results = c.role == Role::x ? p.in : p.out;
  plan.once = reads_once(c, plan.packed);
  if (plan.once)
    plan.stretch = one_stretch(p.batch * ceil_div(results[1], 2) * ceil_div(results[2], 2),
                               ONCE / bytes * plan.tile, plan.tile);
}

void plan_wide_gradient(const Call& c, Plan& plan) {
  const Problem& p = c.p;
  constexpr int64_t CHANNELS = 96,
                    VECTORS = 6;  // of a block at most: its sums and part of a stretch stay in caches
  int64_t L = c.L, vectors = ceil_div(p.filters, L);
  plan.block_channels = even(p.channels, CHANNELS), plan.block_vectors = even(vectors, VECTORS);
  int64_t high = plan.block_channels, wide = plan.block_vectors;
  int64_t blocks = p.groups * ceil_div(p.channels, high) * ceil_div(p.filters, wide * L);
  plan.packed = blocks * c.taps * high * wide * L;
  // Pairs of pixels overlap, but where a row has a single tap: then they take half of the room.
  int64_t room = plan.by_pairs && p.window[2] == 1 ? 1 << 16 : 1 << 15;
  cut_rows(c, maximum(16, minimum(256, room / ((high + wide * L) * c.number))), blocks, plan);

  // Fewer channels than fill a tile are one axis with the taps of a row: neighbours in x where there is a
  // single group, else found by a table.
  bool neighbours = p.groups == 1 && p.dilation[2] == 1;
  plan.one_axis = p.window[2] > 1 && p.channels <= (neighbours ? CHANNELS / 4 : 7);
  plan.shares_sources = !plan.one_axis && p.dilation[2] == p.strides[2];
  plan.vectors = wide > 1 ? 2 : 1, plan.tile = wide > 1 ? 6 : 8;

  // Packed is what is read often, where pixels share few sets of the nearest cache, and y where its vectors
  // cross lines. Half precision is widened then.
  bool fours = (c.registers == 32 || plan.shares_sources) && p.channels % 4 == 0 && high % 4 == 0;
  auto together = [&](bool single_vectors) -> int64_t {
    if (plan.one_axis) return p.window[2];
    return !fours || !single_vectors ? 1 : p.window[2] == 4 ? 2 : minimum(p.window[2], 3);
  };
  int64_t passes = p.window[0] * p.window[1] * ceil_div(p.window[2], together(wide % 2 == 1));
  bool x_often = passes * ceil_div(wide, 2) >= 4;
  bool y_often = passes * ceil_div(high, plan.tile) * minimum(wide, 2) >= 10;
  auto far = [&](int64_t channels, int64_t bytes) { return p.groups * channels * c.element % bytes == 0; };
  plan.packs_x = c.element == 2 || (x_often && far(p.channels, 2048)) || (y_often && far(p.filters, 2048)) ||
                 (x_often && y_often && far(p.channels, 1024) && far(p.filters, 1024));
  plan.packs_y = plan.packs_x || (y_often && p.filters % L);
  plan.twice = c.number == 4 && y_often && plan.shares_sources && p.filters > L &&
               (p.filters - 1) % L < L / 2 && p.channels % 8 == 0 && high % 8 == 0;
  plan.together = together(wide % 2 == 1 || plan.twice);
  int64_t span = (plan.stretch_columns - 1) * p.strides[2] + (p.window[2] - 1) * p.dilation[2] + 1;
  plan.packs_rows = p.window[2] > 1 && span < plan.stretch_columns * p.window[2];
}

}  // namespace

void size(const Call& c, Plan& plan) {
  switch (plan.kernel) {
    case Kernel::depthwise: return plan_depthwise(c, plan);
    case Kernel::narrow: return plan_narrow(c, plan);
    case Kernel::wide: return c.role == Role::w ? plan_wide_gradient(c, plan) : plan_wide(c, plan);
    case Kernel::winograd: return plan_winograd(c, plan);
    default: return plan_rows(c, plan);
  }
}

}  // namespace gconv
