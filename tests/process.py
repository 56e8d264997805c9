"""Programs in a process of their own: for what a process chooses once, such as the threads and the instruction set."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def printed(program: str, *, threads: int | None = None, **environment: str) -> Any:
    """What a program prints, as JSON, or None if it prints nothing; `threads` is how many XLA has, by default all of them."""
    env = os.environ | environment | ({} if threads is None else {"NPROC": str(threads), "XLA_FLAGS": ""})
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, env=env, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) if done.stdout else None


def printed_on_any_threads(program: str) -> Any:
    """The same, which one, two and eight threads must agree about."""
    one = printed(program, threads=1)
    assert printed(program, threads=2) == one and printed(program, threads=8) == one
    return one
