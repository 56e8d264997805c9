"""What travels between devices: nothing for whole groups, one sum per kernel gradient, a few rows for split images.

Counted in the compiled programs, and every one of them is also compared with the oracle. `pytest --thorough` (make thorough)
takes the whole product of meshes, shardings, axis types and implementations; the suite takes every eleventh of it.
"""

import itertools
import math
from functools import partial

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from cases import Case, assert_matches
from jax import P
from jax.sharding import AxisType, NamedSharding

from benchmarks.measuring.collectives import Collective, collectives, count
from gconv import backends, grouped_conv, native
from gconv.geometry import geometry

AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit


def make_mesh(shape, axis_type=AUTO):
    devices = jax.devices("cpu")[: math.prod(shape)]
    return jax.make_mesh(shape, ("a", "b", "c")[: len(shape)], axis_types=(axis_type,) * len(shape), devices=devices)


def specs(case, batch=None, groups=None, spatial=()):
    """Of x, the kernel and the cotangent."""
    image = P(batch, *spatial, *(None,) * (case.rank - len(spatial)), groups)
    return image, P(*(None,) * (case.rank + 1), groups), image


def values_and_gradients(conv, x, kernel, ct):
    y, vjp = jax.vjp(conv, x, kernel)
    return y, *vjp(ct)


def run(case, conv, mesh, shardings, *, dtype="float32"):
    """The compiled program's text for y and both gradients, after comparing what it computes with the oracle."""
    x, kernel, _, ct = case.arrays(dtype)
    with jax.set_mesh(mesh):
        put = [jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip((x, kernel, ct), shardings, strict=True)]
        program = jax.jit(partial(values_and_gradients, conv)).lower(*put).compile()
        results = program(*put)
    for name, result in zip("yxw", results, strict=True):
        assert_matches(case, {name: np.asarray(result)}, (x, kernel, None, ct))
    return program.as_text()


# --- every mesh, every sharding --------------------------------------------------------------------------------------

WHOLE = Case("whole", (8,), (8, 3), (3, 2), 8, 2, 3, padding=((1, 1), (0, 1)))
MESHES = ((2,), (8,), (2, 2), (2, 4), (2, 2, 2))
# For each axis of the mesh what it splits, if anything.
ASSIGNMENTS = [
    (mesh, uses) for mesh in MESHES for uses in itertools.product((None, "batch", "groups", "rows"), repeat=len(mesh))
]
SWEEP = list(itertools.product(ASSIGNMENTS, (AUTO, EXPLICIT), backends.TABLE))


def sweep(thorough: bool):
    for (shape, uses), axis_type, name in SWEEP if thorough else SWEEP[::11]:
        label = "x".join(map(str, shape)) + "-" + "-".join(map(str, uses)) + f"-{axis_type.name}-{name}"
        yield pytest.param(shape, uses, axis_type, name, id=label.lower())


def pytest_generate_tests(metafunc):
    if "uses" in metafunc.fixturenames:
        cases = [*sweep(metafunc.config.getoption("thorough"))]
        metafunc.parametrize(("shape", "uses", "axis_type", "implementation"), cases)


def test_the_suite_samples_every_kind_of_sharding():
    taken = SWEEP[::11]
    assert {axis_type for _, axis_type, _ in taken} == {AUTO, EXPLICIT}
    assert {(mesh, name) for (mesh, _), _, name in taken} >= set(itertools.product(MESHES[2:], backends.TABLE))
    kinds = ("batch", "groups", "rows")
    wanted = [{*some} for n in range(4) for some in itertools.combinations(kinds, n)]
    found = [{*uses} - {None} for (_, uses), _, _ in taken]
    assert all(some in found for some in wanted)


