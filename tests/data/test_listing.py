"""What a folder of images holds: its layout, the names of splits and classes, and what is no image of it."""

import os
import unicodedata

import pytest
import torch
from helpers.pictures import SIDE, picture, pixels, put, read, two_classes
from PIL import Image

from dcopy.data import describe
from dcopy.data.listing import find

# layouts


@pytest.mark.parametrize("test", ["test", "val"])
def test_train_and_test_folders(photos, root, test):
    two_classes(photos)
    put(photos / test / "dog" / "b.png")
    data = read(photos, root)
    assert data.classes == ("cat", "dog")
    assert data.train_labels.tolist() == [0, 0, 0, 1] and data.test_labels.tolist() == [1]
    assert data.unlabeled is None


def test_files_come_in_natural_order(photos, root):
    two_classes(photos)
    files = [photos / "train" / name for name in ("cat/1.png", "cat/2.png", "cat/10.png", "dog/a.png")]
    assert torch.equal(read(photos, root).train, torch.stack([pixels(Image.open(file)) for file in files]))


def test_classes_come_in_natural_order(photos, root):
    for name in ("class10", "class2", "Class3"):
        put(photos / "train" / name / "x.png")
    assert read(photos, root).classes == ("class2", "Class3", "class10")


def test_images_right_in_the_folder_are_unlabelled(photos, root):
    put(photos / "a.png")
    put(photos / "b.png")
    (photos / ".DS_Store").write_bytes(b"not an image, and hidden")
    data = read(photos, root)
    assert describe(data).endswith("0 train, 2 unlabeled, 0 test images of 3x8x8, 0 classes")
    assert data.pretrain().shape == (2, 3, SIDE, SIDE)


def test_unlabelled_images_join_train_for_pretraining_only(photos, root):
    two_classes(photos)
    put(photos / "unlabeled" / "deep" / "down" / "c.png")
    put(photos / "test" / "cat" / "t.png", picture(77))
    data = read(photos, root)
    assert len(data.train) == 4 and len(data.unlabeled) == 1 and len(data.pretrain()) == 5
    assert not (data.pretrain() == data.test[0]).flatten(1).all(1).any()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], r"photos holds no images in a known layout: train/<class>/"),
        (["cat/a.png"], r"photos holds no images in a known layout"),
        (["a.png", "test/cat/a.png"], r"photos holds no images in a known layout"),
        (["train/a.png"], r"train/a.png is in no class folder"),
        (["train/cat/a.png", "train/dog/"], r"train/dog is a class without images"),
        (["train/cat/a.png", "test/dog/"], r"test/dog is a class that train/ lacks; it has cat"),
        (["train/cat/a.png", "test/"], r"test has no class folders"),
        (["train/"], r"train has no class folders"),
    ],
)
def test_a_layout_that_cannot_be_used_is_named(photos, root, names, message):
    for name in names:
        if name.endswith("/"):
            (photos / name).mkdir(parents=True)
        else:
            put(photos / name)
    with pytest.raises(ValueError, match=message):
        read(photos, root)


def test_a_folder_that_is_not_there_is_named(photos, root):
    with pytest.raises(ValueError, match="photos/none is not a folder"):
        read(photos / "none", root)


# names of splits


@pytest.mark.parametrize(
    ("train", "test"),
    [
        *(("train", name) for name in ("valid", "validation", "testing", "eval", "dev", "holdout", "Test")),
        *(("Train", "Val"), ("TRAIN", "TEST"), ("training", "testing"), ("training_set", "test_set")),
        ("train images", "test-images"),
    ],
)
def test_common_names_of_the_splits_are_understood_and_said(photos, root, train, test, capsys):
    two_classes(photos)
    (photos / "train").rename(photos / train)
    put(photos / test / "dog" / "b.png")
    data = read(photos, root)
    assert (len(data.train), data.test_labels.tolist()) == (4, [1])
    assert f"train from {train}/, test from {test}/\n" in capsys.readouterr().out


def test_the_test_split_is_preferred_and_what_is_not_used_is_said(photos, root, capsys):
    two_classes(photos)
    for name in ("val", "TEST", "extra"):
        put(photos / name / "dog" / "b.png", picture(len(name)))
    (photos / "labels.csv").touch()
    assert torch.equal(read(photos, root).test[0], pixels(picture(4)))
    said = capsys.readouterr().out
    assert "train from train/, test from TEST/; not used: extra, labels.csv, val\n" in said


@pytest.mark.parametrize(
    "names", [("train", "training"), ("valid", "validation"), ("unlabeled", "unlabelled")]
)
def test_two_folders_of_one_split_are_refused(photos, root, names):
    two_classes(photos)
    for name in names:
        put(photos / name / "dog" / "b.png")
    with pytest.raises(ValueError, match=f"photos holds {names[0]}/ and {names[1]}/, which both name the"):
        read(photos, root)


# what systems and cameras leave behind

LEFT = [
    *("Thumbs.db", "ehthumbs_vista.db", "desktop.ini", "Desktop.ini", "Icon", "Icon\r", "cat.lnk"),
    *("a.png:Zone.Identifier", "IMG_1.AAE", "IMG_1.MOV", "MVI_2.THM", "a.xmp", "~$list.docx", "a.png~"),
    *(".DS_Store", "._a.png", ".nfs0001"),
]
LEFT_FOLDERS = [
    *("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found", ".git"),
]


