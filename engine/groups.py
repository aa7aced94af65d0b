"""The groups of a step, one for each question: their rewards, their packed rows, and --refill for dead ones."""

from dataclasses import replace

import torch

from data import Question, questions_at, seed_of
from discriminator import discriminator_scores, similarity_reward
from engine.players import Players, on_gpu, refreshed
from engine.run import Run
from engine.sharding import gather_dealt, rank_and_world
from grpo import advantages, rewards, teacher_advantages
from model import VLM, Batch, pack
from rollout import rollout, sampling_of
from tiny.world import look


def pack_for_policies(run: Run, replica: VLM, seen: list, rows: list, cut: list[slice]) -> list[Batch]:
    """rows[q] are the token lists behind question q's prompt -> one packed batch per slice of questions.

    A trained vision tower encodes the pictures in the training forward pass, where its gradient is taken. A question
    without a picture then gets a blank one, so that every rank runs the tower (FSDP would hang otherwise).
    """
    blank = None if "vision" in run.cfg.frozen_parts else replica.encoder.blank_picture()
    prompts = [replace(p, patches=None) for p in seen] if blank else seen
    return [pack(prompts[s], rows[s], device=run.device, blank=blank) for s in cut]


def answers_of(judge, asked: list, fresh: list, cached: list, rows: int) -> torch.Tensor:
    """r_ans (questions, rows): fresh responses are judged now, the teachers' verdicts are cached."""
    found = iter(judge.verdicts(asked[: len(fresh)], [r for g in fresh for r in g]))
    verdicts = [[next(found) for _ in mine] + theirs for mine, (_, theirs) in zip(fresh, cached, strict=True)]
    return torch.tensor(verdicts, dtype=torch.float32).view(len(fresh), rows)


def similarity_of(kind: str, asked: list, groups: list, is_teacher: torch.Tensor, student_logit) -> torch.Tensor:
    """r_sim (questions, rows): D's, or one without D: none 0, constant 1 on teacher rows, oracle 1 on right looks."""
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

    `lists` (the ids of the step; asked, seen, fresh, groups of this rank) and `tables` (student_logit, similarity,
    answer, reward, advantage) change in place; -> the number of questions drawn, over all ranks. The step's k-th dead
    group becomes that of the k-th question in `reserve`, even if that is dead too. D has learned from the first draw
    alone.
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
    is_teacher = (torch.arange(G + T) >= G).expand(own, -1)
    prompts = [players.replica.encoder.encode_question(q) for q in asked]
    with refreshed(run, players.replica, players.student):
        limits = (cfg.max_new_tokens, sampling_of(cfg), (cfg.seed, "refill"), cfg.rollout_rows)
        fresh = rollout(players.replica, prompts[:own], keys, G, *limits)
        seen = players.replica.encode_pictures(prompts)
    cached = [cache.draw(name, n, cfg.seed, "refill") if cache else ([], []) for name, n in keys]
    groups = [said + theirs for said, (theirs, _) in zip(fresh, cached, strict=True)] + [[]] * (most - own)
    student_logit = None
    if players.D:
        with on_gpu(run, players.D):
            packed = players.D.batches(asked, seen, groups, cfg.micro_batch)
            student_logit = discriminator_scores(players.D, packed).view(is_teacher.shape)
    similarity = similarity_of(cfg.similarity, asked, groups, is_teacher, student_logit)
    answer = answers_of(judge, asked, fresh, cached, G + T) * (cfg.judged > 0)
    reward = rewards(similarity, answer)
    advantage = advantages(reward[:, :in_mean], cfg.advantage)
    advantage = teacher_advantages(advantage, is_teacher[:, :in_mean], cfg.teacher_use)[:, :scored]
    for table, new in zip(tables, (student_logit, similarity, answer, reward, advantage), strict=True):
        if table is not None:
            table[here] = new
    for old, new in zip(lists, (asked, seen, fresh, groups), strict=True):
        for i, x in zip(here, new, strict=False):
            old[i] = x
    for i, (q, _) in of.items():
        ids[i] = q.id
    return len(of)
