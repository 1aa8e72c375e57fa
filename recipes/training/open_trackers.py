"""The trackers of a run."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from .track_console import ConsoleTracker
from .track_jsonl import JsonlTracker
from .track_tensorboard import TensorBoardTracker
from .track_wandb import WandbTracker
from .tracker import Tracker, Trackers

Extra = Literal["tensorboard", "wandb"]


def open_trackers(
    folder: str | Path,
    extras: Sequence[Extra] = (),
    *,
    rank: int = 0,
    step: int = 0,
    steps: int | None = None,
    config: Mapping[str, Any] | None = None,
    project: str = "penstock",
    name: str | None = None,
    wandb_mode: Literal["online", "offline"] | None = None,
) -> Trackers:
    """Return what tells ``log.jsonl``, the console and the extras; on ranks but 0, what tells none.

    Args:
        folder: The run's folder; made if missing.
        extras: tensorboard, wandb, or both.
        rank: This process's.
        step: The step from which the run goes on; what was told of later ones is removed.
        steps: Steps of the whole training, where that is known.
        config: The run's configuration, for Weights & Biases.
        project: The project at Weights & Biases.
        name: The run's name there; without it, that of the folder.
        wandb_mode: offline sends nothing; without it, WANDB_MODE says, or online.

    Raises:
        ImportError: If an extra is not installed.
        RuntimeError: If Weights & Biases cannot be reached.
        ValueError: If an extra is unknown, or steps make no sense.
    """
    folder = Path(folder)
    makers: dict[str, Callable[[], Tracker]] = {
        "tensorboard": lambda: TensorBoardTracker(folder, step=step),
        "wandb": lambda: WandbTracker(
            folder,
            project=project,
            name=name or folder.resolve().name,
            config=config,
            mode=wandb_mode,
        ),
    }
    unknown = [extra for extra in extras if extra not in makers]
    if unknown:
        raise ValueError(f"unknown tracker {unknown[0]!r}: there are {', '.join(makers)}")
    if not 0 <= step <= (math.inf if steps is None else steps):
        raise ValueError(f"step must be from 0 to steps ({steps}), got {step}")
    if rank != 0:
        return Trackers()
    opened: list[Tracker] = []
    try:
        # The log last: were an extra missing, a log would have been cut for nothing.
        opened += [makers[extra]() for extra in dict.fromkeys(extras)]
        opened.insert(0, JsonlTracker(folder, step=step))
        opened.append(ConsoleTracker(steps=steps, step=step))
    except BaseException:
        Trackers(opened).close(failed=True)
        raise
    return Trackers(opened)
