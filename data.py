"""Questions: what the student is asked, where it comes from, and in which order it comes.

A question is a text, the pictures it is about, and the answer that a judge compares with. It comes from

    your JSONL file   {"id": "q1", "image": "pictures/1.png", "question": "How many cups?", "answer": "3"}, one a line
    the tiny world    3 x 3 pictures of coloured shapes, drawn in tiny/world.py

Left out on purpose: video, audio, downloading. This file knows no torch: pictures are PIL images, the rest is plain
Python.
"""

import argparse
import functools
import hashlib
import io
import json
import os
import re
import sys
import traceback
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # scoring needs the standard library and numpy alone, so pictures and bars are imported where used
    from PIL import Image


class UserError(Exception):
    """A user's mistake. The message is one line that names the thing and the fix; the exit code is 2."""


def one_line(error: Exception, line: int = 0) -> str:
    """One line of what an error of a library says, in at most 120 characters."""
    return (str(error).strip() or repr(error)).splitlines()[line][:120]


class Flags(argparse.ArgumentParser):
    """A command line whose mistakes are one line: no abbreviations, no usage block."""

    def __init__(self, text: str):
        super().__init__(description=text, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)

    def error(self, message: str):
        """Called by argparse on a wrong flag."""
        raise UserError(f"{message}; see --help")


def run_command(main) -> None:
    """Run a command line's main(); a UserError becomes one line on standard error and exit code 2.

    One of several processes that fails leaves at once: saying goodbye to the others (NCCL does) would wait for them,
    and they wait for this one. torchrun ends them when it is gone.
    """
    try:
        main()
        return
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        code = 130
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except Exception as error:
        full = re.search(r"No space left on device|Disk quota exceeded|File too large", str(error))
        if full:
            print(
                f"error: {full[0]}: make room and give the same command again; what was whole is kept", file=sys.stderr
            )
        elif int(os.environ.get("WORLD_SIZE", 1)) < 2:
            raise
        else:
            traceback.print_exc()
        code = 2 if full else 1
    if int(os.environ.get("WORLD_SIZE", 1)) < 2:
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


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


# ------------------------------------------------------------------------------------------------ files
def write(path: Path, content: str | bytes) -> None:
    """Write a file under a temporary name, then rename it: it is either absent or whole."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_bytes(content.encode() if isinstance(content, str) else content)
    part.replace(path)


def as_jsonl(rows: Iterable[dict], ascii_only: bool = True) -> str:
    """Rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows)


def read_jsonl(path: str | Path, required: Iterable[str] = (), torn: list | None = None) -> list[tuple[str, dict]]:
    """[(place, object)] of a JSON-lines file; a place is "file:line".

    A user's file: raises UserError for a bad line, a missing field, an empty file. A log of ours, which a kill may have
    torn, is read with a list as `torn`: bad lines, and a last one without its newline, are left out and their places
    added to the list; a log that does not exist has no lines.
    """
    path, rows = Path(path), []
    if not path.is_file():
        if torn is not None:
            return []
        raise UserError(
            f"{path}: no such file; give a file of JSON lines (README, 'Bring your own data, teacher and judge')"
        )
    with path.open(encoding="utf-8", errors="replace") as lines:
        for place, line in ((f"{path}:{number}", line) for number, line in enumerate(lines, 1) if line.strip()):
            row, wrong = {}, ""
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                wrong = f"not JSON ({error.msg} at column {error.colno}); one object a line"
            if not isinstance(row, dict):
                wrong = "not a JSON object; one object a line"
            elif not wrong and (missing := [name for name in required if name not in row]):
                wrong = f"field {missing[0]!r} is missing; needed are {', '.join(required)}"
            if torn is None and wrong:
                raise UserError(f"{place}: {wrong}")
            if torn is not None and (wrong or not line.endswith("\n")):
                torn.append(place)
            else:
                rows.append((place, row))
    if not rows and torn is None:
        raise UserError(f"{path}: the file is empty; one JSON object a line is needed")
    return rows


# ------------------------------------------------------------------------------------------------ your own questions
def open_picture(path, who: str) -> "Image.Image":
    """Read one picture (a path, or its bytes in a BytesIO) completely, as RGB. Raises UserError naming `who` and it."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read as a picture ({error})"
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
