"""The rule by which convolutions of lax are lowered: before lax's own, and asked of each equation whether it is gconv's.

Nothing changes before lowering: a jaxpr holds lax's primitive as ever, and what knows that primitive (derivatives, vmap,
policies of remat, checkify, jet, counters of FLOPs) goes on as it did. When an equation is lowered, it is read as a role of a
geometry; where gconv has something better than lax for that role on that platform, the role takes the equation's place, and
elsewhere lax's own rule lowers it.

Which equations are gconv's stands in two places that are both in the key of every cache of JAX: a user context, for all that
the process lowers; and the metadata of the equation itself, which is put there when it is traced, and which its derivatives
inherit.
"""

import contextlib
import functools
import threading
import weakref
from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.core import ShapedArray
from jax.interpreters import mlir
from jax.sharding import use_abstract_mesh

from gconv import backends, roles
from gconv.acceleration.equation import Equation, Reading, read
from gconv.acceleration.report import Report
from gconv.backends.convolution import convolution
from gconv.dtypes import wider
from gconv.mesh import partition

# Of an equation's metadata: to whose report it belongs; which implementation the drop-in was told to take, "None" for any.
TAG, DROP_IN = "gconv", "gconv_drop_in"

LOCK = threading.RLock()
process = Report()  # of all that was lowered while all was gconv's
reports: "weakref.WeakValueDictionary[str, Report]" = weakref.WeakValueDictionary()  # by the tags of equations
_registered: list[str] = []  # the platforms whose rule is ours
_context: Any = None  # whether all that the process lowers is gconv's


# --- which equations are gconv's -------------------------------------------------------------------------------------


def take_all(wanted: bool) -> None:
    """Whether from now on every convolution that this process lowers is gconv's, also in functions compiled before."""
    global _context
    with LOCK:
        if _context is None:  # not at import: a new context makes JAX compile again what was compiled before
            if not wanted:
                return
            _context = jax.make_user_context(False)
        _context.set_global(wanted)


def is_taken(metadata: dict | None) -> bool:
    """Whether an equation with this metadata is gconv's to lower: by its tag, or since all are."""
    return not {TAG, DROP_IN}.isdisjoint(metadata or {}) or _are_all_taken()


def _are_all_taken() -> bool:
    return _context is not None and bool(_context.value)


class _Listeners(threading.local):
    def __init__(self):
        self.reports: list[Report] = []


_listeners = _Listeners()


@contextlib.contextmanager
def listening():
    """A report of what this thread lowers."""
    report = Report()
    _listeners.reports.append(report)
    try:
        yield report
    finally:
        _listeners.reports = [r for r in _listeners.reports if r is not report]


# --- the rule ---------------------------------------------------------------------------------------------------------


def register() -> None:
    """Puts a rule before lax's own, which asks of each equation whether it is gconv's. Once: it need not be taken back."""
    with LOCK:
        for platform in roles.PLATFORMS if not _registered else ():
            own = _rules()._platform_specific_lowerings[platform]
            by_lax = own[_CONVOLUTION] if _CONVOLUTION in own else _rules()._lowerings[_CONVOLUTION]
            mlir.register_lowering(_CONVOLUTION, functools.partial(_lower, platform, by_lax.rule), platform)
            _registered.append(platform)


_CONVOLUTION = lax.conv_general_dilated_p


def _rules() -> Any:
    """Where lax's own rule is kept, which JAX shows nowhere else. Imported late: a JAX that moves it breaks this only."""
    from jax._src.interpreters import mlir as module

    return module


