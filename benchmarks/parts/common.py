"""What the parts of a run share: the types, the choice by name, and one rule of time.

A part has so many seconds, and what is left of them is divided among what is left to measure.
"""

import time
from collections.abc import Sequence

DTYPES = ("float32", "bfloat16")


class Budget:
    """Divides a part's seconds evenly among what is left of its work."""

    def __init__(self, seconds: float, pieces: int):
        self.end, self.pieces = time.perf_counter() + seconds, pieces

    def share(self) -> float:
        """Seconds for measuring the next piece: half of its share, for preparing takes its part."""
        left, self.pieces = self.end - time.perf_counter(), self.pieces - 1
        return max(0.0, 0.5 * left / max(self.pieces + 1, 1))


def wanted(name: str, only: Sequence[str]) -> bool:
    return any(text in name for text in only)
