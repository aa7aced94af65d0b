"""The fourteen benchmarks: files, prompts, scoring rules, answers on any number of ranks, results.

    python -m tools.benchmarks --student FOLDER --data DIR --benchmarks all      # or ai2d,chartqa,...
    torchrun --nproc_per_node 8 -m tools.benchmarks --student FOLDER --data DIR --benchmarks all
    python -m tools.benchmarks --into FOLDER-eval --data DIR --benchmarks all --score-only --rules head

Scoring needs neither torch nor a model: it works with the standard library and numpy alone.
"""

import ast
import base64
import csv
import hashlib
import io
import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_uppercase

import numpy as np

from data import seed_of
from engine.answers import AnswerLog
from engine.command import Flags, UserError, run_command
from engine.files import as_jsonl, parse_line, read_jsonl, write
from engine.pictures import as_seen, open_picture
from engine.served import Server
from eval import greedy_answers, interval, load_student, mean, middle

# ------------------------------------------------------------------------------------------------ what they are
FILES = {  # public file -> (our name for the benchmark, how an item is scored, the first digits of its md5, rows)
    "AI2D_TEST": ("ai2d", "letter", "0f593e0d", 3088),
    "ChartQA_TEST": ("chartqa", "chart", "c902e0aa", 2500),
    "MathVista_MINI": ("mathvista", "math", "f199b98e", 1000),
    "MMBench_DEV_EN": ("mmb", "circular", "b6caf113", 4329),  # MMBench's and SEED's rows are from papers
    "MMBench_DEV_CN": ("mmb-cn", "circular", "08b8fc33", 4329),
    "MMVet": ("mmvet", "grade", "748aa6d4", 218),
    "mm-vet-v2": ("mmvet2", "grade", "", 517),
    "MMMU_DEV_VAL": ("mmmu", "mmmu", "585e8ad7", 1050),
    "MMMU_Pro_10c": ("mmmu-pro", "mmmu", "22cee868", 1730),
    "MMMU_Pro_V": ("mmmu-pro", "mmmu", "d01441a8", 1730),
    "MMStar": ("mmstar", "letter", "e1ecd214", 1500),
    "BLINK": ("blink", "letter", "d5e8af14", 1901),  # 3b6649b6 has the old labels of Relative_Reflectance
    "SEEDBench_IMG": ("seed", "letter", "68017231", 14232),
    "SEEDBench2_Plus": ("seed2+", "letter", "e32d3216", 2277),
    "RealWorldQA": ("rwqa", "letter", "4de008f5", 765),
}


# our names in the paper's order -> the public files; the score is the mean of the files' scores
BENCHMARKS = {name: [file for file, x in FILES.items() if x[0] == name] for name, *_ in FILES.values()}


RULES = ("2025-10", "head")  # the toolkit's rules of October 2025, and its newest (August 2026)


PROMPTS = ("kit", "direct", "bare")


# as a person sees a picture; as the toolkit does: transparency dropped, EXIF ignored, 16 bits cut off at 255
VIEWS = {"seen": as_seen, "kit": lambda picture: picture.convert("RGB")}


LETTER = "Answer directly with the option letter from the given choices. "


DIRECT = {  # (has options, is Chinese) -> the last line
    (True, False): "Answer with the option's letter from the given choices directly.",
    (True, True): "请直接回答选项字母。",
    (False, False): "Answer the question directly.",
    (False, True): "请直接回答问题。",
}


def file_of(benchmark: str) -> str:
    """The public file that a name means: ours, the file's, or that of a variant (MMMU_Pro_V_COT). UserError: none."""
    name = BENCHMARKS.get(benchmark, [benchmark])[0]
    for file in FILES:
        if name.startswith(file):
            return file
    raise UserError(f"benchmark {benchmark!r}: unknown; there are {', '.join(BENCHMARKS)}")


def kind_of(benchmark: str) -> str:
    """How a benchmark is scored: letter, circular, mmmu, chart, math or grade. Raises UserError for an unknown one."""
    return FILES[file_of(benchmark)][1]


def bootstrap_seed(benchmark: str) -> int:
    """Seeds a benchmark's bootstrap: each its own, but mmb-cn has that of mmb, since both ask the same questions."""
    return seed_of("bootstrap", benchmark.removesuffix("-cn"))


def cell(row: dict, name: str) -> str:
    """A cell as text; "" when it is absent or empty. The word None is text (pandas would take it for an empty cell)."""
    value = row.get(name)
    return "" if value is None or value != value else str(value)  # NaN alone differs from itself


def options_of(row: dict) -> dict[str, str]:
    """{letter: text} of the columns A, B, C ... that are not empty; texts keep their blanks."""
    return {c: cell(row, c) for c in ascii_uppercase if cell(row, c)}


# ------------------------------------------------------------------------------------------------ benchmark files
def is_picture(text: str) -> bool:
    """Is this the name of a picture file? (Base64 has no dot in it.)"""
    return bool(re.fullmatch(r"\S+\.(png|jpe?g|webp|gif|bmp)", text, re.IGNORECASE))


def is_utf8(record: str | list | dict) -> bool:
    """Were all bytes of a record UTF-8? (Others are read as lone surrogates.)"""
    texts = [record] if isinstance(record, str) else record.values() if isinstance(record, dict) else record
    return not any(isinstance(x, str) and not x.isascii() and re.search("[\udc80-\udcff]", x) for x in texts)


