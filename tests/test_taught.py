"""--taught: few questions have teacher text; and pairs, the gate, texts that D never saw, blank pictures."""

import copy
import json
import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

import config
import data
import discriminator as disc
import engine.groups as step_groups
import engine.loading as loading
import engine.run as running
import engine.unseen as unseen
import teachers
import tiny.world as tiny_world
import tools.plan as plan
import train
from engine.command import UserError
from rollout import Response
from tests import test_slow_step as slow_step
from tests.helpers import SMALL, command, metrics, switched, torchrun
from tests.test_slow_step import double  # noqa: F401 (a fixture)

FEW = ["--taught", "0.25", "--valid-questions", "4", "--test-questions", "4"]


def ids_of(questions) -> list[str]:
    return [q.id for q in questions]


# ------------------------------------------------------------------------------------------------ which questions
def test_the_taught_are_drawn_by_seed_and_id_and_few_are_among_many():
    pool = [data.Question(f"q{i}", (), "?", "!") for i in range(512)]
    drawn = {n: ids_of(running.taught_questions(config.Config(taught=n), pool)) for n in (8.0, 32.0, 0.25, 1.0, 0.001)}
    assert [len(x) for x in drawn.values()] == [8, 32, 128, 512, 1]
    assert set(drawn[0.001]) < set(drawn[8.0]) < set(drawn[32.0]) < set(drawn[0.25]) and drawn[1.0] == ids_of(pool)
    assert all(x == sorted(x, key=lambda name: int(name[1:])) for x in drawn.values())  # in the questions' order
    other = ids_of(running.taught_questions(config.Config(taught=8.0, seed=1), pool))
    assert len(set(other) & set(drawn[8.0])) < 4
    assert set(ids_of(running.taught_questions(config.Config(taught=8.0), pool[::-1]))) == set(drawn[8.0])


def test_the_held_out_of_few_are_a_quarter_and_never_visited():
    pool = [data.Question(f"q{i}", (), "?", "!") for i in range(512)]
    for n, held_out in ((8.0, 2), (32.0, 8), (200.0, 32)):
        held, visits = running.pretraining_questions(config.Config(taught=n), pool)
        visited = {q.id for step in visits for q in step}
        taught = set(ids_of(running.taught_questions(config.Config(taught=n), pool)))
        assert len(held) == held_out and set(ids_of(held)) < taught and visited < taught - set(ids_of(held)) | {""}


@pytest.mark.parametrize(
    "flags, says",
    [
        ("--taught 8.5", "--taught 8.5: a share up to 1, or a whole number above"),
        ("--taught 0", "--taught 0.0: must be above 0"),
        ("--taught 8 --algo dr_grpo", "--taught 8 counts teacher text, and there is none"),
        ("--taught 8 --d-input question", "--d-input question with --taught: teacher text beside another question"),
        ("--taught 8 --group-size 1", "--group-size 1 without teacher rows"),
        ("--d-loss pairwise --similarity constant", "--d-loss pairwise needs a --similarity of D"),
        ("--d-loss pairwise --refill", "--d-loss pairwise compares within a step's first draw: no --refill"),
        ("--similarity gated --judged 0", "--similarity gated asks for a right answer: no --judged 0"),
    ],
)
def test_what_does_not_go_together_is_one_line(flags, says):
    with pytest.raises(UserError) as caught:
        config.parse(flags.split())
    assert str(caught.value).startswith(says) and "\n" not in str(caught.value)


def test_more_taught_than_there_are_is_one_line_and_writes_nothing(tmp_path):
    with pytest.raises(UserError, match="--taught 49: there are 48 training questions"):
        command(tmp_path, "--name", "x", *SMALL, "--taught", "49")
    assert not (tmp_path / "runs").exists()


