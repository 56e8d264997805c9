"""What gconv can choose among for a problem on the processor: each kernel of its library, and each implementation without one.

A candidate is named as in "native wide.64" (a kernel, and the bytes of its vectors), "xla" or "lax".
"""

from functools import partial

import jax.numpy as jnp

from benchmarks.measuring.work import Prepared
from benchmarks.peers.base import Peer, Problem
from benchmarks.peers.jax import ours, prepared
from gconv import backends
from gconv.backends import native
from gconv.geometry import Geometry

NATIVE = "native "


def chosen(role: str, geometry: Geometry, dtype: str, batch: int) -> str:
    """The candidate that gconv takes by itself, here and now. Nothing is run."""
    implementation = backends.choose(role, geometry, jnp.dtype(dtype), "cpu", batch)
    return planned(role, geometry, dtype, batch) if implementation == "native" else implementation


def planned(role: str, geometry: Geometry, dtype: str, batch: int) -> str:
    """The kernel that the library plans."""
    return NATIVE + native.plan(role, geometry, jnp.dtype(dtype), batch).kernel


def candidates(problem: Problem) -> dict[str, Peer]:
    """Every kernel that is eligible and every implementation that can run, by name.

    The planned kernel is not forced: it runs as it does for users.
    """
    role, g, dtype = problem.role, problem.case.geometry, jnp.dtype(problem.dtype)
    can = [name for name, module in backends.TABLE.items() if module.why_not(role, g, dtype, "cpu") is None]
    found: dict[str, Peer] = {}
    if "native" in can:
        eligible = [name for name, reason in native.kernels(role, g, dtype, problem.case.batch).items() if reason is None]
        found = {NATIVE + name: partial(_forced, name) for name in eligible}
        first = planned(role, g, problem.dtype, problem.case.batch)
        if first not in found:
            raise RuntimeError(f"the library plans {first} for {problem.case.name}, {role}, which it says is not eligible.")
        found[first] = partial(ours, "native")
    return found | {name: partial(ours, name) for name in can if name != "native"}


def _forced(kernel: str, problem: Problem) -> Prepared:
    run = getattr(native, problem.role)
    options = {"dtype": jnp.dtype(problem.dtype), "precision": None, "forced": kernel}
    return prepared(problem, lambda first, second: run(first, second, problem.case.geometry, **options))
