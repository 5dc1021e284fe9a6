"""File formats of crystals, one a file: each reader returns entries as their source states them."""
