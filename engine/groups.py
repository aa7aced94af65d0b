"""The groups of a step, one for each question: their rewards, their packed rows, and --refill for dead ones."""

from dataclasses import replace

import torch

from data import Question, questions_at, seed_of
from discriminator import similarity_reward, step_scores
from engine.players import Players, on_gpu, refreshed
from engine.run import Run
from engine.sharding import all_gather, gather_dealt, rank_and_world
from grpo import Objective, advantages, rewards, teacher_advantages
from model import VLM, Batch, pack
from rollout import rollout, sampling_of
from tiny.world import look


def masks(groups: list, asked: list, cache, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(is_teacher, there, learned) of the first groups of `asked`, each (questions, rows).

    there: a response to this very question. Others are teacher texts that D alone reads, beside a question without
    teacher text. learned: D learns from it; not from teacher texts about the questions that measure it.
    """
    held, shape, pairs = cache.held if cache else (), (len(groups), rows), list(zip(asked, groups, strict=False))
    is_teacher = [r.source != "student" for g in groups for r in g]
    there = [r.question == q.id for q, g in pairs for r in g]
    learned = [r.source == "student" or r.question not in held for g in groups for r in g]
    return tuple(torch.tensor(x, dtype=torch.bool).view(shape) for x in (is_teacher, there, learned))


def advantages_of(cfg, reward: torch.Tensor, is_teacher: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
    """The advantages that reach the gradient, each over the rows that are there, 0 elsewhere; all (questions, rows)."""
    out = torch.zeros_like(reward)
    for rows in there.unique(dim=0):  # two kinds of groups at most: with teacher text and without
        alike = (there == rows).all(dim=1)
        out[alike[:, None] & rows] = advantages(reward[alike][:, rows], cfg.advantage).flatten()
    return teacher_advantages(out, is_teacher, cfg.teacher_use)


def objective_of(cfg, there: torch.Tensor) -> Objective:
    """The step's constants; there (questions, rows): the rows of each group's mean. A collective.

    The paper's mean over questions of 1/2G gives every response the same weight. So does 1 / (the step's responses),
    which is the same where every group has 2G, and Dr.GRPO's where no question has teacher text.
    """
    how = dict(max_length=cfg.max_new_tokens, length_mean=cfg.length_norm == "mean", eps=cfg.eps, beta=cfg.beta)
    return Objective(sum(all_gather(int(there.sum()))), **how, kl=cfg.kl, teacher_use=cfg.teacher_use)


def pack_policies(run: Run, replica: VLM, seen: list, groups: list, kept, cut: list[slice]) -> list[Batch]:
    """The responses that are `kept` (questions, rows) behind each prompt -> one packed batch per slice of questions.

    A trained vision tower encodes the pictures in the training forward pass, where its gradient is taken. A question
    without a picture then gets a blank one, so that every rank runs the tower (FSDP would hang otherwise).
    """
    blank = None if "vision" in run.cfg.frozen_parts else replica.encoder.blank_picture()
    prompts = [replace(p, patches=None) for p in seen] if blank else seen
    rows = [[r.ids for r, k in zip(g, mine, strict=False) if k] for g, mine in zip(groups, kept.tolist(), strict=False)]
    rows += [[]] * (len(groups) - len(rows))
    return [pack(prompts[s], rows[s], device=run.device, blank=blank) for s in cut]


def answers_of(judge, asked: list, fresh: list, cached: list, rows: int) -> torch.Tensor:
    """r_ans (questions, rows): fresh responses are judged now, the teachers' verdicts are cached."""
    found = iter(judge.verdicts(asked[: len(fresh)], [r for g in fresh for r in g]))
    verdicts = [[next(found) for _ in mine] + theirs for mine, (_, theirs) in zip(fresh, cached, strict=True)]
    return torch.tensor(verdicts, dtype=torch.float32).view(len(fresh), rows)


def similarity_of(cfg, asked: list, groups: list, is_teacher, student_logit, answer) -> torch.Tensor:
    """r_sim (questions, rows): D's, or one without D: none 0, constant 1 on teacher rows, oracle 1 on right looks.

    answer (questions, rows of the group's mean): gated counts where one of them is right.
    """
    kind = cfg.similarity
    if kind == "gated":
        return similarity_reward(student_logit) * answer.any(dim=1, keepdim=True)
    if student_logit is not None:
        return similarity_reward(student_logit, kind)
    if kind == "oracle":
        right = [[float(look(q, r.text) or 0) for r in g] for q, g in zip(asked, groups, strict=False)]
        return torch.tensor(right[: len(is_teacher)]).view(is_teacher.shape)
    return is_teacher.float() * (kind == "constant")


