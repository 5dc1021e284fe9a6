import dataclasses
import json
import re

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from crystal_jax.checkpoint.formats.easylm import tensor_names, write_easylm
from crystal_jax.checkpoint.formats.easylm_rules import check_rules, read_rules
from crystal_jax.checkpoint.layout import NAMES, StateSource, leaves_by_path
from crystal_jax.cli import main
from crystal_jax.config import MeshConfig
from crystal_jax.errors import UserError
from crystal_jax.model.presets import LLAMA2
from crystal_jax.sharding import make_mesh, tree_shardings
from tests.checkpoint.sources import records
from tests.experiments import TINY, build

# EasyLM's own for LLaMA, at its last commit.
DEFAULT = [
    ["transformer/wte/embedding", ["mp", "fsdp"]],
    ["attention/(wq|wk|wv)/kernel", ["fsdp", "mp"]],
    ["attention/wo/kernel", ["mp", "fsdp"]],
    ["feed_forward/w1/kernel", ["fsdp", "mp"]],
    ["feed_forward/w2/kernel", ["mp", "fsdp"]],
    ["feed_forward/w3/kernel", ["fsdp", "mp"]],
    ["attention_norm/kernel", [None]],
    ["ffn_norm/kernel", [None]],
    ["transformer/ln_f/kernel", [None]],
    ["lm_head/kernel", ["fsdp", "mp"]],
    [".*", [None]],
]
TIED = dataclasses.replace(TINY, tie_embeddings=True)


def changed(pattern, axes):
    return [[name, axes if name == pattern else old] for name, old in DEFAULT]


@pytest.mark.parametrize("cfg", [TINY, TIED, *LLAMA2.values()])
def test_easylms_own_rules_map(cfg):
    check_rules(DEFAULT, cfg)


@pytest.mark.parametrize(
    "rules",
    [
        [(pattern, P(*axes)) for pattern, axes in DEFAULT],  # as they stand in EasyLM's source
        [[r"^params/params/transformer/h/0/attention/wq/", [["fsdp"], "mp"]], *DEFAULT],
        [[r"^transformer/", ["dp", "dp"]], *DEFAULT],  # matches nothing: a train state's paths begin otherwise
        changed("transformer/ln_f/kernel", []),
    ],
)
def test_rules_that_say_the_same_map_too(rules):
    check_rules(rules, TINY)


def test_what_maps_has_the_same_shards(tmp_path):
    """Each device holds what EasyLM's rules give it; only the rows within a head are in another order."""
    cfg, mesh = dataclasses.replace(TINY, vocab_size=96), make_mesh(MeshConfig(data=1, fsdp=2, tensor=2))
    state = nnx.state(build(cfg))
    write_easylm(tmp_path / "params", StateSource(state, cfg))
    ours = leaves_by_path(jax.tree.map(jax.device_put, state, tree_shardings(state, mesh)))
    by_name = {NAMES[path].format(i): (leaf, i) for path, leaf in ours.items() for i in range(cfg.num_layers)}
    arrays = records(tmp_path / "params")
    assert len(arrays) == 3 + 9 * cfg.num_layers
    for key, array in arrays.items():
        axes = next(axes for pattern, axes in DEFAULT if re.search(pattern, key))
        theirs = NamedSharding(mesh, P(*({"mp": "tensor"}.get(axis, axis) for axis in axes)))
        leaf, layer = by_name[tensor_names(cfg)[key]]
        for shard in leaf.addressable_shards:
            held = np.asarray(shard.data)[layer] if "/h/" in key else np.asarray(shard.data)
            wanted = array[theirs.devices_indices_map(array.shape)[shard.device]]
            np.testing.assert_array_equal(np.sort(held, None), np.sort(wanted, None), err_msg=key)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            changed("attention/(wq|wk|wv)/kernel", ["mp", "fsdp"]),
            r"the partition rule 'attention/\(wq\|wk\|wv\)/kernel' places transformer/h/0/attention/wq/kernel as "
            r'\["mp", "fsdp"\]; here, as blocks/q/kernel, it is \["fsdp", "mp"\]',
        ),
        ([[r"h/2/feed_forward/w2", ["mp"]], *DEFAULT], r'h/2/feed_forward/w2/kernel as \["mp"\]; here, as blocks/down'),
        (changed("transformer/wte/embedding", ["tp", "fsdp"]), r'embedding as \["tp", "fsdp"\]; .* \["mp", "fsdp"\]'),
        (changed("lm_head/kernel", [["dp", "fsdp"], "mp"]), r'lm_head/kernel as \[\["dp", "fsdp"\], "mp"\]'),
        (changed("ffn_norm/kernel", ["fsdp"]), r'ffn_norm/kernel as \["fsdp"\]; here, as blocks/mlp_norm/scale'),
        (changed("attention/wo/kernel", ["mp", "fsdp", None]), r'attention/wo/kernel as \["mp", "fsdp", null\]'),
        (DEFAULT[:-2], "no partition rule matches lm_head/kernel"),
    ],
)
def test_the_first_parameter_that_differs_is_named(rules, message):
    with pytest.raises(UserError, match=message):
        check_rules(rules, TINY)


def test_one_key_and_value_head_is_not_split_here():
    with pytest.raises(UserError, match=r'attention/wk/kernel as \["fsdp", "mp"\]; .* it is \["fsdp"\]'):
        check_rules(DEFAULT, dataclasses.replace(TINY, num_kv_heads=1))


def test_a_tied_model_has_no_head_to_place():
    check_rules(changed("lm_head/kernel", ["dp"]), TIED)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[[", "is damaged: "),
        (b"\xff", "is damaged: "),
        ("{}", "is no list of rules"),
        ("[]", "is no list of rules"),
        ('[["a"]]', r'rule 1 is \["a"\], not \[regular expression'),
        ('[["a", []], ["b", "fsdp"]]', r'rule 2 is \["b", "fsdp"\], not'),
        ('[["a", [1]]]', r'rule 1 is \["a", \[1\]\], not'),
        ('[["(", []]]', r"rule 1, '\(', is no regular expression: missing \)"),
    ],
)
def test_other_files(tmp_path, content, message):
    path = tmp_path / "rules.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=f"rules.json.* {message}|rules.json: {message}") as caught:
        read_rules(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"cannot read .*: No such file"):
        read_rules(tmp_path / "none")


def test_the_command_says_whether_they_map(shared, tmp_path, capsys):
    stories, out, rules = shared / "weights/stories260K", tmp_path / "out", tmp_path / "rules.json"
    command = ["convert", "--from=easylm", "--to=hf", f"--output={out}", f"--partition_rules={rules}"]
    command += [f"--input={stories / 'stories260K.fp32.easylm'}", f"--architecture={stories / 'stories260K-hf'}"]
    for wrong in (changed("attention/wo/kernel", ["fsdp", "mp"]), {"rules": DEFAULT}):
        rules.write_text(json.dumps(wrong))
        assert main(command) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert "attention/wo/kernel as" in line or f"{rules} is no list of rules" in line
        assert not out.exists()
    rules.write_text(json.dumps(DEFAULT))
    assert main(command) == 0
    said = f"hf: {out}\n{rules}: these rules map, so a mesh dp,fsdp,mp holds the same shards here\n"
    assert capsys.readouterr().out == said
    other = ["convert", "--from=hf", "--to=hf", f"--output={out}2", f"--partition_rules={rules}"]
    assert main([*other, f"--input={stories / 'stories260K-hf'}"]) == 1
    assert "they go with --from=easylm" in capsys.readouterr().err
