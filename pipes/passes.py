"""Passes over a source's shards, dealt out to lanes."""

import numpy as np

from .draws import hash64, hash_text, permutation
from .errors import DataError
from .order import Item, Lane, Order, State
from .sample import Ref, Sample
from .sources import SourcePipe

_ORDER = hash_text("shards.order")
_RESAMPLE = hash_text("shards.resample")

LOOK = 64
"""Shards that a source may look at together: of a manifest, as many rows."""


class PassOrder(Order[Item]):
    """One lane's walk over a source: pass after pass, shard after shard.

    Pass p is the shards in an order drawn from (seed, p). Lane l's pass p is part (l + p) mod L of
    that order: of L equal ranges of samples, or every L-th shard. Together the lanes visit each
    sample exactly once per pass; they do not wait for each other. With ``resample``, draw d of a
    lane is draw d L + l of the source, and its number takes the pass's place in the refs.

    The state is four integers: the pass, the shard's place in the lane's part, the next sample, and
    32 bits of the shard's fingerprint.
    """

    def __init__(self, pipe: SourcePipe, lane: Lane) -> None:
        if pipe.resample and not lane.repeat:
            raise ValueError(
                "resample=True draws shards without end, and repeat=False visits each sample once: "
                "choose one"
            )
        self.source, self.first_shard = lane.sources.of(pipe)
        self.pipe = pipe
        self.lane = lane
        self.shards = pipe.shard_count()
        self.sizes = pipe.shard_sizes(lane.on_error == "skip") if self.by_samples else None
        # Where the walk stands; _index is -1 where a segment's first sample comes next. A segment
        # is entered when it is first read: entering it may mean to open a shard.
        self._pass, self._place, self._index = 0, 0, -1
        self._epoch, self._shard, self._stop = 0, 0, -1
        self._empty: set[int] = set()  # shards that were found to be empty
        self._print: int | None = None  # of the shard that a loaded state stands in
        self._holds = lane.sources.held(pipe)
        self._held: int | None = None  # the shard whose file is kept at hand
        self._load_pass(0)

    @property
    def by_samples(self) -> bool:
        """Whether this walk needs to know how many samples each shard has."""
        return self.lane.by == "samples" and not self.pipe.resample

    def _load_pass(self, number: int) -> None:
        """Draw the order of pass ``number`` and find this lane's part of it."""
        self._pass, self._looked = number, 0
        if self.pipe.resample:
            return
        self._order, self._starts, self._begin, self._end = self._part(number)

    def _part(self, number: int) -> tuple[np.ndarray, np.ndarray, int, int]:
        """Return this lane's part of pass ``number``: its shards, and where they begin in the pass;
        the part's first sample and its end (these three by samples only)."""
        n, lanes = self.shards, self.lane.count
        if self.pipe.shuffle_shards:
            key = hash64(self.pipe.seed, _ORDER, self.first_shard, number)
            order = permutation(n, key)
        else:
            order = np.arange(n)
        part = (self.lane.number + number) % lanes
        if self.sizes is None:
            return order[part::lanes], order[:0], 0, 0
        ends = np.cumsum(self.sizes[order])
        total = int(ends[-1])
        begin, end = part * total // lanes, (part + 1) * total // lanes
        if begin == end:
            return order[:0], order[:0], begin, end
        first = int(np.searchsorted(ends, begin, side="right"))
        last = int(np.searchsorted(ends, end, side="left"))
        shards = order[first : last + 1]
        return shards, ends[first : last + 1] - self.sizes[shards], begin, end

    def _segment(self, place: int) -> tuple[int, int, int, int] | None:
        """Return (epoch, shard, first sample, end) of this lane's part at ``place``, or None."""
        if self.pipe.resample:
            draw = place * self.lane.count + self.lane.number
            shard = self._drawn(draw)
            return draw, shard, 0, self._size(shard)
        if place >= len(self._order):
            return None
        shard = int(self._order[place])
        if self.sizes is None:
            return self._pass, shard, 0, self._size(shard)
        start = int(self._starts[place])
        size = int(self.sizes[shard])
        return self._pass, shard, max(0, self._begin - start), min(size, self._end - start)

    def _size(self, shard: int) -> int:
        try:
            return self.source.size(shard)
        except DataError as error:
            self.lane.fail(self.source.url(shard), "(the whole shard)", error)
            return 0

    def next(self) -> Item:
        index = self._index
        while not 0 <= index < self._stop:
            self._advance()
            index = self._index
        self._index = index + 1
        return Item(Ref(self._epoch, self._shard + self.first_shard, index))

    def _advance(self) -> None:
        """Enter the segment that comes next, in the next pass after the last."""
        if self._stop >= 0:  # the segment that was entered is at its end
            self._place, self._index = self._place + 1, -1
        segment = self._segment(self._place)
        if segment is not None:
            self._epoch, self._shard, first, self._stop = segment
            if self._index < 0:
                self._index = first
            if self._holds and first < self._stop:
                self._hold()
            if self.source.looks and not self.pipe.resample:
                self._look()
            if self._print is not None:
                self._check()
            if self._stop == 0:
                self._empty.add(self._shard)
                self._refuse_nothing(len(self._empty) == self.shards)
            return
        self._refuse_nothing(self.sizes is not None and not self.sizes.any())
        if not self.lane.repeat:
            raise StopIteration
        self._load_pass(self._pass + 1)
        self._place, self._index, self._stop = 0, -1, -1

    def _look(self) -> None:
        """Have the source look at this segment's shard and the next ones, unless it has."""
        if self._place >= self._looked:
            self._looked = self._place + LOOK
            self.source.look(self._order[self._place : self._looked].tolist())

    def _hold(self) -> None:
        """Keep the file of the segment that is entered, and have the next one fetched ahead."""
        before, self._held = self._held, None
        sources, number = self.lane.sources, self.first_shard
        if before != self._shard:
            sources.hold(self._shard + number)
            if before is not None:
                sources.release(before + number)
        self._held = self._shard
        coming = self._coming()
        if coming is not None and coming != self._shard:
            sources.ahead(coming + number)

    def _coming(self) -> int | None:
        """Return the shard of this lane's next segment, or None where there is none."""
        if self.pipe.resample:
            return self._drawn((self._place + 1) * self.lane.count + self.lane.number)
        shards = self._order[self._place + 1 :]
        if not len(shards) and self.lane.repeat:
            shards = self._part(self._pass + 1)[0]
        return int(shards[0]) if len(shards) else None

    def _drawn(self, draw: int) -> int:
        bits = hash64(self.pipe.seed, _RESAMPLE, self.first_shard, draw)
        return (bits * self.shards) >> 64

    def _refuse_nothing(self, nothing: bool) -> None:
        """Refuse to go on without end where it is known that there is no sample.

        Not after a number of passes: by chance a lane may get the empty shards many times in a row.
        """
        if nothing and (self.lane.repeat or self.sizes is not None):
            raise ValueError(
                f"lane {self.lane.number} of {self.lane.count} found no sample in {self.shards} "
                f"shard(s), the first being {self.source.url(0)}: they are empty"
            )

    def _check(self) -> None:
        """Refuse a shard that is not the one in which the loaded state stands."""
        if self.source.fingerprint(self._shard) & 0xFFFFFFFF != self._print:
            raise ValueError(
                f"shard {self.source.url(self._shard)} has changed since this state was saved, in "
                "the middle of it: restore the shard, or begin a new run"
            )
        self._print = None

    def state(self) -> State:
        if self._stop <= 0:  # nothing of the shard is held: it may be empty, or damaged
            return [self._pass, self._place, self._index, self._print]
        mark = self.source.fingerprint(self._shard) & 0xFFFFFFFF
        return [self._pass, self._place, self._index, mark]

    def load(self, state: State) -> None:
        number, place, index, self._print = state
        self._place, self._index, self._stop = place, index, -1
        self._looked = 0
        if number != self._pass:
            self._load_pass(number)

    def resolve(self, ref: Ref) -> Sample:
        return self.lane.sources.sample(ref)

    @property
    def laps(self) -> int:
        if self.pipe.resample:
            return self._place * self.lane.count // self.shards
        return self._pass


__all__ = ["PassOrder"]
