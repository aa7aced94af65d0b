"""The alarms of the loop: their levels, that each is said once, and that docs/alarms.md lists them all."""

import dataclasses
import re
import shutil
from pathlib import Path

import pytest

import engine.alarms as alarms
from config import Config, parse
from engine.report import loop_rows
from train import main

HOME = Path(__file__).resolve().parent.parent
FINE = dict(  # a healthy step of the tiny world
    stage="ril", loss=0.0, d_accuracy=0.8, similarity=0.4, tokens=10.0, gradient_norm=0.1, kl=0.1, cut_off=0.0,
    malformed=0.0, dead_groups=0.1,
)  # fmt: skip


def steps(count: int, **metrics) -> list[dict]:
    return [FINE | metrics] * count


def names(rows: list[dict]) -> list[str]:
    """Every alarm of a run, in the order in which they are raised."""
    said = [text for n in range(1, len(rows) + 1) for text in alarms.raised(rows[:n])]
    return [re.match(r"ALARM ([\w ]+): ", text)[1] for text in said]


LEVELS = [  # (alarm, rows on the quiet side of its level, rows on the other)
    ("D wins", steps(30, d_accuracy=0.969, similarity=0.04), steps(20, d_accuracy=0.971, similarity=0.04)),
    ("D wins", steps(30, d_accuracy=0.99, similarity=0.051), steps(20, d_accuracy=0.99, similarity=0.049)),
    ("D wins", steps(19, d_accuracy=1.0, similarity=0.0), steps(20, d_accuracy=1.0, similarity=0.0)),
    ("D at chance", steps(30, d_accuracy=0.601), steps(5, d_accuracy=0.599)),
    ("D at chance", steps(18) + steps(30, d_accuracy=0.5), steps(17) + steps(3, d_accuracy=0.5)),
    ("responses grow", steps(12) + steps(9, tokens=29.0), steps(12) + steps(3, tokens=31.0)),
    ("responses shrink", steps(12) + steps(9, tokens=3.4), steps(12) + steps(3, tokens=3.3)),
    ("KL climbs", steps(9, kl=0.99), steps(5, kl=1.01)),
    ("KL climbs", steps(9) + steps(2, kl=99.0) + steps(9), steps(9) + steps(3, kl=1.01)),
    ("gradient climbs", steps(12) + steps(5, gradient_norm=0.29), steps(12) + steps(3, gradient_norm=0.31)),
    ("gradient climbs", steps(9) + steps(5, gradient_norm=0.4), steps(10) + steps(5, gradient_norm=0.4)),
    ("cut off", steps(9, cut_off=0.2), steps(5, cut_off=0.21)),
    ("malformed", steps(9, malformed=0.2), steps(5, malformed=0.21)),
    ("dead groups", steps(9, dead_groups=0.95), steps(5, dead_groups=0.96)),
]


@pytest.mark.parametrize("name, quiet, loud", LEVELS)
def test_an_alarm_is_raised_beyond_its_level_only(name, quiet, loud):
    assert names(quiet) == [] and names(loud) == [name]
    assert names(loud[:-1]) == []  # by the last of these rows


def test_every_alarm_has_its_level_tested():
    assert [name for name, *_ in alarms.ALARMS] == list(dict.fromkeys(name for name, *_ in LEVELS))


def test_an_alarm_is_said_once_also_when_its_level_is_crossed_again_and_after_a_resume():
    rows = steps(7) + steps(9, cut_off=0.5) + steps(9) + steps(9, cut_off=0.9, kl=3.0)
    at = {n: said for n in range(1, len(rows) + 1) if (said := alarms.raised(rows[:n]))}
    assert list(at) == [10, 28] and "KL climbs" in at[28][0]  # the median of five: three rows beyond the level
    assert at[10] == [
        "ALARM cut off: 50% of the responses reach the limit without an end: raise --max-new-tokens (docs/alarms.md)"
    ]


def test_a_method_without_d_kl_or_student_rows_raises_nothing():
    plain = dict(FINE, tokens=0.0, gradient_norm=0.0)
    for name in ("d_accuracy", "kl"):
        del plain[name]
    assert names([plain] * 30) == []


def test_the_page_has_every_alarm_with_its_flags_and_a_command_that_train_py_takes(monkeypatch):
    monkeypatch.chdir(HOME)
    page = (HOME / "docs/alarms.md").read_text()
    table = {row.split("|")[1].strip(): row for row in page.splitlines() if row.startswith("| ")}
    flags = {"--" + f.name.replace("_", "-") for f in dataclasses.fields(Config)}
    for name, _, text in alarms.ALARMS:
        assert set(re.findall(r"--[a-z-]+", text)) <= set(re.findall(r"--[a-z-]+", table[name])) <= flags, name
    short = dict(re.findall(r'^([A-Z]+)="(.*)"$', page, re.M))
    commands = re.findall(r"^python train.py (.*?) +# ([\w ]+)", page, re.M)
    assert [name for _, name in commands] == [name for name, *_ in alarms.ALARMS]
    for command, _ in commands:
        parse([word for part in command.split() for word in short.get(part.removeprefix("$"), part).split()])


def printed(capsys) -> list[str]:
    return [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  ALARM ")]


def test_a_real_run_says_three_alarms_where_they_are_crossed_and_a_resumed_one_none_of_them_again(
    tmp_path, monkeypatch, capsys
):
    """The first update at this learning rate destroys the student: KL, dead groups, empty or endless texts."""
    monkeypatch.chdir(tmp_path)
    flags = "--name a --algo dr_grpo --lr 1e-2 --steps 7 --questions-per-step 4 --group-size 4 --max-new-tokens 2 "
    flags += "--pool 16 --valid-questions 2 --test-questions 2 --eval-every 0 --eval-draws 0 --evaluated after"
    flags = [*flags.split(), "--checkpoint-every", "6"]
    main(flags)
    said, run = printed(capsys), tmp_path / "runs/a"
    metrics, rows = (run / "metrics.jsonl").read_bytes(), loop_rows(run)
    assert said == [text for n in range(1, 8) for text in alarms.raised(rows[:n])]
    assert len(said) >= 3 and {"KL climbs", "dead groups"} < set(names(rows[:6]))
    for made in ("checkpoints/last", "student", "last"):
        shutil.rmtree(run / made)
    (run / "summary.json").unlink()
    main(flags)  # from step 6
    assert printed(capsys) == said[len(names(rows[:6])) :]
    assert (run / "metrics.jsonl").read_bytes() == metrics
