"""RIL: a small vision-language model learns from teachers by reinforcement and imitation (arXiv 2510.19307).

    python train.py                                   # the whole loop on the tiny world, a CPU, three minutes
    python train.py --run mine --data mine.jsonl      # your own questions
    python train.py --run long --steps 120 --seed 3   # longer, another seed; the run lies in runs/long
    python train.py --help                            # every setting, with the paper's value beside it

Stages, in order; each leaves an artefact in runs/NAME and is skipped when the artefact is there:

    sft            sft/              warm start: the student learns the language of the world; it is pi_init and pi_ref
    teachers       teachers.jsonl    cached teacher responses with the judge's verdicts
    discriminator  discriminator/    D, from the warm-started student, until it tells student from teacher
    ril            checkpoints/      the loop (Algorithm 2): numbers 1-9 in `ril` below and in the README
    export         student/, last/   Hugging Face folders: best on the validation questions, and last
    evaluate       summary.json      held-out questions, before and after; curves.png, samples.md

Left out on purpose: trainer classes, callbacks, configuration files, a logging service.
"""

import argparse
import dataclasses
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
import transformers
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from tqdm import tqdm

from data import (
    UserError,
    load_questions,
    questions_at,
    read_jsonl,
    run_command,
    seed_of,
    split_questions,
    world_lessons,
    world_questions,
)
from discriminator import Discriminator, discriminator_accuracy, discriminator_loss, similarity_reward
from eval import draw_curves, evaluate, write_samples
from grpo import advantages, group_metrics, kl, policy_loss, rewards, sft_loss, surrogate_metrics
from judge import Judge
from model import TINY, VLM, load, new_folder, pack, save, shared_prefix
from rollout import PAPER, PURE, Response, Sampling, rollout

STAGES = ("sft", "teachers", "discriminator", "ril", "export", "evaluate")
HOME = Path(__file__).resolve().parent
TEACHERS = HOME / "results" / "teachers"  # committed: each tiny teacher's weights and its cached responses


# ------------------------------------------------------------------------------------------------ settings
def setting(default, text: str, paper=None, choices=None):
    """A field of Config: its help text, the paper's value (None: the paper is silent), the allowed values."""
    return dataclasses.field(default=default, metadata=dict(text=text, paper=paper, choices=choices))


@dataclass
class Config:
    """Every setting of a run. Each field is a flag: group_size is --group-size; booleans have --no-... too."""

    run: str = setting("demo", "the run's folder is runs/NAME")
    stage: str = setting("all", "run one stage only", choices=("all", *STAGES, "build-teachers"))
    preset: str = setting("tiny", "tiny: the defaults; paper: the paper's values", choices=("tiny", "paper"))
    resume: bool = setting(True, "go on where the run stopped; --no-resume deletes it and starts anew")
    seed: int = setting(0, "seeds the student's weights, its lessons, the order of questions and every draw")
    threads: int = setting(2, "CPU threads")
    # who plays
    student: str = setting("tiny-qwen", "a name or a Hugging Face folder")
    teachers: str = setting("tiny-qwen-teacher", "a tiny teacher's name or a Hugging Face folder")
    judge: str = setting("rule", "who decides whether an answer is right", choices=("rule",))
    # questions
    data: str = setting("", "JSONL file of questions; without it the embedded tiny world")
    pool: int = setting(512, "training questions of the tiny world", paper=40000)
    valid_questions: int = setting(300, "validation questions: they choose the exported checkpoint")
    test_questions: int = setting(1000, "test questions: read by the evaluate stage only")
    # warm start
    sft_steps: int = setting(1200, "steps of the warm start")
    sft_pictures: int = setting(16, "pictures per warm-start step")
    sft_questions: int = setting(4, "questions per picture: one packed row")
    sft_lr: float = setting(2e-3, "learning rate at the start of the warm start, falls linearly", paper=1e-5)
    sft_lr_end: float = setting(1e-4, "learning rate at its end", paper=1e-6)
    sft_warmup: int = setting(50, "steps in which the learning rate rises to its start")
    # teachers
    teacher_samples: int = setting(8, "cached responses per question", paper=16)
    teacher_temperature: float = setting(0.8, "sampling temperature of the teacher", paper=1.0)
    # discriminator pre-training
    d_steps: int = setting(12, "at most so many steps")
    d_pretrain_lr: float = setting(2e-4, "learning rate at the start, falls linearly to a tenth", paper=1e-5)
    d_stop: float = setting(0.95, "stop when the accuracy on held-out questions reaches this")
    # the loop
    steps: int = setting(60, "steps of the RIL loop", paper=1000)
    questions_per_step: int = setting(12, "questions per step (P)", paper=40)
    group_size: int = setting(8, "student responses per question, and as many of teachers (G)", paper=4)
    lr: float = setting(1e-4, "learning rate of the student, constant", paper=1e-6)
    d_lr: float = setting(2e-4, "learning rate of the discriminator, constant", paper=1e-6)
    beta: float = setting(0.01, "weight of the KL penalty", paper=0.01)
    kl: str = setting("k3", "estimator of the KL penalty (grpo.py)", choices=("k3", "k2"))
    eps: float = setting(0.2, "clip range of the ratio", paper=0.2)
    mu: int = setting(1, "updates per rollout, of discriminator and student", paper=1)
    max_new_tokens: int = setting(40, "longest response; also the constant that sums are divided by", paper=512)
    sampling: str = setting(
        "pure", "pure: temperature 1; paper: top-p .95, top-k 50, penalty 1.05", "paper", ("pure", "paper")
    )
    clip: float = setting(1.0, "largest gradient norm")
    micro_batch: int = setting(12, "questions per forward pass; changes memory, not results")
    # looking at it
    eval_every: int = setting(10, "steps between validations")
    eval_draws: int = setting(4, "sampled answers per question in every evaluation")
    checkpoint_every: int = setting(10, "steps between checkpoints (the warm start: ten times that)")
    keep: int = setting(2, "checkpoints kept")


