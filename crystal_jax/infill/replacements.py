"""Scores each element as a replacement for an element of a crystal, and writes the ranking and the new crystals."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.core import Composition
from pymatgen.io.cif import CifWriter

from crystal_jax.checkpoint.inference import InferenceModel, load_inference_model, tokenizer_of
from crystal_jax.checkpoint.models import describe
from crystal_jax.errors import RequestError, UserError
from crystal_jax.evaluate.chemistry.oxidation import OxidationTable, load_oxidation_table
from crystal_jax.evaluate.chemistry.validity import compositional_invalid_reason
from crystal_jax.infill.config import InfillConfig
from crystal_jax.infill.radii import elements_of_similar_radius
from crystal_jax.provenance import provenance
from crystal_jax.score.crystals import crystal_of, spelled
from crystal_jax.score.likelihood import Likelihood
from crystal_jax.storage.files import write_text
from crystal_jax.storage.jsonl_log import ensure_same_run, release
from crystal_jax.structures import Entry, read_entries
from crystal_jax.tables import write_rows
from crystal_jax.text.crystal_text import ELEMENTS, Crystal
from crystal_jax.text.layout import CrystalTextError
from crystal_jax.text.prompts import infill_prompt, mask_element


@dataclasses.dataclass(frozen=True, kw_only=True)
class Proposal:
    """An element for the masked sites: a row of `elements.csv`.

    Attributes:
        symbol: The element.
        probability: Probability among the allowed elements, at the requested temperature; 0 if the element is not
            allowed.
        log_prob: log p(symbol, EOS | prompt) in nats, at temperature 1, among all texts.
        allowed: Whether the requested constraints allow the element.
        baseline: Probability under the paper's baseline, a uniform draw from the elements that the radius rule allows.
    """

    symbol: str
    probability: float
    log_prob: float
    allowed: bool
    baseline: float


def write_replacements(config: InfillConfig) -> Path:
    """Scores every element as a replacement and returns the path of `elements.csv`; see `crystal_jax.infill.run`.

    Raises:
        UserError: no such checkpoint, crystal or site, a model trained without infilling, no element that the
            constraints allow, or an output directory of another request.
    """
    entry = _read(config.cif)
    crystal = _crystal(config.cif, entry)
    original = _replaced_element(crystal, config.element, config.site)
    similar = elements_of_similar_radius(original, tolerance=config.radius_tolerance)
    allowed = _allowed(config, crystal, original, similar)
    prompt = _prompt(config, crystal, original)
    model = load_inference_model(config.checkpoint, step=config.step, mesh=config.mesh)
    likelihood = Likelihood(model, prompt=prompt, batch_size=config.batch_size)
    spellings = _spellings(likelihood.encode)
    made_by = provenance(("jax", "flax", "pymatgen"), command="infill", elements_scored=len(spellings))
    ensure_same_run(config.output, _request(config, model, entry, original, prompt), made_by)
    log_probs = dict(zip(spellings, likelihood(list(spellings.values())), strict=True))
    proposals = propose(log_probs, similar, allowed, temperature=config.temperature)
    _write_crystals(config.output / "cif", crystal, original, proposals[: config.top_k])
    path = config.output / "elements.csv"
    columns = [field.name for field in dataclasses.fields(Proposal)]
    write_rows(path, columns, [dataclasses.astuple(proposal) for proposal in proposals])
    release(config.output)
    return path


def propose(
    log_probs: Mapping[str, float], admitted: Sequence[str], rules_allow: Collection[str], *, temperature: float
) -> list[Proposal]:
    """Returns a row for each element, the most probable first.

    Args:
        log_probs: log p(symbol, EOS | prompt) of each element symbol.
        admitted: Elements that the radius rule allows; the baseline draws from these.
        rules_allow: Elements that the requested constraints allow.
        temperature: See `InfillConfig`.

    Raises:
        UserError: no element is allowed.
    """
    allowed = {symbol: symbol in rules_allow for symbol in log_probs}
    if not any(allowed.values()):
        raise UserError("the rules leave no element that the tokenizer can spell; leave out one of them")
    tempered = np.array([log_probs[s] / temperature if allowed[s] else -np.inf for s in log_probs])
    weights = np.exp(tempered - tempered.max())
    drawn = [s for s in admitted if s in log_probs]
    rows = [
        Proposal(
            symbol=symbol,
            probability=float(weight / weights.sum()),
            log_prob=log_probs[symbol],
            allowed=allowed[symbol],
            baseline=1 / len(drawn) if symbol in drawn else 0.0,
        )
        for symbol, weight in zip(log_probs, weights, strict=True)
    ]
    return sorted(rows, key=lambda row: (not row.allowed, -row.log_prob))


def _read(cif: Path) -> Entry:
    """Returns the only crystal of a file."""
    entries = read_entries(cif)
    if len(entries) != 1:
        raise UserError(f"{cif} holds {len(entries)} crystals; give a file of one")
    return entries[0]


def _crystal(cif: Path, entry: Entry) -> Crystal:
    try:
        return crystal_of(entry)
    except RequestError as error:  # not an ordered crystal of elements
        raise UserError(f"{cif}: {error}") from error


def _replaced_element(crystal: Crystal, element: str | None, site: int | None) -> str:
    """Returns the element to replace: it is given, or that of a site."""
    if (element is None) == (site is None):
        raise UserError("say what to replace: either --element=Fe or --site=0")
    if element is not None:
        if element not in crystal.symbols:
            raise UserError(f"the crystal has no {element!r}; it has {', '.join(dict.fromkeys(crystal.symbols))}")
        return element
    if site is None or not 0 <= site < len(crystal.symbols):
        raise UserError(f"the crystal has no site {site}; sites are 0 to {len(crystal.symbols) - 1}")
    return crystal.symbols[site]


def _allowed(config: InfillConfig, crystal: Crystal, original: str, similar: Sequence[str]) -> set[str]:
    """Returns the elements that the constraints allow; `similar` are those that the radius rule allows."""
    if "radius" in config.constraints and not similar:
        raise UserError(
            f"no element has an ionic radius within {config.radius_tolerance} Å of {original}'s in a shared oxidation "
            "state; raise --radius_tolerance or leave out --constraints=radius"
        )
    allowed = set(similar if "radius" in config.constraints else ELEMENTS)
    if "charge" in config.constraints:
        allowed &= _balanced(crystal, original, load_oxidation_table(config.oxidation_states))
        if not allowed:
            raise UserError(f"charges balance with no allowed element for {original}; leave out --constraints=charge")
    return allowed


def _balanced(crystal: Crystal, original: str, table: OxidationTable) -> set[str]:
    """Returns the elements that keep the composition valid if they replace the original one."""

    def composition(symbol: str) -> Composition:
        return Composition(Counter(symbol if each == original else each for each in crystal.symbols))

    return {symbol for symbol in ELEMENTS if compositional_invalid_reason(composition(symbol), table) is None}


def _prompt(config: InfillConfig, crystal: Crystal, original: str) -> str:
    """Returns the prompt with the element masked. Reads the model's configuration only, as its weights load slowly.

    Raises:
        UserError: the model was trained without infilling, or its text format or tokenizer cannot express the crystal.
    """
    experiment = describe(config.checkpoint)
    if not experiment.task.infill:
        raise UserError(
            f"{config.checkpoint} was trained without infilling (task.infill=0); train with --config.task.infill=0.34"
        )
    tokenizer = tokenizer_of(experiment)
    try:
        text = spelled(crystal, experiment)
        prompt = infill_prompt(mask_element(text, original, substring=experiment.text.version == "paper"))
        tokenizer.encode(prompt)
    except (RequestError, CrystalTextError) as error:
        raise UserError(f"{config.cif}: {error}") from error
    return prompt


def _request(config: InfillConfig, model: InferenceModel, entry: Entry, original: str, prompt: str) -> dict[str, Any]:
    """Returns what decides the output, for `run.json`."""
    return {
        **model.checkpoint_request(),
        "cif": str(config.cif.resolve()),
        "cif_sha256": hashlib.sha256(entry.cif.encode()).hexdigest(),
        "element": original,
        "prompt": prompt,
        "temperature": config.temperature,
        "top_k": config.top_k,
        "constraints": sorted(config.constraints),
        "radius_tolerance": config.radius_tolerance,
        "oxidation_states": config.oxidation_states if "charge" in config.constraints else None,
        **model.text_request(site_order=True),
    }


def _spellings(encode: Callable[[str], list[int]]) -> dict[str, list[int]]:
    """Returns the token ids of every element that the tokenizer can spell."""
    spellings = {}
    for symbol in ELEMENTS:
        try:
            spellings[symbol] = encode(symbol)
        except RequestError:  # not in a compact vocabulary
            continue
    return spellings


def _write_crystals(folder: Path, crystal: Crystal, original: str, proposals: Sequence[Proposal]) -> None:
    folder.mkdir(exist_ok=True)
    for rank, proposal in enumerate(proposals, start=1):
        if proposal.symbol == original or not proposal.allowed:
            continue
        symbols = tuple(proposal.symbol if symbol == original else symbol for symbol in crystal.symbols)
        structure = dataclasses.replace(crystal, symbols=symbols).to_structure()
        formula = Composition(Counter(symbols)).reduced_formula
        write_text(folder / f"{rank:03d}_{proposal.symbol}_{formula}.cif", str(CifWriter(structure)))
