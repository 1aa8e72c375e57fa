"""The order half of a join: what joins samples one by one, and what passes over those that lack."""

from typing import Literal

from .companion import Companion
from .errors import DataError, MissingData, name_sample
from .filter import FilterOrder
from .order import Item, Lane, Order, Skipped, Through
from .pipe import Pipe
from .sample import KEY, URL, Ref, Sample
from .shards import ShardLister
from .sources import source_pipes
from .tar import TarReader

OnMissing = Literal["raise", "skip"]
"""What becomes of a sample that has nothing to be joined to."""


class JoinOrder(Through):
    """Joins each sample, in `next` and in `resolve` alike; a bare ref passes unseen."""

    def __init__(self, source: Order[Item], lane: Lane, companion: Companion) -> None:
        super().__init__(source, lane)
        self.companion = companion

    def next(self) -> Item:
        while True:
            item = self.source.next()
            if item.sample is None:
                return item
            try:
                return Item(item.ref, self.companion.join(item.sample))
            except DataError as error:
                self.fail(item.ref, error)

    def resolve(self, ref: Ref) -> Sample:
        return joined(self.companion, self.source.resolve(ref))


class PresentOrder(FilterOrder):
    """Joins samples and passes over, and counts, those that have nothing to be joined to."""

    def __init__(self, source: Order[Item], lane: Lane, companion: Companion, words: str) -> None:
        super().__init__(source, lane, bool, words)
        self.companion = companion

    def passed(self, item: Item) -> Item | None:
        try:
            sample = self.sample(item)
            try:
                sample = self.companion.join(sample)
                self.companion.check(sample)
                return Item(item.ref, sample)
            except MissingData as error:
                self.lane.skipped.append(Skipped(sample[URL], sample[KEY], str(error)))
        except DataError as error:
            self.fail(item.ref, error)
        return None

    def resolve(self, ref: Ref) -> Sample:
        return joined(self.companion, self.source.resolve(ref))


def joined(companion: Companion, sample: Sample) -> Sample:
    """Return the sample joined; an error names it."""
    try:
        return companion.join(sample)
    except DataError as error:
        raise DataError(f"{name_sample(sample[URL], sample[KEY])}: {error}") from error


def check_on_missing(on_missing: str) -> None:
    """Refuse what is neither ``"raise"`` nor ``"skip"``."""
    if on_missing not in ("raise", "skip"):
        raise ValueError(f"on_missing must be 'raise' or 'skip', got {on_missing!r}")


def tar_listers(pipe: Pipe, method: str) -> list[ShardLister]:
    """Return the listers of the tars that a pipe's samples come from.

    Raises:
        TypeError: They come from something else.
    """
    roots = source_pipes(pipe)
    other = next((root for root in roots if not isinstance(root, TarReader)), None)
    if other is not None or not roots:
        found = type(pipe if other is None else other).__name__
        raise TypeError(f".{method}() joins to samples of tars; these come from a {found}")
    return [root.source for root in roots if isinstance(root, TarReader)]
