"""Asking a teacher, loaded here or served. Both yield every response as it arrives."""

import gc
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from data import Question, seed_of, slices
from engine.command import UserError
from engine.players import compute_dtype, load_sharded
from engine.run import Run
from engine.served import Server, chat_message
from engine.sharding import dealt, gather_dealt, rank_and_world
from model import VLM
from rollout import Sampling, rollout


def teacher_model(folder: Path, run: Run) -> VLM:
    """A teacher, sharded over all ranks; its weights stay gathered after the first use where a GPU can hold them."""
    vlm = load_sharded(run, folder, dtype=compute_dtype(run.cfg)).requires_grad_(False)
    if run.device != "cpu":
        whole = sum(p.numel() * p.element_size() for p in vlm.parameters())
        if whole * (1 + 1 / run.mesh.size(-1)) < 0.6 * torch.cuda.get_device_properties(run.device).total_memory:
            vlm.set_reshard_after_forward(False)  # shard and gathered weights are both in memory
    return vlm


def own_answers(name: str, folder: Path, missing: list[tuple], samples: dict, run: Run) -> Iterator[dict]:
    """The missing (question, index) of a teacher asked here, as {question, index, text, finished}, by our own rollout.

    A question that lacks one response is asked for all of its samples[id] again. Every rank answers its share of the
    questions and gets all answers.
    """
    cfg, vlm = run.cfg, teacher_model(folder, run)
    how, purpose = Sampling(temperature=cfg.teacher_temperature), (cfg.seed, "teacher", name)
    wanted = {(q.id, index) for q, index in missing}
    for n in sorted(set(samples.values()), reverse=True):
        alike = list({q.id: q for q, _ in missing if samples[q.id] == n}.values())
        side_by_side = min(64, max(1, cfg.rollout_rows // n))
        for part in slices(len(alike), side_by_side * rank_and_world()[1]):  # each is on disk before the next begins
            asked, own = dealt(alike[part])
            prompts, ids = [vlm.encoder.encode_question(q) for q in asked], [q.id for q in asked]
            groups = rollout(vlm, prompts, ids, n, cfg.max_new_tokens, how, purpose, cfg.rollout_rows)
            if hasattr(vlm, "reset_iter_state"):  # FSDP records every forward until a backward pass
                vlm.reset_iter_state()  # without it (torch 2.11) about 50 bytes a layer and token stay in memory
            for r in (r for group in gather_dealt(groups[:own]) for r in group if (r.question, r.index) in wanted):
                yield dict(question=r.question, index=r.index, text=r.text, finished=r.finished)
    del vlm
    gc.collect()  # FSDP modules hold reference cycles, and another teacher may follow


def not_all_empty(rows: Iterable[dict], known: dict, total: int, name: str) -> Iterator[dict]:
    """The same rows. Raises UserError when `known`, which keeps them, has 64 (or `total`) texts and all are empty."""
    for row in rows:
        yield row
        if len(known) >= min(64, total) and not any(r["text"].strip() for r in known.values()):
            raise UserError(
                f"--teachers {name}: all of its {len(known)} texts are empty; a model that thinks first needs a larger "
                "--max-new-tokens (with another --name), or a server that switches thinking off: then give the same "
                "command again"
            )


def served_answers(server: Server, missing: list[tuple[Question, int]], cfg) -> Iterator[dict]:
    """The same from a server, as they arrive: one to every (question, index), each asked for with a seed of its own.

    Raises UserError as Server.answers does, after everything that arrived has been yielded.
    """
    chats = ([chat_message(q.text, q.pictures())] for q, _ in missing)
    seeds = (seed_of(cfg.seed, "teacher", q.id, index) % 2**31 for q, index in missing)
    for i, text, reason in server.answers(chats, cfg.max_new_tokens, cfg.teacher_temperature, seeds):
        question, index = missing[i]
        yield dict(question=question.id, index=index, text=text, finished=reason == "stop")
