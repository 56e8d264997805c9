"""The options of a convolution in canonical form: what a user may write, and the error where it makes no sense.

Like `gconv.geometry`, which is built on it, this file imports nothing but the standard library.
"""

import difflib
import operator
from collections.abc import Iterable, Mapping

PADDING_NAMES = ("same", "same_lower", "valid", "causal")
# MATLAB's names (and PyTorch's "circular") -> NumPy's modes of `pad`.
PADDING_MODES = {
    "symmetric-include-edge": "symmetric",
    "symmetric-exclude-edge": "reflect",
    "replicate": "edge",
    "circular": "wrap",
}
CHANNEL_WISE = "channel-wise"
# What other libraries call the same, and what near it there is -> what it is here.
PADDING_ALIASES = {
    **{name: "same" for name in ("same_upper", "same-upper", "half")},
    **{name: "same_lower" for name in ("same-lower",)},
    **{name: "valid" for name in ("none", "no", "")},
}
PADDING_VALUE_ALIASES = {
    **{name: "symmetric-exclude-edge" for name in ("reflect", "mirror", "reflection")},
    **{name: "symmetric-include-edge" for name in ("symmetric",)},
    **{name: "replicate" for name in ("edge", "nearest", "border")},
    **{name: "circular" for name in ("wrap", "periodic", "grid-wrap")},
    **{name: 0 for name in ("zeros", "zero", "constant")},
}
GROUPS_ALIASES = {name: CHANNEL_WISE for name in ("depthwise", "depth-wise", "channelwise", "channel_wise")}

Pairs = tuple[tuple[int, int], ...]


def integer(name: str, value, minimum: int) -> int:
    """`value` as an int that is at least `minimum`, or an error that names the argument."""
    if isinstance(value, bool) or type(value).__name__ in ("bool", "bool_"):
        raise TypeError(f"`{name}` must be an integer, got the boolean {value}. A value that works: {max(minimum, 1)}.")
    try:
        result = operator.index(value)
    except TypeError:
        near = isinstance(value, float) and value.is_integer() and value >= minimum
        hint = f"Did you mean {int(value)}?" if near else f"A value that works: {max(minimum, 1)}."
        raise TypeError(f"`{name}` must be an integer, got {value!r} of type {type(value).__name__}. {hint}") from None
    if result < minimum:
        raise ValueError(f"`{name}` must be at least {minimum}, got {result}. A value that works: {max(minimum, 1)}.")
    return result


def per_axis(name: str, value, rank: int, minimum: int = 1) -> tuple[int, ...]:
    """One integer per spatial axis: an integer stands for all axes."""
    if not is_list(value):
        return (integer(name, value, minimum),) * rank
    values = tuple(integer(f"{name}[{i}]", v, minimum) for i, v in enumerate(value))
    if len(values) != rank:
        works = values[0] if values else minimum
        raise ValueError(
            f"`{name}` must be an integer or one integer per spatial axis: {count(rank, 'spatial axis')}, got "
            f"{name}={list(values)} of length {len(values)}. A value that works: {(works,) * rank}."
        )
    return values


def window_of(kernel_size, rank: int | None = None) -> tuple[int, ...]:
    """The window of a layer: an integer means a square 2-D window, as in MATLAB (Flax's Conv reads it as 1-D)."""
    if not is_list(kernel_size):
        return (integer("kernel_size", kernel_size, 1),) * (rank or 2)
    window = tuple(integer(f"kernel_size[{i}]", k, 1) for i, k in enumerate(kernel_size))
    if not 1 <= len(window) <= 3:
        raise ValueError(
            f"`kernel_size` must have 1, 2 or 3 entries, one per spatial axis, got {list(window)} of length "
            f"{len(window)}. Values that work: (3,) for 1-D, (3, 3) for 2-D, (3, 3, 3) for 3-D."
        )
    return window


def parse_padding(padding, rank: int) -> str | Pairs:
    """Any form of the `padding` argument as a name of PADDING_NAMES or as one `(low, high)` pair per spatial axis.

    Accepted: `p` for all sides; one number per axis (MATLAB's `[a b]`); `(low, high)` pairs, one per axis; a flat list of
    low and high for each axis in turn (MATLAB's `[t b l r]` in 2-D, `[left right]` in 1-D); a name, in any case.
    A flat list of `rank` numbers is per axis, one of `2 * rank` numbers is low and high in turn: no length is both.
    """
    if isinstance(padding, str):
        name = padding.lower()
        if name in PADDING_MODES or name in ("reflect", "symmetric", "edge", "wrap"):
            mode = name if name in PADDING_MODES else {v: k for k, v in PADDING_MODES.items()}[name]
            raise ValueError(
                f"`padding` says how much to pad and `padding_value` with what: got padding={padding!r}. "
                f'A combination that works: padding="same", padding_value={mode!r}.'
            )
        if name not in PADDING_NAMES:
            near = did_you_mean(name, _names_for(rank), PADDING_ALIASES)
            raise ValueError(f"`padding` as a string must be one of {quoted(_names_for(rank))}, got {padding!r}.{near}")
        if name == "causal" and rank != 1:
            raise ValueError(
                f'`padding`="causal" is defined for 1-D only, got {rank} spatial axes. '
                'A value that works: "same", or explicit (low, high) pairs.'
            )
        return name
    if padding is None:
        raise TypeError('`padding` must be a number, numbers or a name, got None. Values that work: 0, "same".')
    if not is_list(padding):
        p = integer("padding", padding, 0)
        return ((p, p),) * rank
    entries = list(padding)
    if len(entries) == rank and all(is_list(e) for e in entries):
        pairs = []
        for i, entry in enumerate(entries):
            pair = tuple(integer(f"padding[{i}][{j}]", p, 0) for j, p in enumerate(entry))
            if len(pair) != 2:
                raise ValueError(f"`padding[{i}]` must be a pair (low, high), got {list(pair)}. One that works: (1, 1).")
            pairs.append(pair)
        return tuple(pairs)
    if not any(is_list(e) for e in entries) and len(entries) in (rank, 2 * rank):
        flat = [integer(f"padding[{i}]", p, 0) for i, p in enumerate(entries)]
        if len(flat) == rank:
            return tuple((p, p) for p in flat)
        return tuple(zip(flat[::2], flat[1::2], strict=True))
    raise ValueError(
        f"`padding` does not fit {count(rank, 'spatial axis')}: got {padding!r}. Values that work: 1, "
        f"{(1,) * rank} (per axis), {((1, 1),) * rank} (low and high per axis), {[1, 1] * rank} (the same, flat), "
        f"{quoted(_names_for(rank))}."
    )