# ------------------------------------------------------------------------------------------------ whose texts are read
@pytest.mark.parametrize("more", ["", "--teacher-use discriminator", "--refill --similarity none"])
def test_no_text_of_an_untaught_question_is_asked_for_read_or_learned_from(straight, tmp_path, monkeypatch, more):
    """By ids: in the teachers' file, in D's pre-training, in what D reads, learns and is measured on, in the groups."""
    read, learned, packed, measured = [], [], [], []
    batches, backward, pack = disc.Discriminator.batches, train.discriminator_backward, train.pack_policies
    draw, look = teachers.TeacherCache.draw, train.unseen_logits

    def reads(self, questions, prompts, groups, micro_batch):
        read.extend(r for g in groups for r in g if r.source != "student")
        self.last = [r for g in groups for r in g]
        return batches(self, questions, prompts, groups, micro_batch)

    def learns(D, packs, is_student, mask, *kind):
        rows = list(zip(D.last, mask.flatten().tolist(), is_student.flatten().tolist(), strict=True))
        assert all(student == (r.source == "student") for r, _, student in rows)
        learned.extend(r for r, does, student in rows if does and not student)
        return backward(D, packs, is_student, mask, *kind)

    def packs(run, replica, seen, groups, kept, cut):
        packed.extend([r for r, k in zip(g, row, strict=False) if k] for g, row in zip(groups, kept, strict=False))
        return pack(run, replica, seen, groups, kept, cut)

    def draws(self, question, *purpose, **more):
        found = draw(self, question, *purpose, **more)
        read.extend(found[0])
        return found

    def looks(D, cache, *more):
        measured.append(set(cache.held))
        return look(D, cache, *more)

    monkeypatch.setattr(disc.Discriminator, "batches", reads)
    monkeypatch.setattr(train, "discriminator_backward", learns)
    monkeypatch.setattr(train, "pack_policies", packs)
    monkeypatch.setattr(teachers.TeacherCache, "draw", draws)
    monkeypatch.setattr(train, "unseen_logits", looks)
    flags = ["--name", "t", *SMALL, *FEW, "--eval-every", "0", "--steps", "4", *more.split()]
    flags += ["--student", str(straight / "sft")]
    for stage in train.stages_of(config.parse(flags))[:-2]:
        command(tmp_path, *flags, "--stage", stage)
    pool = tiny_world.world_questions("train", 48)
    taught = set(ids_of(running.taught_questions(config.Config(taught=0.25), pool)))
    asked = [json.loads(x)["question"] for x in (tmp_path / "runs/t/teachers.jsonl").read_text().splitlines()]
    assert len(taught) == 12 and set(asked) == taught and len(asked) == 12 * 8
    assert {r.question for r in read} <= taught and len(read) > 60
    groups = [Counter(r.source == "student" for r in g) for g in packed]
    alone = more.startswith("--teacher-use")
    assert {tuple(sorted(g.items())) for g in groups} == {((True, 4),)} | (
        set() if alone else {((False, 4), (True, 4))}
    )
    assert all(len({r.question for r in g}) == 1 for g in packed)  # a group is about one question
    assert {g[0].question for g in packed if g[-1].source != "student"} <= taught
    rows = [r for r in metrics(tmp_path / "runs/t") if r["stage"] == "ril" and "loss" in r]
    if "refill" not in more:
        held = measured[0]
        assert len(held) == 3 and held < taught and not held & {r.question for r in learned} and len(learned) > 50
        assert all({"d_accuracy_unseen", "d_updated", "taught"} <= r.keys() and 0 <= r["taught"] < 1 for r in rows)
    share = [sum(g[-1].source != "student" for g in packed[i : i + 4]) / 4 for i in (0, 4, 8, 12)]
    assert alone or [r["taught"] for r in rows] == share and 0 < sum(share) < 4


