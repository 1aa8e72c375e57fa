"""What is kept comes back, in the bytes that were foretold."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.pipes import EntryStore
from penstock.transforms import text_bytes
from penstock.transforms.entry_bytes import entry_bytes
from penstock.transforms.text_bytes import (
    FLOAT8,
    Row,
    check_bytes,
    pack_text,
    split_text,
    stack_text,
    unpack_text,
)

POLICIES = ["full", "trimmed", "float8", "ids"]


def row(length, tokens, *, dtype=torch.bfloat16, seed=0, left=False, width=6):
    """Return a caption's row, with outputs of padding that are zeros, as trimming demands."""
    draws = torch.Generator().manual_seed(seed)
    mask = torch.zeros(length, dtype=torch.int64)
    mask[length - tokens if left else 0 : length if left else tokens] = 1
    embeds = torch.randn(length, width, generator=draws) * mask[:, None]
    outputs = {"embeds": embeds.to(dtype), "pooled": torch.randn(4, generator=draws).to(dtype)}
    return Row(torch.arange(length) + seed, mask, seed, outputs)


def there_and_back(policy, rows, dtype=torch.bfloat16):
    return unpack_text(stack_text([pack_text(policy, r) for r in rows]), dtype)


@pytest.mark.parametrize("policy", ["full", "trimmed"])
@pytest.mark.parametrize("left", [False, True])
@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=5))
def test_nothing_is_lost(policy, left, lengths):
    rows = [row(9, tokens, seed=i, left=left) for i, tokens in enumerate(lengths)]
    made = there_and_back(policy, rows)
    for name in ("embeds", "pooled"):
        assert torch.equal(made[name], torch.stack([r.outputs[name] for r in rows]))
    assert torch.equal(made["mask"], torch.stack([r.mask for r in rows]))
    assert made["mask"].dtype == made["cut"].dtype == torch.int64
    assert made["cut"].tolist() == [r.cut for r in rows]


def test_trimmed_padding_comes_back_as_zeros():
    full = row(5, 2)
    full.outputs["embeds"][2:] = 7  # what the encoder gave for padding, and nobody attends to
    made = there_and_back("trimmed", [full])["embeds"][0]
    assert torch.equal(made[:2], full.outputs["embeds"][:2])
    assert made[2:].eq(0).all()
    assert pack_text("trimmed", full)["embeds.tokens"].shape == (2, 6)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("left", [False, True])
