"""The problems: layers of real networks, sweeps around one layer, and the convolutions of users' issues.

A `Case` is one convolution of given sizes; with a role ("y", "x" or "w", see `gconv.roles`) and a type it is one measurement.
`benchmarks.issues` holds whole programs of users.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from gconv.geometry import Geometry, geometry

ROLES = ("y", "x", "w")


@dataclass(frozen=True)
class Case:
    """One convolution, by name."""

    name: str
    batch: int
    geometry: Geometry

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        g = self.geometry
        return {"x": g.x_shape(self.batch), "w": g.kernel_shape, "y": g.y_shape(self.batch)}

    @property
    def flops(self) -> int:
        """A multiplication and an addition per tap and output, also those that meet the padding; the same in every role."""
        g = self.geometry
        return int(2 * np.prod(self.shapes["y"]) * np.prod(g.window) * g.channels)

    def moved(self, itemsize: int) -> int:
        """Bytes: every operand read once and the result written once."""
        return int(sum(np.prod(shape) for shape in self.shapes.values()) * itemsize)

    def arrays(self, dtype: str, seed: int = 0) -> dict[str, np.ndarray]:
        """Random x, w, y as float32, holding only values that `dtype` can hold."""
        rng = np.random.default_rng(seed)
        arrays = {name: rng.standard_normal(shape, np.float32) for name, shape in self.shapes.items()}
        return {name: a.astype(jnp.dtype(dtype)).astype(np.float32) for name, a in arrays.items()}


def case(
    name: str,
    batch: int,
    spatial,
    in_channels: int,
    out_channels: int,
    groups: int,
    window,
    *,
    strides=1,
    dilation=1,
    padding="same",
) -> Case:
    """A case from the words of a framework."""
    x_shape, kernel_shape = (batch, *spatial, in_channels), (*window, in_channels // groups, out_channels)
    _, facts = geometry(x_shape, kernel_shape, groups=groups, strides=strides, padding=padding, dilation=dilation)
    return Case(name, batch, facts)


def layers() -> list[Case]:
    """The layers of layers.json, at their full sizes."""
    found = []
    for row in json.loads((Path(__file__).parent / "layers.json").read_text())["layers"]:
        padding = row["padding"] if isinstance(row["padding"], str) else [tuple(pair) for pair in row["padding"]]
        sizes = (row[key] for key in ("name", "batch", "spatial", "in_channels", "out_channels", "groups", "window"))
        found.append(case(*sizes, strides=row["strides"], dilation=row["dilation"], padding=padding))
    return found


def small(original: Case) -> Case:
    """The same convolution over one small input: for tests, where nothing is timed."""
    g = original.geometry
    spatial = tuple(min(n, max(10, e)) for n, e in zip(g.spatial, g.effective_window, strict=True))
    return Case(original.name, 1, replace(g, spatial=spatial))


# --- sweeps ----------------------------------------------------------------------------------------------------------

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
