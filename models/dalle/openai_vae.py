"""The image tokenizer that OpenAI published with DALL-E."""

import math
from collections import OrderedDict
from os import PathLike
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .pickled_module import load_husks, module_weights

FOLDER = Path("~/.cache/dalle")
"""Where dalle-pytorch kept the files."""
EDGE = 0.1
"""Images are brought from [0, 1] to [0.1, 0.9], where the logistic is not steep."""
CLASSES = (
    *("dall_e.encoder.Encoder", "dall_e.encoder.EncoderBlock"),
    *("dall_e.decoder.Decoder", "dall_e.decoder.DecoderBlock"),
    "dall_e.utils.Conv2d",
    "torch.nn.modules.container.Sequential",
    *("torch.nn.modules.activation.ReLU", "torch.nn.modules.pooling.MaxPool2d"),
    *("torch.nn.modules.upsampling.Upsample", "torch.nn.modules.linear.Identity"),
)
"""What the files may hold."""


class Block(nn.Module):
    """Four convolutions beside a straight path; ``kernels`` are their sides in pixels."""

    def __init__(self, n_in: int, n_out: int, kernels: tuple[int, ...], gain: float) -> None:
        super().__init__()
        self.gain = gain
        hidden = n_out // 4
        widths = (n_in, hidden, hidden, hidden, n_out)
        self.id_path = nn.Conv2d(n_in, n_out, 1) if n_in != n_out else nn.Identity()
        parts: list[tuple[str, nn.Module]] = []
        for i, side in enumerate(kernels):
            parts.append((f"relu_{i + 1}", nn.ReLU()))
            conv = nn.Conv2d(widths[i], widths[i + 1], side, padding=side // 2)
            parts.append((f"conv_{i + 1}", conv))
        self.res_path = nn.Sequential(OrderedDict(parts))

    def forward(self, x: Tensor) -> Tensor:
        return self.id_path(x) + self.gain * self.res_path(x)  # type: ignore[no-any-return]


class Stack(nn.Module):
    """Groups of blocks, with a halving (encoder) or doubling (decoder) between them."""

    def __init__(self, sizes: "Sizes", *, encoder: bool) -> None:
        super().__init__()
        gain = 1 / (sizes.groups * sizes.blocks) ** 2
        kernels = (3, 3, 3, 1) if encoder else (1, 3, 3, 3)
        first = sizes.hidden if encoder else sizes.first
        parts: list[tuple[str, nn.Module]] = []
        start = nn.Conv2d(3, first, 7, padding=3) if encoder else nn.Conv2d(sizes.codes, first, 1)
        parts.append(("input", start))
        width = first
        for group in range(sizes.groups):
            out = sizes.hidden * 2 ** (group if encoder else sizes.groups - 1 - group)
            inner: list[tuple[str, nn.Module]] = []
            for i in range(sizes.blocks):
                inner.append((f"block_{i + 1}", Block(width, out, kernels, gain)))
                width = out
            if group < sizes.groups - 1:
                step = nn.MaxPool2d(2) if encoder else nn.Upsample(scale_factor=2, mode="nearest")
                inner.append(("pool" if encoder else "upsample", step))
            parts.append((f"group_{group + 1}", nn.Sequential(OrderedDict(inner))))
        last = nn.Conv2d(width, sizes.codes if encoder else 6, 1)
        parts.append(("output", nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=last))))
        self.blocks = nn.Sequential(OrderedDict(parts))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)  # type: ignore[no-any-return]


class Sizes:
    """The sizes of both networks, read off their weights.

    Raises:
        KeyError: If a weight is missing.
    """

    def __init__(self, encoder: dict[str, Tensor], decoder: dict[str, Tensor]) -> None:
        names = [name.split(".") for name in encoder]
        self.groups = len({n[1] for n in names if n[1].startswith("group_")})
        self.blocks = len({n[2] for n in names if n[1] == "group_1" and n[2].startswith("block_")})
        self.hidden = encoder["blocks.input.weight"].shape[0]
        self.codes = encoder["blocks.output.conv.weight"].shape[0]
        self.first = decoder["blocks.input.weight"].shape[0]


class OpenAIDiscreteVAE(nn.Module):
    """OpenAI's image tokenizer, 8192 codes of 8 x 8 pixels, from its two files.

    Nothing is downloaded. The files are whole pickled modules; of them only the weights are read,
    and a file with any other class than theirs is refused.

    Args:
        encoder: The file ``encoder.pkl``; where dalle-pytorch kept it, in ~/.cache/dalle, if None.
        decoder: The file ``decoder.pkl``, likewise.
        image_size: Side of the images in pixels.

    Raises:
        FileNotFoundError: If a file is not there.
        ValueError: If a file holds something else.
    """

    def __init__(
        self,
        encoder: str | PathLike[str] | None = None,
        decoder: str | PathLike[str] | None = None,
        image_size: int = 256,
    ) -> None:
        super().__init__()
        weights = [
            _weights(path, name)
            for path, name in ((encoder, "encoder.pkl"), (decoder, "decoder.pkl"))
        ]
        try:
            sizes = Sizes(*weights)
            self.enc, self.dec = Stack(sizes, encoder=True), Stack(sizes, encoder=False)
            self.enc.load_state_dict(weights[0])
            self.dec.load_state_dict(weights[1])
        except (KeyError, IndexError, RuntimeError) as error:
            raise ValueError(f"the files are not an encoder and its decoder: {error}") from error
        self.image_size, self.channels = image_size, 3
        self.num_layers, self.num_tokens = sizes.groups - 1, sizes.codes
        self.requires_grad_(False)

    @torch.no_grad()
    def get_codebook_indices(self, images: Tensor) -> Tensor:
        """Return the codes of images, float [B, 3, S, S] in [0, 1], as int64 [B, n]."""
        logits: Tensor = self.enc(images * (1 - 2 * EDGE) + EDGE)
        return logits.argmax(dim=1).flatten(1)

    def decode(self, img_seq: Tensor) -> Tensor:
        """Return the images of codes, integers [B, n], as float [B, 3, S, S] in [0, 1]."""
        side = math.isqrt(img_seq.shape[1])
        codes = F.one_hot(torch.unflatten(img_seq, 1, (side, side)), self.num_tokens).movedim(-1, 1)
        stats: Tensor = self.dec(codes.to(self.dec.blocks.input.weight.dtype))  # type: ignore[union-attr, arg-type]
        return ((stats[:, :3].sigmoid() - EDGE) / (1 - 2 * EDGE)).clamp(0, 1)


def _weights(path: str | PathLike[str] | None, name: str) -> dict[str, Tensor]:
    path = FOLDER.expanduser() / name if path is None else Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file {path}: OpenAI's {name} is not downloaded; pass its path"
        )
    found = module_weights(load_husks(path, CLASSES), path)
    endings = {"w": "weight", "b": "bias"}
    out = {}
    for key, value in found.items():
        head, _, tail = key.rpartition(".")
        out[f"{head}.{endings.get(tail, tail)}"] = value.float()
    return out
