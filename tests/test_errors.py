"""What a user who writes another library's words, or a slip, is told: the argument, the numbers, and a value that works.

Each row is a wrong call, words that its error must have, and a call that the error leads to, which must work.
"""

import inspect
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import gconv

X, KERNEL = jnp.ones((2, 8, 8, 6)), jnp.ones((3, 3, 3, 8))
Y = jnp.ones((2, 8, 8, 8))
MESH = jax.sharding.AbstractMesh((1, 2), ("data", "groups"))
optim, interop, init = gconv.optim, gconv.interop, gconv.initializers


def rngs() -> nnx.Rngs:
    return nnx.Rngs(0)


def layer(*arguments, **options):
    """An NNX layer of 6 channels in 2 groups, unless told otherwise."""
    arguments = arguments or (() if "kernel_size" in options else (6, 3, 4, 2))
    return gconv.nnx.GroupedConv(*arguments, **{"rngs": rngs(), **options})


def linen(*arguments, **options):
    arguments = arguments or (() if {"kernel_size", "FilterSize"} & {*options} else (3, 4, 2))
    return gconv.linen.GroupedConv(*arguments, **options)


def up(**options):
    return gconv.nnx.GroupedConvTranspose(8, 3, 3, 2, **options, rngs=rngs())


def conv(*arguments, **options):
    return gconv.grouped_conv(*(arguments or (X, KERNEL)), **options)


def back(**options):
    return gconv.grouped_conv_transpose(Y, KERNEL, **{"groups": 2, **options})


FACTORS = optim.factors(layer())
PARAMS = nnx.state(layer(), nnx.Param)


def step(tx):
    """One step of an optax transformation."""
    return tx.update(PARAMS, tx.init(PARAMS), PARAMS)


# --- names of arguments --------------------------------------------------------------------------------------------------

