"""The separable convolution as layers of Flax: a channel-wise convolution, then a pointwise one.

arguments    what a user writes, as the arguments of the layers that it is made of
nnx, linen   one shell for each of Flax's APIs
"""
