"""A folder of images, with captions in text files beside them."""

import os
import warnings
from array import array
from hashlib import blake2b
from itertools import accumulate
from typing import Any

from .errors import DataError, MissingData
from .file_cache import FileCache, RemoteFile
from .folder import IMAGE_ENDINGS, Folder, RemoteFolder
from .sample import Stored
from .table import ColumnMap, Row, Table, base_of

MOST_NAMED = 100
"""Text files without an image that are kept by name."""

_TEXT = ("utf-8", "surrogateescape")


class CaptionFile(Stored):
    """The caption in a text file.

    Args:
        path: The file.
    """

    __slots__ = ("path",)

    def __init__(self, path: str) -> None:
        self.path = path

    def read(self) -> bytes:
        """Return the file's bytes.

        Raises:
            MissingData: It is gone, or empty.
            OSError: It cannot be read.
        """
        try:
            with open(self.path, "rb") as file:
                data = file.read()
        except FileNotFoundError:
            raise MissingData(f"{self.path} was there when this run began, and is gone") from None
        return _not_empty(data, self.path)


class RemoteCaption(RemoteFile):
    """The caption in a text file at a URL."""

    __slots__ = ()

    def read(self) -> bytes:
        """Return the file's bytes.

        Raises:
            MissingData: It is empty.
            DataError: It is gone, or refused.
            OSError: It cannot be fetched.
        """
        return _not_empty(super().read(), self.url)


def _not_empty(data: bytes, path: str) -> bytes:
    if not data.removeprefix(b"\xef\xbb\xbf").strip():
        raise MissingData(
            f"{path} is empty: write a caption into it, or give caption_default='' to "
            ".decode() or text_to_image_dataset()"
        )
    return data


class Missing(Stored):
    """A field that its sample lacks, where others have it.

    Args:
        reason: What is missing, and where.
        kind: The error that says so; a default takes the place of `MissingData` alone.
    """

    __slots__ = ("kind", "reason")

    def __init__(self, reason: str, kind: type[DataError] = MissingData) -> None:
        self.reason = reason
        self.kind = kind

    def read(self) -> bytes:
        """Raise the error that says what is missing."""
        raise self.kind(self.reason)


class FolderTable(Table):
    """The images of a folder and of all folders in it, in the order of their paths.

    A caption lies beside its image: ``cats/1.jpg`` has that of ``cats/1.txt`` and no other's.
    Hidden files and folders are passed over; links are followed. Costs the length of the paths and
    9 bytes an image; at a URL 16 more.

    Attributes:
        alone: How many text files have no image beside them, and the first of their paths.

    Args:
        folder: The folder.
        captions: Whether captions are looked for.

    Raises:
        ValueError: There is no image.
    """

    def __init__(self, folder: Folder, captions: bool = True) -> None:
        self.path = self.base = folder.path
        files = folder.find()
        images, texts = sorted(files.images), files.texts
        if not images:
            raise ValueError(
                f"no image ({', '.join(IMAGE_ENDINGS)}) in the folder {self.path} or in one in it; "
                "tar shards are read by ShardLister(…).read_tar()"
            )
        # For each image, the names of the caption files by ending; "" where there is none.
        found = [texts.pop(_stem(name), "") if captions else "" for name in images]
        kinds = {ending: i + 1 for i, ending in enumerate(sorted({e for e in found if e}))}
        self._endings = ["", *kinds]
        self._kinds = bytes(0) if not kinds else bytes([kinds.get(e, 0) for e in found])
        self.alone = _alone(self.path, images, texts) if captions else (0, [])
        encoded = [name.encode(*_TEXT) for name in images]
        self._names = b"".join(encoded)
        self._ends = array("q", accumulate(map(len, encoded)))
        self.map = ColumnMap("image", ("caption",) if self._kinds else (), False)
        self.digest = blake2b(
            b"\0".join(base_of(name).encode(*_TEXT) for name in images) + self._kinds,
            digest_size=8,
        ).hexdigest()
        self._far = RemoteNames(folder, images, found) if isinstance(folder, RemoteFolder) else None

    def __len__(self) -> int:
        return len(self._ends)

    def fragment(self, i: int) -> str:
        return ""

    def row(self, i: int) -> Row:
        name = self.name(i)
        row: dict[str, Any] = {"image": name}
        if self._kinds:
            kind = self._kinds[i]
            path = os.path.join(self.path, _stem(name))
            row["caption"] = (
                self._caption(i, path + self._endings[kind])
                if kind
                else Missing(
                    f"there is no caption beside {os.path.join(self.path, name)}: write "
                    f"{path}.txt, or give caption_default='' to .decode() or "
                    "text_to_image_dataset()"
                )
            )
        return row

    def _caption(self, i: int, path: str) -> Stored:
        return CaptionFile(path) if self._far is None else self._far.caption(i, path)

    def image_version(self, i: int) -> tuple[int, int]:
        return (0, 0) if self._far is None else (self._far.images[i], 0)

    def name(self, i: int) -> str:
        """Return the path of an image, relative to the folder."""
        start = self._ends[i - 1] if i else 0
        return self._names[start : self._ends[i]].decode(*_TEXT)


class RemoteNames:
    """What tells the versions of a remote folder's files apart, and how they are reached.

    Args:
        folder: The folder.
        images: Paths of the images.
        endings: The ending of each one's caption, "" where there is none.
    """

    def __init__(self, folder: RemoteFolder, images: list[str], endings: list[str]) -> None:
        self._files = FileCache(folder.cache, None, folder.remote)
        listed = folder.listed
        self.images = array("Q", [listed[name] for name in images])
        captions = (_stem(n) + e if e else "" for n, e in zip(images, endings, strict=True))
        self._captions = array("Q", [listed.get(name, 0) for name in captions])

    def caption(self, i: int, url: str) -> Stored:
        """Return the caption of an image, which lies at ``url``."""
        return RemoteCaption(url, self._files, version=f"{self._captions[i]:016x}")


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]


def _alone(path: str, images: list[str], texts: dict[str, str]) -> tuple[int, list[str]]:
    """Return how many texts have no image beside them and the first of their paths; warn of them.

    Args:
        path: The folder.
        images: The images' paths.
        texts: Stem to ending of the text files that were taken for no caption.
    """
    if not texts:
        return 0, []
    paired = {_stem(name) for name in images}
    names = sorted(os.path.join(path, s + e) for s, e in texts.items() if s not in paired)
    if names:
        warnings.warn(
            f"{len(names)} text file(s) in {path} have no image of the same name beside them, "
            f"such as {names[0]}: they are passed over",
            stacklevel=4,
        )
    return len(names), names[:MOST_NAMED]
