import dataclasses
import shutil

import pytest
from safetensors.numpy import load_file, save_file

from crystal_jax.checkpoint.exchange import import_model
from crystal_jax.checkpoint.hf import SINGLE, read_config
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
def damaged(shared, tmp_path):
    """A Hugging Face folder without its last norm."""
    folder = tmp_path / "damaged"
    shutil.copytree(shared / "weights/stories260K/stories260K-hf", folder)
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755)
    tensors = load_file(folder / SINGLE)
    del tensors["model.norm.weight"]
    save_file(tensors, folder / SINGLE)
    return folder
