"""What reports say of whole models is read off rows, and the pages hold what the rows of results give."""

import json

import pytest

from benchmarks import report
from benchmarks.reporting import document, model_plots, model_tables
from benchmarks.reporting.numbers import part

FACTS = {"date": "2026-11-28T20:00Z", "commit": "abc", "processor": "P", "threads": 2, "python": "3", "quick": False}
FACTS |= {"versions": {"jax": "1", "openvino": None}}


def row(case, mode, batch, dtype="float32", **seconds):
    names = {"ours": {"inference": "nnx.Conv fused", "training": "nnx.Conv accelerated"}[mode], "jax": "nnx.Conv"}
    names |= {"eager": "PyTorch contiguous", "last": "PyTorch channels_last", "compiled": "PyTorch compiled"}
    names |= {"ort": "ONNX Runtime", "openvino": "OpenVINO", "installed": "nnx.Conv installed"}
    spread = {"compile": 1.0, "first": 1.0, "calls": 9}
    times = {names[key]: spread | {"median": s, "low": s, "high": 2 * s} for key, s in seconds.items()}
    work = {"case": case, "mode": mode, "dtype": dtype, "batch": batch, "size": 224}
    return FACTS | work | {"part": "models", "least": 0.001, "times": times}


ROWS = [
    row("mobilenet_v2", "inference", 1, ours=0.004, jax=0.08, eager=0.012, compiled=0.008, ort=0.003, openvino=0.002),
    row("resnext50_32x4d", "inference", 1, ours=0.01, jax=0.2, eager=0.03, compiled=0.02, ort=0.04),
    row("mamba", "inference", 1, ours=0.001, jax=0.1, eager=0.1),
    row("mobilenet_v2", "training", 8, ours=0.2, installed=0.3, jax=2.0, eager=0.5, last=0.4, compiled=0.3),
]


def test_the_best_of_the_others():
    first, second, third, step = ROWS
    over = lambda of, others=model_tables.RIVALS: model_tables.over(model_tables.seconds(of), others)
    assert over(first) == pytest.approx(0.5) and over(second) == pytest.approx(2) and over(step) == pytest.approx(1.5)
    assert over(step, [model_tables.ALONE]) == pytest.approx(10) and over(third, model_tables.ENGINES) is None
    assert model_tables.seconds(step) == {"JAX": 2.0, "installed": 0.3, "gconv": 0.2, "PyTorch": 0.4, "torch.compile": 0.3}


def test_the_table_of_models():
    text = model_tables.models(ROWS)
    assert "| ms, inference, batch 1 | JAX | gconv | PyTorch | torch.compile | ONNX Runtime | OpenVINO |" in text
    assert "| MobileNetV2 | 80 | 4 | 12 | 8 | 3 | 2 | 20.00 | 0.50 |" in text
    # Mamba is no network of images, and does not count in inference.
    assert "| geometric mean without Mamba |  |  |  |  |  |  | 20.00 | 1.00 |" in text
    assert "1.00 times as long as gconv, in geometric mean over 2 networks; the least is 0.50, MobileNetV2. Target: 1," in text
    missed, met = [line for line in text.splitlines() if "Target" in line]
    assert missed.endswith("none under 0.85: missed.") and met.endswith("Target: 1.2, and none under 0.97: met.")
    lines = [line for line in model_tables.models(ROWS, details=True).splitlines() if line.startswith("|")]
    assert "| 25% | 100% | 1,000 | 2,000 |" in lines[2]
    widths = [line.count("|") for line in lines]
    assert widths == [14] * 6 + [13] * 4


def test_bfloat16_has_a_table_of_its_own():
    """And no target. The glance and the plot are of float32."""
    half = row("mobilenet_v2", "training", 8, "bfloat16", ours=0.1, jax=3.0, last=0.2)
    single, both = model_tables.models(ROWS), model_tables.models([half, *ROWS])
    assert both.startswith(single) and "Target" not in both.removeprefix(single)
    assert "| ms, a training step in bfloat16, batch 8 | JAX | gconv | PyTorch |" in both
    assert "| MobileNetV2 | 3,000 | 100 | 200 | 30.00 | 2.00 |" in both
    assert model_tables.glance([half, *ROWS]) == model_tables.glance(ROWS)
    assert len(model_plots.models([half, *ROWS]).axes) == 2
    assert "autocast" in document.models_summary([half, *ROWS]) and "autocast" not in document.models_summary(ROWS)


