"""The rows of the choice: one problem for each, which it decides, and whose sentence `gconv.explain` shows."""

import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import gconv
from gconv import backends
from gconv.backends import choice
from gconv.backends.problem import Problem
from gconv.geometry import Geometry, geometry

ROOT = Path(__file__).parent.parent


def case(role, x, kernel, dtype="float32", platform="cpu", **options):
    """Shapes and options of `grouped_conv`."""
    return role, x, kernel, dtype, platform, options


# In the order of the rows.
CASES = {
    "native": (
        case("x", (8, 14, 14, 256), (1, 1, 256, 512), strides=2),
        case("w", (1, 7, 7, 512), (1, 1, 512, 512)),
        case("y", (8, 14, 14, 32), (3, 3, 16, 32)),
        case("y", (1, 7, 7, 8), (3, 3, 1, 8)),
        case("y", (64, 16, 16, 6), (1, 1, 2, 9)),
        case("y", (8, 20, 20, 256), (1, 1, 4, 64)),
        case("x", (8, 145, 512), (3, 1, 1024), strides=3),
        case("x", (8, 28, 28, 256), (5, 5, 16, 16), strides=2),
        case("y", (64, 16, 16, 3), (3, 3, 3, 3)),
        case("y", (2048, 4, 1, 12), (3, 3, 1, 12), padding="same"),
        case("x", (16, 6, 6, 8), (3, 3, 1, 8), padding="same"),
        case("y", (8, 56, 56, 96), (3, 3, 1, 96)),
    ),
    "xla": (
        case("y", (8, 9, 9, 6), (3, 3, 1, 6), "float16", "cuda"),
        case("y", (8, 9, 9, 6), (3, 3, 3, 6), platform="cuda"),
        case("y", (8, 9, 9, 6), (3, 3, 1, 6), platform="cuda", strides=3),
        case("w", (8, 9, 9, 6), (3, 3, 1, 6), platform="cuda", dilation=2),
        case("w", (8, 9, 9, 6), (3, 3, 1, 12), platform="cuda"),
        case("x", (8, 9, 6), (3, 1, 6), "bfloat16", "cuda"),
        case("x", (8, 9, 9, 6), (3, 3, 1, 6), platform="cuda", strides=2),
        case("w", (8, 9, 9, 6), (3, 3, 1, 6), platform="cuda", strides=2),
        case("y", (8, 9, 9, 6), (3, 3, 1, 6), platform="tpu"),
        case("y", (8, 9, 9, 6), (3, 3, 1, 6), "int8"),
        case("y", (8, 9, 9, 64), (3, 3, 64, 64)),
        case("x", (8, 99, 99, 6), (3, 3, 1, 6), strides=(9, 8)),
        case("y", (8, 99, 99, 6), (3, 3, 1, 6), strides=(5, 4)),
        case("w", (8, 9, 9, 6), (3, 3, 1, 54)),
        case("w", (8, 9, 9, 6), (3, 3, 1, 6)),
        case("y", (8, 9, 9, 65 * 16), (3, 3, 16, 65 * 16)),
        case("y", (8, 9, 9, 32), (3, 3, 16, 32), "float64"),
        case("y", (8, 9, 9, 32), (1, 1, 16, 32)),
        case("y", (8, 9, 9, 32), (3, 3, 16, 32)),
        case("w", (8, 9, 9, 32), (3, 3, 16, 32), "bfloat16"),
        case("w", (8, 19, 19, 16), (3, 3, 8, 16), strides=2),
        case("w", (8, 8, 8, 32), (3, 3, 16, 32)),
        case("w", (8, 9, 9, 32), (3, 3, 16, 32)),
    ),
    "lax": (case("y", (8, 9, 9, 64), (3, 3, 64, 64), platform="tpu"),),
}
EVERY = [
    pytest.param(name, row, given, id=f"{name}-{i}")
    for name, rows in choice.ROWS.items()
    if name in backends.TABLE
    for i, (row, given) in enumerate(zip(rows, CASES[name], strict=True))
]


# Of `x @ matrix`, in the order of the rows: pixels and channels of x, columns, type, platform, whether it is a constant.
PRODUCTS = {
    "fused matrix": (
        ((2, 49, 96), 384, "float64", "cpu", False),
        ((2, 0, 96), 384, "float32", "cpu", False),
        ((2, 49, 96), 7, "float32", "cpu", False),
        ((2, 49, 4000), 768, "float32", "cpu", False),
        ((1, 15, 1280), 1000, "float32", "cpu", True),
        ((1, 15, 1280), 1000, "float32", "cpu", False),
        ((2, 49, 3072), 768, "float32", "cpu", False),
    ),
    "linear": (
        ((8, 196, 96), 384, "bfloat16", "cuda", False),
        ((2, 49, 96), 384, "bfloat16", "cpu", False),
        ((8, 49, 768), 3072, "float32", "cpu", False),
        ((8, 49, 768), 3072, "bfloat16", "cpu", False),
    ),
}
EVERY_PRODUCT = [
    pytest.param(name, row, given, id=f"{name}-{i}")
    for name, cases in PRODUCTS.items()
    for i, (row, given) in enumerate(zip(choice.ROWS[name], cases, strict=True))
]