def listed(text) -> list | None:
    """The list that a cell spells, else None: "['red', 'blue']" -> [red, blue]. Nothing is executed."""
    if isinstance(text, list):
        return text
    if not str(text).strip().startswith("["):  # megabytes of base64 are no expression to be parsed
        return None
    try:
        value = ast.literal_eval(str(text).strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return value if isinstance(value, list) else None


@dataclass
class Table:
    """A benchmark file without its pictures: of those only the place in the file is kept (some files have gigabytes).

    A row is a record of the file, numbered from 1 (the header of a .tsv is 1); an index is what its column says. rows:
    {column: text} each; wrong: what was left out, by file and row; twin: index -> the first one with that picture.
    """

    path: Path
    rows: list[dict] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    refers: dict = field(default_factory=dict)  # index -> that of the row with its picture
    number: dict = field(default_factory=dict)  # index -> the row
    places: dict = field(default_factory=dict)  # index -> (first byte, bytes) of the row, or a list of picture files
    twin: dict = field(default_factory=dict)
    seen: dict = field(default_factory=dict)  # hash of a picture -> the first index with it
    header: list[str] = field(default_factory=list)
    md5: str = ""
    count: int = 0  # of the file's rows, with those left out

    @property
    def name(self) -> str:
        """The public file's name."""
        return self.path.stem

    def where(self, index: str) -> str:
        """A row by file, number and index, for messages."""
        return f"{self.path}: row {self.number[index]} (index {index})"

    def row(self, record: str | list | dict | csv.Error) -> dict:
        """The row that a line of JSON, a list of cells or a dict holds. Raises ValueError for one that is torn."""
        if isinstance(record, csv.Error):
            raise ValueError(str(record).partition(" - ")[0])  # what follows is advice for programmers
        if not is_utf8(record):
            raise ValueError("not UTF-8; save the file as UTF-8")
        if isinstance(record, list) and len(record) != len(self.header):
            raise ValueError(f"torn, {len(record)} of {len(self.header)} cells")
        row = parse_line(record) if isinstance(record, str) else record
        row = dict(zip(self.header, row, strict=True)) if isinstance(row, list) else row
        if "image_path" in row and "image" not in row:
            row["image"] = row.pop("image_path")
        return row

    def cell(self, index: str):
        """A row's picture cell, read from the file now."""
        place = self.places[index]
        if isinstance(place, list):
            return place
        with self.path.open("rb") as file:
            file.seek(place[0])
            text = file.read(place[1]).decode("utf-8-sig", "replace")
        tab = self.path.suffix == ".tsv"
        return self.row(next(csv.reader(io.StringIO(text, newline=""), delimiter="\t")) if tab else text)["image"]

    def pictures(self, index: str, view: str = "seen") -> list:
        """A row's pictures (PIL, RGB) in a view of VIEWS: its cell holds base64, a path beside the file, a list of
        either, or the index of the row that has them. Raises UserError naming file and row.
        """
        cell, out = self.cell(index), []
        cell = self.cell(str(cell)) if str(cell) in self.places else cell
        for one in map(str, listed(cell) or [cell]):
            source = self.path.parent / one
            if not is_picture(one):
                try:
                    source = io.BytesIO(base64.b64decode(one.rpartition("base64,")[2]))
                except ValueError:
                    raise UserError(f"{self.where(index)}: its picture is no base64; repair or remove it") from None
            out.append(open_picture(source, self.where(index), VIEWS[view]))
        return out


def interleaved(index: str, row: dict) -> dict:
    """A row of MM-Vet-v2 as one of MMMU: "words<IMG>v2_0.png<IMG>words" -> "words<image 1>words" and its pictures."""
    parts = row["question"].split("<IMG>")
    names = [x for x in parts if is_picture(x)]
    text = "".join(f"<image {names.index(x) + 1}>" if x in names else x for x in parts)
    category, pictures = ",".join(row["capability"]), [f"images/{x}" for x in names]
    return row | dict(index=index, question=text, category=category, image=pictures)


def csv_records(lines) -> Iterator[list | csv.Error]:
    """The records of tab-separated lines; the error in place of one that cannot be read, such as a lone \\r in it."""
    reader = csv.reader(lines, delimiter="\t")
    while True:
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield error


def index_of(table: Table, row: dict) -> str:
    """A row's index. Raises ValueError for one that cannot be used, or that stands there already."""
    index = cell(row, "index")
    if not index or isinstance(row["index"], bool | list | dict):
        raise ValueError(f"index {row['index']!r} is neither a number nor a name")
    circular = FILES.get(table.name, "??")[1] == "circular"
    if circular and not re.fullmatch("[0-9]+", index):
        raise ValueError(f"index {index} is no number; rotations of a question are found by it")
    if index in table.places:
        raise ValueError(f"index {index} stands twice")
    return index


def add_row(table: Table, number: int, record, place: tuple[int, int]) -> None:
    """Add a record, or say in `wrong` why not. Raises UserError for a missing column. place: first byte, bytes."""
    table.count += 1
    where, needed = f"{table.path}: row {number}", ["index", "answer", "image"]
    needed += ["question"] * (table.name != "MMMU_Pro_V")  # there it is in the picture
    try:
        row = table.row(record)
        if missing := [x for x in needed if x not in row]:
            raise UserError(f"{where}: column {missing[0]!r} is missing; it has {', '.join(row)}")
        index, picture = index_of(table, row), row.pop("image")
        if not picture:
            raise ValueError(f"index {index} has no picture")
    except ValueError as error:  # a JSONDecodeError is one
        table.wrong.append(f"{where}: {error}")
        return
    table.rows.append(row | {"index": index})
    table.number[index], table.places[index] = number, picture if isinstance(record, dict) else place
    if re.fullmatch("[0-9]{1,20}", str(picture)):  # too short for base64
        table.refers[index] = str(picture)
    else:
        table.twin[index] = table.seen.setdefault(hash(str(picture)), index)


def follow_references(table: Table) -> None:
    """Give rows that refer to another one's picture its twin; those that refer to none are left out."""
    for index, other in table.refers.items():
        if other in table.places and other not in table.refers:
            table.twin[index] = table.twin[other]
        else:
            table.wrong.append(f"{table.where(index)}: its picture is that of index {other}, which has none")
    table.rows = [row for row in table.rows if row["index"] in table.twin]


def read_table(path: str | Path) -> Table:
    """A benchmark's .tsv or .jsonl file, or MM-Vet-v2's .json, read once.

    Rows that are torn, doubled, not UTF-8 or without a picture are left out and named in `wrong`. Raises UserError for
    a missing column or a file that is no table.
    """
    table, digest = Table(Path(path)), hashlib.md5(usedforsecurity=False)
    csv.field_size_limit(2**31 - 1)

    def lines(file):
        for line in iter(file.readline, b""):  # so that file.tell() is the end of the line
            digest.update(line)
            yield line.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")

    try:
        with table.path.open("rb") as file:
            records = lines(file)
            if table.path.suffix == ".tsv":
                records = csv_records(records)
                table.header = next(records, [])
                if isinstance(table.header, csv.Error) or not is_utf8(table.header):
                    raise ValueError("its first line is not UTF-8 with tabs")
            elif table.path.suffix == ".json":  # {id: row}
                records = [interleaved(*x) for x in json.loads("".join(records)).items()]
            end = file.tell()
            for number, record in enumerate(records, 1 + bool(table.header)):
                start, end = end, file.tell()
                if record and record != "\n":
                    add_row(table, number, record, (start, end - start))
    except (csv.Error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{table.path}: not a benchmark file ({type(error).__name__}: {error})") from None
    follow_references(table)
    if not table.rows:
        raise UserError(f"{table.path}: no rows; {'; '.join(table.wrong[:3]) or 'the file is empty'}")
    table.md5 = digest.hexdigest()
    return table


def unit_of(name: str, row: dict) -> str:
    """What is counted once: MMBench's rotations of a question together, elsewhere the row."""
    return str(int(row["index"]) % 1_000_000) if kind_of(name) == "circular" else str(row["index"])


def choose(table: Table, limit: int) -> Table:
    """Keep the rows to ask: MMMU's validation split; of the units `limit` (0: all), always the same ones, by a hash."""
    rows = [r for r in table.rows if table.name != "MMMU_DEV_VAL" or cell(r, "split") in ("validation", "")]
    units = sorted({unit_of(table.name, r) for r in rows}, key=lambda u: (seed_of("subset", u), u))
    kept = set(units[:limit] if limit else units)
    table.rows = [r for r in rows if unit_of(table.name, r) in kept]
    return table


# ------------------------------------------------------------------------------------------------ prompts
def prompt_of(name: str, row: dict, pictures: int, style: str = "kit", suffix: str = "") -> tuple[list, list[str]]:
    """An item's prompt -> (numbers of the pictures shown, the texts around them: one more than pictures).

    style: kit is the toolkit's default, direct asks for the letter alone (what the toolkit asks the paper's second
    family), bare is question and options. MMMU's pictures stand where the text names them (so twice, or not at all, as
    in the toolkit), others before the text.
    """
    kind, question, options, hint = kind_of(name), cell(row, "question"), options_of(row), cell(row, "hint")
    lines = [f"{letter}. {text}" for letter, text in options.items()]
    if kind in ("math", "grade"):
        text = question
    elif kind == "chart":
        text = question + ("" if style == "bare" else "\nAnswer the question using a single word or phrase.")
    elif name == "MMMU_Pro_V":
        text = f"Answer the following multiple-choice question in the image. {LETTER}"
    elif style == "kit":
        end = LETTER if "Pro" in name else "Please select the correct answer from the options above. \n"
        text = (f"Hint: {hint}\n" if hint else "") + f"Question: {question}\n"
        text += "\n".join(["Options:", *lines, end]) if options else ""
    else:
        end = DIRECT[bool(options), bool(re.search("[\u4e00-\u9fff]", question))] if style == "direct" else ""
        text = "\n".join(x for x in (hint, question, *lines, end) if x)
    text += suffix
    if style == "direct" and pictures > 1 and name != "mm-vet-v2":
        heads = ["Image-1: ", *(f"\nImage-{k + 1}: " for k in range(1, pictures))]
        return list(range(pictures)), [*heads, "\n" + re.sub(r"<image (\d)>", r"<Image-\1>", text)]
    parts = re.split(r"<image (\d+)>", text) if kind == "mmmu" or name == "mm-vet-v2" else [text]
    named = [int(k) - 1 for k in parts[1::2]]
    if not named or not 0 <= min(named) <= max(named) < pictures:
        return list(range(pictures)), [""] * pictures + [text]
    return named, parts[::2]


# ------------------------------------------------------------------------------------------------ scoring an item
REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)


ANSWER_IS = re.compile(r"answer\s+is\s+\**([ABCD])", re.IGNORECASE)  # no word boundary: "answer is a plant" says A


ABILITIES = {
    "coarse_perception": "CP",
    "finegrained_perception (instance-level)": "FP-S",
    "finegrained_perception (cross-instance)": "FP-C",
    "logic_reasoning": "LR",
    "relation_reasoning": "RR",
    "attribute_reasoning": "AR",
}


RELABELLED = "Relative_Reflectance"  # BLINK's sub-task whose labels were repaired in May 2026


def find_option(text: str, options: dict[str, str], rules: str) -> str | bool:
    """The letter that a response chooses, "Z" when it refuses, False when nothing can be read (toolkit's rules).

    Example, options A sun, B grass: "(B)" -> B, "It is grass" -> B, "A or B" -> False, "b" -> False, "B. Plants make
    sugar from light" -> False (a letter counts among the last four words only).
    """
    if "Failed to obtain answer via API" not in text:
        if any(words in text for words in REFUSALS):
            return "Z"
        words = re.sub(r"[.()\[\],:;!*#{}]", " ", text).split()
        letters = [c for c in options if c in words]
        if len(letters) == 1 and words.index(letters[0]) > len(words) - 5:
            return letters[0]
        if not letters and "Z" in words:
            return "Z"
        said = ANSWER_IS.search(text) if rules == "head" else None
        if said and said[1].upper() in options:
            return said[1].upper()
    text, low = text.lower(), {c: option.lower() for c, option in options.items()}
    if len(text) > 2 * sum(map(len, low.values())):
        return False
    inside = [c for c, option in low.items() if option in text]
    return inside[0] if len(inside) == 1 else False


def last_answer_line(text: str, rules: str) -> str:
    """What is left of a step-by-step MMMU-Pro response: its "Answer: X" line, else the whole text.

    head: the last such line counts. 2025-10: only a single one does, and the A of "Answer" is counted as a capital too.
    """
    lines = [line.strip() for line in text.strip().split("\n")]
    lines = [line for line in lines if line.startswith("Answer:")]
    if not lines or (rules != "head" and len(lines) > 1):
        return text
    tail = lines[-1].removeprefix("Answer:")
    capitals = set(re.findall("[A-Z]", tail if rules == "head" else lines[-1]))
    return capitals.pop() if len(capitals) == 1 else tail


def relaxed_match(gold: str, said: str) -> bool:
    """ChartQA: numbers within 5 % of the gold number (5% is 0.05, a gold 0 is no number), else equal without case."""

    def number(text: str) -> float | None:
        try:
            return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
        except ValueError:
            return None

    g, s = number(gold), number(said)
    return abs(s - g) / abs(g) <= 0.05 if g and s is not None else gold.lower() == said.lower()


def math_answer(row: dict, text: str, rules: str) -> tuple:
    """MathVista: (what the text says or False, is it right). List and text answers are never right: the toolkit
    compares them with the word None.
    """
    if cell(row, "question_type") == "multi_choice":
        choices = listed(row.get("choices")) or []
        found = find_option(text, dict(zip(ascii_uppercase, map(str, choices), strict=False)), rules)
        return found, found == cell(row, "answer_option")
    read, gold, found = {"integer": int, "float": float}.get(cell(row, "answer_type")), cell(row, "answer"), "None"
    if read:
        try:
            found, gold = read(text), read(gold)
        except ValueError:
            return False, False
    return (found, True) if found == gold else (False, False)


def grade_of(benchmark: str, reply: str) -> float | None:
    """A judge's grade in [0, 1], None when it gives none: the whole reply is the number; MM-Vet-v2: its first word."""
    words = reply.split()
    if file_of(benchmark) == "mm-vet-v2":
        words = words[:1]
    try:
        grade = float(" ".join(words))
    except ValueError:
        return None
    return grade if 0 <= grade <= 1 else None


def final_answer(text: str) -> str:
    """The last <answer>...</answer>, else the last \\boxed{...}, else the text: for students that explain first."""
    found = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL) or re.findall(r"\\boxed\{([^{}]*)\}", text)
    return found[-1].strip() if found else text


