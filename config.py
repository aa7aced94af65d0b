"""Every setting of a run, one line each, with the paper's value beside ours; presets.

A setting in GROUPS is a flag of train.py (group_size is --group-size). The others are constants: change them here.
engine/contradictions.py lists settings that do not go together.
"""

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path

from engine.command import Flags, UserError
from engine.contradictions import contradictions
from engine.families import FULL, PARTS
from tiny.models import TINY

GROUPS = {  # the flags, as --help shows them
    "run": "name stage preset resume seed eval_every checkpoint_every tracker",
    "players": "algo student teachers teachers_file teacher_samples judge reward sft_data",
    "questions": "data pool valid_questions test_questions image_tokens max_new_tokens",
    "loop": "steps questions_per_step group_size lr d_lr beta sampling d_steps",
    "speed and memory": "lora offload optimizer_offload micro_batch rollout_rows",
    "for studies only": "taught mu similarity teacher_use d_input d_loss refill frozen judged judge_wrong sft_steps "
    "eval_draws evaluated",
}
REAL_IMAGE_TOKENS = 1280  # most image tokens of a picture, in training and in evaluation, of a real student
SAMPLES, TEMPERATURE = 8, 0.8  # how the committed teacher responses were drawn
LORA_TIMES = 10  # learning rates with --lora, unless given: so many times those of full training (results/log.md)
LORA_RATES = ("sft_lr", "sft_lr_end", "d_pretrain_lr", "d_lr", "lr")
D_ALARM = 0.6  # a held-out accuracy of D below this is a warning
D_GAP, D_LOOKS = 0.1, 3  # D rests when its unseen accuracy was so far behind for so many steps (engine/unseen.py)
UNSEEN = 32  # teacher texts of a step that measure it
STAGES = ("sft", "teachers", "discriminator", "ril", "export", "evaluate")

STAGE = {"all": "all whose artefact is missing", **dict.fromkeys(STAGES, "that one")}

# ------------------------------------------------------------------------------------------------ values of the flags
PRESETS = {
    "auto": "by the student's size",
    "tiny": "the defaults",
    "paper": "the paper's values, ours where it is silent",
}
TRACKER = {
    "none": "nowhere",
    "tensorboard": "runs/NAME/tensorboard",
    "wandb": "project nanoril of Weights & Biases",
}
OFFLOAD = {
    "auto": "phase when the plan says that none does not fit",
    "none": "all players stay on the GPU",
    "phase": "on the GPU only what the phase needs",
}
SAMPLING = {"pure": "temperature 1, nothing cut off", "paper": "top-p 0.95, top-k 50, repetition penalty 1.05"}
SIMILARITY = {
    "binary": "1 if D takes the text for a teacher's (the paper)",
    "gated": "binary, in groups with a right answer only",
    "three": "1 - D, rounded to 0, 0.5, 1",
    "levels": "1 - D, rounded to 11 levels",
    "continuous": "1 - D",
    "constant": "no D: 1 on teacher rows",
    "oracle": "no D: 1 on right looks (tiny world)",
    "none": "no D, no reward",
}
TEACHER_USE = {
    "gradient": "in the group and in the gradient (the paper)",
    "baseline": "in the group's mean only",
    "positive": "rows with a negative advantage are left out of the gradient",
    "denominator-1": "ratio with denominator 1 in place of pi_old",
    "right": "as gradient, only responses that the judge calls right",
    "discriminator": "D alone reads them",
    "none": "no teachers",
}
TEACHER_ROWS = {"split": "two teachers share the group's G rows", "each": "G rows of each"}
D_INPUT = {"response": "the response alone (the paper)", "question": "the question too", "picture": "the picture too"}
D_LOSS = {
    "bce": "each text by itself (the paper)",
    "pairwise": "a student's text against each teacher text of its group; D < 0.5 then means: nearer to a teacher than "
    "the step's teacher texts are on average",
}
KL = {"k3": "exp(ref - new) - (ref - new) - 1", "k2": "(new - ref)^2 / 2"}
EVALUATED = {
    "all": "warm start, student and teachers",
    "after": "the exported student alone",
    "look": "it alone, every question after the word look (tiny world)",
    "blank": "it alone, and once more with its pictures blanked, as is the warm start",
}

