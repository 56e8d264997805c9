"""What is measured on: the processor, or a GPU (`benchmarks.measuring.gpu`). Peers and parts ask it what depends on that."""

import itertools
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.measuring.stopwatch import WALL, Clock

TIMES_THE_CACHE = 4


def host_memory() -> int:
    """Bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 8 * 2**30


@dataclass(frozen=True)
class Target:
    """The device, and how its work is timed.

    Attributes:
      platform: "cpu" or "cuda", as JAX calls it when it lowers a program.
      cache: bytes that the operands of successive calls must exceed together, or 0: on a processor they may stay in its caches,
        as in a network; a GPU's caches are so large that this would measure another machine than networks run on.
      batch: the images of every layer, or None for the layer's own number.
      jax, torch: the clocks of either library's work.
    """

    platform: str = "cpu"
    cache: int = 0
    batch: int | None = None
    jax: Clock = WALL
    torch: Clock = WALL
    memory: Callable[[], int] = host_memory

    def copies(self, operands: int) -> int:
        """How many copies of operands of so many bytes to rotate over."""
        return max(1, math.ceil(TIMES_THE_CACHE * self.cache / max(operands, 1)))


CPU = Target()


def rotating(function: Callable, copies: Sequence[Sequence[Any]]) -> Callable[[], Any]:
    """A call without arguments of `function`, each time with the next of the copies of its operands."""
    if len(copies) == 1:
        return lambda: function(*copies[0])
    turns = itertools.cycle(copies)
    return lambda: function(*next(turns))
