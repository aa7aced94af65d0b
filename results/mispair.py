"""A teachers file in which a share of the texts belongs to another question: teacher text of poor quality.

python -m results.mispair tiny-qwen-teacher 50 0 runs/noisy-50-0.jsonl     # teacher, percent, seed, file
"""

import sys
from collections import Counter
from pathlib import Path

import numpy as np

from data import seed_of
from engine.command import run_command
from engine.files import as_jsonl, read_jsonl, write
from teachers import FOLDER


def mispaired(rows: list[dict], percent: int, seed: int) -> list[dict]:
    """The rows; `percent` of them, drawn by seed, have the text of a row of another question that was drawn too."""
    drawn = np.random.default_rng(seed_of("mispair", seed)).permutation(len(rows))[: len(rows) * percent // 100]
    drawn = sorted(
        drawn, key=lambda i: (seed_of("mispair", seed, rows[i]["question"]), i)
    )  # a question's stand together
    most = max(Counter(rows[i]["question"] for i in drawn).values(), default=0)
    out = [dict(row) for row in rows]
    for i, j in zip(drawn, np.roll(drawn, most), strict=True):  # moved on by so many, no text stays at its question
        out[i] |= dict(text=rows[j]["text"], finished=rows[j].get("finished", True))
    return out


def main() -> None:
    """The command line."""
    teacher, percent, seed, file = sys.argv[1:]
    rows = [row for _, row in read_jsonl(FOLDER / teacher / "responses.jsonl")]
    write(Path(file), as_jsonl(mispaired(rows, int(percent), int(seed)), ascii_only=False))


if __name__ == "__main__":
    run_command(main)