# A method is a set of settings; flags given explicitly win. Same data, same updates, same evaluation for all.
NO_D = dict(similarity="none")
LIKELIHOOD = dict(student_rows="none", advantage="one", beta=0.0, **NO_D)
ALGOS = {
    "ril": {},
    "grpo": dict(teacher_use="none", advantage="grpo", length_norm="mean", **NO_D),
    "dr_grpo": dict(teacher_use="none", **NO_D),
    "distill": LIKELIHOOD,
    "sft": dict(teachers="reference", **LIKELIHOOD),
    "gail": dict(teacher_use="discriminator", similarity="continuous", judged=0.0),
}
ALGO = {
    "ril": "the paper, Algorithm 2",
    "grpo": "Algorithm 1 with GRPO",
    "dr_grpo": "Algorithm 1 with Dr.GRPO",
    "distill": "likelihood of the cached teacher responses",
    "sft": "likelihood of the reference answers",
    "gail": "D's score is the only reward",
}


# ------------------------------------------------------------------------------------------------ settings
def setting(default, text: str, values: dict | None = None, paper=None, ours=None, zero=False):
    """A field of Config. `paper`: its value there; `ours`: ours at real scale where the paper is silent; `values`: what
    it may be, each explained; `zero`: may be 0.
    """
    real, note = (ours, f"; paper silent, ours {ours}") if paper is None else (paper, f"; the paper: {paper}")
    values_text = "".join(f"; {value}: {what}" for value, what in (values or {}).items())
    text = f"{text}{values_text} [{default!s}{note if real is not None else ''}]".replace("%", "%%")
    return dataclasses.field(default=default, metadata=dict(help=text, real=real, values=values, zero=zero))


