"""How a run ends before its end: by a signal, a closed pipe, or ranks that hang; and that it goes on from there."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import config
import engine.guard as guard
import engine.sharding as sharding
import train

torch.set_num_threads(1)
HOME = Path(__file__).resolve().parent.parent
SMALL = "--pool 16 --valid-questions 8 --test-questions 8 --questions-per-step 2 --group-size 2 --d-steps 2 --steps 5"
SMALL = f"{SMALL} --eval-every 3 --eval-draws 1 --checkpoint-every 2".split()
NO_D = [*SMALL, "--algo", "dr_grpo"]
SIGNALS = """
import os, signal, sys, threading, config, train
from dataclasses import replace
from engine.guard import stop

def at(stage, step, do):
    real = train.Checkpoints.save
    def save(self, done, progress):
        if (self.stage, done) == (stage, step):
            do()
        real(self, done, progress)
    train.Checkpoints.save = save

def send(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)

"""


def script(cwd: Path, text: str) -> Path:
    """train.py with `text` before it."""
    (cwd / "script.py").write_text(f"{SIGNALS}{text}\ntrain.run_command(train.main)\n")
    return cwd / "script.py"


def start(cwd: Path, file: Path, *flags: str, ranks: int = 0) -> subprocess.CompletedProcess:
    argv = [sys.executable, str(file), *flags]
    if ranks:
        argv[1:1] = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks), "--"]
    env = dict(os.environ, PYTHONPATH=str(HOME), OMP_NUM_THREADS="1")
    return subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


def inside(cwd: Path, *flags: str) -> None:
    """train.py in this process, in folder `cwd`."""
    before = os.getcwd()
    os.chdir(cwd)
    try:
        train.main(list(flags))
    finally:
        os.chdir(before)


def interrupt(patch, stage: str, step: int) -> None:
    """Ctrl-C in this process before the checkpoint behind a step."""
    real = train.Checkpoints.save

    def save(self, done, progress):
        if (self.stage, done) == (stage, step):
            os.kill(os.getpid(), signal.SIGINT)
        real(self, done, progress)

    patch.setattr(train.Checkpoints, "save", save)


def bytes_of(run: Path) -> dict:
    """What has to be equal between two runs."""
    names = ["metrics.jsonl", "samples.jsonl", "answers.jsonl", "student/model.safetensors", "last/model.safetensors"]
    summary = json.loads((run / "summary.json").read_text())
    out = {name: (run / name).read_bytes() for name in names}
    return out | {k: v for k, v in summary.items() if k not in ("name", "seconds", "peak_memory_mb")}


def losses(run: Path) -> dict[int, float]:
    rows = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    return {r["step"]: r["loss"] for r in rows if r["stage"] == "ril" and "loss" in r}


def test_a_run_stopped_in_any_stage_goes_on_with_the_same_command_and_ends_with_the_same_bytes(tmp_path, monkeypatch):
    """SIGTERM in a stage without checkpoints; in the loop, in a process of its own; then Ctrl-C at the last step."""
    flags, run = ["--name", "s", *SMALL], tmp_path / "runs/s"
    inside(tmp_path, "--name", "w", *SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(train.Run, "log", lambda *_, **row: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(guard.Stopped) as stopped:
            inside(tmp_path, *flags)
    assert (str(stopped.value), stopped.value.code) == ("stopped", 143)
    assert (run / "teachers.jsonl").exists() and not (run / "discriminator").exists()
    assert (run / "lock").read_text() == ""

    ran = start(tmp_path, script(tmp_path, "at('ril', 3, lambda: send(15, 15))"), *flags)
    asked = "\nstopping at the end of this step; Ctrl-C again stops at once\n"
    assert ran.returncode == 143
    assert ran.stderr == f"{asked}stopped after step 3 of ril; the same command goes on from here\n"
    assert (run / "checkpoints/ril-step3/sizes.json").exists()

    with monkeypatch.context() as patch:
        interrupt(patch, "ril", 5)
        with pytest.raises(KeyboardInterrupt, match="stopped after step 5 of ril") as stopped:
            inside(tmp_path, *flags)
    assert stopped.value.code == 130 and not (run / "last").exists()
    inside(tmp_path, *flags)
    one, two = bytes_of(tmp_path / "runs/w"), bytes_of(run)
    assert [k for k in one if one[k] != two[k]] == []
    assert {p.name for p in (run / "checkpoints").glob("ril-*")} == {"ril-step4", "ril-step5"}


def test_a_stopped_warm_start_goes_on_and_ends_with_the_same_bytes(tmp_path, monkeypatch, capsys):
    flags = ["--stage", "sft", "--sft-steps", "6", *NO_D]
    inside(tmp_path, "--name", "w", *flags)
    with monkeypatch.context() as patch:
        interrupt(patch, "sft", 4)
        with pytest.raises(KeyboardInterrupt, match="stopped after step 4 of sft"):
            inside(tmp_path, "--name", "s", *flags)
    inside(tmp_path, "--name", "s", *flags)
    assert "goes on from runs/s/checkpoints/sft-step4" in capsys.readouterr().out
    one, two = (tmp_path / "runs" / name / "sft/model.safetensors" for name in "ws")
    assert one.read_bytes() == two.read_bytes()


def test_a_second_ctrl_c_ends_the_process_at_once():
    code = (
        "import os\nfrom engine.guard import stop, stoppable\n"
        "with stoppable():\n"
        "    stop.in_steps = True\n"
        "    os.kill(os.getpid(), 2)\n"
        "    print(stop.signal, flush=True)\n"
        "    os.kill(os.getpid(), 2)\n"
        "    print('never here')\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=HOME, capture_output=True, text=True, timeout=100)
    assert (ran.returncode, ran.stdout) == (-signal.SIGINT, "2\n")


def test_whoever_stops_a_run_begun_anew_is_told_that_the_same_command_would_delete_it(monkeypatch, capsys):
    def stopped():
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["train.py", "--no-resume"])
    with pytest.raises(SystemExit) as ended:
        train.run_command(stopped)
    assert ended.value.code == 130
    assert capsys.readouterr().err == "stopped; the same command without --no-resume goes on from here\n"


@pytest.mark.parametrize("flush", [True, False])
def test_a_closed_pipe_ends_in_silence(flush):
    reading, writing = os.pipe()
    os.close(reading)
    code = f"from engine.command import run_command\nrun_command(lambda: print('a step', flush={flush}))\n"
    env = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    how = dict(cwd=HOME, env=env, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=100)
    ran = subprocess.run([sys.executable, "-c", code], **how)
    os.close(writing)
    assert (ran.returncode, ran.stderr) == (141, "")


# ------------------------------------------------------------------------------------------------ several ranks
def test_two_ranks_stop_at_the_same_step_whichever_is_told_first_and_go_on(tmp_path, capsys):
    """First one rank alone gets a signal, then torchrun, which passes it on at its own time; one process goes on."""
    inside(tmp_path, "--name", "one", *NO_D)
    alone = "if os.environ['RANK'] == '1':\n    at('ril', 1, lambda: send(15))\n"
    ran = start(tmp_path, script(tmp_path, alone), "--name", "two", *NO_D, ranks=2)
    assert ran.returncode != 0 and ran.stderr.count("stopped after step 1 of ril") == 1, ran.stderr[-3000:]
    marks = [p.name for p in (tmp_path / "runs/two/checkpoints").glob("ril-*")]
    assert marks == ["ril-step1"]
    passed_on = (
        "def ask():\n"
        "    if os.environ['RANK'] == '1':\n"
        "        os.kill(os.getppid(), 15)\n"
        "        while not stop.signal: pass\n"
        "at('ril', 3, ask)\n"
    )
    ran = start(tmp_path, script(tmp_path, passed_on), "--name", "two", *NO_D, ranks=2)
    assert ran.returncode != 0 and ran.stderr.count("stopped after step 3 of ril") == 1, ran.stderr[-3000:]
    inside(tmp_path, "--name", "two", *NO_D)
    assert "goes on from runs/two/checkpoints/ril-step3" in capsys.readouterr().out
    whole, two = losses(tmp_path / "runs/one"), losses(tmp_path / "runs/two")
    assert list(two) == list(whole) == [0, 1, 2, 3, 4]
    assert all(abs(whole[i] - two[i]) <= 1e-4 * (1 + abs(whole[i])) for i in whole), (whole, two)


def test_a_job_whose_rank_hangs_names_it_and_ends(tmp_path):
    hangs = (
        "real, calls = train.rollout, []\n"
        "def rollout(*args, **more):\n"
        "    calls.append(1)\n"
        "    if os.environ['RANK'] == '1' and len(calls) == 2:\n"
        "        threading.Event().wait()\n"
        "    return real(*args, **more)\n"
        "train.rollout = rollout\n"
        "parse = train.parse\n"
        "train.parse = lambda argv: replace(parse(argv), timeout=5.0)\n"
    )
    ran = start(tmp_path, script(tmp_path, hangs), "--name", "h", *NO_D, ranks=2)
    assert ran.returncode != 0
    (line,) = [x for x in ran.stderr.splitlines() if x.startswith("error: nothing moved")]
    assert line.startswith("error: nothing moved for 5 s: rank 0 (ril, 1 steps done, in "), line
    missing = line.partition(" waits for rank 1 (ril, 1 steps done, in ")[2]
    assert missing.startswith("train.py:") and " ril < " in missing, line
    assert "the same command goes on from the last checkpoint" in line


def watching(monkeypatch, places: list) -> list:
    """`watch` as rank 0 of as many ranks as a line of `places` has; -> with which codes it ended the job."""
    ended, codes, reads = threading.Event(), [], iter(places)

    class Store:
        def set(self, key, value):
            self.now = next(reads, None)
            if self.now is None:
                ended.set()

        def get(self, key):
            return json.dumps((self.now or places[-1])[int(key.split()[1])])

    monkeypatch.setattr(guard, "rank_and_world", lambda: (0, len(places[0])))
    monkeypatch.setattr(guard.os, "_exit", lambda code: codes.append(code) or ended.set())
    guard.watch(Store(), 0.02, threading.get_ident(), ended)
    return codes


def test_a_rank_that_still_moves_keeps_the_job_alive_and_one_that_lags_is_named(monkeypatch, capsys):
    still, moves = [7, [3, 5], "rank 0's place"], [[6, [3, n], "rank 1's place"] for n in range(30)]
    assert watching(monkeypatch, [[still, one] for one in moves]) == []
    assert watching(monkeypatch, [[still, moves[0]]] * 30) == [1]
    assert "rank 0 (rank 0's place) waits for rank 1 (rank 1's place)" in capsys.readouterr().err
    assert watching(monkeypatch, [[still, still]] * 30) == [1]
    assert "waits for the network: all are there" in capsys.readouterr().err


def test_the_default_lets_ranks_wait_long_and_ends_before_the_collectives_hour():
    assert 900 <= config.Config.timeout < 3600


def test_every_collective_counts_as_movement():
    """`together` meets every 30 seconds while one rank works: the others stand at one line, and yet they move."""
    me = threading.get_ident()
    counts = [guard.place_of(me)[0]]
    for meet in (lambda: sharding.all_gather(1), sharding.barrier):
        meet()
        counts.append(guard.place_of(me)[0])
    assert counts == [counts[0], counts[0] + 1, counts[0] + 2]
