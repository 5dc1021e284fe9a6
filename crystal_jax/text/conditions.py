"""Parses conditions in the user's notation: formulas, space groups, elements, chemical systems.

Each function takes text as people write it and returns one canonical form. If the text cannot be parsed, it raises
ValueError with a one-line message that names the text and suggests a similar one if there is one.
"""

from __future__ import annotations

import difflib
import functools
import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence

from crystal_jax.errors import RequestError
from crystal_jax.text.crystal_text import ELEMENTS

_ELEMENTS = frozenset(ELEMENTS)
# An element symbol or a closing bracket, each with an optional amount, an opening bracket, or spaces.
_FORMULA_PART = re.compile(r"([A-Z][a-z]*)(\d+(?:\.\d+)?|\.\d+)?|[(\[{]|[)\]}](\d+(?:\.\d+)?|\.\d+)?|\s+")
_HYDRATE = re.compile(r"[.·*]\s*\d*\s*\(?H2O")  # pymatgen would read the dot as a decimal point
_ISOTOPES = {"D": "H", "T": "H"}
NUM_SPACE_GROUPS = 230
# Short symbols of other settings in papers and databases; pymatgen knows only their full forms.
_OTHER_SETTINGS = {
    **dict.fromkeys(("P2/a", "P2/n"), 13),
    **dict.fromkeys(("P21/a", "P21/n"), 14),
    **dict.fromkeys(("A2/m", "I2/m"), 12),
    **dict.fromkeys(("A2/a", "A2/n", "I2/a", "I2/c"), 15),
    **dict.fromkeys(("Pa", "Pn"), 7),
    **dict.fromkeys(("Aa", "Ia", "In"), 9),
    "Cmca": 64,
    "Bbcm": 64,
    "Ccca": 68,
    "Cmma": 67,
    "Abm2": 39,
    "Aba2": 41,
}


def parse_formula(text: str) -> str:
    """Returns a chemical formula without spaces, after checking that every symbol in it is an element.

    Raises:
        ValueError: the text is not a formula.
    """
    formula, position = text.strip(), 0
    symbols: list[str] = []
    if _HYDRATE.search(formula):
        raise ValueError(f"{text!r} is not a chemical formula: write the water of a hydrate in brackets, CuSO4(H2O)5")
    while position < len(formula):
        part = _FORMULA_PART.match(formula, position)
        if part is None:
            hint = "; element symbols begin with a capital letter" if formula[position].islower() else ""
            raise ValueError(f"{text!r} is not a chemical formula: {formula[position:]!r} cannot be read{hint}")
        if (symbol := part[1]) and symbol not in _ELEMENTS:
            raise ValueError(f"{text!r} is not a chemical formula: {_no_element(symbol)}")
        if (amount := part[2] or part[3]) and not float(amount):
            raise ValueError(f"{text!r} is not a chemical formula: an amount is 0")
        symbols += [symbol] if symbol else []
        position = part.end()
    if "." in formula and len(set(symbols)) < len(symbols):  # Al2O3.2SiO2 is two formulas, Li0.5FePO4 is one
        raise ValueError(f"{text!r} is not a chemical formula: its dot may be a decimal point; write one formula")
    formula = "".join(formula.split())
    try:
        counts = formula_unit(formula)
    except ValueError as error:
        raise ValueError(f"{text!r} is not a chemical formula") from error
    if not counts:
        raise ValueError(f"{text!r} is not a chemical formula")
    return formula


