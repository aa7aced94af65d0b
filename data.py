"""Questions: what the student is asked, where it comes from, and in which order it comes.

A question is a text, the pictures it is about, and the answer that a judge compares with. It comes from

    your JSONL file   {"id": "q1", "image": "pictures/1.png", "question": "How many cups?", "answer": "3"}, one a line
    the tiny world    3 x 3 pictures of coloured shapes, drawn in tiny/world.py

Left out on purpose: video, audio, downloading. This file knows no torch: pictures are PIL images, the rest is plain
Python.
"""

import functools
import hashlib
import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from engine.command import UserError
from engine.files import read_jsonl, text_field
from engine.pictures import hash_pictures, open_picture, picture_hash

if TYPE_CHECKING:  # scoring needs the standard library and numpy alone, so pictures and bars are imported where used
    from PIL import Image


@dataclass(frozen=True)
class Question:
    """One question. `images` holds PIL pictures or paths; `meta` holds what only the tiny world knows."""

    id: str
    images: tuple
    text: str
    answer: str
    meta: dict = field(default_factory=dict, hash=False, compare=False)

    def pictures(self) -> "list[Image.Image]":
        """The pictures as a person sees them, in RGB. Raises UserError with the question's id for an unreadable one."""
        return [open_picture(x, self.id) for x in self.images]


def blanked(question: Question) -> Question:
    """The question with grey pictures of the same sizes: what is still answered was not seen."""
    from PIL import Image

    grey = tuple(Image.new("RGB", picture.size, (128, 128, 128)) for picture in question.pictures())
    return replace(question, images=grey)


# ------------------------------------------------------------------------------------------------ seeds and order
def seed_of(*parts) -> int:
    """A 64-bit seed from anything printable, e.g. seed_of(seed, step, question.id, "rollout").

    Every random draw of a run takes its seed from what it is for, never from the rank or from a generator's history. So
    the draw does not change with the number of GPUs, and a resumed run needs no saved generator state.
    """
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


@functools.lru_cache(maxsize=4)
def epoch_order(count: int, epoch: int, seed: int) -> np.ndarray:
    """The places of `count` questions in the order of one epoch."""
    return np.random.default_rng(seed_of(seed, "order", epoch)).permutation(count)


def questions_at(questions: list[Question], step: int, count: int, seed: int) -> list[tuple[Question, int]]:
    """The `count` questions of one step, each with its epoch: shuffled anew each epoch and read on without a gap.

    Example: 5 questions, count 2: steps 0, 1 and half of 2 read epoch 0, then epoch 1 begins. A question and its epoch
    name one visit: draws are seeded by it, so a question that meets itself in one step is answered anew. Needs nothing
    but the step to be resumed.
    """
    out = []
    for k in range(step * count, (step + 1) * count):
        epoch, place = divmod(k, len(questions))
        out.append((questions[epoch_order(len(questions), epoch, seed)[place]], epoch))
    return out


def shared_prefix(rows: list[list[int]]) -> int:
    """How many leading tokens all rows share, at most all but the last token of the shortest: [1 2 3], [1 2] -> 1."""
    limit = min(map(len, rows)) - 1
    return next((i for i in range(limit) if any(r[i] != rows[0][i] for r in rows)), limit)


def slices(count: int, size: int) -> list[slice]:
    """[0:size], [size:2 size], ... up to count."""
    return [slice(i, i + size) for i in range(0, count, size)]


# ------------------------------------------------------------------------------------------------ your own questions
SIGN = "<image>"  # other formats mark the place of a picture so


def check_question(row: dict) -> None:
    """Trim a line's texts, make `images` a list; `sign`: whether SIGN was taken out. Raises ValueError."""
    row["sign"] = isinstance(row["question"], str) and SIGN in row["question"]
    if row["sign"]:
        row["question"] = row["question"].replace(SIGN, "")
    row |= {name: text_field(row, name) for name in ("id", "question", "answer")}
    if "image" in row and "images" in row:
        raise ValueError("both 'image' and 'images' are given; give one of the two")
    names = row.get("images", row.get("image", []))
    row["images"] = [names] if isinstance(names, str) else names
    if not isinstance(row["images"], list) or not all(isinstance(n, str) and n for n in row["images"]):
        raise ValueError("'image' must be a path, 'images' a list of paths; leave both out where there is no picture")


