"""--tracker: TensorBoard and Weights & Biases get what metrics.jsonl gets, once for each step, also after a kill."""

import sys
import types

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from engine.command import UserError
from tests.helpers import SMALL, command, metrics

FLAGS = [*SMALL, "--algo", "dr_grpo", "--name", "t", "--valid-questions", "4", "--test-questions", "4"]
FLAGS += ["--eval-draws", "1"]


def killed_and_resumed(folder, monkeypatch, before: str, after: str) -> None:
    """The loop, killed in step 6 of 6 with its last checkpoint after step 4, and then the same command to its end.

    `before` and `after` are the trackers of the two.
    """
    command(folder, *FLAGS, "--stage", "sft")
    log = train.report.log_step

    def dies(run, step, *more):
        log(run, step, *more)
        if step == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train.report, "log_step", dies)
        command(folder, *FLAGS, "--stage", "ril", "--tracker", before)
    assert [r["step"] for r in metrics(folder / "runs/t") if "loss" in r][-1] == 4
    command(folder, *FLAGS, "--stage", "ril", "--tracker", after)


def points(rows: list[dict]) -> dict[str, list]:
    """{name: [(steps done, number)]} of the loop's lines in metrics.jsonl."""
    out: dict[str, list] = {}
    for row in (r for r in rows if r["stage"] == "ril"):
        for name in row.keys() - {"stage", "step"}:
            out.setdefault(name, []).append((row["step"] + 1, row[name]))
    return out


@pytest.mark.parametrize("before", ["tensorboard", "none"])
def test_tensorboard_reads_every_step_once_after_a_kill_and_when_it_is_switched_on_late(tmp_path, monkeypatch, before):
    killed_and_resumed(tmp_path, monkeypatch, before, "tensorboard")
    board = EventAccumulator(str(tmp_path / "runs/t/tensorboard/ril"))
    board.Reload()
    found = {name: [(x.step, x.value) for x in board.Scalars(name)] for name in board.Tags()["scalars"]}
    wanted = points(metrics(tmp_path / "runs/t"))
    assert [x for x, _ in found["loss"]] == [1, 2, 3, 4, 5, 6] and [x for x, _ in found["valid_sampled"]] == [0, 3, 6]
    assert found.keys() == wanted.keys() and len(found) > 15
    for name in wanted:
        (x, y), (x_wanted, y_wanted) = (zip(*at, strict=True) for at in (found[name], wanted[name]))
        assert x == x_wanted and y == pytest.approx(y_wanted, rel=1e-6), name


def stand_in(monkeypatch) -> tuple[list, dict]:
    """A module wandb that keeps what it is told: (its calls of init, {id: [(step, numbers)]} on its server).

    As the real one does, a run that resumes begins behind its last step, and an earlier step is refused.
    """
    calls, server = [], {}

    class Run:
        def __init__(self, id, **how):
            assert how["resume"] == "allow" and how["config"]["algo"] == "dr_grpo"
            calls.append(dict(id=id, **how))
            self.got = server.setdefault(id, [])
            self.step = self.got[-1][0] + 1 if self.got else 0

        def log(self, numbers, step):
            assert step >= self.step
            self.got.append((step, numbers))

    module = types.ModuleType("wandb")
    module.init, module.finish = Run, lambda: calls.append("finish")
    monkeypatch.setitem(sys.modules, "wandb", module)
    return calls, server


def test_wandb_gets_every_step_once_in_one_run_of_its_own_for_each_stage(tmp_path, monkeypatch):
    calls, server = stand_in(monkeypatch)
    killed_and_resumed(tmp_path, monkeypatch, "wandb", "wandb")
    assert calls[::2] == ["finish"] * 2 and calls[1] == calls[3]
    assert (calls[1]["group"], calls[1]["name"]) == ("t", "t ril")
    (got,) = server.values()
    assert points([dict(stage="ril", step=x - 1, **numbers) for x, numbers in got]) == points(
        metrics(tmp_path / "runs/t")
    )
    command(tmp_path, *FLAGS, "--no-resume", "--stage", "all", "--steps", "1", "--tracker", "wandb")
    assert len(server) == 2  # another run of that name is another one there


@pytest.mark.parametrize("kind", ["tensorboard", "wandb"])
def test_a_tracker_that_is_not_installed_is_one_line_before_anything_is_written(tmp_path, monkeypatch, kind):
    for name in (kind, "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=f"^--tracker {kind} is not installed: pip install {kind}, or leave it out$"):
        command(tmp_path, *FLAGS, "--tracker", kind)
    assert not (tmp_path / "runs").exists()


def test_nothing_of_a_tracker_is_imported_unless_it_is_asked_for(tmp_path, monkeypatch):
    for name in ("tensorboard", "torch.utils.tensorboard", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)  # an import would fail
    command(tmp_path, *FLAGS, "--stage", "sft")
    command(tmp_path, *FLAGS, "--stage", "ril")
    assert not list(tmp_path.glob("runs/t/*wandb*")) and not (tmp_path / "runs/t/tensorboard").exists()


def test_what_wandb_says_when_nobody_is_logged_in_is_one_line(tmp_path, monkeypatch):
    def init(**_):
        raise ValueError("api_key not configured (no-tty)\nmore")

    stand_in(monkeypatch)
    monkeypatch.setattr(sys.modules["wandb"], "init", init)
    command(tmp_path, *FLAGS, "--stage", "sft")
    with pytest.raises(UserError, match=r"--tracker wandb: api_key not configured \(no-tty\); wandb login, or WANDB"):
        command(tmp_path, *FLAGS, "--stage", "ril", "--tracker", "wandb")
