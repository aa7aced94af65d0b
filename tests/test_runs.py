"""A run's folder: one process at a time, damaged files, memory; and several runs in one process."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import config
import engine.guard as guard
import engine.memory as memory
import engine.run as running
import eval as ev
import rollout as ro
import teachers
import train
from engine.command import UserError

torch.set_num_threads(1)
HOME = Path(__file__).resolve().parent.parent
SMALL = "--pool 16 --valid-questions 8 --test-questions 8 --questions-per-step 2 --group-size 2 --d-steps 2 --steps 3"
SMALL = f"{SMALL} --eval-every 3 --eval-draws 1 --checkpoint-every 2".split()
NO_D = [*SMALL, "--algo", "dr_grpo"]


def run(cwd: Path, *flags: str) -> str:
    """train.py with these flags in this process, in folder `cwd`; -> what it printed."""
    before, said = os.getcwd(), io.StringIO()
    os.chdir(cwd)
    try:
        with contextlib.redirect_stdout(said):
            train.main(list(flags))
    finally:
        os.chdir(before)
    return said.getvalue()


def refusal(cwd: Path, *flags: str) -> str:
    """The one line with which train.py refuses."""
    with pytest.raises(UserError) as error:
        run(cwd, *flags)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with the whole run runs/a in it; tests copy it."""
    folder = tmp_path_factory.mktemp("made")
    run(folder, "--name", "a", *NO_D)
    return folder


@pytest.fixture
def copied(made, tmp_path) -> Path:
    shutil.copytree(made, tmp_path / "c")
    return tmp_path / "c"


