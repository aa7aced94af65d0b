"""The README's figures, drawn from the code: python -m docs.figures (matplotlib is in requirements-dev.txt).

    players  who sees what and who gives what          packed  a packed row and its mask, by model.pack and the engine
    board    a question, a terse answer, a look         curves  a healthy run, a D that wins, a D that gives up

`curves` needs numbers of three runs, which docs/figures/curves.json holds with their commands, seed and commit. Those
commands make runs/figure-NAME again, and `python -m docs.figures --runs` takes the numbers from there.
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import ListedColormap
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from engine.attention import Branches
from engine.files import write
from engine.loading import load
from engine.report import loop_rows
from model import Batch, pack
from results.collect import METHOD_COLORS, smoothed
from tiny.world import world_questions

HERE = Path(__file__).parent / "figures"
PAPER, INK = "#fbfbf8", "#222222"  # an opaque light ground, so that a dark page shows the same picture
STUDENT, TEACHER, D, JUDGE = METHOD_COLORS["ril"], METHOD_COLORS["teacher"], "#aa4499", "#8c564b"
RUNS = {  # name: (title, what it shows)
    "healthy": ("healthy", "Similarity climbs while D's accuracy\nfalls towards 0.5."),
    "slow": (
        "D wins: slow student, --lr 5e-6",
        "The student learns 20 times slower: D\nstays right, hardly any text is rewarded.",
    ),
    "gives-up": (
        "D gives up: --d-steps 0 --d-lr 1e-6",
        "D never learned: its accuracy falls below\n0.5, its verdict is the wrong way round.",
    ),
}
LINES = {  # metric: (its name in the picture, colour, line)
    "similarity": ("similarity reward", "#882255", "-"),
    "d_accuracy": ("D's accuracy", "#222222", "--"),
    "answer": ("answer reward", "#44aa99", "-"),
}


def sheet(width: float, height: float, columns: int = 1, **how) -> tuple:
    """A figure on light ground, and its axes."""
    figure, axes = plt.subplots(1, columns, figsize=(width, height), facecolor=PAPER, **how)
    for axis in np.atleast_1d(axes):
        axis.set_facecolor(PAPER)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def finish(figure, path: Path) -> None:
    """Write the picture, two pixels for one of the README's 900."""
    figure.savefig(path, dpi=200, facecolor=PAPER)
    plt.close(figure)


# ------------------------------------------------------------------------------------------------ players
def box(axis, x: float, y: float, text: str, color: str, width: float = 1.9, height: float = 0.8) -> None:
    """A player or a thing, with its middle at (x, y); things have white boxes."""
    corner = (x - width / 2, y - height / 2)
    look = dict(boxstyle="round,pad=0,rounding_size=0.12", facecolor=color, edgecolor=INK, lw=1)
    axis.add_patch(FancyBboxPatch(corner, width, height, **look))
    axis.text(x, y, text, ha="center", va="center", color=INK if color == "white" else "white", fontsize=10)


def arrow(axis, *points: tuple, color: str = INK, bend: float = 0) -> None:
    """An arrow along these points; `bend` curves its last part."""
    axis.plot(*zip(*points[:-1], strict=True), color=color, lw=1.5, solid_capstyle="projecting")
    look = dict(arrowstyle="-|>", mutation_scale=13, lw=1.5, color=color, connectionstyle=f"arc3,rad={bend}")
    axis.add_patch(FancyArrowPatch(*points[-2:], shrinkA=0, shrinkB=0, **look))


