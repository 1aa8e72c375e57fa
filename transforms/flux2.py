"""What FLUX.2 takes: pixels, and the tokens of a chat for its language model."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch

from .checkpoint import checkpoint_folder, load_chat_tokenizer, load_json
from .fast_tokenizer import FastTokenizer
from .model_transform import ModelTransform
from .tokenize import Tokenize

Variant = Literal["dev", "klein"]

SYSTEM_MESSAGE = (
    "You are an AI that reasons about image descriptions. You give structured responses focusing "
    "on object relationships, object\nattribution and actions without speculation."
)
"""What FLUX.2 dev's language model is told first (black-forest-labs/flux2,
``src/flux2/system_messages.py``)."""

PIPELINES: dict[str, Variant] = {
    "Flux2Pipeline": "dev",
    "Flux2KleinPipeline": "klein",
    "Flux2KleinKVPipeline": "klein",
    "Flux2KleinInpaintPipeline": "klein",
}
"""diffusers' pipelines, by the name that ``model_index.json`` has."""


class ChatTokenize(Tokenize):
    """Tokens of captions as one turn of a chat, by the checkpoint's own chat template."""

    kind = "text"
    length = 512  # MAX_LENGTH of black-forest-labs/flux2, src/flux2/text_encoder.py

    def __init__(
        self, chat: Any, *, variant: Variant, max_length: int | None = None, drop: float = 0.0
    ) -> None:
        self.variant = variant
        self._template = chat.chat_template
        # A processor holds a tokenizer, and has a template of its own.
        self._chat = getattr(chat, "tokenizer", chat)
        if not self._template:
            raise ValueError(
                f"the {type(chat).__name__} has no chat template: it lies in chat_template.jinja "
                "or tokenizer_config.json"
            )
        super().__init__(self._chat, max_length=max_length, drop=drop)

    def _tokens(self, tokenizer: Any, max_length: int) -> FastTokenizer:
        # The template may write the begin token itself; a processor then adds none, as
        # transformers' ProcessorMixin.apply_chat_template has it.
        begin = tokenizer.bos_token
        written = begin is not None and self.texts([""])[0].startswith(begin)
        special = self.variant == "klein" or not written
        tokens = FastTokenizer(tokenizer, max_length, add_special_tokens=special)
        rules = f"{tokens.digest}\n{self.variant}\n{self._template}"
        tokens.digest = hashlib.sha256(rules.encode()).hexdigest()
        return tokens

    def texts(self, captions: Sequence[str]) -> Sequence[str]:
        if self.variant == "klein":
            more: dict[str, Any] = {"add_generation_prompt": True, "enable_thinking": False}
            chats: list[Any] = [[{"role": "user", "content": c}] for c in captions]
        else:
            more = {"add_generation_prompt": False}
            # [IMG] would stand for an image that is not there.
            chats = [
                [_turn("system", SYSTEM_MESSAGE), _turn("user", c.replace("[IMG]", ""))]
                for c in captions
            ]
        template = self._template
        return [
            self._chat.apply_chat_template(chat, chat_template=template, tokenize=False, **more)
            for chat in chats
        ]


@dataclass(init=False, repr=False, eq=False)
class Flux2Transform(ModelTransform):
    """Turns a batch of decoded samples into what FLUX.2 takes (``.transform(Flux2Transform(…))``).

    Gives the batch with these fields; all others stay as they are:

    - ``image``: ``dtype`` [B, 3, H, W] in [-1, 1];
    - ``text_tokens``: int64 [B, 512], of the chat that the checkpoint's template makes of a
      caption: for Mistral (dev, after a system message) or Qwen3 (klein);
    - ``text_attention_mask``: int64 [B, 512], which the language model takes; the transformer
      attends to all 512;
    - ``text_cut``: int64 [B], how many tokens of the chat did not fit; `CutReport` sums it up;
    - ``text_dropped``: bool [B], where ``drop`` is not 0: whose caption was taken for "".

    Latents, packing, ids and the timestep shift are the functions ``flux2_…`` of this package.

    Args:
        tokenizer: The checkpoint's: a fast tokenizer of transformers with a chat template, or a
            processor that holds one.
        variant: "dev" or "klein".
        dtype: Of ``image``; None leaves it uint8, as decoded, for `normalize_image` on the GPU.
        drop: Probability that a sample gets the tokens of the empty caption.

    Raises:
        TypeError: If it is no fast tokenizer of transformers.
        ValueError: If an argument is none of these, or there is no chat template.
    """

    model = "FLUX.2"
    multiple = 16  # pixels: one latent is 8 x 8 of them, one token 2 x 2 latents

    variant: Variant

    def __init__(
        self,
        tokenizer: Any,
        *,
        variant: Variant = "dev",
        dtype: torch.dtype | None = torch.float32,
        drop: float = 0.0,
    ) -> None:
        if variant not in ("dev", "klein"):
            raise ValueError(f"variant must be 'dev' or 'klein', got {variant!r}")
        super().__init__((ChatTokenize(tokenizer, variant=variant, drop=drop),), dtype)
        self.variant = variant

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | PathLike[str],
        *,
        variant: Variant | None = None,
        dtype: torch.dtype | None = torch.float32,
        drop: float = 0.0,
        revision: str | None = None,
        local_files_only: bool = False,
    ) -> "Flux2Transform":
        """Return the transform for a checkpoint of diffusers.

        Args:
            path_or_id: A folder in which ``tokenizer/`` lies, or the id of a repository on the
                Hugging Face hub; of that no weights are downloaded.
            variant: "dev" or "klein"; else ``model_index.json`` says it.
            dtype: Of ``image``.
            drop: Probability that a sample gets the tokens of the empty caption.
            revision: Branch, tag or commit on the hub.
            local_files_only: Whether to take what was downloaded before and ask nobody.

        Raises:
            OSError: If the folder or the tokenizer is missing, or the hub cannot be reached.
            ValueError: If nothing tells the variant, or there is no chat template.
        """
        folder = checkpoint_folder(path_or_id, ["", "tokenizer"], revision, local_files_only)
        variant = variant or _variant(folder)
        tokenizer = load_chat_tokenizer(folder / "tokenizer")
        return cls(tokenizer, variant=variant, dtype=dtype, drop=drop)


def _turn(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]}


def _variant(folder: Path) -> Variant:
    path = folder / "model_index.json"
    name = str(load_json(path).get("_class_name")) if path.is_file() else None
    if name not in PIPELINES:
        raise ValueError(
            f"{path} names no pipeline of FLUX.2 ({name}), so dev and klein cannot be told apart: "
            "give variant="
        )
    return PIPELINES[name]
