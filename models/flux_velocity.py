"""One forward pass of FLUX.1's transformer."""

from typing import Any

import torch


def flux_velocity(
    transformer: Any,
    tokens: torch.Tensor,
    sigmas: torch.Tensor,
    *,
    prompt_embeds: torch.Tensor,
    pooled_embeds: torch.Tensor,
    image_ids: torch.Tensor,
    text_ids: torch.Tensor,
    guidance: float | torch.Tensor = 1.0,
    text_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the velocities that the transformer tells for noised tokens, [B, n, 64].

    Args:
        transformer: diffusers' FluxTransformer2DModel, or one in DDP, FSDP2 or torch.compile.
        tokens: Noised latents, packed, [B, n, 64]; of any float type, and taken in that of the
            transformer's weights.
        sigmas: Noise levels, [B], in [0, 1].
        prompt_embeds: T5's last hidden state, [B, L, 4096].
        pooled_embeds: CLIP's pooled output, [B, 768].
        image_ids: Positions of the image's tokens, [n, 3].
        text_ids: Positions of the text's tokens, [L, 3].
        guidance: For a guidance-distilled model (dev), one number or [B]; others (schnell) have no
            such input, and are not given it. Training takes 1: the model's own distribution.
        text_mask: [B, L], nonzero at words: no token then attends to the text's padding, in the
            transformer. None attends to it, as FLUX.1 was trained. Three things go by the name of
            a masked T5: this (kohya's ``apply_t5_attn_mask`` does it, and masks inside T5 too);
            masking inside T5, which is the encoder's matter; and setting the embeddings of padding
            to zero (OneTrainer, ai-toolkit), which is `zero_padding`.
    """
    dtype = transformer_dtype(transformer)
    config = _bare(transformer).config
    scale = None
    if config.guidance_embeds:
        scale = torch.as_tensor(guidance, dtype=torch.float32, device=tokens.device)
        scale = scale.expand(tokens.shape[0])
    found: torch.Tensor = transformer(
        hidden_states=tokens.to(dtype),
        timestep=sigmas.to(dtype),
        guidance=scale,
        pooled_projections=pooled_embeds.to(dtype),
        encoder_hidden_states=prompt_embeds.to(dtype),
        img_ids=image_ids,
        txt_ids=text_ids,
        joint_attention_kwargs=attention_options(text_mask, tokens.shape[1]),
        return_dict=False,
    )[0]
    return found


def attention_options(text_mask: torch.Tensor | None, image_tokens: int) -> dict[str, Any] | None:
    """Return diffusers' ``joint_attention_kwargs`` that hide the text's padding; None for no mask.

    Args:
        text_mask: [B, L], nonzero at words.
        image_tokens: How many; they stand behind the text's, and are seen.
    """
    if text_mask is None:
        return None
    seen = torch.nn.functional.pad(text_mask != 0, (0, image_tokens), value=True)
    return {"attention_mask": seen[:, None, None, :]}  # [B, heads, queries, keys]


def zero_padding(prompt_embeds: torch.Tensor, text_mask: torch.Tensor) -> torch.Tensor:
    """Return T5's embeddings [B, L, D] with those of padding set to zero.

    Args:
        prompt_embeds: [B, L, D].
        text_mask: [B, L], nonzero at words.
    """
    return prompt_embeds * (text_mask != 0)[:, :, None].to(prompt_embeds.dtype)


def transformer_dtype(transformer: Any) -> torch.dtype:
    """Return the type that the transformer computes in: that of its first layer's bias.

    Its other weights may be quantized, and a LoRA's are float32.
    """
    dtype: torch.dtype = _bare(transformer).x_embedder.bias.dtype
    return dtype


def _bare(transformer: Any) -> Any:
    return getattr(transformer, "module", transformer)  # DDP's is in there
