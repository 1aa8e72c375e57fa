"""Which files of embeddings and metadata there are, in which order, and which belong together."""

from pathlib import Path

import fsspec
import pytest

from penstock.pipes.reader_files import NumberedFile, file_number, find_files, pair_files
from penstock.pipes.remote import Remote


def made(folder: Path, *names: str) -> str:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return str(folder)


def found(folders: object, order: str = "number", ending: str = ".npy") -> list[str]:
    files = find_files(folders, ending, order, Remote())  # type: ignore[arg-type]
    return [Path(file.url).name for file in files]


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("img_emb_0.npy", 0),
        ("img_emb_0012.npy", 12),
        ("s3://b/a_7/text_emb_3.npy", 3),
        ("00031.npy", 31),
        ("part-7.parquet", 7),
        ("img_emb.npy", None),
        ("v2_final.npy", None),
    ],
)
def test_number_at_the_end_of_a_name(name: str, number: int | None) -> None:
    assert file_number(name) == number


def test_files_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    folder = made(tmp_path, "img_emb_10.npy", "img_emb_2.npy", "img_emb_0.npy")
    assert found(folder) == ["img_emb_0.npy", "img_emb_2.npy", "img_emb_10.npy"]


def test_files_come_in_the_order_of_their_text_where_asked(tmp_path: Path) -> None:
    folder = made(tmp_path, "img_emb_10.npy", "img_emb_2.npy", "img_emb_0.npy")
    assert found(folder, "string") == ["img_emb_0.npy", "img_emb_10.npy", "img_emb_2.npy"]


def test_another_order_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'number' or 'string', got 'size'"):
        found(made(tmp_path, "a_0.npy"), "size")


def test_numbers_order_files_over_all_folders(tmp_path: Path) -> None:
    a, b = made(tmp_path / "a", "e_1.npy", "e_3.npy"), made(tmp_path / "b", "e_0.npy", "e_2.npy")
    assert found([a, b]) == ["e_0.npy", "e_1.npy", "e_2.npy", "e_3.npy"]


def test_numbers_that_come_again_go_folder_by_folder(tmp_path: Path) -> None:
    folder = made(tmp_path, "p10/e_0.npy", "p10/e_1.npy", "p2/e_0.npy", "p2/e_1.npy")
    files = find_files(folder, ".npy", "number", Remote())
    names = [file.url.removeprefix(f"{folder}/") for file in files]
    assert names == ["p2/e_0.npy", "p2/e_1.npy", "p10/e_0.npy", "p10/e_1.npy"]


def test_names_without_numbers_are_sorted(tmp_path: Path) -> None:
    folder = made(tmp_path, "b.npy", "a10.npy", "a9.npy", "c.npy")
    assert found(folder) == ["a9.npy", "a10.npy", "b.npy", "c.npy"]


def test_other_and_hidden_files_are_passed_over(tmp_path: Path) -> None:
    folder = made(tmp_path, "e_0.npy", ".e_1.npy", ".git/e_2.npy", "README.md", "e_0.parquet")
    assert found(folder) == ["e_0.npy"]
    assert found(folder, ending=".parquet") == ["e_0.parquet"]


def test_a_file_stands_for_itself(tmp_path: Path) -> None:
    folder = made(tmp_path, "e_0.npy", "e_1.npy")
    assert found(f"{folder}/e_1.npy") == ["e_1.npy"]


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere"):
        found(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no .npy files in .*empty"):
        found(made(tmp_path / "empty", "a.txt"))
    with pytest.raises(ValueError, match="no folder"):
        found([])


def test_a_file_found_twice_is_refused(tmp_path: Path) -> None:
    folder = made(tmp_path, "in/e_0.npy")
    with pytest.raises(ValueError, match="e_0.npy is found twice"):
        found([folder, f"{folder}/in"])


def test_remote_folders_with_folders_in_them() -> None:
    fs = fsspec.filesystem("memory")
    for name in ("emb/x/e_10.npy", "emb/x/e_9.npy", "emb/e_1.npy", "emb/e_1.txt"):
        fs.pipe(f"/{name}", b"")
    files = find_files("memory://emb", ".npy", "number", Remote())
    assert [file.url for file in files] == [
        *("memory://emb/e_1.npy", "memory://emb/x/e_9.npy", "memory://emb/x/e_10.npy"),
    ]
    fs.rm("/emb", recursive=True)


def numbered(*names: str, place: str = "0") -> list[NumberedFile]:
    return [NumberedFile(name, file_number(name), place) for name in names]


def test_files_are_paired_by_number_whatever_their_order() -> None:
    images, texts = numbered("i_10.npy", "i_2.npy"), numbered("t_002.npy", "t_010.npy")
    pairs = pair_files({"images": images, "texts": texts})
    assert [(a.url, b.url) for a, b in pairs] == [
        ("i_10.npy", "t_010.npy"),
        ("i_2.npy", "t_002.npy"),
    ]


def test_one_file_each_needs_no_number() -> None:
    pairs = pair_files({"images": numbered("i.npy"), "metadata": numbered("m_7.parquet")})
    assert [(a.url, b.url) for a, b in pairs] == [("i.npy", "m_7.parquet")]


@pytest.mark.parametrize(
    ("images", "texts", "words"),
    [
        (("i_0", "i_1"), ("t_0",), "i_1 has no partner: there is no file of the texts .*number 1"),
        (("i_0",), ("t_0", "t_1"), "t_1 has no partner: there is no file of the images"),
        (("i_0", "i_1", "i_2"), ("t_0",), r"i_1 has no partner \(nor have 1 more\)"),
        (("i_0", "i_1"), ("t", "t_1"), "t has no number at the end of its name"),
        (("i_0", "j_0"), ("t_0", "t_1"), "i_0 and j_0 have the same number, 0"),
    ],
)
def test_files_without_a_partner_are_named(
    images: tuple[str, ...], texts: tuple[str, ...], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        pair_files({"images": numbered(*images), "texts": numbered(*texts)})


def test_numbers_that_come_again_are_paired_in_their_folders() -> None:
    images = [*numbered("a/i_0", place="0/a"), *numbered("b/i_0", place="0/b")]
    texts = [*numbered("b/t_0", place="0/b"), *numbered("a/t_0", place="0/a")]
    pairs = pair_files({"images": images, "texts": texts})
    assert [(a.url, b.url) for a, b in pairs] == [("a/i_0", "a/t_0"), ("b/i_0", "b/t_0")]
