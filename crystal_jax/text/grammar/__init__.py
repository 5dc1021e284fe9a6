"""Grammars of crystal texts: an automaton over tokens, and the grammar of the composition line."""
