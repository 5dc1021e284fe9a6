"""Counting on programs whose cost is known: a few that XLA compiles for CPU, and single lines of its text."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from crystal_jax.compile.analysis.cost import count
from crystal_jax.compile.analysis.device_groups import replica_groups, source_target_pairs
from crystal_jax.compile.analysis.hlo import parse
from crystal_jax.compile.analysis.products import product_flops, splash_flops
from crystal_jax.config import MeshConfig
from crystal_jax.sharding import make_mesh


def counted(function, *shapes):
    return count(parse(jax.jit(function).lower(*shapes).compile().as_text()))


def matrix(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_a_loop_counts_as_often_as_it_runs():
    def nested(x, weights):
        def outer(x, w):
            return jax.lax.fori_loop(0, 3, lambda _, x: x @ w, x), None

        return jax.lax.scan(outer, x, weights)[0]

    cost = counted(nested, matrix(16, 64), matrix(5, 64, 64))
    assert cost.flops == 5 * 3 * 2 * 16 * 64 * 64
    assert cost.unknown_loops == 0


def test_a_loop_of_unknown_length_is_counted_once_and_said_to_be():
    cost = counted(lambda x: jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ x, x), matrix(32, 32))
    assert cost.flops == 2 * 32**3
    assert cost.unknown_loops == 1


def test_of_two_branches_the_costlier_counts():
    def either(flag, x):
        return jax.lax.cond(flag, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert counted(either, jax.ShapeDtypeStruct((), jnp.bool_), matrix(32, 32)).flops == 2 * 2 * 32**3


def test_memory_traffic_of_an_elementwise_operation():
    cost = counted(lambda x, y: x + y, matrix(1000, 1000), matrix(1000, 1000))
    assert cost.bytes == 3 * 4e6


def test_a_loop_reads_one_slice_a_turn_and_writes_in_place():
    def scaled(x):
        return jax.lax.scan(lambda carry, row: (carry, row * 2), 0.0, x)[1]

    cost = counted(scaled, matrix(100, 10_000))
    whole = 100 * 10_000 * 4
    assert 2 * whole <= cost.bytes < 4 * whole  # not 100 times: every turn has a hundredth


@pytest.mark.parametrize(
    ("specs", "kind", "received"),
    [
        ((P("fsdp"), P()), "all-gather", 3 / 4 * 4096),
        ((P("fsdp"), P("fsdp")), None, 0),
    ],
)
def test_what_devices_receive(specs, kind, received):
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=1))
    source, target = (NamedSharding(mesh, spec) for spec in specs)
    x = jax.ShapeDtypeStruct((1024,), jnp.float32, sharding=source)
    found = count(parse(jax.jit(lambda x: x * 2, out_shardings=target).lower(x).compile().as_text())).collectives
    assert {k: t.bytes for k, t in found.items()} == ({} if kind is None else {kind: received})


def test_a_sum_over_devices_is_received_twice():
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=1))
    x = jax.ShapeDtypeStruct((4, 1024), jnp.float32, sharding=NamedSharding(mesh, P("fsdp")))
    summed = jax.jit(lambda x: x.sum(axis=0), out_shardings=NamedSharding(mesh, P()))
    found = count(parse(summed.lower(x).compile().as_text())).collectives
    assert found["all-reduce"].bytes == 2 * 3 / 4 * 4096
    assert found["all-reduce"].count == 1


def program(line, *operands):
    """A program of one instruction on parameters of the given shapes."""
    rows = [f"  %p{i} = {shape} parameter({i})" for i, shape in enumerate(operands)]
    return parse("\n".join(["ENTRY %main () -> f32[] {", *rows, f"  ROOT %r = {line}", "}"]))


@pytest.mark.parametrize(
    ("line", "operands", "flops"),
    [
        (
            "f32[8,32]{1,0} dot(%p0, %p1), lhs_contracting_dims={1}, rhs_contracting_dims={0}",
            ("f32[8,16]{1,0}", "f32[16,32]{1,0}"),
            2 * 8 * 16 * 32,
        ),
        (  # as TPUs' compiler writes x [4, 1024, 4096] · w [4096, 32, 128]
            "bf16[4,1024,32,128]{3,1,2,0:T(8,128)(2,1)} convolution(%p0, %p1), "
            "window={size=1x32 pad=0_0x31_31 rhs_reversal=0x1}, dim_labels=0bf1_i1o0->0b1f, metadata={}",
            ("bf16[4,1024,4096,1]{3,2,1,0}", "bf16[4096,32,128,1]{3,2,1,0}"),
            2 * 4 * 1024 * 4096 * 32 * 128,
        ),
        (  # and a product of each of 4 x 32 pairs of matrices
            "f32[4,32,1024,1024]{3,2,1,0:T(8,128)} convolution(%p0, %p1), "
            "window={size=4x32 stride=3x31 lhs_dilate=4x32}, dim_labels=01bf_01oi->01bf, metadata={}",
            ("bf16[4,32,1024,128]{3,2,1,0}", "bf16[4,32,1024,128]{3,2,1,0}"),
            2 * 4 * 32 * 1024 * 1024 * 128,
        ),
    ],
    ids=["dot", "heads", "batched"],
)
def test_products_as_the_compiler_writes_them(line, operands, flops):
    entry = program(line, *operands)["%main"]
    assert product_flops(entry, entry["%r"]) == flops


@pytest.mark.parametrize(("kernel", "products"), [("fwd", 2), ("dq", 3), ("dkv", 4)])
def test_products_of_splash_kernels(kernel, products):
    head, *operands = ["s8[1,2,2]{2,1,0}", "bf16[4,32,1024,128]{3,2,1,0}", "bf16[4,8,512,128]{3,2,1,0}"]
    line = 'bf16[4,32,1024,128]{3,2,1,0} custom-call(%p0, %p1, %p2), custom_call_target="tpu_custom_call"'
    text = program(line, head, *operands)["%main"]
    call = dataclasses.replace(text["%r"], name=f"%splash_mha_{kernel}_segmented_no_residuals.1")
    assert splash_flops(text, call) == 2 * products * 4 * 32 * 1024 * 512 * 128
    assert count(program(line, head, *operands)).kernels == 1  # of another name


def test_what_stays_on_the_chip_is_no_traffic():
    line = "f32[256]{0:T(256)S(1)} add(%p0, %p0)"
    assert count(program(line, "f32[256]{0:T(256)}")).bytes == 2 * 1024


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("{{0,2},{1,3}}", [[0, 2], [1, 3]]),
        ("[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("mesh['a'=2,'b'=2] {'b'}", [[0, 1], [2, 3]]),
        ("mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
        ("mesh['a'=1,'b'=4], device_ids=([2,2]T(1,0)) {'b'}", [[0, 2, 1, 3]]),
        ("mesh['a'=4] {'a':(2)2}", [[0, 1], [2, 3]]),
        ("mesh['a'=4] {'a':(1)2}", [[0, 2], [1, 3]]),
    ],
)
def test_groups_of_devices_in_every_notation(text, groups):
    line = f"f32[4]{{0}} all-reduce(%p0), channel_id=1, replica_groups={text}, use_global_device_ids=true"
    entry = program(line, "f32[4]{0}")["%main"]
    np.testing.assert_array_equal(replica_groups(entry["%r"]), groups)


def test_traffic_between_slices_is_told_apart():
    line = "f32[4]{{0}} all-reduce(%p0), channel_id=1, replica_groups={}, use_global_device_ids=true"
    for groups, between in (("{{0,1},{2,3}}", 0), ("{{0,2},{1,3}}", 16)):
        cost = count(program(line.format(groups), "f32[4]{0}"), chips_per_slice=2)
        assert cost.collectives["all-reduce"].between_slices == between
        assert cost.collectives["all-reduce"].bytes == 16


def test_who_sends_to_whom():
    line = "f32[4]{0} collective-permute(%p0), channel_id=1, source_target_pairs={{0,1},{1,0}}, metadata={}"
    assert source_target_pairs(program(line, "f32[4]{0}")["%main"]["%r"]) == [(0, 1), (1, 0)]


def test_text_that_is_no_program():
    with pytest.raises(ValueError, match="no ENTRY"):
        parse("HloModule nothing")
