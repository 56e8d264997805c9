"""The benchmarks still run, what they compare is equal, and they would notice if it were not. Nothing here is about time."""

import ast
import graphlib
import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from benchmarks import __main__ as main
from benchmarks import report
from benchmarks.cases import convolution
from benchmarks.measuring import gpu, limits, stopwatch, work
from benchmarks.measuring.target import CPU, Target, rotating
from benchmarks.measuring.work import Prepared
from benchmarks.parts import convolutions
from benchmarks.peers import GPU_PEERS, PEERS
from benchmarks.peers import jax as peers_of_jax
from benchmarks.peers.base import Problem
from benchmarks.programs import contenders, issues
from benchmarks.reporting import document, tables

ROOT = Path(__file__).parent.parent


def command(*arguments):
    done = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- peers -----------------------------------------------------------------------------------------------------------

CASES = (
    convolution.case("surplus-at-the-end", 2, (8, 10), 4, 4, 4, (3, 3), strides=2),
    convolution.case("grouped-stride-2", 2, (9, 8), 6, 4, 2, (5, 3), strides=(2, 1)),
    convolution.case("causal", 2, (11,), 3, 3, 3, (4,), padding="causal", dilation=2),
    convolution.case("multiplier-3d", 1, (4, 5, 6), 2, 4, 2, (2, 3, 2), strides=(1, 2, 1)),
    convolution.case("lopsided", 2, (7, 9), 4, 8, 2, (3, 2), padding=((0, 2), (1, 0)), dilation=(1, 2)),
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


@pytest.mark.parametrize("role", convolution.ROLES)
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
    peer_torch = pytest.importorskip("benchmarks.peers.torch", reason="PyTorch is not installed")
    same_stride_2, causal = CASES[0].geometry, CASES[2].geometry
    assert peer_torch.symmetric(same_stride_2) == (peer_torch.Symmetric(1, mirror=True, extra=0),) * 2
    assert peer_torch.symmetric(causal) == (peer_torch.Symmetric(6, mirror=False, extra=6),)


def test_a_missing_peer_is_listed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    bounds = {"bandwidth": {"1": 1e9}, "flops": {"float32": 1e9}}
    (row,) = convolutions.by_all("layers", [CASES[0]], bounds, 0.0, True, "y", ["float32"], ["gconv", "OpenVINO"])
    assert row["missing"] == {"OpenVINO": "onnx is not installed"} and [*row["times"]] == ["gconv"]
    assert "- OpenVINO: onnx is not installed (1 row)" in tables.missing([row])


# --- instruments -----------------------------------------------------------------------------------------------------


def test_a_wrong_result_would_be_found():
    good, bad = np.ones((2, 3)), np.ones((2, 3)) + [0, 0, 1e-3]
    work.compare({"a": good, "b": [good]}, 1e-5)
    for wrong in (bad, good[:1], good * np.nan):
        with pytest.raises(AssertionError, match="b .* differs from a"):
            prepared = {"a": Prepared(None, lambda: good), "b": Prepared(None, lambda w=wrong: w)}
            work.measured(prepared, 0, quick=True, dtype="float32")


def test_all_take_turns_and_slow_ones_once():
    order = []
    times = stopwatch.interleaved({name: lambda name=name: order.append(name) for name in "ab"}, rounds=3, seconds=10)
    assert [t["calls"] for t in times.values()] == [order.count(name) - 4 - 3 for name in "ab"]  # four before, one per round
    turns = [name for i, name in enumerate(order) if i == 0 or order[i - 1] != name]
    assert "".join(turns[-6:]) == "ababab"
    once = stopwatch.interleaved({"slow": lambda: order.append("slow")}, once_over=0.0)
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
    assert issues.jax_23783("float32", None, target=replace(CPU, memory=lambda: 2**31)).scaled == 2


# --- GPUs, as far as it goes without one -----------------------------------------------------------------------------


def test_without_a_gpu_there_is_one_line():
    if gpu.why_not() is None:
        pytest.skip("there is one")
    done = subprocess.run([sys.executable, "-m", "benchmarks", "--gpu"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].endswith("a driver must be loaded.")
    assert "--gpu: JAX finds no CUDA device here" in done.stderr and "Traceback" not in done.stderr


def test_operands_rotate_over_more_than_the_cache():
    seen = []
    call = rotating(lambda *operands: seen.append(operands), [(1, 2), (3, 4), (5, 6)])
    for _ in range(4):
        call()
    assert seen == [(1, 2), (3, 4), (5, 6), (1, 2)]
    assert CPU.copies(1) == 1 and Target(cache=1000).copies(100) == 40 and Target(cache=1000).copies(10**6) == 1


@pytest.mark.parametrize("peer", [name for name in GPU_PEERS if "compiled" not in name])
def test_rotating_peers_compute_the_same(peer):
    """On the processor, with a cache that asks for three copies; each has memory of its own."""
    case = CASES[1]
    operands = 4 * sum(np.prod(case.shapes[name]) for name in "xw")
    problem = Problem(case, "y", "float32", case.arrays("float32", seed=1), Target(cache=int(operands / 4 * 2.5)))
    assert problem.target.copies(int(operands)) == 3
    prepared = GPU_PEERS[peer](problem)
    if isinstance(prepared, str):
        pytest.skip(f"{peer}: {prepared}")
    want = expected(case, "y", problem.arrays)
    for _ in range(4):
        np.testing.assert_allclose(prepared.result(), want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


def test_copies_have_memory_of_their_own(monkeypatch):
    given = []
    monkeypatch.setattr(peers_of_jax, "rotating", lambda function, copies: given.extend(copies))
    peers_of_jax.compiled(lambda x, w: x * w, jnp.ones(2), jnp.ones(2), target=Target(cache=12))
    arrays = jax.tree.leaves(given)
    assert len(given) == 3 and len({a.unsafe_buffer_pointer() for a in arrays[2:]}) == 4
    assert all(a.tolist() == [1, 1] for a in arrays)


def profile(**planes):
    """As `jax.profiler.ProfileData` gives it: planes of lines of events."""
    lines = lambda of: [SimpleNamespace(name=name, events=[event(*e) for e in events]) for name, events in of.items()]
    event = lambda start, duration: SimpleNamespace(name="kernel", start_ns=start, duration_ns=duration)
    return SimpleNamespace(planes=[SimpleNamespace(name=name, lines=lines(of)) for name, of in planes.items()])


def test_the_time_of_a_device_is_read_off_its_streams():
    streams = {"Stream #7(Compute)": [(100, 50), (200, 10)], "Stream #8": [(120, 50)]}  # 100 to 170, and 200 to 210
    derived = {"XLA Modules": [(0, 1000)], "XLA Ops": [(100, 50)]}
    data = profile(**{"/device:GPU:0": streams | derived, "/host:CPU": {"python": [(0, 10_000)]}})
    assert gpu.busy_seconds(data) == pytest.approx(80e-9)
    assert gpu.union([(5, 9), (0, 2), (1, 3), (6, 7)]) == 7 and gpu.union([]) == 0


def test_a_profile_of_a_processor_is_no_gpus():
    with pytest.raises(RuntimeError, match="holds no work of a GPU; its planes are .*CPU"):
        gpu.Profiled().block(lambda: jnp.ones(3) + 1, 2)


def test_a_turn_in_the_profiler_is_a_mean_of_its_calls(monkeypatch):
    """Its first call, which wakes the device, lies before the profile."""
    data, calls = profile(**{"/device:GPU:0": {"Stream #7": [(0, 600), (700, 200)]}}), []
    monkeypatch.setattr(jax.profiler.ProfileData, "from_file", lambda path: data)
    monkeypatch.setattr(jax.profiler, "trace", lambda directory: PretendedTrace(directory, calls))
    assert gpu.Profiled().block(lambda: calls.append("call"), 4) == pytest.approx([200e-9])
    assert calls == ["call", "begin", *["call"] * 4, "end"]


class PretendedTrace:
    def __init__(self, directory, calls):
        self.file, self.calls = Path(directory) / "host.xplane.pb", calls

    def __enter__(self):
        self.calls.append("begin")

    def __exit__(self, *_):
        self.calls.append("end")
        self.file.touch()


def test_events_surround_a_queue_that_is_filled_before_it_begins(monkeypatch):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    said, waited = [], []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            said.append("record")

        def elapsed_time(self, end):
            return 12.0  # milliseconds

    cuda = torch.cuda
    monkeypatch.setattr(cuda, "Event", Event)
    monkeypatch.setattr(cuda, "synchronize", lambda: said.append("wait"))
    monkeypatch.setattr(cuda, "_sleep", lambda cycles: said.append("sleep") or waited.append(cycles))
    assert gpu.Events().block(lambda: said.append("call"), 3) == [pytest.approx(4e-3)]
    assert said == ["call", "wait", "sleep", "record", "call", "call", "call", "record", "wait"] and waited[0] > 0


def test_the_facts_of_a_gpu(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda platform: [SimpleNamespace(device_kind="NVIDIA L4", memory_stats=lambda: None)])
    answer = SimpleNamespace(stdout="NVIDIA L4, 570.86.15\nNVIDIA L4, 570.86.15\n")
    monkeypatch.setattr(gpu.subprocess, "run", lambda *command, **options: answer)
    found = gpu.facts()
    assert (found["gpu"], found["driver"]) == ("NVIDIA L4", "570.86.15")
    assert gpu.why_not() is None and gpu.target().memory() == 8 * 2**30
    assert gpu.target().platform == "cuda" and gpu.target().batch == 64 and gpu.target().cache > 2**20

    def missing(*command, **options):
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(gpu.subprocess, "run", missing)
    assert gpu.facts()["driver"] == "unknown"


def test_clocks_take_their_turns():
    """A clock that counts: one value per turn, and turns of at most as many calls as it allows."""
    asked = []

    class Counting(stopwatch.Wall):
        most = 7

        def block(self, run, calls):
            asked.append(calls)
            return [calls * 1.0]

    times = stopwatch.interleaved({"a": lambda: None, "b": lambda: None}, rounds=3, seconds=10, clocks={"a": Counting()})
    assert asked == [7] * 3 and times["a"]["calls"] == 3 and times["a"]["median"] == 7.0
    assert times["b"]["median"] < 1


def test_data_sheets_by_name():
    h100, l4 = (gpu.data_sheet(f"NVIDIA {name}") for name in ("H100 80GB HBM3", "L4"))
    assert h100["bfloat16"] > h100["float32"] > l4["bfloat16"] > l4["float32"] > 1e12
    assert gpu.data_sheet("NVIDIA A100-SXM4-80GB") == gpu.data_sheet("NVIDIA A100-PCIE-40GB") != {}
    assert "bfloat16" not in gpu.data_sheet("Tesla T4"), "it has none"
    assert gpu.data_sheet("NVIDIA H200 NVL") == gpu.data_sheet("GeForce 256") == {}, (
        "others than those that the names begin with"
    )
    bounds = {"bandwidth": {"1000": 100.0}, "flops": {}}
    assert limits.least_seconds(bounds, 10**9, 500, "bfloat16") == 5, "of the bandwidth alone"


def test_copying_is_timed_by_the_targets_clock():
    class Fixed(stopwatch.Wall):
        def block(self, run, calls):
            run()
            return [1e-3, 2e-3]

    assert gpu.bandwidth(2**20, Target(jax=Fixed(), cache=2**20)) == pytest.approx(2**20 / 1e-3)


def gpu_rows():
    common = {"quick": False, "gpu": "NVIDIA H100 80GB HBM3", "driver": "570.1", "cache": 50 * 2**20, "python": "3.11"}
    common |= {"date": "2026-11-25T00:00Z", "commit": "abc", "versions": {"jax": "0.10.2", "torch": None}, "threads": 16}
    times = {
        "gconv": 2e-3,
        "gconv xla": 1e-3,
        "lax": 4e-3,
        "PyTorch contiguous": 8e-3,
        "PyTorch channels_last compiled": 1.25e-3,
    }
    layer = {"part": "layers", "case": "dw", "batch": 64, "channels": 1, "groups": 8, "dtype": "float32", "least": 1e-3}
    layer |= {"times": {name: {"median": t} for name, t in times.items()}, "missing": {"gconv native": "not on 'cuda'"}}
    bounds = {"bandwidth": {str(2**30): 2.5e12}, "flops": {}, "flops_by": {}}
    issue = {"part": "issues", "case": "jax 13800, forward", "url": "u", "scaled": 1, "dtype": "float32"}
    issue |= {"times": {name: {"median": t, "compile": 0.1, "first": 0.2} for name, t in times.items()}}
    return [common | {"part": "limits", "limits": bounds}, common | issue, *(common | layer | {"role": r} for r in "yxw")]


def test_the_map_of_a_gpu(tmp_path):
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(row) + "\n" for row in gpu_rows()))
    command("benchmarks.report", str(tmp_path / "lines.jsonl"), "--to", str(tmp_path / "report"))
    text = (tmp_path / "report" / "REPORT.md").read_text()
    assert "## NVIDIA H100 80GB HBM3\n\nDriver 570.1; jax 0.10.2, Python 3.11. 2026-11-25, commit abc." in text
    assert "copying, measured in the same run (read and written), 2,500 GB/s (1024 MiB)" in text and "unknown FLOPs" in text
    assert "| dw w, float32, batch 64 | 1 | 50% | 100% | 25% | 80% | channels_last compiled |" in text
    assert "| convolution (y), float32, depthwise | 1 | 50% | 100% | 25% | 80% |" in text
    assert "| [jax 13800, forward](u), float32 | 2 | 4 | 1.25 | 2.00 | 0.62 |" in text
    assert "- gconv native: not on 'cuda' (3 rows)" in text


def test_a_gpus_rows_stand_beside_the_processors(tmp_path):
    """Neither replaces the other, and the tables of the processor hold its own rows only."""
    of_gpu = gpu_rows()[-1]
    of_cpu = {key: value for key, value in of_gpu.items() if key not in ("gpu", "driver", "cache")}
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (of_cpu, of_gpu)))
    assert report.load([tmp_path / "lines.jsonl"]) == [of_cpu, of_gpu]


