"""Images on disk: shards that are made once, whatever happens meanwhile, and read one by one."""

import io
import itertools
import os
import pickle
import signal
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.pictures import SIDE, picture, put, read, small_imagenet
from PIL import Image
from torchvision.transforms import functional as F

from dcopy import machine
from dcopy.data import check_images, convert, fingerprint, stored
from dcopy.data.decode import shrink
from dcopy.data.listing import find


@pytest.fixture(autouse=True)
def little(monkeypatch):
    """No memory at all, and shards of four images."""
    monkeypatch.setattr(machine, "memory", lambda: 0)
    monkeypatch.setattr(convert, "SHARD", 4)


@pytest.fixture
def photos(photos):
    return small_imagenet(photos)


def jpeg(image, **options):
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def shards(root):
    return sorted(root.glob("folders/*/*.tar"))


# where images lie


def test_a_folder_goes_to_disk_where_it_would_take_half_of_the_memory(photos, root, monkeypatch):
    size = 16 * 3 * SIDE**2
    for memory, kind in ((2 * size - 1, stored.StoredImages), (2 * size, torch.Tensor)):
        monkeypatch.setattr(machine, "memory", lambda memory=memory: memory)
        assert isinstance(read(photos, root).train, kind)


def test_no_index_is_read_beside_another(photos, root, monkeypatch):
    """NumPy parses its header, which CPython 3.11 does not do reliably in several threads."""
    load, threads = np.load, set()
    monkeypatch.setattr(np, "load", lambda *a, **k: threads.add(threading.current_thread()) or load(*a, **k))
    assert len(read(photos, root).train) == 12
    assert threads == {threading.main_thread()}


def test_threads_have_one_open_file_a_shard_between_them(photos, root, monkeypatch):
    def slowly(*args):
        time.sleep(0.05)
        return opened(*args)

    opened = io.FileIO
    images, before = read(photos, root).train, len(os.listdir("/dev/fd"))
    monkeypatch.setattr(io, "FileIO", slowly)
    monkeypatch.setattr(stored, "cores", lambda: 4)
    images[:]
    assert len(os.listdir("/dev/fd")) - before == len(images.shards) == 3


def test_on_disk_and_in_memory_are_the_same_images(photos, root, monkeypatch):
    data = read(photos, root)
    monkeypatch.setattr(machine, "memory", lambda: 1e9)
    same = read(photos, root)
    assert (data.classes, data.train_labels.tolist()) == (same.classes, same.train_labels.tolist())
    assert data.train.shape == same.train.shape and len(data.test) == 4
    for kept, decoded in ((data.train, same.train), (data.test, same.test)):
        assert torch.equal(kept[:], decoded)
        assert torch.equal(torch.cat([*kept.split(3)]), kept[:])
    check_images(data.train)


def test_an_index_picks_images_as_from_a_tensor(photos, root):
    images = read(photos, root).train
    everything = images[:]
    for which in (3, -1, slice(2, 9, 3), [5, 0, 5], torch.tensor([4, 1]), torch.arange(12) > 7, slice(0, 0)):
        assert torch.equal(images[which], everything[which])


def test_unlabelled_images_are_pretrained_on_as_well(photos, root):
    put(photos / "unlabeled" / "a.png", picture(7, (20, 20)))
    data = read(photos, root)
    seen = data.pretrain()
    assert len(seen) == 13 and torch.equal(seen[12], data.unlabeled[0])
    assert fingerprint(seen) != fingerprint(data.train)


# what is in a shard


def test_a_shard_is_a_tar_file_of_the_folder(photos, root):
    data = read(photos, root)
    names, contents = [], []
    for shard in shards(root):
        with tarfile.open(shard) as tar:
            names += tar.getnames()
            contents += [tar.extractfile(member).read() for member in tar]
    kept = [data.test.jpeg(i) for i in range(4)] + [data.train.jpeg(i) for i in range(12)]
    assert contents == kept
    assert sorted(names) == sorted(
        str(f.relative_to(photos).with_suffix(".jpg")) for f in photos.rglob("*.JPEG")
    )


def test_a_jpeg_that_is_small_enough_keeps_its_bytes():
    data = jpeg(picture(0, (40, 30)), quality=30)
    assert shrink(data, 30).data == data
    smaller = shrink(data, 29)
    assert smaller.data != data and (smaller.height, smaller.width) == (29, 39)


