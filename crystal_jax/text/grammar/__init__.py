"""The grammar of crystals as an automaton over tokens."""
