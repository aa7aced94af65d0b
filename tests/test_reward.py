"""--reward FILE.py: a function of yours in the judge's place."""

import json
import re

import pytest

import config
import data
import judge as jd
import tiny.world as tiny_world
from engine.command import UserError
from rollout import Response
from tests.helpers import SMALL, command, metrics

QUESTION = data.Question("q7", (), "how many?", "three")
SHORT = """def reward(question, response):
    assert question.pictures()
    with open("asked.txt", "a") as file:
        file.write(question.id[:5] + " ")
    return question.answer in response.split() and len(response) % 2 == 0
"""


def file_of(folder, text: str) -> str:
    (folder / "mine.py").write_text(text)
    return str(folder / "mine.py")


def test_it_judges_students_and_teachers_in_every_stage_and_another_text_of_it_is_another_run(tmp_path):
    file_of(tmp_path, SHORT)
    flags = ["--name", "r", *SMALL, "--reward", "mine.py", "--similarity", "none", "--steps", "2"]
    flags += ["--eval-draws", "1", "--valid-questions", "8", "--test-questions", "8"]
    command(tmp_path, *flags)
    run = tmp_path / "runs/r"
    answers = {q.id: q.answer for q in tiny_world.world_questions("train", 48)}

    def wanted(name: str, text: str) -> int:
        return int(answers[name] in text.split() and len(text) % 2 == 0)

    theirs = [json.loads(x) for x in (run / "teachers.jsonl").read_text().splitlines()]
    found = [(r["verdict"], wanted(r["question"], r["text"])) for r in theirs]
    for row in map(json.loads, (run / "samples.jsonl").read_text().splitlines()):
        found += [(r["answer"], wanted(row["question"], r["text"])) for r in row["responses"]]
    assert {x[:4] for x in (tmp_path / "asked.txt").read_text().split()} == {"trai", "vali", "test"}
    assert len(found) > 200 and {x for x, _ in found} == {0, 1} and all(x == y for x, y in found)
    assert not (run / "verdicts.jsonl").exists() and metrics(run)[-1]["stage"] == "ril"
    file_of(tmp_path, SHORT.replace("% 2", "% 3"))
    with pytest.raises(UserError, match="another configuration: reward_hash '"):
        command(tmp_path, *flags)


def test_verdicts_are_numbers_whatever_kind_of_truth_it_returns_and_malformed_texts_are_not_asked_about(tmp_path):
    for value in ("True", "1", "1.0", "response == 'three'"):
        judge = jd.Judge(file_of(tmp_path, f"def reward(question, response): return {value}"))
        texts = [Response("q7", i, "student", [], x) for i, x in enumerate(("three", "", "ab" * 99))]
        found = judge.verdicts([QUESTION], texts)
        assert found == [1, 0, 0] and all(type(x) is int for x in found) and judge.malformed_counts() == (2, 3)


@pytest.mark.parametrize(
    "text, says",
    [
        ("def reward(question, response):\n    return 0.5\n", "mine.py: reward returns 0.5 on question 'q7'"),
        ("def reward(question, response):\n    pass\n", "mine.py: reward returns None on question 'q7'; it must be 0"),
        ("def reward(question, response):\n    return '1'\n", "mine.py: reward returns '1' on question 'q7'"),
        (
            "def reward(question, response):\n    x = 1\n    return x / 0\n",
            "mine.py:3: reward fails on question 'q7': ZeroDivisionError: division by zero",
        ),
        ("def reward(question): return 1", "mine.py:1: reward fails on question 'q7': TypeError: reward() takes 1"),
        (
            "def reward(question, response):\n    raise SystemError('a\\nb')\n",
            "mine.py:2: reward fails on question 'q7': SystemError: a",
        ),
        ("x = 1\ndef reward(question, response) return 1", "mine.py:2: cannot be run: SyntaxError"),
        ("import no_such_module_of_yours\n", "mine.py:1: cannot be run: ModuleNotFoundError: No module named"),
        ("\n\nraise SystemExit(3)\n", "mine.py:3: cannot be run: SystemExit: 3"),
        ("def score(question, response): return 1", "mine.py: has no function reward(question, response)"),
        ("reward = 1", "mine.py: has no function reward(question, response)"),
        (None, "mine.py: no such file"),
    ],
)
def test_an_error_in_it_is_one_line_that_names_file_and_question_before_anything_is_written(tmp_path, text, says):
    if text is not None:
        file_of(tmp_path, text)
    (tmp_path / "d.jsonl").write_text(
        "\n".join(json.dumps(dict(id=f"q{i}", question="how many?", answer="three")) for i in (7, *range(10, 20)))
    )
    first = data.split_questions(data.load_questions(tmp_path / "d.jsonl"))["train"][0].id
    with pytest.raises(UserError, match=re.escape(says.replace("'q7'", repr(first)))) as caught:
        command(tmp_path, "--name", "r", "--data", "d.jsonl", "--reward", "mine.py")
    assert "\n" not in str(caught.value) and not (tmp_path / "runs").exists()


def test_an_error_on_a_later_question_names_it_too(tmp_path):
    judge = jd.Judge(file_of(tmp_path, "def reward(question, response):\n    return 2 * (response == 'x')\n"))
    with pytest.raises(UserError, match=r"mine.py: reward returns 2 on question 'q7'; it must be 0 or 1"):
        judge.verdicts([QUESTION], [Response("q7", 0, "student", [], x) for x in ("y", "x")])


def test_with_it_the_paper_preset_asks_for_no_language_model():
    flags = ["--student", "qwen2.5-vl-7b", "--data", "d.jsonl", "--teachers", "qwen2.5-vl-72b", "--reward", "mine.py"]
    assert config.parse(flags).judge == "mine.py"
    with pytest.raises(UserError, match="--reward mine.txt: give a file of Python"):
        config.parse([*flags[:-1], "mine.txt"])
