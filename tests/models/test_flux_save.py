"""The whole transformer, as diffusers loads it."""

import os

import pytest
import torch

from penstock.models import add_lora, load_transformer, save_transformer


def test_diffusers_loads_it(tiny, tmp_path):
    from diffusers import FluxTransformer2DModel

    model = load_transformer(tiny, dtype=torch.float32)
    out = save_transformer(model, tmp_path / "new" / "out", dtype=torch.float32, shard_size="50KB")
    assert len(list(out.glob("*.safetensors"))) > 1
    for found in (FluxTransformer2DModel.from_pretrained(out), load_transformer(out).float()):
        assert dict(found.config) | {"_name_or_path": ""} == dict(model.config) | {
            "_name_or_path": ""
        }
    state = FluxTransformer2DModel.from_pretrained(out).state_dict()
    assert all(torch.equal(state[n], t) for n, t in model.state_dict().items())
    half = load_transformer(save_transformer(model, tmp_path / "half"))
    assert torch.equal(half.proj_out.weight, model.proj_out.weight.bfloat16())
    assert sorted(os.listdir(tmp_path)) == ["half", "new"]


def test_what_is_there_stays(tiny, tmp_path, monkeypatch):
    model = load_transformer(tiny)
    out = save_transformer(model, tmp_path / "out")
    before = sorted(os.listdir(out))
    with pytest.raises(FileExistsError, match="overwrite=True"):
        save_transformer(model, out)

    def fails(*args):
        raise OSError("disk full")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(os, "fsync", fails)
        save_transformer(model, out, overwrite=True)
    assert os.listdir(tmp_path) == ["out"]
    assert sorted(os.listdir(out)) == before
    (out / "old").write_text("")
    save_transformer(model, out, overwrite=True)
    assert sorted(os.listdir(out)) == before
    save_transformer(model, tmp_path / "other", write=False)
    assert os.listdir(tmp_path) == ["out"]


def test_a_lora_is_saved_by_itself(tiny, tmp_path):
    model = load_transformer(tiny)
    add_lora(model)
    with pytest.raises(ValueError, match="save_lora saves it"):
        save_transformer(model, tmp_path / "out")
