"""Manifests at URLs."""

import os
import time

import fsspec
import pytest

from penstock.pipes import ManifestReader
from penstock.pipes.manifest_file import manifest_file
from penstock.pipes.remote import Remote


def read(path):
    with open(path, "rb") as file:
        return file.read()


def test_each_version_is_fetched_once(s3, tmp_path):
    remote, cache = Remote(s3.options), str(tmp_path)
    url = s3.put("rows.csv", b"one")
    first = manifest_file(url, remote, cache)
    assert manifest_file(url, remote, cache) == first
    assert s3.gets("rows.csv") == [0]
    s3.put("rows.csv", b"two")
    second = manifest_file(url, remote, cache)
    assert (read(first), read(second)) == (b"one", b"two")  # a run may be reading the first still
    assert sorted(os.listdir(tmp_path / "manifests")) == sorted(
        os.path.basename(path) for path in (first, second)
    )


def test_where_no_version_is_told_it_is_fetched_each_time(web, tmp_path):
    url = web.put("rows.csv", b"one")
    first = manifest_file(url, Remote(), str(tmp_path))
    assert manifest_file(url, Remote(), str(tmp_path)) == first
    assert web.gets("rows.csv") == 2
    web.put("rows.csv", b"two")
    second = manifest_file(url, Remote(), str(tmp_path))
    assert (read(first), read(second)) == (b"one", b"two")
    assert len(os.listdir(tmp_path / "manifests")) == 2


def test_faults(s3, tmp_path):
    remote = Remote(s3.options)
    url = s3.put("rows.csv", b"image,caption\n" * 100)
    s3.fail_gets("rows.csv", 2, "truncate", 100)
    assert read(manifest_file(url, remote, str(tmp_path))) == b"image,caption\n" * 100
    with pytest.raises(FileNotFoundError, match=f"^no such manifest: {s3.url('no.csv')}$"):
        manifest_file(s3.url("no.csv"), remote, str(tmp_path))
    s3.put("rows.csv", b"")
    s3.fail_gets("rows.csv", 99, "status", 403)
    time.sleep(0.01)
    assert manifest_file(url, remote, str(tmp_path))  # an empty file is fetched by no request
    s3.put("rows.csv", b"x")
    with pytest.raises(PermissionError):
        manifest_file(url, remote, str(tmp_path))
    assert len(os.listdir(tmp_path / "manifests")) == 2


def test_a_manifest_that_is_remote_itself(make_jpeg):
    fs = fsspec.filesystem("memory")
    fs.pipe("/set/img/0.jpg", make_jpeg(40, 50, 0))
    fs.pipe("/set/rows.csv", b"path,text\nimg/0.jpg,one\n")
    try:
        (batch,) = ManifestReader("memory://set/rows.csv").batch(1).decode().loader()
        assert batch["caption"] == ["one"]
        assert batch["image"].shape == (1, 3, 40, 50)
        assert batch["__url__"] == ["memory://set/rows.csv#line=2"]
        fs.pipe("/set/rows.csv", b"path,text\nimg/0.jpg,two\n")
        (batch,) = ManifestReader("memory://set/rows.csv").batch(1).decode().loader()
        assert batch["caption"] == ["two"]
        with pytest.raises(FileNotFoundError, match=r"no such manifest: memory://set/no.csv"):
            ManifestReader("memory://set/no.csv")
    finally:
        fs.rm("/set", recursive=True)
