"""DALL-E's fields are what DALLE-pytorch's own tokenizers and loader make."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import to_tensor

from penstock.transforms import DalleTransform


def zero_filled(tokenizer, captions, length):
    """As DALLE-pytorch's tokenize(…, truncate_text=True): words alone, then zeros."""
    result = torch.zeros(len(captions), length, dtype=torch.long)
    for i, caption in enumerate(captions):
        ids = tokenizer(caption, add_special_tokens=False)["input_ids"][:length]
        result[i, : len(ids)] = torch.tensor(ids, dtype=torch.long)
    return result


@pytest.mark.parametrize("name", ["clip", "t5"])
@pytest.mark.parametrize("length", [16, 256])
def test_texts_are_words_then_zeros(request, captions, make_batch_of, name, length):
    tokenizer = request.getfixturevalue(name)
    out = DalleTransform(tokenizer, text_length=length)(make_batch_of(captions, 32, 32))
    assert torch.equal(out["text_tokens"], zero_filled(tokenizer, captions, length))
    counts = [
        len(tokenizer(c, add_special_tokens=False, verbose=False)["input_ids"]) for c in captions
    ]
    assert out["text_attention_mask"].sum(1).tolist() == [min(length, n) for n in counts]
    assert out["text_cut"].tolist() == [max(0, n - length) for n in counts]


def test_pixels_are_to_tensors(clip, make_batch_of):
    batch = make_batch_of(["a", "b"], 16, 16)
    out = DalleTransform(clip)(batch)
    for pixels, image in zip(batch["image"], out["image"], strict=True):
        assert torch.equal(image, to_tensor(Image.fromarray(pixels.permute(1, 2, 0).numpy())))
    assert "image_tokens" not in out
    assert out["mask"] is batch["mask"]


def mean_codes(image):
    assert image.dtype == torch.float32
    assert not torch.is_grad_enabled()
    return (torch.nn.functional.avg_pool2d(image.mean(1), 8) * 511).to(torch.int32)


def test_image_tokens_by_a_function(clip, make_batch_of):
    batch = make_batch_of(["a", "b"], 32, 32)
    out = DalleTransform(clip, vae=mean_codes)(batch)
    with torch.no_grad():
        expected = mean_codes(batch["image"] / 255).flatten(1).long()
    assert torch.equal(out["image_tokens"], expected)
    assert out["image_tokens"].shape == (2, 16)
    assert out["image_tokens"].dtype == torch.int64


@pytest.mark.parametrize(
    "bad",
    [
        lambda image: image,
        lambda image: image.flatten(1).round(),
        lambda image: torch.zeros(1, 4, dtype=torch.int64),
        lambda image: torch.zeros(len(image), dtype=torch.int64),
        lambda image: torch.zeros(len(image), 4, dtype=torch.bool),
        lambda image: None,
    ],
)
def test_what_is_no_tokens_is_refused(clip, make_batch_of, bad):
    with pytest.raises(ValueError, match=r"vae must give the images' tokens, integers \[2, n\]"):
        DalleTransform(clip, vae=bad)(make_batch_of(["a", "b"], 16, 16))


def test_padding_of_its_own(clip, make_batch_of):
    # "!" that does not end a word is CLIP's first word, and the padding's id.
    texts = ["!!x", "", "a ring"]
    batch = make_batch_of(texts, 16, 16)
    plain, apart = DalleTransform(clip), DalleTransform(clip, reserve_padding=True)
    old, new = plain(batch), apart(batch)
    assert (old["text_tokens"][0, :1] == 0) & (old["text_attention_mask"][0, :1] == 1)
    assert torch.equal(new["text_tokens"] == 0, new["text_attention_mask"] == 0)
    words = new["text_attention_mask"].bool()
    assert torch.equal(new["text_tokens"][words], old["text_tokens"][words] + 1)
    assert plain.num_text_tokens == len(clip)
    assert apart.num_text_tokens == len(clip) + 1
    assert new["text_tokens"].max() < apart.num_text_tokens


def test_dropped_texts_are_all_padding(clip, make_batch_of):
    batch = make_batch_of(["a ring"] * 200, 8, 8)
    rng = np.random.Generator(np.random.Philox(key=3))
    out = DalleTransform(clip, drop=0.5, reserve_padding=True)(batch, rng)
    assert 60 < out["text_dropped"].sum() < 140
    assert torch.equal(out["text_tokens"].eq(0).all(1), out["text_dropped"])
    with pytest.raises(ValueError, match="give rng="):
        DalleTransform(clip, drop=0.5)(batch)


def test_tokenizers_of_json_files(tmp_path, captions, make_batch_of):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from tokenizers.processors import ByteLevel

    words = Tokenizer(models.BPE(unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    trainer = trainers.BpeTrainer(special_tokens=["[PAD]", "[UNK]"], show_progress=False)
    words.train_from_iterator(["a large red circle on the left " * 3], trainer)
    words.save(str(tmp_path / "bpe.json"))
    out = DalleTransform.from_file(tmp_path / "bpe.json")(make_batch_of(captions[:5], 16, 16))
    hug = Tokenizer.from_file(str(tmp_path / "bpe.json"))
    hug.post_processor = ByteLevel(trim_offsets=True)
    for i, caption in enumerate(captions[:5]):
        ids = hug.encode(caption).ids[:256]
        assert out["text_tokens"][i].tolist() == ids + [0] * (256 - len(ids))
    assert DalleTransform.from_file(tmp_path / "bpe.json").num_text_tokens == hug.get_vocab_size()


def test_bad_arguments_are_refused(clip, tmp_path, make_batch_of):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none\.json"):
        DalleTransform.from_file(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ValueError, match=r"bad\.json holds no tokenizer"):
        DalleTransform.from_file(tmp_path / "bad.json")
    with pytest.raises(TypeError, match="vae must be a function of images, got str"):
        DalleTransform(clip, vae="dall-e")
    with pytest.raises(ValueError, match="images of 16 x 32 pixels .*DALL-E takes square ones"):
        DalleTransform(clip)(make_batch_of(["a"], 16, 32))
