"""One image file to one square of RGB pixels, or to a smaller JPEG, whatever its format and mode."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

with contextlib.suppress(ImportError):  # an optional package, for what phones write
    from pillow_heif import register_heif_opener

    register_heif_opener()

WHITE = 65535  # the grey value of 16 bits that is white, unless somebody says otherwise
QUALITY = 90  # of the JPEGs that are written
LARGE = 50_000_000  # pixels; images beyond that are decoded one at a time, for the memory's sake
_one_large = threading.Lock()

TURNS = {  # by the EXIF orientation: how to put an image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Decoded(NamedTuple):
    """A square of pixels (3, size, size) uint8; whether the file was grey of 16 bits; its brightest value."""

    pixels: np.ndarray
    deep: bool
    brightest: int


class Shrunk(NamedTuple):
    """A JPEG, its height and width in pixels; the rest as in `Decoded`."""

    data: bytes
    height: int
    width: int
    deep: bool
    brightest: int


def decode(file: Path, image_size: int, white: int = WHITE) -> Decoded:
    """Decode one image: turned by its EXIF data, RGB, short side resized, centre kept.

    Grey of 16 bits is scaled to 8, with `white` as the brightest; transparent pixels lie on white; of a
    film the first picture is taken. Resizing is bilinear and antialiased.

    Args:
        file: an image in any format that Pillow reads; HEIC with the package pillow-heif.
        image_size: side of the result, pixels.
        white: grey value of 16-bit files that becomes 255, for example 4095 for 12 bits in 16-bit files.

    Raises:
        ValueError: no file, not to be opened, not an image, damaged, or larger than `PIL.Image` takes for
            honest.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("CMYK", (60, 40)).save(f"{folder}/photo.jpg")
    ...     decode(Path(folder, "photo.jpg"), image_size=32).pixels.shape
    (3, 32, 32)
    """
    with _opened(read_file(file), white) as (rgb, brightest, _):
        square = ImageOps.fit(rgb, (image_size, image_size), Image.Resampling.BILINEAR)
    pixels = np.asarray(square).transpose(2, 0, 1)  # (3, image_size, image_size)
    if brightest is None:
        return Decoded(pixels, False, int(pixels.max()))
    return Decoded(pixels, True, brightest)


def shrink(data: bytes, side: int, white: int = WHITE) -> Shrunk:
    """Any image as an upright RGB JPEG, its short side at most `side`; what is one already stays as it is.

    Args:
        data: content of a file, see `decode`.
        side: longest that the short side may be, pixels.
        white: as in `decode`.

    Raises:
        ValueError: as `decode`.

    >>> photo = io.BytesIO()
    >>> Image.new("CMYK", (60, 40)).save(photo, "JPEG")
    >>> shrink(photo.getvalue(), side=20)[1:3]  # height and width
    (20, 30)
    """
    with _opened(data, white) as (rgb, brightest, is_jpeg):
        W, H = rgb.size
        deep, brightest = brightest is not None, brightest or max(high for _, high in rgb.getextrema())
        if min(W, H) > side:
            scale = side / min(W, H)
            rgb = rgb.resize((round(W * scale), round(H * scale)), Image.Resampling.BILINEAR)
        elif is_jpeg:
            return Shrunk(data, H, W, deep, brightest)
        out = io.BytesIO()
        rgb.save(out, "JPEG", quality=QUALITY, comment=b"")
        return Shrunk(out.getvalue(), rgb.height, rgb.width, deep, brightest)


@contextlib.contextmanager
def _opened(data: bytes, white: int) -> Iterator[tuple[Image.Image, int | None, bool]]:
    """An image upright in RGB; the brightest value of grey of 16 bits; whether `data` is just that, as JPEG.

    What goes wrong, here or in the block, is a ValueError.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            large = image.width * image.height > LARGE
            with _one_large if large else contextlib.nullcontext():
                upright = _upright(image)
                rgb, brightest = _to_rgb(upright, white)
                yield rgb, brightest, (image.format, image.mode) == ("JPEG", "RGB") and upright is image
    except UnidentifiedImageError:
        heic = data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"msf1")
        hint = ", but HEIC, which takes `pip install pillow-heif`" if heic else ""
        raise ValueError(f"not an image of a format that Pillow reads{hint}") from None
    except Exception as error:  # Pillow's readers raise nearly anything when a file is damaged
        bomb = isinstance(error, Image.DecompressionBombError)
        hint = "; DCOPY_MEGAPIXELS=500 lets larger ones in" if bomb else ""
        reason = f"{str(error) or type(error).__name__}{hint}"
        raise ValueError(f"not a readable image ({reason})") from error


def read_file(file: Path) -> bytes:
    """The content of a file.

    Raises:
        ValueError: it is no file, or cannot be opened.
    """
    try:
        if file.is_file():
            return file.read_bytes()
        broken = file.is_symlink() and not file.exists()
    except OSError as error:
        raise ValueError(f"cannot be opened ({error.strerror})") from error
    raise ValueError("a link to a file that is not there" if broken else "not a file")


def _upright(image: Image.Image) -> Image.Image:
    """Turn an image by the orientation alone: the rest of the EXIF data may be beyond Pillow."""
    image.load()  # PNG may hold EXIF data behind the pixels; TIFF is turned here
    orientation = None
    with contextlib.suppress(Exception):  # EXIF data that cannot be read turn nothing
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    turn = TURNS.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image, white: int) -> tuple[Image.Image, int | None]:
    """The image in RGB, and the brightest value of grey of 16 bits."""
    brightest = None
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion would clip at 255
        values = np.asarray(image)
        brightest = int(values.max())
        if values.min() < 0 or brightest > 65535:
            raise ValueError("grey values beyond 16 bits")
        image = Image.fromarray((np.minimum(values, white) * (255 / white)).round().astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is not known")
    if "transparency" in image.info or image.mode in ("LA", "PA", "RGBA"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB"), brightest
