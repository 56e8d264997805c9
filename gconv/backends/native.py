"""The three roles as C++ kernels through XLA's foreign function interface, on CPU: `gconv.native` holds them."""

import ctypes
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from gconv import native
from gconv.dtypes import wider
from gconv.geometry import Geometry

ROLES = ("y", "x", "w")
TYPES = ("float32", "float64", "bfloat16", "float16")
HALF = (jnp.dtype("bfloat16"), jnp.dtype("float16"))
# Of any attribute of a call: what the library computes with them stays far inside 64 bits.
LARGEST = 1 << 31
# The precisions that do not ask for more than the default.
DEFAULT = (None, lax.Precision.DEFAULT, lax.DotAlgorithmPreset.DEFAULT, "default", "fastest", "bfloat16")


def why_not(role: str, geometry: Geometry, dtype, platform: str) -> str | None:
    """No library, another platform, a type that it has no kernels for, or numbers that it does not take."""
    del role
    if platform != "cpu":
        return f"its kernels run on CPU, not on {platform!r}"
    if jnp.dtype(dtype).name not in TYPES:
        return f"it has kernels for {', '.join(TYPES)}, not for {jnp.dtype(dtype).name}"
    g = geometry
    if not g.is_known:
        return f"it needs sizes that are known, got {g.spatial}"
    numbers = (*g.spatial, *g.window, *g.strides, *g.dilation, g.groups, g.channels, g.filters)
    numbers += tuple(abs(lo) for lo, _ in g.padding)
    if too_large := [n for n in numbers if n > LARGEST]:
        return f"it takes sizes, strides, dilations and paddings of up to 2^31, got {max(too_large)}"
    return native.load()[1]


@dataclass(frozen=True)
class Epilogue:
    """What follows a convolution, and a gate before it: activation(scale * convolution(gate * x) + shift + residual).

    Attributes:
      parts: by their names in PARTS, those that there are: `(channels,)` in the type of the sums; the residual like the result;
        the gate `(N, channels of x)` in the type of the sums, where `takes_gate`.
      activation: its number in gconv/native/epilogue.h, 0 for none.
      slope: of leaky_relu.
    """

    parts: dict[str, Array] = field(default_factory=dict)
    activation: int = 0
    slope: float = 0.0


PARTS = ("scale", "shift", "residual", "gate")
NOTHING = Epilogue()


def y(
    x: Array, kernel: Array, geometry: Geometry, *, dtype, precision, forced: str = "", epilogue=NOTHING, frozen=False
) -> Array:
    """The convolution: `x (N, *spatial, G*J)`, `kernel (*window, J, G*K)` -> `(N, *output, G*K)`.

    With `frozen` the kernel has the same values whenever the compiled program runs: its first run packs it for all.
    """
    return _call("y", x, kernel, geometry, x.shape[0], dtype, precision, forced, epilogue, frozen)


def x(
    y: Array, kernel: Array, geometry: Geometry, *, dtype, precision, forced: str = "", epilogue=NOTHING, frozen=False
) -> Array:
    """The transposed convolution: `y (N, *output, G*K)`, `kernel (*window, J, G*K)` -> `(N, *spatial, G*J)`."""
    return _call("x", y, kernel, geometry, y.shape[0], dtype, precision, forced, epilogue, frozen)


def w(x: Array, y: Array, geometry: Geometry, *, dtype, precision, forced: str = "") -> Array:
    """The kernel gradient: `x (N, *spatial, G*J)`, `y (N, *output, G*K)` -> `(*window, J, G*K)`."""
    return _call("w", x, y, geometry, x.shape[0], dtype, precision, forced)


def cascade(x: Array, operands: Sequence[Array], links: Sequence) -> Array:
    """Convolutions of two spatial axes, one after the other: `fusion.cascade` says what they are given as.

    What lies between them has the type of x, `(N, H, W, C)`.
    """
    native.register_kernels()
    numbers: list[int] = []
    for link in links:
        g, activation = link.geometry, link.activation
        parts = sum(1 << i for i, name in enumerate(PARTS) if name in link.parts)
        numbers += [n for sizes in _spatial(g).values() for n in sizes]
        numbers += [g.groups, g.channels, g.filters, _above_default(link.precision), parts]
        numbers += [activation.number if activation else 0]
    frozen = all(link.frozen for link in links)
    result = jax.ShapeDtypeStruct(links[-1].geometry.y_shape(x.shape[0]), x.dtype)
    run = jax.ffi.ffi_call(native.FROZEN_CASCADE_TARGET if frozen else native.CASCADE_TARGET, result)
    slopes = np.array([link.activation.slope if link.activation else 0.0 for link in links])
    return run(x, *operands, numbers=np.array(numbers, np.int64), slopes=slopes)


