"""Programs written for DALLE2-pytorch's loader run as they are, without its defects."""

import io
import itertools
import json
import textwrap
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms

from penstock.pipes import DataError, ImageEmbeddingDataset, create_image_embedding_dataloader
from penstock.pipes.graph import Graph
from penstock.pipes.image_embedding_plan import ImageEmbeddingPlan
from penstock.pipes.replaced import warn_replaced
from penstock.pipes.stream import LaneWalker, Steps

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*kept for programs:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]
INDICES = {0: [0, 2, 3, 4], 1: [0, 1, 2], 2: [0, 1, 2, 3, 5]}
COUNT = 12


def picture(shard, index, side=256, kind="PNG"):
    """Return an image file whose colour says whose it is."""
    file = io.BytesIO()
    Image.new("RGB", (side, side), (shard, index, 77)).save(file, kind)
    return file.getvalue()


def npy(row):
    file = io.BytesIO()
    np.save(file, row)
    return file.getvalue()


def fill(data, side=8, inside=None):
    """Write pictures with captions into the tars, and embeddings where a field is named."""
    for shard, own in data.indices.items():
        rows = data.array(shard)
        samples = {}
        for i in own:
            samples[i] = {"png": picture(shard, i, side), "txt": f"{shard} {i}".encode()}
            if inside is not None:
                samples[i][inside] = npy(rows[i])
        data.write_tar(shard, samples)


@pytest.fixture
def data(embed, tmp_path):
    made = embed(tmp_path, INDICES)
    fill(made)
    return made


def whose(images, rows):
    """Return the (shard, index) of each image, which must be its embedding's."""
    colours = (images[:, :2, 0, 0] * 255).round().int().tolist()
    found = [(int(row[0]) - 1, int(row[1]) - 1) for row in rows]
    assert [tuple(c) for c in colours] == found
    return found


def seen(batches):
    """Return whose the images of batches are, in order."""
    return [pair for images, rows in batches for pair in whose(images, rows)]


def everything(data):
    return sorted((shard, i) for shard, own in data.indices.items() for i in own)


def create(data, **how):
    how = {"num_workers": 0, "batch_size": 5, **how}
    return create_image_embedding_dataloader(str(data.tars), **how)


README = textwrap.dedent(
    """
    from penstock.pipes import ImageEmbeddingDataset, create_image_embedding_dataloader
    # Create a dataloader directly.
    dataloader = create_image_embedding_dataloader(
    tar_url="/path/or/url/to/webdataset/{0000..9999}.tar", # Uses bracket expanding notation.
    embeddings_url="path/or/url/to/embeddings/folder", # Included if .npy files are not inside.
    num_workers=4,
    batch_size=32,
    shard_width=4, # If a file in the webdataset shard 3 is named 0003039.jpg, the shard width is 4
    shuffle_num=200, # Does a shuffle of the data with a buffer size of 200
    shuffle_shards=True, # Shuffle the order the shards are read in
    resample_shards=False, # Sample shards with replacement.
    )
    for img, emb in dataloader:
        print(img.shape) # torch.Size([32, 3, 256, 256])
        print(emb.shape) # torch.Size([32, 512])
    # Train decoder only as shown above
    # Or create a dataset without a loader so you can configure it manually
    dataset = ImageEmbeddingDataset(
    urls="/path/or/url/to/webdataset/{0000..9999}.tar",
    embedding_folder_url="path/or/url/to/embeddings/folder",
    shard_width=4,
    shuffle_shards=True,
    resample=False
    )
    """
)
"""The README's program; its import line alone is another's, and paths and numbers are put in."""


