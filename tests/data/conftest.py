"""What the tests of folders of pictures share."""

import pytest


@pytest.fixture
def root(tmp_path):
    """The data root, where the cache lies."""
    return tmp_path / "root"


@pytest.fixture
def photos(tmp_path):
    """A folder to fill with images."""
    (tmp_path / "photos").mkdir()
    return tmp_path / "photos"
