import pytest
import torch

from penstock.transforms import FluxTransform
from penstock.transforms.model_transform import drop_chances


def test_chances_go_to_their_encoders():
    assert drop_chances(None, "clip", "t5") == {"clip": 0.0, "t5": 0.0}
    assert drop_chances({"t5": 0.1}, "clip", "t5") == {"clip": 0.0, "t5": 0.1}
    for drop in ({"clip": 0.1, "t6": 0.1}, 0.1, ["clip"]):
        with pytest.raises(ValueError, match=r"for some of \['clip', 't5'\].*\.drop_caption"):
            drop_chances(drop, "clip", "t5")


def test_a_batch_of_latents_gets_tokens_alone(clip, t5, make_batch_of):
    flux = FluxTransform(clip, t5)
    batch = make_batch_of(["a", "b"])
    pixels = batch.pop("image")
    latents = {"mean": torch.ones(2, 16, 4, 6)}
    out = flux({**batch, "latents": latents})
    assert "image" not in out
    assert out["latents"] is latents
    assert torch.equal(out["t5_tokens"], flux({**batch, "image": pixels})["t5_tokens"])
    mixed = flux({**batch, "latents": [None, latents], "image": torch.zeros_like(pixels)})
    assert mixed["image"].dtype == torch.float32
    with pytest.raises(ValueError, match="no field 'image'"):
        flux(batch)
