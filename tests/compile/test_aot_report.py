"""Programs of LLaMA-2 at full width, by the TPU's own compiler."""

import dataclasses

import jax
import pytest

from crystal_jax.cli import main
from crystal_jax.compile import programs
from crystal_jax.compile.analysis.roofline import bytes_on_a_chip, train_flops
from crystal_jax.compile.aot_report import compile_case
from crystal_jax.compile.options import CompileOptions
from crystal_jax.compile.print_report import show
from crystal_jax.compile.programs import sampling_mesh
from crystal_jax.compile.topology import topology
from crystal_jax.config import MeshConfig, from_config_dict
from crystal_jax.errors import UserError
from crystal_jax.model.presets import LLAMA2
from crystal_jax.sharding import make_mesh
from crystal_jax.text.crystal_text import TextFormat
from crystal_jax.text.grammar.crystal import crystal_automaton
from crystal_jax.text.prompts import generation_prompt
from crystal_jax.text.tokenizer import encode_example, load_tokenizer
from crystal_jax.train.step import plan
from tests.compile.configurations import llama2
from tests.experiments import CONFIGS, load_config


def test_a_compiled_step_is_what_was_planned(step, small_slice):
    experiment, report = step
    planned = plan(experiment, make_mesh(experiment.mesh, small_slice.devices))
    held = bytes_on_a_chip((planned.state, planned.frozen, planned.batch))
    assert report.expected_arguments == held
    # Arrays are padded to tiles: 128 counters of a few bytes, and adapters of rank 8 which are narrower than a tile.
    assert held <= report.memory["arguments"] < 1.02 * held
    assert report.memory["aliased"] == pytest.approx(bytes_on_a_chip(planned.state), rel=0.02)
    assert report.memory["peak"] < report.memory["limit"]


def test_a_compiled_step_computes_what_the_equations_ask_for(step):
    experiment, report = step
    assert report.cost.flops == pytest.approx(train_flops(experiment) / 4, rel=0.01)
    assert report.cost.unknown_loops == 0


def test_fsdp_gathers_each_layers_weights_and_not_activations(step):
    _, report = step
    collectives = report.cost.collectives
    blocks = 2 * (4 * 4096**2 + 3 * 4096 * 11008) * 2  # bytes of bfloat16
    passes = 3  # forward, recomputed, backward; `down` is not recomputed
    received = collectives["all-gather"].bytes
    head = 2 * 4096 * 32_000 * 2
    assert 0.6 * passes * blocks * 3 / 4 < received < passes * blocks * 3 / 4 + 2 * head
    assert collectives["all-reduce"].bytes < 0.05 * received


def test_splash_attention_saves_traffic_and_keeping_products_saves_operations(step, small_slice):
    experiment, einsums = step
    changed = dataclasses.replace(experiment.execution, attention="splash", keep_products=True)
    experiment = dataclasses.replace(experiment, execution=changed)
    report = compile_case(
        experiment, small_slice, config="7b", what="train", options=CompileOptions(optimization_level="O1")
    )
    assert report.cost.kernels == 0  # splash kernels are counted
    assert report.cost.flops == pytest.approx(report.expected_flops, rel=0.03)
    assert report.cost.flops < 0.8 * einsums.cost.flops
    assert report.cost.bytes < 0.9 * einsums.cost.bytes


def test_the_report_says_it_all(step):
    _, report = step
    shown = show(report)
    for word in ("mesh", "fsdp 4", "HBM: peak", "of 15.75", "all-gather", "estimated step", "estimated MFU"):
        assert word in shown
    estimate = report.to_json()["estimate"]
    assert estimate["step"] == max(estimate["compute"], estimate["memory"], estimate["links"])
    assert 0 < estimate["mfu"] < 1
    assert report.versions["libtpu"]


def test_decoding_reads_weights_and_cache_and_updates_the_cache_in_place(small_slice):
    options = CompileOptions(rows=64, mesh=MeshConfig.parse("1,1,4"))
    report = compile_case(llama2(layers=8), small_slice, config="7b", what="decode", options=options)
    assert report.memory["aliased"] > 8 * 64 * 425 * 2 * 8 * 128 * 2  # keys and values of 8 heads a chip
    assert report.memory["temporaries"] < 0.05 * report.memory["arguments"]
    assert report.expected_bytes is not None
    assert report.cost.bytes < 1.2 * report.expected_bytes
    assert report.cost.flops == pytest.approx(report.expected_flops, rel=0.05)


