"""Single convolutions by every peer: the layers of real networks, and sweeps."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import jax

from benchmarks.cases.convolution import small
from benchmarks.cases.layers import layers as all_layers
from benchmarks.cases.sweeps import SWEEPS, sweep
from benchmarks.measuring import limits
from benchmarks.measuring.target import CPU, Target
from benchmarks.measuring.work import Prepared, measured
from benchmarks.parts.common import DTYPES, Budget, wanted
from benchmarks.peers import of as peers_on
from benchmarks.peers.base import Problem, answer


def layers(
    bounds: dict, seconds: float, *, quick=False, only=("",), roles="yxw", dtypes=DTYPES, peers=None, target: Target = CPU
) -> Iterator[dict]:
    """Every layer of layers.json, role and type, by every peer."""
    chosen = [case for case in all_layers() if wanted(case.name, only)]
    if quick:
        chosen = [small(case) for case in chosen[::9]]
    elif target.batch is not None:
        chosen = [replace(case, batch=target.batch) for case in chosen]
    yield from by_all("layers", chosen, bounds, seconds, quick, roles, dtypes, peers, target)


def sweeps(
    bounds: dict, seconds: float, *, quick=False, only=("",), roles="yxw", dtypes=("float32",), peers=None, target: Target = CPU
) -> Iterator[dict]:
    """One size at a time grows, the others stay."""
    peers = peers or [name for name in peers_on(target.platform) if not name.startswith(("gconv ", "nnx"))]
    points = [(axis, value, case) for axis in SWEEPS for value, case in sweep(axis) if wanted(axis, only)]
    if quick:
        points = [(axis, value, small(case)) for axis, value, case in points[2::11]]
    chosen = [case for *_, case in points]
    where = {case.name: {"axis": axis, "value": value} for axis, value, case in points}
    for row in by_all("sweeps", chosen, bounds, seconds, quick, roles, dtypes, peers, target):
        yield row | where[row["case"]]


def by_all(part, chosen, bounds, seconds, quick, roles, dtypes, peers, target=CPU) -> Iterator[dict]:
    """Each of the chosen cases, in every role and type, by all peers or the named ones."""
    known = peers_on(target.platform)
    budget = Budget(seconds, len(chosen) * len(roles) * len(dtypes))
    for case in chosen:
        for dtype in dtypes:
            arrays = case.arrays(dtype)
            for role in roles:
                share = budget.share()
                problem = Problem(case, role, dtype, arrays, target)
                answers = {name: answer(partial(known[name], problem), target) for name in peers or known}
                prepared = {name: given for name, given in answers.items() if isinstance(given, Prepared)}
                moved = case.moved(jax.numpy.dtype(dtype).itemsize)
                yield {
                    "part": part,
                    "case": case.name,
                    "batch": case.batch,
                    "groups": case.geometry.groups,
                    "channels": case.geometry.channels,
                    "role": role,
                    "dtype": dtype,
                    "flops": case.flops,
                    "bytes": moved,
                    "least": limits.least_seconds(bounds, case.flops, moved, dtype),
                    "times": measured(prepared, share, quick=quick, dtype=dtype),
                    "missing": {name: given for name, given in answers.items() if isinstance(given, str)},
                }
