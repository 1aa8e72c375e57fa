"""What a cache must know of an image's file to name what is made of it."""

from hashlib import blake2b
from typing import NamedTuple

from .image_size import JPEG, PNG, image_header


class ImageFacts(NamedTuple):
    """What an image's bytes say.

    Attributes:
        digest: BLAKE2b of all of them, 16 bytes.
        height: Of the upright image, in pixels.
        width: Of the upright image.
        alpha: Whether pixels may be transparent, so that a matte may show.
        profile: Whether there may be a colour profile.
    """

    digest: bytes
    height: int
    width: int
    alpha: bool
    profile: bool

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the upright image."""
        return self.height, self.width


def image_facts(data: bytes) -> ImageFacts:
    """Return what a file's bytes say.

    Raises:
        DataError: They are no image.
    """
    height, width = image_header(data).upright
    alpha = profile = True
    if data.startswith(JPEG):
        alpha, profile = False, b"ICC_PROFILE\0" in data
    elif data.startswith(PNG):
        before = data[: max(0, data.find(b"IDAT"))]
        alpha = data[25] not in (0, 2) or b"tRNS" in before  # 0 is grey, 2 is RGB
        profile = b"iCCP" in before
    digest = blake2b(data, digest_size=16).digest()
    return ImageFacts(digest, height, width, alpha, profile)
