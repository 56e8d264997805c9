"""Every rule of which implementation runs, as rows that are read from top to bottom.

The implementations are asked in the order native, xla, lax. Whether one can run at all is its own answer (`why_not`). Of one
that can, the first row below whose condition holds decides: it takes the problem, or leaves it to the implementations after it.
A problem that everyone leaves goes to the first that can run. A name that the user gives overrules all rows.

Which matrix products native computes, as convolutions, is said by the tables of `gconv.backends.products`, asked by name.

`sentence` is what `gconv.explain` prints. It may quote the problem: "a row of {p.row} numbers".
`evidence` says where the numbers of a row were measured. Rows of a benchmark are committed; a processor and a date without them
stand for a measurement that was made once and not kept. `python -m benchmarks.tune` measures every implementation again.
"""

import math

import jax.numpy as jnp

from gconv.backends.problem import Problem
from gconv.backends.products import FUSED_MATRIX, LINEAR
from gconv.backends.row import Row, always, leave, take
from gconv.backends.xla import GROUPS, TERMS, is_dense_gradient, sums_products

# Where the numbers come from. Paths are below benchmarks/.
LAYERS = "results/2026-11-25-2-threads.jsonl (Zen 4)"
EQUATIONS = "results/install/2026-11-28-2-threads.jsonl (Zen 4; python -m benchmarks equations)"
H100 = "results/h100/2026-11-27.jsonl (python -m benchmarks --gpu)"
TUNE = "results/tune/2026-11-28-avx512-2-threads.jsonl (Zen 4; python -m benchmarks.tune)"
AVX2 = "2 threads of a processor with AVX2, 2026-11-22, before there were kernels (commit 1436a29)"


# --- what several rows ask -------------------------------------------------------------------------------------------


def is_loops(p: Problem) -> bool:
    """Whether xla takes the problem, and writes it as sums of products, which XLA fuses into loops without a call."""
    return sums_products(p.role, p.g) and decide("xla", p).takes


