"""A convolution, or a matrix product, together with what follows it in a network.

activations   their names, and the functions of JAX that they are
composition   primitives that are a composition, which the kernels compute as a whole
epilogue      one of them: activation(scale * convolution + shift + residual)
cascade       another: convolutions that follow each other, row by row

fuse          the function that users call: a traced function, rewritten
report        what became of its convolutions
arguments     arrays, which a compiled program takes, and the rest, which it is compiled for
rewrite       the plans, and how a program runs by them
chain         what follows a convolution, as far as it can be taken in
convolutions  those of lax and of gconv, and matrix products like them
pooling       the sums over pixels that follow them
gate          the products of squeeze-and-excite before them
channels      operands that vary along the channels only
patterns      activations, found by what they compute
spellings     the ways to write them
program       a traced function as a graph
"""
