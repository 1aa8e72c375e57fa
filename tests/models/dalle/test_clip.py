"""CLIP's scores, loss and masks."""

import pytest
import torch
import torch.nn.functional as F

from penstock.models.dalle import CLIP

SIZES = {
    "dim_text": 16,
    "dim_image": 24,
    "dim_latent": 12,
    "num_text_tokens": 40,
    "text_enc_depth": 2,
    "text_seq_len": 7,
    "text_heads": 2,
    "visual_enc_depth": 1,
    "visual_heads": 2,
    "visual_image_size": 32,
    "visual_patch_size": 8,
}


@pytest.fixture
def clip() -> CLIP:
    torch.manual_seed(0)
    return CLIP(**SIZES)


@torch.no_grad()
def test_scores_and_loss(clip, text, images):
    texts, pictures = clip.text_latents(text), clip.image_latents(images)
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(3))
    scores = texts @ pictures.T * torch.e
    torch.testing.assert_close(clip(text, images), scores.diagonal())
    own = torch.arange(3)
    expected = (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2
    torch.testing.assert_close(clip(text, images, return_loss=True), expected)


def test_all_is_trained(clip, text, images):
    clip(text, images, text_mask=text != 0, return_loss=True).backward()
    assert all(p.grad is not None for p in clip.parameters())


@torch.no_grad()
def test_masked_words_do_not_count(clip, text):
    other = text.clone()
    other[0, 4] = 9
    mask = text != 0
    found, changed = clip.text_latents(text, mask), clip.text_latents(other, mask)
    torch.testing.assert_close(found, changed)
    assert not torch.allclose(clip.text_latents(text)[0], clip.text_latents(other)[0])
    torch.testing.assert_close(found[0], clip.text_latents(text[:1, :3])[0])


@torch.no_grad()
def test_a_text_without_words_is_seen_whole(clip, text):
    empty = text[2:]
    found = clip.text_latents(empty, empty != 0)
    assert found.isfinite().all()
    torch.testing.assert_close(found, clip.text_latents(empty))
    torch.testing.assert_close(found, clip.text_latents(empty, torch.ones(1, 7)))


@torch.no_grad()
def test_patches_are_where_they_are(clip):
    clip.to_visual_embedding.weight.zero_()
    clip.to_visual_embedding.weight[0, 3 * (8 * 2 + 5) + 1] = 1  # row 2, column 5, green
    kept = []
    clip.visual_transformer.register_forward_hook(lambda *a: kept.append(a[1][0]))
    image = torch.zeros(1, 3, 32, 32)
    image[0, 1, 8 + 2, 16 + 5] = 1  # patch 4 + 2
    clip.image_latents(image)
    x = kept[0] - clip.visual_pos_emb.weight - clip.to_visual_embedding.bias
    assert (x[0].abs().amax(1) > 0.5).nonzero().flatten().tolist() == [6]


def test_bad_inputs(clip, text, images):
    with pytest.raises(ValueError, match="n up to 7"):
        clip(text.repeat(1, 2), images)
    with pytest.raises(ValueError, match=r"text_mask must be \[3, 7\]"):
        clip(text, images, text_mask=torch.ones(3, 5))
    with pytest.raises(ValueError, match=r"\[B, 3, 32, 32\]"):
        clip(text, images[..., :16])
    with pytest.raises(ValueError, match="patches of 5 pixels"):
        CLIP(visual_patch_size=5)
