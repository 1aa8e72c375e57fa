"""Caches end to end: shards, a loader, a VAE on the device; what is recomputed, and what is not."""

import copy
import functools
import io
import os
import shutil
import tarfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from penstock.pipes import DataError, EntryStore, ShardLister, decode_image
from penstock.pipes import image_hashes as image_hashes_module
from penstock.recipes.tiny_flux import tiny_flux_vae
from penstock.recipes.tiny_tokenizers import tiny_clip_tokenizer, tiny_t5_tokenizer
from penstock.transforms import FluxTransform, LatentCache, LatentEncoder, draw_latents
from penstock.transforms.latent_encoder import LatentEncoder as Encoder

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture(scope="module")
def vae() -> Any:
    return tiny_flux_vae()


@pytest.fixture(autouse=True)
def _settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust files at once that were written a moment ago."""
    monkeypatch.setattr(image_hashes_module, "SETTLED", 0)


def pixels(height: int, width: int, number: int, channels: int = 3) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    parts = [x * 255 // width, y * 255 // height, (x + y + number * 40) % 256, x * 255 // width]
    return np.stack(parts[:channels], 2).astype(np.uint8)


def encoded(array: np.ndarray, form: str, **save: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, form, **save)
    return file.getvalue()


@functools.cache  # a profile holds the time at which it was made
def swapped_profile() -> bytes:
    """An ICC profile under which pixels are other colours than in sRGB."""
    profile = ImageCms.createProfile("sRGB")
    data = bytearray(ImageCms.ImageCmsProfile(profile).tobytes())
    count = int.from_bytes(data[128:132], "big")
    entries = {bytes(data[132 + 12 * i : 136 + 12 * i]): 136 + 12 * i for i in range(count)}
    red, blue = entries[b"rXYZ"], entries[b"bXYZ"]
    data[red : red + 8], data[blue : blue + 8] = data[blue : blue + 8], data[red : red + 8]
    return bytes(data)


def images() -> dict[str, tuple[str, bytes]]:
    """Six files of all kinds that matter, none of the shape of its bucket but one."""
    return {
        "0": ("jpg", encoded(pixels(80, 120, 0), "JPEG", quality=90)),
        "1": ("jpg", encoded(pixels(120, 80, 1), "JPEG", quality=90)),
        "2": ("jpg", encoded(pixels(90, 130, 2), "JPEG", icc_profile=swapped_profile())),
        "3": ("png", encoded(pixels(70, 100, 3, 4), "PNG")),
        "4": ("png", encoded(pixels(100, 100, 4), "PNG")),
        "5": ("jpg", encoded(pixels(64, 64, 5), "JPEG", quality=90)),
    }


def write(path: Path, files: dict[str, tuple[str, bytes]], captions: str = "") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with tarfile.open(part, "w") as tar:
        for key, (ext, data) in files.items():
            for name, body in ((ext, data), ("txt", f"image {key}{captions}".encode())):
                member = tarfile.TarInfo(f"{key}.{name}")
                member.size = len(body)
                tar.addfile(member, io.BytesIO(body))
    os.replace(part, path)
    return str(path)


def build(
    url: str,
    cache: LatentCache | None,
    *,
    resolution: int = 64,
    step: int = 16,
    seed: int = 0,
    repeat: bool = False,
    **how: Any,
) -> Any:
    pipe = ShardLister(url, seed=seed, shuffle=False).read_tar()
    pipe = pipe.bucket_by_aspect_ratio(resolution, 2, step=step).lanes(1, repeat=repeat)
    return pipe.decode(**how) if cache is None else pipe.decode(latents=cache, **how)


def missing(pipe: Any) -> set[str]:
    """Return the keys of the samples that the cache does not have."""
    keys: set[str] = set()
    for batch in pipe.loader():
        records = batch["__latents__"]
        keys |= {k for k, r in zip(batch["__key__"], records, strict=True) if not r["hit"]}
        assert ("image" in batch) == any(not record["hit"] for record in records)
    return keys


def by_key(batches: Any, field: str = "latents") -> dict[str, torch.Tensor]:
    return {k: v for b in batches for k, v in zip(b["__key__"], b[field], strict=True)}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def filled(
    url: str, folder: Path, vae: Any, how: dict[str, Any] | None = None, **settings: Any
) -> LatentCache:
    cache = LatentCache(EntryStore(folder), LatentEncoder(vae, batch_size=1, **settings))
    for _ in build(url, cache, **(how or {})).loader().on_device("cpu", cache.fill):
        pass
    return cache


@pytest.fixture
def url(tmp_path: Path) -> str:
    return write(tmp_path / "data" / "00000.tar", images())


# -- cached equals uncached -----------------------------------------------------------------------


@pytest.mark.parametrize("keep", ["posterior", "mean"])
@pytest.mark.parametrize("draw", [True, False])
def test_the_second_epoch_decodes_and_encodes_nothing_and_is_the_same(
    url: str, tmp_path: Path, vae: Any, keep: Any, draw: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = LatentEncoder(vae, keep=keep)

    def plain(batch: dict[str, Any], rng: torch.Generator) -> dict[str, Any]:
        entries = encoder(batch["image"])
        entry = {k: torch.stack([e[k] for e in entries]) for k in entries[0]}
        return {**batch, "latents": draw_latents(entry, rng, draw)}

    uncached = by_key(build(url, None).loader().on_device("cpu", plain))
    cache = LatentCache(EntryStore(tmp_path / "cache"), encoder, draw=draw)
    first = list(build(url, cache).loader().on_device("cpu", cache.fill))
    assert equal(by_key(first), uncached)
    assert (cache.hits, cache.misses) == (0, 6)
    assert cache.seconds > 0
    assert all("image" not in batch for batch in first)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a file was read, or an image decoded")

    monkeypatch.setattr("penstock.pipes.decode.decode", never)
    monkeypatch.setattr("penstock.pipes.image_hashes.read_value", never)
    monkeypatch.setattr(Encoder, "__call__", never)
    again = list(build(url, cache).loader().on_device("cpu", cache.fill))
    assert equal(by_key(again), uncached)
    assert (cache.hits, cache.misses) == (6, 6)
    fields = ("original_size", "crop_top_left", "target_size", "flipped", "__ref__")
    for one, other in zip(first, again, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in fields)
        assert one["caption"] == other["caption"]
    # Another process, without the VAE.
    bare = LatentCache(EntryStore(tmp_path / "cache"), None, draw=draw)
    assert bare.digest == cache.digest
    assert equal(by_key(build(url, bare).loader().on_device("cpu", bare.fill)), uncached)


def test_draws_are_fresh_at_each_visit_and_the_same_again(
    url: str, tmp_path: Path, vae: Any
) -> None:
    cache = filled(url, tmp_path / "cache", vae)
    pipe = build(url, cache, repeat=True)
    loader = pipe.loader(epoch_batches=8).on_device("cpu", cache.fill)
    visits: dict[str, list[torch.Tensor]] = {}
    for batch in loader:
        for key, latents in zip(batch["__key__"], batch["latents"], strict=True):
            visits.setdefault(key, []).append(latents)
    several = [found for found in visits.values() if len(found) > 1]
    assert several
    assert all(not torch.equal(found[0], found[1]) for found in several)
    again = by_key([next(iter(pipe.loader(epoch_batches=8).on_device("cpu", cache.fill)))])
    assert all(torch.equal(value, visits[key][0]) for key, value in again.items())


def test_a_trainers_transform_changes_nothing(url: str, tmp_path: Path, vae: Any) -> None:
    tokenizers = tiny_clip_tokenizer(), tiny_t5_tokenizer()
    half = copy.deepcopy(vae).to(torch.bfloat16)
    found = []
    for n, dtype in enumerate((None, torch.float32, torch.bfloat16)):
        cache = LatentCache(EntryStore(tmp_path / str(n)), LatentEncoder(half))
        pipe = build(url, cache).transform(FluxTransform(*tokenizers, dtype=dtype))
        for _ in range(2):
            batches = list(pipe.loader().on_device("cpu", cache.fill))
            assert all(batch["t5_tokens"].shape == (2, 512) for batch in batches[:2])
            found.append(by_key(batches))
        assert cache.misses == 6
    assert all(equal(one, found[0]) for one in found)


def test_pixels_that_were_changed_or_rounded_are_refused(
    url: str, tmp_path: Path, vae: Any
) -> None:
    def brighter(sample: dict[str, Any]) -> dict[str, Any]:
        sample["image"] += 1
        return sample

    def mirrored(batch: dict[str, Any]) -> dict[str, Any]:
        return {**batch, "image": batch["image"].flip(-1)}

    cache = LatentCache(EntryStore(tmp_path / "cache"), LatentEncoder(vae))
    for pipe in (build(url, cache).map(brighter), build(url, cache).transform(mirrored)):
        with pytest.raises(ValueError, match=r"the pixels of 00000.tar/\d were changed between"):
            next(iter(pipe.loader().on_device("cpu", cache.fill)))
    flux = FluxTransform(tiny_clip_tokenizer(), tiny_t5_tokenizer(), dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="image is torch.bfloat16, and the VAE computes in"):
        next(iter(build(url, cache).transform(flux).loader().on_device("cpu", cache.fill)))
    assert cache.store.sizes()[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("hold", [None, "memory"])
def test_workers_look_up_and_a_resume_goes_on(
    shards: str, tmp_path: Path, vae: Any, hold: Any
) -> None:
    def loader(cache: LatentCache, workers: int) -> Any:
        pipe = ShardLister(shards, seed=3).read_tar().shuffle(20)
        pipe = pipe.bucket_by_aspect_ratio(48, 4, step=16)
        pipe = pipe.decode(latents=cache, keep_in_memory=1_000_000)
        return pipe.loader(workers, epoch_batches=10).on_device("cpu", cache.fill)

    def made(name: str) -> LatentCache:
        return LatentCache(EntryStore(tmp_path / name), LatentEncoder(vae, batch_size=1), hold=hold)

    plain = made("one")
    expected = [(b["__key__"], b["latents"]) for b in loader(plain, 0)]

    cache = made("two")
    found, state = [], None
    running = loader(cache, 2)
    for batch in running:
        found.append((batch["__key__"], batch["latents"]))
        if len(found) == 5:
            state = running.state_dict()
            break
    running.close()
    seen = cache.misses
    assert seen > 0
    again = made("two")
    running = loader(again, 2)
    running.load_state_dict(state)
    found += [(batch["__key__"], batch["latents"]) for batch in running]
    running.close()
    assert len(found) == len(expected)
    for (keys, one), (others, other) in zip(found, expected, strict=True):
        assert keys == others
        assert torch.equal(one, other)
    assert again.misses + seen == plain.misses == plain.store.sizes()[0]


# -- what is recomputed ---------------------------------------------------------------------------


def ulp(vae: Any, name: str) -> Any:
    """Return the VAE with one weight moved by the smallest step."""
    other = copy.deepcopy(vae)
    with torch.no_grad():
        weight = other.get_parameter(name).view(-1)
        weight[0] = torch.nextafter(weight[0], torch.tensor(9.0))
    return other


ALL = frozenset("012345")

DECODES: list[tuple[str, dict[str, Any], set[str] | None, str]] = [
    ("nothing", {}, set(), ""),
    ("resolution", {"resolution": 96}, None, "the size in pixels (size)"),
    ("bucket step", {"step": 32}, None, "the size in pixels (size)"),
    ("crop and seed", {"crop": "random", "seed": 5}, None, "the region that is cut out (crop)"),
    ("resized crop", {"crop": "resized"}, None, "the region that is cut out (crop)"),
    ("variants", {"crop": "random", "variants": 1}, None, "the region that is cut out (crop)"),
    ("flip", {"flip": 1.0}, set(ALL), "whether it is mirrored (flip) was False, and is True"),
    ("matte", {"matte": (0, 9, 0)}, {"3"}, "(matte) was [255, 255, 255], and is [0, 9, 0]"),
    ("icc", {"icc": False}, {"2"}, "whether colour profiles are converted (icc) was True"),
    ("seed", {"seed": 9}, set(), ""),
    ("memory", {"keep_in_memory": 1 << 20}, set(), ""),
    ("caption", {"caption": "txt", "caption_lines": True}, set(), ""),
]


@pytest.mark.parametrize(("name", "how", "expected", "words"), DECODES)
def test_a_change_of_decoding_recomputes_what_has_other_pixels(
    url: str, tmp_path: Path, vae: Any, name: str, how: Any, expected: Any, words: str
) -> None:
    was = by_key(build(url, None).loader(), "image")
    now = by_key(build(url, None, **how).loader(), "image")
    changed = {k for k in was if not torch.equal(was[k], now[k])}
    assert expected in (None, changed)
    assert changed or expected is not None
    cache = filled(url, tmp_path / "cache", vae)
    check(build(url, cache, **how), cache, changed, words)
    fresh = filled(url, tmp_path / "fresh", vae, how)
    one, other = (
        by_key(build(url, c, **how).loader().on_device("cpu", c.fill)) for c in (cache, fresh)
    )
    assert equal(one, other)


def check(pipe: Any, cache: LatentCache, changed: set[str], words: str) -> None:
    """Check that these samples alone are recomputed, and that the cache says why."""
    assert missing(pipe) == changed
    for sample in pipe.preview(6):
        said = cache.explain(sample)
        source = f"00000.tar/{sample['__key__']}: "
        assert said.startswith(source)
        if sample["__key__"] in changed:
            assert words in said
        else:
            assert said == source + "cached"
    before = cache.misses
    for _ in pipe.loader().on_device("cpu", cache.fill):
        pass
    assert cache.misses - before == len(changed)
    assert missing(pipe) == set()


ENCODERS: list[tuple[str, Any, dict[str, Any], str]] = [
    ("nothing", lambda vae: copy.deepcopy(vae), {}, ""),
    ("weights", lambda vae: ulp(vae, "encoder.conv_in.weight"), {}, "weights (encoder.weights)"),
    ("decoder's weights", lambda vae: ulp(vae, "decoder.conv_in.weight"), {}, ""),
    ("type", lambda vae: copy.deepcopy(vae).bfloat16(), {}, "was float32, and is bfloat16"),
    ("stored", copy.deepcopy, {"dtype": torch.float32}, "was bfloat16, and is float32"),
    ("keep", copy.deepcopy, {"keep": "mean"}, "(encoder.keep) was posterior, and is mean"),
    ("batch size", copy.deepcopy, {"batch_size": 3}, ""),
]


@pytest.mark.parametrize(("name", "change", "settings", "words"), ENCODERS)
def test_a_change_of_the_encoder_recomputes_all(
    url: str, tmp_path: Path, vae: Any, name: str, change: Any, settings: Any, words: str
) -> None:
    filled(url, tmp_path / "cache", vae)
    other = LatentEncoder(change(vae), **settings)
    cache = LatentCache(EntryStore(tmp_path / "cache"), other)
    check(build(url, cache), cache, set(ALL) if words else set(), words)
    if words:  # two encoders' entries lie there now, and nobody says whose are wanted
        with pytest.raises(ValueError, match="has entries of 2 encoders"):
            LatentCache(EntryStore(tmp_path / "cache"), None)
        check(build(url, cache), cache, set(), "")


def test_another_scale_recomputes_nothing(url: str, tmp_path: Path, vae: Any) -> None:
    filled(url, tmp_path / "cache", vae)
    other = copy.deepcopy(vae)
    other.register_to_config(scaling_factor=0.5, shift_factor=0.25)
    cache = LatentCache(EntryStore(tmp_path / "cache"), LatentEncoder(other))
    assert missing(build(url, cache)) == set()


@pytest.mark.parametrize(
    ("constant", "value", "words"),
    [
        ("DECODER_VERSION", 2, "penstock's decoder (decoder) was 1, and is 2"),
        ("INTERPOLATION", "LANCZOS", "(interpolation) was BICUBIC, and is LANCZOS"),
    ],
)
def test_another_decoder_recomputes_all(
    url: str,
    tmp_path: Path,
    vae: Any,
    constant: str,
    value: Any,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = filled(url, tmp_path / "cache", vae)
    monkeypatch.setattr(decode_image, constant, value)
    check(build(url, cache), cache, set(ALL), words)


def test_one_image_of_many(url: str, tmp_path: Path, vae: Any) -> None:
    cache = filled(url, tmp_path / "cache", vae)
    files = images()
    files["4"] = ("png", encoded(pixels(100, 100, 7), "PNG"))
    files["6"] = ("jpg", encoded(pixels(64, 64, 9), "JPEG"))
    write(Path(url), files)
    pipe = build(url, cache)
    assert missing(pipe) == {"4", "6"}
    said = {s["__key__"]: cache.explain(s) for s in pipe.preview(7)}
    assert "the image's bytes (image) was" in said["4"]
    assert said["6"] == "00000.tar/6: not seen before"
    assert said["5"].endswith("cached")
    batch = next(iter(pipe.loader()))
    assert cache.explain(batch).count("\n") == 1


def test_what_does_not_count_recomputes_nothing(url: str, tmp_path: Path, vae: Any) -> None:
    cache = filled(url, tmp_path / "cache", vae)
    write(Path(url), images(), captions=", told otherwise")
    assert missing(build(url, cache)) == set()
    moved = write(tmp_path / "elsewhere" / "00000.tar", dict(reversed(images().items())))
    assert missing(build(moved, cache)) == set()
    shutil.move(tmp_path / "cache", tmp_path / "moved")
    there = LatentCache(EntryStore(tmp_path / "moved"), LatentEncoder(vae))
    assert missing(build(moved, there)) == set()
    # Names are of contents: another shard's same image is the same entry.
    other = write(tmp_path / "data" / "00001.tar", images())
    assert missing(build(other, there)) == set()


def test_a_file_changed_with_its_size_and_time_kept_is_seen(
    url: str, tmp_path: Path, vae: Any
) -> None:
    cache = filled(url, tmp_path / "cache", vae)
    stat = os.stat(url)
    with open(url, "r+b") as file:
        data = file.read()
        at = data.index(b"\xff\xda") + 200  # in the pixels of the first JPEG
        file.seek(at)
        file.write(bytes([data[at] ^ 1]))
    os.utime(url, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert os.stat(url).st_mtime_ns == stat.st_mtime_ns
    assert missing(build(url, cache)) == {"0"}


def test_a_missing_entry_without_a_vae_is_an_error_that_says_why(
    url: str, tmp_path: Path, vae: Any
) -> None:
    filled(url, tmp_path / "cache", vae)
    bare = LatentCache(EntryStore(tmp_path / "cache"), None)
    pipe = build(url, bare, flip=1.0)
    with pytest.raises(ValueError, match=r"no encoder to make its entry: .*whether it is mirrored"):
        next(iter(pipe.loader().on_device("cpu", bare.fill)))
    with pytest.raises(ValueError, match="tells of no encoder"):
        LatentCache(EntryStore(tmp_path / "empty"), None)


def test_variants_of_crops_are_entries_of_their_own(url: str, tmp_path: Path, vae: Any) -> None:
    cache = LatentCache(EntryStore(tmp_path / "cache"), LatentEncoder(vae, batch_size=1))
    how = {"crop": "random", "variants": 2, "flip": 0.5}
    pipe = build(url, cache, **how)
    for variant in (0, 1):
        for flip in (False, True):
            fixed = pipe.at_variant(variant, flip)
            for _ in fixed.loader().on_device("cpu", cache.fill):
                pass
    assert cache.misses == 6 * 4 - 2 * 2  # of two images nothing is cut off
    for seed in (0, 1, 2):  # whatever is drawn now, and however the run begins, is there
        assert missing(build(url, cache, seed=seed, **how)) == set()
    third = build(url, cache, **{**how, "variants": 3}).at_variant(2, False)
    assert missing(third) == set("01234")


# -- without the originals ------------------------------------------------------------------------


@pytest.mark.parametrize("pick", ["first", "random"])
def test_a_cache_trains_without_the_originals(
    url: str, tmp_path: Path, vae: Any, pick: Any
) -> None:
    how = {"caption": "txt", "caption_lines": True, "caption_pick": pick}
    write(Path(url), images(), captions="\nanother")
    cache = filled(url, tmp_path / "cache", vae, how)
    fields = ("latents", "original_size", "crop_top_left", "target_size", "flipped")
    batches = list(build(url, cache, **how).loader().on_device("cpu", noiseless(cache)))
    expected = {name: by_key(batches, name) for name in fields}
    cache.store.close()  # type: ignore[attr-defined]
    os.unlink(url)
    pipe = ShardLister(str(tmp_path / "cache" / "*.tar"), shuffle=False).read_tar()
    pipe = pipe.bucket_by_aspect_ratio(64, 2, step=16).lanes(1, repeat=False)
    pipe = pipe.decode(caption="json.caption", caption_pick=pick)
    bare = LatentCache(EntryStore(tmp_path / "cache"), None, draw=False)
    batches = list(pipe.loader().on_device("cpu", bare.fill))
    keys = [told["key"] for batch in batches for told in batch["json"]]
    assert sorted(keys) == sorted(ALL)
    for name in fields:
        found = dict(zip(keys, (v for b in batches for v in b[name]), strict=True))
        assert equal(found, expected[name]), name
    said = dict(zip(keys, (caption for b in batches for caption in b["caption"]), strict=True))
    assert all(said[key] in (f"image {key}", "another") for key in keys)
    assert pick == "random" or all(said[key] == f"image {key}" for key in keys)
    other = LatentCache(EntryStore(tmp_path / "other"), LatentEncoder(vae, keep="mean"))
    with pytest.raises(ValueError, match=r"is not this encoder's: .*\(encoder.keep\)"):
        list(pipe.loader().on_device("cpu", other.fill))


def noiseless(cache: LatentCache) -> Any:
    """Return the cache's fill, with the posterior's mean for a draw."""
    bare = LatentCache(cache.store, cache.encoder, draw=False)
    return bare.fill


# -- odd batches ----------------------------------------------------------------------------------


def test_images_of_their_own_sizes(tmp_path: Path, vae: Any) -> None:
    sizes = [(32, 48), (48, 32), (32, 48), (64, 64)]
    files = {str(i): ("png", encoded(pixels(*size, i), "PNG")) for i, size in enumerate(sizes)}
    url = write(tmp_path / "00000.tar", files)
    cache = LatentCache(EntryStore(tmp_path / "cache"), LatentEncoder(vae, batch_size=1))
    pipe = ShardLister(url, shuffle=False).read_tar().batch(2).lanes(1, repeat=False)
    found = []
    for _ in range(2):
        loader = pipe.decode(latents=cache).loader().on_device("cpu", cache.fill)
        found.append(by_key(loader))
    assert [v.shape for v in found[0].values()] == [(16, h // 8, w // 8) for h, w in sizes]
    assert equal(*found)
    assert cache.misses == 4
    # One is gone: the others' pixels are not needed.
    files["1"] = ("png", encoded(pixels(48, 32, 8), "PNG"))
    write(Path(url), files)
    for shape in [(2, 3, 32, 48), (2, 3, 40, 40)]:
        batch = next(iter(pipe.decode(latents=cache, size=shape[2:]).loader()))
        assert batch["image"].shape == shape
    mixed, whole = pipe.decode(latents=cache).loader()
    assert [image.shape for image in mixed["image"]] == [(3, 32, 48), (3, 48, 32)]
    assert not mixed["image"][0].any()
    assert "image" not in whole
    loader = pipe.decode(latents=cache).loader().on_device("cpu", cache.fill)
    one = by_key(loader)
    assert torch.equal(one["0"], found[0]["0"])
    assert not torch.equal(one["1"], found[0]["1"])
    assert cache.misses == 5


def test_a_bad_sample_is_passed_over_and_its_place_filled(tmp_path: Path, vae: Any) -> None:
    files = images()
    files["1"] = ("jpg", files["1"][1][:400])
    url = write(tmp_path / "00000.tar", files)
    cache = LatentCache(EntryStore(tmp_path / "cache"), LatentEncoder(vae, batch_size=1))
    pipe = ShardLister(url, shuffle=False).read_tar().batch(3).lanes(1, repeat=False)
    pipe = pipe.decode(size=32, latents=cache)
    with pytest.raises(DataError, match="field 'jpg'"):
        list(pipe.loader())
    found = []
    for _ in range(2):
        loader = pipe.loader(on_error="skip", quarantine=tmp_path / "quarantine.jsonl")
        batches = list(loader.on_device("cpu", cache.fill))
        assert batches[0]["__filled__"] == [1]
        assert batches[0]["__key__"] == ["0", "2", "2"]
        found.append([batch["latents"] for batch in batches])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
    assert cache.misses == 5


def test_an_image_that_comes_twice_is_encoded_once(tmp_path: Path, vae: Any) -> None:
    one = images()["0"]
    url = write(tmp_path / "00000.tar", {"a": one, "b": one, "c": one})
    cache = LatentCache(EntryStore(tmp_path / "cache"), LatentEncoder(vae), draw=False)
    pipe = ShardLister(url).read_tar().batch(3).decode(size=32, latents=cache)
    latents = next(iter(pipe.loader().on_device("cpu", cache.fill)))["latents"]
    assert torch.equal(latents[0], latents[1])
    assert (cache.misses, cache.hits, cache.store.sizes()[0]) == (1, 2, 1)


def test_rows_that_were_found_are_zeros_beside_others(url: str, tmp_path: Path, vae: Any) -> None:
    cache = filled(url, tmp_path / "cache", vae)
    files = images()
    files["0"] = ("jpg", encoded(pixels(80, 120, 8), "JPEG"))
    write(Path(url), files)
    mixed = [b for b in build(url, cache).loader() if "image" in b]
    assert len(mixed) == 1
    batch = mixed[0]
    assert isinstance(batch["latents"], list)
    for key, image, entry in zip(batch["__key__"], batch["image"], batch["latents"], strict=True):
        assert (entry is None) == (key == "0")
        assert bool(image.any()) == (key == "0")
    assert len(batch["__key__"]) == 2


def test_masks_are_refused(url: str, tmp_path: Path, vae: Any) -> None:
    cache = LatentCache(EntryStore(tmp_path / "cache"), LatentEncoder(vae))
    with pytest.raises(ValueError, match='alpha="mask" gives masks'):
        build(url, cache, alpha="mask")


# -- holding --------------------------------------------------------------------------------------


@pytest.mark.parametrize("hold", ["memory", "device"])
def test_held_entries_are_read_once_and_sent_by_no_worker(
    url: str, tmp_path: Path, vae: Any, hold: Any
) -> None:
    plain = filled(url, tmp_path / "cache", vae)
    expected = by_key(build(url, plain).loader().on_device("cpu", plain.fill))
    store = EntryStore(tmp_path / "cache")
    reads: list[str] = []
    read = store.read
    store.read = lambda name: reads.append(name) or read(name)  # type: ignore[method-assign]
    cache = LatentCache(store, LatentEncoder(vae), hold=hold)
    for _ in range(3):
        pipe = build(url, cache)
        assert all(set(batch["latents"]) == {None} for batch in pipe.loader())
        assert equal(by_key(pipe.loader().on_device("cpu", cache.fill)), expected)
    assert len(reads) == 6
    entries = [read(name) for name in store.names()]
    assert cache.held.size == sum(v.nbytes for e in entries if e for v in e.values()) > 0
    assert cache.misses == 0


def test_over_the_limit_nothing_changes_but_a_warning(url: str, tmp_path: Path, vae: Any) -> None:
    plain = filled(url, tmp_path / "cache", vae)
    expected = by_key(build(url, plain).loader().on_device("cpu", plain.fill))
    cache = LatentCache(
        EntryStore(tmp_path / "cache"), LatentEncoder(vae), hold="memory", limit=10_000
    )
    with pytest.warns(UserWarning, match="the entries take more than limit=10000 bytes: 2 of them"):
        found = by_key(build(url, cache).loader().on_device("cpu", cache.fill))
    assert equal(found, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it was said
        for batch in build(url, cache).loader():
            assert isinstance(batch["latents"], dict)  # workers send tensors


def test_an_entry_that_was_pruned_under_the_run_is_an_error(
    url: str, tmp_path: Path, vae: Any
) -> None:
    filled(url, tmp_path / "cache", vae)
    cache = LatentCache(EntryStore(tmp_path / "cache"), LatentEncoder(vae), hold="memory")
    batch = next(iter(build(url, cache).loader()))
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(ValueError, match="the cache was pruned under the run"):
        cache.fill(batch, torch.Generator())