def players(path: Path) -> None:
    """Who sees what, and who gives what, in one step."""
    figure, axis = sheet(9, 4.4)
    figure.subplots_adjust(0, 0, 1, 1)
    axis.set(xlim=(0, 12), ylim=(0, 5.87))
    axis.axis("off")
    box(axis, 1.0, 2.9, "picture,\nquestion", "white", 1.5)
    box(axis, 3.3, 4.0, "student", STUDENT, 1.5)
    box(axis, 3.3, 1.8, "teachers", TEACHER, 1.5)
    box(axis, 5.9, 4.0, "G student\nresponses", "white", 1.7)
    box(axis, 5.9, 1.8, "G teacher\nresponses", "white", 1.7)
    box(axis, 8.5, 4.0, "D reads the\ntext alone", D, 1.7)
    box(axis, 8.5, 1.8, "judge", JUDGE, 1.7)
    box(axis, 10.95, 2.9, "R =\nr_sim + r_ans\n\nadvantage =\nR - mean of\nall 2G rows", "white", 1.75, 1.9)
    arrow(axis, (1.75, 3.15), (2.55, 3.85))
    arrow(axis, (1.75, 2.65), (2.55, 1.95))
    arrow(axis, (4.05, 4.0), (5.05, 4.0))
    arrow(axis, (4.05, 1.8), (5.05, 1.8))
    for begin in (4.0, 1.8):
        for end in (4.0, 1.8):
            arrow(axis, (6.75, begin), (7.65, end + (begin - end) * 0.12))
    arrow(axis, (1.0, 2.5), (1.0, 0.75), (8.5, 0.75), (8.5, 1.4))
    arrow(axis, (9.35, 3.9), (10.07, 3.45), color=D)
    arrow(axis, (9.35, 1.9), (10.07, 2.35), color=JUDGE)
    arrow(axis, (8.0, 3.6), (9.0, 3.6), color=D, bend=0.7)
    arrow(axis, (10.95, 3.85), (10.95, 5.1), (3.3, 5.1), (3.3, 4.4), color=STUDENT)
    for x, y, text, color in (
        (4.55, 4.2, "samples", INK),
        (4.55, 2.1, "once,\ncached", INK),
        (9.8, 3.95, "r_sim", D),
        (9.8, 1.85, "r_ans", JUDGE),
        (8.5, 2.92, "D's own update (Eq. 1):\nstudent 1, teacher 0", D),
        (7.1, 5.3, "the student's update (Eq. 2), on all 2G responses", STUDENT),
        (4.75, 0.53, "question and answer key", INK),
    ):
        axis.text(x, y, text, ha="center", va="center", fontsize=9, color=color)
    finish(figure, path)


# ------------------------------------------------------------------------------------------------ packed row
def small_row() -> tuple[Batch, list[str], list[str]]:
    """(a packed row of one question with 2 + 2 responses, what each of its tokens belongs to, the responses)."""
    vlm, question = load("tiny-qwen", 1), world_questions("test", 3)[2]
    prompt, says = vlm.encoder.encode_question(question), question.meta["replies"]
    texts = [says["terse"], "blue", says["a"], says["b"]]
    rows = [vlm.encoder.reply_ids(text) for text in texts]
    is_picture = prompt.ids == vlm.encoder.config.image_token_id
    behind = is_picture.cumsum(0) > 0
    names = ["picture" if x else "question" if y else "chat" for x, y in zip(is_picture, behind, strict=True)]
    names += [f"r{i + 1}" for i, row in enumerate(rows) for _ in row]
    return pack([prompt], [rows]), names, texts


def seen(batch: Batch) -> np.ndarray:
    """Who sees whom in a packed row (T, T), asked of the engine's attention itself: equal scores, and values that are
    unit vectors, so that the output of a token is above 0 where it sees.
    """
    T = batch.ids.shape[1]
    zeros, unit = torch.zeros(1, 1, T, T), torch.eye(T)[None, None]
    return (Branches(batch).attend(zeros, zeros, unit, 1.0)[0, :, 0] > 0).numpy()


def packed(path: Path) -> np.ndarray:
    """The mask of a packed row, coloured by what is seen; -> the array that is drawn, 0 where nothing is."""
    batch, names, texts = small_row()
    n, parts = len(names), list(dict.fromkeys(names))
    drawn = np.where(seen(batch)[:n, :n], [1 + parts.index(name) for name in names], 0)
    colors = ["#8f8f8f", "#d9d9d9", "#b4b4b4", STUDENT, "#56b4e9", TEACHER, "#66cdaa"]
    figure, axis = sheet(9, 5.2)
    figure.subplots_adjust(0.08, 0.05, 0.63, 0.9)
    axis.imshow(drawn, cmap=ListedColormap(["white", *colors]), vmin=0, vmax=len(colors), aspect="equal")
    places = {part: [i for i, name in enumerate(names) if name == part] for part in parts}
    for part, at in places.items():
        middle = (at[0] + at[-1]) / 2
        axis.text(middle, -1.5, part, ha="center", va="bottom", fontsize=9)
        axis.text(-1.5, middle, part, ha="right", va="center", fontsize=9)
        for edge in (axis.axhline, axis.axvline):
            edge(at[0] - 0.5, color=INK, lw=0.6)
    axis.set(xticks=[], yticks=[])
    says = """A line of the matrix: a token.
Coloured: the tokens that it sees.

Picture and question stand once.
A response sees them and itself,
not its neighbours.

Positions go on where the question
ends, so each response gets the
numbers that it would get alone.

Student (r1, r2) and teachers (r3, r4):"""
    figure.text(0.65, 0.86, says, va="top", fontsize=9, color=INK, linespacing=1.5)
    for i, text in enumerate(texts):
        y, how = 0.395 - 0.05 * i - 0.045 * (i > 2), dict(va="top", fontsize=9, linespacing=1.4)
        figure.text(0.65, y, f"r{i + 1}", color=STUDENT if i < 2 else TEACHER, **how)
        figure.text(0.68, y, text.replace(". ", ".\n"), color=INK, **how)
    finish(figure, path)
    return drawn


