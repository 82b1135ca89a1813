"""Captioned pictures: tables, texts beside them, archives of every system, and what is refused."""

import gzip
import io
import json
import tarfile
import warnings
import zipfile

import numpy as np
import pytest
from PIL import Image

from foveal.data import archives
from foveal.data import images as image_module
from foveal.data.caption_sources import captions_to_score, open_captions
from foveal.data.captions import PictureDataConfig


def png(shade=0):
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def config(path, **options):
    return PictureDataConfig(path=str(path), size=8, **options)


def put(root, files):
    for name, raw in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    return root


def captions(path, **options):
    """All captions, by the shade of their picture."""
    found = {}
    for part in open_captions(config(path, **options)):
        for picture, texts in zip(part.pixels, part.captions, strict=True):
            found[int(picture[0, 0, 0])] = texts
    return found


def pictures(count=3, folder=""):
    return {f"{folder}{number}.png": png(number) for number in range(count)}


ROWS = [{"file_name": f"{n}.png", "text": t} for n, t in enumerate(("a", "b, c", "d"))]
EXPECTED = {0: ["a"], 1: ["b, c"], 2: ["d"]}


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("metadata.jsonl", "\n".join(json.dumps(row) for row in ROWS)),
        ("metadata.jsonl", "\r\n".join(json.dumps(row) for row in ROWS).encode("utf-16")),
        ("metadata.csv", 'file_name,text\n0.png,a\n1.png,"b, c"\n2.png,d\n'),
        ("captions.tsv", "image\tcaption\n0.png\ta\n1.png\tb, c\n2.png\td\n"),
        (
            "metadata.csv.gz",
            gzip.compress(b'file_name;text\n0.png;a\n1.png;"b, c"\n2.png;d\n', mtime=0),
        ),
        ("captions.json", json.dumps(ROWS)),
    ],
)
def test_tables_of_captions(tmp_path, name, raw):
    """Every kind of table gives every picture its caption."""
    assert captions(put(tmp_path, {**pictures(), name: raw})) == EXPECTED


def test_rows_of_one_picture_add_up_and_a_column_can_be_named(tmp_path):
    """Five rows of a picture are five captions; a column of any name can hold them."""
    rows = "file_name,said,text\n0.png,x,a\n0.png,y,b\n1.png,z,c\n2.png,w,d\n"
    put(tmp_path, {**pictures(), "metadata.csv": rows})
    assert captions(tmp_path) == {0: ["a", "b"], 1: ["c"], 2: ["d"]}
    assert captions(tmp_path, column="said") == {0: ["x", "y"], 1: ["z"], 2: ["w"]}
    with pytest.raises(ValueError, match=r"no column 'sayd'.*did you mean 'said'"):
        captions(tmp_path, column="sayd")


@pytest.mark.parametrize("odd", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c"])
def test_texts_beside_pictures(tmp_path, odd):
    """Lines end at line ends alone; marks are no letters; a caption in Latin-1 is named."""
    put(
        tmp_path,
        {
            **pictures(),
            "0.txt": f"a{odd}b\r\nsecond\n".encode("utf-8-sig"),
            "1.txt": "c".encode("utf-16"),
            "2.txt": "caf\xe9".encode("latin-1"),
        },
    )
    with pytest.warns(UserWarning, match=r"2\.txt is not UTF-8 at line 1, column 4"):
        assert captions(tmp_path) == {0: [f"a{odd}b", "second"], 1: ["c"]}


@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/passwd", "sub/../../secret.png", "..\\secret.png", "link.png"]
)
def test_a_table_names_no_file_outside_its_folder(tmp_path, name):
    """Up, absolute, with backslashes, by a link: named and left out."""
    put(tmp_path, {"secret.png": png(9), **pictures(3, "data/")})
    (tmp_path / "data" / "link.png").symlink_to(tmp_path / "secret.png")
    rows = [*ROWS, {"file_name": name, "text": "stolen"}]
    put(tmp_path / "data", {"metadata.jsonl": "\n".join(json.dumps(row) for row in rows)})
    with pytest.warns(UserWarning, match="line 4 of .* names a file outside its folder"):
        assert 9 not in captions(tmp_path / "data")


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("captions.csv", "file,title\n0.png,a\n1.png,b\n"),
        (
            "metadata.jsonl",
            '{"file_name": "0.png", "title": "a"}\n{"file_name": "1.png", "title": "b"}',
        ),
        ("captions.tsv", "image\ttitle\n0.png\ta\n1.png\tb\n"),
    ],
)
def test_captions_under_another_name_are_asked_for(tmp_path, name, raw, alone):
    """A table whose captions are called otherwise is named, with its columns and the option."""
    put(tmp_path, {**pictures(2), name: raw})
    words = r"has no column text or caption, it has \w+, title; name it with --data\.column"
    with pytest.raises(ValueError, match=words):
        open_captions(config(tmp_path / name if alone else tmp_path))
    assert captions(tmp_path, column="title") == {0: ["a"], 1: ["b"]}