def score_item(benchmark: str, row: dict, prediction: str, rules: str = "2025-10", reply: str | None = None) -> dict:
    """One item by the public toolkit's rules -> {score, extracted, needs_judge, ...}.

    score is in [0, 1], or None where only a judge can give one (MM-Vet). `reply` is the judge's answer: a grade for
    MM-Vet, the extracted answer for MathVista. extracted is False when nothing could be read; that scores 0.
    Also `match` (per reference answer) for ChartQA and `prefetch` (found without a judge) for MathVista.
    """
    if rules not in RULES:
        raise UserError(f"rules {rules!r}: unknown; there are {', '.join(RULES)}")
    kind, text = kind_of(benchmark), str(prediction)
    if kind == "chart":
        golds = listed(row.get("answer"))
        said = text.strip()
        match = [relaxed_match(str(g), said) for g in (golds if golds is not None else [cell(row, "answer")])]
        return dict(score=float(any(match)), extracted=said, needs_judge=False, match=match)
    if kind == "math":
        prefetch, right = math_answer(row, text, rules)
        found = prefetch
        if reply is not None and not prefetch:  # a right 0 counts as not found too
            found, right = math_answer(row, reply, rules)
        needs = reply is None and not prefetch
        return dict(score=float(right), extracted=found, needs_judge=needs, prefetch=prefetch)
    if kind == "grade":
        grade = None if reply is None else grade_of(benchmark, reply)
        return dict(score=grade, extracted=False if grade is None else grade, needs_judge=grade is None)
    options, gold = options_of(row), cell(row, "answer")
    if kind == "mmmu":
        if "COT" in benchmark:
            text = last_answer_line(text, rules)
        if "A" not in options:  # an open question: the gold answer against "Other Answers"
            options |= {"A": gold, "B": "Other Answers"}
        gold = gold if gold in list(ascii_uppercase) else "A"
    found = find_option(text, options, rules)
    return dict(score=float(found == gold), extracted=found, needs_judge=not found)


