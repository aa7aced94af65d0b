"""Measuring a student: accuracy on questions, greedy and sampled, with intervals.

    python eval.py --student runs/demo/student                        # the tiny world's held-out questions
    python eval.py --student runs/demo/student --data mine.jsonl      # your own questions (their test part)
    torchrun --nproc_per_node 8 eval.py ...                           # the same, each GPU a share

The fourteen benchmarks: python -m tools.benchmarks. Two runs against each other: python -m tools.compare.
"""

import hashlib
import json
import math
import os
import shlex
import sys
from functools import partial
from pathlib import Path

import numpy as np

from data import Question, load_questions, split_questions
from engine.command import Flags, UserError, run_command
from engine.files import as_jsonl, write
from judge import Judge
from tiny.world import look, world_questions


def mean(values: list, times: float = 1.0) -> float | None:
    """The mean; None without values or with one that no judge has given."""
    return sum(values) / len(values) * times if values and None not in values else None


def wilson(right: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share by Wilson's score: 8 of 10 -> (0.490, 0.943). n = 0 -> (0, 1)."""
    if n == 0:
        return 0.0, 1.0
    p = right / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def boot_means(values, clusters=None, weights=None, draws: int = 2000, seed: int = 0) -> np.ndarray:
    """Bootstrapped (weighted) means, (draws,): clusters, or single values, are drawn with replacement.

    Means that are averaged later need a seed each, else all draw the same places.
    """
    values = np.asarray(values, float)
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, float)
    place = np.arange(len(values)) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    top, bottom = np.bincount(place, values * weights), np.bincount(place, weights)
    rng, at_once = np.random.default_rng(seed), max(1, 10**6 // len(top))  # so many draws fit into memory
    picks = (rng.integers(0, len(top), (min(at_once, draws - i), len(top))) for i in range(0, draws, at_once))
    return np.concatenate([top[pick].sum(1) / bottom[pick].sum(1) for pick in picks])


def middle(draws) -> tuple[float, float]:
    """The 95 % in the middle of bootstrapped numbers."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def interval(values, clusters, weights=None, seed: int = 0) -> tuple[tuple[float, float], np.ndarray]:
    """(95 % interval of a mean, bootstrapped means). `clusters` says what is drawn together: rows about one picture.

    Wilson's interval stands where every cluster is a single right or wrong row, and where all draws are alike (all
    right: the bootstrap would be sure of it); else the middle of the draws.
    """
    draws, n = boot_means(values, clusters, weights, seed=seed), len(set(clusters))
    if draws.std() > 0 and (n < len(values) or not set(values) <= {0, 1}):
        return middle(draws), draws
    return wilson(float(np.average(values, weights=weights)) * n, n), draws


def greedy_answers(student, prompts: list, names: list[str], max_new_tokens: int, max_rows: int) -> list:
    """The greedy Response to each Prompt, `max_rows` decoded at a time; names are the questions' ids."""
    from rollout import GREEDY, rollout

    return [r for (r,) in rollout(student, prompts, names, 1, max_new_tokens, GREEDY, max_rows=max_rows)]


