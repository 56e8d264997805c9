"""Cases that no network holds: a seeded sample of every kind, and single ones that were once chosen badly."""

import math
import random

from benchmarks.cases.convolution import Case, case

SEED, COUNT = 0, 100
# The largest take some ten milliseconds by a good kernel on two cores, and about a hundred by the slowest that is of any use.
LEAST, MOST = 1e3, 4e8  # products
ELEMENTS = 4e6  # of the input, and of the output
CHANNELS, BATCH, SIDE = 1024, 64, 4096
WINDOWS = (1, 1, 2, 3, 3, 3, 4, 5, 5, 7, 9, 11)
RANKS = (1, 2, 2, 2, 3)


def seen() -> list[Case]:
    """Where another implementation or library was found to be up to four times as fast (2026-11-28; two cores, AVX-512)."""
    found = (
        (8, (20, 20), 256, 64, 64, (1, 1), 1),
        (1, (28, 28), 128, 256, 64, (1, 1), 1),
        (1, (28, 28), 256, 16, 16, (5, 5), 2),
        (8, (28, 28), 256, 16, 16, (5, 5), 2),
        (8, (28, 28), 4, 2, 1, (3, 3), 1),
        (1, (7, 7), 1024, 1024, 1024, (7, 7), 1),
    )
    return [named("seen", case("", *sizes, strides=strides)) for *sizes, strides in found]


def sample(count: int = COUNT, seed: int = SEED) -> list[Case]:
    """So many different cases in 1-D to 3-D, from a thousand products to some hundred million; the same for the same seed."""
    rng, found = random.Random(seed), {}
    while len(found) < count:
        drawn = _draw(rng)
        if drawn is not None:
            drawn = named("sample", drawn)
            found[drawn.name] = drawn
    return [*found.values()]


def named(origin: str, of: Case) -> Case:
    """The case by a name that says what it is: "sample 8x28x28, 64 groups 2 -> 4, 1x1"."""
    g = of.geometry
    joined = lambda numbers: "x".join(map(str, numbers))
    words = [
        joined((of.batch, *g.spatial)),
        f"{g.groups} {'group' if g.groups == 1 else 'groups'} {g.channels} -> {g.filters}",
        joined(g.window),
    ]
    words += [f"stride {joined(g.strides)}"] * (max(g.strides) > 1)
    words += [f"dilation {joined(g.dilation)}"] * (max(g.dilation) > 1)
    words += ["unpadded"] * (not any(map(sum, g.padding)) and max(g.window) > 1)
    return Case(f"{origin} {', '.join(words)}", of.batch, g)


def _draw(rng: random.Random) -> Case | None:
    """One case, or None where what was drawn is too large or empty."""
    rank, batch = rng.choice(RANKS), _up_to(rng, BATCH)
    groups, channels, filters = _channels(rng)
    window = tuple(rng.choice(WINDOWS) for _ in range(rank)) if rng.random() < 0.4 else (rng.choice(WINDOWS),) * rank
    strides, dilation = rng.choice((1, 1, 1, 2, 3)), 1 if max(window) == 1 else rng.choice((1, 1, 1, 1, 2, 4))
    padding = rng.choice(("same", "same", "valid", "causal" if rank == 1 else "same"))
    # Whatever has been drawn, so many pixels make it as large as it shall be.
    products = math.exp(rng.uniform(math.log(LEAST), math.log(MOST)))
    pixels = products / (batch * math.prod(window) * groups * channels * filters)
    side = pixels ** (1 / rank) * strides
    spatial = tuple(round(min(max(side * rng.uniform(0.7, 1.4), 1), SIDE)) for _ in range(rank))
    try:
        options = {"strides": strides, "dilation": dilation, "padding": padding}
        found = case("", batch, spatial, groups * channels, groups * filters, groups, window, **options)
    except ValueError:
        return None  # the window is larger than an input without padding
    fits = all(0 < math.prod(found.shapes[name]) <= ELEMENTS for name in "xy")
    # Of a window that is more than twice as large as the image, most would lie in the padding.
    lies_inside = all(2 * n >= e for n, e in zip(spatial, found.geometry.effective_window, strict=True))
    return found if fits and lies_inside and LEAST <= found.flops / 2 <= MOST else None


def _channels(rng: random.Random) -> tuple[int, int, int]:
    """Groups, and channels and filters of each: depthwise (with some multipliers), grouped, or one group."""
    kind = rng.random()
    if kind < 0.35:
        multiplier = rng.choice((1, 1, 1, 2, 3))
        return min(_up_to(rng, CHANNELS), CHANNELS // multiplier), 1, multiplier
    if kind < 0.6:
        return 1, _up_to(rng, CHANNELS), _up_to(rng, CHANNELS)
    groups = max(2, _up_to(rng, 128))
    channels = _up_to(rng, CHANNELS // groups)
    return groups, channels, channels if rng.random() < 0.4 else _up_to(rng, CHANNELS // groups)


def _up_to(rng: random.Random, most: int) -> int:
    """Any size is as likely as twice of it; half of all are powers of two, as channels of networks are."""
    exponent = rng.uniform(0, math.log2(most))
    return 2 ** round(exponent) if rng.random() < 0.5 else round(2**exponent)
