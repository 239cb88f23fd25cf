"""What a folder of images holds: its splits, its classes, and which files are images at all."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..machine import shown

UNLABELED = -1  # label of an image without a class

# Names of the splits, whatever their case. Of the groups of a split the first that is there is taken.
SPLITS = {
    "train": [{"train", "training"}],
    "test": [
        {"test", "tests", "testing"},
        {"eval", "evaluation"},
        {"val", "valid", "validation"},
        {"dev", "devel", "development"},
        {"holdout", "hold-out"},
    ],
    "unlabeled": [{"unlabeled", "unlabelled", "unsupervised"}],
}
SUFFIX = re.compile(r"[ _-]*(set|split|images|imgs|data)$")  # as in training_set

# What systems, network drives, programs and cameras leave beside pictures; hidden files are ignored as well.
LEFT_FOLDERS = {
    *("__macosx", "lost+found", "$recycle.bin", "system volume information"),
    *("network trash folder", "temporary items", "@eadir", "#recycle", "#snapshot"),
    *("@recycle", "@recently-snapshot", "@tmp"),
}
LEFT_FILES = re.compile(
    r"(eh)?thumbs(_vista)?\.db.*|desktop\.ini|icon\r?|folder\.htt|autorun\.inf|picasa\.ini|zbthumbnail\.info"
    r"|pspbrwse\.jbf|descript\.ion|wmpinfo\.xml|sync\.ffs_db|.*\.(lnk|url|webloc)|.*:zone\.identifier|.*@syno.*"
    r"|~\$.*|.*~|.*\.(aae|xmp|thm|lrv|ctg|mrk|ind|gpx|nmea|wav|m4a)"
    r"|.*\.(mov|mp4|m4v|avi|mts|mkv|mpg|3gp|wmv|webm)",
    re.DOTALL,
)
IN_THE_CLOUD = ".icloud"  # such a file is hidden, but stands for a picture that is not on this disk

LAYOUTS = (
    "train/<class>/ with optional test/<class>/ (or val/<class>/) and unlabeled/, or unlabeled/ alone, "
    "or images and no folders"
)


@dataclass(frozen=True)
class Listing:
    """The files of a folder: names of the classes, and for each split its files and their labels."""

    path: Path
    classes: tuple[str, ...]
    files: dict[str, list[Path]]
    labels: dict[str, list[int]]
    notes: tuple[str, ...]  # what a user might not expect of all this

    def name(self, split: str, i: int) -> str:
        """The path of an image within the folder."""
        return str(self.files[split][i].relative_to(self.path))

    def all_files(self) -> list[Path]:
        return [file for files in self.files.values() for file in files]


def find(path: Path, only: tuple[str, ...] = (), flat: dict[str, str] | None = None) -> Listing:
    """List the images of a folder by the layouts of `folder.read`, each level in natural order (2 before 10).

    Args:
        path: the folder.
        only: names of folders of splits; nothing else is looked at.
        flat: names of files, without suffix, that may lie right in a split's folder, and their classes.

    Raises:
        ValueError: as `folder.read`, but for what only decoding shows.
    """
    if not path.is_dir():
        raise ValueError(f"{shown(path)} is not a folder")
    return _Search(path, only, flat or {}).listing()


class _Search:
    """Goes through a folder, and notes what a user might not expect."""

    def __init__(self, path: Path, only: tuple[str, ...], flat: dict[str, str]):
        self.path, self.only, self.flat = path, only, flat
        self.notes: list[str] = []
        self.left: list[str] = []  # paths of what systems and cameras left behind
        self.classes: dict[str, int] = {}  # labels by the looks of the names

    def listing(self) -> Listing:
        splits = self.splits()
        if splits.keys() & {"train", "unlabeled"}:
            found = {split: list(self.labelled(splits, split)) for split in splits if split != "unlabeled"}
            unlabeled = list(self.walk(splits["unlabeled"])) if "unlabeled" in splits else []
        else:
            found, unlabeled = {}, self.visible(self.path)
            unlabeled = [] if any(entry.is_dir() for entry in unlabeled) else unlabeled
        if unlabeled:
            found["unlabeled"] = [(file, UNLABELED) for file in unlabeled]
        if not found:
            raise ValueError(f"{shown(self.path)} holds no images in a known layout: {LAYOUTS}")
        if self.left:
            self.notes.append(f"not looked at, as systems and cameras leave it: {_few(self.left)}")
        files, labels = ({name: [pair[i] for pair in pairs] for name, pairs in found.items()} for i in (0, 1))
        return Listing(self.path, tuple(self.classes), files, labels, tuple(self.notes))

    def splits(self) -> dict[str, Path]:
        """The folder of each split that is there."""
        entries, found = self.visible(self.path), {}
        entries = [entry for entry in entries if not self.only or entry.name in self.only]
        self.left.clear()  # these are looked at again, if the images lie right here
        for split, groups in SPLITS.items():
            for names in groups:
                here = [entry for entry in entries if entry.is_dir() and _split_word(entry.name) in names]
                if len(here) > 1:
                    both = " and ".join(f"{shown(entry.name)}/" for entry in here[:2])
                    raise ValueError(
                        f"{shown(self.path)} holds {both}, which both name the {split} split; move one away"
                    )
                if here:
                    found[split] = here[0]
                    break
        unused = [entry.name for entry in entries if entry not in found.values()]
        if found and (unused or any(split != folder.name for split, folder in found.items())):
            line = ", ".join(f"{split} from {shown(folder.name)}/" for split, folder in found.items())
            self.notes.append(line + (f"; not used: {_few(unused)}" if unused else ""))
        return found

    def labelled(self, splits: dict[str, Path], split: str) -> Iterator[tuple[Path, int]]:
        """Yield the images of `SPLIT/<class>/` with their labels; the classes are those of `train/`."""
        entries = self.visible(splits[split])
        if not entries:
            raise ValueError(f"{shown(splits[split])} has no class folders; known layouts: {LAYOUTS}")
        for entry in entries:
            if entry.stem in self.flat:
                yield entry, self.label(entry.with_name(self.flat[entry.stem]), split)
                continue
            if not entry.is_dir():
                raise ValueError(
                    f"{shown(entry)} is in no class folder; images without a class go to unlabeled/"
                )
            files, label = list(self.walk(entry)), self.label(entry, split)
            if not files:
                raise ValueError(f"{shown(entry)} is a class without images")
            yield from ((file, label) for file in files)

    def label(self, folder: Path, split: str) -> int:
        name = _looks(folder.name)
        if split == "train":
            self.classes.setdefault(name, len(self.classes))
        elif name not in self.classes:  # test/Cat is train/cat, but not where train/ has classes a and A
            same = [known for known in self.classes if known.casefold() == name.casefold()]
            if len(same) != 1:
                known = ", ".join(map(shown, self.classes)) or "none"
                raise ValueError(f"{shown(folder)} is a class that train/ lacks; it has {known}")
            name = same[0]
        if name != folder.name:
            self.notes.append(f"{folder.name!a} in {split} is class {shown(name)}")
        return self.classes[name]

    def walk(self, folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
        """Yield the files of a folder in depth; a link back to a folder above it is not followed."""
        real = folder.resolve()
        above = (above or frozenset(real.parents)) | {real}
        for entry in self.visible(folder):
            if not entry.is_dir():
                yield entry
            elif entry.resolve() not in above:
                yield from self.walk(entry, above)

    def visible(self, folder: Path) -> list[Path]:
        """Return what a folder holds but hidden files and leftovers, in natural order."""
        kept = []
        for entry in folder.iterdir():
            name = entry.name.casefold()
            if name in LEFT_FOLDERS or (LEFT_FILES.fullmatch(name) and not entry.is_dir()):
                self.left.append(str(entry.relative_to(self.path)))
            elif not name.startswith(".") or name.endswith(IN_THE_CLOUD):
                kept.append(entry)
        return sorted(kept, key=_natural)


def _split_word(name: str) -> str:
    """
    >>> _split_word("Training_Set"), _split_word("VAL")
    ('training', 'val')
    """
    return SUFFIX.sub("", name.strip().casefold())


def _looks(name: str) -> str:
    """What can be seen of a name: composed accents, single spaces, nothing of no width.

    >>> _looks("cafe\\u0301 \\u200b") == "caf\\u00e9"
    True
    """
    visible = (c for c in unicodedata.normalize("NFC", name) if unicodedata.category(c) != "Cf")
    return " ".join("".join(visible).split()) or name


def _natural(path: Path) -> tuple:
    name = _looks(path.name)
    parts = re.split(r"([0-9]+)", name)  # text and digits in turn, text first
    return [int(part) if i % 2 else part.casefold() for i, part in enumerate(parts)], name, path.name


def _few(names: list[str]) -> str:
    """
    >>> _few(["a", "b", "c", "d"])
    'a, b, c and 1 more'
    """
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(shown, names[:3])) + more
