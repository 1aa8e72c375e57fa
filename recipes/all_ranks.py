"""What every process of a torchrun has to report, told to each of them."""

import os
from datetime import timedelta
from typing import TypeVar

import torch

R = TypeVar("R")

PATIENCE = timedelta(days=7)
"""How long a process waits at the end for the others."""


def all_ranks(report: R, world_size: int) -> list[R]:
    """Return every process's report, on each of them.

    torchrun ends all processes when the first one fails, so that none may end before the last one
    is done. Where nothing says how to reach the others, each answers for itself.
    """
    if world_size == 1 or "MASTER_ADDR" not in os.environ:
        return [report]
    reports: list[R] = [report] * world_size
    torch.distributed.init_process_group("gloo", timeout=PATIENCE)
    try:
        torch.distributed.all_gather_object(reports, report)
    finally:
        torch.distributed.destroy_process_group()
    return reports