def rows_of(cfg, teacher_rows: int) -> tuple[int, int, int]:
    """Rows of a group: (G of the student, those in the group's mean, those that the policy is scored on)."""
    G = cfg.group_size * (cfg.student_rows != "none")
    in_mean = G if cfg.teacher_use == "discriminator" else G + teacher_rows
    return G, in_mean, G if cfg.teacher_use in ("discriminator", "baseline") else G + teacher_rows


def reserve(questions: list[Question], step: int, count: int, seed: int) -> list[tuple[Question, int]]:
    """The `count` (question, visit) that may fill a step up, in an order of their own; those of the step come last.

    It depends on seed and step alone, so that a resumed run and any number of ranks have the same.
    """
    now = {q.id for q, _ in questions_at(questions, step, count, seed)}
    return sorted(questions_at(questions, step, count, seed_of(seed, "refill")), key=lambda visit: visit[0].id in now)


def refill(run: Run, players: Players, judge, cache, questions: list, step: int, lists: tuple, tables: tuple) -> int:
    """--refill (DAPO's dynamic sampling, one round): each dead group of the step gives way to another question's.

    `lists` (the ids of the step; asked, seen, fresh, groups of this rank) and `tables` (there, student_logit,
    similarity, answer, reward, advantage) change in place; -> the number of questions drawn, over all ranks. The step's
    k-th dead group becomes that of the k-th question in `reserve`, even if that is dead too. D has learned from the
    first draw alone.
    """
    cfg, (rank, world), (ids, *lists) = run.cfg, rank_and_world(), lists
    dead = gather_dealt((tables[-1] == 0).all(dim=1).tolist())
    places = [i for i, is_dead in enumerate(dead) if is_dead]
    of = dict(zip(places, reserve(questions, step, len(dead), cfg.seed), strict=False))  # place in the step -> question
    if not of:
        return 0
    mine = [i for i in of if i % world == rank]
    most = max(sum(i % world == r for i in of) for r in range(world))  # every rank makes as many passes
    visits = [of[i] for i in mine] + [of[places[0]]] * (most - len(mine))
    asked, own, here = [q for q, _ in visits], len(mine), [i // world for i in mine]
    keys, T = [(q.id, n) for q, n in visits[:own]], cache.rows if cache else 0
    G, in_mean, scored = rows_of(cfg, T)
    prompts = [players.replica.encoder.encode_question(q) for q in asked]
    with refreshed(run, players.replica, players.student):
        limits = (cfg.max_new_tokens, sampling_of(cfg), (cfg.seed, "refill"), cfg.rollout_rows)
        fresh = rollout(players.replica, prompts[:own], keys, G, *limits)
        seen = players.replica.encode_pictures(prompts)
    cached = [cache.draw(name, n, cfg.seed, "refill") if cache else ([], []) for name, n in keys]
    groups = [said + theirs for said, (theirs, _) in zip(fresh, cached, strict=True)] + [[]] * (most - own)
    is_teacher, there, _ = masks(groups[:own], asked, cache, G + T)
    student_logit = None
    if players.D:
        with on_gpu(run, players.D):
            packed = players.D.batches(asked, seen, groups, cfg.micro_batch)
            student_logit = step_scores(players.D, packed, is_teacher, cfg.d_loss)
    answer = answers_of(judge, asked, fresh, cached, G + T) * (cfg.judged > 0)
    similarity = similarity_of(cfg, asked, groups, is_teacher, student_logit, (answer * there)[:, :in_mean])
    reward = rewards(similarity, answer)
    advantage = advantages_of(cfg, *(x[:, :in_mean] for x in (reward, is_teacher, there)))[:, :scored]
    for table, new in zip(tables, (there, student_logit, similarity, answer, reward, advantage), strict=True):
        if table is not None:
            table[here] = new
    for old, new in zip(lists, (asked, seen, fresh, groups), strict=True):
        for i, x in zip(here, new, strict=False):
            old[i] = x
    for i, (q, _) in of.items():
        ids[i] = q.id
    return len(of)