# ------------------------------------------------------------------------------------------------ a board
def board(path: Path) -> None:
    """The first two-step test question with the two ways to answer it."""
    question = next(q for q in world_questions("test", 50) if q.meta["kind"].startswith("hop"))
    says = question.meta["replies"]
    figure, (left, right) = sheet(9, 2.9, 2, width_ratios=[1, 2.4])
    figure.subplots_adjust(0.02, 0.04, 0.99, 0.96, wspace=0.05)
    left.imshow(question.images[0], interpolation="nearest")
    for axis in (left, right):
        axis.axis("off")
    look, answer = says["a"].split(". ")
    lines = [
        (0.93, "question", question.text, INK),
        (0.66, "terse answer: the warm start's habit", says["terse"], STUDENT),
    ]
    lines += [(0.39, "look answer: the teacher's way", look + ".", TEACHER), (0.14, "", answer, TEACHER)]
    for y, title, text, color in lines:
        right.text(0, y, title, fontsize=9, color="0.35", va="center")
        right.text(0, y - (0.11 if title else 0), text, fontsize=11, color=color, va="center", family="monospace")
    right.set(xlim=(0, 1), ylim=(0, 1))
    finish(figure, path)


# ------------------------------------------------------------------------------------------------ curves
def numbers_of_runs() -> dict:
    """What curves.json holds, from runs/figure-NAME."""
    out = {}
    for name in RUNS:
        run = Path("runs") / f"figure-{name}"
        made, rows = json.loads((run / "config.json").read_text(encoding="utf-8")), loop_rows(run)
        out[name] = dict(command=made["command"], seed=made["settings"]["seed"], commit=made["commit"])
        out[name] |= {metric: [round(row[metric], 4) for row in rows] for metric in LINES}
    return out


def curves(path: Path) -> None:
    """Three runs: similarity and answer reward of the student and D's accuracy over the steps."""
    figure, axes = sheet(9, 3.9, 3, sharey=True)
    figure.subplots_adjust(0.05, 0.36, 0.99, 0.92, wspace=0.1)
    for axis, (name, run) in zip(
        axes, json.loads((HERE / "curves.json").read_text(encoding="utf-8")).items(), strict=True
    ):
        for metric, (label, color, line) in LINES.items():
            axis.plot(range(1, len(run[metric]) + 1), smoothed(run[metric]), line, color=color, lw=1.8, label=label)
        title, says = RUNS[name]
        axis.set(xlabel="step", ylim=(0, 1.03))
        axis.set_title(title, fontsize=10)
        axis.axhline(0.5, color="0.75", lw=0.8, zorder=0)
        axis.text(0.5, -0.25, says, transform=axis.transAxes, ha="center", va="top", fontsize=9)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncols=3, frameon=False, fontsize=9)
    finish(figure, path)


FIGURES = dict(players=players, packed=packed, board=board, curves=curves)


def main(argv: list[str], into: Path = HERE) -> None:
    """Draw every figure; --runs: take the numbers of `curves` from the runs first."""
    if "--runs" in argv:
        numbers = json.dumps(numbers_of_runs(), separators=(", ", ": ")).replace("}, ", "},\n")
        write(HERE / "curves.json", numbers + "\n")
    for name, draw in FIGURES.items():
        draw(into / f"{name}.png")


if __name__ == "__main__":
    main(sys.argv[1:])
