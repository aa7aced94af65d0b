"""A judge against labelled responses: how often does it agree with a person?

python -m tools.calibrate results/judge_cases.jsonl --judge rule
"""

import os

from data import Question
from engine.command import Flags, UserError, run_command
from engine.files import read_jsonl
from eval import device_here, wilson
from judge import Judge


# ------------------------------------------------------------------------------------------------ calibration
def agreement(labels: list[int], verdicts: list[int]) -> dict:
    """A judge's calibration in counts: n, right, negatives (label 0), false_positives, positives, false_negatives."""
    both = list(zip(labels, verdicts, strict=True))
    return {
        "n": len(both),
        "right": sum(a == b for a, b in both),
        "negatives": labels.count(0),
        "false_positives": both.count((0, 1)),
        "positives": labels.count(1),
        "false_negatives": both.count((1, 0)),
    }


# ------------------------------------------------------------------------------------------------ calibration
def calibrate(path: str, names: list[str]) -> None:
    """Prints each judge's agreement with labelled lines {question, answer, response, label}, then that of each pair."""
    pairs, labels, found = [], [], {}
    for where, row in read_jsonl(path, ("question", "answer", "response", "label")):
        if row["label"] not in (0, 1) or not all(isinstance(row[k], str) for k in ("question", "answer", "response")):
            raise UserError(f"{where}: question, answer and response must be texts, label 0 or 1")
        pairs.append((Question(where, (), row["question"], row["answer"]), row["response"]))
        labels.append(int(row["label"]))
    for name in names:
        judge = Judge(name, device=device_here() if name != "rule" else "cpu")
        found[name] = judge.score(pairs)
        bad, count = judge.malformed_counts()
        print(f"{name} malformed: {bad / count:.3f}")
    for i, (name, verdicts) in enumerate(found.items()):
        for against, truth in [("the labels", labels), *list(found.items())[:i]]:
            n = agreement(truth, verdicts)
            for part, whole in (("right", "n"), ("false_positives", "negatives"), ("false_negatives", "positives")):
                low, high = wilson(n[part], n[whole])
                what, share = part.replace("right", "accuracy").replace("_", " "), n[part] / max(n[whole], 1)
                print(f"{name} against {against}: {what} {n[part]}/{n[whole]} = {share:.3f} [{low:.3f}, {high:.3f}]")


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = Flags(__doc__)
    parser.add_argument("cases", help="JSONL of question, answer, response, label (1: right)")
    parser.add_argument("--judge", default="rule", help="a judge, or several: rule,FOLDER,http://HOST/v1 [rule]")
    args = parser.parse_args(argv)
    calibrate(args.cases, args.judge.split(","))


if __name__ == "__main__":
    # read when torch is imported, which happens above on demand (train.py says why)
    os.environ.setdefault("PYTORCH_ALLOC_CONF", os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True"))
    run_command(main)
