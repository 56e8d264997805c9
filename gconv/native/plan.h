// How one call is carried out: which kernel, with which vectors, in which sizes. Kernels execute a plan and
// decide nothing. Planning is compiled once, needs no vectors, and does not look at data: it takes part of a
// microsecond.
//
// A result has the same bits alone and in any batch, and on any number of threads. So nothing that changes
// the order of a sum may depend on the batch or on the threads, but for role w, which sums over the batch.

#pragma once

#include "problem.h"

namespace gconv {

// Kernels by what they do. Role w has a depthwise, a narrow and a wide one; roles y and x have all.
enum class Kernel { depthwise, winograd, matrix, rows, wide, narrow };
constexpr Kernel EVERY_KERNEL[] = {Kernel::depthwise, Kernel::winograd, Kernel::matrix,
                                   Kernel::rows,      Kernel::wide,     Kernel::narrow};

// One length of vectors that kernels are compiled for.
struct Vectors {
  const char* set;  // the instruction set
  int64_t bytes, registers;
};

struct Processor {
  Vectors vectors[2][4];  // of the instruction set in use, the longest first, for each type
  int lengths;            // how many of them there are
  bool pairs;             // whether an instruction adds both products of pairs of bfloat16
  bool two_passes;  // whether vectors of 64 bytes take two passes through its arithmetic units, as on Zen 4
  double cache;     // bytes of the last cache that it shares with its neighbours
};

struct Plan {
  Kernel kernel;
  int length;        // which of the processor's vectors
  int64_t bytes;     // of a vector
  int64_t lanes;     // of a vector, in the type that sums are formed in
  bool by_pairs;     // whether sums are of products of pairs, by that instruction: see vectors/products.h
  int64_t threads;   // at most so many work
  bool much;         // whether there is so much to do that another thread is worth waiting for
  int64_t packed;    // numbers of the packed kernel; role w: of one partition's sums
  int64_t scratch;   // bytes, in which the packed kernel comes first; but a frozen kernel's is kept elsewhere
  bool past_caches;  // whether x and y fill the last cache: sources are asked for early
  bool streams;      // whether results are stored past the caches then, since nothing reads them soon

  // The register tile: so many results of so many vectors. Role w: pixels of y in depthwise, taps in
  // `narrow`, channels in `wide`.
  int64_t tile, vectors;
  // What a thread works on at once. Roles y and x: so many results, in depthwise and `rows` of one row. Role
  // w: rows of y, and columns of these.
  int64_t stretch, stretch_rows, stretch_columns;
  int64_t stretches;   // role w: in all
  int64_t partitions;  // role w: partial sums, which are added up in their order at the end

  // Depthwise.
  int64_t strand;       // channels that are taken at once: of bfloat16 maybe as two vectors
  int64_t rows;         // of results in a tile: 1 or 2
  bool dilated_phases;  // whether neighbours in a phase are one dilation apart
  bool near;            // whether the next tile's sources are asked for into the nearest cache
  bool whole_rows;      // role w: whether registers hold a sum from one end of a row to the other

  // A matrix product.
  bool by_pixels;  // whether threads share the pixels of few, and each reads all weights

  // Winograd.
  bool once;    // whether the weights are read once, by all squares
  int64_t gap;  // numbers between the packed kernel's points: else they would crowd the nearest cache's sets

  // Roles y and x of narrow groups.
  bool tree;      // whether sums of lanes are a tree, whose results lie side by side as they are stored
  bool even_odd;  // of bfloat16: whether a lane is two source channels, in two vectors

  // Role w of wide groups. A block of the result is summed at once.
  int64_t block_channels, block_vectors;
  bool one_axis;        // whether the taps of a row and the channels are one axis
  int64_t together;     // taps of a row that are taken together, at most; of four left, two and two
  bool shares_sources;  // whether taps that are taken together share each x, for different columns
  bool twice;  // whether the last vector, at most half full, holds each filter twice, for two channels
  bool packs_x, packs_y;  // whether a stretch's part of a block is packed first
  bool packs_rows;        // whether x is packed for all taps of a row at a time

