"""Padding, sizes and groups: the definitions, by hypothesis, and every error with the value that it says works."""

import ast
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import oracle
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gconv import geometry as g
from gconv import options as opt

PACKAGE = Path(__file__).parent.parent / "gconv"

sizes = st.integers(1, 40)
windows = st.integers(1, 7)
steps = st.integers(1, 5)


def test_imports_nothing_but_the_standard_library():
    """Nor does anything below it: loaded in an empty package, and in a Python without site-packages."""
    program = f"""
import sys, types
sys.modules["gconv"] = types.ModuleType("gconv")
sys.modules["gconv"].__path__ = [{str(PACKAGE)!r}]
from gconv.geometry import geometry
assert geometry((1, 8, 8, 4), (3, 3, 2, 6))[1].groups == 2
print(*{{name.partition(".")[0] for name in sys.modules}} - set(sys.stdlib_module_names) - {{"gconv", "__main__"}})
"""
    loaded = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert loaded == []


# --- padding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rank", "padding", "pairs"),
    (
        (1, 2, ((2, 2),)),
        (3, 1, ((1, 1),) * 3),
        (2, np.int32(1), ((1, 1),) * 2),
        (1, [2], ((2, 2),)),
        (2, (1, 2), ((1, 1), (2, 2))),
        (3, (0, 1, 2), ((0, 0), (1, 1), (2, 2))),
        (1, (2, 1), ((2, 1),)),
        (2, (1, 2, 3, 4), ((1, 2), (3, 4))),  # MATLAB's [t b l r]
        (3, (1, 2, 3, 4, 5, 6), ((1, 2), (3, 4), (5, 6))),
        (1, ((1, 2),), ((1, 2),)),
        (2, [[1, 2], (3, 4)], ((1, 2), (3, 4))),
        (2, np.array([[1, 2], [3, 4]]), ((1, 2), (3, 4))),
        (2, np.array([1, 2, 3, 4]), ((1, 2), (3, 4))),
        (3, "SAME", "same"),
        (2, "same_lower", "same_lower"),
        (1, "Valid", "valid"),
        (1, "causal", "causal"),
    ),
)
def test_every_form_of_padding(rank, padding, pairs):
    assert opt.parse_padding(padding, rank) == pairs


@given(sizes, windows, steps, steps)
def test_same_makes_ceil_of_size_over_stride_with_the_odd_one_at_the_end(n, k, s, d):
    ((low, high),) = g.resolve_padding("same", (n,), g.effective_window((k,), (d,)), (s,))
    assert 0 <= low <= high <= low + 1
    assert oracle.output_size((n + low + high,), (k,), (s,), (d,)) == (math.ceil(n / s),)
    if low + high:  # and no more than that takes
        assert oracle.output_size((n + low + high - 1,), (k,), (s,), (d,)) < (math.ceil(n / s),)


@given(sizes, windows, steps, steps)
def test_same_lower_mirrors_same(n, k, s, d):
    effective = g.effective_window((k,), (d,))
    ((low, high),) = g.resolve_padding("same", (n,), effective, (s,))
    assert g.resolve_padding("same_lower", (n,), effective, (s,)) == ((high, low),)


@given(sizes, windows, steps)
def test_causal_keeps_the_length_and_looks_back_only(n, k, d):
    _, facts = g.geometry((n, 1), (k, 1, 1), padding="causal", dilation=d)
    assert facts.output == (n,)
    assert facts.padding == (((k - 1) * d, 0),)


# --- sizes -----------------------------------------------------------------------------------------------------------


@given(sizes, windows, steps, steps, st.integers(0, 6), st.integers(0, 6))
def test_output_size_counts_the_windows_that_fit(n, k, s, d, low, high):
    (count,) = oracle.output_size((n + low + high,), (k,), (s,), (d,))
    options = {"strides": s, "padding": (low, high), "dilation": d}
    if count:
        assert g.geometry((n, 1), (k, 1, 1), **options)[1].output == (count,)
    else:
        with pytest.raises(ValueError, match="The output would be empty along spatial axis 0"):
            g.geometry((n, 1), (k, 1, 1), **options)


