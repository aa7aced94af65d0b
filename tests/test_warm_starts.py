"""Warm starts: shipped ones, built ones, and on answers of your own."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import config
import data
import engine.loading as loading
import eval as ev
import judge as jd
import tiny.lessons as tiny_lessons
import tiny.world as tiny_world
import tools.build as build
import tools.select as selection
import train
from engine.command import UserError
from tests.helpers import SMALL, STUDENTS, command, metrics, own_questions


@pytest.mark.parametrize("student", STUDENTS)
def test_a_built_student_is_the_trained_warm_start_in_bf16_and_runs_begin_there(student, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for module in (build, tiny_lessons):
        monkeypatch.setattr(module, "STUDENTS", tmp_path / "students")
    flags = [
        *SMALL,
        "--student",
        student,
        "--sft-steps",
        "4",
        "--valid-questions",
        "2",
    ]
    command(tmp_path, "--name", "trained", *flags, "--stage", "sft")
    build.main(["student", "--name", "built", *flags])
    command(tmp_path, "--name", "begun", *flags, "--stage", "sft")
    folders = [tmp_path / "runs/trained/sft", tmp_path / f"students/{student}-seed0", tmp_path / "runs/begun/sft"]
    trained, built, begun = (load_file(folder / "model.safetensors") for folder in folders)
    assert trained.keys() == built.keys() == begun.keys()
    for name, x in trained.items():
        assert x.dtype == torch.float32 and torch.equal(x.bfloat16(), built[name]), name
        assert torch.equal(built[name], begun[name]), name
    with pytest.raises(UserError, match="only a tiny student"):
        build.main(["student", "--name", "t", "--student", "tiny-qwen-teacher"])


def test_a_run_begins_at_the_shipped_warm_start_unless_a_setting_of_it_differs(tmp_path, capsys):
    said = "shipped warm start: results/students/tiny-qwen-seed3"
    command(tmp_path, "--name", "a", "--stage", "sft", "--seed", "3")
    assert said in capsys.readouterr().out
    weights = [x / "model.safetensors" for x in (tmp_path / "runs/a/sft", tiny_lessons.STUDENTS / "tiny-qwen-seed3")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    command(tmp_path, "--name", "b", "--stage", "sft", "--seed", "3", "--sft-steps", "1")
    assert "shipped" not in capsys.readouterr().out
    default = config.parse([])
    assert tiny_lessons.shipped_warm_start(default) == tiny_lessons.STUDENTS / "tiny-qwen-seed0"
    assert tiny_lessons.shipped_warm_start(train.replace(default, lr=1.0, data="mine.jsonl", steps=3)) is not None
    changed = dict(student="tiny-qwen-20m", seed=99, image_tokens=4, sft_data="mine.jsonl", sft_warmup=51)
    changed |= dict(sft_steps=1199, sft_pictures=15, sft_questions=3, sft_lr=2.1e-3, sft_lr_end=1e-5)
    assert changed.keys() == tiny_lessons.warm_start_settings(default).keys()
    for name, value in changed.items():
        assert tiny_lessons.shipped_warm_start(train.replace(default, **{name: value})) is None, name


@pytest.mark.parametrize("name", [*(f"tiny-qwen-seed{i}" for i in range(5)), "tiny-internvl-seed0"])
def test_a_shipped_warm_start_is_as_good_as_it_says(name):
    student, _, seed = name.rpartition("-seed")
    cfg = config.Config(student=student, seed=int(seed))
    folder = tiny_lessons.shipped_warm_start(cfg)
    assert folder.name == name and {x.dtype for x in load_file(folder / "model.safetensors").values()} == {
        torch.bfloat16
    }
    says, n = json.loads((folder / "warm_start.json").read_text())["validation"], 60
    found = ev.evaluate(
        loading.load(folder), tiny_world.world_questions("valid", n), jd.Judge(), 40, draws=1, seed=cfg.seed
    )
    for how in ("greedy", "sampled"):
        assert 0.3 < says[how] < 0.8 and abs(found[how] - says[how]) < 3 * (says[how] * (1 - says[how]) / n) ** 0.5, how


def test_held_out_questions_are_left_out_of_the_warm_start(tmp_path, capsys):
    mine = str(tmp_path / own_questions(tmp_path))
    cfg = config.Config(data=mine, sft_data=mine)
    taught, parts = {q.id for q in tiny_lessons.sft_questions(cfg)}, train.split(cfg)
    assert taught == {q.id for q in parts["train"]} and parts["test"] and "lines of" in capsys.readouterr().out


def test_a_folder_can_be_warmed_up_on_your_own_answers(straight, tmp_path, monkeypatch):
    file, rates, update = own_questions(tmp_path, 12), [], tiny_lessons.update

    def noted(optimizer, *more):
        rates.append(optimizer.param_groups[0]["lr"])
        return update(optimizer, *more)

    monkeypatch.setattr(tiny_lessons, "update", noted)
    flags = ["--name", "w", *SMALL[2:], "--student", str(straight / "sft"), "--stage", "sft"]
    command(tmp_path, *flags, "--sft-data", str(tmp_path / file), "sft_epochs=30", "sft_pictures=6")
    assert len(rates) == 30 * 12 / 6 and rates.index(max(rates)) == 29  # it warms up in half of the steps, not in 50
    with pytest.raises(UserError, match="counted in epochs"):
        config.parse(["--sft-data", str(tmp_path / file), "--sft-steps", "60"])
    losses = [r["loss"] for r in metrics(tmp_path / "runs/w")]
    before, after = loading.load(straight / "sft"), loading.load(tmp_path / "runs/w/sft")
    questions = data.load_questions(tmp_path / file)
    was, now = (np.mean(selection.answer_logps(vlm, questions)) for vlm in (before, after))
    assert losses[-1] < 0.3 and now > was + 0.3
