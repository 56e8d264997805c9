"""Builds of gconv's library of kernels, beside the one that is installed: each is a peer of its own.

A build tells by `gconv_interface` which attributes its calls take, so that an old one and a new one run in one process:

    1   those of the first release; a library without the function
    2   also `kernel`, a string: the kernel to run, or "" for what the library plans
    3   also `parts`, `activation` and `slope`: what follows the convolution, here nothing
    4   the same; arrays have the spatial axes of their own, where they had three before
    5   the same; results of half precision may be float32
    6   the same; kernels of a program's constants have a target of their own
    7   the same; batch norm's passes sum over pixels
    8   the same; `parts` may name a gate
"""

import ctypes
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measuring.work import Prepared
from benchmarks.peers.base import Problem
from benchmarks.peers.jax import prepared
from gconv import roles
from gconv.geometry import Geometry

ROLES = ("y", "x", "w")
TYPES = ("float32", "float64", "bfloat16", "float16")
INTERFACES = (1, 2, 3, 4, 5, 6, 7, 8)


class Build:
    """A library of kernels as a peer; `name` tells it from other builds in this process.

    Raises:
      ValueError: it has another interface than those above.
      OSError: it is no library, or not one of this machine.
    """

    def __init__(self, name: str, path: Path):
        self.name, self.target = name, f"gconv_build_{name}"
        self.library = ctypes.CDLL(str(path.resolve()))
        self.interface = int(self._function("gconv_interface")()) if hasattr(self.library, "gconv_interface") else 1
        if self.interface not in INTERFACES:
            raise ValueError(f"{path} has interface {self.interface}; this tool knows {INTERFACES}.")
        self.instruction_set = self._function("gconv_instruction_set", ctypes.c_char_p)().decode()
        jax.ffi.register_ffi_target(self.target, jax.ffi.pycapsule(self.library.gconv_call), platform="cpu")

    def __call__(self, problem: Problem) -> Prepared:
        """The problem's role, by the kernel that the build plans."""
        return prepared(problem, lambda first, second: self.call(problem.role, first, second, problem.case.geometry))

    def call(self, role: str, first: jax.Array, second: jax.Array, g: Geometry) -> jax.Array:
        """One role: the operands of `roles.OPERANDS[role]`, channels last and of one type, give the third array."""
        batch, lead = first.shape[0], (1,) * (3 - g.rank)
        spatial = {
            "input": (*lead, *g.spatial),
            "output": (*lead, *g.output),
            "window": (*lead, *g.window),
            "strides": (*lead, *g.strides),
            "low": (*(0 for _ in lead), *(low for low, _ in g.padding)),
            "dilation": (*lead, *g.dilation),
        }
        shapes = {
            "x": (batch, *spatial["input"], g.in_channels),
            "y": (batch, *spatial["output"], g.out_channels),
            "w": (*spatial["window"], g.channels, g.out_channels),
        }
        scratch = self._scratch_bytes(role, first.dtype, spatial, (batch, g.groups, g.channels, g.filters, 0))
        attributes = {name: np.array(sizes, np.int64) for name, sizes in spatial.items()}
        attributes |= {name: np.int64(getattr(g, name)) for name in ("groups", "channels", "filters")}
        attributes |= {"role": np.int64(ROLES.index(role)), "plain": False}
        if self.interface >= 2:
            attributes["kernel"] = ""
        if self.interface >= 3:
            attributes |= {"parts": np.int64(0), "activation": np.int64(0), "slope": np.float64(0)}
        own = {"x": g.x_shape(batch), "y": g.y_shape(batch), "w": g.kernel_shape}
        if self.interface >= 4:
            shapes = own
        results = (jax.ShapeDtypeStruct(shapes[role], first.dtype), jax.ShapeDtypeStruct((scratch,), jnp.uint8))
        operands = (a.reshape(shapes[name]) for name, a in zip(roles.OPERANDS[role], (first, second), strict=True))
        result, _ = jax.ffi.ffi_call(self.target, results)(*operands, **attributes)
        return result.reshape(own[role])

    def _function(self, name: str, result=ctypes.c_int64):
        function = getattr(self.library, name)
        function.restype = result
        return function

    def _scratch_bytes(self, role: str, dtype, spatial: dict, sizes: tuple[int, ...]) -> int:
        pointer = ctypes.POINTER(ctypes.c_int64)
        numbers = [np.array([*spatial.values()], np.int64).reshape(-1), np.array(sizes, np.int64)]
        function = self._function("gconv_scratch_bytes")
        function.argtypes = (ctypes.c_int64, ctypes.c_int64, pointer, pointer)
        size = function(ROLES.index(role), TYPES.index(dtype.name), *(a.ctypes.data_as(pointer) for a in numbers))
        if size < 0:
            raise ValueError(f"the build {self.name!r} does not take role {role!r} of {spatial}: {size}")
        return size
