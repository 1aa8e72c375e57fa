"""Which row of a shard's ``.npy`` is which sample's: img2dataset's keys, ``00012`` + ``0034``."""

import re
from collections.abc import Sequence

import numpy as np

from ..pipes.errors import DataError
from ..pipes.urls import TAR_ENDINGS, base_name

MOST_ROWS = 10_000_000
"""Rows that one shard's file may have: more come from keys that were cut at the wrong digit."""

_DIGITS = re.compile(r"[0-9]+")


def shard_digits(url: str) -> str:
    """Return the last number in a shard's name, as it is written: "00012" of ``a/00012.tar``.

    Raises:
        ValueError: Its name has none.
    """
    name = base_name(url)
    ending = next((e for e in sorted(TAR_ENDINGS, key=len)[::-1] if name.endswith(e)), "")
    found = _DIGITS.findall(name.removesuffix(ending))
    if not found:
        raise ValueError(
            f"{url} has no number in its name, by which its embeddings' file could be called: name "
            "shards such as 00012.tar"
        )
    return str(found[-1])


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
            shard's number, with which each key must begin.

    Raises:
        DataError: A key has no index, or two have the same.
    """
    names = [key.rpartition("/")[2] for key in keys]
    width = index_width
    if width is None and names:
        width = len(names[0]) - len(shard_digits(url))
    rows = np.empty(len(names), np.int64)
    seen: dict[int, int] = {}
    for i, name in enumerate(names):
        tail = _tail(name, shard_digits(url) if index_width is None else "", width or 0)
        if not tail or int(tail) >= MOST_ROWS:
            raise DataError(
                f"key {keys[i]!r} of {url} has no index: expected "
                + (
                    f"{shard_digits(url)!r} and then digits, as of img2dataset; say how many "
                    "digits at the end are the index with --index_width"
                    if index_width is None
                    else f"{index_width} digits at its end, of a number below {MOST_ROWS:,}"
                )
                + ", or number the samples as they come with --rows ordinal where that is offered"
            )
        rows[i] = int(tail)
        if (other := seen.setdefault(int(tail), i)) != i:
            raise DataError(
                f"keys {keys[other]!r} and {keys[i]!r} of {url} have the same index {int(tail)} in "
                f"their last {width} digits: give a larger --index_width"
            )
    return rows


def _tail(name: str, prefix: str, width: int) -> str:
    """Return the last ``width`` digits of a key that begins with ``prefix``; "" where it cannot."""
    tail = name[len(name) - width :] if 0 < width <= len(name) else ""
    fits = name.startswith(prefix) and (not prefix or len(name) == len(prefix) + width)
    return tail if fits and tail.isascii() and tail.isdigit() else ""
