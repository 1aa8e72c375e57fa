"""Captions written with tiny random models, and what becomes of a run that was killed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from penstock.pipes import ManifestReader
from penstock.recipes import caption as recipe
from penstock.recipes import captioner
from penstock.recipes.caption import Config, ImageList, main, write_captions
from penstock.recipes.captioner import Captioner

COUNT = 5
WORDS = "a red cat on the green mat , photo of big dogs under trees : user assistant <image>"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[BOS]"]


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.train_from_iterator([WORDS], trainers.WordLevelTrainer(special_tokens=SPECIAL))
    ends = [(name, words.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=ends
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        bos_token="[BOS]",
        eos_token="[SEP]",
        model_max_length=64,
    )
    fast.add_tokens(["<image>"], special_tokens=True)
    return fast


SMALL = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "projection_dim": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


@pytest.fixture(scope="session")
def blip(tmp_path_factory):
    """A BLIP of one layer with random weights."""
    from transformers import (
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    tokens = tokenizer()
    text = {
        **SMALL,
        "vocab_size": len(tokens),
        "encoder_hidden_size": 32,
        "max_position_embeddings": 64,
        "bos_token_id": 4,
        "pad_token_id": 0,
        "eos_token_id": 3,
        "sep_token_id": 3,
    }
    vision = {**SMALL, "image_size": 32, "patch_size": 16}
    config = BlipConfig(
        text_config=text, vision_config=vision, projection_dim=32, image_text_hidden_size=32
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = BlipForConditionalGeneration(config)
        for parameter in model.parameters():  # far apart, so that images make a difference
            torch.nn.init.normal_(parameter, std=0.6)
    path = tmp_path_factory.mktemp("blip")
    model.save_pretrained(path)
    size = {"height": 32, "width": 32}
    BlipProcessor(BlipImageProcessor(size=size), tokens).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def llava(tmp_path_factory):
    """A LLaVA of one layer with random weights, which chats."""
    from transformers import (
        CLIPImageProcessor,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokens = tokenizer()
    config = LlavaConfig(
        text_config={
            "model_type": "llama",
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "vocab_size": len(tokens),
            "pad_token_id": 0,
            "bos_token_id": 4,
            "eos_token_id": 3,
        },
        vision_config={
            **SMALL,
            "model_type": "clip_vision_model",
            "image_size": 32,
            "patch_size": 16,
        },
        image_token_index=tokens.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = LlavaForConditionalGeneration(config)
    path = tmp_path_factory.mktemp("llava")
    model.save_pretrained(path)
    template = (
        "{% for m in messages %}{{ m['role'] }} : {% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }} {% endif %}{% endfor %}"
        "{% endfor %}assistant : "
    )
    LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokens,
        patch_size=16,
        vision_feature_select_strategy="default",
        chat_template=template,
        num_additional_image_tokens=1,
    ).save_pretrained(path)
    return path


@pytest.fixture
def folder(tmp_path, make_jpeg):
    """Five photographs, some in a folder of their own."""
    root = tmp_path / "data" / "photographs"
    (root / "cats").mkdir(parents=True)
    for i in range(COUNT):
        path = root / (f"cats/{i}.jpg" if i % 2 else f"{i}.jpg")
        path.write_bytes(make_jpeg(40 + 9 * i, 60, 9 * i))
    return root


@pytest.fixture
def cfg(folder, blip):
    return Config(
        url=str(folder),
        model=str(blip),
        out=folder.parent / "captions.jsonl",
        max_new_tokens=6,
        batch_size=2,
        device="cpu",
    )


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


NAMES = [f"photographs/{n}" for n in ("0.jpg", "2.jpg", "4.jpg", "cats/1.jpg", "cats/3.jpg")]


def test_a_folder_gets_captions_that_a_reader_reads(cfg, folder, capsys):
    main(cfg)
    assert "5 captions in" in capsys.readouterr().out
    rows = lines(cfg.out)
    assert [row["image"] for row in rows] == NAMES
    assert set(" ".join(row["caption"] for row in rows).split()) <= set(WORDS.split())
    loader = ManifestReader(cfg.out, shuffle=False).batch(1).lanes(1, repeat=False)
    found = [(b["__key__"][0], b["caption"][0]) for b in loader.decode().loader(0)]
    assert found == [(row["image"], row["caption"]) for row in rows]
    assert sorted(p.name for p in folder.parent.iterdir()) == ["captions.jsonl", "photographs"]


def test_captions_are_of_their_images_and_repeatable(cfg, folder, blip):
    main(cfg)
    expected = {row["image"]: row["caption"] for row in lines(cfg.out)}
    model, images = Captioner(blip, max_new_tokens=6), ImageList(cfg)
    for i in range(COUNT):  # in batches of two, and alone
        assert model([images.pixels(i)]) == [expected[images.name(i)]]
    assert len(set(expected.values())) > 1
    cfg.out.unlink()
    main(cfg)
    assert {row["image"]: row["caption"] for row in lines(cfg.out)} == expected


@pytest.fixture
def counted(monkeypatch):
    """Count the images that are given to models."""
    given = []
    call = Captioner.__call__

    def counting(self, images, seed=0):
        given.append(len(images))
        return call(self, images, seed)

    monkeypatch.setattr(Captioner, "__call__", counting)
    return given


def test_a_killed_run_goes_on(cfg, counted):
    main(cfg)
    whole = cfg.out.read_bytes()
    rows = whole.splitlines(keepends=True)
    cfg.out.unlink()
    part = cfg.out.with_name("captions.jsonl.part-00000")
    part.write_bytes(b"".join(rows[:2]) + rows[2][: len(rows[2]) // 2])
    counted.clear()
    main(cfg)
    assert sum(counted) == 3
    assert cfg.out.read_bytes() == whole
    assert not part.exists()


def test_what_is_there_is_not_written_again(cfg, folder, counted, monkeypatch, make_jpeg):
    main(cfg)
    old = lines(cfg.out)
    counted.clear()
    (folder / "more.jpg").write_bytes(make_jpeg(50, 50, 1))
    main(cfg)
    assert sum(counted) == 1
    assert [row for row in lines(cfg.out) if "more" not in row["image"]] == old
    monkeypatch.setattr(captioner, "Captioner", None)
    monkeypatch.setattr(recipe, "Captioner", None)  # no model is loaded where nothing is left
    main(cfg)
    assert len(lines(cfg.out)) == 6


def test_each_line_is_there_before_the_next_batch(cfg, monkeypatch):
    seen = []
    call = Captioner.__call__

    def watching(self, images, seed=0):
        seen.append(sum(p.read_bytes().count(b"\n") for p in cfg.out.parent.glob("*.part-*")))
        return call(self, images, seed)

    monkeypatch.setattr(Captioner, "__call__", watching)
    main(cfg)
    assert seen == [0, 2, 4]


def test_processes_share_and_one_puts_together(cfg, capsys, monkeypatch):
    main(cfg)
    whole = cfg.out.read_bytes()
    cfg.out.unlink()
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        main(cfg)
        assert "run this once more, alone" in capsys.readouterr().out
    assert not cfg.out.exists()
    shares = [p.read_bytes().count(b"\n") for p in sorted(cfg.out.parent.glob("*.part-*"))]
    assert shares == [3, 2]
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    main(cfg)
    assert cfg.out.read_bytes() == whole


def test_unreadable_images_are_named(cfg, folder, capsys):
    (folder / "2.jpg").write_bytes(b"no image")
    (folder / "cats/1.jpg").write_bytes(b"")
    main(cfg)
    words = capsys.readouterr().out
    assert "3 captions in" in words
    assert "2 images without one" in words
    assert "photographs/2.jpg: not an image" in words
    assert f"{folder}/cats/1.jpg is empty" in words
    assert [row["image"] for row in lines(cfg.out)] == [NAMES[0], NAMES[2], NAMES[4]]
    with pytest.raises(SystemExit, match=r"error: .*(2|1)\.jpg"):
        main(Config(**{**vars(cfg), "on_error": "raise"}))


def test_a_prompt_begins_captions(cfg):
    main(Config(**{**vars(cfg), "prompt": "photo of"}))
    assert all(row["caption"].startswith("photo of ") for row in lines(cfg.out))


def test_a_model_that_chats_answers(cfg, llava):
    main(Config(**{**vars(cfg), "model": str(llava), "prompt": "the cat on the mat"}))
    captions = [row["caption"] for row in lines(cfg.out)]
    assert len(captions) == COUNT
    assert all(len(text.split()) <= 6 for text in captions)  # its own words alone


def test_drawn_tokens_leave_the_generator_alone(blip, folder, cfg):
    images = [ImageList(cfg).pixels(0)]
    model = Captioner(blip, max_new_tokens=12, temperature=5.0)
    before = torch.random.get_rng_state()
    drawn = [model(images, seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_manifest_elsewhere(cfg, folder, tmp_path):
    path = tmp_path / "list.csv"
    path.write_text(f"image,caption\n{folder}/0.jpg,old\n{folder}/none.jpg,old\n")
    out = tmp_path / "elsewhere" / "captions.jsonl"
    main(Config(**{**vars(cfg), "url": str(path), "out": out}))
    assert [row["image"] for row in lines(out)] == [f"{folder}/0.jpg"]


def test_a_part_that_another_process_writes_is_left_alone(cfg):
    fcntl = pytest.importorskip("fcntl")
    with cfg.out.with_name("captions.jsonl.part-00000").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError, match="another process is writing"):
            write_captions(cfg, ImageList(cfg))


def test_foreign_lines_are_named(cfg):
    cfg.out.write_text('{"image": "a.jpg", "caption": "x"}\nhello\n')
    with pytest.raises(SystemExit, match=r"captions\.jsonl, line 2: expected an object"):
        main(cfg)


def test_images_inside_a_manifest_are_refused(cfg, make_jpeg, tmp_path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"image": [make_jpeg(40, 50, 1)]}), tmp_path / "in.parquet")
    with pytest.raises(SystemExit, match="the image lies inside the manifest"):
        main(Config(**{**vars(cfg), "url": str(tmp_path / "in.parquet")}))


@pytest.mark.parametrize(
    ("change", "words"),
    [({"out": Path("x.csv")}, "must end in .jsonl"), ({"batch_size": 0}, "at least 1, got 0")],
)
def test_options_are_checked(cfg, change, words):
    with pytest.raises(ValueError, match=words):
        Config(**{**vars(cfg), **change})


@pytest.mark.slow
def test_under_torchrun(cfg):
    main(cfg)
    whole = cfg.out.read_bytes()
    cfg.out.unlink()
    root = Path(recipe.__file__).parents[2]
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
        *("-m", recipe.__name__, f"--url={cfg.url}", f"--out={cfg.out}", f"--model={cfg.model}"),
        *("--max_new_tokens=6", "--device=cpu"),
    ]
    env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert "5 captions in" in done.stdout
    assert cfg.out.read_bytes() == whole
    assert not list(cfg.out.parent.glob("*.part-*"))
