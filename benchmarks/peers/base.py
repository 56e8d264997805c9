"""What a peer is: it takes a `Problem` and answers with `Prepared` work, or with a sentence that says why it cannot."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.cases.convolution import Case
from benchmarks.measuring.target import CPU, Target
from benchmarks.measuring.work import Prepared


@dataclass(frozen=True)
class Problem:
    """One role of one case; `arrays` are float32, channels last."""

    case: Case
    role: str
    dtype: str
    arrays: dict[str, np.ndarray]
    target: Target = CPU


Peer = Callable[[Problem], Prepared | str]


def answer(prepare: Callable[[], Prepared | str], target: Target) -> Prepared | str:
    """What a peer answers. On a GPU a failure is one: users meet it too (jax issue 37922), and the others go on."""
    try:
        return prepare()
    except RuntimeError as error:  # JAX's and PyTorch's own are of this type
        if target.platform != "cuda":
            raise
        return f"it fails: {type(error).__name__}: {str(error).strip().splitlines()[0]}"[:200]
