"""ImageNet in miniature, from every form that people have it in; and Imagenette from a server."""

import hashlib
import io
import tarfile

import numpy as np
import pytest
import torch
from helpers.pictures import picture, put, small_imagenet
from scipy.io import savemat
from torchvision.transforms import functional as F

from dcopy.data import convert, download, fingerprint, imagenet, load
from dcopy.data.__main__ import main
from dcopy.data.download import DownloadError

CLASSES = ("n01", "n02")


@pytest.fixture(autouse=True)
def little(monkeypatch):
    """Two classes, each of six images to train and two to validate on."""
    monkeypatch.setattr(imagenet, "KNOWN", {"imagenet": (2, 12, 4), "imagenette": (2, 12, 4)})


def flat(root):
    """The validation images in one folder, numbered from class to class and back; their devkit."""
    place, truth = small_imagenet(root / "imagenet"), []
    images = sorted((place / "val").glob("*/*"), key=lambda file: file.stem[::-1], reverse=True)
    for number, file in enumerate(images, start=1):
        truth.append({"n01": 7, "n02": 3}[file.parent.name])
        file.replace(place / "val" / f"ILSVRC2012_val_{number:08}.JPEG")
    for wnid in CLASSES:
        (place / "val" / wnid).rmdir()
    (place / imagenet.TRUTH).parent.mkdir(parents=True)
    (place / imagenet.TRUTH).write_text("\n".join(map(str, truth)))
    synsets = [{"ILSVRC2012_ID": 7, "WNID": "n01"}, {"ILSVRC2012_ID": 3, "WNID": "n02"}]
    savemat(place / imagenet.META, {"synsets": synsets})
    return place


def flat_with_archive(root):
    place = flat(root)
    with tarfile.open(place / f"{imagenet.DEVKIT}.tar.gz", "w:gz") as tar:
        for name in (imagenet.META, imagenet.TRUTH):
            tar.add(place / name, name)
            (place / name).unlink()


def tree_with_test_folder(root):
    """As on Kaggle: `test/` has images without classes."""
    put(small_imagenet(root / "imagenet") / "test" / "ILSVRC2012_test_00000001.JPEG")


def link(root):
    root.mkdir()
    (root / "imagenet").symlink_to(small_imagenet(root.parent / "elsewhere"))


def saved(root):
    datasets = pytest.importorskip("datasets")
    place, splits = small_imagenet(root.parent / "tree"), {}
    for ours, theirs in (("train", "train"), ("val", "validation")):
        files = sorted((place / ours).glob("*/*"))
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
        columns = {"image": list(map(str, files)), "label": [CLASSES.index(f.parent.name) for f in files]}
        splits[theirs] = datasets.Dataset.from_dict(columns, features)
    datasets.DatasetDict(splits).save_to_disk(root / "imagenet", num_proc=None)


FORMS = [small_imagenet, tree_with_test_folder, link, flat, flat_with_archive, saved]


@pytest.mark.parametrize("make", FORMS, ids=lambda f: f.__name__)
def test_every_form_gives_the_same_images(make, root, tmp_path):
    make(root / "imagenet" if make is small_imagenet else root)
    data = load("imagenet", root, progress=False)
    assert data.classes == CLASSES
    assert data.train_labels.tolist() == 6 * [0] + 6 * [1]
    assert data.train.shape == (12, 3, 224, 224)
    expected = sorted(f.read_bytes() for f in small_imagenet(tmp_path / "again").glob("val/*/*"))
    assert sorted(data.test.jpeg(i) for i in range(4)) == expected
    by_class = sorted((data.test.jpeg(i), data.test_labels[i].item()) for i in range(4))
    again = ((f.read_bytes(), CLASSES.index(f.parent.name)) for f in (tmp_path / "again").glob("val/*/*"))
    assert by_class == sorted(again)


def test_once_converted_the_source_is_not_needed(root):
    place = small_imagenet(root / "imagenet")
    first = fingerprint(load("imagenet", root, progress=False).train)
    place.rename(root / "moved")
    assert fingerprint(load("imagenet", root, progress=False).train) == first


