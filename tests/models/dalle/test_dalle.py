"""DALL-E's loss, its masks and what it draws."""

import pytest
import torch
import torch.nn.functional as F

KINDS = ("full", "axial_row", "axial_col", "conv_like", "sparse")
LENGTH, WORDS = 7, 40


def seeded(n: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(n)


def drawn(model, text, **how) -> torch.Tensor:
    """Return the codes behind the images."""
    kept = []
    decode = model.vae.decode
    model.vae.decode = lambda codes: kept.append(codes) or decode(codes)
    model.generate_images(text, **{"generator": seeded(), **how})
    del model.vae.decode
    return kept[0]


@torch.no_grad()
def test_logits_and_loss(make_dalle, text, codes):
    model = make_dalle(loss_img_weight=3)
    logits = model(text, codes)
    assert logits.shape == (3, LENGTH + 64, WORDS + LENGTH + 20)
    lowest = -torch.finfo(torch.float32).max
    assert (logits[:, :LENGTH, WORDS + LENGTH :] == lowest).all()
    assert (logits[:, LENGTH:, : WORDS + LENGTH] == lowest).all()
    labels = torch.cat([model.text_ids(text), codes + WORDS + LENGTH], 1)
    each = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    expected = (each[:, :LENGTH].mean() + 3 * each[:, LENGTH:].mean()) / 4
    torch.testing.assert_close(model(text, codes, return_loss=True), expected)


def test_padding_has_an_id_by_position(make_dalle, text):
    model = make_dalle()
    ids = model.text_ids(text)
    assert ids[2].tolist() == list(range(WORDS, WORDS + LENGTH))
    assert ids[0].tolist() == [*text[0, :3].tolist(), *range(WORDS + 3, WORDS + LENGTH)]
    assert torch.equal(ids[1], text[1])


def test_images_are_their_codes(make_dalle, text, images):
    model = make_dalle()
    codes = model.vae.get_codebook_indices(images)
    assert torch.equal(model(text, images), model(text, codes))


def test_the_vae_is_kept_and_not_trained(make_dalle, text, images):
    model = make_dalle()
    assert any(name.startswith("vae.encoder") for name in model.state_dict())
    model(text, images, return_loss=True).backward()
    assert all(p.grad is None for p in model.vae.parameters())
    assert all(p.grad is not None for n, p in model.named_parameters() if not n.startswith("vae."))


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_hides_what_it_says(make_dalle, text, codes, kind):
    model = make_dalle(attn_types=kind, shift_tokens=False)
    mask = text != 0
    other = text.clone()
    other[0, 5] = 9  # behind the mask
    found, changed = (model(t, codes, mask=mask)[0] for t in (text, other))
    assert torch.equal(found[LENGTH:], changed[LENGTH:])
    assert not torch.equal(found[5:LENGTH], changed[5:LENGTH])  # it still stands there
    assert not torch.equal(model(text, codes)[0, LENGTH:], found[LENGTH:])


@torch.no_grad()
def test_a_mask_changes_no_id(make_dalle, text, codes, monkeypatch):
    model = make_dalle()
    seen = []
    hidden = model.hidden
    monkeypatch.setattr(
        model, "hidden", lambda ids, *rest: seen.append(ids.clone()) or hidden(ids, *rest)
    )
    for mask in (None, text != 0, torch.ones_like(text), torch.zeros_like(text).bool()):
        model(text, codes, mask=mask, return_loss=True)
    assert all(torch.equal(ids, model.text_ids(text)) for ids in seen)
    assert len(seen) == 4


@torch.no_grad()
def test_a_mask_that_hides_nothing_or_all_is_none(make_dalle, text, codes):
    model = make_dalle(attn_types=KINDS, depth=5)
    expected = model(text, codes)
    for mask in (torch.ones_like(text), torch.ones_like(text).bool(), torch.zeros_like(text)):
        torch.testing.assert_close(model(text, codes, mask=mask), expected)
    mask = text != 0  # the third text is all padding
    torch.testing.assert_close(model(text, codes, mask=mask)[2], expected[2])


@torch.no_grad()
def test_masks_of_nothing_draw_the_same_codes(make_dalle, text):
    model = make_dalle(attn_types=KINDS, depth=5)
    for scale in (1.0, 2.0):
        expected = drawn(model, text, cond_scale=scale)
        ones = torch.ones_like(text).bool()
        assert torch.equal(drawn(model, text, cond_scale=scale, mask=ones), expected)


@torch.no_grad()
def test_texts_are_dropped_and_left_alone(make_dalle, text, codes):
    model = make_dalle()
    before = text.clone()
    found = model(text, codes, null_cond_prob=1.0)
    assert torch.equal(text, before)
    torch.testing.assert_close(found, model(torch.zeros_like(text), codes))
    masked = model(text, codes, null_cond_prob=1.0, mask=text != 0)
    torch.testing.assert_close(masked, found)
    torch.manual_seed(0)
    some = model(text.repeat(20, 1), codes.repeat(20, 1), null_cond_prob=0.5)
    whole = model(text, codes)
    share = sum(torch.allclose(row, whole[0], atol=1e-4) for row in some[::3]) / 20
    assert 0.2 < share < 0.8


def test_stable_has_the_same_logits_and_a_tenth_of_the_embeddings_gradient(make_dalle, text, codes):
    found = []
    for stable in (False, True):
        model = make_dalle(stable=stable)
        logits = model(text, codes)
        model(text, codes, return_loss=True).backward()
        found.append((logits, model.image_emb.weight.grad, model.to_logits.weight.grad))
    # The norm behind takes the division by the largest number out again.
    torch.testing.assert_close(found[1][0], found[0][0], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(found[1][1], found[0][1] / 10, atol=1e-5, rtol=1e-2)
    torch.testing.assert_close(found[1][2], found[0][2], atol=1e-5, rtol=1e-2)


def test_tied_embeddings_are_the_logits_weights(make_dalle, text, codes):
    model = make_dalle(share_input_output_emb=True)
    assert not any("text_emb" in n or "image_emb" in n for n, _ in model.named_parameters())
    model(text, codes, return_loss=True).backward()
    assert model.to_logits.weight.grad[0].abs().sum() > 0  # the begin, which nothing predicts


@pytest.mark.parametrize("cond_scale", [1.0, 3.0])
@pytest.mark.parametrize(
    "settings",
    [
        {"attn_types": KINDS, "depth": 5},
        {"attn_types": KINDS, "depth": 5, "reversible": True, "stable": True},
        {"rotary_emb": False, "shared_attn_ids": (0,), "sandwich_norm": True},
        {"share_input_output_emb": True, "shift_tokens": False},
    ],
)
def test_the_cache_changes_nothing(make_dalle, text, images, settings, cond_scale):
    model = make_dalle(**settings)
    for how in ({}, {"img": images}, {"img": images, "num_init_img_tokens": 8, "mask": text != 0}):
        found = [
            drawn(model, text, use_cache=use, cond_scale=cond_scale, **how) for use in (True, False)
        ]
        assert torch.equal(*found)
        assert found[0].unique().numel() > 5


def test_the_cache_is_used(make_dalle, text, monkeypatch):
    model = make_dalle()
    lengths = []
    forward = model.transformer.forward
    monkeypatch.setattr(
        model.transformer,
        "forward",
        lambda x, *rest: lengths.append(x.shape[1]) or forward(x, *rest),
    )
    model.generate_images(text)
    assert lengths == [LENGTH + 1] + [1] * 63


@torch.no_grad()
def test_guidance_is_of_the_text_alone(make_dalle, text):
    """Each code is that of the guided logits of whole passes, with the text and without."""
    model = make_dalle(attn_types=("full", "conv_like"))
    before = text.clone()
    found = drawn(model, text, cond_scale=2.5, temperature=0)
    assert torch.equal(text, before)
    with_text = model(text, found)[:, LENGTH:, WORDS + LENGTH :]
    without = model(torch.zeros_like(text), found)[:, LENGTH:, WORDS + LENGTH :]
    best = (without + 2.5 * (with_text - without)).argmax(-1)
    assert torch.equal(found, best)
    assert not torch.equal(found, drawn(model, text, temperature=0))


def test_seeds(make_dalle, text):
    model = make_dalle()
    assert torch.equal(drawn(model, text), drawn(model, text))
    assert not torch.equal(drawn(model, text), drawn(model, text, generator=seeded(1)))
    state = torch.get_rng_state()
    drawn(model, text)
    assert torch.equal(state, torch.get_rng_state())  # torch's own is left alone
    torch.manual_seed(3)
    first = drawn(model, text, generator=None)
    torch.manual_seed(3)
    assert torch.equal(first, drawn(model, text, generator=None))


def test_priming_keeps_the_images_beginning(make_dalle, text, images):
    model = make_dalle()
    whole = model.vae.get_codebook_indices(images)
    assert torch.equal(drawn(model, text, img=images)[:, :28], whole[:, :28])
    found = drawn(model, text, img=images, num_init_img_tokens=63)
    assert torch.equal(found[:, :63], whole[:, :63])


def test_images_and_mode(make_dalle, text):
    model = make_dalle(attn_dropout=0.5)
    model.transformer.layers[1].eval()
    images = model.generate_images(text)
    assert images.shape == (3, 3, 32, 32)
    assert 0 <= images.min() <= images.max() <= 1
    assert model.training
    assert model.transformer.layers[0].training
    assert not model.transformer.layers[1].training


class Letters:
    """A tokenizer of one letter a word."""

    def encode(self, text):
        return [ord(letter) - 96 for letter in text]

    def decode(self, ids):
        return "".join(chr(i + 96) for i in ids if i)


@pytest.mark.parametrize("use_cache", [True, False])
def test_generate_texts(make_dalle, use_cache):
    model = make_dalle()
    how = {"use_cache": use_cache, "generator": seeded(1)}
    ids, texts = model.generate_texts(Letters(), "abc", **how)
    assert ids.shape == (1, LENGTH)
    assert ids[0, :3].tolist() == [1, 2, 3]
    assert texts[0].startswith("abc")
    assert (ids < WORDS).all()
    assert torch.equal(model.text_ids(ids)[ids == 0], torch.arange(40, 47)[ids[0] == 0])
    again, _ = model.generate_texts(Letters(), "abc", **{**how, "generator": seeded(1)})
    assert torch.equal(ids, again)
    assert model.generate_texts(Letters())[0].shape == (1, LENGTH)


@torch.no_grad()
def test_texts_are_drawn_as_they_were_trained(make_dalle):
    """Behind the begin, and with the channels shifted, as in training."""
    model = make_dalle()
    ids, _ = model.generate_texts(Letters(), "ab", temperature=0)
    logits = model(ids)[0, :LENGTH, : WORDS + LENGTH]
    labels = logits.argmax(-1)
    drawn_ids = torch.where(labels >= WORDS, 0, labels)
    paddings = ids[0] == 0
    first = int(paddings.int().argmax()) if paddings.any() else LENGTH
    assert torch.equal(drawn_ids[2 : first + 1], ids[0, 2 : first + 1])


def test_bad_arguments(make_dalle, make_vae, text, codes, images):
    model = make_dalle()
    with pytest.raises(ValueError, match=r"integers \[B, 7\], got torch.int64 \[3, 6\]"):
        model(text[:, :6])
    with pytest.raises(ValueError, match=r"mask must be \[3, 7\]"):
        model(text, mask=torch.ones(3, 5))
    with pytest.raises(ValueError, match="needs an image of 64 codes, got none"):
        model(text, return_loss=True)
    with pytest.raises(ValueError, match="got 5 codes"):
        model(text, codes[:, :5], return_loss=True)
    with pytest.raises(ValueError, match=r"\[B, 3, 32, 32\] or codes"):
        model(text, images[..., :16])
    with pytest.raises(ValueError, match="0 to 63, got 64"):
        model.generate_images(text, img=images, num_init_img_tokens=64)
    with pytest.raises(ValueError, match="filter_thres must be 0 to 1"):
        model.generate_images(text, filter_thres=1.5)
    with pytest.raises(ValueError, match="the beginning has 8 tokens"):
        model.generate_texts(Letters(), "abcdefgh")
    with pytest.raises(TypeError, match="got Linear"):
        type(model)(dim=8, depth=1, vae=torch.nn.Linear(2, 2))
    with pytest.warns(FutureWarning, match="sparse_attn has no effect"):
        make_dalle(sparse_attn=True)
