"""Programs of LLaMA-2 at full width, by XLA's compiler for NVIDIA GPUs, without one."""

import dataclasses
import importlib.util
import json

import pytest

from crystal_jax.compile.analysis.roofline import bytes_on_a_chip, train_flops
from crystal_jax.compile.aot_report import compile_case
from crystal_jax.compile.chips import CHIPS, GPUS
from crystal_jax.compile.options import CompileOptions
from crystal_jax.compile.print_report import show
from crystal_jax.compile.topology import topology
from crystal_jax.config import MeshConfig
from crystal_jax.errors import UserError
from crystal_jax.model.flops import train_flops_per_token
from crystal_jax.sharding import make_mesh, platform_of
from crystal_jax.train.step import plan
from tests.compile.configurations import llama2

GIB = 2**30
BLOCK = (4 * 4096**2 + 3 * 4096 * 11008) * 2  # bytes of a layer's weights in bfloat16
ADAPTERS = 2 * 8 * (4096 + 4096) * 4  # of q and v, in float32
needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None,
    reason="no compiler for GPUs: pip install 'crystal-jax[cuda]'",
)


@pytest.fixture(scope="module")
def h100():
    return topology("h100:1")


def experiment_of(attention="cudnn"):
    # Without dropout: its random numbers take half of the compilation.
    execution = {"attention": attention}
    data = {"batch_size": 8, "seq_len": 512, "shards": 1}
    return llama2(layers=2, lora={"dropout": 0.0}, data=data, execution=execution)


@pytest.fixture(scope="module")
def gpu_step(h100):
    """The training step of a 7B's first two layers, at full width, with cuDNN's attention."""
    experiment = experiment_of()
    return experiment, compile_case(experiment, h100, config="7b", what="train")


@pytest.mark.parametrize(
    ("name", "slices", "message"),
    [
        ("h900:1", 1, r"no topology 'h900:1'; .* \(v4, .*\) .* as v5e:4x4, or a GPU \(h100, h200, a100\) .* as h100:8"),
        ("h100:2x2", 1, "no topology 'h100:2x2'"),
        ("v5e:4", 1, "no topology 'v5e:4'"),
        ("h100:0", 1, "no topology 'h100:0': a host has 1 to 8 GPUs"),
        ("h100:16", 1, "no topology 'h100:16': a host has 1 to 8 GPUs"),
        ("h100:8", 2, "num_slices=2 is of TPUs"),
        ("h100:8", 0, "num_slices must be positive"),
    ],
)
def test_bad_names_are_one_line(name, slices, message):
    with pytest.raises(UserError, match=message) as caught:
        topology(name, num_slices=slices)
    assert "\n" not in str(caught.value)


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs JAX's CUDA plugin; .* pip install 'crystal-jax\[cuda\]'"):
        topology("h100:1")


def test_what_a_program_may_use_of_a_card():
    limits = {name: round(chip.hbm_limit / GIB, 1) for name, chip in GPUS.items()}
    assert limits == {"h100": 72.8, "h200": 128.6, "a100": 72.9}
    assert not GPUS.keys() & CHIPS.keys()


@needs_compiler
@pytest.mark.parametrize(("name", "kind"), [("h100:8", "NVIDIA H100 80GB HBM3"), ("a100:2", "NVIDIA A100-SXM4-80GB")])
def test_the_gpus_of_a_host(name, kind):
    where = topology(name)
    count = int(name.split(":")[1])
    assert [device.device_kind for device in where.devices] == [kind] * count
    mesh = make_mesh(MeshConfig.parse("1,-1,1"), where.devices)
    assert mesh.devices.shape == (1, count, 1)
    assert platform_of(mesh) == "gpu"


