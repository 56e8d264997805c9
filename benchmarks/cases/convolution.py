"""A case: one convolution of given sizes; with a role ("y", "x" or "w", see `gconv.roles`) and a type it is one measurement."""

from dataclasses import dataclass, replace

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


def small(original: Case) -> Case:
    """The same convolution over one small input: for tests, where nothing is timed."""
    g = original.geometry
    spatial = tuple(min(n, max(10, e)) for n, e in zip(g.spatial, g.effective_window, strict=True))
    return Case(original.name, 1, replace(g, spatial=spatial))