def test_what_has_no_partner_is_counted(tmp_path):
    """A picture without a caption, a caption without a picture, other files."""
    put(tmp_path, {**pictures(), "0.txt": "a", "1.txt": "b", "7.txt": "lonely", "x.zip": b"PK"})
    with pytest.warns(UserWarning, match="skipped|left out") as told:
        assert captions(tmp_path) == {0: ["a"], 1: ["b"]}
    told = " ".join(str(one.message) for one in told)
    for words in ("2.png has no caption", "1 text without a picture (7.txt)", "1 *.zip"):
        assert words in told


@pytest.mark.parametrize("kind", ["folders", "tables", "archives"])
def test_what_lies_beside_the_parts_is_counted(tmp_path, kind):
    """A table above the folders, a picture that no table lists, a text beside archives."""
    for shade, part in enumerate(("train", "test")):
        files = {f"{shade}.png": png(shade), f"{shade}.txt": part.encode()}
        if kind == "folders":
            put(tmp_path, {f"{part}/{name}": raw for name, raw in files.items()})
        elif kind == "tables":
            put(tmp_path, {**files, f"{part}.csv": f"file_name,text\n{shade}.png,{part}\n"})
        else:
            pack(tmp_path / f"{part}.tar", list(files.items()))
    extra = {
        "folders": {"metadata.csv": "file_name,text\n0.png,x\n", "7.png": png(7)},
        "tables": {"7.png": png(7)},
        "archives": {"notes.md": b"x"},
    }
    put(tmp_path, extra[kind])
    told = {"folders": "2 file beside the parts", "tables": "1 *.png (7.png)"}
    with pytest.warns(UserWarning, match="left out") as said:
        one, two = open_captions(config(tmp_path))
    assert (one.captions, two.captions) == ([["train"]], [["test"]])
    assert told.get(kind, "1 *.md (notes.md)") in str(said[0].message)


@pytest.mark.parametrize("names", ["train valid test", "Train Val testing", "TRAIN DEV TEST"])
def test_parts(tmp_path, names):
    """Folders of the usual names are parts; so are archives; `valid` is a setting."""
    train, valid, test = names.split()
    for shade, part in enumerate((train, valid, test)):
        put(tmp_path, {f"{part}/{shade}.png": png(shade), f"{part}/{shade}.txt": part})
    one, two = open_captions(config(tmp_path))
    assert (one.captions, two.captions) == ([[train]], [[valid]])
    assert captions_to_score(config(tmp_path)).captions == [[test]]
    whole = put(tmp_path / "other", {"5.png": png(5), "5.txt": "five"})
    scored = captions_to_score(config(tmp_path), str(whole))
    assert (scored.name, scored.captions) == ("other, all of it", [["five"]])
    one, two = open_captions(config(whole, valid=str(tmp_path / valid)))
    assert (one.captions, two.captions) == ([["five"]], [[valid]])


