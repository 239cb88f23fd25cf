"""Fetch and unpack the archive of a torchvision data set, whatever the server does.

The places of these archives are slow, stall, close connections and answer with web pages. So a
fetch has time-outs and retries, resumes where it stopped, is checked before anything is unpacked,
and is seen under its final name only when complete. A lock keeps a second process waiting.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import shutil
import ssl
import sys
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from tqdm.auto import tqdm

from ..config import require
from ..progress import wants_bar
from ..results import locked

TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 5  # at one place, without getting any further
WAIT = 1.0  # seconds before the second attempt, then doubled each time
NETWORK_ERRORS = (
    urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError,
)  # fmt: skip
WORTH_RETRYING = (408, 425, 429, 500, 502, 503, 504)  # HTTP codes of a server that may do better later


class DownloadError(OSError):
    """A data set could not be fetched; the message says how to place it by hand."""


def install(
    kind: type,
    root: Path,
    *,
    download: bool = True,
    mirrors: Sequence[str] | None = None,
    progress: bool = True,
) -> None:
    """Make sure that a torchvision data set lies under `root`, with every checksum right.

    A complete torchvision layout is used as it is, and `root` may then be read-only. An archive
    that lies in `root` is unpacked; else it is fetched from the mirrors in turn, then from its home.

    Args:
        kind: a torchvision class with its own url, checksums and file lists, such as `CIFAR10`; or a class
            with url, filename, tgz_md5, base_folder, and `faults(root)`, which lists what is missing.
        root: folder of the torchvision layout.
        download: whether the network may be used.
        mirrors: addresses of folders that hold the archive; None takes them from DCOPY_MIRROR,
            where spaces separate them.
        progress: print a line per step, and show a bar where somebody watches.

    Raises:
        DownloadError: the data set is not there and may not be fetched, or no place delivers it.
        OSError: `root` cannot be written.
        ValueError: a mirror is not an address.
    """
    if not _faults(kind, root):
        return
    mirrors = os.environ.get("DCOPY_MIRROR", "").split() if mirrors is None else mirrors
    for mirror in mirrors:
        known = mirror.startswith(("http://", "https://", "file://"))
        require("mirror", mirror, known, "an address that begins with http://, https:// or file://")
    archive, folder = root / kind.filename, root / kind.base_folder
    if not download and not _matches(archive, kind.tgz_md5):
        raise DownloadError(f"{folder} is missing or damaged.\n{_by_hand(kind, root)}")
    with alone(folder, progress):
        if not _faults(kind, root):  # another process was faster
            return
        fetched = not _matches(archive, kind.tgz_md5)
        if fetched:
            places = [f"{mirror.rstrip('/')}/{archive.name}" for mirror in mirrors]
            _fetch([*places, kind.url], kind, root, progress)
        _unpack(archive, folder, progress)
        if faults := _faults(kind, root):
            raise DownloadError(f"{archive} is whole, but what is in it is not: {', '.join(faults)}")
        if fetched:  # as large as the data set itself; what a user placed by hand stays
            archive.unlink()


@contextlib.contextmanager
def alone(folder: Path, progress: bool) -> Iterator[None]:
    """Hold `folder` for this process, after waiting for another one that does.

    Raises:
        OSError: the folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            try:
                stack.enter_context(locked(folder))
            except ValueError:
                say(f"{folder}: waiting for another process", progress)
                stack.enter_context(locked(folder, wait=True))
        except OSError as error:
            reason = f"{folder} cannot be written ({error.strerror}); set DCOPY_DATA to a folder that can"
            raise OSError(error.errno, reason) from error
        yield


def say(line: str, progress: bool) -> None:
    if progress:
        encoding = sys.stdout.encoding or "utf-8"  # of a terminal that may know no accents
        print(line.encode(encoding, "backslashreplace").decode(encoding), flush=True)


def _faults(kind: type, root: Path) -> list[str]:
    """Return the files of the data set that are missing or fail their checksum."""
    if hasattr(kind, "faults"):
        return kind.faults(root)
    files = kind.train_list + kind.test_list
    if hasattr(kind, "meta"):
        files = [*files, (kind.meta["filename"], kind.meta["md5"])]
    return [name for name, md5 in files if not _matches(root / kind.base_folder / name, md5)]


def _matches(path: Path, md5: str) -> bool:
    from torchvision.datasets.utils import check_integrity

    return check_integrity(path, md5)


