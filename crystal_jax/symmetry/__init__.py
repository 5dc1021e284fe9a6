"""Space groups, Wyckoff positions, and crystals described by them."""
