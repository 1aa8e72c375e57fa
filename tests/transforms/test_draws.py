import zlib

import numpy as np
import pytest

from penstock.pipes.draws import GOLDEN, MASK, mix64
from penstock.transforms.draws import check_chance, draw_key, uniforms

KNOWN = [0.02952773150047916, 0.6418376849832247]


def test_the_same_for_the_same_key_purpose_and_place():
    drawn = uniforms(3, "t5.drop", 1000)
    assert drawn.dtype == np.float64
    assert np.array_equal(uniforms(3, "t5.drop", 1000), drawn)
    assert np.array_equal(uniforms(3, "t5.drop", 10), drawn[:10])
    assert not set(uniforms(4, "t5.drop", 1000)) & set(drawn)
    assert not set(uniforms(3, "clip.drop", 1000)) & set(drawn)
    assert uniforms(3, "clip.drop", 0).shape == (0,)


def test_they_are_the_pipes_hash():
    start = (5 ^ zlib.crc32(b"clip.drop") * GOLDEN) & MASK
    hashes = [mix64(mix64(start) + n * GOLDEN) for n in range(1, 50)]
    assert uniforms(5, "clip.drop", 49).tolist() == [(h >> 11) * 2.0**-53 for h in hashes]
    # A change would change every run that was made with them.
    assert uniforms(2**64 - 1, "clip.drop", 2).tolist() == KNOWN


def test_they_are_uniform_and_apart():
    drawn = np.concatenate([uniforms(key, "clip.drop", 100) for key in range(1000)])
    assert drawn.min() >= 0
    assert drawn.max() < 1
    counts = np.histogram(drawn, 20, (0, 1))[0]
    assert ((counts - 5000) ** 2 / 5000).sum() < 50  # chi2 of 19: 50 has p = 1e-4
    other = np.concatenate([uniforms(key, "t5.drop", 100) for key in range(1000)])
    assert abs(np.corrcoef(drawn, other)[0, 1]) < 0.02


def test_the_key_is_the_batchs_own():
    keys = [draw_key(np.random.Generator(np.random.Philox(key=k))) for k in (1, 2, 1)]
    assert keys[0] == keys[2] != keys[1]
    assert all(0 <= key < 2**64 for key in keys)
    with pytest.raises(ValueError, match=r"called by \.transform\(\)"):
        draw_key(None)


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_chances_are_probabilities(p):
    with pytest.raises(ValueError, match="drop must be a probability from 0 to 1"):
        check_chance("drop", p)
