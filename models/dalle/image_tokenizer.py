"""What DALL-E asks of the model that makes codes of images."""

from typing import Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class ImageTokenizer(Protocol):
    """Makes codes of images and images of codes; an ``nn.Module`` besides.

    Attributes:
        image_size: Side of the images in pixels.
        num_layers: Halvings: an image has (image_size / 2**num_layers)**2 codes.
        num_tokens: Codes in the codebook.
        channels: Channels of the images.
    """

    image_size: int
    num_layers: int
    num_tokens: int
    channels: int

    def get_codebook_indices(self, images: Tensor) -> Tensor:
        """Return the codes, int64 [B, n] row by row, of float [B, C, S, S] in [0, 1]."""

    def decode(self, img_seq: Tensor) -> Tensor:
        """Return float [B, C, S, S] in [0, 1] of codes, integers [B, n]."""


def check_image_tokenizer(model: object) -> ImageTokenizer:
    """Return ``model`` if it is an image tokenizer.

    Raises:
        TypeError: If it is none.
    """
    if not isinstance(model, ImageTokenizer) or not isinstance(model, nn.Module):
        raise TypeError(
            "vae must be an image tokenizer, such as DiscreteVAE, OpenAIDiscreteVAE, VQGanVAE or "
            f"DiffusersVQ; got {type(model).__name__}"
        )
    return model