def test_a_file_with_more_is_read_for_the_taught_only_and_where_all_are_taught_nothing_is_added(straight, tmp_path):
    rows = switched(straight, tmp_path, "few", *FEW)  # with the whole run's teachers.jsonl
    assert all(r["taught"] < 1 for r in rows)
    run = SimpleNamespace(cfg=config.parse(["--name", "few", *SMALL, *FEW]), path=straight)
    pool = tiny_world.world_questions("train", 48)
    cache = teachers.TeacherCache(run, loading.load(straight / "sft").encoder, pool)
    assert list(cache.of) == ids_of(running.taught_questions(run.cfg, pool)) and cache.questions == pool
    assert {r.question for mine in cache.pool.values() for r, _ in mine} == cache.of.keys() - cache.held
    for name in set(ids_of(pool)) - cache.of.keys():
        found, again = (cache.draw(name, 0, 0)[0] for _ in range(2))
        assert found == again and len(found) == 4 and not cache.held & {r.question for r in found}
    assert len({cache.draw(name, visit, 0)[0][0].question for visit in range(40)}) > 4  # any of them
    whole = [r for r in metrics(straight) if "loss" in r and r["stage"] == "ril"]
    assert not {"taught", "d_accuracy_unseen", "d_updated"} & whole[0].keys()
    run.cfg = config.parse(["--name", "few", *SMALL])
    cache = teachers.TeacherCache(run, loading.load(straight / "sft").encoder, pool)
    assert not cache.is_partial and not cache.held