# ------------------------------------------------------------------------------------------------ scoring a file
def units_of(benchmark: str, rows: list[dict], scores: list) -> list[tuple[dict, float]]:
    """[(row, score)] of what is counted: rows, for MMBench questions. A question is right if all its rotations are.

    Rotations of a question share index % 1,000,000; rotations that are not there are not missed, but as in the toolkit
    a question without its first one is not counted.
    """
    if kind_of(benchmark) != "circular":
        return list(zip(rows, scores, strict=True))
    groups = {}
    for row, score in zip(rows, scores, strict=True):
        groups.setdefault(unit_of(benchmark, row), []).append((row, score))
    out = []
    for group in groups.values():
        first = [row for row, _ in group if int(row["index"]) < 1_000_000]
        out += [(row, float(all(score == 1 for _, score in group))) for row in first]
    return out


def part(units: list[tuple[dict, float]], column: str, name: str, times: float = 1.0) -> float | None:
    """The mean score of the units whose row has this in a column."""
    return mean([x for row, x in units if cell(row, column) == name], times)


def by_ability(units: list[tuple[dict, float]]) -> list[dict]:
    """One record a split: Overall, then each l2-category and category (MMBench's shortened)."""
    records = []
    for split in sorted({cell(row, "split") for row, _ in units}, key=lambda x: x or "none"):
        here = [(row, x) for row, x in units if cell(row, "split") == split]
        record = {"split": split or "none", "Overall": mean([x for _, x in here])}
        for column in ("l2-category", "category"):
            names = sorted({cell(row, column) for row, _ in units} - {""})
            record |= {ABILITIES.get(name, name): part(here, column, name) for name in names}
        records.append(record)
    return records


def records_of(benchmark: str, rows: list[dict], scores: list) -> list[dict]:
    """A file's records, as the toolkit reports them: [{split, Overall, abilities ...}] in [0, 1].

    ChartQA: one record in percent with both halves. MM-Vet: [{Category, tot, acc}] in percent, acc None without a
    judge. BLINK gets a second record without the relabelled sub-task, where it has that one.
    """
    kind, units = kind_of(benchmark), units_of(benchmark, rows, scores)
    if kind == "chart":
        halves = dict.fromkeys(cell(row, "split") for row in rows if cell(row, "split"))
        return [{half: part(units, "split", half, 100) for half in halves} | {"Overall": mean(scores, 100)}]
    if kind == "grade":
        parts = {}
        for name in ("rec", "ocr", "know", "gen", "spat", "math", "seq"):
            parts[name] = [x for row, x in units if name in cell(row, "category")]
            if file_of(benchmark) == "MMVet":  # the toolkit counts items with this capability alone twice
                parts[name] += [x for row, x in units if name == cell(row, "category")]
        parts["Overall"] = scores
        return [{"Category": name, "tot": len(xs), "acc": mean(xs, 100)} for name, xs in parts.items() if xs]
    records = by_ability(units)
    if file_of(benchmark) == "BLINK" and any(cell(row, "category") == RELABELLED for row in rows):
        rest = by_ability([(row, x) for row, x in units if cell(row, "category") != RELABELLED])
        records += [record | {"split": f"without {RELABELLED}"} for record in rest]
    return records


def score_rows(benchmark: str, rows: list[dict], predictions: list[str], rules: str = "2025-10", judge=None) -> list:
    """The records of a file: see records_of and score_all."""
    return records_of(benchmark, rows, [x["score"] for x in score_all(benchmark, rows, predictions, rules, judge)])


