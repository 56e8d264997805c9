"""Side-by-side timing: every candidate in one process, in turns, medians."""

import statistics
import time
from collections.abc import Callable

import jax


def interleaved(candidates: dict[str, Callable], *, rounds: int = 15, seconds: float = 4.0) -> dict[str, dict]:
    """Times zero-argument callables that return JAX arrays.

    Each is called once to compile and once warm before anything counts. Then all take turns, so that a slow moment of the
    machine hits all alike, until `rounds` are done or, after at least one round, the time for this case is spent.

    Returns:
      Per candidate: `first` (the first call, compilation included), `median`, `low` and `high` (quartiles) in seconds, and
      how many `rounds`.
    """
    first, times = {}, {name: [] for name in candidates}
    for name, run in candidates.items():
        start = time.perf_counter()
        jax.block_until_ready(run())
        first[name] = time.perf_counter() - start
        if first[name] < seconds:  # a candidate that takes longer than the whole case is warm enough
            jax.block_until_ready(run())
    end = time.perf_counter() + seconds
    for _ in range(rounds):
        for name, run in candidates.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            times[name].append(time.perf_counter() - start)
        if time.perf_counter() > end:
            break
    return {name: {"first": first[name], **_spread(t)} for name, t in times.items()}


def _spread(times: list[float]) -> dict:
    low, median, high = statistics.quantiles(times, n=4) if len(times) > 1 else times * 3
    return {"low": low, "median": median, "high": high, "rounds": len(times)}
