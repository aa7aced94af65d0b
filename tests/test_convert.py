"""A Hugging Face data set becomes questions of ours, whole or not at all."""

import io
import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import data
import judge as jd
import train
from engine.command import UserError
from tools.convert import main


def picture(i: int, kind: str = "PNG") -> bytes:
    Image.new("RGB", (42, 42), (i, 9 * i % 256, 77)).save(out := io.BytesIO(), kind)
    return out.getvalue()


def struct(raw: bytes | None, path: str | None = None) -> dict:
    """A cell of an image column, as `datasets` writes it."""
    return dict(bytes=raw, path=path)


def convert(*flags) -> list[data.Question]:
    """Run the command into `out`; -> its questions, read and checked as training does."""
    main([*map(str, flags), "--out", "out"])
    return data.load_questions("out/questions.jsonl")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def parquet(file: str, **columns: list) -> str:
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file, row_group_size=3)
    return file


def arrow(file: str, form=pa.ipc.new_stream, **columns: list) -> str:
    """As save_to_disk writes (a stream), or in the file form."""
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    with form(file, (table := pa.table(columns)).schema) as out:
        out.write_table(table, max_chunksize=2)
    return file


PLAIN = dict(
    question_id=[5, 6, 7, 8],
    query=["how many?", " what? ", "where?", "which?"],
    label=[["3"], ["a", "b", "b"], ["left"], ["x"]],
    image=[struct(picture(1)), struct(picture(2, "JPEG")), struct(picture(1)), struct(None)],
)


@pytest.mark.parametrize("form", ["parquet", "stream", "file", "folder", "save_to_disk"])
def test_every_form_of_a_data_set_gives_the_same_questions(form, capsys):
    if form in ("parquet", "folder"):
        parquet("hub/data/train-00000-of-00002-0a1b.parquet", **{k: x[:3] for k, x in PLAIN.items()})
        second = parquet("hub/data/train-00001-of-00002-0a1c.parquet", **{k: x[3:] for k, x in PLAIN.items()})
        source = ["hub"] if form == "folder" else [second.replace("1-of", "0-of").replace("1c", "1b"), second]
    elif form == "save_to_disk":
        arrow("set/data-00000-of-00002.arrow", **{k: x[:3] for k, x in PLAIN.items()})
        arrow("set/data-00001-of-00002.arrow", **{k: x[3:] for k, x in PLAIN.items()})
        arrow("set/cache-0123456789abcdef.arrow", indices=[0, 2])  # what .filter leaves there
        Path("set/state.json").write_text("{}")
        source = ["set"]
    else:
        source = [arrow("one.arrow", pa.ipc.new_stream if form == "stream" else pa.ipc.new_file, **PLAIN)]
    found = convert(*source)
    assert [(q.id, q.text, q.answer) for q in found] == [
        ("5", "how many?", "3"),
        ("6", "what?", "b"),  # the most frequent answer
        ("7", "where?", "left"),
        ("8", "which?", "x"),
    ]
    assert [q.images for q in found] == [("out/pictures/5.png",), ("out/pictures/6.jpg",), ("out/pictures/5.png",), ()]
    assert Path("out/pictures/6.jpg").read_bytes() == picture(2, "JPEG") and len(list(Path("out").rglob("*.*g"))) == 2
    out = capsys.readouterr().out
    assert "columns: question query, answer label, image image, options none, id question_id" in out
    assert "4 questions, 2 different pictures\n0 rows are left out" in out and not Path("out.part").exists()


def test_options_are_appended_and_an_index_becomes_its_letter():
    answers = ["1", "blue", "4", " B", "0.5", "3"]
    choices = [["red", "blue"], ["red", "blue"], ["3", "4"], ["red", "blue"], [], None]
    parquet("mc.parquet", question=list("abcdef"), answer=answers, choices=choices)
    found = convert("mc.parquet")
    assert [q.text for q in found] == [
        "a (A) red (B) blue",
        "b (A) red (B) blue",
        "c (A) 3 (B) 4",
        "d (A) red (B) blue",
        "e",
        "f",
    ]
    assert [q.answer for q in found] == ["B", "blue", "4", "B", "0.5", "3"]
    assert [jd.rule_judge(q, r) for q, r in zip(found, ("blue", "(B)", "B", "(B)", "0.5", "3"), strict=True)] == [1] * 6


def test_indices_that_count_from_1_are_found_out_and_none_is_shifted_in_silence(capsys):
    spelt = dict(options=["['red', 'blue']"] * 3, question=["q (A) red (B) blue"] * 3)
    parquet("one.parquet", answer=[1, 2, 1], **spelt)
    with pytest.raises(UserError, match=r"answer 2 of 2 options; does \(A\) have index 1\? then --first 1"):
        convert("one.parquet")
    assert not list(Path().glob("out*"))
    assert [(q.text, q.answer) for q in convert("one.parquet", "--first", 1)][1] == ("q (A) red (B) blue", "B")
    parquet("zero.parquet", answer=[0.0, 1.0, -1.0], **spelt)  # -1: a hidden answer
    main(["zero.parquet", "--out", "zero"])
    assert [q.answer for q in data.load_questions("zero/questions.jsonl")] == ["A", "B"]
    assert "1 rows are left out\n  row 2: field 'answer' is empty" in capsys.readouterr().out


