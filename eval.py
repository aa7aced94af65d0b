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
    """Bootstrapped (weighted) means, (draws,): clusters, or single values, are drawn with replacement."""
    values = np.asarray(values, float)
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, float)
    place = np.arange(len(values)) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    top, bottom = np.bincount(place, values * weights), np.bincount(place, weights)
    rng = np.random.default_rng(seed)
    picks = (rng.integers(0, len(top), len(top)) for _ in range(draws))
    return np.array([top[pick].sum() / bottom[pick].sum() for pick in picks])


def middle(draws) -> tuple[float, float]:
    """The 95 % in the middle of bootstrapped numbers."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def greedy_answers(student, prompts: list, names: list[str], max_new_tokens: int, max_rows: int) -> list:
    """The greedy Response to each Prompt, `max_rows` decoded at a time; names are the questions' ids."""
    from rollout import GREEDY, rollout

    return [r for (r,) in rollout(student, prompts, names, 1, max_new_tokens, GREEDY, max_rows=max_rows)]


def evaluate(
    student, questions: list[Question], judge: Judge, max_new_tokens: int, draws: int = 4, seed: int = 0, max_rows=512
) -> dict:
    """Answer every question once greedily and `draws` times at temperature 1, `max_rows` at a time.

    Every rank answers its share and gets all results.
    -> greedy, sampled (accuracies with 95 % intervals: Wilson, bootstrap over questions), tokens and entropy of the
    sampled answers, the share that was cut off, accuracy by kind and looks where the world knows them, `texts` (the
    greedy response of each question) and `answers` (each question's verdict and share).
    """
    from engine.sharding import dealt, gather_dealt, rank_and_world
    from rollout import PURE, rollout

    (asked, own), groups = dealt(questions), []  # a group: the greedy response to a question, then the sampled ones
    from tqdm import tqdm

    for i in tqdm(range(0, len(asked), 128), "questions", delay=2, leave=False, disable=rank_and_world()[0] > 0):
        part = asked[i : i + 128]
        prompts, names = [student.encoder.encode_question(q) for q in part], [q.id for q in part]
        best = greedy_answers(student, prompts, names, max_new_tokens, max_rows)
        sampled = rollout(student, prompts, names, draws, max_new_tokens, PURE, (seed, "evaluate"), max_rows)
        groups += [[r, *more] for r, more in zip(best, sampled, strict=True)]
    verdicts, rows = iter(judge.verdicts(asked[:own], [r for group in groups[:own] for r in group])), []
    for q, (best, *group) in zip(asked[:own], groups, strict=False):
        row = dict(question=q.id, kind=q.meta.get("kind"), text=best.text, greedy=next(verdicts))
        rows.append(row | dict(said=[(next(verdicts), look(q, r.text), r) for r in group]))
    rows = gather_dealt(rows)
    for row in rows:
        row["sampled"] = mean([right for right, _, _ in row["said"]])
    greedy, kinds = [r["greedy"] for r in rows], sorted({r["kind"] for r in rows if r["kind"]})
    out = dict(questions=len(questions), greedy=mean(greedy), texts={r["question"]: r["text"] for r in rows})
    out["answers"] = [{k: r[k] for k in ("question", "greedy", "sampled")} for r in rows]
    out["greedy_interval"] = wilson(sum(greedy), len(greedy))
    out["greedy_by_kind"] = {k: mean([r["greedy"] for r in rows if r["kind"] == k]) for k in kinds}
    if draws:
        right, looks, said = zip(*(x for r in rows for x in r["said"]), strict=True)
        shares = [r["sampled"] for r in rows]
        out |= dict(sampled=mean(shares), sampled_interval=middle(boot_means(shares)))
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
    from engine.sharding import start_ranks

    if "MASTER_ADDR" in os.environ:  # under torchrun: all but the first rank of a node wait for its download
        start_ranks(device_here().partition(":")[0])
    dtype = args.dtype or ("fp32" if device_here() == "cpu" else "bf16")
    student = load(args.student, device=device_here(), dtype=dict(fp32=torch.float32, bf16=torch.bfloat16)[dtype])
    student.encoder.limit_pictures(trained_image_tokens(args.student))
    return student, dtype


def trained_image_tokens(student: str) -> int:
    """Most image tokens of a picture in the run that a student's folder lies in; 1,280 for other real students; 0, as
    the folder says, for tiny ones.
    """
    from config import REAL_IMAGE_TOKENS, is_real

    if Path(student).is_dir() and (config := Path(student).resolve().parent / "config.json").is_file():
        settings = json.loads(config.read_text(encoding="utf-8")).get("settings", {})
        if "image_tokens" in settings:
            return settings["image_tokens"]
    return REAL_IMAGE_TOKENS if is_real(student) else 0


# ------------------------------------------------------------------------------------------------ results
STUDENT_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}  # 97.5 %, by n


def over_seeds(values: list[float]) -> dict:
    """Mean, half width of the 95 % interval by Student's t (None for one seed), and the values themselves."""
    n = len(values)
    half = STUDENT_T.get(n, 2.0) * float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else None
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
    parser.add_argument("--dtype", default="", choices=("", "fp32", "bf16"), help="[bf16 on a GPU, else fp32]")
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
        settings = dict(data_hash=hashed, judge=args.judge)  # as train.py's run says it, for tools.compare
        write(into / "config.json", json.dumps(dict(settings=settings)) + "\n")
        summary = {f"{name}_after": value for name, value in result.items()} | {"seconds": {}}
        write(into / "summary.json", json.dumps(summary, indent=1) + "\n")
    for name, value in result.items():
        print(f"{name}: {json.dumps(value)}")


if __name__ == "__main__":
    # read when torch is imported, which happens above on demand (train.py says why)
    os.environ.setdefault("PYTORCH_ALLOC_CONF", os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True"))
    run_command(main)
