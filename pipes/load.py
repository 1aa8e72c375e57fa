"""Begin the work half with bytes."""

from .draws import Draws
from .pipe import Pipe
from .read import read_field
from .sample import UNLOADED, Sample
from .work import Decoding, Slot


class FieldLoader(Decoding):
    """Yields samples whose fields are bytes, undecoded (``.load()``).

    Args:
        source: The order half.
    """

    def __init__(self, source: Pipe) -> None:
        self.source: Pipe = source

    def work(self, sample: Sample, draws: Draws, slot: Slot) -> Sample:
        return {
            k: read_field(k, v) if isinstance(v, UNLOADED) else v
            for k, v in sample.items()
            if not k.startswith("__image")
        }
