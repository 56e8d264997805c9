"""What the tables and plots read off the rows of results."""

import statistics
from collections.abc import Iterable, Sequence

TORCH = ("PyTorch contiguous", "PyTorch channels_last")
OTHERS = ("lax", "nnx.Conv", "PyTorch", "ONNX Runtime", "OpenVINO")
ROLES = {"y": "convolution (y)", "x": "input gradient (x)", "w": "kernel gradient (w)"}


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.3g}" if seconds < 0.1 else f"{seconds * 1e3:,.0f}"


def part(rows: list[dict], name: str) -> list[dict]:
    return [row for row in rows if row["part"] == name]


def median(row: dict, peer: str) -> float | None:
    """Seconds of a peer; "PyTorch" is the best of its memory formats, on a GPU eagerly or compiled."""
    names = [name for name in row["times"] if name.startswith(peer)] if peer == "PyTorch" else (peer,)
    found = [row["times"][name]["median"] for name in names if name in row["times"]]
    return min(found) if found else None


def ratio(row: dict, peer: str) -> float | None:
    """How many times as long as gconv the peer takes."""
    theirs = median(row, peer)
    return None if theirs is None or "gconv" not in row["times"] else theirs / row["times"]["gconv"]["median"]


def ratios(rows: list[dict], peer: str) -> list[float]:
    return [r for row in rows if (r := ratio(row, peer)) is not None]


def mean_and_range(values: list[float]) -> str:
    """Geometric mean, and least and greatest."""
    if not values:
        return ""
    return f"{statistics.geometric_mean(values):.2f} ({min(values):.2g} to {max(values):.3g})"


def mean(values: list[float]) -> str:
    return f"{statistics.geometric_mean(values):.2f}" if values else ""


def fraction(row: dict, peer: str = "gconv") -> float | None:
    """The share of the machine's limit that a peer reaches."""
    seconds = median(row, peer)
    return None if seconds is None else row["least"] / seconds
