"""Train, validation and test: by shard, by sample, by row, or by ranges of rows."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from hashlib import blake2b

import numpy as np

from .urls import base_name

_SPAN = 1 << 64


def split_shards(urls: list[str], splits: Mapping[str, float], split: str, seed: int) -> list[str]:
    """Return the shards of one split, in the order of ``urls``.

    All splits together have each shard once. Their numbers of shards are the exact fractions,
    rounded by largest remainder (of equal ones the first in ``splits``). The shards are dealt in an
    order drawn from the seed and their base names: neither where they lie nor the order of ``urls``
    is of any account. Only shards of one base name are told apart by the folders above them.

    Args:
        urls: All shards.
        splits: Name to fraction; the fractions sum to 1. Their order counts.
        split: Which to return.
        seed: Another one deals them anew.

    Raises:
        ValueError: If the fractions are negative or do not sum to 1, ``split`` is none of them or
            has the fraction 0, or a split with a positive fraction would get no shard.
    """
    _check(splits, split)
    counts = _counts(len(urls), splits)
    empty = [name for name, fraction in splits.items() if fraction > 0 and not counts[name]]
    if empty:
        shares = ", ".join(f"{name!r} {fraction:g}" for name, fraction in splits.items())
        raise ValueError(
            f"split {empty[0]!r} gets none of the {len(urls)} shards ({shares}); "
            'split by sample with split_by="sample", or use more shards'
        )
    order = sorted(range(len(urls)), key=lambda i: _place(urls[i], seed))
    start = 0
    for name, count in counts.items():
        if name == split:
            break
        start += count
    return [urls[i] for i in sorted(order[start : start + counts[split]])]


def split_range(rows: int, splits: Mapping[str, float], split: str) -> tuple[int, int]:
    """Return the first row of one split, and the row behind its last.

    The splits lie one behind the other in the order of ``splits``, and together have each row once.
    Each has the exact fraction of the rows, rounded down; what remains goes to the last one.

    Args:
        rows: Number of rows.
        splits: Name to fraction; the fractions sum to 1.
        split: Which to return.

    Raises:
        ValueError: If the fractions are negative or do not sum to 1, ``split`` is none of them or
            has the fraction 0, or it would get no row.
    """
    _check(splits, split)
    shares = {name: _exact(fraction) for name, fraction in splits.items() if fraction > 0}
    total, last = sum(shares.values()), list(shares)[-1]
    start = 0
    for name, share in shares.items():
        end = rows if name == last else start + int(rows * share / total)
        if name == split:
            break
        start = end
    if start == end:
        raise ValueError(f"split {split!r} ({splits[split]:g}) gets none of the {rows} rows")
    return start, end


def split_rows(
    keys: Iterable[str], splits: Mapping[str, float], split: str, seed: int
) -> np.ndarray:
    """Return the numbers of the rows of one split, rising, int64.

    All splits together have each row once. Their numbers of rows are the exact fractions, rounded
    by largest remainder, but that rows of one key stay together: the captions of one image are
    never in two splits. Rows are dealt in an order drawn from the seed and their keys.

    Args:
        keys: The key of each row: its image's path.
        splits: Name to fraction; the fractions sum to 1. Their order counts.
        split: Which to return.
        seed: Another one deals them anew.

    Raises:
        ValueError: If the fractions are negative or do not sum to 1, ``split`` is none of them or
            has the fraction 0, or a split with a positive fraction would get no row.
    """
    _check(splits, split)
    salt = _salt(seed)
    places = np.fromiter((_hash(key, salt) for key in keys), np.uint64)
    order = np.argsort(places, kind="stable")
    places = places[order]
    rows, start = order[:0], 0
    end = 0
    for name, count in _counts(len(places), splits).items():
        end += count
        stop = max(start, end)
        if count:  # to where the key changes
            stop = max(stop, int(np.searchsorted(places, places[end - 1], side="right")))
        if splits[name] > 0 and stop == start:
            raise ValueError(f"split {name!r} gets none of the {len(places)} rows: {dict(splits)}")
        if name == split:
            rows = order[start:stop]
        start = stop
    return np.sort(rows)


@dataclass(frozen=True)
class SampleSplit:
    """The keys of one split: ``key in SampleSplit(splits, split, seed)``.

    Whether a key is in depends on the seed and the key alone, so that adding data moves no sample:
    its 64-bit hash falls into one of the splits' shares of the hashes, which lie in the order of
    ``splits``. How many samples a split has is therefore only near its fraction.

    Args:
        splits: Name to fraction; the fractions sum to 1. Their order counts.
        split: Which one this is.
        seed: Another one deals the samples anew.

    Raises:
        ValueError: If the fractions are negative or do not sum to 1, or ``split`` is none of them
            or has the fraction 0.
    """

    splits: Mapping[str, float] = field(hash=False)
    split: str
    seed: int
    _low: int = field(init=False, repr=False, compare=False)
    _high: int = field(init=False, repr=False, compare=False)
    _salt: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check(self.splits, self.split)
        names = list(self.splits)
        shares = [_exact(fraction) for fraction in self.splits.values()]
        at = names.index(self.split)
        total = sum(shares)
        object.__setattr__(self, "_low", int(sum(shares[:at]) * _SPAN / total))
        object.__setattr__(self, "_high", int(sum(shares[: at + 1]) * _SPAN / total))
        object.__setattr__(self, "_salt", _salt(self.seed))

    def __contains__(self, key: str) -> bool:
        """Return whether the sample with this key is in the split."""
        return self._low <= _hash(key, self._salt) < self._high


def _check(splits: Mapping[str, float], split: str) -> None:
    for name, fraction in splits.items():
        if not fraction >= 0:  # nan too
            raise ValueError(f"the fraction of split {name!r} must be at least 0, got {fraction}")
    total = math.fsum(splits.values())
    if not math.isclose(total, 1):
        raise ValueError(
            f"the fractions of the splits must sum to 1, got {total:g}: {dict(splits)}"
        )
    if split not in splits:
        raise ValueError(f"no split {split!r}; there are {', '.join(map(repr, splits))}")
    if splits[split] == 0:
        raise ValueError(f"split {split!r} has the fraction 0: it is empty")


def _exact(fraction: float) -> Fraction:
    """Return the number that was typed: 0.1 as 1/10, not as the nearest binary float."""
    return Fraction(repr(float(fraction)))


def _counts(shards: int, splits: Mapping[str, float]) -> dict[str, int]:
    """Return how many of the shards each split gets, by largest remainder."""
    shares = {name: _exact(fraction) for name, fraction in splits.items()}
    total = sum(shares.values())
    quotas = {name: shards * share / total for name, share in shares.items()}
    counts = {name: int(quota) for name, quota in quotas.items()}
    by_remainder = sorted(counts, key=lambda name: counts[name] - quotas[name])
    for name in by_remainder[: shards - sum(counts.values())]:
        counts[name] += 1
    return counts


def _place(url: str, seed: int) -> tuple[int, list[str]]:
    """Return a shard's sort key in the dealing order: hash, then names from the last one up."""
    return _hash(base_name(url), _salt(seed)), url.split("/")[::-1]


def _salt(seed: int) -> bytes:
    return (seed % _SPAN).to_bytes(8, "little")


def _hash(text: str, salt: bytes) -> int:
    """Return 64 bits of BLAKE2b (RFC 7693), the same in every process and version."""
    # surrogateescape: keys of names that are not UTF-8 are strings like any other.
    data = text.encode("utf-8", "surrogateescape")
    return int.from_bytes(blake2b(data, digest_size=8, salt=salt).digest(), "little")
