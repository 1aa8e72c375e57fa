"""Checkpoints of a run: each whole or not there, the last few kept."""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...pipes.errors import DataError
from ..write_file import write_file
from .tensor_files import (
    Table,
    Tensors,
    files_of,
    fill_tensors,
    read_tensors,
    sync,
    table_of,
    write_tensors,
)
from .world import World

_NAME = re.compile(r"step-(\d{8,})(?:\.(\d+))?")
_GROUP = re.compile(r"[A-Za-z0-9_-]+")
VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint that is there, whole.

    Attributes:
        path: Its folder.
        step: Optimizer steps that were made.
        state: What was saved beside the tensors.
    """

    path: Path
    step: int
    state: dict[str, Any]
    _tables: dict[str, Table]

    def tensors(self, group: str) -> dict[str, torch.Tensor]:
        """Return a group of tensors whole, on the CPU; no collective.

        Raises:
            KeyError: There is no such group.
            DataError: Files are missing or damaged.
        """
        return read_tensors(self.path, group, self._table(group))

    def fill(self, group: str, targets: Tensors) -> None:
        """Fill tensors in place, bit for bit, whole or parts of any number of ranks. A collective.

        Args:
            group: Its name.
            targets: Tensors of the names, dtypes and shapes that were saved.

        Raises:
            KeyError: There is no such group.
            ValueError: The targets are others than those that were saved.
            DataError: Files are missing or damaged.
        """
        fill_tensors(self.path, group, self._table(group), targets)

    def _table(self, group: str) -> Table:
        if group not in self._tables:
            raise KeyError(f"{self.path} has no {group}, only {', '.join(self._tables)}")
        return self._tables[group]


class Checkpoints:
    """A run's checkpoints, each a folder ``step-00001200``.

    Tensors are safetensors, everything else is ``state.json``. Weights that FSDP2 split are
    written in parts through torch.distributed.checkpoint, also as safetensors (it would else keep
    its own notes as a pickle). A checkpoint is written under another name and renamed when it is on
    the disk, so that a kill at any moment leaves the one before. Several ranks need a folder that
    all of them see.

    Args:
        folder: The run's own; one run at a time writes there. Not a URL.
        keep: How many to keep, the last ones; None: all.
        world: The ranks that save and load together.

    Raises:
        ValueError: The folder is a URL, or none are to be kept.
    """

    def __init__(
        self, folder: str | Path, *, keep: int | None = 3, world: World | None = None
    ) -> None:
        if "://" in str(folder):
            raise ValueError(f"checkpoints are kept in a local folder, got {folder}")
        if keep is not None and keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self.folder = Path(folder)
        self.keep = keep
        self.world = world or World()

    def save(self, step: int, tensors: Mapping[str, Tensors], state: Mapping[str, Any]) -> Path:
        """Write a checkpoint; return its folder. A collective: rank 0 writes what is not split.

        Args:
            step: Optimizer steps that were made.
            tensors: Groups of named tensors (``model``, ``optimizer``, ``ema``), the same on all
                ranks; DTensors are written in parts.
            state: What JSON can hold: arguments, the loader's ``gather_state()``, and so on.
                Rank 0's is written.

        Raises:
            ValueError: A group's name is no plain word.
            TypeError: The state is not JSON.
            OSError: It cannot be written; what was there is left.
        """
        for group in tensors:
            if not _GROUP.fullmatch(group):
                raise ValueError(f"group {group!r} must be letters, digits, - and _")
        about: dict[str, Any] = {
            "version": VERSION,
            "step": step,
            "tensors": {group: table_of(named) for group, named in tensors.items()},
            "state": dict(state),
        }
        json.dumps(about)  # said before anything is written
        part = self.folder / f".step-{step:08d}.part"
        if self.world.main:
            self._clean()
            part.mkdir(parents=True)
        self.world.barrier()
        for group, named in tensors.items():
            write_tensors(part, group, named, self.world.main)
        self.world.barrier()
        whole = part
        if self.world.main:
            for group, table in about["tensors"].items():
                table["files"] = files_of(part, group, table)
            write_file(part / "state.json", json.dumps(about, indent=1))
            sync(part)
            whole = part.rename(self.folder / self._free_name(step))
            sync(self.folder)
            self._prune()
        return self.folder / self.world.from_main(whole.name)

    def latest(self) -> Path | None:
        """Return the folder of the last checkpoint, the one with the most steps; None: none yet.

        Looks for itself: with several ranks ask on one of them, or `load`.
        """
        found = self._found()
        return found[-1][1] if found else None

    def load(self, path: str | Path | None = None) -> Checkpoint:
        """Return a checkpoint of this folder, the last one unless told which. A collective.

        Args:
            path: One of its folders, or its name.

        Raises:
            FileNotFoundError: There is none.
            ValueError: It is none of this folder's: only a run's own checkpoints are read.
            DataError: Its ``state.json`` cannot be read.
        """
        if path is None:
            last = self.world.from_main(self.latest())
            if last is None:
                raise FileNotFoundError(f"there is no checkpoint in {self.folder}")
            path = last
        elif "://" in str(path):
            raise ValueError(f"checkpoints are read from {self.folder} alone, got {path}")
        folder = self.folder / path if str(path) == Path(path).name else Path(path)
        if folder.resolve().parent != self.folder.resolve() or not _NAME.fullmatch(folder.name):
            raise ValueError(f"{path} is not one of the checkpoints in {self.folder}")
        if not folder.is_dir():
            names = ", ".join(p.name for _, p in self._found()) or "none"
            raise FileNotFoundError(f"there is no {folder}; there are: {names}")
        return _read(folder)

    def forget_after(self, step: int) -> list[Path]:
        """Remove checkpoints of more steps than ``step``, where a run goes on from an earlier one.

        Else they would be taken for the last ones. Returns which they were. A collective.
        """
        gone = [path for (s, _), path in self._found() if s > step] if self.world.main else []
        for path in gone:
            self._remove(path)
        return self.world.from_main(gone)

    def _found(self) -> list[tuple[tuple[int, int], Path]]:
        """Return all whole checkpoints, as ((step, which writing of it), folder), in order."""
        if not self.folder.is_dir():
            return []
        names = [(_NAME.fullmatch(path.name), path) for path in self.folder.iterdir()]
        return sorted(((int(m[1]), int(m[2] or 1)), path) for m, path in names if m)

    def _free_name(self, step: int) -> str:
        """Return a name for this step. A second writing has one of its own: none is overwritten."""
        last = max((n for (s, n), _ in self._found() if s == step), default=0)
        return f"step-{step:08d}" + (f".{last + 1}" if last else "")

    def _prune(self) -> None:
        newest = {step: path for (step, _), path in self._found()}
        steps = sorted(newest)
        keep = set(steps if self.keep is None else steps[-self.keep :])
        for (step, _), path in self._found():
            if step not in keep or path != newest[step]:
                self._remove(path)

    def _remove(self, path: Path) -> None:
        """Remove a checkpoint so that a half-removed one is never taken for a whole one."""
        gone = path.rename(path.with_name(f".{path.name}.gone"))
        shutil.rmtree(gone)

    def _clean(self) -> None:
        """Remove what a killed run left."""
        for end in ("part", "gone"):
            for path in self.folder.glob(f".step-*.{end}"):
                shutil.rmtree(path)


def _read(folder: Path) -> Checkpoint:
    path = folder / "state.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        version = found["version"]
        if version == VERSION:
            return Checkpoint(folder, int(found["step"]), found["state"], found["tensors"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no checkpoint's state: {error!r}") from error
    raise DataError(f"{path} is of version {version}; this penstock reads {VERSION}")
