"""Every notebook runs from top to bottom. (`digits` has a test of its own, with its accuracy.)"""

import runpy
from pathlib import Path

import pytest

pytest.importorskip("sklearn", reason="the notebooks need the extra 'notebooks'")


def test_fine_tuning_learns_in_every_loop():
    path = Path(__file__).parent.parent / "notebooks" / "fine_tuning.py"
    result = runpy.run_path(str(path))
    for loop in ("nnx", "plain", "linen"):
        assert result[f"{loop}_accuracy"] > 0.9, loop
    assert result["moments"] == 2 * (4 * 4 * 32 * 5 + 5)