def test_the_size_of_a_view_sets_the_size_that_is_kept(root):
    place = small_imagenet(root / "imagenet")
    put(place / "train" / "n01" / "n01_0.JPEG", picture(0, (900, 400)), format="JPEG")
    for size, side in ((64, 160), (224, 320), (256, 365)):
        images = load("imagenet", root, image_size=size, progress=False).train
        assert images.index[["H", "W"]][0].tolist() == (side, round(900 * side / 400))
        assert images[:1].shape == (1, 3, size, size)


def test_an_encoder_is_evaluated_on_the_middle_of_an_image(root):
    """224 of 256 of the short side, as usual on ImageNet."""
    place = small_imagenet(root / "imagenet")
    put(place / "val" / "n01" / "n01_0.JPEG", picture(0, (320, 256)), format="JPEG")
    data = load("imagenet", root, progress=False)
    (i,) = np.flatnonzero(data.test.index["W"] == 320)
    with data.test.opened(i) as image:
        expected = np.asarray(F.center_crop(image, 224))
    assert np.array_equal(data.test[int(i)].permute(1, 2, 0), expected)


def test_odd_files_of_imagenet_are_taken(root):
    """It has CMYK files, and a PNG whose name says JPEG."""
    place = small_imagenet(root / "imagenet")
    put(place / "train" / "n01" / "n01_0.JPEG", picture(0, (30, 30)).convert("CMYK"), format="JPEG")
    put(place / "train" / "n01" / "n01_1.JPEG", picture(0, (30, 30)), format="PNG")
    assert load("imagenet", root, progress=False).train[:2].shape == (2, 3, 224, 224)


# what is refused, each by one line


def nothing(root):
    root.mkdir()


def half_converted(root):
    place = small_imagenet(root / "imagenet")
    (root / "folders" / "imagenet-jpeg320").mkdir(parents=True)
    (root / "folders" / "imagenet-jpeg320" / convert.NOTE).touch()
    place.rename(root / "moved")


def wrong_root(root):
    small_imagenet(root / "imagenet" / "ILSVRC")


def without_val(root):
    (small_imagenet(root / "imagenet") / "val").rename(root / "val")


def without_devkit(root):
    (flat(root) / imagenet.TRUTH).unlink()


def a_part(root):
    small_imagenet(root / "imagenet", train=5)


def truncated(root):
    file = small_imagenet(root / "imagenet") / "train" / "n02" / "n02_0.JPEG"
    file.write_bytes(file.read_bytes()[:-200])


def a_note(root):
    (small_imagenet(root / "imagenet") / "train" / "n02" / "notes.txt").write_text("a few words")


REFUSED = {
    nothing: r"imagenet is not there; link it to what holds train/ and val/ .*ln -s FOLDER",
    half_converted: r"imagenet is not there; \S+imagenet-jpeg320 is half converted; link",
    wrong_root: r"imagenet lacks train/ and val/; it holds ILSVRC; link it",
    without_val: r"imagenet lacks val/; it holds train; link it",
    without_devkit: r"val has no class folders, and ILSVRC2012_devkit_t12, .*ground_truth.*put its folder or",
    a_part: r"is not imagenet: 2 classes with 10 training and 4 validation images, not .* 12 .*folder:PATH",
    a_note: r"2 classes with 13 training and .*, with train/n02/notes\.txt among them; folder:PATH",
    truncated: r"train/n02/n02_0\.JPEG: not a readable image .*skip_bad",
}


