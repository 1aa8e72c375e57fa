"""Programs written for dalle-pytorch run when only their import line is changed.

The calls, names and arguments are those of its README and of articles about it. Sizes are made
smaller here, by the numbers alone; with ``-m soak`` they run as they were written.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

VAE = """
import torch
from dalle_pytorch import DiscreteVAE

vae = DiscreteVAE(
    image_size = 256, num_layers = 3, num_tokens = 8192, codebook_dim = 512, hidden_dim = 64,
    num_resnet_blocks = 1, temperature = 0.9, straight_through = False,
)
images = torch.randn(4, 3, 256, 256)
loss = vae(images, return_loss = True)
loss.backward()
"""
DALL_E = """
import torch
from dalle_pytorch import DiscreteVAE, DALLE

vae = DiscreteVAE(
    image_size = 256, num_layers = 3, num_tokens = 8192, codebook_dim = 1024, hidden_dim = 64,
    num_resnet_blocks = 1, temperature = 0.9
)
dalle = DALLE(
    dim = 1024, vae = vae, num_text_tokens = 10000, text_seq_len = 256, depth = 12, heads = 16,
    dim_head = 64, attn_dropout = 0.1, ff_dropout = 0.1
)
text = torch.randint(0, 10000, (4, 256))
images = torch.randn(4, 3, 256, 256)
mask = torch.ones_like(text).bool()

loss = dalle(text, images, mask = mask, return_loss = True)
loss.backward()

images = dalle.generate_images(text, mask = mask)
"""
OPENAI = """
import torch
from dalle_pytorch import OpenAIDiscreteVAE, DALLE

vae = OpenAIDiscreteVAE()
dalle = DALLE(
    dim = 1024, vae = vae, num_text_tokens = 10000, text_seq_len = 256, depth = 1, heads = 16,
    dim_head = 64, attn_dropout = 0.1, ff_dropout = 0.1
)
text = torch.randint(0, 10000, (4, 256))
images = torch.randn(4, 3, 256, 256)
mask = torch.ones_like(text).bool()

loss = dalle(text, images, mask = mask, return_loss = True)
loss.backward()
"""
CLIP = """
import torch
from dalle_pytorch import CLIP

clip = CLIP(
    dim_text = 512, dim_image = 512, dim_latent = 512, num_text_tokens = 10000,
    text_enc_depth = 6, text_seq_len = 256, text_heads = 8, num_visual_tokens = 512,
    visual_enc_depth = 6, visual_image_size = 256, visual_patch_size = 32, visual_heads = 8
)
text = torch.randint(0, 10000, (4, 256))
images = torch.randn(4, 3, 256, 256)
mask = torch.ones_like(text).bool()

loss = clip(text, images, text_mask = mask, return_loss = True)
loss.backward()
"""
RANKING = """
images, scores = dalle.generate_images(text, mask = mask, clip = clip)
"""
DEEP = """
dalle = DALLE(
    dim = 1024, vae = vae, num_text_tokens = 10000, text_seq_len = 256, depth = 64, heads = 16,
    reversible = True
)
"""
KINDS = """
dalle = DALLE(
    dim = 1024, vae = vae, num_text_tokens = 10000, text_seq_len = 256, depth = 64, heads = 16,
    reversible = True, attn_types = ('full', 'axial_row', 'axial_col', 'conv_like')
)
"""
SPARSE = """
dalle = DALLE(
    dim = 512, vae = vae, num_text_tokens = 10000, text_seq_len = 256, depth = 64, heads = 8,
    attn_types = ('full', 'sparse')
)
"""
TRAIN = """
loss = dalle(text, images, mask = mask, return_loss = True)
loss.backward()
"""
SMALLER = {8192: 40, 1024: 32, 512: 32, 10000: 60, 256: 16, 64: 8, 32: 4, 16: 2, 12: 2, 6: 1}


def run(program: str, names: dict[str, Any], smaller: bool) -> dict[str, Any]:
    """Run a program with its import line changed, on small sizes or as it is."""
    program = program.replace("from dalle_pytorch import", "from penstock.models.dalle import")
    if smaller:
        number = re.compile(r"(?<![\w.])\d+(?![\w.])")
        program = number.sub(lambda m: str(SMALLER.get(int(m[0]), int(m[0]))), program)
    torch.manual_seed(0)
    exec(compile(program, "program", "exec"), names)
    return names


SIZES = pytest.mark.parametrize(
    "smaller", [True, pytest.param(False, marks=[pytest.mark.soak, pytest.mark.slow])]
)


@SIZES
def test_the_programs(smaller):
    side = 16 if smaller else 256
    found = run(VAE, {}, smaller)
    assert found["loss"].isfinite()
    names = run(DALL_E, {}, smaller)
    assert names["loss"].isfinite()
    assert names["images"].shape == (4, 3, side, side)
    ranked = run(RANKING, {**run(CLIP, {}, smaller), **names}, smaller)
    assert ranked["images"].shape == (4, 3, side, side)
    assert ranked["scores"].shape == (4,)


@pytest.mark.parametrize("program", [DEEP, KINDS, SPARSE])
def test_the_programs_of_deep_models(program):
    from penstock.models.dalle import DALLE

    names = run(program, {"DALLE": DALLE, **run(DALL_E, {}, True)}, True)
    # Behind its program the model trains and draws.
    run(TRAIN + "images = dalle.generate_images(text, mask = mask)", names, True)
    assert names["loss"].isfinite()


def test_the_program_of_openais_vae(tmp_path, monkeypatch):
    """Its files lie where dalle-pytorch kept them; they are written as test_openai_vae does."""
    import importlib.util

    path = Path(__file__).with_name("test_openai_vae.py")
    spec = importlib.util.spec_from_file_location("openai_files", path)
    files = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(files)
    folder = tmp_path / ".cache" / "dalle"
    folder.mkdir(parents=True)
    files.write(folder, monkeypatch)
    monkeypatch.setenv("HOME", str(tmp_path))
    program = OPENAI.replace("OpenAIDiscreteVAE()", "OpenAIDiscreteVAE(image_size = 256)")
    names = run(program, {}, True)
    assert names["loss"].isfinite()


def test_ids_are_the_same_with_a_mask_and_without():
    names = run(DALL_E, {}, True)
    dalle, text = names["dalle"].eval(), names["text"]
    codes = []
    decode = dalle.vae.decode
    dalle.vae.decode = lambda ids: codes.append(ids) or decode(ids)
    for mask in ({}, {"mask": names["mask"]}):
        torch.manual_seed(1)
        dalle.generate_images(text, **mask)
    assert torch.equal(*codes)
