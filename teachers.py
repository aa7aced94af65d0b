"""Teachers: who answers, and how their responses are asked for, cached and drawn.

A teacher is a tiny one with committed responses, a folder or a published name (asked here, by our own rollout), a
served model (NAME=http://host:port/v1), or a file of responses. Only text crosses to the student.
"""

import collections
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from config import SAMPLES, TEMPERATURE
from data import seed_of
from engine.answers import AnswerLog
from engine.asking import not_all_empty, own_answers, served_answers
from engine.command import UserError, some
from engine.families import FULL
from engine.files import as_jsonl, read_jsonl, text_field
from engine.folders import family_of
from engine.loading import find_folder
from engine.players import judge_of
from engine.run import HOME, Run, pretraining_questions, split, taught_questions
from engine.served import Server
from engine.sharding import all_gather, barrier, deal, together
from judge import Judge
from model import Encoder
from rollout import Response

FOLDER = HOME / "results" / "teachers"  # committed: each tiny teacher's weights and its cached responses


def samples_of(cfg, questions: list) -> dict[str, int]:
    """Number of responses asked from each teacher, by id of a taught question: more where D's pre-training comes by."""
    held, steps = pretraining_questions(cfg, questions)
    more = dict.fromkeys((q.id for part in (held, *steps) for q in part), cfg.pretraining_samples)
    return {q.id: max(cfg.teacher_samples, more.get(q.id, 0)) for q in taught_questions(cfg, questions)}


def teacher_folder(name: str) -> Path:
    """Where a teacher's weights are: a committed tiny teacher, a folder of yours, or a published name's."""
    if name in FULL:
        return find_folder(name)
    for folder in (FOLDER / name, Path(name)):
        if folder.is_dir():
            family_of(folder)
            return folder
    known = ", ".join(sorted(p.name for p in FOLDER.glob("*/"))) or "none built yet: make teachers"
    raise UserError(f"--teachers {name}: neither a folder with config.json nor a tiny teacher ({known})")


def ask_teacher(name: str, url: str, questions: list, run: Run, samples: dict | None = None) -> list[Response]:
    """samples[id] responses to every question (None: `teacher_samples`), from a server (`url`) or a teacher asked here.

    Each response is written to disk as it arrives, so that a resumed run asks only for the rest, and again where the
    text was empty. Raises UserError where all texts are.
    """
    samples = samples or {q.id: run.cfg.teacher_samples for q in questions}
    wanted = [(q, i) for q in questions for i in range(samples[q.id])]
    safe = re.sub(r"[/:\\]", "-", name)  # for the name of a file, on Windows too
    path = run.path / f"teachers-{safe}.part.jsonl"
    known = AnswerLog(path, "question", "index", writes=run.first, check=check_response)
    missing = [(q, i) for q, i in wanted if not known.get((q.id, i), {}).get("text", "").strip()]
    bar = dict(desc=f"teacher {name}", total=len(missing), delay=2, disable=not run.first)
    if url:  # rank 0 asks the server, the others wait
        arriving = served_answers(Server(url), missing, run.cfg) if run.first else ()
        together(lambda: known.add(not_all_empty(tqdm(arriving, **bar), known, len(wanted), name)))
    elif missing:
        arriving = own_answers(name, teacher_folder(name), missing, samples, run)
        known.add(not_all_empty(tqdm(arriving, **bar), known, len(wanted), name))
    barrier()
    known = AnswerLog(path, "question", "index", writes=False, check=check_response)  # all read what rank 0 wrote
    rows = [known[q.id, i] for q, i in wanted]
    return [Response(r["question"], r["index"], name, [], r["text"], r["finished"]) for r in rows]


def check_response(row: dict) -> None:
    """Bring a response's question and teacher into the form of ids. Raises ValueError for a field of another type."""
    row |= {name: text_field(row, name) for name in ("question", "teacher") if name in row}
    if not isinstance(row.get("text"), str):
        raise ValueError("field 'text' is not text; give what the teacher said")
    if not isinstance(row.get("finished", True), bool):
        raise ValueError("field 'finished' must be true, or false where the response was cut off")


