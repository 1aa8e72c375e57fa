"""Which row of a shard's ``.npy`` is which sample's: img2dataset's keys, ``00012`` + ``0034``."""

from collections.abc import Sequence

import numpy as np

from ..pipes.embedding_files import tar_digits
from ..pipes.errors import DataError
from ..pipes.key_index import KeyIndex

MOST_ROWS = 10_000_000
"""Rows that one shard's file may have: more come from keys that were cut at the wrong digit."""


def numbered_shards(urls: Sequence[str]) -> dict[int, str]:
    """Return the URLs of shards by the number in their names.

    Raises:
        ValueError: A name has no number, or two have the same.
    """
    found: dict[int, str] = {}
    for url in urls:
        number = int(tar_digits(url))
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
    digits, index = tar_digits(url), KeyIndex(index_width)
    advice = f"{url}; say with --index_width how many of a key's last digits are its index"
    try:
        rows = index.rows(keys, digits)
        for i in np.flatnonzero(rows < 0).tolist():
            index.row(keys[i], digits)  # raises
    except DataError as error:
        raise DataError(f"{error} (in {advice})") from error
    seen: set[int] = set()
    for key, row in zip(keys, rows.tolist(), strict=True):
        if row >= MOST_ROWS or len(key.rpartition("/")[2]) < (index_width or 0):
            raise DataError(
                f"key {key!r} does not name a row: expected {index_width or 'some'} digits at its "
                f"end, and a number below {MOST_ROWS:,} (in {advice})"
            )
        if row in seen:
            raise DataError(f"key {key!r} is there twice, and names row {row} (in {advice})")
        seen.add(row)
    return rows
