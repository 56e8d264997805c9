"""One rule that splits a role over many devices, around whichever implementation runs on each of them.

Left alone, XLA's partitioner gathers whole operands of a grouped convolution, and replicates code that it does not know. Every
index of T(x, w, y) = <y, conv(x, w)> can be split instead (N images, G groups, J channels and K filters of a group, pixels):

    index   split in     role y     role x     role w
    N       x, y         free       free       one all-reduce
    G       x, w, y      free       free       free
    J       x, w         all-reduce free       free
    K       w, y         free       all-reduce free
    pixels  x, y         halo       halo       halo, one all-reduce

A halo is exchanged with the neighbours by collective-permutes: the rows of `x` (in role x: of `y`) that the windows of one
device's pixels share with its neighbours'; beyond the ends these are zeros, which is the padding. J and K are split only where
every device has a single group, because the channels of a group lie side by side. Whatever cannot be split so is gathered.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.experimental.xla_metadata import set_xla_metadata
from jax.interpreters import mlir
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec, use_abstract_mesh

from gconv.dtypes import accumulator
from gconv.geometry import Geometry

# Of each argument's dimensions the indices, outer first; the pixels are S0, S1, S2, the taps of the window cannot be split.
LAYOUT = {"x": ("N", "S", "GJ"), "w": ("T", "J", "GK"), "y": ("N", "S", "GK")}
NO_MESH = AbstractMesh((), ())
_CONFIG: Any = jax.config  # its options are attributes that its types do not know


def _dimensions(name: str, rank: int) -> list[tuple[str, ...]]:
    """The indices of each dimension of x, w or y."""
    entries: list[tuple[str, ...]] = []
    for entry in LAYOUT[name]:
        entries += [(f"{entry}{i}",) for i in range(rank)] if entry in ("S", "T") else [tuple(entry)]
    return entries


def lower(ctx, devices, role: str, names: tuple, run: Callable, first, second, *, geometry: Geometry, dtype, meaning: str):
    """Lowers `run(role, operands, geometry=, dtype=)`, a dict of operands, to a call that XLA's partitioner asks us about.

    Args:
      devices: as many as the program is split over; which ones does not matter.
      names: of the operands `first` and `second`, which are values of the program being lowered.
      meaning: all that decides what the call computes. The program itself holds the address of a Python object only, by which
        JAX's persistent compilation cache takes programs for equal that are not.
    """

    def whole(*operands):
        return run(role, dict(zip(names, operands, strict=True)), geometry=geometry, dtype=dtype)

    def partition(_, operands, result):
        arrays = dict(zip((*names, role), (*operands, result), strict=True))
        mesh, split = _agree({name: (a.shape, _coordinates(a, devices)) for name, a in arrays.items()}, geometry, devices)
        shardings = {name: NamedSharding(mesh, _spec(name, split, geometry.rank)) for name in arrays}

        def part(*operands):
            with use_abstract_mesh(NO_MESH):  # one device's program, also while a user's mesh with explicit axes is set
                return _part(role, dict(zip(names, operands, strict=True)), run, geometry, dtype, mesh, split)

        return mesh, part, shardings[role], tuple(shardings[name] for name in names)

    split = custom_partitioning(whole)
    split.def_partition(partition, decode_shardings=False, **_rule(role, names, geometry))

    def call(*operands):
        with set_xla_metadata(gconv_role=meaning):
            return split(*operands)

    module = ctx.module_context
    module = module.replace(axis_context=replace(module.axis_context, device_assignment=tuple(devices)))
    return mlir.lower_fun(call, multiple_results=False)(ctx.replace(module_context=module), first, second)


def devices_of(ctx) -> list | None:
    """Stand-ins for the devices that XLA's partitioner will split the program over, or None where it will not be asked."""
    module = ctx.module_context
    n = getattr(module.axis_context, "num_devices", 1)
    if n == 1 or module.lowering_parameters.for_export or not _CONFIG.jax_use_shardy_partitioner:
        return None
    if not all(isinstance(size, int) and size for aval in ctx.avals_in for size in aval.shape):
        return None
    devices = module.get_backend().devices()[:n]
    return devices if len(devices) == n else None  # fewer: lowered for a mesh without devices


# --- what Shardy is told ---------------------------------------------------------------------------------------------


