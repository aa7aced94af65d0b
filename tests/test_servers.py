"""Served judges and teachers: what a broken answer, a proxy and a key do."""

import contextlib
import itertools
import json

import pytest

import tools.benchmarks as benchmarks
from config import Config
from data import Question
from engine.asking import served_answers
from engine.command import UserError
from engine.files import as_jsonl, read_jsonl
from engine.served import Server, message_in
from judge import Judge
from model import Encoder
from rollout import Response
from teachers import ask_teacher, whole_responses
from tests.helpers import stub_server

QUESTION = Question("q", (), "What color is the car?", "red")
RED, KEY = "it is red", "sk-very-secret"


@contextlib.contextmanager
def server(answer):
    """On loopback, answering with the (status, body) of answer(request's body, its number): yields (URL, requests)."""
    numbers = itertools.count(1)
    with stub_server(lambda handler, body: handler.reply(*answer(body, next(numbers)))) as found:
        yield found


def said(text, **more) -> tuple[int, dict]:
    """A chat completion."""
    usage = {"usage": {"completion_tokens": more.pop("used")}} if "used" in more else {}
    return 200, {"choices": [{"message": {"content": text}} | more]} | usage


def ask(url: str, **more) -> list:
    return list(Server(url, **more).answers([[{"role": "user", "content": "?"}]], 9))


# ------------------------------------------------------------------------------------------------ answers
@pytest.mark.parametrize(
    "body, shown",
    [
        ({"error": {"message": "the engine\nis dead", "code": 500}}, "the engine is dead"),
        ({"error": "out of memory"}, "out of memory"),
        ({"detail": "Not ready"}, "Not ready"),
        ({"object": "error", "message": "too long", "code": 400}, "too long"),
        ({"error": None, "data": 1}, "KeyError: 'choices'"),
        ([], "TypeError"),
    ],
)
def test_an_error_in_a_200_reply_or_in_a_refusal_is_shown_in_the_servers_words(body, shown):
    with server(lambda *_: (200, body)) as (url, got), pytest.raises(UserError) as caught:
        ask(url, tries=2, sleep=lambda s: None)
    assert f"2 tries without a usable answer (last: {shown}" in str(caught.value) and len(got) == 2
    assert "\n" not in str(caught.value)
    if "Error" not in shown:
        with server(lambda *_: (400, body)) as (url, got), pytest.raises(UserError, match=f"{shown}; correct it"):
            ask(url)


def test_a_message_is_found_in_error_bodies_only():
    assert {message_in(x) for x in (b"<html>busy</html>", b"[1]", b'{"choices": []}', b"")} == {""}
    assert message_in(json.dumps({"error": {"type": "busy"}}).encode()) == "{'type': 'busy'}"


def test_an_answer_without_a_reason_is_finished_unless_it_has_all_the_tokens_that_it_may():
    answers = [said(RED), said(RED, finish_reason=None), said(RED, used=8), said(RED, used=9)]
    answers += [said(RED, used=9, finish_reason="stop"), said(RED, finish_reason="length")]
    with server(lambda _, n: answers[n - 1]) as (url, _):
        assert [ask(url)[0][2] for _ in answers] == ["stop", "stop", "stop", "length", "stop", "length"]
    with server(lambda *_: said(RED)) as (url, _):
        (row,) = served_answers(Server(url), [(QUESTION, 0)], Config())
        assert row == dict(question="q", index=0, text=RED, finished=True)


