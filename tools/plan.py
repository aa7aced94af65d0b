"""What fits and how long it takes, before anything is loaded; every number is an estimate.

python -m tools.plan --student qwen2.5-vl-7b --gpus 8 --gpu-memory 80     # and any other flag of train.py
"""

import dataclasses
import math

from config import parse
from engine.command import Flags, run_command
from engine.files import read_jsonl
from engine.memory import (
    PROMPT_TEXT,
    checkpoint_bytes,
    judge_parameters,
    most_gb,
    phases,
    shards,
    sizes,
    training_state,
)

# What the plan assumes; every number is an estimate that tools.pilot replaces by a measured one.
TFLOPS, BANDWIDTH = 400e12, 2.0e12  # of a GPU: matrix products; bytes/s of its own memory
GATHER, HOST = 0.3e12, 0.02e12  # bytes/s from the other GPUs, and from or to the host's pageable memory
KERNELS, LAUNCH = 37, 15e-6  # kernels of a decoder layer at one decoded token; seconds until an eager one is launched
MEAN_RESPONSE = 0.6  # a response's mean length as a share of the longest
TEACHER_TOKENS = 5000.0  # tokens a second of a served teacher


# ------------------------------------------------------------------------------------------------ what fits
def teacher_phase(cfg, name: str) -> tuple[float, bool]:
    """GB per GPU for a teacher that is asked in process, and whether its weights stay gathered (teachers.py)."""
    t, rows = sizes(name), (cfg.image_tokens or 256) + PROMPT_TEXT + cfg.max_new_tokens
    stays = 2 * t["all"] * (1 + 1 / shards(cfg.gpus)) < 0.6e9 * cfg.gpu_memory
    weights = 2 * t["all"] / shards(cfg.gpus) + (2 * t["all"] if stays else 4 * t["layer"] + 2 * t["root"])
    return (3e9 + weights + cfg.rollout_rows * rows * t["kv"]) / 1e9, stays


def asked_here(cfg) -> list[str]:
    """The teachers that are loaded: neither served nor from a file."""
    names = [] if cfg.teachers_file or cfg.teacher_use == "none" else cfg.teachers.split(",")
    return [n for n in names if n != "reference" and "=" not in n]


def fitting(cfg) -> str:
    """The --offload with which everything fits on --gpus of --gpu-memory, none before phase; "" where nothing does."""
    teaching = [teacher_phase(cfg, name)[0] for name in asked_here(cfg)]
    return next(
        (x for x in ("none", "phase") if max([most_gb(cfg, cfg.gpus, x), *teaching]) < 0.93 * cfg.gpu_memory), ""
    )


# ------------------------------------------------------------------------------------------------ how long it takes
def answering(cfg, name: str, rows: float, gathered: bool = True) -> float:
    """Seconds for one GPU to sample `rows` responses from a model; not `gathered`: layers come from other GPUs.

    A token takes as long as its bytes or as its launches, whichever is longer: decoding is eager, without CUDA graphs.
    """
    m, mean, prompt = sizes(name), MEAN_RESPONSE * cfg.max_new_tokens, (cfg.image_tokens or 256) + PROMPT_TEXT
    side_by_side = min(cfg.rollout_rows, rows)
    weights = 2 * (m["all"] - m["vision"]) / (BANDWIDTH if gathered else GATHER)
    read = weights + 0.65 * side_by_side * (prompt + mean) * m["kv"] / BANDWIDTH
    token = max(read, m["depth"] * KERNELS * LAUNCH)
    passes = math.ceil(rows / side_by_side)
    return passes * cfg.max_new_tokens * token + rows * 2 * m["all"] * prompt / 8 / TFLOPS


