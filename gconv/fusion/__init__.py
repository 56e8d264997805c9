"""A convolution together with what follows it in a network.

activations   their names, and the functions of JAX that they are
epilogue      the primitive: activation(scale * convolution + shift + residual)
"""
