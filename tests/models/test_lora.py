"""A LoRA: what is trained, from which start, and that diffusers loads the very same."""

import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from penstock.models import (
    add_lora,
    flux_velocity,
    load_lora,
    load_transformer,
    lora_parameters,
    save_lora,
)

FILE = "pytorch_lora_weights.safetensors"


@pytest.fixture
def model(tiny):
    return load_transformer(tiny, dtype=torch.float32)


def trained(model, **settings):
    """Put a LoRA in, with B as if it had been trained."""
    parameters = add_lora(model, **settings)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in parameters.items():
        if ".lora_B." in name:
            parameter.data.normal_(0, 0.3, generator=generator)
    return model


def layers(parameters):
    return {name.split(".lora_")[0] for name in parameters}


def test_attention_is_the_default(model, same_random_state):
    parameters = add_lora(model, rank=4)
    expected = {
        f"{block}.attn.{name}"
        for block in ("transformer_blocks.0", "single_transformer_blocks.0")
        for name in ("to_q", "to_k", "to_v")
    }
    assert layers(parameters) == expected | {"transformer_blocks.0.attn.to_out.0"}
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(parameters)
    shapes = {n: tuple(p.shape) for n, p in parameters.items()}
    assert shapes["transformer_blocks.0.attn.to_q.lora_A.default.weight"] == (4, 32)
    assert shapes["transformer_blocks.0.attn.to_q.lora_B.default.weight"] == (32, 4)


def test_the_texts_projections(model):
    text = layers(add_lora(model, targets="attention+text"))
    added = {f"transformer_blocks.0.attn.{n}" for n in ("add_q_proj", "add_k_proj", "add_v_proj")}
    assert added < text
    assert "transformer_blocks.0.attn.to_add_out" in text
    assert len(text) == 7 + 4


def test_all_linear_layers_are_those_of_the_blocks(model):
    linear = {
        n
        for n, m in model.named_modules()
        if isinstance(m, torch.nn.Linear) and n.startswith(("transformer_b", "single_t"))
    }
    assert layers(add_lora(model, targets="all-linear")) == linear


def test_it_changes_nothing_at_first(model, make_inputs):
    given = make_inputs()
    before = flux_velocity(model, **given)
    add_lora(model)
    assert torch.equal(flux_velocity(model, **given), before)


def test_the_start_is_of_the_seed_and_the_name(tiny, same_random_state):
    def start(seed, **more):
        return add_lora(load_transformer(tiny, **more), rank=4, seed=seed)

    one, again, half, other = start(0), start(0), start(0, quantize="int8"), start(1)
    assert all(torch.equal(one[n], again[n]) for n in one)
    assert all(torch.equal(one[n], half[n]) for n in one)
    a = [n for n in one if ".lora_A." in n]
    assert not any(torch.equal(one[n], other[n]) for n in a)
    assert not torch.equal(one[a[0]], one[a[1]])
    values = torch.cat([one[n].detach().flatten() for n in a])
    assert values.abs().max() <= 1 / 32**0.5  # kaiming_uniform_(a=5 ** 0.5)
    assert float(values.std()) == pytest.approx((1 / 3 / 32) ** 0.5, rel=0.1)
    assert all((p == 0).all() for n, p in one.items() if ".lora_B." in n)