def test_only_what_must_travel_does(shape, uses, axis_type, conv_of):
    conv, mesh = conv_of(WHOLE), make_mesh(shape, axis_type)
    batch, groups, rows = (
        tuple(name for name, use in zip(mesh.axis_names, uses, strict=True) if use == kind)
        for kind in ("batch", "groups", "rows")
    )
    text = run(WHOLE, conv, mesh, specs(WHOLE, batch or None, groups or None, (rows or None,)))
    expected = {}
    if batch or rows:
        expected["all-reduce"] = 1
    if rows:  # in each role, one row from each side
        expected["collective-permute"] = 6
    assert count(text) == expected
    if "all-reduce" in expected:
        (reduced,) = (c for c in collectives(text) if c.kind == "all-reduce")
        parts = math.prod(mesh.shape[name] for name in groups)
        assert reduced.bytes == 4 * math.prod(WHOLE.kernel_shape) // parts


# --- halos -----------------------------------------------------------------------------------------------------------

# A case, its spatial mesh, and how many rows along each axis come from the neighbours: of x (roles y and w), of y (role x).
# At stride 1 that is the effective window - 1, else the effective window - stride of x and what these meet of y.
HALOS = (
    (Case("causal", (2,), (16,), (4,), 3, 1, 2, padding="causal"), (4,), (3,), (3,)),
    (Case("causal-dilated", (1,), (16,), (3,), 2, 2, 1, padding="causal", dilation=3), (8,), (6,), (6,)),
    (Case("ahead", (1,), (12,), (4,), 2, 2, 3, padding=(0, 3)), (4,), (3,), (3,)),
    (Case("stride-2", (2,), (16, 3), (3, 3), 2, 2, 3, strides=(2, 1), padding=1), (4,), (1,), (1,)),
    (Case("stride-2-same", (2,), (16, 3), (3, 3), 2, 2, 3, strides=(2, 1), padding="same"), (4,), (1,), (1,)),
    (Case("stride-2-window-7", (1,), (16, 4), (7, 1), 2, 1, 2, strides=(2, 1), padding=((3, 3), (0, 0))), (2,), (5,), (3,)),
    (Case("stride-3-dilated", (1,), (24,), (3,), 2, 2, 1, strides=3, padding=2, dilation=2), (4,), (2,), (1,)),
    (Case("patches", (2,), (8, 8), (2, 2), 2, 2, 3, strides=2), (2, 4), (0, 0), (0, 0)),
    (Case("pointwise", (2,), (8, 3), (1, 1), 4, 2, 1), (8,), (0,), (0,)),
    (Case("skipping", (2,), (8,), (1,), 2, 2, 3, strides=2), (4,), (0,), (0,)),
    (Case("several-hops", (1,), (8, 3), (7, 2), 2, 2, 1, padding=((3, 3), (1, 0))), (8,), (6,), (6,)),
    (Case("corners", (1,), (8, 6), (3, 5), 3, 2, 1, padding=(1, 2)), (4, 2), (2, 4), (2, 4)),
    (Case("3d", (1,), (4, 4, 2), (3, 2, 1), 2, 1, 2, padding="same"), (2, 2, 2), (2, 1, 0), (2, 1, 0)),
    (Case("six-devices", (1,), (12,), (5,), 2, 1, 1, padding=2), (6,), (4,), (4,)),
)


