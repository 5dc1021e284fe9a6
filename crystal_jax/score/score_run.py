"""Scores the crystals of a source and appends them to `scores.jsonl`; an interrupted run is continued."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from crystal_jax.checkpoint.inference import InferenceModel, load_inference_model
from crystal_jax.config import Experiment
from crystal_jax.errors import RequestError
from crystal_jax.provenance import provenance
from crystal_jax.score.config import ScoreConfig
from crystal_jax.score.crystals import crystal_of, spelled
from crystal_jax.score.likelihood import Likelihood
from crystal_jax.score.scores import increase_under_translation, scores_of_text
from crystal_jax.storage.jsonl_log import JsonlLog, ensure_same_run, release
from crystal_jax.structures import Entry, read_entries
from crystal_jax.text.layout import CrystalTextError
from crystal_jax.text.prompts import generation_prompt

# Number of batches whose texts are sorted by length and written together. With fewer, the last batch of each length,
# which is rarely full, would be much of the work.
_BATCHES_AT_ONCE = 32


def write_scores(config: ScoreConfig) -> Path:
    """Scores the crystals that are missing on disk and returns the path of `scores.jsonl`; see `crystal_jax.score.run`.

    Raises:
        UserError: no such checkpoint or crystals, or an output directory of another request.
    """
    entries = read_entries(config.samples)
    model = load_inference_model(config.checkpoint, step=config.step, mesh=config.mesh)
    likelihood = Likelihood(model, prompt=generation_prompt(), batch_size=config.batch_size)
    made_by = provenance(("jax", "flax", "pymatgen"), command="score")
    ensure_same_run(config.output, _request(config, model, entries), made_by)
    log = JsonlLog(config.output / "scores.jsonl", {"index": int})
    known = {row["index"] for row in log.rows()}
    missing = [i for i in range(len(entries)) if i not in known]
    at_once = max(1, _BATCHES_AT_ONCE * config.batch_size // (1 + config.translations))
    with tqdm(total=len(entries), initial=len(entries) - len(missing), desc="score", unit="crystal") as bar:
        for begin in range(0, len(missing), at_once):
            some = missing[begin : begin + at_once]
            rows = [_unscored_row(config, i, entries[i], model.experiment, likelihood.encode) for i in some]
            _add_scores(rows, likelihood)
            log.append(rows)
            bar.update(len(rows))
    release(config.output)
    return log.path


def _request(config: ScoreConfig, model: InferenceModel, entries: Sequence[Entry]) -> dict[str, Any]:
    """Returns what decides the scores, for `run.json`."""
    return {
        **model.checkpoint_request(),
        "samples": str(config.samples.resolve()),
        "samples_sha256": hashlib.sha256("\0".join(entry.cif for entry in entries).encode()).hexdigest(),
        "prompt": generation_prompt(),
        "translations": config.translations,
        "seed": config.seed,
        **model.text_request(site_order=True),
    }


def _unscored_row(
    config: ScoreConfig, index: int, entry: Entry, experiment: Experiment, encode: Callable[[str], list[int]]
) -> dict[str, Any]:
    """Returns the row of a crystal before scoring: it holds the token ids of its texts in place of scores."""
    shifts = np.random.default_rng([config.seed, index]).random((config.translations, 3))
    row: dict[str, Any] = {"index": index, "name": entry.name, "reason": None}
    try:
        crystal = crystal_of(entry)
        text = spelled(crystal, experiment)
        ids = [encode(text), *(encode(spelled(crystal.translated(shift), experiment)) for shift in shifts)]
    except (RequestError, CrystalTextError) as error:
        return row | {"reason": str(error)}
    return row | {"text": text, "ids": ids, "shifts": shifts.tolist()}


def _add_scores(rows: Sequence[dict[str, Any]], likelihood: Likelihood) -> None:
    """Replaces the token ids in the rows by scores; each distinct text is scored once."""
    ids = list(dict.fromkeys(tuple(text) for row in rows for text in row.get("ids", ())))
    log_probs = dict(zip(ids, likelihood(ids), strict=True))
    for row in rows:
        if row["reason"] is not None:
            continue
        first, *others = (scores_of_text(len(text), log_probs[tuple(text)]) for text in row.pop("ids"))
        shifts = row.pop("shifts")
        row |= first
        row["translations"] = [{"shift": shift} | other for shift, other in zip(shifts, others, strict=True)]
        row["ipt"] = increase_under_translation([other["perplexity"] for other in others]) if others else None
