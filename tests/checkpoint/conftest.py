import dataclasses

import pytest

from crystal_jax.checkpoint.conversion.import_export import import_model
from crystal_jax.checkpoint.formats.easylm import write_easylm
from crystal_jax.checkpoint.formats.hf import read_config
from tests.checkpoint.sources import RandomSource, writable_copy
from tests.experiments import training_config


@pytest.fixture(scope="session")
def adapted(shared, tmp_path_factory):
    """A workdir: real weights with the golden PEFT adapter beside them."""
    stories = shared / "weights/stories260K"
    model = dataclasses.asdict(read_config(stories / "stories260K-hf"))
    tokenizer = dict(name="llama2", path=str(stories / "tok512.model"))
    config = training_config("", model=model, lora=dict(rank=8, alpha=32.0, targets=("q", "v")), tokenizer=tokenizer)
    workdir = tmp_path_factory.mktemp("adapted") / "workdir"
    import_model(stories / "stories260K-hf", stories / "stories260K-peft", workdir, config)
    return workdir


@pytest.fixture
def folder(shared, tmp_path):
    """A copy of a Hugging Face folder of real weights, to be changed."""
    return writable_copy(shared / "weights/stories260K/stories260K-hf", tmp_path / "stories")


@pytest.fixture(scope="session")
def wide(tmp_path_factory):
    """Random tensors under llama.cpp's names, of widths that quantised rows need."""
    pytest.importorskip("gguf")
    from tests.checkpoint.formats.gguf_files import WIDE, tensors_of

    path = tmp_path_factory.mktemp("wide") / "easylm"
    write_easylm(path, RandomSource(WIDE))
    return tensors_of(path)
