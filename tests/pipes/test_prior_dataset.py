"""Whole batches of image embeddings and texts, as DALLE2-pytorch's prior takes them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
from torch.utils.data import DataLoader

from penstock.pipes import EmbeddingReader, PriorEmbeddingDataset, merge_states
from penstock.pipes.errors import DataError
from penstock.pipes.prior_dataset import PriorLoader, PriorRows
from penstock.pipes.replaced import warn_replaced

Write = Callable[..., str]
COUNTS = {0: 30, 2: 13, 10: 57}  # 100 rows
NUMBERS = [n * 100 + i for n, count in COUNTS.items() for i in range(count)]


def tokens_of(captions: list[str]) -> torch.Tensor:
    """Return the number in each caption as its only token."""
    tokens = torch.zeros(len(captions), 77, dtype=torch.int64)
    tokens[:, 0] = torch.tensor([int(caption.split()[1]) for caption in captions])
    return tokens


@pytest.fixture
def images(embeddings: Write, captions: Write) -> EmbeddingReader:
    return EmbeddingReader(
        embeddings(COUNTS, dtype="f2"),
        "parquet_npy",
        meta_columns=["caption"],
        metadata_folder=captions(COUNTS),
    )


@pytest.fixture
def rows(images: EmbeddingReader) -> Callable[..., PriorRows]:
    def made(start: int = 0, stop: int = 100, batch_size: int = 6, **how: object) -> PriorRows:
        return PriorRows(True, batch_size, start, stop, images, tokenize=tokens_of, **how)  # type: ignore[arg-type]

    return made


@pytest.fixture(autouse=True)
def _warned_anew() -> Iterator[None]:
    warn_replaced.cache_clear()
    yield
    warn_replaced.cache_clear()


def seen(batches: object) -> list[int]:
    """Return the numbers of the rows that came, after a look at both parts of each batch."""
    found: list[int] = []
    for image, tokens in batches:  # type: ignore[attr-defined]
        assert image.dtype == torch.float32
        assert tokens.dtype == torch.int32
        assert tokens.shape == (len(image), 77)
        numbers = tokens[:, 0].tolist()
        assert image[:, 0].tolist() == torch.tensor(numbers).half().float().tolist()
        found += numbers
    return found


def test_under_its_old_name_it_warns_once(images: EmbeddingReader) -> None:
    with pytest.warns(FutureWarning, match="PriorEmbeddingDataset is kept .* EmbeddingReader"):
        data = PriorEmbeddingDataset(True, 6, 10, 40, images, tokenize=tokens_of)
    again = PriorEmbeddingDataset(
        text_conditioned=True,
        batch_size=6,
        start=10,
        stop=40,
        image_reader=images,
        text_reader=None,
        tokenize=tokens_of,
    )
    assert seen(data) == seen(again) == NUMBERS[10:40]


def test_rows_come_as_they_lie(rows: Callable[..., PriorRows]) -> None:
    data = rows(10, 45)
    assert seen(data) == seen(data) == NUMBERS[10:45]
    assert [len(image) for image, _ in data] == [6, 6, 6, 6, 6, 5]


def test_its_length_counts_batches(rows: Callable[..., PriorRows]) -> None:
    data = rows(10, 45)
    assert len(data) == len(list(data)) == 6
    assert str(data) == "<PriorEmbeddingDataset: start: 10, stop: 45, len: 6>"


def test_it_can_begin_elsewhere(rows: Callable[..., PriorRows]) -> None:
    data = rows(10, 45)
    data.set_start(40)
    assert data.get_start() == 40
    assert seen(data) == NUMBERS[40:45]


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_of_a_plain_loader_share_the_batches(
    rows: Callable[..., PriorRows], workers: int
) -> None:
    assert seen(DataLoader(rows(), batch_size=None, num_workers=workers)) == NUMBERS


def test_pairs_of_embeddings(embeddings: Write) -> None:
    texts = embeddings(COUNTS, "text_emb", "text_emb_{}.npy", dim=3, dtype=">f8")
    data = PriorRows(False, 9, 0, 100, EmbeddingReader(embeddings(COUNTS)), EmbeddingReader(texts))
    found = []
    for image, text in data:
        assert image.dtype == text.dtype == torch.float32
        assert text.shape == (len(image), 3)
        assert image[:, 0].tolist() == text[:, 0].tolist()
        found += image[:, 0].tolist()
    assert found == NUMBERS


def test_pairs_with_other_rows_are_refused(embeddings: Write) -> None:
    texts = EmbeddingReader(embeddings({**COUNTS, 10: 56}, "text_emb"))
    with pytest.raises(DataError, match=r"img_emb_10.npy has 57 rows, and .*has 56"):
        PriorRows(False, 9, 0, 99, EmbeddingReader(embeddings(COUNTS)), texts)


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ({"text_conditioned": False}, ValueError, "needs text_reader"),
        ({"image_reader": "img_emb/"}, TypeError, "must be an EmbeddingReader, .* got str"),
        ({"stop": 101}, ValueError, "stop=101 is beyond the 100 rows"),
        ({"start": 50, "stop": 50}, ValueError, "takes none of the 100 rows"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
    ],
)
def test_arguments_that_do_not_fit(
    images: EmbeddingReader, how: dict[str, object], error: type[Exception], words: str
) -> None:
    given = {"text_conditioned": True, "batch_size": 6, "start": 0, "stop": 100}
    with pytest.raises(error, match=words):
        PriorRows(**{**given, "image_reader": images, **how})  # type: ignore[arg-type]


def test_captions_must_be_there(embeddings: Write) -> None:
    with pytest.raises(ValueError, match=r"needs captions: EmbeddingReader\(…, 'parquet_npy'"):
        PriorRows(True, 6, 0, 100, EmbeddingReader(embeddings(COUNTS)))


def test_a_caption_that_is_missing_is_named(embeddings: Write, tmp_path: Path) -> None:
    (tmp_path / "meta").mkdir()
    table = pyarrow.table({"caption": ["row 0", "row 1", None]})
    pyarrow.parquet.write_table(table, tmp_path / "meta" / "metadata_0.parquet")
    reader = EmbeddingReader(
        embeddings({0: 3}), "parquet_npy", "embedding", ["caption"], tmp_path / "meta"
    )
    data = PriorRows(True, 6, 0, 3, reader, tokenize=tokens_of)
    with pytest.raises(DataError, match=r"'2' of .*img_emb_0.npy, field 'caption': expected text"):
        list(data)


# -- shuffled, on ranks, resumed ----------------------------------------------------------------


def test_each_epoch_has_each_row_once_in_another_order(rows: Callable[..., PriorRows]) -> None:
    loader = PriorLoader(rows(10, 90, shuffle=True))
    epochs = [seen(loader) for _ in range(3)]
    assert all(sorted(epoch) == NUMBERS[10:90] for epoch in epochs)
    assert len({tuple(epoch) for epoch in [*epochs, NUMBERS[10:90]]}) == 4
    again = PriorLoader(rows(10, 90, shuffle=True))
    assert [seen(again) for _ in range(3)] == epochs
    other = PriorLoader(rows(10, 90, shuffle=True, seed=1))
    assert seen(other) != epochs[0]


def test_an_epoch_that_was_left_begins_anew(rows: Callable[..., PriorRows]) -> None:
    loader = PriorLoader(rows(shuffle=True))
    first = [next(iter(loader))[1].tolist() for _ in range(2)]
    assert first[0] == first[1]


@pytest.mark.parametrize("ranks", [2, 3, 7])
@pytest.mark.parametrize("shuffle", [False, True])
def test_ranks_are_even_and_cover_all(
    rows: Callable[..., PriorRows], ranks: int, shuffle: bool
) -> None:
    loaders = [
        PriorLoader(rows(5, 100, shuffle=shuffle), rank=rank, world_size=ranks)
        for rank in range(ranks)
    ]
    for _ in range(2):
        parts = [seen(loader) for loader in loaders]
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert sorted(sum(parts[1:], parts[0])) == NUMBERS[5:]
    assert [len(loader) for loader in loaders] == [-(-len(part) // 6) for part in parts]


def test_no_rank_is_left_without_rows(rows: Callable[..., PriorRows]) -> None:
    with pytest.raises(ValueError, match="rows 5 to 7 are too few for 3 ranks"):
        PriorLoader(rows(5, 7), rank=0, world_size=3)


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize("after", [0, 1, 3, 8])
def test_it_goes_on_in_the_middle(rows: Callable[..., PriorRows], epoch: int, after: int) -> None:
    loader = PriorLoader(rows(shuffle=True))
    for _ in range(epoch):
        seen(loader)
    steps = iter(loader)
    for _ in range(after):
        next(steps)
    state = loader.state_dict()
    rest = seen(steps), seen(loader)
    for workers in (0, 2):
        resumed = PriorLoader(rows(shuffle=True), workers)
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        assert (seen(resumed), seen(resumed)) == rest


@pytest.mark.parametrize("epoch", [0, 1])
def test_it_goes_on_on_other_numbers_of_ranks(rows: Callable[..., PriorRows], epoch: int) -> None:
    loaders = [PriorLoader(rows(shuffle=True), rank=r, world_size=3) for r in range(3)]
    for _ in range(epoch):
        for loader in loaders:
            seen(loader)
    found: list[int] = []
    for loader in loaders:
        steps = iter(loader)
        found += seen([next(steps), next(steps)])
    state = merge_states(loader.state_dict() for loader in loaders)
    for rank in range(2):
        loader = PriorLoader(rows(shuffle=True), rank=rank, world_size=2)
        loader.load_state_dict(state)
        found += seen(loader)
    assert sorted(found) == NUMBERS


def test_another_split_is_refused(rows: Callable[..., PriorRows]) -> None:
    state = PriorLoader(rows(0, 50)).state_dict()
    with pytest.raises(ValueError, match="EmbeddingReader had end=50 .* has end=60 now"):
        PriorLoader(rows(0, 60)).load_state_dict(state)
    with pytest.raises(ValueError, match="no loader state"):
        PriorLoader(rows()).load_state_dict([])  # type: ignore[arg-type]
