"""Pictures arrive as a person sees them, and held-out pictures are never trained on."""

import base64
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import config
import data
import engine.asking as asking
import engine.loading as loading
import engine.pictures as pictures
import engine.run as running
import tools.benchmarks as bm
from engine.command import UserError
from tests.helpers import HOME
from tiny.lessons import sft_questions


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """A cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "nanoril"


@pytest.fixture
def decoded(monkeypatch) -> list:
    """What is decoded from now on: the names of the files."""
    names, inner = [], pictures.open_picture
    monkeypatch.setattr(pictures, "open_picture", lambda x, who: names.append(Path(x).name) or inner(x, who))
    return names


def image(values, mode: str | None = None, **info) -> Image.Image:
    """A picture of one row of values, or of rows."""
    out = Image.fromarray(np.atleast_2d(values)) if mode is None else Image.new(mode, (len(values), 1))
    if mode is not None:
        out.putdata(values)
    out.info |= info
    return out


def saved(picture: Image.Image, form: str, **how) -> io.BytesIO:
    picture.save(file := io.BytesIO(), form, **how)
    return file


def png(width: int, bits: int, kind: int, row: bytes, transparent: bytes = b"", height: int = 1) -> io.BytesIO:
    """A PNG of one row in forms that Pillow cannot write; kind 0: grey, 2: RGB."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    head += chunk(b"tRNS", transparent) if transparent else b""
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b""))


def palette(*colors: tuple) -> Image.Image:
    out = Image.new("P", (len(colors), 1))
    out.putpalette([x for color in colors for x in color])
    out.putdata(range(len(colors)))
    return out


def big_endian(*values: int) -> bytes:
    return struct.pack(f">{len(values)}H", *values)


def seen(source) -> list:
    """The top row as a list: grey pixels as one number, others as (r, g, b)."""
    picture = pictures.open_picture(source, "q")
    assert picture.mode == "RGB" and picture.info == {}
    row = np.asarray(picture)[0].tolist()
    return [p[0] if len(set(p)) == 1 else tuple(p) for p in row]