NAMES = {
    # of Flax's nnx.Conv, nnx.ConvTranspose and linen.Conv
    "feature_group_count": (
        lambda: layer(6, 3, 4, feature_group_count=2),
        ["`GroupedConv` has no argument `feature_group_count`: here it is `groups`", "groups=2", 'padding="same"'],
        lambda: layer(6, 3, 4, groups=2, padding="same"),
    ),
    "out_features": (
        lambda: layer(in_features=6, out_features=12, kernel_size=(3, 3), feature_group_count=2, kernel_dilation=2),
        ["`out_features`: here it is `filters_per_group`", "filters_per_group=6, groups=2, dilation=2"],
        lambda: layer(in_features=6, kernel_size=(3, 3), filters_per_group=6, groups=2, dilation=2),
    ),
    "out_features alone": (
        lambda: layer(in_features=6, out_features=12, kernel_size=3),
        ["`filters_per_group`", "filters_per_group=12, groups=1"],
        lambda: layer(in_features=6, kernel_size=3, filters_per_group=12, groups=1),
    ),
    "out_features of channels": (
        lambda: layer(in_features=6, out_features=12, kernel_size=3, groups="channel-wise"),
        ["filters_per_group=2"],
        lambda: layer(6, 3, 2, "channel-wise"),
    ),
    "features of Linen": (
        lambda: linen(features=8, kernel_size=(3, 3), feature_group_count=2),
        ["`features`: here it is `filters_per_group`", "filters_per_group=4, groups=2"],
        lambda: linen(kernel_size=(3, 3), filters_per_group=4, groups=2),
    ),
    "kernel_dilation": (lambda: layer(kernel_dilation=2), ["here it is `dilation`", "dilation=2"], lambda: layer(dilation=2)),
    "conv_general_dilated": (
        lambda: layer(conv_general_dilated=jax.lax.conv_general_dilated),
        ["no argument `conv_general_dilated`: gconv computes it"],
        layer,
    ),
    "promote_dtype": (lambda: linen(promote_dtype=None), ["`promote_dtype`: leave it out"], linen),
    "transpose_kernel": (lambda: up(transpose_kernel=True), ["`transpose_kernel`: leave it out", "transpose_kernel=True"], up),
    "padding_mode of a transposed one": (lambda: up(padding_mode="zeros"), ["`padding_mode`: it has", "output_padding"], up),
    # of lax
    "rhs_dilation": (lambda: conv(rhs_dilation=2), ["here it is `dilation`", "dilation=2"], lambda: conv(dilation=2)),
    "lhs_dilation": (lambda: conv(lhs_dilation=2), ["here it is `input_dilation`"], lambda: conv(input_dilation=2)),
    "window_strides": (lambda: conv(window_strides=(2, 1)), ["strides=(2, 1)"], lambda: conv(strides=(2, 1))),
    "dimension_numbers": (
        lambda: conv(dimension_numbers=("NCHW", "OIHW", "NCHW")),
        ["channels are always last", "moveaxis"],
        conv,
    ),
    "batch_group_count": (lambda: conv(batch_group_count=1), ["gconv.conv_general_dilated has it"], conv),
    "feature_group_count of a function": (lambda: back(feature_group_count=2), ["`groups`, which is given already"], back),
    # of MATLAB
    "Stride": (lambda: layer(Stride=2), ["`Stride`: here it is `strides`", "strides=2"], lambda: layer(strides=2)),
    "DilationFactor": (lambda: layer(DilationFactor=[2, 1]), ["dilation=[2, 1]"], lambda: layer(dilation=[2, 1])),
    "Padding": (lambda: layer(Padding="same"), ["`padding`", 'padding="same"'], lambda: layer(padding="same")),
    "PaddingMode": (lambda: layer(PaddingMode="same"), ["`padding`", 'padding="same"'], lambda: layer(padding="same")),
    "PaddingValue": (
        lambda: layer(PaddingValue="replicate"),
        ['padding_value="replicate"'],
        lambda: layer(padding_value="replicate"),
    ),
    "NumGroups": (lambda: linen(3, 4, NumGroups=2), ["groups=2"], lambda: linen(3, 4, groups=2)),
    "FilterSize": (
        lambda: linen(FilterSize=3, filters_per_group=4, groups=2),
        ["kernel_size=3"],
        lambda: linen(kernel_size=3, filters_per_group=4, groups=2),
    ),
    "NumFiltersPerGroup": (lambda: linen(3, NumFiltersPerGroup=4, groups=2), ["filters_per_group=4"], linen),
    "NumChannelsPerGroup": (
        lambda: layer(NumChannelsPerGroup=3),
        ["num_channels_per_group=3"],
        lambda: layer(num_channels_per_group=3),
    ),
    "WeightsInitializer": (lambda: layer(WeightsInitializer="he"), ['kernel_init="he"'], lambda: layer(kernel_init="he")),
    "BiasInitializer": (lambda: linen(BiasInitializer="ones"), ['bias_init="ones"'], lambda: linen(bias_init="ones")),
    "WeightLearnRateFactor": (
        lambda: layer(WeightLearnRateFactor=0.5),
        ["kernel_learn_rate_factor=0.5"],
        lambda: layer(kernel_learn_rate_factor=0.5),
    ),
    "BiasL2Factor": (lambda: layer(BiasL2Factor=1), ["bias_l2_factor=1"], lambda: layer(bias_l2_factor=1)),
    "Weights": (
        lambda: layer(Weights=np.ones((3, 3, 3, 4, 2))),
        ["`Weights`: here it is `kernel_init`"],
        lambda: layer(kernel_init=np.ones((3, 3, 3, 4, 2))),
    ),
    "Name": (lambda: layer(Name="conv1"), ['name="conv1"'], lambda: layer(name="conv1")),
    "from_matlab": (
        lambda: interop.from_matlab(np.ones((3, 3, 3, 4, 2)), None, Stride=2, DilationFactor=2),
        ["stride=2, dilation=2"],
        lambda: interop.from_matlab(np.ones((3, 3, 3, 4, 2)), None, stride=2, dilation=2),
    ),
    # of PyTorch
    "in_channels": (
        lambda: layer(in_channels=6, out_channels=8, kernel_size=3, groups=2, stride=2, padding=1, bias=False),
        ["in_features=6, filters_per_group=4, strides=2, use_bias=False"],
        lambda: layer(in_features=6, filters_per_group=4, kernel_size=3, groups=2, strides=2, padding=1, use_bias=False),
    ),
    "padding_mode": (
        lambda: layer(padding=1, padding_mode="reflect"),
        ['padding_value="symmetric-exclude-edge"'],
        lambda: layer(padding=1, padding_value="symmetric-exclude-edge"),
    ),
    "stride of a function": (
        lambda: conv(stride=2),
        ["`grouped_conv` has no argument `stride`", "strides=2"],
        lambda: conv(strides=2),
    ),
    "weight": (
        lambda: gconv.grouped_conv(input=X, weight=KERNEL),
        ["`x`", "`kernel`"],
        lambda: gconv.grouped_conv(x=X, kernel=KERNEL),
    ),
    "device": (lambda: layer(device="cuda"), ["jax.device_put"], layer),
    # of Keras and Haiku
    "filters": (
        lambda: layer(6, 3, filters=8, groups=2, dilation_rate=2, kernel_initializer="he_normal"),
        ["filters_per_group=4, dilation=2"],
        lambda: layer(6, 3, filters_per_group=4, groups=2, dilation=2),
    ),
    "depth_multiplier": (
        lambda: layer(6, 3, depth_multiplier=2),
        ['filters_per_group=2, groups="channel-wise"'],
        lambda: layer(6, 3, filters_per_group=2, groups="channel-wise"),
    ),
    "data_format": (lambda: layer(data_format="channels_first"), ["channels are always last"], layer),
    "act_layer": (lambda: layer(act_layer="relu"), ['activation="relu"'], lambda: layer(activation="relu")),
    "kernel_regularizer": (lambda: layer(kernel_regularizer=None), ["gconv.optim.add_l2 regularizes"], layer),
    "with_bias": (lambda: linen(with_bias=False), ["use_bias=False"], lambda: linen(use_bias=False)),
    "key": (lambda: gconv.nnx.GroupedConv(6, 3, 4, 2, key=jax.random.key(0)), ["`rngs`", "rngs=nnx.Rngs(0)"], layer),
    # of sequence layers
    "initial_states": (
        lambda: gconv.causal_conv1d(jnp.ones((1, 8, 3)), jnp.ones((4, 1, 3)), initial_states=jnp.zeros((1, 3, 3))),
        ["here it is `state`"],
        lambda: gconv.causal_conv1d(jnp.ones((1, 8, 3)), jnp.ones((4, 1, 3)), state=jnp.zeros((1, 3, 3))),
    ),
    # slips, and what is missing
    "stirdes": (lambda: conv(stirdes=2), ["`stirdes`: here it is `strides`"], lambda: conv(strides=2)),
    "kernelinit": (lambda: layer(kernelInit="he"), ['kernel_init="he"'], lambda: layer(kernel_init="he")),
    "nothing like it": (lambda: conv(colour=2), ["`colour`: it has x, kernel, bias, groups"], conv),
    "missing": (
        lambda: layer(6, 3),
        ["`GroupedConv` needs `filters_per_group`", "all output channels / groups", "`groups`", "1 for an ordinary"],
        lambda: layer(6, 3, 8, 1),
    ),
    "too many by position": (
        lambda: gconv.grouped_conv(X, KERNEL, None, 2),
        ["`grouped_conv` takes x, kernel, bias by position, got 4", "groups=..."],
        lambda: gconv.grouped_conv(X, KERNEL, None, groups=2),
    ),
    "groups as the bias": (
        lambda: gconv.grouped_conv(X, KERNEL, 2),
        ["`bias` must be an array or None, got 2", "groups=2"],
        lambda: gconv.grouped_conv(X, KERNEL, groups=2),
    ),
    "in Flax's order": (
        lambda: layer(6, 12, (3, 3), 2),
        ["`filters_per_group` must be an integer, got (3, 3)", "kernel_size=(3, 3)"],
        lambda: layer(6, kernel_size=(3, 3), filters_per_group=6, groups=2),
    ),
    "missing of Linen": (lambda: linen(3, 4), ["needs `groups`"], lambda: linen(3, 4, 1)),
    "no rngs": (lambda: gconv.nnx.GroupedConv(6, 3, 4, 2), ["needs `rngs` (nnx.Rngs(0))"], layer),
    "no groups": (
        lambda: gconv.grouped_conv_transpose(Y, KERNEL),
        ["needs `groups`"],
        lambda: gconv.grouped_conv_transpose(Y, KERNEL, groups=2),
    ),
    "of explain": (
        lambda: gconv.explain(X, KERNEL, stride=2),
        ["`stride`: here it is `strides`"],
        lambda: gconv.explain(X, KERNEL, strides=2),
    ),
}