def _rule(role: str, names: tuple, g: Geometry) -> dict:
    """The arguments of `def_partition`, by which shardings propagate from operands to the result and back."""
    size = {"G": g.groups, "J": g.channels, "K": g.filters}
    terms, whole, order = {}, set(), []
    for name in (*names, role):
        dims = []
        for indices in _dimensions(name, g.rank):
            # A factor of size one may not stand in a compound.
            factors = [i for i in indices if size.get(i, 2) > 1] or [indices[0]] if len(indices) > 1 else [*indices]
            factors = [f"{i}{name}" if i[0] == "S" and not _aligned(g, int(i[1])) else i for i in factors]
            dims.append(factors[0] if len(factors) == 1 else f"({' '.join(factors)})")
            whole |= {factors[0]} if len(factors) == 1 else set()
            order += [f for f in factors if f not in order]
        terms[name] = " ".join(dims)
    shared = [f"S{i}" for i in range(g.rank) if _aligned(g, i)]
    summed = {"y": ["J"], "x": ["K"], "w": ["N", *shared]}[role]
    return {
        "sharding_rule": f"{terms[names[0]]}, {terms[names[1]]} -> {terms[role]}",
        "reduction_factors": tuple(f for f in order if f in summed),
        "permutation_factors": tuple(f for f in order if f in shared and f not in summed),
        "need_replication_factors": tuple(f for f in order if f[0] in "TS" and f not in shared),
        **{f: size[f] for f in order if f in size and f not in whole},
    }


def _aligned(g: Geometry, axis: int) -> bool:
    """Whether equal parts of `x` along the axis belong to equal parts of `y`."""
    return g.spatial[axis] == g.output[axis] * g.strides[axis]


# --- what the partitioner decided ------------------------------------------------------------------------------------


