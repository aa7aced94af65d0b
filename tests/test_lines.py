"""Lines of JSON that users and servers give: what cannot be used is one line that names it, and nothing is written."""

import contextlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

import data
import eval as ev
import judge as jd
import teachers
import tools.benchmarks as bm
import tools.calibrate as calibration
import tools.select as selection
import train
from engine import files
from engine.command import UserError
from engine.loading import load
from engine.served import Server

COLORS = ("red", "green", "blue", "yellow")


@pytest.fixture
def asked(tmp_path, monkeypatch) -> tuple[list[dict], list[dict]]:
    """Twelve questions in d.jsonl and four responses to each in said.jsonl, in the current folder; -> their rows."""
    monkeypatch.chdir(tmp_path)
    rows = [dict(id=f"q{i}", image=f"{i}.png", question="what color is it?", answer=COLORS[i % 4]) for i in range(12)]
    for i, row in enumerate(rows):
        Image.new("RGB", (42, 42), (i, 10 * i, 99)).save(row["image"])
    said = [dict(question=r["id"], teacher="T", text=f"it is {r['answer']}") for r in rows for _ in range(4)]
    put("d.jsonl", rows)
    put("said.jsonl", said)
    return rows, said


def put(file: str, rows: list) -> None:
    """Rows as lines; bytes and texts stand as they are."""
    lines = [x if isinstance(x, bytes) else (x if isinstance(x, str) else json.dumps(x)).encode() for x in rows]
    Path(file).write_bytes(b"\n".join(lines) + b"\n")


def run(*more: str, stage: str = "teachers") -> list[dict]:
    """The real command on the two files; -> the lines of its teachers.jsonl."""
    flags = ["--name", "x", "--data", "d.jsonl", "--teachers", "T", "--teachers-file", "said.jsonl", "--stage", stage]
    train.main([*flags, *more])
    return [row for _, row in files.read_jsonl("runs/x/teachers.jsonl")]


def assert_refused(says: str, *more: str) -> None:
    """The command ends with one line that says so, and leaves nothing behind."""
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        run(*more)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400 and not Path("runs").exists()


Q, T = (
    ("d.jsonl", dict(id="q0", question="q?", answer="red")),
    ("said.jsonl", dict(question="q0", teacher="T", text="x")),
)
NO_TEXT = (None, ["a"], {"a": 1}, True, " ")
TYPES = [
    *((Q, {name: x}, f"field {name!r} is empty or not text") for name in ("id", "question", "answer") for x in NO_TEXT),
    *((Q, {"image": x}, "'image' must be a path") for x in (None, 3, {"path": "0.png"}, [1], "", [None])),
    (Q, {"image": "0.png", "images": ["1.png"]}, "both 'image' and 'images' are given; give one of the two"),
    (Q, {"question": " <image>\n"}, "field 'question' is empty"),
    *((T, {name: x}, f"field {name!r} is empty or not text") for name in ("question", "teacher") for x in NO_TEXT),
    *((T, {"text": x}, "field 'text' is not text") for x in (None, 7, ["a"], {"a": 1}, False)),
    *((T, {"finished": x}, "field 'finished' must be true") for x in ("false", None, 0, [])),
]


@pytest.mark.parametrize("of, spoilt, says", TYPES, ids=lambda x: json.dumps(x) if isinstance(x, dict) else "")
def test_a_field_of_another_type_is_refused_with_its_line(asked, of, spoilt, says):
    file, row = of
    put(file, [*asked[file == "said.jsonl"][1:], row | spoilt])
    assert_refused(f"{file}:{len(Path(file).read_text().splitlines())}: {says}", "--offload", "none")