@given(sizes, windows, steps, steps, st.one_of(st.tuples(st.integers(0, 6), st.integers(0, 6)), st.just("valid")))
def test_transposed_geometry_inverts_geometry(n, k, s, d, padding):
    """With the surplus that a stride drops as `output_padding`, it finds the geometry again."""
    low, high = (0, 0) if padding == "valid" else padding
    assume(n + low + high > (k - 1) * d)
    options = {"groups": 2, "strides": s, "padding": padding, "dilation": d}
    _, there = g.geometry((n, 4), (k, 2, 6), **options)
    surplus = (n + low + high - (k - 1) * d - 1) % s
    batch, back = g.transposed_geometry((3, *there.output, 6), (k, 2, 6), **options, output_padding=surplus)
    assert back == there and batch == (3,)


@given(sizes, windows, steps, steps, st.sampled_from(("same", "same_lower")))
def test_transposed_geometry_of_same_multiplies_the_size_by_the_stride(n, k, s, d, name):
    _, facts = g.transposed_geometry((n, 2), (k, 1, 2), groups=2, strides=s, padding=name, dilation=d)
    assert facts.spatial == (n * s,) and facts.output == (n,)
    assert g.geometry((n * s, 2), (k, 1, 2), groups=2, strides=s, padding=name, dilation=d)[1] == facts


@given(sizes, windows, steps, steps, st.integers(0, 3), st.data())
def test_any_output_padding_below_stride_or_dilation_lengthens_the_result(n, k, s, d, p, data):
    extra = data.draw(st.integers(0, max(s, d) - 1))
    length = (n - 1) * s - 2 * p + (k - 1) * d + 1
    assume(length > 0)
    options = {"groups": 1, "strides": s, "padding": p, "dilation": d}
    _, facts = g.transposed_geometry((n, 1), (k, 1, 1), **options, output_padding=extra)
    assert facts.spatial == (length + extra,)
    assert facts.output == (n,)


def test_batch_axes_come_back_as_they_are():
    assert g.geometry((8, 8, 4), (3, 3, 2, 4))[0] == ()
    assert g.geometry((5, "any", 8, 8, 4), (3, 3, 2, 4))[0] == (5, "any")


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6))
def test_groups_are_read_off_the_shapes_and_agree_when_given(groups, channels, filters):
    shapes = (9, groups * channels), (3, channels, groups * filters)
    _, read = g.geometry(*shapes)
    assert (read.groups, read.channels, read.filters) == (groups, channels, filters)
    assert (read.in_channels, read.out_channels, read.kernel_shape) == (groups * channels, groups * filters, shapes[1])
    assert g.geometry(*shapes, groups=groups)[1] == read
    if channels == 1:
        assert g.geometry(*shapes, groups="channel-wise")[1] == read


def test_an_integer_kernel_size_is_a_square():
    assert opt.window_of(3) == (3, 3) and opt.window_of(3, rank=1) == (3,) and opt.window_of((5,)) == (5,)


def test_geometry_is_a_hashable_value():
    one, two = (g.geometry((8, 8, 4), (3, 3, 2, 4), padding=p)[1] for p in (1, ((1, 1), (1, 1))))
    assert one == two and hash(one) == hash(two) and one is not two
    with pytest.raises(AttributeError):
        one.groups = 3
    assert one.unpadded((10, 10)).output == one.output


# --- errors: the argument, its numbers, and a value that works -------------------------------------------------------

FORWARD = {"x_shape": (2, 9, 9, 6), "kernel_shape": (3, 3, 2, 6)}
LINE = {"x_shape": (2, 9, 6), "kernel_shape": (3, 2, 6)}
BACK = {"y_shape": (2, 5, 6), "kernel_shape": (3, 2, 6), "groups": 3}
CAUSE = r"The output would be empty along spatial axis 0: input size 9 with padding \(0, 0\) .* effective window 19"

