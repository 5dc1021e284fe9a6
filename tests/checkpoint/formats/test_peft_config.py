import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from crystal_jax.checkpoint.formats.hf import HfSource
from crystal_jax.checkpoint.formats.peft import CONFIG, WEIGHTS, MergedSource, read_peft
from crystal_jax.errors import UserError
from tests.checkpoint.sources import assert_same, writable_copy


@pytest.fixture
def adapter(shared, tmp_path):
    """A copy of a LoRA adapter of q and v of real weights, to be changed."""
    return writable_copy(shared / "weights/stories260K/stories260K-peft", tmp_path / "adapter")


@pytest.fixture
def base(shared):
    return HfSource(shared / "weights/stories260K/stories260K-hf")


def state(adapter, **options):
    path = adapter / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | options))


@pytest.mark.parametrize(
    "option",
    [
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "pissa_niter_4"},
        {"init_lora_weights": "olora"},
        {"init_lora_weights": "corda"},
        {"init_lora_weights": "loftq"},
        {"init_lora_weights": "lora_ga"},
        {"init_lora_weights": "mica"},
        {"init_lora_weights": ["pissa"]},
        {"use_dora": True},
        {"use_qalora": True},
        {"lora_bias": True},
        {"bias": "all"},
        {"fan_in_fan_out": True},
        {"alpha_pattern": {"q_proj": 16}},
        {"rank_pattern": {"q_proj": 16}},
        {"layers_to_transform": [0]},
        {"layers_pattern": "layers"},
        {"layer_replication": [[0, 2]]},
        {"exclude_modules": ["v_proj"]},
        {"trainable_token_indices": [3]},
        {"target_parameters": ["experts.w1"]},
        {"megatron_config": {"x": 1}},
        {"alora_invocation_tokens": [1, 2]},
        {"modules_to_save": ["norm"]},
        {"ensure_weight_tying": True},
        {"loftq_config": {"loftq_bits": 4}},
        {"an_option_of_a_later_peft": "on"},
    ],
    ids=str,
)
def test_options_that_change_what_an_adapter_computes_are_refused_by_name(adapter, option):
    state(adapter, **option)
    with pytest.raises(UserError, match=next(iter(option))) as error:
        read_peft(adapter)
    assert "\n" not in str(error.value)


def test_all_options_of_the_installed_peft_at_their_defaults_are_accepted(adapter, base):
    peft = pytest.importorskip("peft")
    expected = MergedSource(base, read_peft(adapter))
    defaults = json.loads(json.dumps(peft.LoraConfig(r=8, lora_alpha=32).to_dict(), default=list))
    state(adapter, **{key: value for key, value in defaults.items() if key not in ("peft_type", "target_modules")})
    state(adapter, eva_config={"rho": 2.0}, init_lora_weights="eva", task_type="CAUSAL_LM")
    assert_same(MergedSource(base, read_peft(adapter)), expected)


@pytest.mark.parametrize(
    "targets",
    [
        ["q_proj", "v_proj"],
        ["self_attn.q_proj", "self_attn.v_proj"],
        [f"model.layers.{i}.self_attn.{name}_proj" for i in range(5) for name in "qv"],
        r".*\.(q_proj|v_proj)",
        r"model\.layers\.\d+\.self_attn\.[qv]_proj",
        None,
    ],
    ids=["short", "longer", "full", "expression", "whole expression", "default"],
)
def test_targets_are_those_of_the_tensors(adapter, targets):
    expected = read_peft(adapter)
    state(adapter, target_modules=targets)
    found = read_peft(adapter)
    assert found.lora == expected.lora
    assert found.factors.keys() == expected.factors.keys()


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["q_proj"], r"v_proj\.lora_A\.weight, which target_modules in adapter_config\.json does not name"),
        (["q_proj", "v_proj", "k_proj"], r"lacks the factors of model\.layers\.0\.self_attn\.k_proj"),
        ("all-linear", r"lacks the factors of model\.layers\.0\.self_attn\.k_proj"),
        (r".*", "lacks the factors of"),
        (r"(", "target_modules is no regular expression"),
        ([3], "target_modules has 3, which is no name"),
        (["q_proj", "v_proj", "lm_head"], "adapters of 'lm_head' are unknown"),
        ({"q_proj": 1}, "target_modules is an object, not a list"),
    ],
)
def test_a_statement_that_disagrees_with_the_tensors(adapter, targets, message):
    state(adapter, target_modules=targets)
    with pytest.raises(UserError, match=message):
        read_peft(adapter)


