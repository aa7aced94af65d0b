"""Every setting of a run, with the paper's value beside ours; presets; what is refused."""

import argparse
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from data import Flags, UserError
from engine.families import FULL, JUDGES
from tiny.models import TINY

# ------------------------------------------------------------------------------------------------ the model
PARTS = ("vision", "embeddings", "attention", "mlp", "head")  # what --frozen can name


INPUTS = (
    "response",
    "question",
    "picture",
)  # what D reads: the response alone, with the question, with the picture too


REAL_IMAGE_TOKENS = 1280  # most image tokens of a picture, in training and in evaluation, of a real student


def is_real(student: str) -> bool:
    """Is this a student of real size? Decides between the tiny defaults and the paper's."""
    if student in (*TINY, *FULL) or not (Path(student) / "config.json").is_file():
        return student in FULL
    config = json.loads((Path(student) / "config.json").read_text())
    return config.get("text_config", config).get("hidden_size", 0) > 512


def frozen_parts(cfg) -> list[str]:
    """--frozen as a list; none is the empty one."""
    return [] if cfg.frozen == "none" else cfg.frozen.split(",")


SAMPLES, TEMPERATURE = 8, 0.8  # how the committed responses were drawn


def teacher_names(cfg) -> list[str]:
    """--teachers without the addresses: big=http://host:8000/v1,tiny-qwen-teacher -> [big, tiny-qwen-teacher]."""
    return [name.partition("=")[0] for name in cfg.teachers.split(",")]


def pretraining_samples(cfg) -> int:
    """Responses per question of the student, and of each teacher, in D's pre-training."""
    return cfg.d_samples or cfg.teacher_samples


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


TEACHER_USE = ("gradient", "baseline", "positive", "denominator-1", "luffy", "discriminator", "none")


SIMILARITIES = ("binary", "three", "levels", "continuous", "constant", "oracle", "none")


# ------------------------------------------------------------------------------------------------ settings
def setting(default, text: str, paper=None, choices=None, ours=None, zero=False, flag=True):
    """A field of Config. `paper`: its value there; `ours`: ours at real scale where the paper is silent; `zero`: may be
    0.
    """
    note = f"; the paper: {paper}" if paper is not None else f"; paper silent, ours {ours}" if ours is not None else ""
    real = ours if paper is None else paper
    help_text = f"{text} [{default!s}{note}]".replace("%", "%%")
    return dataclasses.field(
        default=default, metadata=dict(help=help_text, real=real, choices=choices, zero=zero, flag=flag)
    )


@dataclass
class Config:
    """Every setting of a run. Each field is a flag: group_size is --group-size; booleans have --no-... too."""

    run: str = setting("demo", "the run's folder is runs/NAME")
    stage: str = setting("all", "run one stage only", choices=("all", *STAGES, *BUILDS))
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
    gpus: int = setting(8, "number of GPUs", flag=False)  # set by tools.plan
    gpu_memory: float = setting(80.0, "GB of each", flag=False)
    pilot: bool = setting(False, "few questions", flag=False)  # set by tools.pilot
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
    keep: int = setting(2, "checkpoints kept")


def parse(argv: list[str], teachers: bool = True) -> Config:
    """Flags -> Config. Unknown flags, impossible values and combinations without meaning end in one line.

    teachers=False: for a tool that asks none, so that a real student need not name them.
    """
    parser = Flags(__doc__)
    fields = dataclasses.fields(Config)
    for f in (f for f in fields if f.metadata["flag"]):
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
    if cfg.random_weights and cfg.student not in FULL and cfg.judge not in JUDGES:
        raise UserError(f"--random-weights is for published names: {', '.join([*FULL, *JUDGES])}; others have weights")
    if cfg.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this machine shows no GPU to torch; take --device cpu")
    if not cfg.resume and cfg.stage not in ("all", *BUILDS):
        raise UserError(f"--no-resume deletes the run and begins anew: it does not go with --stage {cfg.stage}")
    asked = cfg.teacher_use != "none" and teachers
    if cfg.preset == "paper" and cfg.data and asked and "teachers" not in named:
        raise UserError(
            "--preset paper with --data: name the --teachers: served ones (big=http://HOST:PORT/v1), a published "
            "name (qwen2.5-vl-72b), a folder, or A with --teachers-file FILE, whose lines say A"
        )
    names = teacher_names(cfg)
    if "" in names:
        raise UserError(f"--teachers {cfg.teachers}: an empty name; give A, A,B or NAME=URL")
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
