"""The DALL-E 2 data path: shards, embeddings by CLIP, reordered, joined, killed, resumed."""

import io
import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from penstock.pipes import Pipe, ShardLister
from penstock.pipes.verify import fingerprints

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

fork = multiprocessing.get_context("fork")  # a new process has torch imported already
SIZES = {0: 9, 1: 14, 2: 5, 3: 17}
"""Shard to its number of samples; every fifth index is not there."""
STOP = 36


def indexes(shard: int) -> list[int]:
    return [i for i in range(SIZES[shard] + SIZES[shard] // 4) if i % 5 != 3][: SIZES[shard]]


def picture(shard: int, index: int) -> bytes:
    """Return a picture that no other sample has, of a shape of its own."""
    rng = np.random.default_rng(100 * shard + index)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    size = (40 + 11 * (index % 7), 40 + 13 * ((index + shard) % 6))
    file = io.BytesIO()
    coarse.resize(size, Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


def caption(shard: int, index: int) -> str:
    words = ["red", "blue", "round", "square", "big", "small", "near", "far"]
    return ", ".join(words[(shard * 3 + index * k + k) % 8] for k in range(3))


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of two layers with random weights, saved by transformers."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    path = tmp_path_factory.mktemp("clip")
    words = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    texts = [caption(shard, i) for shard in SIZES for i in indexes(shard)]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=special))
    tokens = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="[PAD]",
        unk_token="[UNK]",
        bos_token="[CLS]",
        eos_token="[SEP]",
        model_max_length=16,
    )
    layer = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = transformers.CLIPConfig(
        text_config={
            **layer,
            "max_position_embeddings": 16,
            "vocab_size": len(tokens),
            "bos_token_id": 2,
            "eos_token_id": 3,
            "pad_token_id": 0,
        },
        vision_config={**layer, "image_size": 32, "patch_size": 16},
        projection_dim=24,
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = transformers.CLIPModel(config)
        for parameter in model.parameters():  # far apart, so that images make a difference
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(path)
    crop = {"height": 32, "width": 32}
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=crop)
    transformers.CLIPProcessor(images, tokens).save_pretrained(path)
    return path


def embed_and_reorder(folder: Path, clip: Path) -> tuple[str, Path]:
    """Return the shards' URL, and the folder of embeddings that went the whole way."""
    from penstock.recipes import embed, reorder_embeddings

    urls = f"{folder}/shards/{{00000..{len(SIZES) - 1:05d}}}.tar"
    settings = {"url": urls, "model": str(clip), "batch_size": 4, "num_workers": 0}
    embed.main(embed.Config(**settings, out=folder / "embedded", device="cpu"))
    # As clip-retrieval leaves it: in an order of its own, over files that no shard ends with.
    found: list[tuple[str, np.ndarray, np.ndarray]] = []
    for shard in SIZES:
        images, texts = (
            np.load(folder / f"embedded/{k}_emb/{k}_emb_{shard:05d}.npy", allow_pickle=False)
            for k in ("img", "text")
        )
        found += [(f"{shard:05d}{i:04d}", images[i], texts[i]) for i in indexes(shard)]
    random.Random(7).shuffle(found)
    scrambled = folder / "scrambled"
    for kind in ("img_emb", "text_emb", "metadata"):
        (scrambled / kind).mkdir(parents=True)
    for number, start in enumerate(range(0, len(found), 13)):
        part = found[start : start + 13]
        np.save(scrambled / f"img_emb/img_emb_{number}.npy", np.stack([p[1] for p in part]))
        np.save(scrambled / f"text_emb/text_emb_{number}.npy", np.stack([p[2] for p in part]))
        table = pa.table({"image_path": [p[0] for p in part]})
        pq.write_table(table, scrambled / f"metadata/metadata_{number}.parquet")
    out = folder / "reordered"
    config = {"url": str(scrambled), "tars": urls}
    reorder_embeddings.main(reorder_embeddings.Config(**config, out=out))
    for kind in ("img", "text"):
        for shard in SIZES:
            name = f"{kind}_emb/{kind}_emb_{shard:05d}.npy"
            assert (out / name).read_bytes() == (folder / "embedded" / name).read_bytes()
    for kind in ("img_emb", "text_emb"):
        reorder_embeddings.main(
            reorder_embeddings.Config(url=str(out / kind), tars=urls, check=True)
        )
    return urls, out


def graph(urls: str, rows: Path) -> Pipe:
    return (
        ShardLister(urls, seed=2)
        .read_tar()
        .join_embeddings(rows / "img_emb", field="image_embedding", dtype="float32")
        .join_embeddings(rows / "text_emb", field="text_embedding")
        .shuffle(12)
        .bucket_by_aspect_ratio(48, 3, step=16)
        .lanes(6)
        .decode(crop="random", flip=0.5)
        .shuffle_caption()
    )


def load(urls: str, rows: Path, workers: int, rank: int = 0, ranks: int = 1) -> Any:
    return graph(urls, rows).loader(
        workers,
        rank=rank,
        world_size=ranks,
        epoch_batches=13,
        multiprocessing_context="fork" if workers else None,
    )


