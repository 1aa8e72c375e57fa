"""What a graph draws is what is listed, at the listed weights; tests that see a bias of 5 %."""

import io
import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from penstock.pipes import (
    CaptionDropper,
    CaptionShuffler,
    DataError,
    Decoder,
    ShardLister,
    caption_variants,
    count_image_variants,
    image_variants,
    verify_resume,
)
from penstock.pipes.caption import CaptionPipe
from penstock.pipes.crops import Crops
from penstock.pipes.draws import Draws
from penstock.pipes.geometry import crop_top_left
from penstock.pipes.sample import Ref
from penstock.pipes.state import describe
from penstock.pipes.work import WorkPipe

VISITS = 10_000
ALIKE = 1e-4
"""Below this p-value counts are not of the weights: one test in 10,000 would say so by chance."""

TAGS = "dog, red, big, old, wet, far, odd, shy"
WIDE, SQUARE = (10, 110), (10, 10)


def p_value(seen, weights):
    """Return how likely counts as far as these are from the weights: Pearson's chi-square test."""
    from scipy.stats import chi2

    if set(seen) - set(weights):
        return 0.0  # what has no weight was seen
    total = sum(seen.values())
    expected = {outcome: total * weight for outcome, weight in weights.items()}
    rare = [outcome for outcome in expected if expected[outcome] < 5]
    cells = [(seen[o], e) for o, e in expected.items() if e >= 5]
    if rare:
        cells.append((sum(seen[o] for o in rare), sum(expected[o] for o in rare)))
    return chi2.sf(sum((n - e) ** 2 / e for n, e in cells), max(1, len(cells) - 1))


def same_rates(one, other):
    """Return how likely two counts of the same thing are so far apart: a test of homogeneity."""
    from scipy.stats import chi2_contingency

    outcomes = sorted(set(one) | set(other))
    return chi2_contingency([[c[o] for o in outcomes] for c in (one, other)]).pvalue


