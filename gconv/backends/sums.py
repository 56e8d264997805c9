"""Which roles become sums of products, which XLA fuses into loops, and where these are faster than a kernel (measured)."""

import math
from dataclasses import replace

from gconv.geometry import Geometry

# A fused sum of more terms than these gets slower per term, and beyond a hundred XLA stops fusing it (ten times slower).
TERMS = 49
# channels * filters up to which products beat matrix products.
NARROW = 64
# Up to so many products, in one fused sum, loops inside the program take less time than the call of a kernel outside it.
FEW = 1 << 15
# What XLA sums well though it is an ordinary convolution: one group with a sum of up to so many terms; a single tap, of groups
# with so many channels in all and with so many sources each.
THIN, CHANNELS, SOURCES = 27, 12, 4
# What of this leaves the vectors of a kernel empty: a group of so many sources, with up to PAIRS pairs of a source and a
# result, or LITTLE_PAIRS where there are at most MUCH products.
LITTLE_PAIRS, PAIRS, MUCH = 4, 9, 500_000


def by_products(g: Geometry) -> bool:
    """Whether role "y" becomes sums of products, unrolled over taps and channels."""
    return g.channels == 1 or (g.channels * g.filters <= NARROW and g.channels * math.prod(g.window[1:]) <= TERMS)


def sums_products(role: str, g: Geometry) -> bool:
    """Whether a role becomes loops of XLA's own, without a convolution or matrix product."""
    if role == "w":
        return g.channels == 1
    return by_products(g if role == "y" else replace(g, channels=g.filters, filters=g.channels))


def few_products(role: str, g: Geometry, batch) -> bool:
    """Whether a role is one fused sum and less work than the call of a kernel.

    Role "x" is one per remainder by the strides, role "w" only with a single tap.
    """
    if not isinstance(batch, int) or not sums_products(role, g):
        return False
    if math.prod(g.window) == 1:  # more results for the same work
        return products(g, batch) <= FEW // 6
    return role != "w" and _terms(role, g) <= TERMS and products(g, batch) <= FEW


def thin(role: str, g: Geometry) -> bool:
    """Whether role "y" or "x" has few terms to sum, of one group as of an image's colours, or a single tap of few channels."""
    if role == "w" or not sums_products(role, g):
        return False
    taps, sources = math.prod(g.window), g.channels if role == "y" else g.filters
    if taps == 1:
        return max(g.in_channels, g.out_channels) <= CHANNELS and sources <= SOURCES
    strided_gradient = role == "x" and max(g.strides) > 1  # its sums are few, but lie apart
    return g.groups == 1 and taps * sources <= THIN and not strided_gradient


def leaves_vectors_empty(role: str, g: Geometry, batch) -> bool:
    """Whether a thin role has too few channels for the vectors of a kernel."""
    if not thin(role, g) or math.prod(g.window) == 1:
        return thin(role, g)
    sources = g.channels if role == "y" else g.filters
    pairs = PAIRS if not isinstance(batch, int) or products(g, batch) > MUCH else LITTLE_PAIRS
    return sources <= SOURCES and g.channels * g.filters <= pairs


def _terms(role: str, g: Geometry) -> int:
    """Of the sum that a result is; between strides, those of role "x" meet a part of the taps, on average."""
    if role == "y":
        return math.prod(g.window) * g.channels
    return math.prod(-(-k // s) for k, s in zip(g.window, g.strides, strict=True)) * g.filters


def products(g: Geometry, batch: int) -> int:
    """How many products any role sums."""
    return batch * math.prod(g.output) * math.prod(g.window) * g.out_channels * g.channels
