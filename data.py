"""Questions: what the student is asked, where it comes from, and in which order it comes.

A question is a text, the pictures it is about, and the answer that a judge compares with. It comes from

    your JSONL file   {"id": "q1", "image": "pictures/1.png", "question": "How many cups?", "answer": "3"}, one a line
    the tiny world    3 x 3 pictures of coloured shapes, drawn in tiny/world.py

Left out on purpose: video, audio, downloading. This file knows no torch: pictures are PIL images, the rest is plain
Python.
"""

import functools
import hashlib
import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from engine.command import UserError
from engine.files import read_jsonl

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
        """The pictures as RGB. Raises UserError with the question's id when one cannot be read."""
        return [open_picture(x, self.id) if isinstance(x, str | Path) else x for x in self.images]


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


def slices(count: int, size: int) -> list[slice]:
    """[0:size], [size:2 size], ... up to count."""
    return [slice(i, i + size) for i in range(0, count, size)]


# ------------------------------------------------------------------------------------------------ your own questions
def open_picture(path, who: str) -> "Image.Image":
    """Read one picture (a path, or its bytes in a BytesIO) completely, as RGB. Raises UserError naming `who` and it."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        said = str(error).replace(repr(path), "its bytes")  # without the address of a BytesIO
        reason = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read as a picture ({said})"
        name = "its picture" if isinstance(path, io.BytesIO) else f"{path}:"
        raise UserError(f"{who}: {name} {reason}; repair or remove it") from None


def load_questions(path: str | Path) -> list[Question]:
    """Questions of a JSONL file: id, question, answer, and "image" or "images", which may be absent.

    Paths of pictures are relative to the file.
    Everything is checked before anything runs: each picture is decoded once. Raises UserError that names file and line.
    """
    from tqdm import tqdm

    path, questions, seen = Path(path), [], {}
    pictures = []
    for where, row in read_jsonl(path, ("id", "question", "answer")):
        for name in ("id", "question", "answer"):
            if isinstance(row[name], int | float) and not isinstance(row[name], bool):
                row[name] = str(row[name])
            if not isinstance(row[name], str) or not row[name].strip():
                raise UserError(f"{where}: field {name!r} is empty or not text; give it a text")
        if row["id"] in seen:
            raise UserError(f"{where}: id {row['id']!r} stands already at {seen[row['id']]}; ids must differ")
        seen[row["id"]] = where
        names = row.get("images", row.get("image", []))
        names = [names] if isinstance(names, str) else names
        if not isinstance(names, list) or not all(isinstance(n, str) and n for n in names):
            raise UserError(f"{where}: 'image' must be a path, 'images' a list of paths")
        paths = tuple(str(path.parent / n) for n in names)
        pictures += [(p, where) for p in paths]
        kept = {"picture": names[0] if names else row["id"]}  # what the split goes by: the same wherever the file lies
        questions.append(Question(row["id"], paths, row["question"].strip(), row["answer"].strip(), kept))
    with ThreadPoolExecutor(8) as pool:
        for _ in tqdm(pool.map(lambda x: open_picture(*x), pictures), total=len(pictures), desc="pictures", delay=2):
            pass
    return questions


def split_questions(questions: list[Question]) -> dict[str, list[Question]]:
    """{"train", "valid", "test"}: 80 / 10 / 10 % of the pictures (of the questions where there is none), by a hash.

    Questions about one picture stay together, so the held-out questions are about held-out pictures. Raises UserError
    below three different pictures.
    """
    key = {q.id: q.meta["picture"] for q in questions}
    order = sorted(set(key.values()), key=lambda k: (seed_of("split", k), k))
    if len(order) < 3:
        raise UserError(f"{len(order)} different pictures are too few: one each is needed to train, validate and test")
    held = max(1, len(order) // 10)
    part = {k: "valid" if i < held else "test" if i < 2 * held else "train" for i, k in enumerate(order)}
    return {name: [q for q in questions if part[key[q.id]] == name] for name in ("train", "valid", "test")}