def test_gaps_of_a_teachers_file_work_the_same_way(straight, tmp_path):
    pool = tiny_world.world_questions("train", 48)
    lines = [dict(question=q.id, teacher="a", text=f"the answer is {q.answer}") for q in pool[:30] for _ in range(4)]
    (tmp_path / "said.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    flags = ["--name", "g", *SMALL, *FEW[2:], "--teachers", "a", "--teachers-file", str(tmp_path / "said.jsonl")]
    flags += ["--student", str(straight / "sft"), "--eval-every", "0"]
    for stage in train.STAGES[:4]:
        command(tmp_path, *flags, "--stage", stage)
    rows = [r for r in metrics(tmp_path / "runs/g") if r["stage"] == "ril" and "loss" in r]
    asked = [{q.id for q, _ in data.questions_at(pool, step, 4, 0)} for step in range(6)]
    assert [r["taught"] for r in rows] == [len(x & set(ids_of(pool[:30]))) / 4 for x in asked]
    run = SimpleNamespace(cfg=config.parse(flags), path=tmp_path / "runs/g")
    for more in (dict(d_input="question"), dict(student_rows="none")):  # D would see it; there are no other rows
        run.cfg = train.replace(run.cfg, **more)
        assert teachers.TeacherCache(run, loading.load(straight / "sft").encoder, pool).questions == pool[:30]


# ------------------------------------------------------------------------------------------------ groups and rewards
def test_advantages_are_over_the_rows_that_are_there():
    reward = torch.tensor([[2.0, 1, 0, 1], [1, 0, 9, 9]])
    is_teacher = torch.tensor([[False, False, True, True]] * 2)
    there = torch.tensor([[True] * 4, [True, True, False, False]])
    for kind, divide in (("dr_grpo", lambda x: 1.0), ("grpo", lambda x: torch.tensor(x).std().item() + 1e-4)):
        cfg = SimpleNamespace(advantage=kind, teacher_use="gradient")
        found = step_groups.advantages_of(cfg, reward, is_teacher, there)
        first, second = divide([2.0, 1, 0, 1]), divide([1.0, 0])
        want = [[1 / first, 0, -1 / first, 0], [0.5 / second, -0.5 / second, 0, 0]]
        assert torch.allclose(found, torch.tensor(want))
    assert step_groups.advantages_of(cfg, reward[:0], is_teacher[:0], there[:0]).shape == (0, 4)
    cfg = config.Config()
    assert step_groups.objective_of(cfg, there).responses == 6  # every response of the step weighs the same


def test_the_gate_lets_similarity_count_where_a_response_of_the_group_is_right():
    logit = torch.tensor([[-1.0, 1, -1, -1], [-1, -1, 1, -1]])
    right = torch.tensor([[0.0, 1, 0, 0], [0, 0, 0, 0]])
    found = {}
    for kind in ("binary", "gated"):
        cfg = SimpleNamespace(similarity=kind)
        found[kind] = step_groups.similarity_of(cfg, [], [], torch.zeros(2, 4), logit, right).tolist()
    assert found["binary"] == [[1, 0, 1, 1], [1, 1, 0, 1]] and found["gated"] == [[1, 0, 1, 1], [0, 0, 0, 0]]


def test_pairwise_is_bradley_terry_within_groups_and_adds_up_over_parts():
    torch.manual_seed(0)
    logit, is_student = torch.randn(3, 5), torch.tensor([[True, True, True, False, False]] * 3)
    is_teacher = ~is_student
    is_teacher[1] = False  # D does not learn from these
    pairs = [(logit[q, i], logit[q, j]) for q in (0, 2) for i in range(3) for j in (3, 4)]
    want = -sum(math.log(1 / (1 + math.exp(-(s - t)))) for s, t in pairs) / 12
    assert disc.pairwise_loss(logit, is_student, is_teacher, 12).item() == pytest.approx(want, rel=1e-6)
    parts = [disc.pairwise_loss(logit[s], is_student[s], is_teacher[s], 12).item() for s in (slice(2), slice(2, 3))]
    assert sum(parts) == pytest.approx(want, rel=1e-6)
    moved = disc.relative(logit + 100, is_student)  # no logit means anything by itself
    assert torch.allclose(moved, disc.relative(logit, is_student), atol=1e-4)
    assert moved[is_student].mean().item() == pytest.approx(-moved[~is_student].mean().item(), abs=1e-4)


# ------------------------------------------------------------------------------------------------ the slow step
class Unpaired(slow_step.Slow):
    """The slow step with groups of the student's rows alone, beside which D reads teacher texts of other questions."""

    def __init__(self, run, held: set):
        super().__init__(run)
        self.held = held
        self.c.discriminator = "updated" if self.c.similarity == "gated" else self.c.discriminator
        self.questions = {q.id: q for q in tiny_world.world_questions("train", self.c.pool)}

    def group(self, q, mine: list, theirs: list) -> list:
        out = super().group(q, mine, [t.text for t in theirs])
        for r, t in zip(out[len(mine) :], theirs, strict=True):
            r.q = self.questions[t.question]
        for r in out:
            r.other, r.group = r.q.id != q.id, out
        return out

    def is_scored(self, r) -> bool:
        return not r.other and super().is_scored(r)

    def judged(self, group: list, groups: int) -> list:
        others = [r for r in group if r.other]
        right = any(self.answer(r) for r in group if not r.other and not (r.teacher and self.only_d))
        self.gate = right or self.c.similarity != "gated"
        for r in super().judged([r for r in group if not r.other], groups):
            r.responses = self.responses
        for r in others:
            r.similarity, r.answer = self.similarity(r), self.answer(r)
        return group

    def step(self, questions, sampled, drawn, more):
        self.only_d = self.c.teacher_use == "discriminator"
        mine = sum(map(len, sampled))
        theirs = [t.question == q.id for q, of in zip(questions, drawn, strict=True) for t in of]
        self.responses = mine + (0 if self.only_d else sum(theirs))
        return super().step(questions, sampled, drawn, more)

    def discriminator_step(self, rows: list) -> dict:
        everything, rows = rows, [r for r in rows if not (r.teacher and r.q.id in self.held)]
        if self.c.d_loss == "bce":
            return super().discriminator_step(rows)
        self.D.zero_grad()
        logits = [self.logit(r) for r in rows]
        both = list(zip(rows, logits, strict=True))
        pairs = [(x, y) for r, x in both for s, y in both if r.group is s.group and s.teacher and not r.teacher]
        loss = -sum(torch.log(torch.sigmoid(s - t)) for s, t in pairs) / len(pairs)
        loss.backward()
        self.update("D")
        with torch.no_grad():
            self.centre = slow_step.mean(self.logit(r).item() for r in everything if r.teacher)
        of = {who: [x.item() for r, x in both if r.teacher == who] for who in (True, False)}
        middle = {who: slow_step.mean(x) for who, x in of.items()}
        right = slow_step.mean(x > middle[True] for x in of[False]), slow_step.mean(x < middle[False] for x in of[True])
        return dict(d_loss=loss.item(), d_on_student=right[0], d_on_teacher=right[1], d_accuracy=sum(right) / 2)

    def similarity(self, r) -> float:
        if self.c.d_loss == "pairwise":
            with torch.no_grad():
                return float(self.logit(r).item() < self.centre)
        if self.c.similarity == "gated":
            with torch.no_grad():
                return float(self.logit(r).item() < 0 and self.gate)
        return super().similarity(r)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A folder with a student that is sometimes right, its teachers' responses, and a D that has seen some once."""
    folder = tmp_path_factory.mktemp("start")
    student = loading.load(slow_step.TEACHERS / "tiny-qwen-teacher")
    with torch.no_grad():
        student.base.language_model.norm.weight.mul_(0.55)
    loading.save(student, folder / "student", torch.float32)
    flags = ["--name", "a", *slow_step.BASE, "--student", "student"]
    for stage in ("sft", "teachers", "discriminator"):
        command(folder, *flags, "--teachers", "tiny-qwen-teacher,tiny-internvl-teacher", "--stage", stage)
    (folder / "teachers.jsonl").write_text((folder / "runs/a/teachers.jsonl").read_text())
    return folder


CASES = {
    "in the gradient": "",
    "D alone, two teachers": f"--teacher-use discriminator {slow_step.TWO}",
    "baseline, two updates": "--teacher-use baseline --mu 2",
    "gated": "--similarity gated",
    "pairs": "--d-loss pairwise --teacher-use discriminator",
    "constant": "--similarity constant",
}


@pytest.mark.parametrize("case", CASES)
def test_a_step_with_few_taught_equals_the_slow_step(start, tmp_path, monkeypatch, double, case):  # noqa: F811
    """Gradients, parameters and logged numbers; the real run's draws are the slow one's, told apart by their ids."""
    flags = [*slow_step.BASE, "--student", str(start / "student"), "--teachers", "tiny-qwen-teacher", "--taught", "4"]
    flags += [*"--questions-per-step 3 --micro-batch 2 --steps 2".split(), *CASES[case].split()]
    monkeypatch.setattr(train, "validate", lambda *_: None)
    monkeypatch.setattr(unseen, "D_GAP", 2.0)  # D never rests
    held, make = [], train.TeacherCache.__init__

    def keep_held(self, *args):
        make(self, *args)
        held.append(self.held)

    monkeypatch.setattr(train.TeacherCache, "__init__", keep_held)
    ours = slow_step.real(start, tmp_path, flags, monkeypatch)
    slow, P, kinds = Unpaired(ours.run, held[0]), 3, Counter()
    assert len(held[0]) == ("constant" not in case)
    for step in range(2):
        asked = [q for q, _ in data.questions_at(list(slow.questions.values()), step, P, 0)]
        sampled = [[r.ids for r in group] for group in ours.sampled[step]]
        drawn = [found for found, _ in ours.drawn[step * P : (step + 1) * P]]
        kinds.update(found[0].question == q.id for q, found in zip(asked, drawn, strict=True))
        want = slow.step(asked, sampled, drawn, iter(()))
        assert {name: ours.log[step][name] for name in want} == pytest.approx(want, rel=1e-6, abs=1e-7), step
    assert kinds[True] and kinds[False]  # groups of both kinds
    assert [who for who, *_ in ours.trace] == [who for who, *_ in slow.trace]
    before = copy.deepcopy(slow.start)
    for (who, grads, after), (_, theirs, then) in zip(ours.trace, slow.trace, strict=True):
        change = slow_step.distance(then, before[who])
        assert slow_step.distance(grads, theirs) <= 1e-7 * (1e-6 + slow_step.distance(theirs, {})), who
        assert slow_step.distance(after, then) <= 1e-7 * change, who
        before[who] = then


# ------------------------------------------------------------------------------------------------ runs
def test_a_killed_run_with_few_taught_ends_with_the_same_bytes_and_d_rests_where_it_rested(
    straight, tmp_path, monkeypatch
):
    monkeypatch.setattr(unseen, "D_GAP", -2.0)  # always behind: D rests after three steps
    flags = [*FEW, "--steps", "5"]
    rows = switched(straight, tmp_path, "whole", *flags, steps=5)
    assert [r["d_updated"] for r in rows] == [1, 1, 1, 0, 0]
    log = train.report.log_step

    def dies(run, step, *more):
        log(run, step, *more)
        if step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train.report, "log_step", dies)
        switched(straight, tmp_path, "killed", *flags, steps=5)
    command(tmp_path, "--name", "killed", *SMALL, "--eval-every", "0", *flags, "--stage", "ril")
    for name in ("metrics.jsonl", "samples.jsonl", "checkpoints/last/model.safetensors"):
        assert (tmp_path / "runs/whole" / name).read_bytes() == (tmp_path / "runs/killed" / name).read_bytes(), name


