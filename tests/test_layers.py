"""The Flax layers: what they share with the pure function, with Flax's own Conv, and with each other."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from flax import linen as nn
from flax import nnx, serialization

import gconv

# (in_features, kernel_size, filters_per_group, groups, options), kernel_size also as tuples of every rank
LAYERS = [
    (6, 3, 4, 2, {}),
    (6, (3,), 2, 3, dict(padding="causal", dilation=2)),
    (5, (3, 5), 2, "channel-wise", dict(strides=2, padding="same")),
    (4, (2, 3), 3, 4, dict(padding=[0, 1, 2, 0], padding_value="symmetric-exclude-edge", use_bias=False)),
    (4, (3, 2, 3), 1, 2, dict(strides=(1, 2, 1), padding="same_lower", padding_value=1.5)),
]
IDS = [f"{len(k) if isinstance(k, tuple) else 2}d-{g}" for _, k, _, g, _ in LAYERS]


@pytest.fixture
def standard_promotion():
    """For tests of mixed types, which strict promotion refuses, in Flax's layers as in ours."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def random(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def input_for(in_features, kernel_size):
    rank = len(kernel_size) if isinstance(kernel_size, tuple) else 2
    return random(7, 2, *(9, 7, 8)[:rank], in_features)


def parameters(layer):
    return {name: random(i, *p.shape) for i, name in enumerate(("kernel", "bias")) if (p := getattr(layer, name)) is not None}


@pytest.mark.parametrize("in_features, kernel_size, filters, groups, options", LAYERS, ids=IDS)
def test_nnx_linen_and_the_function_agree_bit_for_bit(in_features, kernel_size, filters, groups, options):
    x = input_for(in_features, kernel_size)
    layer = gconv.nnx.GroupedConv(in_features, kernel_size, filters, groups, **options, rngs=nnx.Rngs(0))
    params = parameters(layer)
    nnx.update(layer, params)
    module = gconv.linen.GroupedConv(kernel_size, filters, groups, **options)
    of_function = {k: v for k, v in options.items() if k != "use_bias"}
    expected = gconv.grouped_conv(x, params["kernel"], params.get("bias"), groups=groups, **of_function)
    np.testing.assert_array_equal(layer(x), expected)
    np.testing.assert_array_equal(module.apply({"params": params}, x), expected)
    structure = jax.tree.map(jnp.shape, module.init(jax.random.key(0), x)["params"])
    assert structure == {k: v.shape for k, v in params.items()}


