"""Which files of embeddings and metadata there are, in which order, and which belong together."""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from .remote import Remote
from .retry import explained, retry
from .urls import base_name, local_path, natural

_NUMBER = re.compile(r"(?:^|_)([0-9]+)$|([0-9]+)$")

Folders = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
Order = Literal["number", "string"]


class NumberedFile(NamedTuple):
    """A file, and what pairs it with others.

    Attributes:
        url: The file.
        number: The number at the end of its name, such as 12 of ``img_emb_0012.npy``; or None.
        place: Which of the folders given, and the path in it.
    """

    url: str
    number: int | None
    place: str


def find_files(folders: Folders, ending: str, order: Order, remote: Remote) -> list[NumberedFile]:
    """Return the files with an ending in folders and the folders in these, in order.

    ``"number"``: by the numbers at the end of their names (2 before 10); where a number comes more
    than once, folder by folder; where a file has none, all by their paths, with numbers in these in
    numeric order. ``"string"``: by their whole paths, as text (10 before 2).

    Args:
        folders: A folder or several, local or remote; a file stands for itself.
        ending: Such as ``".npy"``. Names that begin with a dot are passed over.
        order: Which order.
        remote: How remote files are reached.

    Raises:
        FileNotFoundError: A local folder is not there.
        ValueError: No file is found, or one is found twice.
        OSError: A remote folder cannot be listed.
    """
    if order not in ("number", "string"):
        raise ValueError(f"order must be 'number' or 'string', got {order!r}")
    several = [folders] if isinstance(folders, str | os.PathLike) else list(folders)
    found: list[NumberedFile] = []
    for i, folder in enumerate(several):
        root = os.fspath(folder)
        for url in _listed(root, ending, remote):
            inside = url.removeprefix(root.rstrip("/")).rpartition("/")[0]
            found.append(NumberedFile(url, file_number(url), f"{i}{inside}"))
    if not found:
        raise ValueError(f"there are no {ending} files in {_words(several)}")
    twice = [url for url, n in Counter(local_path(f.url) or f.url for f in found).items() if n > 1]
    if twice:
        raise ValueError(f"{twice[0]} is found twice: give each folder once")
    if order == "string":
        return sorted(found, key=lambda file: file.url)
    if any(file.number is None for file in found):
        return sorted(found, key=lambda file: natural(file.url))
    if _unique(found):
        return sorted(found, key=lambda file: file.number or 0)
    return sorted(found, key=lambda f: (natural(f.place), f.number or 0, f.url))


def file_number(url: str) -> int | None:
    """Return the number at the end of a file's name, or None."""
    found = _NUMBER.search(os.path.splitext(base_name(url))[0])
    return int(found[1] or found[2]) if found else None


def pair_files(
    lists: Mapping[str, Sequence[NumberedFile]],
) -> list[tuple[NumberedFile, ...]]:
    """Return the files that have the same number, one of each list, in the order of the first list.

    Where a number comes more than once in a list, files of the same place in their folders belong
    together. One file each needs no number.

    Args:
        lists: What the files are, as errors call it, to the files.

    Raises:
        ValueError: A file has no partner, or it is not clear which; the message names it.
    """
    names, parts = list(lists), list(lists.values())
    if len(parts) == 1 or all(len(part) == 1 for part in parts):
        return list(zip(*parts, strict=True))
    for part in parts:
        for file in part:
            if file.number is None:
                raise ValueError(
                    f"{file.url} has no number at the end of its name, by which files are paired, "
                    "such as img_emb_0.npy with metadata_0.parquet"
                )
    by_place = not all(_unique(part) for part in parts)
    keyed = [_keyed(part, by_place) for part in parts]
    for name, other in zip(names[1:], keyed[1:], strict=True):
        for mine, theirs, what in ((keyed[0], other, name), (other, keyed[0], names[0])):
            lonely = [file for key, file in mine.items() if key not in theirs]
            if lonely:
                more = f" (nor have {len(lonely) - 1} more)" if len(lonely) > 1 else ""
                raise ValueError(
                    f"{lonely[0].url} has no partner{more}: there is no file of the {what} with "
                    f"the number {lonely[0].number}; restore it, or take this one away"
                )
    return [tuple(part[key] for part in keyed) for key in keyed[0]]


def _keyed(
    files: Sequence[NumberedFile], by_place: bool
) -> dict[tuple[str, int | None], NumberedFile]:
    keyed: dict[tuple[str, int | None], NumberedFile] = {}
    for file in files:
        key = file.place if by_place else "", file.number
        if key in keyed:
            raise ValueError(
                f"{keyed[key].url} and {file.url} have the same number, {file.number}: which of "
                "them is meant cannot be told; number the files through"
            )
        keyed[key] = file
    return keyed


def _unique(files: Sequence[NumberedFile]) -> bool:
    return len({file.number for file in files}) == len(files)


def _listed(folder: str, ending: str, remote: Remote) -> list[str]:
    """Return the files in a folder and the folders in it."""
    path = local_path(folder)
    if path is None:
        return [folder] if folder.endswith(ending) else _listed_remote(folder, ending, remote)
    if os.path.isfile(path):
        return [folder]
    if not os.path.isdir(path):
        raise FileNotFoundError(f"there is no folder {folder}")
    found = []
    for at, folders, names in os.walk(path, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = at.removeprefix(path).replace(os.sep, "/")
        found += [f"{folder.rstrip('/')}{inside}/{name}" for name in names if _fits(name, ending)]
    return found


def _listed_remote(folder: str, ending: str, remote: Remote) -> list[str]:
    def attempt() -> list[str]:
        fs, inside = remote.filesystem(folder)
        return list(fs.find(inside))

    try:
        paths = retry(attempt)
    except Exception as error:
        raise explained(folder, error) from error
    protocol, _, rest = folder.partition("://")
    if not rest.startswith("/"):  # the memory filesystem's begin with one
        paths = [path if "://" in path else path.lstrip("/") for path in paths]
    urls = [path if "://" in path else f"{protocol}://{path}" for path in paths]
    return [url for url in urls if _fits(base_name(url), ending)]


def _fits(name: str, ending: str) -> bool:
    return name.endswith(ending) and not name.startswith(".")


def _words(folders: Sequence[str | os.PathLike[str]]) -> str:
    return ", ".join(os.fspath(folder) for folder in folders) or "no folder"
