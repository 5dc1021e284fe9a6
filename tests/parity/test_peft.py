"""Adapters of PEFT run here, and ours run in PEFT, with equal logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

import torch
import transformers

from crystal_jax.checkpoint.conversion.import_export import export_adapter, import_model, merged_source
from crystal_jax.checkpoint.formats.hf import HfSource, write_hf
from crystal_jax.checkpoint.formats.peft import MergedSource, read_peft
from crystal_jax.checkpoint.models import load_trained
from crystal_jax.config import MeshConfig
from crystal_jax.errors import UserError
from crystal_jax.sharding import make_mesh
from tests.experiments import from_hugging_face, logits, training_config
from tests.parity.models import BASE, hugging_face, logits_of

IDS = np.random.default_rng(0).integers(0, BASE["vocab_size"], (2, 21))
ATOL = 1e-4
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks transformers
ALL = ("q", "k", "v", "o", "gate", "up", "down")


def config(folder, **lora):
    """A run's configuration whose model is the one in `folder`."""
    import dataclasses

    model = dataclasses.asdict(HfSource(folder).config)
    return training_config("", model=model, lora={"rank": 4, "alpha": 8.0, **lora})


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    hugging_face().save_pretrained(folder)
    return folder


def adapted(base, folder, modules, *, rows=None, trained=False, stabilized=False):
    """A PEFT adapter with random factors, saved in `folder`, and its model; `rows` resizes the vocabulary: new rows are
    the mean of the old, as in the reference, where they are never `trained`."""
    model = transformers.LlamaForCausalLM.from_pretrained(base)
    model = peft.get_peft_model(
        model, peft.LoraConfig(r=4, lora_alpha=8, target_modules=modules, use_rslora=stabilized, task_type="CAUSAL_LM")
    )
    if rows:
        model.resize_token_embeddings(rows)  # after the adapters, as the reference does
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        for part in (model.get_input_embeddings(), model.get_output_embeddings()) if rows else ():
            part.weight[BASE["vocab_size"] :] = part.weight[: BASE["vocab_size"]].mean(dim=0)
        if trained:
            model.get_input_embeddings().weight[-1] += 0.1
    model.save_pretrained(folder)
    return model.eval()


MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.mark.parametrize(
    ("modules", "stabilized"),
    [(["q_proj", "v_proj"], False), (MODULES, False), (["o_proj"], True)],
    ids=["default", "all", "rank-stabilised"],
)
def test_a_peft_adapter_runs_here_merged_and_apart(base, tmp_path, modules, stabilized):
    expected = logits_of(adapted(base, tmp_path / "peft", modules, stabilized=stabilized), IDS)

    write_hf(tmp_path / "merged", MergedSource(HfSource(base), read_peft(tmp_path / "peft")), dtype="float32")
    np.testing.assert_allclose(logits(from_hugging_face(tmp_path / "merged"), jnp.asarray(IDS)), expected, atol=ATOL)
    transformed = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "merged")
    np.testing.assert_allclose(logits_of(transformed, IDS), expected, atol=ATOL)

    targets = tuple(target for target in ALL if f"{target}_proj" in modules)
    lora = dict(targets=targets, rank_stabilized=stabilized)
    import_model(base, tmp_path / "peft", tmp_path / "workdir", config(base, **lora))
    trained = load_trained(tmp_path / "workdir", make_mesh(MeshConfig(data=-1, fsdp=1, tensor=1)))
    apart = nnx.merge(trained.graph, trained.params)
    np.testing.assert_allclose(logits(apart, jnp.asarray(IDS)), expected, atol=ATOL)

    # And out again: PEFT gets its own tensors back.
    export_adapter(tmp_path / "workdir", tmp_path / "again")
    model = transformers.LlamaForCausalLM.from_pretrained(base)
    model = peft.PeftModel.from_pretrained(model, tmp_path / "again").eval()
    np.testing.assert_allclose(logits_of(model, IDS), expected, atol=1e-5)
    write_hf(tmp_path / "merged2", merged_source(tmp_path / "workdir"), dtype="float32")
    first, second = HfSource(tmp_path / "merged"), HfSource(tmp_path / "merged2")
    for name in first.shapes():
        np.testing.assert_array_equal(first.read(name), second.read(name))


