from crystal_jax.report import elements


def test_every_element_has_a_place_of_its_own():
    tiles = elements.heat_map([])
    assert len(tiles) == len({(tile.row, tile.column) for tile in tiles}) == 103
    places = {tile.symbol: (tile.row, tile.column) for tile in tiles}
    assert places["H"] == (1, 1)
    assert places["He"] == (1, 18)
    assert places["Fe"] == (4, 8)
    assert places["La"] == (9, 3)
    assert places["Lu"] == (9, 17)
    assert places["Lr"] == (10, 17)
    assert places["Hf"] == (6, 4)


def test_counts_crystals_and_not_atoms():
    tiles = {tile.symbol: tile for tile in elements.heat_map(["Na4 Cl4", "Na1", "Fe2 O3"])}
    assert {symbol: tile.crystals for symbol, tile in tiles.items() if tile.crystals} == {
        "Na": 2,
        "Cl": 1,
        "Fe": 1,
        "O": 1,
    }
    assert tiles["Na"].dark
    assert tiles["H"].background != tiles["Cl"].background != tiles["Na"].background


def test_colors_and_radii():
    assert elements.color("O") == "#ff0d0d"
    assert elements.color("Og") == "#bebebe"
    assert elements.radius("Na") == 1.8