# ------------------------------------------------------------------------------------------------ proxies
def test_loopback_is_asked_without_a_proxy_and_others_name_theirs_without_its_password(monkeypatch):
    for name in ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    refusal = (502, {"detail": "no route"})
    with server(lambda *_: refusal) as (proxy, got), server(lambda *_: said(RED)) as (ours, _):
        proxy = proxy.removesuffix("/v1")
        monkeypatch.setenv("http_proxy", proxy.replace("//", "//me:pass%40word@"))
        assert ask(ours) == [(0, RED, "stop")] and not got
        with pytest.raises(UserError) as caught:
            ask("http://judge.invalid/v1#m", tries=1)
        assert f"http://judge.invalid/v1 through the proxy {proxy}: 1 tries" in str(caught.value)
        assert "no route" in str(caught.value) and "word" not in str(caught.value) and len(got) == 1
        assert got[0][0] == "http://judge.invalid/v1/chat/completions" and "Proxy-Authorization" in got[0][1]
    for host in ("localhost", "[::1]", "127.0.0.1", "0.0.0.0"):
        assert Server(f"http://{host}:8000/v1").where == f"http://{host}:8000/v1"
    monkeypatch.setenv("no_proxy", "judge.invalid")
    assert Server("http://judge.invalid/v1").where == "http://judge.invalid/v1"
    assert "through" in Server("http://127.example.org/v1").where
    monkeypatch.setenv("http_proxy", "http://me:pass/word@host:3128")
    with pytest.raises(UserError, match="http_proxy: not the address of a proxy") as caught:
        Server("http://other.invalid/v1")
    assert "word" not in str(caught.value)
    with pytest.raises(UserError, match="not the address of a server") as caught:
        Server("http://me:word@host/v1")
    assert "word" not in str(caught.value)


