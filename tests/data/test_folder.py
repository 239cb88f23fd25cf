"""A user's own images: modes, damage, and the cache."""

import errno
import io
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.pictures import SIDE, picture, pixels, put, read, two_classes
from helpers.tiny import tiny_config
from PIL import Image, ImageOps, UnidentifiedImageError
from torchvision.transforms import functional as F

from dcopy.data import convert, fingerprint, folder, load
from dcopy.data.__main__ import main
from dcopy.training.loop import pretrain

# geometry


@pytest.mark.parametrize("size", [(40, 80), (80, 40), (33, 33), (4, 6)])
def test_images_are_resized_and_cropped_as_by_torchvision(photos, root, size):
    image = picture(1, size)
    put(photos / "a.png", image)
    expected = F.center_crop(F.resize(image, SIDE), SIDE)
    assert (read(photos, root).unlabeled[0].int() - pixels(expected).int()).abs().max() <= 1


def test_shrinking_is_antialiased(photos, root):
    """A fine chessboard becomes its mean; picking single pixels would give black or white."""
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    put(photos / "board.png", Image.fromarray(board))
    inside = read(photos, root).unlabeled[:, :, 1:-1, 1:-1].int()
    assert (inside - 128).abs().max() <= 2


def test_the_default_size_is_that_of_the_recipe(photos, root):
    put(photos / "a.png")
    assert load(f"folder:{photos}", root).unlabeled.shape == (1, 3, 32, 32)


def oriented(orientation, *entries):
    """EXIF data with an orientation and further entries (tag, type, count, four bytes)."""
    ifd = [(0x0112, 3, 1, struct.pack("<HH", orientation, 0)), *entries]
    fields = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in ifd)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(ifd)) + fields + bytes(4)


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif"])
def test_exif_orientation_is_applied(photos, root, orientation, name):
    file = put(photos / name, picture(3), exif=oriented(orientation), **WAYS.get(name, {}))
    expected = ImageOps.exif_transpose(Image.open(file))
    assert torch.equal(read(photos, root).unlabeled[0], pixels(expected))


WAYS = {"a.webp": {"lossless": True}}
UNWRITABLE = {  # good photos, whose data Pillow reads but cannot write
    "text that is a number": (0x0131, 11, 1, struct.pack("<f", 1.5)),
    "a negative width": (0x0100, 9, 1, struct.pack("<i", -1)),
    "a negative short": (0x0103, 8, 1, struct.pack("<hH", -1, 0)),
}


@pytest.mark.parametrize("entry", UNWRITABLE.values(), ids=UNWRITABLE)
def test_of_exif_data_only_the_orientation_is_needed(photos, root, entry):
    upright = picture(3)
    put(photos / "a.png", upright.transpose(Image.Transpose.ROTATE_90), exif=oriented(6, entry))
    assert torch.equal(read(photos, root).unlabeled[0], pixels(upright))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("exif", [b"Exif\0\0II*\0", b"Exif\0\0garbage", oriented(6)[:-8]])
def test_exif_data_that_cannot_be_read_turn_nothing(photos, root, exif):
    put(photos / "a.png", picture(3), exif=exif)
    assert torch.equal(read(photos, root).unlabeled[0], pixels(picture(3)))


# modes: each image is a known colour


def sixteen_bits():
    return Image.fromarray(np.full((SIDE, SIDE), 200 * 257, dtype=np.uint16))


