import pytest

from tests.compile.configurations import llama2


@pytest.fixture(scope="session")
def small_slice():
    """Four chips of TPU v5e."""
    pytest.importorskip("libtpu")
    from crystal_jax.compile.topology import topology

    return topology("v5e:2x2")


@pytest.fixture(scope="session")
def step(small_slice):
    """The training step of a 7B's first two layers, at full width, compiled for four chips."""
    from crystal_jax.compile.aot_report import compile_case
    from crystal_jax.compile.options import CompileOptions

    # Without dropout: its random numbers take half of the compilation.
    experiment = llama2(layers=2, lora={"dropout": 0.0}, data={"batch_size": 8, "seq_len": 512, "shards": 1})
    return experiment, compile_case(
        experiment, small_slice, config="7b", what="train", options=CompileOptions(optimization_level="O1")
    )
