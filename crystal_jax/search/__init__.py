"""A search for crystals that a reward likes."""