@pytest.mark.parametrize("dtype", [None, jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("in_features, kernel_size, filters, groups, options", LAYERS, ids=IDS)
def test_transposed_twins_agree_bit_for_bit(in_features, kernel_size, filters, groups, options, dtype):
    options = {k: v for k, v in options.items() if k != "padding_value"}
    x = input_for(in_features, kernel_size)
    args = (kernel_size, filters, groups)
    layer = gconv.nnx.GroupedConvTranspose(in_features, *args, **options, dtype=dtype, rngs=nnx.Rngs(0))
    params = parameters(layer)
    nnx.update(layer, params)
    module = gconv.linen.GroupedConvTranspose(*args, **options, dtype=dtype)
    cast = [None if a is None else a.astype(dtype or a.dtype) for a in (x, params["kernel"], params.get("bias"))]
    of_function = {k: v for k, v in options.items() if k != "use_bias"}
    expected = gconv.grouped_conv_transpose(*cast, groups=layer.groups, **of_function)
    assert layer(x).dtype == (dtype or jnp.float32)
    np.testing.assert_array_equal(layer(x), expected)
    np.testing.assert_array_equal(module.apply({"params": params}, x), expected)
    assert layer(x).shape[-1] == layer.out_features == filters * layer.groups


@pytest.mark.parametrize("strides, padding", [(1, "same"), (2, "same"), (1, "valid"), (2, [(1, 0), (2, 1)])])
def test_checkpoints_of_flax_conv_load_unchanged(strides, padding):
    x = random(3, 2, 9, 11, 6)
    flax_padding = padding.upper() if isinstance(padding, str) else padding
    theirs = nnx.Conv(
        6,
        8,
        (3, 5),
        strides=strides,
        padding=flax_padding,
        feature_group_count=2,
        bias_init=nnx.initializers.normal(),
        rngs=nnx.Rngs(4),
    )
    ours = gconv.nnx.GroupedConv(6, (3, 5), 4, 2, strides=strides, padding=padding, rngs=nnx.Rngs(5))
    nnx.update(ours, nnx.to_pure_dict(nnx.state(theirs, nnx.Param)))
    np.testing.assert_allclose(ours(x), theirs(x), rtol=1e-6, atol=1e-6)
    assert ours.kernel.get_metadata()["learn_rate_factor"] == 1, "loading keeps our metadata"

    linen_theirs = nn.Conv(8, (3, 5), strides=strides, padding=flax_padding, feature_group_count=2)
    variables = linen_theirs.init(jax.random.key(6), x)
    linen_ours = gconv.linen.GroupedConv((3, 5), 4, 2, strides=strides, padding=padding)
    np.testing.assert_allclose(linen_ours.apply(variables, x), linen_theirs.apply(variables, x), rtol=1e-6, atol=1e-6)
    stored = serialization.to_bytes(variables["params"])
    loaded = serialization.from_bytes(linen_ours.init(jax.random.key(0), x)["params"], stored)
    np.testing.assert_array_equal(linen_ours.apply({"params": loaded}, x), linen_ours.apply(variables, x))


def test_the_layer_equals_numpy_loops():
    x = random(1, 2, 8, 7, 6)
    layer = gconv.nnx.GroupedConv(6, 3, 2, 3, strides=2, padding=[1, 0, 2, 1], bias_init="narrow-normal", rngs=nnx.Rngs(0))
    expected = oracle.conv(
        *(np.asarray(a) for a in (x, layer.kernel[...], layer.bias[...])),
        groups=3,
        strides=(2, 2),
        pads=((1, 0), (2, 1)),
        dilation=(1, 1),
    )
    np.testing.assert_allclose(layer(x), expected, rtol=1e-5, atol=1e-5)


def test_an_integer_kernel_size_is_a_square_image_window():
    layer = gconv.nnx.GroupedConv(4, 5, 1, 1, rngs=nnx.Rngs(0))
    assert layer.kernel.shape == (5, 5, 4, 1)
    assert layer.kernel_size == (5, 5)


def test_channel_wise_is_one_group_per_channel():
    layer = gconv.nnx.GroupedConv(7, 3, 2, "channel-wise", rngs=nnx.Rngs(0))
    assert (layer.groups, layer.num_channels_per_group, layer.out_features) == (7, 1, 14)
    module = gconv.linen.GroupedConv(3, 2, "channel-wise")
    assert module.init(jax.random.key(0), jnp.ones((1, 5, 5, 7)))["params"]["kernel"].shape == (3, 3, 1, 14)


@pytest.mark.usefixtures("standard_promotion")
def test_dtype_and_param_dtype_behave_as_in_flax():
    x = random(0, 1, 6, 6, 4)
    for dtype, param_dtype in [(None, jnp.bfloat16), (jnp.bfloat16, jnp.float32), (jnp.float16, jnp.float32)]:
        ours = gconv.nnx.GroupedConv(4, 3, 2, 2, dtype=dtype, param_dtype=param_dtype, rngs=nnx.Rngs(0))
        theirs = nnx.Conv(
            4, 4, (3, 3), padding="VALID", feature_group_count=2, dtype=dtype, param_dtype=param_dtype, rngs=nnx.Rngs(0)
        )
        nnx.update(theirs, nnx.state(ours, nnx.Param))
        assert ours.kernel.dtype == theirs.kernel.dtype == param_dtype
        assert ours(x).dtype == theirs(x).dtype
        np.testing.assert_allclose(ours(x).astype("float32"), theirs(x).astype("float32"), rtol=2e-2, atol=2e-2)


@pytest.mark.usefixtures("standard_promotion")
def test_integer_images_are_promoted():
    layer = gconv.nnx.GroupedConv(3, 3, 1, 1, rngs=nnx.Rngs(0))
    image = jnp.arange(75, dtype=jnp.uint8).reshape(1, 5, 5, 3)
    np.testing.assert_array_equal(layer(image), layer(image.astype(jnp.float32)))


def test_initial_values_as_arrays_in_either_layout():
    weights, bias = random(0, 3, 3, 2, 4, 3), random(1, 1, 1, 4, 3)
    per_group = gconv.nnx.GroupedConv(6, 3, 4, 3, kernel_init=weights, bias_init=bias, rngs=nnx.Rngs(0))
    kernel, flat = gconv.interop.kernel_from_matlab(weights), gconv.interop.bias_from_matlab(bias)
    plain = gconv.nnx.GroupedConv(6, 3, 4, 3, kernel_init=np.asarray(kernel), bias_init=flat, rngs=nnx.Rngs(0))
    for layer in (per_group, plain):
        np.testing.assert_array_equal(layer.kernel[...], kernel)
        np.testing.assert_array_equal(layer.bias[...], flat)
    for group in range(3):
        for filter_ in range(4):
            np.testing.assert_array_equal(kernel[..., group * 4 + filter_], weights[..., filter_, group])
            assert flat[group * 4 + filter_] == bias[0, 0, filter_, group]
    module = gconv.linen.GroupedConv(3, 4, 3, kernel_init=weights, bias_init=bias)
    np.testing.assert_array_equal(module.init(jax.random.key(0), jnp.ones((1, 5, 5, 6)))["params"]["kernel"], kernel)


def test_an_initial_value_is_a_copy():
    kernel = random(0, 3, 3, 1, 2)
    layer = gconv.nnx.GroupedConv(2, 3, 1, 2, kernel_init=kernel, rngs=nnx.Rngs(0))
    assert layer.kernel[...].unsafe_buffer_pointer() != kernel.unsafe_buffer_pointer()


def test_factors_are_metadata_of_the_parameters():
    layer = gconv.nnx.GroupedConv(
        2,
        3,
        1,
        2,
        kernel_learn_rate_factor=0.5,
        bias_learn_rate_factor=2,
        kernel_l2_factor=3,
        bias_l2_factor=4,
        rngs=nnx.Rngs(0),
    )
    metadata = layer.kernel.get_metadata()
    assert (metadata["learn_rate_factor"], metadata["l2_factor"]) == (0.5, 3)
    metadata = layer.bias.get_metadata()
    assert (metadata["learn_rate_factor"], metadata["l2_factor"]) == (2, 4)


def test_metadata_and_sharding_as_in_flax():
    mesh = jax.make_mesh((2,), ("groups",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        metadata = dict(out_sharding=jax.P(None, None, None, "groups"), author="test")
        make = dict(kernel_metadata=metadata, rngs=nnx.Rngs(0))
        ours = gconv.nnx.GroupedConv(4, 3, 2, 2, padding="same", **make)
        theirs = nnx.Conv(4, 4, (3, 3), feature_group_count=2, **make)
        assert ours.kernel.get_metadata()["author"] == "test"
        assert ours.kernel[...].sharding == theirs.kernel[...].sharding
        assert jax.typeof(ours.kernel[...]).sharding.spec == jax.P(None, None, None, "groups")
        x = random(0, 2, 5, 5, 4)
        y = ours(x, out_sharding=jax.P("groups"))
        assert jax.typeof(y).sharding.spec[0] == "groups"
        np.testing.assert_allclose(
            y, gconv.grouped_conv(np.asarray(x), np.asarray(ours.kernel[...]), padding="same"), atol=1e-5
        )


def test_linen_metadata_partitions_the_parameter():
    module = gconv.linen.GroupedConv(3, 1, 2, kernel_metadata=dict(out_sharding=(None, None, None, "groups")))
    boxed = module.init(jax.random.key(0), jnp.ones((1, 5, 5, 2)))["params"]["kernel"]
    assert isinstance(boxed, nn.Partitioned) and boxed.names == (None, None, None, "groups")


def test_layers_survive_nnx_transformations():
    layer = gconv.nnx.GroupedConv(4, 3, 1, "channel-wise", padding="same", rngs=nnx.Rngs(0))
    x = random(0, 2, 5, 5, 4)
    expected = layer(x)
    np.testing.assert_allclose(nnx.jit(lambda m, x: m(x))(layer, x), expected, atol=1e-6)
    graph, state = nnx.split(layer)
    assert hash(graph) == hash(nnx.split(layer)[0])
    np.testing.assert_array_equal(nnx.merge(graph, state)(x), expected)
    np.testing.assert_array_equal(nnx.clone(layer)(x), expected)

    @nnx.vmap(in_axes=(0, None))
    def many(key, x):
        return gconv.nnx.GroupedConv(4, 3, 1, "channel-wise", padding="same", rngs=nnx.Rngs(key))(x)

    assert many(jax.random.split(jax.random.key(0), 3), x).shape == (3, 2, 5, 5, 4)


def test_linen_layers_survive_lifted_transformations():
    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = gconv.linen.GroupedConv(3, 1, "channel-wise", padding="same")
            scan = nn.scan(lambda m, c, _: (m(c), None), variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
            return scan(layer, x, None)[0]

    x = random(0, 2, 5, 5, 4)
    variables = Stack().init(jax.random.key(0), x)
    assert jax.tree.leaves(variables["params"])[-1].shape == (3, 3, 3, 1, 4)
    assert Stack().apply(variables, x).shape == x.shape


WRONG = {
    "groups do not divide": (lambda make: make(10, 3, 1, 4), "`groups` must divide.*10 channels, groups=4.*1, 2, 5, 10"),
    "zero groups": (lambda make: make(10, 3, 1, 0), "`groups` must be at least 1"),
    "groups misspelt": (lambda make: make(10, 3, 1, "channelwise"), '"channel-wise"'),
    "float kernel": (lambda make: make(4, 3.0, 1, 2), "`kernel_size` must be an integer.*3.0.*Did you mean 3"),
    "boolean stride": (lambda make: make(4, 3, 1, 2, strides=True), "`strides` must be an integer, got the boolean"),
    "zero stride": (lambda make: make(4, 3, 1, 2, strides=(1, 0)), r"`strides\[1\]` must be at least 1, got 0"),
    "stride per axis": (lambda make: make(4, 3, 1, 2, strides=(1, 1, 1)), r"2 spatial axes.*length 3.*\(1, 1\)"),
    "padding list": (lambda make: make(4, 3, 1, 2, padding=[1, 2, 3]), r"`padding` does not fit 2 spatial axes.*\[1, 2, 3\]"),
    "negative padding": (lambda make: make(4, 3, 1, 2, padding=-1), "`padding` must be at least 0, got -1"),
    "padding name": (lambda make: make(4, 3, 1, 2, padding="circular"), "padding=\"same\", padding_value='circular'"),
    "causal image": (lambda make: make(4, 3, 1, 2, padding="causal"), "1-D only"),
    "padding value": (lambda make: make(4, 3, 1, 2, padding_value="mirror"), "symmetric-include-edge.*'mirror'"),
    "four axes": (lambda make: make(4, (3, 3, 3, 3), 1, 2), "1, 2 or 3 entries"),
    "channels per group": (lambda make: make(4, 3, 1, 2, num_channels_per_group=3), "contradicts.*4 channels.*groups=2.*2"),
    "initializer name": (lambda make: make(4, 3, 1, 2, kernel_init="xavier"), "`kernel_init` must be one of.*glorot.*'xavier'"),
    "initial shape": (
        lambda make: make(4, 3, 1, 2, kernel_init=np.ones((3, 3, 4, 1))),
        r"`kernel_init`.*\(3, 3, 2, 2\), or per group \(3, 3, 2, 1, 2\); got \(3, 3, 4, 1\)",
    ),
    "bias shape": (lambda make: make(4, 3, 1, 2, bias_init=np.ones(4)), r"`bias_init`.*\(2,\).*got \(4,\)"),
    "negative factor": (lambda make: make(4, 3, 1, 2, kernel_learn_rate_factor=-1), "`kernel_learn_rate_factor`.*at least 0"),
    "integer dtype": (lambda make: make(4, 3, 1, 2, param_dtype=jnp.int32), "`param_dtype` must be a floating"),
    "implementation": (lambda make: make(4, 3, 1, 2, implementation="cudnn"), "`implementation` must be None or one of"),
    "precision": (lambda make: make(4, 3, 1, 2, precision="hihg"), "Precision argument must be one of"),
    "dtype misspelt": (lambda make: make(4, 3, 1, 2, dtype="flot32"), "`dtype` must be a floating.*'flot32'"),
    "metadata": (lambda make: make(4, 3, 1, 2, kernel_metadata=["a"]), "`kernel_metadata` must be a mapping"),
    "factory not called": (
        lambda make: make(4, 3, 1, 2, kernel_init=jax.nn.initializers.he_normal),
        r"`kernel_init` is a function that makes an initializer: call it.*he_normal\(",
    ),
}


@pytest.mark.parametrize("build, message", WRONG.values(), ids=WRONG)
def test_a_wrong_nnx_layer_says_so_at_construction(build, message):
    def make(*args, **options):
        return gconv.nnx.GroupedConv(*args, **options, rngs=nnx.Rngs(0))

    with pytest.raises((ValueError, TypeError), match=message):
        build(make)


@pytest.mark.parametrize("build, message", WRONG.values(), ids=WRONG)
def test_a_wrong_linen_layer_says_so_as_early_as_it_can(build, message):
    needs_input = ("10 channels", "contradicts", "kernel_init", "bias_init")

    def make(in_features, *args, **options):
        module = gconv.linen.GroupedConv(*args, **options)
        assert any(text in message for text in needs_input), "this error does not need the input"
        return module.init(jax.random.key(0), jnp.ones((1, 5, 5, in_features)))

    with pytest.raises((ValueError, TypeError), match=message):
        build(make)


@pytest.mark.parametrize("shape", [(5, 4), (1, 5, 5, 3), (4,)])
def test_a_wrong_input_names_the_shape_that_the_layer_was_built_for(shape):
    layer = gconv.nnx.GroupedConv(4, 3, 1, 2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"\(\*batch, height, width, 4\).*in_features=4.*kernel_size=\(3, 3\)"):
        layer(jnp.ones(shape))


@pytest.mark.parametrize("options", [dict(output_padding=5), dict(strides=2, padding="same", output_padding=1)])
def test_a_wrong_output_padding_says_so_at_construction(options):
    with pytest.raises(ValueError, match="`output_padding"):
        gconv.nnx.GroupedConvTranspose(4, 3, 1, 4, **options, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="`output_padding"):
        gconv.linen.GroupedConvTranspose(3, 1, 4, **options)


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("name", ["glorot", "he", "narrow-normal", "orthogonal"])
def test_complex_parameters(name):
    layer = gconv.nnx.GroupedConv(16, 5, 8, 2, kernel_init=name, param_dtype=jnp.complex64, rngs=nnx.Rngs(0))
    kernel = np.asarray(layer.kernel[...])
    assert layer(jnp.ones((1, 6, 6, 16))).dtype == jnp.complex64 and np.abs(kernel.imag).max() > 0
    if name == "glorot":
        expected = 2 / (25 * 8 + 25 * 8)
        assert abs((np.abs(kernel) ** 2).mean() / expected - 1) < 0.1


@pytest.mark.parametrize("wrong", [[1.0, 2.0], 3.0])
def test_an_input_that_is_no_array_is_named(wrong):
    with pytest.raises((TypeError, ValueError), match="the input must"):
        gconv.linen.GroupedConv(3, 1, 4).init(jax.random.key(0), wrong)
    with pytest.raises((TypeError, ValueError), match="the input must"):
        gconv.nnx.GroupedConv(4, 3, 1, 4, rngs=nnx.Rngs(0))(wrong)


# --- an integer kernel_size is a square window, and never takes a batch for an axis of an image ---------------------------

KINDS = ("GroupedConv", "GroupedConvTranspose")


def calls(kind, kernel_size, **options):
    """The layer in both Flax APIs, as functions of x with 6 channels."""
    yield getattr(gconv.nnx, kind)(6, kernel_size, 4, 2, **options, rngs=nnx.Rngs(0))
    module = getattr(gconv.linen, kind)(kernel_size, 4, 2, **options)
    yield lambda x: module.init_with_output(jax.random.key(0), x)[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("padding", [0, 1, "same"])
@pytest.mark.parametrize("shape", [(2, 50, 6), (50, 2, 6), (1, 7, 6), (9, 11, 6)])
def test_a_batch_of_1d_data_is_no_image(kind, padding, shape):
    message = rf"image of {shape[0]} x {shape[1]}.*1-D data kernel_size=\(3,\).*x\[None\], or kernel_size=\(3, 3\)"
    for call in calls(kind, 3, padding=padding):
        with pytest.raises(ValueError, match=message):
            call(jnp.ones(shape))


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_refusal_says_works_does(kind):
    batch, image = random(0, 2, 50, 6), random(1, 9, 11, 6)
    for line in calls(kind, (3,), padding=1):
        assert line(batch).shape == (2, 50, 8)
        # Each sample of the batch by itself: nothing is mixed.
        np.testing.assert_allclose(line(batch)[1], line(batch[1]), rtol=1e-5, atol=1e-5)
    for of_integer, of_tuple in zip(calls(kind, 3, padding=1), calls(kind, (3, 3), padding=1), strict=True):
        assert of_tuple(image).shape == (9, 11, 8)
        np.testing.assert_allclose(of_tuple(image), of_integer(image[None])[0], rtol=1e-5, atol=1e-5)
    for volume in calls(kind, (3, 3, 3), padding=1):
        assert volume(random(2, 5, 9, 7, 6)).shape == (5, 9, 7, 8), "a tuple takes one example without a batch"


@pytest.mark.parametrize("kind", KINDS)
def test_other_errors_of_shape_tell_the_other_windows_too(kind):
    hint = r"integer `kernel_size` is a square window, \(3, 3\): for 1-D data kernel_size=\(3,\), for 3-D .*=\(3, 3, 3\)"
    for call in calls(kind, 3, padding=0 if kind == "GroupedConv" else 4):
        with pytest.raises(ValueError, match=f"would be empty.*{hint}"):
            call(jnp.ones((4, 2, 50, 6)))  # two batch axes of 1-D data
        with pytest.raises(ValueError, match=rf"\(\*batch, height, width, .*{hint}"):
            call(jnp.ones((50, 6)))
    for call in calls(kind, (3, 3), padding=0 if kind == "GroupedConv" else 4):
        with pytest.raises(ValueError, match="would be empty") as raised:
            call(jnp.ones((4, 2, 50, 6)))
        assert "integer `kernel_size`" not in str(raised.value), "nothing was meant otherwise"


def test_what_interop_makes_takes_single_images():
    layer = gconv.nnx.GroupedConv(6, 3, 4, 2, rngs=nnx.Rngs(0))
    image = random(0, 9, 11, 6)
    for made in (gconv.interop.from_gconv(layer), gconv.interop.from_gconv(layer).to_nnx()):
        np.testing.assert_allclose(made(image), layer(image[None])[0], rtol=1e-5, atol=1e-5)


# --- attributes of an NNX layer that are set after construction: they act, or say why not --------------------------------

FACTORS = ("kernel_learn_rate_factor", "bias_learn_rate_factor", "kernel_l2_factor", "bias_l2_factor")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FACTORS)
def test_a_factor_set_later_acts(kind, name):
    layer = getattr(gconv.nnx, kind)(4, 3, 1, 2, **{name: 3}, rngs=nnx.Rngs(0))
    assert getattr(layer, name) == 3
    setattr(layer, name, 0.25)
    parameter, factor = name.split("_", 1)
    assert getattr(layer, name) == getattr(layer, parameter).get_metadata()[factor] == 0.25
    others = {other: getattr(layer, other) for other in FACTORS if other != name}
    assert others == {other: default for other, default in zip(FACTORS, (1, 1, 1, 0), strict=True) if other != name}
    found = gconv.optim.factors(layer)
    assert getattr(found, "l2" if "l2" in name else "learn_rate")[parameter] == 0.25
    assert getattr(nnx.clone(layer), name) == getattr(nnx.merge(*nnx.split(layer)), name) == 0.25
    with pytest.raises(ValueError, match=f"`{name}` must be a finite number of at least 0, got -1"):
        setattr(layer, name, -1)


def test_a_factor_set_later_freezes():
    layer = gconv.nnx.GroupedConv(4, 3, 1, 2, rngs=nnx.Rngs(0))
    layer.kernel_learn_rate_factor = 0
    with pytest.raises(ValueError, match="'kernel' declares"):
        nnx.Optimizer(layer, gconv.optim.sgdm(0.1), wrt=nnx.Param)
    optimizer = nnx.Optimizer(layer, gconv.optim.sgdm(0.1, factors=gconv.optim.factors(layer)), wrt=nnx.Param)
    before, bias = np.asarray(layer.kernel[...]), np.asarray(layer.bias[...])
    optimizer.update(layer, nnx.grad(lambda m: m(random(0, 2, 5, 5, 4)).sum())(layer))
    np.testing.assert_array_equal(layer.kernel[...], before)
    assert not np.array_equal(layer.bias[...], bias)


def test_a_layer_without_bias_has_no_factors_of_it():
    layer = gconv.nnx.GroupedConv(4, 3, 1, 2, use_bias=False, rngs=nnx.Rngs(0))
    assert layer.bias_learn_rate_factor is layer.bias_l2_factor is None
    with pytest.raises(AttributeError, match="`bias_l2_factor` has nothing to act on.*use_bias=False"):
        layer.bias_l2_factor = 1
    layer.kernel = nnx.Param(layer.kernel[...])  # whose metadata says nothing: what the optimizer takes then
    assert (layer.kernel_learn_rate_factor, layer.kernel_l2_factor) == (1, 1)


CHANGES = [
    ("GroupedConv", dict(strides=(2, 1))),
    ("GroupedConv", dict(padding=[1, 0, 2, 1])),
    ("GroupedConv", dict(padding="same", padding_value="replicate")),
    ("GroupedConv", dict(dilation=2, padding=2)),
    ("GroupedConv", dict(dtype=jnp.bfloat16)),
    ("GroupedConv", dict(precision="highest", implementation="lax")),
    ("GroupedConvTranspose", dict(strides=2, output_padding=1)),
    ("GroupedConvTranspose", dict(padding="same", dtype="float16")),
]


@pytest.mark.parametrize("kind, changes", CHANGES, ids=[f"{k}-{'-'.join(c)}" for k, c in CHANGES])
def test_an_option_set_later_acts_as_at_construction(kind, changes):
    x, make = random(0, 2, 9, 7, 4), getattr(gconv.nnx, kind)
    layer, expected = make(4, 3, 3, 2, rngs=nnx.Rngs(0)), make(4, 3, 3, 2, **changes, rngs=nnx.Rngs(0))
    before = layer(x)
    for name, value in changes.items():
        setattr(layer, name, value)
        assert getattr(layer, name) == getattr(expected, name)
    assert layer.config == expected.config
    np.testing.assert_array_equal(layer(x), expected(x))
    assert nnx.split(layer)[0] == nnx.split(expected)[0], "the same layer for JAX"
    if "precision" not in changes:
        assert before.shape != layer(x).shape or before.dtype != layer(x).dtype or not np.array_equal(before, layer(x))
    with pytest.raises(ValueError, match="`strides` must be at least 1, got 0"):
        layer.strides = 0


CONSTRUCTOR = [*inspect.signature(gconv.nnx.GroupedConv.__init__).parameters][1:]


@pytest.mark.parametrize("name", CONSTRUCTOR)
def test_no_argument_of_the_constructor_is_ignored_as_an_attribute(name):
    layer = gconv.nnx.GroupedConv(4, 3, 3, 2, rngs=nnx.Rngs(0))
    acts = {"strides", "padding", "dilation", "input_dilation", "padding_value", "name", "mask", *FACTORS}
    acts |= {"activation", "dtype", "precision", "implementation", "preferred_element_type"}
    values = {"padding_value": 1, "dtype": jnp.float16, "precision": "high", "implementation": "lax", "name": "conv"}
    values |= {"preferred_element_type": jnp.float32, "activation": "relu", "mask": np.ones((3, 3, 2, 6))}
    if name in acts:
        setattr(layer, name, values.get(name, 2))
        expected = values.get(name, 2)
        assert getattr(layer, name) is expected or getattr(layer, name) in (expected, (2, 2), ((2, 2), (2, 2)))
        assert name in ("name", "mask") or name not in vars(layer), "it stands where it acts, not beside it"
        return
    state = nnx.to_pure_dict(nnx.state(layer))
    with pytest.raises(AttributeError, match=rf"`{name}` of GroupedConv (is|follows)"):
        setattr(layer, name, 2)
    assert nnx.to_pure_dict(nnx.state(layer)).keys() == state.keys() and name not in set(vars(layer)) - {"in_features"}


@pytest.mark.parametrize(
    "kind, name, message",
    [
        ("GroupedConv", "output_padding", "GroupedConv has no `output_padding`"),
        ("GroupedConvTranspose", "padding_value", "GroupedConvTranspose has no `padding_value`"),
        ("GroupedConv", "out_features", r"groups \* filters_per_group"),
        ("GroupedConv", "padding_size", "follows from `padding`"),
        ("GroupedConv", "WeightLearnRateFactor", "what MATLAB calls so is `kernel_learn_rate_factor`"),
        ("GroupedConvTranspose", "Stride", "what MATLAB calls so is `strides`"),
    ],
)
def test_other_names_that_would_be_ignored(kind, name, message):
    layer = getattr(gconv.nnx, kind)(4, 3, 3, 2, rngs=nnx.Rngs(0))
    with pytest.raises(AttributeError, match=message):
        setattr(layer, name, jnp.ones(3))
    layer.anything_else = 5  # one's own attributes are welcome, as in any NNX module
    assert layer.anything_else == 5


def test_options_set_inside_nnx_jit_stay():
    layer, x = gconv.nnx.GroupedConv(4, 3, 1, 4, padding=1, rngs=nnx.Rngs(0)), random(0, 1, 9, 9, 4)

    @nnx.jit
    def call(layer, x):
        layer.strides = 2
        return layer(x)

    assert call(layer, x).shape == (1, 5, 5, 4) and layer.strides == (2, 2)
    layer.strides = 3
    assert nnx.jit(lambda m, x: m(x))(layer, x).shape == (1, 3, 3, 4)


def test_fields_of_a_linen_module_set_before_its_first_use_act():
    module, x = gconv.linen.GroupedConv(3, 4, 2), random(0, 1, 9, 9, 6)
    module.kernel_learn_rate_factor, module.strides = 5, 2
    variables = module.init(jax.random.key(0), x)
    assert gconv.optim.factors(variables).learn_rate == {"kernel": 5, "bias": 1}
    assert module.apply(variables, x).shape == (1, 4, 4, 8)
    module.bias_l2_factor = -1
    with pytest.raises(ValueError, match="`bias_l2_factor` must be a finite number of at least 0, got -1"):
        module.init(jax.random.key(0), x)


def test_rngs_must_be_rngs():
    with pytest.raises(TypeError, match=r"nnx.Rngs\(0\)"):
        gconv.nnx.GroupedConv(4, 3, 1, 2, rngs=jax.random.key(0))
