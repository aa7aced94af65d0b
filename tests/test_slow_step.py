"""The slow step: `train.ril` against Algorithm 2 written down in plain PyTorch, parameter by parameter.

`Slow` knows nothing of this project: a stock transformers model, one forward pass per response, pictures through the
vision tower every time, loops over questions and responses, AdamW and clipping of torch. From the real run it takes
the questions, the texts that were sampled and the teacher texts that were drawn. Gradients before each update,
parameters after it, and the logged numbers have to be the same.

Both sides compute in double precision (fixture `double`). In single precision AdamW's first step, which is about
lr * sign(gradient), turns rounding of gradients near zero into differences as large as the step.

    .venv/bin/python -m pytest -q tests/test_slow_step.py -k denominator
"""

import copy
import dataclasses
import gc
import json
import math
import os
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import (
    AutoConfig,
    AutoTokenizer,
    InternVLForConditionalGeneration,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
)

import config
import data
import engine.families as families
import engine.groups as step_groups
import engine.loading as loading
import engine.players as players
import engine.sharding as sharding
import tiny.world as tiny_world
import train
from judge import Judge

torch.set_num_threads(1)
gc.freeze()  # each stage collects garbage: what was imported need not be searched again and again
TEACHERS = Path(train.__file__).parent / "results" / "teachers"
BASE = "--pool 6 --valid-questions 2 --test-questions 2 --questions-per-step 2 --group-size 2 --steps 1".split()
BASE += "--lr 1e-3 --d-lr 2e-3 --beta 0.3 --micro-batch 1 ".split()
BASE += "--d-steps 1 --eval-every 0 --checkpoint-every 100".split()


# ------------------------------------------------------------------------------------------------ the slow step
STOCK = dict(qwen2_5_vl=Qwen2_5_VLForConditionalGeneration, internvl=InternVLForConditionalGeneration)
STOCK |= dict(qwen3_vl=Qwen3VLForConditionalGeneration)
SIGNS = dict(  # what the chat template writes for a picture -> its nine image tokens
    qwen2_5_vl=("<|image_pad|>", "<|image_pad|>" * 9),
    qwen3_vl=("<|image_pad|>", "<|image_pad|>" * 9),
    internvl=("<IMG_CONTEXT>", "<img>" + "<IMG_CONTEXT>" * 9 + "</img>"),
)
PARTS = {  # --frozen -> names of the tensors, the projector apart
    "none": "^$",
    "vision": "vis",
    "vision,attention": "vis|language_model.*self_attn",
    "vision,mlp,embeddings": "vis|language_model.*mlp|embed_tokens",
}


