"""Names that changed: flags, configuration keys, text formats and columns keep their old name for one release.

Each old name that is used gives one line on stderr, which states the present name.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence

# Command → old flag → flag.
FLAGS: Mapping[str, Mapping[str, str]] = {
    "sample": {"redraws": "max_retries", "without": "exclude_elements", "min_radii": "min_radius_factor"},
    "search": {"without": "exclude_elements", "width": "batch_size"},
    "compile": {"what": "program", "rows": "batch_size"},
    "report": {"beside": "compare"},
    "sweep": {"into": "markdown_file"},
    "dft write": {"below": "max_e_above_hull"},
}
# Command → old boolean flag → the constraint that it asked for.
CONSTRAINT_FLAGS: Mapping[str, Mapping[str, str]] = {"infill": {"charge_rule": "charge", "radius_rule": "radius"}}
# Section of a configuration → old key → key.
CONFIG_KEYS: Mapping[str, Mapping[str, str]] = {
    "train": {"keep": "max_to_keep", "best": "best_metric", "samples": "eval_num_samples"},
    "data": {"without": "exclude_elements", "containing": "include_elements"},
}
TEXT_FORMATS: Mapping[str, str] = {"v2": "plain", "v3": "composition_first"}
# Columns of the tables that an evaluation writes, and of a file of requests.
COLUMNS: Mapping[str, str] = {
    "relaxation": "relaxation_status",
    "dft": "dft_status",
    "failure": "failure_reason",
    "known_as": "matched_train_id",
}
# Keys of metrics.json.
METRICS: Mapping[str, str] = {
    "meta_sun": "msun",
    "relaxation_endings": "relaxation_status_counts",
    "dft_endings": "dft_status_counts",
}
REQUEST_COLUMNS: Mapping[str, str] = {"without": "exclude_elements"}

_OVERRIDE = re.compile(r"--?config\.(\w+)\.(\w+)(=.*)?", re.DOTALL)
_warned: set[tuple[str, str]] = set()


def warn(old: str, new: str) -> None:
    """Says once that a name has changed."""
    if (old, new) not in _warned:
        _warned.add((old, new))
        print(f"crystal-jax: {old} is now called {new}; the old name works in this release", file=sys.stderr)


def present_flags(command: str, arguments: Sequence[str]) -> list[str]:
    """Returns a command's arguments under the present names of their flags."""
    names, constraints = FLAGS.get(command, {}), CONSTRAINT_FLAGS.get(command, {})
    kept, asked = [], []
    for argument in arguments:
        dashes, name, rest = re.fullmatch(r"(-{0,2})([^=]*)(.*)", argument, re.DOTALL).groups()  # type: ignore[union-attr]
        if dashes and name in names:
            warn(f"--{name}", f"--{names[name]}")
            kept.append(f"--{names[name]}{rest}")
        elif dashes and name in constraints and rest in ("", "=true", "=True", "=1"):
            warn(f"--{name}", f"--constraints={constraints[name]}")
            asked.append(constraints[name])
        elif (override := _OVERRIDE.fullmatch(argument)) and (new := CONFIG_KEYS.get(override[1], {}).get(override[2])):
            warn(f"config.{override[1]}.{override[2]}", f"config.{override[1]}.{new}")
            kept.append(f"--config.{override[1]}.{new}{override[3] or ''}")
        else:
            kept.append(argument)
    return [*kept, f"--constraints={','.join(asked)}"] if asked else kept


def present_keys(section: str, values: Mapping[str, object]) -> dict[str, object]:
    """Returns a section of a configuration under the present names of its keys and text formats."""
    names = CONFIG_KEYS.get(section, {})
    for old in names.keys() & values.keys():
        warn(f"config.{section}.{old}", f"config.{section}.{names[old]}")
    renamed = {names.get(key, key): value for key, value in values.items()}
    version = renamed.get("version")
    if section == "text" and isinstance(version, str) and version in TEXT_FORMATS:
        warn(f"text format {version!r}", repr(TEXT_FORMATS[version]))
        renamed["version"] = TEXT_FORMATS[version]
    return renamed


def present_types(
    columns: Iterable[str], kinds: Mapping[str, str], names: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Returns the types of a table's known columns, as its header names them, and the old names as `present_columns`.

    Args:
        columns: The header.
        kinds: Type of each known column, under its present name.
        names: Old name → present name.
    """
    header = list(columns)
    present = present_columns(header, names)
    return {name: kinds[new] for name in header if (new := present.get(name, name)) in kinds}, present


def present_columns(columns: Iterable[str], names: Mapping[str, str]) -> dict[str, str]:
    """Returns the old names among some columns, and what each is called now."""
    have = set(columns)
    found = {old: new for old, new in names.items() if old in have and new not in have}
    for old, new in found.items():
        warn(f"column {old!r}", repr(new))
    return found