def parse(argv: list[str]) -> Config:
    """Flags -> Config. Unknown flags and impossible values end in one line; --preset paper takes the paper's values."""

    class Parser(argparse.ArgumentParser):
        def error(self, message):
            raise UserError(f"{message}; see python train.py --help")

    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    fields = dataclasses.fields(Config)
    for f in fields:
        m, flag = f.metadata, "--" + f.name.replace("_", "-")
        paper = "" if m["paper"] is None else f"; paper: {m['paper']}"
        text = f"{m['text']} [{f.default!s}{paper}]".replace("%", "%%")
        if isinstance(f.default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            parser.add_argument(flag, type=type(f.default), choices=m["choices"], default=None, help=text, metavar="X")
    given = {k: v for k, v in vars(parser.parse_args(argv)).items() if v is not None}
    paper = {f.name: f.metadata["paper"] for f in fields if f.metadata["paper"] is not None}
    cfg = Config(**((paper if given.get("preset") == "paper" else {}) | given))
    for f in fields:
        value = getattr(cfg, f.name)
        least = 0 if f.name in ("seed", "beta", "eval_every", "eval_draws", "d_steps", "steps", "d_stop") else 1e-12
        if isinstance(value, int | float) and not isinstance(value, bool) and not least <= value < float("inf"):
            raise UserError(f"--{f.name.replace('_', '-')} {value}: must be {'at least 0' if not least else 'above 0'}")
    if not cfg.run or cfg.run in (".", "..") or "/" in cfg.run:
        raise UserError(f"--run {cfg.run!r}: give a plain folder name")
    if cfg.student not in TINY and not (Path(cfg.student) / "config.json").is_file():
        raise UserError(f"--student {cfg.student}: neither a folder with config.json nor one of {', '.join(TINY)}")
    if cfg.stage != "build-teachers":
        teacher_folder(cfg.teachers)
    return cfg


def teacher_folder(name: str) -> Path:
    """Where a teacher's weights are: a committed tiny teacher or a folder of yours."""
    for folder in (TEACHERS / name, Path(name)):
        if (folder / "config.json").is_file():
            return folder
    known = ", ".join(sorted(p.name for p in TEACHERS.glob("*/"))) or "none built yet: --stage build-teachers"
    raise UserError(f"--teachers {name}: neither a folder with config.json nor a tiny teacher ({known})")


# ------------------------------------------------------------------------------------------------ a run's folder
class Run:
    """runs/NAME: its configuration, its files, its log, its times."""

    def __init__(self, cfg: Config):
        self.cfg, self.path = cfg, Path("runs") / cfg.run
        if not cfg.resume:
            shutil.rmtree(self.path, ignore_errors=True)
        mine = dataclasses.asdict(cfg)
        self.path.mkdir(parents=True, exist_ok=True)
        if (self.path / "config.json").exists():
            theirs = json.loads((self.path / "config.json").read_text())["settings"]
            free = ("stage", "resume", "run", "keep", "checkpoint_every")  # these may differ: they change no number
            differ = [k for k in mine if k not in free and mine[k] != theirs.get(k)]
            if differ:
                change = ", ".join(f"{k} {theirs.get(k)!r} -> {mine[k]!r}" for k in differ)
                raise UserError(
                    f"{self.path} holds a run of another configuration: {change}; choose --run NAME or --no-resume"
                )
        else:
            commit = subprocess.run(
                ["git", "describe", "--always", "--dirty"], cwd=HOME, capture_output=True, text=True
            )
            versions = dict(
                python=platform.python_version(), torch=torch.__version__, transformers=transformers.__version__
            )
            self.write("config.json", dict(settings=mine, versions=versions, commit=commit.stdout.strip() or "unknown"))

    def write(self, name: str, content) -> None:
        """Write a file under a temporary name, then rename it: it is either absent or whole."""
        text = content if isinstance(content, str) else json.dumps(content, indent=1) + "\n"
        part = self.path / (name + ".part")
        part.write_text(text)
        part.replace(self.path / name)

    def log(self, name: str, **row) -> None:
        """Append one line to metrics.jsonl, samples.jsonl or timing.jsonl."""
        with (self.path / name).open("a") as file:
            file.write(json.dumps(row) + "\n")

    def rows(self, name: str, stage: str = "") -> list[dict]:
        """The whole lines of a log (a torn last one is left out), of one stage or of all."""
        if not (self.path / name).exists():
            return []
        lines = (self.path / name).read_text().split("\n")[:-1]
        return [row for row in map(json.loads, lines) if stage in ("", row["stage"])]

    def rewind(self, stage: str, step: int) -> None:
        """Forget what a killed process logged of `stage` behind its last checkpoint: it will be logged again."""
        for name in ("metrics.jsonl", "samples.jsonl", "timing.jsonl"):
            rows = [r for r in self.rows(name) if r["stage"] != stage or 0 < step > r["step"]]
            self.write(name, "".join(json.dumps(r) + "\n" for r in rows))


class Checkpoints:
    """Resumable state of one stage: weights and optimisers of `parts`, and `progress` (plain numbers)."""

    def __init__(self, run: Run, stage: str, parts: dict[str, tuple], every: int):
        self.run, self.stage, self.parts, self.every = run, stage, parts, every
        self.folder = run.path / "checkpoints"

    def found(self) -> list[Path]:
        """Whole checkpoints of this stage, oldest first."""
        named = [p for p in self.folder.glob(f"{self.stage}-step*") if p.name.rpartition("step")[2].isdigit()]
        return sorted(named, key=lambda p: int(p.name.rpartition("step")[2]))

    def state(self, progress: dict) -> dict:
        """Everything that is saved; also the mould that a checkpoint is loaded into."""
        out = {"progress": progress}
        for name, (module, optimizer) in self.parts.items():
            out[name], out[f"{name}_optimizer"] = get_state_dict(module, optimizer)
        return out

    def save(self, step: int, progress: dict, now: bool = False) -> None:
        """Save after `step` steps when it is time, and drop the oldest."""
        if step % self.every and not now:
            return
        with new_folder(self.folder / f"{self.stage}-step{step}") as part:
            dcp.save(self.state(progress), checkpoint_id=part)
        for old in self.found()[: -self.run.cfg.keep]:
            shutil.rmtree(old)

    def resume(self, progress: dict) -> int:
        """Load the newest checkpoint into parts and `progress`; -> the number of steps done (0 without a
        checkpoint).
        """
        found = self.found()
        step = int(found[-1].name.rpartition("step")[2]) if found else 0
        if found:
            state = self.state(progress)
            dcp.load(state, checkpoint_id=found[-1])
            progress |= state["progress"]
            for name, (module, optimizer) in self.parts.items():
                got = dict(model_state_dict=state[name], optim_state_dict=state[f"{name}_optimizer"])
                set_state_dict(module, optimizer, **got)
            print(f"  goes on from {found[-1]}")
        self.run.rewind(self.stage, step)
        return step


def adamw(module: torch.nn.Module, lr: float) -> torch.optim.Optimizer:
    """AdamW over what is trained, without weight decay."""
    trained = [p for p in module.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, lr=lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)


def update(
    optimizer: torch.optim.Optimizer, clip: float, loss: float, run: Run, stage: str, step: int, ids: list
) -> float:
    """One optimiser step on the gathered gradients; -> gradient norm. Stops the run BEFORE the step if anything is not
    finite.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(parameters, clip).item()
    if not np.isfinite(norm) or not np.isfinite(loss):
        run.write(
            "not-finite.json", dict(stage=stage, step=step, loss=str(loss), gradient_norm=str(norm), questions=ids)
        )
        raise UserError(
            f"{stage} step {step}: loss {loss}, gradient norm {norm}; questions are in {run.path}/not-finite.json"
        )
    optimizer.step()
    optimizer.zero_grad()
    return norm


def slices(count: int, size: int) -> list[slice]:
    """[0:size], [size:2 size], ... up to count."""
    return [slice(i, i + size) for i in range(0, count, size)]


# ------------------------------------------------------------------------------------------------ stage: sft
def lessons(vlm: VLM, step: int, seed: int, pictures: int, per_picture: int, voice: str):
    """One warm-start batch: the questions about a picture share its packed row; only the replies are targets."""
    prompts, rows, skip = [], [], []
    for picture, pairs in world_lessons(step, seed, pictures, per_picture, voice):
        looked = vlm.look([picture])
        asked = [vlm.chat_ids(looked, text) for text, _ in pairs]
        n = shared_prefix(asked)
        prompts.append(vlm.prompt(asked[0][:n], looked))
        rows.append([a[n:] + vlm.reply_ids(reply) for a, (_, reply) in zip(asked, pairs, strict=True)])
        skip.append([len(a) - n for a in asked])
    return pack(prompts, rows, skip, vlm.device)


def fit(run: Run, vlm: VLM, stage: str, steps: int, voice: str = "") -> None:
    """Supervised fine-tuning on the tiny world, everything trained (a tiny model starts from random weights)."""
    cfg = run.cfg
    optimizer = adamw(vlm.freeze_vision(False).train(), cfg.sft_lr)
    checkpoints = Checkpoints(run, stage, {"student": (vlm, optimizer)}, 10 * cfg.checkpoint_every)
    progress: dict = {}
    start = checkpoints.resume(progress)
    for step in (bar := tqdm(range(start, steps), stage, steps, initial=start, mininterval=2)):
        for group in optimizer.param_groups:
            falling = cfg.sft_lr + (cfg.sft_lr_end - cfg.sft_lr) * step / steps
            group["lr"] = falling * min(1, (step + 1) / cfg.sft_warmup)
        batch = lessons(vlm, step, cfg.seed, cfg.sft_pictures, cfg.sft_questions, voice)
        loss = sft_loss(vlm(batch), batch.mask, int(batch.mask.sum()))
        loss.backward()
        norm = update(optimizer, cfg.clip, loss.item(), run, stage, step, [])
        if step % 50 == 49 or step == steps - 1:
            run.log("metrics.jsonl", stage=stage, step=step, loss=loss.item(), gradient_norm=norm)
            bar.set_postfix_str(f"loss {loss.item():.3f}")
        checkpoints.save(step + 1, progress)
    vlm.eval()


def sft(run: Run) -> None:
    """The student's warm start: pi_init and pi_ref."""
    vlm = load(run.cfg.student, run.cfg.seed)
    if run.cfg.student in TINY:
        fit(run, vlm, "sft", run.cfg.sft_steps)
    else:
        print("  a folder is a trained student already: it is pi_init and pi_ref as it is")
    save(vlm, run.path / "sft", torch.float32)


# ------------------------------------------------------------------------------------------------ stage: teachers
def ask_teacher(name: str, questions: list, cfg: Config) -> list[Response]:
    """Sample every question `teacher_samples` times from a teacher's folder."""
    vlm, how, out = load(teacher_folder(name)), Sampling(temperature=cfg.teacher_temperature), []
    for part in tqdm(slices(len(questions), 64), f"teacher {name}", delay=2):
        prompts, names = [vlm.encode_question(q) for q in questions[part]], [q.id for q in questions[part]]
        purpose = (0, "teacher", name)
        for group in rollout(vlm, prompts, names, cfg.teacher_samples, cfg.max_new_tokens, how, purpose, source=name):
            out += group
    return out


def as_lines(responses: list[Response], verdicts: list | None = None) -> str:
    """Teacher responses as JSON lines."""
    rows = [dict(question=r.question, teacher=r.source, text=r.text, finished=r.finished) for r in responses]
    for row, verdict in zip(rows, verdicts or [], strict=False):
        row["verdict"] = verdict
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def teachers(run: Run) -> None:
    """Cached teacher responses for every training question, judged once: the committed ones, else asked now."""
    cfg, name = run.cfg, run.cfg.teachers
    questions = split(cfg)["train"]
    cache, got = TEACHERS / name / "responses.jsonl", []
    if not cfg.data and cache.exists():
        rows = [row for _, row in read_jsonl(cache, ("question", "teacher", "text"))]
        got = [Response(r["question"], 0, r["teacher"], [], r["text"], r["finished"]) for r in rows]
        got = [r for r in got if r.question in {q.id for q in questions}]
    missing = [q for q in questions if q.id not in {r.question for r in got}]
    if missing:
        got += ask_teacher(name, missing, cfg)
    verdicts = Judge(cfg.judge).verdicts(questions, got)
    run.write("teachers.jsonl", as_lines(got, verdicts))
    print(f"  {len(got)} responses of {name} to {len(questions)} questions, {np.mean(verdicts):.1%} right")


def build_teachers(run: Run) -> None:
    """Train the tiny teacher from nothing and write its folder and response cache under results/teachers."""
    cfg, name = run.cfg, run.cfg.teachers
    can = [n for n, tiny in TINY.items() if tiny.voice]
    if name not in can:
        raise UserError(f"--teachers {name}: only a tiny teacher can be built: {', '.join(can)}")
    vlm = load(name, cfg.seed)
    fit(run, vlm, "build-teachers", cfg.sft_steps, TINY[name].voice)
    save(vlm, TEACHERS / name)
    responses = ask_teacher(name, split(cfg)["train"], cfg)
    part = TEACHERS / name / "responses.jsonl.part"
    part.write_text(as_lines(responses))
    part.replace(TEACHERS / name / "responses.jsonl")
    result = evaluate(load(TEACHERS / name), split(cfg)["valid"], Judge(cfg.judge), cfg.max_new_tokens, cfg.eval_draws)
    print(f"  {name}: validation accuracy {result['greedy']:.3f} greedy, {result['sampled']:.3f} sampled")


def split(cfg: Config) -> dict[str, list]:
    """The run's questions: {"train", "valid", "test"}. The test part is read by the evaluate stage only."""
    if cfg.data:
        return split_questions(load_questions(cfg.data))
    sizes = {"train": cfg.pool, "valid": cfg.valid_questions, "test": cfg.test_questions}
    return {name: world_questions(name, size) for name, size in sizes.items()}


class TeacherCache:
    """The teachers' responses in the student's tokens; `draw` takes G of a question's, at random, seeded."""

    def __init__(self, run: Run, student: VLM, questions: list):
        self.of: dict[str, list] = {q.id: [] for q in questions}
        cut, control = 0, {*student.banned_ids, *student.ends}  # a text of another family may spell one of them
        for _, row in read_jsonl(run.path / "teachers.jsonl", ("question", "teacher", "text", "verdict")):
            ids = student.reply_ids(row["text"])
            whole = row["finished"] and row["text"] and not control & set(ids[:-1])
            if whole and len(ids) <= run.cfg.max_new_tokens and row["question"] in self.of:
                response = Response(row["question"], len(self.of[row["question"]]), row["teacher"], ids, row["text"])
                self.of[row["question"]].append((response, row["verdict"]))
            else:
                cut += 1
        if cut:
            limit = f"over {run.cfg.max_new_tokens} tokens"
            print(f"  {cut} teacher responses are left out: cut off, empty, with control tokens inside, or {limit}")
        none = [q for q, found in self.of.items() if not found]
        if none:
            raise UserError(
                f"no teacher response to {len(none)} questions, the first is {none[0]!r}; see {run.path}/teachers.jsonl"
            )

    def draw(self, question: str, count: int, *purpose) -> tuple[list[Response], list[int]]:
        """`count` different responses and their verdicts (with repeats only where the cache holds fewer)."""
        found = self.of[question]
        rng = np.random.default_rng(seed_of(*purpose, question, "teacher draw"))
        chosen = [found[i] for i in rng.choice(len(found), count, replace=len(found) < count)]
        return [r for r, _ in chosen], [v for _, v in chosen]


# ------------------------------------------------------------------------------------------------ stage: discriminator
def discriminator_update(D: Discriminator, batches: list, is_student: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Gradients of Eq. 1 on the packed texts of a step: -> loss, student_logit (R,). is_student (R,) in packed
    order.
    """
    students, logits, total = int(is_student.sum()), [], 0.0
    for batch in batches:
        here = is_student[sum(map(len, logits)) :][: len(batch.last)]
        student_logit = D(batch)
        loss = discriminator_loss(student_logit, here, students, len(is_student) - students)
        loss.backward()
        logits.append(student_logit.detach())
        total += loss.item()
    return total, torch.cat(logits)


def discriminator(run: Run) -> None:
    """Pre-train D on fresh student samples against cached teacher responses; stop early on held-out questions."""
    cfg = run.cfg
    student = load(run.path / "sft")
    questions = split(cfg)["train"]
    cache = TeacherCache(run, student, questions)
    hold = max(1, min(32, len(questions) // 8))
    held, train = questions[:hold], questions[hold:] or questions
    D = Discriminator(student).train()
    optimizer = adamw(D, cfg.d_pretrain_lr)

    def texts(questions: list, step: int) -> tuple[list, torch.Tensor]:
        prompts, names = [student.encode_question(q) for q in questions], [q.id for q in questions]
        fresh = rollout(student, prompts, names, cfg.teacher_samples, cfg.max_new_tokens, PURE, (cfg.seed, "d", step))
        groups, n = [], cfg.teacher_samples
        for name, responses in zip(names, fresh, strict=True):
            groups.append([r.text for r in responses + cache.draw(name, n, cfg.seed, "d", step)[0]])
        is_student = (torch.arange(2 * n) < n).repeat(len(questions))
        return [D.pack(groups[s], student.device) for s in slices(len(groups), cfg.micro_batch)], is_student

    held_batches, held_is_student = texts(held, -1)
    for step in range(cfg.d_steps):
        for group in optimizer.param_groups:
            group["lr"] = cfg.d_pretrain_lr * (1 - 0.9 * step / cfg.d_steps)
        step_questions = questions_at(train, step, cfg.questions_per_step, seed_of(cfg.seed, "d"))
        batches, is_student = texts(step_questions, step)
        loss, _ = discriminator_update(D, batches, is_student)
        update(optimizer, cfg.clip, loss, run, "discriminator", step, [q.id for q in step_questions])
        with torch.no_grad():
            found = discriminator_accuracy(torch.cat([D(b) for b in held_batches]), held_is_student)
        run.log("metrics.jsonl", stage="discriminator", step=step, loss=loss, **found)
        print(f"  step {step + 1:3d}  loss {loss:.3f}  held-out accuracy {found['d_accuracy']:.3f}", flush=True)
        if found["d_accuracy"] >= cfg.d_stop:
            break
    with new_folder(run.path / "discriminator") as part:
        save_file({k: v.contiguous() for k, v in D.state_dict().items()}, part / "model.safetensors")


# ------------------------------------------------------------------------------------------------ stage: ril
def ril(run: Run) -> None:
    """Algorithm 2 of the paper. The numbers are those of the README."""
    cfg, judge = run.cfg, Judge(run.cfg.judge)
    student = load(run.path / "sft").freeze_vision()
    reference, replica = student.twin(), student.twin()  # pi_ref never changes; pi_old is refreshed at every step
    D = Discriminator(student)
    D.load_state_dict(load_file(run.path / "discriminator" / "model.safetensors"))
    parts = split(cfg)
    questions, valid = parts["train"], parts["valid"]
    cache = TeacherCache(run, student, questions)
    student_optimizer, d_optimizer = adamw(student, cfg.lr), adamw(D, cfg.d_lr)
    checkpoints = Checkpoints(
        run, "ril", dict(student=(student, student_optimizer), D=(D, d_optimizer)), cfg.checkpoint_every
    )
    progress = {"best": -1.0, "best_step": -1}
    start = checkpoints.resume(progress)
    how, P, G = PAPER if cfg.sampling == "paper" else PURE, cfg.questions_per_step, cfg.group_size
    objective = dict(responses=P * 2 * G, max_length=cfg.max_new_tokens, eps=cfg.eps, beta=cfg.beta, kl_kind=cfg.kl)
    teacher_rows = torch.arange(2 * G).expand(P, -1) >= G  # (P, 2G): the second half of every group
    if start == 0:
        validate(run, student, valid, judge, 0, progress)

    for step in range(start, cfg.steps):
        clock = time.perf_counter()
        # 1 questions
        asked = questions_at(questions, step, P, cfg.seed)
        prompts, names = [student.encode_question(q) for q in asked], [q.id for q in asked]

        # 2 rollout: G responses per question from the replica, which is pi_old
        replica.copy_from(student)
        fresh = rollout(replica, prompts, names, G, cfg.max_new_tokens, how, (cfg.seed, step, "rollout"))
        clock_rollout = time.perf_counter()

        # 3 teachers: G cached responses per question
        cached = [cache.draw(name, G, cfg.seed, step) for name in names]

        # 4 pack: one question = one row, for the policies (with picture and question) and for D (its template)
        groups = [mine + theirs for mine, (theirs, _) in zip(fresh, cached, strict=True)]
        cut = slices(P, cfg.micro_batch)
        packed = [pack(prompts[s], [[r.ids for r in g] for g in groups[s]], device=student.device) for s in cut]
        d_packed = [D.pack([[r.text for r in g] for g in groups[s]], student.device) for s in cut]

        # 5 discriminator: mu updates by Eq. 1
        for _ in range(cfg.mu):
            d_loss, student_logit = discriminator_update(D.train(), d_packed, ~teacher_rows.flatten())
            update(d_optimizer, cfg.clip, d_loss, run, "ril", step, names)
        d_accuracy = discriminator_accuracy(student_logit, ~teacher_rows.flatten())
        clock_d = time.perf_counter()

        # 6 rewards: r_sim from the just-updated D, r_ans from the judge (the teachers' verdicts are cached)
        with torch.no_grad():
            similarity = similarity_reward(torch.cat([D(b) for b in d_packed])).view(P, 2 * G)
        verdicts = [judge.verdicts(asked, g[:G]) + v for g, (_, v) in zip(groups, cached, strict=True)]
        answer = torch.tensor(verdicts, dtype=torch.float32)
        reward = rewards(similarity, answer)

        # 7 advantages over the whole group
        advantage = advantages(reward)  # (P, 2G)

        # 8 student: mu updates by Eq. 2; pi_old's log-probs come from this forward pass, not from the sampler
        with torch.no_grad():
            logp_ref = [reference(b) for b in packed] if cfg.beta else [None] * len(packed)
        logp_old: list = []
        for k in range(cfg.mu):
            loss_sum, ratios = 0.0, []
            for i, (s, batch) in enumerate(zip(cut, packed, strict=True)):
                logp = student(batch)
                if k == 0:
                    logp_old.append(logp.detach())
                loss = policy_loss(logp, logp_old[i], logp_ref[i], advantage[s].flatten(), batch.mask, **objective)
                loss.backward()
                loss_sum += loss.item()
                ratios.append(surrogate_metrics(logp.detach(), logp_old[i], batch.mask, cfg.eps))
            norm = update(student_optimizer, cfg.clip, loss_sum, run, "ril", step, names)
        clock_student = time.perf_counter()

        # 9 log
        row = dict(loss=loss_sum, gradient_norm=norm, d_loss=d_loss, **d_accuracy)
        row |= group_metrics(reward, similarity, answer, teacher_rows)
        row |= {name: float(np.mean([r[name] for r in ratios])) for name in ratios[0]}
        row |= token_metrics(fresh, packed, logp_old, logp_ref, teacher_rows, cut, cfg.kl)
        run.log("metrics.jsonl", stage="ril", step=step, **row)
        show(run, step, asked[0], groups[0], similarity[0], answer[0], advantage[0], G)
        seconds = dict(rollout=clock_rollout - clock, discriminator=clock_d - clock_rollout)
        seconds |= dict(student=clock_student - clock_d, total=time.perf_counter() - clock)
        run.log("timing.jsonl", stage="ril", step=step, **seconds)
        print(line(step, cfg.steps, row, seconds["total"]), flush=True)
        if cfg.eval_every and (step + 1) % cfg.eval_every == 0 or step + 1 == cfg.steps:
            validate(run, student, valid, judge, step + 1, progress)
        checkpoints.save(step + 1, progress)
    save(student, run.path / "checkpoints" / "last", torch.float32)


def token_metrics(fresh, packed, logp_old, logp_ref, teacher_rows, cut, kind: str) -> dict[str, float]:
    """What the step's tokens look like under the policy; every name is defined in the README."""
    mine, theirs, gap, penalty, tokens = [], [], [], [], 0
    for s, batch, old, ref in zip(cut, packed, logp_old, logp_ref, strict=True):
        is_teacher = teacher_rows[s].flatten()[:, None].to(batch.mask.device) & batch.mask
        mine.append(old[batch.mask & ~is_teacher])
        theirs.append(old[is_teacher])
        sampler = [torch.tensor(r.logps) for g in fresh[s] for r in g]
        gap.append(torch.cat(sampler).to(old.device) - mine[-1])
        tokens += int((batch.segment >= 0).sum())
        if ref is not None:
            penalty.append(kl(mine[-1], ref[batch.mask & ~is_teacher], kind))
    responses = [r for g in fresh for r in g]
    return {
        "tokens": float(np.mean([len(r.ids) for r in responses])),
        "cut_off": float(np.mean([not r.finished for r in responses])),
        "nll_student": -torch.cat(mine).mean().item(),
        "nll_teacher": -torch.cat(theirs).mean().item(),
        "kl": torch.cat(penalty).mean().item() if penalty else 0.0,
        "sampler_gap": torch.cat(gap).abs().max().item(),
        "packed_tokens": tokens,
    }


def line(step: int, steps: int, row: dict, seconds: float) -> str:
    """One aligned line per step; the README says how to read it."""
    return (
        f"  {step + 1:4d}/{steps}  sim {row['similarity']:.2f}  ans {row['answer']:.2f}  D acc {row['d_accuracy']:.2f}"
        f"  dead {row['dead_groups']:.2f}  tokens {row['tokens']:4.1f}"
        f"  nll {row['nll_student']:.2f}/{row['nll_teacher']:.2f}  kl {row['kl']:.3f}"
        f"  grad {row['gradient_norm']:.2f}  {seconds:.2f} s"
    )


def show(run: Run, step: int, question, group: list, similarity, answer, advantage, G: int) -> None:
    """One shown question of the step: a student's and a teacher's response with both rewards and the advantage."""
    chosen = [
        dict(source=group[i].source, text=group[i].text, similarity=similarity[i].item(), answer=answer[i].item())
        | dict(advantage=advantage[i].item())
        for i in (0, G)
    ]
    row = dict(question=question.id, text=question.text, reference=question.answer, responses=chosen)
    run.log("samples.jsonl", stage="ril", step=step, **row)


def validate(run: Run, student: VLM, valid: list, judge: Judge, step: int, progress: dict) -> None:
    """Accuracy on the validation questions; the best student so far (by sampled accuracy) is kept for export."""
    cfg = run.cfg
    found = evaluate(student, valid, judge, cfg.max_new_tokens, cfg.eval_draws, cfg.seed)
    score = found.get("sampled", found["greedy"])
    row = dict(valid_greedy=found["greedy"], valid_sampled=score)
    run.log("metrics.jsonl", stage="ril", step=step - 1, **row)  # belongs to the state behind that step
    better = score > progress["best"]
    if better:
        progress |= {"best": score, "best_step": step}
        save(student, run.path / "checkpoints" / "best", torch.float32)
    print(
        f"  validation after {step} steps: {found['greedy']:.3f} greedy, {score:.3f} sampled{'  (best)' * better}",
        flush=True,
    )


# ------------------------------------------------------------------------------------------------ stage: export
def export(run: Run) -> None:
    """student/ (best on validation) and last/ as bf16 Hugging Face folders, each read back by stock from_pretrained."""
    for source, target in (("best", "student"), ("last", "last")):
        vlm = load(run.path / "checkpoints" / source)
        save(vlm, run.path / target)
        again = load(run.path / target).hf.state_dict()
        wrong = [k for k, x in vlm.hf.state_dict().items() if not torch.equal(x.bfloat16(), again[k].bfloat16())]
        if wrong:
            raise UserError(
                f"{run.path / target}: stock from_pretrained reads {wrong[0]} differently; is the disk full?"
            )
        print(f"  {run.path / target}: {len(again)} tensors, read back equal")


# ------------------------------------------------------------------------------------------------ stage: evaluate
def evaluate_run(run: Run) -> None:
    """Held-out questions before and after, the teacher beside them; writes summary.json, curves.png, samples.md."""
    cfg, judge = run.cfg, Judge(run.cfg.judge)
    test = split(cfg)["test"]
    players = {"before": run.path / "sft", "after": run.path / "student", "last": run.path / "last"}
    players["teacher"] = teacher_folder(cfg.teachers)
    summary, texts = {"run": cfg.run, "test_questions": len(test)}, {}
    for who in tqdm(players, "evaluation", delay=2):
        found = evaluate(load(players[who]), test, judge, cfg.max_new_tokens, cfg.eval_draws, cfg.seed)
        texts[who] = found.pop("texts")
        for name in ("greedy", "sampled", "tokens", "cut_off"):
            if name in found:
                summary[f"{name}_{who}"] = round(found[name], 4)
                if f"{name}_interval" in found:
                    summary[f"{name}_{who}_interval"] = [round(x, 4) for x in found[f"{name}_interval"]]
        summary[f"greedy_{who}_by_kind"] = {k: round(x, 4) for k, x in found["greedy_by_kind"].items()}
    rows = [r for r in run.rows("metrics.jsonl", "ril") if "similarity" in r]
    few = max(1, min(5, len(rows) // 2))
    for name in ("similarity", "answer", "d_accuracy", "dead_groups"):
        if rows:
            summary[f"{name}_start"] = round(float(np.mean([r[name] for r in rows[:few]])), 4)
            summary[f"{name}_end"] = round(float(np.mean([r[name] for r in rows[-few:]])), 4)
    validations = [r for r in run.rows("metrics.jsonl", "ril") if "valid_sampled" in r]
    summary["exported_step"] = max(validations, key=lambda r: r["valid_sampled"])["step"] + 1
    cached = read_jsonl(run.path / "teachers.jsonl")
    summary["teacher_cached_right"] = round(float(np.mean([row["verdict"] for _, row in cached])), 4)
    run.write("summary.json", summary)
    write_samples(run.path, shown(run, test[:8], judge, texts))
    draw_curves(run.path, rows, validations)


def shown(run: Run, questions: list, judge: Judge, texts: dict) -> list[tuple]:
    """[(question, [{who, text, similarity, answer}])] for samples.md; similarity is the pre-trained discriminator's."""
    D = Discriminator(load(run.path / "sft"))
    D.load_state_dict(load_file(run.path / "discriminator" / "model.safetensors"))
    out = []
    for q in questions:
        said = {who: texts[who][q.id] for who in ("before", "after", "teacher")}
        with torch.no_grad():
            similarity = similarity_reward(D(D.pack([list(said.values())])))
        verdicts = judge.verdicts([q] * 3, [Response(q.id, 0, who, [], text) for who, text in said.items()])
        rows = zip(said, said.values(), similarity.tolist(), verdicts, strict=True)
        out.append((q, [dict(who=w, text=x, similarity=int(s), answer=v) for w, x, s, v in rows]))
    return out


# ------------------------------------------------------------------------------------------------ main
STAGE_OF = dict(
    sft=(sft, "sft/config.json", "warm start"),
    teachers=(teachers, "teachers.jsonl", "teacher responses"),
    discriminator=(discriminator, "discriminator/model.safetensors", "discriminator pre-training"),
    ril=(ril, "checkpoints/last/config.json", "RIL"),
    export=(export, "last/config.json", "export"),
    evaluate=(evaluate_run, "summary.json", "evaluation on held-out questions"),
)


def main(argv: list[str] | None = None) -> None:
    """Run the stages whose artefact is missing, say which are skipped, end with the summary."""
    cfg = parse(sys.argv[1:] if argv is None else argv)
    warnings.filterwarnings("ignore", message=".*(torch.distributed is disabled|TypedStorage|_get_pg_default_device).*")
    torch.set_num_threads(cfg.threads)
    torch.use_deterministic_algorithms(True)
    split(cfg)  # read every question before anything is written: bad input leaves no trace
    run = Run(cfg)
    if cfg.stage == "build-teachers":
        build_teachers(run)
        return
    for i, name in enumerate(STAGES):
        action, artefact, title = STAGE_OF[name]
        if cfg.stage not in ("all", name):
            continue
        for earlier in STAGES[:i]:
            if not (run.path / STAGE_OF[earlier][1]).exists():
                raise UserError(f"--stage {name} needs {run.path / STAGE_OF[earlier][1]}; run --stage {earlier} first")
        if (run.path / artefact).exists():
            print(f"{title}: skipped, {run.path / artefact} is there")
            continue
        print(f"{title}", flush=True)
        begin = time.perf_counter()
        action(run)
        seconds = json.loads((run.path / "seconds.json").read_text()) if (run.path / "seconds.json").exists() else {}
        seconds[name] = round(seconds.get(name, 0) + time.perf_counter() - begin, 1)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)
        seconds["peak_memory_mb"] = max(round(peak), seconds.get("peak_memory_mb", 0))
        run.write("seconds.json", seconds)
        print(f"  {title}: {time.perf_counter() - begin:.1f} s", flush=True)
    if (run.path / "summary.json").exists():
        summary = json.loads((run.path / "summary.json").read_text())
        if "seconds" not in summary and (run.path / "seconds.json").exists():
            summary["seconds"] = json.loads((run.path / "seconds.json").read_text())
            summary["peak_memory_mb"] = summary["seconds"].pop("peak_memory_mb")
            run.write("summary.json", summary)
        print("\n---")
        for key, value in summary.items():
            print(f"{key}: {json.dumps(value)}")
        print(f"see: {run.path}/curves.png {run.path}/samples.md")


if __name__ == "__main__":
    run_command(main)
