"""A folder, here or at a URL: which images and captions are in it."""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from .draws import hash64
from .file_cache import FileCache, RemoteFile
from .remote import _VERSIONS, Remote, number_of
from .retry import explained, retry
from .shard_index import IMAGE_FIELDS

IMAGE_ENDINGS = (*(f".{name}" for name in IMAGE_FIELDS[1:]), ".jxl", ".heic")
CAPTION_ENDINGS = (".txt", ".caption")
"""Endings of the files that hold a caption, in any case of letters; the first found counts."""


class Found:
    """The files of a folder and of all folders in it that are images or captions.

    Attributes:
        images: Paths relative to the folder.
        texts: A caption's path without its ending, to the ending.
    """

    def __init__(self) -> None:
        self.images: list[str] = []
        self.texts: dict[str, str] = {}

    def take(self, path: str) -> bool:
        """Return whether the file at ``path`` is one of them, and keep it."""
        stem, ending = os.path.splitext(path)
        if ending.lower() in IMAGE_ENDINGS:
            self.images.append(path)
        elif ending.lower() in CAPTION_ENDINGS:
            self.texts[stem] = min(self.texts.get(stem, ending), ending, key=_rank)
        else:
            return False
        return True


def _rank(ending: str) -> tuple[int, str]:
    return CAPTION_ENDINGS.index(ending.lower()), ending


class Folder(ABC):
    """What `Opening` asks of a folder.

    Attributes:
        path: The folder's path or URL, without a slash at the end.
    """

    path: str

    @property
    @abstractmethod
    def files(self) -> set[str]:
        """Names of the files directly in it."""

    @abstractmethod
    def has(self, name: str) -> bool:
        """Return whether a file of this name is directly in it."""

    @abstractmethod
    def inner(self) -> "dict[str, Folder]":
        """Return the folders directly in it, by name, but for hidden ones."""

    @abstractmethod
    def json(self, name: str) -> Any:
        """Return what a JSON file in it holds."""

    @abstractmethod
    def find(self) -> Found:
        """Return its images and captions; hidden files and folders are passed over."""

    def join(self, name: str) -> str:
        """Return the path or URL of what is in it."""
        return f"{self.path.rstrip('/')}/{name}"


class LocalFolder(Folder):
    """A folder of this machine; links are followed."""

    def __init__(self, path: str) -> None:
        self.path = path

    @property
    def files(self) -> set[str]:
        with os.scandir(self.path) as entries:
            return {entry.name for entry in entries if not entry.is_dir()}

    def has(self, name: str) -> bool:
        return os.path.isfile(self.join(name))

    def inner(self) -> dict[str, Folder]:
        with os.scandir(self.path) as entries:
            shown = [e for e in entries if not e.name.startswith(".") and e.is_dir()]
        return {entry.name: LocalFolder(entry.path) for entry in shown}

    def json(self, name: str) -> Any:
        with open(self.join(name), "rb") as file:
            return json.load(file)

    def find(self) -> Found:
        found = Found()
        seen: set[tuple[int, int]] = set()
        folders = [""]
        while folders:
            folder = folders.pop()
            stat = os.stat(os.path.join(self.path, folder))
            if (stat.st_dev, stat.st_ino) in seen:  # a link to a folder around it
                continue
            seen.add((stat.st_dev, stat.st_ino))
            with os.scandir(os.path.join(self.path, folder)) as entries:
                for entry in entries:
                    path = folder + entry.name
                    if not entry.name.startswith(".") and not found.take(path) and entry.is_dir():
                        folders.append(path + "/")
        return found


class RemoteFolder(Folder):
    """A folder at a URL, listed once, with the folders in it.

    Args:
        url: The folder.
        listed: The paths of all files in it, relative to it, and 64 bits that tell each one's
            versions apart.
        remote: How it is reached.
        cache: Folder of the cache.
    """

    def __init__(
        self, url: str, listed: Mapping[str, int], remote: Remote, cache: str | None
    ) -> None:
        self.path = url.rstrip("/")
        self.listed = listed
        self.remote = remote
        self.cache = cache

    @classmethod
    def list(cls, url: str, remote: Remote, cache: str | None) -> "RemoteFolder":
        """Return the folder at ``url``; it has no files where there is none.

        Raises:
            OSError: It cannot be listed.
        """

        def ask() -> tuple[str, dict[str, Any]]:
            fs, inside = remote.filesystem(url)
            fs.invalidate_cache()
            root: str = fs._strip_protocol(inside).rstrip("/") + "/"
            return root, fs.find(root, detail=True)

        try:
            root, found = retry(ask)
        except FileNotFoundError:
            root, found = "", {}
        except Exception as error:
            raise explained(url, error) from error
        shown = ((path.removeprefix(root), info) for path, info in found.items())
        listed = {p: _version(i) for p, i in shown if p and not _is_hidden(p)}
        return cls(url, listed, remote, cache)

    @property
    def files(self) -> set[str]:
        return {path for path in self.listed if "/" not in path}

    def has(self, name: str) -> bool:
        return name in self.listed

    def inner(self) -> dict[str, Folder]:
        parts: dict[str, dict[str, int]] = {}
        for path, version in self.listed.items():
            name, slash, rest = path.partition("/")
            if slash:
                parts.setdefault(name, {})[rest] = version
        return {n: RemoteFolder(self.join(n), p, self.remote, self.cache) for n, p in parts.items()}

    def json(self, name: str) -> Any:
        return json.loads(self.file(name).read())

    def file(self, name: str) -> RemoteFile:
        """Return a file in it, as it was when it was listed."""
        version = f"{self.listed[name]:016x}"
        files = FileCache(self.cache, None, self.remote)
        return RemoteFile(self.join(name), files, version=version)

    def find(self) -> Found:
        found = Found()
        for path in self.listed:
            found.take(path)
        return found


def _is_hidden(path: str) -> bool:
    return path.startswith(".") or "/." in path


def _version(info: Mapping[str, Any]) -> int:
    """Return 64 bits of what a filesystem says of a file: its size, and its ETag or its time."""
    mark = next((f"{name}={info[name]}" for name in _VERSIONS if info.get(name)), "")
    return hash64(int(info.get("size") or 0), number_of(mark))
