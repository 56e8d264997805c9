"""The benchmarks still run, and what they compare is equal. Nothing here is about time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("rich", reason="the benchmarks need the extra 'benchmarks'")
BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def run(script, *arguments):
    done = subprocess.run([sys.executable, BENCHMARKS / script, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_layers_in_quick_mode(tmp_path):
    output = run("layers.py", "--quick", "--output", str(tmp_path / "rows.jsonl"))
    assert "geometric mean" in output
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(rows) >= 9 and {row["role"] for row in rows} == set("yxw")
    assert all(row["times"]["automatic"]["median"] > 0 for row in rows)


def test_factors():
    assert "MATLAB's adam with factors" in run("factors.py", "--millions", "0.05", "--rounds", "1")


def test_scaling_in_quick_mode(tmp_path):
    """Of two small networks: images alone send the gradients' sums and nothing else, and of every parameter."""
    command = [sys.executable, "-m", "benchmarks.scaling", "--quick", "--output", str(tmp_path / "rows.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=BENCHMARKS.parent)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 4 and all(row["devices"] == 8 for row in rows)
    for row in (row for row in rows if row["groups"] == 1):
        assert {*row["collectives"]} == {"all-reduce"}
        assert row["bytes"] >= 4 * row["parameters"]
        assert all(0 < m["efficiency_not_hidden"] < m["efficiency_hidden"] <= 1 for m in row["modelled"].values())