def _lower(platform: str, by_lax: Callable, ctx, lhs, rhs, **params):
    metadata = getattr(ctx.jaxpr_eqn_ctx, "xla_metadata", None) or {}
    if not roles.may_take_further() or not is_taken(metadata):
        return by_lax(ctx, lhs, rhs, **params)
    equation = equation_of(ctx.avals_in, params)
    named = metadata.get(DROP_IN, "None")
    named = None if named == "None" else named
    chosen = _chosen(ctx, platform, equation, named)
    theirs = reports.get(metadata.get(TAG, ""))  # of a decorated function
    for report in [*_listeners.reports, *([process] if _are_all_taken() else []), *([theirs] if theirs is not None else [])]:
        if isinstance(chosen, str):
            report.left[chosen] += 1
        else:
            report.taken[chosen[0].role, chosen[1]] += 1
    if not isinstance(chosen, str):
        return _emit(ctx, functools.partial(_compute, chosen[0], named), params, lhs, rhs)
    if platform == "cpu" and any(isinstance(p, int) and p < 0 for pair in equation.padding for p in pair):
        with roles.no_further():
            return _emit(ctx, _crop, params, lhs, rhs)
    return by_lax(ctx, lhs, rhs, **params)


def equation_of(avals, params: dict) -> Equation:
    """The equation of an equation of a jaxpr: the abstract values of its operands and its parameters."""
    lhs, rhs = avals
    names = ("window_strides", "lhs_dilation", "rhs_dilation", "dimension_numbers", "feature_group_count", "batch_group_count")
    padding = tuple(map(tuple, params["padding"]))
    return Equation(lhs_shape=lhs.shape, rhs_shape=rhs.shape, padding=padding, **{name: params[name] for name in names})


def _chosen(ctx, platform: str, equation: Equation, named: str | None) -> tuple[Reading, str] | str:
    """The reading of an equation and the implementation that it takes, or why lax's own rule is as good."""
    reading = read(equation)
    if isinstance(reading, str):
        if named is not None:
            raise ValueError(
                f"implementation={named!r} cannot run this convolution: {reading}. implementation=None leaves it to lax."
            )
        return reading
    operand = wider(*(aval.dtype for aval in ctx.avals_in))
    wrong_by_lax = reading.role == "w" and reading.geometry.groups > 1  # on a mesh with an unused axis
    if partition.devices_of(ctx):
        ours = named or platform == "cpu" or wrong_by_lax
        return (reading, "per device") if ours else f"on several devices of {platform!r}, where lax is as good"
    case = (reading.role, reading.geometry, operand, platform)
    portable = roles.must_be_portable(ctx)
    name = backends.choose(*case, reading.batch, named, portable)
    as_it_is = backends.operand_type(operand, reading.geometry, platform) == operand
    if name == "lax" and named is None and as_it_is and not (wrong_by_lax and roles.split_by_xla(ctx)):
        return backends.reason_against("xla", *case, reading.batch, portable) or "lax is as fast"
    return reading, name


def _compute(reading: Reading, named: str | None, params: dict, dtype, lhs, rhs):
    value = roles.bind(
        reading.role,
        reading.operands(lhs, rhs),
        geometry=reading.geometry,
        dtype=dtype,
        precision=params["precision"],
        implementation=named,
    )
    return reading.result(value)


def _crop(params: dict, dtype, lhs, rhs):
    """lax's own convolution of an operand from which a negative padding is cut before."""
    del dtype
    return convolution(lhs, rhs, **{name: value for name, value in params.items() if name != "out_sharding"})


def _emit(ctx, function: Callable, params: dict, lhs, rhs):
    """`function(params, dtype, lhs, rhs)` in the place of the equation; the result is sharded as the equation says."""
    (result,) = ctx.avals_out

    def plain(*operands):
        with use_abstract_mesh(partition.NO_MESH):  # what is sharded and how stands around it
            return function(params, result.dtype, *operands)

    bare = tuple(ShapedArray(aval.shape, aval.dtype) for aval in (*ctx.avals_in, result))
    (value,) = mlir.lower_fun(plain, multiple_results=False)(ctx.replace(avals_in=bare[:2], avals_out=bare[2:]), lhs, rhs)
    return [_rules().lower_with_sharding_in_types(ctx, value, result)]
