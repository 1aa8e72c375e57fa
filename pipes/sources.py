"""The open shards of one process, shared by all of its lanes."""

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from .companion import Companion
from .pipe import Pipe
from .sample import IMAGE_SIZE, REF, Ref, Sample


class Source(ABC):
    """Samples by (shard, index): what a lane's order and the work half read from.

    Shards are numbered from 0 here; `Sources` adds what makes a number unique in a graph.
    """

    @abstractmethod
    def size(self, shard: int) -> int:
        """Return the number of samples in a shard."""

    @abstractmethod
    def sample(self, shard: int, index: int) -> Sample:
        """Return a sample: its key, its URL and its fields as extents."""

    def image_size(self, shard: int, index: int) -> tuple[int, int] | str | None:
        """Return a sample's ``__image_size__``: a bucketer needs no more of it."""
        size: tuple[int, int] | str | None = self.sample(shard, index).get(IMAGE_SIZE)
        return size

    looks = False
    """Whether `look` helps."""

    def look(self, shards: Sequence[int]) -> None:  # noqa: B027 (nothing to do, where not `looks`)
        """Find the image sizes of shards that come soon, where several at once take less time."""

    @abstractmethod
    def name(self, shard: int, index: int) -> tuple[str, str]:
        """Return (url, key) of a sample."""

    def keys(self, shard: int) -> list[str]:
        """Return the keys of a shard's samples, in their order."""
        return [self.name(shard, i)[1] for i in range(self.size(shard))]

    def find(self, shard: int, key: str, near: int = 0) -> int | None:
        """Return the number of the sample of a shard that has this key, or None.

        Args:
            shard: The shard.
            key: The key.
            near: A number that it may well have: it is looked at first.

        Raises:
            DataError: Two samples of the shard have one key.
        """
        raise TypeError(f"{type(self).__name__} has no samples that could be found by their keys")

    @abstractmethod
    def url(self, shard: int) -> str:
        """Return the URL of a shard."""

    @abstractmethod
    def fingerprint(self, shard: int) -> int:
        """Return 64 bits that change when what a ref into this shard means changes."""

    prints = True
    """Whether shards have fingerprints. A source whose change a state refuses as a whole, and whose
    shards are many, needs none."""

    holds = False
    """Whether shards are files that must be kept while they are in use."""

    def hold(self, shard: int) -> None:  # noqa: B027 (nothing to do, where `holds` is False)
        """Keep a shard's file at hand until as many calls of `release`; get it if need be."""

    def release(self, shard: int) -> None:  # noqa: B027
        """Undo one `hold`."""

    def ahead(self, shard: int) -> None:  # noqa: B027
        """Begin to get a shard's file: it will be held soon."""


class SourcePipe(Pipe):
    """A pipe that reads samples from shards: the root of a graph."""

    seed: int
    resample: bool
    shuffle_shards: bool

    @property
    def passes_end(self) -> bool:
        return not self.resample

    @abstractmethod
    def shard_count(self) -> int:
        """Return the number of shards."""

    @abstractmethod
    def shard_sizes(self, skip: bool) -> np.ndarray:
        """Return the number of samples of each shard, int64 [shards].

        With ``skip``, a shard whose data is bad counts 0 samples and a warning names it.
        """

    def splits_samples(self) -> bool:
        """Return whether single samples are left out, so that sizes say too much."""
        return False

    @abstractmethod
    def image_sizes(self) -> Iterator[np.ndarray]:
        """Yield each shard's image sizes, int32 [samples, 2], height before width."""

    @abstractmethod
    def open(self, image_sizes: bool) -> Source:
        """Return this process's source; with ``image_sizes`` samples know their image's size."""


def source_pipes(pipe: Pipe) -> list[SourcePipe]:
    """Return the roots of a graph, in the order in which its pipes name them."""
    if isinstance(pipe, SourcePipe):
        return [pipe]
    return [root for source in pipe.sources for root in source_pipes(source)]


