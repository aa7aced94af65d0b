"""docs/change.md: its diffs apply to the code as it is, and what they add runs."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.helpers import HOME
from tools.benchmarks import BENCHMARKS

DIFFS = re.findall(r"```diff\n(.*?)```", (HOME / "docs/change.md").read_text(), re.S)
FEW = "--pool 24 --valid-questions 2 --test-questions 2 --questions-per-step 2 --steps 1 --d-steps 1".split()
FEW += "--eval-every 0 --eval-draws 0 --evaluated after".split()


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """A copy of the repository with all of the page's diffs."""
    copy = tmp_path_factory.mktemp("changed") / "copy"
    copy.mkdir()
    for x in (*HOME.glob("*.py"), *(HOME / name for name in ("engine", "tiny", "tools"))):
        (shutil.copytree if x.is_dir() else shutil.copy)(x, copy / x.name)
    (copy / "results").symlink_to(HOME / "results")
    no_repository = dict(os.environ, GIT_CEILING_DIRECTORIES=str(copy.parent))  # else a repository around it is meant
    for diff in DIFFS:
        subprocess.run(["git", "apply", "-"], input=diff, text=True, cwd=copy, check=True, env=no_repository)
    return copy


def lines_of(file) -> list[dict]:
    return [json.loads(x) for x in file.read_text().splitlines()]


def run(copy, *words):
    return subprocess.run([sys.executable, *words], cwd=copy, check=True, capture_output=True, text=True).stdout


def test_a_new_similarity_reward_loss_term_and_tracker_train(changed):
    flags = "--group-size 2 --similarity strict --d-loss hinge --tracker csv".split()
    run(changed, "train.py", "--name", "a", *FEW, *flags)
    (row,) = [r for r in lines_of(changed / "runs/a/metrics.jsonl") if "reward" in r]
    assert row["reward"] > row["similarity"] + row["answer"]  # the warm start is brief
    assert "('reward'," in (changed / "runs/a/numbers.csv").read_text()


def test_three_teachers_share_the_group(changed):
    said = lines_of(HOME / "results/teachers/tiny-qwen-teacher/responses.jsonl")
    lines = [dict(question=x["question"], teacher=name, text=x["text"]) for x in said for name in "abc"]
    (changed / "said.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    flags = "--group-size 3 --teachers a,b,c --teachers-file said.jsonl --teacher-samples 2".split()
    run(changed, "train.py", "--name", "c", *FEW, *flags)
    assert {x["teacher"] for x in lines_of(changed / "runs/c/teachers.jsonl")} == {"a", "b", "c"}
    (row,) = [r for r in lines_of(changed / "runs/c/metrics.jsonl") if "reward" in r]
    assert abs(6 * row["teacher_answer"] - round(6 * row["teacher_answer"])) < 1e-5  # 2 questions, 3 teacher rows each


def test_a_new_benchmark_is_scored(changed):
    assert "scienceqa" not in BENCHMARKS
    code = "from tools.benchmarks import score_item; row = dict(A='x', B='y', answer='B'); "
    code += "print(score_item('scienceqa', row, 'B')['score'])"
    assert run(changed, "-c", code).strip() == "1.0"


def test_every_change_of_the_page_is_here():
    assert len(DIFFS) == 5 and "FAMILIES" in (HOME / "docs/families.md").read_text()
