"""Every convolution of lax, whoever wrote the call, lowered by gconv: for good (`install`), or for a while (`accelerated`).

Nothing changes before lowering: a jaxpr holds lax's primitive as ever, and what knows that primitive (derivatives, vmap,
remat's policies, checkify, jet, counters of FLOPs) goes on as it did. When an equation is lowered, it is read as a role of a
geometry; where gconv has something better than lax for that role on that platform, the role takes the equation's place, and
elsewhere lax's own rule lowers it.

Which equations are gconv's stands in two places that are both in the key of every cache of JAX: a user context, which `install`
sets for the process; and the metadata of the equation itself, which `accelerated` puts there when it is traced, and which its
derivatives inherit.
"""

import contextlib
import functools
import inspect
import sys
import threading
import types
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax._src.interpreters import mlir as rules  # where lax's own rule is kept, which JAX shows nowhere else
from jax.core import ShapedArray
from jax.experimental.xla_metadata import set_xla_metadata
from jax.interpreters import mlir
from jax.sharding import use_abstract_mesh

from gconv import backends, partition, roles
from gconv.acceleration.equation import Equation, Reading, read
from gconv.acceleration.report import Report
from gconv.backends.convolution import convolution
from gconv.dtypes import wider

# Of an equation's metadata: to whose report it belongs; which implementation the drop-in was told to take, "None" for any.
TAG, DROP_IN = "gconv", "gconv_drop_in"

_lock = threading.RLock()
_registered: list[str] = []  # the platforms whose rule is ours
_process = Report()  # all that was lowered since the first `install`
_reports: "weakref.WeakValueDictionary[str, Report]" = weakref.WeakValueDictionary()  # of decorated functions, by their tags
_decorated: dict[str, int] = {}  # how many have been of a name
_context: Any = None  # whether `install` is in force


# --- what users call -------------------------------------------------------------------------------------------------


def install() -> Report:
    """From now on gconv computes every convolution of lax that this process lowers and that it computes faster.

    One line at the start of a program, which then needs no other change, whatever library its layers come from:

    >>> import gconv, jax
    >>> report = gconv.install()
    >>> conv = lambda x, k: jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", feature_group_count=16)     # or a whole model
    >>> images, kernel = jax.ShapeDtypeStruct((8, 16, 32, 32), "float32"), jax.ShapeDtypeStruct((16, 1, 3, 3), "float32")
    >>> "gconv_y" in jax.jit(conv).lower(images, kernel).as_text(debug_info=True)
    True
    >>> gconv.uninstall()

    Taken are grouped, depthwise, dense and transposed convolutions in 1-D, 2-D and 3-D and all their derivatives, in any
    layout, where gconv's choice for the platform is not `lax`: most of them on CPU, few on GPUs. Their results are lax's to
    rounding; on CPU windows of 3 x 3 may be computed by Winograd's algorithm, whose rounding errors are relative to the largest
    products of a window; `precision="highest"` asks for plain sums. What is left to lax is right on CPU also where lax itself
    is not: XLA reads outside the buffer at some negative paddings (openxla/xla issue 48713), which never reach it.

    It is global: it holds for all threads, and for functions that were compiled before, which are compiled again when they are
    next called. It is reversible: `gconv.uninstall()`. What it does not change: jaxprs, the arguments and errors of lax,
    exported programs, which hold XLA's own operations only, and programs that are loaded rather than lowered.

    Returns:
      The report of the process, which grows as programs are lowered; the same one at every call.
    """
    global _context
    with _lock:
        register()
        if _context is None:  # not at import: a new context makes JAX compile again what was compiled before
            _context = jax.make_user_context(False)
        _context.set_global(True)
    return _process


def uninstall() -> None:
    """Gives lax's convolutions back to lax, also in functions that were compiled meanwhile. May be called at any time."""
    with _lock:
        if _context is not None:
            _context.set_global(False)


def accelerated(function: Callable | None = None):
    """What `gconv.install` does, for a while: a context manager, or a decorator, with or without parentheses.

    >>> import gconv, jax, jax.numpy as jnp
    >>> from flax import linen as nn
    >>> module, x = nn.Conv(32, (3, 3), feature_group_count=32), jnp.ones((1, 8, 8, 32))
    >>> variables = module.init(jax.random.key(0), x)
    >>> apply = jax.jit(gconv.accelerated(module.apply))                  # inside jit, outside it, or around a training step
    >>> "gconv_y" in apply.lower(variables, x).as_text(debug_info=True)
    True
    >>> with gconv.accelerated() as report:                               # the same for a block of code
    ...     y = module.apply(variables, x)
    >>> report.taken.total(), report.left.total()
    (1, 0)

    It holds for what its own thread traces inside, wherever and whenever that is lowered, and for the derivatives of that; a
    function that was compiled outside is compiled again inside, and is lax's again afterwards. Blocks end in the order in which
    they began: a generator or a coroutine that leaves one open while others run leaves JAX's own contexts open, too.

    Args:
      function: what to decorate: a function, also one that `jax.jit` returned, whose attributes (`lower`, ...) stay; any
        kind of method. Not a class, a coroutine or a generator, whose bodies run later.

    Returns:
      A context manager, which yields a `Report` of what is lowered before it ends; or the decorated function, whose `report`
      attribute grows as its convolutions are lowered.

    Warns:
      UserWarning: at the end of a block in which convolutions were lowered and none was taken.
    """
    if isinstance(function, (staticmethod, classmethod)):
        return type(function)(_Decorated(function.__func__))
    return _Block() if function is None else _Decorated(function)