# --- the plan --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """How the library carries out one call. `gconv/native/plan.h` holds the words.

    Attributes:
      kernel: its name and the bytes of its vectors, as "wide.64".
      lanes: numbers that a vector holds.
      tile, vectors: results of a register tile, and vectors that each of them has.
      rows: rows of results that are computed at a time.
      stretch: results that a thread works on at once; 0 for the kernel gradient.
      partitions: partial sums of the kernel gradient.
      threads: how many work, of those that were asked for.
      scratch: bytes.
      cost, least: instructions of the inner loops as the choice reckons them, and how many would do if every lane were used and
        nothing had to be loaded.
      by_pairs: whether an instruction adds the products of two neighbouring elements of bfloat16 at once.
      past_caches: whether results are stored past the caches.
      packs: whether the kernel is packed first.
    """

    kernel: str
    lanes: int
    tile: int
    vectors: int
    rows: int
    stretch: int
    partitions: int
    threads: int
    scratch: int
    cost: float
    least: float
    by_pairs: bool
    past_caches: bool
    packs: bool

    def __str__(self) -> str:
        tile = f"{self.rows} x {self.tile}" if self.rows > 1 else str(self.tile)
        words = [
            f"kernel {self.kernel}: tiles of {tile} by {_number(self.vectors, 'vector')} of {self.lanes} numbers",
            _number(self.threads, "thread"),
            f"{self.scratch:,} bytes of scratch" + (" for the packed kernel" if self.packs else ""),
        ]
        words += ["products of pairs of bfloat16"] if self.by_pairs else []
        words += [f"{self.partitions} partial sums"] if self.partitions > 1 else []
        words += ["results stored past the caches"] if self.past_caches else []
        return f"{', '.join(words)}; expected at {self.least / self.cost:.0%} of the processor's multiply-adds"


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def plan(role: str, geometry: Geometry, dtype, batch: int, precision=None, forced: str = "") -> Plan:
    """What would run for a role of `batch` images in type `dtype`; `forced` names a kernel, as "wide.64".

    Raises:
      ValueError: where that kernel cannot do it.
    """
    found = _planned(role, geometry, dtype, batch, precision, forced)["plan"]
    if isinstance(found, str):
        raise ValueError(f"the kernel {forced!r} cannot run role {role!r}: {found}.")
    return Plan(**found)


def kernels(role: str, geometry: Geometry, dtype, batch: int, precision=None) -> dict[str, str | None]:
    """Each kernel of the library, with the reason why it cannot do this role, or None."""
    return _planned(role, geometry, dtype, batch, precision, "")["kernels"]


def _planned(role: str, g: Geometry, dtype, batch: int, precision, forced: str, gated: bool = False) -> dict:
    library, reason = native.load()
    if library is None:
        raise RuntimeError(f"there are no kernels: {reason}.")
    sizes = (batch, g.groups, g.channels, g.filters, _above_default(precision) + 8 * gated)
    numbers = _numbers(role, jnp.dtype(dtype), _spatial(g), sizes)
    text = ctypes.create_string_buffer(1 << 14)
    size = library.gconv_plan(*numbers, native.threads(), forced.encode(), text, len(text))
    if not 0 <= size < len(text):
        raise ValueError(f"the library cannot plan {role!r} of {g}")
    return json.loads(text.value)


# --- the call --------------------------------------------------------------------------------------------------------


def _call(
    role: str,
    first: Array,
    second: Array,
    g: Geometry,
    batch,
    dtype,
    precision,
    forced: str,
    epilogue: Epilogue = NOTHING,
    frozen: bool = False,
) -> Array:
    library, reason = native.load()
    if library is None:
        raise RuntimeError(f'implementation="native" cannot run: {reason}.')
    if not isinstance(batch, int):
        raise ValueError(f'implementation="native" needs a batch of known size, got {batch}. implementation="xla" works.')
    native.register_kernels()
    operand, result_type = _types(first.dtype, second.dtype, dtype)
    spatial = _spatial(g)
    shape = {"x": g.x_shape(batch), "y": g.y_shape(batch), "w": g.kernel_shape}[role]
    plain = _above_default(precision)
    if forced:  # an error where that kernel cannot
        scratch = plan(role, g, operand, batch, precision, forced).scratch
    else:
        asked = plain + 4 * frozen + 8 * ("gate" in epilogue.parts)
        scratch = _scratch_bytes(library, role, operand, spatial, (batch, g.groups, g.channels, g.filters, asked))
    # Nothing is reshaped: XLA of jaxlib 0.10 copies what is of bfloat16 then.
    results = (jax.ShapeDtypeStruct(shape, result_type), jax.ShapeDtypeStruct((scratch,), jnp.uint8))
    run = jax.ffi.ffi_call(native.FROZEN_TARGET if frozen else native.TARGET, results)
    parts = epilogue.parts
    result, _ = run(
        first.astype(operand),
        second.astype(operand),
        *(parts[name] for name in PARTS if name in parts),
        role=np.int64(ROLES.index(role)),
        groups=np.int64(g.groups),
        channels=np.int64(g.channels),
        filters=np.int64(g.filters),
        plain=plain,
        kernel=forced,
        parts=np.int64(sum(1 << i for i, name in enumerate(PARTS) if name in parts)),
        activation=np.int64(epilogue.activation),
        slope=np.float64(epilogue.slope),
        **{name: np.array(sizes, np.int64) for name, sizes in spatial.items()},
    )
    return result.astype(dtype)


def _types(first, second, dtype) -> tuple:
    """The types that a call of operands of these types takes and gives, for a result of type `dtype`.

    Operands of different types meet in the wider one. Sums of half precision are formed in float32, and may be the result as
    they are; in any other type that is wider than the operands' the sums are to be formed, so the operands are converted.
    """
    operand, dtype = wider(first, second), jnp.dtype(dtype)
    if gives(operand, dtype):
        return operand, dtype
    wide = wider(operand, dtype)
    return wide, wide


def gives(operand, dtype) -> bool:
    """Whether the kernels give results of type `dtype` for operands of type `operand`."""
    return dtype == operand or (operand in HALF and dtype == jnp.float32)


def takes_gate(g: Geometry, dtype, batch: int, precision) -> bool:
    """Whether role "y" multiplies x by a gate itself: a matrix product does, but not of pairs of bfloat16."""
    plan = lambda gated: _planned("y", g, dtype, batch, precision, "", gated)["plan"]
    return not plan(False)["by_pairs"] and not isinstance(plan(True), str)


def _above_default(precision) -> bool:
    """Whether more is asked for than the default: each result must then be the sum of its own products."""
    return any(p not in DEFAULT for p in (precision if isinstance(precision, tuple) else (precision,)))


def _spatial(g: Geometry) -> dict[str, tuple[int, ...]]:
    """The sizes along three axes, of which lower ranks have leading ones of size 1, by the names of the call's attributes."""
    lead = (1,) * (3 - g.rank)
    return {
        "input": (*lead, *g.spatial),
        "output": (*lead, *g.output),
        "window": (*lead, *g.window),
        "strides": (*lead, *g.strides),
        "low": (*(0 for _ in lead), *(lo for lo, _ in g.padding)),
        "dilation": (*lead, *g.dilation),
    }


def _numbers(role: str, dtype, spatial: dict, sizes: tuple) -> tuple:
    """A call as the library's C functions take it."""
    arrays = (np.array([*spatial.values()], np.int64).reshape(-1), np.array(sizes, np.int64))
    pointers = (a.ctypes.data_as(ctypes.POINTER(ctypes.c_int64)) for a in arrays)
    return ROLES.index(role), TYPES.index(dtype.name), *pointers


def _scratch_bytes(library, role: str, dtype, spatial: dict, sizes: tuple) -> int:
    """The packed kernel, or the partial sums of role "w": the library knows, and the program allocates."""
    size = library.gconv_scratch_bytes(*_numbers(role, dtype, spatial, sizes))
    if size < 0:
        raise ValueError(f"the native kernels take sizes, strides, dilations and paddings up to 2^31, got {spatial}.")
    return size