@pytest.mark.parametrize("make", REFUSED, ids=lambda f: f.__name__)
def test_one_line_says_what_is_wrong(make, root, capsys):
    make(root)
    with pytest.raises((ValueError, DownloadError), match=REFUSED[make]) as error:
        load("imagenet", root, progress=False)
    assert "\n" not in str(error.value)
    assert main(["imagenet", "--data-root", str(root)]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_damaged_file_can_be_left_out(root):
    truncated(root)
    assert len(load("imagenet", root, skip_bad=True, progress=False).train) == 11
    made = root / "folders" / "imagenet-jpeg320"
    with pytest.raises(ValueError, match=rf"n02_0\.JPEG: .*; where they are whole by now, delete {made} "):
        load("imagenet", root, progress=False)


@pytest.mark.parametrize("name", ["imagenet", "digits"])
@pytest.mark.parametrize("size", [0, -3, 10_000_000])
def test_views_without_a_pixel_or_with_too_many_are_refused(size, name, root):
    small_imagenet(root / "imagenet")
    with pytest.raises(ValueError, match=rf"image_size={size} is not allowed; it must be a number of pixels"):
        load(name, root, image_size=size, progress=False)


def test_a_saved_data_set_may_hold_images_or_their_paths(tmp_path):
    file = put(tmp_path / "a.png")
    assert imagenet._bytes({"bytes": None, "path": str(file)}) == file.read_bytes()
    assert imagenet._bytes({"bytes": b"1", "path": "a.png"}) == b"1"


def test_a_saved_data_set_of_other_columns_is_refused(root):
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"text": ["a"]})
    for found, reason in (
        (table, "it holds one split alone"),
        (datasets.DatasetDict(train=table), "it holds train"),
        (datasets.DatasetDict(train=table, validation=table), "it has .*Value"),
    ):
        found.save_to_disk(root / "imagenet")
        with pytest.raises(ValueError, match=reason):
            load("imagenet", root, progress=False)
        for file in (root / "imagenet").glob("*.json"):
            file.unlink()


# Imagenette is fetched


def archive(tmp_path, monkeypatch, names=None):
    """Imagenette in miniature, as the archive that a mirror hands out."""
    place, file = small_imagenet(tmp_path / "made" / "imagenette2-160"), io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for image in sorted(place.rglob("*.JPEG")):
            tar.add(image, names(image) if names else str(image.relative_to(place.parent)))
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / "imagenette2-160.tgz").write_bytes(file.getvalue())
    digest = hashlib.md5(file.getvalue(), usedforsecurity=False).hexdigest()
    monkeypatch.setattr(imagenet.Archive, "tgz_md5", digest)
    return mirror


def test_imagenette_is_fetched_once(serve, tmp_path, root, monkeypatch):
    address, seen = serve(archive(tmp_path, monkeypatch))
    data = load("imagenette", root, mirrors=[address], image_size=32, progress=False)
    assert data.train_labels.tolist() == 6 * [0] + 6 * [1] and len(data.test) == 4
    assert torch.equal(data.train[:], load("imagenette", root, mirrors=[], image_size=32).train[:])
    assert seen == ["/imagenette2-160.tgz"] and not (root / "imagenette2-160.tgz").exists()


def test_imagenette_that_is_there_is_not_fetched(root):
    small_imagenet(root / "imagenette")
    assert len(load("imagenette", root, download=False, progress=False).train) == 12


def test_another_archive_is_refused(serve, tmp_path, root, monkeypatch):
    address, _ = serve(archive(tmp_path, monkeypatch))
    monkeypatch.setattr(imagenet.Archive, "tgz_md5", 32 * "0")
    monkeypatch.setattr(imagenet.Archive, "url", f"{address}/nowhere.tgz")
    with pytest.raises(DownloadError, match="the checksum differs"):
        load("imagenette", root, mirrors=[address], progress=False)


def test_an_archive_writes_into_its_own_folder_alone(serve, tmp_path, root, monkeypatch):
    address, _ = serve(archive(tmp_path, monkeypatch, lambda image: f"imagenette2-160/../{image.name}"))
    with pytest.raises(DownloadError, match="train/ with 0 of 12 images"):
        load("imagenette", root, mirrors=[address], progress=False)
    assert not list(root.rglob("*.JPEG"))


def test_what_was_half_unpacked_is_unpacked_again(serve, tmp_path, root, monkeypatch):
    address, _ = serve(archive(tmp_path, monkeypatch))
    put(root / "imagenette2-160" / "train" / "n01" / "n01_0.JPEG")
    assert len(load("imagenette", root, mirrors=[address], progress=False).train) == 12
    assert download._faults(imagenet.Archive, root) == []
