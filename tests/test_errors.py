import pickle

from crystal_jax.errors import UserError


def test_a_message_is_one_line_whatever_it_quotes():
    assert str(UserError("x has\n\na line end\r\n")) == "x has a line end"
    assert str(UserError("red \x1b[31mtext\x9b0m\0")) == "red [31mtext 0m"
    assert str(UserError("two  spaces in /a  path")) == "two  spaces in /a  path"


def test_a_long_message_keeps_its_beginning_and_its_end():
    text = str(UserError(f"file {'x' * 10_000} mend it so"))
    assert len(text) < 1300
    assert text.startswith("file xxx")
    assert text.endswith("mend it so")


def test_it_goes_through_a_process_pool():
    assert str(pickle.loads(pickle.dumps(UserError("a\nb")))) == "a b"
