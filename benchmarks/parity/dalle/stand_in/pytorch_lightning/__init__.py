"""As much of PyTorch Lightning as dalle-pytorch 1.6.6 and taming-transformers need to be imported.

Today's Lightning has no ``utilities.distributed``, which they ask for.
"""

from typing import Any

from torch.nn import Module as LightningModule

__all__ = ["LightningDataModule", "LightningModule", "seed_everything"]


class LightningDataModule:
    """Never made."""


def seed_everything(*_: Any) -> None:
    raise NotImplementedError
