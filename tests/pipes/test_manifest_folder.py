"""Folders of images, and Hugging Face's layouts of them."""

import json
import os
import pickle

import pytest

from penstock.pipes import DataError, ManifestReader


@pytest.fixture
def folder(tmp_path, make_jpeg):
    """Return a function that writes files into a folder: texts, and images by number."""

    def write(**files):
        for name, value in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(value, int):
                path.write_bytes(make_jpeg(40 + value, 60, value))
            else:
                path.write_text(value, encoding="utf-8") if isinstance(
                    value, str
                ) else path.write_bytes(value)
        return tmp_path

    return lambda files: write(**files)


def once(pipe):
    return list(pipe.lanes(1, repeat=False))


def captions(pipe):
    """Return key to caption of all samples."""
    loader = pipe.batch(2).lanes(1, repeat=False).decode(8).loader()
    return {k: c for b in loader for k, c in zip(b["__key__"], b["caption"], strict=True)}


def test_captions_are_paired_by_path_and_never_by_name_alone(folder):
    root = folder(
        {
            "a/k0.jpg": 1,
            "a/k0.txt": "in a",
            "b/k0.JPG": 2,
            "b/k0.caption": "in b",
            "b/c/k0.jpeg": 3,
            "b/c/k0.TXT": "in c",
            "k0.Jpg": 4,
            "k0.txt": "\ufeffgrün",
            ".hidden/x.jpg": 5,
            ".y.jpg": 6,
        }
    )
    reader = ManifestReader(root, shuffle=False)
    assert [s["__key__"] for s in once(reader)] == ["a/k0.jpg", "b/c/k0.jpeg", "b/k0.JPG", "k0.Jpg"]
    assert captions(reader) == {
        "a/k0.jpg": "in a",
        "b/k0.JPG": "in b",
        "b/c/k0.jpeg": "in c",
        "k0.Jpg": "grün",
    }


def test_a_table_goes_to_workers_that_are_not_forked(folder):
    root = folder({"a.jpg": 1, "b.jpg": 2, "b.txt": "b"})
    reader = ManifestReader(root, shuffle=False)
    again = pickle.loads(pickle.dumps(reader))
    assert [s["__key__"] for s in once(again)] == ["a.jpg", "b.jpg"]
    assert again.arguments() == reader.arguments()


def test_txt_comes_before_caption_and_names_may_have_dots(folder):
    root = folder(
        {
            "a.b.jpg": 1,
            "a.b.txt": "dots",
            "a.txt": "lone",
            "c.jpg": 2,
            "c.caption": "no",
            "c.txt": "yes",
        }
    )
    with pytest.warns(UserWarning, match=r"1 text file.* such as .*/a.txt: they are passed over"):
        reader = ManifestReader(root)
    assert captions(reader) == {"a.b.jpg": "dots", "c.jpg": "yes"}


def test_a_folder_without_captions_has_none(folder):
    root = folder({"a.jpg": 1, "b.png": 2})
    (batch,) = ManifestReader(root).batch(2).decode(8).loader()
    assert "caption" not in batch
    assert set(once(ManifestReader(root))[0]) == {"__key__", "__url__", "__ref__", "image"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"there is no caption beside .*b.jpg: write .*b.txt"),
        (b" \n", r"sample 'b.jpg' of .*: field 'caption': .*b.txt is empty"),
        (b"gr\xfcn", r"sample 'b.jpg' of .*text is not UTF-8: byte 0xfc"),
    ],
)
def test_a_caption_that_is_missing_or_bad_is_named_and_skipped(text, message, folder):
    root = folder(
        {"a.jpg": 1, "a.txt": "a", "b.jpg": 2} | ({} if text is None else {"b.txt": text})
    )
    pipe = ManifestReader(root, shuffle=False).batch(2)
    with pytest.raises(DataError, match=message):
        next(iter(pipe.decode(8).loader()))
    loader = pipe.decode(8).loader(on_error="skip", quarantine=root / "quarantine.jsonl")
    assert next(iter(loader))["caption"] == ["a", "a"]
    if text != b"gr\xfcn":
        (batch,) = pipe.decode(8, caption_default="?").loader()
        assert batch["caption"] == ["a", "?"]
    (kept,) = once(ManifestReader(root).filter(lambda s: s["__key__"] == "a.jpg").filter_caption())
    assert kept["__key__"] == "a.jpg"
    if text is None:
        assert len(once(ManifestReader(root).filter_caption())) == 1


def test_links_are_followed_but_not_in_circles(folder):
    root = folder({"a/1.jpg": 1})
    os.symlink(root, root / "a" / "again")
    os.symlink(root / "a" / "1.jpg", root / "2.jpg")
    assert [s["__key__"] for s in once(ManifestReader(root, shuffle=False))] == ["2.jpg", "a/1.jpg"]


def test_the_state_knows_the_names(folder):
    root = folder({"a.jpg": 1, "b.jpg": 2})
    state = ManifestReader(root).batch(1).decode().loader().state_dict()
    folder({"c.jpg": 3})
    with pytest.raises(ValueError, match=r"ManifestReader had rows="):
        ManifestReader(root).batch(1).decode().loader().load_state_dict(state)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_an_imagefolder(kind, folder):
    rows = {
        "csv": "file_name,text\nx/a.jpg,one\nb.jpg,two\n",
        "jsonl": '{"file_name": "x/a.jpg", "text": "one"}\n{"file_name": "b.jpg", "text": "two"}\n',
    }
    root = folder({"x/a.jpg": 1, "b.jpg": 2, f"metadata.{kind}": rows[kind], "b.txt": "no"})
    assert captions(ManifestReader(root)) == {"x/a.jpg": "one", "b.jpg": "two"}


def test_an_imagefolder_with_metadata_in_its_folders(folder):
    root = folder(
        {
            "train/a.jpg": 1,
            "train/metadata.jsonl": '{"file_name": "a.jpg", "text": "1"}\n',
            "more/a.jpg": 2,
            "more/metadata.csv": "file_name,text\na.jpg,2\n",
        }
    )
    found = once(ManifestReader(root, shuffle=False))
    assert [s["caption"] for s in found] == ["2", "1"]
    assert [s["image"].path for s in found] == [
        str(root / n) for n in ("more/a.jpg", "train/a.jpg")
    ]


def test_metadata_without_file_name_lists_its_columns(folder):
    root = folder({"metadata.jsonl": json.dumps({"name": "a.jpg", "text": "t"})})
    with pytest.raises(
        ValueError, match=r"metadata.jsonl has no column 'file_name' .*'name', 'text'"
    ):
        ManifestReader(root)
