"""The implementations, best first. Each is a module with the three roles `y`, `x`, `w` and two questions about them.

`why_not(role, geometry, dtype, platform)` answers None where the implementation can run, else a sentence that says why not.
`pass_over(role, geometry, dtype, platform, batch)` answers None where it is worth running, else a sentence that says why a
later one is better; `batch` is the number of images, or a symbol of JAX's where it is not known. A named implementation answers
only to the first question; the automatic choice takes the first that has neither reason, and where each has one the first that
can run: no later one is better than it.
"""

from types import ModuleType

import jax.numpy as jnp

from gconv.backends import lax, native, xla
from gconv.backends.sums import products as products
from gconv.geometry import Geometry

TABLE: dict[str, ModuleType] = {"native": native, "xla": xla, "lax": lax}
# Those whose programs hold code that XLA does not know.
CUSTOM_CALLS = {"native"}


def check_name(name: str | None) -> None:
    if name is not None and (not isinstance(name, str) or name not in TABLE):
        raise ValueError(f"`implementation` must be None or one of {', '.join(map(repr, TABLE))}, got {name!r}.")


def choose(
    role: str, geometry: Geometry, dtype, platform: str, batch, name: str | None = None, portable: str | None = None
) -> str:
    """The implementation that a role takes: the named one, or an error with its reason; with None, the first that can.

    `portable` is a sentence that says why the program must hold XLA's own operations only, if it must. A name overrules it.
    """
    check_name(name)
    if name is not None:
        if reason := TABLE[name].why_not(role, geometry, dtype, platform):
            raise ValueError(f"implementation={name!r} cannot run role {role!r}: {reason}. implementation=None always works.")
        return name
    case = (role, geometry, dtype, platform)
    can = [n for n in TABLE if _cannot(n, case, portable) is None]
    return next((n for n in can if TABLE[n].pass_over(*case, batch) is None), can[0])


def reason_against(
    name: str, role: str, geometry: Geometry, dtype, platform: str, batch, portable: str | None = None
) -> str | None:
    """Why the automatic choice would not take the implementation, or None."""
    case = (role, geometry, dtype, platform)
    return _cannot(name, case, portable) or TABLE[name].pass_over(*case, batch)


def _cannot(name: str, case: tuple, portable: str | None) -> str | None:
    return TABLE[name].why_not(*case) or (portable if name in CUSTOM_CALLS else None)


def operand_type(dtype, geometry: Geometry, platform: str):
    """The type in which an implementation gets operands of type `dtype`: another one where the platform fails in theirs.

    On CUDA, XLA finds no cuDNN algorithm for convolutions of bfloat16 in 1-D, and compilation fails (jax issue 37922). Writing
    them in 2-D would not help, for XLA does so itself; float32 is not affected. It holds every bfloat16, as does TF32, in which
    the products of the default precision are taken: nothing but memory traffic is lost.
    """
    fails = platform == "cuda" and geometry.rank == 1 and dtype == jnp.bfloat16
    return jnp.dtype(jnp.float32) if fails else dtype


def options(name: str, role: str, platform: str, split: bool) -> dict:
    """What the function of a role is told beside type and precision; `split`: whether XLA's partitioner may split the program
    over devices."""
    if name != "lax":
        return {}
    # Accelerators are given lax's own convolutions to the letter, negative paddings included, which they read rightly.
    own = platform != "cpu"
    return {"crop": not own} | ({"batch_groups": own and not split} if role == "w" else {})