def test_on_a_gpu_a_peer_that_fails_is_listed(monkeypatch):
    def fails(problem):
        raise jax.errors.JaxRuntimeError("INTERNAL: no algorithm\nfor this")

    monkeypatch.setitem(PEERS, "lax", fails)
    monkeypatch.setitem(GPU_PEERS, "lax", fails)
    bounds = {"bandwidth": {"1": 1e9}, "flops": {}}
    one = partial(convolutions.by_all, "layers", [CASES[0]], bounds, 0.0, True, "y", ["bfloat16"], ["gconv", "lax"])
    (row,) = one(Target("cuda"))
    assert row["missing"] == {"lax": "it fails: JaxRuntimeError: INTERNAL: no algorithm"} and [*row["times"]] == ["gconv"]
    with pytest.raises(jax.errors.JaxRuntimeError):
        [*one(CPU)]


def test_the_command_from_end_to_end_on_a_pretended_gpu(monkeypatch, tmp_path, capsys):
    """The processor, said to be a GPU with a cache of 1 MB: everything but its clocks."""
    pretended = Target(cache=10**6, batch=64)
    monkeypatch.setattr(gpu, "why_not", lambda: None)
    monkeypatch.setattr(gpu, "target", lambda: pretended)
    found = {"gpu": "NVIDIA L4", "driver": "1.2", "cache": 10**6, "versions": {"nvidia-cudnn": "9"}}
    monkeypatch.setattr(gpu, "facts", lambda: found)
    monkeypatch.setattr(main.machine, "keep_memory", lambda: False)
    lines = tmp_path / "lines.jsonl"
    arguments = [
        "--gpu",
        "--quick",
        "--output",
        str(lines),
        "--only",
        "mobilenet_v1",
        "26266, dilation 1",
        "--dtypes",
        "float32",
    ]
    monkeypatch.setattr("sys.argv", ["benchmarks", *arguments, "--peers", "gconv", "lax"])
    main.main()
    assert "NVIDIA L4, driver 1.2; to " in capsys.readouterr().err
    assert jax.config.jax_default_matmul_precision is None, "what quick results are compared in outlives them"
    first, *rows = report.load([lines], quick=True)
    assert first["limits"]["flops"] == gpu.data_sheet("NVIDIA L4") and min(first["limits"]["bandwidth"].values()) > 1e8
    assert {row["part"] for row in rows} == {"layers", "issues"} and all(row["gpu"] == "NVIDIA L4" for row in rows)
    assert all({"gconv", "lax"} <= {*row["times"]} and row["versions"]["nvidia-cudnn"] == "9" for row in rows)
    assert "### The map" in document.report([first, *rows], [])


