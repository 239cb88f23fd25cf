"""What several test modules share."""

import os
from pathlib import Path

import pytest

from dcopy.workflow.plan import ROOT


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with `cifar10-test.zip`, `cifar10-train-a.zip` and `imagenette128.zip`, where there is one."""
    beside = ROOT.parent / "shared" / "data"
    place = Path(os.environ.get("DCOPY_TEST_DATA", beside))
    if not (place / "imagenette128.zip").is_file():
        pytest.skip("real images not found; the environment variable DCOPY_TEST_DATA names their folder")
    return place


@pytest.fixture
def eager_graphs(monkeypatch) -> list:
    """Stand-ins for CUDA graphs, as a list: a capture runs nothing, a replay fills the tensors captured."""
    from dcopy.training import graphs

    made = []

    class EagerGraph:
        def __init__(self, function):
            self.function, self.outputs = function, []
            made.append(self)

        def replay(self):
            self.outputs[:] = self.function()

        def pool(self):
            return "pool"

    def capture(function, stream, pool=None, generator=None):
        graph = EagerGraph(function)
        return graph, graph.outputs

    monkeypatch.setattr(graphs, "capture", capture)
    return made
