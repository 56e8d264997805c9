"""Programs that are compared with themselves by lax: of users' issues, equations of networks, models of other libraries."""

from collections.abc import Iterator
from functools import partial

import gconv
from benchmarks.measuring.target import CPU, Target
from benchmarks.measuring.work import Prepared, measured, timed
from benchmarks.parts.common import DTYPES, Budget, wanted
from benchmarks.peers.base import answer
from benchmarks.programs import equations, issues, libraries


def of_issues(bounds: dict, seconds: float, *, quick=False, only=("",), dtypes=DTYPES, target: Target = CPU) -> Iterator[dict]:
    """The programs of users' issues."""
    del bounds
    divide = 32 if quick else None
    dtypes = dtypes[:1] if quick else dtypes
    chosen = [(dtype, make) for dtype in dtypes for make in issues.programs(dtype, divide=divide, target=target)]
    budget = Budget(seconds, len(chosen))
    for dtype, make in chosen:
        program, share = make(), budget.share()
        if not wanted(program.name, only):
            continue
        answers = {name: answer(make, target) for name, make in program.peers.items()}
        prepared = {name: given for name, given in answers.items() if isinstance(given, Prepared)}
        times = measured(prepared, share, quick=quick, dtype=dtype)
        yield {
            "part": "issues",
            "case": program.name,
            "url": program.url,
            "scaled": program.scaled,
            "dtype": dtype,
            "times": times,
            "missing": {name: given for name, given in answers.items() if isinstance(given, str)},
        }


def lowered(bounds: dict, seconds: float, *, quick=False, only=("",)) -> Iterator[dict]:
    """Every convolution of the networks' training steps and a sample of odd ones, as an equation: by lax, and installed."""
    del bounds
    found = [*equations.odd(12)][::4] if quick else [*equations.of_networks(), *equations.dense(), *equations.odd()]
    chosen = [case for case in found if wanted(case.name, only)]
    budget = Budget(seconds, len(chosen))
    for case in chosen:
        share = budget.share()
        prepared, by = case.prepared()
        times = measured(prepared, min(share, 1.0), quick=quick, dtype="float32", tolerance=1e-3, slow=0.5)
        yield {"part": "equations", "case": case.name, "by": by, "times": times}


def foreign(bounds: dict, seconds: float, *, quick=False, only=("",)) -> Iterator[dict]:
    """A step of models of other libraries, unchanged: by lax, and with gconv installed."""
    del bounds
    chosen = {name: make for name, make in libraries.available().items() if wanted(name, only)}
    chosen = dict([*chosen.items()][-1:]) if quick else chosen
    batch, size = (2, 32) if quick else (8, 96)
    budget = Budget(seconds, len(chosen))
    for name, make in chosen.items():
        share, (step, operands) = budget.share(), make(batch, size)
        fast = gconv.accelerated(step)
        prepared = {}
        for peer, of in (("lax", step), ("installed", fast)):
            run, compiling = timed(lambda of=of, operands=operands: of.lower(*operands).compile())
            run = partial(run, *operands)
            prepared[peer] = Prepared(run, lambda run=run: libraries.leaves(run()), compiling)
        times = measured(prepared, share, quick=quick, dtype="float32", tolerance=2e-3)
        yield {"part": "libraries", "case": name, "batch": batch, "size": size, "report": str(fast.report), "times": times}