@pytest.fixture
def alone(monkeypatch):
    """`alone(name)`: an implementation stands first and can run, with or without a library of kernels."""

    def those_before_cannot(name):
        for other in backends.TABLE:
            reason = None if other == name else "it stands before"
            monkeypatch.setattr(backends.TABLE[other], "why_not", lambda *problem, reason=reason: reason)
            if other == name:
                break

    monkeypatch.setattr("gconv.explanation.operation.platform_here", lambda: "elsewhere")  # nothing is compiled
    return those_before_cannot


def unwrapped(found) -> str:
    """What `explain` says, with each reason on one line."""
    return str(found).replace("\n      ", " ")


@pytest.mark.parametrize("name, row, given", EVERY)
def test_every_row_decides_a_problem_and_explain_says_so(name, row, given, alone, x64):
    role, x, kernel, dtype, platform, options = given
    batch, g = geometry(x, kernel, **options)
    problem = Problem(role, g, jnp.dtype(dtype), platform, batch[0])
    assert choice.decide(name, problem) is row
    alone(name)
    found = gconv.explain(*(jax.ShapeDtypeStruct(s, dtype) for s in (x, kernel)), platform=platform, **options)
    if row.takes:
        assert (found[role].implementation, found[role].why) == (name, row.say(problem))
        assert f"   {name}: {row.say(problem)}" in unwrapped(found)
    else:
        assert found[role].implementation != name
        assert found[role].reasons[name] == row.say(problem)
        assert f"   not {name}: {row.say(problem)}" in unwrapped(found)


@pytest.mark.parametrize("name, row, given", EVERY_PRODUCT)
def test_every_row_decides_a_matrix_product(name, row, given, monkeypatch, x64):
    (batch, pixels, channels), filters, dtype, platform, frozen = given
    g = Geometry((pixels,), (1,), (1,), ((0, 0),), (1,), 1, channels, filters)
    monkeypatch.setattr(backends.native, "why_not", lambda *_: None)
    problem = Problem("y", g, jnp.dtype(dtype), platform, batch, frozen)
    assert choice.decide(name, problem) is row
    against = partial(backends.reason_against_matrix, name, g, jnp.dtype(dtype), platform, batch, frozen=frozen)
    assert against() == (None if row.takes else row.say(problem))
    assert against("it is exported") == "native: it is exported"
    monkeypatch.setattr(backends.native, "why_not", lambda *_: "there are none")
    assert against() == "native: there are none"


@pytest.mark.parametrize("name", choice.ROWS)
def test_every_row_says_where_its_numbers_come_from(name):
    for row in choice.ROWS[name]:
        assert row.evidence
        for path in re.findall(r"results/\S+\.jsonl", row.evidence):
            assert (ROOT / "benchmarks" / path).is_file(), path


def test_a_batch_that_is_not_known_counts_as_much_work():
    (b,) = jax.export.symbolic_shape("b")
    _, g = geometry((1, 16, 16, 3), (3, 3, 3, 3))
    says = lambda batch: choice.decide("native", Problem("y", g, jnp.dtype("float32"), "cpu", batch))
    assert says(4).takes and not says(64).takes
    assert says(b) is says(64)
    assert Problem("y", g, jnp.float32, "cpu", b).products == float("inf")
    _, g = geometry((1, 7, 7, 512), (1, 1, 512, 512))
    says = lambda batch: choice.decide("native", Problem("w", g, jnp.dtype("float32"), "cpu", batch))
    assert not says(1).takes and says(2).takes and says(b).takes


def test_a_problem_that_all_leave_goes_to_the_first_that_can_run():
    x, kernel = jax.ShapeDtypeStruct((8, 9, 9, 6), "int8"), jax.ShapeDtypeStruct((3, 3, 3, 6), "int8")
    found = gconv.explain(x, kernel, platform="cuda")["y"]
    assert (found.implementation, found.why) == ("xla", "no other implementation can run")


def test_a_problem_that_none_can_run_is_an_error_with_every_reason():
    x, kernel = jax.ShapeDtypeStruct((1, 1 << 22, 2), "int8"), jax.ShapeDtypeStruct((3, 1, 2), "int8")
    with pytest.raises(ValueError, match="no implementation can run role 'w' on 'cuda', got int8: native: .*; xla: .*; lax: "):
        gconv.explain(x, kernel, dilation=1 << 20, platform="cuda")


def test_a_name_overrules_every_row():
    x, kernel = jax.ShapeDtypeStruct((8, 9, 9, 64), "float32"), jax.ShapeDtypeStruct((3, 3, 64, 64), "float32")
    for role in gconv.explain(x, kernel, implementation="xla", platform="tpu").roles:
        assert (role.implementation, role.why) == ("xla", "it was named")
        assert role.reasons["lax"] == "implementation='xla' was named"
