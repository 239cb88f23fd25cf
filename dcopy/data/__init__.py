"""Data sets, folders of images, and the augmentation that makes views of them."""

from .checks import check_images, fingerprint, why_no_probe
from .datasets import ImageData, describe, load

__all__ = ["ImageData", "check_images", "describe", "fingerprint", "load", "why_no_probe"]