def evaluate(
    student, questions: list[Question], judge: Judge, max_new_tokens: int, draws: int = 4, seed: int = 0, max_rows=512
) -> dict:
    """Answer every question once greedily and `draws` times at temperature 1, `max_rows` at a time.

    Every rank answers its share and gets all results.
    -> greedy, sampled (accuracies with 95 % intervals, over pictures where questions share one), tokens and entropy of
    the sampled answers, the share that was cut off, accuracy by kind and looks where the world knows them, `texts` (the
    greedy response of each question) and `answers` (each question's picture, greedy response, its verdict, and share).
    """
    from engine.memory import fitting
    from engine.sharding import dealt, gather_dealt, rank_and_world
    from rollout import PURE, rollout

    (asked, own), groups = dealt(questions), []  # a group: the greedy response to a question, then the sampled ones
    from tqdm import tqdm

    def ask(prompts: list, names: list, rows: int) -> tuple[list, list]:
        best = greedy_answers(student, prompts, names, max_new_tokens, rows)
        return best, rollout(student, prompts, names, draws, max_new_tokens, PURE, (seed, "evaluate"), rows)

    for i in tqdm(range(0, len(asked), 128), "questions", delay=2, leave=False, disable=rank_and_world()[0] > 0):
        part = asked[i : i + 128]
        prompts, names = [student.encoder.encode_question(q) for q in part], [q.id for q in part]
        (best, sampled), max_rows = fitting(partial(ask, prompts, names), student, max_rows)
        groups += [[r, *more] for r, more in zip(best, sampled, strict=True)]
    verdicts, rows = iter(judge.verdicts(asked[:own], [r for group in groups[:own] for r in group])), []
    for q, (best, *group) in zip(asked[:own], groups, strict=False):
        row = dict(question=q.id, kind=q.meta.get("kind"), picture=q.meta.get("picture", q.id), text=best.text)
        row["greedy"] = next(verdicts)
        rows.append(row | dict(said=[(next(verdicts), look(q, r.text), r) for r in group]))
    rows = gather_dealt(rows)
    for row in rows:
        row["sampled"] = mean([right for right, _, _ in row["said"]])
    greedy, kinds = [r["greedy"] for r in rows], sorted({r["kind"] for r in rows if r["kind"]})
    out = dict(questions=len(questions), greedy=mean(greedy), texts={r["question"]: r["text"] for r in rows})
    out["answers"] = [{k: r[k] for k in ("question", "picture", "text", "greedy", "sampled")} for r in rows]
    pictures = [r["picture"] for r in rows]
    out["greedy_interval"] = interval(greedy, pictures)[0]
    out["greedy_by_kind"] = {k: mean([r["greedy"] for r in rows if r["kind"] == k]) for k in kinds}
    if draws:
        right, looks, said = zip(*(x for r in rows for x in r["said"]), strict=True)
        shares = [r["sampled"] for r in rows]
        out |= dict(sampled=mean(shares), sampled_interval=interval(shares, pictures)[0])
        out |= dict(tokens=mean([len(r.ids) for r in said]), cut_off=1 - mean([r.finished for r in said]))
        out["entropy"] = float(np.mean([-x for r in said for x in r.logps]))  # nats per sampled token
        if kinds:
            out["looks"] = mean([x is not None for x in looks])
            out["right_looks"] = mean([x for x in looks if x is not None]) or 0.0
            out["right_look_and_answer"] = mean([bool(x and v) for x, v in zip(looks, right, strict=True)])
    return out


def auc(right, wrong) -> float:
    """Chance that a score of `right` is above one of `wrong` (ties count half); 0.5 = the scores say nothing."""
    right, wrong = np.asarray(right)[:, None], np.asarray(wrong)[None]
    return float(((right > wrong) + 0.5 * (right == wrong)).mean()) if right.size and wrong.size else 0.5