def score_all(benchmark: str, rows: list[dict], predictions: list[str], rules: str, judge=None) -> list[dict]:
    """score_item of every row.

    The judge (a Server or the like) is asked where the rules of MM-Vet and MathVista give no score. An unreadable grade
    is asked for again at temperatures 0.5, 1, 1.5 and 2, as in the toolkit, then counted as 0, which is a warning.
    """
    items = [score_item(benchmark, row, said, rules) for row, said in zip(rows, predictions, strict=True)]
    for attempt in range(6) if judge and kind_of(benchmark) in ("grade", "math") else ():
        todo = [i for i, x in enumerate(items) if x["needs_judge"]]
        chats = [judge_chat(benchmark, rows[i], predictions[i]) for i in todo]
        replies = judge.ask(chats, 64, attempt * 0.5) if chats and attempt < 5 else ["0"] * len(todo)
        if attempt == 5 and todo:
            print(f"warning: {benchmark}: {len(todo)} of {len(items)} answers got no readable grade and count as 0")
        for i, reply in zip(todo, replies, strict=True):
            items[i] = score_item(benchmark, rows[i], predictions[i], rules, reply)
    return items


# ------------------------------------------------------------------------------------------------ asking a judge
GRADE = """Give a grade to an answer about a picture. You see the question, the reference answer and the answer, not
the picture. In the reference, <AND> joins parts that must all be said, <OR> joins parts of which one is enough. The
grade is 0.0 (nothing is right), 0.1, 0.2 ... or 1.0 (all is right). Reply with the grade alone.

Question: What are the two roots? | Reference: 2 <AND> -7 | Answer: x is 2 | Grade: 0.5
Question: What are the two roots? | Reference: 2 <AND> -7 | Answer: -7 and 2 | Grade: 1.0
Question: What animal is it? | Reference: puppy <OR> dog | Answer: a small dog | Grade: 1.0
Question: What animal is it? | Reference: puppy <OR> dog | Answer: a cat | Grade: 0.0

"""


EXTRACT = """Read the response to the question and reply with its final answer alone: a letter where options are given,
a number without unit or comma where a number is asked for, a list such as [1, 2] where a list is asked for.

Question: How many apples are left? | Response: She had 14 and ate 5, so nine are left. | Final answer: 9
Question: What share is blue? (A) 3/11 (B) 8/11 | Response: Eight of eleven parts are blue. | Final answer: B

"""


def judge_chat(benchmark: str, row: dict, said: str) -> list[dict]:
    """What the judge is asked about one item. Our own wording, so grades compare with nobody else's."""
    question = re.sub(r"<image \d+>", "<image>", cell(row, "question"))
    if kind_of(benchmark) == "grade":
        gold = cell(row, "answer").replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
        text = f"{GRADE}Question: {question} | Reference: {gold} | Answer: {said} | Grade:"
    else:
        text = f"{EXTRACT}Question: {question} | Response: {said} | Final answer:"
    return [{"role": "user", "content": text}]


# ------------------------------------------------------------------------------------------------ asking
PRESETS = {"smoke": 64, "quick": 500, "paper": 0}  # questions a benchmark file; 0: all


def limit_pictures(student, args) -> dict:
    """Set the pixel and tile limits that the flags give -> what holds now. Other than in training: a warning."""
    it, size = student.encoder.image_processor, dict(student.encoder.image_processor.size)
    now = dict(min_pixels=size.get("shortest_edge"), max_pixels=size.get("longest_edge"), max_tiles=None)
    if hasattr(it, "max_patches"):
        now["max_tiles"] = it.max_patches if it.crop_to_patches else 1
    for name, before in now.items():
        flag, wanted = f"--{name.replace('_', '-')}", getattr(args, name)
        if wanted and before is None:
            raise UserError(f"{flag}: this student has no such limit; it has {', '.join(k for k in now if now[k])}")
        if wanted and wanted != before:
            print(f"warning: {flag} {wanted}, but the student was trained with {before}")
            now[name] = wanted
    if now["max_tiles"]:
        it.max_patches, it.crop_to_patches = now["max_tiles"], now["max_tiles"] > 1
    else:
        it.size = type(it.size)(**size | dict(shortest_edge=now["min_pixels"], longest_edge=now["max_pixels"]))
    return now


