"""The engine: which text is written in which slot, and the decode step."""
