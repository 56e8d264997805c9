"""Side-by-side timing: all in one process, in turns, medians."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import jax

Run = Callable[[], object]

BLOCK = 0.02  # seconds: how long a candidate keeps its turn
REST, LONGEST_REST = 0.01, 0.5  # seconds between turns


class Clock(Protocol):
    """How the time of a candidate is taken. On a GPU it is the device's, which the caller's clock does not see."""

    most: int  # calls in one turn

    def once(self, run: Run) -> float:
        """Seconds until one call is done, as its caller waits."""

    def block(self, run: Run, calls: int) -> list[float]:
        """Seconds per call of a turn, one value or several."""


class Wall:
    """The caller's clock. The first of several calls does not count."""

    most = 20

    def once(self, run: Run) -> float:
        start = time.perf_counter()
        jax.block_until_ready(run())  # passes through what is no JAX array
        return time.perf_counter() - start

    def block(self, run: Run, calls: int) -> list[float]:
        times = [self.once(run) for _ in range(calls)]
        return times[1:] or times


WALL = Wall()


def interleaved(
    candidates: Mapping[str, Run],
    *,
    rounds: int = 15,
    seconds: float = 4.0,
    once_over: float | None = None,
    clocks: Mapping[str, Clock] | None = None,
) -> dict[str, dict]:
    """Times zero-argument callables that are done when they return, or return JAX arrays.

    Each is called once before anything counts. Then all take turns, so that a slow moment of the machine hits all alike. A
    turn begins with a rest, until the threads of the last one's pool are asleep. It is a block of calls in a row, about
    20 ms of them and two at least, whose first does not count: it wakes the candidate's own threads, puts its operands in the
    cache and has memory back that the system took while others ran.

    Args:
      candidates: what to time, by name.
      rounds: at most so many turns each.
      seconds: stop after the round in which this time is over; one round at least.
      once_over: a candidate whose first call takes longer than this (seconds) is not called again: that call is its result.
      clocks: by name, of those who are not timed by the caller's clock.

    Returns:
      Per candidate: `first` (its first call), `median`, `low` and `high` (quartiles) of the calls, all in seconds, and how many
      `calls` counted.
    """
    first, times = {}, {}
    clock = {name: (clocks or {}).get(name, WALL) for name in candidates}
    for name, run in candidates.items():
        first[name] = clock[name].once(run)
        times[name] = [first[name]] if once_over is not None and first[name] > once_over else []
    waiting = {name: run for name, run in candidates.items() if not times[name]}
    calls = {name: 2 if first[name] > BLOCK else _calls(run, clock[name]) for name, run in waiting.items()}
    end = time.perf_counter() + seconds
    for _ in range(rounds if waiting else 0):
        for name, run in waiting.items():
            rest()
            times[name] += clock[name].block(run, calls[name])
        if time.perf_counter() > end:
            break
    return {name: {"first": first[name], **spread(times[name])} for name in candidates}


def rest() -> None:
    """Until no other thread of this process runs: a pool's spin before they sleep (PyTorch's for 11 milliseconds), on the
    processor that those of the next one need."""
    end = time.perf_counter() + LONGEST_REST
    while time.perf_counter() < end:
        before = time.process_time()
        time.sleep(REST)
        if time.process_time() - before < REST / 10:
            break


def spread(times: list[float]) -> dict:
    """Median and quartiles."""
    low, median, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    return {"low": low, "median": median, "high": high, "calls": len(times)}


def _calls(run: Run, clock: Clock) -> int:
    warm = min(clock.once(run) for _ in range(3))
    return max(2, min(clock.most, int(BLOCK / max(warm, 1e-6))))
