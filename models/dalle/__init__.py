"""DALL-E, its image tokenizers, and the CLIP that ranks what it draws."""

from .clip import CLIP
from .dalle import DALLE
from .discrete_vae import DiscreteVAE
from .image_tokenizer import ImageTokenizer
from .layout import Layout
from .patterns import pattern
from .rank import image_scores
from .tokenizer import TextTokenizer
from .transformer import Transformer

__all__ = [
    "CLIP",
    "DALLE",
    "DiscreteVAE",
    "ImageTokenizer",
    "Layout",
    "TextTokenizer",
    "Transformer",
    "image_scores",
    "pattern",
]