def load_questions(path: str | Path, hashes: Callable = hash_pictures) -> list[Question]:
    """Questions of a JSONL file: id, question, answer, and "image" or "images", which may be absent.

    Paths of pictures are relative to the file.
    Everything is checked before anything runs: a picture that this machine does not know yet is decoded. Raises
    UserError that names file and line. `hashes` may share the decoding among ranks.
    """
    path, questions, seen, signs = Path(path), [], {}, 0
    pictures: dict[str, str] = {}  # each path, and the line where it stands first
    for where, row in read_jsonl(path, ("id", "question", "answer"), check=check_question):
        if row["id"] in seen:
            raise UserError(f"{where}: id {row['id']!r} stands already at {seen[row['id']]}; ids must differ")
        seen[row["id"]] = where
        paths = tuple(str(path.parent / n) for n in row["images"])
        for p in paths:
            pictures.setdefault(p, where)
        questions.append(Question(row["id"], paths, row["question"], row["answer"]))
        signs += row["sign"]
    if signs:
        print(f"  WARNING: {path}: {SIGN} is taken out of {signs} questions: pictures stand before the text here")
    of = dict(zip(pictures, hashes(list(pictures.items())), strict=True))
    for q in questions:
        q.meta["pictures"] = tuple(of[p] for p in q.images)
    return questions


def contents(question: Question) -> tuple[str, ...]:
    """What a question is about: the hash of each of its pictures, made where it is unknown; without one, its id."""
    if "pictures" not in question.meta:
        question.meta["pictures"] = tuple(map(picture_hash, question.pictures()))
    return question.meta["pictures"] or (question.id,)


def joined(questions: list[Question]) -> list[list[Question]]:
    """The questions in groups: two that share a picture are in one group, and so are those that a third one joins."""
    parent: dict[str, str] = {}

    def root(x: str) -> str:
        while parent.setdefault(x, x) != x:
            parent[x] = x = parent[parent[x]]  # halve the way for the next one
        return x

    for q in questions:
        first, *others = contents(q)
        for x in others:
            parent[root(x)] = root(first)
    groups = defaultdict(list)
    for q in questions:
        groups[root(contents(q)[0])].append(q)
    return list(groups.values())


def split_questions(questions: list[Question]) -> dict[str, list[Question]]:
    """{"train", "valid", "test"}: 80 / 10 / 10 % of the pictures (of the questions where there is none), by their hash.

    It goes by what is seen, not by names, and questions that share a picture stay together: held-out questions are
    about held-out pictures. In the order of the hashes, valid and test take groups of such questions, each up to a
    tenth of the pictures. A group that would make it more, or more than a fifth of the questions, stays in train, so
    that a picture of most questions starves nobody. Where no group is that small, each takes the smallest left.
    Raises UserError below three groups.
    """
    groups = joined(questions)
    shown = [{x for q in group for x in contents(q)} for group in groups]
    if len(groups) < 3:
        raise UserError(
            f"{len(groups)} different pictures are too few: one each is needed to train, validate and test, and "
            "questions that share a picture count as one"
        )
    size = [np.array([len(x), len(group)]) for x, group in zip(shown, groups, strict=True)]  # pictures, questions
    pictures = sum(map(len, shown))
    room = {name: np.array([max(1, pictures // 10), len(questions) / 5]) for name in ("valid", "test")}
    order = sorted(range(len(groups)), key=lambda i: min((seed_of("split", x), x) for x in shown[i]))
    part: dict[int, str] = {}  # of each held-out group
    for i in order:
        name = max(room, key=lambda name: room[name][0])  # valid and test in turn
        if (size[i] <= room[name]).all():
            part[i], room[name] = name, room[name] - size[i]
    for name in sorted(room.keys() - set(part.values())):
        part[min((i for i in order if i not in part), key=lambda i: len(groups[i]))] = name
    if (sharing := [len(group) for group in groups if len(group) > 1]) and os.environ.get("RANK", "0") == "0":
        print(
            f"  {sum(sharing)} of {len(questions)} questions share a picture with another one, in {len(sharing)} "
            f"groups of up to {max(sharing)}; a group stays in one part"
        )
    of = {q.id: part.get(i, "train") for i, group in enumerate(groups) for q in group}
    return {name: [q for q in questions if of[q.id] == name] for name in ("train", "valid", "test")}
