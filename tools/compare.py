"""Is B better than A? Two runs, or two comma lists of runs (several seeds a side).

python -m tools.compare runs/A runs/B
python -m tools.compare base-eval ril-eval --into compared      # two folders of tools.benchmarks
"""

import json
import math
from pathlib import Path

import numpy as np

from engine.command import Flags, UserError, run_command
from engine.files import read_jsonl, write
from eval import boot_means, mean, middle, over_seeds


# ------------------------------------------------------------------------------------------------ comparing
def mcnemar(won: int, lost: int) -> float:
    """Exact two-sided p of won against lost pairs if each were a fair coin: 10 and 2 -> 0.0386; none -> 1."""
    n, k = won + lost, min(won, lost)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)


def sign_flips(values, clusters, draws: int = 5000, seed: int = 0) -> float:
    """p of a mean difference when each cluster's sign were a fair coin; for graded units and means over seeds."""
    sums = np.bincount(np.unique(clusters, return_inverse=True)[1], values)
    rng, hit = np.random.default_rng(seed), 0
    for _ in range(draws):
        hit += abs((sums * rng.choice((-1, 1), len(sums))).sum()) >= abs(sums.sum()) - 1e-12
    return (hit + 1) / (draws + 1)


def holm(ps: dict[str, float]) -> dict[str, float]:
    """Holm's p-values for a family of tests: {a: 0.01, b: 0.04} -> {a: 0.02, b: 0.04}."""
    out, worst = {}, 0.0
    for rank, (name, p) in enumerate(sorted(ps.items(), key=lambda x: x[1])):
        out[name] = worst = max(worst, min(1.0, p * (len(ps) - rank)))
    return out


def load_run(folder: Path) -> tuple[dict, dict]:
    """(what must agree, {(benchmark, unit): {score, cluster, weight}}) of a folder with benchmark results, or of a run
    of train.py (its held-out questions, greedy). Raises UserError naming the folder.
    """
    if (folder / "items.jsonl").is_file() and (folder / "results.json").is_file():
        out = json.loads((folder / "results.json").read_text())
        same = out["settings"] | dict(weights=None, rules=out["rules"], judge=out["judge"])
        same["data"] = {f: x["md5"] for r in out["benchmarks"].values() for f, x in r["files"].items()}
        return same, {(r["benchmark"], r["unit"]): r for _, r in read_jsonl(folder / "items.jsonl", torn=[])}
    if not (folder / "answers.jsonl").is_file():
        raise UserError(f"{folder}: neither results.json with items.jsonl (tools.benchmarks) nor answers.jsonl")
    settings = json.loads((folder / "config.json").read_text())["settings"]
    rows = [r for _, r in read_jsonl(folder / "answers.jsonl", torn=[]) if r["who"] == "after"]
    units = {("questions", r["question"]): dict(score=r["greedy"], cluster=r["question"], weight=1) for r in rows}
    return {k: settings[k] for k in ("data_hash", "judge")}, units


def compare(side_a: list[Path], side_b: list[Path], draws: int = 2000) -> dict:
    """Side B against side A, both lists of seeds -> {benchmark: {a, b, difference, interval, p, holm, won, lost,
    visible}, "mean": ...} in points. Raises UserError when anything but the weights differs: data, prompt, rules ...
    """
    runs = {path: load_run(path) for path in (*side_a, *side_b)}
    first, (same, units) = next(iter(runs.items()))
    for path, (other, theirs) in runs.items():
        for key in same.keys() | other.keys():
            if same.get(key) != other.get(key):
                raise UserError(f"{path}: {key} differs from that of {first}: {other.get(key)}, {same.get(key)}")
        if odd := units.keys() ^ theirs.keys():
            raise UserError(f"{path}: {min(odd)[0]} was not measured on the same questions as in {first}")
    out, all_draws = {}, []
    for name in dict.fromkeys(name for name, _ in units):
        ids = sorted(unit for of, unit in units if of == name)
        cluster, weight = ([units[name, u][k] for u in ids] for k in ("cluster", "weight"))
        weight = np.array(weight) * len(ids) / sum(weight)
        x = {path: np.array([theirs[name, u]["score"] for u in ids], float) for path, (_, theirs) in runs.items()}
        a, b = (np.mean([x[path] for path in side], 0) for side in (side_a, side_b))
        d = b - a
        found = boot_means(d, cluster, weight, draws)
        won, lost = ([u for u, v in zip(ids, sign * d, strict=True) if v > 0] for sign in (1, -1))
        binary = set(a) | set(b) <= {0.0, 1.0}
        share = float(np.mean(d**2)) or 0.15  # no pair differs: as if 15 % did
        out[name] = dict(
            a=over_seeds([100 * float(np.mean(x[path] * weight)) for path in side_a]),
            b=over_seeds([100 * float(np.mean(x[path] * weight)) for path in side_b]),
            n=len(ids),
            difference=100 * float(np.mean(d * weight)),
            interval=[100 * x for x in middle(found)],
            p=mcnemar(len(won), len(lost)) if binary else sign_flips(d * weight, cluster),
            won=len(won),
            lost=len(lost),
            visible=100 * 2.8 * math.sqrt(share / len(ids)),  # found in 80 % of such comparisons
            won_first=won[:10],
            lost_first=lost[:10],
        )
        all_draws.append(found)
    for name, p in holm({name: r["p"] for name, r in out.items()}).items():
        out[name]["holm"] = p
    if len(out) > 1:
        interval = [100 * x for x in middle(np.mean(all_draws, 0))]
        out["mean"] = dict(difference=mean([r["difference"] for r in out.values()]), interval=interval)
    return out


def show_comparison(found: dict) -> None:
    """One line a benchmark; seeds' spread is half of Student's 95 % interval."""

    def side(x: dict) -> str:
        return f"{x['mean']:.2f}" + (f" +- {x['half']:.2f} ({len(x['values'])} seeds)" if x["half"] is not None else "")

    for name, r in found.items():
        low, high = r["interval"]
        line = f"{name}: difference {r['difference']:+.2f} [{low:+.2f}, {high:+.2f}]"
        if name != "mean":
            line += f"  {side(r['a'])} -> {side(r['b'])}  p {r['p']:.4f}  holm {r['holm']:.4f}"
            line += f"  won {r['won']} lost {r['lost']} of {r['n']}  visible from {r['visible']:.2f}"
        print(line)
        for which in ("won", "lost"):
            if r.get(which):
                print(f"    {which}: {', '.join(r[which + '_first'])}")


def main(argv: list[str] | None = None) -> None:
    """The command line; prints a table, and writes compare.json into --into."""
    parser = Flags(__doc__)
    parser.add_argument("sides", nargs=2, metavar="RUN", help="a run or a folder of tools.benchmarks; A1,A2: seeds")
    parser.add_argument("--into", default="", help="a folder for compare.json")
    args = parser.parse_args(argv)
    found = compare(*([Path(x) for x in side.split(",") if x] for side in args.sides))
    show_comparison(found)
    if args.into:
        (into := Path(args.into)).mkdir(parents=True, exist_ok=True)
        write(into / "compare.json", json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    run_command(main)