# --- values --------------------------------------------------------------------------------------------------------------

VALUES = {
    "smae": (lambda: layer(padding="smae"), ["`padding`", "'smae'", 'Did you mean "same"'], lambda: layer(padding="same")),
    "SAME_UPPER": (lambda: conv(padding="SAME_UPPER"), ['Did you mean "same"'], lambda: conv(padding="same")),
    "vaild": (lambda: linen(padding="vaild"), ['Did you mean "valid"'], lambda: linen(padding="valid")),
    "CIRCULAR": (
        lambda: layer(padding="CIRCULAR"),
        ["padding=\"same\", padding_value='circular'"],
        lambda: layer(padding="same", padding_value="circular"),
    ),
    "padding=None": (lambda: layer(padding=None), ["`padding`", "got None", '0, "same"'], lambda: layer(padding=0)),
    "padding=None of Linen": (lambda: linen(padding=None), ["`padding`", "got None"], lambda: linen(padding="same")),
    "reflect": (
        lambda: layer(padding_value="reflect"),
        ["`padding_value`", "'reflect'", 'Did you mean "symmetric-exclude-edge"'],
        lambda: layer(padding_value="symmetric-exclude-edge"),
    ),
    "edge": (lambda: conv(padding_value="edge"), ['Did you mean "replicate"'], lambda: conv(padding_value="replicate")),
    "zeros": (lambda: conv(padding_value="zeros"), ["Did you mean 0?"], lambda: conv(padding_value=0)),
    "replciate": (
        lambda: conv(padding_value="replciate"),
        ['Did you mean "replicate"'],
        lambda: conv(padding_value="replicate"),
    ),
    "same as a value": (
        lambda: conv(padding_value="same"),
        ["How much to pad is `padding`: padding='same'"],
        lambda: conv(padding="same"),
    ),
    "padding_value=None": (
        lambda: conv(padding_value=None),
        ["`padding_value`", "A value that works: 0"],
        lambda: conv(padding_value=0),
    ),
    "depthwise": (
        lambda: layer(6, 3, 4, "depthwise"),
        ["`groups`", 'Did you mean "channel-wise"'],
        lambda: layer(6, 3, 4, "channel-wise"),
    ),
    "groups as a string": (lambda: layer(6, 3, 4, "2"), ["`groups`", "Did you mean 2?"], layer),
    "groups=None": (lambda: layer(6, 3, 4, None), ["`groups`", "got None", "works: 1"], lambda: layer(6, 3, 4, 1)),
    "bf16": (lambda: layer(dtype="bf16"), ["`dtype`", "'bf16'", 'Did you mean "bfloat16"'], lambda: layer(dtype="bfloat16")),
    "fp32": (
        lambda: linen(param_dtype="fp32"),
        ["`param_dtype`", 'Did you mean "float32"'],
        lambda: linen(param_dtype="float32"),
    ),
    "int32": (lambda: layer(dtype="int32"), ["`dtype` must be a floating", "jnp.float32"], lambda: layer(dtype=jnp.float32)),
    "cudnn": (
        lambda: conv(implementation="cudnn"),
        ["`implementation`", 'Did you mean "lax"'],
        lambda: conv(implementation="lax"),
    ),
    "nativ": (lambda: layer(implementation="nativ"), ['Did you mean "native"'], lambda: layer(implementation="native")),
    "auto": (lambda: conv(implementation="auto"), ["None, which always works"], lambda: conv(implementation=None)),
    "relu": (
        lambda: gconv.causal_conv1d(jnp.ones((1, 8, 3)), jnp.ones((4, 1, 3)), activation="relu"),
        ["`activation`", "'relu'", "jax.nn.relu(y)"],
        lambda: jax.nn.relu(gconv.causal_conv1d(jnp.ones((1, 8, 3)), jnp.ones((4, 1, 3)))[0]),
    ),
    "SiLU": (
        lambda: gconv.causal_conv1d(jnp.ones((1, 8, 3)), jnp.ones((4, 1, 3)), activation="SiLU"),
        ['Did you mean "silu"'],
        lambda: gconv.causal_conv1d(jnp.ones((1, 8, 3)), jnp.ones((4, 1, 3)), activation="silu"),
    ),
    "gpu": (
        lambda: gconv.implementations("gpu"),
        ["`platform`", "'gpu'", 'Did you mean "cuda"'],
        lambda: gconv.implementations("cuda"),
    ),
    "gpu of explain": (
        lambda: gconv.explain(X, KERNEL, platform="gpu"),
        ['Did you mean "cuda"'],
        lambda: gconv.explain(X, KERNEL, platform="cuda"),
    ),
    "use_bias of an array": (
        lambda: layer(use_bias=np.ones(8)),
        ["`use_bias`", "bias_init=array"],
        lambda: layer(bias_init=np.ones(8)),
    ),
}