def test_a_glance_at_models():
    assert model_tables.glance(ROWS) == [
        ["inference, batch 1: 2 networks", "20", "2", "1.41"],
        ["a training step, batch 8: 1 networks", "10", "1.5", ""],
    ]


PEAKS = {"nnx.Conv accelerated": 300, "PyTorch channels_last": 250, "PyTorch contiguous": 260, "PyTorch compiled": 200}
MEMORY = FACTS | {"part": "memory", "case": "mamba", "mode": "training", "dtype": "float32", "batch": 8, "size": 224}
MEMORY |= {"peaks": {peer: {"before": 100 * 2**20, "peak": peak * 2**20} for peer, peak in PEAKS.items()}}
KINDS = {"grouped convolutions": 0.1, "other convolutions and matrix products": 0.2, "reductions": 0.3}
PROFILE = MEMORY | {"part": "profile", "kinds": {"nnx.Conv accelerated": KINDS | {"the rest, elementwise": 0.4}}}


def test_the_tables_of_memory_and_profiles():
    assert "| Mamba block | 200 | 150 | 100 | 2.00 |" in model_tables.memory([MEMORY])
    assert "| a training step, batch 8, nnx.Conv accelerated | 1 | 10% | 20% | 30% | 40% |" in model_tables.profiles_summary(
        [PROFILE]
    )
    assert "| 100 (10%) | 200 (20%) | 300 (30%) | 400 (40%) |" in model_tables.profiles([PROFILE])


def test_plots_hold_every_network():
    figure = model_plots.models(ROWS)
    assert [axes.get_title() for axes in figure.axes] == ["inference, batch 1", "a training step, batch 8"]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["Mamba block", "ResNeXt-50", "MobileNetV2"]
    dots = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[1].lines}
    assert dots["gconv"] == [[200, 2]] and dots["JAX"] == [[2000, 2]]
    bars = model_plots.profiles([PROFILE]).axes[0].patches
    assert [bar.get_x() for bar in bars] == pytest.approx([0, 10, 30, 60])


def test_models_come_from_runs_of_their_own(tmp_path):
    """Their limits do not replace those of the run of layers, and rows without a mode or type are of training in float32."""
    folder = tmp_path / "models"
    folder.mkdir()
    old = {key: value for key, value in PROFILE.items() if key not in ("mode", "dtype")} | {"date": "old"}
    limits = FACTS | {"part": "limits"}
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(r) + "\n" for r in (limits | {"commit": "first"}, old)))
    (folder / "new.jsonl").write_text("".join(json.dumps(r) + "\n" for r in (limits, PROFILE, ROWS[0])))
    rows = report.load([tmp_path / "all.jsonl", folder / "new.jsonl"])
    assert [(r["part"], r["commit"], r["date"]) for r in rows][0] == ("limits", "first", FACTS["date"])
    assert [r["date"] for r in part(rows, "profile")] == [FACTS["date"]] and len(rows) == 3


def test_a_section_is_rewritten_between_its_markers():
    text = "a\n<!-- x: begin -->\nold\n<!-- x: end -->\nb"
    assert report.rewrite(text, "x", "new\n") == text.replace("old", "new")
    with pytest.raises(ValueError, match="once each"):
        report.rewrite(text, "y", "new")


@pytest.mark.parametrize("page", report.PAGES)
def test_pages_are_made_from_the_rows(page):
    """`python -m benchmarks.report --page` writes what differs here: no number between the markers is written by hand."""
    text = (report.ROOT / page).read_text()
    made = report.sections(report.load(report.published()))
    for name in report.PAGES[page]:
        assert report.rewrite(text, name, made[name]) == text


def test_the_report_shows_models(tmp_path):
    text = document.report([*ROWS, MEMORY, PROFILE], [])
    for heading in ("Whole models", "Where the time of a model goes", "Memory that a model's call adds"):
        assert f"\n## {heading}\n" in f"\n{text}"
