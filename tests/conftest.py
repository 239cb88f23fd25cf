"""What several test modules share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with `cifar10-test.zip`, `cifar10-train-a.zip` and `imagenette128.zip`, where there is one."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    place = Path(os.environ.get("DCOPY_TEST_DATA", beside))
    if not (place / "imagenette128.zip").is_file():
        pytest.skip("real images not found; the environment variable DCOPY_TEST_DATA names their folder")
    return place
