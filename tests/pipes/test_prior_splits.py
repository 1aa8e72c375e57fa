"""The programs of DALLE2-pytorch's README for the diffusion prior, and what they give here."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from penstock.pipes import EmbeddingReader, get_reader, make_splits
from penstock.pipes.replaced import warn_replaced

Write = Callable[..., str]
COUNTS = {0: 3000, 1: 0, 2: 4000, 10: 5000}  # 12,000 rows

README = """
from penstock.pipes import get_reader, make_splits

# grab embeddings from some specified location
IMG_URL = "data/img_emb/"
META_URL = "data/meta/"

reader = get_reader(text_conditioned=True, img_url=IMG_URL, meta_url=META_URL)

# some config for training
TRAIN_ARGS = {
    "world_size": 3,
    "text_conditioned": True,
    "start": 0,
    "num_data_points": 10000,
    "batch_size": 2,
    "train_split": 0.5,
    "eval_split": 0.25,
    "image_reader": reader,
}

# specifying a rank will handle allocation internally
rank0_train, rank0_eval, rank0_test = make_splits(rank=0, **TRAIN_ARGS)
rank1_train, rank1_eval, rank1_test = make_splits(rank=1, **TRAIN_ARGS)
rank2_train, rank2_eval, rank2_test = make_splits(rank=2, **TRAIN_ARGS)
"""
"""Of github.com/lucidrains/DALLE2-pytorch, dalle2_pytorch/dataloaders/README.md (MIT), with the
import line changed."""


@pytest.fixture(autouse=True)
def _warned_anew() -> Iterator[None]:
    warn_replaced.cache_clear()
    yield
    warn_replaced.cache_clear()


@pytest.fixture
def data(
    embeddings: Write, captions: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Stand in a folder with ``data``; without OpenAI's clip, of which a test has its own."""
    embeddings(COUNTS, "data/img_emb")
    embeddings(COUNTS, "data/txt_emb", "text_emb_{}.npy", dim=6)
    captions(COUNTS, "data/meta")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data"


def tokens_of(captions: list[str], truncate: bool = True) -> torch.Tensor:
    tokens = torch.zeros(len(captions), 77, dtype=torch.int64)
    tokens[:, 0] = torch.tensor([int(caption.split()[1]) for caption in captions])
    return tokens


def numbers(loader: Any) -> list[int]:
    """Return the rows that a loader gives, by the numbers in their captions."""
    found: list[int] = []
    for image, tokens in loader:
        assert image.shape == (len(tokens), 4)
        assert image.dtype == torch.float32
        assert tokens.dtype == torch.int32
        assert image[:, 0].tolist() == tokens[:, 0].tolist()
        found += tokens[:, 0].tolist()
    return found


ALL = [n * 100 + i for n, count in COUNTS.items() for i in range(count)]


