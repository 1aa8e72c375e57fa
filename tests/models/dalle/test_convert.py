"""Checkpoints with the names that dalle-pytorch gives."""

import pytest
import torch

from penstock.models.dalle import CLIP, DiscreteVAE, convert_weights, load_dalle, load_vae

VAE = {"image_size": 32, "num_tokens": 20, "codebook_dim": 8, "num_layers": 2, "hidden_dim": 8}
LENGTH, WORDS = 7, 40


def their_names(model, prefix: str = "transformer.") -> dict[str, torch.Tensor]:
    """Return a DALLE's weights as dalle-pytorch 1.6.6 names and shapes them."""
    out = {}
    shift = model.settings["shift_tokens"]
    for name, value in model.state_dict().items():
        if name.startswith(prefix + "layers."):
            number, half, *rest = name.removeprefix(prefix + "layers.").split(".")
            out[their_layer(model, prefix, number, half, rest, shift)] = (
                value.view(1, 1, -1) if rest == ["scale"] else value
            )
        elif name.startswith("norm."):
            out[name.replace("norm.", "to_logits.0.")] = value
        elif name.startswith("to_logits."):
            out[name.replace("to_logits.", "to_logits.1.")] = value
        elif name in ("row_emb", "column_emb"):
            out[f"image_pos_emb.weights.{int(name == 'column_emb')}"] = value[None]
        else:
            out[name] = value
    out[prefix + "pos_emb"] = torch.zeros(1, 5, 6)
    if model.text_emb is None:
        for part in ("text_emb", "image_emb"):
            out[f"{part}.linear.weight"] = model.to_logits.weight
            out[f"{part}.linear.bias"] = model.to_logits.bias
    return out


def their_layer(model, prefix, number, half, rest, shift) -> str:
    attention = half == "attention"
    if model.settings["reversible"]:
        head = f"{prefix}layers.blocks.{number}.{'f' if attention else 'g'}.net"
    else:
        head = f"{prefix}layers.layers.{number}.{0 if attention else 1}"
    if rest[0] == "scale":
        return f"{head}.scale"
    if rest[0] != "inner":
        return ".".join([head, "fn", *rest])
    deep = (2 if shift else 0) + (3 if attention else 2)
    inner = {"to_qkv": "to_qkv", "to_out": "to_out.0"} if attention else {}
    inner = inner or {"to_inner": "net.0", "to_out": "net.3"}
    return ".".join([head, *["fn"] * deep, inner[rest[1]], rest[2]])


def save(model, path, **changes) -> None:
    hparams = {k: v for k, v in model.settings.items() if k != "sandwich_norm"}
    found = {"hparams": hparams, "vae_params": VAE, "epoch": 3, "version": "1.6.6"}
    found |= {"vae_class_name": "DiscreteVAE", "weights": their_names(model), "opt_state": {}}
    torch.save(found | changes, path)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"reversible": True, "shift_tokens": False},
        {"rotary_emb": False, "share_input_output_emb": True},
        {"shared_attn_ids": (0, 0), "shared_ff_ids": (0, 0), "attn_types": ("axial_row",)},
    ],
)
@torch.no_grad()
def test_a_dalle(make_dalle, tmp_path, text, images, settings):
    model = make_dalle(**settings)
    save(model, tmp_path / "dalle.pt")
    found = load_dalle(tmp_path / "dalle.pt")
    assert torch.equal(found(text, images), model(text, images))
    assert found.settings == model.settings


def test_older_names_of_positions(make_dalle):
    weights = their_names(make_dalle(rotary_emb=False))
    for i in (0, 1):
        weights[f"image_pos_emb.weights_{i}"] = weights.pop(f"image_pos_emb.weights.{i}")
    found = convert_weights(weights)
    assert found["row_emb"].shape == (8, 1, 24)
    assert found["column_emb"].shape == (1, 8, 24)


def test_a_vae(tmp_path):
    vae = DiscreteVAE(**VAE, num_resnet_blocks=1)
    hparams = {**VAE, "num_resnet_blocks": 1}
    torch.save({"hparams": hparams, "weights": vae.state_dict()}, tmp_path / "vae.pt")
    found = load_vae(tmp_path / "vae.pt")
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(found.get_codebook_indices(images), vae.get_codebook_indices(images))


def test_with_another_image_tokenizer(make_dalle, tmp_path, text, codes):
    model = make_dalle()
    save(model, tmp_path / "dalle.pt", vae_params=None, vae_class_name="OpenAIDiscreteVAE")
    with pytest.raises(ValueError, match="trained with OpenAIDiscreteVAE: pass it as vae="):
        load_dalle(tmp_path / "dalle.pt")
    other = DiscreteVAE(**VAE, num_resnet_blocks=1)
    found = load_dalle(tmp_path / "dalle.pt", other)
    assert torch.equal(found(text, codes), model(text, codes))
    assert found.vae is other
    save(model, tmp_path / "dalle.pt")
    with pytest.raises(ValueError, match="leave vae= out"):
        load_dalle(tmp_path / "dalle.pt", other)


def test_a_clip():
    clip = CLIP(dim_text=8, dim_image=8, text_enc_depth=1, visual_enc_depth=1)
    theirs = {}
    for name, value in clip.state_dict().items():
        owner, _, rest = name.partition(".layers.0.")
        if not rest:
            theirs[name] = value
            continue
        half, _, tail = rest.partition(".")
        tail = tail.replace("inner.to_qkv", "fn.fn.to_qkv").replace("inner.to_inner", "fn.net.0")
        last = "fn.fn.to_out.0" if half == "attention" else "fn.net.3"
        tail = tail.replace("inner.to_out", last)
        if tail == "scale":
            value = value.view(1, 1, -1)
        tail = tail if tail == "scale" else f"fn.{tail}"
        theirs[f"{owner}.layers.layers.0.{int(half != 'attention')}.{tail}"] = value
    found = convert_weights(theirs)
    assert found.keys() == clip.state_dict().keys()
    assert all(torch.equal(v, clip.state_dict()[k]) for k, v in found.items())


def test_other_files(make_dalle, tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"weights": {}}, path)
    with pytest.raises(ValueError, match="a.pt is no checkpoint of dalle-pytorch: it has no hpar"):
        load_vae(path)
    torch.save([1], path)
    with pytest.raises(ValueError, match="it has no hparams, vae_params, weights"):
        load_dalle(path)
    model = make_dalle()
    weights = their_names(model)
    weights["transformer.layers.layers.0.0.fn.unknown"] = torch.zeros(1)
    save(model, path, weights=weights)
    with pytest.raises(ValueError, match=r"(?s)a.pt: its weights do not fit .*fn\.unknown"):
        load_dalle(path)
