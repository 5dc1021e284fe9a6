from crystal_jax.sample.engine.shape_buckets import buckets, single


def test_the_last_capacity_holds_the_longest_text():
    sizes = buckets(64, prompt_tokens=50, room=100)
    assert sizes.rows == (64, 32, 16)
    assert sizes.capacities == (84, 117, 150)


def test_the_smallest_that_fits_is_chosen():
    sizes = buckets(64, prompt_tokens=50, room=100)
    assert [sizes.rows_for(texts) for texts in (1, 16, 17, 64)] == [16, 16, 32, 64]
    assert [sizes.capacity_for(positions) for positions in (60, 84, 85, 150)] == [84, 84, 117, 150]


def test_few_rows_are_not_halved():
    assert buckets(20, prompt_tokens=1, room=4).rows == (20,)


def test_there_may_be_no_choice():
    assert single(8, 100).rows_for(1) == 8
