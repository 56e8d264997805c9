"""Runs the benchmarks and appends the results as JSON lines.

python -m benchmarks                             everything (about an hour)
python -m benchmarks layers --only resnext --roles w --dtypes float32
python -m benchmarks models --only mobilenet --modes inference
python -m benchmarks models --modes training --dtypes bfloat16
python -m benchmarks --gpu                       on an NVIDIA GPU: layers at batch 64, issues, sweeps; the time of the device
python -m benchmarks --quick                     a little of everything, small; results are compared: two minutes
python -m benchmarks.report                      tables and plots of what has been measured
"""

import argparse
import datetime
import inspect
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import jax
from tqdm import tqdm

from benchmarks.measuring import gpu, limits, machine
from benchmarks.measuring.target import CPU
from benchmarks.parts import GPU_PARTS, PARTS
from benchmarks.parts.common import DTYPES
from benchmarks.parts.networks import MODES
from benchmarks.peers import GPU_PEERS, PEERS
from gconv import native

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.formatter_class = argparse.RawTextHelpFormatter
    parser.add_argument("parts", nargs="*", help=f"among {', '.join(PARTS)}; all by default")
    parser.add_argument("--only", nargs="+", default=[""], metavar="TEXT", help="cases whose name contains one of these")
    parser.add_argument("--roles", default="yxw", help="y: forward, x: input gradient, w: kernel gradient")
    types = (*DTYPES, "float16")
    words = "by default the first two for layers and issues, the first for sweeps and models; models: bfloat16 in training only"
    parser.add_argument("--dtypes", nargs="+", choices=types, help=words)
    known = [*dict.fromkeys([*PEERS, *GPU_PEERS])]
    parser.add_argument("--peers", nargs="+", choices=known, metavar="NAME", help=f"of the layers: {', '.join(known)}")
    parser.add_argument("--modes", nargs="+", choices=MODES, help="of whole models; by default both")
    parser.add_argument("--gpu", action="store_true", help=f"on the first CUDA device: {', '.join(GPU_PARTS)}")
    parser.add_argument("--seconds", type=float, default=600.0, help="for each part and type, about (600)")
    parser.add_argument("--quick", action="store_true", help="few and small, each once, and results are compared")
    parser.add_argument("--output", type=Path, help=f"where to append; by default {RESULTS.name}/DATE-THREADS-threads.jsonl")
    if "--gpu" not in sys.argv and (missing := native.load()[1]):
        print(f"NO KERNELS: {missing}", file=sys.stderr)
    args = parser.parse_args()
    parts = GPU_PARTS if args.gpu else tuple(PARTS)
    if unknown := [name for name in args.parts if name not in parts]:
        parser.error(f"parts {unknown} are not among {', '.join(parts)}")
    facts = machine.begin()
    where, target = f"{facts['threads']} threads for every peer", CPU
    if args.gpu:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs memory too
        if reason := gpu.why_not():
            parser.error(f"--gpu: {reason}.")
        found, target = gpu.facts(), gpu.target()
        if args.quick:  # a few copies of small operands, not as many as fill the cache
            target = replace(target, cache=2**16)
        facts |= found | {"versions": facts["versions"] | found["versions"]}
        where = f"{facts['gpu']}, driver {facts['driver']}"
    today = datetime.date.today().isoformat()
    name = facts["gpu"].replace(" ", "-") if args.gpu else f"{machine.cores()}-threads"
    output = args.output or RESULTS / f"{today}-{name}{'-quick' if args.quick else ''}.jsonl"
    output.parent.mkdir(parents=True, exist_ok=True)
    print(f"{facts['processor']}, {where}; to {output}", file=sys.stderr)
    bounds = gpu.limits(target, facts["gpu"], quick=args.quick) if args.gpu else limits.measured(quick=args.quick)
    # Results are compared in all of float32, of which a GPU takes a part by default.
    precision = "highest" if args.gpu and args.quick else None
    with output.open("a") as lines, jax.default_matmul_precision(precision):

        def write(row: dict) -> None:
            lines.write(json.dumps(facts | {"quick": args.quick} | row) + "\n")
            lines.flush()

        write({"part": "limits", "limits": bounds})
        for part in args.parts or parts:
            options = {
                "only": tuple(args.only),
                "roles": args.roles,
                "dtypes": args.dtypes,
                "peers": args.peers,
                "modes": args.modes,
                "target": target,
            }
            known = inspect.signature(PARTS[part]).parameters
            options = {key: value for key, value in options.items() if key in known and value is not None}
            seconds = args.seconds * len(options.get("dtypes", known["dtypes"].default if "dtypes" in known else [1]))
            progress = tqdm(PARTS[part](bounds, seconds, quick=args.quick, **options), desc=part, file=sys.stderr)
            for row in progress:
                write(row)
                progress.set_postfix_str(row.get("case", ""), refresh=False)


if __name__ == "__main__":
    main()
