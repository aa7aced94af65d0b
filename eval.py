"""Measuring a student: accuracy on questions, greedy and sampled, with intervals.

    python eval.py --student runs/demo/student                        # the tiny world's held-out questions
    python eval.py --student runs/demo/student --data mine.jsonl      # your own questions

Statistics need neither torch nor a model: `import eval` works with numpy alone.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np

from data import Question, load_questions, run_command, world_questions
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

    greedy, sampled, tokens, finished, texts = [], [], [], [], {}
    for i in range(0, len(questions), 128):
        part = questions[i : i + 128]
        prompts, names = [student.encode_question(q) for q in part], [q.id for q in part]
        once = rollout(student, prompts, names, 1, max_new_tokens, GREEDY)
        greedy += judge.verdicts(part, [r[0] for r in once])
        texts |= {r[0].question: r[0].text for r in once}
        if draws:
            for group in rollout(student, prompts, names, draws, max_new_tokens, PURE, (seed, "evaluate")):
                sampled.append(float(np.mean(judge.verdicts(part, group))))
                tokens += [len(r.ids) for r in group]
                finished += [r.finished for r in group]
    out = {"questions": len(questions), "greedy": float(np.mean(greedy)), "texts": texts}
    out["greedy_interval"] = wilson(sum(greedy), len(greedy))
    kinds = sorted({q.meta["kind"] for q in questions if "kind" in q.meta})
    out["greedy_by_kind"] = {
        k: float(np.mean([g for g, q in zip(greedy, questions, strict=True) if q.meta.get("kind") == k])) for k in kinds
    }
    if draws:
        out |= {"sampled": float(np.mean(sampled)), "sampled_interval": bootstrap(sampled)}
        out |= {"tokens": float(np.mean(tokens)), "cut_off": 1 - float(np.mean(finished))}
    return out


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
            out.append(f"| {r['who']} | {text} | {r['similarity']} | {r['answer']} |")
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


def main() -> None:
    """The command line; prints key: value lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", required=True, help="a folder such as runs/NAME/student")
    parser.add_argument(
        "--data", default="", help="a JSONL file of questions (default: the tiny world's test questions)"
    )
    parser.add_argument("--questions", type=int, default=1000, help="how many questions of the tiny world")
    parser.add_argument("--draws", type=int, default=4, help="sampled answers per question")
    parser.add_argument("--max-new-tokens", type=int, default=40)
    parser.add_argument("--judge", default="rule")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    from model import load

    questions = load_questions(args.data) if args.data else world_questions("test", args.questions)
    judge = Judge(args.judge)
    result = evaluate(load(args.student), questions, judge, args.max_new_tokens, args.draws, args.seed)
    result.pop("texts")
    for name, value in result.items():
        print(f"{name}: {json.dumps(value)}")


if __name__ == "__main__":
    run_command(main)