FLOAT, RED, BLUE = np.float32, (255, 0, 0), (0, 0, 255)
KINDS = {
    "rgba": (lambda: saved(image([(0, 0, 0, 0), (0, 0, 0, 255), (200, 100, 0, 128)], "RGBA"), "PNG"),
             [255, 0, (227, 177, 127)]),
    "la": (lambda: saved(image([(0, 0), (0, 255), (0, 51)], "LA"), "PNG"), [255, 0, 204]),
    "pa": (lambda: image([(0, 0, 0, 0), (0, 0, 0, 255)], "RGBA").convert("PA"), [255, 0]),
    "premultiplied": (lambda: image([(200, 100, 0, 128)], "RGBA").convert("RGBa"), [(227, 177, 127)]),
    "premultiplied-grey": (lambda: image([(0, 0), (0, 255)], "LA").convert("La"), [255, 0]),
    "palette": (lambda: saved(palette(RED, BLUE), "PNG"), [RED, BLUE]),
    "palette-transparent": (lambda: saved(palette(RED, BLUE), "PNG", transparency=0), [255, BLUE]),
    "palette-alphas": (lambda: saved(palette(RED, BLUE), "PNG", transparency=bytes([0, 51])), [255, (204, 204, 255)]),
    "gif-transparent": (lambda: saved(palette(RED, BLUE), "GIF", transparency=0), [255, BLUE]),
    "webp-transparent": (lambda: saved(image([(0, 0, 0, 0), (0, 0, 0, 255)], "RGBA"), "WEBP", lossless=True), [255, 0]),
    "rgb-level": (lambda: png(2, 8, 2, bytes([1, 2, 3, 4, 5, 6]), big_endian(1, 2, 3)), [255, (4, 5, 6)]),
    "1-bit": (lambda: saved(image([0, 255], "1"), "PNG"), [0, 255]),
    "1-bit-level": (lambda: png(2, 1, 0, b"\x40", big_endian(0)), [255, 255]),
    "2-bit-level": (lambda: png(2, 2, 0, b"\x60", big_endian(1)), [255, 170]),
    "4-bit-level": (lambda: png(2, 4, 0, b"\x12", big_endian(1)), [255, 34]),
    "16-bit-level": (lambda: png(2, 16, 0, big_endian(100, 60000), big_endian(100)), [255, 233]),
    "16-bit-rgb": (lambda: png(1, 16, 2, big_endian(0, 32768, 65535)), [(0, 128, 255)]),
    "16-bit-rgb-level": (lambda: png(2, 16, 2, big_endian(60000, 1, 1, 9, 9, 9), big_endian(60000, 1, 1)), [255, 0]),
    "16-bit-tiff": (lambda: saved(image(np.array([0, 257, 32896, 65535], np.uint16)), "TIFF"), [0, 1, 128, 255]),
    "16-bit-pgm": (lambda: io.BytesIO(b"P5 3 1 65535\n" + big_endian(0, 257, 514)), [0, 1, 2]),
    "16-bit-big-endian": (lambda: Image.frombytes("I;16B", (2, 1), big_endian(0, 65535)), [0, 255]),
    "32-bit": (lambda: saved(image(np.array([0, 65535], np.int32)), "TIFF"), [0, 255]),
    "32-bit-small": (lambda: saved(image(np.array([0, 7, 255], np.int32)), "TIFF"), [0, 7, 255]),
    "32-bit-large": (lambda: saved(image(np.array([-51, 0, 204], np.int32)), "TIFF"), [0, 51, 255]),
    "float-1": (lambda: saved(image(np.array([0, 0.2, 1], FLOAT)), "TIFF"), [0, 51, 255]),
    "float-255": (lambda: saved(image(np.array([0, 7, 100], FLOAT)), "TIFF"), [0, 7, 100]),
    "float-any": (lambda: saved(image(np.array([-1000, 0, 4000], FLOAT)), "TIFF"), [0, 51, 255]),
    "cmyk": (lambda: saved(image([(0, 255, 255, 0), (0, 0, 0, 255)], "CMYK"), "TIFF"), [RED, 0]),
    "ycbcr": (lambda: image([(0, 128, 128), (255, 128, 128)], "YCbCr"), [0, 255]),
    "lab": (lambda: Image.new("LAB", (1, 1), (128, 128, 128)), [119]),
    "gif-frames": (lambda: saved(palette(RED), "GIF", save_all=True, append_images=[palette(BLUE)]), [RED]),
    "webp-frames": (lambda: saved(Image.new("RGB", (1, 1), RED), "WEBP", save_all=True, lossless=True,
                                  append_images=[Image.new("RGB", (1, 1), BLUE)]), [RED]),
    "profile": (lambda: saved(image([7, 8], "L"), "PNG", icc_profile=b"x" * 100), [7, 8]),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_picture_is_what_a_viewer_shows(kind, tmp_path):
    made, expected = KINDS[kind]
    assert seen(made()) == expected
    if isinstance(made(), io.BytesIO):
        (tmp_path / "p").write_bytes(made().getvalue())
        assert seen(tmp_path / "p") == seen(str(tmp_path / "p")) == seen(Image.open(made())) == expected


def test_a_16_bit_ramp_stays_a_ramp():
    ramp = np.linspace(0, 65535, 42 * 42).reshape(42, 42).astype(np.uint16)
    found = np.asarray(pictures.open_picture(saved(image(ramp), "PNG"), "q"))[..., 0]
    assert np.abs(found - ramp / 257).max() <= 0.5 and len(np.unique(found)) == 256


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_orientation_is_applied_in_every_format(form):
    blocks = np.array(
        [[[250, 0, 0], [0, 250, 0]], [[0, 0, 250], [250, 250, 250]], [[0, 0, 0], [250, 250, 0]]], np.uint8
    )
    shown = blocks.repeat(16, 0).repeat(16, 1)  # JPEG keeps blocks of 16 pixels almost as they are
    stored = {  # by the definition of the tag: where the stored picture's row 0 and column 0 are seen
        1: shown, 2: shown[:, ::-1], 3: shown[::-1, ::-1], 4: shown[::-1],
        5: shown.swapaxes(0, 1), 6: np.rot90(shown), 7: shown[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(shown, -1),
    }  # fmt: skip
    for tag, array in stored.items():
        exif = Image.Exif()
        exif[0x0112] = tag
        how = dict(lossless=True) if form == "WEBP" else dict(quality=100) if form == "JPEG" else {}
        file = saved(Image.fromarray(np.ascontiguousarray(array)), form, exif=exif, **how)
        found = np.asarray(pictures.open_picture(file, "q")).astype(int)
        assert found.shape == shown.shape and np.abs(found - shown)[4::8, 4::8].max() <= 5 * (form == "JPEG"), tag


def test_a_picture_with_damaged_exif_is_shown_unturned():
    file = saved(image([9, 8], "L"), "JPEG", quality=100, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\1\x12" * 7)
    with pytest.warns(UserWarning, match="EXIF"):
        assert seen(file) == [9, 8]


def test_what_is_no_picture_is_one_line_and_a_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    whole = saved(Image.effect_noise((64, 64), 50), "PNG").getvalue()
    files = {
        "empty.png": b"", "text.png": b"not found", "torn.png": whole[:2000],
        "page.svg": b'<?xml version="1.0"?><svg/>', "huge.png": png(2**14, 8, 0, b"", height=2**14).getvalue(),
        "photo.heic": b"\0\0\0\x18ftypheic" + b"\0" * 50, "page.pdf": b"%PDF-1.7\n",
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    for name, values in (("nan.tif", [0, np.nan]), ("inf.tif", [0, np.inf])):
        image(np.array(values, FLOAT)).save(tmp_path / name)
    says = {
        "pipe.png": "is a named pipe", "folder.png": "is a folder; give a picture file", "none.png": "no such file",
        "empty.png": "it is empty", "text.png": "unknown format", "torn.png": "truncated",
        "page.svg": "is an SVG drawing; convert it to PNG or JPEG", "photo.heic": "is a HEIC photo or a video; convert",
        "page.pdf": "is a PDF document; convert", "huge.png": "more than 178,956,970 pixels; make it smaller",
        "nan.tif": "it holds NaN or infinity", "inf.tif": "it holds NaN or infinity",
    }  # fmt: skip
    for name, said in says.items():
        line = dict(id="a", image=name, question="q", answer="x")
        (tmp_path / "d.jsonl").write_text(json.dumps(line) + "\n")
        with pytest.raises(UserError, match=said) as caught:
            data.load_questions(tmp_path / "d.jsonl")
        assert str(caught.value).startswith(f"{tmp_path / 'd.jsonl'}:1: {tmp_path / name}: ") and "\n" not in str(
            caught
        )
    with pytest.raises(UserError, match="q: /dev/zero: is a named pipe, a socket or a device"):
        pictures.open_picture("/dev/zero", "q")
    for broken in (Image.new("RGB", (0, 4)), io.BytesIO(b"<svg>")):
        with pytest.raises(UserError, match="q: its picture (cannot be read as a picture .it has no pixels|is an SVG)"):
            data.Question("q", (broken,), "?", "a").pictures()


def spoiled(folder: Path) -> tuple[Path, np.ndarray]:
    """A picture that lies on its side, black under its transparent part, and what a person sees of it."""
    shown = np.full((56, 28, 3), 255, np.uint8)
    shown[:14, :14] = RED
    stored = np.dstack([np.rot90(shown), np.where((np.rot90(shown) == 255).all(-1), 0, 255)]).astype(np.uint8)
    stored[stored[..., 3] == 0] = 0  # black under the transparent part
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stored).save(folder / "p.png", exif=exif)
    return folder / "p.png", shown


def test_student_served_teacher_and_benchmark_get_the_same_pixels(tmp_path):
    path, shown = spoiled(tmp_path)
    row = dict(id="a", image="p.png", question="what color?", answer="red")
    (tmp_path / "d.jsonl").write_text(json.dumps(row) + "\n")
    (question,) = data.load_questions(tmp_path / "d.jsonl")
    given = data.Question("b", (Image.open(path),), question.text, "red")  # a picture in memory

    class Server:
        def answers(self, chats, *_):
            self.chats = list(chats)
            return []

    server = Server()
    list(asking.served_answers(server, [(question, 0), (given, 0)], config.Config()))
    for chat in server.chats:
        url = chat[0]["content"][0]["image_url"]["url"]
        sent = Image.open(io.BytesIO(base64.b64decode(url.partition("base64,")[2])))
        assert sent.mode == "RGB" and not sent.getexif() and np.array_equal(np.asarray(sent), shown)

    encoder = loading.load("tiny-qwen", 1).encoder
    expected = encoder.preprocess([Image.fromarray(shown)])[0]
    for q in (question, given):
        found = encoder.encode_question(q).pixels
        assert found.keys() == expected.keys() and all((found[k] == expected[k]).all() for k in expected)

    cells = ["p.png", base64.b64encode(path.read_bytes()).decode()]
    rows = [dict(index=str(i), image=x, question="?", answer="A") for i, x in enumerate(cells)]
    (tmp_path / "MMStar.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    table = bm.read_table(tmp_path / "MMStar.jsonl")
    for r in table.rows:
        assert np.array_equal(np.asarray(table.pictures(r["index"])[0]), shown)
        (kit,) = table.pictures(r["index"], "kit")  # the toolkit drops transparency and ignores EXIF
        assert kit.size == (56, 28) and kit.getpixel((40, 20)) == (0, 0, 0) and kit.getpixel((0, 27)) == RED
    student = loading.load("tiny-qwen", 1)
    settings = dict(prompt="bare", suffix="")
    for view, same in (("seen", True), ("kit", False)):
        prompt = bm.encode_rows(student, table, table.rows[:1], settings | dict(view=view))[0]["0"]
        other = prompt.pixels["pixel_values"]
        assert (
            other.shape == expected["pixel_values"].shape and bool((other == expected["pixel_values"]).all())
        ) == same


# ------------------------------------------------------------------------------------------------ the split
def board(i: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8))


def questions_of(folder: Path, images: list, name: str = "d.jsonl") -> Path:
    """A JSONL file of one question per item: a list of its pictures' names."""
    rows = [dict(id=f"q{i}", images=x, question="what color?", answer="red") for i, x in enumerate(images)]
    (folder / name).write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder / name


def parts_of(path: Path) -> dict:
    return data.split_questions(data.load_questions(path))


def assert_no_leak(parts: dict) -> None:
    shown = [{p.tobytes() for q in parts[name] for p in q.pictures()} for name in ("train", "valid", "test")]
    assert all(parts.values()) and sum(map(len, shown)) == len(set().union(*shown))


@pytest.mark.parametrize("how", ["copies", "spellings", "links", "second", "formats", "turned", "transparent"])
def test_no_held_out_picture_is_trained_on_under_any_name(how, tmp_path):
    """30 questions, three to a picture, whose names all differ."""
    (tmp_path / "p").mkdir()
    names = []
    for i in range(30):
        picture, name = board(i // 3), f"p/{i}.png"
        if how == "spellings":
            name = ["p/{}.png", "./p/../p/{}.png", str(tmp_path) + "//p/{}.png"][i % 3].format(i // 3)
            picture.save(tmp_path / f"p/{i // 3}.png")
        elif how == "links" and i % 3:
            (tmp_path / name).symlink_to(f"{i - i % 3}.png")
        elif how == "second":
            board(100 + i).save(tmp_path / f"p/own{i}.png")
            picture.save(tmp_path / name)
        elif how == "formats":
            name += [".png", ".bmp", ".webp"][i % 3]
            picture.save(tmp_path / name, **dict(lossless=True) if i % 3 == 2 else {})
        elif how == "turned" and i % 3:
            exif = Image.Exif()
            exif[0x0112] = 3
            picture.rotate(180).save(tmp_path / name, exif=exif)
        elif how == "transparent" and i % 3:
            array = np.array(picture.convert("RGBA"))
            array[0] = [0, 0, 0, 0] if i % 3 == 1 else [255, 255, 255, 255]
            Image.fromarray(array).save(tmp_path / name)
        else:
            picture.save(tmp_path / name)
        names.append([f"p/own{i}.png", name] if how == "second" else [name])
    parts = parts_of(questions_of(tmp_path, names))
    assert_no_leak(parts)
    assert [len(parts[k]) for k in ("train", "valid", "test")] == [24, 3, 3]


def test_questions_that_a_chain_of_pictures_joins_stay_together(tmp_path, capsys):
    for i in range(20):
        board(i).save(tmp_path / f"{i}.png")
    chain = [["0.png", "1.png"], ["2.png", "3.png"], ["1.png", "2.png"]]  # the third question joins the first two
    parts = parts_of(questions_of(tmp_path, chain + [[f"{i}.png"] for i in range(4, 20)] + [[]] * 2))
    assert len({name for name, part in parts.items() for q in part if q.id in ("q0", "q1", "q2")}) == 1
    assert_no_leak({name: [q for q in part if q.images] for name, part in parts.items()})
    assert "3 of 21 questions share a picture with another one, in 1 groups of up to 3;" in capsys.readouterr().out


def test_the_split_depends_on_the_pixels_alone(tmp_path):
    found = []
    for folder, rename in (("a", "{}.png"), ("b/c", "other{}.bmp")):
        (tmp_path / folder).mkdir(parents=True)
        for i in range(30):
            board(i).save(tmp_path / folder / rename.format(i))
        found.append(parts_of(questions_of(tmp_path / folder, [[rename.format(i)] for i in range(30)])))
    ids = [{name: [q.id for q in part] for name, part in parts.items()} for parts in found]
    assert ids[0] == ids[1] and [len(ids[0][k]) for k in ("train", "valid", "test")] == [24, 3, 3]
    assert ids[0]["train"] == sorted(ids[0]["train"], key=lambda x: int(x[1:])) != [f"q{i}" for i in range(24)]
    text = [data.Question(f"t{i}", (), "q", "a") for i in range(100)]  # without pictures: by the id
    assert [len(x) for x in data.split_questions(text).values()] == [80, 10, 10]
    memory = [data.Question(f"m{i}", (board(i % 30),), "q", "a") for i in range(60)]  # never loaded from a file
    assert {q.id.replace("m", "q") for q in data.split_questions(memory)["test"]} >= set(ids[0]["test"])


@pytest.mark.parametrize("blank", [40, 90])
def test_a_picture_of_most_questions_stays_in_training(blank):
    """Wherever its hash stands in the order: 40 pictures are tried."""
    for seed in range(40):
        shared = (board(1000 + seed),)
        questions = [data.Question(str(i), shared if i < blank else (board(i),), "q", "a") for i in range(100)]
        parts = data.split_questions(questions)
        share = max(1, (101 - blank) // 10)
        assert [len(parts["valid"]), len(parts["test"])] == [share, share]
        assert {str(i) for i in range(blank)} <= {q.id for q in parts["train"]}


def test_where_every_group_is_large_each_part_gets_one():
    for copies in ((4, 4, 4), (1, 1, 98), (1, 50, 49)):
        questions = [data.Question(f"{k}-{i}", (board(k),), "q", "a") for k, n in enumerate(copies) for i in range(n)]
        parts = data.split_questions(questions)
        assert sorted(len(x) for x in parts.values()) == sorted(copies) and len(parts["train"]) == max(copies)
    joined = [data.Question(str(i), (board(i), board(50)), "q", "a") for i in range(30)]  # all share one picture
    with pytest.raises(UserError, match="^2 different pictures are too few: .* share a picture count as one$"):
        data.split_questions([*joined, data.Question("other", (board(99),), "q", "a")])


def test_the_warm_start_leaves_out_held_out_pictures_under_other_names(tmp_path, capsys):
    for i in range(30):
        board(i).save(tmp_path / f"{i}.png")
        board(i).save(tmp_path / f"copy{i}.bmp")
        board(100 + i).save(tmp_path / f"new{i}.png")
    mine = questions_of(tmp_path, [[f"{i}.png"] for i in range(30)])
    lines = [dict(id=f"s{i}", images=[f"new{i}.png", f"copy{i}.bmp"], question="q", answer="a") for i in range(30)]
    (tmp_path / "sft.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    cfg = config.Config(data=str(mine), sft_data=str(tmp_path / "sft.jsonl"), valid_questions=1)
    kept, train = sft_questions(cfg), running.split(cfg)["train"]
    assert {q.id[1:] for q in kept} == {q.id[1:] for q in train} and len(kept) == 24
    assert "6 lines of" in capsys.readouterr().out


def test_a_run_whose_pictures_changed_is_another_run(tmp_path):
    for i in range(30):
        board(i).save(tmp_path / f"{i}.png")
    cfg = config.Config(data=str(questions_of(tmp_path, [[f"{i}.png"] for i in range(30)])))
    (tmp_path / "config.json").write_text(json.dumps(dict(settings=running.settings_of(cfg))))
    running.check_settings(tmp_path, cfg)
    for i in range(30):
        board(500 + i).save(tmp_path / f"{i}.png")
    for cached in (running.questions_of, running.parts_of):  # as in a new process
        cached.cache_clear()
    with pytest.raises(UserError, match="split_hash"):
        running.check_settings(tmp_path, cfg)


# ------------------------------------------------------------------------------------------------ the cache
def test_a_known_picture_is_not_decoded_again_and_a_changed_one_is(tmp_path, decoded, cache):
    for i in range(12):
        board(i).save(tmp_path / f"{i}.bmp")  # all of one size
    path = questions_of(tmp_path, [[f"{i}.bmp"] for i in range(12)] * 2)
    first = data.load_questions(path)
    assert sorted(decoded) == sorted(f"{i}.bmp" for i in range(12))  # two questions, one decoding
    again = data.load_questions(path)
    assert len(decoded) == 12 and [q.meta for q in again] == [q.meta for q in first]

    before = (tmp_path / "3.bmp").stat()
    board(77).save(tmp_path / "3.bmp")
    os.utime(tmp_path / "3.bmp", ns=(before.st_atime_ns, before.st_mtime_ns))  # as a copy that keeps times would be
    changed = data.load_questions(path)
    assert decoded[12:] == ["3.bmp"]
    assert [i for i in range(12) if changed[i].meta != first[i].meta] == [3]

    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[:-20])  # a killed process tears its last line
    torn = data.load_questions(path)
    assert decoded[13:] == ["3.bmp"] and [q.meta for q in torn] == [q.meta for q in changed]
    shutil.rmtree(cache)
    (tmp_path / "0.bmp").unlink()
    with pytest.raises(UserError, match="d.jsonl:1: .*0.bmp: no such file"):
        data.load_questions(path)


def test_without_a_place_for_the_cache_everything_is_decoded(tmp_path, decoded, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # a folder cannot be made in a file
    for i in range(3):
        board(i).save(tmp_path / f"{i}.png")
    path = questions_of(tmp_path, [[f"{i}.png"] for i in range(3)])
    assert data.load_questions(path) == data.load_questions(path) and len(decoded) == 6


def test_two_processes_at_once_share_the_cache(tmp_path, decoded):
    for i in range(60):
        board(i).save(tmp_path / f"{i}.png")
    path = questions_of(tmp_path, [[f"{i}.png"] for i in range(60)])
    code = f"import data; print([q.meta['pictures'][0] for q in data.load_questions({str(path)!r})])"
    env = dict(os.environ, PYTHONPATH=str(HOME))
    both = [subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True) for _ in "ab"]
    said = [x.communicate()[0] for x in both]
    assert said[0] == said[1] and len(json.loads(said[0].replace("'", '"'))) == 60
    assert [q.meta["pictures"][0] for q in data.load_questions(path)] == json.loads(said[0].replace("'", '"'))
    assert decoded == []


RANKS = """
import os, sys, data, engine.pictures as pictures, engine.run as running
from engine.command import UserError
from engine.sharding import barrier, start_ranks
count, inner = [], pictures.open_picture
pictures.open_picture = lambda x, who: count.append(x) or inner(x, who)
start_ranks("cpu")
questions = running.questions_in(sys.argv[1])
parts = {k: [q.id for q in v] for k, v in running.parts_of(*running.state_of(sys.argv[1])).items()}
said = "-"
try:
    running.questions_in(sys.argv[2])
except UserError as error:
    said = str(error)
barrier()
open(f"{sys.argv[1]}.rank{os.environ['RANK']}", "w").write(repr((len(count), parts, said)))
"""


def test_ranks_share_the_decoding_and_stop_together(tmp_path):
    for i in range(20):
        board(i).save(tmp_path / f"{i}.png")
    good = questions_of(tmp_path, [[f"{i}.png"] for i in range(20)])
    bad = questions_of(tmp_path, [["0.png"], ["none.png"]], "bad.jsonl")  # the second rank's
    (tmp_path / "ranks.py").write_text(RANKS)
    argv = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "ranks.py",
        good,
        bad,
    ]
    (tmp_path / "file").write_text("")
    env = dict(os.environ, PYTHONPATH=str(HOME), XDG_CACHE_HOME=str(tmp_path / "file"), OMP_NUM_THREADS="1")  # no cache
    ran = subprocess.run(list(map(str, argv)), cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    expected = {k: [q.id for q in v] for k, v in parts_of(good).items()}
    for rank in "01":
        count, parts, said = eval(Path(f"{good}.rank{rank}").read_text())
        assert count <= 11 and parts == expected and said.startswith(f"{bad}:2: ") and "no such file" in said
