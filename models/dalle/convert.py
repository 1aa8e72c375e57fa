"""Checkpoints of dalle-pytorch 1.6.6 as models of ours."""

import re
from collections.abc import Mapping
from os import PathLike, fspath
from typing import Any

import torch
from torch import Tensor, nn

from .dalle import DALLE
from .discrete_vae import DiscreteVAE

_LAYER = re.compile(
    r"(?P<owner>\w*transformer)\.layers\."
    r"(?:layers\.(?P<number>\d+)\.(?P<half>[01])|blocks\.(?P<block>\d+)\.(?P<part>[fg])\.net)"
    r"\.(?P<rest>.+)"
)
_REST = (
    (re.compile(r"scale"), "scale"),
    (re.compile(r"fn\.(norm|norm_out)\.(weight|bias)"), r"\1.\2"),
    (re.compile(r"(?:fn\.)+to_qkv\.weight"), "inner.to_qkv.weight"),
    (re.compile(r"(?:fn\.)+to_out\.0\.(weight|bias)"), r"inner.to_out.\1"),
    (re.compile(r"(?:fn\.)+net\.0\.(weight|bias)"), r"inner.to_inner.\1"),
    (re.compile(r"(?:fn\.)+net\.3\.(weight|bias)"), r"inner.to_out.\1"),
)
_OTHERS = (
    (re.compile(r"to_logits\.0\.(weight|bias)"), r"norm.\1"),
    (re.compile(r"to_logits\.1\.(weight|bias)"), r"to_logits.\1"),
    (re.compile(r"image_pos_emb\.weights[._](?:weights_)?0"), "row_emb"),
    (re.compile(r"image_pos_emb\.weights[._](?:weights_)?1"), "column_emb"),
)
_COMPUTED = re.compile(r"\w*transformer\.pos_emb|(text|image)_emb\.linear\.(weight|bias)")
"""The positions, and what stands in the checkpoint twice."""

_DALLE_UNUSED = frozenset({"sparse_attn", "optimize_for_inference"})


def convert_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a DALLE or CLIP of dalle-pytorch 1.6.6 under the names of ours.

    A DiscreteVAE's names, which begin with ``vae.`` in a DALLE, stay as they are.

    Args:
        weights: A state_dict, of layers that are reversible or not.
    """
    out = {}
    for name, value in weights.items():
        if _COMPUTED.fullmatch(name):
            continue
        new = _layer_name(name)
        for pattern, replacement in _OTHERS:
            if pattern.fullmatch(new):
                new = pattern.sub(replacement, new)
        if new.endswith(".scale"):
            value = value.flatten()
        elif new in ("row_emb", "column_emb"):
            value = value.squeeze(0)
        out[new] = value
    return out


def load_vae(path: str | PathLike[str]) -> DiscreteVAE:
    """Return the DiscreteVAE of a ``vae.pt`` that dalle-pytorch's train_vae wrote.

    Loss settings are no part of that file; they are the defaults here.

    Args:
        path: The file. It is read without executing what it holds.

    Raises:
        ValueError: If the file is no such checkpoint, or its weights do not fit.
    """
    found = _read(path, ("hparams", "weights"))
    vae = DiscreteVAE(**found["hparams"])
    _load(vae, found["weights"], path)
    return vae


def load_dalle(path: str | PathLike[str], vae: nn.Module | None = None) -> DALLE:
    """Return the DALLE of a ``dalle.pt`` that dalle-pytorch's train_dalle wrote.

    Args:
        path: The file. It is read without executing what it holds.
        vae: The image tokenizer, where the file was trained with OpenAI's or with a VQGAN, whose
            settings it does not hold.

    Raises:
        ValueError: If the file is no such checkpoint, its weights do not fit, or ``vae`` is
            missing or one too many.
    """
    found = _read(path, ("hparams", "vae_params", "weights"))
    weights, params = convert_weights(found["weights"]), found["vae_params"]
    if params is None and vae is None:
        name = found.get("vae_class_name", "another image tokenizer")
        raise ValueError(f"{fspath(path)} was trained with {name}: pass it as vae=")
    if params is not None and vae is not None:
        raise ValueError(f"{fspath(path)} holds its DiscreteVAE: leave vae= out")
    given = {name: value for name, value in found["hparams"].items() if name not in _DALLE_UNUSED}
    dalle = DALLE(vae=DiscreteVAE(**params) if vae is None else vae, **given)
    if vae is not None:
        weights = {name: value for name, value in weights.items() if not name.startswith("vae.")}
        weights |= {f"vae.{name}": value for name, value in vae.state_dict().items()}
    _load(dalle, weights, path)
    return dalle


def _layer_name(name: str) -> str:
    match = _LAYER.fullmatch(name)
    if match is None:
        return name
    number = match["number"] or match["block"]
    half = "attention" if (match["half"] or match["part"]) in ("0", "f") else "feed_forward"
    for pattern, replacement in _REST:
        rest, done = pattern.subn(replacement, match["rest"]), pattern.fullmatch(match["rest"])
        if done:
            return f"{match['owner']}.layers.{number}.{half}.{rest[0]}"
    return name


def _read(path: str | PathLike[str], keys: tuple[str, ...]) -> dict[str, Any]:
    found = torch.load(path, map_location="cpu", weights_only=True)
    missing = [k for k in keys if not isinstance(found, dict) or k not in found]
    if missing:
        raise ValueError(
            f"{fspath(path)} is no checkpoint of dalle-pytorch: it has no {', '.join(missing)}"
        )
    return found  # type: ignore[no-any-return]


def _load(model: nn.Module, weights: Mapping[str, Tensor], path: str | PathLike[str]) -> None:
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{fspath(path)}: its weights do not fit its settings: {error}") from error
