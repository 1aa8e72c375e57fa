"""VQGANs from a checkpoint and a configuration, and of diffusers."""

import sys
import types

import pytest
import torch
import yaml

from penstock.models.dalle import DALLE, DiffusersVQ, VQGanVAE
from penstock.models.dalle.vq_network import VQDecoder, VQEncoder, VQSizes

DDCONFIG = {
    "double_z": False,
    "z_channels": 8,
    "resolution": 16,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [8],
    "dropout": 0.0,
}


class Extra:
    """Stands for an object in a training's checkpoint."""


def write(folder, target="taming.models.vqgan.VQModel", extra=None):
    """Write a checkpoint by taming's names, of random weights, and its configuration."""
    torch.manual_seed(0)
    sizes = VQSizes(**{k: v for k, v in DDCONFIG.items() if k != "dropout"})
    parts = {"encoder": VQEncoder(sizes), "decoder": VQDecoder(sizes)}
    parts["quant_conv"] = torch.nn.Conv2d(8, 8, 1)
    parts["post_quant_conv"] = torch.nn.Conv2d(8, 8, 1)
    weights = {f"{p}.{k}": v for p, m in parts.items() for k, v in m.state_dict().items()}
    if target.endswith("GumbelVQ"):
        weights["quantize.embed.weight"] = torch.randn(20, 8)
        weights["quantize.proj.weight"] = torch.randn(20, 8, 1, 1)
        weights["quantize.proj.bias"] = torch.randn(20)
    else:
        weights["quantize.embedding.weight"] = torch.randn(20, 8)
    weights["loss.perceptual_loss.lin0.weight"] = torch.zeros(3)
    torch.save({"state_dict": weights, "epoch": 3, "callbacks": extra}, folder / "model.ckpt")
    params = {"embed_dim": 8, "n_embed": 20, "ddconfig": DDCONFIG, "lossconfig": {"target": "os.x"}}
    config = {"model": {"base_learning_rate": 1e-6, "target": target, "params": params}}
    (folder / "config.yml").write_text(yaml.safe_dump(config))
    return folder / "model.ckpt", folder / "config.yml", weights


@torch.no_grad()
def test_codes_and_images(tmp_path):
    *files, weights = write(tmp_path)
    vae = VQGanVAE(*files, image_size=32)
    assert (vae.num_tokens, vae.num_layers, vae.image_size) == (20, 1, 32)
    images = torch.rand(2, 3, 32, 32)
    codes = vae.get_codebook_indices(images)
    table = weights["quantize.embedding.weight"]
    latents = vae.quant_conv(vae.encoder(images * 2 - 1)).movedim(1, -1)
    assert torch.equal(codes, torch.cdist(latents.flatten(0, 2), table).argmin(1).view(2, 256))
    decoded = vae.decode(codes)
    expected = vae.decoder(vae.post_quant_conv(table[codes].mT.unflatten(2, (16, 16))))
    torch.testing.assert_close(decoded, (expected.clamp(-1, 1) + 1) / 2)


@torch.no_grad()
def test_choice_by_logits(tmp_path):
    *files, weights = write(tmp_path, "taming.models.vqgan.GumbelVQ")
    vae = VQGanVAE(*files, image_size=16)
    images = torch.rand(1, 3, 16, 16)
    latents = vae.quant_conv(vae.encoder(images * 2 - 1))
    logits = torch.einsum("bdhw,nd->bnhw", latents, weights["quantize.proj.weight"][:, :, 0, 0])
    logits += weights["quantize.proj.bias"].view(-1, 1, 1)
    assert torch.equal(vae.get_codebook_indices(images), logits.argmax(1).flatten(1))
    assert torch.equal(vae.get_codebook_indices(images), vae.get_codebook_indices(images))


def test_no_class_that_a_file_names_is_made(tmp_path):
    weights, config, _ = write(tmp_path, "os.system")
    with pytest.raises(ValueError, match=r"config.yml names 'os.system'; known are taming"):
        VQGanVAE(weights, config)
    config.write_text("model: !!python/object/apply:os.getcwd []")
    with pytest.raises(ValueError, match="no configuration of a VQGAN"):
        VQGanVAE(weights, config)
    config.write_text("model: {target: a}")
    with pytest.raises(ValueError, match="no configuration of a VQGAN: 'params'"):
        VQGanVAE(weights, config)


def test_objects_of_lightning_are_passed_over_and_others_refused(tmp_path, monkeypatch):
    name = "pytorch_lightning.callbacks.model_checkpoint"
    for parent in ("pytorch_lightning", "pytorch_lightning.callbacks", name):
        monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    module = sys.modules[name]
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": name})
    files = write(tmp_path, extra={module.ModelCheckpoint: {"best_model_score": torch.ones(())}})
    assert VQGanVAE(*files[:2]).num_tokens == 20
    files = write(tmp_path, extra=Extra())
    with pytest.raises(ValueError, match="model.ckpt cannot be read safely"):
        VQGanVAE(*files[:2])


def test_weights_that_do_not_fit(tmp_path):
    *files, weights = write(tmp_path)
    del weights["encoder.conv_in.bias"]
    torch.save({"state_dict": weights}, files[0])
    with pytest.raises(ValueError, match=r"(?s)does not fit its configuration: .*conv_in\.bias"):
        VQGanVAE(*files)
    with pytest.raises(FileNotFoundError, match="no file"):
        VQGanVAE(tmp_path / "none", files[1])


@pytest.fixture(scope="module")
def vq_model():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    return diffusers.VQModel(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        num_vq_embeddings=20,
        sample_size=16,
    )


@torch.no_grad()
def test_a_vq_model_of_diffusers(vq_model):
    vae = DiffusersVQ(vq_model)
    assert (vae.num_tokens, vae.num_layers, vae.image_size) == (20, 1, 16)
    images = torch.rand(2, 3, 16, 16)
    codes = vae.get_codebook_indices(images)
    latents = vq_model.encode(images * 2 - 1).latents
    quantized, _, (_, _, expected) = vq_model.quantize(latents)
    assert torch.equal(codes, expected.view(2, 64))
    decoded = vq_model.decode(latents).sample
    torch.testing.assert_close(
        vae.decode(codes), (decoded.clamp(-1, 1) + 1) / 2, atol=1e-4, rtol=1e-4
    )
    entry = vq_model.quantize.get_codebook_entry(codes.flatten(), (2, 8, 8, 3))
    torch.testing.assert_close(entry, quantized)
    DALLE(dim=8, depth=1, heads=1, vae=vae, text_seq_len=2)
