"""The products of squeeze-and-excite before pointwise convolutions: which are taken in, and what they compute."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from foreign import normal
from jax import lax
from process import printed_on_any_threads
from test_fuse import SPECS, TRANSFORMED, check_exported, check_on_four_devices, close, equations

import gconv
from gconv import native
from gconv.backends.native import takes_gate
from gconv.fusion import epilogue
from gconv.geometry import geometry

built = pytest.mark.skipif(native.load()[1] is not None, reason=f"native: {native.load()[1]}")
NAMES = {3: ("NWC", "WIO", "NWC"), 4: ("NHWC", "HWIO", "NHWC"), 5: ("NDHWC", "DHWIO", "NDHWC")}
TOLERANCE = {"float64": 1e-12, "float32": 2e-5, "bfloat16": 4e-2, "float16": 4e-3}


def array(seed: int, *shape, dtype="float32"):
    return jnp.asarray(normal(seed, *shape), dtype)


def conv(x, w, **options):
    options = {"window_strides": (1,) * (x.ndim - 2), "padding": "SAME", "dimension_numbers": NAMES[x.ndim]} | options
    return lax.conv_general_dilated(x, w, **options)


def excited(x, depthwise, squeeze, excite, project, *, repeat=lambda gate, y: gate):
    """A channel-wise convolution, squeeze-and-excite, and the pointwise convolution with batch norm that follows it."""
    y = jax.nn.silu(conv(x, depthwise, feature_group_count=x.shape[-1]))
    gate = jax.nn.sigmoid(jax.nn.relu(y.mean(range(1, y.ndim - 1), keepdims=True) @ squeeze) @ excite)
    return conv(y * repeat(gate, y), project) * 2 + jnp.arange(project.shape[-1], dtype=x.dtype).reshape(
        (1,) * (y.ndim - 1) + (-1,)
    )


def operands(*shape, filters=12, dtype="float32"):
    """Of `excited`, for x of a shape."""
    rank, channels = len(shape) - 2, shape[-1]
    weights = ((3,) * rank + (1, channels), (channels, 4), (4, channels), (1,) * rank + (channels, filters))
    return [array(i, *s, dtype=dtype) / (1 if not i else s[-2] ** 0.5) for i, s in enumerate((shape, *weights))]


def last(fused):
    return fused.report.convolutions[-1].parts


def gates(function, *args) -> int:
    """How many calls of the kernels a lowered program holds that multiply by a gate."""
    text = jax.jit(function).lower(*args).as_text()
    return sum(any(f"parts = {8 + n} : i64" in line for n in range(8)) for line in text.splitlines() if "@gconv_" in line)


# One image and several, of which stretches of pixels meet two; few pixels and many; channels that are no whole vectors, and so
# many that pixels crowd the nearest cache; few filters and many.
SHAPES = [
    ((2, 17, 19, 40), 24),
    ((1, 7, 7, 200), 70),
    ((5, 9, 11, 13), 5),
    ((3, 7, 7, 1024), 33),
    ((2, 40, 41, 16), 100),
    ((2, 301, 24), 8),
    ((2, 5, 6, 7, 19), 20),
]


@pytest.mark.parametrize(("shape", "filters"), SHAPES, ids=str)
def test_against_the_function(shape, filters):
    args = operands(*shape, filters=filters)
    fused = gconv.fuse(excited)
    close(fused(*args), jax.jit(excited)(*args), 2e-5)
    assert last(fused) == ("gate", "scale", "shift")
    products = [e for e in equations(jax.make_jaxpr(fused)(*args).jaxpr) if e.primitive.name == "mul"]
    assert shape not in [e.outvars[0].aval.shape for e in products]
    if native.load()[0] is not None:
        assert gates(fused, *args) == 1


@built
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("shape", "filters"), SHAPES[:5], ids=str)
def test_the_primitive_against_numpy(shape, filters, dtype, x64):
    x, gate = array(0, *shape, dtype=dtype), array(1, shape[0], shape[-1], dtype="float64" if dtype == "float64" else "float32")
    w, residual = array(2, 1, 1, shape[-1], filters, dtype=dtype), array(3, *shape[:-1], filters, dtype=dtype)
    _, g = geometry(shape, w.shape)
    how = dict(geometry=g, dtype=dtype, precision=None, implementation="native")
    run = partial(epilogue.bind, "y", {"x": x, "w": w}, gate=gate, residual=residual, **how)
    wide = lambda a: np.asarray(a, np.float64)
    expected = np.einsum("nhwc,nc,ck->nhwk", *map(wide, (x, gate, w[0, 0]))) + wide(residual)
    for frozen in (False, True):
        found = jax.jit(partial(run, frozen=frozen))()
        assert found.dtype == dtype
        np.testing.assert_allclose(wide(found), expected, rtol=0, atol=TOLERANCE[dtype] * np.abs(expected).max())
    taken = takes_gate(g, dtype, shape[0], None)
    assert gates(run) == taken and (taken or (dtype == "bfloat16" and native.instruction_set() == "avx512_bf16"))


def test_an_infinity_and_a_nan_stay_in_their_pixel():
    x, w = array(0, 2, 9, 9, 24), array(1, 1, 1, 24, 16)
    x, gate = x.at[0, 3, 4, 5].set(np.inf), array(2, 2, 1, 1, 24).at[1, 0, 0, 7].set(np.nan)
    function = lambda x, gate, w: (conv(x * gate, w), x.sum())
    found, expected = gconv.fuse(function)(x, gate, w)[0], function(x, gate, w)[0]
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))
    assert np.isnan(found[1]).all() and (~np.isfinite(found[0])).sum() == 16


@pytest.mark.parametrize(
    "repeat",
    (
        lambda gate, y: jnp.broadcast_to(gate, y.shape),
        lambda gate, y: lax.broadcast_in_dim(gate.reshape(gate.shape[0], -1), y.shape, (0, 3)),
        lambda gate, y: gate[:1],  # the same for all images
        lambda gate, y: gate[..., :1],  # and for all channels
        lambda gate, y: gate[0, 0, 0, 0],
        lambda gate, y: lax.broadcast_in_dim(gate[0, 0, 0, 0], y.shape, ()),
        lambda gate, y: lax.broadcast_in_dim(gate[0, 0, 0], y.shape, (3,)),
    ),
    ids=range(7),
)
def test_spellings(repeat):
    function, args = partial(excited, repeat=repeat), operands(2, 13, 12, 16)
    fused = gconv.fuse(function)
    close(fused(*args), jax.jit(function)(*args), 2e-5)
    assert last(fused)[0] == "gate"
    turned = lambda x, gate, w: (conv(gate * x, w), x.sum())
    fused, args = gconv.fuse(turned), (array(0, 2, 9, 9, 24), array(2, 2, 1, 1, 24), array(1, 1, 1, 24, 16))
    close(fused(*args)[0], turned(*args)[0], 2e-5)
    assert last(fused) == ("gate",)


def test_gconvs_own_layers_and_an_activation():
    def function(x, gate, w):
        return jax.nn.relu6(gconv.grouped_conv(x * gate, w, jnp.ones(8))), x.max()

    args = array(0, 2, 9, 9, 24), array(2, 2, 1, 1, 24), array(1, 1, 1, 24, 8)
    fused = gconv.fuse(function)
    close(fused(*args)[0], function(*args)[0], 2e-5)
    assert last(fused) == ("gate", "shift", "relu6")
    again = gconv.fuse(fused)
    close(again(*args)[0], function(*args)[0], 2e-5)


LEFT = {
    "a window": lambda x, gate, w: (conv(x * gate, jnp.tile(w, (3, 3, 1, 1))), x.sum()),
    "strides": lambda x, gate, w: (conv(x * gate, w, window_strides=(2, 2)), x.sum()),
    "padding": lambda x, gate, w: (conv(x * gate, w, padding=((1, 1), (0, 0))), x.sum()),
    "groups": lambda x, gate, w: (conv(x * gate, w[:, :, :12], feature_group_count=2), x.sum()),
    "two readers": lambda x, gate, w: (lambda product: (conv(product, w), product.sum(), x.sum()))(x * gate),
    "a result": lambda x, gate, w: (lambda product: (conv(product, w), product, x.sum()))(x * gate),
    "a factor of each pixel": lambda x, gate, w: (conv(x * x[..., :1], w), x.sum()),
    "one reader": lambda x, gate, w: conv(x * gate, w),
    "a sum": lambda x, gate, w: (conv(x + gate, w), x.sum()),
    "one pixel": lambda x, gate, w: (conv(x[:, :1, :1] * gate, w), x.sum()),
    "another layout": lambda x, gate, w: (
        conv((x * gate).transpose(0, 3, 1, 2), w, dimension_numbers=("NCHW", "HWIO", "NHWC")),
        x.sum(),
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left(name):
    args = array(0, 2, 9, 9, 24), array(2, 2, 1, 1, 24), array(1, 1, 1, 24, 16)
    fused = gconv.fuse(LEFT[name])
    close(jax.tree.leaves(fused(*args))[0], jax.tree.leaves(LEFT[name](*args))[0], 2e-5)
    assert "gate" not in last(fused)


def test_factors_that_the_convolution_before_takes_in():
    """With one image a gate is a factor of each channel: where nothing else reads its product, the first takes it in."""

    def function(x, gate, v, w):
        return conv(conv(x, v) * gate, w)

    args = array(0, 1, 9, 9, 24), array(2, 1, 1, 1, 20), array(1, 1, 1, 24, 20), array(3, 1, 1, 20, 16)
    fused = gconv.fuse(function)
    close(fused(*args), function(*args), 2e-5)
    assert [row.parts for row in fused.report.convolutions] == [("scale",), ()]


def test_derivatives_of_the_primitive():
    """Outside of `fuse`, whose derivatives are those of the function."""
    x, gate, w = array(0, 2, 6, 7, 24), array(1, 2, 24), array(2, 1, 1, 24, 10)
    how = dict(geometry=geometry(x.shape, w.shape)[1], dtype="float32", precision=None, implementation=None)
    ours = lambda x, gate, w: (epilogue.bind("y", {"x": x, "w": w}, gate=gate, **how) ** 2).sum()
    plain = lambda x, gate, w: (conv(x * gate[:, None, None], w) ** 2).sum()
    every = (0, 1, 2)
    for a, b in zip(jax.jit(jax.grad(ours, every))(x, gate, w), jax.grad(plain, every)(x, gate, w), strict=True):
        close(a, b, 2e-5)
    of_gradient = lambda f: jax.jvp(jax.grad(f, 1), (x, gate, w), (x, gate, w))[1]
    close(of_gradient(ours), of_gradient(plain), 2e-5)
    mapped = lambda f: jax.vmap(f, in_axes=(None, 0, None))(x, jnp.stack([gate, 2 * gate]), w)
    close(mapped(ours), mapped(plain), 2e-5)


# --- modes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRANSFORMED)
def test_transformations(name):
    transform, several = TRANSFORMED[name]
    _, *ws, project = operands(2, 10, 11, 16)
    function = lambda x, w, p: excited(x, *w, p)
    args = array(7, *((3,) if several else ()), 2, 10, 11, 16), ws, project
    close(transform(gconv.fuse(function))(*args), transform(function)(*args), 1e-4)


def test_mapped_images_are_images():
    args = operands(2, 13, 12, 16)
    mapped = jax.vmap(gconv.fuse(excited), in_axes=(0, *(None,) * 4))
    several = jnp.stack([args[0], 2 * args[0]])
    close(mapped(several, *args[1:]), jax.vmap(excited, in_axes=(0, *(None,) * 4))(several, *args[1:]), 2e-5)
    if native.load()[0] is not None:
        assert gates(mapped, several, *args[1:]) == 1


def test_frozen_weights():
    x, *weights = operands(2, 13, 12, 32)

    @jax.tree_util.register_pytree_node_class
    class Model:
        def __init__(self, *weights):
            self.weights = weights

        def __call__(self, x):
            return excited(x, *self.weights)

        def tree_flatten(self):
            return self.weights, None

        @classmethod
        def tree_unflatten(cls, _, weights):
            return cls(*weights)

    fast = gconv.fuse(Model(*weights), frozen=True)
    for images in (x, 2 * x):  # the first call packs
        close(fast(images), excited(images, *weights), 2e-5)
    assert last(fast)[0] == "gate"


def test_without_jit_and_with_checks():
    args = operands(2, 13, 12, 16)
    expected = excited(*args)
    with jax.disable_jit():
        close(gconv.fuse(excited)(*args), expected, 2e-5)
    with jax.debug_nans(True), jax.check_tracer_leaks(True):
        close(gconv.fuse(excited)(*args), expected, 2e-5)


def test_an_exported_program_holds_xlas_operations_only():
    check_exported(excited, *operands(2, 13, 12, 16))


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_on_four_devices(spec):
    check_on_four_devices(excited, spec, *operands(8, 12, 12, 16))


def test_without_kernels(monkeypatch, tmp_path):
    args = operands(2, 13, 12, 16)
    native.load.cache_clear()
    try:
        monkeypatch.setattr(native, "__path__", [str(tmp_path)])
        fused = gconv.fuse(excited)
        close(fused(*args), excited(*args), 2e-5)
        assert last(fused)[0] == "gate" and not gates(fused, *args)
    finally:
        native.load.cache_clear()


@built
@pytest.mark.parametrize("taken", (False, True))
def test_where_xla_multiplies_by_the_gate_what_follows_stays_the_kernels(taken, monkeypatch):
    if not taken:  # as where they multiply pairs of bfloat16
        monkeypatch.setattr("gconv.backends.native.takes_gate", lambda *_: False)
    args = operands(2, 13, 12, 32)
    fused = gconv.fuse(excited)
    close(fused(*args), jax.jit(excited)(*args), 2e-5)
    text = jax.jit(fused).lower(*args).as_text()
    assert [f"parts = {n} : i64" in text for n in (3, 11)] == [not taken, taken]


@built
def test_in_half_precision_what_follows_stays_the_kernels():
    """Also where they multiply pairs of bfloat16, and XLA multiplies by the gate."""
    args = operands(2, 13, 12, 32, dtype="bfloat16")
    fused = gconv.fuse(excited)
    close(fused(*args), jax.jit(excited)(*args), 4e-2)
    text = jax.jit(fused).lower(*args).as_text()
    assert any(f"parts = {n} : i64" in line for n in (3, 11) for line in text.splitlines() if "@gconv_" in line)


PROGRAM = """
import hashlib, json, jax, jax.numpy as jnp, numpy as np
from gconv.fusion import epilogue
from gconv.geometry import geometry
hashes = []
for shape, filters in (((1, 56, 57, 96), 24), ((8, 7, 7, 672), 112), ((1, 14, 14, 480), 80), ((3, 90, 90, 16), 16)):
    random, shapes = np.random.default_rng(0), (shape, (1, 1, shape[-1], filters), (shape[0], shape[-1]))
    x, w, gate = (random.standard_normal(s).astype(np.float32) for s in shapes)
    how = dict(geometry=geometry(shape, w.shape)[1], dtype="float32", precision=None, implementation="native")
    y = jax.jit(lambda x, w, gate: epilogue.bind("y", {"x": x, "w": w}, gate=gate, **how))(x, w, gate)
    hashes.append(hashlib.sha256(np.asarray(y).tobytes()).hexdigest())
print(json.dumps(hashes))
"""


@built
def test_the_bits_depend_on_no_number_of_threads():
    assert len(set(printed_on_any_threads(PROGRAM))) == 4