# ------------------------------------------------------------------------------------------------ the key
def test_the_key_is_stripped(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\r\n")
    with server(lambda *_: said(RED)) as (url, got):
        ask(url)
    assert got[0][1]["Authorization"] == f"Bearer {KEY}"
    monkeypatch.setenv("OPENAI_API_KEY", " \n")
    with server(lambda *_: said(RED)) as (url, got):
        ask(url)
    assert "Authorization" not in got[0][1]


@pytest.mark.parametrize("bad", [f"{KEY}\nX-Other: 1", f"{KEY}\u20ac", f"{KEY} {KEY}", f"{KEY}\0"])
def test_a_bad_key_is_one_line_without_the_key(bad, monkeypatch):
    monkeypatch.setattr("os.environ", {"OPENAI_API_KEY": bad})  # a real environment takes no \0
    with pytest.raises(UserError, match="OPENAI_API_KEY: .*set it again") as caught:
        Server("http://127.0.0.1:1/v1")
    assert KEY not in str(caught.value) and caught.value.__cause__ is None is caught.value.__context__


def test_a_server_that_repeats_the_key_does_not_get_it_printed(monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for status, fails in ((401, "refuses the request"), (500, "4 tries"), (200, "4 tries")):
        with server(lambda *_, status=status: (status, {"error": {"message": f"bad key {KEY}"}})) as (url, _):
            with pytest.raises(UserError, match=rf"{fails}.*bad key \(key\)") as caught:
                ask(url, tries=4, sleep=lambda s: None)
            assert KEY not in str(caught.value)
    shown = capsys.readouterr().err
    assert "trying again" in shown and KEY not in shown


# ------------------------------------------------------------------------------------------------ judges
def responses(count: int, first: int = 0) -> list[Response]:
    return [Response("q", i, "s", [], f"{RED} {i}") for i in range(first, first + count)]


def test_a_reply_without_a_verdict_is_asked_for_again_and_also_after_a_resume(tmp_path):
    replies = [said("no idea"), said(None), said("<answer>maybe</answer>"), said("<answer>1</answer>")]
    cache = tmp_path / "verdicts.jsonl"
    with server(lambda _, n: replies[n - 1]) as (url, got):
        judge = Judge(url, cache=cache)
        assert judge.verdicts([QUESTION], responses(1)) == [0] and judge.malformed_counts() == (1, 1)
        assert judge.verdicts([QUESTION], responses(1)) == [0] and cache.read_text() == ""
        assert Judge(url, cache=cache).verdicts([QUESTION], responses(1)) == [0]
        assert Judge(url, cache=cache).verdicts([QUESTION], responses(1)) == [1]
        assert Judge(url, cache=cache).verdicts([QUESTION], responses(1)) == [1] and len(got) == 4
        cache.write_text(cache.read_text().replace('"verdict": 1', '"verdict": null'))  # as older versions kept it
        replies.append(said("<answer>1</answer>"))
        assert Judge(url, cache=cache).verdicts([QUESTION], responses(1)) == [1] and len(got) == 5


def test_a_judge_without_verdicts_says_so_once_wherever_it_is_asked(tmp_path, capsys):
    def answer(body, _):
        bad = "red 1" in body["messages"][1]["content"]
        return said("I think that the", finish_reason="length") if bad else said("<answer>1</answer>")

    with server(answer) as (url, _):
        judge = Judge(url, cache=tmp_path / "v.jsonl")
        assert judge.verdicts([QUESTION], responses(10)) == [1, 0, *[1] * 8]  # a tenth: no alarm
        assert capsys.readouterr().out == ""
        judge.verdicts([QUESTION], responses(10, 10))
        judge.verdicts([QUESTION], responses(10, 10))
        (line,) = capsys.readouterr().out.splitlines()
        assert f"--judge {url}: 10 of 10 replies hold no verdict" in line and "'I think that the', cut off" in line
        Judge(url).verdicts([QUESTION], responses(10, 10))  # another stage
        assert len(capsys.readouterr().out.splitlines()) == 1


def test_benchmarks_keep_no_empty_grade_and_count_unreadable_ones(tmp_path, capsys):
    row = dict(index="0", question="what?", answer="red", category="rec")
    with server(lambda _, n: said([None, "eh", "eh", "0.5"][n - 1] if n < 5 else "eh")) as (url, got):
        keeping = benchmarks.Remembering(Server(url), "j", tmp_path / "judge.jsonl")
        assert [x["score"] for x in benchmarks.score_all("MMVet", [row], ["red"], "2025-10", keeping)] == [0.5]
        assert len(got) == 4 and len(keeping.known) == 3 and capsys.readouterr().out == ""
        keeping.known.clear()
        assert [x["score"] for x in benchmarks.score_all("MMVet", [row], ["red"], "2025-10", keeping)] == [0]
        assert "MMVet: 1 of 1 answers got no readable grade" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------ teachers
class FakeRun:
    """What ask_teacher and whole_responses take from a run."""

    def __init__(self, path, **settings):
        self.path, self.first, self.cfg = path, True, Config(**settings)


def test_a_served_teacher_whose_texts_are_all_empty_is_named_early_and_asked_again_later(tmp_path):
    questions = [Question(str(i), (), f"what? {i}", "red") for i in range(90)]
    run = FakeRun(tmp_path, teachers="big=http://x/v1", teacher_samples=1)
    with server(lambda *_: said(None, finish_reason="length")) as (url, got):
        with pytest.raises(UserError, match="--teachers big: all of its 64 texts are empty.*--max-new-tokens"):
            ask_teacher("big", url, questions, run)
        assert 64 <= len(got) <= 64 + 32 and len(read_jsonl(tmp_path / "teachers-big.part.jsonl")) == 64
        with pytest.raises(UserError, match="all of its 3 texts are empty"):
            ask_teacher("small", url, questions[:3], run)
    with server(lambda body, n: said(RED if n > 5 else " \n", finish_reason="stop")) as (url, got):
        found = ask_teacher("some", url, questions[:9], run)
        assert sum(r.text == RED for r in found) == 4  # a few empty ones are no alarm
        assert [r.text for r in ask_teacher("some", url, questions[:9], run)] == [RED] * 9 and len(got) == 14


def test_empty_teacher_texts_of_a_file_are_counted_and_all_of_them_named(tmp_path, capsys):
    class Words(Encoder):
        def __init__(self):
            pass

        def clean(self, text):
            return text.strip()

        def reply_ids(self, text):
            return text.split()

    run = FakeRun(tmp_path, teachers="t", max_new_tokens=3)
    rows = [dict(question="q", teacher="t", text=text, verdict=1) for text in ("", " ", "a b c d", RED)]
    (tmp_path / "teachers.jsonl").write_text(as_jsonl(rows))
    assert len(whole_responses(run, Words(), [QUESTION])["q"]["t"]) == 1
    assert "left out: 2 empty, 1 cut off or over 3 tokens" in capsys.readouterr().out
    (tmp_path / "teachers.jsonl").write_text(as_jsonl(rows[:2]))
    with pytest.raises(UserError, match="teachers.jsonl: all teacher texts are empty"):
        whole_responses(run, Words(), [QUESTION])
