import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest

from crystal_jax.checkpoint.data_iterator_state import PositionHandler, PositionRestore, PositionSave
from crystal_jax.checkpoint.workdir import best_step, claim, open_checkpoints
from crystal_jax.config import from_config_dict
from crystal_jax.errors import UserError
from tests.experiments import training_config


class Streams:
    """A position of which one process has some streams and saves some of those."""

    def __init__(self, owned, running, places):
        self.owned, self.running, self.places, self.seen = owned, running, places, None

    def get_state(self):
        return {str(i): {"at": self.places[i]} for i in self.running} | {"shards": len(self.places)}

    def set_state(self, state):
        self.seen = state


def save(workdir, measured, *, keep, best):
    with open_checkpoints(workdir, keep=keep, best=best) as checkpoints:
        for step, metrics in enumerate(measured, start=1):
            items = ocp.args.Composite(params=ocp.args.StandardSave({"x": jnp.ones(3)}))
            checkpoints.save(step, args=items, metrics=metrics)


@pytest.mark.parametrize(
    ("best", "kept"), [("val_loss", {2, 4, 5}), ("val_loss_element", {3, 4, 5}), ("sample_validity", {1, 4, 5})]
)
def test_the_best_checkpoint_outlives_the_last_ones(tmp_path, best, kept):
    experiment = from_config_dict(
        training_config("", train={"best_metric": best, "eval_num_samples": 1}), vocab_size=90
    )
    claim(tmp_path, experiment)
    measured = [
        {"val_loss": 3.0, "val_loss_element": 2.0, "sample_validity": 0.5},
        {"val_loss": 1.0, "val_loss_element": 3.0, "sample_validity": 0.2},
        {"val_loss": 2.0, "val_loss_element": 1.0},
        {"val_loss": 4.0},
        {},
    ]
    save(tmp_path, measured, keep=2, best=best)
    assert {int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdecimal()} == kept
    assert best_step(tmp_path) == min(kept)


def test_without_measurements_there_is_no_best(tmp_path):
    claim(tmp_path, from_config_dict(training_config(""), vocab_size=90))
    with pytest.raises(UserError, match="has no checkpoint yet"):
        best_step(tmp_path)
    save(tmp_path, [{}, {}], keep=2, best="val_loss")
    with pytest.raises(UserError, match="no checkpoint with a val_loss"):
        best_step(tmp_path)


def test_a_position_is_a_file_a_stream(tmp_path):
    """Two processes write; a third that runs other streams reads."""
    places = [10, 11, 12]
    parts = [Streams((0, 1), (0, 1), places), Streams((2,), (1, 2), places)]
    for part in parts:
        PositionHandler().save(tmp_path, args=PositionSave(part))
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"stream_{i}-of-3.json" for i in range(3)]
    reader = Streams((), (), places)
    PositionHandler().restore(tmp_path, args=PositionRestore(reader))
    assert reader.seen == {"0": {"at": 10}, "1": {"at": 11}, "2": {"at": 12}, "shards": 3}