class Slow:
    """Algorithm 2 on stock models; `c` holds the run's settings."""

    def __init__(self, run: Path):
        self.c = c = SimpleNamespace(**json.loads((run / "config.json").read_text())["settings"])
        learned = c.similarity in ("binary", "three", "levels", "continuous")
        c.discriminator = ("updated" if c.d_lr else "frozen") if learned else "none"
        self.kind = AutoConfig.from_pretrained(run / "sft").model_type
        self.tokenizer = AutoTokenizer.from_pretrained(run / "sft")
        self.pictures = families.FAMILIES[self.kind].image_processor.from_pretrained(run / "sft")
        self.student = STOCK[self.kind].from_pretrained(run / "sft", dtype=torch.float64)
        self.reference, base = copy.deepcopy(self.student), copy.deepcopy(self.student.model)
        head = torch.nn.Linear(base.language_model.norm.weight.numel(), 1, bias=False)
        self.D = torch.nn.ModuleDict(dict(base=base, head=head))
        self.D.load_state_dict(load_file(run / "discriminator" / "model.safetensors"), strict=False)  # what was trained
        players = dict(student=(self.student, self.c.lr, self.c.frozen), D=(self.D, self.c.d_lr, "vision"))
        self.optimizers, self.trace, self.end = {}, [], self.tokenizer.eos_token_id
        for who, (player, lr, frozen) in players.items():
            for name, p in player.named_parameters():
                p.requires_grad_("merger" in name or not re.search(PARTS[frozen], name))
            adamw = torch.optim.AdamW(player.parameters(), lr, betas=(0.9, 0.95), weight_decay=0.0)
            self.optimizers[who] = player, adamw
        self.start = {who: parameters(player) for who, (player, *_) in players.items()}

    def inputs(self, system: str, text: str, reply: list[int], pictures: list) -> dict:
        content = [{"type": "image"}] * len(pictures) + [{"type": "text", "text": text}]
        chat = [{"role": "system", "content": system}] * bool(system)
        chat += [{"role": "user", "content": content if pictures else text}]
        text = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        text = text.replace(*SIGNS[self.kind])
        ids = torch.tensor([self.tokenizer(text, add_special_tokens=False)["input_ids"] + reply])
        out = dict(input_ids=ids, attention_mask=torch.ones_like(ids))
        if pictures:
            seen = self.pictures(pictures, return_tensors="pt")
            out |= {name: seen[name] for name in ("pixel_values", "image_grid_thw") if name in seen}
        if self.kind != "internvl":
            out["mm_token_type_ids"] = (ids == self.student.config.image_token_id).int()
        return out

    def log_probs(self, policy, r) -> torch.Tensor:
        logits = policy(**self.inputs("", r.q.text, r.ids, r.q.pictures())).logits[0, -len(r.ids) - 1 : -1]
        control = [i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special and i != self.end]
        logits = logits.index_fill(1, torch.tensor(control), -math.inf)  # never sampled
        return logits.log_softmax(-1)[range(len(r.ids)), r.ids]

    def logit(self, r) -> torch.Tensor:
        text = r.text.replace("<response>", "").replace("</response>", "").strip()
        asked = r.q.text + " " if self.c.d_input != "response" else ""
        user = f"{asked}<response>{text}</response> teacher 0 or student 1?"
        system = "a response in <response> tags was written by a teacher or by a student."
        seen = r.q.pictures() if self.c.d_input == "picture" else []
        return self.D.head(self.D.base(**self.inputs(system, user, [], seen)).last_hidden_state[0, -1])[0]

    def group(self, q, mine: list, theirs: list) -> list:
        said = [(x, self.tokenizer.decode(x, skip_special_tokens=True).strip(), False) for x in mine]
        said += [(self.tokenizer(t, add_special_tokens=False).input_ids + [self.end], t, True) for t in theirs]
        return [SimpleNamespace(q=q, ids=ids, text=text, teacher=who) for ids, text, who in said]

    def judged(self, group: list, groups: int) -> list:
        """Line 10 of Algorithm 2: rewards and advantages."""
        c = self.c
        for r in group:
            r.similarity, r.answer = self.similarity(r), self.answer(r)
            r.reward = r.similarity + r.answer
        rewards = [r.reward for r in group if not (r.teacher and c.teacher_use == "discriminator")]
        centre = mean(rewards)
        std = math.sqrt(sum((x - centre) ** 2 for x in rewards) / max(1, len(rewards) - 1))
        for r in group:
            r.responses = len(rewards) * groups
            r.advantage = (r.reward - centre) / (std + 1e-4 if c.advantage == "grpo" else 1)
            r.advantage = 1.0 if c.advantage == "one" else r.advantage
            if r.teacher and c.teacher_use == "positive":
                r.advantage = max(0.0, r.advantage)
        return group

    def is_scored(self, r) -> bool:
        return not (r.teacher and self.c.teacher_use in ("baseline", "discriminator"))

    def step(self, questions: list, sampled: list, drawn: list, more) -> dict:
        """One step: sampled[q] are lists of tokens, drawn[q] teacher texts; `more` yields (question, tokens, texts) for
        --refill. -> what the log has to say of it.
        """
        c, log = self.c, {}
        groups = [self.group(*x) for x in zip(questions, sampled, drawn, strict=True)]
        if c.discriminator != "none":  # lines 7-9: Eq. 1, student -> 1, teacher -> 0
            log = [self.discriminator_step([r for g in groups for r in g]) for _ in range(c.mu)][0]
        groups = [self.judged(group, len(groups)) for group in groups]
        if c.refill:
            dead = [all(r.advantage == 0 for r in group if self.is_scored(r)) for group in groups]
            for i in (i for i, is_dead in enumerate(dead) if is_dead):
                groups[i] = self.judged(self.group(*next(more)), len(groups))
            log["refilled"] = sum(dead)
        self.scored = [r for group in groups for r in group if self.is_scored(r)]
        with torch.no_grad():
            for r in self.scored:
                r.old, r.ref = self.log_probs(self.student, r), self.log_probs(self.reference, r)
        log = [log | self.student_step() for _ in range(c.mu)][-1]  # lines 11-13
        return log | self.numbers(groups)

    def discriminator_step(self, rows: list) -> dict:
        n, right, total = Counter(r.teacher for r in rows), Counter(), 0.0
        self.D.zero_grad()
        for r in rows:
            D = torch.sigmoid(self.logit(r))
            loss = -torch.log(1 - D if r.teacher else D) / n[r.teacher] / 2
            loss.backward()
            total, right[r.teacher] = total + loss.item(), right[r.teacher] + int((D < 0.5) == r.teacher)
        if self.c.discriminator == "updated":
            self.update("D")
        shares = dict(d_on_student=right[False] / n[False], d_on_teacher=right[True] / n[True])
        return shares | dict(d_loss=total, d_accuracy=sum(shares.values()) / 2)

    def student_step(self) -> dict:
        c, total = self.c, 0.0
        self.student.zero_grad()
        for r in self.scored:  # Eq. 2
            new = self.log_probs(self.student, r)
            rho = torch.exp(new - r.old)
            terms = torch.minimum(rho * r.advantage, rho.clamp(1 - c.eps, 1 + c.eps) * r.advantage)
            if r.teacher and c.teacher_use == "denominator-1":
                terms = r.advantage * torch.exp(new)
            terms = terms - c.beta * self.kl(new, r.ref)
            loss = -terms.sum() / (len(r.ids) if c.length_norm == "mean" else c.max_new_tokens) / r.responses
            loss.backward()
            total, r.rho = total + loss.item(), rho.tolist()
        return dict(loss=total, gradient_norm=self.update("student"))

    def kl(self, new: torch.Tensor, ref: torch.Tensor) -> torch.Tensor:
        return torch.exp(ref - new) - (ref - new) - 1 if self.c.kl == "k3" else (new - ref) ** 2 / 2

    def numbers(self, groups: list) -> dict:
        """Some means of the step, under the names that the log has for them."""
        rows, rho = [r for group in groups for r in group], [x for r in self.scored for x in r.rho]
        mine, theirs = [r for r in rows if not r.teacher], [r for r in rows if r.teacher]
        out = dict(reward=mean(r.reward for r in mine), tokens=mean(len(r.ids) for r in mine))
        for name in ("similarity", "answer"):
            out[name], out[f"teacher_{name}"] = (mean(getattr(r, name) for r in some) for some in (mine, theirs))
        out |= dict(ratio=mean(rho), clipped=mean(abs(x - 1) > self.c.eps for x in rho))
        out["dead_groups"] = mean(all(r.advantage == 0 for r in group if hasattr(r, "old")) for group in groups)
        for name, who in dict(nll_student=False, nll_teacher=True).items():
            out[name] = -mean(x for r in self.scored if r.teacher == who for x in r.old.tolist())
        if self.c.beta:
            out["kl"] = mean(x for r in self.scored if not r.teacher for x in self.kl(r.old, r.ref).tolist())
        return out

    def update(self, who: str) -> float:
        player, adamw = self.optimizers[who]
        grads = {name: p.grad.clone() for name, p in player.named_parameters() if p.grad is not None}
        norm = torch.nn.utils.clip_grad_norm_(player.parameters(), self.c.clip).item()
        adamw.step()
        self.trace.append((who, grads, parameters(player)))
        return norm

    def similarity(self, r) -> float:
        kind = self.c.similarity
        if kind in ("none", "constant"):
            return float(kind == "constant" and r.teacher)
        if kind == "oracle":
            return float(looks_right(r.q, r.text))
        with torch.no_grad():
            like_teacher = 1 - torch.sigmoid(self.logit(r)).item()
        steps = dict(binary=1, three=2, levels=10).get(kind)
        return round(like_teacher * steps) / steps if steps else like_teacher

    def answer(self, r) -> float:
        return float(self.c.judged > 0 and Judge("rule").score([(r.q, r.text)])[0])  # tests/test_rule.py has the rule


