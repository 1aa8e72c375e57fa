"""TensorBoard's own files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from .grid import picture_grid

FOLDER = "tensorboard"


class TensorBoardTracker:
    """Writes what ``tensorboard --logdir FOLDER`` shows.

    Args:
        folder: The run's folder: the files lie in ``tensorboard/`` below it.
        step: The step from which the run goes on: TensorBoard hides what it has of later ones.

    Raises:
        ImportError: If tensorboard is not installed.
    """

    required = False

    def __init__(self, folder: str | Path, *, step: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "TensorBoard is not installed: pip install 'penstock[track]', or leave "
                "'tensorboard' out of the trackers"
            ) from error
        purge = step + 1 if step else None
        self._writer = SummaryWriter(str(Path(folder) / FOLDER), purge_step=purge, flush_secs=30)

    def progress(self, step: int) -> None:
        """Do nothing: steps come with the numbers."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write numbers."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def images(
        self, step: int, name: str, pictures: Sequence[Image.Image], captions: Sequence[str]
    ) -> None:
        """Write pictures as one, captions drawn below them: TensorBoard knows no captions."""
        grid = np.asarray(picture_grid(pictures, captions))
        self._writer.add_image(name, grid, step, dataformats="HWC")
        self._writer.flush()

    def text(self, step: int, name: str, words: str) -> None:
        """Write words, as they are: TensorBoard would read them as Markdown."""
        code = "".join(f"    {line}\n" for line in words.splitlines())
        self._writer.add_text(name, code, step)

    def close(self, *, failed: bool = False) -> None:
        """Write out what is left."""
        self._writer.close()
