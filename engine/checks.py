"""Before the first stage: what can be known about a run's players and questions without doing any work."""

from pathlib import Path

import torch
from tqdm import tqdm

from config import Config, is_real
from engine.command import UserError
from engine.families import FULL, JUDGES
from engine.files import read_jsonl
from engine.loading import load, meta_language_model, meta_model, random_meta_model
from engine.local import judge_digits
from engine.run import questions_in, split
from engine.served import Server, is_url
from engine.sharding import all_gather, deal, rank_and_world
from judge import known_judge
from model import Encoder
from teachers import teacher_folder
from tiny.models import TINY


def check_players(cfg: Config) -> Encoder | None:
    """Check the files of every player that will be loaded, before anything is written; -> the student's Encoder.

    Raises UserError that names the first player that cannot be used.
    """
    files = ((cfg.teachers_file, ("question", "teacher", "text")), (cfg.sft_data, ("id", "question", "answer")))
    for file, fields in filter(lambda x: x[0], files):
        read_jsonl(file, fields)
    cached = (Path("runs") / cfg.name / "teachers.jsonl").exists()
    for name in cfg.teachers.split(",") if cfg.teacher_use != "none" else ():
        if "=" in name:
            Server(name.partition("=")[2])  # or one line that says what is wrong with the address
        elif name != "reference" and not (cached and name in FULL) and not cfg.teachers_file:
            meta_model(teacher_folder(name))
    known_judge(cfg.judge)
    if is_url(cfg.judge) and rank_and_world()[0] == 0:
        Server(cfg.judge).name_model()  # a dead judge is named now
    if cfg.judge != "rule" and not is_url(cfg.judge):
        judge_digits(
            cfg.judge, meta_language_model(cfg.judge, torch.bfloat16, cfg.random_weights and cfg.judge in JUDGES)[1]
        )
    if cfg.student in TINY:
        return load(cfg.student).encoder if cfg.data else None
    return (random_meta_model if cfg.random_weights and cfg.student in FULL else meta_model)(cfg.student).encoder


def check_questions(cfg: Config, encoder: Encoder) -> None:
    """Read and encode every question before anything is written: bad input leaves no trace. All ranks stop together."""
    questions = questions_in(cfg.data, Path(cfg.data).stat().st_mtime_ns if Path(cfg.data).is_file() else 0)
    wrong = ""
    encoder.limit_pictures(cfg.image_tokens)
    try:
        for q in tqdm(deal(questions), "questions", delay=2, disable=rank_and_world()[0] > 0):
            encoder.encode_question(q)
        split(cfg)
    except UserError as error:
        wrong = str(error)
    for message in filter(None, all_gather(wrong)):
        raise UserError(message)


def unlike_the_paper(cfg: Config) -> list[str]:
    """What is asked and who plays, where a run with the paper's settings has other players; one line each."""
    if cfg.preset != "paper" and not is_real(cfg.student):
        return []
    out = []
    if not cfg.data:
        side = 336 if is_real(cfg.student) else 42
        out.append(f"no --data: questions of the embedded tiny world, pictures of {side} x {side} pixels")
    if cfg.judge == "rule":
        out.append("judge: an exact rule; the paper's is a language model (--judge qwen2.5-32b, or its URL)")
    tiny = [n for n in cfg.teachers.split(",") if n in TINY]
    if tiny and cfg.teacher_use != "none":
        out.append(f"teachers: {', '.join(tiny)}; the paper's have 72 and 78 B parameters (--teachers NAME=URL)")
    return out