def responses_in(file: Path, name: str, samples: dict) -> list[Response]:
    """The first samples[id] responses of a teacher to each question, from a cache file that may have fewer."""
    count, mine = collections.Counter(), []
    for _, row in read_jsonl(file, ("question", "teacher", "text"), check=check_response):
        question, index = row["question"], count[row["question"]]
        if row["teacher"] == name and index < samples.get(question, 0):
            mine.append(Response(question, index, name, [], row["text"], row.get("finished", True)))
            count[question] += 1
    return mine


def as_lines(responses: list[Response], verdicts: Iterable = ()) -> str:
    """Teacher responses as JSON lines, with their verdicts if there are any."""
    rows = [dict(question=r.question, teacher=r.source, text=r.text, finished=r.finished) for r in responses]
    for row, verdict in zip(rows, verdicts, strict=False):
        row["verdict"] = verdict
    return as_jsonl(rows, ascii_only=False)


def teachers(run: Run) -> None:
    """Every teacher's responses to every taught question, judged once: from a file, committed, or asked for now."""
    cfg, got = run.cfg, []
    samples = samples_of(cfg, split(cfg)["train"])
    questions = [q for q in split(cfg)["train"] if q.id in samples]
    alike = cfg.teacher_temperature == TEMPERATURE and cfg.teacher_samples <= SAMPLES and not cfg.data
    for entry in cfg.teachers.split(","):
        name, _, url = entry.partition("=")
        file = Path(cfg.teachers_file) if cfg.teachers_file else FOLDER / name / "responses.jsonl"
        mine = [Response(q.id, 0, name, [], q.answer) for q in questions if name == "reference"]
        if not mine and (cfg.teachers_file or (alike and not url and file.exists())):
            mine = responses_in(file, name, samples)
        answered = {r.question for r in mine}
        missing = [q for q in questions if q.id not in answered]
        if missing and not cfg.teachers_file:
            mine += ask_teacher(name, url, missing, run, samples)
        got += mine
    run.write("teachers.jsonl", as_lines(got, judged(judge_of(run, weak=True), questions, got)))
    barrier()
    right = np.mean(judged(judge_of(run), questions, got) or [0.0])
    print(f"  {len(got)} responses of {', '.join(cfg.teacher_names)} to {len(questions)} questions, {right:.1%} right")


def judged(judge: Judge, questions: list, responses: list[Response]) -> list[int]:
    """A verdict per response; every rank judges the responses to its share of the questions, all get all."""
    asked = deal(questions)
    wanted = {q.id for q in asked}
    mine = [i for i, r in enumerate(responses) if r.question in wanted]
    found = zip(mine, judge.verdicts(asked, [responses[i] for i in mine]), strict=True)
    return [verdict for _, verdict in sorted(pair for part in all_gather(list(found)) for pair in part)]


def whole_responses(run: Run, encoder: Encoder, questions: list) -> dict[str, dict[str, list]]:
    """{question: {teacher: [(response, verdict)]}} of the run's teachers.jsonl, in the student's tokens.

    Responses that are cut off, empty or too long for the student are skipped; their count is printed.
    """
    cfg, file, left, wrong = run.cfg, run.path / "teachers.jsonl", collections.Counter(), []
    of: dict[str, dict[str, list]] = {q.id: {name: [] for name in cfg.teacher_names} for q in questions}
    rows = read_jsonl(file, ("question", "teacher", "text", "verdict"), wrong, check_response)
    for where, row in rows:
        if row["teacher"] not in cfg.teacher_names:
            raise UserError(f"{where}: teacher {row['teacher']!r} is not among --teachers {cfg.teachers}")
        text = encoder.clean(row["text"])
        ids = encoder.reply_ids(text)
        if not text:
            left["empty"] += 1
        elif not row.get("finished", True) or len(ids) > cfg.max_new_tokens:
            left[f"cut off or over {cfg.max_new_tokens} tokens"] += 1
        elif row["question"] in of:
            found = of[row["question"]][row["teacher"]]
            found.append((Response(row["question"], len(found), row["teacher"], ids, text), row["verdict"]))
    if wrong:
        print(f"  WARNING: {len(wrong)} lines cannot be used and are left out: {some(wrong)}")
    if left:
        print("  teacher responses are left out: " + ", ".join(f"{n} {why}" for why, n in left.items()))
    if left["empty"] == len(rows):
        raise UserError(f"{file}: all teacher texts are empty; correct the teacher, or --teachers-file")
    return of


