from pathlib import Path

import pytest
from helpers import toy_project


@pytest.fixture
def project(tmp_path) -> Path:
    return toy_project.make(tmp_path / "project")
