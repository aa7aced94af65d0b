"""Before the first stage: what can be known about a run's players and questions without doing any work."""

from pathlib import Path

import torch
from tqdm import tqdm

from config import Config, is_real
from engine.command import UserError, some
from engine.families import FULL, JUDGES
from engine.files import read_jsonl
from engine.loading import load, meta_language_model, meta_model, random_meta_model
from engine.local import judge_digits
from engine.run import questions_in, split, taught_questions
from engine.served import Server, is_url
from engine.sharding import all_gather, deal, rank_and_world
from engine.tracker import check_tracker
from judge import known_judge, reward_function
from model import Encoder
from teachers import check_response, teacher_folder
from tiny.lessons import sft_questions
from tiny.models import TINY


def check_players(cfg: Config) -> Encoder | None:
    """Check the files of every player that will be loaded, before anything is written; -> the student's Encoder.

    Raises UserError that names the first player that cannot be used.
    """
    check_tracker(cfg.tracker)
    if cfg.taught > (count := len(split(cfg)["train"]) if cfg.taught > 1 else 1):
        raise UserError(f"--taught {cfg.taught:g}: there are {count} training questions")
    if cfg.teachers_file:
        check_teachers_file(cfg)
    cached = (Path("runs") / cfg.name / "teachers.jsonl").exists()
    for name in cfg.teachers.split(",") if cfg.teacher_use != "none" else ():
        if "=" in name:
            Server(name.partition("=")[2])  # or one line that says what is wrong with the address
        elif name != "reference" and not (cached and name in FULL) and not cfg.teachers_file:
            meta_model(teacher_folder(name))
    known_judge(cfg.judge)
    if cfg.reward:
        question = split(cfg)["train"][0]
        reward_function(cfg.reward)(question, question.answer)
    elif is_url(cfg.judge) and rank_and_world()[0] == 0:
        Server(cfg.judge).name_model()  # a dead judge is named now
    elif cfg.judge != "rule" and not is_url(cfg.judge):
        judge_digits(
            cfg.judge, meta_language_model(cfg.judge, torch.bfloat16, cfg.random_weights and cfg.judge in JUDGES)[1]
        )
    if cfg.student in TINY:
        return load(cfg.student).encoder if cfg.data or cfg.sft_data else None
    return (random_meta_model if cfg.random_weights and cfg.student in FULL else meta_model)(cfg.student).encoder


def check_teachers_file(cfg: Config) -> None:
    """Match --teachers-file with the training questions; lines that will not be read are counted, by why.

    Raises UserError for a line that cannot be used, and for a teacher without a response to any training question.
    """
    file, names = cfg.teachers_file, cfg.teacher_names
    rows = [row for _, row in read_jsonl(file, ("question", "teacher", "text"), check=check_response)]
    if cfg.teacher_use == "none":
        return
    known = {q.id for q in questions_in(cfg.data)} if cfg.data else set()
    parts = split(cfg)
    known |= {q.id for part in parts.values() for q in part}
    of_training, train = ({q.id for q in part} for part in (parts["train"], taught_questions(cfg, parts["train"])))
    answered = {row["teacher"] for row in rows if row["question"] in train}
    if none := [name for name in names if name != "reference" and name not in answered]:
        theirs, asked = some(row["teacher"] for row in rows), some(row["question"] for row in rows)
        raise UserError(
            f"{file}: no response of {none[0]!r} to any training question; its teachers are {theirs}, its questions "
            f"{asked}; the training questions are {some(sorted(train))}: correct --teachers or the file"
        )
    others = [row["teacher"] for row in rows if row["teacher"] not in names]
    mine = [row["question"] for row in rows if row["teacher"] in names]
    strange = [q for q in mine if q not in known]
    untaught = sum(q in of_training and q not in train for q in mine)
    held = sum(q in known and q not in of_training for q in mine)
    for count, why in (
        (len(others), f"are of teachers that --teachers does not name: {some(others)}"),
        (held, "are about questions outside the training part"),
        (untaught, "are about questions that --taught does not draw"),
        (len(strange), f"are about questions that are not in the data: {some(strange)}"),
    ):
        if count:
            print(f"  {file}: {count} of {len(rows)} lines are not read, they {why}")


def check_questions(cfg: Config, encoder: Encoder) -> None:
    """Read and encode every question before anything is written: bad input leaves no trace. All ranks stop together."""
    questions, wrong = [q for file in (cfg.data, cfg.sft_data) if file for q in questions_in(file)], ""
    encoder.limit_pictures(cfg.image_tokens)
    try:
        for q in tqdm(deal(questions), "questions", delay=2, disable=rank_and_world()[0] > 0):
            encoder.encode_question(q)
        split(cfg)
        sft_questions(cfg)
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
    if cfg.reward:
        out.append(f"judge: the function in {cfg.reward}; the paper's is a language model")
    tiny = [n for n in cfg.teachers.split(",") if n in TINY]
    if tiny and cfg.teacher_use != "none":
        out.append(f"teachers: {', '.join(tiny)}; the paper's have 72 and 78 B parameters (--teachers NAME=URL)")
    return out
