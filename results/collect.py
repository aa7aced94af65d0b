"""A study's table and picture from its runs; the shell files beside this one call it.

python -m results.collect main --cells ril,distill --seeds 0,1 [--against ril]
"""

import json
from pathlib import Path

import numpy as np

from data import Flags, run_command
from eval import loop_rows, over_seeds, start_and_end

COLUMNS = {  # column of the table -> (key in summary.json, decimals)
    "sampled": ("sampled_after", 3),
    "greedy": ("greedy_after", 3),
    "entropy": ("entropy_after", 2),
    "looks": ("looks_after", 2),
    "right look and answer": ("right_look_and_answer_after", 3),
    "tokens": ("tokens_after", 1),
    "similarity at start": ("similarity_start", 2),
    "at end": ("similarity_end", 2),
    "answer at end": ("answer_end", 2),
    "D accuracy": ("d_accuracy_end", 2),
    "look AUC": ("look_auc_end", 2),
    "dead groups": ("dead_groups_end", 2),
    "policy tokens": ("packed_tokens", 0),
    "seconds": ("seconds_ril", 0),
}


# What the paper's ablations find for a departure from its choices, all of them worse (cells of results/controls.sh).
PAPER_SAYS_WORSE = """D-frozen similarity-three similarity-levels similarity-continuous answer-none mu-2
mu-4 beta-0 beta-1 cached-1 cached-2 frozen-embeddings frozen-attention""".split()