WHOLE = '{"id": "q0", "question": "q0", "teacher": "T", "text": "x", "answer": %s}'  # a line of either file
BROKEN = {
    "lone surrogate": (WHOLE % '"\\ud83d"', r"'\ud83d' is half of a character"),
    "lone surrogate in a name": (WHOLE % '"x", "\\uDE00": 1', r"'\ude00' is half of a character"),
    "NaN": (WHOLE % "NaN", "NaN is no value that can be used"),
    "-Infinity": (WHOLE % "-Infinity", "-Infinity is no value"),
    "a float beyond all": (WHOLE % "1e999", "1e999 is no value"),
    "5000 digits": (WHOLE % ("9" * 5000), "99999999999999999999 is no value"),
    "nested": (WHOLE % ("[" * 100_000), "not JSON that can be read (nested too deeply)"),
    "nested in nothing": ("[" * 100_000, "not a JSON object but an array"),
    "array": ('[{"id": "q0"}]', "not a JSON object but an array; one object a line (jq -c '.[]' FILE writes them so)"),
    "spread over lines": ('{\n"id": "q0"}', "not JSON (Expecting property name enclosed in double quotes"),
    "number": ("7", "not a JSON object; one object a line"),
    "torn": ('{"id": "q0", "que', "not JSON ("),
    "doubled": (WHOLE % '"x", "id": "q1"', "field 'id' stands twice"),
    "doubled inside": (WHOLE % '{"a": 1, "a": 2}', "field 'a' stands twice"),
    "latin-1": ((WHOLE % '"café"').encode("latin-1"), "not UTF-8 text; save the file as UTF-8"),
    "UTF-16": ((WHOLE % '"red"').encode("utf-16"), "not UTF-8 text; save the file as UTF-8"),
    "UTF-16 without a mark": ((WHOLE % '"red"').encode("utf-16-be"), "not UTF-8 text"),
    "NUL": (WHOLE % '"\0"', "not UTF-8 text"),
    "a surrogate's bytes": ((WHOLE % '"@"').encode().replace(b"@", b"\xed\xa0\xbd"), "not UTF-8 text"),
}


@pytest.mark.parametrize("file", ["d.jsonl", "said.jsonl", "sft.jsonl"])
@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_line_is_refused_with_its_number(asked, kind, file):
    line, says = BROKEN[kind]
    put(file, [line, *asked[file == "said.jsonl"][1:]])
    assert_refused(f"{file}:1: {says}", *(["--sft-data", file] if file == "sft.jsonl" else []))


def test_every_command_that_reads_lines_refuses_them_in_one_line(asked, capsys):
    put("d.jsonl", [*asked[0], asked[0][0] | dict(answer="\ud83d")])
    put("cases.jsonl", [dict(question="q", answer="a", response="\ud83d", label=1)])
    for main, flags, place in (
        (ev.main, ["--student", "tiny-qwen", "--data", "d.jsonl"], "d.jsonl:13"),
        (selection.main, ["--name", "x", "--data", "d.jsonl"], "d.jsonl:13"),
        (calibration.main, ["cases.jsonl"], "cases.jsonl:1"),
    ):
        with pytest.raises(UserError, match=rf"^{place}: '\\ud83d' is half of a character"):
            main(flags)
    assert not Path("runs").exists()


def test_a_benchmarks_broken_rows_are_named_and_left_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [dict(index=i, question="q", answer="A", image="x.png") for i in range(3)]
    put(
        "MMStar.jsonl",
        [rows[0], '{"a":' * 100_000, rows[1] | dict(question="\ud83d"), b'{"a": "\xe9"}', "[1]", rows[2]],
    )
    table = bm.read_table("MMStar.jsonl")
    assert [r["index"] for r in table.rows] == ["0", "2"]
    found = [re.sub(r"MMStar.jsonl: row (\d).*(deeply|half|UTF-8|array).*", r"\1 \2", x) for x in table.wrong]
    assert found == ["2 deeply", "3 half", "4 UTF-8", "5 array"]


@pytest.mark.parametrize(
    "change",
    [
        lambda b: b"\xef\xbb\xbf" + b,
        lambda b: b.replace(b"\n", b"\r\n"),
        lambda b: b.replace(b"\n", b"\r"),
        lambda b: b"\n \n" + b.replace(b"\n", b"\n\n\t\n"),
        lambda b: b.rstrip(b"\n"),
    ],
    ids=["byte order mark", "CRLF", "bare CR", "blank lines", "no last newline"],
)
def test_files_of_any_editor_are_read(asked, change):
    plain = data.load_questions("d.jsonl"), teachers.responses_in(Path("said.jsonl"), "T", {"q0": 9, "q11": 9})
    for file in ("d.jsonl", "said.jsonl"):
        Path(file).write_bytes(change(Path(file).read_bytes()))
    assert plain == (
        data.load_questions("d.jsonl"),
        teachers.responses_in(Path("said.jsonl"), "T", {"q0": 9, "q11": 9}),
    )
    assert len(plain[0]) == 12 and len(plain[1]) == 8


