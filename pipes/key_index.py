"""Which row of an array of embeddings a sample's key names."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .embedding_files import LAST_DIGITS
from .errors import DataError

_BEYOND = 1 << 62
"""Stands for rows that no file has and that int64 does not hold."""


@dataclass(frozen=True)
class KeyIndex:
    """Finds the row that a sample's key names.

    Attributes:
        index_width: Number of last characters of the key that are the index.
        shard_width: Number of first characters of the key that are not. With neither, the key must
            begin with the digits of its tar's name, and the rest is the index.
    """

    index_width: int | None = None
    shard_width: int | None = None

    def __post_init__(self) -> None:
        if self.index_width is not None and self.shard_width is not None:
            raise ValueError(
                "index_width counts the last characters of a key, shard_width the first ones that "
                "are left out: give one of them"
            )
        for name in ("index_width", "shard_width"):
            width = getattr(self, name)
            if width is not None and width < (name == "index_width"):
                raise ValueError(f"{name} is a number of characters, got {width}")

    def row(self, key: str, digits: str) -> int:
        """Return the row that ``key`` names.

        Args:
            key: A sample's key.
            digits: Those of its tar's name.

        Raises:
            DataError: It names none, or one of another tar.
        """
        base = key.rpartition("/")[2]
        if self.index_width is not None:
            head, tail = base[: -self.index_width], base[-self.index_width :]
        elif self.shard_width is not None:
            head, tail = base[: self.shard_width], base[self.shard_width :]
        elif base.startswith(digits):
            head, tail = digits, base[len(digits) :]
        else:
            raise DataError(
                f"key {key!r} does not begin with the digits of its tar, {digits!r}: say with "
                "index_width=… how many of its last characters are the index"
            )
        if not (tail.isascii() and tail.isdigit()):
            raise DataError(
                f"key {key!r} has no index: {tail!r} is no number, with {self._words(digits)}"
            )
        shard = LAST_DIGITS.search(head)
        if shard is not None and int(shard[0]) != int(digits):
            raise DataError(
                f"key {key!r} is of shard {int(shard[0])} and stands in tar {int(digits)}, with "
                f"{self._words(digits)}: the row would be another image's. Where these digits are "
                "part of the index, give another index_width"
            )
        return int(tail)

    def _words(self, digits: str) -> str:
        if self.index_width is not None:
            return f"index_width={self.index_width}"
        width = len(digits) if self.shard_width is None else self.shard_width
        return f"the first {width} characters for the shard"

    def rows(self, keys: Sequence[str], digits: str) -> np.ndarray:
        """Return the row of each key, int64; -1 where `row` raises.

        Raises:
            DataError: Two keys name one row; or, where no width is given, keys do not all begin
                with the tar's digits and go on with equally many.
        """
        rows = np.empty(len(keys), np.int64)
        for i, key in enumerate(keys):
            try:
                rows[i] = min(self.row(key, digits), _BEYOND)
            except DataError:
                if self.index_width is None and self.shard_width is None:
                    raise
                rows[i] = -1
        if self.index_width is None and self.shard_width is None and keys:
            self._refuse_uneven(keys)
        self._refuse_twins(keys, rows)
        return rows

    @staticmethod
    def _refuse_uneven(keys: Sequence[str]) -> None:
        # Keys without a shard's digits may begin with them by chance: 1, 10, 11 in 1.tar.
        bases = [key.rpartition("/")[2] for key in keys]
        other = next((b for b in bases if len(b) != len(bases[0])), None)
        if other is not None:
            raise DataError(
                f"keys {bases[0]!r} and {other!r} differ in length, so it is not certain that they "
                "begin with their tar's number: say with index_width=… how many of their last "
                "characters are the index"
            )

    @staticmethod
    def _refuse_twins(keys: Sequence[str], rows: np.ndarray) -> None:
        order = np.argsort(rows, kind="stable")
        same = np.flatnonzero((rows[order][1:] == rows[order][:-1]) & (rows[order][1:] >= 0))
        for at in same.tolist():
            one, other = keys[order[at]], keys[order[at + 1]]
            if one != other:
                raise DataError(
                    f"keys {one!r} and {other!r} both name row {rows[order[at]]}: the index is "
                    "wider; give another index_width"
                )
