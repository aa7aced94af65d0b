"""The paper's curation of the question pool: which of your questions are worth training on.

python -m tools.select --data pool.jsonl --keep 40000 --student qwen2.5-vl-7b --teachers qwen2.5-vl-72b
# and any other flag of train.py
"""

import os
import sys
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__":  # read when torch is imported (train.py says why)
    os.environ.setdefault("PYTORCH_ALLOC_CONF", os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True"))

import numpy as np
import torch
from tqdm import tqdm

from config import parse
from data import Question, slices
from engine.answers import AnswerLog
from engine.asking import teacher_model
from engine.checks import check_players, check_questions
from engine.command import Flags, UserError, run_command
from engine.files import as_jsonl
from engine.players import judge_of, load_replica
from engine.run import Run, open_run, questions_in, set_up
from engine.sharding import all_gather, deal, gather_dealt, rank_and_world
from model import VLM, pack
from rollout import PURE, rollout
from teachers import teacher_folder


def select(run: Run, score: str, keep: int) -> None:
    """The paper's curation of the question pool: drop over-long ones, score the others, keep the best.

    log-prob: the teacher's mean log-probability of the reference answer minus the student's (what the teacher knows and
    the student does not); pass-rate: the student's share of right answers, kept where it is neither 0 nor 1.
    """
    cfg = run.cfg
    questions = questions_in(cfg.data)
    known = AnswerLog(run.path / "scores.jsonl", "question", writes=run.first)
    student = load_replica(run, cfg.student)
    teacher = teacher_model(teacher_folder(cfg.teacher_names[0]), run) if score == "log-prob" else None
    judge = judge_of(run) if score == "pass-rate" else None
    limit = student.hf.config.get_text_config().max_position_embeddings
    todo = [q for q in questions if q.id not in known]
    for part in tqdm(slices(len(todo), 32 * rank_and_world()[1]), "select", disable=not run.first):
        mine, asked, rows = deal(todo[part]), [], []
        for q in mine:
            size = len(student.encoder.reply_ids(q.answer))
            fits = (
                size <= cfg.max_new_tokens and len(student.encoder.encode_question(q).ids) + cfg.max_new_tokens < limit
            )
            rows.append(dict(question=q.id, score=None))
            asked += [q] if fits else []
        if score == "log-prob":
            most = max(all_gather(len(asked)))  # every rank has to pass the sharded teacher equally often
            padded = asked + [Question("-", (), "-", "-")] * (most - len(asked))
            found = [a - b for a, b in zip(answer_logps(teacher, padded), answer_logps(student, padded), strict=True)]
        else:
            prompts, names = [student.encoder.encode_question(q) for q in asked], [q.id for q in asked]
            more = dict(purpose=(cfg.seed, "select"), max_rows=cfg.rollout_rows)
            fresh = rollout(student, prompts, names, cfg.teacher_samples, cfg.max_new_tokens, PURE, **more)
            right = judge.verdicts(asked, [r for g in fresh for r in g])
            found = [float(np.mean(right[s])) for s in slices(len(right), cfg.teacher_samples)]
        of = {q.id: x for q, x in zip(asked, found, strict=False)}
        rows = gather_dealt([row | dict(score=of.get(row["question"])) for row in rows])
        known.add(rows)
    scores = {name: row["score"] for name, row in known.items()}
    ranked = sorted((q for q in questions if scores[q.id] is not None), key=lambda q: -scores[q.id])
    if score == "pass-rate":
        ranked = [q for q in questions if scores[q.id] is not None and 0 < scores[q.id] < 1]
    kept = {q.id for q in (ranked[: keep or None])}
    lines = [
        dict(id=q.id, images=[str(Path(x).resolve()) for x in q.images], question=q.text, answer=q.answer)
        for q in questions
        if q.id in kept
    ]
    run.write("selected.jsonl", as_jsonl(lines, ascii_only=False))
    over = sum(x is None for x in scores.values())
    print(f"  kept {len(kept)} of {len(questions)} questions, {over} were over-long: {run.path}/selected.jsonl")
    values = [x for x in scores.values() if x is not None]
    counts, edges = np.histogram(values, bins=10)
    chosen, _ = np.histogram([scores[i] for i in kept], bins=edges)
    for low, n, k in zip(edges, counts, chosen, strict=False):
        print(f"  {low:8.2f}  {'#' * round(40 * k / max(counts))}{'.' * round(40 * (n - k) / max(counts))} {k} of {n}")


@torch.no_grad()
def answer_logps(vlm: VLM, questions: list) -> list[float]:
    """Mean log-probability per token of each question's reference answer."""
    out = []
    for part in slices(len(questions), 8):
        prompts, rows = zip(
            *((vlm.encoder.encode_question(q), [vlm.encoder.reply_ids(q.answer)]) for q in questions[part]), strict=True
        )
        batch = pack(prompts, rows, device=vlm.device, blank=vlm.encoder.blank_picture())
        logps = vlm(batch)
        out += (logps.sum(1) / batch.mask.sum(1)).tolist()
    return out


def main(argv: list[str] | None = None) -> None:
    """The command line: --keep, --score, and the flags of train.py."""
    argv = sys.argv[1:] if argv is None else argv
    own = Flags(__doc__)
    own.add_argument("--keep", type=int, default=0, help="questions kept [all]")
    own.add_argument("--score", default="log-prob", choices=("log-prob", "pass-rate"), help="see `select` [log-prob]")
    args, rest = own.parse_known_args(argv)
    cfg = parse(rest, teachers=args.score == "log-prob")
    if not cfg.data:
        raise UserError("--data is missing: your questions, of which some are selected")
    if args.score == "pass-rate":
        cfg = replace(cfg, teacher_use="none", similarity="none")
    set_up(cfg)
    check_questions(cfg, check_players(cfg))
    with open_run(cfg, ["-m", "tools.select", *argv]) as run:
        select(run, args.score, args.keep)


if __name__ == "__main__":
    run_command(main)
