"""Batch norm for training in the fewest passes over memory; `gconv.norm.nnx` and `gconv.norm.linen` are its layers.

    function     batch_norm, and how its derivative is made of passes
    primitives   the passes as primitives
    plain        the passes in plain JAX: what they compute
    kernels      the passes as calls of the C++ kernels
"""

from gconv.norm.function import batch_norm as batch_norm
