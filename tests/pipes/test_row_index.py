"""What is kept on disk of a large manifest: where its rows lie, and how large its images are."""

import os
from array import array

import pytest

from penstock.pipes import ManifestReader, manifest_source
from penstock.pipes.row_index import RowIndex
from penstock.pipes.row_sizes import RowSizes


@pytest.fixture
def small(monkeypatch):
    """Keep what is of few rows, too."""
    monkeypatch.setattr("penstock.pipes.table_text.KEPT_FROM", 1)
    monkeypatch.setattr("penstock.pipes.row_sizes.KEPT_FROM", 1)


@pytest.fixture
def scans(monkeypatch):
    """Count the scans of manifests."""
    from penstock.pipes.table_text import TextTable

    found = []
    real = TextTable._scan
    monkeypatch.setattr(TextTable, "_scan", lambda *a: found.append(a[0].path) or real(*a))
    return found


def captions(path, **more):
    reader = ManifestReader(path, shuffle=False, **more)
    return [s["caption"] for s in reader.lanes(1, repeat=False)]


@pytest.mark.usefixtures("small")
def test_a_manifest_is_scanned_once_until_it_changes(tmp_path, scans):
    path = tmp_path / "rows.csv"
    path.write_text("image,caption,other\na.jpg,one,x\nb.jpg,two,y\n")
    for _ in range(3):
        assert captions(path) == ["one", "two"]
    assert len(scans) == 1
    assert captions(path, caption="other") == ["x", "y"]  # another reading of the same rows
    assert len(scans) == 2
    path.write_text("image,caption,other\na.jpg,one,x\nb.jpg,TWO,yy\n")
    assert captions(path) == ["one", "TWO"]
    assert len(scans) == 3
    stat = os.stat(path)
    path.write_text("image,caption,other\na.jpg,one,x\nb.jpg,two,yy\n")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(RuntimeError, match=r"rows.csv, line 3"):
        captions(path)


@pytest.mark.usefixtures("small")
def test_columns_that_come_late_change_no_choice(tmp_path, scans):
    path = tmp_path / "rows.jsonl"
    rows = ['{"path": "a.jpg", "text": "t"}'] * 120
    path.write_text(
        "\n".join([*rows, '{"path": "b.jpg", "text": "u", "image": "x", "caption": 1}'])
    )
    for _ in range(2):
        reader = ManifestReader(path)
        assert reader.open(False).sample(120, 0)["__key__"] == "b.jpg"
        assert reader.open(False).sample(120, 0)["caption"] == "u"
    assert len(scans) == 1


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("content", [b"", b"nothing", b"PK\x03\x04broken"])
def test_a_broken_index_is_made_anew(content, tmp_path, scans):
    path = tmp_path / "rows.csv"
    path.write_text("image,caption\na.jpg,one\n")
    captions(path)
    index = os.path.join(os.environ["PENSTOCK_CACHE"], "index")
    (name,) = [name for name in os.listdir(index) if name.endswith(".rows.npz")]
    with open(os.path.join(index, name), "wb") as file:
        file.write(content)
    assert captions(path) == ["one"]
    assert captions(path) == ["one"]
    assert len(scans) == 2


def test_an_index_that_cannot_be_kept_is_done_without(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    index = RowIndex(["a"], 1, array("q", [0]), array("I", [1]), array("I", [1]), array("I", [2]))
    index.save(str(tmp_path / "file" / "x.npz"), (1, 2))
    index.save(str(tmp_path / "x.npz"), (1, 2))
    assert RowIndex.load(str(tmp_path / "x.npz"), (1, 3)) is None
    found = RowIndex.load(str(tmp_path / "x.npz"), (1, 2))
    assert found == index


@pytest.mark.usefixtures("small")
def test_sizes_are_shared_and_never_out_of_date(tmp_path):
    path = str(tmp_path / "cache" / "rows.sizes")
    sizes, other = RowSizes(3, path), RowSizes(3, path)
    asked = []

    def measure(size):
        return lambda: asked.append(size) or size

    assert sizes.get(1) is None
    assert sizes.find(1, (7, 8), measure((40, 65535))) == (40, 65535)
    assert sizes.get(1) == (40, 65535)
    assert other.find(1, (7, 8), measure((1, 1))) == (40, 65535)
    assert RowSizes(3, path).find(1, (7, 9), measure((41, 2))) == (41, 2)
    assert RowSizes(3, path).find(1, (7, 9), measure((1, 1))) == (41, 2)
    assert sizes.find(2, (0, 0), measure((1 << 20, 5))) == (1 << 20, 5)  # too large to be kept
    assert RowSizes(3, path).find(2, (0, 0), measure((3, 5))) == (3, 5)
    assert asked == [(40, 65535), (41, 2), (1 << 20, 5), (3, 5)]


def test_sizes_of_few_rows_are_kept_in_memory_alone(tmp_path):
    path = tmp_path / "rows.sizes"
    assert RowSizes(3, str(path)).find(0, (1, 1), lambda: (4, 5)) == (4, 5)
    assert not path.exists()


@pytest.mark.usefixtures("small")
def test_headers_are_read_once_by_all_runs(tmp_path, make_jpeg, monkeypatch):
    for i in range(4):
        (tmp_path / f"{i}.jpg").write_bytes(make_jpeg(40 + i, 60, i))
    read = []
    real = manifest_source.read_image_size
    monkeypatch.setattr(manifest_source, "read_image_size", lambda e: read.append(e) or real(e))

    def heights():
        return [h for block in ManifestReader(tmp_path).image_sizes() for h, _ in block.tolist()]

    assert heights() == heights() == [40, 41, 42, 43]
    assert len(read) == 4
    (tmp_path / "2.jpg").write_bytes(make_jpeg(99, 60, 2))
    assert heights() == [40, 41, 99, 43]
    assert len(read) == 5
