"""`gconv.install` and `gconv.accelerated`: programs of others, whose convolutions of lax gconv computes."""

import copy
import pickle
import subprocess
import sys
import threading
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from foreign import normal
from jax import lax
from jax.experimental import checkify
from jax.experimental.jet import jet
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import gconv
from gconv import backends

NATIVE = backends.native.native.load()[1] is None
NHWC = ("NHWC", "HWIO", "NHWC")


@pytest.fixture
def installed():
    yield gconv.install()
    gconv.uninstall()


@pytest.fixture(autouse=True)
def uninstalled_afterwards():
    yield
    gconv.uninstall()


def arrays(*shapes):
    return tuple(jnp.asarray(normal(i, *shape), jnp.float32) for i, shape in enumerate(shapes))


X, KERNEL = arrays((2, 9, 8, 8), (3, 3, 4, 8))


def conv(x, kernel, **options):
    options = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": NHWC, **options}
    return lax.conv_general_dilated(x, kernel, feature_group_count=x.shape[-1] // kernel.shape[2], **options)


def loss(x, kernel, **options):
    return (conv(x, kernel, **options) ** 2).sum()


def scopes(function, *operands) -> set[str]:
    """The roles that a program runs, read off its lowered text."""
    text = jax.jit(lambda *a: function(*a)).lower(*operands).as_text(debug_info=True)
    return {role for role in "yxw" if f"gconv_{role}_" in text}


def close(got, expected, tolerance=2e-5):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        a, b = (np.asarray(v, np.float64) for v in (a, b))
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(np.abs(b).max(initial=0), 1))


# --- for the process -------------------------------------------------------------------------------------------------


def test_what_was_compiled_before_computes_by_gconv_after_it_and_by_lax_after_uninstall():
    compiled = jax.jit(conv)
    expected = compiled(X, KERNEL)
    report = gconv.install()
    before = report.taken.total()
    close(compiled(X, KERNEL), expected)
    assert report.taken.total() == before + 1
    assert scopes(compiled, X, KERNEL) == {"y"}
    assert gconv.install() is report
    gconv.uninstall(), gconv.uninstall()
    counted = report.taken.total()
    assert scopes(compiled, X, KERNEL) == set()
    np.testing.assert_array_equal(compiled(X, KERNEL), expected)
    assert report.taken.total() == counted


def test_outside_jit_too(installed):
    before = installed.taken.total()
    x, kernel = arrays((1, 5, 7, 6), (3, 3, 1, 6))
    conv(x, kernel)
    assert installed.taken.total() == before + 1


@pytest.mark.usefixtures("uncached")
def test_threads_install_and_uninstall_at_once():
    expected = jax.jit(conv)(X, KERNEL)
    errors = []

    def work(i):
        try:
            for _ in range(5):
                gconv.install()
                close(jax.jit(lambda x, k: conv(x, k) + i - i)(X, KERNEL), expected)
                gconv.uninstall()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(4)]
    [t.start() for t in threads], [t.join(120) for t in threads]
    assert not errors and scopes(conv, X, KERNEL) == set()


TRANSFORMED = {
    "gradients": (jax.grad(loss, (0, 1)), {"x", "w", "y"}),
    "forward": (lambda x, k: jax.jvp(conv, (x, k), (x, k)), {"y"}),
    "hessian": (lambda x, k: jax.jvp(jax.grad(loss, 1), (x, k), (x, k)), {"x", "w", "y"}),
    "vmap of x": (lambda x, k: jax.vmap(conv, (0, None))(jnp.stack([x, -x]), k), {"y"}),
    "vmap of the kernel": (lambda x, k: jax.vmap(conv, (None, 0))(x, jnp.stack([k, -k])), {"y"}),
    "vmap of both": (lambda x, k: jax.vmap(jax.grad(loss, (0, 1)))(jnp.stack([x, -x]), jnp.stack([k, k])), {"x", "w", "y"}),
    "scan": (lambda x, k: lax.scan(lambda c, k: (conv(c, k), ()), x, jnp.stack([k, -k]))[0], {"y"}),
    "gradient of scan": (jax.grad(lambda x, k: loss(lax.scan(lambda c, k: (conv(c, k), ()), x, k[None])[0], k), 1), {"y", "w"}),
    "remat": (jax.grad(jax.checkpoint(loss), (0, 1)), {"x", "w", "y"}),
    "inner jit": (jax.grad(lambda x, k: jax.jit(loss)(x, k)), {"x", "y"}),
    "strides": (jax.grad(partial(loss, window_strides=(2, 3)), (0, 1)), {"x", "w", "y"}),
    "dilated": (jax.grad(partial(loss, rhs_dilation=(2, 1)), (0, 1)), {"x", "w", "y"}),
    "transposed": (jax.grad(partial(loss, lhs_dilation=(2, 2), padding=((1, 2), (2, 1))), (0, 1)), {"x", "w", "y"}),
}


