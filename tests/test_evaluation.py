"""eval.py and the tables of studies: intervals, statistics over seeds, answers paired with questions."""

import json

import numpy as np
import pytest

import engine.loading as loading
import eval as ev
import judge as jd
import tiny.world as tiny_world
from engine.command import UserError
from results.collect import collect, read_runs


def test_intervals_equal_values_by_hand():
    low, high = ev.wilson(8, 10)
    assert abs(low - 0.4902) < 1e-3 and abs(high - 0.9433) < 1e-3
    low, high = ev.middle(ev.boot_means([0, 1] * 500))
    assert abs(low - 0.469) < 0.01 and abs(high - 0.531) < 0.01


def test_auc_and_seed_statistics_equal_values_by_hand():
    assert ev.auc([3, 2], [1, 2]) == (1 + 1 + 1 + 0.5) / 4 and ev.auc([], [1]) == 0.5
    found = ev.over_seeds([0.6, 0.7, 0.8])
    assert abs(found["mean"] - 0.7) < 1e-12 and abs(found["half"] - 4.303 * 0.1 / 3**0.5) < 1e-4
    assert ev.over_seeds([0.5])["half"] is None


def test_a_studys_table_pairs_by_seed_and_names_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    scores = {"a": {0: 0.5, 1: 0.7}, "b": {0: 0.55, 1: 0.75}, "c": {0: 0.9}}
    for cell, of in scores.items():
        for seed, x in of.items():
            run = tmp_path / f"runs/s-{cell}-{seed}"
            run.mkdir(parents=True)
            summary = dict(sampled_after=x, greedy_after=x, seconds={"ril": 3.0}, similarity_end=x)
            (run / "summary.json").write_text(json.dumps(summary))
            (run / "config.json").write_text(json.dumps(dict(commit="abc", command="python train.py")))
            row = dict(stage="ril", step=0, loss=0.0, similarity=x, answer=x)
            (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")
            answers = [dict(who="after", question=q, greedy=1, sampled=y) for q, y in (("q1", 0.02), ("q2", x))]
            (run / "answers.jsonl").write_text("".join(json.dumps(r) + "\n" for r in answers))
    collect("s", ["a", "b", "c"], [0, 1])
    result = json.loads((tmp_path / "results/s.json").read_text())
    assert abs(result["rows"]["b"]["sampled difference"]["mean"] - 0.05) < 1e-9
    assert result["rows"]["b"]["sampled difference"]["half"] < 1e-9  # paired: the seeds' own level cancels
    assert "sampled difference" not in result["rows"]["c"] and result["missing"] == ["runs/s-c-1"]
    assert result["rows"]["a"]["hard questions solved"]["mean"] == 0.02  # q1 alone is hard
    assert (
        "| b | 2 | +0.050 ± 0.000 |" in (tmp_path / "results/s.md").read_text()
        and (tmp_path / "results/s.png").exists()
    )


def test_evaluation_pairs_answers_with_questions(straight):
    student = loading.load(straight / "student")
    questions = tiny_world.world_questions("valid", 24)
    whole = ev.evaluate(student, questions, jd.Judge(), 32, draws=0)
    again = ev.evaluate(student, questions[::-1], jd.Judge(), 32, draws=0)
    assert whole["greedy"] == again["greedy"] and whole["texts"] == again["texts"]
    right = [jd.rule_judge(q, whole["texts"][q.id]) for q in questions]
    assert whole["greedy"] == np.mean(right)


@pytest.mark.parametrize("text, says", [("{", "cannot be read as JSON"), ("[]", "holds no JSON object")])
def test_a_damaged_config_of_the_students_run_is_one_line(tmp_path, text, says):
    (tmp_path / "student").mkdir()
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=f"config.json: {says}"):
        ev.trained_image_tokens(str(tmp_path / "student"))
    for settings, tokens in ((dict(image_tokens=64), 64), (dict(image_tokens="x"), 0), ([], 0)):
        (tmp_path / "config.json").write_text(json.dumps(dict(settings=settings)))
        assert ev.trained_image_tokens(str(tmp_path / "student")) == tokens


def test_what_eval_writes_into_a_folder_is_a_row_of_a_study_like_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed in "01":
        argv = ["--student", "tiny-qwen", "--questions", "3", "--draws", "2", "--seed", seed]
        argv += ["--into", f"runs/t-x-{seed}"]
        ev.main(argv)
    rows, _, missing = read_runs("t", ["x"], [0, 1])
    assert missing == [] and rows["x"]["seeds"] == [0, 1] and len(rows["x"]["sampled"]["values"]) == 2
    assert rows["x"]["command"].startswith("python eval.py --student tiny-qwen") and len(rows["x"]["commit"]) >= 7
