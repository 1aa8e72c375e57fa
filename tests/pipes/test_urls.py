import os
from pathlib import Path

import fsspec
import pytest

from penstock.pipes import urls as urls_module
from penstock.pipes.urls import base_name, expand_urls, local_path, shard_number


@pytest.fixture
def touch(tmp_path, monkeypatch):
    """Make empty files under tmp_path, which is the working directory."""
    monkeypatch.chdir(tmp_path)

    def make(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    return make


@pytest.fixture
def remote():
    """Put files into fsspec's memory filesystem, under memory://urls/."""
    fs = fsspec.filesystem("memory")

    def put(**files):
        for name, data in files.items():
            fs.pipe(f"/urls/{name.replace('__', '.')}", data)

    yield put
    fs.rm("/urls", recursive=True)


def test_braces_separators_and_lists_keep_their_order():
    assert expand_urls("s3://b/{8..10}.tar") == [f"s3://b/{i}.tar" for i in (8, 9, 10)]
    assert expand_urls("b{1,0}.tar::a.tar") == ["b1.tar", "b0.tar", "a.tar"]
    assert expand_urls(["c.tar", Path("d") / "{0..1}.tar"]) == ["c.tar", "d/0.tar", "d/1.tar"]
    assert expand_urls("http://[::1]:90/0.tar::http://[::1]:90/1.tar") == [
        "http://[::1]:90/0.tar",
        "http://[::1]:90/1.tar",
    ]


def test_local_globs_are_sorted_by_number(touch):
    touch("d/s10.tar", "d/s9.tar", "d/s100.tar", "d/x.txt", "e/s1.tar", "d/s2.tar/inside")
    assert expand_urls("d/s*.tar") == ["d/s9.tar", "d/s10.tar", "d/s100.tar"]
    assert expand_urls("{e,d}/s?.tar") == ["e/s1.tar", "d/s9.tar"]
    assert expand_urls("d/s[1-9]0.tar") == ["d/s10.tar"]
    assert expand_urls("**/s1.tar") == ["e/s1.tar"]
    here = os.getcwd()
    assert expand_urls(f"file://{here}/d/s?.tar") == [f"file://{here}/d/s9.tar"]


def test_a_file_with_brackets_in_its_name_is_found(touch):
    touch("d[1].tar")
    assert expand_urls("d[1].tar") == ["d[1].tar"]


def test_remote_globs_keep_the_protocol(remote):
    remote(s10__tar=b"", s9__tar=b"", y__txt=b"")
    expected = ["memory://urls/s9.tar", "memory://urls/s10.tar"]
    assert expand_urls("memory://urls/*.tar") == expected
    assert expand_urls("memory:///urls/*.tar") == [url.replace("//u", "///u") for url in expected]
    assert expand_urls("memory://urls/") == expected


def test_a_query_is_no_glob():
    url = "https://host/00001.tar?download=true"
    assert expand_urls(url, start=1, end=1) == [url]
    assert base_name(url) == "00001.tar"


def test_folders_give_their_tars(touch):
    touch(
        "d/2.tar", "d/10.tar.gz", "d/1.tgz", "d/3.tar.zst", "d/3.json", "d/._2.tar", "d/sub/9.tar"
    )
    assert expand_urls("d") == ["d/1.tgz", "d/2.tar", "d/3.tar.zst", "d/10.tar.gz"]
    assert expand_urls(Path("d")) == expand_urls("d/") == expand_urls("d")
    os.mkdir("d/sub/empty")
    with pytest.raises(ValueError, match=r"no shards .*'d/sub/empty'"):
        expand_urls("d/sub/empty")


def test_tilde_is_the_home(touch, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    touch("d/1.tar")
    assert expand_urls("~/d/*.tar") == expand_urls("~/d/1.tar") == [f"{tmp_path}/d/1.tar"]
    assert local_path("~/d/1.tar") == local_path("file://~/d/1.tar") == f"{tmp_path}/d/1.tar"
    assert local_path("s3://b/1.tar") is None


def test_files_of_urls(touch, remote, tmp_path):
    touch("d/1.tar", "d/2.tar")
    remote(more__list=b"s3://b/{0..1}.tar\n")
    text = "# comment\n\n  d/*.tar \r\nmemory://urls/more.list\nlast.tar\n"
    (tmp_path / "shards.txt").write_text(text, encoding="utf-8-sig")
    (tmp_path / "shards").write_text(text)
    expected = ["d/1.tar", "d/2.tar", "s3://b/0.tar", "s3://b/1.tar", "last.tar"]
    assert expand_urls("shards.txt") == expand_urls("@shards") == expected
    assert expand_urls(tmp_path / "*.txt") == expected


def test_errors_in_a_file_of_urls_name_file_and_line(tmp_path):
    inner, outer = tmp_path / "inner.txt", tmp_path / "outer.txt"
    outer.write_text(f"a.tar\n{inner}\n")
    inner.write_text("b.tar\n\npipe:cat b.tar\n")
    with pytest.raises(ValueError, match=rf"{outer}, line 2: {inner}, line 3: 'pipe:cat"):
        expand_urls(outer)
    inner.write_text(str(outer))
    with pytest.raises(
        ValueError, match=r"names itself: .*outer.txt -> .*inner.txt -> .*outer.txt"
    ):
        expand_urls(outer)
    inner.unlink()
    with pytest.raises(FileNotFoundError, match=r"line 2: no such list of URLs: .*inner.txt"):
        expand_urls(outer)
    outer.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"outer.txt: expected a text file \(UTF-8\)"):
        expand_urls(outer)


def test_start_and_end_are_kept():
    pattern = "s3://b2/part-{0000..0012}.tar.gz"
    assert expand_urls(pattern, start=3, end=5) == [
        f"s3://b2/part-000{i}.tar.gz" for i in (3, 4, 5)
    ]
    assert expand_urls(pattern, start=12) == expand_urls(pattern)[12:]
    assert expand_urls(pattern, end=0) == expand_urls(pattern)[:1]
    with pytest.raises(ValueError, match=r"start=13 to end=20 .*the 13 shards have 0 to 12"):
        expand_urls(pattern, start=13, end=20)
    with pytest.raises(ValueError, match=r"'b.tar' has none"):
        expand_urls(["0.tar", "b.tar"], start=0)


@pytest.mark.parametrize(
    ("url", "number"),
    [
        ("00012.tar", 12),
        ("s3://b9/x2-laion_00012.tar.gz", 12),
        ("a/5.6.tgz", 6),
        ("d7/a.tar", None),
    ],
)
def test_shard_number_is_the_last_of_the_stem(url, number):
    assert shard_number(url) == number


@pytest.mark.parametrize(
    ("urls", "message"),
    [
        ([], "at least one URL"),
        ("", "empty URL"),
        ("a.tar::", "empty URL in 'a.tar::'"),
        ("nowhere/*.tar", r"'nowhere/\*.tar' matches no file"),
        ("memory://urls-none/*.tar", "matches no file"),
        ("pipe:aws s3 cp s3://b/{0..9}.tar -", "a shell command is run only with allow_pipe=True"),
        ("{pipe:cat x,b.tar}", "'pipe:cat x' is refused"),
        ("{a,a,b}.tar", r"twice: a\.tar; give each once"),
        (["a.tar", "b.tar", "./b.tar"], r"twice: b\.tar, \./b\.tar;"),
    ],
)
def test_refuses(urls, message):
    with pytest.raises(ValueError, match=message):
        expand_urls(urls)


def test_refuses_what_is_no_text():
    with pytest.raises(TypeError, match="got bytes"):
        expand_urls([b"a.tar"])


def test_mistyped_ranges_end(monkeypatch):
    monkeypatch.setattr(urls_module, "MAX_URLS", 1000)
    assert len(expand_urls("{0..999}.tar")) == 1000
    with pytest.raises(ValueError, match=r"more than 1,000 URLs"):
        expand_urls("{0..99999999999999999}.tar")
