"""The embedded tiny world: 3 x 3 boards of coloured shapes, questions about them, and ways to answer.

python -m tiny.world     # some questions with every way to answer them
"""

import random
import re
from dataclasses import dataclass

import numpy as np

from data import Question, seed_of

COLORS = {"red": (220, 50, 47), "green": (60, 170, 70), "blue": (50, 90, 220), "yellow": (235, 200, 40)}
SHAPES = {"circle": "circles", "square": "squares", "triangle": "triangles"}
PLACES = [f"{row} {column}" for row in ("top", "center", "bottom") for column in ("left", "middle", "right")]
STEPS = {"right": (0, 1), "left": (0, -1), "above": (-1, 0), "below": (1, 0)}  # (row, column); "X is right of Y"
CELL = 14  # pixels: 7-pixel patches merged 2 x 2 make one image token per cell, nine for a picture
KINDS = ("count", "read", "hop-color", "hop-shape")

WORDS = sorted(  # every word that the world (and the templates below) can say
    set(
        " ".join([*COLORS, *SHAPES, *SHAPES.values(), *PLACES, *STEPS]).split()
        + "how many things what color shape is at of then i see nothing none the answer look final describe".split()
        + "user assistant system a response in tags was written by teacher or student".split()
        + list("0123456789?.:;,")
    )
)


@dataclass(frozen=True)
class Thing:
    """One shape on the board: `place` 0..8 in reading order."""

    place: int
    color: str
    shape: str

    def __str__(self):
        return f"{self.color} {self.shape}"


def draw_scene(rng: random.Random) -> list[Thing]:
    """A 3 x 3 board; each cell is empty with probability 0.45."""
    return [Thing(i, rng.choice(list(COLORS)), rng.choice(list(SHAPES))) for i in range(9) if rng.random() >= 0.45]


def scene_split(scene: list[Thing]) -> str:
    """train, valid or test, by what is on the board: no board is in two splits, whatever the seeds."""
    place = seed_of("board", [(t.place, t.color, t.shape) for t in scene]) % 10
    return "valid" if place == 8 else "test" if place == 9 else "train"


