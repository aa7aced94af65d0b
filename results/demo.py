"""make demo: Dr.GRPO and RIL from one warm start, where three of four training questions have no answer key.

    python -m results.demo                  # both runs, one process a core; then one question, a table and a picture
    python -m results.demo --seed 1         # any flag of train.py goes to both runs; other settings: --no-resume

What they print goes to runs/demo-SEED/METHOD.log, the results to runs/demo-SEED. Runs that are there go on from their
last checkpoint, finished ones are shown again. results/weak_judge.sh has this setting over five seeds.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

from config import Config, parse
from engine.command import UserError, run_command
from engine.files import read_jsonl, write

METHODS = {"dr_grpo": "Dr.GRPO", "ril": "RIL"}
OWN = {"dr_grpo": "--algo dr_grpo --evaluated after", "ril": "--algo ril --evaluated all"}
SHARED = "--judged 0.25 --eval-every 20 --eval-draws 2"
PLAYERS = {  # what is shown: (the run that knows it, its name there)
    "warm start": ("ril", "before"),
    "dr_grpo": ("dr_grpo", "after"),
    "ril": ("ril", "after"),
    "teacher": ("ril", "teacher"),
}
CONTROLS = {  # what stands beside the demo's numbers -> the row of results/weak_judge.sh
    "RIL": "ril-25",
    "Dr.GRPO": "dr_grpo-25",
    "teacher texts without D": "no-D-25",
    "the constant reward 'is a teacher text' in D's place": "constant-25",
}
TRAIN = Path(__file__).resolve().parent.parent / "train.py"
EVERY = 10  # seconds between two lines of progress


def folder_of(cfg: Config) -> Path:
    """Where the demo's results lie."""
    return Path(f"runs/demo-{cfg.seed}")