def test_the_readmes_program(tmp_path, embed, capsys):
    data = embed(tmp_path, {i: list(range(16)) for i in range(4)}, dim=512)
    for shard in range(4):
        data.write_tar(shard, {i: {"jpg": picture(shard, i, 256, "JPEG")} for i in range(16)})
        (data.tars / f"{shard:05d}.tar").rename(data.tars / f"{shard:04d}.tar")
    program = (
        README.replace("/path/or/url/to/webdataset/{0000..9999}", f"{data.tars}/{{0000..0003}}")
        .replace("path/or/url/to/embeddings/folder", str(data.rows))
        .replace("shard_width=4", "shard_width=5")
        .replace("num_workers=4", "num_workers=2")
    )
    names = {}
    exec(program, names)
    assert (
        capsys.readouterr().out.splitlines()
        == [
            "torch.Size([32, 3, 256, 256])",
            "torch.Size([32, 512])",
        ]
        * 2
    )
    assert len(list(names["dataset"])) == 64
    image, row = next(iter(names["dataset"]))
    assert (image.shape, row.shape) == ((3, 256, 256), (512,))


def test_each_name_says_once_what_replaces_it(data):
    warn_replaced.cache_clear()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(3):
            create(data, embeddings_url=str(data.rows))
            ImageEmbeddingDataset(str(data.tars), str(data.rows))
    words = [str(w.message) for w in told]
    assert len(words) == 2
    assert words[0].startswith("create_image_embedding_dataloader is kept for programs")
    assert words[1].startswith("ImageEmbeddingDataset is kept for programs that were written for")
    assert {w.filename for w in told} == {__file__}
    assert all(w.category is FutureWarning for w in told)


@pytest.mark.parametrize(
    "how",
    [
        {"embeddings_url": "", "shard_width": 5},
        {"img_embeddings_url": "", "index_width": 4},
        {"img_embeddings_url": ""},
    ],
)
def test_both_sets_of_argument_names(how, data):
    how = {k: v if v != "" else str(data.rows) for k, v in how.items()}
    batches = list(create(data, **how))
    assert [len(batch) for batch in batches] == [2] * 3
    assert batches[0][0].dtype == torch.float32
    assert sorted(seen(batches)) == everything(data)


def test_extra_keys_follow_and_texts_embeddings_make_a_dict(data, tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    for shard in INDICES:
        np.save(texts / f"text_emb_{shard}.npy", 2 * data.array(shard))
    found = []
    for images, rows, captions in create(
        data,
        img_embeddings_url=str(data.rows),
        text_embeddings_url=str(texts),
        extra_keys=["txt"],
    ):
        found += whose(images, rows["img"])
        assert (rows["text"] == 2 * rows["img"]).all()
        assert captions == [f"{shard} {i}" for shard, i in whose(images, rows["img"])]
    assert sorted(found) == everything(data)
    (images, rows), *_ = create(data, text_embeddings_url=str(texts))
    whose(images, rows / 2)  # one alone is a tensor
    (_, _, keys, captions), *_ = create(
        data, embeddings_url=str(data.rows), extra_keys=("__key__", "txt")
    )
    assert [f"{int(k[:5])} {int(k[5:])}" for k in keys] == captions


# The defects of the original (v1.15.6), each by its number there.


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    workers=st.integers(1, 5),
    batch=st.integers(1, 4),
    window=st.integers(0, 9),
)
def test_1_workers_share_the_samples(sizes, workers, batch, window, embed, tmp_path_factory):
    """There, every worker yielded all of them."""
    data = embed(tmp_path_factory.mktemp("data"), {i: list(range(n)) for i, n in enumerate(sizes)})
    fill(data, 2)
    plan = ImageEmbeddingPlan(
        str(data.tars), str(data.rows), None, None, None, None, (), "raise", False, True, window
    )
    found = []
    for worker in range(workers):
        steps = Steps(LaneWalker(Graph.of(plan.pipe(batch, 0)), "raise"), worker, workers)
        for made in steps:
            found += whose(*plan.row(made.batch)) if made.batch is not None else []
    assert sorted(found) == everything(data)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_1_and_5_any_number_of_workers_gives_each_sample_once(workers, data):
    """There, none was an error, and N gave each sample N times."""
    loader = create(data, num_workers=workers, embeddings_url=str(data.rows))
    for _ in range(2):
        assert sorted(seen(loader)) == everything(data)
    dataset = ImageEmbeddingDataset(str(data.tars), str(data.rows))
    loaded = DataLoader(dataset, batch_size=4, num_workers=workers)
    torch.manual_seed(3)  # of the loader's base seeds
    orders = [seen(loaded) for _ in range(4)]
    assert [sorted(order) for order in orders] == [everything(data)] * 4
    assert len(set(map(tuple, orders))) > 1  # another order in each epoch