@pytest.mark.parametrize("told", ["beside", "in a table"])
def test_held_out_pictures_among_the_others_are_not_trained_on(tmp_path, told):
    """A folder below that of the data, or a table of some of its pictures."""
    put(tmp_path, {**pictures(4), **{f"{n}.txt": "t" for n in range(4)}})
    put(tmp_path, {"held/9.png": png(9), "held/9.txt": "nine"})
    valid = tmp_path / "held"
    if told == "in a table":
        valid = tmp_path / "held.csv"
        valid.write_text("file_name,text\nheld/9.png,nine\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the table is no picture
        train, test = open_captions(config(tmp_path, valid=str(valid)))
    assert sorted(train.pixels[:, 0, 0, 0].tolist()) == [0, 1, 2, 3]
    assert test.captions == [["nine"]]


def test_no_more_is_decoded_than_needed(tmp_path, monkeypatch):
    """With max_images only these and the held-out ones; damaged ones are made up for."""
    put(tmp_path, {**pictures(40), **{f"{n}.txt": "t" for n in range(40)}})
    decoded = []
    real = image_module.try_square
    monkeypatch.setattr(
        image_module, "try_square", lambda job: decoded.append(job[2]) or real(job)
    )
    train, test = open_captions(config(tmp_path, max_images=5))
    assert (len(train), len(test), len(decoded)) == (5, 4, 9)


# -- archives -------------------------------------------------------------------------------------


def pack(path, files, mode="w", **options):
    """A tar or a zip of (name, bytes)."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, raw in files:
                archive.writestr(name, raw)
        return path
    with tarfile.open(path, mode, **options) as archive:
        for name, raw in files:
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))
    return path


def samples(form="{}", count=3):
    return [
        (form.format(f"{n}.{kind}"), raw)
        for n in range(count)
        for kind, raw in (("png", png(n)), ("txt", f"text {n}".encode()))
    ]


TEXTS = {n: [f"text {n}"] for n in range(3)}
JUNK = b"\0\5\x16\7"


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", ["a.tar", "a.zip", "a.tar.gz"])
@pytest.mark.parametrize(
    "files",
    [
        samples(),
        [x for name, raw in samples("d/{}") for x in ((f"d/._{name[2:]}", JUNK), (name, raw))],
        [*samples(), ("__MACOSX/._0.png", JUNK), (".DS_Store", JUNK), ("x/Thumbs.db", JUNK)],
        samples("d\\{}"),
        samples("/abs/{}"),
        samples("../../{}"),
        samples("./{}"),
        sorted(samples(), key=lambda item: item[0][-3:]),
    ],
    ids=["plain", "macOS", "systems", "backslash", "absolute", "up", "dot", "texts last"],
)
def test_archives_of_every_system(tmp_path, kind, files):
    """Every picture has its caption, whoever wrote the archive and in whatever order."""
    path = pack(tmp_path / kind, files, "w:gz" if kind.endswith("gz") else "w")
    before = sorted(tmp_path.rglob("*"))
    assert captions(path) == TEXTS
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_names_and_headers_of_tars(tmp_path, form):
    """Long names, names that are not UTF-8, headers of every format, hard links."""
    long = "folder/" * 12 + "{}"
    files = [*samples(long, 2), ("caf\udce9.png", png(2)), ("caf\udce9.txt", b"text 2")]
    path = pack(tmp_path / "a.tar", files, format=form, errors="surrogateescape")
    with tarfile.open(path, "a", format=form) as archive:
        link = tarfile.TarInfo("linked.png")
        link.type, link.linkname = tarfile.LNKTYPE, long.format("0.png")
        archive.addfile(link)
        info = tarfile.TarInfo("linked.txt")
        info.size = 5
        archive.addfile(info, io.BytesIO(b"again"))
        pipe = tarfile.TarInfo("pipe.png")
        pipe.type = tarfile.FIFOTYPE
        archive.addfile(pipe)
    with pytest.warns(UserWarning, match="1 FIFO, device or other member"):
        train, test = open_captions(config(path))
    assert sorted(train.all_captions + test.all_captions) == [
        "again",
        "text 0",
        "text 1",
        "text 2",
    ]


def test_members_that_are_there_twice_or_alone_are_counted(tmp_path):
    """The first of a name counts; captions without a picture and other files are told."""
    files = [*samples(), ("0.txt", b"other"), ("9.txt", b"alone"), ("x.bin", b"?")]
    with pytest.warns(UserWarning, match="left out") as told:
        assert captions(pack(tmp_path / "a.tar", files)) == TEXTS
    for words in ("1 member that is there twice", "1 caption without a picture", "1 *.bin"):
        assert words in str(told[0].message)


def test_archives_that_claim_absurd_sizes_are_refused(tmp_path, monkeypatch):
    """Nothing of a bomb is unpacked."""
    monkeypatch.setattr(archives, "_MOST_MEMBER", 1 << 20)
    for kind, mode in (("a.tar.gz", "w:gz"), ("b.zip", "w"), ("c.tar.bz2", "w:bz2")):
        path = pack(tmp_path / kind, [*samples(), ("z.png", bytes(2 << 20))], mode)
        with pytest.raises(ValueError, match=r"claims to hold .* at z\.png"):
            open_captions(config(path))
    with pytest.raises(ValueError, match="more than 100,000 archives"):
        open_captions(config(tmp_path / "{0..99999999999}.tar"))


@pytest.mark.parametrize("raw", [b"", b"no archive", gzip.compress(b"no tar", mtime=0)])
@pytest.mark.parametrize("name", ["a.tar", "a.zip", "a.tgz"])
def test_damaged_archives_are_named(tmp_path, name, raw):
    """One line that says which."""
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(ValueError, match=rf"no captioned pictures.*{name}") as caught:
        open_captions(config(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_a_cut_archive_keeps_what_is_whole(tmp_path):
    """The pictures before the cut are used, and the cut is told."""
    whole = pack(tmp_path / "a.tar", samples(count=6)).read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[:8000])
    with pytest.warns(UserWarning, match=r"a\.tar is damaged"):
        assert np.all(
            [texts == TEXTS.get(n, texts) for n, texts in captions(tmp_path / "a.tar").items()]
        )


def test_a_clean_set_warns_of_nothing(tmp_path):
    """Nothing is said where nothing was left out."""
    put(tmp_path, {**pictures(), "._0.png": JUNK, **{f"{n}.txt": "t" for n in range(3)}})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(captions(tmp_path)) == 3


@pytest.mark.parametrize("names", ["train.csv valid.csv test.csv", "Train.CSV dev.csv TEST.csv"])
def test_tables_as_parts(tmp_path, names):
    """A table for each part, beside the folder of the pictures; or one table alone."""
    put(tmp_path, pictures(3, "images/"))
    for number, name in enumerate(names.split()):
        put(tmp_path, {name: f"file_name,text\nimages/{number}.png,of {number}\n"})
    one, two = open_captions(config(tmp_path))
    assert (one.captions, two.captions) == ([["of 0"]], [["of 1"]])
    assert captions_to_score(config(tmp_path)).captions == [["of 2"]]
    alone = captions_to_score(config(tmp_path), str(tmp_path / names.split()[0]))
    assert alone.captions == [["of 0"]]


def test_names_of_pictures_in_other_systems(tmp_path):
    """Accents stored apart or not, captions called photo.jpg.txt, masks beside pictures."""
    put(tmp_path, {"cafe\u0301.png": png(0), "1.png": png(1), "1.png.txt": "one"})
    put(tmp_path, {"metadata.csv": "file_name,text\ncaf\u00e9.png,a\n"})
    assert captions(tmp_path) == {0: ["a"], 1: ["one"]}
    files = [(f"{n}.{k}", raw) for n in range(2) for k, raw in (("mask.png", png(9)),
             ("png", png(n)), ("txt", b"x"))]  # fmt: skip
    with pytest.warns(UserWarning, match="2 second picture of one caption"):
        assert captions(pack(tmp_path / "a.tar", files)) == {0: ["x"], 1: ["x"]}


def test_damaged_members_are_named_and_the_others_used(tmp_path):
    """A wrong checksum in a zip and a cut member of a tar cost that member alone."""
    path = pack(tmp_path / "a.zip", samples())
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"1.png") + 20] ^= 0xFF
    path.write_bytes(raw)
    with pytest.warns(UserWarning, match="skipped|left out") as told:
        open_captions(config(path))
    assert "1.png of " in str(told[0].message)
    assert "a.zip is damaged or locked" in str(told[0].message)
    whole = pack(tmp_path / "b.tar", [*samples(), ("9.png", bytes(5000))]).read_bytes()
    (tmp_path / "b.tar").write_bytes(whole[: len(whole) - 9000])
    with pytest.warns(UserWarning, match=r"b\.tar is damaged"):
        assert captions(tmp_path / "b.tar") == TEXTS
