"""A model's fingerprint: the same for the same weights and settings, wherever they lie."""

import json
import os
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from typing import Any, Final

import torch

CHUNK: Final = 16 << 20
"""Bytes that are hashed, and fetched from a device, at once."""

NO_MATTER: Final = frozenset(
    (
        *("architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"),
        *("gradient_checkpointing", "id2label", "label2id", "num_labels", "problem_type"),
        *("output_attentions", "output_hidden_states", "return_dict", "chunk_size_feed_forward"),
        *("finetuning_task", "task_specific_params", "tokenizer_class", "tie_word_embeddings"),
    )
)
"""Entries of configs that do not change what a model computes of its weights. Names that begin with
``_`` (where it was loaded from, libraries' versions) do not either."""


def fingerprint(
    module: torch.nn.Module, *, without: Collection[str] = (), ignore: Collection[str] = ()
) -> str:
    """Return 32 hex digits for a model: of its weights, class and config.

    A tree of BLAKE2b: chunks of 16 MiB are hashed by several threads. All parameters and persistent
    buffers count, with their names, types and shapes, in no order; what device they lie on does
    not, nor whether the module is compiled.

    Args:
        module: The model.
        without: Beginnings of the names of weights that do not count, such as ``"decoder."``.
        ignore: Entries of its config that do not count, beside `NO_MATTER`.

    Raises:
        ValueError: Weights are not there (offloaded, on ``meta``) or spread over ranks.
    """
    module = getattr(module, "_orig_mod", module)  # torch.compile's wrapper
    weights = module.state_dict()
    plain = dict(_plain(name, value) for name, value in _parts(weights) if not _out(name, without))
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as threads:
        chunks = [(name, at) for name in plain for at in range(0, plain[name].nbytes, CHUNK)]
        leaves = threads.map(lambda chunk: _leaf(plain[chunk[0]], chunk[1]), chunks)
        digests: dict[str, list[str]] = {name: [] for name in plain}
        for (name, _), leaf in zip(chunks, leaves, strict=True):
            digests[name].append(leaf)
    listed = {
        name: [str(plain[name].dtype), list(plain[name].shape), digests[name]] for name in plain
    }
    told = [type(module).__name__, _config(module, ignore), listed]
    text = json.dumps(told, sort_keys=True, default=str)
    return blake2b(text.encode(), digest_size=16).hexdigest()


def _out(name: str, without: Collection[str]) -> bool:
    return any(name.startswith(beginning) for beginning in without)


def _parts(weights: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) of all weights, tensors of tensors (quantised ones) taken apart."""
    for name, value in weights.items():
        if type(value).__name__ == "DTensor":
            raise ValueError(
                f"the weight {before}{name} is spread over ranks: take the model's fingerprint "
                "before it is sharded"
            )
        flatten = getattr(value, "__tensor_flatten__", None)
        if flatten is not None:
            inner, told = flatten()
            yield f"{before}{name}({told!r})", torch.empty(0)
            parts = {part: getattr(value, part) for part in inner}
            yield from _parts(parts, f"{before}{name}.")
        elif isinstance(value, torch.Tensor):
            yield before + name, value


def _plain(name: str, value: torch.Tensor) -> tuple[str, torch.Tensor]:
    if value.device.type == "meta":
        raise ValueError(
            f"the weight {name} has no data (it is on the device 'meta'): load the model, or take "
            "it from where it is offloaded, before its fingerprint is taken"
        )
    return name, value.detach().contiguous()


def _leaf(value: torch.Tensor, at: int) -> str:
    """Return the hash of one chunk of a tensor's bytes."""
    flat = value.reshape(-1).view(torch.uint8)[at : at + CHUNK]
    return blake2b(flat.cpu().numpy().data, digest_size=16).hexdigest()


def _config(module: torch.nn.Module, ignore: Collection[str]) -> dict[str, Any]:
    """Return the config's entries that count; {} where the model has none."""
    config: Any = getattr(module, "config", None)
    if hasattr(config, "to_dict"):  # transformers'
        config = config.to_dict()
    if not isinstance(config, Mapping):
        return {}
    return _counting(config, NO_MATTER | set(ignore))


def _counting(config: Mapping[str, Any], ignore: Collection[str]) -> dict[str, Any]:
    return {
        name: _counting(value, ignore) if isinstance(value, Mapping) else value
        for name, value in config.items()
        if not str(name).startswith("_") and name not in ignore
    }
