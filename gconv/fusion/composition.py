"""Primitives that the CPU kernels compute as a whole, and that everywhere else are the composition of their parts.

Derivatives of any order, transposition, Taylor series, several devices, exported programs and other platforms are those of the
composition, and know nothing of the primitive.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.experimental import jet
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from gconv import roles
from gconv.mesh import partition

_JET_RULES: Any = jet.jet_rules  # whose types are those of lax's rules


def composed(
    name: str,
    compose: Callable,
    *,
    parameters: tuple[str, ...],
    abstract: Callable,
    fits: Callable[..., bool],
    kernels: Callable,
    alone: Callable[[dict], dict],
    batch: Callable | None = None,
) -> Primitive:
    """A primitive with one result.

    Args:
      compose: the composition, a function of the operands and the parameters, as `kernels` is.
      parameters: their names.
      fits: whether it is the kernels' on one CPU, given the lowering's context and the parameters.
      alone: the parameters of a program that is nothing but this.
      batch: the rule of vmap, or None for the composition's.
    """
    primitive = Primitive(name)

    def jvp(primals, tangents, **params):
        return roles.derivative(partial(compose, **params), primals, tangents)

    def transpose(ct, *operands, **params):
        """Of what is linear in all the operands that are unknown."""
        unknown = [i for i, a in enumerate(operands) if ad.is_undefined_primal(a)]
        function = roles.of_some(partial(compose, **params), operands, unknown)
        cotangents = jax.linear_transpose(function, *(operands[i].aval for i in unknown))(ct)
        found = dict(zip(unknown, cotangents, strict=True))
        return [found.get(i) for i in range(len(operands))]

    def taylor(primals, series, **params):
        # What a rule is given are coefficients, and no derivatives.
        return jet.jet(partial(compose, **params), primals, series, factorial_scaled=False)

    def one_by_one(operands, axes, **params):
        return jax.vmap(partial(compose, **params), in_axes=tuple(axes))(*operands), 0

    def lowering(platform: str):
        def lower(ctx, *operands, **params):
            theirs = platform == "cpu" and not partition.devices_of(ctx) and fits(ctx, **params)
            # Of arrays without numbers the kernels add up nothing.
            is_empty = theirs and any(0 in aval.shape for aval in (*ctx.avals_in, *ctx.avals_out))
            run = kernels if theirs and not is_empty else compose
            return mlir.lower_fun(partial(run, **params), multiple_results=False)(ctx, *operands)

        return lower

    compiled = roles.compiled_once(primitive, *parameters)
    primitive.def_abstract_eval(abstract)
    primitive.def_impl(lambda *operands, **params: compiled(*operands, **alone(params)))
    ad.primitive_jvps[primitive] = jvp
    ad.primitive_transposes[primitive] = transpose
    batching.primitive_batchers[primitive] = batch or one_by_one
    _JET_RULES[primitive] = taylor
    mlir.register_lowering(primitive, lowering("another platform"))
    mlir.register_lowering(primitive, lowering("cpu"), platform="cpu")
    return primitive
