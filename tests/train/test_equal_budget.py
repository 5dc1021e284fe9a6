"""Each way of writing crystals in configs/equal_budget.py trains, samples and is judged; all of it shrunken."""

import json
from pathlib import Path

import pytest

from crystal_jax.evaluate.run import evaluate
from crystal_jax.sample.run import sample
from crystal_jax.train.run import train
from tests.experiments import load_config

CONFIG = Path(__file__).parents[2] / "configs/equal_budget.py"


@pytest.mark.parametrize(
    "variant", ["lm_ch", "gpt2", "llama2_tokens", "special_tokens", "cif", "absolute", "one_decimal", "three_decimals"]
)
def test_a_variant_from_data_to_metrics(variant, dataset, tmp_path, request):
    config = load_config(CONFIG).get_config(variant)
    if config.tokenizer.name == "huggingface":
        config.tokenizer.path = str(request.getfixturevalue("bpe") / "tokenizer.json")
    elif config.tokenizer.path:
        config.tokenizer.path = str(request.getfixturevalue("shared") / "tokenizer/tokenizer.model")
    config.model.update(embed_dim=16, mlp_dim=16, num_layers=1)
    config.data.update(directory=str(dataset), batch_size=4, packing_bins=4)
    config.train.update(num_steps=2, eval_every=2, save_every=2, eval_batches=1, log_every=1)
    workdir = tmp_path / "run"
    train(config.to_dict(), workdir=workdir)
    assert any("val_loss_coordinate" in line for line in (workdir / "metrics.jsonl").read_text().splitlines())
    # The words of a CIF must not keep rules from being asked where they decide.
    rules = ("charge", "distance") if variant == "cif" else ()
    table = sample(workdir, output=tmp_path / "samples", num_samples=3, batch_size=4, max_atoms=3, constraints=rules)
    rows = [json.loads(line) for line in (tmp_path / "samples/samples.jsonl").read_text().splitlines()]
    assert [row["status"] for row in rows] == ["complete"] * 3
    if variant == "cif":
        assert all(row["text"].startswith("data_") for row in rows)
    evaluate(table, output=tmp_path / "evaluation")
    validity = json.loads((tmp_path / "evaluation/metrics.json").read_text())["validity"]
    assert validity["total"] == 3
    assert validity["hits"] == 3 or not rules