# --- for a while -----------------------------------------------------------------------------------------------------


class _Block:
    """What `accelerated()` returns. May be entered again, also by several threads at once."""

    def __init__(self):
        self._open = threading.local()

    def __enter__(self) -> Report:
        register()
        stack = contextlib.ExitStack()
        stack.enter_context(set_xla_metadata(**{TAG: "accelerated"}))
        report = stack.enter_context(listening())
        if not hasattr(self._open, "blocks"):
            self._open.blocks = []
        self._open.blocks.append((stack, report))
        return report

    def __exit__(self, kind, *rest) -> None:
        stack, report = self._open.blocks.pop()
        stack.__exit__(kind, *rest)
        if kind is None and report.left and not report.taken:
            warnings.warn(f"gconv.accelerated took no convolution that was lowered inside.\n{report}", stacklevel=2)

    def __call__(self, function: Callable) -> "_Decorated":
        return _Decorated(function)


class _Decorated:
    """A function inside `accelerated`. Its attributes are its own; what `jax.jit` traces and lowers is inside, too."""

    INSIDE = ("lower", "trace", "eval_shape")

    def __init__(self, function: Callable):
        if reason := _why_not(function):
            raise TypeError(f"`function` must be a function that is done when it returns, got {reason}.")
        functools.update_wrapper(self, function, updated=())
        register()
        self._function = function
        name = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__name__)}"
        with _lock:
            number = _decorated[name] = _decorated.get(name, 0) + 1
        # Told apart in the order in which they are decorated, so that the next process makes the same programs.
        self._tag = f"accelerated {name}" if number == 1 else f"accelerated {name} {number}"
        self.report = _reports[self._tag] = Report()

    def __call__(self, *arguments, **options):
        with set_xla_metadata(**{TAG: self._tag}):
            return self._function(*arguments, **options)

    def __get__(self, instance, owner=None):
        return self if instance is None else types.MethodType(self, instance)

    def __getattr__(self, name: str):
        if name.startswith("__") or "_function" not in self.__dict__:
            raise AttributeError(name)
        value = getattr(self._function, name)
        if name not in self.INSIDE:
            return value

        def inside(*arguments, **options):
            with set_xla_metadata(**{TAG: self._tag}):
                return value(*arguments, **options)

        return inside

    def __reduce__(self):
        """By name where the name is this object's, as functions are copied and pickled; else with what it decorates."""
        found = sys.modules.get(self.__module__)
        for part in getattr(self, "__qualname__", "").split("."):
            found = getattr(found, part, None)
        return self.__qualname__ if found is self else (_Decorated, (self._function,))


def _why_not(function) -> str | None:
    """What cannot be decorated, and what to do instead, or None."""
    kind = type(function).__name__
    if isinstance(function, type):
        return f"the class {function.__name__}: decorate its __call__"
    if (flax := sys.modules.get("flax")) and isinstance(function, flax.nnx.Module):
        return f"the NNX model {kind}: gconv.accelerate(model)"
    if not callable(function):
        return f"{kind}. For a block of code: with gconv.accelerated(): ..."
    waits = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
    if any(is_one(function) for is_one in waits):
        return f"{getattr(function, '__name__', kind)}, which runs later: with gconv.accelerated(): ... in its body"
    return None


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


# --- the lowering rule -----------------------------------------------------------------------------------------------


def register() -> None:
    """Puts a rule before lax's own, which asks of each equation whether it is gconv's. Once: it need not be taken back."""
    with _lock:
        for platform in roles.PLATFORMS if not _registered else ():
            own = rules._platform_specific_lowerings[platform]
            by_lax = own[_CONVOLUTION] if _CONVOLUTION in own else rules._lowerings[_CONVOLUTION]
            mlir.register_lowering(_CONVOLUTION, functools.partial(_lower, platform, by_lax.rule), platform)
            _registered.append(platform)


_CONVOLUTION = lax.conv_general_dilated_p


def is_taken(metadata: dict | None) -> bool:
    """Whether an equation with this metadata is gconv's to lower: by its tag, or since all are."""
    return not {TAG, DROP_IN}.isdisjoint(metadata or {}) or _is_installed()


def _is_installed() -> bool:
    return _context is not None and bool(_context.value)


def _lower(platform: str, by_lax: Callable, ctx, lhs, rhs, **params):
    metadata = getattr(ctx.jaxpr_eqn_ctx, "xla_metadata", None) or {}
    if not roles.may_take_further() or not is_taken(metadata):
        return by_lax(ctx, lhs, rhs, **params)
    equation = equation_of(ctx.avals_in, params)
    named = metadata.get(DROP_IN, "None")
    named = None if named == "None" else named
    chosen = _chosen(ctx, platform, equation, named)
    theirs = _reports.get(metadata.get(TAG, ""))  # of a decorated function
    for report in [*_listeners.reports, *([_process] if _is_installed() else []), *([theirs] if theirs is not None else [])]:
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
    if partition.devices_of(ctx):
        # lax's own kernel gradient of groups is wrong on a mesh with an unused axis.
        ours = named or platform == "cpu" or (reading.role == "w" and reading.geometry.groups > 1)
        return (reading, "per device") if ours else f"on several devices of {platform!r}, where lax is as good"
    case = (reading.role, reading.geometry, operand, platform)
    portable = roles.must_be_portable(ctx)
    name = backends.choose(*case, reading.batch, named, portable)
    if name == "lax" and named is None and backends.operand_type(operand, reading.geometry, platform) == operand:
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
    return [rules.lower_with_sharding_in_types(ctx, value, result)]
