"""Measuring a student: accuracy on questions, greedy and sampled, with intervals.

    python eval.py --student runs/demo/student                        # the tiny world's held-out questions
    python eval.py --student runs/demo/student --data mine.jsonl      # your own questions (their test part)

Statistics need neither torch nor a model: `import eval` works with numpy alone.
"""

import ast
import json
import math
import re
from pathlib import Path
from string import ascii_uppercase

import numpy as np

from data import Flags, Question, UserError, load_questions, look, run_command, split_questions, world_questions
from judge import Judge


def wilson(right: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share by Wilson's score: 8 of 10 -> (0.490, 0.943). n = 0 -> (0, 1)."""
    if n == 0:
        return 0.0, 1.0
    p = right / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def bootstrap(values, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean of `values` (one per question: questions are drawn, not single answers)."""
    values = np.asarray(values, float)
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(draws)]
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def evaluate(
    student, questions: list[Question], judge: Judge, max_new_tokens: int, draws: int = 4, seed: int = 0
) -> dict:
    """Answer every question once greedily and `draws` times at temperature 1.

    -> greedy, sampled (accuracies with 95 % intervals: Wilson, bootstrap over questions), tokens per sampled answer,
    the share that was cut off, accuracy by kind of question where known, and `texts`: the greedy response of each
    question.
    """
    from rollout import GREEDY, PURE, rollout

    greedy, sampled, tokens, finished, surprise, looks, texts = [], [], [], [], [], [], {}
    for i in range(0, len(questions), 128):
        part = questions[i : i + 128]
        prompts, names, of = [student.encode_question(q) for q in part], [q.id for q in part], {q.id: q for q in part}
        once = rollout(student, prompts, names, 1, max_new_tokens, GREEDY)
        greedy += judge.verdicts(part, [r[0] for r in once])
        texts |= {r[0].question: r[0].text for r in once}
        if draws:
            for group in rollout(student, prompts, names, draws, max_new_tokens, PURE, (seed, "evaluate")):
                verdicts = judge.verdicts(part, group)
                sampled.append(float(np.mean(verdicts)))
                looks += [(look(of[r.question], r.text), v) for r, v in zip(group, verdicts, strict=True)]
                surprise += [-x for r in group for x in r.logps]
                tokens += [len(r.ids) for r in group]
                finished += [r.finished for r in group]
    out = {"questions": len(questions), "greedy": float(np.mean(greedy)), "texts": texts}
    each = zip(questions, greedy, sampled or [None] * len(greedy), strict=True)
    out["answers"] = [{"question": q.id, "greedy": g, "sampled": s} for q, g, s in each]
    out["greedy_interval"] = wilson(sum(greedy), len(greedy))
    kinds = sorted({q.meta["kind"] for q in questions if "kind" in q.meta})
    out["greedy_by_kind"] = {
        k: float(np.mean([g for g, q in zip(greedy, questions, strict=True) if q.meta.get("kind") == k])) for k in kinds
    }
    if draws:
        out |= {"sampled": float(np.mean(sampled)), "sampled_interval": bootstrap(sampled)}
        out |= {"tokens": float(np.mean(tokens)), "cut_off": 1 - float(np.mean(finished))}
        out["entropy"] = float(np.mean(surprise))  # nats per sampled token
        if kinds:
            out["looks"] = float(np.mean([x is not None for x, _ in looks]))
            out["right_looks"] = float(np.mean([x for x, _ in looks if x is not None] or [0.0]))
            out["right_look_and_answer"] = float(np.mean([bool(x) and bool(v) for x, v in looks]))
    return out


# ------------------------------------------------------------------------------------------------ scoring an item
KINDS = {  # how the public toolkit's file names begin -> how an item is scored
    "AI2D": "letter",
    "ChartQA": "chart",
    "MathVista": "math",
    "MMBench": "circular",
    "MMVet": "grade",
    "mm-vet-v2": "grade",
    "MMMU": "mmmu",
    "MMStar": "letter",
    "BLINK": "letter",
    "SEEDBench": "letter",
    "RealWorldQA": "letter",
}
BENCHMARKS = {  # our names in the paper's order -> the public files; the score is the mean of the files' scores
    "ai2d": ("AI2D_TEST",),
    "chartqa": ("ChartQA_TEST",),
    "mathvista": ("MathVista_MINI",),
    "mmb": ("MMBench_DEV_EN",),
    "mmb-cn": ("MMBench_DEV_CN",),
    "mmvet": ("MMVet",),
    "mmvet2": ("mm-vet-v2",),
    "mmmu": ("MMMU_DEV_VAL",),
    "mmmu-pro": ("MMMU_Pro_10c", "MMMU_Pro_V"),
    "mmstar": ("MMStar",),
    "blink": ("BLINK",),
    "seed": ("SEEDBench_IMG",),
    "seed2+": ("SEEDBench2_Plus",),
    "rwqa": ("RealWorldQA",),
}
RULES = ("2025-10", "head")  # the toolkit's rules of October 2025, and its newest (August 2026)
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


def kind_of(benchmark: str) -> str:
    """How a benchmark is scored, from our name or the toolkit's. Raises UserError for any other."""
    name = BENCHMARKS.get(benchmark, (benchmark,))[0]
    for start, kind in KINDS.items():
        if name.startswith(start):
            return kind
    raise UserError(f"benchmark {benchmark!r}: unknown; there are {', '.join(BENCHMARKS)}")


def cell(row: dict, name: str) -> str:
    """A cell as text; "" when it is absent or empty. The word None is text (pandas would take it for an empty cell)."""
    value = row.get(name)
    return "" if value is None or value != value else str(value)  # NaN alone differs from itself


def listed(text) -> list | None:
    """The list that a cell spells, else None: "['red', 'blue']" -> [red, blue]. Nothing is executed."""
    if isinstance(text, list):
        return text
    try:
        value = ast.literal_eval(str(text).strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return value if isinstance(value, list) else None


def options_of(row: dict) -> dict[str, str]:
    """{letter: text} of the columns A, B, C ... that are not empty; texts keep their blanks."""
    return {c: cell(row, c) for c in ascii_uppercase if cell(row, c)}


def find_option(text: str, options: dict[str, str], rules: str) -> str | bool:
    """The letter that a response chooses, "Z" when it refuses, False when nothing can be read (toolkit's rules).

    Example, options A sun, B grass: "(B)" -> B, "It is grass" -> B, "A or B" -> False, "b" -> False, "B. Plants make
    sugar from light" -> False (a letter counts among the last four words only).
    """
    failed = "Failed to obtain answer via API" in text
    if not failed:
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
    compares them with the word None."""
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
    if benchmark in ("mmvet2", "mm-vet-v2"):
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
        needs = not prefetch  # a right 0 counts as not found too
        if reply is not None and needs:
            found, right = math_answer(row, reply, rules)
            return dict(score=float(right), extracted=found, needs_judge=False, prefetch=prefetch)
        return dict(score=float(right), extracted=prefetch, needs_judge=needs, prefetch=prefetch)
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
        groups.setdefault(int(row["index"]) % 1_000_000, []).append((row, score))
    out = []
    for number, group in groups.items():
        first = [row for row, _ in group if int(row["index"]) == number]
        out += [(row, float(all(score == 1 for _, score in group))) for row in first]
    return out


def mean(values: list, times: float = 1.0) -> float | None:
    """The mean; None without values or with one that no judge has given."""
    return sum(values) / len(values) * times if values and None not in values else None


def by_ability(units: list[tuple[dict, float]]) -> list[dict]:
    """One record a split: Overall, then each l2-category and category (MMBench's shortened)."""
    records = []
    for split in sorted({cell(row, "split") or "none" for row, _ in units}):
        here = [(row, x) for row, x in units if (cell(row, "split") or "none") == split]
        record = {"split": split, "Overall": mean([x for _, x in here])}
        for column in ("l2-category", "category"):
            for name in sorted({cell(row, column) for row, _ in units} - {""}):
                record[ABILITIES.get(name, name)] = mean([x for row, x in here if cell(row, column) == name])
        records.append(record)
    return records


def score_rows(benchmark: str, rows: list[dict], predictions: list[str], rules: str = "2025-10", judge=None) -> list:
    """A file's records, as the toolkit reports them: [{split, Overall, abilities ...}] in [0, 1].

    ChartQA: one record in percent with both halves. MM-Vet: [{Category, tot, acc}] in percent, acc None without a
    judge. BLINK gets a second record without the relabelled sub-task, where it has that one.
    """
    return records_of(benchmark, rows, [x["score"] for x in score_all(benchmark, rows, predictions, rules, judge)])


def score_all(benchmark: str, rows: list[dict], predictions: list[str], rules: str, judge=None) -> list[dict]:
    """score_item of every row; the judge (judge.Server or the like) is asked for what the rules cannot say."""
    pairs = list(zip(rows, predictions, strict=True))
    replies = judge_replies(benchmark, pairs, rules, judge) if judge else [None] * len(pairs)
    return [score_item(benchmark, row, said, rules, r) for (row, said), r in zip(pairs, replies, strict=True)]


def records_of(benchmark: str, rows: list[dict], scores: list) -> list[dict]:
    """The records of `score_rows`, from the rows' scores."""
    kind, units = kind_of(benchmark), units_of(benchmark, rows, scores)
    if kind == "chart":
        halves = dict.fromkeys(cell(row, "split") for row in rows if cell(row, "split"))
        record = {h: mean([x for row, x in units if cell(row, "split") == h], 100) for h in halves}
        return [record | {"Overall": mean(scores, 100)}]
    if kind == "grade":
        records = []
        for name in ("rec", "ocr", "know", "gen", "spat", "math", "seq"):
            part = [x for row, x in units if name in cell(row, "category")]
            if benchmark in ("MMVet", "mmvet"):  # the toolkit counts items with this capability alone twice
                part += [x for row, x in units if name == cell(row, "category")]
            if part:
                records.append({"Category": name, "tot": len(part), "acc": mean(part, 100)})
        return [*records, {"Category": "Overall", "tot": len(scores), "acc": mean(scores, 100)}]
    records = by_ability(units)
    if benchmark in ("BLINK", "blink") and any(cell(row, "category") == RELABELLED for row in rows):
        rest = by_ability([(row, x) for row, x in units if cell(row, "category") != RELABELLED])
        records += [record | {"split": f"without {RELABELLED}"} for record in rest]
    return records


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
    if kind_of(benchmark) == "grade":
        gold = cell(row, "answer").replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
        text = f"{GRADE}Question: {cell(row, 'question')} | Reference: {gold} | Answer: {said} | Grade:"
    else:
        text = f"{EXTRACT}Question: {cell(row, 'question')} | Response: {said} | Final answer:"
    return [{"role": "user", "content": text}]


def judge_replies(benchmark: str, pairs: list[tuple[dict, str]], rules: str, judge) -> list[str | None]:
    """The judge's reply to each (row, prediction), None where the rules suffice. An MM-Vet reply without a grade is
    asked for anew at temperatures 0.5, 1, 1.5 and 2, then it is a 0."""
    out = [None] * len(pairs)
    todo = [i for i, (row, said) in enumerate(pairs) if score_item(benchmark, row, said, rules)["needs_judge"]]
    kind = kind_of(benchmark)
    if kind not in ("grade", "math"):
        return out
    for attempt in range(5 if kind == "grade" else 1):
        chats = [judge_chat(benchmark, *pairs[i]) for i in todo]
        replies = judge.ask(chats, 16 if kind == "grade" else 64, attempt * 0.5) if chats else []
        for i, reply in zip(todo, replies, strict=True):
            out[i] = reply
        todo = [i for i in todo if kind == "grade" and grade_of(benchmark, out[i]) is None]
    for i in todo if kind == "grade" else ():
        out[i] = "0"
    return out


def auc(right, wrong) -> float:
    """Chance that a score of `right` is above one of `wrong` (ties count half); 0.5 = the scores say nothing."""
    right, wrong = np.asarray(right)[:, None], np.asarray(wrong)[None]
    return float(((right > wrong) + 0.5 * (right == wrong)).mean()) if right.size and wrong.size else 0.5


# ------------------------------------------------------------------------------------------------ showing it
def write_samples(folder: Path, samples: list[tuple]) -> None:
    """samples.md: pictures and questions with [{who, text, similarity, answer}] each."""
    (folder / "samples").mkdir(exist_ok=True)
    out = ["# Before and after", "", "Held-out questions, greedy answers. similarity: 1 where the pre-trained"]
    out += ["discriminator takes the text for a teacher's; answer: 1 where the judge calls it right.", ""]
    for i, (q, rows) in enumerate(samples):
        for k, picture in enumerate(q.pictures()):
            scale = max(1, 168 // max(picture.size))
            picture.resize([x * scale for x in picture.size], 0).save(folder / "samples" / f"{i}-{k}.png")
            out += [f"![{q.id}](samples/{i}-{k}.png)", ""]
        out += [f"**{q.text}** (reference: {q.answer})", ""]
        out += ["| who | response | similarity | answer |", "|---|---|---|---|"]
        for r in rows:
            text = r["text"].replace("|", "/").replace("\n", " ")
            out.append(f"| {r['who']} | {text} | {r.get('similarity', '-')} | {r['answer']} |")
        out.append("")
    (folder / "samples.md.part").write_text("\n".join(out))
    (folder / "samples.md.part").replace(folder / "samples.md")


def draw_curves(folder: Path, rows: list[dict], validations: list[dict]) -> None:
    """curves.png, the three panels of the paper's figure 5; without matplotlib the numbers stay in metrics.jsonl."""
    try:
        import matplotlib
    except ImportError:
        print(f"  no curves.png: pip install matplotlib draws it; the numbers are in {folder}/metrics.jsonl")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), constrained_layout=True)
    steps = [r["step"] + 1 for r in rows]
    for axis, name, color in zip(axes, ("similarity", "answer"), ("tab:blue", "tab:green"), strict=False):
        y = [r[name] for r in rows]
        axis.plot(steps, y, color=color, alpha=0.25)
        axis.plot(steps, [np.mean(y[max(0, i - 4) : i + 5]) for i in range(len(y))], color=color, label="student")
        axis.plot(steps, [r[f"teacher_{name}"] for r in rows], "--", color="0.6", lw=1, label="teacher rows")
        axis.set(title=f"{name} reward (training questions)", xlabel="step", ylim=(-0.02, 1.02))
    x = [r["step"] + 1 for r in validations]
    axes[2].plot(x, [r["valid_sampled"] for r in validations], "o-", ms=3, color="tab:red", label="sampled")
    axes[2].plot(x, [r["valid_greedy"] for r in validations], "s--", ms=3, color="tab:orange", label="greedy")
    axes[2].set(title="accuracy (validation questions)", xlabel="step")
    for axis in axes:
        axis.legend(frameon=False, fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(folder / "curves.part.png", dpi=110)
    plt.close(figure)
    (folder / "curves.part.png").replace(folder / "curves.png")


STUDENT_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}  # 97.5 %, by n


def over_seeds(values: list[float]) -> dict:
    """Mean, half width of the 95 % interval by Student's t (None for one seed), and the values themselves."""
    n = len(values)
    half = STUDENT_T.get(n, 2.0) * float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else None
    return {"mean": float(np.mean(values)), "half": half, "values": values}


# ------------------------------------------------------------------------------------------------ a run's log
def loop_rows(run: Path) -> list[dict]:
    """The steps of a run's loop, from metrics.jsonl."""
    rows = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    return [r for r in rows if r["stage"] == "ril" and "loss" in r]


def start_and_end(rows: list[dict]) -> dict[str, float]:
    """Means over the first and the last five steps (fewer in a short run) of what is worth comparing."""
    few, out = max(1, min(5, len(rows) // 2)), {}
    for name in ("similarity", "answer", "d_accuracy", "look_auc", "dead_groups", "nll_student", "nll_teacher"):
        if rows and name in rows[0]:
            out[f"{name}_start"] = round(float(np.mean([r[name] for r in rows[:few]])), 4)
            out[f"{name}_end"] = round(float(np.mean([r[name] for r in rows[-few:]])), 4)
    return out


def main() -> None:
    """The command line; prints key: value lines."""
    parser = Flags(__doc__)
    parser.add_argument("--student", default="", help="a folder such as runs/NAME/student")
    parser.add_argument("--into", default="", help="a folder for summary.json and answers.jsonl (one line a question)")
    parser.add_argument(
        "--data", default="", help="a JSONL file of questions (default: the tiny world's test questions)"
    )
    parts = ("train", "valid", "test", "all")
    parser.add_argument("--part", default="test", choices=parts, help="which part (train.py trains on train) [test]")
    parser.add_argument("--questions", type=int, default=1000, help="how many questions of the tiny world")
    parser.add_argument("--draws", type=int, default=4, help="sampled answers per question")
    parser.add_argument("--max-new-tokens", type=int, default=40)
    parser.add_argument("--judge", default="rule")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not args.student:
        raise UserError("--student is missing: give a folder such as runs/demo/student")
    if args.draws < 0 or args.questions < 1 or args.max_new_tokens < 1:
        raise UserError("--draws must be at least 0, --questions and --max-new-tokens at least 1")
    if args.data:
        questions = load_questions(args.data)
        questions = questions if args.part == "all" else split_questions(questions)[args.part]
    else:
        questions = world_questions("test" if args.part == "all" else args.part, args.questions)
    from model import load

    judge = Judge(args.judge)
    result = evaluate(load(args.student), questions, judge, args.max_new_tokens, args.draws, args.seed)
    del result["texts"]
    answers = result.pop("answers")
    if args.into:
        into = Path(args.into)
        into.mkdir(parents=True, exist_ok=True)
        (into / "answers.jsonl").write_text("".join(json.dumps(dict(who="after", **row)) + "\n" for row in answers))
        summary = {f"{name}_after": value for name, value in result.items()} | {"seconds": {}}
        (into / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    for name, value in result.items():
        print(f"{name}: {json.dumps(value)}")


if __name__ == "__main__":
    run_command(main)
