"""How good a choice gconv makes: the time of what it chooses over the time of the best that it could have chosen.

The least of several noisy times is too small on average, and a ratio to it too large. So the rounds that tell which candidate
is best do not tell by how much. They select the finalists: the chosen candidate, and all that come close to the best. Fresh
rounds of the finalists alone give the regret: the median of the chosen candidate over that of the winner of the first rounds. A
winner by chance loses its advantage there; a ratio below 1 counts as 1. A regret of more than 1.05 is measured again in three
times as many rounds, and these count.
"""

from collections.abc import Mapping
from dataclasses import asdict

from benchmarks.cases.convolution import Case
from benchmarks.measuring.stopwatch import WALL, interleaved
from benchmarks.measuring.work import Prepared, compare, timed
from benchmarks.peers import kernels
from benchmarks.peers.base import Problem
from gconv.geometry import Geometry

HOPELESS = 20.0  # times as slow as the best in single calls: not measured further
SHORT, LONG = 0.05, 0.5  # seconds of the first call: up to SHORT three more calls tell who is hopeless, from LONG on none
NEAR = 1.15  # a finalist: at most so many times as slow as the best
AGAIN, LONGER = 1.05, 3  # a regret of more than this is measured again, so many times as long
ROUNDS, FINAL_ROUNDS = 7, 11
# What one value may differ from another by, as a share of the largest: a sum of many products in another order.
TOLERANCES = {"float64": 1e-9, "float32": 1e-3}
HALF = 5e-2


def measured(problem: Problem, seconds: float, *, quick: bool = False) -> dict:
    """A row of one case, role and type; in quick mode with one round of everything."""
    case, role = problem.case, problem.role
    chosen = kernels.chosen(role, case.geometry, problem.dtype, case.batch)
    prepared = {name: candidate(problem) for name, candidate in kernels.candidates(problem).items()}
    answers = {name: timed(work.result) for name, work in prepared.items()}
    compare({name: result for name, (result, _) in answers.items()}, TOLERANCES.get(problem.dtype, HALF))
    first = {name: taken for name, (_, taken) in answers.items()}
    times = select(prepared, first, chosen, seconds, rounds=1 if quick else ROUNDS)
    row = {
        "part": "tune",
        "case": case.name,
        "batch": case.batch,
        "role": role,
        "dtype": problem.dtype,
        "geometry": asdict(case.geometry),
        "flops": case.flops,
        "chosen": chosen,
        "us": _microseconds(times),
    }
    return row | judge(prepared, chosen, times, seconds, quick=quick)


def select(
    prepared: Mapping[str, Prepared], first: Mapping[str, float], chosen: str, seconds: float, *, rounds: int
) -> dict[str, float]:
    """Seconds of every candidate: a median, or the least of few calls of one that is hopeless.

    `first` is how long the first calls took, in which the results were compared.
    """
    calls = {name: 3 if first[name] < SHORT else 1 if first[name] < LONG else 0 for name in prepared}
    once = {name: min([first[name], *(WALL.once(work.run) for _ in range(calls[name]))]) for name, work in prepared.items()}
    least = min(once.values())
    runs = {name: work.run for name, work in prepared.items() if name == chosen or once[name] <= HOPELESS * least}
    return once | {name: t["median"] for name, t in interleaved(runs, rounds=rounds, seconds=seconds).items()}


def judge(prepared: Mapping[str, Prepared], chosen: str, times: dict[str, float], seconds: float, *, quick: bool) -> dict:
    """The winner of `times`, and the regret of the chosen candidate in fresh rounds of the finalists."""
    winner = min(times, key=times.__getitem__)
    if winner == chosen:
        return {"winner": winner, "regret": 1.0, "judged": {}, "again": False}
    runs = {name: prepared[name].run for name, t in times.items() if name == chosen or t <= NEAR * times[winner]}
    rounds, again = 1 if quick else FINAL_ROUNDS, False
    judged = {name: t["median"] for name, t in interleaved(runs, rounds=rounds, seconds=seconds).items()}
    if not quick and judged[chosen] > AGAIN * judged[winner]:
        longer = interleaved(runs, rounds=LONGER * rounds, seconds=LONGER * seconds)
        judged, again = {name: t["median"] for name, t in longer.items()}, True
    regret = round(max(1.0, judged[chosen] / judged[winner]), 4)
    return {"winner": winner, "regret": regret, "judged": _microseconds(judged), "again": again}


def _microseconds(times: Mapping[str, float]) -> dict[str, float]:
    return {name: float(f"{time * 1e6:.4g}") for name, time in times.items()}


# --- recorded rows ---------------------------------------------------------------------------------------------------


def case_of(row: dict) -> Case:
    """The case that a row has measured."""
    of = row["geometry"]
    lists = {name: tuple(tuple(v) if isinstance(v, list) else v for v in of[name]) for name in of if isinstance(of[name], list)}
    return Case(row["case"], row["batch"], Geometry(**of | lists))


def best(row: dict) -> float:
    """Microseconds of a row's winner, from the rounds that judged it if there were any."""
    return row["judged"].get(row["winner"], row["us"][row["winner"]])


def regret_of(row: dict, candidate: str) -> float:
    """What choosing a candidate would cost by the times of a row; infinite for one that the row does not know."""
    if candidate == row["winner"]:
        return 1.0
    # Both times are of the same rounds.
    times = row["judged"] if candidate in row["judged"] else row["us"]
    return max(1.0, times[candidate] / times[row["winner"]]) if candidate in times else float("inf")
