"""Which row of a shard's ``.npy`` is which sample's: img2dataset's keys, ``00012`` + ``0034``."""

import re
from collections.abc import Sequence

import numpy as np

from ..pipes.errors import DataError
from ..pipes.urls import TAR_ENDINGS, base_name

MOST_ROWS = 10_000_000
"""Rows that one shard's file may have: more come from keys that were cut at the wrong digit."""

_DIGITS = re.compile(r"[0-9]+$")


def shard_digits(url: str) -> str:
    """Return the digits at the end of a shard's name, as they stand: "00012" of ``x-00012.tar``.

    Raises:
        ValueError: There are none.
    """
    name = base_name(url)
    ending = next((e for e in sorted(TAR_ENDINGS, key=len)[::-1] if name.endswith(e)), "")
    found = _DIGITS.search(name.removesuffix(ending))
    if found is None:
        raise ValueError(
            f"{url} has no number at the end of its name, by which its embeddings' file could be "
            "called: name shards such as 00012.tar"
        )
    return found[0]


def numbered_shards(urls: Sequence[str]) -> dict[int, str]:
    """Return the URLs of shards by the number in their names.

    Raises:
        ValueError: A name has no number, or two have the same.
    """
    found: dict[int, str] = {}
    for url in urls:
        number = int(shard_digits(url))
        if number in found:
            raise ValueError(
                f"{found[number]} and {url} are both shard {number}: their embeddings would go "
                "into one file; do them one after the other, into folders of their own"
            )
        found[number] = url
    return found


def index_rows(url: str, keys: Sequence[str], index_width: int | None = None) -> np.ndarray:
    """Return the row of each of a shard's samples, by the index in its key, int64 [samples].

    Args:
        url: The shard.
        keys: Its samples' keys; folders in them are passed over.
        index_width: How many digits at the end of a key are the index; None: those behind the
            shard's number, with which all keys must begin.

    Raises:
        DataError: A key has no index, names another shard, or two have the same index.
    """
    digits = shard_digits(url)
    names = [key.rpartition("/")[2] for key in keys]
    width = index_width or max(0, len(names[0]) - len(digits) if names else 0)
    rows = np.empty(len(names), np.int64)
    seen: dict[int, int] = {}
    for i, name in enumerate(names):
        row = _index(name, digits, width, index_width is None)
        if row is None:
            wanted = f"{digits!r} and then {width} digits, as of img2dataset"
            if index_width is not None:
                wanted = f"{width} digits at its end, and none before them but those of the shard"
            raise DataError(
                f"key {keys[i]!r} of {url} does not name a row: expected {wanted}, and a number "
                f"below {MOST_ROWS:,}; say with --index_width how many of its last digits do"
            )
        rows[i] = row
        if (other := seen.setdefault(row, i)) != i:
            raise DataError(
                f"keys {keys[other]!r} and {keys[i]!r} of {url} have the same index {row} in "
                f"their last {width} digits: give a larger --index_width"
            )
    return rows


def _index(name: str, digits: str, width: int, whole: bool) -> int | None:
    """Return the number in the last ``width`` digits of a key, None where it is no index.

    What stands before them must be ``digits`` (``whole``), or not end in another shard's number.
    """
    head, tail = name[: max(0, len(name) - width)], name[max(0, len(name) - width) :]
    if len(tail) < width or not (tail.isascii() and tail.isdigit()) or int(tail) >= MOST_ROWS:
        return None
    if whole:
        return int(tail) if head == digits else None
    shard = _DIGITS.search(head)
    return None if shard is not None and int(shard[0]) != int(digits) else int(tail)
