"""CIFAR and STL-10 from torchvision's layout, fetched from a server that misbehaves in every known way.

The archives are tiny, in the exact layout of the real ones, with the checksums of torchvision's
classes set to theirs. The server runs here; nothing leaves the machine.
"""

import hashlib
import http.server
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torchvision import datasets

from dcopy.data import describe, download, load
from dcopy.data.download import DownloadError

IMAGES = 8  # in each file of a data set


def md5(data):
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def cifar_files(kind, label_key):
    """The files of a small CIFAR, and what they hold: images in the order of the batches."""
    draw = np.random.default_rng(0)
    files, images, labels = {}, [], []
    for name, _ in kind.train_list + kind.test_list:
        images.append(draw.integers(256, size=(IMAGES, 3072), dtype=np.uint8))
        labels.append(draw.integers(10, size=IMAGES).tolist())
        files[name] = pickle.dumps({"data": images[-1], label_key: labels[-1]})
    names = [f"class {i}" for i in range(10)]
    files[kind.meta["filename"]] = pickle.dumps({kind.meta["key"]: names})
    images = torch.from_numpy(np.concatenate(images)).view(-1, 3, 32, 32)
    return files, images, torch.tensor(labels).flatten()


def stl_files(kind):
    draw = np.random.default_rng(0)
    files = {"class_names.txt": "\n".join(f"class {i}" for i in range(10)).encode()}
    for name, _ in kind.train_list + kind.test_list:
        label_file = name.endswith("_y.bin")
        values = (
            draw.integers(1, 11, size=IMAGES)
            if label_file
            else draw.integers(256, size=(IMAGES, 3 * 96 * 96))
        )
        files[name] = values.astype(np.uint8).tobytes()
    return files