def device_here() -> str:
    """This process's GPU, or the CPU."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def load_student(args) -> tuple:
    """(--student on this process's device, the name of what it computes in)."""
    import torch

    from engine.loading import load
    from engine.sharding import has_bf16, start_ranks

    if "MASTER_ADDR" in os.environ:  # under torchrun: all but the first rank of a node wait for its download
        start_ranks(device_here().partition(":")[0])
    dtype = args.dtype or ("bf16" if has_bf16(device_here()) else "fp32")
    student = load(args.student, device=device_here(), dtype=dict(fp32=torch.float32, bf16=torch.bfloat16)[dtype])
    student.encoder.limit_pictures(trained_image_tokens(args.student))
    return student, dtype


def trained_image_tokens(student: str) -> int:
    """Most image tokens of a picture in the run that a student's folder lies in; 1,280 for other real students; 0, as
    the folder says, for tiny ones. Raises UserError where the run's config.json is damaged.
    """
    from config import REAL_IMAGE_TOKENS, is_real
    from engine.folders import read_json

    if Path(student).is_dir() and (config := Path(student).resolve().parent / "config.json").is_file():
        settings = read_json(config).get("settings")
        if isinstance(settings, dict) and isinstance(settings.get("image_tokens"), int):
            return settings["image_tokens"]
    return REAL_IMAGE_TOKENS if is_real(student) else 0


# ------------------------------------------------------------------------------------------------ results
def student_p(t: float, df: int) -> float:
    """Two-sided p of Student's t, df a whole number: the closed form of the integral, exact. (2.571, 5) -> 0.05."""
    angle = math.atan2(abs(t), math.sqrt(df))
    term, total = math.cos(angle) if df % 2 else 1.0, 0.0
    for power in range(df % 2, df - 1, 2):  # cos^power, with the factors 1/2, 3/4 ... or 2/3, 4/5 ...
        total, term = total + term, term * math.cos(angle) ** 2 * (power + 1) / (power + 2)
    total *= math.sin(angle)
    return max(0.0, 1 - (2 / math.pi * (angle + total) if df % 2 else total))


def student_t(df: int, p: float = 0.05) -> float:
    """The t beyond which, on both sides together, Student's distribution has p: 5 -> 2.571."""
    low, high = 0.0, 1e9
    for _ in range(100):
        t = (low + high) / 2
        low, high = (t, high) if student_p(t, df) > p else (low, t)
    return low


def over_seeds(values: list[float]) -> dict:
    """Mean, half width of the 95 % interval by Student's t (None for one seed), and the values themselves."""
    n = len(values)
    half = student_t(n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else None
    return {"mean": float(np.mean(values)), "half": half, "values": values}


def main(argv: list[str] | None = None) -> None:
    """The command line; prints key: value lines."""
    parser = Flags(__doc__)
    parser.add_argument("--student", default="", help="a folder such as runs/NAME/student")
    parser.add_argument("--into", default="", help="a folder for what is found")
    parser.add_argument("--data", default="", help="a JSONL file of questions")
    parts = ("train", "valid", "test", "all")
    parser.add_argument("--part", default="test", choices=parts, help="which part (train.py trains on train) [test]")
    parser.add_argument("--questions", type=int, default=1000, help="how many questions of the tiny world")
    parser.add_argument("--draws", type=int, default=4, help="sampled answers per question")
    parser.add_argument("--max-new-tokens", type=int, default=40)
    parser.add_argument("--judge", default="rule", help="rule, a name, a folder or a URL")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="", choices=("", "fp32", "bf16"), help="[bf16 on a GPU with it, else fp32]")
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(argv)
    if not args.student:
        raise UserError("--student is missing: give a folder such as runs/demo/student")
    if args.draws < 0 or min(args.questions, args.max_new_tokens) < 1:
        raise UserError("--draws: at least 0; --questions, --max-new-tokens: at least 1")
    if Path(args.data or "no").is_dir():
        raise UserError(
            f"--data {args.data}: a folder; a JSONL file is needed (benchmarks: python -m tools.benchmarks)"
        )
    if args.data:
        questions = load_questions(args.data)
        questions = questions if args.part == "all" else split_questions(questions)[args.part]
    else:
        questions = world_questions("test" if args.part == "all" else args.part, args.questions)
    from engine.run import commit_of
    from engine.sharding import rank_and_world, start_ranks

    mesh = start_ranks(device_here().partition(":")[0])
    judge = Judge(args.judge, device=device_here(), mesh=mesh)
    result = evaluate(load_student(args)[0], questions, judge, args.max_new_tokens, args.draws, args.seed)
    del result["texts"]
    answers = result.pop("answers")
    if rank_and_world()[0]:  # the first speaks and writes for all
        return
    if args.into:
        (into := Path(args.into)).mkdir(parents=True, exist_ok=True)
        write(into / "answers.jsonl", as_jsonl(dict(who="after", **row) for row in answers))
        hashed = hashlib.sha256(Path(args.data).read_bytes()).hexdigest()[:16] if args.data else ""
        made = dict(command=shlex.join(["python", "eval.py", *argv]), commit=commit_of())  # as train.py's run says it
        settings = dict(data_hash=hashed, judge=args.judge)  # for tools.compare
        write(into / "config.json", json.dumps(made | dict(settings=settings)) + "\n")
        summary = {f"{name}_after": value for name, value in result.items()} | {"seconds": {}}
        write(into / "summary.json", json.dumps(summary, indent=1) + "\n")
    for name, value in result.items():
        print(f"{name}: {json.dumps(value)}")


if __name__ == "__main__":
    # read when torch is imported, which happens above on demand (train.py says why)
    os.environ.setdefault("PYTORCH_ALLOC_CONF", os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True"))
    run_command(main)
