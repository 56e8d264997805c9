"""How good gconv's choices are: every candidate is measured, and the chosen one compared with the best.

    python -m benchmarks.tune                           layers, cases once chosen badly, and a seeded sample (about an hour)
    python -m benchmarks.tune --only resnext --roles w --dtypes float32 bfloat16
    python -m benchmarks.tune --only sample --sample 300 --seed 1
    python -m benchmarks.tune --quick                   few and small, each once: to try the command
    python -m benchmarks.tune --show FILE               the summary of recorded rows; nothing is measured

The candidates of a problem are every eligible kernel of gconv's library, and the implementations "xla" and "lax". They take
turns in one process. Regret is the time of what gconv chooses over that of the best; benchmarks/parts/choices.py says how the
noise of measuring is kept out of it. Rows are written as they are measured, and Ctrl-C keeps them.
"""

import argparse
import datetime
import json
import re
import statistics
import time
from collections.abc import Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.cases.convolution import Case, small
from benchmarks.cases.layers import layers
from benchmarks.cases.sample import COUNT, SEED, sample, seen
from benchmarks.measuring import machine
from benchmarks.parts import choices
from benchmarks.parts.common import Budget, wanted
from benchmarks.peers.base import Problem
from gconv import native

RESULTS = Path(__file__).parent / "results" / "tune"
TYPES = ("float32", "float64", "bfloat16", "float16")
MEAN, WORST, WORK = 1.05, 1.3, 20.0  # what is wanted: the mean, and each with more microseconds of work than these
SHOWN = 20


def chosen(only: list[str], count: int, seed: int, *, quick: bool) -> list[Case]:
    """The cases by name, in the order in which they are measured."""
    found = [case for case in [*seen(), *layers(), *sample(count, seed)] if wanted(case.name, only)]
    return [small(case) for case in found[:: max(1, len(found) // 4)]] if quick else found


def rows(cases: list[Case], roles: str, dtypes: list[str], seconds: float, *, quick: bool) -> Iterable[dict]:
    """Measures one row after the other, until the seconds are over."""
    end, budget = time.perf_counter() + seconds, Budget(seconds, len(cases) * len(roles) * len(dtypes))
    for case in cases:
        for dtype in dtypes:
            # On the device already, so that all candidates read the same memory, however it is aligned.
            arrays = {name: jnp.asarray(a, dtype) for name, a in case.arrays(dtype).items()}
            for role in roles:
                if time.perf_counter() > end:
                    return
                # Half of it for those who select the best, half for those who judge the choice.
                yield choices.measured(Problem(case, role, dtype, arrays), budget.share() / 2, quick=quick)


def family() -> str:
    """The maker of the processor and its family, by which kernels are planned too: "AuthenticAMD 25"."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    return " ".join(match[1] for name in ("vendor_id", "cpu family") if (match := re.search(rf"{name}\s*: (\S+)", text)))


# --- shown -----------------------------------------------------------------------------------------------------------


def violations(found: list[dict]) -> list[dict]:
    """The rows whose regret is more than wanted, though there is some work."""
    return [row for row in found if row["regret"] > WORST and choices.best(row) > WORK]


def show(found: list[dict], console: Console) -> None:
    """The mean, the means by role and what was chosen, and the worst rows."""
    mean = statistics.geometric_mean(row["regret"] for row in found)
    bad = violations(found)
    console.print(f"regret: geometric mean {mean:.3f} of {len(found)} rows (wanted: at most {MEAN:g})")
    console.print(f"more than {WORST:g} with more than {WORK:g} us: {len(bad)} rows (wanted: none)")
    table = Table(title="by role and what was chosen", title_justify="left")
    for column in ("role", "chosen", "rows", "mean regret", "worst", "best was another"):
        table.add_column(column, justify="left" if column in ("role", "chosen") else "right")
    for role, name in sorted({(row["role"], row["chosen"]) for row in found}):
        of = [row for row in found if (row["role"], row["chosen"]) == (role, name)]
        regrets = [row["regret"] for row in of]
        others = sum(row["regret"] > choices.AGAIN for row in of)
        table.add_row(role, name, str(len(of)), f"{statistics.geometric_mean(regrets):.3f}", f"{max(regrets):.2f}", str(others))
    console.print(table)
    table = Table(title=f"the worst {SHOWN}", title_justify="left")
    for column in ("case", "role", "type", "chosen", "us", "better", "us", "regret"):
        table.add_column(column, justify="right" if column in ("us", "regret") else "left")
    for row in sorted(found, key=lambda row: -row["regret"])[:SHOWN]:
        if row["regret"] > 1:
            times = (f"{row['judged'][row[name]]:,.1f}" for name in ("chosen", "winner"))
            head = (row["case"], row["role"], row["dtype"], row["chosen"], next(times))
            table.add_row(*head, row["winner"], next(times), f"{row['regret']:.2f}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], metavar="TEXT", help="cases whose name contains one of these")
    parser.add_argument("--roles", default="yxw", help="y: forward, x: input gradient, w: kernel gradient")
    parser.add_argument("--dtypes", nargs="+", choices=TYPES, default=["float32"])
    parser.add_argument("--sample", type=int, default=COUNT, metavar="N", help=f"so many random cases ({COUNT})")
    parser.add_argument("--seed", type=int, default=SEED, help=f"of the random cases ({SEED})")
    parser.add_argument("--seconds", type=float, default=3600.0, help="in all, about (3600)")
    parser.add_argument("--quick", action="store_true", help="few and small cases, each once: to try the command")
    parser.add_argument("--output", type=Path, help="where to append; by default results/tune/DATE-SET-THREADS-threads.jsonl")
    parser.add_argument("--show", nargs="+", type=Path, metavar="FILE", help="sum up recorded rows and measure nothing")
    args = parser.parse_args()
    console = Console(width=160)
    if args.show:
        show([json.loads(line) for file in args.show for line in file.read_text().splitlines()], console)
        return
    cases = chosen(args.only, args.sample, args.seed, quick=args.quick)
    if not cases:
        parser.error(f"no case's name contains any of {args.only}")
    if "float64" in args.dtypes:
        jax.config.update("jax_enable_x64", True)
    facts = machine.begin() | {"family": family(), "instruction_set": native.instruction_set(), "seed": args.seed}
    day = datetime.date.today().isoformat()
    name = f"{day}-{facts['instruction_set']}-{machine.cores()}-threads{'-quick' if args.quick else ''}.jsonl"
    output = args.output or RESULTS / name
    output.parent.mkdir(parents=True, exist_ok=True)
    console.print(f"{facts['processor']}, {facts['instruction_set']}, {facts['threads']} threads; to {output}")
    found: list[dict] = []
    total = len(cases) * len(args.roles) * len(args.dtypes)
    try:
        measuring = rows(cases, args.roles, args.dtypes, args.seconds, quick=args.quick)
        with output.open("a") as lines:
            for row in track(measuring, total=total, console=Console(stderr=True), description="measuring"):
                found.append(facts | {"quick": args.quick} | row)
                lines.write(json.dumps(found[-1]) + "\n")
                lines.flush()
    except KeyboardInterrupt:
        console.print("interrupted")
    if len(found) < total:
        console.print(f"{total - len(found)} of {total} rows were not measured")
    if found:
        show(found, console)


if __name__ == "__main__":
    main()