def traffic(cfg, gpus: int) -> float:
    """Bytes that a GPU gets from the others in a step, or sends: FSDP's gathers and reductions, the replica's refresh.

    A forward pass gathers layers and root in bf16, a backward pass the layers again, and gradients are reduced in fp32;
    so for each micro-batch of student (mu), reference, and D (mu, and once to score), and for each question of a local
    judge. The vision tower is gathered where it is trained: student and reference see for themselves then.
    """
    m, W, of = sizes(cfg.student), shards(gpus), training_state(cfg)
    mine = -(-cfg.questions_per_step // gpus)
    tower = m["vision"] * ("vision" not in cfg.frozen_parts)
    forward, again = 2 * (m["layers"] + m["root"] + tower), 2 * (m["layers"] + tower)
    of_d, again_d = forward - 2 * (m["head"] + tower), again - 2 * tower
    passes = cfg.mu * (forward + again + of["student_gradient"]) + forward * (cfg.beta > 0)
    passes += (cfg.mu * (of_d + again_d + of["D_gradient"]) + of_d) * (of["D"] > 0)
    micro_batches = -(-mine // cfg.micro_batch)
    moved = micro_batches * passes + of["student_adam"] / 4 + mine * 2 * judge_parameters(cfg.judge)
    return moved * (W - 1) / W


def offloaded(cfg, gpus: int) -> float:
    """Bytes that --offload phase moves between a GPU and its host in a step: in and out again."""
    of = training_state(cfg)
    away = of["student_adam"] + of["D"] + of["D_adam"] + 2 * sizes(cfg.student)["all"] + 2 * judge_parameters(cfg.judge)
    return 2 * away / shards(gpus)


def step_seconds(cfg, gpus: int, offload: str) -> dict[str, float]:
    """Seconds of a step by what takes them, added up: that some of it may overlap is not counted on."""
    m, G, mine = sizes(cfg.student), cfg.group_size, -(-cfg.questions_per_step // gpus)
    mean, prompt = MEAN_RESPONSE * cfg.max_new_tokens, (cfg.image_tokens or 256) + PROMPT_TEXT
    row, texts = prompt + 2 * G * mean, (100 + 2 * G * (mean + 10)) * (cfg.discriminator != "none")
    judge = 2 * judge_parameters(cfg.judge) * (400 + G * (mean + 30))
    body = 2 * m["layers"] * (prompt + (4 * cfg.mu + 1) * (row + texts)) + 2 * m["vision"] * 4 * prompt
    flops = body + 2 * m["hidden"] * m["words"] * (4 * cfg.mu + 1) * 2 * G * mean + judge
    return {
        "rollout": answering(cfg, cfg.student, G * mine),
        "matrix products": mine * flops / TFLOPS,
        "gathers and reductions": traffic(cfg, gpus) / GATHER,
        "offload": offloaded(cfg, gpus) / HOST * (offload == "phase"),
    }


def hours_and_disk(cfg, gpus: int, offload: str) -> dict[str, tuple[float, float]]:
    """Stage -> (hours, GB on disk) at the speeds above. A trained pass counts four forwards: it is recomputed.

    While a checkpoint is written, those before it are still there; beside them lie the best and the last
    student in fp32 (4 bytes a parameter each).
    """
    m, step = sizes(cfg.student), sum(step_seconds(cfg, gpus, offload).values())
    mean = MEAN_RESPONSE * cfg.max_new_tokens
    questions = 0.8 * len(read_jsonl(cfg.data)) if cfg.data else cfg.pool  # the training part
    samples, here = questions * cfg.teacher_samples, asked_here(cfg)
    visited, more = min(questions, 32 + cfg.d_steps * cfg.questions_per_step), cfg.pretraining_samples
    samples += visited * max(0, more - cfg.teacher_samples) * (cfg.discriminator != "none")
    tokens = samples * mean * len(cfg.teachers.split(","))
    teaching = (len(cfg.teachers.split(",")) - len(here)) * samples * mean / TEACHER_TOKENS
    teaching += sum(answering(cfg, name, samples / gpus, teacher_phase(cfg, name)[1]) for name in here)
    once = (1 + cfg.eval_draws) / gpus  # responses a question of a validation
    validations = 1 + cfg.steps / (cfg.eval_every or cfg.steps)
    validating = validations * answering(cfg, cfg.student, cfg.valid_questions * once)
    on_disk = (cfg.keep + 1) * checkpoint_bytes(cfg) + 8 * m["all"]
    return {
        "teachers": (teaching / 3600, tokens * 5 / 1e9),
        "discriminator": (cfg.d_steps * step * max(1, more / cfg.group_size) / 3600, training_state(cfg)["D"] / 1e9),
        "ril": ((cfg.steps * step + validating) / 3600, on_disk / 1e9),
        "export": (0.1, 4 * m["all"] / 1e9),
        "evaluate": (3 * answering(cfg, cfg.student, cfg.test_questions * once) / 3600, 0.0),
    }


def print_plan(cfg) -> None:
    """What fits and how long it takes, before anything is loaded; every number is an estimate."""
    names = [cfg.student, *asked_here(cfg)]
    judge = f"{cfg.judge} {judge_parameters(cfg.judge) / 1e9:.1f} B" if judge_parameters(cfg.judge) else cfg.judge
    print("parameters: " + ", ".join(f"{n} {sizes(n)['all'] / 1e9:.3f} B" for n in names) + f", judge {judge}")
    print(
        f"a step: {cfg.questions_per_step} questions, {cfg.group_size} + {cfg.group_size} responses of at most "
        f"{cfg.max_new_tokens} tokens, {cfg.image_tokens or 256} image tokens, {cfg.rollout_rows} rows decode together"
    )
    for name in asked_here(cfg):
        gb = teacher_phase(cfg, name)[0]
        print(f"GB per GPU, teacher {name}: {gb:.0f}  {'fits' if gb < 0.93 * cfg.gpu_memory else 'too much: serve it'}")
    for offload in ("phase", "none"):
        gb = phases(cfg, cfg.gpus, offload)
        host, fits = gb.pop("host"), max(gb.values()) < 0.93 * cfg.gpu_memory
        of = "  ".join(f"{name} {x:.0f}" for name, x in gb.items())
        print(f"GB per GPU, --offload {offload}: {of}  (host {host:.0f} a node)  {'fits' if fits else 'too much'}")
    offload = fitting(cfg)
    of = step_seconds(cfg, cfg.gpus, offload)
    print(f"a step: {sum(of.values()):.1f} s: " + ", ".join(f"{name} {x:.1f}" for name, x in of.items() if x))
    for stage, (hours, disk) in hours_and_disk(cfg, cfg.gpus, offload).items():
        print(f"{stage}: {hours:.1f} hours, {disk:.1f} GB on disk")
    print(
        f"assumed: {TFLOPS / 1e12:.0f} TFLOP/s and {BANDWIDTH / 1e12:.1f} TB/s a GPU (40 and 60 % of an H100's peaks), "
        f"{GATHER / 1e12:.1f} TB/s between them,"
    )
    print(f"{HOST / 1e12:.2f} TB/s to the host, {LAUNCH * 1e6:.0f} microseconds a kernel of a decoded token,")
    served = f"served teachers at {TEACHER_TOKENS:.0f} tokens/s"
    print(f"{served}, {cfg.teacher_samples} responses a question and teacher (the paper: 16).")
    print("tools.pilot measures instead.")
    verdict = "does not fit: take more or larger GPUs, a smaller student, or a served judge"
    verdict = f"fits with --offload {offload}" if offload else verdict
    print(f"{cfg.student} on {cfg.gpus} GPUs of {cfg.gpu_memory:.0f} GB: {verdict}")


def main(argv: list[str] | None = None) -> None:
    """The command line: --gpus, --gpu-memory, and the flags of train.py."""
    own = Flags(__doc__)
    own.add_argument("--gpus", type=int, default=8, help="number of GPUs [8]")
    own.add_argument("--gpu-memory", type=float, default=80.0, help="GB of each [80]")
    args, rest = own.parse_known_args(argv)
    print_plan(dataclasses.replace(parse(rest), gpus=args.gpus, gpu_memory=args.gpu_memory))


if __name__ == "__main__":
    run_command(main)