def palette_with_transparency():
    image = Image.new("P", (SIDE, SIDE), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.info["transparency"] = bytes([255, 0])
    return image


MODES = {
    "grey.png": (Image.new("L", (SIDE, SIDE), 77), (77, 77, 77)),
    "bilevel.png": (Image.new("1", (SIDE, SIDE), 1), (255, 255, 255)),
    "palette.png": (Image.new("RGB", (SIDE, SIDE), (1, 2, 3)).quantize(4), (1, 2, 3)),
    "palette-clear.png": (palette_with_transparency(), (255, 255, 255)),
    "cmyk.tif": (Image.new("CMYK", (SIDE, SIDE), (255, 0, 0, 0)), (0, 255, 255)),
    "cmyk.jpg": (Image.new("CMYK", (SIDE, SIDE), (255, 0, 0, 0)), (0, 255, 255)),
    "sixteen.png": (sixteen_bits(), (200, 200, 200)),
    "sixteen.tif": (sixteen_bits(), (200, 200, 200)),
    "thirtytwo.tif": (Image.new("I", (SIDE, SIDE), 200 * 257), (200, 200, 200)),
    "clear.png": (Image.new("RGBA", (SIDE, SIDE), (9, 9, 9, 0)), (255, 255, 255)),
    "half.png": (Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 51)), (204, 204, 204)),
    "grey-half.png": (Image.new("LA", (SIDE, SIDE), (0, 51)), (204, 204, 204)),
    "film.gif": (Image.new("RGB", (SIDE, SIDE), (0, 0, 255)), (0, 0, 255)),
    "photo.webp": (Image.new("RGB", (SIDE, SIDE), (128, 128, 128)), (128, 128, 128)),
}


@pytest.mark.parametrize("name", MODES)
def test_every_mode_becomes_rgb(photos, root, name):
    image, colour = MODES[name]
    put(photos / name, image)
    found = read(photos, root).unlabeled[0].int()
    assert (found - torch.tensor(colour).view(3, 1, 1)).abs().max() <= 1


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.new("F", (SIDE, SIDE), 0.5), "floating-point pixels"),
        (Image.new("I", (SIDE, SIDE), 70_000), "grey values beyond 16 bits"),
    ],
)
def test_pixels_without_a_known_range_are_refused(photos, root, image, message):
    put(photos / "x.tif", image)
    with pytest.raises(ValueError, match=rf"x.tif: not a readable image \({message}"):
        read(photos, root)


# grey of 16 bits that uses a part of its range


def deep(photos, *brightest):
    for number, value in enumerate(brightest):
        values = np.linspace(0, value, SIDE * SIDE).reshape(SIDE, SIDE).round().astype(np.uint16)
        put(photos / f"{number}.png", Image.fromarray(values))


@pytest.mark.parametrize(("brightest", "white"), [(3983, 4095), (1000, 1023), (255, 255), (16383, 16383)])
def test_dark_grey_is_said_and_can_be_scaled(photos, root, brightest, white, capsys, monkeypatch):
    deep(photos, 100, brightest)
    put(photos / "photo.png")  # whose brightness is another matter
    for _ in range(2):  # decoded, then from the cache
        assert read(photos, root).unlabeled[1].max() <= 64
        said = capsys.readouterr().out
        assert (
            f"grey values of its 16-bit files end at {brightest:,}" in said
            and f"DCOPY_WHITE={white} " in said
        )
    monkeypatch.setenv("DCOPY_WHITE", str(white))
    scaled = read(photos, root).unlabeled
    assert scaled[1].max() == round(brightest / white * 255) and "DCOPY_WHITE" not in capsys.readouterr().out
    monkeypatch.delenv("DCOPY_WHITE")
    assert torch.equal(read(photos, root, white=white).unlabeled, scaled)


def test_grey_beyond_white_is_cut_off_and_said(photos, root, capsys):
    deep(photos, 60_000)
    assert read(photos, root, white=4095).unlabeled.max() == 255
    assert "grey values up to 60,000 were cut off at 4,095" in capsys.readouterr().out


@pytest.mark.parametrize("levels", [1, 15])
def test_pictures_that_are_nearly_black_are_said(photos, root, levels, capsys):
    put(photos / "mask.png", Image.new("L", (SIDE, SIDE), levels))
    read(photos, root)
    assert f"its brightest value is {levels} of 255" in capsys.readouterr().out


def test_pictures_of_the_whole_range_need_no_word(photos, root, capsys):
    deep(photos, 40_000)
    put(photos / "photo.png")
    read(photos, root)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and "decoding" in said[0] and "no labelled train images" in said[1]


@pytest.mark.parametrize("name", ["DCOPY_WHITE", "DCOPY_MEGAPIXELS"])
@pytest.mark.parametrize("text", ["0", "-1", "70000", "much"])
def test_a_bad_setting_is_named(photos, root, monkeypatch, name, text):
    put(photos / "a.png")
    monkeypatch.setenv(name, text)
    with pytest.raises(ValueError, match=f"{name}='{text}' is not allowed; it must be from 1 to 65535"):
        read(photos, root)


