"""Which elements could replace one in a crystal."""
