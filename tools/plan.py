"""What fits and how long it takes, before anything is loaded; every number is an estimate.

python -m tools.plan --student qwen2.5-vl-7b --gpus 8 --gpu-memory 80     # and any other flag of train.py
python -m tools.plan --table                                              # every published student on usual machines
python -m tools.plan --measured check.json --student qwen2.5-vl-7b        # at the speeds that tools.gpu_check measured
"""

import dataclasses
import json
import math
from pathlib import Path

from config import parse
from engine.command import Flags, UserError, run_command
from engine.families import FULL
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
    width,
)
from engine.run import taught_count

# What the plan assumes: estimates, until --measured replaces the first five by what tools.gpu_check found on one GPU.
TFLOPS, BANDWIDTH = 400e12, 2.0e12  # of a GPU: matrix products; bytes/s of its own memory
HOST = 0.02e12  # bytes/s from or to the host's pageable memory
LAUNCH, GRAPH_LAUNCH = 15e-6, 3e-6  # seconds until a kernel is launched: eagerly, and in a captured graph
MEASURED = ("TFLOPS", "BANDWIDTH", "HOST", "LAUNCH", "GRAPH_LAUNCH")
GATHER = 0.3e12  # bytes/s from the other GPUs
KERNELS = 37  # of a decoder layer at one decoded token
MEAN_RESPONSE = 0.6  # a response's mean length as a share of the longest
TEACHER_TOKENS = 5000.0  # tokens a second of a served teacher
HOST_MEMORY = 0.1e12  # bytes/s at which a node's processors read and write AdamW's state

RANK = 64  # of --lora where the plan proposes it
FLAGS_TO_FIT = {  # what to try, the fastest first
    "--offload none": dict(offload="none"),
    "--offload phase": dict(offload="phase"),
    f"--lora {RANK}": dict(lora=RANK),
    "--optimizer-offload": dict(optimizer_offload=True),
    f"--lora {RANK} --optimizer-offload": dict(lora=RANK, optimizer_offload=True),
}
STUDENTS = [name for name in FULL if not name.endswith(("72b", "78b"))]  # those are teachers
MACHINES = ((1, 24), (1, 48), (1, 80), (2, 80), (8, 80))  # GPUs, GB of each


# ------------------------------------------------------------------------------------------------ what fits
def teacher_phase(cfg, name: str) -> tuple[float, bool]:
    """GB per GPU for a teacher that is asked in process, and whether its weights stay gathered (teachers.py)."""
    t, rows, wide = sizes(name), (cfg.image_tokens or 256) + PROMPT_TEXT + cfg.max_new_tokens, width(cfg)
    stays = wide * t["all"] * (1 + 1 / shards(cfg.gpus)) < 0.6e9 * cfg.gpu_memory
    weights = wide * (t["all"] / shards(cfg.gpus) + (t["all"] if stays else 2 * t["layer"] + t["root"]))
    return (3e9 + weights + cfg.rollout_rows * rows * t["kv"] * wide / 2) / 1e9, stays


def asked_here(cfg) -> list[str]:
    """The teachers that are loaded: neither served nor from a file."""
    names = [] if cfg.teachers_file or cfg.teacher_use == "none" else cfg.teachers.split(",")
    return [n for n in names if n != "reference" and "=" not in n]


def fitting(cfg) -> str:
    """The --offload with which everything fits on --gpus of --gpu-memory, none before phase; "" where nothing does."""
    teaching = [teacher_phase(cfg, name)[0] for name in asked_here(cfg)]
    return next((x for x in offloads(cfg) if max([most_gb(cfg, cfg.gpus, x), *teaching]) < 0.93 * cfg.gpu_memory), "")


def offloads(cfg) -> tuple:
    """The values of --offload that go with the other settings."""
    return ("none",) if cfg.lora or cfg.optimizer_offload else ("none", "phase")


def what_fits(cfg, flags_to_fit: dict | None = None) -> tuple[str, object]:
    """(the first of FLAGS_TO_FIT, or others, with which everything fits, these settings with them); ("", cfg): none."""
    for flags, more in (flags_to_fit or FLAGS_TO_FIT).items():
        there = dataclasses.replace(cfg, **more)
        offload = fitting(there)
        if offload and more.get("offload", offload) == offload:
            return flags, there
    return "", cfg


def largest_that_fits(cfg) -> str:
    """The published student with the most parameters that fits there, with its flags; "" for none."""
    for name in sorted(STUDENTS, key=lambda x: -sizes(x)["all"]):
        flags, _ = what_fits(dataclasses.replace(cfg, student=name))
        if flags:
            return f"{name} with {flags}"
    return ""


