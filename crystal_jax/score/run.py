"""Says how probable a trained model finds given crystals, as they are and moved by random translations.

Each crystal gets a line of scores.jsonl: the log-probability (nats) of its text after the unconditional prompt, its
perplexity, the same of each translation, and the increase in perplexity under translation (IPT). What cannot be scored
keeps its line, with the reason. The same command run again goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags

from crystal_jax.config import Experiment
from crystal_jax.errors import UserError
from crystal_jax.score.crystals import crystal_of, spelled
from crystal_jax.storage.jsonl_log import JsonlLog, ensure_same_run, release
from crystal_jax.structures import Entry, read_entries
from crystal_jax.text.prompts import generation_prompt

if TYPE_CHECKING:
    from crystal_jax.score.likelihood import Likelihood

# Texts of so many batches are sorted by length together, and written together: with fewer, the last batch of each
# length, which is seldom full, would be much of the work.
_BATCHES_AT_ONCE = 32


def define_flags(flag_values: flags.FlagValues) -> None:
    """The command's flags."""
    flags.DEFINE_string(
        "checkpoint", None, "A workdir, an exported folder, or a released model: crystal-tiny.", flag_values=flag_values
    )
    flags.DEFINE_integer("step", None, "A checkpoint's step; the last one by default.", flag_values=flag_values)
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
    """Entry of `crystal-jax score`."""
    path = score(
        flag_values.checkpoint,
        samples=Path(flag_values.samples),
        output=Path(flag_values.output),
        translations=flag_values.translations,
        batch_size=flag_values.batch_size,
        seed=flag_values.seed,
        step=flag_values.step,
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
    step: int | None = None,
) -> Path:
    """Scores crystals and returns the path of `scores.jsonl`, one object a crystal, in the order of `samples`:

        index, name             its place, from 0, and its name in the source
        reason                  why it could not be scored, and then nothing follows; null otherwise
        text                    its text, sites sorted where the model was trained so
        tokens, log_prob        tokens of the text, its EOS included, and log p(text, EOS | prompt) in nats
        log_prob_per_token      their ratio
        perplexity              see `perplexity`
        translations            shift (fractions of the lattice vectors), tokens, log_prob and perplexity of each
        ipt                     see `increase_under_translation`; null without translations

    Args:
        checkpoint: A workdir, an exported folder, or the name of a released model.
        samples: A CSV with a column `cif`, or another source of crystals (`crystal_jax.structures.read`).
        output: Directory for the scores; continued if it holds some of the same request.
        translations: How many random ones; the i-th crystal's depend on the seed and on i alone.
        batch_size: Texts scored side by side; no influence on the scores beyond rounding.
        seed: Of the translations.
        step: A checkpoint's step; the last by default.

    Raises:
        UserError: no such checkpoint or crystals, an impossible setting, or an output directory of another request.
    """
    if translations < 0 or batch_size < 1:
        raise UserError(f"translations={translations} must not be negative, and batch_size={batch_size} be positive")
    if seed < 0:
        raise UserError(f"seed={seed} must not be negative")
    entries = read_entries(samples)
    # Late, so that --help and bad flags answer at once.
    from tqdm import tqdm

    from crystal_jax.checkpoint.models import load_for_inference
    from crystal_jax.checkpoint.pretrained import locate
    from crystal_jax.config import MeshConfig
    from crystal_jax.provenance import provenance
    from crystal_jax.score.likelihood import Likelihood
    from crystal_jax.sharding import make_mesh
    from crystal_jax.text.tokenizer import load_tokenizer

    mesh = make_mesh(MeshConfig(data=-1, fsdp=1, tensor=1))
    trained = load_for_inference(checkpoint, mesh, step=step)
    experiment = trained.experiment
    tokenizer = load_tokenizer(experiment.tokenizer.name, Path(experiment.tokenizer.path))
    likelihood = Likelihood(trained, tokenizer, mesh, prompt=generation_prompt(), batch_size=batch_size)
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
    """exp(-log_prob / tokens): the paper's 2^(CE/n), whose cross-entropy is in bits."""
    return math.exp(-log_prob / tokens)


def increase_under_translation(perplexities: Sequence[float]) -> float:
    """IPT of a crystal: how far the perplexities of its translations lie above the smallest of them, on average.

    IPT(s) = mean over g of PPL(t_g s) - PPL(t_g* s), with g* the translation of smallest perplexity (Gruver et al.,
    ICLR 2024). The paper does not state how many translations it draws. 0 is a model that sees no difference.

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
    """A crystal's row before it is scored: in place of its scores, the ids of its texts."""
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
    """Replaces the ids in the rows by their scores; each distinct text is scored once."""
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