# call, error, message, and the argument to which the values after "work(s): " belong
ERRORS = {
    "boolean": ({**FORWARD, "strides": True}, TypeError, "`strides` .* boolean True", "strides"),
    "numpy boolean": ({**FORWARD, "strides": np.True_}, TypeError, "`strides` .* boolean True", "strides"),
    "float": ({**FORWARD, "strides": 2.5}, TypeError, "`strides` must be an integer, got 2.5 of type float", "strides"),
    "whole float": ({**FORWARD, "strides": 2.0}, TypeError, r"`strides` .* got 2.0 of type float. Did you mean 2\?", "strides"),
    "negative float": ({**FORWARD, "strides": -2.0}, TypeError, "`strides` .* got -2.0 of type float", "strides"),
    "infinite": ({**FORWARD, "dilation": math.inf}, TypeError, "`dilation` .* got inf of type float", "dilation"),
    "none": ({**FORWARD, "padding": None}, TypeError, "`padding` .* got None", "padding"),
    "zero stride": ({**FORWARD, "strides": 0}, ValueError, "`strides` must be at least 1, got 0", "strides"),
    "zero dilation": ({**FORWARD, "dilation": 0}, ValueError, "`dilation` must be at least 1, got 0", "dilation"),
    "negative padding": ({**FORWARD, "padding": -1}, ValueError, "`padding` must be at least 0, got -1", "padding"),
    "too many strides": (
        {**FORWARD, "strides": [2, 1, 1]},
        ValueError,
        r"`strides` .* 2 spatial axes, .*\[2, 1, 1\]",
        "strides",
    ),
    "no dilation": ({**FORWARD, "dilation": ()}, ValueError, r"`dilation` .* got dilation=\[\] of length 0", "dilation"),
    "three paddings": ({**FORWARD, "padding": (1, 2, 3)}, ValueError, r"`padding` does not fit .* got \(1, 2, 3\)", "padding"),
    "mixed paddings": ({**FORWARD, "padding": (1, (2, 3))}, ValueError, r"`padding` does not fit 2 spatial axes", "padding"),
    "no padding": ({**LINE, "padding": ()}, ValueError, r"`padding` does not fit 1 spatial axis: got \(\)", "padding"),
    "causal": ({**FORWARD, "padding": "causal"}, ValueError, '"causal" is defined for 1-D only, got 2 spatial axes', "padding"),
    "groups": ({**FORWARD, "groups": 4}, ValueError, "`groups` must divide the input channels: 6 channels, groups=4", "groups"),
    "many channels": (
        {"x_shape": (9, 720), "kernel_shape": (3, 720, 1), "groups": 7},
        ValueError,
        "720 channels, groups=7",
        None,
    ),
    "zero groups": ({**FORWARD, "groups": 0}, ValueError, "`groups` must be at least 1, got 0", None),
    "zero channels": ({"x_shape": (9, 0), "kernel_shape": (3, 1, 1)}, ValueError, "`x` must have at least one channel", None),
    "channel-wise of nothing": (
        {"x_shape": (9, 0), "kernel_shape": (3, 1, 1), "groups": "channel-wise"},
        ValueError,
        "0 channels, groups=0.* there must be at least one channel",
        None,
    ),
    "kernel does not divide": (
        {"x_shape": (9, 10), "kernel_shape": (3, 4, 8)},
        ValueError,
        "`kernel` has 4 channels per group .* the 10 channels of `x`",
        "kernel_shape",
    ),
    "kernel contradicts groups": (
        {"x_shape": (9, 6), "kernel_shape": (3, 3, 8), "groups": 3},
        ValueError,
        r"`kernel` contradicts `groups`: 6 channels in groups=3 make 2 per group, but kernel.shape=\(3, 3, 8\) has 3",
        "kernel_shape",
    ),
    "output channels": (
        {"x_shape": (9, 6), "kernel_shape": (3, 2, 8)},
        ValueError,
        r"`kernel` must have a multiple of 3 output channels, .* kernel.shape=\(3, 2, 8\) has 8",
        "kernel_shape",
    ),
    "kernel of no rank": (
        {"x_shape": (1, 9, 9, 6), "kernel_shape": (3, 6)},
        ValueError,
        r"`kernel` must have shape .* got shape \(3, 6\)",
        None,
    ),
    "kernel of size zero": (
        {"x_shape": (9, 6), "kernel_shape": (0, 2, 6)},
        ValueError,
        r"`kernel` must have no axis of size zero, got shape \(0, 2, 6\)",
        None,
    ),
    "x too short": (
        {"x_shape": (9, 6), "kernel_shape": (3, 3, 2, 6)},
        ValueError,
        r"`x` must have shape .* 2 window axes, so `x` needs at least 3 axes, got shape \(9, 6\)",
        "x_shape",
    ),
    "window over input": ({**LINE, "dilation": 9}, ValueError, CAUSE, None),
    "y channels": (
        {**BACK, "kernel_shape": (3, 2, 9)},
        ValueError,
        r"`kernel` must have as many output channels .* has 6, kernel.shape=\(3, 2, 9\) has 9",
        "kernel_shape",
    ),
    "y groups": ({**BACK, "groups": 4}, ValueError, "`groups` must divide the channels of `y`: 6 channels, groups=4", "groups"),
    "y of nothing": (
        {**BACK, "y_shape": (2, 0, 6)},
        ValueError,
        r"`y` must have spatial axes of at least 1, .*\(2, 0, 6\)",
        None,
    ),
    "output_padding": (
        {**BACK, "strides": 3, "output_padding": 4},
        ValueError,
        r"`output_padding\[0\]` .* got output_padding=4, strides=3, dilation=1",
        "output_padding",
    ),
    "nothing left": ({**BACK, "padding": 9}, ValueError, r"The result would be empty: spatial size \(-11,\)", "padding"),
}