def test_pictures_may_be_bytes_paths_lists_or_of_another_format():
    Image.new("RGB", (9, 9), "red").save("beside.png")
    parquet("bytes.parquet", question=["a", "b"], answer=["x"] * 2, image=[picture(1), None], id=["a/../b", "a_____b"])
    (one, two), paths = convert("bytes.parquet"), [["beside.png", "beside.png"], []]
    assert one.images == ("out/pictures/a____b.png",) and two.images == () and one.id == "a/../b"
    parquet("paths.parquet", question=["a", "b"], answer=["x"] * 2, images=paths, uid=["a", "b"])
    main(["paths.parquet", "--out", "paths"])
    assert [len(q.pictures()) for q in data.load_questions("paths/questions.jsonl")] == [2, 0]
    several = [[struct(picture(1)), struct(picture(2)), struct(picture(3, "WEBP"))], [struct(picture(4))]]
    parquet("several.parquet", question=["a", "b"], answer=["x"] * 2, images=several, uid=["a", "a-1"])
    main(["several.parquet", "--out", "several"])
    first, second = data.load_questions("several/questions.jsonl")
    names = [Path(x).name for x in first.images + second.images]
    assert names == ["a.png", "a-1.png", "a-2.png", "a-1_.png"]  # no picture replaces another one
    assert Image.open("several/pictures/a-2.png").format == "PNG"  # was WebP


def test_rows_that_cannot_be_used_are_counted_and_the_first_are_named(capsys):
    torn = picture(3)[:60]
    rows = [("1", "q", "a", picture(1)), ("2", None, "a", None), ("3", "q", None, None), ("4", "q", "a", torn)]
    rows += [("1", "q", "a", None), ("5", " ", "a", None), ("6", "q", "b", None), ("7", "q", "", None)]
    parquet(
        "x.parquet", **dict(zip(("id", "question", "answer", "image"), map(list, zip(*rows, strict=True)), strict=True))
    )
    assert [q.id for q in convert("x.parquet")] == ["1", "6"]
    out = capsys.readouterr().out
    assert "6 rows are left out\n  row 1: field 'question' is empty" in out and "row 2: field 'answer'" in out
    assert "row 3: image: its picture cannot be read" in out and "row 4: id '1' is that of row 0;" in out
    parquet("nan.parquet", question=["q", "q"], answer=[float("nan"), 7.0])
    main(["nan.parquet", "--out", "nan"])
    assert [(q.id, q.answer) for q in data.load_questions("nan/questions.jsonl")] == [("1", "7")]


@pytest.mark.parametrize(
    "flags, says",
    [
        (["no.parquet"], "no.parquet: no parquet file and no folder with parquet or Arrow files"),
        (["empty"], "empty: no parquet file and no folder"),
        (["splits"], "splits: several splits; give the files of one: 'splits/data/test*', 'splits/data/train*'"),
        (["dict"], "dict: several splits; give the files of one: 'dict/test/data*', 'dict/train/data*'"),
        (["torn.parquet"], "torn.parquet: cannot be read ("),
        (["torn.arrow"], "torn.arrow: cannot be read ("),
        (["other.parquet"], "--question none: no such column; name one of a, b"),
        (["good.parquet", "--image", "pic"], "--image pic: no such column; name one of question, answer"),
        (["holes.parquet"], "holes.parquet: no row can be used: row 0: field 'answer' is empty"),
        (["good.parquet", "--out", "empty"], "--out empty: is there already"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing_behind(flags, says):
    Path("empty").mkdir()
    for file in ("splits/data/train-00000-of-00001.parquet", "splits/data/test-00000-of-00001.parquet", "good.parquet"):
        parquet(file, question=["q"], answer=["a"])
    for file in ("dict/train/data-00000-of-00001.arrow", "dict/test/data-00000-of-00001.arrow"):
        arrow(file, question=["q"], answer=["a"])
    parquet("other.parquet", a=[1], b=[2])
    parquet("holes.parquet", question=["q"], answer=pa.array([None], pa.string()))
    for kind in ("parquet", "arrow"):
        Path(f"torn.{kind}").write_bytes(Path("good.parquet").read_bytes()[:-9])
    before = sorted(Path().rglob("*"))
    with pytest.raises(UserError) as caught:
        main(flags if "--out" in flags else [*flags, "--out", "out"])
    assert says in str(caught.value) and "\n" not in str(caught.value) and sorted(Path().rglob("*")) == before


def test_a_killed_conversion_leaves_no_folder_of_that_name_and_the_next_one_begins_anew(monkeypatch):
    parquet("x.parquet", question=["q"] * 4, answer=["a"] * 4, image=[picture(i) for i in range(4)])
    kill = lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)  # noqa: E731
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "rename", kill)
        convert("x.parquet")
    assert not Path("out").exists()
    Path("out.part/pictures").mkdir(parents=True)  # a SIGKILL leaves what was written until then
    Path("out.part/pictures/stale.png").write_bytes(b"x")
    Path("out.part/questions.jsonl").write_text('{"id": "to')
    assert len(convert("x.parquet")) == 4 and not Path("out/pictures/stale.png").exists()


def test_without_pyarrow_one_line_says_what_to_install(monkeypatch):
    parquet("x.parquet", question=["q"], answer=["a"])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match="pip install pyarrow"):
        convert("x.parquet")
    assert not Path("out").exists() and not Path("out.part").exists()


def test_a_converted_set_goes_through_a_stage_of_training():
    pictures = [struct(picture(i)) for i in range(12)]
    parquet("x.parquet", problem=["what color?"] * 12, solution=["red"] * 12, image=pictures)
    convert("x.parquet")
    flags = ["--name", "x", "--data", "out/questions.jsonl", "--teachers", "reference", "--stage", "teachers"]
    train.main(flags)
    rows = [json.loads(x) for x in Path("runs/x/teachers.jsonl").read_text().splitlines()]
    assert len(rows) == 10 and all(r["verdict"] == 1 for r in rows)
