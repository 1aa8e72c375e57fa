"""Fixtures: small tokenizers, folders of them as checkpoints have them, and batches."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from penstock.recipes.tiny_tokenizers import tiny_clip_tokenizer, tiny_t5_tokenizer

LONG = "a large red circle on a blue background, at the top left. " * 40


@pytest.fixture(scope="session")
def clip() -> Any:
    """transformers' CLIPTokenizer, tiny."""
    return tiny_clip_tokenizer()


@pytest.fixture(scope="session")
def clip_g() -> Any:
    """The like that pads with "!", as OpenCLIP's bigG does."""
    return tiny_clip_tokenizer(pad_token="!")


@pytest.fixture(scope="session")
def t5() -> Any:
    """transformers' T5TokenizerFast, tiny."""
    return tiny_t5_tokenizer()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, clip: Any, t5: Any) -> Path:
    """A folder with tokenizer/ and tokenizer_2/, by save_pretrained, and nothing else."""
    folder = tmp_path_factory.mktemp("checkpoint")
    clip.save_pretrained(folder / "tokenizer")
    t5.save_pretrained(folder / "tokenizer_2")
    return folder


@pytest.fixture(scope="session")
def captions() -> list[str]:
    """Short, empty, long, odd ones; special tokens spelled out; some that fill 77 or 512 ids."""
    return [
        "a large red circle",
        "",
        LONG,
        "  Zwei   Füße\n\tvoll Öl — 日本 🙂 e\u0301 \u0000 ",
        "<|endoftext|> a </s> ring <pad><|startoftext|> <extra_id_3>",
        *("a " * n for n in (74, 75, 76, 77, 254, 255, 256, 510, 511, 512, 513)),
        "x" * 3000,
    ]


@pytest.fixture(scope="session")
def make_batch_of() -> Callable[..., dict[str, Any]]:
    """Return a function that makes a batch of captions, as the pipes collate it."""

    def made(captions: list[str], height: int = 32, width: int = 48) -> dict[str, Any]:
        n = len(captions)
        pixels = np.random.Generator(np.random.Philox(7)).integers(
            0, 256, (n, 3, height, width), np.uint8
        )
        return {
            "image": torch.from_numpy(pixels),
            "mask": torch.full((n, 1, height, width), 255, dtype=torch.uint8),
            "caption": list(captions),
            "original_size": torch.tensor([[2 * height, 3 * width]] * n),
            "crop_top_left": torch.tensor([[0, i] for i in range(n)]),
            "target_size": torch.tensor([[height, width]] * n),
            "loss_weight": torch.ones(n),
            "__key__": [f"{i:04d}" for i in range(n)],
            "__url__": ["shards/00000.tar"] * n,
            "__batch__": 3,
        }

    return made


@pytest.fixture
def rng() -> np.random.Generator:
    """A batch's draws, as .transform() gives them."""
    return np.random.Generator(np.random.Philox(key=5))


class DictStore:
    """A `penstock.transforms.entry.Store` of one process's memory."""

    def __init__(self) -> None:
        self.entries: dict[str, dict[str, torch.Tensor]] = {}
        self.said: dict[str, list[dict[str, Any]]] = {}
        self.told: dict[str, Any] = {}
        self.reads = 0

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def read(self, name: str) -> dict[str, torch.Tensor] | None:
        self.reads += 1
        return self.entries.get(name)

    def write(
        self, name: str, tensors: dict[str, torch.Tensor], about: Mapping[str, Any], source: str
    ) -> None:
        if name not in self.entries:
            self.entries[name] = tensors
            self.said.setdefault(source, []).append(json.loads(json.dumps(about)))

    def about(self, source: str) -> list[dict[str, Any]]:
        return self.said.get(source, [])

    def manifest(self) -> dict[str, Any]:
        return self.told

    def describe(self, manifest: Mapping[str, Any]) -> None:
        self.told = json.loads(json.dumps(manifest))

    def sizes(self) -> tuple[int, int]:
        held = [value.nbytes for entry in self.entries.values() for value in entry.values()]
        return len(self.entries), sum(held)

    def names(self) -> list[str]:
        return list(self.entries)


@pytest.fixture
def store() -> DictStore:
    """A store in memory."""
    return DictStore()