@pytest.mark.parametrize("quantize", ["none", "int8"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_it_trains_in_float32_on_a_bfloat16_base(tiny, make_inputs, quantize, checkpointing):
    model = load_transformer(tiny, quantize=quantize, gradient_checkpointing=checkpointing).train()
    given = make_inputs(batch=1, height=2, width=2)
    teacher = trained(load_transformer(tiny), rank=4, seed=5)
    target = flux_velocity(teacher, **given).detach().float()
    parameters = add_lora(model, rank=4)
    assert {p.dtype for p in parameters.values()} == {torch.float32}
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW(parameters.values(), lr=3e-2)
    losses = []
    for _ in range(8):
        loss = (flux_velocity(model, **given).float() - target).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    for name, parameter in model.named_parameters():
        if name in frozen and type(parameter.data) is torch.Tensor:
            assert torch.equal(parameter, frozen[name])


@pytest.mark.parametrize("alpha", [None, 3.0, 16.0])
@pytest.mark.parametrize("fold_alpha", [False, True])
def test_diffusers_loads_the_same_model(tiny, tmp_path, make_inputs, alpha, fold_alpha):
    from diffusers import FluxPipeline

    given = make_inputs()
    model = trained(load_transformer(tiny, dtype=torch.float32), rank=4, alpha=alpha)
    path = save_lora(model, tmp_path / "lora", fold_alpha=fold_alpha)
    assert path == tmp_path / "lora" / FILE
    assert os.listdir(path.parent) == [FILE]
    expected = flux_velocity(model, **given)
    pipe = FluxPipeline.from_pretrained(tiny)
    before = flux_velocity(pipe.transformer, **given)
    pipe.load_lora_weights(tmp_path / "lora")
    found = flux_velocity(pipe.transformer, **given)
    if fold_alpha and alpha is not None:
        assert torch.allclose(found, expected, atol=1e-5)
    else:
        assert torch.equal(found, expected)
    assert (found - before).abs().max() > 0.01
    scale = next(
        m.scaling["default_0"] for m in pipe.transformer.modules() if hasattr(m, "scaling")
    )
    assert scale == (1 if fold_alpha else (alpha or 4) / 4)


def test_folded_alpha_is_right_without_the_header(tiny, tmp_path, make_inputs):
    # As programs do that look at the tensors alone.
    from diffusers import FluxPipeline

    model = trained(load_transformer(tiny, dtype=torch.float32), rank=4, alpha=16.0)
    state = load_file(save_lora(model, tmp_path, fold_alpha=True))
    pipe = FluxPipeline.from_pretrained(tiny)
    pipe.load_lora_weights(state)
    given = make_inputs()
    expected = flux_velocity(model, **given)
    assert torch.allclose(flux_velocity(pipe.transformer, **given), expected, atol=1e-5)


def test_a_file_says_what_it_is(tiny, tmp_path):
    def saved(folder, **more):
        model = trained(load_transformer(tiny), rank=4, alpha=2)
        return save_lora(model, tmp_path / folder, **more)

    path = saved("one")
    with safe_open(path, "pt") as file:
        values = json.loads(file.metadata()["lora_adapter_metadata"])
    assert values == {
        "transformer.r": 4,
        "transformer.lora_alpha": 2,
        "transformer.target_modules": ["to_k", "to_out.0", "to_q", "to_v"],
    }
    state = load_file(path)
    assert "transformer.transformer_blocks.0.attn.to_q.lora_A.weight" in state
    assert {t.dtype for t in state.values()} == {torch.float32}
    half = load_file(saved("half", dtype=torch.bfloat16))
    assert all(torch.equal(half[n], t.bfloat16()) for n, t in state.items())


def test_one_process_of_several_writes(model, tmp_path):
    trained(model)
    assert save_lora(model, tmp_path / "lora", write=False) == tmp_path / "lora" / FILE
    assert not (tmp_path / "lora").exists()


@pytest.mark.parametrize("targets", ["attention+text", "all-linear", ["to_q", "proj_mlp"]])
@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_it_goes_on_from_a_file(tiny, tmp_path, make_inputs, targets, quantize, same_random_state):
    model = trained(load_transformer(tiny, quantize=quantize), rank=4, alpha=6, targets=targets)
    path = save_lora(model, tmp_path)
    other = load_transformer(tiny, quantize=quantize)
    found = load_lora(other, path)
    expected = lora_parameters(model)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[n], expected[n]) for n in expected)
    assert {n for n, p in other.named_parameters() if p.requires_grad} == set(found)
    given = make_inputs()
    assert torch.equal(flux_velocity(other, **given), flux_velocity(model, **given))
    again, state = load_file(save_lora(other, tmp_path / "again")), load_file(path)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[n], t) for n, t in state.items())


def test_a_kill_leaves_what_was_there(model, tmp_path, monkeypatch):
    trained(model, rank=4)
    before = save_lora(model, tmp_path).read_bytes()

    def fails(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="disk full"):
        save_lora(model, tmp_path)
    assert os.listdir(tmp_path) == [FILE]
    assert (tmp_path / FILE).read_bytes() == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank must be at least 1"),
        ({"alpha": 0.0}, "alpha above 0"),
        ({"dropout": 1.0}, "dropout in"),
        ({"targets": "attn"}, "targets must be one of"),
        ({"targets": ["to_nothing"]}, "to_nothing"),
    ],
)
def test_wrong_arguments(model, settings, message):
    with pytest.raises(ValueError, match=message):
        add_lora(model, **settings)


def test_one_lora_at_a_time(model, tmp_path):
    with pytest.raises(ValueError, match="has no LoRA: add_lora"):
        save_lora(model, tmp_path)
    add_lora(model)
    path = save_lora(model, tmp_path)
    with pytest.raises(ValueError, match="has a LoRA already"):
        add_lora(model)
    with pytest.raises(ValueError, match="has a LoRA already"):
        load_lora(model, path)


def test_a_file_of_something_else(model, tiny, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no LoRA"):
        load_lora(model, tmp_path)
    path = save_lora(trained(load_transformer(tiny), rank=4), tmp_path)
    state, whole = load_file(path), path.read_bytes()
    with safe_open(path, "pt") as file:
        header = file.metadata()
    path.write_bytes(whole[:-1])
    with pytest.raises(OSError, match="is damaged"):
        load_lora(model, path)
    save_file(state, path)
    with pytest.raises(ValueError, match="tells no rank and alpha"):
        load_lora(model, path)
    name = "transformer.transformer_blocks.0.attn.to_q.lora_A.weight"
    save_file({n: t for n, t in state.items() if n != name}, path, header)
    with pytest.raises(ValueError, match="other layers than its header tells: 1 names differ"):
        load_lora(model, path)
    save_file(state | {name: torch.zeros(4, 48)}, path, header)
    with pytest.raises(ValueError, match="it was trained on another model"):
        load_lora(model, path)
    save_file(state | {"text_encoder.x.lora_A.weight": torch.zeros(4, 32)}, path, header)
    with pytest.raises(ValueError, match="no LoRA of a layer of this transformer"):
        load_lora(model, path)
    assert not lora_parameters(model)
    path.write_bytes(whole)
    assert load_lora(model, path)  # after the errors the transformer is as it was