def pack(folder, files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


class Server(http.server.ThreadingHTTPServer):
    """Serves one archive; `faults` holds what to do at the next requests, each used once, then it behaves."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.archive, self.faults, self.seen, self.resumes = b"", [], [], True
        self.released = threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        server.seen.append((self.path, start))
        fault, amount = server.faults.pop(0) if server.faults else (None, None)
        if fault == "status":
            return self.send_error(amount)
        if fault == "html":
            return self.reply(200, b"<html>busy</html>", {"Content-Type": "text/html"})
        if start and server.resumes:
            if start >= len(server.archive):
                return self.send_error(416)
            content_range = f"bytes {start}-{len(server.archive) - 1}/{len(server.archive)}"
            status, body, headers = 206, server.archive[start:], {"Content-Range": content_range}
        else:
            status, body, headers = 200, server.archive, {}
        if fault == "corrupt":
            body = bytes(len(body))
        self.reply(status, body, headers, amount if fault in ("drop", "stall") else None)
        if fault == "stall":
            server.released.wait(30)

    def reply(self, status, body, headers, only=None):
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/gzip",
            "Content-Length": len(body),
            **headers,
        }.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body[:only])
        self.wfile.flush()

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(download, "WAIT", 0.001)
    monkeypatch.setattr(download, "TIMEOUT", 0.5)
    monkeypatch.delenv("DCOPY_MIRROR", raising=False)


def publish(kind, files, server, monkeypatch):
    """Put a small data set in the place of the real one: archive on the server, checksums in `kind`."""
    server.archive = pack(kind.base_folder, files)
    attributes = {
        "url": f"{server.url}/{kind.filename}",
        "tgz_md5": md5(server.archive),
        "train_list": [[name, md5(files[name])] for name, _ in kind.train_list],
        "test_list": [[name, md5(files[name])] for name, _ in kind.test_list],
    }
    if hasattr(kind, "meta"):
        attributes["meta"] = kind.meta | {"md5": md5(files[kind.meta["filename"]])}
    for name, value in attributes.items():
        monkeypatch.setattr(kind, name, value)
    return attributes


@pytest.fixture
def cifar10(server, monkeypatch):
    files, images, labels = cifar_files(datasets.CIFAR10, "labels")
    attributes = publish(datasets.CIFAR10, files, server, monkeypatch)
    return SimpleNamespace(files=files, images=images, labels=labels, attributes=attributes)


def unpack(kind, files, root):
    (root / kind.base_folder).mkdir(parents=True)
    for name, data in files.items():
        (root / kind.base_folder / name).write_bytes(data)


def tree(root):
    return {path.relative_to(root): path.stat().st_mtime_ns for path in root.rglob("*")}


# the data sets


def test_cifar10_has_its_images_and_labels(cifar10, tmp_path):
    data = load("cifar10", tmp_path)
    assert torch.equal(torch.cat((data.train, data.test)), cifar10.images)
    assert torch.equal(torch.cat((data.train_labels, data.test_labels)), cifar10.labels)
    assert data.train.is_contiguous() and data.train.dtype == torch.uint8
    assert data.classes[3] == "class 3" and data.unlabeled is None
    assert describe(data) == "cifar10: 40 train, 0 unlabeled, 8 test images of 3x32x32, 10 classes"


def test_cifar100_has_its_fine_labels(server, monkeypatch, tmp_path):
    files, images, labels = cifar_files(datasets.CIFAR100, "fine_labels")
    publish(datasets.CIFAR100, files, server, monkeypatch)
    data = load("cifar100", tmp_path)
    assert torch.equal(torch.cat((data.train, data.test)), images)
    assert torch.equal(torch.cat((data.train_labels, data.test_labels)), labels)


def test_stl10_keeps_its_three_splits_apart(server, monkeypatch, tmp_path):
    files = stl_files(datasets.STL10)
    publish(datasets.STL10, files, server, monkeypatch)
    data = load("stl10", tmp_path)
    for images, name in ((data.train, "train"), (data.test, "test"), (data.unlabeled, "unlabeled")):
        columns_first = torch.frombuffer(bytearray(files[f"{name}_X.bin"]), dtype=torch.uint8).view(
            -1, 3, 96, 96
        )
        assert torch.equal(images, columns_first.mT) and images.is_contiguous()
    assert data.train_labels.tolist() == [label - 1 for label in files["train_y.bin"]]
    assert torch.equal(data.pretrain(), torch.cat((data.train, data.unlabeled)))
    assert describe(data).startswith("stl10: 8 train, 8 unlabeled, 8 test images of 3x96x96")


def test_torchvision_reads_what_we_install(cifar10, tmp_path):
    load("cifar10", tmp_path)
    assert datasets.CIFAR10(tmp_path, train=False).targets == cifar10.labels[-IMAGES:].tolist()
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-10-batches-py"]  # no archive, no leftovers


# what is there already


def test_a_layout_that_is_there_is_used_and_not_touched(cifar10, server, tmp_path):
    unpack(datasets.CIFAR10, cifar10.files, tmp_path)
    before = tree(tmp_path)
    data = load("cifar10", tmp_path)
    assert torch.equal(data.train, cifar10.images[:-IMAGES])
    assert tree(tmp_path) == before and not server.seen


def test_the_root_may_come_from_the_environment(cifar10, server, tmp_path, monkeypatch):
    unpack(datasets.CIFAR10, cifar10.files, tmp_path)
    monkeypatch.setenv("DCOPY_DATA", str(tmp_path))
    assert len(load("cifar10").test) == IMAGES
    assert not server.seen


def test_a_damaged_file_is_repaired(cifar10, server, tmp_path):
    unpack(datasets.CIFAR10, cifar10.files, tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(b"short")
    assert torch.equal(load("cifar10", tmp_path).train, cifar10.images[:-IMAGES])
    assert len(server.seen) == 1


@pytest.mark.parametrize("name", ["data_batch_2", "batches.meta"])
def test_a_changed_pickle_is_never_loaded(cifar10, name, tmp_path):
    class Hostile:
        def __reduce__(self):
            return (pytest.fail, ("a pickle that nobody published was loaded",))

    unpack(datasets.CIFAR10, cifar10.files, tmp_path)
    (tmp_path / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(DownloadError, match="cifar-10-batches-py is missing or damaged"):
        load("cifar10", tmp_path, download=False)


def test_an_archive_placed_by_hand_is_unpacked_and_kept(cifar10, server, tmp_path):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(server.archive)
    assert len(load("cifar10", tmp_path, download=False).test) == IMAGES
    assert (tmp_path / "cifar-10-python.tar.gz").exists() and not server.seen


def test_without_download_the_message_says_what_to_do(cifar10, server, tmp_path):
    with pytest.raises(DownloadError) as caught:
        load("cifar10", tmp_path / "none", download=False)
    archive = tmp_path / "none" / "cifar-10-python.tar.gz"
    for needed in (
        datasets.CIFAR10.url,
        datasets.CIFAR10.tgz_md5,
        str(archive),
        "DCOPY_DATA",
        "DCOPY_MIRROR",
    ):
        assert needed in str(caught.value)
    assert not server.seen and not (tmp_path / "none").exists()


# a server that misbehaves


def test_a_dropped_connection_is_resumed(cifar10, server, tmp_path, capsys):
    server.faults = [("drop", 40_000), ("drop", 30_000)]
    assert len(load("cifar10", tmp_path).train) == 5 * IMAGES
    assert [start for _, start in server.seen] == [0, 40_000, 70_000]
    assert "closed after 40,000 of" in capsys.readouterr().out


def test_a_stall_ends_by_time_out_and_keeps_what_came(cifar10, server, tmp_path, capsys):
    server.faults = [("stall", 40_000)]
    assert len(load("cifar10", tmp_path).train) == 5 * IMAGES
    assert [start for _, start in server.seen] == [0, 40_000]
    assert "timed out; trying again" in capsys.readouterr().out


def test_many_drops_are_survived_while_each_brings_something(cifar10, server, tmp_path):
    server.faults = [("drop", 10_000)] * (2 * download.ATTEMPTS)
    assert len(load("cifar10", tmp_path).train) == 5 * IMAGES


def test_a_server_that_cannot_resume_sends_all_again(cifar10, server, tmp_path):
    server.resumes, server.faults = False, [("drop", 40_000)]
    assert torch.equal(load("cifar10", tmp_path).train, cifar10.images[:-IMAGES])


def test_a_busy_server_is_asked_again(cifar10, server, tmp_path):
    server.faults = [("status", 503), ("status", 429)]
    assert len(load("cifar10", tmp_path).train) == 5 * IMAGES
    assert len(server.seen) == 3


@pytest.mark.parametrize(
    ("fault", "requests", "message"),
    [
        (("status", 503), download.ATTEMPTS, "HTTP 503 Service Unavailable"),
        (("status", 404), 1, "HTTP 404 Not Found"),
        (("html", None), 1, "a web page came instead of the file"),
        (("corrupt", None), 1, "the checksum differs"),
        (("drop", 0), download.ATTEMPTS, "closed after 0 of"),
    ],
)
def test_a_server_that_never_delivers(cifar10, server, tmp_path, fault, requests, message):
    server.faults = [fault] * 20
    with pytest.raises(DownloadError) as caught:
        load("cifar10", tmp_path)
    assert message in str(caught.value) and f"By hand: get {datasets.CIFAR10.url} (md5" in str(caught.value)
    assert len(server.seen) == requests
    assert not (tmp_path / "cifar-10-python.tar.gz").exists()
    assert not list((tmp_path / "cifar-10-batches-py").glob("*batch*"))


def test_a_wrong_part_is_thrown_away_and_fetched_anew(cifar10, server, tmp_path):
    (tmp_path / "cifar-10-python.tar.gz.part").write_bytes(b"of another file")
    assert len(load("cifar10", tmp_path).train) == 5 * IMAGES
    assert [start for _, start in server.seen] == [15, 0]


def test_a_part_that_was_whole_needs_nothing_more(cifar10, server, tmp_path):
    (tmp_path / "cifar-10-python.tar.gz.part").write_bytes(server.archive)
    assert len(load("cifar10", tmp_path).train) == 5 * IMAGES


def test_mirrors_come_first_and_the_home_is_the_last_resort(cifar10, server, tmp_path, monkeypatch):
    monkeypatch.setenv("DCOPY_MIRROR", f"{server.url}/one {server.url}/two/")
    server.faults = [("html", None), ("corrupt", None)]
    load("cifar10", tmp_path / "a")
    assert [path for path, _ in server.seen] == [
        f"{where}/cifar-10-python.tar.gz" for where in ("/one", "/two", "")
    ]
    server.seen.clear()
    load("cifar10", tmp_path / "b", mirrors=[f"{server.url}/three"])
    assert [path for path, _ in server.seen] == ["/three/cifar-10-python.tar.gz"]


def test_a_mirror_may_be_a_folder_of_this_machine(cifar10, server, tmp_path):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(server.archive)
    assert len(load("cifar10", tmp_path / "root", mirrors=[tmp_path.as_uri()]).test) == IMAGES
    assert not server.seen


def test_a_mirror_that_is_no_address_is_refused(cifar10, tmp_path):
    with pytest.raises(ValueError, match=r"mirror='example\.org' is not allowed"):
        load("cifar10", tmp_path, mirrors=["example.org"])


# disk and other processes


def test_no_space_is_seen_before_fetching(cifar10, tmp_path, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match="GB free, needs"):
        load("cifar10", tmp_path)


def test_a_root_that_is_a_file_is_named(cifar10, tmp_path):
    (tmp_path / "root").write_text("")
    with pytest.raises(OSError, match=r"root/cifar-10-batches-py cannot be written .* set DCOPY_DATA"):
        load("cifar10", tmp_path / "root")


def test_an_archive_that_reaches_outside_is_refused(server, cifar10, tmp_path, monkeypatch):
    evil = pack("../cifar-10-batches-py", {"escaped": b"x"})
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5(evil))
    server.archive = evil
    with pytest.raises(DownloadError, match="what is in it is not"):
        load("cifar10", tmp_path / "root")
    assert not list(tmp_path.rglob("escaped"))


def test_an_interrupted_unpacking_is_repaired(cifar10, tmp_path, monkeypatch):
    """As after `kill -9`: half of the files moved, rubbish where the archive was being unpacked."""
    unpack(datasets.CIFAR10, dict(list(cifar10.files.items())[:3]), tmp_path)
    left = tmp_path / ".cifar-10-python.tar.gz.unpacking" / "cifar-10-batches-py"
    left.mkdir(parents=True)
    (left / "data_batch_4").write_bytes(b"half of")
    assert torch.equal(load("cifar10", tmp_path).train, cifar10.images[:-IMAGES])
    assert not left.exists()


LOAD = """
import json, os, sys
from torchvision.datasets import CIFAR10
import dcopy.data.download
for name, value in json.loads(sys.argv[1]).items():
    setattr(CIFAR10, name, value)
from dcopy.data import describe, load
if sys.argv[3:] and os.getuid() == 0:
    os.setuid(65534)  # root may write anywhere
print(describe(load("cifar10", sys.argv[2])))
"""


def load_elsewhere(cifar10, root, *options):
    command = [sys.executable, "-c", LOAD, json.dumps(cifar10.attributes), str(root), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_two_processes_fetch_once(cifar10, server, tmp_path):
    server.faults = [("stall", 40_000)]  # the first waits here, until the second has come to the lock
    first, second = load_elsewhere(cifar10, tmp_path), None
    try:
        while not server.seen:
            assert first.poll() is None, first.stdout.read()
            time.sleep(0.01)
        second = load_elsewhere(cifar10, tmp_path)
        assert "waiting for another process" in second.stdout.readline()
        server.released.set()
        outputs = [process.communicate(timeout=60)[0] for process in (first, second)]
    finally:
        for process in (first, second):
            if process is not None:
                process.kill()
    assert all("cifar10: 40 train" in output for output in outputs), outputs
    assert [start for _, start in server.seen] == [0, 40_000]


def test_a_read_only_root_is_enough_when_the_layout_is_there(cifar10, tmp_path):
    root = tmp_path / "root"
    unpack(datasets.CIFAR10, cifar10.files, root)
    for path in (root, root / "cifar-10-batches-py"):
        path.chmod(0o555)
    if os.getuid() == 0:  # then the other process becomes nobody, whom pytest's folders do not let in
        for path in (tmp_path, *tmp_path.parents[:3]):  # with parallel workers one more
            path.chmod(0o755)
    output = load_elsewhere(cifar10, root, "as nobody").communicate(timeout=60)[0]
    root.chmod(0o755)
    assert "cifar10: 40 train" in output
