"""Several processes on one machine train a network together, lose one of their number, and go on from a checkpoint."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

trainer = pytest.importorskip("trainer", reason="the digits need the extra 'notebooks'")
ROOT = Path(__file__).parent.parent
PATIENCE = 120  # seconds for one of a program's milestones
QUICKLY = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"  # compiled: every process does that


@contextmanager
def processes(count: int, folder: Path, **arguments):
    """`count` running trainers and the files of their output; whatever happens, none outlives the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": QUICKLY, "PYTHONPATH": str(ROOT)}
    values = [str(arguments[name]) for name in ("checkpoint", "start", "save", "end")]
    folder.mkdir()
    files = [folder / f"{i}.txt" for i in range(count)]
    running = []
    try:
        for i, file in enumerate(files):
            command = [sys.executable, str(ROOT / "tests" / "trainer.py"), str(i), str(count), str(port), *values]
            with file.open("wb") as output:
                running.append(subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=ROOT))
        yield running, files
    finally:
        for process in running:
            process.kill()
        for process in running:
            process.wait()


def reported(file: Path, key: str) -> list:
    """What a trainer has printed under this name so far."""
    lines = [json.loads(line) for line in file.read_text().splitlines(True) if line.startswith("{") and line.endswith("}\n")]
    return [line[key] for line in lines if key in line]


def wait_until(condition, running, files):
    end = time.monotonic() + PATIENCE
    while not condition():
        failed = [i for i, process in enumerate(running) if process.poll()]
        if failed or time.monotonic() > end:
            text = "\n".join(f"--- process {i}\n{file.read_text()[-3000:]}" for i, file in enumerate(files))
            pytest.fail(f"{f'processes {failed} failed' if failed else f'no progress in {PATIENCE} s'}:\n{text}")
        time.sleep(0.1)


@pytest.mark.usefixtures("lenient")
def test_four_processes_train_lose_one_and_two_go_on_from_the_checkpoint(tmp_path):
    expected = trainer.train(0, 6)  # one process
    checkpoint = tmp_path / "checkpoint"

    with processes(4, tmp_path / "four", checkpoint=checkpoint, start=0, save=3, end=100_000) as (running, files):
        wait_until(lambda: all(len(reported(file, "loss")) > 3 for file in files), running, files)
        assert reported(files[0], "saved") == [3]
        running[3].send_signal(signal.SIGKILL)
        assert running[3].wait() == -signal.SIGKILL
    for file in files:  # the same in all processes, and as in one
        np.testing.assert_allclose(reported(file, "loss")[:4], expected[:4], rtol=1e-5)

    with processes(2, tmp_path / "two", checkpoint=checkpoint, start=3, save=-1, end=6) as (running, files):
        wait_until(lambda: all(process.poll() == 0 for process in running), running, files)
    for file in files:
        np.testing.assert_allclose(reported(file, "loss"), expected[3:], rtol=1e-5)

    np.testing.assert_allclose(trainer.train(3, 6, checkpoint=checkpoint), expected[3:], rtol=1e-5)
