"""How a convolution of lax is read: every reading of every equation, against loops that follow lax's definition."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from jax import lax

from gconv.acceleration import equation
from gconv.acceleration.equation import Equation, read

READINGS = {"y": equation._as_y, "x": equation._as_x, "w": equation._as_w, "w'": equation._as_w_turned}
LAYOUTS = {
    1: (("NCW", "OIW", "NCW"), ("NWC", "WIO", "NWC"), ("CWN", "IWO", "WNC")),
    2: (("NCHW", "OIHW", "NCHW"), ("NHWC", "HWIO", "NHWC"), ("HWNC", "OHWI", "CNWH"), ("CHWN", "IHWO", "HWNC")),
    3: (("NCDHW", "OIDHW", "NCDHW"), ("NDHWC", "DHWIO", "NDHWC"), ("CDHWN", "IDHWO", "DHWNC")),
}


def sampled(count: int, seed: int) -> list[Equation]:
    """Legal equations with a result, of every layout, dilation, stride, kind of group and padding, cropping ones among them."""
    rng, found = random.Random(seed), []
    while len(found) < count:
        rank = rng.choice((1, 2, 2, 3))
        feature, batch = rng.choice(((1, 1), (3, 1), (1, 3), (2, 1), (1, 2)))
        counts = {"N": rng.choice((1, 2, 4)) * batch, "I": rng.choice((1, 2, 3))}
        counts |= {"C": counts["I"] * feature, "O": rng.choice((1, 2, 5)) * feature * batch}
        axes = "DHW"[-rank:]
        layout = rng.choice(LAYOUTS[rank])
        largest = {1: 12, 2: 7, 3: 4}[rank]
        image, window = ({a: rng.randint(1, most) for a in axes} for most in (largest, largest - 1))
        draw = lambda *choices, rank=rank: tuple(rng.choice(choices) for _ in range(rank))
        lhs, rhs = (tuple((counts | sizes)[c] for c in spec) for spec, sizes in zip(layout, (image, window), strict=False))
        e = Equation(
            lhs,
            rhs,
            draw(1, 1, 2, 3),
            tuple((rng.randint(-2, 5), rng.randint(-2, 5)) for _ in range(rank)),
            draw(1, 1, 2, 3),
            draw(1, 1, 2),
            lax.conv_dimension_numbers(lhs, rhs, layout),
            feature,
            batch,
        )
        if min(equation._output(e)) > 0:
            found.append(e)
    return found


def by_definition(e: Equation, lhs, rhs):
    """Zeros put between samples, padding, a window that slides: in float64."""
    numbers = e.dimension_numbers
    lhs, rhs = np.float64(lhs).transpose(numbers.lhs_spec), np.float64(rhs).transpose(numbers.rhs_spec)
    dilated = np.zeros((*lhs.shape[:2], *((n - 1) * f + 1 for n, f in zip(lhs.shape[2:], e.lhs_dilation, strict=True))))
    dilated[(..., *(slice(None, None, f) for f in e.lhs_dilation))] = lhs
    wide = np.pad(dilated, [(0, 0), (0, 0), *((max(lo, 0), max(hi, 0)) for lo, hi in e.padding)])
    ends = zip(wide.shape[2:], e.padding, strict=True)
    padded = wide[(..., *(slice(max(-lo, 0), n - max(-hi, 0)) for n, (lo, hi) in ends))]
    groups = e.feature_group_count * e.batch_group_count
    parts = np.split(padded, groups, axis=1 if e.feature_group_count > 1 else 0)
    out = []
    for part, kernel in zip(parts, np.split(rhs, groups), strict=True):
        y = np.zeros((part.shape[0], kernel.shape[0], *equation._output(e)))
        for position in np.ndindex(*y.shape[2:]):
            for tap in np.ndindex(*kernel.shape[2:]):
                at = tuple(p * s + t * d for p, s, t, d in zip(position, e.window_strides, tap, e.rhs_dilation, strict=True))
                y[(..., *position)] += part[(..., *at)] @ kernel[(..., *tap)].T
        out.append(y)
    return np.concatenate(out, axis=1).transpose(np.argsort(numbers.out_spec))


def by_the_role(reading, lhs, rhs):
    """The role of the reading's geometry, by the oracle."""
    g, operands = reading.geometry, {name: np.asarray(a) for name, a in jax.jit(reading.operands)(lhs, rhs).items()}
    facts = {"groups": g.groups, "strides": g.strides, "pads": [(max(lo, 0), max(hi, 0)) for lo, hi in g.padding]}
    facts["dilation"] = g.dilation
    crop = tuple(slice(max(-lo, 0), n - max(-hi, 0)) for n, (lo, hi) in zip(g.spatial, g.padding, strict=True))
    if "x" in operands:
        operands["x"] = operands["x"][(slice(None), *crop)]
    if reading.role == "y":
        value = oracle.conv(operands["x"], operands["w"], **facts)
    elif reading.role == "w":
        value = oracle.kernel_gradient(operands["x"], operands["y"], g.kernel_shape, **facts)
    else:
        value = np.zeros(g.x_shape(len(operands["y"])))
        inner = value[(slice(None), *crop)]
        inner[...] = oracle.input_gradient(operands["y"], operands["w"], inner.shape, **facts)
    return np.asarray(jax.jit(reading.result)(value.astype(np.float32)))


