"""Every file that the package reads, whole and damaged: it is read, or refused in one line that names it."""

import pytest

from tests.broken_inputs import checkpoint_readers, crystal_readers, output_readers
from tests.broken_inputs.damage import check_whole, check_wrong_bytes, check_wrong_values

_MODULES = (checkpoint_readers, crystal_readers, output_readers)
JSON_READERS = {name: reader for module in _MODULES for name, reader in module.JSON_READERS.items()}
READERS = {name: reader for module in _MODULES for name, reader in module.READERS.items()}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_the_whole_file_is_taken(whole, reader):
    check_whole(whole(reader.make), reader)


@pytest.mark.parametrize("reader", JSON_READERS.values(), ids=JSON_READERS)
def test_wrong_values(whole, reader):
    check_wrong_values(whole(reader.make), reader)


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_wrong_bytes(whole, reader):
    check_wrong_bytes(whole(reader.make), reader)
