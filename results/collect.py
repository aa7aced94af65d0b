"""A study's table and picture from its runs; the shell files beside this one call it.

python -m results.collect main --cells ril,distill --seeds 0,1 [--against ril]
"""

import json
from pathlib import Path

import numpy as np

from engine.command import Flags, run_command
from engine.files import read_jsonl, write
from engine.report import loop_rows, start_and_end
from eval import over_seeds

COLUMNS = {  # column of the table -> (key in summary.json, decimals)
    "sampled": ("sampled_after", 3),
    "greedy": ("greedy_after", 3),
    "sampled, last": ("sampled_last", 3),
    "greedy, last": ("greedy_last", 3),
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


PANELS = dict(
    similarity="similarity reward of the student",
    answer="answer reward of the student",
    dead_groups="dead groups (all advantages zero)",
    d_accuracy="D's accuracy before its update",
)
CONTROLS = {  # what the demo names beside its own numbers -> the row of results/weak_judge.sh
    "RIL": "ril-25",
    "Dr.GRPO": "dr_grpo-25",
    "teachers in the group without D": "no-D-25",
    "constant reward": "constant-25",
}


def collect(name: str, cells: list, seeds: list, against: str = "", panels=("similarity", "answer"), into="results"):
    """INTO/NAME.json, .md and .png from the runs runs/NAME-CELL-SEED; says which runs are missing; -> the rows.

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
            k: np.mean([[m[k] for m in one] for one in steps.values()], axis=0)
            for k in panels
            if all(k in m for one in steps.values() for m in one)
        }
    out = Path(into)
    command = f"results/{name}.sh"
    result = {
        "study": name,
        "command": command,
        "against": against or "the row above",
        "missing": missing,
        "rows": rows,
    }
    write(out / f"{name}.json", json.dumps(result, indent=1) + "\n")
    write(out / f"{name}.md", study_table(name, rows, missing, against or "the row above"))
    draw_study(out / f"{name}.png", rows, curves, list(panels))
    return rows


HARD = 0.05  # a question is hard for the warm start when at most this share of its sampled answers is right


def hard_solved(runs: dict, first: Path, seeds: list[int]) -> dict | None:
    """Sampled accuracy on the questions that the study's first row almost never answers; None without enough draws."""
    shares, counts = [], []
    for s in seeds:
        of = {}
        for who, path in (("first", Path(str(first).format(s))), ("here", runs[s])):
            rows = [row for _, row in read_jsonl(path / "answers.jsonl", torn=[])]
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
    columns = {c: digits for c, (_, digits) in COLUMNS.items() if any(r[c] for r in rows.values())}
    names = ["row", "seeds", "Δ sampled", "Δ greedy", *judged, *hard, *columns]
    out += ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for label, r in rows.items():
        deltas = [cell(r.get(f"{c} difference"), 3, "+") for c in ("sampled", "greedy")]
        deltas += [r.get("paper and ours", "-")] * len(judged)
        cells = [cell(r["hard questions solved"], 3)] * len(hard)
        cells += [cell(r[c], digits) for c, digits in columns.items()]
        out.append("| " + " | ".join([label, str(len(r["seeds"])), *deltas, *cells]) + " |")
    return "\n".join(out) + "\n"


def draw_study(path: Path, rows: dict, curves: dict, panels: list[str]) -> None:
    """Sampled and greedy accuracy of every row with intervals (or hard questions solved, where the study asks for
    them); beside them `panels`, metrics of the loop over steps.
    """
    try:
        import matplotlib
    except ImportError:
        print(f"  no {path}: pip install matplotlib draws it")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    if panels == ["differences"]:
        return draw_differences(path, rows, plt)
    height, n = max(3.4, 0.32 * len(rows) + 1), len(panels)
    shape = dict(figsize=(5 + 4 * n, height), width_ratios=[1.5] + [1] * n)
    figure, axes = plt.subplots(1, 1 + n, constrained_layout=True, **shape)
    place = np.arange(len(rows))[::-1]
    hard = all(r["hard questions solved"] for r in rows.values())
    shown = [(0, "hard questions solved", "tab:blue")] if hard else []
    for shift, column, color in shown or ((0.12, "sampled", "tab:blue"), (-0.12, "greedy", "tab:orange")):
        means, halves = [r[column]["mean"] for r in rows.values()], [r[column]["half"] or 0 for r in rows.values()]
        axes[0].errorbar(means, place + shift, xerr=halves, fmt="o", ms=4, capsize=2, color=color, label=column)
    axes[0].set_yticks(place, list(rows))
    axes[0].set(title=f"{'hard questions solved' if hard else 'held-out accuracy'}, 95 % interval over seeds")
    axes[0].grid(axis="x", alpha=0.3)
    axes[0].legend(frameon=False, fontsize=8)
    color_of = {label: plt.get_cmap("tab20")(i % 20) for i, label in enumerate(rows)}
    for axis, key in zip(axes[1:], panels, strict=True):
        for label, curve in curves.items():
            y = curve.get(key, [])
            if len(y) and np.any(y):
                smooth = [np.mean(y[max(0, i - 3) : i + 4]) for i in range(len(y))]
                axis.plot(smooth, lw=1.4, label=label, color=color_of[label])
        axis.set(title=PANELS[key], xlabel="step", ylim=(-0.02, 1.02))
        axis.legend(frameon=False, fontsize=7)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def draw_differences(path: Path, rows: dict, plt) -> None:
    """Paired differences in accuracy to the study's own choice, one line a switch; what lies outside is written."""
    rows = {label: r for label, r in rows.items() if "sampled difference" in r}
    figure, axis = plt.subplots(figsize=(9, 0.28 * len(rows) + 1), constrained_layout=True)
    place, edge = np.arange(len(rows))[::-1], 0.06
    for shift, column, color in ((0.14, "sampled", "tab:blue"), (-0.14, "greedy", "tab:orange")):
        found = [r[f"{column} difference"] for r in rows.values()]
        means, halves = [d["mean"] for d in found], [d["half"] or 0 for d in found]
        axis.errorbar(means, place + shift, xerr=halves, fmt="o", ms=4, capsize=2, color=color, label=column)
        for y, d in zip(place + shift, found, strict=True):
            if abs(d["mean"]) > edge:
                axis.text(np.sign(d["mean"]) * edge, y, f"{d['mean']:+.3f}", fontsize=7, color=color, va="bottom")
    axis.axvline(0, color="0.6", lw=1)
    axis.set_yticks(place, list(rows))
    axis.set(xlim=(-edge, edge), title="held-out accuracy minus the first row's, paired by seed, 95 % interval")
    axis.grid(axis="x", alpha=0.3)
    axis.legend(frameon=False, fontsize=8, loc="lower right")
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def tell(rows: dict) -> None:
    """The demo's summary: a line for each player of one seed, and the controls that belong beside its numbers."""
    runs = {cell: Path("runs") / f"demo-{cell}-0" for cell in rows}
    found = {cell: json.loads((r / "summary.json").read_text()) for cell, r in runs.items()}
    ril = found["ril"]
    print(f"\n---\n{'':22}sampled  greedy   looks  answer tokens")
    for label, of, when in (
        ("warm start", ril, "before"),
        *((f"{cell}, {len(loop_rows(runs[cell]))} steps", found[cell], "after") for cell in found),
        ("teacher", ril, "teacher"),
    ):
        values = [of[f"{k}_{when}"] for k in ("sampled", "greedy", "looks", "tokens")]
        print(f"{label:22}{values[0]:7.3f}{values[1]:8.3f}{values[2]:8.2f}{values[3]:9.1f}")
    print(f"similarity reward {ril['similarity_start']:.2f} -> {ril['similarity_end']:.2f}")
    print(f"D's accuracy {ril['d_accuracy_start']:.2f} -> {ril['d_accuracy_end']:.2f}")
    study = json.loads((Path(__file__).parent / "weak_judge.json").read_text())["rows"]
    five = [f"{label} {study[cell]['sampled']['mean']:.3f}" for label, cell in CONTROLS.items()]
    print("One seed is an anecdote. The same over five seeds (results/weak_judge.md), sampled accuracy:")
    print(", ".join(five) + ".")
    print("So D carries the signal where most questions have no answer key; but the constant reward 'is a teacher row'")
    print("does as well wherever teacher text is in the group.")


def main() -> None:
    """The command line."""
    parser = Flags(__doc__)
    parser.add_argument("name", help="the study: runs/NAME-CELL-SEED become results/NAME.json, .md and .png")
    parser.add_argument("--cells", required=True, help="the rows, in order")
    parser.add_argument("--seeds", default="0", help="the seeds")
    parser.add_argument("--against", default="", help="the row that all are compared with [the row above]")
    parser.add_argument(
        "--panels", default="similarity,answer", help=f"curves to draw: {', '.join(PANELS)}; or differences"
    )
    parser.add_argument("--into", default="results", help="the folder for table and picture")
    args = parser.parse_args()
    cells, seeds = args.cells.split(","), [int(s) for s in args.seeds.split(",")]
    rows = collect(args.name, cells, seeds, args.against, args.panels.split(","), args.into)
    if args.name == "demo":
        tell(rows)
    else:
        print((Path(args.into) / f"{args.name}.md").read_text())


if __name__ == "__main__":
    run_command(main)
