"""Make what is shipped anew: a tiny student's warm start, or a tiny teacher with its responses.

python -m tools.build student --name build-0 --no-resume --seed 0                      # make students: all of them
python -m tools.build teacher --name build-a --no-resume --sft-steps 1000              # make teachers: both
Any other flag is one of train.py.
"""

import json
import sys

from config import parse
from engine.command import UserError, run_command
from engine.files import write
from engine.loading import load, save
from engine.players import judge_of, load_sharded
from engine.report import rounded
from engine.run import Run, open_run, set_up, split
from eval import evaluate
from teachers import FOLDER, as_lines, ask_teacher
from tiny.lessons import STUDENTS, fit, warm_start_settings
from tiny.models import TINY


def build_student(run: Run) -> None:
    """Train the tiny student's warm start from nothing and write its bf16 folder under results/students."""
    cfg, folder = run.cfg, STUDENTS / f"{run.cfg.student}-seed{run.cfg.seed}"
    can = [n for n, tiny in TINY.items() if not tiny.voice]
    if cfg.student not in can:
        raise UserError(f"--student {cfg.student}: only a tiny student can be built: {', '.join(can)}")
    vlm = load_sharded(run, cfg.student)
    fit(run, vlm, cfg.sft_steps)
    save(vlm, folder)
    how = (cfg.max_new_tokens, cfg.eval_draws, cfg.seed)
    found = evaluate(load(folder), split(cfg)["valid"], judge_of(run), *how)
    valid = rounded({name: found[name] for name in ("questions", "greedy", "sampled") if name in found})
    if run.first:
        made = dict(settings=warm_start_settings(cfg), validation=valid)
        write(folder / "warm_start.json", json.dumps(made, indent=1) + "\n")
    print(f"  {folder.name}: validation accuracy {valid}")


def build_teacher(run: Run) -> None:
    """Train the tiny teacher from nothing and write its folder and response cache under results/teachers."""
    cfg, name = run.cfg, run.cfg.teachers
    can = [n for n, tiny in TINY.items() if tiny.voice]
    if name not in can:
        raise UserError(f"--teachers {name}: only a tiny teacher can be built: {', '.join(can)}")
    vlm = load_sharded(run, name)
    fit(run, vlm, cfg.sft_steps, TINY[name].voice)
    save(vlm, FOLDER / name)
    if run.first:
        for old in run.path.glob("teachers-*.part.jsonl"):
            old.unlink()
    responses = ask_teacher(name, "", split(cfg)["train"], run)
    if run.first:
        write(FOLDER / name / "responses.jsonl", as_lines(responses))
    result = evaluate(load(FOLDER / name), split(cfg)["valid"], judge_of(run), cfg.max_new_tokens, cfg.eval_draws)
    print(f"  {name}: validation accuracy {result['greedy']:.3f} greedy, {result['sampled']:.3f} sampled")


BUILDS = {"student": build_student, "teacher": build_teacher}


def main(argv: list[str] | None = None) -> None:
    """The command line: what to build, then flags of train.py."""
    what, *rest = (sys.argv[1:] if argv is None else argv) or [""]
    if what not in BUILDS:
        raise UserError("say what to build: python -m tools.build student, or teacher, then flags of train.py")
    cfg = parse(rest)
    set_up(cfg)
    with open_run(cfg, ["-m", "tools.build", what, *rest]) as run:
        BUILDS[what](run)


if __name__ == "__main__":
    run_command(main)
