"""What FluxTransform gives is what diffusers' FluxPipeline would feed its models."""

import json
import pickle
import shutil

import numpy as np
import pytest
import torch

from penstock.transforms import FluxTransform, normalize_image

FIELDS = {
    *("clip_tokens", "clip_attention_mask", "clip_cut"),
    *("t5_tokens", "t5_attention_mask", "t5_cut"),
}


@pytest.mark.parametrize(("variant", "length"), [("dev", 512), ("schnell", 256)])
def test_the_fields(clip, t5, captions, make_batch_of, variant, length):
    batch = make_batch_of(captions)
    kept = {name: value for name, value in batch.items() if name != "image"}
    out = FluxTransform(clip, t5, variant=variant)(batch)
    assert set(out) == {*batch, *FIELDS}
    assert torch.equal(out["image"], normalize_image(batch["image"]))
    assert out["image"].dtype == torch.float32
    assert out["clip_tokens"].shape == (len(captions), 77)
    assert out["t5_tokens"].shape == (len(captions), length)
    assert all(out[name] is kept[name] for name in kept)
    assert batch["image"].dtype == torch.uint8


class Encoder(torch.nn.Module):
    """Stands in for a text encoder: keeps the ids that it is given."""

    dtype = torch.float32
    device = torch.device("cpu")

    def forward(self, ids, attention_mask=None, output_hidden_states=False):
        assert attention_mask is None
        self.ids = ids
        hidden = torch.zeros(*ids.shape, 4)
        return type("Out", (tuple,), {"pooler_output": hidden[:, 0]})((hidden,))


@pytest.mark.parametrize(("variant", "length"), [("dev", 512), ("schnell", 256)])
def test_tokens_are_those_that_diffusers_feeds(clip, t5, captions, make_batch_of, variant, length):
    from diffusers import FluxPipeline
    from diffusers.utils import logging

    logging.set_verbosity_error()  # it prints all that it cuts off
    pipe = FluxPipeline(None, None, None, clip, None, t5, None)
    pipe.text_encoder, pipe.text_encoder_2 = Encoder(), Encoder()
    pipe.encode_prompt(captions, device="cpu", max_sequence_length=length)
    out = FluxTransform(clip, t5, variant=variant)(make_batch_of(captions))
    assert torch.equal(out["clip_tokens"], pipe.text_encoder.ids)
    assert torch.equal(out["t5_tokens"], pipe.text_encoder_2.ids)


def test_images_in_bfloat16(clip, t5, make_batch_of):
    batch = make_batch_of(["a"])
    out = FluxTransform(clip, t5, dtype=torch.bfloat16)(batch)
    assert torch.equal(out["image"], normalize_image(batch["image"]).to(torch.bfloat16))


def test_images_may_stay_as_they_were_decoded(clip, t5, make_batch_of):
    batch = make_batch_of(["a"])
    made = FluxTransform(clip, t5, dtype=None)
    assert made(batch)["image"] is batch["image"]
    assert "t5_tokens" in made(batch)
    with pytest.raises(ValueError, match="multiples of 16"):
        made(make_batch_of(["a"], 24, 32))


def test_two_tokenizers_in_a_folder_are_enough(checkpoint, clip, t5, captions, make_batch_of):
    made = FluxTransform.from_pretrained(checkpoint)
    assert made.variant == "dev"
    batch = make_batch_of(captions)
    expected = FluxTransform(clip, t5)(batch)
    out = made(batch)
    assert all(torch.equal(out[name], expected[name]) for name in (*FIELDS, "image"))
    assert FluxTransform.from_pretrained(str(checkpoint), variant="schnell").variant == "schnell"


@pytest.mark.parametrize(
    ("config", "variant"),
    [({"guidance_embeds": True}, "dev"), ({"guidance_embeds": False}, "schnell"), ({}, "schnell")],
)
def test_the_transformers_config_tells_the_variant(checkpoint, tmp_path, config, variant):
    shutil.copytree(checkpoint, tmp_path / "flux")
    (tmp_path / "flux" / "transformer").mkdir()
    (tmp_path / "flux" / "transformer" / "config.json").write_text(json.dumps(config))
    assert FluxTransform.from_pretrained(tmp_path / "flux").variant == variant
    assert FluxTransform.from_pretrained(tmp_path / "flux", variant="dev").variant == "dev"


