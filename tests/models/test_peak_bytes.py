"""Bytes counted without data are those that real tensors take."""

import pytest
import torch
from torch import nn

from penstock.models import peak_bytes
from penstock.models.flux_step import meta_transformer, step_bytes
from penstock.models.peak_bytes import fake_parameters

MIB = 2**20


def mib(*counts):
    return torch.empty(*counts, MIB // 4)


def test_what_is_alive_at_once_is_counted():
    def build():
        known = mib(5)

        def compute():
            a = known + 1  # 5
            b = a[:2] * 2  # + 2
            del a  # - 5
            c = torch.cat([b, b, b])  # + 6
            c.mul_(2)  # in place: nothing
            return c.view(-1)  # nothing

        build.known = [known]
        return compute

    assert peak_bytes(build, lambda: build.known) == 8 * MIB


def test_what_autograd_keeps_is_counted():
    def build():
        layers = nn.Sequential(*[nn.Sigmoid() for _ in range(10)])
        x = mib(1).requires_grad_()

        def compute():
            layers(x).sum().backward()

        build.known = [x]
        return compute

    found = peak_bytes(build, lambda: build.known)
    assert 11 * MIB <= found < 12 * MIB  # ten outputs are kept, and one gradient is made


def test_nothing_is_taken():
    def build():
        huge = torch.empty(2**44)
        return lambda: huge + 1

    assert peak_bytes(build, list) >= 4 * 2**44


def test_fake_parameters():
    with torch.device("meta"):
        module = nn.Linear(3, 5)
    module.bias.requires_grad_(False)
    with torch._subclasses.FakeTensorMode():
        fake_parameters(module)
        assert module(torch.empty(2, 3)).shape == (2, 5)
    assert module.weight.grad.shape == (5, 3)
    assert module.bias.grad is None
    assert not module.bias.requires_grad


CONFIG = {
    "num_layers": 2,
    "num_single_layers": 3,
    "attention_head_dim": 64,
    "num_attention_heads": 4,
    "joint_attention_dim": 128,
    "pooled_projection_dim": 64,
    "axes_dims_rope": (16, 24, 24),
    "guidance_embeds": True,
}


def measured(rank, checkpointing):
    """Return the peak that torch's profiler sees a real step allocate, with real weights."""
    meta = meta_transformer(CONFIG, rank, "attention")
    model = meta.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
    if checkpointing:
        model.enable_gradient_checkpointing()
    half = torch.bfloat16
    inputs = {
        "hidden_states": torch.zeros(1, 192, 64, dtype=half),
        "encoder_hidden_states": torch.zeros(1, 64, 128, dtype=half),
        "pooled_projections": torch.zeros(1, 64, dtype=half),
        "timestep": torch.zeros(1, dtype=half),
        "img_ids": torch.zeros(192, 3),
        "txt_ids": torch.zeros(64, 3),
        "guidance": torch.zeros(1),
    }
    with torch.autograd.profiler.profile(profile_memory=True, use_kineto=True) as seen:
        model(**inputs, return_dict=False)[0].float().square().mean().backward()
    now = peak = 0
    for event in sorted(seen.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


@pytest.mark.slow
@pytest.mark.parametrize("rank", [4, None])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_takes_what_torch_then_allocates(rank, checkpointing):
    model = meta_transformer(CONFIG, rank, "attention")
    found = step_bytes(model, 1, 192, 64, "none", checkpointing)
    expected = measured(rank, checkpointing)
    assert found == pytest.approx(expected, rel=0.1)