def _coordinates(a, devices) -> np.ndarray:
    """`(devices, dimensions)`: which part of each dimension a device has; all zeros where the parts are not equal."""
    zeros = np.zeros((len(devices), len(a.shape)), int)
    if a.sharding is None:
        return zeros
    try:
        shard = a.sharding.shard_shape(a.shape)
        slices = a.sharding.devices_indices_map(a.shape)
    except ValueError:
        return zeros
    return np.array([[(s.start or 0) // n for s, n in zip(slices[d], shard, strict=True)] for d in devices])


def _agree(arrays: dict, g: Geometry, devices) -> tuple[Mesh, dict]:
    """A mesh of the devices, and for each index that is split the axes of this mesh.

    The mesh is ours, of as many axes as the number of devices has prime factors: on it every sharding has a spec, also one
    over a part of a user's axis. Where the arrays disagree, the largest one stays where it is.
    """
    primes = _primes(len(devices))
    for sizes in _orders(Counter(primes)):
        parsed = {name: [_axes(c, sizes) for c in coordinates.T] for name, (_, coordinates) in arrays.items()}
        if all(axes is not None for dims in parsed.values() for axes in dims):
            break
    else:
        sizes, parsed = primes, {}
    split: dict[str, tuple[int, ...]] = {}
    used: set[int] = set()
    for name in sorted(parsed, key=lambda name: -math.prod(arrays[name][0])):
        for indices, axes in zip(_dimensions(name, g.rank), parsed[name], strict=True):
            for index, chosen in _distribute(indices, axes or (), sizes, g).items():
                if index not in split and not used & {*chosen} and _splits(index, math.prod(sizes[i] for i in chosen), g):
                    split[index] = chosen
                    used |= {*chosen}
    if math.prod(sizes[i] for i in split.get("G", ())) != g.groups:
        split.pop("J", None), split.pop("K", None)
    mesh = Mesh(np.array(devices).reshape(sizes), tuple(f"gconv{i}" for i in range(len(sizes))))
    return mesh, {index: tuple(mesh.axis_names[i] for i in axes) for index, axes in split.items()}


def _primes(n: int) -> tuple[int, ...]:
    factor = next((d for d in range(2, n) if n % d == 0), n)
    return (factor, *_primes(n // factor)) if n > 1 else ()


def _orders(counts: Counter) -> Iterator[tuple[int, ...]]:
    """The different orders of a multiset."""
    if not counts:
        yield ()
    for first in sorted(counts):
        for rest in _orders(counts - Counter((first,))):
            yield first, *rest


def _axes(coordinate: np.ndarray, sizes: tuple) -> tuple[int, ...] | None:
    """The axes of a mesh of `sizes`, major first, that a device's `coordinate` counts, or None if it counts none."""
    grid = coordinate.reshape(sizes)
    strides = [int(grid[tuple(int(i == j) for j in range(len(sizes)))]) for i in range(len(sizes))]
    axes = sorted((i for i, stride in enumerate(strides) if stride), key=lambda i: -strides[i])
    fitting = all(strides[a] == math.prod(sizes[b] for b in axes[n + 1 :]) for n, a in enumerate(axes))
    linear = sum(index * stride for index, stride in zip(np.indices(sizes), strides, strict=True))
    return tuple(axes) if fitting and (grid == linear).all() else None


def _distribute(indices: tuple, axes: tuple, sizes: tuple, g: Geometry) -> dict[str, tuple]:
    """The axes of a dimension to its one or two indices: to the groups as many as divide them, to the inner index the rest."""
    if len(indices) == 1:
        return {indices[0]: axes} if axes and indices[0][0] != "T" else {}
    parts = [math.prod(sizes[i] for i in axes[:n]) for n in range(len(axes) + 1)]
    cut = max(n for n, p in enumerate(parts) if g.groups % p == 0)
    found = {indices[0]: axes[:cut], indices[1]: axes[cut:] if parts[cut] == g.groups else ()}
    return {index: chosen for index, chosen in found.items() if chosen}


def _splits(index: str, parts: int, g: Geometry) -> bool:
    if index[0] == "S":
        return _aligned(g, int(index[1])) and g.output[int(index[1])] % parts == 0
    return index == "N" or {"G": g.groups, "J": g.channels, "K": g.filters}[index] % parts == 0


def _spec(name: str, split: dict, rank: int) -> PartitionSpec:
    entries = [sum((split.get(i, ()) for i in indices), ()) for indices in _dimensions(name, rank)]
    return PartitionSpec(*(entry or None for entry in entries))


# --- what one device does --------------------------------------------------------------------------------------------


def _part(role: str, operands: dict, run: Callable, g: Geometry, dtype, mesh: Mesh, split: dict) -> Array:
    def parts(index: str) -> int:
        return math.prod(mesh.shape[axis] for axis in split.get(index, ()))

    local = replace(g, groups=g.groups // parts("G"), channels=g.channels // parts("J"), filters=g.filters // parts("K"))
    for i in range(g.rank):
        if parts(f"S{i}") > 1:
            local, operands = _with_halo(role, local, operands, i, split[f"S{i}"], parts(f"S{i}"))
    summed = {"y": ("J",), "x": ("K",), "w": ("N", *(f"S{i}" for i in range(g.rank)))}[role]
    axes = sum((split.get(index, ()) for index in summed), ())
    if not axes:
        return run(role, operands, geometry=local, dtype=dtype)
    wide = accumulator(dtype)  # as the sums on one device
    return lax.psum(run(role, operands, geometry=local, dtype=wide), axes).astype(dtype)


def _with_halo(role: str, g: Geometry, operands: dict, i: int, axes: tuple, parts: int) -> tuple[Geometry, dict]:
    """The geometry of one device's pixels along spatial axis `i`, and the operands with the rows of its neighbours."""
    (lo, _), s, e = g.padding[i], g.strides[i], g.effective_window[i]
    n, out = g.spatial[i] // parts, g.output[i] // parts
    if role == "x":  # the outputs whose windows reach into our pixels
        before, after = max(-((lo - e) // s) - 1, 0), max(-(-lo // s), 0)
        operands = operands | {"y": _exchange(operands["y"], i + 1, before, after, axes, parts)}
        low = lo + before * s
        pads = low, (before + out + after - 1) * s + e - n - low
    else:  # the pixels that the windows of our outputs reach
        hi = e - s - lo
        before, after = max(lo, 0), max(hi, 0)
        operands = operands | {"x": _exchange(operands["x"], i + 1, before, after, axes, parts)}
        n += before + after
        pads = lo - before, hi - after

    def put(values: tuple, value) -> tuple:
        return (*values[:i], value, *values[i + 1 :])

    return replace(g, spatial=put(g.spatial, n), padding=put(g.padding, pads)), operands


def _exchange(a: Array, axis: int, before: int, after: int, axes: tuple, parts: int) -> Array:
    """`a` between its neighbours' rows: `before` and `after` of them, from as many neighbours as it takes."""
    size = a.shape[axis]

    def fetch(count: int, step: int) -> Iterator[Array]:
        """`count` rows, nearest first, from the devices at `step`, twice `step`, ... from here; zeros beyond the ends."""
        for distance in range(1, -(-count // size) + 1):
            rows = min(size, count - (distance - 1) * size)
            piece = lax.slice_in_dim(a, 0, rows, axis=axis) if step > 0 else lax.slice_in_dim(a, size - rows, size, axis=axis)
            far = distance * step
            pairs = [(i, i - far) for i in range(parts) if 0 <= i - far < parts]
            yield lax.ppermute(piece, axes, pairs) if pairs else jnp.zeros_like(piece)

    pieces = [*reversed([*fetch(before, -1)]), a, *fetch(after, 1)]
    return pieces[0] if len(pieces) == 1 else lax.concatenate(pieces, axis)
