"""The patches in docs/solutions solve the exercises of docs/lab.md: each in a copy of the files, never here."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import test_exercises

HOME = Path(__file__).resolve().parent.parent
FLAGS = "--name x --judged 0.25 --pool 8 --questions-per-step 4 --group-size 4 --steps 3 --d-steps 1 --eval-every 0"
FLAGS += " --valid-questions 4 --test-questions 4 --eval-draws 0 --evaluated after"
CHECK = """
import sys, pytest
code = pytest.main(["tests/test_exercises.py", "-q", "-o", "addopts=", "-p", "no:cacheprovider", *sys.argv[1].split()])
if code or len(sys.argv) == 2:
    sys.exit(code)
import train
train.main(sys.argv[2].split())
"""


@pytest.fixture
def tree(tmp_path) -> Path:
    """A copy of the files that a run and the exercises need."""
    ours = {*HOME.glob("*.py")} - {HOME / "test_ril.py"}
    for file in (*ours, HOME / "pyproject.toml", HOME / "tests/test_exercises.py"):
        (tmp_path / file.relative_to(HOME)).parent.mkdir(exist_ok=True)
        shutil.copy(file, tmp_path / file.relative_to(HOME))
    for folder in ("engine", "tiny", "results/teachers", "results/students/tiny-qwen-seed0"):
        shutil.copytree(HOME / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def checked(tree: Path, *argv: str) -> subprocess.CompletedProcess:
    """The exercises and a tiny run in that copy, in one process."""
    env = dict(os.environ, OMP_NUM_THREADS="1", PYTHONDONTWRITEBYTECODE="1")
    return subprocess.run([sys.executable, "-c", CHECK, *argv], cwd=tree, env=env, capture_output=True, text=True)


def test_without_a_patch_every_exercise_fails():
    exercises = {name: x for name, x in vars(test_exercises).items() if name.startswith("test_exercise_")}
    assert [name[14:15] for name in exercises] == [*"abcde"]
    for solve in exercises.values():
        with pytest.raises((AssertionError, TypeError, AttributeError)):
            solve()


def patched(tree: Path, name: str) -> None:
    """Apply docs/solutions/NAME.patch there: few lines, and clean."""
    patch = HOME / f"docs/solutions/{name}.patch"
    assert 0 < len(re.findall(r"^[+-](?![+-]{2} )", patch.read_text(), re.M)) <= 15
    env = dict(os.environ, GIT_CEILING_DIRECTORIES=str(tree.parent))  # not part of a repository around it
    subprocess.run(["git", "apply", str(patch)], cwd=tree, env=env, check=True)
    for lint in (["check"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *lint, "--no-cache", "."]
        subprocess.run(ruff, cwd=tree, check=True, capture_output=True)


@pytest.mark.parametrize("name", "ad")
def test_with_its_patch_an_exercise_passes(name, tree):
    patched(tree, name)
    ran = checked(tree, f"-k exercise_{name}")
    assert ran.returncode == 0 and "1 passed" in ran.stdout, ran.stdout + ran.stderr


@pytest.mark.parametrize("name", "bce")  # those that change the loop
def test_with_its_patch_an_exercise_passes_and_the_loop_rewards_what_it_asks_for(name, tree):
    patched(tree, name)
    ran = checked(tree, f"-k exercise_{name}", FLAGS)
    assert ran.returncode == 0 and "1 passed" in ran.stdout, ran.stdout + ran.stderr
    logged = [json.loads(x) for x in (tree / "runs/x/metrics.jsonl").read_text().splitlines()]
    rows = [r for r in logged if r["stage"] == "ril" and "loss" in r]
    for step, row in enumerate(rows):
        similarity, answer, t = row["similarity"], row["answer"], step / 3
        wanted = {"b": similarity + answer - 0.2 * row["tokens"], "c": 2 * ((1 - t) * similarity + t * answer)}
        assert abs(row["reward"] - wanted.get(name, similarity + answer)) < 1e-4
    assert len(rows) == 3 and (tree / "runs/x/summary.json").is_file()
