"""SDXL's tokens and micro-conditioning are diffusers' own."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from penstock.transforms import SDXLTransform, normalize_image, sdxl_time_ids


@pytest.fixture(scope="module")
def sdxl():
    from diffusers import StableDiffusionXLPipeline
    from diffusers.utils import logging

    logging.set_verbosity_error()
    return StableDiffusionXLPipeline


def test_time_ids_are_diffusers(sdxl):
    unet = SimpleNamespace(
        config=SimpleNamespace(addition_time_embed_dim=256),
        add_embedding=SimpleNamespace(linear_1=SimpleNamespace(in_features=2816)),
    )
    sizes = [((1023, 2049), (0, 17), (832, 1216)), ((600, 400), (100, 0), (1024, 1024))]
    expected = [
        sdxl._get_add_time_ids(
            SimpleNamespace(unet=unet), *triple, torch.float32, text_encoder_projection_dim=1280
        )
        for triple in sizes
    ]
    made = sdxl_time_ids(*(torch.tensor(part) for part in zip(*sizes, strict=True)))
    assert torch.equal(made, torch.cat(expected))
    assert made.dtype == torch.float32
    assert made[0].tolist() == [1023, 2049, 0, 17, 832, 1216]  # height before width


class Encoder(torch.nn.Module):
    dtype = torch.float32
    device = torch.device("cpu")

    def forward(self, ids, output_hidden_states=False):
        self.ids = ids
        hidden = torch.zeros(*ids.shape, 4)
        return type("Out", (tuple,), {"hidden_states": (hidden,) * 3})((hidden[:, 0],))


def test_tokens_are_those_that_diffusers_feeds(sdxl, clip, clip_g, captions, make_batch_of):
    pipe = sdxl(None, Encoder(), Encoder(), clip, clip_g, None, None)
    pipe.encode_prompt(captions, device="cpu", do_classifier_free_guidance=False)
    out = SDXLTransform(clip, clip_g)(make_batch_of(captions))
    assert torch.equal(out["clip_l_tokens"], pipe.text_encoder.ids)
    assert torch.equal(out["clip_g_tokens"], pipe.text_encoder_2.ids)
    assert not torch.equal(out["clip_l_tokens"], out["clip_g_tokens"])  # they pad apart


def test_the_fields(clip, clip_g, captions, make_batch_of):
    batch = make_batch_of(captions, 24, 40)  # multiples of 8
    out = SDXLTransform(clip, clip_g)(batch)
    tokens = {f"clip_{c}_{n}" for c in "lg" for n in ("tokens", "attention_mask", "cut")}
    assert set(out) == {*batch, *tokens, "time_ids"}
    assert torch.equal(out["image"], normalize_image(batch["image"]))
    assert out["time_ids"][3].tolist() == [48, 120, 0, 3, 24, 40]
    assert out["mask"] is batch["mask"]
    with pytest.raises(ValueError, match="SDXL takes sides that are multiples of 8"):
        SDXLTransform(clip, clip_g)(make_batch_of(["a"], 20, 16))


def test_encoders_drop_apart(clip, clip_g, make_batch_of):
    batch = make_batch_of(["a ring"] * 500, 8, 8)
    rng = np.random.Generator(np.random.Philox(key=3))
    out = SDXLTransform(clip, clip_g, drop={"clip_l": 0.5, "clip_g": 0.5})(batch, rng)
    both = (out["clip_l_dropped"] & out["clip_g_dropped"]).float().mean()
    assert abs(both - 0.25) < 0.08


def test_from_pretrained(clip, clip_g, tmp_path, captions, make_batch_of):
    clip.save_pretrained(tmp_path / "tokenizer")
    clip_g.save_pretrained(tmp_path / "tokenizer_2")
    batch = make_batch_of(captions)
    one, two = SDXLTransform.from_pretrained(tmp_path)(batch), SDXLTransform(clip, clip_g)(batch)
    assert all(torch.equal(one[n], two[n]) for n in ("clip_l_tokens", "clip_g_tokens", "image"))
    (tmp_path / "tokenizer_2" / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer_2 holds no clip tokenizer"):
        SDXLTransform.from_pretrained(tmp_path)


def test_the_geometry_must_be_there(clip, clip_g, make_batch_of):
    batch = make_batch_of(["a", "b"])
    t = SDXLTransform(clip, clip_g)
    del batch["crop_top_left"]
    with pytest.raises(ValueError, match=r"no field 'crop_top_left', an int64 \[B, 2\]"):
        t(batch)
    batch["crop_top_left"] = [(0, 0), (0, 0)]
    with pytest.raises(ValueError, match="no field 'crop_top_left'"):
        t(batch)
    batch["crop_top_left"] = torch.zeros(3, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"must all be \[B, 2\], got \[\[2, 2\], \[3, 2\]"):
        t(batch)
