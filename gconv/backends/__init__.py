"""The implementations, best first: each is a module with the three roles `y`, `x`, `w`, and one question about them.

`why_not(role, geometry, dtype, platform)` answers None where the implementation can run, else a sentence that says why not. A
named implementation answers only to this question. The automatic choice takes the first that can run and that the rows of
`gconv.backends.choice` give the problem to.
"""

from types import ModuleType

import jax.numpy as jnp

from gconv.backends import choice, lax, native, xla
from gconv.backends.problem import Problem
from gconv.backends.problem import products as products
from gconv.geometry import Geometry
from gconv.options import did_you_mean

TABLE: dict[str, ModuleType] = {"native": native, "xla": xla, "lax": lax}
# Those whose programs hold code that XLA does not know.
CUSTOM_CALLS = {"native"}
ALIASES = {**dict.fromkeys(("c++", "cpp", "kernels", "gconv"), "native"), **dict.fromkeys(("jax", "cudnn"), "lax")}


def check_name(name: str | None) -> None:
    if name is not None and (not isinstance(name, str) or name not in TABLE):
        near = did_you_mean(name, TABLE, ALIASES) if isinstance(name, str) else ""
        works = near or " None, which always works, lets gconv choose."
        raise ValueError(f"`implementation` must be None or one of {', '.join(map(repr, TABLE))}, got {name!r}.{works}")


def choose(
    role: str, geometry: Geometry, dtype, platform: str, batch, name: str | None = None, portable: str | None = None
) -> str:
    """The implementation that a role takes: the named one, or an error with its reason; with None, the first that takes it.

    Args:
      batch: the number of images, or a symbol of JAX's where it is not known.
      portable: a sentence that says why the program must hold XLA's own operations only, if it must. A name overrules it.

    Raises:
      ValueError: where the named implementation cannot run the role, or where none can.
    """
    check_name(name)
    if name is not None:
        if reason := TABLE[name].why_not(role, geometry, dtype, platform):
            raise ValueError(f"implementation={name!r} cannot run role {role!r}: {reason}. implementation=None always works.")
        return name
    problem = Problem(role, geometry, dtype, platform, batch)
    cannot = {n: _cannot(n, problem, portable) for n in TABLE}
    can = [n for n, reason in cannot.items() if reason is None]
    if not can:
        reasons = "; ".join(f"{n}: {reason}" for n, reason in cannot.items())
        raise ValueError(f"no implementation can run role {role!r} on {platform!r}, got {problem.type}: {reasons}.")
    return next((n for n in can if choice.decide(n, problem).takes), can[0])


def reason_against(
    name: str, role: str, geometry: Geometry, dtype, platform: str, batch, portable: str | None = None
) -> str | None:
    """Why the automatic choice would not take the implementation, or None."""
    problem = Problem(role, geometry, dtype, platform, batch)
    if reason := _cannot(name, problem, portable):
        return reason
    row = choice.decide(name, problem)
    return None if row.takes else row.say(problem)


def reason_for(name: str, role: str, geometry: Geometry, dtype, platform: str, batch) -> str:
    """Why the automatic choice takes the implementation, which it does."""
    problem = Problem(role, geometry, dtype, platform, batch)
    row = choice.decide(name, problem)
    return row.say(problem) if row.takes else "no other implementation can run"


def reason_against_matrix(
    rows: str, geometry: Geometry, dtype, platform: str, batch, portable: str | None = None, *, frozen: bool = False
) -> str | None:
    """Why a matrix product stays XLA's, or None where the native kernels take it.

    Args:
      rows: those of `gconv.backends.choice` that decide: "fused matrix", together with what follows it, or "linear".
      geometry: the product as a convolution whose window is one pixel.
      portable: as in `choose`.
      frozen: whether the matrix is the same in every call of a program.
    """
    problem = Problem("y", geometry, dtype, platform, batch, frozen)
    if reason := _cannot("native", problem, portable):
        return f"native: {reason}"
    row = choice.decide(rows, problem)
    return None if row.takes else row.say(problem)


def _cannot(name: str, p: Problem, portable: str | None) -> str | None:
    return TABLE[name].why_not(p.role, p.g, p.dtype, p.platform) or (portable if name in CUSTOM_CALLS else None)


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
    if name == "xla":
        return {"opaque": platform == "cpu"}
    if name != "lax":
        return {}
    # Accelerators are given lax's own convolutions to the letter, negative paddings included, which they read rightly.
    own = platform != "cpu"
    return {"crop": not own} | ({"batch_groups": own and not split} if role == "w" else {})