def image(height, width):
    x = np.arange(width) * 255 // (width - 1)
    pixels = np.broadcast_to(x[None, :, None], (height, width, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


@pytest.fixture
def two(make_tar):
    """Two samples with several captions."""
    captions = [[TAGS, "cat, tall", "a bird"], ["a, b, c, d, e, f", "", "x, y"]]
    return ShardLister(
        make_tar(
            [(f"k{i}", {"json": json.dumps({"all": c}).encode()}) for i, c in enumerate(captions)]
        )
    ).read_tar()


def draw(pipe, visits, fields=("caption",)):
    """Return by key what ``visits`` visits of each sample gave; in batches of 200."""
    seen = {}
    samples = len(set(next(iter(pipe.loader(epoch_batches=1)))["__key__"]))
    for batch in pipe.loader(epoch_batches=visits * samples // 200):
        rows = [v.tolist() if isinstance(v, torch.Tensor) else v for v in map(batch.get, fields)]
        for key, *row in zip(batch["__key__"], *rows, strict=True):
            value = [tuple(r) if isinstance(r, list) else r for r in row]
            seen.setdefault(key, Counter())[value[0] if len(value) == 1 else tuple(value)] += 1
    assert all(count.total() == visits for count in seen.values())
    return seen


def listed(pipe, source):
    """Return by key the captions of two samples, with their weights."""
    found = {}
    samples = iter(source)
    while len(found) < 2:
        sample = next(samples)
        found[sample["__key__"]] = caption_variants(pipe, sample)
    for variants in found.values():
        assert abs(sum(v.weight for v in variants) - 1) < 1e-12
        assert len({v.caption for v in variants}) == len(variants)
    return {key: {v.caption: v.weight for v in variants} for key, variants in found.items()}


def loaded(source, pick="first"):
    return source.batch(200).decode(caption="json.all", caption_pick=pick)


GRAPHS = {
    "fixed orders": lambda s: (
        loaded(s, [3, 1, 4])
        .affix_caption(prefix="my ", trigger="sks")
        .shuffle_caption(keep=1, p=0.9, variants=5)
        .drop_caption(0.1)
    ),
    "fixed drops": lambda s: (
        loaded(s).drop_caption(0.2, parts=0.4, keep=1, variants=7).affix_caption(suffix=".")
    ),
    "all ways": lambda s: (
        loaded(s, "random")
        .shuffle_caption(keep=5, p=0.7)
        .drop_caption(0.15, parts=0.25, keep=4)
        .map(unchanged, keeps_caption=True)
    ),
    "twice": lambda s: (
        loaded(s)
        .shuffle_caption(keep=1, variants=3)
        .shuffle_caption(keep=0, variants=2, p=0.5)
        .drop_caption(0.5)
        .drop_caption(0.5, parts=0.5, variants=2)
    ),
}


def unchanged(sample):
    return {**sample, "more": 1}


def changed(sample):
    return {**sample, "caption": sample["caption"].upper()}


@pytest.mark.parametrize("name", GRAPHS)
def test_captions_come_as_often_as_listed(name, two):
    pipe = GRAPHS[name](two)
    weights = listed(pipe, two)
    for key, seen in draw(pipe, VISITS).items():
        assert p_value(seen, weights[key]) > ALIKE, key
        # The same test sees one weight that is off by 5 %.
        heavy = max(weights[key], key=weights[key].get)
        off = {
            c: w - 0.05 if c == heavy else w + 0.05 / (len(weights[key]) - 1)
            for c, w in weights[key].items()
        }
        assert p_value(seen, off) < ALIKE, key


@pytest.mark.parametrize(
    "bias",
    [
        lambda s: loaded(s).shuffle_caption(keep=1, p=0.85, variants=5).drop_caption(0.1),
        lambda s: loaded(s).shuffle_caption(keep=1, p=0.9, variants=4).drop_caption(0.1),
        lambda s: loaded(s).shuffle_caption(keep=1, p=0.9).drop_caption(0.1),
        lambda s: loaded(s).shuffle_caption(keep=1, p=0.9, variants=5).drop_caption(0.15),
    ],
    ids=["p of shuffling", "a variant less", "no variants", "p of dropping"],
)
def test_a_bias_in_captions_is_seen(bias, two):
    weights = listed(loaded(two).shuffle_caption(keep=1, p=0.9, variants=5).drop_caption(0.1), two)
    for key, seen in draw(bias(two), VISITS // 2).items():
        assert p_value(seen, weights[key]) < ALIKE


def test_a_variant_that_never_comes_is_seen(two, monkeypatch):
    pipe = loaded(two).shuffle_caption(keep=1, p=0.9, variants=5).drop_caption(0.1)
    weights = listed(pipe, two)
    below = Draws.below
    monkeypatch.setattr(Draws, "below", lambda self, bound, *what: below(self, bound - 1, *what))
    for key, seen in draw(pipe, VISITS // 2).items():
        assert p_value(seen, weights[key]) < ALIKE


def places(pipe, sample, original, target):
    """Return the listed (crop_top_left, flipped), with their weights."""
    weights = Counter()
    for variant in image_variants(pipe, sample, original, target):
        place = crop_top_left(variant.crop, original, target, variant.flip)
        weights[place, variant.flip] += variant.weight
    assert abs(sum(weights.values()) - 1) < 1e-12
    return weights


@pytest.mark.parametrize(("crop", "original"), [("random", WIDE), ("resized", (30, 40))])
def test_crops_flips_and_captions_come_as_often_as_listed(crop, original, make_tar):
    source = ShardLister(make_tar([("k", {"png": image(*original), "txt": TAGS.encode()})]))
    source = source.read_tar()

    def graph(flip=0.3, variants=3):
        pipe = source.batch(200).decode(SQUARE, crop=crop, flip=flip, variants=variants)
        return pipe.shuffle_caption(keep=1, p=0.8, variants=2)

    sample = next(iter(source))
    seen = draw(graph(), VISITS, ("crop_top_left", "flipped", "caption"))["k"]
    where = places(graph(), sample, original, SQUARE)
    what = caption_variants(graph(), sample)
    assert (len(where), len(what)) == (6, 3)
    # Crop, flip and caption are drawn apart: all of them together come as their products.
    assert (
        p_value(seen, {(*w, v.caption): where[w] * v.weight for w in where for v in what}) > ALIKE
    )
    crops = Counter()
    for (place, flip, _), n in seen.items():
        crops[place, flip] += n
    assert p_value(crops, where) > ALIKE
    for wrong in (graph(flip=0.35), graph(variants=4), graph(variants=2)):
        assert p_value(crops, places(wrong, sample, original, SQUARE)) < ALIKE


def name(i):
    return (f"{i // 100:05d}.tar", f"{i:06d}")


def bins(crops, visit):
    """Return where crops lie, in tenths, and whether they are flipped, for many samples."""
    found = Counter()
    for i in range(VISITS):
        crop, flip = crops.draw(WIDE, SQUARE, visit(i))
        found[int(crop.left / 10), flip] += 1
    return found


def once(i):
    return Draws(3, Ref(0, i // 100, i % 100), name(i))


@pytest.mark.parametrize("variants", [None, 1, 4])
def test_over_many_samples_crops_lie_where_they_do_without_variants(variants):
    seen = bins(Crops("random", flip=0.5, variants=variants), once)
    assert p_value(seen, {(b, f): 0.05 for b in range(10) for f in (False, True)}) > ALIKE
    mean = sum(b * n for (b, _), n in seen.items()) / VISITS
    assert abs(mean - 4.5) < 0.12  # 4 sigma
    biased = bins(Crops("random", flip=0.55, variants=variants), once)
    assert p_value(biased, {(b, f): 0.05 for b in range(10) for f in (False, True)}) < ALIKE


def test_over_many_samples_resized_crops_are_those_without_variants():
    def sizes(variants, scale=(0.08, 1.0)):
        crops = Crops("resized", scale, flip=0.5, variants=variants)
        return Counter(
            (int(crop.height), flip)
            for crop, flip in (crops.draw((30, 40), (10, 10), once(i)) for i in range(VISITS))
        )

    assert same_rates(sizes(None), sizes(4)) > ALIKE
    assert same_rates(sizes(None), sizes(4, (0.13, 1.0))) < ALIKE


def test_over_many_samples_captions_are_those_without_variants(fake):
    def counts(variants, p=0.1):
        shuffler = CaptionShuffler(fake([1]), keep=1, variants=variants)
        dropper = CaptionDropper(fake([1]), p, parts=0.2, keep=2, variants=variants)
        captions = []
        for i in range(VISITS):
            captions.append(dropper.change(shuffler.change(TAGS, once(i)), once(i)))
        firsts = Counter(caption[:8] for caption in captions)  # "dog, red"; "" where dropped
        return firsts, Counter(caption.count(",") for caption in captions)

    plain, fixed, biased = counts(None), counts(3), counts(3, 0.15)
    for one, other, wrong in zip(plain, fixed, biased, strict=True):
        assert same_rates(one, other) > ALIKE
        assert same_rates(one, wrong) < ALIKE
    for firsts, _ in (plain, fixed):
        assert (
            p_value(firsts, {"": 0.1, **{f"dog, {t}": 0.9 / 7 for t in TAGS[5:].split(", ")}})
            > ALIKE
        )


def test_over_many_samples_visits_take_all_variants_alike():
    crops = Crops("random", flip=0.5, variants=4)
    seen, rates = Counter(), {(k, f): 0.125 for k in range(4) for f in (False, True)}
    for i in range(VISITS):
        crop, flip = crops.draw(WIDE, SQUARE, once(i))
        own = [crops.region(WIDE, SQUARE, once(i), k) for k in range(4)]
        seen[own.index(crop), flip] += 1
    assert p_value(seen, rates) > ALIKE
    assert (
        p_value(seen, {(k, f): 0.15 if (k, f) == (0, True) else 0.85 / 7 for k, f in rates}) < ALIKE
    )
    assert p_value(seen, {(k, f): 0.5 * (1 / 3) for k, f in rates if k < 3}) < ALIKE


# What variants depend on


@pytest.mark.filterwarnings("ignore:.*half-filled buckets")
def test_variants_resume_exactly(shards):
    pipe = (
        ShardLister(shards, seed=4)
        .read_tar()
        .shuffle(20)
        .bucket_by_aspect_ratio(64, 3, step=16)
        .lanes(2)
        .decode(crop="random", flip=0.5, variants=3)
        .shuffle_caption(keep=1, variants=4)
        .drop_caption(0.1, parts=0.3, variants=2)
    )
    report = verify_resume(
        lambda workers, rank, ranks: pipe.loader(
            workers, rank=rank, world_size=ranks, epoch_batches=11
        ),
        steps=4,
        legs=((0, 1), (2, 1), (0, 3), (0, 2)),
    )
    assert len(report.legs) == 5


def test_neither_the_seed_nor_more_shards_move_a_variant(tmp_path, make_tar):
    fields = {"png": image(*WIDE), "txt": TAGS.encode()}
    make_tar([("k0", fields), ("k1", fields)], "b.tar")
    make_tar([("k0", fields), ("k1", fields)], "a.tar")
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (moved / "b.tar").write_bytes((tmp_path / "b.tar").read_bytes())

    def made(urls, seed):
        source = ShardLister(urls, seed=seed).read_tar()
        pipe = source.batch(50).decode(SQUARE, crop="random", flip=0.5, variants=3)
        pipe = pipe.shuffle_caption(keep=1, variants=4).drop_caption(0, parts=0.3, variants=2)
        order, found = [], {}
        for batch in pipe.loader(epoch_batches=20):
            for url, key, place, flip, caption in zip(
                batch["__url__"],
                batch["__key__"],
                batch["crop_top_left"].tolist(),
                batch["flipped"].tolist(),
                batch["caption"],
                strict=True,
            ):
                if url.endswith("b.tar"):
                    order.append((key, *place, flip, caption))
                    found.setdefault(key, set()).add((*place, flip, caption))
        return order, found

    few, own = made(str(tmp_path / "b.tar"), 0)
    more, among = made([str(tmp_path / "a.tar"), str(tmp_path / "b.tar")], 0)
    other, reseeded = made(str(moved / "b.tar"), 1)
    assert few[:200] != more[:200]
    assert few[:200] != other[:200]
    assert len(own) == 2
    assert own["k0"] != own["k1"]
    for key, found in own.items():
        assert 24 < len(found) <= 48
        for again in (among, reseeded):
            # All 48 combinations come in time; crops and captions are the very same ones.
            for parts in (slice(0, 3), slice(3, 4)):
                assert {f[parts] for f in again[key]} == {f[parts] for f in found}


def test_a_pipe_with_one_variant_makes_what_the_graph_makes_of_it(make_tar, make_batch):
    source = ShardLister(make_tar([("k", {"png": image(*WIDE)})])).read_tar()
    pipe = source.batch(60).decode(SQUARE, crop="random", flip=0.5, variants=3)
    batch = make_batch(pipe).batch
    variants = image_variants(pipe, next(iter(source)), WIDE, SQUARE)
    assert len(variants) == count_image_variants(pipe) == 6
    left = set(range(60))
    for variant in variants:
        assert variant.weight == pytest.approx(1 / 6)
        fixed = pipe.at_variant(variant.variant, variant.flip)
        made = make_batch(fixed).batch
        assert len({i.numpy().tobytes() for i in made["image"]}) == 1
        same = {i for i in left if torch.equal(batch["image"][i], made["image"][0])}
        for i in same:
            for field in ("crop_top_left", "flipped", "original_size", "target_size"):
                assert torch.equal(batch[field][i], made[field][0])
        assert same
        left -= same
    assert not left
    assert pipe.crops.only is None


def test_a_copy_in_a_bad_samples_place_has_its_own_variants(make_tar, make_batch):
    samples = [("bad", {"png": b"junk", "txt": b"a,b"}), ("good", {"png": image(*WIDE)})]
    source = ShardLister(make_tar(samples), shuffle=False).read_tar()
    pipe = source.batch(2).decode(SQUARE, crop="random", variants=2)
    good = [sample for _, sample in zip(range(2), source, strict=False)][1]
    weights = places(pipe, good, WIDE, SQUARE)
    batches = [make_batch(pipe, g, "skip").batch for g in range(40)]
    assert all(batch["__filled__"] == [0] for batch in batches)
    seen = {(tuple(b["crop_top_left"][0].tolist()), bool(b["flipped"][0])) for b in batches}
    assert seen == set(weights)


def test_variants_stand_in_the_state(two):
    def work(pipe):
        from penstock.pipes.graph import Graph

        return describe(Graph.of(pipe))["work"]

    plain = loaded(two).shuffle_caption().drop_caption()
    assert [step["variants"] for step in work(plain)] == [None] * 3
    fixed = two.batch(2).decode(8, crop="random", variants=2).shuffle_caption(variants=3)
    assert [step["variants"] for step in work(fixed.drop_caption(variants=4))] == [2, 3, 4]
    assert "keeps_caption" not in work(plain.map(unchanged, keeps_caption=True))[-1]
    saved = plain.loader(epoch_batches=1).state_dict()
    changed_loader = loaded(two).shuffle_caption(variants=3).drop_caption().loader(epoch_batches=1)
    with pytest.warns(UserWarning, match="CaptionShuffler had variants=null .* has variants=3 now"):
        changed_loader.load_state_dict(saved)
    at = two.batch(2).decode(8, crop="random", variants=2).at_variant(1)
    assert work(at)[0]["at_variant"] == [1, False]


# What cannot be listed


class Shouter(CaptionPipe):
    def __init__(self, source):
        self.source = source

    def change(self, caption, draws):
        return caption.upper()


class Unknown(WorkPipe):
    def __init__(self, source):
        self.source = source

    def work(self, sample, draws, slot):
        return sample


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (lambda s: loaded(s).map(changed), r"\.map\(changed\) may change captions.*keeps_caption"),
        (lambda s: loaded(s).shuffle_caption(), r"8 parts that move, in 8! orders.*variants=K"),
        (lambda s: loaded(s).drop_caption(parts=0.5), r"in 2\^8 ways: .*drop_caption\(…, variants"),
        (lambda s: s.batch(2).load(), "begins with FieldLoader"),
        (lambda s: s.batch(2), "begins with .decode.*it has none"),
        (lambda s: Shouter(loaded(s)), "Shouter makes of a caption cannot be listed"),
        (lambda s: Unknown(loaded(s)), "Unknown may change captions"),
    ],
)
def test_captions_that_cannot_be_listed(graph, message, make_tar):
    fields = {"json": json.dumps({"all": [TAGS]}).encode()}
    source = ShardLister(make_tar([("k", fields)])).read_tar()
    with pytest.raises(ValueError, match=message):
        caption_variants(graph(source), next(iter(source)))


def test_a_transform_of_batches_is_not_counted(two):
    pipe = loaded(two).drop_caption(0.25).transform(unchanged)
    assert sorted(caption_variants(pipe, next(iter(two))))[0] == (0.25, "")


def test_crops_that_cannot_be_listed(two):
    sample = next(iter(two))
    pipe = two.batch(2).decode(8, crop="random").map(changed)
    with pytest.raises(ValueError, match="variants=K"):
        image_variants(pipe, sample, WIDE, SQUARE)
    with pytest.raises(ValueError, match="variants=K"):
        count_image_variants(pipe)


def test_a_map_that_changes_captions_and_said_it_would_not(two, make_batch):
    pipe = loaded(two).map(changed, keeps_caption=True)
    with pytest.raises(ValueError, match="made '[A-Z, ]+' of the caption '.*leave keeps_caption"):
        make_batch(pipe)


@pytest.mark.parametrize(
    ("fields", "arguments", "message"),
    [
        ({"cls": b"1"}, {}, "has no caption: name its field"),
        ({"txt": b"\xff"}, {}, "field 'txt': text is not UTF-8"),
        ({"txt": b"a"}, {"caption": "text"}, "has no caption 'text'; its fields are: txt"),
    ],
)
def test_samples_without_a_good_caption_are_named(fields, arguments, message, make_tar):
    source = ShardLister(make_tar([("k", fields)])).read_tar()
    with pytest.raises(DataError, match=rf"^sample 'k' of [^ ]*00000.tar: {message}"):
        caption_variants(source.batch(1).decode(**arguments), next(iter(source)))


def test_defaults_and_blanks(make_tar):
    source = ShardLister(make_tar([("k", {"txt": b" \n"})])).read_tar()
    sample = next(iter(source))
    assert caption_variants(source.batch(1).decode(), sample) == [(1.0, "")]
    for field in (None, "nothing", "txt"):
        pipe = source.batch(1).decode(caption=field, caption_default="none")
        assert caption_variants(pipe.drop_caption(0.25), sample) == [(0.25, ""), (0.75, "none")]


def test_decode_takes_variants_as_a_number(fake):
    for wrong in (0, 2.5, True):
        for make in (
            lambda n: Decoder(fake([1]), 8, crop="random", variants=n),
            lambda n: CaptionShuffler(fake([1]), variants=n),
            lambda n: CaptionDropper(fake([1]), variants=n),
        ):
            with pytest.raises(ValueError, match="number of fixed variants"):
                make(wrong)