def parameters(player: torch.nn.Module) -> dict:
    return {name: p.detach().clone() for name, p in player.named_parameters()}


def distance(one: dict, two: dict) -> float:
    """The norm of the difference; a tensor that one side lacks is zero there."""
    both = [(one.get(name), two.get(name)) for name in one.keys() | two.keys()]
    return math.sqrt(sum(((0 if x is None else x) - (0 if y is None else y)).square().sum().item() for x, y in both))


def mean(values) -> float:
    values = list(values)
    return sum(values) / max(1, len(values))


def looks_right(question, text: str) -> bool:
    """Does it say what a perfect look says, in either voice? Counted things may come in any order."""

    def look(text):
        words = re.split(r"\. the answer|; final", text)[0].split()
        return sorted(words) if question.meta["kind"] == "count" else words

    return look(text) in [look(question.meta["replies"][voice]) for voice in "ab"]


# ------------------------------------------------------------------------------------------------ the real run
@pytest.fixture
def double(monkeypatch):
    """Everything in double precision, stock code too."""
    to = torch.Tensor.to

    def to_double(x, *args, **more):
        return to(x, *(torch.float64 if a is torch.float32 else a for a in args), **more)

    monkeypatch.setattr(torch.Tensor, "to", to_double)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    defaults = [torch.float64 if x is torch.float32 else x for x in loading.load.__defaults__]
    monkeypatch.setattr(loading.load, "__defaults__", tuple(defaults))
    monkeypatch.setattr(sharding, "MixedPrecisionPolicy", lambda *_, **more: MixedPrecisionPolicy(**more))
    monkeypatch.setattr(players, "compute_dtype", lambda _: torch.float64)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float)