# ------------------------------------------------------------------------------------------------ how long it takes
def token_seconds(m: dict, rows: float, context: float, speed: float, kernel: float, adapted=False) -> float:
    """Seconds of one decoded token of `rows` rows: of its bytes, or of its launches, whichever takes longer.

    speed: bytes/s at which weights come; kernel: seconds until one is launched. An adapter that is not merged adds two
    products to each of a layer's seven.
    """
    read = 2 * (m["layers"] + m["hidden"] * m["words"]) / speed + rows * context * m["kv"] / BANDWIDTH
    return max(read, m["depth"] * (KERNELS + 14 * adapted) * kernel)


def answering(cfg, name: str, rows: float, gathered=True, adapted=False, whole=True) -> float:
    """Seconds for one GPU to sample `rows` responses from a model.

    not `gathered`: layers come from other GPUs; not `whole`: it is sharded, and its steps are not captured as graphs.
    """
    m, mean, prompt = sizes(name), MEAN_RESPONSE * cfg.max_new_tokens, (cfg.image_tokens or 256) + PROMPT_TEXT
    side_by_side = min(cfg.rollout_rows, rows)
    speed, kernel = BANDWIDTH if gathered else GATHER, GRAPH_LAUNCH if whole else LAUNCH
    token = token_seconds(m, 0.65 * side_by_side, prompt + mean, speed, kernel, adapted)  # rows end before the longest
    passes = math.ceil(rows / side_by_side)
    return passes * cfg.max_new_tokens * token + rows * 2 * m["all"] * prompt / 8 / TFLOPS


