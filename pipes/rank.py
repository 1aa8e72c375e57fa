"""Which of how many consumers this process is."""

import os

import torch


def place_of(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Return (rank, world size) as given, else torch.distributed's, else the environment's.

    The environment's are RANK and WORLD_SIZE, as torchrun sets them; without them, (0, 1).

    Raises:
        ValueError: Only one is given, or the rank is not below the world size.
    """
    if (rank is None) != (world_size is None):
        raise ValueError(f"give rank and world_size both, got {rank=} and {world_size=}")
    if rank is None or world_size is None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        else:
            rank = int(os.environ.get("RANK", "0"))
            world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if not 0 <= rank < world_size:
        raise ValueError(
            f"rank must be at least 0 and below world_size, got {rank} of {world_size}"
        )
    return rank, world_size
