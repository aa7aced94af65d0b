"""--refill: a group without a signal gives way to another question's, once a step, the same whoever runs it."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch

import config
import data
import engine.groups as step_groups
import train
from engine.command import UserError
from tests.helpers import HOME, SMALL, command, metrics, switched, torchrun

REFILL = ["--refill", "--similarity", "none", "--group-size", "2", "--valid-questions", "4", "--test-questions", "4"]


def questions(count: int) -> list[data.Question]:
    return [data.Question(f"q{i}", (), "?", "!") for i in range(count)]


def test_the_reserve_of_a_step_is_seeded_differs_from_step_to_step_and_has_other_questions_first():
    pool, seen = questions(40), []
    for step in range(12):
        now = {q.id for q, _ in data.questions_at(pool, step, 6, 3)}
        found = step_groups.reserve(pool, step, 6, 3)
        assert found == step_groups.reserve(pool, step, 6, 3) != step_groups.reserve(pool, step, 6, 4)
        inside = [q.id in now for q, _ in found]
        assert len(found) == 6 and inside == sorted(inside)  # what the step has comes last
        seen += [q.id for q, _ in found]
    assert max(map(seen.count, seen)) == 2 and len(set(seen)) == 40  # nearly two passes over 40: none is preferred
    few = questions(2)
    assert len(step_groups.reserve(few, 0, 6, 0)) == 6  # a small pool is asked anew


def test_dead_groups_are_replaced_once_and_counted_and_living_ones_stay(straight, tmp_path, monkeypatch):
    before, calls = {}, []
    refill = train.refill

    def noted(run, players, judge, cache, pool, step, lists, tables):
        ids, asked, seen, fresh, groups = lists
        dead = (tables[-1] == 0).all(dim=1).tolist()
        old = [(ids[i], asked[i].id, fresh[i], groups[i], tables[-1][i].clone()) for i in range(len(dead))]
        drawn = refill(run, players, judge, cache, pool, step, lists, tables)
        now = {q.id for q, _ in data.questions_at(pool, step, 4, run.cfg.seed)}
        for i, (name, question, said, group, advantage) in enumerate(old):
            same = (ids[i], asked[i].id, fresh[i], groups[i]) == (name, question, said, group)
            assert same != dead[i] and (dead[i] or torch.equal(advantage, tables[-1][i]))
            assert {r.question for r in groups[i]} == {asked[i].id} == {ids[i]} and fresh[i] == groups[i][:2]
            assert dead[i] == (ids[i] not in now)
        calls.append((sum(dead), drawn, int((tables[-1] == 0).all(dim=1).sum())))
        before[step] = dead
        return drawn

    monkeypatch.setattr(train, "refill", noted)
    rows = switched(straight, tmp_path, "r", *REFILL, steps=4)
    assert [(r["refilled"], r["dead_groups"] * 4) for r in rows] == [(n, after) for _, n, after in calls]
    assert all(dead == drawn >= after for dead, drawn, after in calls)
    assert any(drawn > after for _, drawn, after in calls) and any(0 < n < 4 for n, *_ in calls)


def test_it_is_off_by_default_and_then_nothing_is_counted(straight, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "refill", None)  # a call would fail
    assert not config.Config().refill and "refilled" not in switched(straight, tmp_path, "off", *REFILL[1:], steps=1)[0]


def test_a_killed_run_that_refills_ends_with_the_same_bytes(straight, tmp_path, monkeypatch):
    rows = switched(straight, tmp_path, "whole", *REFILL, steps=4)
    assert sum(r["refilled"] for r in rows) > 2
    log = train.report.log_step

    def dies(run, step, *more):
        log(run, step, *more)
        if step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train.report, "log_step", dies)
        switched(straight, tmp_path, "killed", *REFILL, steps=4)
    flags = ["--name", "killed", *SMALL, "--steps", "4", "--eval-every", "0", "--valid-questions", "4", *REFILL]
    command(tmp_path, *flags, "--stage", "ril")
    for name in ("metrics.jsonl", "samples.jsonl", "checkpoints/last/model.safetensors"):
        assert (tmp_path / "runs/whole" / name).read_bytes() == (tmp_path / "runs/killed" / name).read_bytes(), name


def test_two_ranks_draw_the_same_questions_as_one_and_learn_the_same(straight, tmp_path, monkeypatch):
    refill, dead = train.refill, []

    def noted(*args):
        dead.append((args[-1][-1] == 0).all(dim=1).tolist())
        return refill(*args)

    monkeypatch.setattr(train, "refill", noted)
    flags = ["--questions-per-step", "5", "--teacher-use", "discriminator", *REFILL[:1], *REFILL[3:]]  # uneven shares
    one = switched(straight, tmp_path, "one", *flags, steps=3)
    flags += ["--steps", "3"]
    (tmp_path / "runs/two").mkdir()
    for name in ("sft", "discriminator", "teachers.jsonl"):
        (tmp_path / "runs/two" / name).symlink_to(tmp_path / "runs/one" / name)
    ran = torchrun(
        tmp_path, 2, HOME / "train.py", "--name", "two", *SMALL, "--eval-every", "0", *flags, "--stage", "ril"
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    two = [r for r in metrics(tmp_path / "runs/two") if "loss" in r]
    assert [r["refilled"] for r in one] == [r["refilled"] for r in two] and len(dead) == 3
    assert any(sum(x[::2]) != sum(x[1::2]) for x in dead)  # one of the two ranks has more to draw
    for a, b in zip(one, two, strict=True):
        wrong = {k: (a[k], b[k]) for k in a if k != "stage" and abs(a[k] - b[k]) > 1e-4 * (1 + abs(a[k]))}
        assert a.keys() == b.keys() and not wrong, wrong
    shown = [
        [json.loads(x)["question"] for x in (tmp_path / f"runs/{name}/samples.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert shown[0] == shown[1]


def test_likelihood_has_nothing_to_refill(tmp_path):
    with pytest.raises(UserError, match="--algo distill has no groups without a signal: nothing to --refill"):
        config.parse(["--algo", "distill", "--refill"])


def test_rows_of_a_group_by_use_of_the_teachers():
    cfg = SimpleNamespace(**dataclasses.asdict(config.Config()))
    found = {}
    for use in ("gradient", "baseline", "discriminator"):
        cfg.teacher_use = use
        found[use] = step_groups.rows_of(cfg, 6)
    assert found == dict(gradient=(8, 14, 14), baseline=(8, 14, 8), discriminator=(8, 8, 8))
