"""The paper's fourteen benchmarks: their public files, their prompts, and the public toolkit's scoring rules.

score_item and score_rows give what the toolkit (open-compass/VLMEvalKit) gives on the same text, checked case by case
in test_ril.py, with the rules of October 2025 or its newest. Left out on purpose: its random guess where nothing can be
read, its table reader (which takes the option "None" for an empty cell), downloading.

No torch here: the standard library is enough to score, Pillow is needed only to open pictures.
"""

import ast
import base64
import contextlib
import csv
import hashlib
import io
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_uppercase

from data import UserError, open_picture, seed_of

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

    rows: {column: text} each; wrong: what was left out, by file and line; twin: index -> the first row with that
    picture.
    """

    path: Path
    rows: list[dict] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    places: dict = field(default_factory=dict)  # index -> (first byte, bytes) of the row, or a list of picture files
    twin: dict = field(default_factory=dict)
    header: list[str] = field(default_factory=list)
    md5: str = ""
    count: int = 0  # of rows, before `choose`

    @property
    def name(self) -> str:
        """The public file's name."""
        return self.path.stem

    def row(self, record: str | list) -> dict:
        """The row that a line of JSON or a list of cells holds. Raises ValueError for a torn one."""
        if isinstance(record, list) and len(record) != len(self.header):
            raise ValueError(f"torn, {len(record)} of {len(self.header)} cells")
        row = json.loads(record) if isinstance(record, str) else dict(zip(self.header, record, strict=True))
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

    def pictures(self, index: str) -> list:
        """A row's pictures (PIL, RGB): its cell holds base64, a path beside the file, a list of either, or the index of
        the row that has them. Raises UserError naming file and row.
        """
        cell, out = self.cell(index), []
        cell = self.cell(cell) if isinstance(cell, str) and cell in self.places else cell
        for one in map(str, listed(cell) or [cell]):
            source = self.path.parent / one
            if not is_picture(one):
                source = io.BytesIO()  # no base64: an empty file, which cannot be read either
                with contextlib.suppress(ValueError):
                    source = io.BytesIO(base64.b64decode(one.rpartition("base64,")[2]))
            out.append(open_picture(source, f"{self.path}: row {index}"))
        return out


def interleaved(index: str, row: dict) -> dict:
    """A row of MM-Vet-v2 as one of MMMU: "words<IMG>v2_0.png<IMG>words" -> "words<image 1>words" and its pictures."""
    parts = row["question"].split("<IMG>")
    names = [x for x in parts if is_picture(x)]
    text = "".join(f"<image {names.index(x) + 1}>" if x in names else x for x in parts)
    category, pictures = ",".join(row["capability"]), [f"images/{x}" for x in names]
    return row | dict(index=index, question=text, category=category, image=pictures)


def read_table(path: str | Path) -> Table:
    """A benchmark's .tsv or .jsonl file, or MM-Vet-v2's .json, read once. Rows that are torn, doubled or without a
    picture are left out and named in `wrong`. Raises UserError for a missing column or a file that is no table.
    """
    table, digest, seen = Table(Path(path)), hashlib.md5(usedforsecurity=False), {}
    needed = ["index", "answer", "image", *["question"] * (table.name != "MMMU_Pro_V")]  # there: in the picture
    csv.field_size_limit(2**31 - 1)

    def lines(file):
        for line in iter(file.readline, b""):  # so that file.tell() is the end of the line
            digest.update(line)
            yield line.decode("utf-8-sig", "replace")

    try:
        with table.path.open("rb") as file:
            records = lines(file)
            if table.path.suffix == ".tsv":
                records = csv.reader(records, delimiter="\t")
                table.header = next(records, [])
            elif table.path.suffix == ".json":  # {id: row}
                records = [interleaved(*x) for x in json.loads("".join(records)).items()]
            end = file.tell()
            for number, record in enumerate(records, 1 + bool(table.header)):
                start, end, where = end, file.tell(), f"{table.path}: row {number}"
                if not record or record == "\n":
                    continue
                try:
                    row = record if isinstance(record, dict) else table.row(record)
                    if missing := [x for x in needed if x not in row]:
                        raise UserError(f"{where}: column {missing[0]!r} is missing; it has {', '.join(row)}")
                    index, picture = str(row["index"]), row.pop("image")
                    if not picture or index in table.places:
                        raise ValueError(f"index {index} " + ("stands twice" if picture else "has no picture"))
                except ValueError as error:  # a JSONDecodeError is one
                    table.wrong.append(f"{where}: {error}")
                    continue
                table.rows.append(row | {"index": index})
                table.places[index] = picture if isinstance(record, dict) else (start, end - start)
                cell = str(picture)  # another row's index, or what is to be seen
                table.twin[index] = table.twin.get(cell) or seen.setdefault(hash(cell), index)
    except (csv.Error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{table.path}: not a benchmark file ({type(error).__name__}: {error})") from None
    if not table.rows:
        raise UserError(f"{table.path}: no rows; {'; '.join(table.wrong[:3]) or 'the file is empty'}")
    table.md5, table.count = digest.hexdigest(), len(table.rows)
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
RELABELLED = "Relative_Reflectance"  # BLINK's sub-task whose labels were repaired in 2025


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


def mean(values: list, times: float = 1.0) -> float | None:
    """The mean; None without values or with one that no judge has given."""
    return sum(values) / len(values) * times if values and None not in values else None


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
    """score_item of every row; the judge (judge.Server or the like) is asked for what the rules of MM-Vet and MathVista
    cannot say. A grade that is none is asked for anew at temperatures 0.5, 1, 1.5 and 2, as in the toolkit; then it is
    a 0.
    """
    items = [score_item(benchmark, row, said, rules) for row, said in zip(rows, predictions, strict=True)]
    for attempt in range(6) if judge and kind_of(benchmark) in ("grade", "math") else ():
        todo = [i for i, x in enumerate(items) if x["needs_judge"]]
        chats = [judge_chat(benchmark, rows[i], predictions[i]) for i in todo]
        replies = judge.ask(chats, 64, attempt * 0.5) if chats and attempt < 5 else ["0"] * len(todo)
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