def command(folder: Path, *flags: str) -> None:
    """train.py with these flags in `folder`; NAME=VALUE sets a constant of config.py that is no flag."""
    before, constants = os.getcwd(), dict(x.split("=") for x in flags if re.fullmatch(r"[a-z_]+=.*", x))
    flags = [x for x in flags if not re.fullmatch(r"[a-z_]+=.*", x)]
    os.chdir(folder)
    try:
        cfg = config.parse(flags)
        values = {name: type(getattr(cfg, name))(value) for name, value in constants.items()}
        train.run_all(dataclasses.replace(cfg, **values), ["train.py", *flags])
    finally:
        os.chdir(before)


@pytest.fixture(scope="module")
def starts(tmp_path_factory):
    """For each family a folder with a student, all teachers' responses, and a D that has seen them once.

    The student is the teacher of its family made less sure of itself: its samples differ, and some are right. A family
    without a teacher has a random one.
    """
    out = {}
    for family in ("tiny-qwen", "tiny-internvl", "tiny-qwen3"):
        folder = out[family] = tmp_path_factory.mktemp(family)
        teacher = TEACHERS / f"{family}-teacher"
        student = loading.load(teacher if teacher.is_dir() else family)
        with torch.no_grad():
            student.base.language_model.norm.weight.mul_(0.55)
        loading.save(student, folder / "student", torch.float32)
        flags = ["--name", "a", *BASE, "--student", "student"]
        for stage in ("sft", "teachers", "discriminator"):
            command(folder, *flags, "--teachers", "tiny-qwen-teacher,tiny-internvl-teacher", "--stage", stage)
        command(folder, *flags, "--name", "reference", "--teachers", "reference", "--stage", "teachers")
        lines = [(folder / "runs" / name / "teachers.jsonl").read_text() for name in ("a", "reference")]
        (folder / "teachers.jsonl").write_text("".join(lines))
    return out


