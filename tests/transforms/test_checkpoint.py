"""What is missing or of another kind is an error that says so; nothing is made up in its place."""

import io
import json

import pytest

from penstock.transforms import ClipTokenize, T5Tokenize
from penstock.transforms.checkpoint import checkpoint_folder, load_config, load_tokenizer


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """Have the hub's client find an empty cache, and nobody to ask."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_a_folder_is_itself(checkpoint, monkeypatch):
    assert checkpoint_folder(checkpoint, ["tokenizer"]) == checkpoint
    assert checkpoint_folder(str(checkpoint), ["tokenizer"]) == checkpoint
    monkeypatch.chdir(checkpoint.parent)
    assert checkpoint_folder(checkpoint.name, [""]).samefile(checkpoint)


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "~/nothing/at/all", "a/b/c"])
def test_a_path_that_is_not_there_is_no_hub_id(name):
    with pytest.raises(FileNotFoundError, match=f"there is no folder {name}"):
        checkpoint_folder(name, [""])


def test_a_file_is_no_checkpoint(checkpoint):
    with pytest.raises(NotADirectoryError, match="is a file: give the folder"):
        checkpoint_folder(checkpoint / "tokenizer" / "tokenizer.json", [""])


@pytest.mark.parametrize("local", [True, False])
def test_offline_the_error_says_what_to_do(no_network, local):
    with pytest.raises(OSError, match="neither a folder here nor to be had from the Hugging Face"):
        checkpoint_folder("black-forest-labs/FLUX.1-dev", ["tokenizer"], None, local)
    with pytest.raises(OSError, match="'tiny' is neither a folder here"):
        ClipTokenize.from_pretrained("tiny", local_files_only=local)


def test_what_was_downloaded_is_found(no_network, checkpoint):
    repo = no_network / "models--someone--tiny"
    commit = "0" * 40
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    (repo / "snapshots").mkdir()
    (repo / "snapshots" / commit).symlink_to(checkpoint, target_is_directory=True)
    for subfolder, made in (("tokenizer", ClipTokenize), ("tokenizer_2", T5Tokenize)):
        found = made.from_pretrained("someone/tiny", subfolder=subfolder, local_files_only=True)
        own = made.from_pretrained(checkpoint, subfolder=subfolder)
        assert found.tokens.digest == own.tokens.digest


def test_only_small_files_are_asked_of_the_hub(monkeypatch, tmp_path):
    import fnmatch

    import huggingface_hub

    asked = {}
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *a, **k: asked.update(k, id=a) or tmp_path
    )
    checkpoint_folder("someone/flux", ["tokenizer", "transformer"], "main")
    assert (asked["id"], asked["revision"]) == (("someone/flux",), "main")

    def taken(path):
        return any(fnmatch.fnmatch(path, pattern) for pattern in asked["allow_patterns"])

    assert taken("tokenizer/merges.txt")
    assert taken("transformer/config.json")
    for path in (
        "transformer/diffusion_pytorch_model-00001-of-00003.safetensors",
        "transformer/diffusion_pytorch_model.safetensors.index.json",
        "flux1-dev.safetensors",
        "tokenizer_2/tokenizer.json",
        "tokenizer/evil.py",
    ):
        assert not taken(path)


def test_missing_folders_and_files_are_named(checkpoint, tmp_path):
    # transformers 5 gives a tokenizer without a vocabulary for each of these, and no error.
    with pytest.raises(FileNotFoundError, match=r"no folder .*tokenizer_9.*beside it are \['token"):
        load_tokenizer(checkpoint / "tokenizer_9", "t5")
    with pytest.raises(FileNotFoundError, match=r"needs tokenizer.json, or vocab.json and merges"):
        load_tokenizer(tmp_path, "clip")
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="holds no clip tokenizer"):
        load_tokenizer(tmp_path, "clip")
    with pytest.raises(FileNotFoundError, match=r"tokenizer.json, or spiece.model"):
        load_tokenizer(tmp_path, "t5")


def test_swapped_tokenizers_are_refused(checkpoint):
    with pytest.raises(ValueError, match=r"of type Unigram, and a clip tokenizer is of type BPE"):
        load_tokenizer(checkpoint / "tokenizer_2", "clip")
    with pytest.raises(ValueError, match=r"of type BPE, and a t5 tokenizer is of type Unigram"):
        load_tokenizer(checkpoint / "tokenizer", "t5")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model": 3}', '{"model": {}}'])
def test_broken_files_are_named(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path, "clip")


def test_the_older_files_of_clip(checkpoint, clip, captions, tmp_path):
    model = json.loads((checkpoint / "tokenizer" / "tokenizer.json").read_text())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    made = ClipTokenize.from_pretrained(tmp_path)
    own = ClipTokenize(clip)
    assert made.tokens(captions).ids.equal(own.tokens(captions).ids)


@pytest.fixture(scope="module")
def spiece(tmp_path_factory):
    """A folder with spiece.model alone, as google/t5-v1_1-xxl has it, and its model."""
    import sentencepiece

    words = "a photo of a large red circle on the blue background at the top left , ring star"
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([words] * 30),
        model_writer=model,
        vocab_size=40,
        hard_vocab_limit=False,
        model_type="unigram",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=3,
    )
    folder = tmp_path_factory.mktemp("spiece")
    (folder / "spiece.model").write_bytes(model.getvalue())
    return folder, sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def test_sentencepiece_models_are_read(spiece):
    folder, own = spiece
    made = T5Tokenize.from_pretrained(folder, max_length=64)
    texts = ["a photo of a large red circle", "", "the top left, star", "ring  ring\tring"]
    tokens = made.tokens(texts)
    for i, text in enumerate(texts):
        ids = [*own.encode(text), own.eos_id()]
        assert tokens.ids[i].tolist() == ids + [own.pad_id()] * (64 - len(ids))


@pytest.mark.parametrize("package", ["sentencepiece", "protobuf"])
def test_without_the_packages_to_read_them_the_error_says_what_to_install(
    spiece, monkeypatch, package
):
    find_spec = __import__("importlib.util").util.find_spec
    hidden = {"protobuf": "google.protobuf"}.get(package, package)
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == hidden else find_spec(name)
    )
    with pytest.raises(ImportError, match=f"needs {package}: pip install sentencepiece protobuf"):
        load_tokenizer(spiece[0], "t5")


def test_configs(tmp_path):
    assert load_config(tmp_path) is None
    (tmp_path / "config.json").write_text('{"guidance_embeds": true}')
    assert load_config(tmp_path) == {"guidance_embeds": True}
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"config\.json must hold a JSON object, got list"):
        load_config(tmp_path)