# --- initial values ------------------------------------------------------------------------------------------------------

INITIAL = {
    "uncalled": (
        lambda: layer(kernel_init=init.he),
        ["`kernel_init`", "call it", "gconv.initializers.he()"],
        lambda: layer(kernel_init=init.he()),
    ),
    "uncalled bias": (
        lambda: layer(bias_init=init.narrow_normal),
        ["`bias_init`", "narrow_normal()"],
        lambda: layer(bias_init=init.narrow_normal()),
    ),
    "uncalled in Linen": (
        lambda: linen(kernel_init=init.glorot).init(jax.random.key(0), X),
        ["`kernel_init`", "gconv.initializers.glorot()"],
        lambda: linen(kernel_init=init.glorot()).init(jax.random.key(0), X),
    ),
    "uncalled in Flax": (
        lambda: nnx.Conv(6, 8, (3, 3), kernel_init=init.he, rngs=rngs()),
        ["`gconv.initializers.he` makes an initializer", "call it first"],
        lambda: nnx.Conv(6, 8, (3, 3), kernel_init=init.he(groups=1), rngs=rngs()),
    ),
    "JAX's uncalled": (
        lambda: layer(kernel_init=jax.nn.initializers.he_normal),
        ["`kernel_init`", "call it", "jax.nn.initializers.he_normal(...)"],
        lambda: layer(kernel_init=jax.nn.initializers.he_normal()),
    ),
    "JAX's variance_scaling uncalled": (
        lambda: layer(kernel_init=jax.nn.initializers.variance_scaling),
        ["call it", "variance_scaling(...)"],
        lambda: layer(kernel_init=jax.nn.initializers.variance_scaling(1, "fan_in", "normal")),
    ),
    "Flax's zeros_init uncalled": (
        lambda: layer(bias_init=nnx.initializers.zeros_init),
        ["`bias_init` must be a function (key, shape, dtype)", "zeros_init()"],
        lambda: layer(bias_init=nnx.initializers.zeros_init()),
    ),
    "MATLAB's function": (
        lambda: layer(kernel_init=lambda sz: np.ones(sz)),
        ["`kernel_init`", "(sz)", "gconv.initializers.from_size(function)"],
        lambda: layer(kernel_init=init.from_size(lambda sz: np.ones(sz))),
    ),
    "from_size uncalled": (
        lambda: layer(kernel_init=init.from_size),
        ["from_size(function)"],
        lambda: layer(kernel_init=init.from_size(np.ones)),
    ),
    "from_size of an array": (
        lambda: init.from_size(np.ones(3)),
        ["`function`", "kernel_init=array"],
        lambda: init.from_size(np.ones),
    ),
    "xavier": (
        lambda: layer(kernel_init="xavier"),
        ["`kernel_init`", "'xavier'", 'Did you mean "glorot"'],
        lambda: layer(kernel_init="glorot"),
    ),
    "kaiming_normal": (lambda: layer(kernel_init="kaiming_normal"), ['Did you mean "he"'], lambda: layer(kernel_init="he")),
    "glorot_uniform": (
        lambda: layer(kernel_init="glorot_uniform"),
        ['Did you mean "glorot"'],
        lambda: layer(kernel_init="glorot"),
    ),
    "orthognal": (
        lambda: layer(kernel_init="orthognal"),
        ['Did you mean "orthogonal"'],
        lambda: layer(kernel_init="orthogonal"),
    ),
    "he for a bias": (
        lambda: layer(bias_init="he"),
        ["`bias_init`", "a bias has not", '"zeros"'],
        lambda: layer(bias_init="zeros"),
    ),
    "a number": (
        lambda: layer(kernel_init=0.5),
        ["`kernel_init`", "0.5", "numpy.asarray"],
        lambda: layer(kernel_init=np.full((3, 3, 3, 8), 0.5)),
    ),
    "PyTorch's layout": (
        lambda: gconv.nnx.GroupedConv(6, (3, 5), 4, 2, kernel_init=np.ones((8, 3, 3, 5)), rngs=rngs()),
        ["`kernel_init`", "(8, 3, 3, 5)", "kernel_init.transpose(2, 3, 1, 0)"],
        lambda: gconv.nnx.GroupedConv(6, (3, 5), 4, 2, kernel_init=np.ones((8, 3, 3, 5)).transpose(2, 3, 1, 0), rngs=rngs()),
    ),
}

