"""Measuring a student: accuracy on questions, greedy and sampled, with intervals.

    python eval.py --student runs/demo/student                        # the tiny world's held-out questions
    python eval.py --student runs/demo/student --data mine.jsonl      # your own questions (their test part)

Statistics need neither torch nor a model: `import eval` works with numpy alone.
"""

import json
import math
from pathlib import Path

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
    """Answer every question once greedily and `draws` times at temperature 1; over ranks, each its share.

    -> greedy, sampled (accuracies with 95 % intervals: Wilson, bootstrap over questions), tokens per sampled answer,
    the share that was cut off, accuracy by kind of question where known, and `texts`: the greedy response of each
    question.
    """
    from model import deal, everyone
    from rollout import GREEDY, PURE, rollout

    mine, once, many = deal(questions), [], []
    for i in range(0, len(mine), 128):
        part = mine[i : i + 128]
        prompts, names = [student.encode_question(q) for q in part], [q.id for q in part]
        once += [r for (r,) in rollout(student, prompts, names, 1, max_new_tokens, GREEDY)]
        many += rollout(student, prompts, names, draws, max_new_tokens, PURE, (seed, "evaluate"))
    right = judge.verdicts(mine, once)
    verdicts, rows = iter(judge.verdicts(mine, [r for group in many for r in group])), []
    for q, best, greedy, group in zip(mine, once, right, many, strict=True):
        row = dict(question=q.id, kind=q.meta.get("kind"), text=best.text, greedy=greedy)
        row["said"] = [(look(q, r.text), next(verdicts), len(r.ids), r.finished) for r in group]
        row["surprise"] = [-x for r in group for x in r.logps]
        rows.append(row)
    rows = everyone(rows)
    greedy, said = [r["greedy"] for r in rows], [x for r in rows for x in r["said"]]
    sampled = [float(np.mean([v for _, v, _, _ in r["said"]])) if draws else None for r in rows]
    out = {
        "questions": len(questions),
        "greedy": float(np.mean(greedy)),
        "texts": {r["question"]: r["text"] for r in rows},
    }
    each = zip(rows, greedy, sampled, strict=True)
    out["answers"] = [{"question": r["question"], "greedy": g, "sampled": s} for r, g, s in each]
    out["greedy_interval"] = wilson(sum(greedy), len(greedy))
    kinds = sorted({r["kind"] for r in rows if r["kind"]})
    out["greedy_by_kind"] = {k: float(np.mean([r["greedy"] for r in rows if r["kind"] == k])) for k in kinds}
    if draws:
        looks, verdicts, tokens, finished = zip(*said, strict=True)
        out |= {"sampled": float(np.mean(sampled)), "sampled_interval": bootstrap(sampled)}
        out |= {"tokens": float(np.mean(tokens)), "cut_off": 1 - float(np.mean(finished))}
        out["entropy"] = float(np.mean([x for r in rows for x in r["surprise"]]))  # nats per sampled token
        if kinds:
            out["looks"] = float(np.mean([x is not None for x in looks]))
            out["right_looks"] = float(np.mean([x for x in looks if x is not None] or [0.0]))
            out["right_look_and_answer"] = float(
                np.mean([bool(x) and bool(v) for x, v in zip(looks, verdicts, strict=True)])
            )
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