def fill_gaps(found: dict[str, list], enough: int, size: int) -> int:
    """Fill a teacher that has fewer than `enough` responses up to `size` from the others; -> how many were added."""
    own = dict(found)
    for name, mine in own.items():
        others = [x for other, theirs in own.items() if other != name for x in theirs]
        if len(mine) < enough:
            found[name] = mine + others[: size - len(mine)]
    return sum(map(len, found.values())) - sum(map(len, own.values()))


class TeacherCache:
    """The teachers' responses in the student's tokens; `draw` takes a question's, at random, seeded.

    `of` holds the questions that have some, by id; `questions` those of the loop. A question without teacher text stays
    in the loop, with the student's rows alone, but for methods without student rows, and but for a D that reads the
    question. Then some questions, `held`, measure D: it never learns from their texts.
    """

    def __init__(self, run: Run, encoder: Encoder, questions: list):
        cfg, self.names = run.cfg, run.cfg.teacher_names
        self.each = cfg.group_size // (len(self.names) if cfg.teacher_rows == "split" else 1)
        self.rows = self.each * len(self.names)  # teacher rows of a group
        self.of, filled = whole_responses(run, encoder, taught_questions(cfg, questions)), 0
        stays = cfg.student_rows != "none" and cfg.d_input == "response"
        if none := [q for q, found in self.of.items() if not any(found.values())]:
            what = "have the student's rows alone" if stays else "are left out"
            print(f"  {len(none)} questions {what}, no teacher has a whole response to them: {some(none)}")
        for found in self.of.values():
            for name, mine in found.items():
                found[name] = [x for x in mine if x[1] or cfg.teacher_use != "right"]
            size = self.each
            filled += fill_gaps(found, min(size, cfg.teacher_samples), size)
        if filled:
            print(f"  {filled} responses stand in for those of a teacher that has too few to a question")
        self.of = {q: found for q, found in self.of.items() if any(found.values())}
        if not self.of:
            what = "no teacher response is right" if cfg.teacher_use == "right" else "no whole teacher response"
            raise UserError(f"{run.path}/teachers.jsonl: {what}; a run with a larger --max-new-tokens may have some")

        self.questions = [q for q in questions if q.id in self.of or stays]
        self.held, self.pool = set(), {}
        if self.is_partial:
            print(f"  {len(self.of)} of {len(questions)} training questions have teacher text")
            held, visits = pretraining_questions(cfg, questions, self.of)
            self.held = {q.id for q in held} - {q.id for step in visits for q in step}
            read = [found for q, found in self.of.items() if q not in self.held]
            self.pool = {name: [x for found in read for x in found[name]] for name in self.names}

    @property
    def is_partial(self) -> bool:
        """Does the loop meet questions without teacher text?"""
        return len(self.of) < len(self.questions)

    def draw(self, question: str, *purpose, count: int = 0) -> tuple[list[Response], list[int]]:
        """Each teacher's share of a group (or `count` each), and the verdicts. Repeats where the cache holds fewer.

        To a question without teacher text: what D reads as teacher text beside it, drawn from all that it learns from.
        """
        has_text = question in self.of
        rng = np.random.default_rng(seed_of(*purpose, question, "teacher draw" if has_text else "unpaired"))
        chosen = []
        for found in (self.of[question] if has_text else self.pool).values():
            n = count or self.each
            chosen += [found[i] for i in rng.choice(len(found), n, replace=len(found) < n)]
        return [r for r, _ in chosen], [v for _, v in chosen]