# --- other layouts -------------------------------------------------------------------------------------------------------

LAYOUTS = {
    "PyTorch's kernel": (
        lambda: conv(X, jnp.ones((8, 3, 5, 5)), groups=2),
        ["`kernel` in PyTorch's layout", "kernel.transpose(2, 3, 1, 0)"],
        lambda: conv(X, jnp.ones((8, 3, 5, 5)).transpose(2, 3, 1, 0), groups=2),
    ),
    "MATLAB's kernel": (
        lambda: conv(X, jnp.ones((5, 5, 3, 4, 2)), groups=2),
        ["`kernel` in MATLAB's layout", "gconv.interop.kernel_from_matlab(kernel)"],
        lambda: conv(X, interop.kernel_from_matlab(jnp.ones((5, 5, 3, 4, 2))), groups=2),
    ),
    "channels first": (
        lambda: conv(jnp.ones((2, 6, 16, 16)), KERNEL, groups=2),
        ["the channels of `x` first", "jnp.moveaxis(x, 1, -1)"],
        lambda: conv(jnp.moveaxis(jnp.ones((2, 6, 16, 16)), 1, -1), KERNEL, groups=2),
    ),
    "both first": (
        lambda: conv(jnp.ones((2, 6, 16, 16)), jnp.ones((8, 3, 5, 5)), groups=2),
        ["the channels of `x` first and `kernel` in PyTorch's layout", "jnp.moveaxis(x, 1, -1), kernel.transpose(2, 3, 1, 0)"],
        lambda: conv(jnp.moveaxis(jnp.ones((2, 6, 16, 16)), 1, -1), jnp.ones((8, 3, 5, 5)).transpose(2, 3, 1, 0), groups=2),
    ),
    "PyTorch's transposed kernel": (
        lambda: gconv.grouped_conv_transpose(jnp.ones((2, 8, 8, 4)), jnp.ones((4, 3, 5, 5)), groups=2),
        ["kernel.transpose(2, 3, 1, 0)"],
        lambda: gconv.grouped_conv_transpose(jnp.ones((2, 8, 8, 4)), jnp.ones((4, 3, 5, 5)).transpose(2, 3, 1, 0), groups=2),
    ),
    "one of one dimension": (
        lambda: conv(jnp.ones((2, 20, 6)), jnp.ones((8, 3, 5)), groups=2),
        ["kernel.transpose(2, 1, 0)"],
        lambda: conv(jnp.ones((2, 20, 6)), jnp.ones((8, 3, 5)).transpose(2, 1, 0), groups=2),
    ),
}

