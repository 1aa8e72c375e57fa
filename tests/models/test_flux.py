"""Models of a checkpoint are diffusers' and transformers' own, or a clear error."""

import importlib.util
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from penstock.models import (
    find_part,
    flux_velocity,
    load_clip,
    load_scheduler,
    load_t5,
    load_transformer,
    load_vae,
)

LOADERS = {
    "transformer": (load_transformer, "FluxTransformer2DModel"),
    "vae": (load_vae, "AutoencoderKL"),
    "text_encoder": (load_clip, "CLIPTextModel"),
    "text_encoder_2": (load_t5, "T5EncoderModel"),
}


@pytest.fixture(scope="module")
def pipe(tiny):
    from diffusers import FluxPipeline

    return FluxPipeline.from_pretrained(tiny)


@pytest.mark.parametrize("part", LOADERS)
def test_models_are_the_pipelines(tiny, pipe, part, same_random_state):
    load, name = LOADERS[part]
    model = load(tiny, dtype=torch.float32)
    assert type(model).__name__ == name
    expected = getattr(pipe, part).state_dict()
    found = model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[n], expected[n]) for n in expected)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    half = load(tiny)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert {p.device.type for p in half.parameters()} == {"cpu"}


def test_scheduler_is_the_pipelines(tiny, pipe):
    found, expected = load_scheduler(tiny), pipe.scheduler
    assert dict(found.config) == dict(expected.config)


def test_gradient_checkpointing(tiny):
    assert load_transformer(tiny, gradient_checkpointing=True).is_gradient_checkpointing
    assert not load_transformer(tiny).is_gradient_checkpointing


def test_int8_quantizes_the_blocks_and_nothing_else(tiny, make_inputs):
    from torchao.quantization import Int8Tensor

    whole = load_transformer(tiny)
    model = load_transformer(tiny, quantize="int8")
    quantized = {n for n, p in model.named_parameters() if isinstance(p.data, Int8Tensor)}
    linear = {
        f"{n}.weight"
        for n, m in whole.named_modules()
        if isinstance(m, torch.nn.Linear) and n.startswith(("transformer_b", "single_t"))
    }
    assert quantized == linear
    assert len(linear) == 20
    assert not any(p.requires_grad for p in model.parameters())
    inputs = make_inputs()
    with torch.no_grad():
        found, expected = (flux_velocity(m, **inputs).float() for m in (model, whole))
    assert not torch.equal(found, expected)
    error = (found - expected).norm() / expected.norm()
    assert error < 0.05


def test_int8_computes_in_bfloat16(tiny):
    with pytest.raises(ValueError, match="computes in bfloat16, got torch.float32"):
        load_transformer(tiny, quantize="int8", dtype=torch.float32)


@pytest.mark.parametrize(("quantize", "package"), [("int8", "torchao"), ("nf4", "bitsandbytes")])
def test_quantization_without_its_package(tiny, monkeypatch, quantize, package):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == package else real(n))
    with pytest.raises(ImportError, match=f"needs {package}: pip install {package}"):
        load_transformer(tiny, quantize=quantize)


def test_nf4_needs_cuda(tiny, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(ValueError, match="needs a CUDA GPU, got device cpu: take 'int8'"):
        load_transformer(tiny, quantize="nf4")


def test_nf4_quantizes_the_blocks_and_nothing_else(tiny, monkeypatch):
    pytest.importorskip("bitsandbytes", exc_type=ImportError)
    from bitsandbytes.nn import Linear4bit
    from diffusers.quantizers.bitsandbytes.bnb_quantizer import BnB4BitDiffusersQuantizer

    whole = load_transformer(tiny)
    # bitsandbytes puts its layers in on the CPU too; diffusers asks for a GPU before.
    monkeypatch.setattr(
        BnB4BitDiffusersQuantizer, "validate_environment", lambda *args, **more: None
    )
    monkeypatch.setattr("penstock.models.flux._on_cuda", lambda device: True)
    model = load_transformer(tiny, quantize="nf4")
    four = {n for n, m in model.named_modules() if isinstance(m, Linear4bit)}
    linear = {
        n
        for n, m in whole.named_modules()
        if isinstance(m, torch.nn.Linear) and n.startswith(("transformer_b", "single_t"))
    }
    assert four == linear
    assert torch.equal(model.proj_out.weight, whole.proj_out.weight)
    assert torch.equal(model.proj_out.bias, whole.proj_out.bias)


def test_one_layer_of_the_files(tiny):
    from penstock.models.flux import _linear

    whole = load_transformer(tiny, dtype=torch.float32)
    part = find_part(tiny, "transformer", ("FluxTransformer2DModel",))
    layer = _linear(part, "proj_out", torch.float32)
    assert torch.equal(layer.weight, whole.proj_out.weight)
    assert torch.equal(layer.bias, whole.proj_out.bias)
    assert not layer.weight.requires_grad


def test_unknown_quantization(tiny):
    with pytest.raises(ValueError, match="quantize must be 'none', 'int8' or 'nf4', got 'fp4'"):
        load_transformer(tiny, quantize="fp4")


def test_quantized_twice(broken):
    path = broken / "transformer" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "quantization_config": {"quant_method": "torchao"}}))
    with pytest.raises(ValueError, match="is quantized already"):
        load_transformer(broken, quantize="int8")


@pytest.mark.parametrize("part", LOADERS)
def test_what_is_missing_is_not_made_up(broken, part):
    load, _ = LOADERS[part]
    (file,) = (broken / part).glob("*.safetensors")
    state = load_file(file)
    name = sorted(state)[3]
    save_file({n: t for n, t in state.items() if n != name}, file, {"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 tensors.*not of one checkpoint"):
        load(broken)


def test_what_is_too_much(broken):
    (file,) = (broken / "transformer").glob("*.safetensors")
    save_file(load_file(file) | {"more.weight": torch.ones(2)}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"has no place for 1 tensors, such as \['more.weight'\]"):
        load_transformer(broken)


def test_a_config_of_another_size(broken):
    path = broken / "vae" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "latent_channels": 8}))
    with pytest.raises(ValueError, match=r"has encoder.conv_out.weight of shape \[32, 8, 3, 3\]"):
        load_vae(broken)


def test_another_parts_folder(tiny):
    with pytest.raises(ValueError, match="holds a t5; expected clip_text_model or clip"):
        load_clip(tiny / "text_encoder_2")