def test_two_ranks_with_few_taught_learn_what_one_learns(straight, tmp_path):
    """Every stage with pairs; the loop alone with the paper's loss. Ranks have different numbers of questions."""
    argv = [*SMALL, "--eval-every", "0", "--questions-per-step", "5", "--steps", "2", "--d-steps", "1", *FEW]
    for name in ("one-bce", "one-pairwise", "two-bce", "two-pairwise"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        for part in ("sft", "discriminator", "teachers.jsonl")[: 3 if "bce" in name else 1]:
            (tmp_path / "runs" / name / part).symlink_to(straight / part)
    stages = [(loss, x) for loss in ("bce", "pairwise") for x in ("teachers", "discriminator", "ril")][2:]
    for loss, stage in stages:
        command(tmp_path, "--name", f"one-{loss}", *argv, "--d-loss", loss, "--stage", stage)
    script = tmp_path / "stages.py"
    script.write_text(
        f"import sys, train\nfor loss, stage in {stages}:\n"
        "    train.main(['--name', f'two-{loss}', *sys.argv[1:], '--d-loss', loss, '--stage', stage])\n"
    )
    ran = torchrun(tmp_path, 2, script, *argv)
    assert ran.returncode == 0, ran.stderr[-3000:]
    for loss in ("bce", "pairwise"):
        one, two = (metrics(tmp_path / "runs" / f"{name}-{loss}") for name in ("one", "two"))
        assert sum("d_accuracy_unseen" in r for r in one) == 2 and len(one) == (5 if loss == "pairwise" else 4)
        for a, b in zip(one, two, strict=True):
            wrong = {k: (a[k], b[k]) for k in a if k != "stage" and abs(a[k] - b[k]) > 1e-4 * (1 + abs(a[k]))}
            assert a.keys() == b.keys() and not wrong, wrong
    said = [(tmp_path / "runs" / name / "teachers.jsonl").read_bytes() for name in ("one-pairwise", "two-pairwise")]
    assert said[0] == said[1]


def test_d_rests_while_unseen_texts_are_far_behind_and_goes_on_when_they_are_not(capsys):
    cfg, progress, updated = config.Config(), {"memorised": 0}, []
    for behind in (0.2, 0.2, 0.0, 0.2, 0.2, 0.2, 0.2, 0.05, 0.0):
        assert unseen.may_learn(cfg, progress) == (progress["memorised"] < 3)
        updated.append(unseen.watch(dict(d_accuracy=0.9, d_accuracy_unseen=0.9 - behind), progress)["d_updated"])
    assert updated == [1, 1, 1, 1, 1, 1, 0, 0, 1] and capsys.readouterr().out.count("D rests") == 1
    assert unseen.watch({"d_accuracy": 0.9}, {}) == {} and unseen.may_learn(cfg, {})
    assert not unseen.may_learn(config.Config(d_lr=0), progress)


@pytest.mark.parametrize("judged, exported", [("0", 6), ("0.5", 0)])
def test_without_an_answer_key_the_last_step_is_exported(straight, tmp_path, monkeypatch, judged, exported):
    scores = iter((0.9, 0.3, 0.2, 0.1))
    real = train.evaluate
    monkeypatch.setattr(train, "evaluate", lambda *_: dict(greedy=0.5, sampled=next(scores)))
    switched(straight, tmp_path, "k", "--judged", judged, "--eval-every", "3", steps=6)
    run = SimpleNamespace(path=tmp_path / "runs/k", cfg=config.Config(judged=float(judged)))
    run.rows = lambda *args: running.Run.rows(run, *args)
    assert train.report.of_the_loop(run)["exported_step"] == exported
    best, last = ((run.path / "checkpoints" / x / "model.safetensors").read_bytes() for x in ("best", "last"))
    assert (best == last) == (exported == 6) and next(scores) == 0.1 and real is not train.evaluate


# ------------------------------------------------------------------------------------------------ blank pictures, plan
def test_blank_asks_the_same_questions_about_grey_pictures_before_and_after(straight, tmp_path, monkeypatch):
    real, asked = train.evaluate, []

    def noted(student, questions, *more):
        asked.append(questions)
        return real(student, questions, *more)

    monkeypatch.setattr(train, "evaluate", noted)
    flags = ["--name", "b", *SMALL, "--student", str(straight / "student"), "--algo", "dr_grpo", "--steps", "0"]
    command(tmp_path, *flags, "--evaluated", "blank")
    test = tiny_world.world_questions("test", 24)
    (whole, before, after), shown = asked[-3:], lambda q: q.images[0].getcolors(9999)
    assert whole == test and all(len(shown(q)) > 2 for q in whole)
    for questions in (before, after):
        assert [(q.id, q.text, q.answer, q.meta) for q in questions] == [(q.id, q.text, q.answer, q.meta) for q in test]
        assert all(shown(q) == [(42 * 42, (128, 128, 128))] for q in questions)
    summary = json.loads((tmp_path / "runs/b/summary.json").read_text())
    names = {x for x in summary if x.startswith("sampled_") and "interval" not in x}
    assert names == {"sampled_after", "sampled_before_blank", "sampled_after_blank"}
    assert summary["sampled_before_blank"] == summary["sampled_after_blank"]  # no step was taken
    picture = data.Question("q", (test[0].images[0].resize((56, 42)),), "?", "!")
    assert data.blanked(picture).images[0].size == (56, 42)


def test_the_plan_shows_the_hours_of_teachers_that_are_saved(capsys):
    flags = "--student qwen2.5-vl-7b --teachers big=http://x:1/v1 --pool 40000 --d-steps 1".split()
    hours = {t: plan.hours_and_disk(config.parse([*flags, "--taught", t]), 8, "none")["teachers"][0] for t in "148"}
    tenth = plan.hours_and_disk(config.parse([*flags, "--taught", "0.1"]), 8, "none")["teachers"][0]
    assert hours["8"] == pytest.approx(2 * hours["4"]) and 0.09 < tenth / hours["1"] < 0.12
    plan.main([*flags, "--taught", "0.1"])
    said = capsys.readouterr().out
    assert f"teachers: {tenth:.1f} hours" in said
    assert f"--taught 0.1; teachers for every question: {hours['1']:.1f} hours" in said
    plan.main(flags)
    assert "--taught" not in capsys.readouterr().out


def test_a_text_about_another_question_is_not_shown_as_the_groups(tmp_path):
    asked, out = data.Question("q", (), "?", "!"), []
    run = SimpleNamespace(first=True, log=lambda *_, **row: out.append(row))
    group = [Response("q", 0, "student", [], "a"), Response("other", 0, "t", [], "b")]
    table = torch.zeros(1, 2)
    train.report.show(run, 0, [asked], [group], table, table, table, [0, 1])
    assert [r["text"] for r in out[0]["responses"]] == ["a"]
