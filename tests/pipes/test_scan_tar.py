import io
import os
import shutil
import subprocess
import tarfile
import warnings

import pytest
import webdataset
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from penstock.pipes.errors import DataError
from penstock.pipes.scan_tar import scan_tar, split_name

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
GNU_TAR = next(
    (
        path
        for path in map(shutil.which, ("gtar", "tar"))
        if path and b"GNU" in subprocess.run([path, "--version"], capture_output=True).stdout
    ),
    None,
)

# Names as webdataset and we agree upon them: no dot files in folders, no __MACOSX.
letter = st.sampled_from("abAB01_- é日\U0001f600")
stem = st.text(letter, min_size=1, max_size=8) | st.sampled_from(["__m__", "x" * 90, "é" * 120])
folder = st.sampled_from(["", "d/", "./", "a.b/c/", ".hid/", "__n__/", "__x/", "é" * 60 + "/"])
ending = st.sampled_from(["jpg", "JPG", "txt", "seg.png", "a.b.c", "", ".x", "json", "é"])
content = st.binary(max_size=40) | st.sampled_from([bytes(512), b"x" * 513, b"y" * 9000])
noise = st.sampled_from(["folder", "link", "hard", "fifo", "plain", "meta"])


@st.composite
def archives(draw):
    """The members of a tar: (kind, name, bytes), those of a sample next to each other."""
    bases = draw(st.lists(st.builds("".join, st.tuples(folder, stem)), max_size=5, unique=True))
    members = []
    for base in bases:
        endings = draw(st.lists(ending, min_size=1, max_size=3, unique_by=str.lower))
        members += [("file", f"{base}.{end}", draw(content)) for end in endings]
        if draw(st.booleans()):
            members.append((draw(noise), base, b""))
    return members


def add(tar, kind, name, data):
    info = tarfile.TarInfo(name)
    if kind == "folder":
        info.type = tarfile.DIRTYPE
    elif kind in ("link", "hard"):
        info.type = tarfile.SYMTYPE if kind == "link" else tarfile.LNKTYPE
        info.name, info.linkname = f"{name}.link", "t" * 150
    elif kind == "fifo":
        info.type = tarfile.FIFOTYPE
    elif kind == "meta":
        info.name = "__meta.x__"
        data = b"meta"
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def write(path, members, form, **options):
    with tarfile.open(path, "w", format=form, **options) as tar:
        for member in members:
            add(tar, *member)


def contents(path, index):
    """Return what `index` says is in the file: [(key, {field: bytes})]."""
    data = path.read_bytes()
    return [
        (index.key(i), {name: data[at : at + size] for name, at, size in index.members(i)})
        for i in range(len(index))
    ]


def by_webdataset(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves its files open
        dataset = webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False)
        samples = list(dataset)
    return [
        (sample["__key__"], {k: v for k, v in sample.items() if not k.startswith("__")})
        for sample in samples
    ]


@pytest.fixture(scope="module")
def folder_(tmp_path_factory):
    return tmp_path_factory.mktemp("tars")


@settings(max_examples=150)
@given(members=archives(), form=st.sampled_from(sorted(FORMATS)))
def test_any_tar_of_tarfile_reads_as_webdataset_reads_it(folder_, members, form):
    path = folder_ / "any.tar"
    try:
        write(path, members, FORMATS[form])
    except ValueError:
        assume(False)  # a name too long for ustar
    index = scan_tar(str(path), "u")
    assert contents(path, index) == by_webdataset(path)
    with tarfile.open(path) as tar:
        there = {
            (member.name, member.offset_data, member.size)
            for member in tar.getmembers()
            if member.isreg() and split_name(member.name)
        }
    found = {
        (f"{index.key(i)}.{name}".lower(), at, size)
        for i in range(len(index))
        for name, at, size in index.members(i)
    }
    assert found == {(name.lower(), at, size) for name, at, size in there}


