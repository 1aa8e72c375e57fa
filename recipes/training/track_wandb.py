"""Weights & Biases."""

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from ..write_file import write_file

RUN_ID = "wandb_run_id.txt"


class WandbTracker:
    """Sends everything to Weights & Biases, or keeps it for ``wandb sync``.

    The run's id is kept in ``wandb_run_id.txt``, so that a training which goes on continues
    the run. Curves are drawn over ``step``, a value of their own: over Weights & Biases' own steps,
    those that a resumed training makes again would be refused.

    Args:
        folder: The run's folder.
        project: The project at Weights & Biases.
        name: Name of the run; without it, Weights & Biases makes one up.
        config: What to show as the run's configuration.
        mode: offline sends nothing and needs no account; without it, WANDB_MODE says, or online.

    Raises:
        ImportError: If wandb is not installed.
        RuntimeError: If the run cannot be begun: not logged in, or no network.
    """

    required = False

    def __init__(
        self,
        folder: str | Path,
        *,
        project: str = "penstock",
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
        mode: Literal["online", "offline"] | None = None,
    ) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ImportError(
                "Weights & Biases is not installed: pip install 'penstock[track]', or leave "
                "'wandb' out of the trackers"
            ) from error
        self._wandb = wandb
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / RUN_ID
        if not path.exists():
            write_file(path, f"{secrets.token_hex(4)}\n")
        try:
            self._run = wandb.init(
                project=project,
                name=name,
                config=dict(config or {}),
                dir=str(folder),
                id=path.read_text(encoding="utf-8").strip(),
                resume="allow",
                mode=mode,
                # Its capture of the console would store every move of the bar.
                settings=wandb.Settings(console="off", silent=True),
            )
        except wandb.errors.Error as error:
            raise RuntimeError(
                f"Weights & Biases cannot begin a run: {error}. Run `wandb login`, set its mode to "
                "offline, or leave 'wandb' out of the trackers"
            ) from error
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def progress(self, step: int) -> None:
        """Do nothing: steps come with the numbers."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send numbers."""
        self._run.log({**values, "step": step})

    def images(
        self, step: int, name: str, pictures: Sequence[Image.Image], captions: Sequence[str]
    ) -> None:
        """Send pictures with their captions."""
        pairs = zip(pictures, captions, strict=True)
        shown = [self._wandb.Image(picture, caption=text or None) for picture, text in pairs]
        self._run.log({name: shown, "step": step})

    def text(self, step: int, name: str, words: str) -> None:
        """Send words: as a page with nothing but them."""
        from html import escape

        page = self._wandb.Html(f"<pre>{escape(words)}</pre>", inject=False)
        self._run.log({name: page, "step": step})

    def close(self, *, failed: bool = False) -> None:
        """Send what is left."""
        self._run.finish(exit_code=int(failed))
