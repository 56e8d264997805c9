"""The case table that tests and benchmarks share: small named cases, sampled products of the options, and real layers.

A case is what a user writes: shapes and the options of `gconv.grouped_conv`. What they mean is worked out by `oracle`.
"""

import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import oracle

LAYERS = Path(__file__).parent.parent / "benchmarks" / "cases" / "layers.json"
NUMPY_MODES = {
    "symmetric-include-edge": "symmetric",
    "symmetric-exclude-edge": "reflect",
    "replicate": "edge",
    "circular": "wrap",
}


@dataclass(frozen=True, slots=True)
class Case:
    """One call of `grouped_conv`: `channels` and `filters` are per group, `groups` is an integer."""

    name: str
    batch: tuple[int, ...]
    spatial: tuple[int, ...]
    window: tuple[int, ...]
    groups: int
    channels: int
    filters: int
    strides: int | tuple = 1
    padding: int | str | tuple = 0
    dilation: int | tuple = 1
    padding_value: complex | str = 0
    bias: bool = False
    channel_wise: bool = False  # written as groups="channel-wise"

    def __str__(self) -> str:
        return self.name

    @property
    def rank(self) -> int:
        return len(self.window)

    @property
    def x_shape(self) -> tuple[int, ...]:
        return (*self.batch, *self.spatial, self.groups * self.channels)

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        return (*self.window, self.channels, self.groups * self.filters)

    @property
    def output(self) -> tuple[int, ...]:
        facts = self.facts
        padded = tuple(n + lo + hi for n, (lo, hi) in zip(self.spatial, facts["pads"], strict=True))
        return oracle.output_size(padded, self.window, facts["strides"], facts["dilation"])

    @property
    def y_shape(self) -> tuple[int, ...]:
        return (*self.batch, *self.output, self.groups * self.filters)

    @property
    def options(self) -> dict:
        """The keyword arguments of `gconv.grouped_conv`."""
        groups = "channel-wise" if self.channel_wise else self.groups
        values = {"strides": self.strides, "padding": self.padding, "dilation": self.dilation}
        return {"groups": groups, **values, "padding_value": self.padding_value}

    @property
    def facts(self) -> dict:
        """The keyword arguments of the functions of `oracle`."""
        strides, dilation = ((v,) * self.rank if isinstance(v, int) else v for v in (self.strides, self.dilation))
        pads = oracle.pairs(self.padding, self.spatial, self.window, strides, dilation)
        fill = NUMPY_MODES.get(self.padding_value, self.padding_value)
        return {"groups": self.groups, "strides": strides, "pads": pads, "dilation": dilation, "padding_value": fill}

    @property
    def multiplications(self) -> int:
        """Of the forward pass, those with padding included."""
        return math.prod(self.y_shape) * math.prod(self.window) * self.channels

    def terms(self, role: str) -> int:
        """The most terms that one entry of y, of the input gradient "x" or of the kernel gradient "w" is a sum of."""
        taps = math.prod(self.window)
        positions = math.prod(self.output)
        # Padding that repeats the input folds many products onto one sample.
        folded = taps * positions if isinstance(self.padding_value, str) else min(taps, positions)
        return {"y": taps * self.channels + 1, "x": folded * self.filters, "w": math.prod(self.batch) * positions}[role]

    def arrays(self, dtype="float32", seed: int = 0) -> tuple:
        """`(x, kernel, bias or None, a cotangent of y)` as NumPy arrays."""
        rng = np.random.default_rng(seed)
        shapes = (self.x_shape, self.kernel_shape, (self.groups * self.filters,), self.y_shape)
        x, kernel, bias, ct = (draw(rng, shape, dtype) for shape in shapes)
        return x, kernel, bias if self.bias else None, ct


def draw(rng, shape, dtype) -> np.ndarray:
    """Normal numbers, or integers from -4 to 4, of any dtype that NumPy or ml_dtypes knows."""
    dtype = np.dtype(dtype)
    if dtype.kind in "iu":
        return rng.integers(-4 if dtype.kind == "i" else 0, 5, shape).astype(dtype)
    real = rng.standard_normal(shape)
    return (real + 1j * rng.standard_normal(shape) if dtype.kind == "c" else real).astype(dtype)


# --- (a) by hand -----------------------------------------------------------------------------------------------------