# ------------------------------------------------------------------------------------------------ one process a run
def test_a_second_process_is_refused_and_a_dead_ones_lock_is_taken_over(copied):
    hold = (
        "import config, sys\nfrom engine.run import open_run, set_up\n"
        "cfg = config.parse(sys.argv[1:])\nset_up(cfg)\n"
        "with open_run(cfg, []):\n    print('ready', flush=True)\n    sys.stdin.read()\n"
    )
    argv, env = [sys.executable, "-c", hold, "--name", "a", *NO_D], dict(os.environ, PYTHONPATH=str(HOME))
    how = dict(cwd=copied, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    before = sorted(p for p in (copied / "runs/a").rglob("*"))
    with subprocess.Popen(argv, **how) as holder:
        assert holder.stdout.readline() == "ready\n"
        for more in ([], ["--no-resume"]):
            line = refusal(copied, "--name", "a", *NO_D, *more)
            assert re.match(rf"runs/a: in use by process {holder.pid} on \S+, started \d{{4}}-\d\d-\d\d \d\d:", line)
            assert sorted(p for p in (copied / "runs/a").rglob("*")) == before
        holder.kill()
    said = run(copied, "--name", "a", *NO_D)
    assert f"runs/a/lock: taken over from process {holder.pid} on" in said and "skipped" in said
    assert (copied / "runs/a/lock").read_text() == ""


def test_a_lock_of_another_machine_is_taken_over_only_when_its_holder_shows_no_life(tmp_path, capsys):
    lock = tmp_path / "r/lock"
    with guard.locked(tmp_path / "r"):
        assert f"process {os.getpid()} on " in lock.read_text()
    lock.write_text("process 4711 on far-away, started 2026-01-02 03:04:05")
    line = rf"by process 4711 on far-away.*cannot be asked.*wait 120 s or delete {lock}"
    with pytest.raises(UserError, match=line), guard.locked(tmp_path / "r"):
        raise AssertionError("never inside")
    assert "4711" in lock.read_text()
    long_ago = time.time() - 1000
    os.utime(lock, (long_ago, long_ago))
    with guard.locked(tmp_path / "r"):
        assert f"process {os.getpid()} on " in lock.read_text()
    assert lock.read_text() == ""
    assert "taken over from process 4711 on far-away" in capsys.readouterr().out


def test_the_holder_of_a_lock_shows_life_and_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, capsys):
    touched = threading.Event()
    monkeypatch.setattr(guard, "FRESH", 0.04)
    monkeypatch.setattr(guard.os, "utime", lambda path: touched.set())

    def no_locks(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(guard.fcntl, "flock", no_locks)
    with guard.locked(tmp_path):
        assert touched.wait(20)
    assert "no locks here (Operation not supported)" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------ damaged and forbidden
def test_a_damaged_config_is_one_line_that_names_the_fix(copied):
    for content in (b"", b'{"settings": {"name"', b"[]", b"{}", b"\xff\xfe\x00", b'{"settings": 3}'):
        (copied / "runs/a/config.json").write_bytes(content)
        line = refusal(copied, "--name", "a", *NO_D)
        assert line.startswith("runs/a/config.json is damaged") and "delete that file" in line
    (copied / "runs/a/config.json").unlink()
    assert run(copied, "--name", "a", *NO_D).count("skipped") == 4  # sft, ril, export, evaluate


@pytest.mark.parametrize("content", [b"", b'{"name": '])
def test_damaged_summary_seconds_and_log_lines_are_made_anew(copied, content):
    folder = copied / "runs/a"
    before = json.loads((folder / "summary.json").read_text())
    for name in ("summary.json", "seconds.json"):
        (folder / name).write_bytes(content)
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(b'{"stage": "ril", "st')
    said = run(copied, "--name", "a", *NO_D)
    assert "runs/a/summary.json is damaged: it is made anew" in said and "runs/a/seconds.json is damaged" in said
    after = json.loads((folder / "summary.json").read_text())
    assert after.pop("seconds").keys() == {"evaluate"} and after.pop("peak_memory_mb") > 0
    assert after == {k: v for k, v in before.items() if k not in ("seconds", "peak_memory_mb")}
    (folder / "seconds.json").write_bytes(content)
    assert "greedy_after" in run(copied, "--name", "a", *NO_D)  # the summary has its seconds already


def test_a_log_that_lost_the_loop_is_one_line_whose_advice_helps(copied):
    folder = copied / "runs/a"
    before = (folder / "metrics.jsonl").read_bytes()
    (folder / "metrics.jsonl").write_bytes(b"")
    (folder / "summary.json").unlink()
    line = refusal(copied, "--name", "a", *NO_D)
    assert line.startswith("runs/a/metrics.jsonl has lost the loop's lines: delete runs/a/checkpoints")
    shutil.rmtree(folder / "checkpoints")
    run(copied, "--name", "a", *NO_D)
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    line = refusal(tmp_path, "--name", "n" * 201, *NO_D)
    assert "at most 200 bytes" in line and not (tmp_path / "runs").exists()
    (tmp_path / "runs").write_text("")
    assert "runs/n: cannot be written (Not a directory)" in refusal(tmp_path, "--name", "n", *NO_D)
    (tmp_path / "runs").unlink()
    (tmp_path / "runs").mkdir(mode=0o555)
    user = os.geteuid()
    if not user:  # root may write everywhere
        tmp_path.chmod(0o755)
        os.seteuid(65534)
    try:
        line = r"r: cannot be written \(Permission denied\); choose another --name"
        with pytest.raises(UserError, match=line), guard.locked(tmp_path / "runs/r"):
            raise AssertionError("never inside")
    finally:
        os.seteuid(user)


def test_a_run_begun_anew_keeps_nothing_but_its_lock(copied):
    (copied / "runs/a/old.txt").write_text("old")
    said = run(copied, "--name", "a", *NO_D, "--steps", "1", "--no-resume")
    assert "skipped" not in said and not (copied / "runs/a/old.txt").exists()


# ------------------------------------------------------------------------------------------------ teachers
def test_a_third_teacher_is_reported_like_the_others(tmp_path):
    source = teachers.FOLDER / "tiny-qwen-teacher"
    shutil.copytree(source, tmp_path / "third", ignore=lambda *_: ["responses.jsonl"])
    names = "tiny-qwen-teacher,tiny-internvl-teacher,third"
    flags = [*SMALL, "--teachers", names, "--group-size", "6", "--teacher-samples", "1", "--d-steps", "1"]
    said = run(tmp_path, "--name", "t", *flags, "--steps", "1")
    summary = json.loads((tmp_path / "runs/t/summary.json").read_text())
    for who in ("teacher", "teacher_2", "teacher_3"):
        for name in ("greedy", "sampled", "tokens"):
            assert f"{name}_{who}" in summary and f"\n{name}_{who}: {summary[f'{name}_{who}']}" in said
        assert f"| {who} |" in (tmp_path / "runs/t/samples.md").read_text()
    assert summary["greedy_teacher_3"] == summary["greedy_teacher"]  # the same weights under another name
    lines = [json.loads(x) for x in (tmp_path / "runs/t/teachers.jsonl").read_text().splitlines()]
    assert {x["teacher"] for x in lines} == set(names.split(","))


# ------------------------------------------------------------------------------------------------ several in a process
def handlers() -> list:
    return [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]


def test_runs_follow_each_other_in_one_process(made, copied, tmp_path):
    """Another seed and folder, after a mistake inside a run, in a thread other than the main one: each as if alone."""
    state = handlers(), sys.stdout
    (copied / "runs/a/config.json").write_text("")
    refusal(copied, "--name", "a", *NO_D)  # inside the run: its lock is held by then
    run(tmp_path, "--name", "a", *NO_D, "--seed", "1")
    failed = []

    def in_thread():
        try:
            run(tmp_path, "--name", "b", *NO_D)
        except BaseException as error:
            failed.append(error)

    (thread := threading.Thread(target=in_thread)).start()
    thread.join()
    assert failed == [] and (handlers(), sys.stdout) == state
    metrics = [(f / "metrics.jsonl").read_bytes() for f in (made / "runs/a", tmp_path / "runs/b", tmp_path / "runs/a")]
    assert metrics[0] == metrics[1] != metrics[2]
    (copied / "runs/a/config.json").unlink()
    assert "skipped" in run(copied, "--name", "a", *NO_D)  # the lock of the refused call was given back


def test_questions_of_a_file_are_read_again_when_it_changes_or_the_folder_does(tmp_path, monkeypatch):
    for name, answer in (("one", "red"), ("two", "blue")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "q.jsonl").write_text(json.dumps(dict(id="1", question="color?", answer=answer)) + "\n")
        os.utime(tmp_path / name / "q.jsonl", (1, 1))
    found = []
    for name in ("one", "two", "one"):
        monkeypatch.chdir(tmp_path / name)
        found.append(running.questions_in("q.jsonl"))
    assert [questions[0].answer for questions in found] == ["red", "blue", "red"] and found[0] is found[2]
    (tmp_path / "one/q.jsonl").write_text(json.dumps(dict(id="1", question="color?", answer="grey")) + "\n")
    os.utime(tmp_path / "one/q.jsonl", (1, 1))
    assert running.questions_in("q.jsonl")[0].answer == "grey"


# ------------------------------------------------------------------------------------------------ memory
def out_of_memory(*args, **more):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


@pytest.mark.parametrize("where", ["rollout", "update"])
def test_a_gpu_without_memory_is_one_line_with_the_flag_and_the_flag_is_let_through(tmp_path, monkeypatch, where):
    says = "out of GPU memory in update: try --micro-batch 6 or --offload phase or more GPUs"
    module, name, change = train, "policy_loss", ["--micro-batch", "6"]
    if where == "rollout":
        says = "out of GPU memory in rollout: try --rollout-rows 256 or --offload phase or more GPUs"
        module, name, change = ro, "sample", ["--rollout-rows", "256"]
    flags = ["--name", "m", *NO_D, "--eval-every", "0", "--steps", "1"]
    with monkeypatch.context() as patch:
        patch.setattr(train, "validate", lambda *_: None)
        patch.setattr(module, name, out_of_memory)
        assert says in refusal(tmp_path, *flags)
    run(tmp_path, *flags, *change)


def test_an_evaluation_without_memory_goes_on_with_fewer_rows_and_finds_the_same(made, monkeypatch, capsys):
    student = train.load(made / "runs/a/student")
    questions, judge = train.split(config.parse(NO_D))["test"], ev.Judge()
    whole = ev.evaluate(student, questions, judge, 20, draws=2)
    real, rows = ro.sample, []

    def small(vlm, prompts, keys, group, *more):
        if len(prompts) * group > 4:
            out_of_memory()
        rows.append(len(prompts) * group)
        return real(vlm, prompts, keys, group, *more)

    monkeypatch.setattr(ro, "sample", small)
    found = ev.evaluate(student, questions, judge, 20, draws=2)
    assert found.pop("entropy") == pytest.approx(whole.pop("entropy"), abs=1e-6) and found == whole and max(rows) == 4
    assert "it goes on with 4 rows" in capsys.readouterr().out
    monkeypatch.setattr(ro, "sample", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        ev.evaluate(student, questions, judge, 20, draws=2)


def test_a_line_of_the_log_says_how_much_memory_the_process_holds(made):
    rows = [json.loads(x) for x in (made / "runs/a/timing.jsonl").read_text().splitlines()]
    assert len(rows) == 3 and all(100 < r["memory_mb"] < 1.1 * running.peak_memory_mb() for r in rows)
    assert memory.out_of_memory(replace(config.parse([]), micro_batch=1, offload="phase"), ValueError())
