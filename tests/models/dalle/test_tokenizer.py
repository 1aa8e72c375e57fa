"""Texts as ids, of which 0 is padding alone."""

import gzip

import pytest
import tokenizers
import torch
from transformers import PreTrainedTokenizerFast

from penstock.models.dalle import DALLE, TextTokenizer
from penstock.transforms import DalleTransform

CAPTIONS = ["a red square", "a blue circle", "a red circle, <pad> small", "日本の赤い円"]
ODD = ["A RED circle", "", "<pad> a [PAD] <unk>", "naïve  日本 🙂\n\x00", "circle circle circle"]


@pytest.fixture(scope="module")
def learnt() -> TextTokenizer:
    return TextTokenizer.from_captions(CAPTIONS, 300)


@pytest.fixture
def merges(tmp_path):
    path = tmp_path / "bpe.txt.gz"
    path.write_bytes(gzip.compress(b'"bpe" version\nr e\nre d</w>\nc i\nci r\n! !</w>\n'))
    return path


def others() -> dict[str, tokenizers.Tokenizer]:
    words = {"a": 0, "red": 1, "circle": 2, "[UNK]": 3}
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    padded = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"[PAD]": 0, "a": 1, "[UNK]": 2}, unk_token="[UNK]")
    )
    padded.add_special_tokens(["[PAD]"])
    for each in (plain, padded):
        each.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return {"plain": plain, "padded": padded}


def all_of(learnt, merges) -> list[TextTokenizer]:
    return [learnt, TextTokenizer.from_clip_bpe(merges), *map(TextTokenizer, others().values())]


def test_zero_is_padding_and_nothing_else(learnt, merges):
    for tokenizer in all_of(learnt, merges):
        for text in (*CAPTIONS, *ODD):
            ids = tokenizer.encode(text)
            assert all(0 < i < tokenizer.vocab_size for i in ids)
            row = tokenizer.tokenize(text, 64)[0]
            assert row[: len(ids)].tolist() == ids
            assert not row[len(ids) :].any()


def test_learnt_words(learnt):
    assert learnt.vocab_size <= 300
    assert len(learnt.encode("a red circle")) == 3
    for text in (*CAPTIONS, "naïve  日本 🙂\n\x00"):
        assert learnt.decode([*learnt.encode(text), 0, 0]) == text.lower()


def test_the_same_captions_give_the_same_words(learnt, tmp_path):
    again = TextTokenizer.from_captions(iter(CAPTIONS), 300)
    for name, tokenizer in {"a": learnt, "b": again}.items():
        tokenizer.save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]
    read = TextTokenizer.from_file(tmp_path / "a")
    assert [read.encode(t) for t in ODD] == [learnt.encode(t) for t in ODD]
    assert read.vocab_size == learnt.vocab_size


def test_id_0_of_others_is_moved_unless_it_is_padding():
    plain, padded = map(TextTokenizer, others().values())
    assert (plain.reserve_padding, plain.vocab_size) == (True, 5)
    assert plain.encode("a red") == [1, 2]
    assert (padded.reserve_padding, padded.vocab_size) == (False, 3)
    assert padded.encode("a [PAD] red") == [1, 2]


def test_clips_words(merges):
    tokenizer = TextTokenizer.from_clip_bpe(merges)
    assert tokenizer.vocab_size == 512 + 5 + 2 + 1
    assert tokenizer.encode("Red") == [512 + 1 + 1]
    letters = 256
    ids = [512 + 3 + 1, *(33 - 33 + ord(c) - 33 + 1 for c in "cl"), letters + ord("e") - 33 + 1]
    assert tokenizer.encode("circle") == ids
    assert tokenizer.decode(tokenizer.encode("a red circle 1 !")) == "a red circle 1 !"
    assert tokenizer.encode("!") == [letters + 1]


def test_clips_words_are_those_of_transformers(merges):
    """The converter of transformers makes the same of the same vocabulary."""
    from transformers import CLIPTokenizer

    ours = TextTokenizer.from_clip_bpe(merges)
    inner = ours._tokenizer
    words = dict(inner.get_vocab())
    pairs = [("r", "e"), ("re", "d</w>"), ("c", "i"), ("ci", "r"), ("!", "!</w>")]
    theirs = CLIPTokenizer(vocab=words, merges=pairs)
    for text in ("A red circle's", "it'll cost 12 dollars!!", "  zwei\tFüße ", "日本 🙂"):
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text) == [i + 1 for i in ids]


@pytest.mark.parametrize("which", ["learnt", "plain"])
def test_the_transform_gives_the_same(learnt, tmp_path, which):
    path = tmp_path / "tokenizer.json"
    if which == "learnt":
        learnt.save(path)
    else:
        others()["plain"].save(str(path))
    ours = TextTokenizer.from_file(path)
    transform = DalleTransform.from_file(path, text_length=9, reserve_padding=ours.reserve_padding)
    captions = ["a red circle", "", "a circle"]
    batch = {"image": torch.zeros(3, 3, 8, 8, dtype=torch.uint8), "caption": captions}
    out = transform(batch)
    assert torch.equal(out["text_tokens"], ours.tokenize(captions, 9))
    assert transform.num_text_tokens == ours.vocab_size
    assert PreTrainedTokenizerFast(tokenizer_file=str(path)) is not None


def test_dalle_takes_the_transforms_fields(learnt, tmp_path, make_vae):
    learnt.save(tmp_path / "tokenizer.json")
    vae = make_vae()
    how = {"text_length": 9, "vae": vae.get_codebook_indices}
    how["reserve_padding"] = learnt.reserve_padding
    transform = DalleTransform.from_file(tmp_path / "tokenizer.json", **how)
    batch = {"image": torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)}
    fields = transform({**batch, "caption": ["a red circle", ""]})
    words = transform.num_text_tokens
    model = DALLE(
        dim=8,
        depth=1,
        heads=1,
        vae=vae,
        num_text_tokens=words,
        text_seq_len=9,
    )
    losses = [
        model(fields["text_tokens"], image, mask=fields["text_attention_mask"], return_loss=True)
        for image in (fields["image_tokens"], fields["image"])
    ]
    assert losses[0].isfinite()
    assert torch.equal(*losses)


def test_too_long(learnt):
    with pytest.raises(ValueError, match="text 1 has 3 tokens, 2 fit: 'a red circle'"):
        learnt.tokenize(["a", "a red circle"], 2)
    found = TextTokenizer.from_captions(CAPTIONS, 300)
    rows = found.tokenize(["a red circle", "a", "a red circle"], 1, truncate_text=True)
    assert rows[:, 0].tolist() == [found.encode("a")[0]] * 3
    assert (found.texts_cut, found.tokens_cut) == (2, 4)


def test_bad_files(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(FileNotFoundError):
        TextTokenizer.from_file(path)
    path.write_text("{}")
    with pytest.raises(ValueError, match="a.json holds no tokenizer"):
        TextTokenizer.from_file(path)
    path.write_text("#version\na b c\n")
    with pytest.raises(ValueError, match="line 2: expected two parts of a word, got 'a b c'"):
        TextTokenizer.from_clip_bpe(path)
    path.write_text("#version\nab c\n")
    with pytest.raises(ValueError, match=r"a.json: these merges make no vocabulary: .*ab"):
        TextTokenizer.from_clip_bpe(path)
    with pytest.raises(ValueError, match="at least 257"):
        TextTokenizer.from_captions(CAPTIONS, 256)
    with pytest.raises(ValueError, match="knows no words"):
        TextTokenizer(tokenizers.Tokenizer(tokenizers.models.BPE()))