@pytest.mark.parametrize("form", ["v7", "oldgnu", "gnu", "ustar", "posix"])
@pytest.mark.skipif(GNU_TAR is None, reason="needs GNU tar")
def test_tars_of_gnu_tar(tmp_path, form):
    root = tmp_path / "data"
    names = ["a.jpg", "a.txt", "d.x/b.jpg", "d.x/b.seg.png", "é.jpg"]
    if form != "v7":
        names.append(f"{'long' * 20}/{'name' * 15}.jpg")
        os.makedirs(root / names[-1].partition("/")[0])
    if form not in ("v7", "ustar"):
        names.append(f"{'n' * 200}.jpg")
    os.makedirs(root / "d.x")
    for i, name in enumerate(names):
        (root / name).write_bytes(os.urandom(700 * i))
    os.symlink("a.jpg", root / "s.jpg")
    os.link(root / "a.jpg", root / "z.jpg")
    path = tmp_path / "x.tar"
    subprocess.run(
        [GNU_TAR, f"--format={form}", "--sort=name", "-C", root, "-cf", path, "."], check=True
    )
    found = contents(path, scan_tar(str(path), "u"))
    assert found == by_webdataset(path)
    assert {f"{key}.{field}": data for key, fields in found for field, data in fields.items()} == {
        f"./{name}": (root / name).read_bytes() for name in names
    }


@pytest.mark.parametrize("form", ["oldgnu", "gnu", "posix"])
@pytest.mark.skipif(GNU_TAR is None, reason="needs GNU tar")
def test_sparse_members_are_refused(tmp_path, form):
    with open(tmp_path / "a.bin", "wb") as file:
        file.truncate(1 << 20)
        file.seek(1 << 19)
        file.write(b"x")
    path = tmp_path / "x.tar"
    subprocess.run(
        [GNU_TAR, f"--format={form}", "--sparse", "-C", tmp_path, "-cf", path, "a.bin"], check=True
    )
    with pytest.raises(DataError, match=r"^u: byte \d+: .*a\.bin' is stored as a sparse file"):
        scan_tar(str(path), "u")


def test_tars_of_shard_writer(tmp_path):
    with webdataset.ShardWriter(f"{tmp_path}/%d.tar", verbose=0) as writer:
        for i in range(20):
            writer.write({"__key__": f"d/{i:04d}", "jpg": os.urandom(i * 300), "json": {"i": i}})
    path = tmp_path / "0.tar"
    found = contents(path, scan_tar(str(path), "u"))
    assert found == by_webdataset(path)
    assert [key for key, _ in found] == [f"d/{i:04d}" for i in range(20)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/b.c.JPG", ("a/b", "c.jpg")),
        ("./1.jpg", ("./1", "jpg")),
        ("a.b/c.jpg", ("a.b/c", "jpg")),
        ("1.", ("1", "")),
        ("1..x", ("1", ".x")),
        ("a.b/c", None),
        (".hidden", None),
        ("a/._1.jpg", None),
        ("__MACOSX/1.jpg", None),
        ("a/__MACOSX/b/1.jpg", None),
        ("a__MACOSX/1.jpg", ("a__MACOSX/1", "jpg")),
        ("__meta.json__", None),
        ("__meta__/1.jpg", None),
        ("___/1.jpg", ("___/1", "jpg")),
        ("a/__meta.json__", ("a/__meta", "json__")),
    ],
)
def test_split_name(name, expected):
    assert split_name(name) == expected


def test_files_of_macos_are_left_out(tmp_path):
    path = tmp_path / "x.tar"
    names = ["._1.jpg", "1.jpg", "d/.DS_Store", "__MACOSX/._1.jpg", "__MACOSX/d/2.jpg"]
    write(path, [("file", name, b"x") for name in names], tarfile.PAX_FORMAT)
    assert contents(path, scan_tar(str(path), "u")) == [("1", {"jpg": b"x"})]


def test_members_that_are_not_adjacent_are_one_sample(tmp_path):
    path = tmp_path / "x.tar"
    names = ["2.jpg", "1.jpg", "1.txt", "2.txt"]
    write(path, [("file", name, name.encode()) for name in names], tarfile.GNU_FORMAT)
    assert contents(path, scan_tar(str(path), "u")) == [
        ("2", {"jpg": b"2.jpg", "txt": b"2.txt"}),
        ("1", {"jpg": b"1.jpg", "txt": b"1.txt"}),
    ]


@pytest.mark.parametrize("names", [["1.jpg", "1.JPG"], ["1.jpg", "2.jpg", "1.jpg"]])
def test_a_field_that_comes_twice_is_an_error_with_both_places(tmp_path, names):
    path = tmp_path / "x.tar"
    write(path, [("file", name, b"x") for name in names], tarfile.GNU_FORMAT)
    last = 1024 * len(names) - 512
    message = rf"^u: sample '1' has the field 'jpg' twice, at bytes 512 and {last}:"
    with pytest.raises(DataError, match=message):
        scan_tar(str(path), "u")


