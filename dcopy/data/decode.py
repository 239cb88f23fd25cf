"""One image file to one square of RGB pixels, whatever its format and mode."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError


def decode(file: Path, image_size: int) -> np.ndarray:
    """Decode one image: turned by its EXIF data, RGB, short side resized, centre kept.

    Grey of 16 bits is scaled to 8; transparent pixels lie on white; of a film the first picture
    is taken. Resizing is bilinear and antialiased.

    Args:
        file: an image in any format that Pillow reads.
        image_size: side of the result, pixels.

    Returns:
        (3, image_size, image_size) uint8.

    Raises:
        ValueError: not an image, or damaged, or larger than `PIL.Image` takes for honest.
        OSError: the file cannot be opened.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("CMYK", (60, 40)).save(f"{folder}/photo.jpg")
    ...     decode(Path(folder, "photo.jpg"), image_size=32).shape
    (3, 32, 32)
    """
    data = file.read_bytes()
    try:
        with Image.open(io.BytesIO(data)) as image:
            rgb = _to_rgb(ImageOps.exif_transpose(image))
            square = ImageOps.fit(rgb, (image_size, image_size), Image.Resampling.BILINEAR)
    except UnidentifiedImageError:
        raise ValueError("not an image of a format that Pillow reads") from None
    except Exception as error:  # Pillow's readers raise nearly anything when a file is damaged
        raise ValueError(f"not a readable image ({str(error) or type(error).__name__})") from error
    return np.asarray(square).transpose(2, 0, 1)  # (3, image_size, image_size)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion would clip at 255
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("grey values beyond 16 bits")
        image = Image.fromarray((values / 257).round().astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is not known")
    if "transparency" in image.info or image.mode in ("LA", "PA", "RGBA"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