def parse_padding_value(padding_value):
    """A number, or one of PADDING_MODES (any case)."""
    if isinstance(padding_value, str):
        name = padding_value.lower()
        if name not in PADDING_MODES:
            near = did_you_mean(name, PADDING_MODES, PADDING_VALUE_ALIASES)
            if name in PADDING_NAMES:
                near = f" How much to pad is `padding`: padding={padding_value!r}."
            known = quoted(PADDING_MODES)
            raise ValueError(f"`padding_value` must be a number or one of {known}, got {padding_value!r}.{near}")
        return name
    number = padding_value
    if hasattr(number, "item") and getattr(number, "ndim", None) == 0:
        number = number.item()
    if isinstance(number, bool) or not isinstance(number, (int, float, complex)):
        raise TypeError(
            f"`padding_value` must be a number or one of {quoted(PADDING_MODES)}, got {padding_value!r} of type "
            f"{type(padding_value).__name__}. A value that works: 0."
        )
    return number


def check_fill_of_dilated(fill, factors: tuple[int, ...]) -> None:
    """A padding that repeats samples has no meaning between and around samples with zeros between them."""
    if isinstance(fill, str) and max(factors) > 1:
        raise ValueError(
            f"`padding_value`={fill!r} repeats samples, which `input_dilation`={list(factors)} sets apart: pad `x` before, "
            f"with jax.numpy.pad(x, ..., mode={PADDING_MODES[fill]!r}). A value that works: 0."
        )


def parse_groups(groups) -> int | str:
    """A positive integer, or "channel-wise"."""
    if isinstance(groups, str):
        if groups.lower() != CHANNEL_WISE:
            near = did_you_mean(groups, (CHANNEL_WISE,), GROUPS_ALIASES)
            number = f" Did you mean {int(groups)}?" if groups.isdecimal() and int(groups) else ""
            works = near or number or f' Values that work: 1, "{CHANNEL_WISE}".'
            raise ValueError(f'`groups` must be a positive integer or "{CHANNEL_WISE}", got {groups!r}.{works}')
        return CHANNEL_WISE
    if groups is None:
        raise TypeError(f'`groups` must be a positive integer or "{CHANNEL_WISE}", got None. A value that works: 1.')
    return integer("groups", groups, 1)


def metadata_of(name: str, metadata: Mapping | None) -> dict:
    """A copy of a parameter's metadata."""
    if metadata is not None and not isinstance(metadata, Mapping):
        raise TypeError(f"`{name}_metadata` must be a mapping, got {metadata!r}. A value that works: {{'author': 'me'}}.")
    return dict(metadata or {})


# --- words for errors ------------------------------------------------------------------------------------------------


def is_list(value) -> bool:
    # A 0-d array claims to be iterable; a generator has no length to compare.
    return isinstance(value, Iterable) and not isinstance(value, str) and getattr(value, "ndim", 1) != 0


def did_you_mean(given: str, known: Iterable[str], aliases: Mapping[str, object] | None = None) -> str:
    """A sentence that names the value which was meant, with a space before it; empty where none comes near.

    Args:
      given: what the user wrote.
      known: the values that work.
      aliases: what else may be written for a value, in lower case -> the value.
    """
    aliases, lower = aliases or {}, given.lower()
    known = list(known)
    meant: object = aliases.get(lower)
    if meant is None:
        near = difflib.get_close_matches(lower, [*known, *aliases], n=1, cutoff=0.65)
        meant = None if not near else aliases.get(near[0], near[0])
    return "" if meant is None else f" Did you mean {spelled(meant)}?"


def spelled(value: object) -> str:
    """A value as a user would write it."""
    return f'"{value}"' if isinstance(value, str) else repr(value)


def count(n: int, noun: str) -> str:
    plural = noun[:-2] + "es" if noun.endswith("is") else noun + "s"
    return f"{n} {noun if n == 1 else plural}"


def quoted(names: Iterable[str]) -> str:
    return ", ".join(f'"{n}"' for n in names)


def _names_for(rank: int) -> tuple[str, ...]:
    return PADDING_NAMES if rank == 1 else PADDING_NAMES[:-1]
