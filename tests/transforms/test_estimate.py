"""Gigabytes and hours before the first step."""

import pytest
import torch

from penstock.transforms import Estimates, estimate, latent_bytes, text_bytes


def test_bytes_of_latents():
    assert latent_bytes(1024, 1024, keep="mean") == 524_288
    assert latent_bytes(1024, 1024) == 1_048_576
    assert latent_bytes(1024, 1024, keep="mean", dtype=torch.float32) == 1_048_576
    assert latent_bytes(1024, 1024, channels=128, factor=16, keep="mean") == 1_048_576
    assert latent_bytes(1024, 1024, channels=4, keep="mean") == 131_072
    assert latent_bytes(512, 512, channels=4, keep="mean") == 32_768
    assert latent_bytes(832, 1216, keep="mean") == 2 * 16 * 104 * 152


def test_a_million_images_of_flux():
    t5 = estimate("t5", 1_000_000, text_bytes("full", {"embeds": (512, 4096)}))
    latents = estimate("latents", 1_000_000, latent_bytes(1024, 1024, keep="mean"))
    both = Estimates([t5, latents])
    assert t5.bytes == pytest.approx(4.2e12, rel=0.002)
    assert latents.bytes == pytest.approx(0.52e12, rel=0.01)
    assert both.bytes == t5.bytes + latents.bytes
    assert both.hours is None
    assert str(both) == (
        "t5: 1,000,000 entries of 4.19 MB, 4.19 TB in all; how long is not measured yet\n"
        "latents: 1,000,000 entries of 524 kB, 524 GB in all; how long is not measured yet\n"
        "together: 4.72 TB; how long is not measured yet"
    )
    ids = estimate("t5", 1_000_000, text_bytes("ids", {"embeds": (512, 4096)}))
    assert t5.bytes / ids.bytes > 1500


def test_hours():
    one = estimate("latents", 90_000, 1000, there=18_000, measured=(8, 2.0), processes=4)
    assert one.missing == 72_000
    assert one.more_bytes == 72_000_000
    assert one.hours == pytest.approx(72_000 * 0.25 / 4 / 3600)
    assert str(one) == (
        "latents: 90,000 entries of 1 kB, 90 MB in all; 18,000 are there, 72 MB to be written; "
        "75 minutes at 16 entries/s of 4 processes"
    )
    two = estimate("t5", 3600, 2.5, measured=(1, 10.0))
    both = Estimates([one, two], free=72_009_000)
    assert both.hours == pytest.approx(11.25)
    assert both.fits
    assert str(both).endswith("together: 90 MB; 11.2 hours")
    small = Estimates([one, two], free=72_008_999)
    assert not small.fits
    assert str(small).endswith("this does not fit: 72 MB are to be written, 72 MB are free")


def test_nothing_to_do_and_nothing_at_all():
    done = estimate("t5", 10, 5e9, there=10, measured=(1, 3.0))
    assert done.hours == 0
    assert str(done) == "t5: 10 entries of 5 GB, 50 GB in all; nothing to do"
    assert str(Estimates([done], free=0)) == str(done)
    assert estimate("t5", 0, 10).hours == 0
    assert str(estimate("t5", 3, 10, measured=(1, 0.0))).endswith("30 bytes in all; nothing to do")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(36, "36 seconds"), (200, "3.33 minutes"), (7200, "2 hours"), (864_000, "10 days")],
)
def test_times_in_words(seconds, words):
    assert f"; {words} at" in str(estimate("t5", 10, 1, measured=(10, seconds)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"there": 11}, "of 10 entries 11 cannot be there"),
        ({"there": -1}, "of 10 entries -1 cannot be there"),
        ({"processes": 0}, "0 processes cannot be"),
        ({"entry_bytes": -1}, "-1 bytes an entry"),
        ({"measured": (0, 1.0)}, "0 entries in 1.0 seconds is no measurement"),
    ],
)
def test_bad_numbers_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        estimate(**{"name": "t5", "entries": 10, "entry_bytes": 1, **arguments})
