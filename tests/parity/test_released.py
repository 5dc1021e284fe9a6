"""The released model in Hugging Face's transformers: the same logits, and crystals."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="no PyTorch")
transformers = pytest.importorskip("transformers")

import jax
from flax import nnx

from crystal_jax.checkpoint.models import describe, load_trained
from crystal_jax.checkpoint.pretrained import locate, released
from crystal_jax.config import MeshConfig
from crystal_jax.sharding import make_mesh
from crystal_jax.text.prompts import generation_prompt, infill_prompt, mask_element
from crystal_jax.text.tokenizer import AtomCoordinateTokenizer, completion_text, prompt_ids
from tests.experiments import logits
from tests.parity.models import logits_of

TOKENIZER = AtomCoordinateTokenizer()


@pytest.fixture(scope="module", params=released())
def model(request):
    return request.param


@pytest.fixture(scope="module")
def theirs(model):
    return transformers.LlamaForCausalLM.from_pretrained(locate(model), dtype=torch.float32)


PEROVSKITE = "3.9 3.9 3.9\n90 90 90\nO\n0.00 0.00 0.50\nTi\n0.00 0.00 0.00\nSr\n0.50 0.50 0.50"


@pytest.mark.parametrize(
    "text",
    [
        generation_prompt() + PEROVSKITE,
        generation_prompt({"pretty_formula": "SrTiO3", "spacegroup.number": 221, "e_above_hull": 0.0}) + PEROVSKITE,
        infill_prompt(mask_element(PEROVSKITE, "Ti")) + "Zr",
    ],
)
def test_logits_are_equal(model, theirs, text):
    ours, tokenizer = load_trained(model, make_mesh(MeshConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1])), TOKENIZER
    ids = np.array([[tokenizer.bos_id, *tokenizer.encode(text)]])
    assert ids.shape[1] > 15
    expected = logits_of(theirs, ids)
    np.testing.assert_allclose(logits(nnx.merge(ours.graph, ours.params), ids), expected, rtol=1e-4, atol=1e-4)


def test_transformers_writes_crystals(model, theirs):
    """Without any grammar, most of what it writes can be read."""
    experiment, tokenizer = describe(model), TOKENIZER
    prompt = generation_prompt()
    head = prompt_ids(tokenizer, prompt)
    torch.manual_seed(0)
    rows = theirs.generate(torch.tensor([head] * 16), do_sample=True, top_k=0, max_new_tokens=90)
    readable = 0
    for row in rows.tolist():
        ids = row[len(head) :]
        ids = ids[: ids.index(tokenizer.eos_id)] if tokenizer.eos_id in ids else ids
        try:
            experiment.text.decode(completion_text(tokenizer, prompt, head, ids))
        except ValueError:
            continue
        readable += 1
    assert readable >= 12


@pytest.mark.parametrize("path", [locate(name) for name in released()], ids=lambda p: p.name)
def test_a_release_is_complete_and_small(path: Path):
    assert {file.name for file in path.iterdir()} >= {
        "config.json",
        "model.safetensors",
        "crystal_jax.json",
        "README.md",
    }
    assert sum(file.stat().st_size for file in path.iterdir()) < 16e6
