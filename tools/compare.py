"""Is B better than A? Two runs, or two comma lists of runs (several seeds a side), or two rows of a study.

python -m tools.compare runs/A runs/B
python -m tools.compare base-eval ril-eval --into compared      # two folders of tools.benchmarks
python -m tools.compare results/main.json:dr_grpo results/main.json:ril-A
"""

import json
import math
from pathlib import Path

import numpy as np

from engine.command import Flags, UserError, run_command
from engine.files import read_jsonl, write
from eval import boot_means, mean, middle, over_seeds, student_p, student_t
from tools.benchmarks import RULES, bootstrap_seed, result_file


# ------------------------------------------------------------------------------------------------ comparing
def mcnemar(won: int, lost: int) -> float:
    """Exact two-sided p of won against lost pairs if each were a fair coin: 10 and 2 -> 0.0386; none -> 1."""
    n, k = won + lost, min(won, lost)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)


def sign_flips(sums, draws: int = 5000, seed: int = 0) -> float:
    """p of the sum of these numbers, one a cluster, if each one's sign were a fair coin."""
    sums = np.asarray(sums, float)[np.nonzero(sums)]
    rng, at_once, hits = np.random.default_rng(seed), max(1, 10**6 // max(1, len(sums))), 0
    for i in range(0, draws, at_once):
        signs = 2 * rng.integers(0, 2, (min(at_once, draws - i), len(sums)), dtype=np.int8) - 1
        hits += int((np.abs(signs @ sums) >= abs(sums.sum()) * (1 - 1e-9)).sum())
    return (hits + 1) / (draws + 1)


def holm(ps: dict[str, float]) -> dict[str, float]:
    """Holm's p-values for a family of tests: {a: 0.01, b: 0.04} -> {a: 0.02, b: 0.04}."""
    out, worst = {}, 0.0
    for rank, (name, p) in enumerate(sorted(ps.items(), key=lambda x: x[1])):
        out[name] = worst = max(worst, min(1.0, p * (len(ps) - rank)))
    return out


def between_seeds(a: list[float], b: list[float]) -> dict:
    """B's trainings minus A's by Student's t, one score each -> {difference, half, interval, p, visible, about}.

    As many on both sides: pairs, in the order given. Else Welch's test, its degrees of freedom rounded down. One score
    on a side is taken as it is. visible: the difference that is found in 80 % of such comparisons.
    """
    if len(a) == len(b):
        d = np.subtract(b, a)
        se, df, about = float(np.std(d, ddof=1)) / math.sqrt(len(d)), len(d) - 1, f"{len(d)} pairs of seeds"
    else:
        several = [(float(np.var(x, ddof=1)) / len(x), len(x) - 1) for x in (a, b) if len(x) > 1]
        se = math.sqrt(sum(v for v, _ in several))
        df = int(se**4 / sum(v * v / n for v, n in several)) if se else 1
        about = " and ".join(f"{len(x)} seeds" if len(x) > 1 else "one run as it is" for x in (a, b))
    difference = float(np.mean(b) - np.mean(a))
    half, p = student_t(df) * se, student_p(difference / se, df) if se else float(difference == 0)
    out = dict(difference=difference, half=half, interval=[difference - half, difference + half], p=p)
    return out | dict(visible=(student_t(df) + student_t(df, 0.4)) * se, about=about)


def between_weights(d, clusters, weights, seed: int, draws: int = 2000) -> tuple[dict, np.ndarray]:
    """One run against another -> (as between_seeds, bootstrapped differences); d: each unit's difference in points.

    The interval draws clusters, and p flips the signs of whole clusters. Where every cluster is one row, and all that
    differ do so by the same amount (right or wrong), p is McNemar's, exact.
    """
    place = np.unique(clusters, return_inverse=True)[1]
    weights = np.asarray(weights) * len(d) / np.sum(weights)
    sums, sizes = np.bincount(place, d * weights), np.bincount(place, weights)
    exact = len(sums) == len(d) and len({*np.abs(d)} - {0}) < 2 and np.ptp(weights) < 1e-9
    spread = np.sum(sums**2) or 0.15 * np.sum((100 * sizes) ** 2)  # nothing differs: as if 15 % of the clusters did
    found = boot_means(d, place, weights, draws, seed)
    out = dict(difference=float(np.mean(d * weights)), interval=list(middle(found)), about="these weights only")
    out["p"] = mcnemar(int(np.sum(d > 0)), int(np.sum(d < 0))) if exact else sign_flips(sums)
    return out | dict(visible=2.8 * math.sqrt(spread) / len(d)), found


def load_run(folder: Path, rules: str = RULES[0]) -> tuple[dict, dict]:
    """(what must agree, {(benchmark, unit): {score, cluster, weight}}) of a folder with benchmark results by these
    rules, or of a run of train.py (its held-out questions, greedy). Raises UserError naming the folder.
    """
    results, items = (folder / result_file(x, rules) for x in ("results.json", "items.jsonl"))
    if items.is_file() and results.is_file():
        out = json.loads(results.read_text(encoding="utf-8"))
        same = out["settings"] | dict(weights=None, rules=out["rules"], judge=out["judge"])
        same["data"] = {f: x["md5"] for r in out["benchmarks"].values() for f, x in r["files"].items()}
        return same, {(r["benchmark"], r["unit"]): r for _, r in read_jsonl(items, torn=[])}
    if not (folder / "answers.jsonl").is_file():
        raise UserError(f"{folder}: neither {results.name} with {items.name} (tools.benchmarks) nor answers.jsonl")
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))["settings"]
    rows = [r for _, r in read_jsonl(folder / "answers.jsonl", torn=[]) if r["who"] == "after"]
    units = {}
    for r in rows:  # runs from before pictures were written: each question has its own
        picture = r.get("picture", r["question"])
        units["questions", r["question"]] = dict(score=r["greedy"], cluster=picture, weight=1)
    return {k: settings[k] for k in ("data_hash", "judge")}, units


