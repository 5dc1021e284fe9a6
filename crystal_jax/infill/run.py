"""Ranks the elements that could replace an element of a crystal by their probability under a trained model.

All atoms of the element are masked, as in training. The probability of every element is computed exactly, not estimated
by sampling. Writes elements.csv, the most probable new crystals as CIF files, and run.json.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from absl import flags
from pymatgen.core import Composition
from pymatgen.io.cif import CifWriter

from crystal_jax import arguments
from crystal_jax.checkpoint.model_flags import ALL_ON_DATA, define_model_flags, mesh_of, step_of
from crystal_jax.errors import UserError
from crystal_jax.evaluate.oxidation import OXIDATION_STATES, OxidationTable, load_oxidation_table
from crystal_jax.evaluate.validity import compositional_invalid_reason
from crystal_jax.infill.radii import TOLERANCE, elements_of_similar_radius
from crystal_jax.score.crystals import crystal_of, spelled
from crystal_jax.storage.files import write_text
from crystal_jax.storage.jsonl_log import ensure_same_run, release
from crystal_jax.structures import read_entries
from crystal_jax.tables import read_rows, write_rows
from crystal_jax.text.crystal_text import ELEMENTS, Crystal
from crystal_jax.text.prompts import infill_prompt, mask_element


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags of the command."""
    define_model_flags(flag_values)
    flags.DEFINE_string(
        "cif", None, "The crystal: a CIF file, or another file of one crystal.", flag_values=flag_values
    )
    flags.DEFINE_string("element", None, "The element to replace, such as Fe.", flag_values=flag_values)
    flags.DEFINE_integer(
        "site",
        None,
        "Or a site whose element it is: its number from 0, as pymatgen reads the file.",
        flag_values=flag_values,
    )
    flags.DEFINE_float(
        "temperature", 1.0, "Probabilities are raised to 1/temperature, then normalised.", flag_values=flag_values
    )
    flags.DEFINE_integer("top_k", 10, "How many elements are shown and written as CIF.", flag_values=flag_values)
    flags.DEFINE_list(
        "constraints",
        [],
        "Allow only elements of a similar ionic radius (radius; see --radius_tolerance), only elements with which "
        "charges can balance (charge), or both.",
        flag_values=flag_values,
    )
    flags.DEFINE_float(
        "radius_tolerance",
        TOLERANCE,
        "Radii in Å differ by less, in a shared oxidation state.",
        flag_values=flag_values,
    )
    flags.DEFINE_enum(
        "oxidation_states", "smact14", OXIDATION_STATES, "The table for --constraints=charge.", flag_values=flag_values
    )
    flags.DEFINE_integer("batch_size", 32, "Elements scored side by side.", flag_values=flag_values)
    flags.DEFINE_string("output", None, "Directory for elements.csv, cif/ and run.json.", flag_values=flag_values)
    flags.mark_flags_as_required(["checkpoint", "cif", "output"], flag_values)


def main(flag_values: flags.FlagValues) -> None:
    """Runs `crystal-jax infill`."""
    path = infill(
        flag_values.checkpoint,
        cif=Path(flag_values.cif),
        output=Path(flag_values.output),
        element=flag_values.element,
        site=flag_values.site,
        temperature=flag_values.temperature,
        top_k=flag_values.top_k,
        constraints=flag_values.constraints,
        radius_tolerance=flag_values.radius_tolerance,
        oxidation_states=flag_values.oxidation_states,
        batch_size=flag_values.batch_size,
        step=step_of(flag_values),
        mesh=flag_values.mesh,
    )
    rows = read_rows(path).records()[: flag_values.top_k]
    print("element  probability  uniform swap")
    for row in rows:
        print(f"{row['symbol']:<7}  {float(row['probability']):11.4f}  {float(row['baseline']):12.4f}")
    print(path)


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