def suggestions(message) -> list:
    """The values after the last "work: " or "works: " of a message; "0 to 2" means both ends."""
    text = re.split(r"(?:works?: |Did you mean )", message)[-1]
    text = re.split(r"[.?](?: |$)", text)[0]
    text = text.replace(", or explicit (low, high) pairs", "")
    text = re.sub(r" \([a-z ,]+\)", "", text)  # "(per axis)"
    text = re.sub(r"^[a-z_]+=", "", text)
    text = text.replace(" to ", ", ")
    return list(ast.literal_eval(f"[{text}]"))


def run(call):
    return (g.transposed_geometry if "y_shape" in call else g.geometry)(**call)[1]


@pytest.mark.parametrize("name", ERRORS)
def test_error_names_the_argument_and_its_numbers_and_what_it_suggests_works(name):
    call, error, message, argument = ERRORS[name]
    with pytest.raises(error, match=message) as raised:
        run(call)
    if argument is None:
        return
    values = suggestions(str(raised.value))
    assert values, f"suggests nothing: {raised.value}"
    for value in values:
        mended = {**call, argument: value}
        if argument == "groups":  # a kernel follows the groups
            channels = call.get("x_shape", call["kernel_shape"])[-1] // value if "x_shape" in call else 1
            mended["kernel_shape"] = (*call["kernel_shape"][:-2], channels, call["kernel_shape"][-1])
        assert isinstance(run(mended), g.Geometry), f"{argument}={value} does not work"


def test_groups_that_would_fit_the_kernel_do():
    call = {"x_shape": (9, 6), "kernel_shape": (3, 3, 8), "groups": 3}
    with pytest.raises(ValueError, match=r"groups=2 would fit it"):
        run(call)
    assert run({**call, "groups": 2}).filters == 4


