"""One rule of `gconv.backends.choice`, which holds them all."""

from collections.abc import Callable
from dataclasses import dataclass

from gconv.backends.problem import Problem


@dataclass(frozen=True)
class Row:
    """A rule: where `condition` holds, the implementation takes the problem (`takes`), or leaves it to those after it."""

    takes: bool
    condition: Callable[[Problem], bool]
    sentence: str
    evidence: str

    def say(self, problem: Problem) -> str:
        return self.sentence.format(p=problem)


def take(condition: Callable[[Problem], bool], sentence: str, evidence: str) -> Row:
    return Row(True, condition, sentence, evidence)


def leave(condition: Callable[[Problem], bool], sentence: str, evidence: str) -> Row:
    return Row(False, condition, sentence, evidence)


def always(p: Problem) -> bool:
    del p
    return True