# ------------------------------------------------------------------------------------------------ the two runs
class Child:
    """A run of train.py in a process of its own. A thread copies its output into a log and notes when lines came."""

    def __init__(self, method: str, argv: list[str], cfg: Config):
        self.method, self.cfg, self.came = method, cfg, []  # came: (seconds, line)
        self.log = (folder_of(cfg) / f"{method}.log").resolve()
        env = dict(os.environ, OMP_NUM_THREADS="1", PYTHONUNBUFFERED="1", PYTHONIOENCODING="utf-8")
        how = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace")
        self.process = subprocess.Popen([sys.executable, str(TRAIN), *argv], env=env, **how)
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self) -> None:
        """Until the run ends: every line into the log, those that matter to a reader onto the screen."""
        with self.log.open("w", encoding="utf-8", newline="\n") as log:
            for line in self.process.stdout:
                log.write(line)
                log.flush()
                self.came.append((time.monotonic(), line.rstrip()))
                if re.match(r"  (validation after|ALARM|WARNING)", line):
                    print(f"{self.method:8}|{line.rstrip()}", flush=True)

    def steps(self) -> list[tuple[float, int]]:
        """[(when it ended, number)] of this process's steps of the loop."""
        found = [(when, re.match(r" *(\d+)/\d+  sim ", line)) for when, line in list(self.came)]
        return [(when, int(match[1])) for when, match in found if match]

    def when(self, start: str) -> list[float]:
        """When lines came that begin like this."""
        return [when for when, line in list(self.came) if line.startswith(start)]

    def seconds_left(self) -> float | None:
        """Steps at the pace so far, then test questions at the pace of the validations; None before the first steps."""
        cfg, steps, checks = self.cfg, self.steps(), self.when("  validation after")
        if self.process.poll() is not None:
            return 0.0
        if len(steps) < 3 or not checks:
            return None
        (begin, first), (end, last) = steps[0], steps[-1]
        before_check = max([when for when, _ in steps if when < checks[-1]], default=self.when("RIL")[0])
        asked = (4 if cfg.evaluated == "all" else 1) * cfg.test_questions / cfg.valid_questions
        evaluation = asked * (checks[-1] - before_check)
        now = time.monotonic()
        if started := self.when("evaluation on"):
            return max(1.0, evaluation - (now - started[0]))
        return max(0.0, (end - begin) / (last - first) * (cfg.steps - last) - (now - end)) + evaluation

    def says(self) -> str:
        """Where it is: the step, or the stage."""
        if self.process.poll() is not None:
            return "ready"
        if self.when("evaluation on"):
            return "answers the test questions"
        if steps := self.steps():
            return f"step {steps[-1][1]} of {self.cfg.steps}"
        return "D learns to tell student from teacher" if self.when("discriminator") else "starts"

    def check(self) -> None:
        """Raises UserError if the run has failed, with the last line that it said."""
        if self.process.poll():
            self.reader.join(5)
            last = next((line for _, line in reversed(self.came) if line.strip()), "it said nothing")
            raise UserError(f"{METHODS[self.method]} ended with code {self.process.returncode}: {last} ({self.log})")


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_both(commands: dict[str, list[str]]) -> None:
    """Train every method, side by side where there are cores; progress every ten seconds. UserError: a run failed.

    However this ends, no run is left behind: they get 20 seconds to write a checkpoint.
    """
    waiting, running, stop, begin = list(commands), [], [], time.monotonic()
    shown = begin
    # only noted, and acted upon below: a stop between a run's start and its place in the list would leave it behind
    before = {number: signal.signal(number, lambda *_: stop.append(1)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while waiting or any(child.process.poll() is None for child in running):
            if stop:
                raise KeyboardInterrupt
            for child in running:
                child.check()
            if waiting and sum(child.process.poll() is None for child in running) < cores():
                running.append(Child(method := waiting.pop(0), commands[method], parse(commands[method])))
            if time.monotonic() - shown > EVERY:
                shown = time.monotonic()
                left = [child.seconds_left() for child in running]
                about = f"about {max(left):.0f} s left" if None not in left else "time left: not known yet"
                about += f", then {METHODS[waiting[0]]}" if waiting else ""
                said = "   ".join(f"{child.method}: {child.says()}" for child in running)
                print(f"{shown - begin:4.0f} s   {said}   {about}", flush=True)
            time.sleep(0.1)
        for child in running:
            child.reader.join(5)
            child.check()
    finally:
        for child in running:
            if child.process.poll() is None and os.name == "posix":  # elsewhere this would end it at once
                child.process.terminate()
        for number, handler in before.items():
            signal.signal(number, handler)
        for child in running:
            try:
                child.process.wait(20)
            except subprocess.TimeoutExpired:
                child.process.kill()


# ------------------------------------------------------------------------------------------------ what came out
def example(question, said: dict[str, dict]) -> str:
    """One question, its board in words, and every player's greedy answer. said: {player: row of answers.jsonl}."""
    from tiny.world import board_text

    board = [textwrap.indent(board_text(question.meta["board"]), "    "), ""] if "board" in question.meta else []
    out = ["One test question (always the first with two steps, whatever comes out), greedy answers:", "", *board]
    out += [f"    {question.text}   (answer: {question.answer})", ""]
    for player, row in said.items():
        name = METHODS.get(player, player)
        out.append(f"{name:12}{'right' if row['greedy'] else 'wrong'}   {row['text']}")
    return "\n".join(out)


def table(players: dict[str, dict]) -> str:
    """A line for each player: accuracies with their intervals, looks, tokens."""
    out = [f"{'':12}{'sampled':24}{'greedy':24}looks   answer tokens"]
    for player, found in players.items():
        cells = []
        for measure in ("sampled", "greedy"):
            low, high = found[f"{measure}_interval"]
            cells.append(f"{found[measure]:.3f} ({low:.3f} to {high:.3f})")
        looks = f"{found['looks']:.2f}" if "looks" in found else "-"
        out.append(f"{METHODS.get(player, player):12}{cells[0]:24}{cells[1]:24}{looks:8}{found['tokens']:.1f}")
    return "\n".join(out)


def five_seeds() -> str:
    """What the same setting gave over five seeds, from results/weak_judge.json."""
    rows = json.loads((Path(__file__).parent / "weak_judge.json").read_text(encoding="utf-8"))["rows"]
    means = ", ".join(f"{label} {rows[cell]['sampled']['mean']:.3f}" for label, cell in CONTROLS.items())
    return (
        f"One seed is an anecdote. The same over five seeds, sampled (results/weak_judge.md): {means}. "
        "So RIL beats Dr.GRPO here, and RIL with D beats teacher texts without D; but between D and the constant "
        "reward no difference shows."
    )


def caption(cfg: Config) -> str:
    """What a quarter judged means, and what the intervals are."""
    return (
        f"Only {cfg.judged:.0%} of the training questions have an answer key. On all others the answer reward is 0 for "
        "every response: only D's similarity reward is left there, and Dr.GRPO has no D. Accuracy is on test "
        "questions, which all have a key; sampled: answers drawn at temperature 1, greedy: always the likeliest token. "
        "Whiskers (in the table: brackets) are the 95 % interval over the test questions; it does not say how another "
        "seed would train."
    )


def draw(path: Path, players: dict[str, dict], curves: dict[str, dict], cfg: Config) -> None:
    """Bars of sampled accuracy; beside them both rewards over the steps; the caption below."""
    try:
        import matplotlib
    except ImportError:
        print(f"  no {path}: pip install matplotlib draws it")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from results.collect import METHOD_COLORS, smoothed

    figure, axes = plt.subplots(1, 3, figsize=(12, 4.6), width_ratios=[1.2, 1, 1])
    for x, (player, found) in enumerate(players.items()):
        mean, (low, high) = found["sampled"], found["sampled_interval"]
        axes[0].bar(x, mean, 0.65, color=METHOD_COLORS[player])
        axes[0].errorbar(x, mean, [[mean - low], [high - mean]], color="0.15", capsize=4, lw=1.2)
        axes[0].text(x, high + 0.02, f"{mean:.2f}", ha="center")
    axes[0].set_xticks(range(len(players)), [METHODS.get(player, player) for player in players])
    axes[0].set(title="Accuracy on test questions (sampled)", ylabel="share of right answers", ylim=(0, 1.05))
    for axis, key in zip(axes[1:], ("similarity", "answer"), strict=True):
        for method, of in curves.items():
            steps, has = range(1, len(of[key]) + 1), any(of[key]) or key == "answer"
            label = METHODS[method] + ("" if has else ": has no D")
            axis.plot(steps, smoothed(of[key]), lw=2, color=METHOD_COLORS[method], label=label)
        axis.set(xlabel="step", ylabel="share of the student's responses", ylim=(0, 1.05))
    axes[2].axhline(cfg.judged, ls=":", color="0.4", label="about the most possible")
    axes[1].set_title("Similarity reward (D says: a teacher's)")
    axes[2].set_title("Answer reward (the judge says: right)")
    for axis in axes[1:]:
        axis.legend(frameon=False, loc="upper left")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout(rect=(0, 0.16, 1, 1))
    figure.text(0.01, 0.02, textwrap.fill(caption(cfg), 170), fontsize=10, color="0.25", linespacing=1.4)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def show(cfg: Config, flags: list[str]) -> None:
    """Print the example and the table; demo.json, demo.md and demo.png hold the same. flags: the user's."""
    from engine.run import split
    from results.collect import read_runs

    rows, curves, _ = read_runs("demo", list(METHODS), [cfg.seed], ("similarity", "answer"))
    runs = {method: Path("runs") / f"demo-{method}-{cfg.seed}" for method in METHODS}
    summaries = {method: json.loads((run / "summary.json").read_text(encoding="utf-8")) for method, run in runs.items()}
    answers = {method: [row for _, row in read_jsonl(run / "answers.jsonl", torn=[])] for method, run in runs.items()}
    test = split(cfg)["test"]
    question = next((q for q in test if q.meta.get("kind", "").startswith("hop")), test[0])
    players, said = {}, {}
    for player, (method, who) in PLAYERS.items():
        if f"sampled_{who}" not in summaries[method]:
            continue
        names = ("sampled", "sampled_interval", "greedy", "greedy_interval", "looks", "tokens")
        players[player] = {n: summaries[method][f"{n}_{who}"] for n in names if f"{n}_{who}" in summaries[method]}
        (said[player],) = (r for r in answers[method] if (r["who"], r["question"]) == (who, question.id))
        if "text" not in said[player]:
            raise UserError(f"{runs[method]} is of an older version of this repository: add --no-resume")
    texts = [example(question, said), table(players), caption(cfg)]
    if set(flags) <= {"--seed", "--no-resume", str(cfg.seed)}:
        texts.append(five_seeds())
    for text in texts:
        print("\n" + (text if "\n" in text else textwrap.fill(text, 110)))
    command = shlex.join(["python", "-m", "results.demo", *flags])
    into = folder_of(cfg)
    result = dict(study="demo", command=command, missing=[], rows=rows, players=players, example=said)
    write(into / "demo.json", json.dumps(result, indent=1) + "\n")
    commit = " and ".join(dict.fromkeys(row["commit"] for row in rows.values()))
    made = f"Made by `{command}` at commit {commit}: seed {cfg.seed}, {cfg.steps} steps, {len(test)} test questions."
    blocks = [f"```\n{text}\n```" if "\n" in text else textwrap.fill(text, 130) for text in texts]
    write(into / "demo.md", "\n\n".join(["# demo", made, *blocks]) + "\n")
    draw(into / "demo.png", players, curves, cfg)
    print(f"\nsee: {into}/demo.png {runs['ril']}/samples.md {runs['ril']}/curves.png")


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    argv = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(argv):
        print(__doc__)
        return
    for flag in ("--name", "--stage", "--algo", "--evaluated"):
        if any(x.split("=")[0] == flag for x in argv):
            raise UserError(f"{flag}: the demo sets it itself; python train.py takes it")
    flags = [*SHARED.split(), *argv]
    cfg = parse(flags)
    commands = {m: ["--name", f"demo-{m}-{cfg.seed}", *flags, *OWN[m].split()] for m in METHODS}
    into = folder_of(cfg)
    into.mkdir(parents=True, exist_ok=True)
    print(f"Dr.GRPO and RIL from the same warm start, {cfg.steps} steps; {cfg.judged:.0%} of the training questions")
    print("have an answer key. Without flags this takes about 80 s on two quiet cores.")
    print(f"All that the two print: {into}/dr_grpo.log and ril.log", flush=True)
    run_both(commands)
    show(cfg, argv)


if __name__ == "__main__":
    run_command(main)
