import pytest


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """A valid folder of each kind, made once."""
    made = {}

    def folder_of(make):
        if make not in made:
            made[make] = tmp_path_factory.mktemp("whole") / "folder"
            make(made[make])
        return made[make]

    return folder_of