def test_a_config_without_the_entry_is_what_diffusers_makes_of_it():
    import inspect

    from diffusers import FluxTransformer2DModel

    default = inspect.signature(FluxTransformer2DModel.__init__).parameters["guidance_embeds"]
    assert default.default is False


def test_of_a_repository_the_variant_is_not_guessed(checkpoint, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: checkpoint)
    with pytest.raises(ValueError, match=r"no transformer/config.json .* give variant="):
        FluxTransform.from_pretrained("someone/flux")
    assert FluxTransform.from_pretrained("someone/flux", variant="schnell").variant == "schnell"


def test_missing_tokenizers_are_named(checkpoint, tmp_path):
    shutil.copytree(checkpoint / "tokenizer", tmp_path / "tokenizer")
    with pytest.raises(FileNotFoundError, match=r"no folder .*tokenizer_2.*\['tokenizer'\]"):
        FluxTransform.from_pretrained(tmp_path)


def test_encoders_drop_apart(clip, t5, make_batch_of):
    n = 2000
    made = FluxTransform(clip, t5, variant="schnell", drop={"clip": 0.447, "t5": 0.447})
    batch = make_batch_of(["a ring"] * n, 16, 16)
    out = made(batch, rng=np.random.Generator(np.random.Philox(key=1)))
    one, two = out["clip_dropped"], out["t5_dropped"]
    assert abs(one.float().mean() - 0.447) < 0.04
    assert abs(two.float().mean() - 0.447) < 0.04
    assert abs((one & two).float().mean() - 0.2) < 0.03  # torchtitan's 20 % of both
    # What one draws does not depend on the other's chance.
    alone = FluxTransform(clip, t5, variant="schnell", drop={"t5": 0.447})
    out = alone(batch, rng=np.random.Generator(np.random.Philox(key=1)))
    assert torch.equal(out["t5_dropped"], two)
    assert "clip_dropped" not in out
    assert out["clip_cut"].shape == (n,)


def test_without_drop_no_draws_are_needed(clip, t5, make_batch_of):
    FluxTransform(clip, t5)(make_batch_of(["a"]))
    FluxTransform(clip, t5, drop={"clip": 0.0})(make_batch_of(["a"]))
    with pytest.raises(ValueError, match="give rng="):
        FluxTransform(clip, t5, drop={"t5": 0.1})(make_batch_of(["a"]))


def test_it_pickles(clip, t5, captions, make_batch_of):
    made = FluxTransform(clip, t5, drop={"clip": 0.5, "t5": 0.5})
    batch = make_batch_of(captions)
    outs = [
        t(batch, rng=np.random.Generator(np.random.Philox(key=1)))
        for t in (made, pickle.loads(pickle.dumps(made)))
    ]
    assert all(torch.equal(outs[0][n], outs[1][n]) for n in FIELDS | {"t5_dropped", "image"})


def test_bad_arguments_are_refused(clip, t5, make_batch_of):
    with pytest.raises(ValueError, match=r"variant must be one of \['dev', 'schnell'\], got 'pro'"):
        FluxTransform(clip, t5, variant="pro")
    for drop in ({"clip": 0.1, "t6": 0.1}, 0.1):
        with pytest.raises(ValueError, match=r"for some of \['clip', 't5'\]"):
            FluxTransform(clip, t5, drop=drop)
    with pytest.raises(ValueError, match="drop of t5 must be a probability"):
        FluxTransform(clip, t5, drop={"t5": 2})
    with pytest.raises(ValueError, match=r"a float, or None .* got torch.uint8"):
        FluxTransform(clip, t5, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"FLUX.1 takes sides that are multiples of 16.*step=16"):
        FluxTransform(clip, t5)(make_batch_of(["a"], 24, 32))
