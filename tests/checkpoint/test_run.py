import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from crystal_jax.checkpoint.formats.hf import HfSource
from crystal_jax.checkpoint.formats.peft import read_peft
from crystal_jax.checkpoint.formats.safetensors_io import SINGLE
from crystal_jax.checkpoint.run import convert
from crystal_jax.cli import main
from crystal_jax.errors import UserError
from tests.checkpoint.sources import assert_same


@pytest.fixture
def stories(shared):
    return shared / "weights/stories260K"


@pytest.mark.parametrize(
    ("read_as", "file"),
    [("hf", "stories260K-hf"), ("llama2c", "stories260K.bin"), ("easylm", "stories260K.fp32.easylm")],
)
def test_every_format_becomes_the_same_hugging_face_folder(stories, tmp_path, capsys, read_as, file):
    arguments = [f"--from={read_as}", "--to=hf", f"--input={stories / file}", f"--output={tmp_path / 'out'}"]
    arguments += [f"--architecture={stories / 'stories260K-hf'}"] if read_as == "easylm" else []
    assert main(["convert", *arguments, "--dtype=float32"]) == 0
    assert capsys.readouterr().out == f"hf: {tmp_path / 'out'}\n"
    assert_same(HfSource(tmp_path / "out"), HfSource(stories / "stories260K-hf"))


def test_easylm_comes_out_as_easylm_writes_it(stories, tmp_path):
    convert("hf", "easylm", input=stories / "stories260K-hf", output=tmp_path / "out", dtype="float32")
    assert (tmp_path / "out").read_bytes() == (stories / "stories260K.fp32.easylm").read_bytes()


def test_the_tokenizer_goes_along(stories, tmp_path):
    folder = tmp_path / "in"
    convert("hf", "hf", input=stories / "stories260K-hf", output=folder)
    (folder / "tokenizer.model").write_bytes((stories / "tok512.model").read_bytes())
    convert("hf", "hf", input=folder, output=tmp_path / "out")
    assert (tmp_path / "out/tokenizer.model").read_bytes() == (stories / "tok512.model").read_bytes()


def test_a_workdir_goes_out_as_adapter_and_merged(stories, adapted, tmp_path):
    convert("crystal_jax", "peft", input=adapted, output=tmp_path / "peft")
    convert("crystal_jax", "hf", input=adapted, output=tmp_path / "merged", dtype="float32")
    base = stories / "stories260K-hf"
    convert("peft", "hf", input=tmp_path / "peft", output=tmp_path / "again", base=base, dtype="float32")
    assert_same(HfSource(tmp_path / "merged"), HfSource(tmp_path / "again"))
    changed = [
        n for n in HfSource(base).shapes() if (HfSource(tmp_path / "merged").read(n) != HfSource(base).read(n)).any()
    ]
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "v_proj"}
    stated = json.loads((tmp_path / "peft/adapter_config.json").read_text())
    assert stated["base_model_name_or_path"] == str(base)
    golden = read_peft(stories / "stories260K-peft")
    for key, tensor in read_peft(tmp_path / "peft").factors.items():
        np.testing.assert_array_equal(tensor, golden.factors[key])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(read_as="hf", write_as="peft"), "--to=peft writes the adapter of a workdir"),
        (dict(read_as="peft", write_as="hf"), "--from=peft needs --base"),
        (dict(read_as="easylm", write_as="hf"), "--from=easylm needs --architecture"),
        (dict(read_as="meta", write_as="crystal_jax"), "convert to hf first"),
        (dict(read_as="hf", write_as="crystal_jax"), "--to=crystal_jax needs --config"),
    ],
)
def test_what_does_not_go_together_is_said(stories, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        convert(**arguments, input=stories / "stories260K-hf", output=tmp_path / "out")


def test_nothing_is_overwritten_and_nothing_is_missing(stories, tmp_path):
    with pytest.raises(UserError, match="exists already"):
        convert("hf", "hf", input=stories / "stories260K-hf", output=tmp_path)
    with pytest.raises(UserError, match="no such file or folder"):
        convert("hf", "hf", input=tmp_path / "nowhere", output=tmp_path / "out")


def test_a_model_that_fails_its_check_leaves_no_config_behind(folder, tmp_path):
    tensors = load_file(folder / SINGLE)
    del tensors["model.norm.weight"]
    save_file(tensors, folder / SINGLE)
    with pytest.raises(UserError, match=r"lacks tensor model.norm.weight"):
        convert("hf", "hf", input=folder, output=tmp_path / "out")
    assert not (tmp_path / "out/config.json").exists()
