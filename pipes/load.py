"""Begin the work half with bytes."""

from typing import Any

from .decode_fields import decode_field
from .draws import Draws
from .pipe import Pipe
from .read import read_field
from .sample import UNLOADED, Sample, Typed
from .slot import Slot
from .work import Decoding


class FieldLoader(Decoding):
    """Yields samples whose fields are bytes, undecoded (``.load()``).

    A `Typed` field, such as a row of embeddings, becomes its value all the same.

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
    return (decode_field if isinstance(value, Typed) else read_field)(name, value)
