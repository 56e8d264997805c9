"""The passes of batch norm, and sums over pixels, as primitives, and how JAX's transformations act on them.

    primitive   computes                                        derivative           on CPU
    moments     mean and variance                               of the plain form    kernel
    apply       y                                               of the plain form    kernel with relu, else plain
    inner       y's tangent, the large part; sums of dx         linear, -> backward  plain
    outer       y's tangent, what statistics and parameters do  linear, -> sums      plain
    sums        the transpose of outer                          of the plain form    kernel
    backward    the transpose of inner                          of the plain form    kernel
    totals      sums over the pixels of each image              of the plain form    kernel

So reverse mode runs four kernels. Without relu XLA writes y, for it fuses that with the elementwise operation that follows, as
a rule the activation. Forward mode and all further derivatives are those of plain JAX. A mapped axis (vmap) and
programs that XLA's partitioner splits over devices take the plain forms as well. The choice is made when a program is lowered.
"""

from functools import partial

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import PartitionSpec

from gconv.dtypes import accumulator
from gconv.norm import kernels, plain
from gconv.roles import compiled_once, derivative, must_be_portable

NAMES = ("moments", "apply", "inner", "outer", "sums", "backward", "totals")
SEVERAL = ("inner", "backward")  # results
PRIMITIVES = {name: Primitive(f"batch_norm_{name}") for name in NAMES}


def bind(name: str, *operands, **params):
    """One pass of these operands; `relu` is the only parameter, which `moments` and `totals` do not have."""
    return PRIMITIVES[name].bind(*operands, **params)


def _plain(name: str, params: dict):
    """The plain form as a function of operands whose results are a list."""
    run = partial(getattr(plain, name), **params)
    return (lambda *a: [*run(*a)]) if name in SEVERAL else (lambda *a: [run(*a)])


def _results(name: str, results: list):
    return results if name in SEVERAL else results[0]


# --- shapes ----------------------------------------------------------------------------------------------------------


def _abstract(name: str, x, *operands, **_):
    if name in ("apply", "outer"):
        return _like(x)
    if name == "backward":
        return [_like(x)] * (len(operands) - 2)
    # `update` keeps what else an abstract value knows: the manual mesh axes over which it varies in a shard_map.
    sharding = x.sharding.update(spec=PartitionSpec(None, None))
    rows = x.shape[0] if name == "totals" else 2
    of_channels = x.update(shape=(rows, x.shape[-1]), dtype=accumulator(x.dtype), weak_type=False, sharding=sharding)
    return [_like(x), of_channels] if name == "inner" else of_channels


def _like(x):
    return x.update(weak_type=False)


# --- derivatives -----------------------------------------------------------------------------------------------------


def _jvp(name: str, primals, tangents, **params):
    """The derivative of the plain form; the values themselves are the primitive's."""
    _, found = derivative(_plain(name, params), primals, tangents)
    return bind(name, *primals, **params), _results(name, found)


def _transpose_inner(cotangents, *operands, relu):
    n = len(operands) // 2 - 1
    dy, terms = map(ad.instantiate_zeros, cotangents)
    found = bind("backward", *operands[: 2 + n], dy, terms, relu=relu)
    linear = zip(operands[2 + n :], found, strict=True)
    return [None] * (2 + n) + [ct if ad.is_undefined_primal(operand) else None for operand, ct in linear]


def _transpose_outer(dy, *operands, relu):
    *known, part, terms = operands
    dterms = bind("sums", *known, dy, relu=relu) if ad.is_undefined_primal(terms) else None
    return [None] * len(known) + [dy if ad.is_undefined_primal(part) else None, dterms]


# --- vmap, lowering, outside jit -------------------------------------------------------------------------------------


def _batch(name: str, operands, axes, **params):
    found = jax.vmap(_plain(name, params), in_axes=tuple(axes))(*operands)
    return _results(name, found), _results(name, [0] * len(found))


def _lowering(name: str, platform: str):
    def lower(ctx, *operands, **params):
        x = ctx.avals_in[0]
        wanted = params["relu"] if name == "apply" else hasattr(kernels, name)
        with_kernel = wanted and not (must_be_portable(ctx) or kernels.why_not(x.dtype, platform, x.shape))

        def run(*operands):
            with jax.named_scope(f"gconv_norm_{name}_{'native' if with_kernel else 'xla'}"):  # tells which one ran
                return getattr(kernels if with_kernel else plain, name)(*operands, **params)

        return mlir.lower_fun(run, multiple_results=name in SEVERAL)(ctx, *operands)

    return lower


for _name, _primitive in PRIMITIVES.items():
    _primitive.multiple_results = _name in SEVERAL
    _primitive.def_abstract_eval(partial(_abstract, _name))
    _primitive.def_impl(compiled_once(_primitive, "relu"))
    ad.primitive_jvps[_primitive] = partial(_jvp, _name)
    batching.primitive_batchers[_primitive] = partial(_batch, _name)
    mlir.register_lowering(_primitive, _lowering(_name, "another platform"))
    mlir.register_lowering(_primitive, _lowering(_name, "cpu"), platform="cpu")
ad.primitive_transposes[PRIMITIVES["inner"]] = _transpose_inner
ad.primitive_transposes[PRIMITIVES["outer"]] = _transpose_outer