def real(start: Path, folder: Path, flags: list[str], monkeypatch) -> SimpleNamespace:
    """`train.ril` with these flags: its updates, and what it sampled and drew."""
    path = folder / "runs" / "b"
    path.mkdir(parents=True)
    (path / "sft").symlink_to(start / "student")
    (path / "discriminator").symlink_to(start / "runs/a/discriminator")
    names = config.parse([x for x in flags if not re.fullmatch(r"[a-z_]+=.*", x)]).teachers.split(",")
    lines = (start / "teachers.jsonl").read_text().splitlines(keepends=True)
    (path / "teachers.jsonl").write_text("".join(x for x in lines if json.loads(x)["teacher"] in names))
    out = SimpleNamespace(run=path, trace=[], sampled=[], drawn=[], parts={}, more=[], more_drawn=[])
    checkpoints, rollout, draw, update = train.Checkpoints, train.rollout, train.TeacherCache.draw, train.update

    def keep_parts(run, stage, parts, every):
        out.parts = parts
        return checkpoints(run, stage, parts, every)

    def keep_samples(*args, **more):
        found = rollout(*args, **more)
        out.sampled.append(list(found))  # the loop replaces groups in its list
        return found

    def keep_more(*args, **more):
        out.more.append(rollout(*args, **more))
        return out.more[-1]

    def keep_draw(*args):
        found = draw(*args)
        (out.more_drawn if args[-1] == "refill" else out.drawn).append(found)
        return found

    def keep_update(optimizer, *args):
        who = next(who for who, (_, mine) in out.parts.items() if mine is optimizer)
        players = {n.removeprefix("hf."): p for n, p in out.parts[who][0].named_parameters()}
        grads = {n: p.grad.full_tensor().clone() for n, p in players.items() if p.grad is not None}
        norm = update(optimizer, *args)
        after = {n: p.detach().full_tensor().clone() for n, p in players.items()}
        out.trace.append((who, grads, after))
        return norm

    monkeypatch.setattr(train, "Checkpoints", keep_parts)
    monkeypatch.setattr(train, "rollout", keep_samples)
    monkeypatch.setattr(step_groups, "rollout", keep_more)
    monkeypatch.setattr(train.TeacherCache, "draw", keep_draw)
    monkeypatch.setattr(train, "update", keep_update)
    command(folder, "--name", "b", *flags, "--stage", "ril")
    out.log = [json.loads(x) for x in (path / "metrics.jsonl").read_text().splitlines()]
    return out


