"""The estimate: sizes of the real model by hand, and what each setting does to it."""

import dataclasses

import pytest
import torch

from penstock.models import FluxMemory, FluxPlan, FluxSizes, flux_memory, load_transformer
from penstock.models.flux_step import meta_transformer, weight_bytes

GIB = 2**30

SMALL = FluxSizes(
    transformer={
        "num_layers": 2,
        "num_single_layers": 4,
        "attention_head_dim": 32,
        "num_attention_heads": 4,
        "joint_attention_dim": 64,
        "pooled_projection_dim": 64,
        "axes_dims_rope": [8, 12, 12],
        "guidance_embeds": True,
    },
    vae={
        "block_out_channels": [8, 8, 8, 8],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "latent_channels": 16,
        "layers_per_block": 1,
        "norm_num_groups": 4,
    },
    vae_parameters=1000,
    text_parameters=50_000,
)

PLAN = FluxPlan(height=256, width=256, text_tokens=32)


def parts(**settings):
    return flux_memory(dataclasses.replace(PLAN, **settings), SMALL).parts


def test_sizes_are_flux_dev():
    # 11.9, 4.76, 0.123 and 0.084 thousand million: the published sizes.
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    sizes = FluxSizes()
    clip = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
    )
    t5 = T5Config(
        vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    with torch.device("meta"):
        vae = AutoencoderKL(**sizes.vae)
        texts = [CLIPTextModel(clip), T5EncoderModel(t5)]

    def count(model):
        return sum(p.numel() for p in model.parameters())

    assert [count(text) for text in texts] == [123_060_480, 4_762_310_656]
    assert sizes.text_parameters == sum(count(text) for text in texts)
    assert sizes.vae_parameters == count(vae) == 83_819_683
    model = meta_transformer(sizes.transformer, None, "attention")
    assert count(model) == 11_901_408_320
    frozen, trained, block = weight_bytes(model, "none")
    assert (frozen, trained) == (0, 11_901_408_320)
    assert block == 2 * 339_831_296  # one of the 19 that have a stream for the text


@pytest.mark.slow
def test_flux_dev_at_1024():
    memory = flux_memory(FluxPlan())
    assert memory.parts["frozen weights"] == 2 * 11_901_408_320
    # 4 layers of the first 19 blocks, 3 of the other 38: 3072 inputs and as many outputs.
    lora = (19 * 4 + 38 * 3) * 16 * (3072 + 3072)
    assert memory.parts["trained weights"] == 4 * lora
    assert memory.parts["states of the optimizer"] == 8 * lora
    # Each block's inputs are kept: 4608 tokens of 3072 numbers.
    kept = 57 * 4608 * 3072 * 2
    assert kept < memory.parts["computation"] < 2.5 * kept
    assert 24 * GIB < memory.total < 28 * GIB
    assert "25.9" in str(memory)


def test_settings_do_what_they_say():
    base = parts()
    assert parts(optimizer="adamw8bit")["states of the optimizer"] == pytest.approx(
        base["states of the optimizer"] * (1 + 4 / 256) / 4, rel=1e-3
    )
    assert base["moving average"] == 0
    assert parts(ema=True)["moving average"] == base["trained weights"] == base["gradients"]
    assert parts(cached=False)["text encoders"] == 100_000
    assert base["VAE"] == 2000
    assert parts(pictures=False)["VAE"] == 0
    assert parts(trained="bfloat16")["trained weights"] == base["trained weights"] / 2
    assert parts(lora_rank=32)["gradients"] == 2 * base["gradients"]
    assert parts(lora_targets="all-linear")["gradients"] > base["gradients"]
    whole = parts(lora_rank=None, trained="bfloat16")
    assert whole["frozen weights"] == 0
    assert whole["trained weights"] == whole["gradients"] == base["frozen weights"]
    assert whole["states of the optimizer"] == 2 * base["frozen weights"]
    assert whole["bfloat16 copies by autocast"] == 0
    full = parts(lora_rank=None)
    assert full["bfloat16 copies by autocast"] == base["frozen weights"]
    spread = parts(lora_rank=None, shards=4)
    assert spread["gradients"] == full["gradients"] // 4
    assert spread["blocks gathered by FSDP2"] > 0
    assert spread["bfloat16 copies by autocast"] == 0


def test_activations_grow_with_what_they_should():
    plain = parts(gradient_checkpointing=False, pictures=False)["computation"]
    less = parts(pictures=False)["computation"]
    assert less < plain / 2
    for more in ({"batch_size": 2}, {"height": 512}):
        grown = parts(gradient_checkpointing=False, pictures=False, **more)["computation"]
        assert 1.7 * plain < grown < 2.1 * plain
    # A picture's decoding counts where it takes more than the step.
    assert parts(height=1024, width=1024)["computation"] >= parts()["computation"]


def test_quantized_weights():
    base = parts()["frozen weights"]
    eight, four = (parts(quantize=q)["frozen weights"] for q in ("int8", "nf4"))
    assert 0.5 * base < eight < 0.6 * base
    assert 0.25 * base < four < 0.4 * base
    # int8 keeps its weights in bfloat16 for the backward pass, nf4 makes them anew. (Not those of
    # the modulation, about a quarter: what it is made of has no gradient.)
    plain, eight, four = (
        parts(quantize=q, gradient_checkpointing=False, pictures=False)["computation"]
        for q in ("none", "int8", "nf4")
    )
    assert plain + 0.5 * base < eight < plain + base
    assert four < plain + 0.2 * base
    kept, eight = (parts(quantize=q, pictures=False)["computation"] for q in ("none", "int8"))
    assert eight < kept + 0.35 * base  # one block's


def test_int8s_weights_are_kept_by_autograd(tiny):
    # What the estimate imitates, of the real layer.
    layer = load_transformer(tiny, quantize="int8").transformer_blocks[0].attn.to_q
    kept = []
    x = torch.zeros(1, 4, 32, dtype=torch.bfloat16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        layer(x)
    assert any(type(t) is torch.Tensor and t.shape == (32, 32) for t in kept)
    assert {t.dtype for t in kept if t.shape == (32, 32)} == {torch.bfloat16}


def test_int8s_real_bytes(tiny):
    model = load_transformer(tiny, quantize="int8")
    sizes = FluxSizes.from_pretrained(tiny)
    found = 0
    for parameter in model.parameters():
        data = parameter.data
        inner = [data]
        if type(data) is not torch.Tensor:
            inner = [getattr(data, n) for n in data.__tensor_flatten__()[0]]
        found += sum(t.numel() * t.element_size() for t in inner if t is not None)
    frozen, _, _ = weight_bytes(meta_transformer(sizes.transformer, 4, "attention"), "int8")
    assert frozen == pytest.approx(found, rel=0.02)


def test_sizes_of_a_checkpoint(tiny):
    sizes = FluxSizes.from_pretrained(tiny)
    model = load_transformer(tiny)
    assert dict(sizes.transformer)["num_attention_heads"] == 2
    memory = flux_memory(PLAN, sizes)
    assert memory.parts["frozen weights"] == 2 * sum(p.numel() for p in model.parameters())
    assert sizes.vae_parameters > 10_000
    assert sizes.text_parameters > 10_000


def test_a_table_of_parts():
    text = str(FluxMemory({"weights": 3 * GIB, "nothing": 0, "gradients": GIB // 2}))
    assert [line.split()[-2] for line in text.splitlines()] == ["3.00", "0.50", "3.50"]
    assert "nothing" not in text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"height": 1000}, "multiples of 16, got 1000 x 1024"),
        ({"shards": 0}, "must be at least 1"),
        ({"lora_rank": None, "quantize": "int8"}, "needs a LoRA"),
    ],
)
def test_wrong_plans(settings, message):
    with pytest.raises(ValueError, match=message):
        FluxPlan(**settings)