@settings(max_examples=20, deadline=None)
@given(window=st.integers(2, 30), seed=st.integers(0, 99))
def test_2_shuffle_num_is_the_window(window, seed, embed, tmp_path_factory):
    """There, it did nothing."""
    data = embed(tmp_path_factory.mktemp("data"), {0: list(range(30))})
    fill(data, 2)
    how = {"embeddings_url": str(data.rows), "shuffle_shards": False, "seed": seed}
    found = seen(create(data, shuffle_num=window, **how))
    assert sorted(found) == everything(data)
    assert found != everything(data)
    assert all(abs(place - i) <= window for place, (_, i) in enumerate(found))
    assert seen(create(data, **how)) == everything(data)


def warn_and_continue(exn):
    """webdataset's, by name."""
    return True


@settings(max_examples=20, deadline=None)
@given(
    shard=st.sampled_from(sorted(INDICES)),
    fault=st.sampled_from(["gone", "garbage", "cut", "short", "zero"]),
    seed=st.integers(0, 20),
)
def test_3_no_sample_gets_another_shards_rows(shard, fault, seed, embed, tmp_path_factory):
    """There, after a file that could not be read, its tar got the rows of the tar before."""
    folder = tmp_path_factory.mktemp("data")
    data = embed(folder, INDICES)
    fill(data, 2)
    rows, path = data.array(shard), data.rows / f"img_emb_{shard:03d}.npy"
    lost = [(shard, i) for i in INDICES[shard]]
    if fault == "gone":
        path.unlink()
    elif fault in ("garbage", "cut"):
        path.write_bytes(path.read_bytes()[:-1] if fault == "cut" else b"garbage")
    else:
        last = INDICES[shard][-1]
        lost = [(shard, last)]
        rows[last] = 0
        data.write_rows(shard, rows if fault == "zero" else rows[:last])
    how = {"img_embeddings_url": str(data.rows), "seed": seed}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        loader = create(data, handler=warn_and_continue, **how)
        found = seen(loader)
        assert sorted(found) == sorted(set(everything(data)) - set(lost))
        assert loader.skipped == len(lost)
        dataset = ImageEmbeddingDataset(str(data.tars), str(data.rows), handler=warn_and_continue)
        assert len(list(dataset)) == len(found)
        assert dataset.skipped == len(lost)
        with pytest.raises(ValueError, match=path.name if fault != "gone" else f"{shard:05d}.tar"):
            list(create(data, **how))


@pytest.mark.parametrize("inside", ["npy", "img_emb"])
def test_4_embeddings_inside_the_tars(inside, data):
    """There, .npy were ignored and .img_emb came as bytes."""
    fill(data, inside=inside)
    assert sorted(seen(create(data))) == everything(data)
    dataset = ImageEmbeddingDataset(str(data.tars))
    assert sorted(seen((i[None], e[None]) for i, e in dataset)) == everything(data)


def test_4_tars_without_embeddings_are_no_empty_ones(data):
    with pytest.raises(DataError, match="has no member npy or img_emb or text_emb in the tar; its"):
        list(create(data))


