"""Shuffle in a sliding window of refs."""

from collections import deque
from collections.abc import Iterable
from heapq import heappop, heappush

from .draws import GOLDEN, MASK, hash64, hash_text, mix64
from .order import Item, Lane, Order, State, Through
from .pipe import Pipe
from .sample import Ref
from .sources import source_pipes

_SHUFFLE = hash_text("shuffle.window")
_UNIT = 1 << 32
_NONE_COMES = 1 << 100  # above all keys

Entry = tuple[int, int, Ref]
"""(key, number of the input, ref)."""

_NOTHING: Entry = (-1, -1, Ref(0, 0, 0))


class Shuffler(Pipe):
    """Yields samples in a random order (``.shuffle(buffer_size)``).

    A sliding window: input i of a pass gets the key i + u n, with n the buffer size and u in [0, 1)
    drawn from (seed, shuffler, lane, pass, i); samples leave in the order of their keys, as soon as
    no later input can come before them. So a sample moves by less than n places, the first sample
    leaves before the window is full, and each pass is shuffled by itself: every sample comes once
    before any comes again. (Over mixed or resampled sources, whose passes have no common end, the
    window slides on without end.)

    The window holds refs, so a million samples cost megabytes. A checkpoint holds no window: a
    resume reads at most 9/8 n index entries again.

    Args:
        source: Pipe of samples.
        buffer_size: Size of the window, n, in samples.
    """

    def __init__(self, source: Pipe, buffer_size: int) -> None:
        if buffer_size < 1:
            raise ValueError(f"buffer_size must be at least 1 sample, got {buffer_size}")
        self.source: Pipe = source
        self.buffer_size = buffer_size

    def _order(self, lane: Lane) -> Order[Item]:
        return ShuffleOrder(self.source._order(lane), lane, self, self._place(lane))

    def _place(self, lane: Lane) -> int:
        """Return a number that tells this shuffler from the graph's others.

        In two branches of a mix, the same draws would keep like places of both side by side.
        """
        return hash64(_count(self.source), lane.sources.of(source_pipes(self)[0])[1])


def _count(pipe: Pipe) -> int:
    """Return the number of shufflers up to and with ``pipe``."""
    return isinstance(pipe, Shuffler) + sum(map(_count, pipe.sources))


class ShuffleOrder(Through):
    """The window: a heap of (key, i, ref).

    All that can be pending was read less than n inputs before the last key that left. So a state is
    the source's state at some input before those, and how to tell what has left since: by the
    (key, i) of what left last. Source states are noted every n/8 inputs.
    """

    def __init__(self, source: Order[Item], lane: Lane, pipe: Shuffler, place: int) -> None:
        super().__init__(source, lane)
        self.size = pipe.buffer_size
        self.passes_end = pipe.passes_end
        self.place = place
        self.stride = max(1, self.size // 8)
        self._holds = lane.sources.holds
        self._last: dict[int, int] = {}  # shard held: inputs read when its last one came
        self._start(self.source.state(), 0, 0, _NOTHING)

    def _start(self, source: State, epoch: int, first: int, left: Entry) -> None:
        """Begin in pass ``epoch``, with input ``first`` next and all up to ``left`` gone."""
        self._epoch = epoch  # the pass whose samples leave now
        self._next = first  # number of the next input in that pass
        self._left = left  # what left last
        self._heap: list[Entry] = []
        self._bound = first * _UNIT  # keys of all inputs to come are at least this
        self._held: Item | None = None  # the first input of the next pass, while this one drains
        self._reads = 0
        # (inputs read since _start, pass, number of the next input in it, source's state)
        self._notes: deque[tuple[int, int, int, State]] = deque([(0, epoch, first, source)])
        self._begun = -first  # inputs read when the present pass began
        self._release(self._last)
        self._set_key()

    def _set_key(self) -> None:
        self._key = hash64(self.lane.seed, _SHUFFLE, self.place, self.lane.number, self._epoch)

    def next(self) -> Item:
        heap = self._heap
        while not heap or heap[0][0] >= self._bound:
            self._fill()
        self._left = left = heappop(heap)
        return Item(left[2])

    def _fill(self) -> None:
        """Take one input into the window, or turn to the next pass when this one has drained."""
        if self._bound == _NONE_COMES:
            if self._held is None:
                raise StopIteration
            self._turn(self._held)
            return
        if self._reads - self._notes[-1][0] >= self.stride:
            self._note()
        try:
            item = self.source.next()
        except StopIteration:
            self._bound = _NONE_COMES
            return
        self._reads += 1
        if self.passes_end and item.ref.epoch != self._epoch:
            # After a load, inputs of earlier passes may come again: they all have left.
            if item.ref.epoch > self._epoch:
                self._held, self._bound = item, _NONE_COMES
            return
        self._push(item.ref)

    def _push(self, ref: Ref) -> None:
        i = self._next
        if i == 0:
            self._begun = self._reads - 1
        draw = mix64((self._key + i * GOLDEN) & MASK) >> 32
        key = i * _UNIT + draw * self.size
        left = self._left
        if key > left[0] or (key == left[0] and i > left[1]):
            heappush(self._heap, (key, i, ref))
            if self._holds:
                self._hold(ref.shard)
        self._next = i + 1
        # No later input of this pass has a key below its own number.
        self._bound = (i + 1) * _UNIT

    def _hold(self, shard: int) -> None:
        """Keep the file of a shard that the window points into; let go of those that it left."""
        if shard not in self._last:
            self.lane.sources.hold(shard)
            self._let_go()
        self._last[shard] = self._reads

    def _let_go(self) -> None:
        needed = self._needed()
        self._release([shard for shard, read in self._last.items() if read <= needed])

    def _release(self, shards: Iterable[int]) -> None:
        for shard in list(shards):
            self.lane.sources.release(shard)
            del self._last[shard]

    def _turn(self, first: Item) -> None:
        """Begin the next pass with its first input."""
        self._held = None
        self._epoch = first.ref.epoch
        self._next, self._left = 0, _NOTHING
        self._set_key()
        self._push(first.ref)

    def _note(self) -> None:
        self._notes.append((self._reads, self._epoch, self._next, self.source.state()))
        needed = self._needed()
        while len(self._notes) > 1 and self._notes[1][0] <= needed:
            self._notes.popleft()
        if self._last:
            self._let_go()

    def _needed(self) -> int:
        """Return how many inputs had been read before the first that can still be pending."""
        return self._begun + max(0, self._left[0] // _UNIT - self.size + 1)

    def state(self) -> State:
        needed = self._needed()
        note = self._notes[0]
        for later in self._notes:
            if later[0] > needed:
                break
            note = later
        _, epoch, first, source = note
        if epoch != self._epoch:
            first = 0
        return [source, self._epoch, first, *self._left[:2]]

    def load(self, state: State) -> None:
        source, epoch, first, key, i = state
        self.source.load(source)
        self._start(source, epoch, first, (key, i, _NOTHING[2]))
