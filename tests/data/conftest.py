"""What the tests of folders of pictures share."""

import functools
import http.server
import threading

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


@pytest.fixture
def serve():
    """Serves a folder on this machine: returns its address and the paths that are asked for."""
    servers = []

    def start(folder):
        seen = []

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *args):
                seen.append(self.path)

        server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))
        )
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}", seen

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
