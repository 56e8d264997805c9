"""Two builds of the kernels in one process: each computes what it is asked, by the attributes that it takes."""

from pathlib import Path

import jax
import numpy as np
import oracle
import pytest

from benchmarks import compare
from benchmarks.cases import convolution
from benchmarks.peers.base import Problem
from benchmarks.peers.builds import Build
from gconv import native

LIBRARY, REASON = native.load()
pytestmark = pytest.mark.skipif(LIBRARY is None, reason=f"no kernels: {REASON}")
CASE = convolution.case("grouped", 2, (9, 8), 6, 4, 2, (5, 3), strides=(2, 1))


@pytest.fixture(scope="module")
def builds() -> dict[str, Build]:
    return {name: Build(name, Path(LIBRARY._name)) for name in ("old", "new")}


@pytest.mark.parametrize("role", convolution.ROLES)
def test_a_build_computes_a_role(role, builds):
    arrays, g = CASE.arrays("float32"), CASE.geometry
    facts = {"groups": g.groups, "strides": g.strides, "pads": g.padding, "dilation": g.dilation}
    x, w, y = (arrays[name] for name in "xwy")
    want = {
        "y": lambda: oracle.conv(x, w, **facts),
        "x": lambda: oracle.input_gradient(y, w, x.shape, **facts),
        "w": lambda: oracle.kernel_gradient(x, y, w.shape, **facts),
    }[role]()
    got = builds["new"](Problem(CASE, role, "float32", arrays)).result()
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


def test_a_build_is_called_by_its_own_name_and_attributes(builds, monkeypatch):
    x, w = (jax.ShapeDtypeStruct(CASE.shapes[name], "float32") for name in "xw")

    def text():
        return jax.jit(lambda x, w: builds["old"].call("y", x, w, CASE.geometry)).lower(x, w).as_text()

    monkeypatch.setattr(builds["old"], "interface", 1)
    assert "@gconv_build_old" in text() and "kernel =" not in text()
    monkeypatch.setattr(builds["old"], "interface", 2)
    assert 'kernel = ""' in text()


def test_an_unknown_interface_is_refused(monkeypatch):
    monkeypatch.setattr("benchmarks.peers.builds.INTERFACES", ())
    with pytest.raises(ValueError, match="has interface"):
        Build("other", Path(LIBRARY._name))
    with pytest.raises(OSError):
        Build("none", Path(__file__))


def test_a_departure_is_measured_again(builds, monkeypatch):
    asked = []

    def interleaved(runs, *, rounds, seconds, once_over):
        asked.append((rounds, seconds))
        spread = {"low": 1.0, "high": 1.0}
        return {"old": spread | {"median": 1.0}, "new": spread | {"median": 2.0 if len(asked) == 1 else 1.0}}

    monkeypatch.setattr(compare, "interleaved", interleaved)
    problem = Problem(CASE, "y", "float32", CASE.arrays("float32"))
    row = compare.measured(builds, problem, 2.0, rounds=15)
    assert asked == [(15, 2.0), (45, 6.0)] and row["again"] and row["ratio"] == 1 and row["same_bits"]
    row = compare.measured(builds, problem, 2.0, rounds=15)
    assert len(asked) == 3 and not row["again"]


def test_other_results_are_an_error(builds, monkeypatch):
    wrong = builds["new"].call
    monkeypatch.setattr(builds["new"], "call", lambda *operands: 1.5 * wrong(*operands))
    with pytest.raises(AssertionError, match="new .* differs from old"):
        compare.measured(builds, Problem(CASE, "y", "float32", CASE.arrays("float32")), 0.1, rounds=1)


def test_the_command(tmp_path, capsys, monkeypatch):
    lines = tmp_path / "lines.jsonl"
    monkeypatch.setattr(compare.machine, "keep_memory", lambda: False)
    options = ["--quick", "--only", "mobilenet_v1", "--roles", "yw", "--output", str(lines)]
    monkeypatch.setattr("sys.argv", ["compare", LIBRARY._name, LIBRARY._name, *options])
    compare.main()
    out = capsys.readouterr().out
    assert "all: geometric mean" in out and "of 2 rows" in out and "role y: geometric mean" in out
    assert len(lines.read_text().splitlines()) == 2
