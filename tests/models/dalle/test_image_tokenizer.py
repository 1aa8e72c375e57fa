"""What is an image tokenizer, and what not."""

import pytest
import torch

from penstock.models.dalle import DALLE, ImageTokenizer
from penstock.models.dalle.image_tokenizer import check_image_tokenizer


class Brightness(torch.nn.Module):
    """Four codes: how bright each quarter is."""

    image_size, num_layers, num_tokens, channels = 8, 2, 5, 1

    def get_codebook_indices(self, images):
        return (torch.nn.functional.avg_pool2d(images, 4).flatten(1) * 4).long()

    def decode(self, img_seq):
        small = img_seq.view(-1, 1, 2, 2) / 4
        return torch.nn.functional.interpolate(small, scale_factor=4)


def test_any_module_with_its_methods():
    assert isinstance(Brightness(), ImageTokenizer)
    model = DALLE(dim=8, depth=1, heads=1, dim_head=8, vae=Brightness(), text_seq_len=3)
    assert model.image_seq_len == 4
    text = torch.ones(2, 3, dtype=torch.long)
    model(text, torch.rand(2, 1, 8, 8), return_loss=True).backward()
    assert model.generate_images(text).shape == (2, 1, 8, 8)


def test_others_are_refused():
    class Bare:
        image_size, num_layers, num_tokens, channels = 8, 2, 5, 1
        get_codebook_indices = decode = None

    for other in (torch.nn.Linear(1, 1), Bare(), None):
        with pytest.raises(TypeError, match="must be an image tokenizer"):
            check_image_tokenizer(other)
