"""Equal crystals: repetitions, and crystals of the training set."""
