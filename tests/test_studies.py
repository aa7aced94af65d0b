"""Studies: what their tables conclude, that tables and stored numbers agree, and the runner for your own data."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import eval as ev
from engine.command import UserError
from results import collect
from tools import compare

HOME = Path(__file__).parent.parent


def study_rows(**cells) -> dict:
    return {
        cell: dict(seeds=list(range(len(xs))), commit="abc", sampled=ev.over_seeds(list(xs)), greedy=None)
        for cell, xs in cells.items()
    }


def test_a_studys_verdicts_are_holms_over_all_its_comparisons():
    noise = np.random.default_rng(8).normal(0, 0.01, (12, 5))
    rows = study_rows(
        ril=[0.7] * 5, far=0.6 + noise[0], near=0.718 + noise[1], **{f"x{i}": 0.7 + noise[i] for i in range(2, 12)}
    )
    collect.compare_rows(rows, ["ril"])
    found = {cell: row["sampled difference"] for cell, row in rows.items() if cell != "ril"}
    ps = {cell: stats.ttest_1samp(d["values"], 0).pvalue for cell, d in found.items()}
    assert all(abs(d["p"] - ps[cell]) < 1e-9 for cell, d in found.items())
    assert {cell: d["holm"] for cell, d in found.items()} == pytest.approx(compare.holm(ps))
    assert found["far"]["verdict"] == "worse" and ps["near"] < 0.05 < found["near"]["holm"]
    assert found["near"]["verdict"] == "exploratory" and found["x2"]["verdict"] == "undecided"
    alone = study_rows(ril=[0.7] * 5, near=0.718 + noise[1])
    collect.compare_rows(alone, ["ril"])
    assert alone["near"]["sampled difference"]["verdict"] == "better"  # as the only comparison it would stand


def test_rows_are_compared_with_the_nearest_baseline_above():
    rows = dict.fromkeys("abcdef")
    assert collect.baselines(rows, ["b"]) == {"a": "b", "c": "b", "d": "b", "e": "b", "f": "b"}
    assert collect.baselines(rows, ["b", "d"]) == {"a": "b", "c": "b", "e": "d", "f": "d"}
    assert collect.baselines(rows, []) == dict(zip("bcdef", "abcde", strict=True)) and not collect.baselines(
        rows, ["x"]
    )


@pytest.mark.parametrize(
    "name",
    [
        "main",
        "weak_judge",
        "trap",
        "discriminator",
        "headroom",
        "controls",
        "stability",
        "taught",
        "noisy",
        "rest",
        "lab",
    ],
)
def test_a_studys_table_is_what_the_collector_makes_of_its_numbers(name, tmp_path):
    home = HOME / "results"
    for ending in ("json", "md"):
        shutil.copy(home / f"{name}.{ending}", tmp_path)
    (tmp_path / "args").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "args").chmod(0o755)
    env = dict(os.environ, STORED="1", PYTHON=str(tmp_path / "args"), INTO=str(tmp_path))
    said = subprocess.run(["bash", home / f"{name}.sh"], env=env, check=True, capture_output=True, text=True).stdout
    assert said.startswith("-m\nresults.collect\n")  # no run
    collect.main(said.split("\n")[2:-1])
    for ending in ("json", "md"):
        assert (tmp_path / f"{name}.{ending}").read_text() == (home / f"{name}.{ending}").read_text()
    assert not (tmp_path / f"{name}.png").exists()  # the curves are not in the numbers


def test_two_rows_of_a_study_are_compared_over_its_seeds(capsys, tmp_path):
    file = HOME / "results/main.json"
    compare.main([f"{file}:dr_grpo", f"{file}:ril-A", "--into", str(tmp_path)])
    assert "(5 pairs of seeds)  62.13 +- 4.92 (5 seeds) -> 69.43 +- 0.60 (5 seeds)  p 0.0146" in capsys.readouterr().out
    found, rows = json.loads((tmp_path / "compare.json").read_text()), json.loads(file.read_text())["rows"]
    for measure in ("sampled", "greedy"):
        a, b = (rows[cell][measure]["values"] for cell in ("dr_grpo", "ril-A"))
        assert abs(found[measure]["p"] - stats.ttest_rel(b, a).pvalue) < 1e-9
        assert abs(found[measure]["difference"] / -100 - rows["dr_grpo"][f"{measure} difference"]["mean"]) < 1e-12


@pytest.mark.parametrize(
    "a, b, says",
    [
        ("main.json:x", "main.json:ril-A", "main.json:x: no such row; .*main.json has warm-start, grpo"),
        ("main.json:ril-A", "trap.json:ril-A", "trap.json:ril-A: of another study, or with other seeds"),
        ("demo.json:ril", "demo.json:dr_grpo", "demo.json:ril: one seed says nothing about the training"),
        ("runs-of-mine", "main.json:ril-A", "runs-of-mine: not a row of a study"),
        ("no.json:x", "main.json:ril-A", "no.json:x: not a row of a study"),
    ],
)
def test_rows_that_do_not_compare_are_one_line(a, b, says, monkeypatch):
    monkeypatch.chdir(HOME / "results")
    with pytest.raises(UserError, match=says) as caught:
        compare.main([a, b])
    assert "\n" not in str(caught.value)


FAKE = """#!/bin/sh
if [ "$1" != train.py ]; then printf '%s\\n' "$@" >collect.args; exit; fi
echo "$@" >>train.args
mkdir -p "runs/$3" && cd "runs/$3"
seconds='"seconds": {"ril": 1}'
case $3 in *ril*) x=0.7$5;; *) x=0.6$5;; esac
echo "{\\"sampled_after\\": $x, \\"greedy_after\\": $x, $seconds}" >summary.json
echo '{"commit": "abc", "command": "python train.py"}' >config.json
"""


def test_the_runner_trains_methods_over_seeds_with_your_flags_and_ends_in_the_same_table(tmp_path, monkeypatch):
    (tmp_path / "results").mkdir()
    shutil.copy(HOME / "results/study.sh", tmp_path / "results")
    (tmp_path / "fake").write_text(FAKE.replace("\\\\", "\\"))
    (tmp_path / "fake").chmod(0o755)
    env = dict(os.environ, PYTHON=str(tmp_path / "fake"), METHODS="dr_grpo ril", CORES="1", PANELS="differences")
    run = ["bash", tmp_path / "results/study.sh", "mine", "0 1 2", "--data", "SEED.jsonl", "--steps", "5"]
    subprocess.run(run, env=env, check=True, capture_output=True)
    asked = (tmp_path / "train.args").read_text().splitlines()
    flags = "--seed {} --algo {} --data {}.jsonl --steps 5"
    assert asked == [f"train.py --name mine-{m}-{s} {flags.format(s, m, s)}" for m in ("dr_grpo", "ril") for s in "012"]
    monkeypatch.chdir(tmp_path)
    collect.main((tmp_path / "collect.args").read_text().split("\n")[2:-1])
    table = (tmp_path / "runs/mine/mine.md").read_text()
    assert "Made by `results/study.sh`" in table and "| ril | 3 | - | - |" in table
    assert "| dr_grpo | 3 | -0.100 ± 0.000 | worse" in table
    few = subprocess.run(run[:3], env=env, capture_output=True, text=True)
    assert (
        few.returncode == 2
        and few.stderr.startswith("error: give a name, seeds and flags")
        and "\n" not in few.stderr[:-1]
    )