def test_adapters_of_some_layers(adapter, base):
    tensors = {name: tensor for name, tensor in load_file(adapter / WEIGHTS).items() if ".layers.4." not in name}
    save_file(tensors, adapter / WEIGHTS)
    with pytest.raises(UserError, match=r"lacks layers\.4\.self_attn\.q_proj\.lora_A; adapters of some layers only"):
        MergedSource(base, read_peft(adapter))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": "8"}, "r is '8', not a whole number"),
        ({"r": None}, "r is null"),
        ({"r": 0}, "r is 0; it must be at least 1"),
        ({"lora_alpha": [1]}, "lora_alpha is a list, not a finite number"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"lora_dropout": 2}, r"lora\.dropout=2\.0 is not a share"),
        ({"use_rslora": "no"}, "use_rslora is 'no', not true or false"),
        ({"peft_type": ["LORA"]}, "peft_type is a list, not 'LORA'"),
    ],
)
def test_wrong_types_are_one_line(adapter, options, message):
    state(adapter, **options)
    with pytest.raises(UserError, match=message):
        read_peft(adapter)


def test_damaged_folders(adapter, tmp_path):
    for content in ("[]", "{", "\0", "3"):
        (adapter / CONFIG).write_text(content)
        with pytest.raises(UserError, match=r"adapter_config\.json is "):
            read_peft(adapter)
    (adapter / CONFIG).unlink()
    with pytest.raises(UserError, match=r"adapter_config\.json is missing"):
        read_peft(adapter)
    (tmp_path / "pickled").mkdir()
    shutil.copy(adapter / WEIGHTS, tmp_path / "pickled/adapter_model.bin")
    (tmp_path / "pickled" / CONFIG).write_text("{}")
    with pytest.raises(UserError, match=r"adapter_model\.bin is a pickle, save the adapter as safetensors"):
        read_peft(tmp_path / "pickled")


def with_whole(adapter, saved, **tensors):
    found = load_file(adapter / WEIGHTS)
    save_file(
        found | {f"base_model.model.{name}": np.ascontiguousarray(t) for name, t in tensors.items()}, adapter / WEIGHTS
    )
    state(adapter, modules_to_save=saved)
    return read_peft(adapter)


def test_a_tied_head_stays_the_bases_where_the_embedding_alone_is_saved(adapter, base):
    assert base.config.tie_embeddings
    embedding = base.read("model.embed_tokens.weight")
    trained = {"model.embed_tokens.weight": embedding + 1}
    merged = MergedSource(base, with_whole(adapter, ["embed_tokens"], **trained))
    assert not merged.config.tie_embeddings
    np.testing.assert_array_equal(merged.read("lm_head.weight"), embedding)
    np.testing.assert_array_equal(merged.read("model.embed_tokens.weight"), embedding + 1)
    assert merged.shapes()["lm_head.weight"] == embedding.shape


def test_a_tied_base_with_a_trained_head(adapter, base):
    embedding = base.read("model.embed_tokens.weight")
    merged = MergedSource(base, with_whole(adapter, ["lm_head"], **{"lm_head.weight": embedding + 2}))
    assert not merged.config.tie_embeddings
    np.testing.assert_array_equal(merged.read("lm_head.weight"), embedding + 2)
    np.testing.assert_array_equal(merged.read("model.embed_tokens.weight"), embedding)
    both = {"lm_head.weight": embedding + 3, "model.embed_tokens.weight": embedding + 3}
    merged = MergedSource(base, with_whole(adapter, None, **both))  # a resized vocabulary, which stays tied
    assert merged.config.tie_embeddings
    assert "lm_head.weight" not in merged.shapes()


def test_a_saved_module_that_is_not_there(adapter, base):
    state(adapter, modules_to_save=["lm_head"])
    with pytest.raises(UserError, match=r"lacks tensor lm_head\.weight, which modules_to_save"):
        read_peft(adapter)
    wrong = {"model.embed_tokens.weight": np.zeros((512, 3), np.float32)}
    with pytest.raises(
        UserError, match=r"embed_tokens\.weight has shape \(512, 3\), the base model asks for rows of 64"
    ):
        MergedSource(base, with_whole(adapter, ["embed_tokens"], **wrong))