def test_6_orders_come_of_the_seed_and_runs_go_on(data):
    """There, shards came in another order in each run, which could not be resumed."""
    how = {"embeddings_url": str(data.rows), "shuffle_num": 4, "batch_size": 2}

    def epochs(**more):
        loader = create(data, **how, **more)
        return [seen(loader) for _ in range(3)]

    assert epochs() == epochs() != epochs(seed=1)
    assert len(set(map(tuple, epochs()))) == 3
    loader = create(data, **how)
    list(loader)
    taken = seen(itertools.islice(loader, 2))
    state = json.loads(json.dumps(loader.state_dict()))
    again = create(data, **how, num_workers=1)
    again.load_state_dict(state)
    assert again.state_dict() == state
    whole = [*taken, *seen(again)]
    assert [whole, seen(again)] == epochs()[1:]
    extra = ["txt"]
    one = ImageEmbeddingDataset(str(data.tars), str(data.rows), extra_keys=extra)
    extra.append("json")  # a caller's list, and no default, is shared between datasets
    assert one.key_map == {"jpg": 0, "emb": 1, "txt": 2}
    assert len(next(iter(one))) == 3
    assert ImageEmbeddingDataset(str(data.tars), str(data.rows)).key_map == {"jpg": 0, "emb": 1}


def test_resampled_shards_have_no_end(data):
    loader = create(data, embeddings_url=str(data.rows), resample_shards=True)
    batches = list(itertools.islice(loader, 20))
    assert {len(images) for images, _ in batches} == {5}
    assert sum(len(whose(*b)) for b in batches) == 100
    dataset = ImageEmbeddingDataset(str(data.tars), str(data.rows), resample=True)
    assert len(list(itertools.islice(dataset, 50))) == 50


def test_preprocessing_takes_pil_images_and_its_draws_are_the_samples(data):
    steps = transforms.Compose([transforms.RandomCrop(4), transforms.ToTensor()])
    fill(data, side=64)

    def noisy(picture):
        assert picture.mode == "RGB"
        return steps(picture) + torch.rand(()) * 1e-4

    how = {"embeddings_url": str(data.rows), "img_preproc": noisy}
    batches = list(create(data, **how))
    assert batches[0][0].shape == (5, 3, 4, 4)
    assert sorted(seen(batches)) == everything(data)
    for (one, _), (other, _) in zip(batches, create(data, num_workers=2, **how), strict=True):
        assert torch.equal(one, other)


def test_images_of_different_sizes_need_preprocessing(data):
    data.write_tar(1, {i: {"png": picture(1, i, 9)} for i in INDICES[1]})
    with pytest.raises(ValueError, match="differ in shape: pass an img_preproc"):
        list(create(data, embeddings_url=str(data.rows), batch_size=12))


def test_samples_without_an_image_or_a_field_are_named(data):
    data.write_tar(1, {i: {"txt": b"x"} for i in INDICES[1]})
    with pytest.raises(DataError, match=r"'00001000\d' of .*00001.tar: has no field 'jpg'"):
        list(create(data, embeddings_url=str(data.rows)))
    fill(data)
    with pytest.raises(DataError, match="has no field 'json'"):
        list(create(data, embeddings_url=str(data.rows), extra_keys=["json"]))


def test_arguments_that_contradict_each_other(data):
    rows = str(data.rows)
    for how, fault in (
        ({"embeddings_url": rows, "img_embeddings_url": rows}, "is the older name of img_emb"),
        ({"embeddings_url": rows, "index_width": 4, "shard_width": 5}, "give one of them"),
        (
            {"embeddings_url": rows, "handler": print},
            "handler is webdataset's reraise_exc.*print is",
        ),
    ):
        with pytest.raises(ValueError, match=fault):
            create(data, **how)
    with pytest.raises(ValueError, match="allow_pipe=True"):
        create_image_embedding_dataloader(f"pipe:cat {data.tars}/00000.tar", 0, 4, rows)
    url = f"pipe:cat {data.tars}/{{00000..00002}}.tar"
    loader = create_image_embedding_dataloader(url, 0, 5, rows, allow_pipe=True)
    assert sorted(seen(loader)) == everything(data)