def test_layers_at_the_targets_batch():
    bounds = {"bandwidth": {"1": 1e9}, "flops": {"float32": 1e9}}
    run_one = partial(convolutions.layers, bounds, 0.0, only=("regnetx_400mf",), roles="y", dtypes=["float32"], peers=["gconv"])
    (row,) = run_one(target=Target(batch=1))
    (own,) = run_one()
    assert row["batch"] == 1 and own["batch"] > 1 and own["flops"] == own["batch"] * row["flops"]


# --- the house -------------------------------------------------------------------------------------------------------

# A folder imports only those before it, and itself without a circle; the commands beside the folders stand above all.
FOLDERS = ("measuring", "cases", "peers", "programs", "parts", "reporting")
LONGEST = 350


def imports(source: str, modules) -> set[str]:
    """The modules of the benchmarks that a source imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & modules or {node.module}
    return {name for name in found if name.split(".")[0] == "benchmarks"}


def level(module: str) -> int:
    folder = module.split(".")[1] if module.count(".") else ""
    return FOLDERS.index(folder) if folder in FOLDERS else len(FOLDERS)


def sources() -> dict[str, str]:
    """By module; a folder stands for its `__init__`."""
    files = sorted((ROOT / "benchmarks").rglob("*.py"))
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in files]
    return dict(zip(names, (file.read_text() for file in files), strict=True))


def ascending(of: dict[str, str]) -> list[str]:
    """What is wrong with the imports of sources by module."""
    graph = {module: imports(source, of.keys()) for module, source in of.items()}
    wrong = [f"{m} imports {other}" for m, others in graph.items() for other in others if level(other) > level(m)]
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        wrong.append(f"a circle: {error.args[1]}")
    return wrong


def test_imports_of_the_benchmarks_only_descend():
    found = sources()
    assert {level(module) for module in found} == {*range(len(FOLDERS) + 1)}
    assert not ascending(found)
    assert not [module for module, source in found.items() if len(source.splitlines()) > LONGEST]


@pytest.mark.parametrize(
    "more",
    (
        {"benchmarks.peers.base": "def f():\n    from benchmarks.peers import PEERS"},
        {"benchmarks.cases.layers": "from benchmarks.programs import issues"},
        {"benchmarks.measuring.machine": "import benchmarks.report"},
    ),
)
def test_an_ascending_import_would_be_found(more):
    assert ascending(sources() | more)


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
    models = {row["mode"]: row for row in rows if row["part"] == "models"}
    assert {mode: {*row["times"], *row["missing"]} for mode, row in models.items()} == {
        mode: {*contenders.of(mode)} for mode in contenders.MODES
    }
    for row in (row for row in rows if row["part"] == "profile"):
        assert contenders.OURS[row["mode"]] in row["kinds"], row["missing"]
        assert all(kinds["grouped convolutions"] > 0 and sum(kinds.values()) > 0 for kinds in row["kinds"].values())
    for row in (row for row in rows if row["part"] == "memory"):
        assert contenders.OURS[row["mode"]] in row["peaks"], row["missing"]
        assert all(found["preparing"] >= found["before"] < found["peak"] for found in row["peaks"].values())

    command("benchmarks.report", str(lines), "--quick", "--to", str(tmp_path / "report"))
    text = (tmp_path / "report" / "REPORT.md").read_text()
    headings = ("Layers", "Whole models", "Programs of users' issues", "Where the time of a model goes")
    for heading in (*headings, "Memory that a model's call adds", "Compiling, and the first call"):
        assert f"\n## {heading}" in text
    plots = {path.name for path in (tmp_path / "report").glob("*.png")}
    assert plots >= {"layers.png", "models.png", "memory.png", "profile.png", "sweeps-y.png", "sweeps-w.png"}
    assert all(f"]({name})" in text for name in plots)


def test_a_repeated_measurement_replaces_the_older(tmp_path):
    old = {"part": "layers", "case": "a", "role": "y", "dtype": "float32", "threads": 2, "quick": False}
    rows = [old | {"n": 1}, old | {"role": "x", "n": 2}, old | {"n": 3}, old | {"n": 4, "quick": True}, {"no": "part"}]
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [row["n"] for row in report.load([tmp_path / "lines.jsonl"])] == [2, 3]


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


def test_no_recorded_equation_is_slower_than_by_lax():
    """Of the recorded runs; where a rule changed in between, the later row counts."""
    rows = {}
    for file in sorted((ROOT / "benchmarks" / "results" / "install").glob("*.jsonl")):
        for row in map(json.loads, file.read_text().splitlines()):
            if row.get("part") == "equations":
                rows[row["case"]] = row["times"]
    assert len(rows) >= 300
    slower = {case: t for case, t in rows.items() if t["installed"]["median"] > 1.1 * t["lax"]["median"]}
    assert not slower