def test_the_sizes_of_llama2s_grammar(shared):
    tokenizer = load_tokenizer("llama2", shared / "tokenizer/tokenizer.model")
    automaton = crystal_automaton(tokenizer, TextFormat())
    assert automaton.next_state.shape == (programs.STATES, programs.COLUMNS)
    assert automaton.max_tokens == programs.MAX_TOKENS
    assert 1 + len(encode_example(tokenizer, generation_prompt(), "0")[0]) == programs.PROMPT_TOKENS


def test_a_model_that_does_not_fit_is_refused_with_the_bytes(capsys):
    pytest.importorskip("libtpu")
    arguments = [
        "--config=configs/llama2_70b.py:tpu",
        "--topology=v5e:4x4",
        "--program=train",
        "--optimization_level=O1",
    ]
    assert main(["compile", *arguments]) == 1
    error = capsys.readouterr().err
    assert "it needs 5" in error
    assert "of a chip's memory, which has 15.75GiB" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "slices", "message"),
    [
        ("v5litepod-16", 1, "no topology 'v5litepod-16'"),
        ("v9:2x2", 1, "no topology 'v9:2x2'"),
        ("v5e:3x3", 1, "no topology 'v5e:3x3'.*not divisible"),
        ("v5e:2x2", 0, "num_slices must be positive"),
    ],
)
def test_bad_topologies_are_one_line(name, slices, message):
    pytest.importorskip("libtpu")
    with pytest.raises(UserError, match=message) as caught:
        topology(name, num_slices=slices)
    assert "\n" not in str(caught.value)


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'crystal-jax\[tpu\]'"):
        topology("v5e:2x2")


def test_meshes_on_tpus():
    pytest.importorskip("libtpu")
    cube = topology("v5p:4x4x4")
    assert make_mesh(MeshConfig.parse("1,8,8"), cube.devices).devices.shape == (1, 8, 8)  # splits an axis of the torus
    assert len(topology("v4:2x2x1").devices) == 4  # two cores are one device
    slices = topology("v5e:2x2", num_slices=2)
    mesh = make_mesh(MeshConfig.parse("2,-1,1"), slices.devices)
    assert [{device.slice_index for device in part.flat} for part in mesh.devices] == [{0}, {1}]
    with pytest.raises(UserError, match="data=1 is no multiple of the 2 slices"):
        make_mesh(MeshConfig.parse("1,-1,1"), slices.devices)


def test_sampling_splits_a_model_no_further_than_it_must():
    def mesh(size, weights, devices, hbm):
        chosen = sampling_mesh(LLAMA2[size], int(weights * 2**30), devices=devices, hbm=int(hbm * 2**30))
        return chosen.data, chosen.fsdp, chosen.tensor

    assert mesh("7b", 12.6, 16, 15.75) == (4, 1, 4)
    assert mesh("70b", 128.5, 64, 15.75) == (4, 2, 8)
    assert mesh("70b", 128.5, 64, 95.74) == (8, 1, 8)
    assert mesh("7b", 12.6, 1, 95.74) == (1, 1, 1)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_traces(path):
    """The whole training step from shapes, on 16 chips; nothing is compiled."""
    pytest.importorskip("libtpu")
    devices = topology("v5e:4x4").devices
    module = load_config(path)
    for variant in module.VARIANTS:
        # More than the smallest tokenizer has, and a multiple of the devices.
        experiment = from_config_dict(module.get_config(variant).to_dict(), vocab_size=1088)
        rows = experiment.data.batch_size
        mesh = experiment.mesh
        if rows % 16 and mesh.tensor == 1:  # a small model's batch is made for a few devices
            mesh, devices_used = MeshConfig(data=1, fsdp=1, tensor=1), devices[:1]
        else:
            devices_used = devices
        planned = plan(experiment, make_mesh(mesh, devices_used))
        state, metrics = jax.eval_shape(planned.train_step, planned.state, planned.frozen, planned.batch)
        assert jax.tree.structure(state) == jax.tree.structure(planned.state)
        assert metrics["loss"].shape == ()
