"""The parts of a run: each yields lines of results, with the facts about the machine left to the caller.

    common         what they share: types, the choice by name, and one rule of time
    convolutions   layers, sweeps: each by every peer
    programs       issues, equations, libraries
    networks       models, profile, memory
    choices        what gconv chooses, beside all that it could have chosen, for `python -m benchmarks.tune`
    threads        some layers on a growing number of processors

`PARTS` is the list, by the names that `python -m benchmarks` takes.
"""

from benchmarks.parts import convolutions, networks, programs, threads

PARTS = {
    "layers": convolutions.layers,
    "issues": programs.of_issues,
    "models": networks.models,
    "equations": programs.lowered,
    "libraries": programs.foreign,
    "profile": networks.profile,
    "sweeps": convolutions.sweeps,
    "threads": threads.threads,
    "memory": networks.peaks,
}
GPU_PARTS = ("layers", "issues", "sweeps")  # those that take a target