def train(
    urls: str, rows: Path, folder: Path, life: int, rank: int, ranks: int, workers: int
) -> None:
    """Be one rank: log every batch and checkpoint every step, until `STOP` batches are taken."""
    os.setpgrp()  # with its workers, so that all can be killed at once
    store = torch.distributed.FileStore(str(folder / f"store{life}"), ranks)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    loader = load(urls, rows, workers, rank, ranks)
    checkpoint = folder / "checkpoint.json"
    if checkpoint.exists():
        loader.load_state_dict(json.loads(checkpoint.read_text()))
    (folder / f"began{life}").write_text(str(loader.position))
    with open(folder / f"log{rank}", "a") as log:
        while loader.position < STOP:
            for batch in loader:
                log.write(json.dumps([batch["__batch__"], fingerprints(batch)]) + "\n")
                log.flush()
                state = loader.gather_state()
                if rank == 0:
                    (folder / "checkpoint.new").write_text(json.dumps(state))
                    (folder / "checkpoint.new").rename(checkpoint)
                if loader.position >= STOP:
                    break
    loader.close()
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def logged(folder: Path) -> list[Any]:
    lines = [x for log in folder.glob("log*") for x in log.read_text().split("\n")[:-1]]
    return [json.loads(x) for x in lines if x.endswith("]")]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*half-filled buckets")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_from_shards_to_a_resumed_run(make_tar: Any, tmp_path: Path, tiny_clip: Path) -> None:
    (tmp_path / "shards").mkdir()
    for shard in SIZES:
        samples = [
            (
                f"{shard:05d}{i:04d}",
                {"png": picture(shard, i), "txt": caption(shard, i).encode()},
            )
            for i in indexes(shard)
        ]
        make_tar(samples, f"shards/{shard:05d}.tar")
    urls, rows = embed_and_reorder(tmp_path, tiny_clip)

    expected, seen = [], set()
    whole = load(urls, rows, 0)
    own = {
        f"{shard:05d}{i:04d}": vectors
        for shard in SIZES
        for i, vectors in zip(indexes(shard), directly(tiny_clip, shard), strict=True)
    }
    while len(expected) < STOP + 6:
        for batch in whole:
            expected.append(fingerprints(batch))
            assert batch["image_embedding"].dtype == torch.float32
            assert batch["text_embedding"].dtype == torch.float16
            for key, image, text in zip(
                batch["__key__"], batch["image_embedding"], batch["text_embedding"], strict=True
            ):
                seen.add(key)
                assert torch.allclose(image, own[key][0], atol=1e-3)
                assert torch.allclose(text.float(), own[key][1], atol=1e-3)
    assert seen == set(own)
    vectors = torch.stack([pair[0] for pair in own.values()])
    distances = torch.cdist(vectors, vectors) + torch.eye(len(vectors))
    assert distances.min() > 0.02  # no two could be taken for each other

    chance = random.Random(3)
    layouts = ((2, 1), (1, 2), (3, 0), (1, 0), (2, 0))
    for life, (ranks, workers) in enumerate(layouts):
        before = len(logged(tmp_path))
        run = [
            fork.Process(target=train, args=(urls, rows, tmp_path, life, rank, ranks, workers))
            for rank in range(ranks)
        ]
        for process in run:
            process.start()
        if life < len(layouts) - 1:
            due, deadline = before + chance.randrange(2, 9), time.monotonic() + 60
            while (
                len(logged(tmp_path)) < due
                and time.monotonic() < deadline
                and all(process.is_alive() for process in run)
            ):
                time.sleep(0.01)
            for process in run:
                try:
                    os.killpg(process.pid or 0, signal.SIGKILL)
                except ProcessLookupError:  # it has not made its group yet
                    process.kill()
        for process in run:
            process.join(120)
    assert [process.exitcode for process in run] == [0] * len(run)
    logs = logged(tmp_path)
    for g, found in logs:
        assert found == expected[g], f"batch {g}"
    assert {g for g, _ in logs} >= set(range(STOP))
    began = [int((tmp_path / f"began{life}").read_text()) for life in range(len(layouts))]
    assert began == sorted(began)
    assert 0 < began[-1] < STOP


def directly(clip: Path, shard: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return what transformers itself makes of a shard's images and texts, of length 1."""
    from transformers import AutoModel, AutoProcessor

    model, processor = AutoModel.from_pretrained(clip), AutoProcessor.from_pretrained(clip)
    found = []
    for i in indexes(shard):
        image = Image.open(io.BytesIO(picture(shard, i)))
        inputs = processor(images=image, text=caption(shard, i), return_tensors="pt")
        pixels = inputs.pop("pixel_values")
        with torch.inference_mode():
            one = model.get_image_features(pixel_values=pixels).pooler_output[0]
            other = model.get_text_features(**inputs).pooler_output[0]
        found.append((one / one.norm(), other / other.norm()))
    return found
