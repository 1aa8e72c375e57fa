"""Ranking by our CLIP and by one of transformers."""

import pytest
import torch

from penstock.models.dalle import CLIP, image_scores
from penstock.models.dalle.rank import CLIP_DEVIATION, CLIP_MEAN


@pytest.fixture
def clip() -> CLIP:
    torch.manual_seed(0)
    sizes = {"dim_text": 16, "dim_image": 16, "dim_latent": 16, "num_text_tokens": 40}
    sizes |= {"text_enc_depth": 1, "text_seq_len": 7, "text_heads": 2, "visual_enc_depth": 1}
    sizes |= {"visual_heads": 2, "visual_image_size": 16, "visual_patch_size": 8}
    return CLIP(**sizes)


@pytest.fixture(scope="module")
def official():
    import transformers

    part = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    part |= {"num_attention_heads": 2}
    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        text_config={**part, "vocab_size": 50, "max_position_embeddings": 9, "eos_token_id": 49},
        vision_config={**part, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    return transformers.CLIPModel(config)


def test_images_are_resized_to_the_clips(clip, text, images):
    found = image_scores(clip, text, images)
    resize = torch.nn.functional.interpolate
    small = resize(images, (16, 16), mode="bicubic", antialias=True).clamp(0, 1)
    torch.testing.assert_close(found, clip(text, small).detach())
    assert not found.requires_grad
    assert clip.training


def test_a_mask_reaches_the_clip(clip, text, images):
    masked = image_scores(clip, text, images, text != 0)
    assert not torch.allclose(masked[0], image_scores(clip, text, images)[0])


def test_drawn_images_are_scored(make_dalle, clip, text):
    model = make_dalle()
    images, scores = model.generate_images(
        text, clip=clip, generator=torch.Generator().manual_seed(0)
    )
    assert scores.shape == (3,)
    torch.testing.assert_close(scores, image_scores(clip, text, images))


def test_a_clip_model_of_transformers(make_dalle, official, text):
    ids = torch.tensor([[1, 5, 9, 49], [1, 7, 49, 0], [1, 49, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]])
    images, scores = make_dalle().generate_images(
        text, clip=official, clip_text=ids, clip_mask=mask
    )
    resize = torch.nn.functional.interpolate
    pixels = resize(images, (16, 16), mode="bicubic", antialias=True).clamp(0, 1)
    mean, deviation = (torch.tensor(t).view(3, 1, 1) for t in (CLIP_MEAN, CLIP_DEVIATION))
    official.eval()
    for i in range(3):
        alone = official(
            input_ids=ids[i : i + 1],
            attention_mask=mask[i : i + 1],
            pixel_values=(pixels[i : i + 1] - mean) / deviation,
        ).logits_per_image[0, 0]
        torch.testing.assert_close(scores[i], alone.detach(), atol=1e-4, rtol=1e-4)


def test_bad_arguments(official, text, images):
    with pytest.raises(ValueError, match="up to 9 below 50; got 14 up to"):
        image_scores(official, text.repeat(1, 2), images)
    with pytest.raises(TypeError, match="a CLIPModel of transformers, got Linear"):
        image_scores(torch.nn.Linear(1, 1), text, images)
    with pytest.raises(ValueError, match="3 channels, got 1"):
        image_scores(official, text, images[:, :1])