def collect(name: str, cells: list[str], seeds: list[int], against: str = "") -> None:
    """results/NAME.json, .md and .png from the runs runs/NAME-CELL-SEED; says which runs are missing.

    Differences are paired (same seed, so same warm start, questions and draws): each row against the row above, or
    against the row named `against`.
    """
    rows, curves, missing, above = {}, {}, [], None
    for cell in cells:
        runs = {s: Path("runs") / f"{name}-{cell}-{s}" for s in seeds}
        found = {
            s: json.loads((r / "summary.json").read_text()) for s, r in runs.items() if (r / "summary.json").exists()
        }
        missing += [str(runs[s]) for s in seeds if s not in found]
        if not found:
            continue
        configs = [json.loads((runs[s] / "config.json").read_text()) for s in sorted(found)]
        row = {"seeds": sorted(found), "commit": " ".join(sorted({c["commit"] for c in configs}))}
        row["command"] = configs[0].get("command")
        steps = {s: loop_rows(runs[s]) for s in sorted(found)}
        for s, summary in found.items():
            summary |= start_and_end(steps[s])
        for summary in found.values():
            summary["seconds_ril"] = summary["seconds"].get("ril", 0) + summary["seconds"].get("discriminator", 0)
        for column, (key, _) in COLUMNS.items():
            values = [found[s][key] for s in sorted(found) if key in found[s]]
            row[column] = over_seeds(values) if values else None
        other = against or above
        if other in rows and other != cell and rows[other]["seeds"] == row["seeds"]:
            for column in ("sampled", "greedy"):
                pairs = zip(row[column]["values"], rows[other][column]["values"], strict=True)
                row[f"{column} difference"] = over_seeds([x - y for x, y in pairs])
            if cell in PAPER_SAYS_WORSE:
                d = row["sampled difference"]
                sure = d["half"] is not None and abs(d["mean"]) > d["half"]
                ours = "undecided" if not sure else "worse" if d["mean"] < 0 else "better"
                row["paper and ours"] = f"worse, {ours}"
        row["hard questions solved"] = hard_solved(runs, Path("runs") / f"{name}-{cells[0]}-{{}}", sorted(found))
        rows[cell], above = row, cell
        curves[cell] = {
            k: np.mean([[m[k] for m in one] for one in steps.values()], axis=0) for k in ("similarity", "answer")
        }
    out = Path("results")
    command = f"results/{name}.sh"
    result = {
        "study": name,
        "command": command,
        "against": against or "the row above",
        "missing": missing,
        "rows": rows,
    }
    (out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    (out / f"{name}.md").write_text(study_table(name, rows, missing, against or "the row above"))
    draw_study(out / f"{name}.png", rows, curves)
    print((out / f"{name}.md").read_text())


HARD = 0.05  # a question is hard for the warm start when at most this share of its sampled answers is right


def hard_solved(runs: dict, first: Path, seeds: list[int]) -> dict | None:
    """Sampled accuracy on the questions that the study's first row almost never answers; None without enough draws."""
    shares, counts = [], []
    for s in seeds:
        of = {}
        for who, path in (("first", Path(str(first).format(s))), ("here", runs[s])):
            file = path / "answers.jsonl"
            rows = [json.loads(x) for x in file.read_text().splitlines()] if file.exists() else []
            of[who] = {r["question"]: r["sampled"] for r in rows if r["who"] == "after"}
        hard = [q for q, x in of["first"].items() if x is not None and x <= HARD]
        if hard and of["here"] and min(x for x in of["first"].values() if x > 0) <= HARD:
            shares.append(float(np.mean([of["here"][q] for q in hard])))
            counts.append(len(hard))
    return over_seeds(shares) | {"questions": counts} if shares else None


def study_table(name: str, rows: dict, missing: list[str], against: str) -> str:
    """The markdown table of a study: mean +- half width of the 95 % interval over seeds."""

    def cell(x, digits, sign=""):
        if x is None:
            return "-"
        half = f" ± {x['half']:.{digits}f}" if x["half"] is not None and digits > 1 else ""
        return f"{x['mean']:{sign}.{digits}f}{half}"

    commits = sorted({r["commit"] for r in rows.values()})
    out = [
        f"# {name}",
        "",
        f"Made by `results/{name}.sh` at commit {', '.join(commits)}: mean ± half width of the 95 %",
    ]
    out += [f"interval over seeds (Student's t); differences are paired by seed, against {against}."]
    out += [
        "All seeds share the test questions: the intervals are about training, not about the choice of questions.",
        "",
    ]
    out += [f"Missing: {', '.join(missing)}", ""] if missing else []
    judged = ["paper, ours"] if any("paper and ours" in r for r in rows.values()) else []
    hard = ["hard questions solved"] if any(r["hard questions solved"] for r in rows.values()) else []
    names = ["row", "seeds", "Δ sampled", "Δ greedy", *judged, *hard, *COLUMNS]
    out += ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for label, r in rows.items():
        deltas = [cell(r.get(f"{c} difference"), 3, "+") for c in ("sampled", "greedy")]
        deltas += [r.get("paper and ours", "-")] * len(judged)
        cells = [cell(r["hard questions solved"], 3)] * len(hard)
        cells += [cell(r[c], digits) for c, (_, digits) in COLUMNS.items()]
        out.append("| " + " | ".join([label, str(len(r["seeds"])), *deltas, *cells]) + " |")
    return "\n".join(out) + "\n"


def draw_study(path: Path, rows: dict, curves: dict) -> None:
    """Sampled and greedy accuracy of every row with intervals; similarity and answer reward over steps (figure 5)."""
    try:
        import matplotlib
    except ImportError:
        print(f"  no {path}: pip install matplotlib draws it")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    height = max(3.4, 0.32 * len(rows) + 1)
    figure, axes = plt.subplots(1, 3, figsize=(13, height), constrained_layout=True, width_ratios=[1.5, 1, 1])
    place = np.arange(len(rows))[::-1]
    for shift, column, color in ((0.12, "sampled", "tab:blue"), (-0.12, "greedy", "tab:orange")):
        means, halves = [r[column]["mean"] for r in rows.values()], [r[column]["half"] or 0 for r in rows.values()]
        axes[0].errorbar(means, place + shift, xerr=halves, fmt="o", ms=4, capsize=2, color=color, label=column)
    axes[0].set_yticks(place, list(rows))
    axes[0].set(title="held-out accuracy, 95 % interval over seeds")
    axes[0].grid(axis="x", alpha=0.3)
    axes[0].legend(frameon=False, fontsize=8)
    color_of = {label: plt.get_cmap("tab20")(i % 20) for i, label in enumerate(rows)}
    for axis, key in zip(axes[1:], ("similarity", "answer"), strict=True):
        for label, curve in curves.items():
            y = curve[key]
            if len(y) and np.any(y):
                axis.plot(
                    [np.mean(y[max(0, i - 3) : i + 4]) for i in range(len(y))],
                    lw=1.4,
                    label=label,
                    color=color_of[label],
                )
        axis.set(title=f"{key} reward of the student", xlabel="step", ylim=(-0.02, 1.02))
        axis.legend(frameon=False, fontsize=7)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    """The command line."""
    parser = Flags(__doc__)
    parser.add_argument("name", help="the study: runs/NAME-CELL-SEED become results/NAME.json, .md and .png")
    parser.add_argument("--cells", required=True, help="the rows, in order")
    parser.add_argument("--seeds", default="0", help="the seeds")
    parser.add_argument("--against", default="", help="the row that all are compared with [the row above]")
    args = parser.parse_args()
    collect(args.name, args.cells.split(","), [int(s) for s in args.seeds.split(",")], args.against)


if __name__ == "__main__":
    run_command(main)