# --- what is given in the place of something else ------------------------------------------------------------------------

VARIABLES = linen().init(jax.random.key(0), X)

PLACES = {
    "factors=model": (
        lambda: optim.sgdm(0.1, factors=layer()),
        ["`factors` must be gconv.optim.Factors, got GroupedConv", "gconv.optim.factors(model)"],
        lambda: step(optim.sgdm(0.1, factors=optim.factors(layer()))),
    ),
    "factors=function": (
        lambda: optim.adam(factors=optim.factors),
        ["`factors`", "the function factors", "gconv.optim.factors(model)"],
        lambda: step(optim.adam(factors=FACTORS)),
    ),
    "factors=Factor": (
        lambda: optim.scale_by_learn_rate_factors(optim.Factor(2, 1)),
        ["`factors`", "got Factor", 'rules={"**": ...}'],
        lambda: step(optim.scale_by_learn_rate_factors(optim.factors(layer(), rules={"**": optim.Factor(2, 1)}))),
    ),
    "swapped": (
        lambda: optim.add_l2(FACTORS, 1e-4),
        ["`l2` must be a number, got Factors", "add_l2(1e-4, factors)"],
        lambda: step(optim.add_l2(1e-4, FACTORS)),
    ),
    "swapped decoupled": (
        lambda: optim.add_decoupled_l2(FACTORS, 1e-4),
        ["add_decoupled_l2(0.01, factors)"],
        lambda: step(optim.add_decoupled_l2(0.01, FACTORS)),
    ),
    "swapped freeze": (
        lambda: optim.freeze_zero_factors(FACTORS, optax.adam(1e-3)),
        ["`inner`", "got Factors", "freeze_zero_factors(inner, factors)"],
        lambda: step(optim.freeze_zero_factors(optax.sgd(1e-3), FACTORS)),
    ),
    "mask of a model": (
        lambda: optim.frozen(layer()),
        ["`factors`", "gconv.optim.factors(model)"],
        lambda: optim.frozen(FACTORS),
    ),
    "a learning rate of factors": (
        lambda: optim.sgdm(FACTORS),
        ["`learning_rate` must be a number", "0.01"],
        lambda: step(optim.sgdm(0.01)),
    ),
    "lr": (
        lambda: optim.adam(lr=1e-3),
        ["`lr`: here it is `learning_rate`", "learning_rate=0.001"],
        lambda: optim.adam(learning_rate=0.001),
    ),
    "weight_decay": (lambda: optim.sgdm(weight_decay=1e-4), ["here it is `l2`"], lambda: optim.sgdm(l2=1e-4)),
    "betas": (lambda: optim.adam(betas=(0.9, 0.99)), ["b1=0.9, b2=0.999"], lambda: optim.adam(b1=0.9, b2=0.99)),
    "GradientDecayFactor": (lambda: optim.adam(GradientDecayFactor=0.9), ["b1=0.9"], lambda: optim.adam(b1=0.9)),
    "rules as a list": (
        lambda: optim.factors(layer(), rules=[("kernel", optim.Factor(1, 1))]),
        ["`rules` must be a mapping", "got list", '{"**/bias": gconv.optim.Factor(learn_rate=2, l2=0)}'],
        lambda: optim.factors(layer(), rules={"**/bias": optim.Factor(learn_rate=2, l2=0)}),
    ),
    "a rule of a number": (
        lambda: optim.factors(layer(), rules={"kernel": 0}),
        ["`rules['kernel']` must be a Factor, got 0", "Factor(learn_rate=0)"],
        lambda: optim.factors(layer(), rules={"kernel": optim.Factor(learn_rate=0)}),
    ),
    "factors of a Linen module": (
        lambda: optim.factors(linen()),
        ["a Linen module keeps no parameters", "module.init(key, x)"],
        lambda: optim.factors(linen().init(jax.random.key(0), X)),
    ),
    "factors of a class": (
        lambda: optim.factors(gconv.nnx.GroupedConv),
        ["`tree`", "got GroupedConv"],
        lambda: optim.factors(layer()),
    ),
    "explain of a Linen layer": (
        lambda: gconv.explain(linen(), X),
        ["the Linen module GroupedConv", "flax.nnx.bridge.ToNNX", "gconv.explain(x, kernel)"],
        lambda: gconv.explain(nnx.bridge.lazy_init(nnx.bridge.ToNNX(linen(), rngs=rngs()), X), X),
    ),
    "explain of a class": (
        lambda: gconv.explain(gconv.nnx.GroupedConv, X),
        ["the class GroupedConv", "GroupedConv(...)"],
        lambda: gconv.explain(layer(), X),
    ),
    "explain of a function": (
        lambda: gconv.explain(conv, X),
        ["the function conv", "jax.make_jaxpr"],
        lambda: jax.make_jaxpr(conv)(X, KERNEL),
    ),
    "explain of x": (
        lambda: gconv.explain(X),
        ["takes `x, kernel`", "gconv.explain(x, kernel, padding=0)"],
        lambda: gconv.explain(X, KERNEL, padding=0),
    ),
    "describe of Flax's": (
        lambda: gconv.describe(nnx.Conv(6, 8, (3, 3), rngs=rngs())),
        ["`layer` must be a GroupedConv", "got flax's Conv", "gconv.interop.from_flax(layer).to_nnx()"],
        lambda: gconv.describe(interop.from_flax(nnx.Conv(6, 8, (3, 3), rngs=rngs())).to_nnx()),
    ),
    "describe of a class": (lambda: gconv.describe(nnx.Conv), ["the class Conv"], lambda: gconv.describe(layer())),
    "describe of other parameters": (
        lambda: gconv.describe(linen(), {"params": {"conv1": VARIABLES["params"]}}),
        ["`params` must be those of one layer", "'conv1'"],
        lambda: gconv.describe(linen(), VARIABLES),
    ),
    "natural_specs of Flax's": (
        lambda: gconv.natural_specs(nnx.Conv(6, 8, (3, 3), rngs=rngs()), MESH),
        ["`layer` must be a GroupedConv", "got flax's Conv", "from_flax(layer).to_nnx()"],
        lambda: gconv.natural_specs(interop.from_flax(nnx.Conv(6, 8, (3, 3), rngs=rngs())).to_nnx(), MESH),
    ),
    "natural_specs of a class": (
        lambda: gconv.natural_specs(nnx.Conv, MESH),
        ["the class Conv"],
        lambda: gconv.natural_specs(layer(), MESH),
    ),
    "shardings of a dict": (
        lambda: gconv.nnx.shardings({}, MESH),
        ["`model` must be a flax.nnx.Module, got dict", "gconv.natural_specs(layer, mesh)"],
        lambda: gconv.nnx.shardings(layer(), MESH),
    ),
    "shardings without a mesh": (
        lambda: gconv.nnx.shardings(layer()),
        ["needs `mesh`"],
        lambda: gconv.nnx.shardings(layer(), MESH),
    ),
    "other channels at apply": (
        lambda: linen().apply(VARIABLES, jnp.ones((2, 8, 8, 4))),
        ["the input has 4 channels, and the parameters were made for 6", "(3, 3, 3, 8)", "(*batch, height, width, 6)"],
        lambda: linen().apply(VARIABLES, jnp.ones((2, 8, 8, 6))),
    ),
    "other channels, no multiple": (
        lambda: linen().apply(VARIABLES, jnp.ones((2, 8, 8, 5))),
        ["made for 6"],
        lambda: linen().apply(VARIABLES, X),
    ),
    "other channels in a transposed one": (
        lambda: gconv.linen.GroupedConvTranspose(3, 3, 2).apply(
            gconv.linen.GroupedConvTranspose(3, 3, 2).init(jax.random.key(0), Y), jnp.ones((2, 8, 8, 6))
        ),
        ["the input has 6 channels, and the parameters were made for 8"],
        lambda: gconv.linen.GroupedConvTranspose(3, 3, 2).init(jax.random.key(0), jnp.ones((2, 8, 8, 6))),
    ),
}