@needs_compiler
def test_a_training_step_is_what_was_planned(gpu_step, h100):
    experiment, report = gpu_step
    planned = plan(experiment, make_mesh(MeshConfig.parse("1,1,1"), h100.devices))
    held = bytes_on_a_chip((planned.state, planned.frozen, planned.batch))
    memory = report.memory
    assert report.expected_arguments == held
    assert held <= memory["arguments"] < 1.01 * held
    assert memory["aliased"] == pytest.approx(bytes_on_a_chip(planned.state), rel=0.01)
    assert memory["beside"] == 0
    total = memory["arguments"] + memory["outputs"] - memory["aliased"] + memory["temporaries"]
    assert held < memory["needed"] == total < memory["limit"]


@needs_compiler
def test_attention_is_cudnns_where_the_configuration_says_so(gpu_step, h100):
    _, fused = gpu_step
    assert 'custom_call_target="__cudnn$fmha' in fused.text
    assert "Backward" in fused.text
    einsums = compile_case(experiment_of("einsum"), h100, config="7b", what="train")
    assert "fmha" not in einsums.text
    # One layer's weights of attention take 2**27 bytes in bfloat16; not all of it is at the peak.
    assert einsums.memory["temporaries"] - fused.memory["temporaries"] > 2**25


@needs_compiler
def test_a_report_states_memory_and_floors_only(gpu_step):
    experiment, report = gpu_step
    assert (report.cost, report.estimate) == (None, None)
    assert report.expected_flops == train_flops(experiment)
    needed = train_flops_per_token(experiment.model, experiment.lora) * 8 * 512
    assert report.floors.compute == pytest.approx(needed / 989e12)
    assert report.floors.memory is None
    shown = show(report)
    for words in ("on h100:1 (1 GPUs)", "HBM: needed", "of 72.77, 92% of the card's", "no step is faster"):
        assert words in shown
    for word in ("estimated", "HBM traffic", "of the equations'"):
        assert word not in shown
    content = json.loads(json.dumps(report.to_json()))
    assert not {"cost", "estimate", "text"} & content.keys()
    assert content["versions"]["jax-cuda13-plugin"]


@needs_compiler
def test_a_program_that_does_not_fit_is_refused_with_the_bytes(h100):
    small = dataclasses.replace(h100, chip=dataclasses.replace(h100.chip, hbm_limit=GIB))
    needs = r"7b train on h100:1 does not fit: it needs [1-9]\.\d\dGiB of a chip's memory, which has 1.00GiB \(92% of"
    with pytest.raises(UserError, match=needs):
        compile_case(experiment_of(), small, config="7b", what="train")


@needs_compiler
def test_fsdp_keeps_a_part_of_the_weights_on_each_gpu(gpu_step):
    experiment, alone = gpu_step
    options = CompileOptions(mesh=MeshConfig.parse("1,8,1"))
    report = compile_case(experiment, topology("h100:8"), config="7b", what="train", options=options)
    assert report.chips == 8
    assert "all-gather" in report.text
    assert report.memory["arguments"] == pytest.approx(alone.memory["arguments"] / 8, rel=0.02)
    assert report.floors.compute == pytest.approx(alone.floors.compute / 8)


@needs_compiler
def test_decoding_takes_layers_one_by_one_and_updates_the_cache_in_place(h100):
    report = compile_case(experiment_of(), h100, config="7b", what="decode", options=CompileOptions(rows=64))
    assert report.text.count('custom_call_target="__cudnn$fmha') == 2  # one a layer
    assert report.length == 38 + 387 + 4  # prompt, longest text, and what a step may force beyond it
    cache = 2 * 2 * 64 * report.length * 32 * 128 * 2
    assert report.memory["aliased"] >= cache
    assert report.memory["temporaries"] < 0.1 * report.memory["arguments"]
    assert report.memory["beside"] == 2 * (BLOCK + ADAPTERS + 2 * 4096 * 2)  # the stacked layers, with two norms each
    assert report.expected_bytes == report.memory["beside"] + cache
    assert report.floors.memory == pytest.approx(report.expected_bytes / 3350e9)
    assert "no step with a full cache is faster" in show(report)


@needs_compiler
def test_a_gpu_has_room_for_more_rows_than_a_tpu(h100):
    assert compile_case(experiment_of(), h100, config="7b", what="prefill").rows == 512
