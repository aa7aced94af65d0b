"""make demo: both runs and what it shows of them, a run that fails, a stop, and what its last line says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.command import UserError
from results import demo
from tests.helpers import HOME
from tiny.world import Thing, board_text, world_questions

FEW = "--steps 2 --d-steps 1 --pool 24 --valid-questions 8 --test-questions 24 --questions-per-step 2 --group-size 2"


def start(tmp_path: Path, *flags: str) -> subprocess.Popen:
    env = dict(os.environ, PYTHONPATH=str(HOME))
    how = dict(cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen([sys.executable, "-m", "results.demo", *flags], **how)


def test_the_demo_trains_both_methods_and_shows_what_came_out(tmp_path):
    said, error = (process := start(tmp_path, *FEW.split())).communicate(timeout=900)
    assert process.returncode == 0, error
    assert "ril     |  validation after 2 steps: " in said and "dr_grpo |  validation after 2 steps: " in said
    first = next(q for q in world_questions("test", 24) if q.meta["kind"].startswith("hop"))
    assert (
        f"    {first.text}   (answer: {first.answer})" in said
        and board_text(first.meta["board"]).split("\n")[1] in said
    )
    into, runs = tmp_path / "runs/demo-0", {m: tmp_path / f"runs/demo-{m}-0" for m in ("dr_grpo", "ril")}
    found = json.loads((into / "demo.json").read_text())
    for player, (method, who) in demo.PLAYERS.items():
        summary = json.loads((runs[method] / "summary.json").read_text())
        lines = [json.loads(x) for x in (runs[method] / "answers.jsonl").read_text().splitlines()]
        (row,) = (r for r in lines if (r["who"], r["question"]) == (who, first.id))
        verdict = {1: "right", 0: "wrong"}[row["greedy"]]
        assert f"{demo.METHODS.get(player, player):12}{verdict}   {row['text']}\n" in said
        low, high = summary[f"greedy_interval_{who}"]
        assert f"{summary[f'greedy_{who}']:.3f} ({low:.3f} to {high:.3f})" in said
        assert found["players"][player]["sampled"] == summary[f"sampled_{who}"]
    assert [found["rows"][m]["seeds"] for m in runs] == [[0], [0]]
    assert (into / "demo.png").stat().st_size > 20_000 and "anecdote" not in said  # other flags than the study's
    assert "results.demo --steps 2" in (into / "demo.md").read_text()
    assert "  2/2  sim " in (into / "ril.log").read_text()
    again = start(tmp_path, *FEW.split()).communicate(timeout=900)[0]  # nothing is trained twice
    assert "validation after" not in again and again[again.index("One test") :] == said[said.index("One test") :]


STAND_IN = """
import os, signal, sys, time
with open(f"pid-{sys.argv[2]}", "w") as file:
    file.write(str(os.getpid()))
print("  validation after 0 steps: 0.5 greedy, 0.5 sampled", flush=True)
if "dr_grpo" in sys.argv[2]:
    while not (os.path.exists("pid-ril") and os.path.getsize("pid-ril")):
        time.sleep(0.01)
    FIRST
signal.pause()
"""


def end_of(first: str, tmp_path, monkeypatch) -> BaseException:
    """How the demo's runs end where the first does this, and the second would never end; both must be gone then."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/demo-0").mkdir(parents=True)
    (tmp_path / "train.py").write_text(STAND_IN.replace("FIRST", first))
    monkeypatch.setattr(demo, "TRAIN", tmp_path / "train.py")
    monkeypatch.setattr(demo, "cores", lambda: 2)
    with pytest.raises((UserError, KeyboardInterrupt)) as caught:
        demo.run_both({m: ["--name", m, "--algo", m] for m in demo.METHODS})
    pids = [tmp_path / f"pid-{m}" for m in demo.METHODS]
    for file in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(int(file.read_text()), 0)
    return caught.value


def test_a_run_that_fails_ends_the_demo_and_the_other_run_with_one_line(tmp_path, monkeypatch):
    error = end_of("sys.exit('error: disk full; make room')", tmp_path, monkeypatch)
    log = Path("runs/demo-0/dr_grpo.log").resolve()
    assert str(error) == f"Dr.GRPO ended with code 1: error: disk full; make room ({log})"
    assert log.read_text().startswith("  validation after 0 steps")


def test_a_stop_ends_both_runs(tmp_path, monkeypatch):
    error = end_of("os.kill(os.getppid(), signal.SIGINT)", tmp_path, monkeypatch)
    assert isinstance(error, KeyboardInterrupt)


@pytest.mark.parametrize("flag", ["--name", "--algo=sft", "--evaluated", "--stage"])
def test_what_the_demo_sets_itself_is_no_flag_of_it(flag):
    with pytest.raises(UserError, match=f"{flag.split('=')[0]}: the demo sets it itself"):
        demo.main([flag, "x"])


def test_the_time_left_is_that_of_the_steps_and_of_the_test_questions(monkeypatch):
    child = demo.Child.__new__(demo.Child)
    child.process = type("Running", (), dict(poll=lambda self: None))()
    child.cfg, now = demo.parse([*demo.SHARED.split(), "--algo", "ril", "--evaluated", "all"]), 1000.0
    monkeypatch.setattr(demo.time, "monotonic", lambda: now)
    child.came = [(now - 30, "RIL"), (now - 27, "  validation after 0 steps: 0.1 greedy, 0.1 sampled")]
    assert child.seconds_left() is None
    child.came += [(now - 20 + 2 * i, f"    {i + 1}/60  sim 0.1") for i in range(11)]
    # 49 steps of 2 s are left; 3 s for 300 questions make 40 for 1,000 of each of four players
    assert child.seconds_left() == pytest.approx(49 * 2 + 40) and child.says() == "step 11 of 60"
    child.came.append((now - 10, "evaluation on held-out questions"))
    assert child.seconds_left() == pytest.approx(30) and child.says() == "answers the test questions"


def test_the_demos_last_line_says_what_the_study_found():
    rows = json.loads((HOME / "results/weak_judge.json").read_text())["rows"]
    verdict = {label: rows[cell].get("sampled difference", {}).get("verdict") for label, cell in demo.CONTROLS.items()}
    assert list(verdict.values()) == [None, "worse", "worse", "undecided"]  # beats, beats, no difference shows
    assert all(f"{rows[cell]['sampled']['mean']:.3f}" in demo.five_seeds() for cell in demo.CONTROLS.values())


def test_a_board_in_words():
    lines = board_text([Thing(0, "red", "circle"), Thing(5, "blue", "square")]).split("\n")
    assert [line.split() for line in lines] == [
        ["red", "circle", ".", "."],
        [".", ".", "blue", "square"],
        [".", ".", "."],
    ]