def is_little(p: Problem) -> bool:
    """Whether a role is one fused sum and less work than the call of a kernel, which takes about a microsecond.

    Role "x" is one sum per remainder by the strides, and slow with a dilation. Role "w" is one only with a single tap. Measured
    on 2 threads of a Zen 4, 2026-11-25 (commit ab15dff) and 2026-11-28 (results/tune: 0.8 to 1.0 of native's time with 14,400
    products, 1.0 to 2.7 with 27,104 to 30,720).
    """
    g = p.g
    if not sums_products(p.role, g):
        return False
    if p.taps == 1:  # more results for the same work
        return p.products <= (1 << 15) // 6
    if p.role == "w" or (p.role == "x" and max(g.dilation) > 1):
        return False
    # Between strides, role "x" meets a part of the taps, on average.
    taps = p.taps if p.role == "y" else math.prod(-(-k // s) for k, s in zip(g.window, g.strides, strict=True))
    return taps * p.sources <= TERMS and p.products <= 1 << 14


def is_thin_point(p: Problem) -> bool:
    """Whether role "y" or "x" has a single tap and few channels.

    Measured on 2 threads of a processor with AVX-512, 2026-11-27 (commit 88d2026).
    """
    g = p.g
    few = p.taps == 1 and max(g.in_channels, g.out_channels) <= 12 and p.sources <= 4
    return few and p.role != "w" and sums_products(p.role, g)


def is_thin_window(p: Problem) -> bool:
    """Whether role "y" or "x" of one group, as of an image's colours, sums few terms, which lie side by side.

    Measured on 2 threads of a Zen 4, 2026-11-25 (commit 78f8e1d); input gradients with strides on a Zen 5, 2026-11-27 (commit
    d957bce), and of 1 -> 2 channels on a Zen 4, 2026-11-28 (results/tune: 0.61 of native's time).
    """
    g = p.g
    few = g.groups == 1 and p.taps > 1 and p.taps * p.sources <= 27
    beside = p.role == "y" or (p.role == "x" and (p.skip == 1 or p.pairs <= 2))
    return few and beside and sums_products(p.role, g)


def is_wide_point(p: Problem) -> bool:
    """Whether few groups of many channels have a single tap: matrix products."""
    return p.taps == 1 and p.g.groups <= 4 and p.pairs >= 1 << 17


# --- native: kernels in C++ ------------------------------------------------------------------------------------------

NATIVE = (
    leave(
        lambda p: is_wide_point(p) and p.role == "x" and max(p.g.strides) > 1,
        "XLA's matrix product of so many channels is faster where strides leave pixels out",
        f"{EQUATIONS}, 09:34, 1x1 with lhs_dilation: 1.09, 1.16 and 1.22 times lax's time with 2^17, 2^19 and 2^21 pairs, 0.98 "
        "with 10,240",
    ),
    leave(
        lambda p: is_wide_point(p) and p.role == "w" and p.pixels < 64,
        "XLA's matrix product of so many channels is faster where there are few pixels to sum over",
        f"{EQUATIONS}, 09:42, dense: 1.20 times lax's time with 2^18 pairs over 49 pixels, 0.49 over 392 pixels, 0.53 with "
        f"2^16 pairs over 49; {TUNE}: 1.42 times with 2 groups and 2^17 pairs over 2 pixels",
    ),
    take(
        lambda p: not is_loops(p),
        "its kernels are faster than XLA's convolutions and matrix products",
        f"{LAYERS}, 4 to 80 channels a group: 0.09 to 0.83 of xla's time in float32, up to 1.25 in bfloat16; at most 0.45 of "
        "lax's",
    ),
    leave(
        is_little,
        "so few products take less time than the call of a kernel, about a microsecond",
        "1 to 2 us faster by xla: 2 threads of a Zen 4, 2026-11-25 (commits e0ba746, ab15dff)",
    ),
    leave(
        is_thin_point,
        "its kernels work along channels, and a single tap of so few leaves their vectors empty",
        "2 threads with AVX-512, 2026-11-27 (commit 88d2026)",
    ),
    leave(
        lambda p: (
            p.role == "y"
            and p.taps == p.skip == 1
            and p.g.groups > 1
            and p.pairs <= 16
            and p.products > (150_000 if p.results == 1 else 400_000 if p.results > p.sources > 1 else 4_000_000)
        ),
        "a single tap of narrow groups is so little work that its kernels mostly move numbers between lanes",
        f"{TUNE}, 1x1: xla takes 0.51 of native's time with 4 -> 1 channels, 0.69 with 2 -> 2, 0.73 with 4 -> 4 and 0.78 with "
        "2 -> 4; 1.0 to 4.7 in role x, 1.8 with strides. 90 problems on 2 threads of a Zen 4, 2026-11-28: with "
        "fewer products 0.7 to 3.9 of native's time, 1.7 in geometric mean; with more 0.26 to 1.1",
    ),
    leave(
        lambda p: p.role == "x" and p.skip > 1 and p.taps <= p.skip and p.g.channels == 1,
        "with {p.taps} taps and strides {p.g.strides} most results of single channels are zeros between the strides",
        f"{TUNE}, role x: xla takes 0.14 to 0.79 of native's time in 4 of 5 rows, 1.07 in one; 1.9 with 2 channels",
    ),
    leave(
        lambda p: p.role == "x" and 1 < p.skip <= 4 and p.g.filters == 1 and p.g.channels >= 16 and p.products > 1e6,
        "each of its results has a single source, of which {p.g.channels} channels read few taps",
        f"{TUNE}, role x of 16 -> 1 channels, 5x5 with stride 2: xla takes 0.49 of native's time at batch 8, 0.76 at batch 1; "
        "4.3 with 14 -> 1 channels, 7x7 with stride 3",
    ),
    leave(
        lambda p: (
            is_thin_window(p) and p.sources <= 4 and p.results <= 4 and p.pairs <= (9 if p.products > 500_000 else 4)
        ),
        "its kernels work along channels, and {p.g.channels} -> {p.g.filters} of one group leave their vectors empty",
        f"2 threads of a Zen 5, 2026-11-27 (commit 16f085e); {TUNE}: 0.46 and 0.53 of native's time with 1 -> 2 channels, 2.2 "
        "with 9 results of 1 source",
    ),
    leave(
        lambda p: p.role != "w" and p.row <= 12 and p.taps <= 9,
        "its kernels work along rows, and a row of {p.row} numbers is short for so little work",
        "xla was 1.3 to 14 times as fast with 9 taps, native 4 times with 25 and 10 times with 121: 2 threads of a Zen 4, "
        "2026-11-25 (commits 10f09c4, 630f36d, ab15dff)",
    ),
    leave(
        lambda p: (
            p.role != "w"
            and p.pairs == 1
            and p.row <= 200
            and p.taps <= TERMS
            and p.products <= 90_000
            and (p.role == "y" or max(p.g.dilation) == 1)
        ),
        "its kernels work along rows, and a row of {p.row} numbers is short for {p.products:,} products",
        f"2 threads of a Zen 4, 2026-11-25 (commit ab15dff); {TUNE}, 5x5 with dilation 4: 0.64 of native's time in role y, 3.6 "
        "in role x",
    ),
    take(
        always,
        "its kernels are faster than XLA's loops",
        f"{LAYERS}, depthwise: 0.06 to 0.97 of xla's time; a bfloat16 row is against it, role x of depth_multiplier2 with 2.1",
    ),
)

# --- xla: the same sums, written so that XLA compiles them well ------------------------------------------------------

XLA = (
    # On CUDA sums of products stand against cuDNN's kernels for depthwise. bfloat16 in 1-D is computed in float32 there.
    leave(
        lambda p: p.platform == "cuda" and not (p.type == "float32" or (p.type == "bfloat16" and p.g.rank == 1)),
        "measured on CUDA in float32 only, not in {p.type}",
        f"{H100} has no other type",
    ),
    leave(
        lambda p: p.platform == "cuda" and (p.g.groups == 1 or p.g.channels != 1),
        "on CUDA it was faster for depthwise only",
        f"{H100}, groups of 4 channels and more: 0.50 to 7.4 times lax's time, 2.1 in geometric mean; 7 of 24 rows are under 1",
    ),
    leave(
        lambda p: (
            p.platform == "cuda" and (p.g.filters > 8 or p.g.rank > 2 or p.skip > 4 or p.taps > (TERMS if p.skip == 1 else 25))
        ),
        "not measured on CUDA with so many filters, axes, strides or taps",
        f"{H100} has windows of up to 7 x 7, with strides up to 5 x 5 by 2 x 2, in 1-D and 2-D",
    ),
    take(
        lambda p: p.platform == "cuda" and max(p.g.dilation) > 1,
        "cuDNN is slow at depthwise with dilation",
        f"{H100}, deeplab and jax_26266: 0.10 of lax's time in y and x, 0.05 and 0.01 in w",
    ),
    take(
        lambda p: p.platform == "cuda" and p.g.filters > 1,
        "cuDNN is slow at depthwise with several filters per channel",
        f"{H100}, depth_multiplier2: 0.07, 0.24 and 0.16 of lax's time in y, x and w",
    ),
    take(
        lambda p: p.platform == "cuda" and p.role != "w" and p.g.rank == 1,
        "cuDNN is slow at depthwise in 1-D",
        f"{H100}, mamba and jax_13800: 0.07 and 0.08 of lax's time; 1.03 and 1.52 in w",
    ),
    take(
        lambda p: p.platform == "cuda" and p.role != "w" and max(p.g.strides) > 1,
        "cuDNN is slow at depthwise with strides",
        f"{H100}, the three layers with _s2_ and 1 channel: 0.40 to 0.85 of lax's time; 1.22 to 1.97 in w",
    ),
    leave(
        lambda p: p.platform == "cuda",
        "cuDNN does it well",
        f"{H100}, depthwise in 2-D: 1.5 to 2.2 times lax's time in y and x, 0.26 to 9.3 in w",
    ),
    leave(
        lambda p: p.platform != "cpu",
        "measured on CPU and CUDA only; {p.platform!r} has convolution kernels of its own",
        "no rows of another platform",
    ),
    # On CPU.
    leave(
        lambda p: not jnp.issubdtype(p.dtype, jnp.floating),
        "measured for floating point only, not for {p.type}",
        "no rows of another type",
    ),
    leave(
        lambda p: p.g.groups == 1 and p.pairs > 1 and not (is_thin_point(p) or is_thin_window(p) or is_little(p)),
        "one group is an ordinary convolution, which lax does well",
        "see is_thin_point, is_thin_window, is_little",
    ),
    leave(
        lambda p: p.skip > 64 and p.role == "x",
        "strides {p.g.strides} skip too much: a product of {p.skip}, more than 64",
        f"{AVX2}; role x gains far more from strides, but each remainder by them is a program to compile",
    ),
    leave(
        lambda p: p.skip > 16 and p.role != "x",
        "strides {p.g.strides} skip too much: a product of {p.skip}, more than 16",
        AVX2,
    ),
    leave(
        lambda p: p.role == "w" and p.g.channels == 1 and p.g.filters > 8,
        "{p.g.filters} filters per channel repeat the input too often, more than 8",
        AVX2,
    ),
    take(
        lambda p: sums_products(p.role, p.g),
        "XLA fuses its sums of products into loops",
        f"{LAYERS}, depthwise layers: 0.003 to 0.48 of the time of gconv's lax",
    ),
    leave(
        lambda p: p.g.groups > GROUPS,
        f"one convolution for each of {{p.g.groups}} groups compiles too slowly, more than {GROUPS}",
        f"30 ms of compile time per convolution: {AVX2}",
    ),
    leave(
        lambda p: p.role != "w" and jnp.finfo(p.dtype).bits > 32,
        "XLA has no fast path for ordinary convolutions in {p.type}",
        AVX2,
    ),
    leave(
        lambda p: p.role != "w" and p.taps == 1,
        "a window of one pixel leaves nothing to gain",
        f"{LAYERS}, shufflenet_v1_g3_1x1: 0.83 to 0.92 of lax's time in y, 1.08 to 1.22 in x; in bfloat16 0.25 and 0.52, which "
        "is against it",
    ),
    take(
        lambda p: p.role != "w",
        "XLA has a fast path for one ordinary convolution per group",
        f"{LAYERS}, windows of 3 x 3 and 5 x 5 in groups of 4 to 48: 0.10 to 0.65 of lax's time",
    ),
    leave(
        lambda p: jnp.finfo(p.dtype).bits < 32,
        "summing {p.type} in float32 group by group is no faster",
        f"{AVX2}; {LAYERS} is against it: 0.35 to 0.81 of the time of gconv's lax",
    ),
    leave(
        lambda p: not is_dense_gradient(p.g) and min(p.g.channels, p.g.filters) < 16,
        "matrix products of {p.g.channels} x {p.g.filters} per tap and group are too small",
        AVX2,
    ),
    leave(
        lambda p: math.prod(p.g.output) < 49,
        "too few pixels for one convolution per group",
        AVX2,
    ),
    take(
        always,
        "XLA has a fast path for one ordinary kernel gradient per group",
        f"{LAYERS}, groups of 4 to 80, float32: 0.18 to 1.03 of the time of gconv's lax",
    ),
)

# --- lax: the last ---------------------------------------------------------------------------------------------------

LAX = (take(always, "those before it cannot run here or are no faster", "there is none after it"),)

ROWS: dict[str, tuple[Row, ...]] = {
    "native": NATIVE,
    "xla": XLA,
    "lax": LAX,
    "fused matrix": FUSED_MATRIX,
    "linear": LINEAR,
}
UNKNOWN = take(always, "no rule is against it", "an implementation without rows of its own")


def decide(name: str, problem: Problem) -> Row:
    """The row that decides whether an implementation takes a problem, which it must be able to run."""
    return next(row for row in (*ROWS.get(name, ()), UNKNOWN) if row.condition(problem))
