"""What type checkers must find: one mistake in each line that says so."""

import jax.numpy as jnp
from flax import nnx

import gconv

x, kernel, rngs = jnp.ones((2, 16, 16, 6)), jnp.ones((3, 3, 3, 8)), nnx.Rngs(0)
gconv.grouped_conv(x, kernel, padding="smae")  # wrong
gconv.grouped_conv(x, kernel, padding_value="reflect")  # wrong
gconv.grouped_conv(x, kernel, groups="depthwise")  # wrong
gconv.grouped_conv(x, kernel, implementation="cudnn")  # wrong
gconv.grouped_conv(x, kernel, stride=2)  # wrong
gconv.causal_conv1d(x, kernel, activation="relu")  # wrong
gconv.grouped_conv(x, kernel, activation="rely")  # wrong
gconv.nnx.GroupedConv(6, 3, 4, 2, kernel_init="xavier", rngs=rngs)  # wrong
gconv.nnx.GroupedConv(6, 3, 4, 2, kernel_init=gconv.initializers.he, rngs=rngs)  # wrong
gconv.nnx.GroupedConv(6, 3, 4, 2, bias_init="glorot", rngs=rngs)  # wrong
gconv.nnx.GroupedConv(6, 3, 4, feature_group_count=2, rngs=rngs)  # wrong
gconv.nnx.GroupedConv(6, 3, 4, 2, rngs=rngs).strides = "2"  # wrong
gconv.nnx.GroupedConv(6, 3, 4, 2, rngs=rngs).groups = 3  # wrong
gconv.nnx.GroupedConv(6, 3, 4, 2, rngs=rngs).stride  # noqa: B018 # wrong
gconv.linen.GroupedConv(3, 4, 2, padding="smae")  # wrong
gconv.linen.GroupedConv(3, 4, 2, out_features=3)  # wrong
gconv.implementations("gpu")  # wrong
gconv.optim.sgdm(0.1, factors=nnx.Sequential())  # wrong
gconv.optim.training_options("Adam")  # wrong
gconv.optim.sgd  # noqa: B018 # wrong
gconv.groupd_conv(x, kernel)  # wrong
gconv.initializers.from_size(3)  # wrong