# damage


def damage(photos):
    """Three bad files among good ones."""
    two_classes(photos)
    whole = put(photos / "train" / "cat" / "3.jpg", picture(5, (64, 64))).read_bytes()
    (photos / "train" / "cat" / "3.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "train" / "cat" / "4.png").write_bytes(b"")
    (photos / "train" / "dog" / "notes.txt").write_text("not an image")


@pytest.mark.parametrize("bad", ["3.jpg", "4.png", "notes.txt"])
def test_a_bad_file_is_named(photos, root, bad):
    damage(photos)
    for file in photos.rglob("*.*"):
        if file.name in {"3.jpg", "4.png", "notes.txt"} - {bad}:
            file.unlink()
    with pytest.raises(
        ValueError, match=rf"train/.+/{bad}: not an? .+; skip_bad leaves such files out"
    ) as caught:
        read(photos, root)
    assert "BytesIO" not in str(caught.value)  # Pillow names what it was given, which tells a user nothing
    assert not list(root.rglob("meta.json"))


def test_skip_bad_leaves_them_out_and_says_how_many(photos, root, capsys):
    damage(photos)
    for _ in range(2):  # decoded, then from the cache
        data = read(photos, root, skip_bad=True)
        assert data.train_labels.tolist() == [0, 0, 0, 1] and len(data.train) == 4
        assert "3 unreadable files left out, the first train/cat/3.jpg: not" in capsys.readouterr().out
    good = [photos / "train" / name for name in ("cat/1.png", "cat/2.png", "cat/10.png", "dog/a.png")]
    assert torch.equal(data.train, torch.stack([pixels(Image.open(file)) for file in good]))


@pytest.mark.parametrize("text", ["1", "True", "yes", "", "0", "FALSE", "no"])
def test_skip_bad_is_a_yes_or_no(text, monkeypatch):
    monkeypatch.setenv("DCOPY_SKIP_BAD", text)
    assert folder.skips_bad(False) == (text in ("1", "True", "yes")) and folder.skips_bad(True)


@pytest.mark.parametrize("text", ["off", "2", " "])
def test_another_word_for_skip_bad_is_refused(text, monkeypatch):
    monkeypatch.setenv("DCOPY_SKIP_BAD", text)
    allowed = "one of 1, true, yes, 0, false, no"
    with pytest.raises(ValueError, match=f"DCOPY_SKIP_BAD='{text}' is not allowed; it must be {allowed}"):
        folder.skips_bad(False)


def test_a_cache_with_files_left_out_does_not_hide_them(photos, root):
    damage(photos)
    read(photos, root, skip_bad=True)
    with pytest.raises(ValueError, match=r"photos/train/cat/3\.jpg: not a readable image"):
        read(photos, root)


def test_a_class_with_bad_files_only_is_named(photos, root):
    two_classes(photos)
    (photos / "train" / "dog" / "a.png").write_bytes(b"bad")
    with pytest.raises(ValueError, match="train/dog has no readable image"):
        read(photos, root, skip_bad=True)


def test_a_zip_bomb_is_refused(photos, root, monkeypatch):
    put(photos / "bomb.png", Image.new("1", (400, 400)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"bomb\.png: not a readable image \(Image size .* exceeds limit"):
        read(photos, root)


def test_a_very_large_image_can_be_let_in(photos, root, monkeypatch, capsys):
    put(photos / "a.png")
    put(photos / "large.png", Image.new("RGB", (1000, 900), "red"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"large\.png: .*DCOPY_MEGAPIXELS=500 lets larger ones in"):
        read(photos, root)
    assert len(read(photos, root, skip_bad=True).unlabeled) == 1
    monkeypatch.setenv("DCOPY_MEGAPIXELS", "1")
    data = read(photos, root)
    assert data.unlabeled[1].float().mean((1, 2)).tolist() == [255, 0, 0]
    assert Image.MAX_IMAGE_PIXELS == 1000


def test_heic_is_read_with_its_package(photos, root):
    pytest.importorskip("pillow_heif")
    put(photos / "phone.heic", Image.new("RGB", (64, 64), (200, 100, 50)))
    colour = read(photos, root).unlabeled.float().mean((0, 2, 3))
    assert (colour - torch.tensor([200.0, 100.0, 50.0])).abs().max() < 4


def test_heic_without_its_package_is_told_what_it_takes(photos, root, monkeypatch):
    def unidentified(*args):
        raise UnidentifiedImageError

    (photos / "phone.jpg").write_bytes(b"\0\0\0\x18ftypheic and so on")  # named as some phones do
    monkeypatch.setattr(Image, "open", unidentified)
    with pytest.raises(ValueError, match=r"phone\.jpg: .* HEIC, which takes `pip install pillow-heif`"):
        read(photos, root)


UNREADABLE = {
    "a broken link": (lambda file: file.symlink_to("nowhere"), "a link to a file that is not there"),
    "a link to itself": (lambda file: file.symlink_to(file.name), "cannot be opened|a link to a file"),
    "a pipe": (os.mkfifo, "not a file"),
}


@pytest.mark.parametrize(("make", "message"), UNREADABLE.values(), ids=UNREADABLE)
def test_what_is_no_file_is_named_or_left_out(photos, root, make, message):
    two_classes(photos)
    make(photos / "train" / "cat" / "3.jpg")
    with pytest.raises(ValueError, match=rf"train/cat/3\.jpg: ({message}).*; skip_bad leaves such files out"):
        read(photos, root)
    assert len(read(photos, root, skip_bad=True).train) == 4


@pytest.mark.parametrize("error", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_file_that_cannot_be_opened_is_named_or_left_out_and_tried_again(photos, root, error, monkeypatch):
    two_classes(photos)
    reading = Path.read_bytes

    def refuse(path):
        if path.name == "10.png":
            raise OSError(error, os.strerror(error), str(path))
        return reading(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse)
        message = rf"train/cat/10\.png: cannot be opened \({os.strerror(error)}\)"
        with pytest.raises(ValueError, match=message):
            read(photos, root)
        patch.setenv("DCOPY_SKIP_BAD", "1")
        assert len(read(photos, root).train) == 3
    assert len(read(photos, root, skip_bad=True).train) == 4


@pytest.mark.parametrize("cores", [1, 3, 1000])
def test_no_more_threads_than_cores_that_the_process_may_use(photos, root, monkeypatch, capsys, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)), raising=False)
    read(two_classes(photos), root)
    assert f"decoding 4 images to 8 pixels, threads: {min(cores, 16)}\n" in capsys.readouterr().out


# what a probe will need


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train/cat/1.png", "train/cat/2.png", "test/cat/3.png"], "has one class, cat; a probe needs two"),
        (
            ["train/cat/1.png", "train/cat/2.png", "train/dog/3.png", "test/cat/4.png"],
            "images of class dog (1)",
        ),
        (["train/cat/1.png", "train/dog/2.png"], "has no labelled test images; a probe needs test/<class>/*"),
        (["unlabeled/1.png", "unlabeled/2.png"], "has no labelled train images"),
    ],
)
def test_what_a_probe_lacks_is_said_at_loading_and_training_goes_on(photos, root, names, message, capsys):
    for name in names:
        put(photos / name)
    config = tiny_config(dataset=f"folder:{photos}", batch_size=2, epochs=1, encoder="conv", image_size=SIDE)
    run = pretrain(config, photos.parent, data_root=root, device="cpu")
    assert message in capsys.readouterr().out and run.result["images"] >= 2


