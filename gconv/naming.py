"""What other libraries call an argument: an error that translates, where Python only says that a name is unexpected.

Nothing but the standard library here. `translating` decorates what users call; it looks at names alone, and at values only to
write down what works.
"""

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

# A name in lower case without underscores, so that MATLAB's "NumGroups" and "num_groups" are one -> ours, the first of which
# the function that is called has. Flax, lax, PyTorch, MATLAB, Keras, Haiku, Equinox, ONNX.
NAMES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("input", "inputs", "lhs", "image", "images", "data"), ("x", "y")),
    **dict.fromkeys(("x", "y"), ("x", "y")),
    **dict.fromkeys(("weight", "weights", "w", "filter", "filters4d", "rhs"), ("kernel", "kernel_init", "weights")),
    "kernel": ("kernel", "kernel_init", "weights"),
    "b": ("bias", "bias_init"),
    **dict.fromkeys(("inchannels", "inputchannels", "nin", "cin", "numchannels"), ("in_features",)),
    **dict.fromkeys(
        ("outfeatures", "features", "outchannels", "outputchannels", "filters", "nout", "cout", "numfilters"),
        ("filters_per_group",),
    ),
    **dict.fromkeys(("numfilterspergroup", "depthmultiplier", "channelmultiplier"), ("filters_per_group",)),
    **dict.fromkeys(("kernelsize", "kernelshape", "filtersize", "windowshape", "window"), ("kernel_size",)),
    **dict.fromkeys(("featuregroupcount", "numgroups", "group", "groups"), ("groups",)),
    **dict.fromkeys(("stride", "strides", "windowstrides"), ("strides", "stride")),
    **dict.fromkeys(("padding", "pad", "pads", "paddingsize", "autopad", "cropping"), ("padding",)),
    **dict.fromkeys(("paddingmode", "paddingvalue", "padmode", "mode"), ("padding_value",)),
    **dict.fromkeys(
        ("kerneldilation", "rhsdilation", "dilation", "dilations", "dilationrate", "dilationfactor", "rate", "atrous"),
        ("dilation",),
    ),
    **dict.fromkeys(("lhsdilation", "inputdilation"), ("input_dilation",)),
    **dict.fromkeys(("outputpadding",), ("output_padding",)),
    **dict.fromkeys(("bias", "usebias", "withbias"), ("use_bias", "bias")),
    **dict.fromkeys(("weightsinitializer", "kernelinitializer", "winit", "kernelinit"), ("kernel_init",)),
    **dict.fromkeys(("biasinitializer", "binit", "biasinit"), ("bias_init",)),
    "weightlearnratefactor": ("kernel_learn_rate_factor", "weight_learn_rate_factor"),
    "kernellearnratefactor": ("kernel_learn_rate_factor", "weight_learn_rate_factor"),
    "weightl2factor": ("kernel_l2_factor", "weight_l2_factor"),
    "kernell2factor": ("kernel_l2_factor", "weight_l2_factor"),
    **dict.fromkeys(("activation", "act", "actlayer", "activationfn", "nonlinearity"), ("activation",)),
    "key": ("rngs",),
    "rng": ("rngs",),
    # Of sequence layers.
    **dict.fromkeys(("initialstates", "convstate", "initialstate", "cache"), ("state",)),
    "seqidx": ("segment_ids",),
    # Of solvers.
    **dict.fromkeys(("lr", "stepsize", "learnrate", "initiallearnrate"), ("learning_rate", "initial_learn_rate")),
    **dict.fromkeys(("weightdecay", "l2regularization", "l2factor"), ("l2", "l2_regularization")),
    "gradientdecayfactor": ("b1",),
    "beta1": ("b1",),
    "squaredgradientdecayfactor": ("b2", "decay"),
    "beta2": ("b2",),
    **dict.fromkeys(("alpha", "rho", "decayrate"), ("decay",)),
    "eps": ("epsilon",),
    **dict.fromkeys(("maxnorm", "clipnorm"), ("gradient_threshold",)),
    **dict.fromkeys(("learnratedropfactor", "gamma"), ("drop_factor",)),
    "learnratedropperiod": ("drop_period",),
}
# What no argument here is -> what to do instead.
ABSENT: dict[str, str] = {
    **dict.fromkeys(
        ("dataformat", "dimensionnumbers", "channelslast", "channelsfirst", "layout"),
        "channels are always last: jax.numpy.moveaxis(x, 1, -1) moves them there",
    ),
    **dict.fromkeys(
        ("convgeneraldilated", "convgeneraldilatedcls"), "gconv computes it; another function is what flax.nnx.Conv takes"
    ),
    "promotedtype": "leave it out: types are promoted as in Flax, or computed in `dtype`",
    "transposekernel": "leave it out: the kernel is always that of the convolution that is transposed (transpose_kernel=True)",
    "batchgroupcount": "gconv.conv_general_dilated has it",
    "outsharding": "it is an argument of the layer's call, layer(x, out_sharding=...)",
    "device": "leave it out: jax.device_put, or jax.default_device, says where arrays live",
    "outputfcn": "write it into the loop",
    **dict.fromkeys(("kernelregularizer", "biasregularizer", "activityregularizer"), "gconv.optim.add_l2 regularizes"),
    **dict.fromkeys(("kernelconstraint", "biasconstraint"), "constrain the parameters after the optimizer's step"),
    "betas": "here they are two numbers: b1=0.9, b2=0.999",
    "nesterov": "leave it out: MATLAB's solver has none; optax.sgd(..., nesterov=True) has",
    "amsgrad": "leave it out: MATLAB's solver has none; optax.amsgrad has",
    "returnfinalstates": "leave it out: the state is always returned, as the second result",
}
# PyTorch's padding_mode, and others' -> our padding_value.
PADDING_VALUES = {
    **dict.fromkeys(("zeros", "constant", "zero"), 0),
    **dict.fromkeys(("reflect", "mirror"), "symmetric-exclude-edge"),
    "symmetric": "symmetric-include-edge",
    **dict.fromkeys(("replicate", "edge"), "replicate"),
    **dict.fromkeys(("circular", "wrap"), "circular"),
}
# Names of all output channels, and of the groups.
_OUT = ("outfeatures", "features", "outchannels", "outputchannels", "filters", "nout", "cout", "numfilters")
_FLAX = ("featuregroupcount", "outfeatures", "features", "kerneldilation", "filters", "kernelinitializer", "outputchannels")


