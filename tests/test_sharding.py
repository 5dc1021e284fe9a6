import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from crystal_jax.config import MeshConfig, from_config_dict
from crystal_jax.errors import UserError
from crystal_jax.model.attention.kv_cache import empty_cache
from crystal_jax.sample.constraints.masks import to_device
from crystal_jax.sample.engine.decode_state import decode_rules, init_decode_state
from crystal_jax.sharding import RULES, make_mesh, on_mesh, split_rows, split_width, tree_shardings
from crystal_jax.text.crystal_text import TextFormat
from crystal_jax.text.grammar.crystal import crystal_automaton
from crystal_jax.text.tokenizer import load_tokenizer
from crystal_jax.train.step import plan
from tests.experiments import GPT2_MODEL, TINY, training_config


@pytest.mark.parametrize(
    "text", ["1,-1,2", "dp:1,fsdp:-1,mp:2", "data:1, fsdp:-1, tensor:2", "tensor:2,data:1,fsdp:-1"]
)
def test_meshes_in_our_notation_and_in_easylms(text):
    assert MeshConfig.parse(text) == MeshConfig(data=1, fsdp=-1, tensor=2)
    assert from_config_dict({**training_config(""), "mesh": text}, vocab_size=98).mesh == MeshConfig.parse(text)


@pytest.mark.parametrize("text", ["1,1", "1,x,1", "1,1,1,1", "dp:1,dp:1,mp:1", "sp:1,fsdp:1,mp:1", ""])
def test_what_is_no_mesh(text):
    with pytest.raises(UserError, match=r"config\.mesh: mesh .* is not written like '1,-1,1'"):
        from_config_dict({**training_config(""), "mesh": text}, vocab_size=98)
    with pytest.raises(ValueError, match="order of devices"):
        MeshConfig.parse("!1,-1,1")


@pytest.mark.parametrize(
    ("sizes", "message"),
    [("2,-1,3", "does not fit 4 devices"), ("-1,-1,1", "at most one is -1"), ("0,2,2", "sizes are positive")],
)
def test_meshes_that_do_not_fit(sizes, message):
    with pytest.raises(UserError, match=message):
        make_mesh(MeshConfig.parse(sizes))


@pytest.mark.parametrize(
    ("layout", "spec"),
    [
        ("head_major", P(("data", "fsdp"), "tensor")),
        ("stacked", P(None, ("data", "fsdp"), "tensor")),
        ("position_major", P(("data", "fsdp"), None, "tensor")),
    ],
)
@pytest.mark.parametrize("coded", [False, True])
def test_texts_are_split_by_rows_and_caches_by_heads_too(layout, spec, coded):
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=2))
    tables = to_device(crystal_automaton(load_tokenizer("atom_coordinate"), TextFormat(), max_atoms=1))
    sizes = dict(rows=4, prompt_tokens=3, max_tokens=11)
    rows = jax.eval_shape(lambda: init_decode_state(TINY, tables, **sizes, layout=layout, coded=coded))
    where = tree_shardings(rows, mesh, decode_rules(layout))
    assert {s.spec for s in jax.tree.leaves((where.cache.keys, where.cache.values))} == {spec}
    of_rows = jax.tree.leaves(where._replace(cache=where.cache.length))
    assert {s.spec for s in of_rows} == {P(("data", "fsdp"))}


def test_an_array_that_does_not_divide_is_named_with_its_shape_and_axis():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=1))
    cache = jax.eval_shape(lambda: empty_cache(TINY, batch=6, capacity=5))
    message = r"cache/keys/0 of shape \(6, 2, 8, 5\): axis 0 does not divide over the 4 devices of 'data' x 'fsdp'"
    with pytest.raises(UserError, match=message):
        tree_shardings({"cache": cache}, mesh, decode_rules("head_major"))


def test_activations_are_split_on_the_mesh_of_the_step():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=1))
    x = jax.device_put(jnp.ones((4, 1, 8)), NamedSharding(mesh, P()))

    @jax.jit
    def step(x):
        with on_mesh(mesh):
            return split_rows(x + 0), split_width(x + 1), split_width(x[:1] + 2)

    rows, width, shared = (y.sharding.shard_shape(y.shape) for y in step(x))
    assert (rows, width, shared) == ((1, 1, 8), (2, 1, 4), (1, 1, 4))
    assert split_rows(x) is x  # without a mesh, nothing


def test_every_rule_is_of_some_run():
    """Rules that one run may do without are needed by another: none is left over."""
    changes = [
        {"optimizer": {"name": "muon"}},
        {"lora": {"rank": 2}, "quantize": {"kind": "int8"}},
        {"model": {"tie_embeddings": True}},
        {"model": GPT2_MODEL},
        {"model": GPT2_MODEL, "lora": {"rank": 2}, "quantize": {"kind": "nf4", "block_size": 8}},
    ]
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=2))
    used = set()
    for change in changes:
        planned = plan(from_config_dict(training_config("", **change), vocab_size=98), mesh)
        for path, leaf in jax.tree_util.tree_flatten_with_path((planned.state, planned.frozen))[0]:
            name = jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")
            used |= {next(pattern for pattern, _ in RULES if re.search(pattern, name))} if leaf.ndim else set()
    assert used == {pattern for pattern, _ in RULES}
