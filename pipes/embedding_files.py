"""Which .npy file belongs to which tar."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .remote import Remote
from .retry import explained, retry
from .urls import TAR_ENDINGS, base_name, expand_urls, local_path

NPY = ".npy"
LAST_DIGITS = re.compile(r"[0-9]+$")


def tar_digits(url: str) -> str:
    """Return the digits with which the stem of a tar's name ends: "00012" of ``a-00012.tar``.

    Raises:
        ValueError: There are none.
    """
    found = LAST_DIGITS.search(stem(url))
    if found is None:
        raise ValueError(
            f"{url} has no number at the end of its name, which would say which .npy file lies "
            "beside it: expected a name such as 00012.tar or shard-00012.tar"
        )
    return found[0]


def stem(url: str) -> str:
    """Return the name of a shard without its ending; that of ``pipe:cat a/0.tar -`` is "0"."""
    name = base_name(url)
    for ending in sorted(TAR_ENDINGS, key=len, reverse=True):
        if name.endswith(ending):
            return name[: -len(ending)]
    return name.partition(".")[0]


def npy_number(url: str) -> int | None:
    """Return the number of a .npy file: behind the last ``_`` of its stem, or all of it."""
    name = base_name(url)
    digits = name[: -len(NPY)].rpartition("_")[2]
    return int(digits) if name.endswith(NPY) and digits.isascii() and digits.isdigit() else None


def list_embeddings(
    url: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], remote: Remote
) -> dict[int, str]:
    """Return the .npy files at ``url`` by their numbers; other files are passed over.

    Args:
        url: A folder; or a pattern of files, or several, as `expand_urls` takes them.
        remote: How remote files are reached.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: There is no file with a number, or two have one.
    """
    if isinstance(url, str | os.PathLike) and _is_folder(os.fspath(url)):
        names = _files_in(os.fspath(url), remote)
    else:
        names = expand_urls(url, options=remote.options)
    found: dict[int, str] = {}
    for name in sorted(names):
        number = npy_number(name)
        if number is None:
            continue
        if number in found:
            raise ValueError(
                f"{found[number]} and {name} have one number, {number}: which of them lies beside "
                "that tar? Give a pattern that matches one kind of file, such as img_emb_*.npy"
            )
        found[number] = name
    if not found:
        raise ValueError(f"no .npy files with numbers, such as img_emb_0001.npy, in {url!r}")
    return found


def _is_folder(url: str) -> bool:
    path = local_path(url)
    if path is not None and os.path.isdir(path):
        return True
    return not url.endswith(NPY) and not re.search(r"[*?{]", url)


def _files_in(folder: str, remote: Remote) -> list[str]:
    path = local_path(folder)
    if path is not None:
        try:
            with os.scandir(path) as found:
                return [e.path for e in found if e.is_file() and not e.name.startswith(".")]
        except FileNotFoundError as error:
            raise FileNotFoundError(f"there is no folder of embeddings at {folder}") from error

    def listed() -> list[Any]:
        fs, inside = remote.filesystem(folder)
        fs.invalidate_cache(inside)
        entries: list[Any] = fs.ls(inside, detail=True)
        return entries

    try:
        entries = retry(listed)
    except Exception as error:
        raise explained(folder, error) from error
    names = [base_name(e["name"]) for e in entries if e["type"] == "file"]
    return [f"{folder.rstrip('/')}/{name}" for name in names if not name.startswith(".")]


def pair(
    urls: Sequence[str], files: Mapping[int, str], where: str, missing_is_error: bool
) -> dict[str, str]:
    """Return the digits of each tar, by its URL.

    Args:
        urls: The tars.
        files: The .npy files by their numbers.
        where: What errors call the place of the files.
        missing_is_error: Whether each tar must have a file; otherwise one of them must.

    Raises:
        ValueError: A tar has no number or no file, or two tars have one number.
    """
    digits = {url: tar_digits(url) for url in urls}
    seen: dict[int, str] = {}
    for url, number in digits.items():
        other = seen.setdefault(int(number), url)
        if other != url:
            raise ValueError(
                f"{other} and {url} have one number, and one file of embeddings cannot be both's: "
                "join each set of tars with its own embeddings, and mix them then"
            )
    lacking = [url for number, url in seen.items() if number not in files]
    if lacking and (missing_is_error or len(lacking) == len(seen)):
        few = ", ".join(lacking[:5]) + (", …" if len(lacking) > 5 else "")
        raise ValueError(
            f"{len(lacking)} of {len(seen)} tars have no .npy file of their number in {where} "
            f"(it has {_range(files)}): {few}. Put the files there, leave the tars out with "
            "start= and end=, or pass on_missing='skip' to pass their samples over"
        )
    return digits


def _range(files: Mapping[int, str]) -> str:
    first, last = (base_name(files[n]) for n in (min(files), max(files)))
    return first if len(files) == 1 else f"{len(files)} files, {first} to {last}"