def test_the_missing_padding_and_size_are_enough():
    with pytest.raises(ValueError, match="at least 10 more padding, or an input of at least 19"):
        run({**LINE, "dilation": 9})
    assert run({**LINE, "dilation": 9, "padding": (10, 0)}).output == (1,)
    assert run({**LINE, "dilation": 9, "x_shape": (19, 6)}).output == (1,)
    with pytest.raises(ValueError, match="empty"):
        run({**LINE, "dilation": 9, "padding": (9, 0)})


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), st.one_of(st.none(), st.integers(1, 12)))
def test_any_suggested_kernel_works(in_channels, channels, out_channels, groups):
    call = {"x_shape": (9, in_channels), "kernel_shape": (3, channels, out_channels), "groups": groups}
    try:
        run(call)
    except ValueError as error:
        if found := re.search(r"A kernel shape that works: (\(.*?\))", str(error)):
            run({**call, "kernel_shape": ast.literal_eval(found[1])})
        else:
            assert "must divide the input channels" in str(error)
        if found := re.search(r"groups=(\d+) would fit it", str(error)):
            run({**call, "groups": int(found[1])})


@pytest.mark.parametrize("rank", (1, 2))
def test_an_unknown_name_of_padding_lists_those_that_work(rank):
    with pytest.raises(ValueError, match="`padding` as a string must be one of .*, got 'full'") as raised:
        opt.parse_padding("full", rank)
    listed = re.findall(r'"(\w+)"', str(raised.value))
    assert ("causal" in listed) == (rank == 1)
    assert [opt.parse_padding(name, rank) for name in listed] == listed


@pytest.mark.parametrize("name", ("replicate", "reflect", "circular", "wrap", "symmetric-include-edge"))
def test_a_mode_given_as_padding_is_sent_to_padding_value(name):
    with pytest.raises(ValueError, match="`padding` says how much to pad and `padding_value` with what") as raised:
        opt.parse_padding(name, 2)
    assert opt.parse_padding_value(re.search(r"padding_value='([^']*)'", str(raised.value))[1]) in opt.PADDING_MODES


def test_padding_value_takes_numbers_and_names():
    assert [opt.parse_padding_value(v) for v in (0, -1.5, 2j, np.float32(2), np.array(3), "Replicate")] == [
        *(0, -1.5, 2j, 2.0, 3),
        "replicate",
    ]
    for value in (None, True, np.True_, [1], np.ones(1)):
        with pytest.raises(TypeError, match='`padding_value` must be a number or one of "symmetric-include-edge"'):
            opt.parse_padding_value(value)
    with pytest.raises(ValueError, match="`padding_value` must be .* \"circular\", got 'reflect'"):
        opt.parse_padding_value("reflect")


def test_an_entry_of_padding_must_be_a_pair():
    with pytest.raises(ValueError, match=r"`padding\[1\]` must be a pair \(low, high\), got \[1, 2, 3\]"):
        opt.parse_padding(((1, 1), (1, 2, 3)), 2)
    with pytest.raises(ValueError, match=r"`padding\[1\]\[0\]` must be at least 0, got -3"):
        opt.parse_padding(((1, 1), (-3, 2)), 2)


def test_groups_as_a_string_must_be_channel_wise():
    assert opt.parse_groups("Channel-Wise") == "channel-wise"
    with pytest.raises(ValueError, match="`groups` must be a positive integer or \"channel-wise\", got 'depthwise'"):
        opt.parse_groups("depthwise")


def test_window_has_one_two_or_three_axes():
    with pytest.raises(ValueError, match=r"`kernel_size` .* got \[3, 3, 3, 3\] of length 4.*\(3,\) for 1-D"):
        opt.window_of((3, 3, 3, 3))
    with pytest.raises(ValueError, match=r"`kernel_size\[1\]` must be at least 1, got 0"):
        opt.window_of((3, 0))


def test_surplus_with_same_is_refused():
    with pytest.raises(ValueError, match='`output_padding` must be 0 with padding="same"'):
        run({**BACK, "strides": 2, "padding": "same", "output_padding": 1})
    assert run({**BACK, "strides": 2, "padding": "same", "output_padding": 0}).spatial == (10,)


def test_bias_has_one_entry_per_channel():
    g.check_bias((6,), 6, 3)
    with pytest.raises(ValueError, match=r"`bias` .* shape \(6,\), got \(1, 1, 2, 3\).*bias_from_matlab"):
        g.check_bias((1, 1, 2, 3), 6, 3)
