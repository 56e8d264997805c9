"""Work that is ready for the stopwatch: its times, and whether the results agree."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.measuring.stopwatch import WALL, Clock, interleaved

SLOW = 10.0  # seconds: a call that takes longer is made once; a shorter one is not judged by its first, cold call
ROUNDS = 15
# What one measured value may differ from another by, as a share of the largest: float32 and half precision.
TOLERANCES = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 2e-3}


@dataclass(frozen=True)
class Prepared:
    """`run` does the work once; `result` does too and gives what it computed as float32, channels last."""

    run: Callable[[], Any]
    result: Callable[[], Any]
    compile: float = 0.0  # seconds that tracing and compiling, or opening a session, took
    keep: Any = None  # what must outlive the calls
    clock: Clock = WALL


def timed(function: Callable, *args) -> tuple[Any, float]:
    """The result of a call and its seconds."""
    start = time.perf_counter()
    return function(*args), time.perf_counter() - start


def measured(
    prepared: Mapping[str, Prepared],
    seconds: float,
    *,
    quick: bool,
    dtype: str,
    tolerance: float | None = None,
    slow: float = SLOW,
) -> dict:
    """The times of prepared work; in quick mode, results are compared first, with whatever comes first as the reference."""
    if quick:
        compare({name: work.result() for name, work in prepared.items()}, tolerance or TOLERANCES[dtype])
    rounds = 1 if quick else ROUNDS
    runs, clocks = ({name: getattr(work, of) for name, work in prepared.items()} for of in ("run", "clock"))
    times = interleaved(runs, rounds=rounds, seconds=seconds, once_over=slow, clocks=clocks)
    return {name: {"compile": prepared[name].compile, **t} for name, t in times.items()}


def compare(results: Mapping[str, object], tolerance: float) -> None:
    """An error that names who computed something else than the first."""
    (first, expected), *others = results.items()
    as_list = lambda value: value if isinstance(value, list | tuple) else [value]
    for name, value in others:
        for got, want in zip(as_list(value), as_list(expected), strict=True):
            worst = float(np.abs(got - want).max() / np.abs(want).max()) if got.shape == want.shape else float("nan")
            if not worst <= tolerance:
                raise AssertionError(
                    f"{name} {got.shape} differs from {first} {want.shape} by {worst:.1e} of the largest value"
                )
