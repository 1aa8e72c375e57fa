"""The network of DALL-E: a text and then an image, as one sequence of codes."""

from collections.abc import Iterable, Sequence
from typing import Any
from warnings import warn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cache import Cache
from .image_tokenizer import ImageTokenizer, check_image_tokenizer
from .layout import Layout
from .transformer import Transformer


class CodeSequence(nn.Module):
    """Embeds codes, runs the transformer, and gives logits; `DALLE` says what the arguments are."""

    def __init__(
        self,
        *,
        dim: int,
        vae: nn.Module,
        num_text_tokens: int = 10000,
        text_seq_len: int = 256,
        depth: int,
        heads: int = 8,
        dim_head: int = 64,
        reversible: bool = False,
        attn_dropout: float = 0.0,
        ff_dropout: float = 0.0,
        sparse_attn: bool | Sequence[bool] = False,
        attn_types: str | Sequence[str] | None = None,
        loss_img_weight: float = 7,
        stable: bool = False,
        sandwich_norm: bool = False,
        shift_tokens: bool = True,
        rotary_emb: bool = True,
        shared_attn_ids: Iterable[int] | None = None,
        shared_ff_ids: Iterable[int] | None = None,
        share_input_output_emb: bool = False,
        optimize_for_inference: bool = False,
    ) -> None:
        super().__init__()
        tokenizer = check_image_tokenizer(vae)
        attn_ids = None if shared_attn_ids is None else tuple(shared_attn_ids)
        ff_ids = None if shared_ff_ids is None else tuple(shared_ff_ids)
        if sparse_attn:
            warn(
                "sparse_attn has no effect, as in dalle-pytorch 1.6.6: say "
                "attn_types=('full', 'sparse')",
                FutureWarning,
                stacklevel=2,
            )
        self.settings: dict[str, Any] = {
            "dim": dim,
            "num_text_tokens": num_text_tokens,
            "text_seq_len": text_seq_len,
            "depth": depth,
            "heads": heads,
            "dim_head": dim_head,
            "reversible": reversible,
            "attn_dropout": attn_dropout,
            "ff_dropout": ff_dropout,
            "attn_types": attn_types,
            "loss_img_weight": loss_img_weight,
            "stable": stable,
            "sandwich_norm": sandwich_norm,
            "shift_tokens": shift_tokens,
            "rotary_emb": rotary_emb,
            "shared_attn_ids": attn_ids,
            "shared_ff_ids": ff_ids,
            "share_input_output_emb": share_input_output_emb,
        }
        width = tokenizer.image_size // 2**tokenizer.num_layers
        self.layout = Layout(text_seq_len + 1, width)
        self.text_seq_len, self.image_seq_len = text_seq_len, width**2
        self.total_seq_len = text_seq_len + width**2
        self.num_text_tokens = num_text_tokens + text_seq_len  # words, and a padding per position
        self.num_image_tokens = tokenizer.num_tokens
        self.total_tokens = self.num_text_tokens + self.num_image_tokens
        self.loss_img_weight, self.stable = loss_img_weight, stable
        self.vae = vae.requires_grad_(False)
        self.transformer = Transformer(
            dim=dim,
            depth=depth,
            layout=self.layout,
            heads=heads,
            dim_head=dim_head,
            reversible=reversible,
            attn_dropout=attn_dropout,
            ff_dropout=ff_dropout,
            attn_types=attn_types,
            sandwich_norm=sandwich_norm,
            shift_tokens=shift_tokens,
            rotary_emb=rotary_emb,
            shared_attn_ids=attn_ids,
            shared_ff_ids=ff_ids,
        )
        self.norm = nn.LayerNorm(dim)
        self.to_logits = nn.Linear(dim, self.total_tokens)
        self.text_emb = self.image_emb = None
        if not share_input_output_emb:
            self.text_emb = nn.Embedding(self.num_text_tokens, dim)
            self.image_emb = nn.Embedding(self.num_image_tokens, dim)
        self.text_pos_emb = self.row_emb = self.column_emb = None
        if not rotary_emb:
            self.text_pos_emb = nn.Embedding(text_seq_len + 1, dim)
            self.row_emb = nn.Parameter(torch.randn(width, 1, dim))
            self.column_emb = nn.Parameter(torch.randn(1, width, dim))

    @property
    def image_tokenizer(self) -> ImageTokenizer:
        """The frozen model that makes codes of images and images of codes."""
        return self.vae  # type: ignore[return-value]

    def text_ids(self, text: Tensor) -> Tensor:
        """Return a text, [B, n], with the padding at each position as an id of its own."""
        first = self.num_text_tokens - self.text_seq_len
        paddings = torch.arange(first, first + text.shape[1], device=text.device)
        return torch.where(text == 0, paddings, text)

    def image_codes(self, image: Tensor) -> Tensor:
        """Return codes, int64 [B, n], of codes or images.

        Raises:
            ValueError: If the shape is of neither.
        """
        tokenizer = self.image_tokenizer
        size = (tokenizer.channels, tokenizer.image_size, tokenizer.image_size)
        if image.ndim == 4 and image.shape[1:] == size:
            return tokenizer.get_codebook_indices(image)
        if image.ndim != 2 or image.is_floating_point() or image.shape[1] > self.image_seq_len:
            raise ValueError(
                f"image must be float [B, {', '.join(map(str, size))}] or codes, integers [B, n] "
                f"with n up to {self.image_seq_len}; got {image.dtype} {[*image.shape]}"
            )
        return image.long()

    def hidden(
        self,
        ids: Tensor,
        codes: Tensor | None,
        visible: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Return what logits are made of, normed, float [B, n, dim].

        Args:
            ids: From `text_ids`, [B, m].
            codes: Of the image, [B, k], or None.
            visible: Bool [B, text_seq_len]; None where all is seen.
            cache: Where it has seen all but the last position, only this one is computed.
        """
        done = 0 if cache is None else cache.length
        tokens = self._embed(ids, codes, done)[:, : self.total_seq_len - done]
        if self.stable:
            tokens = tokens * 0.1 + tokens.detach() * 0.9
        if visible is not None:
            visible = F.pad(visible, (1, 0), value=True)  # the begin is always seen
        out: Tensor = self.transformer(tokens, visible, cache)
        if self.stable:
            out = out / out.amax(dim=-1, keepdim=True).detach()
        return self.norm(out)  # type: ignore[no-any-return]

    def text_logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of words and paddings, float [..., num_text_tokens]."""
        cut = self.num_text_tokens
        return F.linear(hidden, self.to_logits.weight[:cut], self.to_logits.bias[:cut])

    def image_logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of an image's codes, float [..., num_image_tokens]."""
        cut = self.num_text_tokens
        return F.linear(hidden, self.to_logits.weight[cut:], self.to_logits.bias[cut:])

    def _embed(self, ids: Tensor, codes: Tensor | None, done: int) -> Tensor:
        """Return the embeddings of begin, text and image from position ``done`` on."""
        weight, cut = self.to_logits.weight, self.num_text_tokens
        words = weight[:cut] if self.text_emb is None else self.text_emb.weight
        parts = []
        if done < self.layout.text_len:
            begun = F.pad(ids, (1, 0))[:, done:]
            text = F.embedding(begun, words)
            if self.text_pos_emb is not None:
                text = text + self.text_pos_emb.weight[done : done + begun.shape[1]]
            parts.append(text)
        if codes is not None:
            start = max(0, done - self.layout.text_len)
            pictures = weight[cut:] if self.image_emb is None else self.image_emb.weight
            image = F.embedding(codes[:, start:], pictures)
            if self.row_emb is not None and self.column_emb is not None:
                places = (self.row_emb + self.column_emb).flatten(0, 1)
                image = image + places[start : codes.shape[1]]
            parts.append(image)
        return torch.cat(parts, dim=1)