def travelling(shape, parts, rows, per_element=4):
    """Bytes of these rows of a device's part of an array `(batch, *spatial, channels)`; later axes take the corners along."""
    local = [n // p for n, p in zip(shape, (1, *parts, *(1,) * len(shape)), strict=False)]
    total = 0
    for axis, count_ in enumerate(rows, start=1):
        total += per_element * math.prod(local[:axis] + local[axis + 1 :]) * count_
        local[axis] += count_
    return total


@pytest.mark.parametrize("axis_type", (AUTO, EXPLICIT), ids=("auto", "explicit"))
@pytest.mark.parametrize(("case", "shape", "of_x", "of_y"), HALOS, ids=[str(c[0]) for c in HALOS])
def test_halos_are_exactly_the_rows_that_windows_share(case, shape, of_x, of_y, axis_type, request):
    """The implementations take turns, since this is not their work."""
    name = [*backends.TABLE][request.node.callspec.indices["case"] % len(backends.TABLE)]
    options = {key: value for key, value in case.options.items() if key != "padding_value"}
    facts = geometry(case.x_shape, case.kernel_shape, **options)[1]
    if reason := backends.TABLE[name].why_not("y", facts, jnp.dtype("float32"), "cpu"):
        pytest.skip(f"{name}: {reason}")
    conv = partial(grouped_conv, **case.options, implementation=name)
    mesh = make_mesh(shape, axis_type)
    text = run(case, conv, mesh, specs(case, spatial=mesh.axis_names))
    found = collectives(text)
    assert {c.kind for c in found} <= {"all-reduce", "collective-permute"}
    assert count(text)["all-reduce"] == 1
    expected = 2 * travelling(case.x_shape, shape, of_x) + travelling(case.y_shape, shape, of_y)
    assert sum(c.bytes for c in found if c.kind == "collective-permute") == expected


@pytest.mark.parametrize(
    "case",
    (
        Case("valid", (2,), (10, 3), (3, 1), 2, 2, 3),  # 10 rows become 8: parts of x and y do not meet
        Case("stride-in-two-parts", (2,), (6, 3), (3, 1), 2, 2, 3, strides=(2, 1), padding=((1, 1), (0, 0))),  # 3 rows of y
        Case("circular", (2,), (8, 3), (3, 1), 2, 2, 3, padding=((1, 1), (0, 0)), padding_value="circular"),
    ),
    ids=str,
)
def test_what_has_no_equal_parts_is_gathered_and_right(case, implementation, conv_of):
    mesh = make_mesh((2,))
    image, kernel, _ = specs(case, spatial=("a",))
    whole = P() if case.output[0] % 2 else image
    text = run(case, conv_of(case), mesh, (image, kernel, whole))
    assert count(text)["all-gather"] >= 1


# --- groups that are split -------------------------------------------------------------------------------------------

# Kernel and channels of the images split as told; all-gathers and all-reduces of a program of all three roles.
OVER_ALL = P(None, None, None, ("a", "b"))
LAST = P(None, None, None, "a")
SPLIT = {
    "half-groups": (Case("s", (2,), (4, 3), (3, 1), 4, 2, 4, padding="same"), (8,), LAST, LAST, (2, 1)),
    "single-groups": (Case("s", (2,), (4, 3), (3, 1), 2, 2, 4, padding="same"), (2, 2), OVER_ALL, OVER_ALL, (1, 1)),
    "one-group": (Case("s", (2,), (4, 3), (3, 1), 1, 4, 8, padding="same"), (4,), LAST, LAST, (1, 1)),
    "filters-only": (Case("s", (2,), (4, 3), (3, 1), 1, 4, 8, padding="same"), (4,), LAST, P(), (0, 1)),
    "channels-only": (Case("s", (2,), (4, 3), (3, 1), 1, 4, 8, padding="same"), (4,), P(None, None, "a"), P(), (0, 1)),
    "channels-of-groups": (Case("s", (2,), (4, 3), (3, 1), 2, 4, 3, padding="same"), (4,), P(None, None, "a"), P(), (1, 0)),
    "three-groups": (Case("s", (2,), (4, 3), (3, 1), 3, 4, 4, padding="same"), (4,), LAST, LAST, (3, 0)),
}


@pytest.mark.parametrize("name", SPLIT)
def test_a_split_group_costs_gathers_and_sums_and_is_right(name, conv_of):
    """One group is the ordinary convolution, split over its filters (free forward) or channels (one sum forward)."""
    case, shape, kernel, image, (gathers, sums) = SPLIT[name]
    text = run(case, conv_of(case), make_mesh(shape), (image, kernel, image))
    found = count(text)
    assert (found["all-gather"], found["all-reduce"]) == (gathers, sums)
    assert {*found} <= {"all-gather", "all-reduce"}


# --- beside jit ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ("batch", "groups", "both"))
def test_in_shard_map_only_the_users_sum_travels(layout, conv_of):
    mesh = make_mesh((2, 2))
    batch, groups = ("a" if layout != "groups" else None), ("b" if layout != "batch" else None)
    x_spec, kernel_spec, y_spec = specs(WHOLE, batch, groups)
    conv = partial(conv_of(WHOLE), groups=None)
    mapped = jax.shard_map(conv, mesh=mesh, in_specs=(x_spec, kernel_spec), out_specs=y_spec)
    text = run(WHOLE, mapped, mesh, specs(WHOLE, batch, groups))
    assert count(text) == ({"all-reduce": 1} if batch else {})


@pytest.mark.parametrize("check_vma", (True, False))
def test_manual_over_some_axes_only_is_right(check_vma, conv_of):
    mesh = make_mesh((2, 2))
    local = jax.shard_map(
        conv_of(WHOLE), mesh=mesh, in_specs=(P("a"), P()), out_specs=P("a"), axis_names={"a"}, check_vma=check_vma
    )
    run(WHOLE, local, mesh, specs(WHOLE, "a", "b"))


def put_all(mesh, arrays, shardings):
    return [jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip(arrays, shardings, strict=True)]


SQUARE = Case("square", (4,), (4, 3), (3, 2), 4, 2, 2, padding="same")


def test_scan_and_remat_keep_the_collectives(implementation, conv_of):
    """The kernel gradients of three steps of a loop: one all-reduce, inside it."""
    conv = conv_of(SQUARE)
    x, kernel, _, ct = SQUARE.arrays()

    def loss(kernel, x, ct):
        step = jax.checkpoint(lambda carry, _: (conv(carry, kernel) / 8, None))
        return (jax.lax.scan(step, x, None, length=3)[0] * ct).sum()

    exact = jax.grad(loss)(kernel, x, ct)
    mesh = make_mesh((2, 2))
    image, over, _ = specs(SQUARE, "a", "b")
    program = jax.jit(jax.grad(loss)).lower(*put_all(mesh, (kernel, x, ct), (over, image, image))).compile()
    assert count(program.as_text()) == {"all-reduce": 1}
    np.testing.assert_allclose(program(*put_all(mesh, (kernel, x, ct), (over, image, image))), exact, atol=1e-5)


def test_a_mapped_axis_that_is_sharded_stays_where_it_is():
    """vmap folds it into the batch, or into the groups if the kernel is mapped too."""
    rng, mesh = np.random.default_rng(0), make_mesh((2,))
    xs = rng.standard_normal((4, 2, 5, 6)).astype("float32")
    kernels = rng.standard_normal((4, 3, 2, 6)).astype("float32")
    for in_axes, operands, over in (((0, None), (xs, kernels[0]), (P("a"), P())), (0, (xs, kernels), (P("a"), P("a")))):
        conv = jax.vmap(partial(grouped_conv, groups=3), in_axes)
        program = jax.jit(conv).lower(*put_all(mesh, operands, over)).compile()
        assert count(program.as_text()) == {}
        np.testing.assert_allclose(program(*put_all(mesh, operands, over)), conv(*operands), atol=1e-5)


def test_half_precision_sums_over_devices_in_float32():
    """256 + 7 ones and one more on each of eight devices: a sum in bfloat16 would lose the small ones."""
    x, ct = np.ones((8, 33, 1), "bfloat16"), np.ones((8, 33, 1), "bfloat16")
    mesh = make_mesh((8,))
    gradient = jax.jit(lambda x, ct: jax.vjp(lambda k: grouped_conv(x, k), jnp.ones((1, 1, 1), "bfloat16"))[1](ct)[0])
    assert float(gradient(*put_all(mesh, (x, ct), (P("a"), P("a"))))[0, 0, 0]) == 264


def test_a_program_may_use_several_meshes():
    x, kernel, _, ct = arrays = SQUARE.arrays()
    one, two = make_mesh((4,)), make_mesh((2, 2))
    shardings = (NamedSharding(one, P("a")), NamedSharding(two, P()), NamedSharding(two, P("a")))
    put = [jax.device_put(a, s) for a, s in zip((x, kernel, ct), shardings, strict=True)]
    results = jax.jit(partial(values_and_gradients, partial(grouped_conv, **SQUARE.options)))(*put)
    for name, result in zip("yxw", results, strict=True):
        assert_matches(SQUARE, {name: np.asarray(result)}, arrays)


def test_parts_of_unequal_size_are_right():
    """Six images over four devices, in the middle of a program."""
    mesh = make_mesh((4,))
    case = Case("six", (6,), (5,), (3,), 2, 2, 2, padding=1)
    conv = partial(grouped_conv, **case.options)

    def uneven(x, kernel):
        return conv(jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P("a"))), kernel)

    run(case, uneven, mesh, (P(), P(), P()))


