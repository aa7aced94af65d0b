"""Files that a kill may tear: logs, answers by key, whole files."""

import json
import os

import pytest

import engine.files as files
from engine.answers import AnswerLog, cut_torn_line
from engine.command import UserError


def test_a_torn_line_is_refused_in_a_users_file_and_left_out_of_a_log(tmp_path):
    file, torn = tmp_path / "x.jsonl", []
    file.write_bytes(b'{"a": 1}\n\n{"a": "\xc3\n[2]\n{"b": 3}\n{"a": "line\xe2\x80\xa8end"}\n{"a": 5}')
    found = files.read_jsonl(file, ("a",), torn)
    assert found == [(f"{file}:1", {"a": 1}), (f"{file}:6", {"a": "line\u2028end"})]
    assert torn == [f"{file}:{n}" for n in (3, 4, 5, 7)]  # the last one has no newline, so more may have been meant
    with pytest.raises(UserError, match="x.jsonl:3: not UTF-8 text; save the file as UTF-8"):
        files.read_jsonl(file)
    file.write_text('{"a": 1}\n{"a": 2}')
    assert [row["a"] for _, row in files.read_jsonl(file, ("a",))] == [1, 2]  # editors leave the last newline out
    assert files.read_jsonl(tmp_path / "none", ("a",), torn=[]) == []
    with pytest.raises(UserError, match="none: no such file"):
        files.read_jsonl(tmp_path / "none")


def test_an_answer_is_on_disk_before_the_next_one_is_asked_for(tmp_path):
    file = tmp_path / "answers.jsonl"

    def asked():
        for i in range(3):
            yield dict(question="q", index=i, text="é" * i)
            assert [json.loads(x)["index"] for x in file.read_text().splitlines()] == list(range(i + 1))
        raise KeyboardInterrupt

    log = AnswerLog(file, "question", "index")
    with pytest.raises(KeyboardInterrupt):
        log.add(asked())
    assert log["q", 2]["text"] == "éé" and AnswerLog(file, "question", "index") == log


def test_a_killed_log_loses_its_torn_line_only_and_grows_on(tmp_path):
    file = tmp_path / "verdicts.jsonl"
    AnswerLog(file, "key").add(dict(key=k, verdict=1) for k in "abc")
    whole = file.read_bytes()
    for cut in range(len(whole) // 3 * 2, len(whole)):
        file.write_bytes(whole[:cut])
        other = AnswerLog(file, "key", writes=False)
        assert file.read_bytes() == whole[:cut]  # another rank writes this file, and may be in the middle of a line
        log = AnswerLog(file, "key")
        assert log == other and [*log] == ["a", "b"]
        log.add([dict(key="c", verdict=1)])
        assert file.read_bytes() == whole
    other.add([dict(key="d", verdict=0)])
    assert "d" in other and file.read_bytes() == whole
    assert AnswerLog(None, "key") == {} == AnswerLog(tmp_path / "none", "key") and not (tmp_path / "none").exists()


def test_two_logs_of_one_file_write_whole_lines_side_by_side(tmp_path):
    file, long = tmp_path / "verdicts.jsonl", "x" * 20_000  # longer than a file's buffer
    logs = [AnswerLog(file, "key") for _ in range(2)]

    def rows(mine: int, other: int):
        for i in range(4):
            yield dict(key=f"{mine} {i}", text=long)
            logs[other].add([dict(key=f"{other} {i}", text="short")])

    logs[0].add(rows(0, 1))
    assert not logs[0].keys() & logs[1].keys()
    assert AnswerLog(file, "key") == logs[0] | logs[1] and len(file.read_text().splitlines()) == 8


def test_cutting_leaves_a_whole_file_as_it_is(tmp_path):
    file = tmp_path / "x"
    file.write_text("a\nb\n")
    os.utime(file, (1, 1))
    cut_torn_line(file)
    assert file.read_text() == "a\nb\n" and file.stat().st_mtime == 1
    file.write_text("torn")
    cut_torn_line(file)
    assert file.read_bytes() == b""


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "summary.json"
    files.write(file, "é\u2028\n")
    files.write(tmp_path / "curves.png", b"\x89PNG")
    assert file.read_bytes() == "é\u2028\n".encode() and (tmp_path / "curves.png").read_bytes() == b"\x89PNG"
    with pytest.raises(UnicodeEncodeError):
        files.write(file, "new \ud800")
    assert file.read_bytes() == "é\u2028\n".encode() and len(list(tmp_path.iterdir())) == 2
