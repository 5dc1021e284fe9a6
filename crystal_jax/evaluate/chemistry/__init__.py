"""What chemistry says of a crystal: validity, oxidation states, symmetry, known formulas."""
