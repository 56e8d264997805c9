"""Every convolution of lax, whoever wrote the call, computed by gconv: for good (`install`), or for a while (`accelerated`)."""

import contextlib
import functools
import inspect
import sys
import threading
import types
import warnings
from collections.abc import Callable
from typing import Any, TypeVar, overload

from jax.experimental.xla_metadata import set_xla_metadata

from gconv.acceleration import lowering
from gconv.acceleration.lowering import TAG
from gconv.acceleration.report import Report

F = TypeVar("F", bound=Callable[..., Any])
_decorated: dict[str, int] = {}  # how many functions of a name have been


# --- what users call -------------------------------------------------------------------------------------------------


def install() -> Report:
    """From now on gconv computes every convolution of lax that this process lowers and that it computes faster.

    One line at the start of a program, which then needs no other change, whatever library its layers come from:

    >>> import gconv, jax
    >>> report = gconv.install()
    >>> def conv(x, kernel):                  # or a whole model
    ...     return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", feature_group_count=16)
    >>> x = jax.ShapeDtypeStruct((8, 16, 32, 32), "float32")
    >>> kernel = jax.ShapeDtypeStruct((16, 1, 3, 3), "float32")
    >>> "gconv_y" in jax.jit(conv).lower(x, kernel).as_text(debug_info=True)
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
    lowering.register()
    lowering.take_all(True)
    return lowering.process


def uninstall() -> None:
    """Gives lax's convolutions back to lax, also in functions that were compiled meanwhile. May be called at any time."""
    lowering.take_all(False)


@overload
def accelerated(function: None = None) -> "_Block": ...
@overload
def accelerated(function: F) -> F: ...
def accelerated(function: Any = None) -> Any:
    """What `gconv.install` does, for a while: a context manager, or a decorator, with or without parentheses.

    >>> import gconv, jax, jax.numpy as jnp
    >>> from flax import linen as nn
    >>> module, x = nn.Conv(32, (3, 3), feature_group_count=32), jnp.ones((1, 8, 8, 32))
    >>> variables = module.init(jax.random.key(0), x)
    >>> apply = jax.jit(gconv.accelerated(module.apply))        # or jit inside, or a training step
    >>> "gconv_y" in apply.lower(variables, x).as_text(debug_info=True)
    True
    >>> with gconv.accelerated() as report:                     # the same for a block of code
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
        lowering.register()
        stack = contextlib.ExitStack()
        stack.enter_context(set_xla_metadata(**{TAG: "accelerated"}))
        report = stack.enter_context(lowering.listening())
        if not hasattr(self._open, "blocks"):
            self._open.blocks = []
        self._open.blocks.append((stack, report))
        return report

    def __exit__(self, kind: Any, *rest: Any) -> None:
        stack, report = self._open.blocks.pop()
        stack.__exit__(kind, *rest)
        if kind is None and report.left and not report.taken:
            warnings.warn(f"gconv.accelerated took no convolution that was lowered inside.\n{report}", stacklevel=2)

    def __call__(self, function: F) -> F:
        return _Decorated(function)  # type: ignore[return-value]


class _Decorated:
    """A function inside `accelerated`. Its attributes are its own; what `jax.jit` traces and lowers is inside, too."""

    INSIDE = ("lower", "trace", "eval_shape")

    def __init__(self, function: Callable):
        if reason := _why_not(function):
            raise TypeError(f"`function` must be a function that is done when it returns, got {reason}.")
        functools.update_wrapper(self, function, updated=())
        lowering.register()
        self._function = function
        name = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__name__)}"
        with lowering.LOCK:
            number = _decorated[name] = _decorated.get(name, 0) + 1
        # Told apart in the order in which they are decorated, so that the next process makes the same programs.
        self._tag = f"accelerated {name}" if number == 1 else f"accelerated {name} {number}"
        self.report = lowering.reports[self._tag] = Report()

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