@dataclass
class Config:
    """All settings of a run."""

    name: str = setting("demo", "the run's folder is runs/NAME")
    stage: str = setting("all", "run one stage only", STAGE)
    preset: str = setting("auto", "whose values", PRESETS)
    resume: bool = setting(True, "go on where the run stopped; --no-resume deletes it and starts anew")
    seed: int = setting(0, "seeds the student's weights, the order of questions and every draw", zero=True)
    eval_every: int = setting(10, "steps between validations; 0: at the start and the end", ours=50, zero=True)
    checkpoint_every: int = setting(10, "steps between checkpoints (the warm start: ten times that)", ours=50)
    tracker: str = setting("none", "where the numbers of metrics.jsonl go besides", TRACKER)
    keep: int = setting(2, "checkpoints kept")
    # players
    algo: str = setting("ril", "the method", ALGO)
    student: str = setting("tiny-qwen", "a name or a Hugging Face folder")
    teachers: str = setting("tiny-qwen-teacher", "A or A,B: names, folders, NAME=URL; reference: the answers")
    teachers_file: str = setting("", "responses made elsewhere: JSONL with question, teacher, text")
    teacher_samples: int = setting(SAMPLES, "cached responses per question and teacher (the paper: 16)", ours=4)
    taught: float = setting(1.0, "training questions with teacher text: a share up to 1, else how many; drawn by seed")
    teacher_temperature: float = setting(TEMPERATURE, "sampling temperature of the teachers")
    judge: str = setting("rule", "rule, qwen2.5-32b, a folder, or a URL", paper="qwen2.5-32b")
    reward: str = setting("", "FILE.py in the judge's place: reward(question, response) returns 0 or 1")
    sft_data: str = setting("", "JSONL with question, answer and picture: a warm start for a real student")
    sft_epochs: float = setting(1.0, "passes of that warm start over --sft-data", ours=1.0)
    sft_steps: int = setting(1200, "steps of the tiny warm start; with the default a shipped one is used")
    sft_pictures: int = setting(16, "pictures per warm-start step")
    sft_questions: int = setting(4, "questions per picture: one packed row")
    sft_lr: float = setting(2e-3, "learning rate at the start of the warm start, falls linearly", paper=1e-5)
    sft_lr_end: float = setting(1e-4, "learning rate at its end", paper=1e-6)
    sft_warmup: int = setting(50, "steps in which the learning rate rises to its start; at most half of them")
    # questions
    data: str = setting("", "JSONL file of questions; without it the embedded tiny world")
    pool: int = setting(512, "training questions of the tiny world")
    valid_questions: int = setting(
        300, "validation questions: they choose the exported step; with --judged 0 the last is"
    )
    test_questions: int = setting(1000, "test questions of the tiny world: read by the evaluate stage only")
    image_tokens: int = setting(0, "most image tokens of a picture; 0: the folder's", ours=REAL_IMAGE_TOKENS, zero=True)
    max_new_tokens: int = setting(40, "longest response; also the constant that sums are divided by", ours=512)
    # discriminator
    d_steps: int = setting(12, "at most so many steps of its pre-training; 0: none", ours=100, zero=True)
    d_samples: int = setting(0, "responses per question and side in it; 0: teacher_samples", paper=16, zero=True)
    d_pretrain_lr: float = setting(2e-4, "learning rate at its start, falls linearly to a tenth", paper=1e-5)
    d_stop: float = setting(0.95, "it stops when the accuracy on held-out questions reaches this")
    d_lr: float = setting(2e-4, "learning rate in the loop, constant; 0: frozen", paper=1e-6, zero=True)
    d_input: str = setting("response", "what D reads", D_INPUT)
    d_loss: str = setting("bce", "its loss", D_LOSS)
    # the loop
    steps: int = setting(60, "steps of the RIL loop", paper=1000, zero=True)
    questions_per_step: int = setting(12, "questions per step (P)", ours=40)
    group_size: int = setting(8, "student responses per question, and as many of teachers (G)", paper=4)
    lr: float = setting(1e-4, "learning rate of the student, constant", paper=1e-6)
    beta: float = setting(0.01, "weight of the KL penalty", paper=0.01, zero=True)
    kl: str = setting("k3", "its estimator", KL)
    eps: float = setting(0.2, "clip range of the ratio", paper=0.2)
    clip: float = setting(1.0, "largest gradient norm")
    mu: int = setting(1, "updates per rollout, of discriminator and student", paper=1)
    sampling: str = setting("pure", "how the student samples", SAMPLING, paper="paper")
    similarity: str = setting("binary", "similarity reward", SIMILARITY)
    teacher_use: str = setting("gradient", "what teacher rows are for", TEACHER_USE)
    teacher_rows: str = setting("split", "with two teachers", TEACHER_ROWS)
    student_rows: str = setting("gradient", "gradient, or none (likelihood methods)")
    advantage: str = setting("dr_grpo", "dr_grpo, grpo, or one (grpo.py)")
    length_norm: str = setting("constant", "token terms are divided by a constant, or by the response's length: mean")
    refill: bool = setting(False, "once a step, groups without a signal give way to other questions (DAPO)")
    frozen: str = setting("vision", f"not trained in the loop: some of {','.join(PARTS)}; none")
    judged: float = setting(1.0, "share of the training questions that have an answer key", zero=True)
    judge_wrong: float = setting(0.0, "share of training verdicts that are turned round", zero=True)
    eval_draws: int = setting(4, "sampled answers per question in every evaluation", zero=True)
    evaluated: str = setting("all", "whom the evaluate stage asks", EVALUATED)
    # speed and memory
    lora: int = setting(0, "rank of low-rank adapters on one frozen base for all players; 0: full training", zero=True)
    recompute: bool = setting(False, "recompute activations in the backward pass: less memory, more time", ours=True)
    offload: str = setting("auto", "what is on the GPU", OFFLOAD)
    optimizer_offload: bool = setting(False, "AdamW's state and the fp32 weights live in host memory")
    micro_batch: int = setting(12, "questions per forward pass and GPU; changes memory, not results", ours=1)
    rollout_rows: int = setting(512, "responses decoded side by side; changes memory, not results", ours=32)
    dtype: str = setting(
        "fp32", "computing; weights and optimiser are fp32", dict(fp32="exact", bf16="for GPUs"), ours="bf16"
    )
    graphs: bool = setting(True, "decoding is captured as a CUDA graph on a GPU")
    deterministic: bool = setting(False, "deterministic kernels on a GPU too (always on a CPU)")
    timeout: float = setting(1800.0, "several ranks: seconds in which none of them moves until the run ends")
    threads: int = setting(int(os.environ.get("OMP_NUM_THREADS", 2)), "CPU threads of each process")
    # set by tools
    gpus: int = setting(8, "tools.plan: number of GPUs")
    gpu_memory: float = setting(80.0, "tools.plan: GB of each")
    pilot: bool = setting(False, "tools.pilot: few questions")
    random_weights: bool = setting(False, "tools.pilot: published names at full size without a download")

    @property
    def discriminator(self) -> str:
        """none where no reward is D's; frozen at a learning rate of 0; else updated."""
        learned = self.similarity in ("binary", "gated", "three", "levels", "continuous")
        return ("updated" if self.d_lr else "frozen") if learned else "none"

    @property
    def warm_adapter(self) -> bool:
        """Is the warm start an adapter too? A tiny student's is not: it starts from nothing."""
        return bool(self.lora and self.sft_data) and self.student not in TINY

    @property
    def frozen_parts(self) -> list[str]:
        """--frozen as a list; none is the empty one."""
        return [] if self.frozen == "none" else self.frozen.split(",")

    @property
    def teacher_names(self) -> list[str]:
        """--teachers without the addresses: big=http://host:8000/v1,tiny-qwen-teacher -> [big, tiny-qwen-teacher]."""
        return [name.partition("=")[0] for name in self.teachers.split(",")]

    @property
    def pretraining_samples(self) -> int:
        """Responses per question of the student, and of each teacher, in D's pre-training."""
        return self.d_samples or self.teacher_samples