# --- options of training -------------------------------------------------------------------------------------------------


def options(solver="adam", **given):
    return optim.training_options(solver, **given)


TRAINING = {
    "Adam": (lambda: options("Adam"), ["`solver`", "'Adam'", 'Did you mean "adam"'], lambda: options("adam")),
    "sgd": (lambda: options("sgd"), ['Did you mean "sgdm"'], lambda: options("sgdm")),
    "lbfgs": (lambda: options("lbfgs"), ["`solver`", "optax's"], lambda: optax.lbfgs()),
    "max_epochs": (
        lambda: options(max_epochs=3),
        ["`max_epochs` belongs to the training loop", "for epoch in range(3)", "Options of the solver", "initial_learn_rate"],
        lambda: options(initial_learn_rate=1e-3),
    ),
    "MaxEpochs": (lambda: options(MaxEpochs=3), ["`MaxEpochs` belongs to the training loop"], options),
    "shuffle": (lambda: options(shuffle="every-epoch"), ["`shuffle` belongs to", "jax.random.permutation"], options),
    "mini_batch_size": (lambda: options(mini_batch_size=128), ["batches of 128 images"], options),
    "validation_data": (lambda: options(validation_data=None), ["evaluate in the loop"], options),
    "plots": (lambda: options(plots="training-progress"), ["`plots` belongs to"], options),
    "execution_environment": (lambda: options(execution_environment="gpu"), ["jax.default_device"], options),
    "InitialLearnRate": (
        lambda: options(InitialLearnRate=1e-3),
        ["The nearest: 'initial_learn_rate'"],
        lambda: options(initial_learn_rate=1e-3),
    ),
    "of another solver": (
        lambda: options("sgdm", gradient_decay_factor=0.9),
        ["'gradient_decay_factor' is no option of 'sgdm'", "one of 'adam'"],
        lambda: options("adam", gradient_decay_factor=0.9),
    ),
    "schedule": (
        lambda: options(learn_rate_schedule="step"),
        ["`learn_rate_schedule`", 'Did you mean "piecewise"'],
        lambda: options(learn_rate_schedule="piecewise", steps_per_epoch=3),
    ),
    "cosine": (
        lambda: options(learn_rate_schedule="cosine"),
        ["optax.cosine_decay_schedule"],
        lambda: optim.adam(optax.cosine_decay_schedule(1e-3, 10)),
    ),
    "method": (
        lambda: options(gradient_threshold=1, gradient_threshold_method="global"),
        ["`gradient_threshold_method`", 'Did you mean "global-l2norm"'],
        lambda: options(gradient_threshold=1, gradient_threshold_method="global-l2norm"),
    ),
    "threshold as a string": (
        lambda: options(gradient_threshold="l2norm"),
        ["`gradient_threshold` must be a number", "1.0"],
        lambda: options(gradient_threshold=1.0),
    ),
}

