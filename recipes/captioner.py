"""A transformers model that says what images show."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

DEFAULT_PROMPT = "Describe the image in one sentence."
"""What a model that chats is asked where nothing else is given."""


class Captioner:
    """Writes captions with a model of transformers' image-text-to-text kind, such as BLIP or LLaVA.

    A model that chats (its processor has a chat template) gets the prompt as the user's words, and
    its answer is the caption. For any other, the caption begins with the prompt.

    Args:
        model: A folder, or the id of a model on the Hugging Face hub.
        prompt: Words for the model; None: `DEFAULT_PROMPT` where it chats, else none.
        max_new_tokens: Most tokens of a caption.
        device: Where it runs.
        temperature: 0 takes the likeliest token each time; above, tokens are drawn.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        prompt: str | None = None,
        max_new_tokens: int = 64,
        device: str = "cpu",
        temperature: float = 0.0,
    ) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.device = torch.device(device)
        processors: Any = AutoProcessor
        models: Any = AutoModelForImageTextToText
        self.processor = processors.from_pretrained(model)
        self.model = models.from_pretrained(model, dtype="auto")
        self.model.to(self.device).eval()
        self.chats = bool(getattr(self.processor, "chat_template", None))
        self.prompt = prompt if prompt is not None or not self.chats else DEFAULT_PROMPT
        tokenizer = getattr(self.processor, "tokenizer", None)
        if tokenizer is not None and not self.model.config.is_encoder_decoder and self.chats:
            tokenizer.padding_side = "left"  # what is written goes on behind the prompt
        self.options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "num_beams": 1}
        self.options["do_sample"] = temperature > 0
        if temperature > 0:
            self.options["temperature"] = temperature

    @torch.inference_mode()
    def __call__(self, images: Sequence[torch.Tensor], seed: int = 0) -> list[str]:
        """Return a caption for each image, without blanks around it; "" where nothing was written.

        Args:
            images: uint8 [3, H, W], of any sizes.
            seed: Of the tokens that are drawn.
        """
        pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
        inputs = self._inputs(pictures).to(self.device)
        for name, value in inputs.items():
            if torch.is_tensor(value) and value.is_floating_point():
                inputs[name] = value.to(self.model.dtype)
        # transformers draws from torch's global generator, which stays as it was.
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            if self.options["do_sample"]:
                torch.manual_seed(seed)
            tokens = self.model.generate(**inputs, **self.options)
        given = inputs.get("input_ids")
        if self.chats and given is not None and _begins_with(tokens, given):
            tokens = tokens[:, given.shape[1] :]
        texts = self.processor.batch_decode(tokens, skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]

    def _inputs(self, pictures: list[Image.Image]) -> Any:
        if not self.chats:
            text = {} if not self.prompt else {"text": [self.prompt] * len(pictures)}
            return self.processor(images=pictures, return_tensors="pt", padding=True, **text)
        content = [{"type": "image"}, {"type": "text", "text": self.prompt}]
        words = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        begin = getattr(getattr(self.processor, "tokenizer", None), "bos_token", None)
        return self.processor(
            images=[[picture] for picture in pictures],
            text=[words] * len(pictures),
            return_tensors="pt",
            padding=True,
            add_special_tokens=not (begin and words.startswith(begin)),
        )


def _begins_with(tokens: torch.Tensor, given: torch.Tensor) -> bool:
    count = given.shape[1]
    return tokens.shape[1] >= count and torch.equal(tokens[:, :count], given)
