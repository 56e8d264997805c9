"""Side-by-side timing: all in one process, in turns, medians."""

import statistics
import time
from collections.abc import Callable, Mapping

import jax

BLOCK = 0.02  # seconds: how long a candidate keeps its turn
REST = 0.01  # seconds between turns: waiting threads of the last one's pool spin for some milliseconds before they sleep


def interleaved(
    candidates: Mapping[str, Callable[[], object]], *, rounds: int = 15, seconds: float = 4.0, once_over: float | None = None
) -> dict[str, dict]:
    """Times zero-argument callables that are done when they return, or return JAX arrays.

    Each is called once before anything counts. Then all take turns, so that a slow moment of the machine hits all alike. A
    turn begins with a rest, in which the threads of the last one's pool go to sleep. It is a block of calls in a row, about
    20 ms of them, whose first does not count where there are more: it wakes the candidate's own threads and puts its
    operands in the cache.

    Args:
      candidates: what to time, by name.
      rounds: at most so many turns each.
      seconds: stop after the round in which this time is over; one round at least.
      once_over: a candidate whose first call takes longer than this (seconds) is not called again: that call is its result.

    Returns:
      Per candidate: `first` (its first call), `median`, `low` and `high` (quartiles) of the calls, all in seconds, and how many
      `calls` counted.
    """
    first, times = {}, {}
    for name, run in candidates.items():
        first[name] = _time(run)
        times[name] = [first[name]] if once_over is not None and first[name] > once_over else []
    waiting = {name: run for name, run in candidates.items() if not times[name]}
    calls = {name: 1 if first[name] > BLOCK else _calls(run) for name, run in waiting.items()}
    end = time.perf_counter() + seconds
    for _ in range(rounds if waiting else 0):
        for name, run in waiting.items():
            time.sleep(REST)
            block = [_time(run) for _ in range(calls[name])]
            times[name] += block[1:] or block
        if time.perf_counter() > end:
            break
    return {name: {"first": first[name], **spread(times[name])} for name in candidates}


def spread(times: list[float]) -> dict:
    """Median and quartiles."""
    low, median, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    return {"low": low, "median": median, "high": high, "calls": len(times)}


def _time(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())  # passes through what is no JAX array
    return time.perf_counter() - start


def _calls(run: Callable[[], object]) -> int:
    return max(1, min(20, int(BLOCK / max(_time(run), 1e-6))))