def test_an_id_is_the_same_as_a_number_a_text_or_a_float_and_with_blanks_around_it(asked, capsys):
    forms = [lambda i: i, str, float, lambda i: f" {i}\t"]
    put("d.jsonl", [r | dict(id=forms[i % 4](i)) for i, r in enumerate(asked[0])])
    put("said.jsonl", [s | dict(question=forms[i % 4](i // 4), teacher=" T ") for i, s in enumerate(asked[1])])
    rows = run()
    assert len(rows) == 40 and {type(r["question"]) for r in rows} == {str} and all(r["verdict"] for r in rows)
    ids = {q.id for q in data.load_questions("d.jsonl")}
    assert ids == {str(i) for i in range(12)}
    put("d.jsonl", [asked[0][0] | dict(id=x) for x in (7, "7 ")])
    with pytest.raises(UserError, match="d.jsonl:2: id '7' stands already at d.jsonl:1"):
        data.load_questions("d.jsonl")


def test_a_placeholder_of_other_formats_is_taken_out_and_counted_once(asked, capsys):
    asked[0][0]["question"] = "<image>\nwhat color is it?"
    asked[0][1]["question"] = "what <image> is <image>it?"
    put("d.jsonl", asked[0])
    run()
    assert capsys.readouterr().out.count("WARNING: d.jsonl: <image> is taken out of 2 questions") == 1
    assert [q.text for q in data.load_questions("d.jsonl")[:2]] == ["what color is it?", "what  is it?"]


# ------------------------------------------------------------------------------------------------ what belongs together
def test_teachers_files_are_matched_before_anything_is_written_and_the_corrected_command_works(asked, capsys):
    rows, said = asked
    put("said.jsonl", [s | dict(question=f"pool/{s['question']}", teacher=t) for s in said for t in ("big", "small")])
    assert_refused(
        "said.jsonl: no response of 'T' to any training question; its teachers are 'big', 'small', its questions 'p"
    )
    assert_refused("the training questions are 'q", "--teachers", "big")
    put("said.jsonl", [*said, said[0] | dict(teacher="big"), *[said[0] | dict(question=f"new{i}") for i in range(7)]])
    assert_refused("said.jsonl: no response of 'small' to any training question", "--teachers", "T,small")
    capsys.readouterr()
    assert len(run()) == 40
    out = capsys.readouterr().out
    assert "1 of 56 lines are not read, they are of teachers that --teachers does not name: 'big'" in out
    assert "8 of 56 lines are not read, they are about questions outside the training part" in out
    assert "7 of 56 lines are not read, they are about questions that are not in the data: 'new0', 'new1'" in out


def test_warm_start_lines_are_checked_before_anything_is_written_and_the_corrected_command_works(asked):
    rows, _ = asked
    held = [q for part in ("valid", "test") for q in data.split_questions(data.load_questions("d.jsonl"))[part]]
    sft = ["--sft-data", "sft.jsonl"]
    put("sft.jsonl", [rows[0] | dict(image="no.png")])
    assert_refused("sft.jsonl:1: no.png: no such file", *sft)
    put("sft.jsonl", [rows[0] | dict(question="what is <|image_pad|>?")])
    assert_refused("question 'q0': the text holds", *sft)
    put("sft.jsonl", [r for r in rows if r["id"] in {q.id for q in held}])
    assert_refused("--sft-data sft.jsonl: all its lines are about held-out questions", *sft)
    put("sft.jsonl", rows)
    assert len(run(*sft)) == 40


# ------------------------------------------------------------------------------------------------ servers and logs
@contextlib.contextmanager
def serving(reply):
    """A server on loopback whose answer to a request is reply(its number), as bytes; yields its URL."""

    class Handler(BaseHTTPRequestHandler):
        def send(self, raw: bytes):
            self.send_response(200)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def do_GET(self):
            self.send(b'{"data": [{"id": "m"}]}')

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            with lock:
                number = len(count)
                count.append(1)
            self.send(reply(number))

        def log_message(self, *_):
            pass

    lock, count = threading.Lock(), []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


def choice(text: str) -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}).encode()


def test_half_a_character_of_a_served_teacher_is_replaced_before_it_is_written_and_counted(asked, capsys):
    texts = ["i see \ud83d it is red", "\ude00", "whole \U0001f600 it is red"]
    flags = ["--name", "x", "--data", "d.jsonl", "--teacher-samples", "1", "--d-steps", "0", "--stage", "teachers"]
    with serving(lambda number: choice(texts[min(number, 2)])) as url:
        train.main([*flags, "--teachers", f"big={url}"])
    for file in ("runs/x/teachers.jsonl", "runs/x/teachers-big.part.jsonl"):
        said = [row["text"] for _, row in files.read_jsonl(file)]
        assert sorted(said) == sorted(["i see \ufffd it is red", "\ufffd"] + [texts[2]] * 8), file
    assert capsys.readouterr().err.count(f"WARNING: {url}: 2 answers held half of a character") == 1


def test_half_a_character_of_a_served_judge_costs_no_verdict(tmp_path, capsys):
    question = data.Question("q", (), "what?", "red")
    with serving(lambda number: choice("\ud83d <answer>1</answer>")) as url:
        assert jd.Judge(url, cache=tmp_path / "v.jsonl").score([(question, "red")]) == [1]
        assert "1 answers held half of a character" in capsys.readouterr().err
        assert jd.Judge(url, cache=tmp_path / "v.jsonl").score([(question, "red")]) == [1]
    assert not capsys.readouterr().err  # from the cache


def test_a_servers_reply_of_any_form_is_tried_again(capsys):
    broken = [
        b"[" * 100_000,
        b'{"choices": ' + b"9" * 5000 + b"}",
        b"\xff",
        b'{"choices": [{"message": {"content": []}}]}',
    ]
    with serving(lambda number: broken[number] if number < len(broken) else choice("red")) as url:
        assert Server(url, sleep=lambda seconds: None).ask([[dict(role="user", content="x")]], 5) == ["red"]


def test_unusable_lines_in_a_runs_own_files_are_left_out_and_named_and_no_restart_dies(asked, capsys):
    rows = run()
    file = Path("runs/x/teachers.jsonl")
    bad = [rows[0] | x for x in (dict(text=None), dict(text="\ud83d"), dict(question=["q"]), dict(finished="no"))]
    put(str(file), [*bad, *rows, '{"question": "q0", "tea', b"\xff"])
    folder = type("Run", (), dict(path=Path("runs/x"), cfg=train.parse(["--teachers", "T", "--data", "d.jsonl"])))
    student, questions = load("tiny-qwen"), data.split_questions(data.load_questions("d.jsonl"))["train"]
    capsys.readouterr()
    found = teachers.whole_responses(folder, student.encoder, questions)
    assert {len(x["T"]) for x in found.values()} == {4}
    out = capsys.readouterr().out
    assert f"WARNING: 6 lines cannot be used and are left out: '{file}:1', '{file}:2', '{file}:3', '{file}:4', " in out


def test_an_answer_that_cannot_be_used_is_asked_for_again(asked):
    flags = ["--name", "x", "--data", "d.jsonl", "--teacher-samples", "1", "--d-steps", "0"]
    with serving(lambda number: choice("it is red")) as url:
        train.main([*flags, "--teachers", f"big={url}", "--stage", "sft"])
        ids = [q.id for q in data.split_questions(data.load_questions("d.jsonl"))["train"]]
        answer = dict(index=0, text="kept", finished=True)
        part = [answer | dict(question=q) for q in ids]
        part[0]["text"], part[1]["text"], part[2]["finished"] = None, "\ud83d", "yes"
        put("runs/x/teachers-big.part.jsonl", part)
        train.main([*flags, "--teachers", f"big={url}", "--stage", "teachers"])
    said = [row["text"] for _, row in files.read_jsonl("runs/x/teachers.jsonl")]
    assert said == ["it is red"] * 3 + ["kept"] * (len(ids) - 3)
