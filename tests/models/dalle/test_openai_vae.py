"""OpenAI's image tokenizer, from files like theirs: whole pickled modules."""

import sys
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from penstock.models.dalle import DALLE, OpenAIDiscreteVAE

HIDDEN, CODES, FIRST = 8, 32, 12


def fake_packages() -> dict[str, types.ModuleType]:
    """Classes under the names of OpenAI's, with their attributes, by which files are written."""
    found = {
        f"dall_e.{n}": types.ModuleType(f"dall_e.{n}") for n in ("encoder", "decoder", "utils")
    }
    for module, names in {
        "encoder": ("Encoder", "EncoderBlock"),
        "decoder": ("Decoder", "DecoderBlock"),
        "utils": ("Conv2d",),
    }.items():
        for name in names:
            made = type(name, (nn.Module,), {"__module__": f"dall_e.{module}"})
            setattr(found[f"dall_e.{module}"], name, made)
    return {"dall_e": types.ModuleType("dall_e"), **found}


def write(folder: Path, monkeypatch, hidden: int = HIDDEN) -> None:
    packages = fake_packages()
    for name, module in packages.items():
        monkeypatch.setitem(sys.modules, name, module)
    draw = torch.Generator().manual_seed(0)

    def make(module: str, name: str, **attributes) -> nn.Module:
        out = getattr(packages[f"dall_e.{module}"], name)()
        for key, value in attributes.items():
            setattr(out, key, value)
        return out

    def conv(n_in: int, n_out: int, kw: int) -> nn.Module:
        weight = torch.randn(n_out, n_in, kw, kw, generator=draw) / (n_in * kw * kw) ** 0.5
        bias = 0.1 * torch.randn(n_out, generator=draw)
        parts = {"w": nn.Parameter(weight, False), "b": nn.Parameter(bias, False)}
        device = torch.device("cpu")
        return make("utils", "Conv2d", n_in=n_in, n_out=n_out, kw=kw, device=device, **parts)

    def block(half: str, n_in: int, n_out: int) -> nn.Module:
        path = nn.Sequential()
        inner = n_out // 4
        sides = (3, 3, 3, 1) if half == "encoder" else (1, 3, 3, 3)
        widths = (n_in, inner, inner, inner, n_out)
        for i, side in enumerate(sides):
            path.add_module(f"relu_{i + 1}", nn.ReLU())
            path.add_module(f"conv_{i + 1}", conv(widths[i], widths[i + 1], side))
        straight = conv(n_in, n_out, 1) if n_in != n_out else nn.Identity()
        name = f"{half.capitalize()}Block"
        return make(half, name, id_path=straight, res_path=path, post_gain=1 / 16, n_layers=4)

    for half in ("encoder", "decoder"):
        encoder = half == "encoder"
        blocks = nn.Sequential()
        width = hidden if encoder else FIRST
        blocks.add_module("input", conv(3, hidden, 7) if encoder else conv(CODES, FIRST, 1))
        for group in (1, 2):
            inner = nn.Sequential()
            out = hidden * (group if encoder else 3 - group)
            for i in (1, 2):
                inner.add_module(f"block_{i}", block(half, width, out))
                width = out
            if group == 1:
                step = nn.MaxPool2d(2) if encoder else nn.Upsample(scale_factor=2, mode="nearest")
                inner.add_module("pool" if encoder else "upsample", step)
            blocks.add_module(f"group_{group}", inner)
        last = nn.Sequential()
        last.add_module("relu", nn.ReLU())
        last.add_module("conv", conv(width, CODES if encoder else 6, 1))
        blocks.add_module("output", last)
        whole = make(half, half.capitalize(), blocks=blocks, vocab_size=CODES, n_hid=hidden)
        torch.save(whole, folder / f"{half}.pkl")
    for name in packages:
        monkeypatch.delitem(sys.modules, name)


@pytest.fixture
def files(tmp_path, monkeypatch) -> tuple[Path, Path]:
    write(tmp_path, monkeypatch)
    return tmp_path / "encoder.pkl", tmp_path / "decoder.pkl"


def test_sizes_are_read_off_the_weights(files):
    vae = OpenAIDiscreteVAE(*files, image_size=16)
    assert (vae.num_tokens, vae.num_layers, vae.channels, vae.image_size) == (CODES, 1, 3, 16)
    assert "dall_e" not in sys.modules
    assert not any(p.requires_grad for p in vae.parameters())


@torch.no_grad()
def test_a_block_by_hand(files):
    vae = OpenAIDiscreteVAE(*files, image_size=16)
    block = vae.enc.blocks.group_2.block_1
    x = torch.randn(1, HIDDEN, 4, 4)
    y = x
    for i, side in enumerate((3, 3, 3, 1), 1):
        conv = getattr(block.res_path, f"conv_{i}")
        y = F.conv2d(y.relu(), conv.weight, conv.bias, padding=side // 2)
    straight = F.conv2d(x, block.id_path.weight, block.id_path.bias)
    torch.testing.assert_close(block(x), straight + y / 16)


@torch.no_grad()
def test_codes_and_images(files):
    vae = OpenAIDiscreteVAE(*files, image_size=16)
    images = torch.rand(2, 3, 16, 16)
    codes = vae.get_codebook_indices(images)
    assert codes.shape == (2, 64)
    assert torch.equal(codes, vae.enc(images * 0.8 + 0.1).argmax(1).flatten(1))
    decoded = vae.decode(codes)
    assert decoded.shape == images.shape
    stats = vae.dec(F.one_hot(codes, CODES).float().mT.unflatten(2, (8, 8)))
    expected = ((stats[:, :3].sigmoid() - 0.1) / 0.8).clamp(0, 1)
    torch.testing.assert_close(decoded, expected)


def test_dalle_takes_it(files):
    dalle = DALLE(
        dim=8, depth=1, heads=1, vae=OpenAIDiscreteVAE(*files, image_size=8), text_seq_len=2
    )
    text = torch.ones(1, 2, dtype=torch.long)
    dalle(text, torch.rand(1, 3, 8, 8), return_loss=True).backward()
    assert dalle.generate_images(text).shape == (1, 3, 8, 8)


def test_where_dalle_pytorch_kept_them(files, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"encoder\.pkl"):
        OpenAIDiscreteVAE()
    folder = tmp_path / ".cache" / "dalle"
    folder.mkdir(parents=True)
    for path in files:
        path.rename(folder / path.name)
    assert OpenAIDiscreteVAE().num_tokens == CODES


def test_files_that_do_not_fit(files, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="not an encoder and its decoder"):
        OpenAIDiscreteVAE(files[1], files[0])
    torch.save({"a": 1}, tmp_path / "dict.pkl")
    with pytest.raises(ValueError, match="holds no module, but dict"):
        OpenAIDiscreteVAE(tmp_path / "dict.pkl", files[1])
    torch.save(nn.GRU(2, 2), tmp_path / "gru.pkl")
    with pytest.raises(ValueError, match="cannot be read safely"):
        OpenAIDiscreteVAE(tmp_path / "gru.pkl", files[1])