def is_real(student: str) -> bool:
    """Is this a student of real size? Decides between the tiny defaults and the paper's."""
    if student in (*TINY, *FULL) or not (Path(student) / "config.json").is_file():
        return student in FULL
    try:
        config = json.loads((Path(student) / "config.json").read_text(encoding="utf-8"))
        return config.get("text_config", config).get("hidden_size", 0) > 512
    except (OSError, ValueError, AttributeError, TypeError):  # a damaged file: check_players names it
        return False


def parse(argv: list[str], teachers: bool = True) -> Config:
    """Flags -> Config. Unknown flags, impossible values and contradictory ones raise UserError, one line each.

    teachers=False: for a tool that asks none, so that a real student need not name them.
    """
    given = vars(Flags(__doc__).add_settings(Config, GROUPS).parse_args(argv))
    given = {name: value for name, value in given.items() if value is not None}
    fields = dataclasses.fields(Config)
    real = {f.name: f.metadata["real"] for f in fields if f.metadata["real"] is not None}
    if given.get("preset", "auto") == "auto":
        given["preset"] = "paper" if is_real(given.get("student", Config.student)) else "tiny"
    if not given.get("data"):
        del real["judge"]  # the embedded world has an exact rule
    named = ALGOS[given.get("algo", "ril")] | given
    cfg = Config(**((real if given["preset"] == "paper" else {}) | named))
    for name in LORA_RATES if cfg.lora else ():
        if name not in named and (cfg.warm_adapter or not name.startswith("sft")):
            setattr(cfg, name, LORA_TIMES * getattr(cfg, name))
    for f in fields:
        value = getattr(cfg, f.name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and not (0 < value < float("inf") or value == 0 and f.metadata["zero"]):
            least = "at least 0" if f.metadata["zero"] else "above 0"
            raise UserError(f"--{f.name.replace('_', '-')} {value}: must be {least}")
    if cfg.preset == "paper" and cfg.data and cfg.teacher_use != "none" and teachers and "teachers" not in named:
        raise UserError(
            "--preset paper with --data: name the --teachers: served ones (big=http://HOST:PORT/v1), a published "
            "name (qwen2.5-vl-72b), a folder, or A with --teachers-file FILE, whose lines say A"
        )
    if cfg.reward:
        cfg.judge = cfg.reward  # so that it judges wherever a judge does
    for wrong, reason in contradictions(cfg, given):
        if wrong:
            raise UserError(reason)
    return cfg