  // What the choice came from: instructions of the inner loops, a vector's multiply-adds as one each, and how
  // many of them would do if every lane were used and nothing were to be loaded.
  double cost, least;
};

// Name of a kernel: "wide" of Kernel::wide.
const char* name_of(Kernel kernel);

// What is wrong with the numbers of a problem, or nullptr.
const char* check(const Problem& problem);

// Why a kernel cannot do a problem, or nullptr.
const char* why_not(Kernel kernel, Role role, const Problem& problem);

// Plans a call for up to `threads` threads. `forced` names a kernel and the bytes of its vectors ("wide.64"),
// or is empty. The result is a sentence where that one cannot run, or no kernel can, else nullptr.
const char* plan_call(Role role, Type type, const Problem& problem, const Processor& processor,
                      int64_t threads, const char* forced, Plan& plan);

namespace {

// Bytes of the packed kernel, which roles y and x have.
inline int64_t packed_bytes(Role role, const Plan& plan) {
  return role == Role::w ? 0 : plan.packed * plan.bytes / plan.lanes;
}

}  // namespace

// --- register tiles ----------------------------------------------------------------------------------------
// Kernels are compiled for these sizes and plans count with them. With 32 registers a tile has more results:
// 14 and 7, which divide the rows that images have in practice.

namespace {

constexpr int depthwise_tile(int registers) { return registers == 32 ? 14 : 7; }
constexpr int depthwise_half_tile(int registers) { return registers == 32 ? 7 : 4; }
constexpr int PAIRED_RUN = 4;    // taps in a run whose weights fit into registers for two vectors
constexpr int TWO_ROWS_RUN = 3;  // taps in a run whose weights fit into registers for two rows
constexpr int whole_row_vectors(int registers) { return registers == 32 ? 4 : 2; }
constexpr int WHOLE_ROW_RUN = 4;

constexpr int wide_tile(int registers, int vectors) {
  return registers == 32 ? 7 : vectors == 1 ? 8 : vectors == 2 ? 6 : 4;
}
constexpr int wide_tiles(int registers) { return registers == 32 ? 28 : 24; }  // a multiple of these three

// Vectors of filters in the next block of a group's: all three, else two, else one.
inline int64_t block_of(int64_t vectors, int64_t most) {
  return vectors == 1 ? 1 : vectors == 3 && most == 3 ? 3 : 2;
}

constexpr int row_tile(int registers, int vectors) {
  return registers == 32 ? (vectors < 3 ? 14 : 7) : vectors == 1 ? 12 : vectors == 2 ? 6 : 4;
}

constexpr int winograd_tile(int registers) { return registers == 32 ? 7 : 6; }  // squares of 2 x 2 results
// Whether so many lines, each so many bytes after the other, are more than a cache keeps of lines that lie so
// far apart: those that are a large power of two apart share few sets. The nearest cache has 64 sets, the
// second one 2048, of 8 lines each, as on Zen 4.
constexpr int64_t NEAREST_SETS = 64, SECOND_SETS = 2048;
inline bool is_crowded(int64_t lines, int64_t apart, int64_t sets) {
  constexpr int64_t WAYS = 8;
  return lines > WAYS * sets * LINE / minimum(apart & -apart, sets * LINE);
}
constexpr int winograd_vectors(int registers) { return registers == 32 ? 3 : 2; }

constexpr int narrow_tile(int registers, int filters) {
  return filters == 8   ? 3
         : filters == 4 ? (registers == 32 ? 6 : 3)
         : filters == 3 ? (registers == 32 ? 5 : 3)
         : filters == 2 ? 6
                        : 8;
}
constexpr int NARROW_TAPS = 7;  // role w: neighbouring taps of a tile

}  // namespace
}  // namespace gconv