@pytest.mark.parametrize("name", TRANSFORMED)
@pytest.mark.parametrize("how", ("installed", "accelerated inside", "accelerated outside"))
def test_every_transformation(how, name):
    function, wanted = TRANSFORMED[name]
    expected = jax.jit(function)(X, KERNEL)
    if how == "installed":
        gconv.install()
    fast = gconv.accelerated(function) if how == "accelerated inside" else function
    run = gconv.accelerated(jax.jit(fast)) if how == "accelerated outside" else jax.jit(fast)
    close(run(X, KERNEL), expected)
    text = run.lower(X, KERNEL).as_text(debug_info=True)
    roles = {role for role in "yxw" if f"gconv_{role}_" in text}
    # Which role an input gradient without strides is, y or x, is a question of layout only.
    assert "w" in roles if "w" in wanted else roles
    assert not roles - wanted - {"x", "y"}


def custom(x, kernel):
    """A convolution with a derivative of its user's own, which convolves too."""

    @jax.custom_vjp
    def function(x, kernel):
        return conv(x, kernel)

    function.defvjp(
        lambda x, kernel: (conv(x, kernel), (x, kernel)),
        lambda kept, ct: jax.vjp(conv, *kept)[1](2 * ct),
    )
    return (function(x, kernel) ** 2).sum()


@pytest.mark.parametrize("how", ("installed", "accelerated"))
def test_custom_rules(how):
    gradient = jax.grad(custom, (0, 1))
    expected = jax.jit(gradient)(X, KERNEL)
    if how == "installed":
        gconv.install()
    run = gradient if how == "installed" else gconv.accelerated(gradient)
    close(jax.jit(run)(X, KERNEL), expected)
    assert "w" in scopes(run, X, KERNEL)


def test_what_knows_laxs_primitive_goes_on(installed):
    """The jaxpr is lax's: policies of remat, jet, checkify, and whoever counts equations or FLOPs."""
    programs = [str(jax.make_jaxpr(lambda *a: jax.grad(loss, (0, 1))(*a))(X, KERNEL))]
    gconv.uninstall()
    programs.append(str(jax.make_jaxpr(lambda *a: jax.grad(loss, (0, 1))(*a))(X, KERNEL)))
    gconv.install()
    assert programs[0] == programs[1]
    count = lambda function: str(jax.make_jaxpr(function)(X, KERNEL)).count("conv_general_dilated[")
    saved = jax.checkpoint(lambda x, k: conv(jnp.sin(conv(x, k)), k).sum(), policy=jax.checkpoint_policies.dots_saveable)
    again = jax.checkpoint(lambda x, k: conv(jnp.sin(conv(x, k)), k).sum())
    assert count(jax.grad(again)) > count(jax.grad(saved))
    gconv.uninstall()
    expected = jet(conv, (X, KERNEL), ((X,), (KERNEL,)))
    gconv.install()
    close(jet(conv, (X, KERNEL), ((X,), (KERNEL,))), expected)
    error, y = checkify.checkify(jax.jit(conv), errors=checkify.float_checks)(X.at[0, 0, 0, 0].set(jnp.nan), KERNEL)
    assert "nan generated by primitive: conv_general_dilated" in error.get()


def test_programs_that_are_exported_hold_xlas_operations_only(installed):
    for function in (conv, jax.grad(loss, (0, 1))):
        exported = jax.export.export(jax.jit(lambda *a, f=function: f(*a)), platforms=("cpu", "cuda", "tpu"))(X, KERNEL)
        assert "gconv_grouped_conv" not in exported.mlir_module()
        gconv.uninstall()
        close(exported.call(X, KERNEL), function(X, KERNEL))
        gconv.install()


