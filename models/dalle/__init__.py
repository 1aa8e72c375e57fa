"""DALL-E, its image tokenizers, and the CLIP that ranks what it draws."""

from .clip import CLIP
from .convert import convert_weights, load_dalle, load_vae
from .dalle import DALLE
from .discrete_vae import DiscreteVAE
from .image_tokenizer import ImageTokenizer
from .layout import Layout
from .openai_vae import OpenAIDiscreteVAE
from .patterns import pattern
from .rank import image_scores
from .tokenizer import TextTokenizer
from .transformer import Transformer
from .vqgan import DiffusersVQ, VQGanVAE

__all__ = [
    "CLIP",
    "DALLE",
    "DiffusersVQ",
    "DiscreteVAE",
    "ImageTokenizer",
    "Layout",
    "OpenAIDiscreteVAE",
    "TextTokenizer",
    "Transformer",
    "VQGanVAE",
    "convert_weights",
    "image_scores",
    "load_dalle",
    "load_vae",
    "pattern",
]
