"""Embeddings and logits of text and image."""

import pytest
import torch


@torch.no_grad()
@pytest.mark.parametrize("settings", [{}, {"rotary_emb": False}, {"share_input_output_emb": True}])
def test_embeddings(make_dalle, text, codes, settings):
    model = make_dalle(**settings)
    found = model._embed(model.text_ids(text), codes, 0)
    words = model.to_logits.weight[:47] if model.text_emb is None else model.text_emb.weight
    pictures = model.to_logits.weight[47:] if model.image_emb is None else model.image_emb.weight
    begun = torch.cat([torch.zeros(3, 1, dtype=torch.long), model.text_ids(text)], 1)
    expected = torch.cat([words[begun], pictures[codes]], 1)
    if model.text_pos_emb is not None:
        expected[:, :8] += model.text_pos_emb.weight
        for i in range(64):
            expected[:, 8 + i] += model.row_emb[i // 8, 0] + model.column_emb[0, i % 8]
    torch.testing.assert_close(found, expected)
    for done in (3, 8, 20):
        torch.testing.assert_close(model._embed(model.text_ids(text), codes, done), found[:, done:])


@torch.no_grad()
def test_logits_are_two_parts_of_one_map(make_dalle):
    model, hidden = make_dalle(), torch.randn(2, 3, 24)
    both = torch.cat([model.text_logits(hidden), model.image_logits(hidden)], -1)
    torch.testing.assert_close(both, model.to_logits(hidden))


def test_settings_make_the_same_model(make_dalle):
    model = make_dalle(attn_types=("full", "sparse"), shared_ff_ids=[0, 0], reversible=True)
    again = type(model)(vae=model.vae, **model.settings)
    again.load_state_dict(model.state_dict())
    assert again.settings == model.settings
