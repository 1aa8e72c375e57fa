"""DALL-E: images from texts, texts from their beginnings."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .code_sequence import CodeSequence
from .generate import evaluating, generate_codes, generate_words
from .rank import image_scores
from .tokenizer import TextTokenizer


class DALLE(CodeSequence):
    """Predicts the codes of an image from a text (Ramesh et al. 2021, arXiv 2102.12092).

    Arguments, defaults and their meaning are those of dalle-pytorch 1.6.6, except for what is said
    below. Padding, which is id 0 and nothing else, is predicted like words: at each position it
    has an id of its own, behind the words' ids.

    Args:
        dim: Channels.
        vae: The image tokenizer (`ImageTokenizer`), such as a `DiscreteVAE`. It is part of the
            weights and is not trained.
        num_text_tokens: Ids of words; ids run from 0 to this number less 1.
        text_seq_len: Ids of a text.
        depth: Layers.
        heads: Attention heads.
        dim_head: Channels of a head.
        reversible: Keep no layer's activations in training: the memory does not grow with the
            depth, each layer is run twice.
        attn_dropout: Dropout behind attention.
        ff_dropout: Dropout within feed-forward networks.
        sparse_attn: Without an effect, as in dalle-pytorch 1.6.6; warned of. There is
            ``attn_types``.
        attn_types: Kinds of attention, repeated over the layers: "full", "axial_row", "axial_col",
            "conv_like", "sparse" (see `pattern`). None is ("full",).
        loss_img_weight: Weight of the image's loss; the text's is 1.
        stable: Less of the gradient into the embeddings, and the last activations divided by
            their largest, for half precision (Ding et al. 2021, arXiv 2105.13290). The softmax is
            a stable one in any case.
        sandwich_norm: A second norm in each half of a layer.
        shift_tokens: Shift channels from earlier positions.
        rotary_emb: Rotary positions; without them learnt ones.
        shared_attn_ids: A number for each layer, repeated: equal ones share their attention.
        shared_ff_ids: The same for feed-forward networks.
        share_input_output_emb: Codes are embedded by the weights that predict them.
        optimize_for_inference: Without an effect: all kinds generate from their cache.

    Raises:
        TypeError: If ``vae`` is no image tokenizer.
        ValueError: If an argument is out of range.
    """

    def forward(
        self,
        text: Tensor,
        image: Tensor | None = None,
        return_loss: bool = False,
        null_cond_prob: float = 0.0,
        *,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Return the logits of the sequence, or the loss.

        Args:
            text: Integers [B, text_seq_len]: words, then 0. The tensor is left as it is.
            image: Codes, integers [B, n], or float images [B, C, S, S] in [0, 1].
            return_loss: Give the loss, a scalar: the cross entropies of text and image, by their
                weights.
            null_cond_prob: Probability that a sample's text is all padding, for guidance.
            mask: [B, text_seq_len], bool or 0 and 1: false where nothing may look. It hides
                positions, and changes no id. A text that it hides altogether, or that is
                dropped, is seen whole.

        Returns:
            Float [B, 1 + text_seq_len + n, total_tokens], the last one left out where the image is
            whole: row i predicts the i-th code of text and image; what cannot stand there has the
            lowest number there is.

        Raises:
            ValueError: If shapes do not fit, or there is no whole image for the loss.
        """
        text, mask = self.check_text(text, mask)
        if null_cond_prob > 0:
            dropped = torch.rand(len(text), device=text.device) < null_cond_prob
            text = text.masked_fill(dropped[:, None], 0)
            mask = None if mask is None else mask | dropped[:, None]
        ids = self.text_ids(text)
        codes = None if image is None or image.numel() == 0 else self.image_codes(image)
        hidden = self.hidden(ids, codes, mask)
        if not return_loss:
            return self._all_logits(hidden)
        if codes is None or codes.shape[1] != self.image_seq_len:
            got = "none" if codes is None else f"{codes.shape[1]} codes"
            raise ValueError(f"the loss needs an image of {self.image_seq_len} codes, got {got}")
        cut = self.text_seq_len
        text_loss = F.cross_entropy(self.text_logits(hidden[:, :cut]).flatten(0, 1), ids.flatten())
        image_loss = F.cross_entropy(
            self.image_logits(hidden[:, cut:]).flatten(0, 1), codes.flatten()
        )
        return (text_loss + self.loss_img_weight * image_loss) / (self.loss_img_weight + 1)

    def _all_logits(self, hidden: Tensor) -> Tensor:
        cut, lowest = self.text_seq_len, -torch.finfo(hidden.dtype).max
        text = F.pad(self.text_logits(hidden[:, :cut]), (0, self.num_image_tokens), value=lowest)
        image = F.pad(self.image_logits(hidden[:, cut:]), (self.num_text_tokens, 0), value=lowest)
        return torch.cat([text, image], dim=1)

    @torch.no_grad()
    def generate_images(
        self,
        text: Tensor,
        *,
        clip: nn.Module | None = None,
        mask: Tensor | None = None,
        filter_thres: float = 0.5,
        temperature: float = 1.0,
        img: Tensor | None = None,
        num_init_img_tokens: int | None = None,
        cond_scale: float = 1.0,
        use_cache: bool = True,
        generator: torch.Generator | None = None,
        clip_text: Tensor | None = None,
        clip_mask: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return an image for each text, and, with ``clip``, how well each fits.

        Args:
            text: Integers [B, text_seq_len]: words, then 0. The tensor is left as it is.
            clip: A `CLIP` or a CLIPModel of transformers.
            mask: As in training.
            filter_thres: Share of all codes, words included, that is left out of the draw: the
                least likely ones.
            temperature: Divides the logits; 0 takes the likeliest code.
            img: Float [B, C, S, S] in [0, 1]: images whose first codes are kept.
            num_init_img_tokens: How many of them; 7/16 of all, as OpenAI did, if None.
            cond_scale: Guidance: 1 for none; the logits are those without a text, and this many
                times what the text changes of them (Ho and Salimans 2022, arXiv 2207.12598).
            use_cache: Keep keys and values. Without it the same images come many times slower.
            generator: What is drawn from; torch's own for the device if None. One on the CPU
                gives the same draws for any device.
            clip_text: Ids for ``clip``, [B, n], where its words are not DALL-E's.
            clip_mask: Mask of ``clip_text``.

        Returns:
            Float [B, C, S, S] in [0, 1]; with ``clip``, (images, scores [B]), in the order of
            ``text``. The best k are ``images[scores.topk(k).indices]``.

        Raises:
            ValueError: If an argument is out of range or of another shape.
        """
        text, mask = self.check_text(text, mask)
        codes = text.new_zeros(len(text), 0, dtype=torch.long)
        if img is not None:
            codes = self._first_codes(img, num_init_img_tokens)
        with evaluating(self):
            codes = generate_codes(
                self,
                text,
                codes,
                visible=mask,
                filter_thres=filter_thres,
                temperature=temperature,
                cond_scale=cond_scale,
                use_cache=use_cache,
                generator=generator,
            )
            images = self.image_tokenizer.decode(codes)
        if clip is None:
            return images
        if clip_text is None:
            clip_text, clip_mask = text, mask
        return images, image_scores(clip, clip_text, images, clip_mask)

    @torch.no_grad()
    def generate_texts(
        self,
        tokenizer: TextTokenizer | Any,
        text: str | None = None,
        *,
        filter_thres: float = 0.5,
        temperature: float = 1.0,
        use_cache: bool = True,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, list[str]]:
        """Return a text that goes on from its beginning.

        Args:
            tokenizer: Makes ids of words; `TextTokenizer`, or something with its ``encode`` and
                ``decode``.
            text: The beginning; None or "" for none.
            filter_thres: Share of all codes that is left out of the draw.
            temperature: Divides the logits; 0 takes the likeliest word.
            use_cache: Keep keys and values.
            generator: What is drawn from; torch's own for the device if None.

        Returns:
            Ids, int64 [1, text_seq_len], padding as 0, as `generate_images` takes them; and
            the text, in a list.

        Raises:
            ValueError: If the beginning is longer than a text.
        """
        start = tokenizer.encode(text) if text else []
        if len(start) > self.text_seq_len:
            raise ValueError(
                f"the beginning has {len(start)} tokens, a text has {self.text_seq_len}: {text!r}"
            )
        ids = torch.tensor([start], dtype=torch.long, device=self.to_logits.weight.device)
        with evaluating(self):
            ids = generate_words(
                self,
                ids,
                filter_thres=filter_thres,
                temperature=temperature,
                use_cache=use_cache,
                generator=generator,
            )
        ids = ids.masked_fill(ids >= self.num_text_tokens - self.text_seq_len, 0)
        return ids, [tokenizer.decode(row) for row in ids.tolist()]

    def check_text(self, text: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return text and mask, checked.

        Raises:
            ValueError: If they are of another shape or dtype.
        """
        length = self.text_seq_len
        if text.ndim != 2 or text.shape[1] != length or text.is_floating_point():
            raise ValueError(
                f"text must be integers [B, {length}], got {text.dtype} {[*text.shape]}"
            )
        if mask is None:
            return text, None
        if mask.shape != text.shape:
            raise ValueError(f"mask must be {[*text.shape]} as the text, got {[*mask.shape]}")
        mask = mask.bool()
        return text, mask | ~mask.any(dim=1, keepdim=True)

    def _first_codes(self, img: Tensor, count: int | None) -> Tensor:
        if count is None:
            count = self.image_seq_len * 7 // 16
        if not 0 <= count < self.image_seq_len:
            raise ValueError(
                f"num_init_img_tokens must be 0 to {self.image_seq_len - 1}, got {count}"
            )
        if img.ndim != 4:
            raise ValueError(f"img must be images [B, C, S, S], got {[*img.shape]}")
        return self.image_codes(img)[:, :count]
