"""A folder of images, with captions in text files beside them."""

import os
import warnings
from hashlib import blake2b
from typing import Any

import numpy as np

from .errors import DataError, MissingData
from .sample import Stored
from .shard_index import IMAGE_FIELDS
from .table import ColumnMap, Row, Table, base_of

IMAGE_ENDINGS = (*(f".{name}" for name in IMAGE_FIELDS[1:]), ".jxl", ".heic")
CAPTION_ENDINGS = (".txt", ".caption")
"""Endings of the files that hold a caption, in any case of letters; the first found counts."""

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
        if not data.removeprefix(b"\xef\xbb\xbf").strip():
            raise MissingData(
                f"{self.path} is empty: write a caption into it, or give caption_default='' to "
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
    9 bytes an image.

    Args:
        path: The folder.
        captions: Whether captions are looked for.

    Raises:
        ValueError: There is no image.
    """

    def __init__(self, path: str, captions: bool = True) -> None:
        self.path = self.base = path
        images, texts = _find_files(path)
        if not images:
            raise ValueError(
                f"no image ({', '.join(IMAGE_ENDINGS)}) in the folder {path} or in one in it"
            )
        # For each image, the names of the caption files by ending; "" where there is none.
        found = [texts.pop(_stem(name), "") if captions else "" for name in images]
        kinds = {ending: i + 1 for i, ending in enumerate(sorted({e for e in found if e}))}
        self._endings = ["", *kinds]
        self._kinds = bytes(0) if not kinds else bytes([kinds.get(e, 0) for e in found])
        if captions and texts:
            paired = {_stem(name) for name in images}
            _warn_alone(path, [stem + e for stem, e in texts.items() if stem not in paired])
        encoded = [name.encode(*_TEXT) for name in images]
        self._names = b"".join(encoded)
        self._ends = np.cumsum([len(name) for name in encoded], dtype=np.int64).data
        self.map = ColumnMap("image", ("caption",) if self._kinds else (), False)
        self.digest = blake2b(
            b"\0".join(base_of(name).encode(*_TEXT) for name in images) + self._kinds,
            digest_size=8,
        ).hexdigest()

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
                CaptionFile(path + self._endings[kind])
                if kind
                else Missing(
                    f"there is no caption beside {os.path.join(self.path, name)}: write "
                    f"{path}.txt, or give caption_default='' to .decode() or "
                    "text_to_image_dataset()"
                )
            )
        return row

    def name(self, i: int) -> str:
        """Return the path of an image, relative to the folder."""
        start = self._ends[i - 1] if i else 0
        return self._names[start : self._ends[i]].decode(*_TEXT)


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]


def _find_files(root: str) -> tuple[list[str], dict[str, str]]:
    """Return the images' paths relative to ``root``, sorted, and stem to ending of each caption."""
    images: list[str] = []
    texts: dict[str, str] = {}
    seen: set[tuple[int, int]] = set()
    folders = [""]
    while folders:
        folder = folders.pop()
        stat = os.stat(os.path.join(root, folder))
        if (stat.st_dev, stat.st_ino) in seen:  # a link to a folder around it
            continue
        seen.add((stat.st_dev, stat.st_ino))
        with os.scandir(os.path.join(root, folder)) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                path = folder + entry.name
                ending = os.path.splitext(entry.name)[1]
                if ending.lower() in IMAGE_ENDINGS:
                    images.append(path)
                elif ending.lower() in CAPTION_ENDINGS:
                    stem = path[: -len(ending)]
                    texts[stem] = min(texts.get(stem, ending), ending, key=_rank)
                elif entry.is_dir():
                    folders.append(path + "/")
    return sorted(images), texts


def _rank(ending: str) -> tuple[int, str]:
    return CAPTION_ENDINGS.index(ending.lower()), ending


def _warn_alone(folder: str, names: list[str]) -> None:
    if names:
        first = os.path.join(folder, min(names))
        warnings.warn(
            f"{len(names)} text file(s) in {folder} have no image of the same name beside them, "
            f"such as {first}: they are passed over",
            stacklevel=4,
        )
