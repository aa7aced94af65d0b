"""RIL: a small vision-language model learns from teachers by reinforcement and imitation (arXiv 2510.19307).

    python train.py                                   # the whole loop on the tiny world, a CPU, three minutes
    python train.py --run mine --data mine.jsonl      # your own questions
    python train.py --run long --steps 120 --seed 3   # longer, another seed; the run lies in runs/long
    torchrun --nproc_per_node 8 train.py --student qwen2.5-vl-7b      # real scale: --plan and --pilot first
    python train.py --help                            # every setting, with the paper's value beside it

Stages, in order; each leaves an artefact in runs/NAME and is skipped when the artefact is there:

    sft            sft/              warm start, shipped or trained: the language of the world; it is pi_init and pi_ref
    teachers       teachers.jsonl    cached teacher responses with the judge's verdicts
    discriminator  discriminator/    D, from the warm-started student, until it tells student from teacher
    ril            checkpoints/      the loop (Algorithm 2): numbers 1-9 in `ril` below and in the README
    export         student/, last/   Hugging Face folders: best on the validation questions, and last
    evaluate       summary.json      held-out questions, before and after; curves.png, samples.md

Left out on purpose: trainer classes, callbacks, configuration files, a logging service.
"""

import argparse
import dataclasses
import gc
import json
import math
import os
import shutil
import sys
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# torch reads this when it is imported; lengths differ at every step, and segments of fixed size would fragment memory
os.environ.setdefault("PYTORCH_ALLOC_CONF", os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True"))

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from data import (
    Flags,
    UserError,
    load_questions,
    look,
    questions_at,
    read_jsonl,
    run_command,
    seed_of,
    slices,
    world_lessons,
)
from discriminator import INPUTS, Discriminator, discriminator_accuracy, discriminator_update, similarity_reward
from eval import auc, draw_curves, evaluate, loop_rows, start_and_end, write_samples
from grpo import (
    advantages,
    group_metrics,
    kl,
    policy_loss,
    rewards,
    sft_loss,
    surrogate_metrics,
    teacher_advantages,
)
from judge import MALFORMED_ALARM, Judge, Server, is_url, judge_digits, known_judge
from model import (
    FULL,
    JUDGES,
    PARTS,
    TINY,
    VLM,
    copy_slice,
    deal,
    dealt,
    everyone,
    everyone_of,
    family_of,
    find_folder,
    language_shell,
    load,
    new_folder,
    pack,
    random_shell,
    ranks,
    save,
    shared_prefix,
    shell,
    start_ranks,
    wait,
    whole,
)
from rollout import PAPER, PURE, Response, Sampling, rollout
from run import (
    HOME,
    REAL_IMAGE_TOKENS,
    Checkpoints,
    Run,
    adamw,
    budget,
    compute_dtype,
    device_of,
    frozen_parts,
    hold_memory,
    is_real,
    move,
    on_gpu,
    peak_memory_mb,
    questions_in,
    refreshed,
    split,
    total,
    update,
)
from teachers import (
    FOLDER,
    SAMPLES,
    TEMPERATURE,
    TeacherCache,
    as_lines,
    ask_teacher,
    pretraining_questions,
    pretraining_samples,
    select,
    teacher_folder,
    teacher_model,
    teacher_names,
    teachers,
)

# A method is a set of switches; flags given explicitly win. Same data, same number of updates, same evaluation for all.
NO_D = dict(discriminator="none", similarity="none")
LIKELIHOOD = dict(student_rows="none", advantage="one", answer="none", beta=0.0, **NO_D)
ALGOS = {
    "ril": {},  # the paper, Algorithm 2
    "grpo": dict(teacher_use="none", advantage="grpo", length="mean", **NO_D),  # the paper, Algorithm 1, first baseline
    "dr_grpo": dict(teacher_use="none", **NO_D),  # the paper, Algorithm 1, second baseline
    "distill": LIKELIHOOD,  # supervised fine-tuning on the cached teacher responses
    "sft": dict(teachers="reference", **LIKELIHOOD),  # supervised fine-tuning on the reference answers
    "gail": dict(teacher_use="discriminator", similarity="continuous", answer="none"),  # D's score is the only reward
}
D_ALARM = 0.6  # a held-out accuracy of D below this is a warning
STAGES = ("sft", "teachers", "discriminator", "ril", "export", "evaluate")
BUILDS = ("build-students", "build-teachers")  # make what is shipped anew: make students, make teachers
STUDENTS = HOME / "results" / "students"  # shipped warm starts, one folder per tiny student and seed
TEACHER_USE = ("gradient", "baseline", "positive", "denominator-1", "luffy", "discriminator", "none")
SIMILARITIES = ("binary", "three", "levels", "continuous", "constant", "oracle", "none")


# ------------------------------------------------------------------------------------------------ settings
def setting(default, text: str, paper=None, choices=None, ours=None, zero=False):
    """A field of Config. `paper`: its value there; `ours`: ours at real scale where the paper is silent; `zero`: may be
    0.
    """
    note = f"; the paper: {paper}" if paper is not None else f"; paper silent, ours {ours}" if ours is not None else ""
    real = ours if paper is None else paper
    help_text = f"{text} [{default!s}{note}]".replace("%", "%%")
    return dataclasses.field(default=default, metadata=dict(help=help_text, real=real, choices=choices, zero=zero))


@dataclass
class Config:
    """Every setting of a run. Each field is a flag: group_size is --group-size; booleans have --no-... too."""

    run: str = setting("demo", "the run's folder is runs/NAME")
    stage: str = setting("all", "run one stage only", choices=("all", *STAGES, *BUILDS, "select"))
    preset: str = setting(
        "auto",
        "tiny: the defaults; paper: the paper's values, ours where it is silent; auto: by the student's size",
        choices=("auto", "tiny", "paper"),
    )
    resume: bool = setting(True, "go on where the run stopped; --no-resume deletes it and starts anew")
    seed: int = setting(0, "seeds the student's weights, its lessons, the order of questions and every draw", zero=True)
    threads: int = setting(2, "CPU threads of each process")
    device: str = setting("auto", "where the models are; auto: a GPU if there is one", choices=("auto", "cpu", "cuda"))
    dtype: str = setting(
        "fp32", "what is computed in; weights, gradients and optimiser are fp32", None, ("fp32", "bf16"), ours="bf16"
    )
    recompute: bool = setting(False, "recompute activations in the backward pass: less memory, more time", ours=True)
    offload: str = setting(
        "auto",
        "phase: on the GPU only what the phase needs; auto: when the plan says so",
        choices=("auto", "none", "phase"),
    )
    plan: bool = setting(False, "print what fits and how long it takes; loads nothing")
    gpus: int = setting(8, "with --plan: number of GPUs")
    gpu_memory: float = setting(80.0, "with --plan: GB of each")
    pilot: bool = setting(False, "64 questions, three steps of every stage, then a page of checks")
    deterministic: bool = setting(False, "deterministic kernels on a GPU too (always on a CPU)")
    random_weights: bool = setting(
        False, "published students and judges at full size without a download: for speed, memory"
    )
    image_tokens: int = setting(
        0, "most image tokens of a picture (0: as the model's folder says)", ours=REAL_IMAGE_TOKENS, zero=True
    )
    algo: str = setting("ril", "which method: presets of the switches below (ALGOS)", choices=tuple(ALGOS))
    # who plays
    student: str = setting("tiny-qwen", "a name or a Hugging Face folder")
    teachers: str = setting(
        "tiny-qwen-teacher", "A or A,B: tiny teachers, published names, folders, NAME=URL; reference: the answers"
    )
    teachers_file: str = setting("", "responses made elsewhere: JSONL with question, teacher, text")
    judge: str = setting("rule", "who decides what is right: rule, qwen2.5-32b, a folder, or a URL", "qwen2.5-32b")
    judged: float = setting(1.0, "share of the training questions that have an answer key; the rest score 0", zero=True)
    judge_wrong: float = setting(0.0, "share of training verdicts that are turned round", zero=True)
    # questions
    data: str = setting("", "JSONL file of questions; without it the embedded tiny world")
    pool: int = setting(512, "training questions of the tiny world")
    valid_questions: int = setting(300, "validation questions: they choose the exported checkpoint")
    test_questions: int = setting(1000, "test questions: read by the evaluate stage only")
    select: str = setting("log-prob", "--stage select: the score (teachers.py)", None, ("log-prob", "pass-rate"))
    # warm start
    sft_data: str = setting("", "JSONL with question, answer and picture: a warm start for a real student")
    sft_epochs: float = setting(1.0, "passes of that warm start over --sft-data", ours=1.0)
    sft_steps: int = setting(1200, "steps of the warm start; with the defaults a shipped one is used")
    sft_pictures: int = setting(16, "pictures per warm-start step")
    sft_questions: int = setting(4, "questions per picture: one packed row")
    sft_lr: float = setting(2e-3, "learning rate at the start of the warm start, falls linearly", paper=1e-5)
    sft_lr_end: float = setting(1e-4, "learning rate at its end", paper=1e-6)
    sft_warmup: int = setting(50, "steps in which the learning rate rises to its start; at most half of them")
    # teachers
    teacher_samples: int = setting(SAMPLES, "cached responses per question and teacher (the paper: 16)", ours=4)
    cached: int = setting(0, "cached responses used per question and teacher (0: all)", zero=True)
    right_only: bool = setting(
        False, "use only the cached responses that the judge calls right, and only questions that have one"
    )
    teacher_temperature: float = setting(TEMPERATURE, "sampling temperature of the teacher")
    # discriminator pre-training
    d_steps: int = setting(12, "at most so many steps", ours=100, zero=True)
    d_samples: int = setting(
        0, "responses per question of the student and of each teacher (0: as --teacher-samples)", paper=16, zero=True
    )
    d_pretrain_lr: float = setting(2e-4, "learning rate at the start, falls linearly to a tenth", paper=1e-5)
    d_stop: float = setting(0.95, "stop when the accuracy on held-out questions reaches this", zero=True)
    # the switches of the paper's sections 3 and 4, named after the term that they change
    student_rows: str = setting("gradient", "student responses: in the gradient, or none", choices=("gradient", "none"))
    teacher_use: str = setting("gradient", "teacher rows: what for (grpo.py; discriminator: only D)", None, TEACHER_USE)
    teacher_rows: str = setting("split", "two teachers: G/2 + G/2, or G each", choices=("split", "each"))
    advantage: str = setting("dr_grpo", "group baseline (grpo.py)", "dr_grpo", ("dr_grpo", "grpo", "one"))
    length: str = setting("constant", "divide a response by a constant or its length", "constant", ("constant", "mean"))
    answer: str = setting("judge", "answer reward", "judge", ("judge", "none"))
    similarity: str = setting("binary", "similarity reward; constant: 1 on teacher rows", "binary", SIMILARITIES)
    discriminator: str = setting("updated", "D in the loop", "updated", ("updated", "frozen", "none"))
    d_pretrain: bool = setting(True, "pre-train D before the loop")
    d_input: str = setting("response", "D reads the response, the question too, the picture too", "response", INPUTS)
    frozen: str = setting("vision", "not trained in the loop: vision,embeddings,attention,mlp,head; none")
    # the loop
    steps: int = setting(60, "steps of the RIL loop", paper=1000, zero=True)
    questions_per_step: int = setting(12, "questions per step (P)", ours=40)
    group_size: int = setting(8, "student responses per question, and as many of teachers (G)", paper=4)
    lr: float = setting(1e-4, "learning rate of the student, constant", paper=1e-6)
    d_lr: float = setting(2e-4, "learning rate of the discriminator, constant", paper=1e-6)
    beta: float = setting(0.01, "weight of the KL penalty", paper=0.01, zero=True)
    kl: str = setting("k3", "estimator of the KL penalty (grpo.py)", choices=("k3", "k2"))
    eps: float = setting(0.2, "clip range of the ratio", paper=0.2)
    mu: int = setting(1, "updates per rollout, of discriminator and student", paper=1)
    max_new_tokens: int = setting(40, "longest response; also the constant that sums are divided by", ours=512)
    sampling: str = setting(
        "pure", "pure: temperature 1; paper: top-p .95, top-k 50, penalty 1.05", "paper", ("pure", "paper")
    )
    clip: float = setting(1.0, "largest gradient norm")
    micro_batch: int = setting(12, "questions per forward pass and GPU; changes memory, not results", ours=1)
    rollout_rows: int = setting(512, "responses decoded side by side on a GPU; changes memory, not results", ours=32)
    # looking at it
    ask_prefix: str = setting(
        "", 'put before every test question; "look" shows what the tiny student can when asked to'
    )
    evaluated: str = setting(
        "all", "the evaluate stage: all players, or the exported student", choices=("all", "after")
    )
    eval_every: int = setting(10, "steps between validations", ours=50, zero=True)
    eval_draws: int = setting(4, "sampled answers per question in every evaluation", zero=True)
    checkpoint_every: int = setting(10, "steps between checkpoints (the warm start: ten times that)", ours=50)
    keep: int = setting(2, "checkpoints kept; with --stage select: questions kept (2, the default: all)")


def parse(argv: list[str]) -> Config:
    """Flags -> Config. Unknown flags, impossible values and combinations without meaning end in one line."""
    parser = Flags(__doc__)
    fields = dataclasses.fields(Config)
    for f in fields:
        flag, text = "--" + f.name.replace("_", "-"), f.metadata["help"]
        if isinstance(f.default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            choices = f.metadata["choices"]
            kind = type(f.default)
            shown = None if choices else kind.__name__.upper()
            parser.add_argument(flag, type=kind, choices=choices, default=None, help=text, metavar=shown)
    given = {k: v for k, v in vars(parser.parse_args(argv)).items() if v is not None}
    real = {f.name: f.metadata["real"] for f in fields if f.metadata["real"] is not None}
    if given.get("preset", "auto") == "auto":
        given["preset"] = "paper" if is_real(given.get("student", Config.student)) else "tiny"
    if not given.get("data"):
        del real["judge"]  # the embedded world has an exact rule
    named = ALGOS[given.get("algo", "ril")] | given
    cfg = Config(**((real if given["preset"] == "paper" else {}) | named))
    for f in fields:
        value = getattr(cfg, f.name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and not (0 < value < float("inf") or value == 0 and f.metadata["zero"]):
            least = "at least 0" if f.metadata["zero"] else "above 0"
            raise UserError(f"--{f.name.replace('_', '-')} {value}: must be {least}")
    if not cfg.run or cfg.run in (".", "..") or "/" in cfg.run:
        raise UserError(f"--run {cfg.run!r}: give a plain folder name")
    if cfg.student not in (*TINY, *FULL):
        family_of(cfg.student)
    if cfg.random_weights and cfg.student not in FULL and cfg.judge not in JUDGES:
        raise UserError(f"--random-weights is for published names: {', '.join([*FULL, *JUDGES])}; others have weights")
    if cfg.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this machine shows no GPU to torch; take --device cpu")
    if not cfg.resume and cfg.stage not in ("all", *BUILDS, "select"):
        raise UserError(f"--no-resume deletes the run and begins anew: it does not go with --stage {cfg.stage}")
    known_judge(cfg.judge)
    for file, fields in (
        (cfg.teachers_file, ("question", "teacher", "text")),
        (cfg.sft_data, ("id", "question", "answer")),
    ):
        if file:  # read now: a torn line is named before anything is written
            read_jsonl(file, fields)
    if cfg.stage == "select" and not cfg.data:
        raise UserError("--stage select chooses from your questions: it needs --data")
    asked = cfg.teacher_use != "none" and (cfg.stage != "select" or cfg.select == "log-prob")
    if cfg.preset == "paper" and cfg.data and asked and "teachers" not in named:
        raise UserError(
            "--preset paper with --data: name the --teachers: served ones (big=http://HOST:PORT/v1), a published "
            "name (qwen2.5-vl-72b), a folder, or A with --teachers-file FILE, whose lines say A"
        )
    names = teacher_names(cfg)
    if "" in names:
        raise UserError(f"--teachers {cfg.teachers}: an empty name; give A, A,B or NAME=URL")
    for entry in filter(lambda x: "=" in x, cfg.teachers.split(",")):
        Server(entry.partition("=")[2])  # or one line that says what is wrong with the address
    for name in cfg.teachers.split(",") if cfg.stage != "build-teachers" and cfg.teacher_use != "none" else ():
        if name != "reference" and "=" not in name and name not in FULL and not cfg.teachers_file:
            teacher_folder(name)
    has_d, has_teachers = cfg.discriminator != "none", cfg.teacher_use != "none"
    learned = cfg.similarity in ("binary", "three", "levels", "continuous")
    in_group = cfg.teacher_use not in ("none", "discriminator")
    senseless = [
        ("sft_steps" in given and bool(cfg.sft_data), "--sft-data is counted in epochs: --sft-epochs, not --sft-steps"),
        ("sft_epochs" in given and not cfg.sft_data, "--sft-epochs counts passes over --sft-data: it needs one"),
        (max(cfg.judged, cfg.judge_wrong) > 1, "--judged and --judge-wrong are shares, between 0 and 1"),
        (cfg.algo not in ("grpo", "dr_grpo") and not has_teachers, f"--algo {cfg.algo} needs teachers"),
        (has_d and not has_teachers, "a --discriminator needs teacher responses: --teacher-use"),
        (learned and not has_d, f"--similarity {cfg.similarity} is D's: it needs a --discriminator"),
        (has_d and not learned, f"--similarity {cfg.similarity} leaves D without a say: --discriminator none"),
        (cfg.teacher_use == "discriminator" and not has_d, "--teacher-use discriminator needs a --discriminator"),
        (not has_teachers and (cfg.cached or cfg.right_only), "--cached and --right-only need teachers"),
        (
            cfg.judged == 0 and cfg.similarity == "none" and cfg.advantage != "one",
            "no reward: --judged 0, no similarity",
        ),
        (cfg.advantage == "one" and cfg.mu > 1, "--advantage one is likelihood and has no ratio to clip: --mu 1"),
        (cfg.group_size < 2 and not in_group, "--group-size 1 without teacher rows: a group of one has no advantage"),
        (cfg.d_input != "response" and not has_d, f"--d-input {cfg.d_input} without a --discriminator"),
        (cfg.discriminator == "frozen" and not cfg.d_pretrain, "a D frozen without --d-pretrain has learned nothing"),
        (cfg.similarity == "constant" and not in_group, "--similarity constant marks teacher rows: it needs them"),
        (cfg.similarity == "oracle" and bool(cfg.data), "--similarity oracle knows the tiny world only: no --data"),
        (has_teachers and len(set(names)) < len(names), f"--teachers {cfg.teachers}: the same teacher twice"),
        (
            has_teachers and cfg.teacher_rows == "split" and cfg.group_size % len(names) != 0,
            f"--group-size {cfg.group_size} cannot be split over {len(names)} teachers; take --teacher-rows each",
        ),
    ]
    for part in frozen_parts(cfg):
        senseless.append((part not in PARTS, f"--frozen {part}: unknown; there are {', '.join(PARTS)}, or none"))
    if cfg.advantage != "one":
        senseless.append((cfg.answer == cfg.similarity == "none", "no reward: --answer none and --similarity none"))
    if cfg.student_rows == "none":
        senseless.append((cfg.advantage != "one", "--student-rows none leaves no group: it needs --advantage one"))
        senseless.append((has_d, "--student-rows none gives D nothing to tell apart"))
        senseless.append((cfg.teacher_use in ("none", "discriminator", "baseline"), "nothing is left to be trained"))
    for wrong, reason in senseless:
        if wrong:
            raise UserError(reason)
    return cfg


def sampling_of(cfg: Config) -> Sampling:
    """How the student samples what D and the loop see."""
    return PAPER if cfg.sampling == "paper" else PURE


# ------------------------------------------------------------------------------------------------ stage: sft
def lessons(vlm: VLM, step: int, seed: int, pictures: int, per_picture: int, voice: str):
    """This rank's part of a warm-start batch, and the target tokens of the whole: the questions about a picture share
    its packed row; only the replies are targets.
    """
    prompts, rows, skip = [], [], []
    batch = world_lessons(step, seed, pictures, per_picture, voice)
    looked = [vlm.look([picture]) for picture, _ in batch]
    chats = [vlm.chat_text(seen, text) for seen, (_, pairs) in zip(looked, batch, strict=True) for text, _ in pairs]
    replies = [reply for _, pairs in batch for _, reply in pairs]
    asked, said = (vlm.tokenizer(texts, add_special_tokens=False)["input_ids"] for texts in (chats, replies))
    for seen, s in zip(looked, slices(len(asked), per_picture), strict=True):
        n = shared_prefix(asked[s])
        prompts.append(vlm.prompt(asked[s][0][:n], seen))
        rows.append([a[n:] + r + [vlm.end] for a, r in zip(asked[s], said[s], strict=True)])
        skip.append([len(a) - n for a in asked[s]])
    tokens = sum(map(len, (r for of in rows for r in of))) - sum(map(sum, skip))
    return pack(deal(prompts), deal(rows), deal(skip), vlm.device), tokens


def own_lessons(vlm: VLM, questions: list, step: int, seed: int, count: int):
    """The same from questions of yours with the answers as replies."""
    batch = [q for q, _ in questions_at(questions, step, count, seed_of(seed, "sft"))]
    rows = [[vlm.reply_ids(q.answer)] for q in batch]
    mine, own = dealt(batch)
    replies = deal(rows) + [[]] * (len(mine) - own)
    prompts = [vlm.encode_question(q) for q in mine]
    return pack(prompts, replies, device=vlm.device, blank=vlm.blank()), sum(len(r) for (r,) in rows)


def sft_questions(cfg: Config) -> list:
    """The lines of --sft-data, without those about held-out questions or pictures of --data; [] without the flag."""
    lines = load_questions(cfg.sft_data) if cfg.sft_data else []
    parts = split(cfg) if lines and cfg.data else {"valid": [], "test": []}
    held = parts["valid"] + parts["test"]
    names = {Path(p).resolve() for q in held for p in q.images} | {q.id for q in held}
    kept = [q for q in lines if not names & {q.id, *(Path(p).resolve() for p in q.images)}]
    if len(kept) < len(lines):
        print(f"  {len(lines) - len(kept)} lines of {cfg.sft_data} are left out: their questions are held out")
    if lines and not kept:
        raise UserError(f"--sft-data {cfg.sft_data}: all its lines are about held-out questions; give others")
    return kept


def fit(run: Run, vlm: VLM, stage: str, steps: int, voice: str = "") -> None:
    """Supervised fine-tuning: `steps` on the tiny world with everything trained (a tiny model starts from random
    weights), or --sft-epochs over --sft-data.
    """
    cfg, own = run.cfg, sft_questions(run.cfg)
    if own:
        steps = math.ceil(cfg.sft_epochs * len(own) / cfg.sft_pictures)
        steps = min(30, steps) if cfg.pilot else steps
        print(f"  {cfg.sft_epochs:g} epochs of {len(own)} questions: {steps} steps of {cfg.sft_pictures}")
    warmup = min(cfg.sft_warmup, max(1, steps // 2))
    vlm.freeze(*(() if cfg.student in TINY or voice else ("vision",))).train()
    optimizer = adamw(vlm, cfg.sft_lr)
    checkpoints = Checkpoints(run, stage, {"student": (vlm, optimizer)}, 10 * cfg.checkpoint_every)
    progress: dict = {}
    start = checkpoints.resume(progress)
    quiet = not run.first
    for step in (bar := tqdm(range(start, steps), stage, steps, initial=start, mininterval=2, disable=quiet)):
        for group in optimizer.param_groups:
            falling = cfg.sft_lr + (cfg.sft_lr_end - cfg.sft_lr) * step / steps
            group["lr"] = falling * min(1, (step + 1) / warmup)
        if own:
            batch, tokens = own_lessons(vlm, own, step, cfg.seed, cfg.sft_pictures)
        else:
            batch, tokens = lessons(vlm, step, cfg.seed, cfg.sft_pictures, cfg.sft_questions, voice)
        loss = sft_loss(vlm(batch), batch.mask, tokens)
        (ranks()[1] * loss).backward()  # FSDP takes the mean over ranks
        loss_sum = total(loss.item())
        norm = update(optimizer, cfg.clip, loss_sum, run, stage, step, [])
        if step % 50 == 49 or step == steps - 1:
            run.log("metrics.jsonl", stage=stage, step=step, loss=loss_sum, gradient_norm=norm)
            bar.set_postfix_str(f"loss {loss_sum:.3f}")
        checkpoints.save(step + 1, progress)
    checkpoints.finish()
    vlm.eval()


def warm_start_settings(cfg: Config) -> dict:
    """What the weights of a tiny student's warm start depend on."""
    fields = dataclasses.asdict(cfg)
    names = "student seed image_tokens sft_data sft_steps sft_pictures sft_questions sft_lr sft_lr_end sft_warmup"
    return {name: fields[name] for name in names.split()}


def shipped_warm_start(cfg: Config) -> Path | None:
    """The shipped folder that was made with exactly these settings; None: there is none."""
    folder = STUDENTS / f"{cfg.student}-seed{cfg.seed}"
    file = folder / "warm_start.json"
    made = json.loads(file.read_text())["settings"] if file.is_file() else None
    return folder if made == warm_start_settings(cfg) else None


def sft(run: Run) -> None:
    """The student's warm start: pi_init and pi_ref."""
    name, target, shipped = run.cfg.student, run.path / "sft", shipped_warm_start(run.cfg)
    if shipped:
        print(f"  a shipped warm start: results/students/{shipped.name}; --stage build-students trains it anew")
        with new_folder(target) as part:
            if run.first:
                shutil.copytree(shipped, part, ignore=lambda *_: ["warm_start.json"], dirs_exist_ok=True)
    elif name in TINY or run.cfg.sft_data:
        vlm = run.sharded(name)
        fit(run, vlm, "sft", run.cfg.sft_steps)
        save(vlm, target, torch.float32)
    elif run.cfg.random_weights and name in FULL:
        save(run.sharded(name), target)
    else:
        print("  a trained student already: it is pi_init and pi_ref as it is")
        folder = find_folder(name).resolve()
        if run.first:
            target.unlink(missing_ok=True)
            target.symlink_to(folder)
        wait()


# ------------------------------------------------------------------------------------------------ what is shipped
def build_students(run: Run) -> None:
    """Train the tiny student's warm start from nothing and write its bf16 folder under results/students."""
    cfg, folder = run.cfg, STUDENTS / f"{run.cfg.student}-seed{run.cfg.seed}"
    can = [n for n, tiny in TINY.items() if not tiny.voice]
    if cfg.student not in can:
        raise UserError(f"--student {cfg.student}: only a tiny student can be built: {', '.join(can)}")
    vlm = run.sharded(cfg.student)
    fit(run, vlm, "sft", cfg.sft_steps)
    save(vlm, folder)
    how = (cfg.max_new_tokens, cfg.eval_draws, cfg.seed)
    found = evaluate(load(folder), split(cfg)["valid"], run.judge(), *how)
    valid = rounded({name: found[name] for name in ("questions", "greedy", "sampled") if name in found})
    if run.first:
        part = folder / "warm_start.json.part"
        part.write_text(json.dumps(dict(settings=warm_start_settings(cfg), validation=valid), indent=1) + "\n")
        part.replace(folder / "warm_start.json")
    print(f"  {folder.name}: validation accuracy {valid}")


def build_teachers(run: Run) -> None:
    """Train the tiny teacher from nothing and write its folder and response cache under results/teachers."""
    cfg, name = run.cfg, run.cfg.teachers
    can = [n for n, tiny in TINY.items() if tiny.voice]
    if name not in can:
        raise UserError(f"--teachers {name}: only a tiny teacher can be built: {', '.join(can)}")
    vlm = run.sharded(name)
    fit(run, vlm, "build-teachers", cfg.sft_steps, TINY[name].voice)
    save(vlm, FOLDER / name)
    if run.first:
        for old in run.path.glob("teachers-*.part.jsonl"):
            old.unlink()
    responses = ask_teacher(name, "", split(cfg)["train"], run)
    if run.first:
        part = FOLDER / name / "responses.jsonl.part"
        part.write_text(as_lines(responses))
        part.replace(FOLDER / name / "responses.jsonl")
    result = evaluate(load(FOLDER / name), split(cfg)["valid"], run.judge(), cfg.max_new_tokens, cfg.eval_draws)
    print(f"  {name}: validation accuracy {result['greedy']:.3f} greedy, {result['sampled']:.3f} sampled")


# ------------------------------------------------------------------------------------------------ stage: discriminator
def make_discriminator(run: Run, trained: bool = True) -> Discriminator:
    """D around the warm-started student's backbone, sharded; with its pre-trained weights when there are some."""
    D = run.sharded(run.path / "sft", player=lambda vlm: Discriminator(vlm, run.cfg.d_input))
    if trained:
        with safe_open(run.path / "discriminator" / "model.safetensors", "pt") as file, torch.no_grad():
            for name, x in D.state_dict().items():
                copy_slice(x, file.get_slice(name))
    return D


def discriminator(run: Run) -> None:
    """Pre-train D on fresh student samples against cached teacher responses; stop early on held-out questions."""
    cfg, world = run.cfg, ranks()[1]
    student = run.whole(run.path / "sft")
    cache = TeacherCache(run, student, split(cfg)["train"])
    held, visits = pretraining_questions(cfg, split(cfg)["train"], [q.id for q in cache.questions])
    n, read = pretraining_samples(cfg), {q.id for part in (held, *visits) for q in part}
    if few := cache.too_few(read, n):
        print(f"  {few} of {len(read)} questions have fewer than {n} cached responses of a teacher: D reads repeats")
    D = make_discriminator(run, trained=False).train()
    optimizer = adamw(D, cfg.d_pretrain_lr)
    run.rewind("discriminator", 0)

    def texts(questions: list, step: int) -> tuple[list, torch.Tensor, int]:
        """This rank's packed texts, who wrote them, and the number of questions of the step."""
        asked, own = dealt(questions)
        prompts, names = [student.encode_question(q) for q in asked], [q.id for q in asked[:own]]
        sampled = (cfg.max_new_tokens, sampling_of(cfg), (cfg.seed, "d", step))
        with on_gpu(run, student):
            fresh = rollout(student, prompts[:own], names, n, *sampled, max_rows=cfg.rollout_rows)
            seen = student.see(prompts)
        groups = [
            mine + cache.draw(name, cfg.seed, "d", step, count=n)[0] for name, mine in zip(names, fresh, strict=True)
        ]
        is_student = torch.tensor([r.source == "student" for g in groups for r in g], dtype=torch.bool)
        groups += [[]] * (len(asked) - own)
        cut = slices(n * (1 + len(cache.names)), 2 * cfg.group_size)  # a row has as many texts as in the loop
        asked, seen = ([x for x in of for _ in cut] for of in (asked, seen))
        return D.batches(asked, seen, [g[s] for g in groups for s in cut], cfg.micro_batch), is_student, own

    if visits:
        held_batches, held_is_student, _ = texts(held, -1)
    for step, step_questions in enumerate(visits):
        for group in optimizer.param_groups:
            group["lr"] = cfg.d_pretrain_lr * (1 - 0.9 * step / cfg.d_steps)
        batches, is_student, count = texts(step_questions, step)
        with on_gpu(run, D, optimizer):
            loss, _ = discriminator_update(D, batches, is_student, count / len(step_questions), world)
            loss = total(loss)
            update(optimizer, cfg.clip, loss, run, "discriminator", step, [q.id for q in step_questions])
            with torch.no_grad():
                mine = [torch.cat([D(b) for b in held_batches]).cpu(), held_is_student]
        found = discriminator_accuracy(*(torch.cat(everyone_of(x)) for x in mine))
        run.log("metrics.jsonl", stage="discriminator", step=step, loss=loss, **found)
        print(f"  step {step + 1:3d}  loss {loss:.3f}  held-out accuracy {found['d_accuracy']:.3f}", flush=True)
        if found["d_accuracy"] >= cfg.d_stop:
            break
    if visits and found["d_accuracy"] < D_ALARM:
        print(
            f"  WARNING: D ends at {found['d_accuracy']:.3f} on held-out questions, below {D_ALARM}: it hardly tells "
            "student from teacher, so its reward is noise; take more --d-steps or a larger --d-pretrain-lr"
        )
    weights = {name: whole(x.detach()).cpu().contiguous() for name, x in D.state_dict().items()}
    with new_folder(run.path / "discriminator") as part:
        if run.first:
            save_file(weights, part / "model.safetensors")


# ------------------------------------------------------------------------------------------------ stage: ril
def ril(run: Run) -> None:
    """Algorithm 2 of the paper. The numbers are those of the README; the switches default to the paper's choices.

    Every rank has its share of the questions from 2 to 8; what is logged is of all.
    """
    cfg, judge, world = run.cfg, run.judge(weak=True), ranks()[1]
    student = run.sharded(run.path / "sft").freeze(*frozen_parts(cfg))
    reference = run.sharded(run.path / "sft", dtype=compute_dtype(cfg)).requires_grad_(False)  # pi_ref never changes
    move(run, "cpu", reference)
    replica = run.whole(run.path / "sft")  # pi_old: takes over the student at every step
    hold_memory(run, replica, student, False)
    student_optimizer = adamw(student, cfg.lr)
    trained, D, d_optimizer = {"student": (student, student_optimizer)}, None, None
    if cfg.discriminator != "none":
        D = make_discriminator(run)
        move(run, "cpu", D)
        d_optimizer = adamw(D, cfg.d_lr)
        trained["D"] = (D, d_optimizer)
    parts = split(cfg)
    questions, valid = parts["train"], parts["valid"]
    cache = TeacherCache(run, replica, questions) if cfg.teacher_use != "none" else None
    questions = cache.questions if cache else questions
    checkpoints, progress = Checkpoints(run, "ril", trained, cfg.checkpoint_every), {"best": -1.0, "best_step": -1}
    start = checkpoints.resume(progress)
    how, P = sampling_of(cfg), cfg.questions_per_step
    G, T = cfg.group_size * (cfg.student_rows != "none"), cache.rows if cache else 0  # rows of a group: G + T
    inside = G if cfg.teacher_use == "discriminator" else G + T  # the rows that make the group's mean
    rows = G if cfg.teacher_use in ("discriminator", "baseline") else G + T  # the rows that the policy is scored on
    objective = dict(responses=P * inside, max_length=cfg.max_new_tokens, eps=cfg.eps, beta=cfg.beta, kl_kind=cfg.kl)
    objective |= dict(length_mean=cfg.length == "mean", teacher_use=cfg.teacher_use)
    blank = None if "vision" in frozen_parts(cfg) else replica.blank()
    student.train()  # only so that activations are recomputed; nothing drops out
    if start == 0:
        validate(run, replica, student, valid, 0, progress)

    for step in range(start, cfg.steps):
        clock = time.perf_counter()
        # 1 questions: P for all ranks; this one has `own` of them, and where P does not divide one more without rows
        step_questions = questions_at(questions, step, P, cfg.seed)
        here, own = dealt(step_questions)
        padded_asked, visits = [q for q, _ in here], [visit for _, visit in here[:own]]
        asked, names, everybody = padded_asked[:own], [q.id for q, _ in here[:own]], [q.id for q, _ in step_questions]
        prompts = [replica.encode_question(q) for q in padded_asked]

        # 2 rollout: G responses per question from the replica, which is pi_old
        with refreshed(run, replica, student):
            more = dict(visits=visits, max_rows=cfg.rollout_rows)
            fresh = rollout(replica, prompts[:own], names, G, cfg.max_new_tokens, how, (cfg.seed, "rollout"), **more)
            seen = replica.see(prompts)
        clock_rollout = time.perf_counter()

        # 3 teachers: cached responses to the same questions
        cached = [cache.draw(*visit, cfg.seed) if cache else ([], []) for visit in zip(names, visits, strict=True)]

        # 4 pack: one question = one row, for the policies (with picture and question) and for D (its template)
        groups = [mine + theirs for mine, (theirs, _) in zip(fresh, cached, strict=True)]
        is_teacher = (torch.arange(G + T) >= G).expand(len(groups), -1)  # (this rank's questions, G + T)
        padded_groups = groups + [[]] * (len(padded_asked) - len(groups))
        cut = slices(len(padded_groups), cfg.micro_batch)
        looked = [replace(p, patches=None) for p in seen] if blank else seen  # a trained tower sees for itself
        ids = [[r.ids for r in g[:rows]] for g in padded_groups]
        packed = [pack(looked[s], ids[s], device=student.device, blank=blank) for s in cut]

        # 5 discriminator: mu updates by Eq. 1
        d_row = {}
        if cfg.discriminator != "none":
            with on_gpu(run, D, d_optimizer):
                d_packed = D.batches(padded_asked, seen, padded_groups, cfg.micro_batch)
                for k in range(cfg.mu):
                    share = len(groups) / P
                    d_loss, student_logit = discriminator_update(
                        D.train(), d_packed, ~is_teacher.flatten(), share, world
                    )
                    d_loss = total(d_loss)
                    if k == 0:
                        logit = torch.stack(everyone(list(student_logit.cpu().view(len(groups), G + T))))
                        of_student = (torch.arange(G + T) < G).expand(P, -1)
                        d_row = {"d_loss": d_loss, **discriminator_accuracy(logit.flatten(), of_student.flatten())}
                    if cfg.discriminator == "updated":
                        update(d_optimizer, cfg.clip, d_loss, run, "ril", step, everybody)
                    d_optimizer.zero_grad()
                with torch.no_grad():
                    student_logit = torch.cat([D(b) for b in d_packed]).cpu().view(len(groups), G + T)
                    D.reshard()
        clock_d = time.perf_counter()

        # 6 rewards: r_sim from the just-updated D, r_ans from the judge (the teachers' verdicts are cached)
        if cfg.discriminator != "none":
            similarity = similarity_reward(student_logit, cfg.similarity)
            d_row["look_auc"] = look_auc(everyone(looks_of(asked, fresh, student_logit)))
        else:
            similarity = control_similarity(cfg.similarity, asked, groups, is_teacher)
        verdicts = iter(judge.verdicts(asked, [r for g in fresh for r in g]))
        bad, texts = map(sum, zip(*everyone_of(judge.malformed_counts()), strict=True))
        malformed = bad / max(texts, 1)
        verdicts = [[next(verdicts) for _ in mine] + v for mine, (_, v) in zip(fresh, cached, strict=True)]
        answer = torch.tensor(verdicts, dtype=torch.float32).view(len(groups), G + T) * (cfg.answer == "judge")
        reward = rewards(similarity, answer)

        # 7 advantages over the whole group
        advantage = advantages(reward[:, :inside], cfg.advantage)
        advantage = teacher_advantages(advantage, is_teacher[:, :inside], cfg.teacher_use)[:, :rows]

        # 8 student: mu updates by Eq. 2; pi_old's log-probs come from this forward pass, not from the sampler
        with on_gpu(run, reference), torch.no_grad():
            logp_ref = [reference(b) for b in packed] if cfg.beta else [None] * len(packed)
            reference.reshard()  # without a backward pass FSDP keeps the root's weights gathered
        logp_old: list = []
        with on_gpu(run, student_optimizer):
            for k in range(cfg.mu):
                loss_sum, ratios = 0.0, []
                for i, (s, batch) in enumerate(zip(cut, packed, strict=True)):
                    logp = student(batch)
                    if k == 0:
                        logp_old.append(logp.detach())
                    a, of_teacher = (x.flatten().to(logp.device) for x in (advantage[s], is_teacher[s, :rows]))
                    old, ref = logp_old[i], logp_ref[i]
                    loss = policy_loss(logp, old, ref, a, batch.mask, teacher=of_teacher, **objective)
                    (world * loss).backward()  # FSDP takes the mean over ranks
                    loss_sum += loss.item()
                    ratios.append(surrogate_metrics(logp.detach(), old, batch.mask, cfg.eps))
                loss_sum = total(loss_sum)
                norm = update(student_optimizer, cfg.clip, loss_sum, run, "ril", step, everybody)
        clock_student = time.perf_counter()

        # 9 log
        row = dict(loss=loss_sum, gradient_norm=norm, malformed=malformed, **d_row)
        if malformed > MALFORMED_ALARM:
            print(f"  step {step + 1}: {malformed:.0%} of the texts are empty, loop, or got no readable verdict")
        tables = (reward, similarity, answer, is_teacher, advantage)
        row |= group_metrics(*(torch.stack(everyone(list(x))) for x in tables))
        sums = [sum(x) for x in zip(*everyone_of(tuple(map(sum, zip(*ratios, strict=True)))), strict=True)]
        row |= dict(ratio=sums[0] / sums[2], clipped=sums[1] / sums[2])
        row |= token_metrics(fresh, packed, logp_old, logp_ref, is_teacher[:, :rows], cut, cfg.kl, how)
        if run.first:
            show(run, step, asked[0], groups[0], similarity[0], answer[0], advantage[0], [0, G] if G and T else [0])
        seconds = dict(rollout=clock_rollout - clock, discriminator=clock_d - clock_rollout)
        seconds |= dict(student=clock_student - clock_d, total=time.perf_counter() - clock)
        tokens = sum(int((b.segment >= 0).sum()) for b in packed)
        run.log("metrics.jsonl", stage="ril", step=step, **row)
        run.log("timing.jsonl", stage="ril", step=step, **seconds, tokens_per_rank=everyone_of(tokens))
        print(line(step, cfg.steps, row, seconds["total"]), flush=True)
        if cfg.eval_every and (step + 1) % cfg.eval_every == 0 or step + 1 == cfg.steps:
            validate(run, replica, student, valid, step + 1, progress)
        checkpoints.save(step + 1, progress)
    checkpoints.finish()
    save(student, run.path / "checkpoints" / "last", torch.float32)


def control_similarity(kind: str, asked: list, groups: list, is_teacher: torch.Tensor) -> torch.Tensor:
    """The similarity rewards that need no D: none (0), constant (1 on teacher rows), oracle (1 on right looks)."""
    if kind == "oracle":
        return torch.tensor([[float(look(q, r.text) or 0) for r in g] for q, g in zip(asked, groups, strict=True)])
    return is_teacher.float() * (kind == "constant")


def looks_of(asked: list, fresh: list, student_logit: torch.Tensor) -> list[list[tuple]]:
    """For each question its student rows' (is the look right, D's teacher-likeness)."""
    return [
        [(look(q, r.text), -x) for r, x in zip(g, z, strict=False)]
        for q, g, z in zip(asked, fresh, student_logit.tolist(), strict=True)
    ]


def look_auc(looks: list[list[tuple]]) -> float:
    """Does D see truth? AUC of its teacher-likeness, right against wrong looks among the student's rows; 0.5 = no."""
    rows = [x for of in looks for x in of]
    return auc([x for right, x in rows if right], [x for right, x in rows if right is False])


def token_metrics(fresh, packed, logp_old, logp_ref, is_teacher, cut, kind: str, how: Sampling) -> dict[str, float]:
    """What the step's tokens look like under the policy, over all ranks; every name is defined in the README.

    Sums are taken per question, so that neither micro-batching nor the number of ranks changes them. Where sampler and
    scorer differ by intent (`how` is not PURE), the mean and the spread of their difference are told too.
    """
    mine = []
    for s, batch, old, ref in zip(cut, packed, logp_old, logp_ref, strict=True):
        n = is_teacher.shape[1]
        for q, responses in enumerate(fresh[s]):
            part = slice(q * n, (q + 1) * n)
            of_teacher = is_teacher[s][q][:, None].to(batch.mask.device) & batch.mask[part]
            of_student = batch.mask[part] & ~of_teacher
            said, sampler = old[part][of_student], torch.tensor([x for r in responses for x in r.logps])
            row = dict(said=-said.double().sum().item(), said_n=len(said), theirs_n=int(of_teacher.sum()))
            row |= dict(theirs=-old[part][of_teacher].double().sum().item(), answers=len(responses))
            row |= dict(tokens=sum(len(r.ids) for r in responses), cut=sum(not r.finished for r in responses))
            gaps = (said - sampler.to(said.device)).double() if len(said) == len(sampler) else said.new_zeros(0)
            ratios = [g.sum().item() for g in gaps.split([len(r.ids) for r in responses])] if len(gaps) else []
            row |= dict(gap=gaps.abs().max().item() if len(gaps) else 0.0, gaps=gaps.abs().sum().item())
            row |= dict(ratio=sum(ratios), ratio_squared=sum(x * x for x in ratios))
            row["packed"] = int((batch.segment[q] >= 0).sum())
            if ref is not None:
                row["kl"] = kl(said, ref[part][of_student], kind).double().sum().item()
            mine.append(row)
    rows = everyone(mine)
    sums = {name: sum(r[name] for r in rows) for name in rows[0]}
    answers, said, theirs = (max(1, sums[name]) for name in ("answers", "said_n", "theirs_n"))
    spread = max(0.0, sums["ratio_squared"] / answers - (sums["ratio"] / answers) ** 2) ** 0.5
    apart = {} if how == PURE else {"sampler_gap_mean": sums["gaps"] / said, "sampler_log_ratio_sd": spread}
    return {
        "tokens": sums["tokens"] / answers,
        "cut_off": sums["cut"] / answers,
        "nll_student": sums["said"] / said,
        "nll_teacher": sums["theirs"] / theirs,
        **({"kl": sums["kl"] / said} if "kl" in sums else {}),
        "sampler_gap": max(r["gap"] for r in rows),
        **apart,
        "packed_tokens": sums["packed"],
    }


def line(step: int, steps: int, row: dict, seconds: float) -> str:
    """One aligned line per step; the README says how to read it."""
    d_accuracy = f"{row['d_accuracy']:.2f}" if "d_accuracy" in row else "-"
    return (
        f"  {step + 1:4d}/{steps}  sim {row['similarity']:.2f}  ans {row['answer']:.2f}"
        f"  D acc {d_accuracy}  dead {row['dead_groups']:.2f}  tokens {row['tokens']:4.1f}"
        f"  nll {row['nll_student']:.2f}/{row['nll_teacher']:.2f}  kl {row.get('kl', 0):.3f}"
        f"  grad {row['gradient_norm']:.2f}  {seconds:.2f} s"
    )


def show(run: Run, step: int, question, group: list, similarity, answer, advantage, which: list[int]) -> None:
    """One shown question of the step: a student's and a teacher's response with both rewards and the advantage that
    reaches the gradient (None: the policy is not scored on this row).
    """
    chosen = [
        dict(source=group[i].source, text=group[i].text, similarity=similarity[i].item(), answer=answer[i].item())
        | dict(advantage=advantage[i].item() if i < len(advantage) else None)
        for i in which
    ]
    row = dict(question=question.id, text=question.text, reference=question.answer, responses=chosen)
    run.log("samples.jsonl", stage="ril", step=step, **row)


def validate(run: Run, replica: VLM, student: VLM, valid: list, step: int, progress: dict) -> None:
    """Accuracy on the validation questions; the best student so far (by sampled accuracy) is kept for export."""
    cfg = run.cfg
    with refreshed(run, replica, student):
        found = evaluate(replica, valid, run.judge(), cfg.max_new_tokens, cfg.eval_draws, cfg.seed, cfg.rollout_rows)
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
        if not run.first:  # rank 0 has the weights in its memory, the others wait
            with new_folder(run.path / target):
                continue
        vlm = load(run.path / "checkpoints" / source, dtype=torch.bfloat16)
        save(vlm, run.path / target)
        again = vlm.family.model.from_pretrained(run.path / target, dtype=torch.bfloat16).state_dict()
        wrong = [k for k, x in vlm.hf.state_dict().items() if not torch.equal(x, again[k])]
        if wrong:
            raise UserError(
                f"{run.path / target}: stock from_pretrained reads {wrong[0]} differently; is the disk full?"
            )
        print(f"  {run.path / target}: {len(again)} tensors, read back equal")


# ------------------------------------------------------------------------------------------------ stage: evaluate
def evaluate_run(run: Run) -> None:
    """Held-out questions before and after, the teachers beside them; writes samples.md, curves.png, then
    summary.json.
    """
    cfg, judge = run.cfg, run.judge()
    prefix = f"{cfg.ask_prefix} " if cfg.ask_prefix else ""
    test = [replace(q, text=prefix + q.text) for q in split(cfg)["test"]]
    players = {"before": run.path / "sft", "after": run.path / "student", "last": run.path / "last"}
    if cfg.teacher_use != "none":
        names = [n for n in cfg.teachers.split(",") if n != "reference" and "=" not in n and n not in FULL]
        names = [] if cfg.teachers_file else names
        players |= {f"teacher{'_2' * bool(i)}": name for i, name in enumerate(names[:2])}
    if cfg.evaluated == "after":
        players = {"after": players["after"]}
    summary, texts, answers = {"run": cfg.run, "algo": cfg.algo, "test_questions": len(test)}, {}, []
    how = (cfg.max_new_tokens, cfg.eval_draws, cfg.seed, cfg.rollout_rows)
    for who in tqdm(players, "evaluation", delay=2, disable=not run.first):
        asked = teacher_model(players[who], run) if who.startswith("teacher") else run.whole(players[who])
        found = evaluate(asked, test, judge, *how)
        del asked
        gc.collect()  # a sharded model lies in a circle of references
        texts[who] = found.pop("texts")
        answers += [dict(who=who, **row) for row in found.pop("answers")]
        summary |= {f"{name}_{who}": value for name, value in rounded(found).items() if name != "questions"}
    rows = loop_rows(run.path)
    summary |= start_and_end(rows)
    summary["packed_tokens"] = sum(r["packed_tokens"] for r in rows)
    validations = [r for r in run.rows("metrics.jsonl", "ril") if "valid_sampled" in r]
    summary["exported_step"] = max(validations, key=lambda r: r["valid_sampled"])["step"] + 1
    if cfg.evaluated == "all":
        samples = shown(run, test[:8], judge, texts)
        if run.first:
            write_samples(run.path, samples)
            draw_curves(run.path, rows, validations)
    run.write("answers.jsonl", "".join(json.dumps(row) + "\n" for row in answers))
    run.write("summary.json", summary)
    wait()


def rounded(found: dict) -> dict:
    """Numbers of a result, four digits each."""
    if isinstance(found, dict):
        return {k: rounded(v) for k, v in found.items()}
    return [rounded(x) for x in found] if isinstance(found, list | tuple) else round(found, 4)


def shown(run: Run, questions: list, judge: Judge, texts: dict) -> list[tuple]:
    """[(question, [{who, text, similarity, answer}])] for samples.md; similarity is the pre-trained discriminator's."""
    D, student = None, run.whole(run.path / "sft")
    if run.cfg.discriminator != "none":
        D = make_discriminator(run)
    out = []
    for q in questions:
        said = {who: texts[who][q.id] for who in texts if who != "last"}
        verdicts = judge.verdicts([q], [Response(q.id, 0, who, [], text) for who, text in said.items()])
        rows = [dict(who=w, text=x, answer=v) for (w, x), v in zip(said.items(), verdicts, strict=True)]
        if D:
            with torch.no_grad():
                prompts = student.see([student.encode_question(q)])
                student_logit = D(
                    D.batches([q], prompts, [[Response(q.id, 0, "", [], x) for x in said.values()]], 1)[0]
                )
            for row, reward in zip(rows, similarity_reward(student_logit).tolist(), strict=True):
                row["similarity"] = int(reward)
        out.append((q, rows))
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


def stages_of(cfg: Config) -> list[str]:
    """The stages that this method has: no teachers without teacher rows, no discriminator without D."""
    has = {"teachers": cfg.teacher_use != "none", "discriminator": cfg.discriminator != "none"}
    return [name for name in STAGES if has.get(name, True)]


def check_players(cfg: Config) -> VLM | None:
    """Look at the files of every player that will be loaded, before anything is written: a UserError names the first
    that cannot be used. -> the student without memory, to encode --data with.
    """
    cached = (Path("runs") / cfg.run / "teachers.jsonl").exists() or bool(cfg.teachers_file)
    for name in cfg.teachers.split(",") if cfg.teacher_use != "none" and cfg.stage != "build-teachers" else ():
        if name != "reference" and "=" not in name and not (cached and name in FULL) and not cfg.teachers_file:
            shell(teacher_folder(name))
    if cfg.judge != "rule" and not is_url(cfg.judge):
        judge_digits(
            cfg.judge, language_shell(cfg.judge, torch.bfloat16, cfg.random_weights and cfg.judge in JUDGES)[1]
        )
    if cfg.student in TINY:
        return load(cfg.student) if cfg.data else None
    return (random_shell if cfg.random_weights and cfg.student in FULL else shell)(cfg.student)[0]


def check_questions(cfg: Config, encoder: VLM) -> None:
    """Read and encode every question before anything is written: bad input leaves no trace. All ranks stop together."""
    questions = questions_in(cfg.data, Path(cfg.data).stat().st_mtime_ns if Path(cfg.data).is_file() else 0)
    wrong = ""
    encoder.limit_pictures(cfg.image_tokens)
    try:
        for q in tqdm(deal(questions), "questions", delay=2, disable=ranks()[0] > 0):
            encoder.encode_question(q)
        split(cfg)
    except UserError as error:
        wrong = str(error)
    for message in filter(None, everyone_of(wrong)):
        raise UserError(message)


def unlike_the_paper(cfg: Config) -> list[str]:
    """What is asked and who plays, where a run with the paper's settings has other players; one line each."""
    if cfg.preset != "paper" and not is_real(cfg.student):
        return []
    out = []
    if not cfg.data:
        side = 336 if is_real(cfg.student) else 42
        out.append(f"no --data: questions of the embedded tiny world, pictures of {side} x {side} pixels")
    if cfg.judge == "rule":
        out.append("judge: an exact rule; the paper's is a language model (--judge qwen2.5-32b, or its URL)")
    tiny = [n for n in cfg.teachers.split(",") if n in TINY]
    if tiny and cfg.teacher_use != "none":
        out.append(f"teachers: {', '.join(tiny)}; the paper's have 72 and 78 B parameters (--teachers NAME=URL)")
    return out


def run_stage(run: Run, name: str) -> None:
    """Run a stage unless its artefact is there; its seconds and the most memory so far go to seconds.json."""
    action, artefact, title = STAGE_OF[name]
    if all(everyone_of((run.path / artefact).exists())):
        print(f"{title}: skipped, {run.path / artefact} is there")
        return
    print(title, flush=True)
    begin, file = time.perf_counter(), run.path / "seconds.json"
    action(run)
    gc.collect()  # a sharded model lies in a circle of references
    if run.device != "cpu":
        torch.cuda.empty_cache()
    seconds, took = json.loads(file.read_text()) if file.exists() else {}, time.perf_counter() - begin
    seconds[name] = round(seconds.get(name, 0) + took, 1)
    seconds["peak_memory_mb"] = max(round(peak_memory_mb()), seconds.get("peak_memory_mb", 0))
    run.write("seconds.json", seconds)
    print(f"  {title}: {took:.1f} s", flush=True)


def main(argv: list[str] | None = None) -> None:
    """Run the stages whose artefact is missing, say which are skipped, end with the summary."""
    cfg = parse(sys.argv[1:] if argv is None else argv)
    if cfg.plan:
        return budget().print_plan(cfg)
    if cfg.pilot:
        few = dict(pool=64, valid_questions=16, test_questions=16, steps=3, eval_every=0)
        few |= dict(d_steps=min(3, cfg.d_steps), sft_steps=min(30, cfg.sft_steps))
        cfg = replace(cfg, run=f"{cfg.run}-pilot", **few)
    warnings.filterwarnings("ignore", message=".*(torch.distributed is disabled|TypedStorage|_get_pg_default_device).*")
    torch.set_num_threads(cfg.threads)
    if cfg.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    torch.use_deterministic_algorithms(cfg.deterministic or device_of(cfg) == "cpu")
    start_ranks(device_of(cfg).partition(":")[0])
    if ranks()[0]:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (rank 0 speaks for all)
    encoder = check_players(cfg)
    for difference in unlike_the_paper(cfg):
        print(difference)
    if cfg.data:
        check_questions(cfg, encoder)
    needed = STAGES[: STAGES.index(cfg.stage)] if cfg.stage in STAGES and cfg.stage != "teachers" else ()
    for earlier in stages_of(cfg):
        if earlier in needed and not (Path("runs") / cfg.run / STAGE_OF[earlier][1]).exists():
            missing = Path("runs") / cfg.run / STAGE_OF[earlier][1]
            raise UserError(f"--stage {cfg.stage} needs {missing}; run --stage {earlier} first")
    if is_url(cfg.judge) and ranks()[0] == 0:
        Server(cfg.judge).name_model()  # a dead judge is named now, before anything is written
    run = Run(cfg, sys.argv[1:] if argv is None else argv)
    if cfg.stage in (*BUILDS, "select"):
        actions = {"build-students": build_students, "build-teachers": build_teachers, "select": select}
        return actions[cfg.stage](run)
    for name in stages_of(cfg):
        if cfg.stage in ("all", name):
            run_stage(run, name)
    if run.first and (run.path / "summary.json").exists():
        summary = json.loads((run.path / "summary.json").read_text())
        if "seconds" not in summary and (run.path / "seconds.json").exists():
            summary["seconds"] = json.loads((run.path / "seconds.json").read_text())
            summary["peak_memory_mb"] = summary["seconds"].pop("peak_memory_mb")
            run.write("summary.json", summary)
        print_summary(run, summary)
    if cfg.pilot:
        budget().pilot(run, split(cfg)["train"][:8])


def print_summary(run: Run, summary: dict) -> None:
    """The lines worth reading, key: value; summary.json has all."""
    print("\n---")
    for name in ("test_questions", "greedy", "sampled", "tokens", "looks", "similarity", "answer", "d_accuracy"):
        for when in ("", "_before", "_after", "_teacher", "_teacher_2", "_start", "_end"):
            if name + when in summary:
                low_high = summary.get(f"{name}_interval{when}")
                interval = f"  (95 % interval {low_high[0]:.3f} to {low_high[1]:.3f})" if low_high else ""
                print(f"{name + when}: {summary[name + when]}{interval}")
    print(f"exported_step: {summary['exported_step']} of {run.cfg.steps}, chosen on the validation questions")
    print("seconds: " + "  ".join(f"{k} {v:.0f}" for k, v in summary["seconds"].items()))
    print(f"peak_memory_mb: {summary['peak_memory_mb']}")
    pictures = f" {run.path}/curves.png {run.path}/samples.md" if run.cfg.evaluated == "all" else ""
    print(f"see: {run.path}/summary.json{pictures}")


if __name__ == "__main__":
    run_command(main)