def translating(function: F) -> F:
    """`function`, with an error that translates where it is called with names that it does not have, or without those it needs.

    Of a method, `self` is not the caller's to give.
    """
    parameters = [*inspect.signature(function).parameters.values()]
    skip = int(parameters[0].name == "self")
    parameters = parameters[skip:]
    taken = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    needed = [p.name for p in parameters if p.default is p.empty and p.name in taken]
    order = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.POSITIONAL_ONLY)]
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return function
    name = function.__qualname__.removesuffix(".__init__")

    @functools.wraps(function)
    def call(*arguments, **options):
        if not taken.issuperset(options):
            raise TypeError(unexpected(name, parameters, arguments[skip:], options))
        by_position = order[: len(arguments) - skip]
        if len(by_position) < len(arguments) - skip:
            others = [n for n in taken if n not in order]
            example = "groups" if "groups" in others else min(others, default=order[-1] if order else "x")
            given = f"{', '.join(order) or 'nothing'} by position, got {len(arguments) - skip} arguments"
            raise TypeError(f"`{name}` takes {given}. The others have names, as in {example}=...")
        if not all(n in options or n in by_position for n in needed):
            raise TypeError(missing(name, parameters, by_position, options))
        return function(*arguments, **options)

    return call  # type: ignore[return-value]


def signature_of(kind: type) -> inspect.Signature:
    """The signature of a class, which is that of its `__init__` without `self`."""
    signature = inspect.signature(kind.__init__)  # type: ignore[misc]
    return signature.replace(parameters=[*signature.parameters.values()][1:], return_annotation=signature.empty)


def unexpected(name: str, parameters, arguments: tuple, options: Mapping[str, Any]) -> str:
    """What to write instead of the names that a function does not have."""
    own = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    given = dict(zip(own, arguments, strict=False)) | {n: v for n, v in options.items() if n in own}
    foreign = {n: v for n, v in options.items() if n not in own}
    told: list[str] = []
    works: dict[str, str] = {}
    for other, value in foreign.items():
        plain = normalized(other)
        here = "padding" if plain == "paddingmode" and value in ("same", "manual") else translated(other, own)
        if here is None or here in given:
            instead = f" {ABSENT[plain]}." if plain in ABSENT else _listed(own, other, here in given and here)
            told.append(f"`{name}` has no argument `{other}`:{instead}")
            continue
        told.append(f"`{name}` has no argument `{other}`: here it is `{here}`.")
        works |= _in_our_words(plain, here, value, {**given, **foreign})
    if works:
        told.append(f"What works: {', '.join(f'{n}={v}' for n, v in works.items())}.")
    layer = "filters_per_group" in own
    if layer and "padding" not in given and "padding" not in works and any(normalized(n) in _FLAX for n in foreign):
        told.append('The default padding is 0 here, and "same" in Flax and others: padding="same".')
    return " ".join(told)


