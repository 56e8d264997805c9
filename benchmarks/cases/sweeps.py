"""Sweeps: one size of a layer changes, the others stay."""

from benchmarks.cases.convolution import Case, case

BASE = {"batch": 8, "size": 28, "channels": 128, "window": 3, "groups": 128, "dilation": 1}
# One value changes, the others stay; `groups` in the first four follows the channels (depthwise).
SWEEPS = {
    "channels": (8, 32, 128, 512, 2048),
    "size": (7, 14, 28, 56, 112),
    "batch": (1, 2, 4, 16, 64),
    "window": (1, 3, 5, 7, 11, 15),
    "dilation": (1, 2, 4, 8),
    "groups": (1, 2, 4, 8, 16, 32, 64, 128),
}


def sweep(axis: str) -> list[tuple[int, Case]]:
    """The cases along one axis of SWEEPS, with their values."""
    found = []
    for value in SWEEPS[axis]:
        of = {**BASE, axis: value}
        groups = value if axis == "groups" else of["channels"]
        sizes = (of["batch"], (of["size"],) * 2, of["channels"], of["channels"], groups, (of["window"],) * 2)
        found.append((value, case(f"{axis}={value}", *sizes, dilation=of["dilation"])))
    return found