@pytest.mark.parametrize("seed", range(4))
def test_every_reading_of_every_equation(seed):
    rng, used = np.random.default_rng(seed), set()
    for e in sampled(12, seed):
        lhs, rhs = (jnp.asarray(rng.integers(-3, 4, shape), jnp.float32) for shape in (e.lhs_shape, e.rhs_shape))
        exact = by_definition(e, lhs, rhs)
        legal = {
            "y": max(e.lhs_dilation) == 1,
            "x": max(e.window_strides) == 1,
            "w": max(e.lhs_dilation) == 1,
            "w'": max(e.rhs_dilation) == 1,
        }
        for name, reads in READINGS.items():
            if legal[name]:
                used.add(name)
                np.testing.assert_array_equal(by_the_role(reads(e), lhs, rhs), exact, err_msg=f"{name} of {e}")
        chosen = read(e)
        if isinstance(chosen, str):
            assert max(e.lhs_dilation) > 1 and max(e.window_strides) > 1, chosen
        else:
            np.testing.assert_array_equal(by_the_role(chosen, lhs, rhs), exact, err_msg=str(e))
    assert used == {*READINGS}


def test_the_gradients_of_laxs_own_rules_are_read_as_gradients():
    """Of a convolution and of a transposed one, with and without groups: the kernel's is role w."""
    for groups in (1, 4):
        for dilated in (False, True):
            options = {"lhs_dilation": (2, 2)} if dilated else {"window_strides": (2, 2)}
            options |= {
                "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
                "feature_group_count": groups,
                "padding": ((1, 1), (1, 1)),
            }
            options.setdefault("window_strides", (1, 1))
            x, kernel = jnp.ones((8, 14, 14, 8)), jnp.ones((3, 3, 8 // groups, 8))
            loss = lambda x, k, options=options: (lax.conv_general_dilated(x, k, **options) ** 2).sum()
            jaxpr = jax.make_jaxpr(jax.grad(loss, 1))(x, kernel)
            *_, last = (e for e in jaxpr.eqns if e.primitive is lax.conv_general_dilated_p)
            shapes = [v.aval.shape for v in last.invars]
            names = ("window_strides", "padding", "lhs_dilation", "rhs_dilation", "dimension_numbers")
            counts = last.params["feature_group_count"], last.params["batch_group_count"]
            found = read(Equation(*shapes, *(last.params[name] for name in names), *counts))
            assert (found.role, found.geometry.groups, found.swapped) == ("w", groups, dilated)


WITHOUT = {
    "4 spatial axes": dict(lhs_shape=(1, 1, 2, 2, 2, 2), rhs_shape=(1, 1, 1, 1, 1, 1)),
    "neither a convolution nor a gradient": dict(window_strides=(2, 2), lhs_dilation=(2, 2)),
    "nothing to compute": dict(lhs_shape=(0, 2, 5, 5)),
    "do not fit 2 spatial axes": dict(window_strides=(1,)),
}


@pytest.mark.parametrize("reason", WITHOUT)
def test_what_has_no_reading_says_why(reason):
    options = dict(lhs_shape=(1, 2, 5, 5), rhs_shape=(3, 2, 2, 2), window_strides=(1, 1), lhs_dilation=(1, 1)) | WITHOUT[reason]
    lhs, rhs = options["lhs_shape"], options["rhs_shape"]
    rank = len(lhs) - 2
    numbers = lax.conv_dimension_numbers(lhs, rhs, None)
    e = Equation(padding=((0, 0),) * rank, rhs_dilation=(1,) * rank, dimension_numbers=numbers, **options)
    assert reason in read(e)