TWO, NO_D = "--teachers tiny-qwen-teacher,tiny-internvl-teacher", "--similarity none"
CASES = {
    # ---- methods
    "ril": ("tiny-qwen", "--steps 2"),
    "ril, the other family": ("tiny-internvl", "--steps 2 --micro-batch 2"),
    "mu 2, two teachers": ("tiny-qwen", f"--mu 2 --lr 3e-3 --steps 2 {TWO}"),
    "mu 2, two teachers, each": ("tiny-internvl", f"--mu 2 eps=0.05 teacher_rows=each {TWO}"),
    "deepstack": ("tiny-qwen3", f"--steps 2 --micro-batch 2 {TWO}"),
    "grpo": ("tiny-internvl", "--algo grpo"),
    "dr_grpo, mu 2": ("tiny-qwen", "--algo dr_grpo --mu 2 --lr 3e-3 --group-size 4"),
    "distill": ("tiny-internvl", "--algo distill"),
    "sft": ("tiny-qwen", "--algo sft"),
    "gail": ("tiny-internvl", "--algo gail"),
    # ---- teacher rows
    "baseline": ("tiny-qwen", "--teacher-use baseline --steps 2"),
    "positive": ("tiny-qwen", f"--teacher-use positive {NO_D}"),
    "denominator 1": ("tiny-internvl", "--teacher-use denominator-1 --mu 2 --similarity oracle"),
    "teachers only for D": ("tiny-internvl", "--teacher-use discriminator"),
    # ---- D and the similarity reward
    "three, D reads the question": ("tiny-qwen", "--similarity three --d-input question"),
    "levels, D reads the picture": ("tiny-internvl", "--similarity levels --d-input picture --steps 2"),
    "continuous, D reads the picture": ("tiny-qwen", "--similarity continuous --d-input picture"),
    "constant": ("tiny-internvl", "--similarity constant"),
    "oracle": ("tiny-qwen", "--similarity oracle"),
    "D frozen": ("tiny-internvl", "--d-lr 0"),
    # ---- objective, and what is trained
    "std, k2": ("tiny-qwen", f"advantage=grpo kl=k2 --mu 2 {NO_D}"),
    "length mean, little clipping": ("tiny-internvl", f"length_norm=mean clip=1e-3 --mu 2 {NO_D}"),
    "vision trained": ("tiny-qwen", "--frozen none --similarity constant"),
    "vision trained, the other family": ("tiny-internvl", "--frozen none --judged 0"),
    "vision trained, deepstack, D reads the picture": ("tiny-qwen3", "--frozen none --d-input picture"),
    "attention frozen": ("tiny-qwen", f"--frozen vision,attention {NO_D}"),
    "mlp and embeddings frozen": ("tiny-internvl", f"--frozen vision,mlp,embeddings {NO_D}"),
    "micro-batches": ("tiny-qwen", "--questions-per-step 3 --micro-batch 2"),
    # ---- dead groups
    "refill": ("tiny-qwen", "--refill --steps 3 --questions-per-step 3 --micro-batch 2"),
    "refill without D": ("tiny-internvl", "--refill --algo dr_grpo --steps 3 --mu 2 --group-size 4"),
    "refill, teachers only for D": ("tiny-internvl", "--refill --teacher-use discriminator --steps 2"),
}


def more_groups(ours, questions: list, step: int, P: int, seed: int):
    """(question, tokens, teacher texts) of the questions that --refill may draw in a step, as the real run had them."""
    now = {q.id for q, _ in data.questions_at(questions, step, P, seed)}
    stream = [q for q, _ in data.questions_at(questions, step, P, data.seed_of(seed, "refill"))]
    stream = [q for q in stream if q.id not in now] + [q for q in stream if q.id in now]
    groups = iter(ours.more.pop(0) if ours.more else ())
    for q, group in zip(stream, groups, strict=False):
        yield q, [r.ids for r in group], [r.text for r in ours.more_drawn.pop(0)[0]] if ours.more_drawn else []


