"""Begin the work half with bytes."""

from typing import Any

from .draws import Draws
from .pipe import Pipe
from .read import read_array, read_field
from .sample import UNLOADED, Sample, StoredArray
from .work import Decoding, Slot


class FieldLoader(Decoding):
    """Yields samples whose fields are bytes, undecoded (``.load()``).

    What is stored as rows of an array, such as embeddings, becomes an array all the same.

    Args:
        source: The order half.
    """

    def __init__(self, source: Pipe) -> None:
        self.source: Pipe = source

    def work(self, sample: Sample, draws: Draws, slot: Slot) -> Sample:
        return {
            k: _loaded(k, v) if isinstance(v, UNLOADED) else v
            for k, v in sample.items()
            if not k.startswith("__image")
        }


def _loaded(name: str, value: Any) -> Any:
    return read_array(name, value) if isinstance(value, StoredArray) else read_field(name, value)
