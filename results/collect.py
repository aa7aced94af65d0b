"""A study's table and picture from its runs; the shell files beside this one call it.

python -m results.collect main --cells ril,distill --seeds 0,1 [--against ril]
STORED=1 bash results/main.sh      # the numbers in results/main.json compared again, without runs
"""

import json
from pathlib import Path

import numpy as np

from engine.command import Flags, run_command
from engine.files import read_jsonl, write
from engine.report import loop_rows, start_and_end
from eval import over_seeds
from tools.compare import between_seeds, holm

COLUMNS = {  # column of the table -> (key in summary.json, decimals)
    "sampled": ("sampled_after", 3),
    "greedy": ("greedy_after", 3),
    "sampled, last": ("sampled_last", 3),
    "greedy, last": ("greedy_last", 3),
    "sampled, blank": ("sampled_after_blank", 3),
    "warm start, blank": ("sampled_before_blank", 3),
    "entropy": ("entropy_after", 2),
    "looks": ("looks_after", 2),
    "right look and answer": ("right_look_and_answer_after", 3),
    "tokens": ("tokens_after", 1),
    "similarity at start": ("similarity_start", 2),
    "at end": ("similarity_end", 2),
    "answer at end": ("answer_end", 2),
    "D accuracy": ("d_accuracy_end", 2),
    "unseen": ("d_accuracy_unseen_end", 2),
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
# One colour a method, in every picture; blue and orange differ for colour-blind readers too. A row of a study is of the
# longest name here that its own begins with.
METHOD_COLORS = {
    "warm start": "#7f7f7f",
    "dr_grpo": "#e69f00",
    "ril": "#0072b2",
    "teacher": "#009e73",
    "distill": "#aa4499",
    "constant": "#8c564b",
    "grpo": "#d6c41c",
    "no-D": "#d55e00",
    "D-alone": "#56b4e9",
    "in-D-only": "#56b4e9",
    "teacher-in-D-only": "#56b4e9",
    "sft": "#e78ac3",
    "gail": "#222222",
}
OTHERS = ("#44aa99", "#882255", "#999933", "#332288", "#117733", "#cc6677")
LINES = ("-", "--", ":", "-.")  # of several rows of one method


MEASURES = ("sampled", "greedy", "hard questions solved")  # what rows are compared in


def read_runs(name: str, cells: list, seeds: list, panels=()) -> tuple[dict, dict, list]:
    """({cell: row}, {cell: curves}, missing runs) of runs/NAME-CELL-SEED."""
    rows, curves, missing = {}, {}, []
    for cell in cells:
        runs = {s: Path("runs") / f"{name}-{cell}-{s}" for s in seeds}
        found = {
            s: json.loads((r / "summary.json").read_text(encoding="utf-8"))
            for s, r in runs.items()
            if (r / "summary.json").exists()
        }
        missing += [str(runs[s]) for s in seeds if s not in found]
        if not found:
            continue
        configs = [json.loads((runs[s] / "config.json").read_text(encoding="utf-8")) for s in sorted(found)]
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
        row["hard questions solved"] = hard_solved(runs, Path("runs") / f"{name}-{cells[0]}-{{}}", sorted(found))
        rows[cell] = row
        curves[cell] = {
            k: np.mean([[m[k] for m in one] for one in steps.values()], axis=0)
            for k in panels
            if all(k in m for one in steps.values() for m in one)
        }
    return rows, curves, missing


def baselines(rows: dict, against: list[str]) -> dict[str, str]:
    """{row: the row that it is compared with}: the nearest of `against` above it (none: the first); without `against`
    the row above. A row of `against` is not compared.
    """
    out, last = {}, ""
    for cell in rows:
        if cell in against:
            last = cell
        elif against or last:
            out[cell] = last or against[0]
        last = last if against else cell
    return {cell: other for cell, other in out.items() if other in rows}


def compare_rows(rows: dict, against: list[str]) -> None:
    """Add to each row its differences from its baseline, paired by seed, {mean, half, values, p, holm, verdict}.

    Holm's correction is over the study's comparisons in one measure. verdict: better or worse when p is below 0.05
    after it; exploratory when only before it; else undecided.
    """
    for measure in MEASURES:
        found = {}
        for cell, other in baselines(rows, against).items():
            (x, y), seeds = (rows[c].get(measure) for c in (cell, other)), rows[cell]["seeds"]
            if x and y and seeds == rows[other]["seeds"] and len(x["values"]) == len(y["values"]) == len(seeds):
                values = np.subtract(x["values"], y["values"]).tolist()
                found[cell] = rows[cell][f"{measure} difference"] = over_seeds(values) | {"to": other}
                if len(seeds) > 1:
                    found[cell]["p"] = between_seeds(y["values"], x["values"])["p"]
        for cell, holm_p in holm({cell: d["p"] for cell, d in found.items() if "p" in d}).items():
            d = found[cell]
            sure = "exploratory" if d["p"] < 0.05 else "undecided"
            d |= dict(holm=holm_p, verdict=sure if holm_p >= 0.05 else "better" if d["mean"] > 0 else "worse")
            if measure == "sampled" and cell in PAPER_SAYS_WORSE:
                rows[cell]["paper and ours"] = f"worse, {d['verdict']}"


def collect(name: str, cells: list, seeds: list, against: str = "", panels=("similarity", "answer"), **how):
    """INTO/NAME.json, .md and .png from the runs runs/NAME-CELL-SEED; says which runs are missing; -> the rows.

    Differences are paired (same seed, so same warm start, questions and draws): each row against the row above, or
    against those that `against` names (A,B). how: into, note (a line for the table), stored: the numbers are those of
    INTO/NAME.json, compared and written again; the picture stays.
    """
    out, note = Path(how.get("into", "results")), how.get("note", "")
    if how.get("stored"):
        before = json.loads((out / f"{name}.json").read_text(encoding="utf-8"))
        kept = {"seeds", "commit", "command", *COLUMNS, *MEASURES}
        rows = {cell: {k: x for k, x in row.items() if k in kept} for cell, row in before["rows"].items()}
        curves, missing = {}, before["missing"]
    else:
        rows, curves, missing = read_runs(name, cells, seeds, panels)
    compare_rows(rows, [x for x in against.split(",") if x])
    against = " or ".join(against.split(",")) if against else "the row above"
    command = f"results/{name if Path(f'results/{name}.sh').is_file() else 'study'}.sh"
    result = dict(study=name, command=command, against=against, note=note, missing=missing, rows=rows)
    write(out / f"{name}.json", json.dumps(result, indent=1) + "\n")
    write(out / f"{name}.md", study_table(result))
    if not how.get("stored"):
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
        if hard and of["here"] and min((x for x in of["first"].values() if x), default=1) <= HARD:
            shares.append(float(np.mean([of["here"][q] for q in hard])))
            counts.append(len(hard))
    return over_seeds(shares) | {"questions": counts} if shares else None


def study_table(study: dict) -> str:
    """The markdown table of a study: mean +- half width of the 95 % interval over seeds."""

    def cell(x, digits, sign=""):
        if x is None:
            return "-"
        half = f" ± {x['half']:.{digits}f}" if x["half"] is not None and digits > 1 else ""
        return f"{x['mean']:{sign}.{digits}f}{half}"

    def says(d):
        return f"{d['verdict']} ({d['p']:.3f}, Holm {d['holm']:.3f})" if d and "p" in d else "-"

    rows = study["rows"]
    commits = sorted({c for r in rows.values() for c in r["commit"].split()})
    compared = {m: [r[f"{m} difference"] for r in rows.values() if f"{m} difference" in r] for m in MEASURES}
    compared = {m: found for m, found in compared.items() if found}
    several = max((sum("p" in d for d in found) for found in compared.values()), default=0)
    holms = (
        f"In brackets p, and p after Holm's correction over all comparisons of the column (at most {several}): better\n"
    )
    holms += "or worse where the latter is below 0.05; exploratory, so not to be relied on, where the former alone is."
    out = [
        f"# {study['study']}",
        "",
        f"Made by `{study['command']}` at commit {', '.join(commits)}: mean ± half width of the 95 %",
        f"interval over seeds (Student's t); differences are paired by seed, against {study['against']}.",
        "All seeds share the test questions: the intervals are about training, not about the choice of questions.",
        *([holms] if several else []),
        *([study["note"]] if study["note"] else []),
        "",
    ]
    out += [f"Missing: {', '.join(study['missing'])}", ""] if study["missing"] else []
    judged = ["paper, ours"] if any("paper and ours" in r for r in rows.values()) else []
    hard = ["hard questions solved"] if any(r.get("hard questions solved") for r in rows.values()) else []
    columns = {c: digits for c, (_, digits) in COLUMNS.items() if any(r.get(c) for r in rows.values())}
    names = [
        "row",
        "seeds",
        *(x for m in compared for x in [f"Δ {m}", *["says"] * bool(several)]),
        *judged,
        *hard,
        *columns,
    ]
    out += ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for label, r in rows.items():
        found = [r.get(f"{m} difference") for m in compared]
        deltas = [x for d in found for x in [cell(d, 3, "+"), *[says(d)] * bool(several)]]
        deltas += [r.get("paper and ours", "-")] * len(judged)
        cells = [cell(r.get("hard questions solved"), 3)] * len(hard)
        cells += [cell(r.get(c), digits) for c, digits in columns.items()]
        out.append("| " + " | ".join([label, str(len(r["seeds"])), *deltas, *cells]) + " |")
    return "\n".join(out) + "\n"


def styles_of(labels) -> dict[str, dict]:
    """{row: its colour and line}: the colour is its method's; further rows of it differ in line, then get paler."""
    out, rows_of = {}, {}
    for label in labels:
        fitting = [m for m in METHOD_COLORS if label.replace("warm-start", "warm start").startswith(m)]
        method = max(fitting, key=len, default="")
        n = rows_of[method] = rows_of.get(method, -1) + 1
        color, turn = (METHOD_COLORS[method], n) if method else (OTHERS[n % 6], n // 6)
        out[label] = dict(color=color, ls=LINES[turn % 4], alpha=0.6 ** (turn // 4))
    return out


def smoothed(y) -> list[float]:
    """A curve as means over seven steps."""
    return [float(np.mean(y[max(0, i - 3) : i + 4])) for i in range(len(y))]


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
    shown, styles = [(0, "hard questions solved", None)] if hard else [], styles_of(rows)
    for shift, column, face in shown or ((0.12, "sampled", None), (-0.12, "greedy", "white")):
        for y, (label, r) in zip(place + shift, rows.items(), strict=True):
            how = dict(fmt="o", ms=4, capsize=2, color=styles[label]["color"], mfc=face)
            axes[0].errorbar(r[column]["mean"], y, xerr=r[column]["half"] or 0, **how)
        axes[0].plot([], [], "o", ms=4, color="0.3", mfc=face, label=column)
    axes[0].set_yticks(place, list(rows))
    axes[0].set(title=f"{'hard questions solved' if hard else 'held-out accuracy'}, 95 % interval over seeds")
    axes[0].grid(axis="x", alpha=0.3)
    axes[0].legend(frameon=False, fontsize=8)
    for axis, key in zip(axes[1:], panels, strict=True):
        for label, curve in curves.items():
            y = curve.get(key, [])
            if len(y) and np.any(y):
                axis.plot(smoothed(y), lw=1.4, label=label, **styles[label])
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
    for shift, column, color in ((0.14, "sampled", "0.1"), (-0.14, "greedy", "0.6")):
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


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = Flags(__doc__)
    parser.add_argument("name", help="the study: runs/NAME-CELL-SEED become results/NAME.json, .md and .png")
    parser.add_argument("--cells", required=True, help="the rows, in order")
    parser.add_argument("--seeds", default="0", help="the seeds")
    parser.add_argument(
        "--against", default="", help="the row that all are compared with; A,B: the nearest above [above]"
    )
    parser.add_argument(
        "--panels", default="similarity,answer", help=f"curves to draw: {', '.join(PANELS)}; or differences"
    )
    parser.add_argument("--into", default="results", help="the folder for table and picture")
    parser.add_argument("--note", default="", help="a line for the table")
    parser.add_argument("--stored", action="store_true", help="compare the numbers in NAME.json again; no runs needed")
    args = parser.parse_args(argv)
    cells, seeds, how = args.cells.split(","), [int(s) for s in args.seeds.split(",")], ("into", "note", "stored")
    how = {name: getattr(args, name) for name in how}
    collect(args.name, cells, seeds, args.against, args.panels.split(","), **how)
    print((Path(args.into) / f"{args.name}.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    run_command(main)
