"""Weights of a checkpoint: which files hold them, and whether they are whole. Nothing is loaded.

Only safetensors are taken: other files of weights are pickles, which run code when they are loaded.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from os import PathLike, fspath
from pathlib import Path
from typing import Any

MAX_HEADER = 100_000_000
"""Bytes of a safetensors header, as the format's own reader limits it."""

PICKLES = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class Part:
    """A folder of a checkpoint that holds one model.

    Attributes:
        folder: Where it lies.
        config: Its ``config.json``.
        files: Its safetensors files, sorted.
    """

    folder: Path
    config: dict[str, Any]
    files: tuple[Path, ...]

    @property
    def parameters(self) -> int:
        """How many numbers the files hold, by their headers."""
        return sum(prod(shape) for file in self.files for _, shape in tensors(file).values())


def find_part(
    path_or_id: str | PathLike[str],
    name: str,
    kinds: Sequence[str],
    *,
    revision: str | None = None,
    local_files_only: bool = False,
) -> Part:
    """Return the part of a checkpoint, after a look at its config and its files' headers.

    Args:
        path_or_id: A checkpoint's folder as diffusers lays it out, or the part's own folder, or the
            id of a repository on the Hugging Face hub ("owner/name"), of which this part's
            safetensors are then downloaded into the hub's own cache.
        name: The part's subfolder: "transformer", "vae", "text_encoder", …
        kinds: What ``config.json`` may say that it is: ``_class_name`` of diffusers, or
            ``model_type`` of transformers.
        revision: Branch, tag or commit on the hub.
        local_files_only: Whether to take what was downloaded before and ask nobody.

    Raises:
        OSError: If the folder, its config or its weights are missing, or a file is cut short, or
            the hub cannot be reached.
        ValueError: If it holds a model of another kind, or weights as pickles alone.
    """
    root = _folder(path_or_id, name, revision, local_files_only)
    folder = root / name if (root / name).is_dir() else root
    path = folder / "config.json"
    if not path.is_file():
        inside = sorted(p.name for p in root.iterdir())[:12]
        raise FileNotFoundError(
            f"there is no {root / name / 'config.json'}: a checkpoint as diffusers lays it out is "
            f"needed, with model_index.json and a folder {name}/; in {root} there are {inside}"
        )
    config = _json(path)
    found = config.get("_class_name", config.get("model_type"))
    if found not in kinds:
        raise ValueError(f"{folder} holds a {found}; expected {' or '.join(kinds)} as its {name}")
    files = _weight_files(folder)
    for file in files:
        tensors(file)
    return Part(folder, config, files)


def tensors(file: str | PathLike[str]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return (dtype, shape) of each tensor that a safetensors file holds, by its header.

    Raises:
        OSError: If the file cannot be read, is cut short, or is no safetensors file.
    """
    file = Path(file)
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER):
            raise OSError(
                f"{file} is no safetensors file, or cut short ({size} bytes): fetch it anew"
            )
        try:
            header = json.loads(opened.read(length))
            found = {
                name: (str(entry["dtype"]), tuple(int(n) for n in entry["shape"]))
                for name, entry in header.items()
                if name != "__metadata__"
            }
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name in found]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise OSError(f"{file} is no safetensors file: its header is damaged") from error
    whole = 8 + length + max(ends, default=0)
    if size != whole:
        raise OSError(f"{file} has {size} bytes and its header tells of {whole}: fetch it anew")
    return found


def _folder(
    path_or_id: str | PathLike[str], name: str, revision: str | None, local_files_only: bool
) -> Path:
    text = fspath(path_or_id)
    folder = Path(text).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise NotADirectoryError(
            f"{text} is a file: give the folder of a checkpoint as diffusers lays it out, with "
            "model_index.json (the single files of other programs are not read)"
        )
    if folder.is_absolute() or text.startswith((".", "~")) or text.count("/") != 1:
        raise FileNotFoundError(f"there is no folder {text}")
    from huggingface_hub import snapshot_download

    patterns = [f"{name}/*.json", f"{name}/*.safetensors", "model_index.json"]
    try:
        return Path(
            snapshot_download(
                text,
                revision=revision,
                allow_patterns=patterns,
                local_files_only=local_files_only,
            )
        )
    except Exception as error:  # of the hub's client, of its HTTP library, of the network
        where = "asked nobody, and it was not downloaded before" if local_files_only else error
        raise OSError(
            f"{text!r} is neither a folder here nor to be had from the Hugging Face hub ({where}). "
            "Without a network give the path of a folder; a repository that asks for consent needs "
            "a login (hf auth login)"
        ) from error


def _weight_files(folder: Path) -> tuple[Path, ...]:
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if indexes:
        names = sorted({str(n) for n in _json(indexes[0]).get("weight_map", {}).values()})
        if any(Path(n).name != n for n in names):
            raise ValueError(f"{indexes[0]} names files outside of its folder: {names[:3]}")
        missing = [n for n in names if not (folder / n).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{folder} lacks {missing[0]}"
                + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
                + f", which {indexes[0].name} names: fetch the checkpoint anew"
            )
        files = tuple(folder / n for n in names)
    else:
        files = tuple(sorted(folder.glob("*.safetensors")))
    if files:
        return files
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
    if pickles:
        raise ValueError(
            f"{folder} holds weights as a pickle alone ({pickles[0]}), which runs code when it is "
            "loaded: get them as safetensors"
        )
    raise FileNotFoundError(f"{folder} holds no weights: there must be a .safetensors file")


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise OSError(f"{path} is no JSON: {error}; fetch it anew") from error
    if not isinstance(value, dict):
        raise OSError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value