@pytest.mark.parametrize("mode", ["CMYK", "L", "PNG", "turned"])
def test_every_other_image_becomes_a_jpeg_in_rgb(mode):
    """ImageNet has CMYK files, grey ones, and a PNG among its JPEGs."""
    image, file = picture(0, (40, 30)), io.BytesIO()
    if mode == "PNG":
        image.save(file, "PNG")
    elif mode == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save(file, "JPEG", exif=exif)
    else:
        image.convert(mode).save(file, "JPEG")
    made = shrink(file.getvalue(), 160)
    with Image.open(io.BytesIO(made.data)) as kept:
        assert (kept.format, kept.mode, kept.size) == ("JPEG", "RGB", (made.width, made.height))
    assert made.data != file.getvalue()
    assert (made.height, made.width) == ((40, 30) if mode == "turned" else (30, 40))


# how they are read


@pytest.mark.parametrize("box", [(0, 0, 20, 31), (3, 5, 11, 7), (19, 30, 1, 1)])
def test_crops_are_those_of_torchvision(root, box, tmp_path):
    put(tmp_path / "a.png", picture(3, (31, 20)))
    images = read(tmp_path, root).unlabeled
    image = Image.open(io.BytesIO(images.jpeg(0)))
    images.crops(0, [box, box], out := np.zeros((2, 9, 12, 3), np.uint8))
    assert all(np.array_equal(cut, F.resized_crop(image, *box, (9, 12))) for cut in out)


def test_clean_images_are_the_middle_that_is_asked_for(photos, root):
    cache = next(root.glob("folders/*-jpeg160")) if read(photos, root) else None
    images = convert.fields(cache, 20, 5 / 6)["train"]
    image = Image.open(io.BytesIO(images.jpeg(0)))  # 24 x 30
    expected = F.center_crop(image, 20)
    assert np.array_equal(images[0].permute(1, 2, 0), expected)


def test_a_copy_in_another_process_opens_its_own_files(photos, root):
    images = read(photos, root).train
    images.jpeg(0)
    other = pickle.loads(pickle.dumps(images))
    assert other._files == {} and other.jpeg(5) == images.jpeg(5)


# made once


def test_the_second_time_nothing_is_converted(photos, root, monkeypatch, capsys):
    first = fingerprint(read(photos, root).train)
    monkeypatch.setattr(convert, "convert", None)
    assert fingerprint(read(photos, root).train) == first


def test_shards_that_were_finished_are_kept(photos, root, monkeypatch):
    """The third shard fails, as if the disk were full; the next call makes that one and those after it."""
    whole = fingerprint(read(photos, root / "other").train)
    write, written = convert._write_shard, []

    def failing(shard, *args):
        written.append(shard.name)
        if len(written) == 3:
            raise OSError(28, "No space left on device", str(shard))
        write(shard, *args)

    monkeypatch.setattr(convert, "_write_shard", failing)
    with pytest.raises(OSError, match="No space"):
        read(photos, root)
    assert not list(root.glob("folders/*/meta.json"))
    assert fingerprint(read(photos, root).train) == whole
    assert written == [f"train-{i:05}.tar" for i in (0, 1, 2, 2)] + ["test-00000.tar"]


KILLS = {  # the n-th call of a function, which is replaced by a kill
    "within a shard": (convert, "_shrunk", 6),
    "within a write": (np, "save", 2),
    "between shard and index": (Path, "replace", 5),
    "between index and facts": (convert, "write_json", 2),
    "within the check": (convert, "_digest", 2),
}


def killed(function, n):
    """The function, whose n-th call kills the process."""
    count = itertools.count(1)
    return lambda *args: os.kill(os.getpid(), signal.SIGKILL) if next(count) == n else function(*args)