@pytest.mark.parametrize("where", ["train", "train/cat", "train/cat/deep", "."])
def test_what_systems_and_cameras_leave_is_not_looked_at_and_said(photos, root, where, capsys):
    two_classes(photos)
    put(photos / "train" / "cat" / "deep" / "b.png")
    for name in LEFT:
        (photos / where / name).write_bytes(b"no picture")
    for name in LEFT_FOLDERS:
        put(photos / where / name / "._cat.png")
        put(photos / where / name / "SYNOPHOTO_THUMB_M.jpg")
    data = read(photos, root)
    assert data.classes == ("cat", "dog") and len(data.train) == 5
    assert ("not looked at, as systems and cameras leave it: " in capsys.readouterr().out) == (where != ".")


def test_leftovers_among_images_without_folders_are_not_looked_at(photos, root, capsys):
    put(photos / "a.png")
    for name in LEFT:
        (photos / name).write_bytes(b"no picture")
    for name in LEFT_FOLDERS:
        put(photos / name / "b.png")
    assert len(read(photos, root).unlabeled) == 1
    assert "photos: not looked at, as systems and cameras leave it: " in capsys.readouterr().out


def test_classes_that_are_called_like_leftovers_stay(photos, root):
    for name in ("icon", "thumbs.db", "recycle", "a.mov", "photo.jpg"):
        put(photos / "train" / name / "a.png")
    assert read(photos, root).classes == ("a.mov", "icon", "photo.jpg", "recycle", "thumbs.db")


def test_a_picture_that_is_in_the_cloud_only_is_not_missed(photos, root):
    put(photos / "a.png")
    (photos / ".IMG_1.HEIC.icloud").write_bytes(b"bplist00")
    with pytest.raises(ValueError, match=r"\.IMG_1\.HEIC\.icloud: not an image"):
        read(photos, root)


def test_a_link_back_up_is_not_followed(photos, root):
    """It would give each picture 40 times, until the system refuses to go on."""
    two_classes(photos)
    (photos / "train" / "cat" / "up").symlink_to("..")
    (photos / "train" / "cat" / "self").symlink_to(photos / "train" / "cat")
    put(photos.parent / "elsewhere" / "b.png")
    (photos / "train" / "dog" / "more").symlink_to(photos.parent / "elsewhere")
    assert read(photos, root).train_labels.tolist() == [0, 0, 0, 1, 1]


# names of classes

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))


@pytest.mark.parametrize("other", [DECOMPOSED, f"{COMPOSED} ", f"{COMPOSED}\u200b", f"\u00a0{COMPOSED}"])
def test_classes_that_look_the_same_are_the_same(photos, root, other, capsys):
    put(photos / "train" / COMPOSED / "a.png")
    put(photos / "train" / other / "b.png")
    put(photos / "train" / "tea" / "c.png")
    put(photos / "test" / other / "d.png")
    data = read(photos, root)
    assert data.classes == (COMPOSED, "tea")
    assert data.train_labels.tolist() == [0, 0, 1] and data.test_labels.tolist() == [0]
    assert f"{other!a} in train is class {COMPOSED}" in capsys.readouterr().out


def test_case_tells_classes_apart_but_not_where_nothing_else_fits(photos, root):
    for name in ("train/a/1.png", "train/A/1.png", "train/Cat/1.png", "test/cat/1.png", "test/a/1.png"):
        put(photos / name)
    data = read(photos, root)
    assert data.classes == ("A", "a", "Cat") and data.test_labels.tolist() == [1, 2]


def test_folders_come_in_the_same_order_however_their_accents_are_written(photos, tmp_path):
    for form in ("NFC", "NFD"):
        for name in ("e\u0301a", "ez", "f"):
            put(tmp_path / form / "train" / unicodedata.normalize(form, name) / "1.png")
    assert find(tmp_path / "NFC").classes == find(tmp_path / "NFD").classes


# names of any bytes

ODD = [
    *(b"caf\xe9", b"\xff\xfe", "\u65e5\u672c".encode(), b"a#b", b"a:b", b"a'b\"c", b"{a}", b"a b ", b"-a"),
    *(b"a\nb", b"%s", b"a=b", b"[a-z]*", b"~a", b"$HOME", b"a;b&c|d", b"x" * 200),
]


@pytest.mark.parametrize("name", ODD)
def test_every_legal_name_works_for_folders_classes_and_files(tmp_path, name):
    odd = os.fsdecode(name)
    photos, root = tmp_path / odd, tmp_path / f"root {odd}"
    for split in ("train", "test"):
        put(photos / split / odd / "1.png").rename(photos / split / odd / odd)
        put(photos / split / "tea" / "2.png")
    for _ in range(2):
        data = read(photos, root)
        assert sorted(data.train_labels.tolist()) == [0, 1] and len(data.test) == 2
        assert sorted(data.classes) == sorted({odd.strip(), "tea"} if name != b"a\nb" else {"a b", "tea"})
    (photos / "train" / odd / odd).write_bytes(b"bad")
    with pytest.raises(ValueError, match="not an image") as caught:
        read(photos, root)
    assert "\n" not in str(caught.value)
    str(caught.value).encode()  # any terminal can show it
