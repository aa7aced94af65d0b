"""Teachers: who answers, how their responses are cached and drawn, and which questions are worth asking.

A teacher is a tiny one with committed responses, a folder or a published name (asked here, by our own rollout), a
served model (NAME=http://host:port/v1), or a file of responses. Only text crosses to the student.
"""

import collections
import contextlib
import gc
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from config import SAMPLES, TEMPERATURE, pretraining_samples, teacher_names
from data import UserError, questions_at, read_jsonl, seed_of, slices
from engine.families import FULL
from engine.folders import family_of
from engine.loading import find_folder
from engine.players import compute_dtype, judge_of, load_sharded
from engine.run import HOME, Run, kept_rows, split
from engine.served import Server, ask_teacher_server
from engine.sharding import all_gather, barrier, deal, dealt, gather_dealt, rank_and_world, together
from judge import Judge
from model import VLM, Encoder
from rollout import Response, Sampling, rollout

FOLDER = HOME / "results" / "teachers"  # committed: each tiny teacher's weights and its cached responses


def pretraining_questions(cfg, questions: list, usable: Iterable | None = None) -> tuple[list, list[list]]:
    """(held-out questions, those of each step) of D's pre-training; both empty where there is none.

    The order is that of ALL training questions, so it is known before a teacher is asked. `usable`: the ids of those
    with a response (None: all); the others are passed over, which moves nobody else.
    """
    if cfg.discriminator == "none" or not (cfg.d_pretrain and cfg.d_steps):
        return [], []
    usable = {q.id for q in questions} if usable is None else set(usable)
    here = [q for q in questions if q.id in usable]
    held = here[: max(1, min(32, len(here) // 8))]
    train = questions[max(1, min(32, len(questions) // 8)) :]
    visited = usable - {q.id for q in held}
    if not any(q.id in visited for q in train):  # too few to hold one out
        train, visited = here, usable
    epochs = (questions_at(train, i, len(train), seed_of(cfg.seed, "d")) for i in itertools.count())
    stream = (q for epoch in epochs for q, _ in epoch if q.id in visited)
    return held, [list(itertools.islice(stream, cfg.questions_per_step)) for _ in range(cfg.d_steps)]


def samples_of(cfg, questions: list) -> dict[str, int]:
    """Responses that each teacher is asked for, by question: D's pre-training wants more where it comes by."""
    held, steps = pretraining_questions(cfg, questions)
    more = dict.fromkeys((q.id for part in (held, *steps) for q in part), pretraining_samples(cfg))
    return {q.id: max(cfg.teacher_samples, more.get(q.id, 0)) for q in questions}


def by_samples(questions: list, samples: dict) -> list[tuple[int, list]]:
    """[(count, the questions that are asked so often)], most first."""
    counts = sorted({samples[q.id] for q in questions}, reverse=True)
    return [(n, [q for q in questions if samples[q.id] == n]) for n in counts]


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


def teacher_model(name: str, run: Run) -> VLM:
    """A teacher, sharded over all ranks; where a GPU can hold all of it, its weights stay gathered once they were."""
    vlm = load_sharded(run, teacher_folder(name), dtype=compute_dtype(run.cfg)).requires_grad_(False)
    if run.device != "cpu":
        whole = sum(p.numel() * p.element_size() for p in vlm.parameters())
        if whole * (1 + 1 / run.mesh.size(-1)) < 0.6 * torch.cuda.get_device_properties(run.device).total_memory:
            vlm.set_reshard_after_forward(False)  # the shard stays beside what was gathered
    return vlm


def own_answers(name: str, questions: list, samples: dict, run: Run) -> Iterator[tuple]:
    """(question id, index, text, finished) of samples[id] answers to each question from a teacher asked here, by our
    own rollout. Every rank has a share of the questions and gets all answers.
    """
    cfg, vlm = run.cfg, teacher_model(name, run)
    how, more = Sampling(temperature=cfg.teacher_temperature), dict(purpose=(cfg.seed, "teacher", name))
    more |= dict(source=name, max_rows=cfg.rollout_rows)
    passes = []  # what one pass answers is on disk before the next one begins
    for n, some in by_samples(questions, samples):
        side_by_side = min(64, max(1, cfg.rollout_rows // n))
        passes += [(n, some[part]) for part in slices(len(some), side_by_side * rank_and_world()[1])]
    for n, some in passes:
        asked, own = dealt(some)
        prompts, names = [vlm.encoder.encode_question(q) for q in asked], [q.id for q in asked]
        groups = rollout(vlm, prompts, names, n, cfg.max_new_tokens, how, **more)
        if hasattr(vlm, "reset_iter_state"):  # FSDP notes every forward until a backward pass comes, and none will
            vlm.reset_iter_state()  # torch 2.11 has no such method: there about 50 bytes a layer and token stay
        for r in (r for group in gather_dealt(groups[:own]) for r in group):
            yield r.question, r.index, r.text, r.finished
    del vlm
    gc.collect()  # a sharded model lies in a circle of references, and another teacher may follow


def served_answers(url: str, questions: list, samples: dict, run: Run, done: set) -> Iterator[tuple]:
    """The same from a server, which is asked for what is not in `done`."""
    how = (run.cfg.teacher_temperature, run.cfg.max_new_tokens, run.cfg.seed, done)
    for n, some in by_samples(questions, samples):
        yield from ask_teacher_server(Server(url), some, n, *how)


def ask_teacher(name: str, url: str, questions: list, run: Run, samples: dict | None = None) -> list[Response]:
    """samples[id] responses to every question (None: `teacher_samples`), from a server (`url`) or a teacher asked here.

    Each is written down as it arrives, so that a killed run asks for the rest only.
    """
    samples = samples or {q.id: run.cfg.teacher_samples for q in questions}
    part = run.path / f"teachers-{name.replace('/', '-')}.part.jsonl"
    done = {(r["question"], r["index"]) for r in kept_rows(run, part)}
    todo = [q for q in questions if any((q.id, i) not in done for i in range(samples[q.id]))]
    count = sum(samples[q.id] for q in questions)
    bar = tqdm(desc=f"teacher {name}", total=count, initial=len(done), delay=2, disable=not run.first)

    def write(arriving: Iterator[tuple]) -> None:
        with part.open("a") if run.first else contextlib.nullcontext() as file:
            for question, index, text, finished in arriving:
                if run.first and (question, index) not in done:
                    row = dict(question=question, index=index, text=text, finished=finished)
                    file.write(json.dumps(row) + "\n")
                    file.flush()
                    bar.update()

    if url:  # rank 0 asks the server, the others wait
        together(lambda: write(served_answers(url, todo, samples, run, done) if run.first else ()))
    elif todo:
        write(own_answers(name, todo, samples, run))
    bar.close()
    place = {q.id: i for i, q in enumerate(questions)}
    rows = [r for r in kept_rows(run, part) if r["question"] in place]
    rows.sort(key=lambda r: (place[r["question"]], r["index"]))
    return [Response(r["question"], r["index"], name, [], r["text"], r["finished"]) for r in rows]


def responses_in(file: Path, name: str, samples: dict) -> list[Response]:
    """The first samples[id] responses of a teacher to each question, from a cache file that may have fewer."""
    count, mine = collections.Counter(), []
    for _, row in read_jsonl(file, ("question", "teacher", "text")):
        if row["teacher"] == name and count[row["question"]] < samples.get(row["question"], 0):
            index, finished = count[row["question"]], row.get("finished", True)
            mine.append(Response(row["question"], index, name, [], row["text"], finished))
            count[row["question"]] += 1
    return mine


def as_lines(responses: list[Response], verdicts: list | None = None) -> str:
    """Teacher responses as JSON lines."""
    rows = [dict(question=r.question, teacher=r.source, text=r.text, finished=r.finished) for r in responses]
    for row, verdict in zip(rows, verdicts or [], strict=False):
        row["verdict"] = verdict
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def teachers(run: Run) -> None:
    """Responses of every teacher to every training question, judged once: from a file or the committed cache where
    they are there, else asked now.
    """
    cfg, got = run.cfg, []
    questions = split(cfg)["train"]
    samples = samples_of(cfg, questions)
    for entry in cfg.teachers.split(","):
        name, _, url = entry.partition("=")
        cache = Path(cfg.teachers_file) if cfg.teachers_file else FOLDER / name / "responses.jsonl"
        alike = cfg.teacher_temperature == TEMPERATURE and cfg.teacher_samples <= SAMPLES
        if name == "reference":
            got += [Response(q.id, 0, name, [], q.answer) for q in questions]
        elif cfg.teachers_file:
            mine = responses_in(cache, name, samples)
            if not mine:
                raise UserError(f"{cache}: no response of {name!r} to any training question; correct --teachers or it")
            got += mine
        else:
            committed = cache.exists() and alike and not cfg.data and not url
            mine = responses_in(cache, name, samples) if committed else []
            missing = [q for q in questions if q.id not in {r.question for r in mine}]
            got += mine + (ask_teacher(name, url, missing, run, samples) if missing else [])
    run.write("teachers.jsonl", as_lines(got, judged(judge_of(run, weak=True), questions, got)))
    barrier()
    right = np.mean(judged(judge_of(run), questions, got) or [0.0])
    print(f"  {len(got)} responses of {', '.join(teacher_names(cfg))} to {len(questions)} questions, {right:.1%} right")


def judged(judge: Judge, questions: list, responses: list[Response]) -> list[int]:
    """A verdict per response; every rank judges the responses to its share of the questions, all get all."""
    asked = deal(questions)
    wanted = {q.id for q in asked}
    mine = [i for i, r in enumerate(responses) if r.question in wanted]
    found = zip(mine, judge.verdicts(asked, [responses[i] for i in mine]), strict=True)
    return [verdict for _, verdict in sorted(pair for part in all_gather(list(found)) for pair in part)]


class TeacherCache:
    """The teachers' responses in the student's tokens; `draw` takes a question's, at random, seeded."""

    def __init__(self, run: Run, encoder: Encoder, questions: list):
        cfg = self.cfg = run.cfg
        self.names = teacher_names(cfg)
        self.each = cfg.group_size // (len(self.names) if cfg.teacher_rows == "split" else 1)
        self.rows = self.each * len(self.names)  # teacher rows of a group
        self.of: dict[str, dict[str, list]] = {q.id: {name: [] for name in self.names} for q in questions}
        cut = 0
        for where, row in read_jsonl(run.path / "teachers.jsonl", ("question", "teacher", "text", "verdict")):
            if row["teacher"] not in self.names:
                raise UserError(f"{where}: teacher {row['teacher']!r} is not among --teachers {cfg.teachers}")
            text = encoder.clean(row["text"])
            ids = encoder.reply_ids(text)
            if not (row.get("finished", True) and text and len(ids) <= cfg.max_new_tokens):
                cut += 1
            elif row["question"] in self.of:
                found = self.of[row["question"]][row["teacher"]]
                response = Response(row["question"], len(found), row["teacher"], ids, text)
                found.append((response, row["verdict"]))
        if cut:
            print(f"  {cut} teacher responses are left out: cut off, empty, or over {cfg.max_new_tokens} tokens")
        none = [q for q, found in self.of.items() if not any(found.values())]
        if none:
            some = ", ".join(map(repr, none[:5])) + ", ..." * (len(none) > 5)
            print(f"  {len(none)} questions are left out, no teacher has a whole response to them: {some}")
        if len(none) == len(questions):
            raise UserError(
                f"no whole teacher response to any question, see {run.path}/teachers.jsonl; another run with a larger "
                "--max-new-tokens may have some"
            )
        for found in self.of.values():
            for name, mine in found.items():
                found[name] = [x for x in mine if x[1] or not cfg.right_only][: cfg.cached or None]
        filled = 0
        for found in self.of.values():
            whole, need = {name: list(mine) for name, mine in found.items()}, min(self.each, cfg.cached or self.each)
            for name, mine in whole.items():  # where one teacher has too few, the others fill in
                others = [x for other, theirs in whole.items() if other != name for x in theirs]
                if len(mine) < min(need, cfg.teacher_samples) and others:
                    found[name] = mine + others[: need - len(mine)]
                    filled += len(found[name]) - len(mine)
        if filled:
            print(f"  {filled} responses stand in for those of a teacher that has too few to a question")
        self.questions = [q for q in questions if any(self.of[q.id].values())]
        if not self.questions:
            raise UserError("--right-only leaves no question: no cached response is right")

    def too_few(self, questions: Iterable[str], count: int) -> int:
        """To how many of these questions has some teacher fewer than `count` cached responses?"""
        return sum(min(map(len, self.of[q].values())) < count for q in questions)

    def draw(self, question: str, *purpose, count: int = 0) -> tuple[list[Response], list[int]]:
        """Each teacher's share of a group (or `count` each) and the verdicts; repeats only where the cache holds
        fewer.
        """
        rng = np.random.default_rng(seed_of(*purpose, question, "teacher draw"))
        chosen = []
        for found in self.of[question].values():
            n = count or self.each
            chosen += [found[i] for i in rng.choice(len(found), n, replace=len(found) < n)]
        return [r for r, _ in chosen], [v for _, v in chosen]