def traffic(cfg, gpus: int) -> float:
    """Bytes that a GPU gets from the others in a step, or sends: FSDP's gathers and reductions, the replica's refresh.

    A forward pass gathers layers and root in bf16, a backward pass the layers again, and gradients are reduced in fp32;
    so for each micro-batch of student (mu), reference, and D (mu, and once to score), and for each question of a local
    judge. The vision tower is gathered where it is trained: student and reference see for themselves then.
    """
    m, W, of = sizes(cfg.student), shards(gpus), training_state(cfg)
    mine, judging = -(-cfg.questions_per_step // gpus), 2 * judge_parameters(cfg.judge)
    if cfg.lora:  # once for each update: gradients are summed, and the sums come back
        return (
            2 * cfg.mu * (of["student_gradient"] + of["D_gradient"]) * (gpus - 1) / gpus + mine * judging * (W - 1) / W
        )
    tower = m["vision"] * ("vision" not in cfg.frozen_parts)
    forward, again = 2 * (m["layers"] + m["root"] + tower), 2 * (m["layers"] + tower)
    of_d, again_d = forward - 2 * (m["head"] + tower), again - 2 * tower
    passes = cfg.mu * (forward + again + of["student_gradient"]) + forward * (cfg.beta > 0)
    passes += (cfg.mu * (of_d + again_d + of["D_gradient"]) + of_d) * (of["D"] > 0)
    micro_batches = -(-mine // cfg.micro_batch)
    moved = micro_batches * passes + of["student_adam"] / 4 + mine * judging
    return moved * (W - 1) / W


def offloaded(cfg, gpus: int, offload: str) -> float:
    """Bytes that move between a GPU and its host in a step.

    --offload phase: players in and out again. --optimizer-offload: for each micro-batch what its passes gather, and the
    gradient, in fp32; adapters are gathered whole.
    """
    m, of, W = sizes(cfg.student), training_state(cfg), shards(gpus)
    if offload == "phase":
        away = of["student_adam"] + of["D"] + of["D_adam"] + 2 * m["all"] + 2 * judge_parameters(cfg.judge)
        return 2 * away / W
    if not cfg.optimizer_offload:
        return 0.0
    once = 4 * (m["layers"] + m["root"])
    student, D = once + 4 * m["layers"], once + 4 * (m["layers"] - m["head"])
    if cfg.lora:
        once, student, D, W = of["D"], of["student"], of["D"], 1
    passes = cfg.mu * (student + of["student_gradient"] + (D + of["D_gradient"]) * (of["D"] > 0)) + once * (of["D"] > 0)
    return -(-cfg.questions_per_step // gpus // cfg.micro_batch) * passes / W


def step_seconds(cfg, gpus: int, offload: str) -> dict[str, float]:
    """Seconds of a step by what takes them, added up: that some of it may overlap is not counted on.

    A trained pass counts four forwards: it is recomputed, and the backward pass takes gradients of activations and of
    weights; three where the weights are frozen under an adapter. AdamW on the host moves 28 bytes a parameter there.
    """
    m, G, mine = sizes(cfg.student), cfg.group_size, -(-cfg.questions_per_step // gpus)
    mean, prompt = MEAN_RESPONSE * cfg.max_new_tokens, (cfg.image_tokens or 256) + PROMPT_TEXT
    row, texts = prompt + 2 * G * mean, (100 + 2 * G * (mean + 10)) * (cfg.discriminator != "none")
    judge = 2 * judge_parameters(cfg.judge) * (400 + G * (mean + 30))
    of, trained_pass = training_state(cfg), 3 if cfg.lora else 4
    passes, layers = trained_pass * cfg.mu + 1, m["layers"] + of["student"] / 4 * (cfg.lora > 0)
    body = 2 * layers * (prompt + passes * (row + texts)) + 2 * m["vision"] * 4 * prompt
    flops = body + 2 * m["hidden"] * m["words"] * passes * 2 * G * mean + judge
    updated = 28 / 4 * cfg.mu * (of["student_gradient"] + of["D_gradient"]) * (shards(gpus) if cfg.lora else 1)
    return {
        "rollout": answering(cfg, cfg.student, G * mine, adapted=cfg.lora > 0),
        "matrix products": mine * flops / TFLOPS,
        "gathers and reductions": traffic(cfg, gpus) / GATHER,
        "offload": offloaded(cfg, gpus, offload) / HOST,
        "AdamW on the host": updated / HOST_MEMORY * cfg.optimizer_offload,
    }


def hours_and_disk(cfg, gpus: int, offload: str) -> dict[str, tuple[float, float]]:
    """Stage -> (hours, GB on disk) at the speeds above.

    While a checkpoint is written, those before it are still there; beside them lie the best and the last
    student in fp32 (4 bytes a parameter each).
    """
    m, step = sizes(cfg.student), sum(step_seconds(cfg, gpus, offload).values())
    mean = MEAN_RESPONSE * cfg.max_new_tokens
    questions = 0.8 * len(read_jsonl(cfg.data)) if cfg.data else cfg.pool  # the training part
    questions = taught_count(cfg, questions)
    samples, here = questions * cfg.teacher_samples, asked_here(cfg)
    visited, more = min(questions, 32 + cfg.d_steps * cfg.questions_per_step), cfg.pretraining_samples
    samples += visited * max(0, more - cfg.teacher_samples) * (cfg.discriminator != "none")
    tokens = samples * mean * len(cfg.teachers.split(","))
    teaching = (len(cfg.teachers.split(",")) - len(here)) * samples * mean / TEACHER_TOKENS
    teaching += sum(answering(cfg, n, samples / gpus, teacher_phase(cfg, n)[1], whole=False) for n in here)
    once = (1 + cfg.eval_draws) / gpus  # responses a question of a validation
    validations = 1 + cfg.steps / (cfg.eval_every or cfg.steps)
    validating = validations * answering(cfg, cfg.student, cfg.valid_questions * once)
    on_disk = (cfg.keep + 1) * checkpoint_bytes(cfg) + 8 * m["all"]
    return {
        "teachers": (teaching / 3600, tokens * 5 / 1e9),
        "discriminator": (
            cfg.d_steps * step * max(1, more / cfg.group_size) / 3600,
            training_state(cfg)["D_gradient"] / 1e9,
        ),
        "ril": ((cfg.steps * step + validating) / 3600, on_disk / 1e9),
        "export": (0.1, 4 * m["all"] / 1e9),
        "evaluate": (3 * answering(cfg, cfg.student, cfg.test_questions * once) / 3600, 0.0),
    }


def use_measured(file: Path) -> str:
    """Replace the constants MEASURED by those in a file that tools.gpu_check wrote -> the card that it ran on.

    Raises UserError for another file, and for one of a check that measured none of them.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        speeds = {name: float(found["plan"][name]) for name in MEASURED if name in found["plan"]}
        card = str(found["card"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: not a file that tools.gpu_check wrote ({type(error).__name__}: {error})") from None
    if not speeds or not all(0 < x < math.inf for x in speeds.values()):
        raise UserError(f"{file}: it holds no measured speed; run tools.gpu_check without --only on a GPU")
    globals().update(speeds)
    return card if len(speeds) == len(MEASURED) else f"{card} ({', '.join(speeds)} only, the others assumed)"


def print_plan(cfg, source: str = "assumed (40 and 60 % of an H100's peaks)") -> None:
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
    for offload in offloads(cfg)[::-1]:
        gb = phases(cfg, cfg.gpus, offload)
        host, fits = gb.pop("host"), max(gb.values()) < 0.93 * cfg.gpu_memory
        of = "  ".join(f"{name} {x:.0f}" for name, x in gb.items())
        how = f"--lora {cfg.lora} " * (cfg.lora > 0) + "--optimizer-offload " * cfg.optimizer_offload
        how = how.strip() or f"--offload {offload}"
        print(f"GB per GPU, {how}: {of}  (host {host:.0f} a node)  {'fits' if fits else 'too much'}")
    flags, there = what_fits(cfg)
    if flags not in ("", "--offload none", "--offload phase"):
        print(f"from here on with {flags}:")
    offload = fitting(there)
    of = step_seconds(there, cfg.gpus, offload)
    print(f"a step: {sum(of.values()):.1f} s: " + ", ".join(f"{name} {x:.1f}" for name, x in of.items() if x))
    for stage, (hours, disk) in hours_and_disk(there, cfg.gpus, offload).items():
        print(f"{stage}: {hours:.1f} hours, {disk:.1f} GB on disk")
    if cfg.taught != 1:
        all_taught = hours_and_disk(dataclasses.replace(there, taught=1.0), cfg.gpus, offload)
        print(f"--taught {cfg.taught:g}; teachers for every question: {all_taught['teachers'][0]:.1f} hours")
    memory = f"{BANDWIDTH / 1e12:.1f} TB/s a GPU, {HOST / 1e12:.2f} TB/s to the host"
    print(f"{source}: {TFLOPS / 1e12:.0f} TFLOP/s and {memory},")
    print(f"{LAUNCH * 1e6:.0f} microseconds a kernel of a decoded token, {GRAPH_LAUNCH * 1e6:.1f} in a captured graph;")
    served = f"assumed: {GATHER / 1e12:.1f} TB/s between GPUs, served teachers at {TEACHER_TOKENS:.0f} tokens/s"
    print(f"{served}, {cfg.teacher_samples} responses a question and teacher (the paper: 16).")
    print("tools.pilot measures instead.")
    verdict = f"fits with {flags}" if flags else "does not fit: take more or larger GPUs, or a served judge"
    if not flags and (smaller := largest_that_fits(cfg)):
        verdict += f"; the largest student that fits is {smaller}"
    print(f"{cfg.student} on {cfg.gpus} GPUs of {cfg.gpu_memory:.0f} GB: {verdict}")


def cell(cfg, lora: bool) -> str:
    """The hours of the loop for 1,000 questions, and the fastest flags with which the student fits; -: none does."""
    flags, there = what_fits(cfg, {flags: x for flags, x in FLAGS_TO_FIT.items() if ("lora" in x) == lora})
    if not flags:
        return "-"
    seconds = sum(step_seconds(there, there.gpus, there.offload).values())
    return f"{1000 / cfg.questions_per_step * seconds / 3600:.2f} ({flags})"


def table(cfg) -> list[str]:
    """A line of Markdown for every published student, full and with --lora, on MACHINES; these settings otherwise."""
    lines = [" | ".join(["| student", *(f"{n} x {gb} GB" for n, gb in MACHINES)]) + " |"]
    lines.append("|---" * (1 + len(MACHINES)) + "|")
    for name in STUDENTS:
        here = [dataclasses.replace(cfg, student=name, gpus=n, gpu_memory=float(gb)) for n, gb in MACHINES]
        for lora in (False, True):
            lines.append(" | ".join([f"| {name}{', lora' * lora}", *(cell(there, lora) for there in here)]) + " |")
    return lines


def main(argv: list[str] | None = None) -> None:
    """The command line: --gpus, --gpu-memory, --table, and the flags of train.py."""
    own = Flags(__doc__)
    own.add_argument("--gpus", type=int, default=8, help="number of GPUs [8]")
    own.add_argument("--gpu-memory", type=float, default=80.0, help="GB of each [80]")
    own.add_argument("--table", action="store_true", help="every published student on usual machines, and no plan")
    own.add_argument("--measured", type=Path, help="speeds that tools.gpu_check wrote, in place of the assumed ones")
    args, rest = own.parse_known_args(argv)
    source = [f"measured on {use_measured(args.measured)}"] if args.measured else []
    if args.table:
        print("\n".join(table(parse([*rest, "--preset", "paper"]))))
        return
    print_plan(dataclasses.replace(parse(rest), gpus=args.gpus, gpu_memory=args.gpu_memory), *source)


if __name__ == "__main__":
    run_command(main)