class Sources:
    """Resolves refs over all sources of a graph.

    Args:
        pipes: The graph's source pipes, in their order.
        image_sizes: Whether samples carry their image's size.
    """

    def __init__(self, pipes: Sequence[SourcePipe], image_sizes: bool) -> None:
        self.pipes = tuple(pipes)
        self._open = [pipe.open(image_sizes) for pipe in pipes]
        self._first = [0]
        for pipe in pipes[:-1]:
            self._first.append(self._first[-1] + pipe.shard_count())
        self._companions: dict[Pipe, Companion] = {}
        # Those that hold files, by the number of the source whose shards they lie beside.
        self._beside: list[list[Companion]] = [[] for _ in pipes]
        self._printed = np.array([source.prints for source in self._open])
        self.prints = bool(self._printed.any())

    def of(self, pipe: SourcePipe) -> tuple[Source, int]:
        """Return a pipe's open source and the number of its first shard."""
        i = next(i for i, p in enumerate(self.pipes) if p is pipe)
        return self._open[i], self._first[i]

    def companion(self, joiner: Pipe, opened: Callable[[], Companion]) -> Companion:
        """Return what a joiner has open in this process; it is opened once.

        A joiner asks before it makes its source's order, so that what walks behind it knows that
        shards are to be held.
        """
        found = self._companions.get(joiner)
        if found is None:
            found = self._companions[joiner] = opened()
            if found.holds:
                behind = source_pipes(joiner)
                for pipe, beside in zip(self.pipes, self._beside, strict=True):
                    if any(pipe is root for root in behind):
                        beside.append(found)
        return found

    def held(self, pipe: SourcePipe) -> bool:
        """Return whether a source's shards, or what lies beside them, are to be held."""
        i = next(i for i, p in enumerate(self.pipes) if p is pipe)
        return self._open[i].holds or bool(self._beside[i])

    def _number(self, shard: int) -> int:
        return bisect_right(self._first, shard) - 1 if len(self._first) > 1 else 0

    def _at(self, shard: int) -> tuple[Source, int]:
        i = self._number(shard)
        return self._open[i], shard - self._first[i]

    def sample(self, ref: Ref) -> Sample:
        """Return the sample that ``ref`` names."""
        source, shard = self._at(ref.shard)
        sample = source.sample(shard, ref.sample)
        sample[REF] = ref
        return sample

    def image_size(self, ref: Ref) -> tuple[int, int] | str | None:
        """Return the image size of the sample that ``ref`` names, or an error, or None."""
        source, shard = self._at(ref.shard)
        return source.image_size(shard, ref.sample)

    def name(self, ref: Ref) -> tuple[str, str]:
        """Return (url, key) of the sample that ``ref`` names."""
        source, shard = self._at(ref.shard)
        return source.name(shard, ref.sample)

    def url(self, shard: int) -> str:
        """Return a shard's URL."""
        source, number = self._at(shard)
        return source.url(number)

    def keys(self, shard: int) -> list[str]:
        """Return the keys of a shard's samples, in their order."""
        source, number = self._at(shard)
        return source.keys(number)

    def find(self, shard: int, key: str, near: int) -> int | None:
        """Return the number of the sample of a shard that has this key, or None."""
        source, number = self._at(shard)
        return source.find(number, key, near)

    @property
    def holds(self) -> bool:
        """Whether any shards, or what lies beside them, must be kept while they are in use."""
        return any(source.holds for source in self._open) or any(self._beside)

    def hold(self, shard: int) -> None:
        """Keep a shard's file, and what lies beside it, until as many calls of `release`."""
        source, number = self._at(shard)
        source.hold(number)
        for beside in self._beside[self._number(shard)]:
            beside.hold(source.url(number))

    def release(self, shard: int) -> None:
        """Undo one `hold`."""
        source, number = self._at(shard)
        source.release(number)
        for beside in self._beside[self._number(shard)]:
            beside.release(source.url(number))

    def ahead(self, shard: int) -> None:
        """Begin to get a shard's file and what lies beside it: it will be held soon."""
        source, number = self._at(shard)
        source.ahead(number)
        for beside in self._beside[self._number(shard)]:
            beside.ahead(source.url(number))

    def fingerprint(self, shard: int) -> int:
        """Return 64 bits that change when what a ref into this shard means changes."""
        source, number = self._at(shard)
        return source.fingerprint(number)

    def printed(self, shards: np.ndarray) -> np.ndarray:
        """Return which of these shards have fingerprints, bool of the same shape."""
        if len(self._first) == 1:
            return np.broadcast_to(self._printed, shards.shape)
        found: np.ndarray = self._printed[np.searchsorted(self._first, shards, side="right") - 1]
        return found