def test_where_lax_is_chosen_its_own_rule_runs_untouched():
    """On CUDA one group, on any platform integers: the same text, but for the names that say where in the source."""
    cases = [("cuda", arrays((2, 9, 8, 8), (3, 3, 8, 8))), ("tpu", (X, KERNEL)), ("cpu", (X.astype(int), KERNEL.astype(int)))]
    for platform, operands in cases:
        lower = lambda operands=operands, platform=platform: (
            jax.jit(lambda *a: conv(*a)).trace(*operands).lower(lowering_platforms=(platform,)).as_text()
        )
        expected = lower()
        gconv.install()
        assert lower().replace("{gconv", "") == expected
        gconv.uninstall()


@pytest.mark.parametrize("axis_type", (AxisType.Auto, AxisType.Explicit), ids=("auto", "explicit"))
@pytest.mark.parametrize("groups", (2, 8))
def test_on_a_mesh_with_an_unused_axis(axis_type, groups, installed):
    """lax's own kernel gradient of groups comes out multiplied by the size of the axis that nothing is split over."""
    mesh = jax.make_mesh((2, 2), ("data", "unused"), axis_types=(axis_type,) * 2)
    x, kernel = arrays((4, 9, 8, 8), (3, 3, 8 // groups, 8))
    gconv.uninstall()
    expected = jax.jit(jax.grad(loss, (0, 1)))(x, kernel)
    gconv.install()
    split = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    whole = jax.device_put(kernel, NamedSharding(mesh, PartitionSpec()))
    with jax.set_mesh(mesh):
        compiled = jax.jit(jax.grad(loss, (0, 1))).lower(split, whole).compile()
    close(compiled(split, whole), expected)
    text = compiled.as_text()
    assert text.count(" all-gather(") == 0 and text.count(" all-reduce(") + text.count(" all-reduce-start(") == 1


def test_on_such_a_mesh_without_shardy(installed):
    mesh = jax.make_mesh((2, 2), ("data", "unused"), axis_types=(AxisType.Auto,) * 2)
    for groups, strides in ((8, 1), (2, 2), (80, 1)):
        x, kernel = arrays((4, 9, 8, 2 * groups), (3, 3, 2, 2 * groups))
        gradient = lambda x, k, strides=strides: jax.grad(partial(loss, window_strides=(strides,) * 2), 1)(x, k)
        gconv.uninstall()
        expected = jax.jit(lambda *a, gradient=gradient: gradient(*a))(x, kernel)
        gconv.install()
        split = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
        jax.config.update("jax_use_shardy_partitioner", False)
        try:
            close(jax.jit(gradient)(split, jax.device_put(kernel, NamedSharding(mesh, PartitionSpec()))), expected)
        finally:
            jax.config.update("jax_use_shardy_partitioner", True)


def test_padding_that_crops_is_right_although_laxs_own_is_not():
    """openxla/xla issue 48713: also what gconv leaves to lax, here a convolution with dilation and strides at once."""
    x, kernel = jnp.ones((1, 9, 9, 12)), jnp.ones((3, 3, 12, 12))
    for options in (
        {"padding": ((-2, 1), (-2, 1))},
        {"padding": ((-1, 3), (-1, 3)), "lhs_dilation": (2, 2)},
        {"padding": ((-3, 1), (-3, 3)), "lhs_dilation": (2, 2), "window_strides": (2, 2)},
        {"padding": ((-2, 1), (-20, 21))},
        {"padding": ((-5, -4), (0, 0)), "lhs_dilation": (2, 1)},
        {"padding": ((2, -20), (0, 0)), "lhs_dilation": (3, 1)},
        {"padding": ((-9, 8), (-7, -2))},
    ):
        exact = conv(np.asarray(x, np.int32), np.asarray(kernel, np.int32), **options)
        with gconv.accelerated():
            warnings.simplefilter("ignore")
            np.testing.assert_array_equal(conv(x, kernel, **options), exact)


# --- for a while -----------------------------------------------------------------------------------------------------


def test_the_three_ways_to_decorate_and_a_report():
    for fast in (gconv.accelerated(conv), gconv.accelerated()(conv)):
        assert scopes(fast, X, KERNEL) == {"y"}
        assert fast.__name__ == "conv" and fast.report.taken.total() >= 1

    @jax.jit
    @gconv.accelerated
    def inside(x, kernel):
        return conv(x, kernel)

    assert "gconv_y" in inside.lower(X, KERNEL).as_text(debug_info=True)

    class Holder:
        @gconv.accelerated
        def method(self, x):
            return conv(x, KERNEL)

    assert scopes(Holder().method, X) == {"y"}
    assert scopes(conv, X, KERNEL) == set()


def test_a_block_and_its_report():
    compiled = jax.jit(conv)
    expected = compiled(X, KERNEL)
    with gconv.accelerated() as report:
        close(compiled(X, KERNEL), expected)
        jax.jit(jax.grad(loss, (0, 1)))(X, KERNEL)
        jax.jit(lambda x: lax.conv(x, x, (1, 1), "SAME"))(jnp.ones((2, 2, 3, 3), int))
    np.testing.assert_array_equal(compiled(X, KERNEL), expected), "after the block it is lax's again"
    assert report.taken.total() == 4 and report.left.total() == 1
    assert "4 of 5 convolutions computed by gconv" in str(report) and "role w by" in str(report)
    assert "left to lax: measured for floating point only" in str(report)


def test_a_block_that_takes_nothing_warns():
    with pytest.warns(UserWarning, match="took no convolution.*\n.*0 of 1"), gconv.accelerated():
        jax.jit(lambda x: lax.conv(x, x, (1, 1), "SAME"))(jnp.ones((2, 2, 3, 3), int))


@pytest.mark.usefixtures("uncached")
def test_blocks_nest_belong_to_their_thread_and_survive_errors():
    entered, leave, seen = threading.Event(), threading.Event(), []

    def other():
        block = gconv.accelerated()
        with block, block:
            entered.set()
            leave.wait(60)
            seen.append(scopes(conv, X, KERNEL))

    thread = threading.Thread(target=other, daemon=True)
    with gconv.accelerated():
        thread.start()
        entered.wait(60)
        with gconv.accelerated():
            pass
        assert scopes(conv, X, KERNEL) == {"y"}
    assert scopes(conv, X, KERNEL) == set(), "the other thread is still inside"
    leave.set()
    thread.join(60)
    assert seen == [{"y"}]
    with pytest.raises(ZeroDivisionError), gconv.accelerated():
        raise ZeroDivisionError
    assert scopes(conv, X, KERNEL) == set()


@gconv.accelerated
def decorated(x, kernel):
    """Its own words."""
    return conv(x, kernel)


class Decorated:
    @gconv.accelerated
    def method(self, x):
        return conv(x, KERNEL)

    @gconv.accelerated
    @staticmethod
    def static(x):
        return conv(x, KERNEL)

    @gconv.accelerated
    @classmethod
    def of_the_class(cls, x):
        return conv(x, KERNEL)


def test_a_decorated_function_is_a_function_as_before():
    assert decorated.__doc__ == "Its own words." and decorated.__name__ == "decorated"
    for copied in (copy.copy(decorated), copy.deepcopy(decorated), pickle.loads(pickle.dumps(decorated))):
        assert copied is decorated
    local = gconv.accelerated(partial(conv, padding="VALID"))
    assert scopes(copy.deepcopy(local), X, KERNEL) == {"y"}
    one = Decorated()
    assert one.method == one.method and one.method.__self__ is one and one.method.report is Decorated.method.report
    for method in (one.method, one.static, Decorated.static, one.of_the_class, Decorated.of_the_class):
        assert scopes(method, X) == {"y"}
    jitted = gconv.accelerated(jax.jit(conv))
    assert "gconv_y" in jitted.lower(X, KERNEL).as_text(debug_info=True)
    assert jitted.eval_shape(X, KERNEL).shape == (2, 9, 8, 8)
    jitted._clear_cache()


def test_each_decorated_function_has_a_report_of_its_own():
    models = [linen.Conv(4, (3, 3)), linen.Conv(8, (3, 3))]
    first, second = (gconv.accelerated(model.apply) for model in models)
    jax.jit(first)(models[0].init(jax.random.key(0), X), X)
    assert (first.report.taken.total(), second.report.taken.total()) == (1, 0)
    whole = gconv.accelerated(lambda x, k: gconv.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=NHWC))
    jax.jit(whole)(*arrays((1, 8, 8, 4), (3, 3, 4, 8)))
    assert whole.report.taken.total() == 1, "the drop-in inside counts, too"


def generator():
    yield


async def coroutine():
    pass


@pytest.mark.parametrize(
    "what, match",
    [
        (3, "int. For a block of code: with gconv.accelerated"),
        (Decorated, "the class Decorated: decorate its __call__"),
        (generator, "generator, which runs later: with gconv.accelerated"),
        (coroutine, "coroutine, which runs later"),
        (nnx.Conv(1, 1, (1,), rngs=nnx.Rngs(0)), r"the NNX model Conv: gconv.accelerate\(model\)"),
    ],
    ids=("number", "class", "generator", "coroutine", "model"),
)
def test_what_cannot_be_decorated_says_what_can(what, match):
    with pytest.raises(TypeError, match=match):
        gconv.accelerated(what)


# --- every way to a convolution --------------------------------------------------------------------------------------


CALLS = {
    "conv": lambda x: lax.conv(x, jnp.ones((4, 8, 3, 3)), (2, 1), "VALID"),
    "conv_with_general_padding": lambda x: lax.conv_with_general_padding(
        x, jnp.ones((4, 8, 3, 3)), (1, 1), ((1, 1), (2, 0)), (2, 1), (1, 2)
    ),
    "conv_transpose": lambda x: lax.conv_transpose(x, jnp.ones((3, 3, 8, 5)), (2, 2), "SAME", dimension_numbers=NHWC),
    "conv_transpose, kernel turned": lambda x: lax.conv_transpose(
        x, jnp.ones((3, 3, 5, 8)), (2, 2), "SAME", dimension_numbers=NHWC, transpose_kernel=True
    ),
    "patches": lambda x: lax.conv_general_dilated_patches(x, (3, 3), (1, 1), "SAME"),
    "convolve": lambda x: jnp.convolve(x[0, 0, 0], jnp.ones(3)),
    "nnx.Conv": lambda x: nnx.Conv(8, 4, (3, 3), rngs=nnx.Rngs(0))(x),
    "nnx.ConvTranspose": lambda x: nnx.ConvTranspose(8, 4, (3, 3), (2, 2), rngs=nnx.Rngs(0))(x),
    "linen.Conv": lambda x: linen.Conv(4, (3, 3)).init_with_output(jax.random.key(0), x)[0],
    "linen.ConvLocal": lambda x: linen.ConvLocal(4, (3, 3)).init_with_output(jax.random.key(0), x)[0],
}


@pytest.mark.parametrize("name", CALLS)
def test_every_function_of_lax_and_flax_that_convolves(name, installed):
    x = jnp.asarray(normal(0, 8, 8, 8, 8), jnp.float32)
    value = lambda x: CALLS[name](x)
    both = lambda x: (value(x), jax.grad(lambda x: (value(x) ** 2).sum())(x))
    before = installed.taken.total(), installed.left.total()
    got = jax.jit(both)(x)
    after = installed.taken.total(), installed.left.total()
    assert sum(after) > sum(before)
    assert name == "convolve" or not NATIVE or after[0] > before[0], installed
    gconv.uninstall()
    close(got, jax.jit(lambda x: both(x))(x))


def haiku_model():
    hk = pytest.importorskip("haiku", reason="dm-haiku is not installed: pip install dm-haiku")
    layers = lambda x: hk.Conv2DTranspose(3, 3, 2)(jax.nn.relu(hk.Conv2D(8, 3, feature_group_count=2)(hk.Conv2D(4, 3)(x))))
    net = hk.without_apply_rng(hk.transform(layers))
    return net.init, net.apply


def linen_model():
    class Model(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.Conv(8, (3, 3), strides=2)(x)
            return linen.ConvTranspose(4, (3, 3), strides=(2, 2))(linen.Conv(16, (3, 3), feature_group_count=8)(x))

    return Model().init, Model().apply


def equinox_model():
    eqx = pytest.importorskip("equinox", reason="equinox is not installed: pip install equinox")
    keys = jax.random.split(jax.random.key(0), 3)
    layers = eqx.nn.Sequential(
        [
            eqx.nn.Conv2d(3, 4, 3, key=keys[0]),
            eqx.nn.Conv2d(4, 4, 3, groups=4, key=keys[1]),
            eqx.nn.ConvTranspose2d(4, 2, 3, stride=2, key=keys[2]),
        ]
    )
    params, static = eqx.partition(layers, eqx.is_array)
    return lambda key, x: params, lambda p, x: jax.vmap(eqx.combine(p, static))(jnp.moveaxis(x, -1, 1))


@pytest.mark.parametrize("how", ("installed", "accelerated"))
@pytest.mark.parametrize("make", (linen_model, haiku_model, equinox_model))
def test_models_of_other_libraries(make, how):
    init, apply = make()
    x = jnp.asarray(normal(0, 2, 12, 12, 3), jnp.float32)
    with jax.numpy_dtype_promotion("standard"):  # Haiku and Equinox mix types
        params = init(jax.random.key(0), x)
        compiled = jax.jit(jax.value_and_grad(lambda p, x: (apply(p, x) ** 2).sum(), (0, 1)))
        expected = compiled(params, x)
        if how == "installed":
            gconv.install()
            close(compiled(params, x), expected, 1e-4)
        else:
            with gconv.accelerated() as report:
                close(compiled(params, x), expected, 1e-4)
            assert report.taken.total() >= 8, report


def test_keras_fits_and_predicts_before_and_after(keras):
    layers = keras.layers
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        stack = [layers.Conv2D(8, 3), layers.DepthwiseConv2D(3), layers.Conv2DTranspose(4, 3, strides=2), layers.Flatten()]
        model = keras.Sequential([keras.Input((10, 10, 3)), *stack, layers.Dense(2)])
        model.compile("sgd", "mse")
        x, y = np.float32(normal(0, 8, 10, 10, 3)), np.float32(normal(1, 8, 2))
        model.fit(x, y, verbose=0)
        expected = model.predict(x, verbose=0)
        report = gconv.install()
        before = report.taken.total()
        np.testing.assert_allclose(model.predict(x, verbose=0), expected, rtol=1e-4, atol=1e-5)
        model.compile("sgd", "mse")
        model.fit(x, y, verbose=0)
        assert report.taken.total() > before


# --- python -m gconv run ---------------------------------------------------------------------------------------------

SCRIPT = """
import sys
import jax, jax.numpy as jnp
print("arguments", sys.argv[1:], __name__)
x = jnp.ones((1, 8, 8, 4))
jax.lax.conv_general_dilated(x, jnp.ones((3, 3, 4, 8)), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
if "fail" in sys.argv:
    raise SystemExit(3)
"""


@pytest.mark.parametrize("module", (False, True), ids=("script", "module"))
def test_an_unchanged_program(tmp_path, module):
    (tmp_path / "program.py").write_text(SCRIPT)
    what = ["-m", "program"] if module else ["program.py"]
    command = [sys.executable, "-m", "gconv", "run", *what, "--steps", "3"]
    done = subprocess.run([*command, "fail"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 3, done.stderr
    assert "arguments ['--steps', '3', 'fail'] __main__" in done.stdout
    assert "1 of 1 convolutions computed by gconv" in done.stderr


SIBLING = """
import atexit, os, pickle, sys
from pathlib import Path
class Kept:
    pass
atexit.register(lambda: print("pickled", len(pickle.dumps(Kept())) > 0))
os.chdir("/")
print("beside", (Path(__file__).parent / "helper.py").exists())
import helper
print("helper", helper.VALUE)
"""


@pytest.mark.parametrize("how", ("script", "module", "package", "directory"))
def test_a_program_is_run_as_python_runs_it(tmp_path, how):
    home = tmp_path / "pack" if how in ("package", "directory") else tmp_path
    home.mkdir(exist_ok=True)
    name = "program.py" if how in ("script", "module") else "__main__.py"
    (home / name).write_text(SIBLING)
    (tmp_path / "helper.py").write_text("VALUE = 3")
    (home / "helper.py").write_text("VALUE = 3")
    what = {"script": ["program.py"], "module": ["-m", "program"], "package": ["-m", "pack"], "directory": ["pack"]}[how]
    done = subprocess.run(
        [sys.executable, "-m", "gconv", "run", *what], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    expected = ["beside True", "helper 3"] + ([] if how == "directory" else ["pickled True"])
    assert done.stdout.split("\n")[: len(expected)] == expected
    assert done.stderr.rstrip().endswith("0 of 0 convolutions computed by gconv")


def test_run_says_how_it_is_used():
    done = subprocess.run([sys.executable, "-m", "gconv", "run", "none.py"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "no file none.py" in done.stderr
    done = subprocess.run([sys.executable, "-m", "gconv", "run"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "python -m gconv run script.py" in done.stderr