def test_a_command_says_what_a_data_set_holds(photos, root, capsys):
    two_classes(photos)
    assert main([f"folder:{photos}", "--image-size=8", f"--data-root={root}"]) == 0
    *_, lack, sizes, last = capsys.readouterr().out.splitlines()
    assert "has no labelled test images" in lack and sizes.endswith(
        "4 train, 0 unlabeled, 0 test images of 3x8x8, 2 classes"
    )
    assert last.split()[-1] == fingerprint(read(photos, root).pretrain())
    assert main([f"folder:{photos}/none"]) == 2
    assert capsys.readouterr().err == f"error: {photos}/none is not a folder\n"


# the cache


def decodes(capsys):
    return capsys.readouterr().out.count("decoding")


def test_images_are_decoded_once(photos, root, capsys):
    two_classes(photos)
    first = read(photos, root)
    assert decodes(capsys) == 1
    second = read(photos, root)
    assert decodes(capsys) == 0 and torch.equal(first.train, second.train)


def test_a_cache_of_another_version_is_not_used(photos, root, capsys, monkeypatch):
    two_classes(photos)
    for version in (folder.FORMAT - 1, folder.FORMAT):
        monkeypatch.setattr(folder, "FORMAT", version)
        read(photos, root)
    assert decodes(capsys) == 2


