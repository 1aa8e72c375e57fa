"""What ``for batch in loader`` walks."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .loader import ElasticDataLoader


class Epoch:
    """The rest of a loader's present epoch; a class, since an exception would kill a generator."""

    def __init__(self, loader: "ElasticDataLoader") -> None:
        self._loader = loader
        self._done = False

    def __iter__(self) -> "Epoch":
        return self

    def __next__(self) -> dict[str, Any]:
        if self._done:
            raise StopIteration
        try:
            if self._loader.epoch_ended():
                raise StopIteration
            return self._loader.next_batch()
        except StopIteration:
            self._done = True
            self._loader.end_epoch()
            raise