NAMED = (
    Case("one-sample", (), (1,), (1,), 1, 1, 1),
    Case("dense-2d", (2,), (5, 6), (3, 3), 1, 3, 4, padding="same"),
    Case("grouped-2d", (2,), (6, 5), (3, 3), 3, 2, 4, padding=1, bias=True),
    Case("depthwise-2d", (2,), (6, 7), (3, 3), 5, 1, 1, padding="same", channel_wise=True),
    Case("depth-multiplier", (2,), (5, 5), (3, 3), 4, 1, 3, strides=2, padding="same", bias=True),
    Case("wide-groups", (1,), (4, 4), (3, 3), 2, 16, 8, padding=1),
    Case("causal-1d", (2,), (9,), (4,), 6, 1, 1, padding="causal"),
    Case("causal-dilated", (1,), (11,), (3,), 2, 2, 2, padding="causal", dilation=3),
    Case("matlab-flat", (1,), (7, 8), (3, 2), 2, 2, 3, strides=(2, 1), padding=(0, 1, 2, 0)),
    Case("flat-1d", (1,), (7,), (3,), 2, 1, 2, padding=(2, 1)),
    Case("3d", (1,), (4, 5, 3), (2, 3, 2), 2, 2, 2, strides=(1, 2, 1), padding="same"),
    Case("stride-over-window", (1,), (9, 10), (2, 1), 2, 2, 1, strides=(3, 4)),
    Case("window-over-input", (2,), (2, 3), (5, 5), 3, 1, 1, padding="same"),
    Case("unused-rows", (1,), (8, 8), (3, 3), 2, 1, 2, strides=3),
    Case("only-padding", (1,), (2,), (3,), 1, 2, 1, strides=3, padding=((4, 4),)),
    Case("no-batch", (), (6, 6), (3, 3), 2, 2, 2, padding=1),
    Case("batch-of-batches", (2, 1, 3), (5,), (3,), 3, 2, 1, padding=1, bias=True),
    Case("zero-batch", (0,), (5, 5), (3, 3), 2, 2, 2, padding=1, bias=True),
    Case("zero-batch-circular", (2, 0), (5,), (3,), 2, 1, 1, padding=1, padding_value="circular"),
    Case("filled-with-a-number", (1,), (4, 4), (3, 3), 2, 1, 1, padding=2, padding_value=-1.5),
    Case("wraps-twice", (1,), (3,), (4,), 2, 1, 1, padding=((7, 8),), padding_value="circular"),
    Case("reflects-twice", (1,), (3,), (4,), 2, 1, 1, padding=((6, 5),), padding_value="symmetric-exclude-edge"),
    Case("reflects-one-sample", (1,), (1,), (2,), 1, 2, 1, padding=3, padding_value="symmetric-exclude-edge"),
    Case("mirrors-twice", (1,), (3, 2), (3, 2), 1, 1, 1, padding=((7, 4), (0, 5)), padding_value="symmetric-include-edge"),
)


# --- (b) sampled -----------------------------------------------------------------------------------------------------


def sampled(n: int, seed: int) -> tuple[Case, ...]:
    """`n` different legal cases, the same ones for the same seed."""
    found: dict[str, Case] = {}
    for case in _endless(random.Random(seed)):
        if min(case.output) > 0 and case.multiplications < 200_000:
            found.setdefault(case.name, case)
        if len(found) == n:
            return tuple(found.values())
    raise AssertionError("unreachable")


def _endless(rng: random.Random) -> Iterator[Case]:
    while True:
        rank = rng.choice((1, 2, 2, 3))
        largest = {1: 13, 2: 8, 3: 5}[rank]

        def axes(*choices, rank=rank):
            return tuple(rng.choice(choices) for _ in range(rank))

        def one_or_each(*choices, axes=axes):
            return rng.choice((rng.choice(choices), axes(*choices)))

        groups, channels, filters, channel_wise = rng.choice(
            ((1, 3, 2, False), (2, 2, 3, False), (3, 4, 1, False), (4, 1, 1, True), (3, 1, 2, True), (5, 1, 1, False))
        )
        spatial, window = axes(*range(2, largest + 1)), axes(1, 2, 3, 4)
        strides, dilation = one_or_each(1, 1, 2, 3), one_or_each(1, 1, 2, 3)
        batch = rng.choice(((), (1,), (2,), (2, 1), (1, 3), (0,)))
        padding = _padding(rng, rank)
        fill = rng.choice((0, 0, 0, 1.5, *NUMPY_MODES))
        parts = (f"{rank}d", f"b{_x(batch)}", _x(spatial), f"k{_x(window)}", f"s{_x(strides)}", f"d{_x(dilation)}")
        name = "-".join((*parts, f"p{_x(padding)}", f"g{groups}c{channels}f{filters}", str(fill)))
        bias = rng.random() < 0.3
        yield Case(
            name, batch, spatial, window, groups, channels, filters, strides, padding, dilation, fill, bias, channel_wise
        )


