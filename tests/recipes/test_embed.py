"""Shards embedded with tiny random models, and what becomes of a run that was killed."""

import io
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from penstock.pipes import DataError
from penstock.recipes import embed as recipe
from penstock.recipes.embed import Config, embed, main
from penstock.recipes.embedder import Embedder
from penstock.recipes.reorder_embeddings import Config as CheckConfig
from penstock.recipes.reorder_embeddings import main as check_main

pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

WORDS = "a red round blue square picture number one two three four five six seven eight nine"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
INDEXES = {0: [0, 1, 2, 4, 5], 1: [0, 3], 2: [1, 2, 3]}
"""Shard to the indexes of its samples; some are missing."""


def tokenizer(end):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.train_from_iterator([WORDS], trainers.WordLevelTrainer(special_tokens=SPECIAL))
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = ["input_ids", "attention_mask"] if end else ["input_ids"]
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="[PAD]",
        unk_token="[UNK]",
        bos_token="[CLS]",
        eos_token="[SEP]",
        model_max_length=1 << 40,  # as many on the hub say
        model_input_names=names,
    )


LAYER = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
TEXT = {**LAYER, "max_position_embeddings": 12, "eos_token_id": 3, "bos_token_id": 2}
VISION = {**LAYER, "image_size": 32, "patch_size": 16}