def test_entries_that_were_stacked_come_apart(policy, left):
    rows = [row(7, tokens, seed=tokens, left=left) for tokens in (3, 0, 7, 3)]
    entries = [pack_text(policy, r) for r in rows]
    apart = split_text(stack_text(entries))
    for one, two in zip(entries, apart, strict=True):
        assert one.keys() == two.keys()
        for name in one:
            assert one[name].dtype == two[name].dtype
            assert torch.equal(one[name].float(), two[name].float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_float8_error_is_what_is_told(dtype):
    rows = [row(64, 64, seed=i, width=512, dtype=dtype) for i in range(3)]
    rows[1].outputs["embeds"][5] *= 1e4  # a scale of each token: one does not coarsen the others
    rows[2].outputs["embeds"][7] = 0
    entries = [pack_text("float8", r) for r in rows]
    assert all(entry["embeds"].dtype == FLOAT8 for entry in entries)
    made = unpack_text(stack_text(entries), dtype)
    for i, (r, entry) in enumerate(zip(rows, entries, strict=True)):
        names = ("embeds", "pooled")
        wide = [
            torch.cat([t[n].flatten().double() for n in names])
            for t in (r.outputs, {n: made[n][i] for n in names})
        ]
        error = float((wide[0] - wide[1]).norm() / wide[0].norm())
        assert error == pytest.approx(float(entry["error"]), rel=1e-4)
        assert 0.01 < error < 0.04
        tokens = r.outputs["embeds"].float(), made["embeds"][i].float()
        worst = (tokens[0] - tokens[1]).norm(dim=1) / tokens[0].norm(dim=1).clamp_min(1e-30)
        assert worst.max() < 0.04
        assert made["embeds"].dtype == dtype
    assert made["embeds"][2, 7].eq(0).all()


@pytest.mark.parametrize("size", [1e-38, 1e-45, 1.0, 3e38])
def test_float8_of_any_size_is_finite(size):
    tensor = torch.tensor([[size, -size, 0.0, size / 3]])
    given = Row(torch.zeros(1), torch.ones(1, dtype=torch.int64), 0, {"embeds": tensor})
    made = there_and_back("float8", [given], torch.float32)["embeds"][0]
    assert made.isfinite().all()
    assert torch.allclose(made, tensor, rtol=0.07, atol=1e-37)


def test_ids_come_back():
    rows = [row(6, 2, seed=1), row(6, 6, seed=2)]
    made = there_and_back("ids", rows)
    assert torch.equal(made["ids"], torch.stack([r.ids for r in rows]))
    assert torch.equal(made["mask"], torch.stack([r.mask for r in rows]))
    assert sorted(made) == ["cut", "ids", "mask"]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_bytes_are_those_that_are_written(policy, dtype, tmp_path):
    made = row(300, 60, width=96, dtype=dtype)
    entry = pack_text(policy, made)
    foretold = text_bytes(
        policy, {"embeds": (300, 96), "pooled": (4,)}, dtype=dtype, tokens=60, max_length=300
    )
    assert foretold == sum(tensor.nbytes for tensor in entry.values())
    data = entry_bytes(entry, {})
    assert foretold < len(data) < foretold + 600
    store = EntryStore(tmp_path)
    for i in range(20):
        store.write(f"{i:032x}", entry, {"caption": "a red ring"}, f"caption {i}")
    entries, size = store.sizes()
    assert entries == 20
    assert 20 * foretold < size <= 20 * (foretold + 3072)
    store.close()


def test_bytes_of_models():
    t5 = {"embeds": (512, 4096)}
    mask = 512 + 4  # the mask, uint8, and how much was cut
    assert text_bytes("full", t5) == 4_194_304 + mask
    assert text_bytes("full", t5, dtype=torch.float32) == 2 * 4_194_304 + mask
    assert text_bytes("full", {"embeds": (256, 4096)}) == 2_097_152 + 256 + 4
    assert text_bytes("full", {"pooled": (768,)}) == 1_536 + 4
    assert text_bytes("full", {"embeds": (512, 15360)}) == 15_728_640 + mask
    assert text_bytes("full", {"embeds": (300, 4096)}) == 2_457_600 + 300 + 4
    sdxl = {"embeds": (77, 2048), "pooled": (1280,)}
    assert text_bytes("full", sdxl) == pytest.approx(318_000, rel=0.01)
    sd3 = {"embeds": (333, 4096), "pooled": (2048,)}
    assert text_bytes("full", sd3) == pytest.approx(2.73e6, rel=0.01)
    assert text_bytes("trimmed", t5, tokens=60) == 491_520 + mask
    assert text_bytes("float8", t5) == 2_097_152 + 4 * 512 + 4 + mask
    assert text_bytes("ids", t5) == 5 * 512 + 4
    assert text_bytes("ids", {"pooled": (768,)}, max_length=77) == 5 * 77 + 4
    with pytest.raises(ValueError, match="give tokens"):
        text_bytes("trimmed", t5)
    with pytest.raises(ValueError, match="give max_length"):
        text_bytes("ids", {"pooled": (768,)})


def test_trimming_that_would_lose_something_is_refused():
    with pytest.raises(ValueError, match="lose something: with mask='ignored' the encoder attends"):
        check_bytes("trimmed", "ignored")
    with pytest.raises(ValueError, match="lose something: with mask='encoder' what takes"):
        check_bytes("trimmed", "encoder")
    for mask in ("both", "zeroed", None):
        check_bytes("trimmed", mask)
    for policy in ("full", "float8", "ids"):
        check_bytes(policy, "ignored")
    with pytest.raises(ValueError, match="bytes must be one of .*'ids'.*, got 'small'"):
        check_bytes("small", None)