def formula_unit(formula: str) -> Mapping[str, int]:
    """Returns the atoms of each element in the smallest formula of whole numbers: LiFePO4 for Li4Fe4P4O16.

    Raises:
        ValueError: the text is not a formula.
    """
    from pymatgen.core import Composition  # late: commands that only define flags need no pymatgen

    try:
        composition = Composition(formula)
    except (ValueError, KeyError) as error:
        raise ValueError(f"{formula!r} is not a chemical formula") from error
    amounts = composition.get_el_amt_dict()
    if not amounts or set(amounts) - _ELEMENTS:
        raise ValueError(f"{formula!r} is not a chemical formula of elements that can be written")
    if any(number != round(number) for number in amounts.values()):
        amounts = Composition(composition.get_integer_formula_and_factor()[0]).get_el_amt_dict()
    counts = {symbol: round(number) for symbol, number in amounts.items()}
    divisor = math.gcd(*counts.values())  # pymatgen would reduce oxygen to O2
    return {symbol: number // divisor for symbol, number in counts.items()}


def parse_spacegroup(value: str | int) -> int:
    """Returns the number, 1 to 230, of a space group given by number or by Hermann-Mauguin symbol.

    Spaces, underscores and setting suffixes are optional: Pnma, P21/c, P 1 21/c 1, Fd-3m, R-3m:H.

    Raises:
        ValueError: there is no such group.
    """
    text = str(value).strip()
    if re.fullmatch(r"[+-]?\d+(\.0*)?", text):  # tables with empty cells have 62.0
        text = text.partition(".")[0]
        if not 1 <= int(text) <= NUM_SPACE_GROUPS:
            raise ValueError(f"there is no space group {text}: their numbers are 1 to {NUM_SPACE_GROUPS}")
        return int(text)
    key = _symbol_key(text)
    # Before 1983 cubic groups were written without the bar (Fd3m); the lattice letter may be in lower case.
    capital = key[:1].upper() + key[1:]
    for symbol in (
        key,
        capital,
        re.sub(r"(?<!-)3(?=[mnd]|$)", "-3", capital),
        re.sub(r"^(\w)4(?=3m)", r"\1-4", capital),
    ):
        if (number := _number_of(symbol)) is not None:
            return number
    near = difflib.get_close_matches(key, _standard_symbols(), n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"there is no space group {text!r}: give a symbol, such as Pnma, or a number, 1 to 230{hint}")


def _number_of(symbol: str) -> int | None:
    """Returns the number of a group by any symbol that pymatgen knows, in any setting; None for an unknown symbol."""
    if symbol in _standard_symbols():
        return _standard_symbols()[symbol]
    if symbol in _OTHER_SETTINGS:
        return _OTHER_SETTINGS[symbol]
    from pymatgen.symmetry.groups import SpaceGroup  # late, as above

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pymatgen warns if it has no full symbol
        try:
            return int(SpaceGroup(symbol).int_number)
        except ValueError:
            return None


@functools.cache
def _standard_symbols() -> Mapping[str, int]:
    """Returns the numbers of the 230 groups by their standard symbols, monoclinic ones with and without the axes."""
    from pymatgen.symmetry.groups import sg_symbol_from_int_number  # late, as above

    numbers = {_symbol_key(sg_symbol_from_int_number(n)): n for n in range(1, NUM_SPACE_GROUPS + 1)}
    # Unique axis b: P21/c is short for P121/c1.
    short = {re.sub(r"^(\w)1(.+)1$", r"\1\2", symbol): n for symbol, n in numbers.items() if n in range(3, 16)}
    return short | numbers


def _symbol_key(symbol: str) -> str:
    """Removes optional parts of a symbol: spaces, underscores, the setting after a colon."""
    return re.sub(r"[\s_]", "", symbol).partition(":")[0]


def parse_elements(values: Sequence[str], *, name: str = "elements") -> tuple[str, ...]:
    """Checks element symbols and returns each once.

    Args:
        values: the symbols.
        name: name of the flag or argument, for error messages.

    Raises:
        ValueError: a symbol is not an element, or they are not separated by commas.
    """
    if isinstance(values, str):
        values = values.split(",")
    symbols = [value.strip() for value in values]
    for symbol in symbols:
        if symbol in _ELEMENTS:
            continue
        words = [word.capitalize() for word in re.split(r"[\s,;-]+", symbol) if word]
        if len(words) > 1 and _ELEMENTS.issuperset(words):
            raise ValueError(f"{name}: {symbol!r} is no element; separate elements by commas: {','.join(words)}")
        if _ELEMENTS.issuperset(other.capitalize() for other in symbols) and all(symbols):
            raise ValueError(
                f"{name}: {symbol!r} is no element; did you mean {','.join(map(str.capitalize, symbols))}?"
            )
        raise ValueError(f"{name}: {_no_element(symbol)}")
    return tuple(dict.fromkeys(symbols))


def parse_chemical_system(value: str | Sequence[str]) -> tuple[str, ...]:
    """Returns the elements of a chemical system, such as Li-P-S, in their order.

    Raises:
        ValueError: a symbol is not an element, or there are no symbols.
    """
    symbols = [word for word in re.split(r"[-,\s]+", value) if word] if isinstance(value, str) else list(value)
    if not symbols:
        raise ValueError("chemical_system is empty; write it like Li-P-S")
    for symbol in symbols:
        if symbol not in _ELEMENTS:
            right = "-".join(map(str.capitalize, symbols))
            suggestion = f"; did you mean {right}?" if _ELEMENTS.issuperset(right.split("-")) else ""
            reason = "element symbols begin with a capital letter" if suggestion else _no_element(symbol)
            raise ValueError(f"chemical_system {value!r}: {reason}{suggestion}")
    return tuple(dict.fromkeys(symbols))


def without_elements(elements: Iterable[str], excluded: Iterable[str]) -> tuple[str, ...]:
    """Returns the elements that are not excluded.

    Raises:
        RequestError: no element is left.
    """
    forbidden = set(excluded)
    if not (left := tuple(symbol for symbol in elements if symbol not in forbidden)):
        raise RequestError("A crystal needs at least one allowed element")
    return left


def _no_element(symbol: str) -> str:
    """Returns a message that a symbol is not an element, with a suggestion."""
    if symbol in _ISOTOPES:
        return f"{symbol!r} is an isotope; write {_ISOTOPES[symbol]}"
    near = [name for name in (symbol.capitalize(), symbol[:2], symbol[:1]) if name in _ELEMENTS]
    hint = f"; did you mean {near[0]}?" if near and near[0] != symbol else ""
    return f"there is no element {symbol!r}{hint}"
