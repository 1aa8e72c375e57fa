"""Pipes: from shards to batches, resumable exactly anywhere."""

from .batch import Batcher
from .bucket import AspectRatioBucketer
from .bucket_report import BucketReport, bucket_report
from .buckets import Buckets
from .caption import CaptionAffixer, CaptionDropper, CaptionShuffler
from .decode import Decoder
from .draws import Draws
from .embedding_reader import EmbeddingReader
from .embeddings import EmbeddingJoiner
from .entry_store import EntryStore
from .errors import DataError
from .fields import Renamer, Selector
from .filter import CaptionFilter, Filter, SizeFilter
from .image_embedding import ImageEmbeddingDataset, create_image_embedding_dataloader
from .join import KeyJoiner
from .lanes import Lanes
from .load import FieldLoader
from .loader import ElasticDataLoader
from .manifest import ManifestReader
from .map import Mapper, Transformer
from .mix import Mixer
from .on_device import DeviceLoader
from .pipe import Pipe
from .prior_dataset import PriorEmbeddingDataset
from .prior_splits import get_reader, make_splits
from .sample import Extent, Ref, Sample
from .shards import ShardLister
from .shuffle import Shuffler
from .state import merge_states
from .tar import TarReader
from .text_to_image import text_to_image_dataset
from .variants import (
    CaptionVariant,
    ImageVariant,
    caption_variants,
    count_image_variants,
    image_variants,
)
from .verify import verify_resume

__all__ = [
    "AspectRatioBucketer",
    "Batcher",
    "BucketReport",
    "Buckets",
    "CaptionAffixer",
    "CaptionDropper",
    "CaptionFilter",
    "CaptionShuffler",
    "CaptionVariant",
    "DataError",
    "Decoder",
    "DeviceLoader",
    "Draws",
    "ElasticDataLoader",
    "EmbeddingJoiner",
    "EmbeddingReader",
    "EntryStore",
    "Extent",
    "FieldLoader",
    "Filter",
    "ImageEmbeddingDataset",
    "ImageVariant",
    "KeyJoiner",
    "Lanes",
    "ManifestReader",
    "Mapper",
    "Mixer",
    "Pipe",
    "PriorEmbeddingDataset",
    "Ref",
    "Renamer",
    "Sample",
    "Selector",
    "ShardLister",
    "Shuffler",
    "SizeFilter",
    "TarReader",
    "Transformer",
    "bucket_report",
    "caption_variants",
    "count_image_variants",
    "create_image_embedding_dataloader",
    "get_reader",
    "image_variants",
    "make_splits",
    "merge_states",
    "text_to_image_dataset",
    "verify_resume",
]
