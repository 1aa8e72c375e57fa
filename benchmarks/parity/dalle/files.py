"""Files as OpenAI and taming-transformers wrote them, made by their own code; and what is in them.

DALL-E's registry package writes whole pickled modules, as OpenAI's files are.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dall_e
import torch
import yaml
from dall_e.utils import map_pixels, unmap_pixels
from dalle_pytorch import VQGanVAE
from same import far, shaken

from penstock.models import dalle as penstock


def file_cases() -> Iterator[tuple[str, dict[str, float]]]:
    with tempfile.TemporaryDirectory(prefix="penstock-parity-") as folder:
        yield openai(Path(folder))
        for gumbel in (False, True):
            yield vqgan(Path(folder), gumbel)


def patches(side: int) -> torch.Tensor:
    """Return two images of 8 x 8 patches, each of one colour: they have many codes."""
    return torch.rand(2, 3, 8, 8).repeat_interleave(side // 8, 2).repeat_interleave(side // 8, 3)


@torch.no_grad()
def openai(folder: Path) -> tuple[str, dict[str, float]]:
    torch.manual_seed(0)
    encoder = dall_e.Encoder(n_hid=64, n_blk_per_group=1, vocab_size=512)
    decoder = dall_e.Decoder(n_hid=64, n_blk_per_group=1, vocab_size=512, n_init=16)
    torch.save(shaken(encoder, 1), folder / "encoder.pkl")
    torch.save(shaken(decoder, 2), folder / "decoder.pkl")
    ours = penstock.OpenAIDiscreteVAE(folder / "encoder.pkl", folder / "decoder.pkl", 64)
    images = patches(64)
    codes = encoder(map_pixels(images)).argmax(dim=1)
    hot = torch.nn.functional.one_hot(codes, 512).permute(0, 3, 1, 2).float()
    expected = unmap_pixels(decoder(hot).float()[:, :3].sigmoid())
    assert codes.unique().numel() > 5
    return "OpenAI's image tokenizer", {
        "codes": (ours.get_codebook_indices(images) != codes.flatten(1)).double().mean().item(),
        "decoded": far(ours.decode(codes.flatten(1)), expected),
    }


@torch.no_grad()
def vqgan(folder: Path, gumbel: bool) -> tuple[str, dict[str, float]]:
    config = {
        "double_z": False,
        "z_channels": 16,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": [1, 1, 1, 1, 2],
        "num_res_blocks": 1,
        "attn_resolutions": [16],
        "dropout": 0.0,
    }
    params: dict[str, Any] = {"embed_dim": 16, "n_embed": 64, "ddconfig": config}
    params["lossconfig"] = {"target": "taming.modules.losses.vqperceptual.DummyLoss"}
    name = "VQModel"
    if gumbel:
        name = "GumbelVQ"
        params["temperature_scheduler_config"] = {"target": "builtins.dict"}
    model = {"target": f"taming.models.vqgan.{name}", "params": params}
    weights_path, config_path = folder / "model.ckpt", folder / "config.yml"
    config_path.write_text(yaml.safe_dump({"model": model}))
    torch.save({"state_dict": {}}, weights_path)
    torch.manual_seed(0)
    made = shaken(VQGanVAE(str(weights_path), str(config_path)).model, 3)
    torch.save({"state_dict": made.state_dict()}, weights_path)
    theirs = VQGanVAE(str(weights_path), str(config_path))
    ours = penstock.VQGanVAE(weights_path, config_path)
    images = patches(256)
    codes = ours.get_codebook_indices(images)
    if gumbel:  # theirs are drawn anew each time, even where the model only looks
        logits = theirs.model.quantize.proj(theirs.model.encode_to_prequant(2 * images - 1))
        expected = logits.argmax(dim=1).flatten(1)
    else:
        expected = theirs.get_codebook_indices(images)
    assert (ours.num_layers, ours.num_tokens) == (theirs.num_layers, theirs.num_tokens)
    assert codes.unique().numel() > 5
    return f"VQGAN, {name}", {
        "codes": (codes != expected).double().mean().item(),
        "decoded": far(ours.decode(codes), theirs.decode(codes)),
    }
