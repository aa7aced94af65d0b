"""A judge against labels: the committed cases and tools.calibrate."""

import json

import pytest

import data
import judge as jd
import tools.calibrate as calibration
from engine.command import UserError
from results import judge_cases
from tests.helpers import HOME


def test_committed_cases_are_what_the_generator_makes_and_the_rule_agrees_with_most():
    lines = (HOME / "results/judge_cases.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert rows == judge_cases.all_cases() and len(rows) >= 200
    pairs = [(data.Question(str(i), (), r["question"], r["answer"]), r["response"]) for i, r in enumerate(rows)]
    found = calibration.agreement([r["label"] for r in rows], jd.Judge("rule").score(pairs))
    assert found["n"] == len(rows) == found["positives"] + found["negatives"]
    assert found["right"] == found["n"] - found["false_positives"] - found["false_negatives"] > 0.93 * found["n"]
    assert calibration.agreement([0, 0, 1, 1, 1], [0, 1, 1, 0, 0]) == dict(
        n=5, right=2, negatives=2, false_positives=1, positives=3, false_negatives=2
    )


def test_calibration_counts_what_a_judge_gets_wrong(tmp_path, judge_folder, capsys):
    rows = [("red", "it is red", 1), ("red", "blue", 0), ("3", "three", 1), ("3", "4", 1)]
    lines = [dict(question="what?", answer=a, response=r, label=x) for a, r, x in rows]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    calibration.calibrate(str(tmp_path / "c.jsonl"), ["rule", str(judge_folder)])
    out = capsys.readouterr().out
    assert "rule against the labels: accuracy 3/4 = 0.750" in out and "false negatives 1/3" in out
    assert f"{judge_folder} against rule: accuracy" in out
    (tmp_path / "c.jsonl").write_text(json.dumps(lines[0] | dict(label=2)) + "\n")
    with pytest.raises(UserError, match="c.jsonl:1: .*label 0 or 1"):
        calibration.calibrate(str(tmp_path / "c.jsonl"), ["rule"])