@pytest.mark.parametrize("case", CASES)
def test_the_loop_equals_the_slow_step(starts, tmp_path, monkeypatch, double, case):
    family, flags = CASES[case]
    flags = [*BASE, "--student", str(starts[family] / "student"), "--teachers", "tiny-qwen-teacher", *flags.split()]
    monkeypatch.setattr(train, "validate", lambda *_: None)
    ours = real(starts[family], tmp_path, flags, monkeypatch)
    slow, signs, verdicts, dead_then = Slow(ours.run), Counter(), Counter(), []
    questions, P = tiny_world.world_questions("train", slow.c.pool), slow.c.questions_per_step
    for step in range(slow.c.steps):
        asked = [q for q, _ in data.questions_at(questions, step, P, slow.c.seed)]
        sampled = [[r.ids for r in group] for group in ours.sampled[step]]
        drawn = [[r.text for r in found] for found, _ in ours.drawn[step * P : (step + 1) * P]] or [[]] * P
        want = slow.step(asked, sampled, drawn, more_groups(ours, questions, step, P, slow.c.seed))
        assert {name: ours.log[step][name] for name in want} == pytest.approx(want, rel=1e-6, abs=1e-7), step
        if not slow.c.refill:
            sampler = [x for group in ours.sampled[step] for r in group for x in r.logps]  # pi_old: the student of now
            assert sampler == pytest.approx([x for r in slow.scored if not r.teacher for x in r.old.tolist()], rel=1e-8)
        dead_then.append((want.get("refilled", 0), want["dead_groups"] * P))
        signs.update((r.teacher, (r.advantage > 0) - (r.advantage < 0)) for r in slow.scored)
        verdicts.update((r.teacher, r.similarity) for r in slow.scored)
    assert [who for who, *_ in ours.trace] == [who for who, *_ in slow.trace]
    before = slow.start
    for (who, grads, after), (_, slow_grads, slow_after) in zip(ours.trace, slow.trace, strict=True):
        assert distance(grads, slow_grads) <= 1e-8 * distance(slow_grads, {}) > 0, who
        assert distance(after, slow_after) <= 1e-8 * distance(before[who], slow_after) > 0, who
        before[who] = slow_after
    # the case shows what it is about
    uses = slow.c.teacher_use
    assert slow.c.advantage == "one" or {sign for _, sign in signs} >= {-1, 1}
    assert uses != "denominator-1" or signs[True, 1] and signs[True, -1]
    assert uses != "positive" or signs[True, 0] and signs[True, 1]
    assert case != "ril" or verdicts[False, 0.0] and verdicts[False, 1.0]
    assert slow.c.mu == 1 or 0 < want["clipped"] < 1
    assert not slow.c.refill or any(0 < drawn < P for drawn, _ in dead_then) and any(a > b for a, b in dead_then)
    assert not ours.more and not ours.more_drawn  # all of them have been used


def test_the_student_that_validates_best_is_kept_and_so_is_the_last(starts, tmp_path, monkeypatch):
    scores, asked = iter([0.3, 0.5, 0.4]), []

    def evaluate(replica, valid, *_):
        asked.append(parameters(replica.hf))
        return dict(greedy=0.0, sampled=next(scores))

    monkeypatch.setattr(train, "evaluate", evaluate)
    flags = [*BASE, "--student", str(starts["tiny-qwen"] / "student"), "--algo", "dr_grpo"]
    ours = real(starts["tiny-qwen"], tmp_path, [*flags, "--steps", "3", "--eval-every", "2"], monkeypatch)
    found = [(r["step"], r["valid_sampled"]) for r in ours.log if "valid_sampled" in r]
    assert found == [(-1, 0.3), (1, 0.5), (2, 0.4)]  # before the loop, every second step, behind the last
    players = [dict(ours.trace[i][2]) for i in (1, 2)]
    assert [distance(x, y) for x, y in zip(asked[1:], players, strict=True)] == [0, 0] and distance(*players) > 0
    for name, player in zip(("best", "last"), players, strict=True):
        kept = Qwen2_5_VLForConditionalGeneration.from_pretrained(ours.run / "checkpoints" / name)
        assert distance(parameters(kept), player) == 0, name


def test_samples_and_draws_depend_on_the_seed_and_on_the_visit(starts, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "validate", lambda *_: None)
    flags = [*BASE, "--student", str(starts["tiny-qwen"] / "student"), "--teachers", "tiny-qwen-teacher", *NO_D.split()]
    flags += "--similarity none --pool 2 --group-size 4 --steps 2 --lr 1e-12".split()  # both questions, twice
    said, drawn = {}, {}
    for seed in ("0", "1"):
        with pytest.MonkeyPatch.context() as patch:
            ours = real(starts["tiny-qwen"], tmp_path / seed, [*flags, "--seed", seed], patch)
        for step, groups in enumerate(ours.sampled):
            for group, (responses, _) in zip(groups, ours.drawn[2 * step :], strict=False):
                key = group[0].question, seed, step
                said[key], drawn[key] = [r.ids for r in group], [r.index for r in responses]
    pairs = [(a, b) for a in said for b in said if a < b and a[0] == b[0]]
    assert len(pairs) == 12 and all(said[a] != said[b] and drawn[a] != drawn[b] for a, b in pairs)
