"""A transformers model of CLIP's kind: images and texts to vectors of one space."""

import json
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

Kinds = Literal["both", "image", "text"]


class Embedder:
    """Embeds images and texts with a model such as CLIP or SigLIP.

    Args:
        model: A folder, or the id of a model on the Hugging Face hub.
        kinds: What is embedded; nothing is loaded for what is not.
        device: Where it runs.
        precision: Type of the weights and of the computation.
        normalize: Whether vectors are divided by their length.

    Raises:
        ValueError: The model is of another kind.
        OSError: It cannot be found.

    Attributes:
        processor: The model's own image processor; None where no images are embedded.
        image_shape: [3, height, width] of what that gives.
        fingerprint: Hash of weights, image processor and tokenizer, 32 hexadecimal digits.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        kinds: Kinds = "both",
        device: str = "cpu",
        precision: Literal["float32", "bfloat16", "float16"] = "float32",
        normalize: bool = True,
    ) -> None:
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        models: Any = AutoModel
        processors: Any = AutoImageProcessor
        tokenizers: Any = AutoTokenizer
        self.normalize = normalize
        self.device = torch.device(device)
        self.model = models.from_pretrained(model, dtype=torch.float32)
        self.processor: Any = None if kinds == "text" else processors.from_pretrained(model)
        self.tokenizer: Any = None if kinds == "image" else tokenizers.from_pretrained(model)
        for kind in ("image", "text") if kinds == "both" else (kinds,):
            if not hasattr(self.model, f"get_{kind}_features"):
                raise ValueError(
                    f"{model} is a {type(self.model).__name__}, which gives no embeddings of "
                    f"{kind}s; expected a model such as CLIP or SigLIP"
                )
        self.image_shape = (0, 0, 0) if self.processor is None else self._image_shape()
        self.max_length = 0 if self.tokenizer is None else self._max_length()
        self.fingerprint = self._fingerprint()
        self.model.to(self.device, getattr(torch, precision)).eval()

    @torch.inference_mode()
    def images(self, pixels: torch.Tensor) -> np.ndarray:
        """Return float32 [B, dimension] of what the processor made of images, [B, 3, H, W]."""
        pixels = pixels.to(self.device, self.model.dtype, non_blocking=True)
        return self._rows(self.model.get_image_features(pixel_values=pixels))

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32 [B, dimension] of texts; what is behind the model's last token is cut."""
        # All of one length: SigLIP was trained so, and CLIP looks at no token behind the end.
        tokens = self.tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        ).to(self.device)
        return self._rows(self.model.get_text_features(**tokens))

    def _rows(self, found: Any) -> np.ndarray:
        # transformers 5 gives an object, as 4 gave the tensor itself.
        vectors = (found if torch.is_tensor(found) else found.pooler_output).float()
        if self.normalize:
            vectors = torch.nn.functional.normalize(vectors, dim=-1)
        return vectors.cpu().numpy()

    def _image_shape(self) -> tuple[int, int, int]:
        grey = torch.full((3, 64, 64), 128, dtype=torch.uint8)
        made = self.processor(images=grey, return_tensors="pt", input_data_format="channels_first")
        shape = tuple(made["pixel_values"].shape[1:])
        if set(made) != {"pixel_values"} or len(shape) != 3:
            raise ValueError(
                f"the model's image processor gives {', '.join(made)} of shape {shape}; expected "
                "pixel_values alone, of one size for all images"
            )
        return shape

    def _max_length(self) -> int:
        text = getattr(self.model.config, "text_config", self.model.config)
        most = getattr(text, "max_position_embeddings", self.tokenizer.model_max_length)
        return int(min(most, self.tokenizer.model_max_length))

    def _fingerprint(self) -> str:
        digest = blake2b(digest_size=16)
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        if self.processor is not None:
            values = self.processor.to_dict()
            digest.update(json.dumps(values, sort_keys=True, default=str).encode())
        if self.tokenizer is not None:
            fast = getattr(self.tokenizer, "backend_tokenizer", None)
            words = sorted(self.tokenizer.get_vocab().items()) if fast is None else fast.to_str()
            digest.update(json.dumps([words, self.max_length]).encode())
        return digest.hexdigest()
