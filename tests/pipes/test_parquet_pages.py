"""Single values of a Parquet file, a page at a time: the same as pyarrow's, or an error."""

import pickle
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.pipes import DataError, ManifestReader
from penstock.pipes.parquet_pages import PagedColumn, Unsupported
from penstock.pipes.parquet_values import read_hybrid
from penstock.pipes.thrift import read_struct

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

CHANCE = random.Random(5)
VALUES = [CHANCE.randbytes(CHANCE.choice((0, 3, 40, 900, 5000))) for _ in range(200)]
SOME = [None if i % 7 == 3 or 60 < i < 90 else v for i, v in enumerate(VALUES)]
FEW = [(b"red", b"round", None)[i % 3] for i in range(200)]


def column_of(path, number=0):
    with pq.ParquetFile(path) as file:
        return PagedColumn(str(path), file, number), file.metadata


def everything(path, number=0):
    column, metadata = column_of(path, number)
    rows = [
        (group, row)
        for group in range(metadata.num_row_groups)
        for row in range(metadata.row_group(group).num_rows)
    ]
    order = rows[::2] + rows[::-1]  # forth, and then back
    found = {at: column.value(*at) for at in order}
    return [found[at] for at in rows]


@pytest.mark.parametrize("codec", ["none", "snappy", "gzip", "zstd", "brotli"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("dictionary", [True, False])
def test_values_are_pyarrows(codec, version, dictionary, tmp_path):
    path = tmp_path / "rows.parquet"
    for values in (VALUES, SOME, FEW, [None] * 50, [b"one"] * 50, [b""]):
        for nullable in (True, False) if None not in values else (True,):
            schema = pa.schema([pa.field("image", pa.binary(), nullable)])
            pq.write_table(
                pa.table({"image": pa.array(values, pa.binary())}, schema),
                path,
                compression=codec,
                use_dictionary=dictionary,
                data_page_version=version,
                data_page_size=3000,
                dictionary_pagesize_limit=9000,
                row_group_size=75,
                write_page_checksum=nullable,
                write_page_index=dictionary,
                write_batch_size=8,
            )
            assert everything(path) == values


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_values_in_a_struct(version, tmp_path):
    rows = [
        None if i % 9 == 4 else {"bytes": value, "path": f"{i}.jpg"} for i, value in enumerate(SOME)
    ]
    path = tmp_path / "rows.parquet"
    table = pa.table({"n": range(200), "image": rows})
    pq.write_table(table, path, data_page_version=version, write_batch_size=8)
    assert everything(path, 1) == [row and row["bytes"] for row in rows]


def test_large_and_other_types_of_bytes(tmp_path):
    path = tmp_path / "rows.parquet"
    for kind in (pa.large_binary(), pa.binary_view(), pa.string()):
        values = ["é" * i for i in range(50)] if kind == pa.string() else VALUES[:50]
        pq.write_table(pa.table({"image": pa.array(values, kind)}), path)
        found = everything(path)
        assert [v.decode() for v in found] == values if kind == pa.string() else found == values


def test_one_page_is_read_and_not_its_row_group(tmp_path, monkeypatch):
    values = [CHANCE.randbytes(20_000) for _ in range(400)]
    path = tmp_path / "rows.parquet"
    more = {"compression": "none", "data_page_size": 40_000, "write_batch_size": 2}
    pq.write_table(pa.table({"image": values}), path, **more)
    sizes = []
    real = PagedColumn._unpack
    monkeypatch.setattr(
        PagedColumn,
        "_unpack",
        lambda self, group, page: sizes.append(page.packed) or real(self, group, page),
    )
    column, metadata = column_of(path)
    assert metadata.num_row_groups == 1
    assert column.value(0, 300) == values[300]
    rows = column.beside(0, 300)
    assert 300 in rows
    assert 1 <= len(rows) <= 4
    assert [column.value(0, row) for row in rows] == [values[row] for row in rows]
    assert len(sizes) == 1
    assert sizes[0] < 100_000
    monkeypatch.setattr("penstock.pipes.parquet_pages.KEPT_BYTES", 200_000)
    for row in range(0, 400, 3):
        assert column.value(0, row) == values[row]
    assert sum(len(v.data) for v in column._kept.values()) <= 200_000 + 100_000
    again = pickle.loads(pickle.dumps(column))
    assert again.value(0, 7) == values[7]
    assert not again._kept.keys() & {0}


@pytest.mark.parametrize("how", ["lz4", "delta", "list"])
def test_what_is_seldom_is_left_to_pyarrow(how, tmp_path, monkeypatch):
    path = tmp_path / "rows.parquet"
    values = [b"x" + value for value in VALUES]
    table = pa.table({"image": values, "text": [str(i) for i in range(200)]})
    if how == "list":
        pq.write_table(pa.table({"image": [[b"a"], [b"b"]]}), path)
        with pytest.raises(Unsupported):
            column_of(path)
        return
    more = {"compression": "lz4"}
    if how == "delta":
        more = {"use_dictionary": False, "column_encoding": {"image": "DELTA_LENGTH_BYTE_ARRAY"}}
    pq.write_table(table, path, row_group_size=30, **more)
    monkeypatch.setattr("penstock.pipes.table_parquet.GROUP_BYTES", 1)
    reader = ManifestReader(path)
    source = reader.open(False)
    for i in (0, 35, 1, 199, 180, 0):
        assert source.sample(i, 0)["image"].read() == values[i]
    assert len(reader.table._groups) == 1
    assert reader.table.beside(35) == range(30, 60)


def test_a_damaged_page_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(
        pa.table({"image": VALUES}), path, write_page_checksum=True, use_dictionary=False
    )
    data = bytearray(path.read_bytes())
    at = data.index(VALUES[50][:9] or VALUES[51][:9])
    data[at] ^= 1
    path.write_bytes(data)
    column, _ = column_of(path)
    with pytest.raises(DataError, match=r"rows.parquet: the page at byte \d+ is damaged: .*check"):
        column.value(0, 50)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_damage_gives_errors_and_never_a_crash(seed, tmp_path_factory):
    chance = random.Random(seed)
    path = tmp_path_factory.getbasetemp() / "damaged.parquet"
    pq.write_table(
        pa.table({"image": chance.choice((SOME, FEW))[:80]}),
        path,
        compression=chance.choice(("none", "snappy", "zstd")),
        data_page_version=chance.choice(("1.0", "2.0")),
        data_page_size=1000,
        write_batch_size=8,
        use_dictionary=chance.random() < 0.5,
    )
    column, metadata = column_of(path)
    data = bytearray(path.read_bytes())
    begin, end, *_ = column._groups[0]
    for _ in range(chance.randrange(1, 6)):
        data[chance.randrange(begin, end)] = chance.randrange(256)
    path.write_bytes(data)
    column, _ = column_of(path) if chance.random() < 0.5 else (column, None)
    from penstock.pipes.read import forget

    forget(str(path))
    for row in range(metadata.num_rows):
        try:
            value = column.value(0, row)
            assert value is None or isinstance(value, bytes)
        except (DataError, Unsupported):
            pass


@given(st.binary(max_size=60))
def test_any_bytes_are_a_struct_or_an_error(data):
    try:
        found, end = read_struct(data)
    except ValueError:
        return
    assert isinstance(found, dict)
    assert 0 < end <= len(data)


@given(st.binary(max_size=40), st.integers(0, 32), st.integers(0, 99))
def test_any_bytes_are_numbers_or_an_error(data, bits, count):
    try:
        found = read_hybrid(data, bits, count)
    except ValueError:
        return
    assert found.shape == (count,)
    assert ((found >= 0) & (found < 1 << 32)).all()


def test_runs_and_packed_numbers():
    # The example of Parquet's page: 0 to 7 in 3 bits are 10001000 11000110 11111010.
    packed = bytes([0b11, 0b10001000, 0b11000110, 0b11111010])
    assert read_hybrid(packed, 3, 8).tolist() == list(range(8))
    run = bytes([10, 5])
    assert read_hybrid(run + packed, 3, 12).tolist() == [5] * 5 + list(range(7))
    assert read_hybrid(bytes([200, 1, 1, 2]), 9, 100).tolist() == [513] * 100
    assert np.array_equal(read_hybrid(bytes([6]), 0, 3), [0, 0, 0])
