"""Programs that hold lax's convolutions only, for tools that read JAX's programs and know no primitive of gconv."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from gconv import roles
from gconv.backends import lax
from gconv.fusion import epilogue
from gconv.interop.swapping import Swap

F = TypeVar("F", bound=Callable[..., Any])


def as_lax(function: F) -> F:
    """`function`, in which every convolution of gconv is `jax.lax.conv_general_dilated`: same numbers, any tool can read it.

    Exporters that walk a jaxpr know lax's primitives: jax2onnx, for one, writes ONNX of it, with any number of groups::

        model = jax2onnx.to_onnx(gconv.interop.as_lax(network), [(1, 224, 224, 3)])

    `jax.export` does not need it: what it exports holds XLA's operations in any case.

    >>> import gconv, jax, jax.numpy as jnp
    >>> conv = lambda x: gconv.grouped_conv(x, jnp.ones((3, 3, 1, 8)), groups=8)
    >>> program = jax.make_jaxpr(gconv.interop.as_lax(conv))(jnp.ones((1, 5, 5, 8)))
    >>> [equation.primitive.name for equation in program.eqns if "conv" in equation.primitive.name]
    ['conv_general_dilated']

    Args:
      function: any function of arrays, such as an NNX model. A `jax.jit` inside that has been traced before keeps its program.
    """

    @functools.wraps(function, updated=())
    def by_lax(*arguments, **options):
        with _ROLES.inside(), _EPILOGUES.inside():
            return function(*arguments, **options)

    return by_lax  # type: ignore[return-value]


def _written_out(role: str, operands: dict, *, geometry, dtype, precision, implementation):
    """What `roles.bind` computes, as operations of lax."""
    del implementation
    first, second = (operands[name] for name in roles.OPERANDS[role])
    return getattr(lax, role)(first, second, geometry, dtype=dtype, precision=precision)


def _composed(role: str, operands: dict, *, scale=None, shift=None, residual=None, activation=None, **options):
    """What `epilogue.bind` computes, as operations of lax."""
    result = epilogue.alone(role, operands, **options)  # whose convolutions are `_written_out`
    parts = {"scale": scale, "shift": shift, "residual": residual}
    return epilogue.finish(result, epilogue.typed(parts, result.dtype), activation)


_ROLES = Swap(roles, "bind", _written_out)
_EPILOGUES = Swap(epilogue, "bind", _composed)
