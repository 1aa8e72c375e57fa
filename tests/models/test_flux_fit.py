"""What is said where it does not fit."""

import dataclasses

from penstock.models import FluxMemory, FluxPlan, fit_flux, fit_text, flux_fit

GIB = 2**30


def fake(plan, sizes=None):
    """Stand in for flux_memory: numbers like FLUX.1-dev's, without the seconds they take."""
    small = {"none": 22, "int8": 11, "nf4": 6}[plan.quantize]
    steps = plan.height * plan.width / 2**20 * plan.batch_size
    frozen, trained = (small, 0.1) if plan.lora_rank else (0, 22)
    state = {"adamw": 2, "adamw8bit": 1}[plan.optimizer]
    wide = 2 if plan.trained == "float32" and not plan.lora_rank else 1
    parts = {
        "weights": (frozen + trained * wide * (2 + 2 * state)) / plan.shards,
        "encoders": 0 if plan.cached else 9,
        "computation": steps * (2.4 if plan.gradient_checkpointing else 30),
    }
    return FluxMemory({n: int(size * GIB) for n, size in parts.items()})


def test_nothing_to_change(monkeypatch):
    monkeypatch.setattr(flux_fit, "flux_memory", fake)
    assert fit_flux(FluxPlan(), 80 * GIB) == []
    assert fit_text(FluxPlan(), 80 * GIB).endswith("fits into 80.0 GiB")


def test_the_mild_changes_come_first_and_no_more_than_needed(monkeypatch):
    monkeypatch.setattr(flux_fit, "flux_memory", fake)
    plan = FluxPlan(cached=False, gradient_checkpointing=False, batch_size=2)

    def said(free):
        return [change.text for change in fit_flux(plan, free * GIB)]

    assert said(88) == ["cache latents and text embeddings"]
    assert said(40)[1:] == ["switch gradient checkpointing on"]
    assert said(25)[2:] == ["batches of 1, and more of them accumulated"]
    assert said(16)[3:] == ["quantize the frozen weights to int8"]
    assert said(10)[4:] == ["quantize the frozen weights to nf4"]
    assert said(8.2)[5:] == ["images of 768 x 768 (height x width)"]
    for change, free in zip(fit_flux(plan, 10 * GIB), (88, 40, 25, 16, 10), strict=True):
        assert change.memory == fake(change.plan)
        assert change.memory.total <= free * GIB
    settings = dataclasses.asdict(fit_flux(plan, 10 * GIB)[-1].plan)
    assert settings["quantize"] == "nf4"
    assert settings["batch_size"] == 1


def test_the_whole_transformer(monkeypatch):
    monkeypatch.setattr(flux_fit, "flux_memory", fake)
    text = fit_text(FluxPlan(lora_rank=None), 20 * GIB)
    assert "does not fit into 20.0 GiB" in text
    assert "an 8-bit optimizer: " in text
    assert "train in bfloat16: " in text
    assert "spread it over 8 GPUs by FSDP2: " in text
    assert "quantize" not in text
    assert "with more memory" not in text


def test_what_never_fits(monkeypatch):
    monkeypatch.setattr(flux_fit, "flux_memory", fake)
    text = fit_text(FluxPlan(lora_rank=None), GIB // 2)
    assert "train a LoRA of rank 16" in text
    assert text.endswith("take a GPU with more memory")


def test_shapes_are_kept(monkeypatch):
    monkeypatch.setattr(flux_fit, "flux_memory", fake)
    changes = fit_flux(FluxPlan(height=1152, width=896, quantize="nf4"), 8 * GIB)
    assert changes[-1].text == "images of 864 x 672 (height x width)"
    plan = changes[-1].plan
    assert abs(plan.height / plan.width - 1152 / 896) < 0.02
