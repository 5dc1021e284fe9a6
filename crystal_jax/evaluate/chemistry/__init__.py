"""Chemical rules and facts: validity, oxidation states, symmetry, known formulas."""