def test_a_folder_that_moved_is_not_decoded_again(photos, root, capsys):
    two_classes(photos)
    read(photos, root)
    shutil.copytree(photos, photos.parent / "copy")
    assert decodes(capsys) == 1
    read(photos.parent / "copy", root)
    assert decodes(capsys) == 0


def test_another_size_is_decoded_beside(photos, root, capsys):
    two_classes(photos)
    read(photos, root)
    assert read(photos, root, image_size=4).train.shape[-1] == 4
    read(photos, root)
    assert decodes(capsys) == 2


def test_test_images_that_are_also_trained_on_are_counted_at_each_load(photos, root, capsys):
    two_classes(photos)
    shutil.copytree(photos / "train", photos / "test")
    put(photos / "test/cat/2.png", picture(9))
    put(photos / "unlabeled/a.png", picture(9))
    put(photos / "test/dog/b.png", picture(10))
    for _ in range(2):
        read(photos, root)
        assert "4 of its 5 test images are also there to train on" in capsys.readouterr().out
    (photos / "test").rename(photos / "not used")
    read(photos, root)
    assert "to train on" not in capsys.readouterr().out


def test_a_file_with_other_content_is_seen(photos, root):
    """Even with the same name, size and modification time, as `cp --preserve` leaves them."""
    file = put(photos / "a.bmp", picture(1))
    before = file.stat()
    read(photos, root)
    put(file, picture(2))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert torch.equal(read(photos, root).unlabeled[0], pixels(picture(2)))


def test_a_renamed_class_is_seen(photos, root):
    two_classes(photos)
    read(photos, root)
    (photos / "train" / "cat").rename(photos / "train" / "zebra")
    data = read(photos, root)
    assert data.classes == ("dog", "zebra") and data.train_labels.tolist() == [0, 1, 1, 1]


def test_a_file_that_moved_to_another_class_is_seen(photos, root):
    """The same images in the same order, but not the same labels."""
    two_classes(photos)
    read(photos, root)
    (photos / "train" / "cat" / "10.png").rename(photos / "train" / "dog" / "0.png")
    assert read(photos, root).train_labels.tolist() == [0, 0, 1, 1]


def test_folders_are_told_apart_without_their_times(photos, root, monkeypatch):
    """Two folders with files of the same name and size, where the file system keeps no times."""
    stat = Path.stat
    monkeypatch.setattr(Path, "stat", lambda path, **options: os.stat_result(tuple(stat(path, **options))))
    for seed in (1, 2):
        put(photos / str(seed) / "x.bmp", picture(seed))
        assert torch.equal(read(photos / str(seed), root).unlabeled[0], pixels(picture(seed)))


def test_unchanged_files_are_not_read_again(photos, root, monkeypatch):
    two_classes(photos)
    read(photos, root)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was read"))
    assert len(read(photos, root).train) == 4


