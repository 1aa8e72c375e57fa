"""Files that lie beside a source's shards, and are read along with them."""

from abc import ABC, abstractmethod

from .sample import Sample


class Companion(ABC):
    """What a joiner keeps open in one process, for all of its lanes.

    It is held with the shards that it lies beside: while one is in use, so are the files that
    belong to it.
    """

    holds = False
    """Whether its files must be kept while they are in use."""

    @abstractmethod
    def join(self, sample: Sample) -> Sample:
        """Return the sample with what is joined to it; a pure function.

        Raises:
            MissingData: There is nothing to join.
            DataError: What there is is bad.
            OSError: It cannot be read.
        """

    def check(self, sample: Sample) -> None:  # noqa: B027 (nothing to do, where `join` sees it all)
        """Raise what `join` would not see before the joined fields are read."""

    def hold(self, url: str) -> None:  # noqa: B027 (nothing to do, where `holds` is False)
        """Keep what belongs to a shard at hand until as many calls of `release`."""

    def release(self, url: str) -> None:  # noqa: B027
        """Undo one `hold`."""

    def ahead(self, url: str) -> None:  # noqa: B027
        """Begin to get what belongs to a shard: it will be held soon."""