def weights_hash(student) -> str:
    """64 numbers of each tensor: tells students apart in seconds, the same on every rank."""
    digest = hashlib.sha256()
    for name, x in sorted(student.hf.state_dict().items()):
        digest.update(name.encode() + x.flatten()[:: max(1, x.numel() // 64)].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def run_key(settings: dict, data: str) -> str:
    """Names what a text depends on: the settings and the data."""
    return hashlib.sha256(json.dumps([settings, data], sort_keys=True).encode()).hexdigest()[:12]


def read_predictions(table: Table, settings: dict, folder: Path) -> tuple[dict, list[str]]:
    """({index: prediction}, what was wrong) of one benchmark file under these settings, from all ranks."""
    key, found, wrong = run_key(settings, table.md5), {}, []
    for path in sorted(folder.glob(f"preds.{table.name}.*.jsonl")):
        torn: list[str] = []
        rows = [row for _, row in read_jsonl(path, ("index",), torn)]
        if path.name.split(".")[-3] != key:
            wrong.append(f"{path}: {len(rows)} predictions of another run key (this one: {key}) are left alone")
            continue
        wrong += [f"{place}: a half-written line is not read" for place in torn]
        for row in rows:
            if "text" in row or row["index"] not in found:  # another start may have read what one could not
                found[row["index"]] = row
    return found, wrong


def encode_rows(student, table: Table, rows: list[dict], settings: dict) -> tuple[dict, dict]:
    """({index: Prompt}, {index: error}): errors name the row whose picture cannot be read or which is too long."""
    prompts, errors, limit = {}, {}, student.hf.config.get_text_config().max_position_embeddings
    for row in rows:
        try:
            pictures = table.pictures(row["index"], settings["view"])
            shown, texts = prompt_of(table.name, row, len(pictures), settings["prompt"], settings["suffix"])
            prompt = student.encoder.encode([pictures[k] for k in shown], texts)
            if len(prompt.ids) >= limit:
                raise ValueError(f"{len(prompt.ids)} tokens, the model takes {limit}")
            prompts[row["index"]] = prompt
        except UserError as error:
            errors[row["index"]] = str(error)
        except ValueError as error:
            errors[row["index"]] = f"{table.where(row['index'])}: {error}"
    return prompts, errors


def ask_file(student, table: Table, settings: dict, folder: Path, batch: int) -> None:
    """Append this rank's missing greedy answers to preds.NAME.KEY.RANK.jsonl, one JSON line each.

    Which rank asks a row depends on the row and the number of ranks alone, so ranks need not talk; a restart may have
    another number of them. Rows go by size, so that those of a batch are alike. Out of memory: half the batch, go on.
    """
    import torch
    from tqdm import tqdm

    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    done = {index for index, row in read_predictions(table, settings, folder)[0].items() if "text" in row}
    size = {r["index"]: (table.places[r["index"]][-1:], len(cell(r, "question")), r["index"]) for r in table.rows}
    todo = [index for index in sorted(size, key=size.get, reverse=True)[rank::world] if index not in done]
    rows, many = {r["index"]: r for r in table.rows}, 2 * batch  # encoded together: their pictures lie in memory
    known = AnswerLog(folder / f"preds.{table.name}.{run_key(settings, table.md5)}.{rank}.jsonl", "index")
    with tqdm(total=len(todo), desc=table.name, delay=2) as bar:
        while todo:
            part, todo = todo[:many], todo[many:]
            prompts, errors = encode_rows(student, table, [rows[k] for k in part], settings)
            names, answers = sorted(prompts, key=lambda k: len(prompts[k].ids)), None
            while answers is None:
                try:
                    asked = [prompts[k] for k in names]
                    answers = greedy_answers(student, asked, names, settings["max_new_tokens"], batch)
                except torch.cuda.OutOfMemoryError:
                    if batch == 1:
                        raise UserError(f"{table.where(names[-1])}: alone it does not fit into memory") from None
                    batch //= 2
            known.add(dict(index=k, error=error) for k, error in errors.items())
            known.add(dict(index=r.question, text=r.text, tokens=len(r.ids), finished=r.finished) for r in answers)
            bar.update(len(part))


def try_first(student, tables: list[Table], settings: dict, args) -> dict:
    """Each file's first prompt as text; the first --check questions, alone and in a batch: are the answers the same?"""
    out = {"first_prompts": {}}
    for table in tables:
        rows = table.rows[: 1 if out["first_prompts"] else max(1, args.check)]
        prompts = list(encode_rows(student, table, rows, settings)[0].values())
        if args.check and not out["first_prompts"]:
            names = [str(i) for i in range(len(prompts))]
            ways = [greedy_answers(student, prompts, names, args.max_new_tokens, n) for n in (1, args.batch)]
            different = sum(a.text != b.text for a, b in zip(*ways, strict=True))
            out["batch_check"] = dict(items=len(prompts), batch=args.batch, different=different)
            print(f"batch check: {json.dumps(out['batch_check'])}")
        text = student.encoder.tokenizer.decode(prompts[0].ids) if prompts else ""  # with "* 9" for nine picture tokens
        out["first_prompts"][table.name] = re.sub(r"(<[^<>]+>)\1+", lambda m: f"{m[1]}*{len(m[0]) // len(m[1])}", text)
    return out


def ask_benchmarks(args, tables: list[Table], folder: Path) -> None:
    """Load the student and append the missing predictions; settings.json is what these depend on, run.json the rest."""
    import torch
    import transformers

    began, kept, (student, dtype) = time.time(), folder / "settings.json", load_student(args)
    settings = dict(weights=weights_hash(student), pictures=limit_pictures(student, args), prompt=args.prompt)
    settings |= dict(view=args.pictures, suffix=args.suffix, max_new_tokens=args.max_new_tokens)
    settings |= dict(dtype=dtype, decoding="greedy")
    before = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else settings
    if before != settings:
        count = sum(path.read_bytes().count(b"\n") for path in folder.glob("preds.*.jsonl"))
        other = ", ".join(f"{k} {before.get(k)} -> {v}" for k, v in settings.items() if before.get(k) != v)
        raise UserError(f"{folder}: holds {count} predictions of another run key ({other}); give another --into")
    folder.mkdir(parents=True, exist_ok=True)
    write(kept, json.dumps(settings) + "\n")
    first = os.environ.get("RANK", "0") == "0"
    run = dict(student=args.student, batch=args.batch) | (try_first(student, tables, settings, args) if first else {})
    for table in tables:
        ask_file(student, table, settings, folder, args.batch)
    if first:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
        run |= dict(commit=done.stdout.strip(), attention=student.base.language_model.config._attn_implementation)
        run |= dict(torch=torch.__version__, transformers=transformers.__version__, numpy=np.__version__)
        run |= dict(device=torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine())
        run |= dict(python=platform.python_version(), seconds=round(time.time() - began, 1))
        write(folder / "run.json", json.dumps(run, indent=1, ensure_ascii=False) + "\n")


# ------------------------------------------------------------------------------------------------ measuring
def measure_file(table: Table, found: dict, wrong: list[str], rules: str, judge) -> tuple[dict, list, list]:
    """Score one benchmark file, `found` being its predictions by index -> (what results.json says of it, its
    [(row, score)] of what is counted, the predictions counted).

    A unit with a missing answer or an unreadable picture is left out of the mean and counted, never scored 0.
    """
    name, mine = table.name, {r["index"]: found.get(r["index"], {}) for r in table.rows}
    missing, bad = [k for k, x in mine.items() if not x], [x["error"] for x in mine.values() if "error" in x]
    lost = {unit_of(name, r) for r in table.rows if "text" not in mine[r["index"]]}
    rows = [r for r in table.rows if unit_of(name, r) not in lost]
    said = [mine[r["index"]] for r in rows]
    scored = score_all(name, rows, [x["text"] for x in said], rules, judge)
    final = score_all(name, rows, [final_answer(x["text"]) for x in said], rules)
    if judge is None and kind_of(name) == "math":
        scored = [x | {"score": None} for x in scored]  # without a judge only part of the answers can be read
    units, finals = (units_of(name, rows, [x["score"] for x in it]) for it in (scored, final))
    *_, md5, count = FILES[name]
    wrong = [*wrong, *table.wrong, *bad]
    if table.count != count:
        wrong.insert(0, f"{table.path}: {table.count} rows, the public file has {count}")
    if not table.md5.startswith(md5):
        wrong.insert(0, f"{table.path}: md5 {table.md5[:8]}, the public file has {md5}")
    if missing:
        wrong.insert(0, f"{name}: {len(missing)} rows have no answer, such as index {missing[0]}")
    for line in [*wrong[:8], *[f"{name}: {len(wrong) - 8} more, in results.json"] * (len(wrong) > 8)]:
        print(f"warning: {line}")
    out = dict(md5=table.md5, rows=table.count, torn=len(table.wrong), unreadable=len(bad), missing=len(missing))
    out["records"] = records_of(name, rows, [x["score"] for x in scored]) if rows else []
    out |= dict(score_of_final_answers=mean([x for _, x in finals], 100), wrong=wrong)
    return out, units, [p | {"read": x["extracted"] is not False} for p, x in zip(said, scored, strict=True)]


def measure(title: str, tables: list[Table], found: dict, rules: str, judge=None) -> tuple[dict, list, np.ndarray]:
    """Score one benchmark -> (result, its units for items.jsonl, bootstrapped scores). Its files weigh the same."""
    files, units, said = {}, [], []
    for table in tables:
        files[table.name], counted, texts = measure_file(table, *found[table.name], rules, judge)
        weight = 1 / max(1, len(counted)) / len(tables)
        for row, score in counted:
            unit = unit_of(table.name, row)
            # what is drawn together: rows about one picture; the same question of MMMU-Pro's two files
            cluster = unit if len(tables) > 1 else table.twin[row["index"]]
            name = f"{table.name}:{unit}"
            units.append(dict(benchmark=title, unit=name, cluster=cluster, score=score, weight=weight))
        said += texts
    result, values = dict(score=None, n=len(units), files=files), [u["score"] for u in units]
    if not units or None in values:
        return result, [], np.array([])
    weights, clusters = [u["weight"] for u in units], [u["cluster"] for u in units]
    (low, high), draws = interval(values, clusters, weights, bootstrap_seed(title))
    result |= dict(score=100 * float(np.dot(values, weights)), interval=[100 * low, 100 * high])
    result |= dict(tokens=mean([x["tokens"] for x in said]))
    shares = dict(unparsed=[not x["read"] for x in said], cut_off=[not x["finished"] for x in said])
    return result | {name: mean(xs) for name, xs in shares.items()}, units, draws


def score_cells(r: dict, digits: int) -> list[str]:
    """Score and interval as texts; n/a where there is none."""
    if r["score"] is None:
        return ["n/a", ""]
    low, high = r["interval"]
    return [f"{r['score']:.{digits}f}", f"{low:.{digits}f} to {high:.{digits}f}"]


def markdown(out: dict) -> str:
    """results.md: one line a benchmark in the paper's order, the paper's numbers beside ours, then everything else."""
    table = [["benchmark", "score", "95 %", "counted", "unparsed", "cut off", "tokens", *PAPER]]
    table.append(["---"] * len(table[0]))
    for name, reported in zip(BENCHMARKS, zip(*PAPER.values(), strict=True), strict=True):
        r, rest = out["benchmarks"].get(name, {"score": None}), [""] * 4
        if r["score"] is not None:
            rest = [r["n"], f"{r['unparsed']:.3f}", f"{r['cut_off']:.3f}", f"{r['tokens']:.0f}"]
        table.append([name, *score_cells(r, 1), *rest, *reported])
    means = [f"{np.mean(x):.1f}" for x in PAPER.values()]
    table.append([f"mean of {out['mean']['count']}", *score_cells(out["mean"], 1), *[""] * 4, *means])
    lines = ["| " + " | ".join(map(str, cells)) + " |" for cells in table]
    lines += ["", "The last columns are reported elsewhere: the paper's 7B student, mean of 14, another evaluator."]
    lines += ["Only runs of this one compare. n/a: no file, no answers, or no judge.", ""]
    for r in out["benchmarks"].values():
        for file, found in r["files"].items():
            lines += [f"- {file}: {json.dumps(record)}" for record in found["records"]]
            lines += [f"- {file}: {text}" for text in found["wrong"][:8]]
    rest = {k: v for k, v in out.items() if k not in ("benchmarks", "mean")}
    return "\n".join([*lines, "", "```", json.dumps(rest, indent=1, ensure_ascii=False), "```", ""])


class Remembering:
    """A judge that keeps its replies in judge.jsonl: scoring again asks nothing twice, but for empty replies."""

    def __init__(self, judge, name: str, path: Path):
        self.judge, self.name, self.known = judge, name, AnswerLog(path, "key")

    def ask(self, chats: list, max_tokens: int, temperature: float = 0.0) -> list[str]:
        """judge.Server's ask."""
        keys = [run_key(dict(judge=self.name, temperature=temperature), json.dumps(chat)) for chat in chats]
        new = {key: chat for key, chat in zip(keys, chats, strict=True) if key not in self.known}
        replies = self.judge.ask(list(new.values()), max_tokens, temperature) if new else []
        self.known.add(dict(key=key, reply=reply) for key, reply in zip(new, replies, strict=True) if reply.strip())
        return [self.known.get(key, {}).get("reply", "") for key in keys]


def result_file(name: str, rules: str) -> str:
    """The name of a result under these rules: results.json by the default ones, results.head.json by head."""
    return name if rules == RULES[0] else name.replace(".", f".{rules}.", 1)


def find_tables(data: str, wanted: str, limit: int) -> dict[str, list[Table]]:
    """{benchmark: its files} of --benchmarks, with the rows to ask. With "all" a file may be absent: its benchmark is
    n/a, and said so.
    """
    names = list(BENCHMARKS) if wanted == "all" else wanted.split(",")
    for name in names:
        if name not in BENCHMARKS:
            raise UserError(f"--benchmarks {name}: unknown; there are all, {', '.join(BENCHMARKS)}")
    if not Path(data or "?").is_dir():
        raise UserError(f"--data {data or '(not given)'}: give the folder of the benchmark files (docs/benchmarks.md)")
    paths = {}
    for file in (f for name in names for f in BENCHMARKS[name]):
        places = (Path(data) / x for x in (f"{file}.tsv", f"{file}.jsonl", f"{file}/{file}.json"))
        paths[file] = next((x for x in places if x.is_file()), None)
    absent = [file for file, path in paths.items() if path is None]
    if absent and (wanted != "all" or len(absent) == len(paths)):
        raise UserError(f"{data}/{absent[0]}.tsv: no such file; docs/benchmarks.md says where it comes from")
    if absent:
        print(f"warning: n/a, not in {data}: {', '.join(absent)}")
    there = [name for name in BENCHMARKS if name in names and not set(absent) & set(BENCHMARKS[name])]
    return {name: [choose(read_table(paths[f]), limit) for f in BENCHMARKS[name]] for name in there}


def run_benchmarks(args, judge=None) -> None:
    """Ask and score, then write results.json, results.md and items.jsonl (other rules: see result_file); where other
    ranks are still at work, the last one does. `judge`: see score_all.
    """
    began, benchmarks = time.time(), find_tables(args.data, args.benchmarks, args.limit)
    tables = [table for its in benchmarks.values() for table in its]
    folder = Path(args.into or f"{args.student if Path(args.student).is_dir() else 'runs/' + args.student}-eval")
    judged_by = f"{args.judge} {args.judge_model}".strip() if args.judge != "rule" else judge and "given"
    if judged_by and judge is None:
        judge = Server(args.judge, args.judge_model)
    if not args.score_only:
        ask_benchmarks(args, tables, folder)
    elif not (folder / "settings.json").is_file():
        raise UserError(f"{folder}/settings.json: no such file; run once without --score-only")
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    found = {table.name: read_predictions(table, settings, folder) for table in tables}
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not args.score_only:
        for table in tables:
            if any(row["index"] not in found[table.name][0] for row in table.rows):
                print(f"{table.name}: other ranks are at work; the last one writes the results (or --score-only does)")
                return
    judge = judge and Remembering(judge, judged_by, folder / "judge.jsonl")
    results, items, draws = {}, [], []
    for title, its in benchmarks.items():
        results[title], units, drawn = measure(title, its, found, args.rules, judge)
        items, draws = items + units, draws + [drawn] * bool(units)
    scores = {n: r["score"] for n, r in results.items() if r["score"] is not None}
    total = dict(count=len(scores), score=mean(list(scores.values())), of=list(scores), interval=None)
    if draws:
        total["interval"] = [100 * x for x in middle(np.mean(draws, 0))]
    out = dict(mean=total, benchmarks=results, rules=args.rules, judge=judged_by, limit=args.limit, settings=settings)
    out["run"] = (
        json.loads((folder / "run.json").read_text(encoding="utf-8")) if (folder / "run.json").is_file() else {}
    )
    write(folder / result_file("items.jsonl", args.rules), as_jsonl(items))
    write(folder / result_file("results.json", args.rules), json.dumps(out, indent=1, ensure_ascii=False) + "\n")
    write(folder / result_file("results.md", args.rules), markdown(out))
    for name, r in results.items():
        unparsed = "" if r["score"] is None else f"  unparsed {r['unparsed']:.3f}"
        print(f"{name}: {'  95 % '.join(filter(None, score_cells(r, 2)))}{unparsed}  n {r['n']}")
    print(f"mean of {len(scores)}: {score_cells(total, 2)[0]}  ({time.time() - began:.1f} s)")
    print(f"results: {folder}/{result_file('results.md', args.rules)}")


PAPER = {  # the paper's 7B student (arXiv 2510.19307), measured by its authors' evaluator: beside ours, not against it
    "base": (83.9, 87.3, 67.8, 83.5, 83.4, 71.8, 63.7, 55.0, 38.3, 63.9, 56.4, 77.0, 70.4, 68.5),
    "GRPO": (84.1, 88.8, 69.0, 83.8, 83.9, 72.8, 63.9, 56.2, 40.3, 65.2, 58.9, 77.4, 70.6, 69.4),
    "Dr.GRPO": (84.5, 90.0, 69.5, 84.3, 84.4, 73.5, 64.2, 57.2, 41.8, 66.3, 60.7, 78.0, 70.9, 70.3),
    "RIL": (86.1, 95.6, 79.7, 86.3, 86.5, 80.4, 71.1, 65.7, 48.5, 71.1, 70.0, 80.5, 72.8, 72.8),
}


def main(argv: list[str] | None = None, judge=None) -> None:
    """The command line. `judge` stands in for the server that --judge names."""
    parser = Flags(__doc__)
    parser.add_argument("--student", default="", help="a folder such as runs/NAME/student")
    parser.add_argument("--into", default="", help="a folder for what is found [beside the student]")
    parser.add_argument("--data", default="", help="the folder of benchmark files")
    parser.add_argument("--benchmarks", default="all", help=f"all, or some of {','.join(BENCHMARKS)} [all]")
    parser.add_argument("--judge", default="rule", help="for MM-Vet and MathVista a server, http://HOST/v1")
    parser.add_argument("--judge-model", default="", help="the model to ask that server for")
    parser.add_argument("--max-new-tokens", type=int, default=2048)
    parser.add_argument("--preset", default="paper", choices=PRESETS, help="questions a file: 64, 500 or all [paper]")
    parser.add_argument("--limit", type=int, default=0, help="questions a file, in place of the preset's")
    parser.add_argument("--rules", default="2025-10", choices=RULES, help="whose scoring [2025-10]")
    parser.add_argument("--prompt", default="kit", choices=PROMPTS, help="prompt style [kit]")
    parser.add_argument("--suffix", default="", help="text behind every prompt, such as the one of training")
    parser.add_argument("--pictures", default="seen", choices=VIEWS, help="as a person or the toolkit sees them [seen]")
    parser.add_argument("--min-pixels", type=int, default=0, help="a picture's [as in training]")
    parser.add_argument("--max-pixels", type=int, default=0, help="a picture's [as in training]")
    parser.add_argument("--max-tiles", type=int, default=0, help="a picture's [as in training]")
    parser.add_argument("--batch", type=int, default=64, help="questions answered together")
    parser.add_argument("--check", type=int, default=8, help="first questions to answer alone and in a batch; 0: none")
    parser.add_argument("--dtype", default="", choices=("", "fp32", "bf16"), help="[bf16 on a GPU with it, else fp32]")
    parser.add_argument("--score-only", action="store_true", help="score the predictions that are there; no model")
    args = parser.parse_args(argv)
    if not args.student and not (args.score_only and args.into):
        raise UserError("--student is missing: give a folder such as runs/demo/student")
    if min(args.max_new_tokens, args.batch) < 1 or min(args.limit, args.check) < 0:
        raise UserError("--limit, --check: at least 0; --max-new-tokens, --batch: at least 1")
    args.limit = args.limit or PRESETS[args.preset]
    run_benchmarks(args, judge)


if __name__ == "__main__":
    # read when torch is imported, which happens above on demand (train.py says why)
    os.environ.setdefault("PYTORCH_ALLOC_CONF", os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True"))
    run_command(main)
