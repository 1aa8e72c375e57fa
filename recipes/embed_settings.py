"""What a folder of embeddings was begun with: other embeddings must not get among them."""

import json
from pathlib import Path
from typing import Any

from .write_file import write_file

SETTINGS = "embed.json"
VERSION = 1


def check_settings(
    out: Path, options: dict[str, Any], model: tuple[str, str] | None = None
) -> None:
    """Compare the settings of a run with those of its folder; write them where there are none.

    Args:
        out: The folder.
        options: What embeddings depend on, but for the model.
        model: Its name and its fingerprint; None where it is not loaded yet: nothing is written.

    Raises:
        ValueError: They are others, and the message says in what; or there are embeddings in the
            folder and no settings.
    """
    path = out / SETTINGS
    own = json.loads(json.dumps(options))
    if not path.exists():
        found = next(out.glob("*_emb/*.npy"), None)
        if found and not path.exists():  # another process may have written it just now
            raise ValueError(
                f"{out} has embeddings already ({found.name}) and no {SETTINGS}: choose another "
                "folder"
            )
        if model is not None:
            known = {"version": VERSION, "model": model[0], "fingerprint": model[1], **own}
            write_file(path, json.dumps(known, indent=1) + "\n")
        return
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        version = known["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read: {error!r}; delete it") from None
    differing = [f"{n} was {known.get(n)!r}, is {own[n]!r}" for n in own if known.get(n) != own[n]]
    if version != VERSION:
        differing = [f"version was {version}, is {VERSION}"]
    elif model is not None and known.get("fingerprint") != model[1]:
        differing.append(
            f"the model was {known.get('model')!r}, is {model[0]!r} (of other weights, or another "
            "image processor or tokenizer)"
        )
    if differing:
        raise ValueError(
            f"{path} is of a run that made other embeddings: {'; '.join(differing)}; choose "
            "another folder"
        )
