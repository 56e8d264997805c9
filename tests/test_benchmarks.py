"""The benchmarks still run, what they compare is equal, and they would notice if it were not. Nothing here is about time."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import oracle
import pytest

from benchmarks import cases, issues, limits, measure, report, run, tables
from benchmarks.peers import PEERS, Prepared, Problem

ROOT = Path(__file__).parent.parent


def command(*arguments):
    done = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- peers -----------------------------------------------------------------------------------------------------------

CASES = (
    cases.case("surplus-at-the-end", 2, (8, 10), 4, 4, 4, (3, 3), strides=2),
    cases.case("grouped-stride-2", 2, (9, 8), 6, 4, 2, (5, 3), strides=(2, 1)),
    cases.case("causal", 2, (11,), 3, 3, 3, (4,), padding="causal", dilation=2),
    cases.case("multiplier-3d", 1, (4, 5, 6), 2, 4, 2, (2, 3, 2), strides=(1, 2, 1)),
    cases.case("lopsided", 2, (7, 9), 4, 8, 2, (3, 2), padding=((0, 2), (1, 0)), dilation=(1, 2)),
)


def expected(case, role, arrays):
    g = case.geometry
    facts = {"groups": g.groups, "strides": g.strides, "pads": g.padding, "dilation": g.dilation}
    x, w, y = (arrays[name] for name in "xwy")
    return {
        "y": lambda: oracle.conv(x, w, **facts),
        "x": lambda: oracle.input_gradient(y, w, x.shape, **facts),
        "w": lambda: oracle.kernel_gradient(x, y, w.shape, **facts),
    }[role]()


@pytest.mark.parametrize("role", cases.ROLES)
@pytest.mark.parametrize("peer", [name for name in PEERS if not name.startswith("gconv ")])
def test_peers_compute_what_they_are_asked(peer, role):
    for case in CASES:
        arrays = case.arrays("float32", seed=1)
        prepared = PEERS[peer](Problem(case, role, "float32", arrays))
        if isinstance(prepared, str):
            pytest.skip(f"{peer}: {prepared}")
        want = expected(case, role, arrays)
        np.testing.assert_allclose(prepared.result(), want, rtol=1e-4, atol=1e-5 * np.abs(want).max(), err_msg=case.name)


def test_pytorch_pads_both_ends_alike():
    peer_torch = pytest.importorskip("benchmarks.peer_torch", reason="PyTorch is not installed")
    same_stride_2, causal = CASES[0].geometry, CASES[2].geometry
    assert peer_torch.symmetric(same_stride_2) == (peer_torch.Symmetric(1, mirror=True, extra=0),) * 2
    assert peer_torch.symmetric(causal) == (peer_torch.Symmetric(6, mirror=False, extra=6),)


def test_a_missing_peer_is_listed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    bounds = {"bandwidth": {"1": 1e9}, "flops": {"float32": 1e9}}
    (row,) = run._convolutions("layers", [CASES[0]], bounds, 0.0, True, "y", ["float32"], ["gconv", "OpenVINO"])
    assert row["missing"] == {"OpenVINO": "onnx is not installed"} and [*row["times"]] == ["gconv"]
    assert "- OpenVINO: onnx is not installed (1 row)" in tables.missing([row])


# --- instruments -----------------------------------------------------------------------------------------------------


def test_a_wrong_result_would_be_found():
    good, bad = np.ones((2, 3)), np.ones((2, 3)) + [0, 0, 1e-3]
    run.compare({"a": good, "b": [good]}, 1e-5)
    for wrong in (bad, good[:1], good * np.nan):
        with pytest.raises(AssertionError, match="b .* differs from a"):
            work = {"a": Prepared(None, lambda: good), "b": Prepared(None, lambda w=wrong: w)}
            run.measured(work, 0, quick=True, dtype="float32")


def test_all_take_turns_and_slow_ones_once():
    order = []
    times = measure.interleaved({name: lambda name=name: order.append(name) for name in "ab"}, rounds=3, seconds=10)
    assert [t["calls"] for t in times.values()] == [order.count(name) - 2 - 3 for name in "ab"]  # two before, one per round
    turns = [name for i, name in enumerate(order) if i == 0 or order[i - 1] != name]
    assert "".join(turns[-6:]) == "ababab"
    once = measure.interleaved({"slow": lambda: order.append("slow")}, once_over=0.0)
    assert order.count("slow") == once["slow"]["calls"] == 1 and once["slow"]["median"] == once["slow"]["first"]


def test_limits_bind_where_they_should():
    bounds = {"bandwidth": {"1000": 100.0, "100000": 10.0}, "flops": {"float32": 50.0, "bfloat16": 100.0}}
    assert limits.least_seconds(bounds, 0, 500, "float32") == 5  # in the cache
    assert limits.least_seconds(bounds, 0, 200_000, "float32") == 20_000
    assert limits.least_seconds(bounds, 1_000_000, 500, "float32") == 20_000
    assert limits.least_seconds(bounds, 1_000_000, 500, "bfloat16") == 10_000
    found = limits.measured(quick=True)
    assert found["flops"]["bfloat16"] >= found["flops"]["float32"] > 1e8
    assert all(speed > 1e8 for speed in found["bandwidth"].values())


def test_programs_of_issues_say_by_how_much_they_are_scaled(monkeypatch):
    full = issues.jax_26266("float32", None, dilation=8)
    (result,) = full.peers["gconv"]().result()
    assert result.shape == (32, 1024, 64) and full.scaled == 1
    monkeypatch.setattr("os.sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**18}[name])  # 1 GiB
    scaled = issues.jax_23783("float32", None)
    (result,) = scaled.peers["gconv"]().result()
    assert result.shape == (32 // scaled.scaled, 512, 2051) and scaled.scaled == 4


# --- the commands ----------------------------------------------------------------------------------------------------


def test_quick_run_and_report(tmp_path):
    lines = tmp_path / "lines.jsonl"
    command("benchmarks", "--quick", "--output", str(lines))
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    parts = {row["part"] for row in rows}
    assert parts >= {"limits", "layers", "issues", "models", "profile", "sweeps", "memory"}
    assert all({"date", "commit", "processor", "threads", "versions"} <= {*row} for row in rows)
    layers = [row for row in rows if row["part"] == "layers"]
    assert len(layers) == 18 and {row["role"] for row in layers} == {*"yxw"}
    for row in layers:
        assert {"gconv", "lax", "nnx.Conv"} <= {*row["times"]} and {*row["times"], *row["missing"]} == {*PEERS}
        assert row["least"] > 0 and all(t["median"] > 0 and t["first"] > 0 for t in row["times"].values())

    command("benchmarks.report", str(lines), "--quick", "--to", str(tmp_path / "report"))
    text = (tmp_path / "report" / "REPORT.md").read_text()
    for heading in ("Layers", "Whole models", "Programs of users' issues", "Peak memory", "Compiling, and the first call"):
        assert f"\n## {heading}" in text
    plots = {path.name for path in (tmp_path / "report").glob("*.png")}
    assert plots >= {"layers.png", "models.png", "memory.png", "sweeps-y.png", "sweeps-w.png"}
    assert all(f"]({name})" in text for name in plots)


def test_a_repeated_measurement_replaces_the_older(tmp_path):
    old = {"part": "layers", "case": "a", "role": "y", "dtype": "float32", "threads": 2, "quick": False}
    rows = [old | {"n": 1}, old | {"role": "x", "n": 2}, old | {"n": 3}, old | {"n": 4, "quick": True}, {"no": "part"}]
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [row["n"] for row in report.load([tmp_path / "lines.jsonl"])] == [2, 3]


def test_the_readme_has_a_place_for_the_summary(tmp_path):
    readme = shutil.copy(ROOT / "README.md", tmp_path)
    text = Path(readme).read_text()
    head, tail = text.split(report.BEGIN)[0], text.split(report.END)[1]
    assert report.rewrite(text, "new") == f"{head}{report.BEGIN}\nnew\n{report.END}{tail}"
    with pytest.raises(ValueError, match="once each"):
        report.rewrite("no markers", "new")


def test_factors():
    assert "MATLAB's adam with factors" in command("benchmarks.factors", "--millions", "0.05", "--rounds", "1")


def test_scaling_in_quick_mode(tmp_path):
    """Of two small networks: images alone send the gradients' sums and nothing else, and of every parameter."""
    command("benchmarks.scaling", "--quick", "--output", str(tmp_path / "rows.jsonl"))
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 4 and all(row["devices"] == 8 for row in rows)
    for row in (row for row in rows if row["groups"] == 1):
        assert {*row["collectives"]} == {"all-reduce"}
        assert row["bytes"] >= 4 * row["parameters"]
        assert all(0 < m["efficiency_not_hidden"] < m["efficiency_hidden"] <= 1 for m in row["modelled"].values())
