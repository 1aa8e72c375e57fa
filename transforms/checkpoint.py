"""Tokenizers and configs of checkpoints: a folder, or a repository on the Hugging Face hub."""

import importlib.util
import json
from collections.abc import Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal

Kind = Literal["clip", "t5"]

FILES: dict[Kind, tuple[tuple[str, ...], ...]] = {
    "clip": (("tokenizer.json",), ("vocab.json", "merges.txt")),
    "t5": (("tokenizer.json",), ("spiece.model",)),
}
"""Files that are enough to make a tokenizer of: any one of the groups."""

CLASSES: dict[Kind, str] = {"clip": "CLIPTokenizer", "t5": "T5TokenizerFast"}
"""transformers' classes, which diffusers loads for FLUX.1, SDXL and SD3 too."""

MODELS: dict[Kind, str] = {"clip": "BPE", "t5": "Unigram"}
"""What kind of model ``tokenizer.json`` holds."""

SMALL = (
    *("tokenizer.json", "vocab.json", "merges.txt", "spiece.model", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "config.json"),
    *("processor_config.json", "preprocessor_config.json", "model_index.json"),
)
"""What is downloaded of a folder on the hub: no weights."""


def checkpoint_folder(
    path_or_id: str | PathLike[str],
    wanted: Sequence[str],
    revision: str | None = None,
    local_files_only: bool = False,
) -> Path:
    """Return a local folder that holds a checkpoint's small files.

    A repository's are downloaded into the hub's own cache, the wanted ones alone.

    Args:
        path_or_id: A folder, or the id of a repository ("owner/name").
        wanted: Subfolders whose tokenizers and configs are wanted; "" is the checkpoint itself.
        revision: Branch, tag or commit on the hub.
        local_files_only: Whether to take what was downloaded before and ask nobody.

    Raises:
        OSError: If there is no such folder, or the repository cannot be had.
    """
    name = fspath(path_or_id)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise NotADirectoryError(f"{name} is a file: give the folder of the checkpoint")
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise FileNotFoundError(f"there is no folder {name}")
    from huggingface_hub import snapshot_download

    patterns = [f"{part}/{n}" if part else n for part in wanted for n in SMALL]
    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=patterns,
                local_files_only=local_files_only,
            )
        )
    except Exception as error:  # of the hub's client, of its HTTP library, of the network
        where = "asked nobody, and it was not downloaded before" if local_files_only else error
        raise OSError(
            f"{name!r} is neither a folder here nor to be had from the Hugging Face hub "
            f"({where}). Without a network give the path of a folder; a repository that asks for "
            "consent needs a login (hf auth login)"
        ) from error


def load_tokenizer(folder: Path, kind: Kind) -> Any:
    """Return transformers' fast tokenizer of the files in ``folder``.

    Raises:
        FileNotFoundError: If the folder or the files are missing. (transformers 5 would then make
            a tokenizer without a vocabulary, and say nothing.)
        ImportError: If there is a ``spiece.model`` alone, and no package to read it.
        ValueError: If ``tokenizer.json`` holds another kind of tokenizer.
    """
    if not folder.is_dir():
        beside = sorted(p.name for p in folder.parent.iterdir()) if folder.parent.is_dir() else []
        raise FileNotFoundError(
            f"there is no folder {folder}: a tokenizer must lie there; beside it are {beside[:12]}"
        )
    found = [group for group in FILES[kind] if all((folder / n).is_file() for n in group)]
    if not found:
        groups = ", or ".join(" and ".join(group) for group in FILES[kind])
        raise FileNotFoundError(f"{folder} holds no {kind} tokenizer: it needs {groups}")
    if found[0] == ("tokenizer.json",):
        _check_kind(folder / "tokenizer.json", kind)
    elif found[0] == ("spiece.model",):
        _check_sentencepiece(folder)
    import transformers

    return getattr(transformers, CLASSES[kind]).from_pretrained(folder, local_files_only=True)


def load_chat_tokenizer(folder: Path) -> Any:
    """Return transformers' fast tokenizer of ``tokenizer.json`` in ``folder``, of whatever kind.

    With the chat template that lies beside it.

    Raises:
        FileNotFoundError: If the file is missing.
    """
    if not (folder / "tokenizer.json").is_file():
        raise FileNotFoundError(f"{folder} holds no tokenizer: it needs tokenizer.json")
    import transformers

    loader: Any = transformers.AutoTokenizer
    return loader.from_pretrained(folder, local_files_only=True)


def load_config(folder: Path) -> dict[str, Any] | None:
    """Return ``config.json`` of the folder, or None where there is none.

    Raises:
        ValueError: If it is no JSON object.
    """
    path = folder / "config.json"
    return load_json(path) if path.is_file() else None


def load_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        ValueError: If it holds none.
    """
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def _check_kind(path: Path, kind: Kind) -> None:
    model = load_json(path).get("model")
    found = model.get("type") if isinstance(model, dict) else None
    if found != MODELS[kind]:
        raise ValueError(
            f"{path} holds a tokenizer of type {found}, and a {kind} tokenizer is of type "
            f"{MODELS[kind]}"
        )


def _check_sentencepiece(folder: Path) -> None:
    for module, package in (("sentencepiece", "sentencepiece"), ("google.protobuf", "protobuf")):
        try:
            present = importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:  # there is no package google either
            present = False
        if not present:
            raise ImportError(
                f"{folder} holds spiece.model and no tokenizer.json, and to read it transformers "
                f"needs {package}: pip install sentencepiece protobuf"
            )
