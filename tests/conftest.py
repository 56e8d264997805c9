"""The option of the test suite, and the fixtures that several files use."""

from functools import partial

import hypothesis
import jax
import jax.numpy as jnp
import pytest

from gconv import backends, grouped_conv
from gconv.geometry import geometry

# The same examples on every machine; a first example compiles and takes longer than the next ones.
hypothesis.settings.register_profile("gconv", deadline=None, derandomize=True, max_examples=200)
hypothesis.settings.load_profile("gconv")


def pytest_addoption(parser):
    parser.addoption("--thorough", action="store_true", help="the whole product of meshes and shardings (minutes)")


@pytest.fixture
def lenient():
    """JAX's usual modes, for one test that calls a library which mixes ranks or types."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def x64():
    """64-bit types for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def uncached():
    """Keeps JAX's cache of programs out of one test: of several threads none may read what another one writes; and programs
    that hold their weights take longer to write than to compile."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    jax.config.update(name, float("inf"))
    yield
    jax.config.update(name, before)


@pytest.fixture(scope="module")
def keras():
    """Keras on JAX, or a skip."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_BACKEND", "jax")
        keras = pytest.importorskip("keras", reason="keras is not installed: pip install keras")
    if keras.backend.backend() != "jax":
        pytest.skip("keras was imported with another backend than jax")
    return keras


@pytest.fixture(params=[*backends.TABLE])
def implementation(request) -> str:
    """Each implementation by name."""
    return request.param


@pytest.fixture
def needs(implementation):
    """`needs(geometry, dtype)` skips, with the reason, what the implementation says that it cannot run."""

    def skip(facts, dtype="float32", roles="yxw"):
        for role in roles:
            if reason := backends.TABLE[implementation].why_not(role, facts, jnp.dtype(dtype), "cpu"):
                pytest.skip(f"{implementation}: {reason}")

    return skip


@pytest.fixture
def conv_of(implementation, needs):
    """`conv_of(case)` is the case's `grouped_conv` by each implementation, or a skip."""

    def conv(case, dtype="float32"):
        options = {name: value for name, value in case.options.items() if name != "padding_value"}
        needs(geometry(case.x_shape, case.kernel_shape, **options)[1], dtype)
        return partial(grouped_conv, **case.options, implementation=implementation)

    return conv