def test_an_adapter_that_resizes_the_vocabulary(base, tmp_path):
    rows = BASE["vocab_size"] + 2
    expected = logits_of(adapted(base, tmp_path / "peft", ["q_proj", "v_proj"], rows=rows), IDS)
    assert expected.shape[-1] == rows
    write_hf(tmp_path / "merged", MergedSource(HfSource(base), read_peft(tmp_path / "peft")), dtype="float32")
    np.testing.assert_allclose(logits(from_hugging_face(tmp_path / "merged"), jnp.asarray(IDS)), expected, atol=ATOL)


@pytest.mark.parametrize("saved", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]], ids=" ".join)
@pytest.mark.parametrize("tied", [True, False])
def test_modules_that_are_saved_whole(tmp_path, tied, saved):
    """PEFT trains a copy of each; a head that was tied to the embedding stays the base's unless it is saved, too."""
    hugging_face(tie_word_embeddings=tied).save_pretrained(tmp_path / "base")
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=r".*\.(q_proj|v_proj)", modules_to_save=saved)
    torch.manual_seed(0)  # PEFT draws the factors A from the global generator
    model = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(tmp_path / "peft")
    expected = logits_of(model.eval(), IDS)
    source = MergedSource(HfSource(tmp_path / "base"), read_peft(tmp_path / "peft"))
    write_hf(tmp_path / "merged", source, dtype="float32")
    merged = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "merged")
    np.testing.assert_allclose(logits_of(merged, IDS), expected, atol=ATOL)
    np.testing.assert_allclose(logits(from_hugging_face(tmp_path / "merged"), jnp.asarray(IDS)), expected, atol=ATOL)


def test_a_vocabulary_resized_as_in_the_reference_needs_no_merging(base, tmp_path):
    rows = BASE["vocab_size"] + 2
    expected = logits_of(adapted(base, tmp_path / "peft", ["q_proj", "v_proj"], rows=rows), IDS)
    tree = config(base, targets=("q", "v"))
    del tree["model"]["vocab_size"]  # the adapter says it
    import_model(base, tmp_path / "peft", tmp_path / "workdir", tree)
    trained = load_trained(tmp_path / "workdir", make_mesh(MeshConfig(data=-1, fsdp=1, tensor=1)))
    found = logits(nnx.merge(trained.graph, trained.params), jnp.asarray(IDS))
    assert found.shape[-1] == rows
    np.testing.assert_allclose(found, expected, atol=ATOL)


def test_another_vocabulary_is_named(base, tmp_path):
    adapted(base, tmp_path / "peft", ["q_proj", "v_proj"], rows=BASE["vocab_size"] + 2, trained=True)
    tree = config(base, targets=("q", "v"))
    del tree["model"]["vocab_size"]
    with pytest.raises(UserError, match=r"rows of \S+ that are neither its base's nor their mean"):
        import_model(base, tmp_path / "peft", tmp_path / "workdir", tree)
    assert not (tmp_path / "workdir").exists()


def test_golden_adapter_of_real_weights(shared, tmp_path):
    stories = shared / "weights/stories260K"
    golden = np.load(stories / "stories260K.peft_logits.npz")
    source = MergedSource(HfSource(stories / "stories260K-hf"), read_peft(stories / "stories260K-peft"))
    write_hf(tmp_path / "merged", source, dtype="float32")
    found = logits(from_hugging_face(tmp_path / "merged"), jnp.asarray(golden["ids"]))
    np.testing.assert_allclose(found, golden["logits"], atol=ATOL)
    assert jax.default_backend() == "cpu"