def missing(name: str, parameters, by_position, options: Mapping[str, Any]) -> str:
    """Which arguments a function needs, and what they are."""
    needed = [p.name for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    lacking = [n for n in needed if n not in by_position and n not in options]
    words = {
        "in_features": "channels of the input",
        "kernel_size": "the window, such as 3 or (3, 3)",
        "filters_per_group": "output channels of each group: all output channels / groups",
        "groups": 'an integer, 1 for an ordinary convolution, or "channel-wise"',
        "rngs": "nnx.Rngs(0)",
        "x": "(*batch, *spatial, channels)",
        "y": "(*batch, *spatial, channels)",
        "kernel": "(*window, channels per group, output channels)",
        "factors": "gconv.optim.factors(model)",
    }
    told = "; ".join(f"`{n}`" + (f" ({words[n]})" if n in words else "") for n in lacking)
    return f"`{name}` needs {told}. Its arguments are {', '.join(needed)}, and options."


def translated(other: str, own) -> str | None:
    """Our name among `own` for another library's, or for a misspelt one; None where there is none."""
    plain = normalized(other)
    if plain in ABSENT and plain not in map(normalized, own):
        return None
    for ours in own:
        if normalized(ours) == plain:
            return ours
    for ours in NAMES.get(plain, ()):
        if ours in own:
            return ours
    known = plain in NAMES  # and then it is not a misspelt one
    near = [] if known else difflib.get_close_matches(plain, map(normalized, own), n=1, cutoff=0.75)
    return next(ours for ours in own if normalized(ours) == near[0]) if near else None


def normalized(name: str) -> str:
    """`NumGroups`, `num_groups` and `numGroups` are one name."""
    return name.replace("_", "").lower()


def _in_our_words(plain: str, here: str, value, given: Mapping[str, Any]) -> dict[str, str]:
    """The argument that works, with its value as it is to be written."""
    by_plain = {normalized(n): v for n, v in given.items()}
    if here == "filters_per_group" and plain in _OUT:
        groups: Any = next((by_plain[n] for n in ("groups", "featuregroupcount", "numgroups", "group") if n in by_plain), None)
        if str(groups).lower() == "channel-wise":
            groups = next((by_plain[n] for n in ("infeatures", "inchannels", "inputchannels") if n in by_plain), None)
        if groups is None and "groups" not in by_plain:
            return {here: _shown(value), "groups": "1"} if _is_int(value) else {here: "output channels / groups"}
        if _is_int(value) and _is_int(groups) and groups > 0 and value % groups == 0:
            return {here: str(value // groups)}
        return {here: f"{_shown(value)} / groups"}
    if plain in ("depthmultiplier", "channelmultiplier"):
        return {here: _shown(value), "groups": '"channel-wise"'}
    if here == "padding_value" and isinstance(value, str):
        return {here: _shown(PADDING_VALUES.get(value.lower(), value))}
    if here == "padding" and isinstance(value, str) and plain == "autopad":
        return {here: {"SAME_UPPER": '"same"', "SAME_LOWER": '"same_lower"'}.get(value, '"valid"')}
    if here == "rngs":
        return {here: "nnx.Rngs(0)"}
    if here == "use_bias" and not isinstance(value, bool):
        return {here: "True"} if value is not None else {here: "False"}
    if here == "bias" and isinstance(value, bool):
        return {here: "None"} if not value else {here: "array"}
    if here == "strides" and isinstance(value, str):
        return {here: "1"}
    return {here: _shown(value)}


def _listed(own: list[str], other: str, twice) -> str:
    if twice:
        return f" here it is `{twice}`, which is given already."
    return f" it has {', '.join(own)}."


def _shown(value) -> str:
    """A value as one would write it; an array or another object by its name only."""
    if isinstance(value, str):
        return f'"{value}"'
    if value is None or isinstance(value, (bool, int, float, complex, tuple, list)):
        return repr(value)
    name = getattr(value, "__name__", None)
    return name if name and name.isidentifier() else "..."


def _is_int(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