@pytest.mark.usefixtures("data")
def test_the_program_of_the_readme(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = type(warnings)("clip")
    clip.tokenize = tokens_of  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "clip", clip)
    made: dict[str, Any] = {}
    with pytest.warns(FutureWarning) as caught:
        exec(README, made)
    words = [str(warning.message) for warning in caught]
    assert [text.split()[0] for text in words] == ["get_reader", "make_splits"]
    assert all("EmbeddingReader(" in text for text in words)
    whole = []
    for name, first, stop in (("train", 0, 5000), ("eval", 5000, 7500), ("test", 7500, 10000)):
        parts = [numbers(made[f"rank{rank}_{name}"]) for rank in range(3)]
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert [len(made[f"rank{rank}_{name}"]) for rank in range(3)] == [
            -(-len(part) // 2) for part in parts
        ]
        rows = [row for part in parts for row in part]
        assert sorted(rows) == sorted(ALL[first:stop])
        whole += rows
    assert len(whole) == 10_000


def splits(
    reader: Any, second: Any = None, *, text_conditioned: bool = True, **how: Any
) -> tuple[Any, Any, Any]:
    given = {"batch_size": 50, "num_data_points": 1000, "train_split": 0.5, "eval_split": 0.25}
    if text_conditioned:
        given["tokenize"] = tokens_of
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return make_splits(text_conditioned, image_reader=reader, text_reader=second, **given | how)


@pytest.fixture
def reader(data: Path) -> EmbeddingReader:
    with pytest.warns(FutureWarning, match="get_reader"):
        found = get_reader(True, str(data / "img_emb"), str(data / "meta"))
    assert isinstance(found, EmbeddingReader)
    return found


@pytest.mark.parametrize("start", [0, 700, 4000])
def test_start_moves_all_splits(reader: EmbeddingReader, start: int) -> None:
    train, evaluate, test = splits(reader, start=start, shuffle=False)
    assert numbers(train) == ALL[start : start + 500]
    assert numbers(evaluate) == ALL[start + 500 : start + 750]
    assert numbers(test) == ALL[start + 750 : start + 1000]


def test_more_rows_than_there_are_means_all_behind_start(reader: EmbeddingReader) -> None:
    train, evaluate, test = splits(reader, start=11_000, num_data_points=25e7, shuffle=False)
    assert numbers(train) == ALL[11_000:11_500]
    assert numbers(evaluate) + numbers(test) == ALL[11_500:]


def test_train_is_shuffled_and_the_others_are_not(reader: EmbeddingReader) -> None:
    train, evaluate, test = splits(reader)
    first, second = numbers(train), numbers(train)
    assert sorted(first) == sorted(second) == ALL[:500]
    assert len({tuple(first), tuple(second), tuple(ALL[:500])}) == 3
    assert numbers(evaluate) == ALL[500:750]
    assert numbers(test) == ALL[750:1000]
    assert numbers(splits(reader, seed=1)[0]) != first


def test_a_test_split_may_be_left_out(reader: EmbeddingReader) -> None:
    train, evaluate, test = splits(reader, train_split=0.8, eval_split=0.2, num_data_points=997)
    assert (len(numbers(train)), len(numbers(evaluate))) == (797, 200)
    assert (list(test), len(test), test.state_dict()) == ([], 0, {})
    test.load_state_dict({})


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"train_split": 0.8, "eval_split": 0.3}, "sum to 1 at most"),
        ({"train_split": -0.1}, "must be at least 0"),
        ({"start": 12_000}, "start=12000 is none of the 12000 rows"),
        ({"num_data_points": 3}, r"split 'eval' \(0.25\) gets none of the 3 rows"),
        ({"num_data_points": 8, "world_size": 3}, "too few for 3 ranks"),
    ],
)
def test_arguments_that_do_not_fit(
    reader: EmbeddingReader, how: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        splits(reader, **how)


def test_pairs_of_embeddings(data: Path) -> None:
    with pytest.warns(FutureWarning, match="get_reader"):
        found = get_reader(False, data / "img_emb", txt_url=data / "txt_emb")
    assert isinstance(found, tuple)
    train, evaluate, test = splits(*found, text_conditioned=False, shuffle=False)
    rows: list[float] = []
    for loader in (train, evaluate, test):
        for image, text in loader:
            assert (image.shape[1], text.shape[1]) == (4, 6)
            assert image.dtype == text.dtype == torch.float32
            assert image[:, 0].tolist() == text[:, 0].tolist()
            rows += image[:, 0].tolist()
    assert rows == ALL[:1000]


def test_it_goes_on_in_the_middle(reader: EmbeddingReader) -> None:
    train = splits(reader)[0]
    steps = iter(train)
    next(steps)
    state = train.state_dict()
    rest = numbers(steps)
    for how in ({}, {"num_workers": 2}, {"rank": 0, "world_size": 1}):
        again = splits(reader, **how)[0]
        again.load_state_dict(state)
        assert numbers(again) == rest


@pytest.mark.parametrize(("conditioned", "lacks"), [(True, "meta_url"), (False, "txt_url")])
def test_folders_that_are_needed(data: Path, conditioned: bool, lacks: str) -> None:
    with (
        pytest.warns(FutureWarning, match="get_reader"),
        pytest.raises(ValueError, match=f"needs {lacks}"),
    ):
        get_reader(conditioned, data / "img_emb")