def test_the_kernels_of_this_machine_run_on_every_device():
    conv, mesh = partial(grouped_conv, **WHOLE.options), make_mesh((2, 2))
    text = run(WHOLE, conv, mesh, specs(WHOLE, "a", "b"))
    built = native.load()[1] is None
    assert (native.TARGET in text) == built


def test_exported_programs_hold_nothing_of_ours():
    mesh = make_mesh((2,))
    x, kernel, _, ct = SQUARE.arrays()
    f = jax.jit(partial(values_and_gradients, partial(grouped_conv, **SQUARE.options)))
    put = put_all(mesh, (x, kernel, ct), (P("a"), P(), P("a")))
    exported = jax.export.export(f)(*put)
    assert exported.nr_devices == 2
    assert not any(name in exported.mlir_module() for name in ("CustomSPMDPartitioning", native.TARGET, "callback"))
    for name, result in zip("yxw", exported.call(*put), strict=True):
        assert_matches(SQUARE, {name: np.asarray(result)}, (x, kernel, None, ct))
    abstract = jax.sharding.AbstractMesh((16,), ("a",), axis_types=(AUTO,))
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=NamedSharding(abstract, P())) for a in (x, kernel, ct)]
    assert jax.export.export(f, platforms=("cpu", "tpu"))(*shapes).nr_devices == 16


