"""The automaton of a text format."""

from __future__ import annotations

from crystal_jax.text.crystal_text import TextFormat
from crystal_jax.text.grammar.automaton import TokenAutomaton
from crystal_jax.text.grammar.crystal import crystal_automaton
from crystal_jax.text.tokenizer import Tokenizer


def text_automaton(tokenizer: Tokenizer, text_format: TextFormat, *, max_atoms: int = 20) -> TokenAutomaton:
    """Builds the automaton of a format's texts, without the composition line, followed by EOS.

    Args:
        tokenizer: tokenizer that spells the fields.
        text_format: the text format.
        max_atoms: largest number of atoms in the primitive cell.

    Raises:
        RequestError: see `crystal_automaton` and `wyckoff_automaton`.
    """
    if text_format.version == "wyckoff":
        from crystal_jax.text.formats.wyckoff import WyckoffFormat  # late: it needs pymatgen
        from crystal_jax.text.grammar.wyckoff import wyckoff_automaton

        # An orbit has at least one atom.
        return wyckoff_automaton(tokenizer, WyckoffFormat(decimals=text_format.decimals), max_orbits=max_atoms)
    return crystal_automaton(tokenizer, text_format, max_atoms=max_atoms)