def test_a_reserved_name_is_refused(tmp_path):
    path = tmp_path / "x.tar"
    write(path, [("file", "1.__key__", b"x")], tarfile.GNU_FORMAT)
    with pytest.raises(DataError, match="field '__key__', which is a reserved name"):
        scan_tar(str(path), "u")


@pytest.mark.parametrize("form", sorted(FORMATS))
def test_names_that_are_not_utf_8_are_str_all_the_same(tmp_path, form):
    path = tmp_path / "x.tar"
    write(path, [("file", "\udcff\udce9.jpg", b"x")], FORMATS[form], errors="surrogateescape")
    index = scan_tar(str(path), "u")
    assert index.keys() == [index.key(0)] == ["\udcff\udce9"]


def header(
    name=b"1.jpg", size=b"00000000003\0", kind=b"0", signed=False, magic=b"ustar\x0000", prefix=b""
):
    """Return a header with its checksum, made by hand."""
    block = bytearray(512)
    block[: len(name)] = name
    block[124:136] = size
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[257:265] = magic
    block[345 : 345 + len(prefix)] = prefix
    total = sum(byte - 256 if signed and byte > 127 else byte for byte in block)
    block[148:156] = b"%06o\0 " % total
    return bytes(block)


def body(data):
    return data + bytes(-len(data) % 512)


def scanned(path, *blocks):
    path.write_bytes(b"".join(blocks))
    return contents(path, scan_tar(str(path), "u"))


@pytest.mark.parametrize(
    "head",
    [
        header(size=b"\x80" + bytes(10) + b"\x03"),
        header(size=b"          3 "),
        header(size=b"3" + bytes(11)),
        header(name=b"1.jpg\0\xff\xff\xff\xff", signed=True),
        header(name=b"1.jpg\0\xff\xff\xff\xff"),
        header(magic=bytes(8), kind=b"\0"),
        header(kind=b"7"),
        header(magic=b"ustar  \0", prefix=b"14123456701"),  # GNU: a time of access
    ],
)
def test_headers_of_old_and_odd_writers(tmp_path, head):
    assert scanned(tmp_path / "x.tar", head, body(b"abc"), bytes(1024)) == [("1", {"jpg": b"abc"})]


def records(**values):
    found = b""
    for name, value in values.items():
        rest = b" %s=%s\n" % (name.replace("__", ".").encode(), value)
        length = len(rest) + 1
        while len(str(length)) + len(rest) != length:
            length += 1
        found += str(length).encode() + rest
    return found


def test_pax_headers_override(tmp_path):
    path = tmp_path / "x.tar"
    over = records(path="é/2.png".encode(), size=b"4", mtime=b"1.5")
    everywhere = records(comment=b"a b=c\nd", path=b"g/3.txt")
    blocks = [
        *(header(kind=b"x", size=b"%011o\0" % len(over)), body(over)),
        *(header(), body(b"abcd")),
        *(header(kind=b"g", size=b"%011o\0" % len(everywhere)), body(everywhere)),
        *(header(), body(b"xyz")),
        *(header(kind=b"L", size=b"%011o\0" % 300), body(b"n" * 295 + b".jpg\0")),
        *(header(kind=b"K", size=b"%011o\0" % 300), body(b"n" * 299 + b"\0")),
        *(header(), body(b"uvw")),
    ]
    assert scanned(path, *blocks) == [
        ("é/2", {"png": b"abcd"}),
        ("g/3", {"txt": b"xyz"}),
        ("n" * 295, {"jpg": b"uvw"}),
    ]
    with tarfile.open(path) as tar:
        assert [member.name for member in tar] == ["é/2.png", "g/3.txt", "n" * 295 + ".jpg"]


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"4", b"5", b"6"])
def test_links_and_folders_have_no_body_whatever_size_they_say(tmp_path, kind):
    blocks = [header(b"1.jpg", kind=kind), header(b"2.jpg"), body(b"abc")]
    assert scanned(tmp_path / "x.tar", *blocks) == [("2", {"jpg": b"abc"})]


def test_the_body_of_an_unknown_kind_is_jumped_over(tmp_path):
    blocks = [header(kind=b"V"), body(b"vol"), header(b"2.jpg"), body(b"abc")]
    assert scanned(tmp_path / "x.tar", *blocks) == [("2", {"jpg": b"abc"})]