ALL = {
    f"{table}: {name}": row
    for table, rows in dict(
        names=NAMES, values=VALUES, initial=INITIAL, layouts=LAYOUTS, places=PLACES, training=TRAINING
    ).items()
    for name, row in rows.items()
}


@pytest.mark.parametrize("wrong, words, works", ALL.values(), ids=ALL)
def test_the_error_names_what_works_and_it_works(wrong, words, works):
    with pytest.raises((TypeError, ValueError)) as raised:
        wrong()
    text = str(raised.value)
    for word in words:
        assert word in text, text
    assert len(text) < 900, f"too long to be read: {text}"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert works() is not None


FLAX = {
    name
    for kind in (nnx.Conv.__init__, nnx.ConvTranspose.__init__, nn.Conv, nn.ConvTranspose)
    for name in inspect.signature(kind).parameters
} - {"self", "parent"}


@pytest.mark.parametrize("name", sorted(FLAX))
@pytest.mark.parametrize("make", [gconv.nnx.GroupedConv, gconv.linen.GroupedConv], ids=["nnx", "linen"])
def test_every_argument_of_flaxs_layers_is_taken_or_translated(make, name):
    own = inspect.signature(make).parameters
    if name in own or name in ("in_features", "rngs"):  # Linen reads the first off the input, and has the second in init
        return
    with pytest.raises(TypeError, match=f"has no argument `{name}`: ") as raised:
        make(**{name: 1})
    assert ": it has" not in str(raised.value), "a word of what it is, or what to do instead"


MATLAB = (
    *("Stride", "DilationFactor", "Padding", "PaddingValue", "WeightsInitializer", "BiasInitializer", "WeightLearnRateFactor"),
    *("BiasLearnRateFactor", "WeightL2Factor", "BiasL2Factor", "Name", "NumChannelsPerGroup", "FilterSize", "NumGroups"),
    *("NumFiltersPerGroup", "Weights", "Bias"),
)


@pytest.mark.parametrize("name", MATLAB)
@pytest.mark.parametrize("make", [gconv.nnx.GroupedConv, gconv.linen.GroupedConv], ids=["nnx", "linen"])
def test_every_name_of_matlabs_layer_is_translated(make, name):
    with pytest.raises(TypeError, match=f"has no argument `{name}`: here it is `"):
        make(**{name: 1})


def test_a_right_call_is_not_looked_at_twice():
    """The decorator asks names only: what a function raises itself comes through as it is."""
    with pytest.raises(TypeError, match="^`x` must be an array, got list"):
        gconv.grouped_conv([1.0], KERNEL)
    with pytest.raises(TypeError, match="multiple values for argument 'x'"):
        gconv.grouped_conv(X, KERNEL, x=X)
    assert gconv.grouped_conv.__wrapped__.__name__ == "grouped_conv" and "Equivalent to" in gconv.grouped_conv.__doc__
