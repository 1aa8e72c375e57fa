"""A forward pass is the pipeline's; a mask hides padding and nothing else."""

import pytest
import torch

from penstock.models import (
    attention_options,
    flux_velocity,
    load_transformer,
    transformer_dtype,
    zero_padding,
)
from penstock.recipes.tiny_flux import tiny_flux_pipeline


@pytest.fixture(scope="module")
def model(tiny):
    return load_transformer(tiny, dtype=torch.float32)


def test_it_is_the_pipelines_call(model, make_inputs):
    given = make_inputs()
    # As diffusers.FluxPipeline calls it: timesteps of 0 to 1000, divided.
    expected = model(
        hidden_states=given["tokens"],
        timestep=given["sigmas"] * 1000 / 1000,
        guidance=torch.full([1], 3.5).expand(2),
        pooled_projections=given["pooled_embeds"],
        encoder_hidden_states=given["prompt_embeds"],
        txt_ids=given["text_ids"],
        img_ids=given["image_ids"],
        return_dict=False,
    )[0]
    assert torch.allclose(flux_velocity(model, **given, guidance=3.5), expected, atol=1e-6)
    each = flux_velocity(model, **given, guidance=torch.tensor([3.5, 3.5]))
    assert torch.equal(each, flux_velocity(model, **given, guidance=3.5))
    assert not torch.equal(each, flux_velocity(model, **given))  # guidance 1


def test_schnell_is_not_given_guidance(make_inputs):
    model = tiny_flux_pipeline("schnell").transformer
    given = make_inputs()
    one, two = (flux_velocity(model, **given, guidance=g) for g in (1.0, 9.0))
    assert torch.equal(one, two)


def test_it_takes_the_weights_type(tiny, make_inputs):
    model = load_transformer(tiny)
    assert transformer_dtype(model) == torch.bfloat16
    assert flux_velocity(model, **make_inputs()).dtype == torch.bfloat16


def test_a_mask_is_as_if_padding_were_not_there(model, make_inputs):
    given = make_inputs(text=9)
    mask = torch.tensor([[1] * 6 + [0] * 3] * 2)
    masked = flux_velocity(model, **given, text_mask=mask)
    cut = given | {
        "prompt_embeds": given["prompt_embeds"][:, :6],
        "text_ids": given["text_ids"][:6],
    }
    assert torch.allclose(masked, flux_velocity(model, **cut), atol=1e-5)
    assert not torch.allclose(masked, flux_velocity(model, **given), atol=1e-4)
    other = given["prompt_embeds"].clone()
    other[:, 6:] = 100.0
    again = flux_velocity(model, **(given | {"prompt_embeds": other}), text_mask=mask)
    assert torch.allclose(masked, again, atol=1e-5)
    # Each row has its own.
    rows = torch.tensor([[1] * 9, [1] * 6 + [0] * 3])
    mixed = flux_velocity(model, **given, text_mask=rows)
    assert torch.allclose(mixed[0], flux_velocity(model, **given)[0], atol=1e-5)
    assert torch.allclose(mixed[1], masked[1], atol=1e-5)


def test_a_mask_of_ones_changes_nothing(model, make_inputs):
    given = make_inputs()
    ones = flux_velocity(model, **given, text_mask=torch.ones(2, 5))
    assert torch.allclose(ones, flux_velocity(model, **given), atol=1e-5)
    assert attention_options(None, 24) is None


def test_masked_pads_have_no_gradient(model, make_inputs):
    given = make_inputs(text=9)
    given["prompt_embeds"].requires_grad_()
    mask = torch.tensor([[1] * 6 + [0] * 3] * 2)
    flux_velocity(model, **given, text_mask=mask).square().sum().backward()
    grad = given["prompt_embeds"].grad
    assert (grad[:, 6:] == 0).all()
    assert (grad[:, :6] != 0).any()


def test_zero_padding():
    embeds = torch.ones(1, 3, 2, dtype=torch.bfloat16)
    found = zero_padding(embeds, torch.tensor([[1, 1, 0]]))
    assert found.dtype == torch.bfloat16
    assert found[0].tolist() == [[1, 1], [1, 1], [0, 0]]


def test_through_ddps_wrapper(model, make_inputs):
    class Wrapper(torch.nn.Module):  # as DistributedDataParallel: no config of its own
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, **given):
            return self.module(**given)

    given = make_inputs()
    assert torch.equal(flux_velocity(Wrapper(model), **given), flux_velocity(model, **given))
