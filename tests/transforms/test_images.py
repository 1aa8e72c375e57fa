import numpy as np
import pytest
import torch
from PIL import Image

from penstock.transforms import normalize_image
from penstock.transforms.images import batch_images

LEVELS = torch.arange(256, dtype=torch.uint8)


def test_bit_equal_to_bfl_and_diffusers():
    from diffusers.image_processor import VaeImageProcessor

    image = torch.stack(
        [LEVELS.reshape(16, 16), LEVELS.flip(0).reshape(16, 16), LEVELS.reshape(16, 16).T]
    )
    made = normalize_image(image[None])
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    bfl = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1.0
    assert torch.equal(made, bfl[None])
    assert torch.equal(made, VaeImageProcessor(vae_scale_factor=16).preprocess(picture))
    assert made.dtype == torch.float32
    assert (made.min(), made.max()) == (-1, 1)


def test_other_types_are_rounded_once():
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert torch.equal(normalize_image(LEVELS, dtype), normalize_image(LEVELS).to(dtype))


def test_the_pixels_stay_as_they_were():
    image = LEVELS.clone()
    normalize_image(image)
    assert torch.equal(image, LEVELS)


def check(image, multiple=16):
    return batch_images({"image": image, "caption": []}, multiple=multiple, model="FLUX.1")


def test_sides_must_be_multiples():
    assert check(torch.zeros(2, 3, 32, 48, dtype=torch.uint8)).shape == (2, 3, 32, 48)
    for size in ((40, 48), (48, 40), (8, 16)):
        with pytest.raises(ValueError, match=r"bucket_by_aspect_ratio\(…, step=16\)") as info:
            check(torch.zeros(2, 3, *size, dtype=torch.uint8))
        assert f"images of {size[0]} x {size[1]} pixels (height x width)" in str(info.value)
    assert "size=(16, 16)" in str(info.value)  # never a side of 0
    with pytest.raises(ValueError, match="step=8"):
        check(torch.zeros(1, 3, 8, 12, dtype=torch.uint8), multiple=8)


def test_other_than_decoded_pixels_are_refused():
    with pytest.raises(ValueError, match=r"no field 'image', only \['caption'\]"):
        batch_images({"caption": []}, multiple=16, model="FLUX.1")
    several = [torch.zeros(3, 16, n, dtype=torch.uint8) for n in (16, 32, 32)]
    with pytest.raises(ValueError, match=r"2 sizes \(height, width\): \[\(16, 16\), \(16, 32\)\]"):
        check(several)
    for bad in (
        torch.zeros(2, 3, 32, 32),
        torch.zeros(2, 1, 32, 32, dtype=torch.uint8),
        torch.zeros(3, 32, 32, dtype=torch.uint8),
    ):
        with pytest.raises(ValueError, match="must be the pixels that .decode.. gives"):
            check(bad)
    with pytest.raises(ValueError, match="must be a tensor, got ndarray"):
        check(np.zeros((2, 3, 16, 16), np.uint8))