@pytest.mark.skipif(sys.platform == "win32", reason="processes are forks")
@pytest.mark.parametrize("moment", KILLS)
def test_a_conversion_that_is_killed_goes_on_to_the_same_shards(moment, photos, root):
    owner, name, n = KILLS[moment]
    whole = fingerprint(read(photos, root / "other").train)
    child = os.fork()
    if child == 0:
        setattr(owner, name, killed(getattr(owner, name), n))
        read(photos, root)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and not list(root.glob("folders/*/meta.json"))
    kept = {path: path.stat().st_ino for path in shards(root) if path.with_suffix(".json").exists()}
    assert fingerprint(read(photos, root).train) == whole
    assert kept.items() <= {path: path.stat().st_ino for path in shards(root)}.items()
    assert not list(root.rglob(".*.tmp"))


@pytest.mark.parametrize(
    "what, reason", [("changed", r"image 0 in \S+ is no JPEG"), ("gone", "lacks 4 images")]
)
def test_shards_are_read_again_before_they_count(what, reason, photos, root):
    """Also those that an earlier call has written, whatever the disk has made of them since."""
    read(photos, root)
    next(root.glob("folders/*/meta.json")).unlink()
    shard = shards(root)[1]
    if what == "gone":
        shard.unlink()
    else:
        data = bytearray(shard.read_bytes())
        data[tarfile.BLOCKSIZE : tarfile.BLOCKSIZE + 2] = bytes(2)
        shard.write_bytes(data)
    with pytest.raises(ValueError, match=rf"{reason}.*; delete .* again"):
        read(photos, root)
    assert not list(root.glob("folders/*/meta.json"))


def test_shards_of_other_files_are_made_anew(photos, root):
    cache = root / "half"
    for number in (0, 1):
        source = convert.from_listing(find(photos))
        (cache / "meta.json").unlink(missing_ok=True)
        convert.convert(source, cache, 160, progress=False)
        assert len(convert.fields(cache, SIDE)["train"]) == 12 - number
        (photos / "train" / "n01" / "n01_0.JPEG").unlink(missing_ok=True)


def test_the_fingerprint_follows_the_images(photos, root):
    first = fingerprint(read(photos, root).train)
    put(photos / "train" / "n01" / "n01_3.JPEG", picture(77, (30, 30)))
    assert fingerprint(read(photos, root).train) != first


# damage


def test_a_truncated_file_is_named_and_can_be_left_out(photos, root):
    file = photos / "train" / "n02" / "n02_1.JPEG"
    file.write_bytes(file.read_bytes()[:-300])
    with pytest.raises(ValueError, match=r"n02_1\.JPEG: not a readable image .*truncated.*skip_bad"):
        read(photos, root)
    data = read(photos, root, skip_bad=True)
    assert data.train_labels.tolist() == 6 * [0] + 5 * [1]
    with pytest.raises(ValueError, match=r"n02_1\.JPEG"):  # what is made already says so, too
        read(photos, root)


def test_a_class_without_a_readable_image_is_named(photos, root):
    for file in (photos / "train" / "n02").iterdir():
        file.write_bytes(b"no image")
    with pytest.raises(ValueError, match="train/n02 has no readable image"):
        read(photos, root, skip_bad=True)


@pytest.mark.parametrize("what", ["cut", "gone", "index", "fewer"])
def test_a_damaged_container_is_named(photos, root, what):
    read(photos, root)
    shard = next(root.glob("folders/*/train-00001.tar"))
    index = shard.with_suffix(".npy")
    if what == "cut":
        shard.write_bytes(shard.read_bytes()[:1000])
    elif what == "index":
        index.write_bytes(index.read_bytes()[:100])
    else:
        for file in (shard, index) if what == "fewer" else (index,):
            file.unlink()
    with pytest.raises(ValueError, match=r"delete .+ and the same command makes it again"):
        read(photos, root)


def test_a_damaged_image_is_named(photos, root):
    images = read(photos, root).train
    shard, start = images.shards[1], images.index["start"][5]
    data = bytearray(shard.read_bytes())
    data[start : start + 20] = bytes(20)
    shard.write_bytes(data)
    with pytest.raises(ValueError, match=r"image 5 in .*train-00001\.tar cannot be read"):
        images[5]


def test_notes_are_those_of_a_folder_in_memory(tmp_path, root, capsys):
    put(tmp_path / "photos" / "a.png", Image.fromarray(np.full((9, 9), 4000, np.uint16)))
    read(tmp_path / "photos", root)
    assert "DCOPY_WHITE=4095" in capsys.readouterr().out