def _fetch(places: Sequence[str], kind: type, root: Path, progress: bool) -> None:
    """Fetch the archive from the first place that delivers it whole."""
    archive, part = root / kind.filename, root / f"{kind.filename}.part"
    failures = []
    for place in places:
        say(f"{archive.name}: fetching from {place}", progress)
        try:
            _fetch_from(place, part, kind.tgz_md5, progress)
        except DownloadError as error:
            failures.append(f"  {place}: {error}")
        else:
            part.replace(archive)
            return
    raise DownloadError("\n".join([f"{archive.name} could not be fetched:", *failures, _by_hand(kind, root)]))


def _by_hand(kind: type, root: Path) -> str:
    return (
        f"By hand: get {kind.url} (md5 {kind.tgz_md5}), put it at {root / kind.filename} and start again.\n"
        f"Or set DCOPY_DATA to a folder that holds {kind.base_folder}/ already, "
        f"or DCOPY_MIRROR to the address of a folder that holds {kind.filename}."
    )


def _fetch_from(place: str, part: Path, md5: str, progress: bool) -> None:
    """Try one place until `part` is whole, or `ATTEMPTS` in a row brought nothing new."""
    idle, longest = 0, _size(part)
    resumed = longest > 0  # some bytes come from an earlier run or another place
    while True:
        try:
            resumed &= _receive(place, part, progress)
            failure = None
        except urllib.error.HTTPError as error:
            failure = f"HTTP {error.code} {error.reason}"
            if error.code == 416 and resumed:  # nothing lies beyond what we have
                failure = None
            elif error.code not in WORTH_RETRYING:
                raise DownloadError(failure) from error
        except NETWORK_ERRORS as error:
            failure = str(getattr(error, "reason", None) or error) or type(error).__name__
        if failure is None:
            if _matches(part, md5):
                return
            part.unlink()
            if not resumed:
                raise DownloadError("the checksum differs")
            resumed, longest = False, 0  # once more, from the first byte
            continue
        idle = 0 if _size(part) > longest else idle + 1
        longest = max(longest, _size(part))
        if idle == ATTEMPTS:
            raise DownloadError(f"{failure} ({ATTEMPTS} attempts)")
        say(f"{place}: {failure}; trying again", progress)
        time.sleep(WAIT * 2**idle)


def _receive(place: str, part: Path, progress: bool) -> bool:
    """Receive the rest of `part`; return whether bytes that were there before are part of it."""
    start = _size(part)
    headers = {"User-Agent": "dcopy"} | ({"Range": f"bytes={start}-"} if start else {})
    with urllib.request.urlopen(urllib.request.Request(place, headers=headers), timeout=TIMEOUT) as response:
        if response.headers.get_content_type() == "text/html":
            raise DownloadError("a web page came instead of the file")
        if not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            start = 0  # the server does not resume, and sends the whole file
        length = response.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        _check_space(part.parent, int(2.2 * (total or 0)) - start)  # the archive, and what comes out of it
        bar = tqdm(
            initial=start, total=total, desc=part.stem, unit="B", unit_scale=True, leave=False,
            disable=not (progress and wants_bar()),
        )  # fmt: skip
        with bar, part.open("ab" if start else "wb") as file:
            while chunk := response.read1(1 << 16):  # read1: what has come is kept when the rest does not
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and _size(part) != total:
        raise ConnectionError(f"closed after {_size(part):,} of {total:,} bytes")
    return start > 0


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"{folder} has {free / 1e9:.1f} GB free, needs {needed / 1e9:.1f} GB")


def _unpack(archive: Path, folder: Path, progress: bool) -> None:
    """Unpack beside the archive, then move what is in it, so that no file is ever half there.

    Only files that lie in the data set's own folder are taken, so an archive can name no other place.
    """
    say(f"{archive.name}: unpacking", progress)
    temporary = archive.with_name(f".{archive.name}.unpacking")
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed; we hold the lock
    try:
        temporary.mkdir()
        with tarfile.open(archive) as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                if member.isfile() and PurePosixPath(folder.name) in path.parents and ".." not in path.parts:
                    place = temporary / path.relative_to(folder.name)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    with tar.extractfile(member) as source, open(place, "wb") as file:
                        shutil.copyfileobj(source, file, 1 << 20)
        for part in temporary.iterdir():
            if part.is_dir():
                shutil.rmtree(folder / part.name, ignore_errors=True)  # what was there was not whole
            part.replace(folder / part.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
