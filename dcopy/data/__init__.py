"""Data sets, folders of images, and the augmentation that makes views of them."""

from .datasets import ImageData, check_images, describe, fingerprint, load

__all__ = ["ImageData", "check_images", "describe", "fingerprint", "load"]