def _padding(rng: random.Random, rank: int) -> int | str | tuple:
    def numbers(n):
        return tuple(rng.randrange(4) for _ in range(n))

    kinds = (
        lambda: rng.randrange(4),
        lambda: numbers(rank),
        lambda: tuple(numbers(2) for _ in range(rank)),
        lambda: numbers(2 * rank),
        lambda: "same",
        lambda: "same_lower",
        lambda: "valid",
        lambda: "causal" if rank == 1 else "same",
    )
    return rng.choice(kinds)()


def _x(value) -> str:
    """`(2, 3)` as "2x3" and `((0, 1), (2, 3))` as "0.1x2.3": pytest cannot select ids with brackets or commas."""
    if not isinstance(value, tuple):
        return str(value)
    return "x".join(".".join(map(str, v)) if isinstance(v, tuple) else str(v) for v in value) or "none"


# --- (c) real layers -------------------------------------------------------------------------------------------------


def layers() -> tuple[Case, ...]:
    """The grouped convolutions of published networks, in `benchmarks/cases/layers.json`."""
    return tuple(_layer(entry) for entry in json.loads(LAYERS.read_text())["layers"])


def _layer(entry: dict) -> Case:
    groups = entry["groups"]
    padding = "same" if entry["padding"] == "SAME" else tuple(map(tuple, entry["padding"]))
    return Case(
        name=entry["name"],
        batch=(entry["batch"],),
        spatial=tuple(entry["spatial"]),
        window=tuple(entry["window"]),
        groups=groups,
        channels=entry["in_channels"] // groups,
        filters=entry["out_channels"] // groups,
        strides=tuple(entry["strides"]),
        padding=padding,
        dilation=tuple(entry["dilation"]),
    )


# --- what a case gives -----------------------------------------------------------------------------------------------


def expected(case: Case, x, kernel, bias, ct, padding_value=None) -> dict[str, np.ndarray]:
    """By the oracle: y and the gradients of x, kernel and bias for the cotangent `ct`, under the names y, x, w, b."""
    facts = case.facts if padding_value is None else {**case.facts, "padding_value": padding_value}
    results = {
        "y": oracle.conv(x, kernel, bias, **facts),
        "x": oracle.input_gradient(ct, kernel, case.x_shape, **facts),
        "w": oracle.kernel_gradient(x, ct, case.kernel_shape, **facts),
    }
    return results if bias is None else {**results, "b": oracle.wide(ct).sum(tuple(range(ct.ndim - 1)))}


def assert_matches(case: Case, got: dict, arrays: tuple, values: dict | None = None) -> None:
    """`got` (some of y, x, w, b) against `values` (the oracle's), each entry within the error that its own sum may have.

    A sum of n products in a precision eps is off by at most n * eps * (the sum of their magnitudes), and storing it adds one
    rounding, as does a bias. Half precision accumulates in float32. Sums of complex numbers have two real terms for each.
    """
    magnitude = abs(case.padding_value) if not isinstance(case.padding_value, str) else None
    values = expected(case, *arrays) if values is None else values
    sizes = expected(case, *(a if a is None else abs(oracle.wide(a)) for a in arrays), padding_value=magnitude)
    for name, result in got.items():
        result = np.asarray(result)
        assert result.shape == values[name].shape, f"{name} of {case}: shape {result.shape}, not {values[name].shape}"
        stored = _eps(result.dtype)
        summed = min(stored, _eps("float32"))
        terms = case.terms("w" if name == "b" else name) * (2 if result.dtype.kind == "c" else 1)
        error = abs(oracle.wide(result) - values[name])
        allowed = (terms * summed + 2 * stored) * sizes[name]
        worst = (error - allowed).max(initial=0)
        assert worst <= 0, f"{name} of {case}: off by {error.max()}, {worst} more than {terms} terms of {result.dtype} explain"


def _eps(dtype) -> float:
    dtype = np.dtype(dtype)
    return 0.0 if dtype.kind in "iu" else float(ml_dtypes.finfo(dtype).eps)