def infill(
    checkpoint: str | Path,
    *,
    cif: Path,
    output: Path,
    element: str | None = None,
    site: int | None = None,
    temperature: float = 1.0,
    top_k: int = 10,
    constraints: Sequence[str] = (),
    radius_tolerance: float = TOLERANCE,
    oxidation_states: str = "smact14",
    batch_size: int = 32,
    step: int | Literal["best"] | None = None,
    mesh: str = ALL_ON_DATA,
) -> Path:
    """Scores every element as a replacement and returns the path of `elements.csv`, the most probable first.

    Its columns are the attributes of `Proposal`. `cif/` holds the given crystal, unrounded, with each of the `top_k`
    elements on the masked sites; the original element keeps its row and gets no file.

    Args:
        checkpoint: A workdir, an exported folder, or the name of a released model; trained with infilling.
        cif: The crystal. Its sites are sorted if the model was trained on sorted sites; they are not translated.
        output: Directory, new or of the same request.
        element: The element to replace; either this or `site` is given.
        site: Number of a site with the element to replace, from 0, as pymatgen reads the file.
        temperature: Probabilities are raised to 1/temperature and normalised over the allowed elements.
        top_k: Number of elements that are written as CIF files.
        constraints: Constraints on the elements: `radius` allows those that `elements_of_similar_radius` returns;
            `charge` allows those with which the whole composition is valid by the evaluator's rule.
        radius_tolerance: Tolerance of the radius rule, and of the baseline, in Å.
        oxidation_states: Table for the constraint `charge`: smact14 or icsd24.
        batch_size: Elements scored side by side.
        step: Step of the checkpoint, or "best"; the last one by default.
        mesh: Devices along the axes data, fsdp and tensor (`MeshConfig.parse`); no influence on the results.

    Raises:
        UserError: no such checkpoint, crystal or site, a model trained without infilling, an impossible setting, or an
            output directory of another request.
    """
    if not 0 < temperature < float("inf"):
        raise UserError(f"temperature must be positive, not {temperature}")
    if top_k < 1 or batch_size < 1:
        raise UserError(f"top_k={top_k} and batch_size={batch_size} must be positive")
    constraints = arguments.words("constraints", constraints)
    if unknown := sorted(set(constraints) - {"radius", "charge"}):
        raise UserError(f"constraints has {', '.join(unknown)}; there are radius and charge")
    crystal, content = _read(cif)
    symbol = _asked(crystal, element, site)
    admitted = elements_of_similar_radius(symbol, tolerance=radius_tolerance)
    if "radius" in constraints and not admitted:
        raise UserError(
            f"no element has an ionic radius within {radius_tolerance} Å of {symbol}'s in a shared oxidation state; "
            "raise --radius_tolerance or leave out --constraints=radius"
        )
    allowed = set(admitted if "radius" in constraints else ELEMENTS)
    if "charge" in constraints:
        allowed &= _balanced(crystal, symbol, load_oxidation_table(oxidation_states))
        if not allowed:
            raise UserError(f"charges balance with no allowed element for {symbol}; leave out --constraints=charge")
    # Imported late, so that --help and bad flags answer at once.
    from crystal_jax.checkpoint.models import describe, load_for_inference
    from crystal_jax.checkpoint.pretrained import locate
    from crystal_jax.provenance import provenance
    from crystal_jax.score.likelihood import Likelihood
    from crystal_jax.text.tokenizer import load_tokenizer

    experiment = describe(checkpoint)
    if not experiment.task.infill:
        raise UserError(
            f"{checkpoint} was trained without infilling (task.infill=0); train with --config.task.infill=0.34"
        )
    tokenizer = load_tokenizer(experiment.tokenizer.name, Path(experiment.tokenizer.path))
    try:
        text = spelled(crystal, experiment)
        prompt = infill_prompt(mask_element(text, symbol, substring=experiment.text.version == "paper"))
        tokenizer.encode(prompt)
    except ValueError as error:
        raise UserError(f"{cif}: {error}") from error
    devices = mesh_of(mesh)
    trained = load_for_inference(checkpoint, devices, step=step)
    likelihood = Likelihood(trained, tokenizer, devices, prompt=prompt, batch_size=batch_size)
    spellings = _spellings(likelihood.encode)
    request: dict[str, Any] = {
        "checkpoint": str(locate(checkpoint).resolve()),
        "step": trained.step,
        "cif": str(cif.resolve()),
        "cif_sha256": hashlib.sha256(content.encode()).hexdigest(),
        "element": symbol,
        "prompt": prompt,
        "temperature": temperature,
        "top_k": top_k,
        "constraints": sorted(constraints),
        "radius_tolerance": radius_tolerance,
        "oxidation_states": oxidation_states if "charge" in constraints else None,
        "text_format": experiment.text.version,
        "coordinates": experiment.text.coordinates,
        "order": experiment.task.order,
        "tokenizer": tokenizer.name,
    }
    made_by = provenance(("jax", "flax", "pymatgen"), command="infill", elements_scored=len(spellings))
    ensure_same_run(output, request, made_by)
    log_probs = dict(zip(spellings, likelihood(list(spellings.values())), strict=True))
    proposals = propose(log_probs, admitted, allowed, temperature=temperature)
    _write_crystals(output / "cif", crystal, symbol, proposals[:top_k])
    path = output / "elements.csv"
    columns = [field.name for field in dataclasses.fields(Proposal)]
    write_rows(path, columns, [dataclasses.astuple(proposal) for proposal in proposals])
    release(output)
    return path


def propose(
    log_probs: Mapping[str, float], admitted: Sequence[str], rules_allow: Collection[str], *, temperature: float
) -> list[Proposal]:
    """Returns a row for each element, the most probable first.

    Args:
        log_probs: log p(symbol, EOS | prompt) of each element symbol.
        admitted: Elements that the radius rule allows; the baseline draws from these.
        rules_allow: Elements that the requested constraints allow.
        temperature: See `infill`.

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


def _balanced(crystal: Crystal, original: str, table: OxidationTable) -> set[str]:
    """Returns the elements that keep the composition valid if they replace the original one."""

    def composition(symbol: str) -> Composition:
        return Composition(Counter(symbol if each == original else each for each in crystal.symbols))

    return {symbol for symbol in ELEMENTS if compositional_invalid_reason(composition(symbol), table) is None}


def _read(cif: Path) -> tuple[Crystal, str]:
    """Returns the crystal in a file, and its CIF."""
    entries = read_entries(cif)
    if len(entries) != 1:
        raise UserError(f"{cif} holds {len(entries)} crystals; give a file of one")
    try:
        return crystal_of(entries[0]), entries[0].cif
    except ValueError as error:
        raise UserError(f"{cif}: {error}") from error


def _asked(crystal: Crystal, element: str | None, site: int | None) -> str:
    """Returns the element to replace."""
    if (element is None) == (site is None):
        raise UserError("say what to replace: either --element=Fe or --site=0")
    if element is not None:
        if element not in crystal.symbols:
            raise UserError(f"the crystal has no {element!r}; it has {', '.join(dict.fromkeys(crystal.symbols))}")
        return element
    if site is None or not 0 <= site < len(crystal.symbols):
        raise UserError(f"the crystal has no site {site}; sites are 0 to {len(crystal.symbols) - 1}")
    return crystal.symbols[site]


def _spellings(encode: Callable[[str], list[int]]) -> dict[str, list[int]]:
    """Returns the token ids of every element that the tokenizer can spell."""
    spellings = {}
    for symbol in ELEMENTS:
        try:
            spellings[symbol] = encode(symbol)
        except ValueError:  # not in a compact vocabulary
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
