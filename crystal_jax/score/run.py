"""Computes the likelihood of given crystals under a trained model, as they are and after random translations.

Each crystal has a line in scores.jsonl: the log-probability (nats) of its text after the unconditional prompt, its
perplexity, the same for each translation, and the increase in perplexity under translation (IPT). A crystal that cannot
be scored keeps its line, with the reason. The same command continues an interrupted run.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from absl import flags

from crystal_jax.checkpoint.model_flags import ALL_ON_DATA, define_model_flags, mesh_of, step_of
from crystal_jax.config import Experiment
from crystal_jax.errors import UserError
from crystal_jax.score.crystals import crystal_of, spelled
from crystal_jax.storage.jsonl_log import JsonlLog, ensure_same_run, release
from crystal_jax.structures import Entry, read_entries
from crystal_jax.text.prompts import generation_prompt

if TYPE_CHECKING:
    from crystal_jax.score.likelihood import Likelihood

# Number of batches whose texts are sorted by length and written together. With fewer, the last batch of each length,
# which is rarely full, would be much of the work.
_BATCHES_AT_ONCE = 32


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags of the command."""
    define_model_flags(flag_values)
    flags.DEFINE_string(
        "samples",
        None,
        "The crystals: a CSV with a column 'cif', a CIF file, or a folder of them.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer("translations", 20, "Random translations of each crystal.", flag_values=flag_values)
    flags.DEFINE_integer("batch_size", 64, "Texts scored side by side.", flag_values=flag_values)
    flags.DEFINE_integer(
        "seed", 0, "Of the translations.", lower_bound=0, upper_bound=2**32 - 1, flag_values=flag_values
    )
    flags.DEFINE_string("output", None, "Directory for scores.jsonl and run.json.", flag_values=flag_values)
    flags.mark_flags_as_required(["checkpoint", "samples", "output"], flag_values)


def main(flag_values: flags.FlagValues) -> None:
    """Runs `crystal-jax score`."""
    path = score(
        flag_values.checkpoint,
        samples=Path(flag_values.samples),
        output=Path(flag_values.output),
        translations=flag_values.translations,
        batch_size=flag_values.batch_size,
        seed=flag_values.seed,
        step=step_of(flag_values),
        mesh=flag_values.mesh,
    )
    print(_summary(JsonlLog(path).rows()))
    print(path)


def score(
    checkpoint: str | Path,
    *,
    samples: Path,
    output: Path,
    translations: int = 20,
    batch_size: int = 64,
    seed: int = 0,
    step: int | Literal["best"] | None = None,
    mesh: str = ALL_ON_DATA,
) -> Path:
    """Scores crystals and returns the path of `scores.jsonl`, with one object per crystal, in the order of `samples`:

        index, name             number of the crystal, from 0, and its name in the source
        reason                  why it could not be scored, and then nothing follows; null otherwise
        text                    its text, with sites sorted if the model was trained on sorted sites
        tokens, log_prob        tokens of the text, its EOS included, and log p(text, EOS | prompt) in nats
        log_prob_per_token      their ratio
        perplexity              see `perplexity`
        translations            shift (fractions of the lattice vectors), tokens, log_prob and perplexity of each
        ipt                     see `increase_under_translation`; null without translations

    Args:
        checkpoint: A workdir, an exported folder, or the name of a released model.
        samples: A CSV with a column `cif`, or another source of crystals (`crystal_jax.structures.read`).
        output: Directory for the scores; continued if it holds some of the same request.
        translations: Number of random translations; those of the i-th crystal depend on the seed and on i alone.
        batch_size: Texts scored side by side; no influence on the scores beyond rounding.
        seed: Random seed of the translations.
        step: Step of the checkpoint, or "best"; the last one by default.
        mesh: Devices along the axes data, fsdp and tensor (`MeshConfig.parse`); no influence on the results.

    Raises:
        UserError: no such checkpoint or crystals, an impossible setting, or an output directory of another request.
    """
    if translations < 0 or batch_size < 1:
        raise UserError(f"translations={translations} must not be negative, and batch_size={batch_size} be positive")
    if seed < 0:
        raise UserError(f"seed={seed} must not be negative")
    entries = read_entries(samples)
    # Imported late, so that --help and bad flags answer at once.
    from tqdm import tqdm

    from crystal_jax.checkpoint.models import load_for_inference
    from crystal_jax.checkpoint.pretrained import locate
    from crystal_jax.provenance import provenance
    from crystal_jax.score.likelihood import Likelihood
    from crystal_jax.text.tokenizer import load_tokenizer

    devices = mesh_of(mesh)
    trained = load_for_inference(checkpoint, devices, step=step)
    experiment = trained.experiment
    tokenizer = load_tokenizer(experiment.tokenizer.name, Path(experiment.tokenizer.path))
    likelihood = Likelihood(trained, tokenizer, devices, prompt=generation_prompt(), batch_size=batch_size)
    request: dict[str, Any] = {
        "checkpoint": str(locate(checkpoint).resolve()),
        "step": trained.step,
        "samples": str(samples.resolve()),
        "samples_sha256": hashlib.sha256("\0".join(entry.cif for entry in entries).encode()).hexdigest(),
        "prompt": generation_prompt(),
        "translations": translations,
        "seed": seed,
        "text_format": experiment.text.version,
        "coordinates": experiment.text.coordinates,
        "order": experiment.task.order,
        "tokenizer": tokenizer.name,
    }
    ensure_same_run(output, request, provenance(("jax", "flax", "pymatgen"), command="score"))
    journal = JsonlLog(output / "scores.jsonl", {"index": int})
    known = {row["index"] for row in journal.rows()}
    missing = [i for i in range(len(entries)) if i not in known]
    at_once = max(1, _BATCHES_AT_ONCE * batch_size // (1 + translations))
    with tqdm(total=len(entries), initial=len(entries) - len(missing), desc="score", unit="crystal") as bar:
        for begin in range(0, len(missing), at_once):
            some = missing[begin : begin + at_once]
            rows = [
                _write_scores(i, entries[i], experiment, likelihood.encode, seed=seed, translations=translations)
                for i in some
            ]
            _score_together(rows, likelihood)
            journal.append(rows)
            bar.update(len(rows))
    release(output)
    return journal.path


def perplexity(log_prob: float, tokens: int) -> float:
    """Returns exp(-log_prob / tokens): the paper's 2^(CE/n), whose cross-entropy is in bits."""
    return math.exp(-log_prob / tokens)


def increase_under_translation(perplexities: Sequence[float]) -> float:
    """Returns the IPT of a crystal: the mean perplexity of its translations, minus the smallest one.

    IPT(s) = mean over g of PPL(t_g s) - PPL(t_g* s), with g* the translation of smallest perplexity (Gruver et al.,
    ICLR 2024). The paper does not state how many translations it draws. An IPT of 0 means that the model gives all
    translations the same perplexity.

    Raises:
        ValueError: there is no perplexity.
    """
    return float(np.mean(perplexities) - np.min(perplexities))


def _write_scores(
    index: int,
    entry: Entry,
    experiment: Experiment,
    encode: Callable[[str], list[int]],
    *,
    seed: int,
    translations: int,
) -> dict[str, Any]:
    """Returns the row of a crystal before scoring: it holds the token ids of its texts in place of scores."""
    shifts = np.random.default_rng([seed, index]).random((translations, 3))
    row: dict[str, Any] = {"index": index, "name": entry.name, "reason": None}
    try:
        crystal = crystal_of(entry)
        text = spelled(crystal, experiment)
        ids = [encode(text), *(encode(spelled(crystal.translated(shift), experiment)) for shift in shifts)]
    except ValueError as error:
        return row | {"reason": str(error)}
    return row | {"text": text, "ids": ids, "shifts": shifts.tolist()}


def _score_together(rows: Sequence[dict[str, Any]], likelihood: Likelihood) -> None:
    """Replaces the token ids in the rows by scores; each distinct text is scored once."""
    ids = list(dict.fromkeys(tuple(text) for row in rows for text in row.get("ids", ())))
    log_probs = dict(zip(ids, likelihood(ids), strict=True))
    for row in rows:
        if row["reason"] is not None:
            continue
        first, *others = (_scores(len(text), log_probs[tuple(text)]) for text in row.pop("ids"))
        shifts = row.pop("shifts")
        row |= first
        row["translations"] = [{"shift": shift} | other for shift, other in zip(shifts, others, strict=True)]
        row["ipt"] = increase_under_translation([other["perplexity"] for other in others]) if others else None


def _scores(tokens: int, log_prob: float) -> dict[str, Any]:
    return {
        "tokens": tokens,
        "log_prob": log_prob,
        "log_prob_per_token": log_prob / tokens,
        "perplexity": perplexity(log_prob, tokens),
    }


def _summary(rows: Sequence[Mapping[str, Any]]) -> str:
    scored = [row for row in rows if row["reason"] is None]
    line = f"{len(scored)} of {len(rows)} crystals scored"
    if scored:
        line += f"; mean perplexity {np.mean([row['perplexity'] for row in scored]):.4f}"
        if scored[0]["ipt"] is not None:
            number = len(scored[0]["translations"])
            line += f", IPT {np.mean([row['ipt'] for row in scored]):.4f} over {number} translations each"
    return line