def test_what_follows_the_end_does_not_count(tmp_path):
    one = header() + body(b"abc")
    assert scanned(tmp_path / "x.tar", one, bytes(1024), one) == [("1", {"jpg": b"abc"})]
    assert scanned(tmp_path / "x.tar", one, bytes(512)) == [("1", {"jpg": b"abc"})]
    assert scanned(tmp_path / "x.tar", bytes(10240)) == []


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([b""], "byte 0 of 0: expected a tar header, but the file is empty"),
        ([b"hello"], "byte 0 of 5: expected a header of 512 bytes"),
        ([b"hello" * 200], "byte 0 of 1000: expected a tar header, but found"),
        ([b"\0" * 511 + b"x"], "byte 0 of 512: expected a tar header, but its checksum is wrong"),
        ([header(), body(b"abc"), b"x"], "byte 1024 of 1025: expected a header of 512 bytes"),
        ([header(), b"abc"], "byte 0 of 515: expected a member of 3 bytes, but the file ends"),
        ([header(size=b"77777777777\0")], "expected a member of 8,589,934,591 bytes"),
        ([header(size=b"\x80" + b"\x7f" * 11)], "expected a member of .* bytes, but the file ends"),
        ([header(size=b"\xff" * 12)], "in place of a number"),
        ([header(size=b"-0000000003\0")], "found b'-0000000003.*in place of a number"),
        ([header(), body(b"abc"), bytes(512), header()], "byte 1536 .* second block of zeros"),
        ([header(kind=b"x"), body(b"abc"), bytes(1024)], "expected pax records"),
        ([header(kind=b"x"), body(b"4 =")], "expected pax records"),
        ([header(kind=b"x"), body(b"9 a")], "expected pax records"),
        ([header(kind=b"L"), body(b"abc"), bytes(1024)], "byte 1024 .* checksum is wrong"),
        ([header(kind=b"L"), body(b"abc")], "byte 1024 of 1024: expected a header of 512 bytes"),
        ([header(kind=b"L", size=b"00077777777\0")], "its 16,777,215 bytes are too many"),
        ([header(kind=b"L", size=b"00000007777\0")], "extended header of 4095 bytes, but the file"),
    ],
)
def test_damage_is_an_error_that_names_the_place(tmp_path, blocks, message):
    with pytest.raises(DataError, match=rf"^u: .*{message}"):
        scanned(tmp_path / "x.tar", *blocks)


def test_a_size_in_a_pax_header_must_be_a_number(tmp_path):
    over = records(size=b"1x")
    blocks = [header(kind=b"x", size=b"%011o\0" % len(over)), body(over), header(), body(b"abc")]
    with pytest.raises(DataError, match=r"byte 1024 .* found b'1x'"):
        scanned(tmp_path / "x.tar", *blocks)


@pytest.fixture(scope="module", params=sorted(FORMATS))
def whole(request, folder_):
    """A tar of 6 members: its path, what is in it, and the places of all blocks with a checksum."""
    path = folder_ / f"{request.param}.tar"
    names = [f"{'d' * 60}/{'k' * 45}{i}.{end}" for i in range(3) for end in ("jpg", "txt")]
    sizes = (600, 5, 0, 30, 512, 9)
    members = [
        ("file", name, b"%d" % i * n) for i, (name, n) in enumerate(zip(names, sizes, strict=True))
    ]
    write(path, members, FORMATS[request.param])
    with tarfile.open(path) as tar:
        places = {at for member in tar for at in (member.offset, member.offset_data - 512)}
    return path, contents(path, scan_tar(str(path), "u")), sorted(places)


@given(data=st.data())
def test_a_cut_is_an_error_unless_it_is_between_members(whole, data):
    path, expected, places = whole
    length = data.draw(st.integers(0, places[-1] + 1023))  # the last body has one block
    cut = path.with_name("cut.tar")
    cut.write_bytes(path.read_bytes()[:length])
    try:
        found = contents(cut, scan_tar(str(cut), "u"))
    except DataError:
        return
    assert length in places
    assert flat(found) == flat(expected)[: len(flat(found))]


def flat(samples):
    return [(key, *field) for key, fields in samples for field in fields.items()]


@given(data=st.data())
def test_a_flipped_bit_in_a_header_is_an_error(whole, data):
    path, expected, places = whole
    content = bytearray(path.read_bytes())
    place = data.draw(st.sampled_from(places)) + data.draw(st.integers(0, 511))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    damaged = path.with_name("damaged.tar")
    damaged.write_bytes(content)
    try:
        found = contents(damaged, scan_tar(str(damaged), "u"))
    except DataError:
        return
    # Only the checksum itself may be written in another way: with a blank for a leading zero.
    assert 148 <= place % 512 < 156
    assert found == expected