def test_a_complete_cache_needs_nothing_written(photos, root, monkeypatch):
    """So a cache on a read-only disk serves, even for a copy of the folder that was decoded."""

    def read_only(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    two_classes(photos)
    read(photos, root)
    shutil.copytree(photos, photos.parent / "copy")
    monkeypatch.setattr(folder, "write_text", read_only)
    monkeypatch.setattr(convert, "alone", read_only)
    assert len(read(photos.parent / "copy", root).train) == 4


@pytest.mark.filterwarnings("error")
def test_images_are_mapped_and_a_change_in_place_stays_out_of_the_cache(photos, root):
    two_classes(photos)
    data = read(photos, root)
    original = data.train.clone()
    data.train.zero_()
    assert torch.equal(read(photos, root).train, original)


def test_a_damaged_cache_is_named(photos, root):
    two_classes(photos)
    read(photos, root)
    (cached,) = root.rglob("train.npy")
    cached.write_bytes(cached.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"train\.npy is damaged .*; delete "):
        read(photos, root)


def test_a_root_that_cannot_be_written_is_named(photos, root):
    two_classes(photos)
    root.write_text("a file, not a folder")
    with pytest.raises(OSError, match=r"cannot be written .* set DCOPY_DATA"):
        read(photos, root)


def test_a_full_disk_leaves_no_cache(photos, root, monkeypatch):
    two_classes(photos)

    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder.np, "save", lambda file, array: full(file))
    with pytest.raises(OSError, match="No space left"):
        read(photos, root)
    assert not list(root.rglob("meta.json")) and not list(root.rglob("*.tmp"))
    monkeypatch.undo()
    assert len(read(photos, root).train) == 4


def test_what_a_killed_process_left_is_removed(photos, root):
    two_classes(photos)
    read(photos, root)
    (complete,) = root.rglob("meta.json")
    complete.unlink()
    (complete.parent / ".train.npy.x.tmp").write_bytes(b"half of")
    assert len(read(photos, root).train) == 4
    assert not list(root.rglob("*.tmp"))


def test_two_processes_decode_once(photos, root):
    two_classes(photos)
    code = f"from dcopy.data import load; print(len(load('folder:{photos}', {str(root)!r}).train), 'images')"
    hold = f"""
import sys, time
from dcopy.data import folder
decode = folder.decode
def slow(*arguments):
    print("begun", flush=True)
    sys.stdin.readline()
    return decode(*arguments)
folder.decode = slow
{code}"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    processes = [subprocess.Popen([sys.executable, "-c", hold], **pipes)]
    try:
        while "begun" not in (line := processes[0].stdout.readline()):
            assert line, "the first process ended"
        processes.append(subprocess.Popen([sys.executable, "-c", code], **pipes))
        assert "waiting for another process" in processes[1].stdout.readline()
        outputs = [process.communicate("\n" * 10, timeout=60)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all("4 images" in output for output in outputs), outputs
    assert "decoding" not in outputs[1]


# real images


def test_real_imagenette(real_data, photos, root, capsys):
    with zipfile.ZipFile(real_data / "imagenette128.zip") as archive:
        archive.extractall(photos, [name for name in archive.namelist() if name.startswith("val/")])
    (photos / "val").rename(photos / "train")
    data = read(photos, root, image_size=32)
    assert data.train.shape == (3925, 3, 32, 32) and len(data.classes) == 10
    assert (data.train_labels.bincount(minlength=10) > 300).all()
    mean = data.train.float().mean((0, 2, 3)) / 255
    assert (mean - torch.tensor([0.46, 0.45, 0.43])).abs().max() < 0.03  # ImageNet: 0.485 0.456 0.406


def test_real_cifar10_comes_back_pixel_by_pixel(real_data, photos, root):
    expected = []
    for split, archive in (("train", "cifar10-train-a.zip"), ("test", "cifar10-test.zip")):
        with zipfile.ZipFile(real_data / archive) as parts:
            classes = parts.read("classes.txt").decode().split()
            labels = [int(label) for label in parts.read("labels.txt").split()[:500]]
            sheet = min(name for name in parts.namelist() if name.endswith(".webp"))
            sheet = np.array(Image.open(io.BytesIO(parts.read(sheet))).convert("RGB"))
        tiles = sheet.reshape(32, 32, 32, 32, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 32, 32, 3)[:500]
        for number, (tile, label) in enumerate(zip(tiles, labels, strict=True)):
            put(photos / split / classes[label] / f"{number}.png", Image.fromarray(tile))
        order = sorted(range(500), key=lambda i: (classes[labels[i]], i))
        expected.append(
            (torch.from_numpy(tiles[order]).permute(0, 3, 1, 2), [classes[labels[i]] for i in order])
        )
    data = read(photos, root, image_size=32)
    for (images, names), found, labels in zip(
        expected, (data.train, data.test), (data.train_labels, data.test_labels), strict=True
    ):
        assert torch.equal(found, images)
        assert [data.classes[label] for label in labels] == names