def compare(side_a: list[Path], side_b: list[Path], rules: str = RULES[0]) -> dict:
    """Side B against side A, both lists of seeds -> {benchmark: {a, b, difference, interval, p, holm, won, lost,
    visible, about}, "mean": ...} in points. Raises UserError when anything but the weights differs: data, prompt ...
    """
    runs = {path: load_run(path, rules) for path in (*side_a, *side_b)}
    first, (same, units) = next(iter(runs.items()))
    for path, (other, theirs) in runs.items():
        for key in same.keys() | other.keys():
            if same.get(key) != other.get(key):
                raise UserError(f"{path}: {key} differs from that of {first}: {other.get(key)}, {same.get(key)}")
        if odd := units.keys() ^ theirs.keys():
            raise UserError(f"{path}: {min(odd)[0]} was not measured on the same questions as in {first}")
    out, all_draws, several = {}, [], len(side_a) + len(side_b) > 2
    for name in dict.fromkeys(name for name, _ in units):
        ids = sorted(unit for of, unit in units if of == name)
        cluster, weight = ([units[name, u][k] for u in ids] for k in ("cluster", "weight"))
        x = {path: 100 * np.array([theirs[name, u]["score"] for u in ids], float) for path, (_, theirs) in runs.items()}
        a, b = ([float(np.average(x[path], weights=weight)) for path in side] for side in (side_a, side_b))
        d = np.mean([x[path] for path in side_b], 0) - np.mean([x[path] for path in side_a], 0)
        seed = bootstrap_seed(name)
        found, drawn = (between_seeds(a, b), None) if several else between_weights(d, cluster, weight, seed)
        won, lost = ([u for u, v in zip(ids, sign * d, strict=True) if v > 0] for sign in (1, -1))
        out[name] = dict(a=over_seeds(a), b=over_seeds(b), n=len(ids)) | found
        out[name] |= dict(won=len(won), lost=len(lost), won_first=won[:10], lost_first=lost[:10])
        all_draws.append(drawn)
    for name, p in holm({name: r["p"] for name, r in out.items()}).items():
        out[name]["holm"] = p
    if len(out) > 1 and several:
        out["mean"] = between_seeds(*(np.mean([r[side]["values"] for r in out.values()], 0) for side in "ab"))
    elif len(out) > 1:
        out["mean"] = dict(difference=mean([r["difference"] for r in out.values()]), about="these weights only")
        out["mean"]["interval"] = list(middle(np.mean(all_draws, 0)))
    return out