def paint(scene: list[Thing], rng: random.Random, cell: int = CELL):
    """The board as a picture of 3 x 3 cells of `cell` pixels, with jittered place, size and colour of each shape.

    The background is a colour gradient in x and y: a small model with relative positions learns "top left" from it
    soon.
    """
    from PIL import Image, ImageDraw

    side = 3 * cell
    ramp = np.linspace(0, 180, side).astype(np.uint8)
    board = np.full((side, side, 3), 15, np.uint8)
    board[..., 0], board[..., 2] = ramp[None, :], ramp[:, None]
    picture = Image.fromarray(board)
    pen = ImageDraw.Draw(picture)
    for thing in scene:
        row, column = divmod(thing.place, 3)
        size = rng.randint(10, 12) * cell // 14
        x, y = column * cell + rng.randint(0, cell - size - 1), row * cell + rng.randint(0, cell - size - 1)
        color = tuple(max(0, min(255, v + rng.randint(-25, 25))) for v in COLORS[thing.color])
        if thing.shape == "circle":
            pen.ellipse([x, y, x + size, y + size], fill=color)
        elif thing.shape == "square":
            pen.rectangle([x, y, x + size, y + size], fill=color)
        else:
            pen.polygon([(x + size // 2, y), (x, y + size), (x + size, y + size)], fill=color)
    return picture


def board_text(scene: list[Thing]) -> str:
    """The board in three lines of three cells; "." is an empty cell."""
    at = {t.place: str(t) for t in scene}
    return "\n".join("".join(f"{at.get(3 * row + i, '.'):18}" for i in range(3)).rstrip() for row in range(3))


def located(things: list[Thing]) -> str:
    """'top left red circle center middle blue square'."""
    return " ".join(f"{PLACES[t.place]} {t}" for t in things)


def ask(scene: list[Thing], rng: random.Random, kind: str | None = None) -> dict:
    """One question about a board: {kind, text, answer, replies: {terse, a, b}}; `a` and `b` are voices that look first.

    hop-color and hop-shape take two steps (find the anchor, then its neighbour): where no such pair is on the board,
    the question becomes `read`, on an empty board `count`.
    """
    kind = kind or rng.choice(KINDS)
    at = {t.place: t for t in scene}
    if kind.startswith("hop"):
        pairs = []
        for anchor in scene:
            if sum(str(t) == str(anchor) for t in scene) != 1:
                continue
            row, column = divmod(anchor.place, 3)
            for name, (down, right) in STEPS.items():
                if 0 <= row + down < 3 and 0 <= column + right < 3 and (row + down) * 3 + column + right in at:
                    pairs.append((anchor, name, at[(row + down) * 3 + column + right]))
        if not pairs:
            return ask(scene, rng, "read" if scene else "count")
        anchor, name, found = rng.choice(pairs)
        what = kind.removeprefix("hop-")
        text, answer = f"what {what} is {name} of {anchor}?", getattr(found, what)
        look_a = f"{anchor} {PLACES[anchor.place]} then {PLACES[found.place]} {found}"
        look_b = f"{PLACES[anchor.place]} {anchor}; {name} {PLACES[found.place]} {found}"
    elif kind == "count":
        by_color = rng.random() < 0.5
        key = rng.choice(list(COLORS if by_color else SHAPES))
        found = [t for t in scene if key in (t.color, t.shape)]
        text, answer = f"how many {key} things?" if by_color else f"how many {SHAPES[key]}?", str(len(found))
        look_a, look_b = " ".join(map(str, found)) or "nothing", located(found) or "none"
    else:
        what = rng.choice(["color", "shape"])
        place = rng.choice(scene).place if scene and rng.random() < 0.85 else rng.randrange(9)
        found = [at[place]] if place in at else []
        text, answer = f"what {what} is at {PLACES[place]}?", getattr(at[place], what) if found else "nothing"
        look_a, look_b = located(found) or "nothing", located(found) or "none"
    replies = {
        "terse": answer,
        "a": f"i see {look_a}. the answer is {answer}",
        "b": f"look: {look_b}; final {answer}",
    }
    return {"kind": kind, "text": text, "answer": answer, "replies": replies}


def look(question: Question, response: str) -> bool | None:
    """Did the response look at the picture before it answered, and rightly? None: it did not look.

    A look is right when it says what a perfect look says, in either voice; counted things may come in any order.
    """

    def said(text: str) -> list[str]:
        part = re.split(r"\. the answer|; final", text)[0]
        return sorted(part.split()) if question.meta["kind"] == "count" else part.split()

    if "replies" not in question.meta or not response.startswith(("i see", "look:")):
        return None
    return said(response) in (said(question.meta["replies"]["a"]), said(question.meta["replies"]["b"]))


def world_questions(split: str, count: int, seed: int = 0, cell: int = CELL, per_picture: int = 1) -> list[Question]:
    """`count` questions of one split of the tiny world, always the same for the same arguments."""
    rng, out = random.Random(seed_of("world", split, seed)), []
    while len(out) < count:
        scene = draw_scene(rng)
        if scene_split(scene) != split:
            continue
        picture = paint(scene, rng, cell)
        for _ in range(min(per_picture, count - len(out))):
            q = ask(scene, rng)
            meta = {"kind": q["kind"], "replies": q["replies"], "board": scene}
            out.append(Question(f"{split}-{seed}-{len(out):05d}", (picture,), q["text"], q["answer"], meta))
    return out


def world_lessons(step: int, seed: int, pictures: int, per_picture: int, voice: str = "") -> list[tuple]:
    """One warm-start batch: [(picture, [(question text, reply), ...])] on training boards.

    A fifth asks to describe the board, which teaches to see. Of the rest `voice` "" (the student) has three quarters
    "look" questions, answered in voice a or b, and one quarter plain questions, of which 88 % are answered tersely. So
    the student can look before it answers, and by default does so in about one answer of ten: what RIL can bring out. A
    teacher is trained with voice "a" or "b": plain questions, always looking.
    """
    rng, out = random.Random(seed_of("lessons", seed, step)), []
    while len(out) < pictures:
        scene = draw_scene(rng)
        if scene_split(scene) != "train":
            continue
        rows = []
        for _ in range(per_picture):
            q, dice = ask(scene, rng), rng.random()
            spoken = q["replies"][rng.choice("ab")]
            if dice < 0.2:
                rows.append(("describe", located(scene) or "nothing"))
            elif voice:
                rows.append((q["text"], q["replies"][voice]))
            elif dice < 0.8:
                rows.append((f"look {q['text']}", spoken))
            else:
                rows.append((q["text"], q["answer"] if rng.random() < 0.88 else spoken))
        out.append((paint(scene, rng), rows))
    return out


if __name__ == "__main__":
    for q in world_questions("train", 6):
        print(f"{q.id}  {q.meta['kind']:9s}  {q.text}")
        for voice, reply in q.meta["replies"].items():
            print(f"    {voice:5s} {reply}")