def test_one_device_is_left_alone():
    x, kernel, _, _ = SQUARE.arrays()
    lowered = jax.jit(partial(grouped_conv, **SQUARE.options)).lower(x, kernel).as_text()
    assert "CustomSPMDPartitioning" not in lowered and "sharding" not in lowered


def test_the_reader_of_collectives():
    """Against lines as XLA writes them, one per way of writing groups."""
    lines = """
      %a = f32[3,2]{1,0} all-reduce(%p), channel_id=1, replica_groups={{0,4},{1,5}}, to_apply=%sum
      %b = bf16[8,2]{1,0} all-gather(%p), channel_id=1, replica_groups=[4,2]<=[8], dimensions={1}
      ROOT %c = (f32[3]{0}, f32[5]{0}) all-reduce(%p, %q), replica_groups=mesh['x'=2,'y'=4] {'x','y'}, to_apply=%sum
      %d = f32[1,7]{1,0} collective-permute(%p), channel_id=1, source_target_pairs={{0,1}}
      %e = add(f32[2] %all-reduce.1, f32[2] %b)
    """
    expected = [("all-reduce", 24, 2), ("all-gather", 32, 2), ("all-reduce", 32, 8), ("collective-permute", 28, 2)]
    assert collectives(lines) == [Collective(*values) for values in expected]
    assert [c.sent for c in collectives(lines)] == [24, 16, 56, 28]