def load_cell(name: str) -> tuple[Path, dict]:
    """(file, row) of FILE.json:ROW, a study's. Raises UserError naming the rows there are."""
    file, _, cell = name.rpartition(".json:")
    file += ".json"
    if not Path(file).is_file():
        raise UserError(f"{name}: not a row of a study, such as results/main.json:ril-A; a row compares with a row")
    rows = json.loads(Path(file).read_text(encoding="utf-8")).get("rows", {})
    if cell not in rows:
        raise UserError(f"{name}: no such row; {file} has {', '.join(rows)}")
    return Path(file), rows[cell]


def compare_cells(side_a: str, side_b: str) -> dict:
    """A study's row against another one, FILE.json:ROW -> as `compare`, by measure in place of benchmark.

    Holm's correction is over the measures of this pair; the study's table has it over all its rows.
    """
    (file, a), (other, b) = load_cell(side_a), load_cell(side_b)
    if file.resolve() != other.resolve() or a["seeds"] != b["seeds"]:
        raise UserError(f"{side_b}: of another study, or with other seeds, than {side_a}; only rows of one compare")
    if len(a["seeds"]) < 2:
        raise UserError(f"{side_a}: one seed says nothing about the training; compare the two runs themselves")
    out = {}
    for measure in ("sampled", "greedy", "hard questions solved"):
        x, y = ([100 * v for v in (row.get(measure) or {}).get("values", [])] for row in (a, b))
        if len(x) == len(y) == len(a["seeds"]):
            out[measure] = dict(a=over_seeds(x), b=over_seeds(y)) | between_seeds(x, y)
    for measure, p in holm({measure: r["p"] for measure, r in out.items()}).items():
        out[measure]["holm"] = p
    return out


def show_comparison(found: dict) -> None:
    """One line a benchmark and what it speaks about; seeds' spread is half of Student's 95 % interval."""

    def side(x: dict) -> str:
        return f"{x['mean']:.2f}" + (f" +- {x['half']:.2f} ({len(x['values'])} seeds)" if x["half"] is not None else "")

    for name, r in found.items():
        low, high = r["interval"]
        line = f"{name}: difference {r['difference']:+.2f} [{low:+.2f}, {high:+.2f}] ({r['about']})"
        if name != "mean":
            line += f"  {side(r['a'])} -> {side(r['b'])}  p {r['p']:.4f}  holm {r['holm']:.4f}"
            line += f"  won {r['won']} lost {r['lost']} of {r['n']}" if "won" in r else ""
            line += f"  visible from {r['visible']:.2f}"
        print(line)
        for which in ("won", "lost"):
            if r.get(which):
                print(f"    {which}: {', '.join(r[which + '_first'])}")


def main(argv: list[str] | None = None) -> None:
    """The command line; prints a table, and writes compare.json into --into."""
    parser = Flags(__doc__)
    parser.add_argument(
        "sides", nargs=2, metavar="RUN", help="a run, a folder of tools.benchmarks, or STUDY.json:ROW; A1,A2: seeds"
    )
    parser.add_argument("--into", default="", help="a folder for compare.json")
    parser.add_argument("--rules", default=RULES[0], choices=RULES, help=f"whose scoring of benchmarks [{RULES[0]}]")
    args = parser.parse_args(argv)
    if any(".json:" in side for side in args.sides):
        found = compare_cells(*args.sides)
    else:
        found = compare(*([Path(x) for x in side.split(",") if x] for side in args.sides), args.rules)
    show_comparison(found)
    if args.into:
        (into := Path(args.into)).mkdir(parents=True, exist_ok=True)
        write(into / "compare.json", json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    run_command(main)
