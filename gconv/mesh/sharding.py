"""What an operation has to say about meshes, so that everything else may stay ignorant of them."""

import math
from collections.abc import Callable, Sequence

import jax
from jax import lax
from jax.sharding import AxisType, PartitionSpec, auto_axes, use_abstract_mesh


def equally_varying(operands: dict) -> dict:
    """Inside a shard_map every operand must vary over the same manual axes: cast those that vary over fewer."""
    varying = {name: jax.typeof(a).manual_axis_type.varying for name, a in operands.items()}
    union = frozenset().union(*varying.values())
    missing = {name: tuple(sorted(union - v)) for name, v in varying.items()}
    return {name: lax.pcast(a, missing[name], to="varying") for name, a in operands.items()}


def in_auto_axes(run: Callable, out_shape: Sequence, groups: int, batch_axes: int, first, kernel, *others):
    """`run(first, kernel, *others)`, also on a mesh with explicit axes, where an operation must state its result's sharding.

    The compiler partitions the work inside; outside, the result keeps the operands' sharding: of the batch, of the spatial
    axes where it still divides them, and of the channels where it falls between groups.
    """
    typed = [jax.typeof(a).sharding for a in (first, kernel)]
    mesh = next((s.mesh for s in typed if AxisType.Explicit in s.mesh.axis_types), None)
    if mesh is None:
        return run(first, kernel, *others)
    x_spec, kernel_spec = ([*s.spec] + [None] * (a.ndim - len(s.spec)) for s, a in zip(typed, (first, kernel), strict=True))

    def parts(entry) -> int:
        return math.prod(mesh.shape[name] for name in _names(entry))

    spec: list = list(x_spec[:batch_axes])
    spec += [e if n % parts(e) == 0 else None for e, n in zip(x_spec[batch_axes:-1], out_shape[batch_axes:-1], strict=True)]
    channels = next((e for e in (x_spec[-1], kernel_spec[-1]) if e and groups % parts(e) == 0), None)
    used = {name for entry in spec for name in _names(entry)}
    spec.append(None if used & set(_names(channels)) else channels)
    with use_abstract_mesh(mesh.abstract_mesh if hasattr(mesh, "abstract_mesh") else mesh):
        return auto_axes(run, out_sharding=PartitionSpec(*spec))(first, kernel, *others)


def _names(entry) -> tuple:
    return () if entry is None else entry if isinstance(entry, tuple) else (entry,)