def make_model(kind, path, seed=0):
    import transformers

    tokens = tokenizer(kind == "CLIP")
    text = {**TEXT, "vocab_size": len(tokens), "pad_token_id": 0}
    options = {"projection_dim": 24} if kind == "CLIP" else {}
    config = getattr(transformers, f"{kind}Config")(
        text_config=text, vision_config=VISION, **options
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = getattr(transformers, f"{kind}Model")(config)
        for parameter in model.parameters():  # far apart, so that images make a difference
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(path)
    size = {"shortest_edge": 32} if kind == "CLIP" else {"height": 32, "width": 32}
    images = getattr(transformers, f"{kind}ImageProcessor")(
        size=size, crop_size={"height": 32, "width": 32}
    )
    getattr(transformers, f"{kind}Processor")(images, tokens).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """A CLIP of two layers with random weights."""
    return make_model("CLIP", tmp_path_factory.mktemp("clip"))


TOLERANCE = 3e-4
"""Of float16 below 1: half of its last bit, and what shapes of batches change."""


def picture(shard, index):
    """Return a picture that no other sample has, of a shape of its own."""
    rng = np.random.default_rng(100 * shard + index)
    coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(
        (50 + 7 * index, 40 + 5 * shard), Image.Resampling.BICUBIC
    )
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def caption(shard, index):
    return " ".join(WORDS.split()[(3 * shard + i * index + i) % 16] for i in range(1 + index))


def fields(shard, index):
    record = {"url": f"http://h/{shard}/{index}", "width": index}
    return {
        "png": picture(shard, index),
        "txt": caption(shard, index).encode(),
        "json": json.dumps(record).encode(),
    }


@pytest.fixture
def shards(tmp_path, make_tar):
    (tmp_path / "shards").mkdir()
    for shard, indexes in INDEXES.items():
        samples = [(f"{shard:05d}{i:04d}", fields(shard, i)) for i in indexes]
        make_tar(samples, f"shards/{shard:05d}.tar")
    return tmp_path / "shards"


@pytest.fixture
def cfg(shards, clip, tmp_path):
    return Config(
        url=str(shards),
        model=str(clip),
        out=tmp_path / "emb",
        batch_size=2,
        num_workers=0,
        device="cpu",
    )


def changed(cfg, **options):
    return Config(**{**vars(cfg), **options})


def files(out):
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def array(out, kind, shard):
    return np.load(out / f"{kind}_emb/{kind}_emb_{shard:05d}.npy", allow_pickle=False)


def table(out, shard):
    return pq.read_table(out / f"metadata/metadata_{shard:05d}.parquet").to_pydict()


def expected(model, normalize=True):
    """Return what transformers itself gives: (shard, index) to image's and text's vector."""
    from transformers import AutoModel, AutoProcessor

    network, processor = AutoModel.from_pretrained(model), AutoProcessor.from_pretrained(model)
    found = {}
    for shard, indexes in INDEXES.items():
        for index in indexes:
            image = Image.open(io.BytesIO(picture(shard, index))).convert("RGB")
            padding = {"padding": True}
            if network.config.model_type == "siglip":
                padding = {"padding": "max_length", "max_length": 12}
            inputs = processor(
                images=image, text=caption(shard, index), return_tensors="pt", **padding
            )
            pixels = inputs.pop("pixel_values")
            with torch.inference_mode():
                vectors = (
                    network.get_image_features(pixel_values=pixels).pooler_output[0],
                    network.get_text_features(**inputs).pooler_output[0],
                )
            if normalize:
                vectors = tuple(v / v.norm() for v in vectors)
            found[shard, index] = vectors
    return found


def test_every_embedding_is_that_of_its_own_sample(cfg, clip, capsys):
    main(cfg)
    want = expected(clip)
    for i, kind in enumerate(("image", "text")):
        vectors = [pair[i] for pair in want.values()]
        apart = [(a - b).abs().max() for a, b in itertools.combinations(vectors, 2)]
        assert min(apart) > 20 * TOLERANCE  # else one would pass for another
        name = "img" if kind == "image" else "text"
        for shard, indexes in INDEXES.items():
            rows = array(cfg.out, name, shard)
            assert rows.dtype == np.float16
            assert rows.shape == (max(indexes) + 1, 24)
            for index in range(len(rows)):
                if index in indexes:
                    near = want[shard, index][i].numpy()
                    np.testing.assert_allclose(rows[index], near, rtol=0, atol=TOLERANCE)
                else:
                    assert not rows[index].any()
    words = capsys.readouterr().out
    assert "10 samples of 3 shards" in words
    assert "0 images or captions without an embedding" in words
    assert sorted(p.name for p in cfg.out.iterdir()) == [
        "embed.json",
        "img_emb",
        "metadata",
        "text_emb",
    ]


def test_the_table_says_whose_rows_they_are(cfg):
    main(changed(cfg, columns=["url", "width", "height"]))
    assert table(cfg.out, 1) == {
        "image_path": ["000010000", None, None, "000010003"],
        "key": ["000010000", None, None, "000010003"],
        "caption": [caption(1, 0), None, None, caption(1, 3)],
        "url": ["http://h/1/0", None, None, "http://h/1/3"],
        "width": ["0", None, None, "3"],
        "height": [None] * 4,
    }


def test_the_check_of_reordered_folders_passes(cfg, shards, capsys):
    main(cfg)
    check_main(CheckConfig(url=str(cfg.out), tars=str(shards), check=True))
    assert "nothing is wrong" in capsys.readouterr().out


def test_siglip_full_precision_as_the_model_gives_it(cfg, tmp_path):
    model = make_model("Siglip", tmp_path / "siglip")
    main(changed(cfg, model=str(model), dtype="float32", normalize=False))
    want = expected(model, normalize=False)
    for shard, indexes in INDEXES.items():
        for i, kind in enumerate(("img", "text")):
            rows = array(cfg.out, kind, shard)
            assert rows.dtype == np.float32
            near = torch.stack([want[shard, index][i] for index in indexes]).numpy()
            np.testing.assert_allclose(rows[indexes], near, rtol=1e-4, atol=1e-4)


def test_images_alone_and_texts_alone(cfg, tmp_path):
    main(cfg)
    for kind, name, other in (("image", "img", "text"), ("text", "text", "img")):
        out = tmp_path / kind
        main(changed(cfg, kinds=kind, out=out))
        assert not (out / f"{other}_emb").exists()
        for shard in INDEXES:
            np.testing.assert_array_equal(array(out, name, shard), array(cfg.out, name, shard))


def test_workers_change_nothing(cfg, tmp_path):
    main(cfg)
    main(changed(cfg, out=tmp_path / "two", num_workers=2))
    assert files(tmp_path / "two") == files(cfg.out)


@pytest.fixture
def given(monkeypatch):
    """List how many images were given to models at a time."""
    counts = []
    images = Embedder.images

    def counting(self, pixels):
        counts.append(len(pixels))
        return images(self, pixels)

    monkeypatch.setattr(Embedder, "images", counting)
    return counts


def test_batches_are_the_shards_own(cfg, given):
    main(cfg)
    assert given == [2, 2, 1, 2, 2, 1]


KILLED = """
import os, signal, sys
from pathlib import Path
from penstock.recipes.embed import Config, main
from penstock.recipes.embedder import Embedder
texts, calls = Embedder.texts, []
def deadly(self, captions):
    calls.append(captions)
    if len(calls) == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
    return texts(self, captions)
Embedder.texts = deadly
main(Config(url=sys.argv[1], model=sys.argv[2], out=Path(sys.argv[3]), batch_size=2,
            num_workers=0, device="cpu"))
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_at_the_batch(cfg, given, tmp_path):
    main(cfg)
    whole = files(cfg.out)
    given.clear()
    out = tmp_path / "killed"
    root = Path(recipe.__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", KILLED, cfg.url, cfg.model, str(out), "3"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert sorted(files(out)) == ["embed.json", "parts/00000.part"]
    main(changed(cfg, out=out))
    assert given == [1, 2, 2, 1]  # the third batch again, and what comes behind it
    assert files(out) == whole


@pytest.mark.parametrize("stop", [0, 2, 3, 5])
def test_an_interrupted_run_goes_on_at_every_batch(cfg, monkeypatch, tmp_path, stop):
    main(cfg)
    whole = files(cfg.out)
    out, calls = tmp_path / "stopped", []
    images = Embedder.images

    def failing(self, pixels):
        calls.append(len(pixels))
        if len(calls) == stop + 1:
            raise KeyboardInterrupt
        return images(self, pixels)

    monkeypatch.setattr(Embedder, "images", failing)
    with pytest.raises(KeyboardInterrupt):
        main(changed(cfg, out=out))
    main(changed(cfg, out=out))
    assert len(calls) == 6 + 1
    assert files(out) == whole


def test_killed_between_the_last_batch_and_the_files(cfg, monkeypatch, given, tmp_path):
    main(cfg)
    whole = files(cfg.out)
    given.clear()
    out = tmp_path / "stopped"

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(recipe.ShardFiles, "_write_table", stop)
        with pytest.raises(KeyboardInterrupt):
            main(changed(cfg, out=out))
    assert given == [2, 2, 1]
    part = out / "parts/00000.part"
    part.write_bytes(part.read_bytes() + b"PEN1 half a batch")
    main(changed(cfg, out=out))
    assert given == [2, 2, 1, 2, 2, 1]
    assert files(out) == whole


def test_a_part_of_another_shard_is_made_anew(cfg, monkeypatch, shards, tmp_path, given):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(recipe.ShardFiles, "_write_table", stop)
        with pytest.raises(KeyboardInterrupt):
            main(cfg)
    os.utime(shards / "00000.tar", ns=(1, 1))
    given.clear()
    main(cfg)
    assert given == [2, 2, 1, 2, 2, 1]


def test_what_is_whole_is_passed_over_until_its_shard_changes(
    cfg, given, shards, capsys, monkeypatch
):
    main(cfg)
    before = files(cfg.out)
    given.clear()
    os.utime(shards / "00001.tar", ns=(1, 1))
    (cfg.out / "img_emb/img_emb_00002.npy").unlink()
    main(cfg)
    assert given == [2, 2, 1]
    assert "3 shards" in (words := capsys.readouterr().out)
    assert "1 of them embedded before" in words
    after = files(cfg.out)
    assert {n for n in after if after[n] != before[n]} == {"metadata/metadata_00001.parquet"}
    monkeypatch.setattr(recipe, "Embedder", None)  # no model is loaded where nothing is left
    main(cfg)
    assert "3 of them embedded before" in capsys.readouterr().out


def fails(cfg, words):
    with pytest.raises(SystemExit, match=words) as ended:
        main(cfg)
    assert str(ended.value).startswith("error: ")


def test_other_embeddings_are_not_mixed_in(cfg, tmp_path, shards):
    main(cfg)
    (cfg.out / "metadata/metadata_00001.parquet").unlink()
    fails(changed(cfg, dtype="float32"), r"embed\.json .* dtype was 'float16', is 'float32'")
    fails(changed(cfg, normalize=False, kinds="image"), "kinds was 'both', is 'image'; normalize")
    other = make_model("CLIP", tmp_path / "other", seed=1)
    fails(
        changed(cfg, model=str(other)), "the model was '.*clip.*', is '.*other' .of other weights"
    )
    path = other / "processor_config.json"
    make_model("CLIP", other)
    main(changed(cfg, model=str(other)))  # the same model elsewhere
    (cfg.out / "metadata/metadata_00001.parquet").unlink()
    values = json.loads(path.read_text())
    values["image_processor"]["resample"] = 2
    path.write_text(json.dumps(values))
    fails(changed(cfg, model=str(other)), "another image processor or tokenizer")
    (cfg.out / "embed.json").unlink()
    fails(cfg, r"has embeddings already \(.*_emb_0000.\.npy\) and no embed\.json")


@pytest.fixture
def bad(shards, make_tar):
    """Shards with an image that is damaged, a missing one and a missing caption."""
    samples = [(f"00001{i:04d}", fields(1, i)) for i in (0, 1, 2, 3)]
    samples[0][1]["png"] = picture(1, 0)[:80]
    del samples[1][1]["png"]
    del samples[2][1]["txt"]
    make_tar(samples, "shards/00001.tar")
    return shards


def test_bad_samples_have_zeros_and_are_named(cfg, bad, clip, capsys, shards):
    main(changed(cfg, on_error="skip"))
    words = capsys.readouterr().out
    assert "3 images or captions without an embedding" in words
    assert "000010000: field 'png': " in words
    assert "000010001: has no image; its fields are: txt, json" in words
    assert "000010002: has no caption; its fields are: png, json" in words
    assert array(cfg.out, "img", 1).any(1).tolist() == [False, False, True, True]
    assert array(cfg.out, "text", 1).any(1).tolist() == [True, True, False, True]
    assert table(cfg.out, 1)["caption"][2] is None
    want = expected(clip)[1, 3]
    for i, kind in enumerate(("img", "text")):
        near = want[i].numpy()
        np.testing.assert_allclose(array(cfg.out, kind, 1)[3], near, rtol=0, atol=TOLERANCE)
    with pytest.raises(SystemExit):
        check_main(CheckConfig(url=str(cfg.out), tars=str(shards), check=True))
    assert "3  samples whose row is zero" in capsys.readouterr().out


def test_bad_samples_end_the_run_unless_told(cfg, bad, given):
    fails(cfg, r"sample '000010000' of .*00001\.tar: field 'png'")
    main(changed(cfg, on_error="skip"))  # and it goes on from there
    assert given[:3] == [2, 2, 1]


def test_a_shard_of_bad_samples_alone(cfg, shards, make_tar):
    make_tar([(f"00001{i:04d}", {"png": b"no"}) for i in range(5)], "shards/00001.tar")
    main(changed(cfg, on_error="skip"))
    assert array(cfg.out, "img", 1).shape == (5, 24)
    assert not array(cfg.out, "img", 1).any()


def test_a_caption_for_those_without(cfg, bad, clip):
    main(changed(cfg, on_error="skip", caption_default="a red picture"))
    assert array(cfg.out, "text", 1).any(1).all()
    assert table(cfg.out, 1)["caption"][2] == "a red picture"


def test_a_damaged_shard(cfg, shards, capsys):
    path = shards / "00001.tar"
    path.write_bytes(path.read_bytes()[:700])
    fails(cfg, r"00001\.tar")
    with pytest.raises(SystemExit) as ended:
        main(changed(cfg, on_error="skip"))
    assert ended.value.code == 1
    words = capsys.readouterr().out
    assert "8 samples of 2 shards" in words
    assert "1 shards failed" in words
    assert not (cfg.out / "img_emb/img_emb_00001.npy").exists()


def test_keys_without_an_index(cfg, shards, make_tar):
    make_tar([(name, fields(1, i)) for i, name in enumerate(("cat", "dog"))], "shards/00001.tar")
    fails(cfg, r"key 'cat' does not begin with the digits of its tar, '00001'.*00001\.tar")
    out = cfg.out.with_name("ordinal")
    main(changed(cfg, rows="ordinal", out=out))
    assert table(out, 1)["key"] == ["cat", "dog"]
    assert table(out, 2)["key"] == [f"00002{i:04d}" for i in INDEXES[2]]
    assert array(out, "img", 2).shape == (3, 24)


def test_numbers_that_are_not_finite_are_refused(cfg, monkeypatch):
    images = Embedder.images

    def overflowing(self, pixels):
        return images(self, pixels) * 1e6

    monkeypatch.setattr(Embedder, "images", overflowing)
    fails(cfg, "numbers that are not finite for the image of '000000000' of .*--dtype float32")


def test_a_model_of_another_kind(cfg, tmp_path):
    from transformers import ViTConfig, ViTModel

    ViTModel(ViTConfig(**VISION)).save_pretrained(tmp_path / "vit")
    tokenizer(True).save_pretrained(tmp_path / "vit")
    with pytest.raises(ValueError, match="ViTModel, which gives no embeddings of texts"):
        Embedder(tmp_path / "vit", kinds="text")
    fails(changed(cfg, model=str(tmp_path / "none")), "error: ")


def test_a_part_that_another_process_writes_is_left_alone(cfg):
    fcntl = pytest.importorskip("fcntl")
    (cfg.out / "parts").mkdir(parents=True)
    with (cfg.out / "parts/00000.part").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        fails(cfg, r"another process is writing .*00000\.part")


def test_remote_shards(cfg, shards, tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in shards.iterdir():
        memory.pipe(f"/embed-test/{path.name}", path.read_bytes())
    main(cfg)
    out = tmp_path / "remote"
    cache = str(tmp_path / "cache")
    main(changed(cfg, url="memory://embed-test/*.tar", out=out, cache=cache))
    for shard in INDEXES:
        for kind in ("img", "text"):
            np.testing.assert_array_equal(array(out, kind, shard), array(cfg.out, kind, shard))


def test_processes_share_the_shards(cfg, tmp_path):
    main(cfg)
    out = tmp_path / "shared"
    counts = [len(embed(changed(cfg, out=out), rank, 2).records) for rank in range(2)]
    assert counts == [2, 1]
    assert files(out) == files(cfg.out)


def test_a_picture_that_would_fill_the_memory(cfg, shards, make_tar):
    file = io.BytesIO()
    Image.new("RGB", (1, 200_000)).save(file, "PNG")
    make_tar([("000010000", {"png": file.getvalue(), "txt": b"a"})], "shards/00001.tar")
    with pytest.raises(DataError, match="200000x1 pixels is too narrow to be resized"):
        embed(changed(cfg, url=str(shards / "00001.tar"), out=cfg.out.with_name("x")))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"rows": "ordinal", "index_width": 4}, "index_width is for rows by index"),
        ({"columns": ["key"]}, "are there already"),
    ],
)
def test_options_are_checked(cfg, options, words):
    with pytest.raises(ValueError, match=words):
        changed(cfg, **options)


@pytest.mark.slow
def test_two_processes_of_torchrun_make_the_same_files(cfg, tmp_path):
    main(cfg)
    out = tmp_path / "two"
    root = Path(recipe.__file__).parents[2]
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
        *("-m", recipe.__name__, f"--url={cfg.url}", f"--out={out}", f"--model={cfg.model}"),
        *("--batch_size=2", "--num_workers=1", "--device=cpu"),
    ]
    threads = str(torch.get_num_threads())
    env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": threads}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert "10 samples of 3 shards" in done.stdout
    assert files(out) == files(cfg.out)
