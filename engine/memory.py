"""The memory that each phase of a step needs, for --offload auto, tools.plan and tools.pilot; and when it runs out."""

import functools
import os
import traceback
from dataclasses import dataclass

import torch
from torch.distributed.fsdp import FSDPModule

from discriminator import Discriminator
from engine.families import FULL, JUDGES
from engine.loading import is_tied, load, meta_language_model, meta_model, random_meta_model
from engine.lora import adapted_layers
from engine.served import is_url
from tiny.models import TINY

CONTEXT = 3e9  # bytes for the CUDA context, NCCL and fragmentation
PROMPT_TEXT = 200  # tokens of a question


def without_memory(name: str):
    """A model by its name or folder, on the meta device (a tiny one is really loaded)."""
    return load(name) if name in TINY else (random_meta_model if name in FULL else meta_model)(name)


@functools.lru_cache
def sizes(name: str) -> dict[str, float]:
    """`count_of` a model by its name or folder, without memory."""
    return count_of(without_memory(name))


@functools.lru_cache
def trained(name: str, frozen: tuple, reads: str, rank: int = 0) -> tuple[int, int]:
    """Number of trained parameters of the student, and of a D that reads `reads`; `rank`: of their adapters."""
    student = without_memory(name).freeze(*frozen)
    if rank:
        layers = adapted_layers(student.hf, student.family.projector_paths)
        pairs = {path: rank * (x.in_features + x.out_features) for path, x in layers.items()}
        without = sum(n for path, n in pairs.items() if reads == "picture" or not student.family.in_projector(path))
        return sum(pairs.values()), without + student.hf.config.get_text_config().hidden_size
    players = (student, Discriminator(student, reads))
    student, D = (sum(p.numel() for p in x.parameters() if p.requires_grad) for x in players)
    return student, D


def training_state(cfg) -> dict[str, float]:
    """Bytes over all GPUs: fp32 masters of all parameters, Adam's moments and gradients of the trained ones only.

    With --lora the masters are those of the adapters; every GPU has all of it.
    """
    m, has_d = sizes(cfg.student), cfg.discriminator != "none"
    student, D = trained(cfg.student, tuple(cfg.frozen_parts), cfg.d_input, cfg.lora)
    student_all, D_all = m["all"], m["all"] - m["head"] + m["hidden"]  # D: a head to one number in the other's place
    if cfg.lora:
        student_all, D_all = student, D
    out = dict(student=4 * student_all, student_adam=8 * student, student_gradient=4 * student)
    return out | dict(D=4 * D_all * has_d, D_adam=8 * D * has_d, D_gradient=4 * D * has_d)


def checkpoint_bytes(cfg) -> float:
    """A checkpoint of the loop: what is trained of student and D, with Adam's moments; a tied head is written twice."""
    m, of = sizes(cfg.student), training_state(cfg)
    twice = 4 * m["hidden"] * m["words"] * (m["head"] == 0 and not cfg.lora and "head" not in cfg.frozen_parts)
    return twice + 1.5 * (of["student_adam"] + of["D_adam"])  # 4 bytes a parameter beside 8


@functools.lru_cache
def judge_parameters(name: str) -> int:
    """Parameters of a judge that is loaded here; 0 for the rule, a file of yours and a served one."""
    if name == "rule" or name.endswith(".py") or is_url(name):
        return 0
    return sum(p.numel() for p in meta_language_model(name, torch.bfloat16, name in JUDGES)[0].parameters())


def count_of(vlm) -> dict[str, float]:
    """Parameters of a model of the real classes by part, and bytes in bf16: kv, what a token leaves in a cache; patch,
    the cached patches of an image token; deeper: how many decoder layers get pictures beside the first one's input.
    """
    text, base = vlm.hf.config.get_text_config(), vlm.base

    def count(module):
        return sum(p.numel() for p in module.parameters())

    out = dict(all=count(vlm.hf), head=0 if is_tied(vlm.hf) else count(vlm.hf.lm_head))
    out |= dict(layers=count(base.language_model.layers), layer=count(base.language_model.layers[0]))
    out |= dict(vision=count(base.get_submodule(vlm.family.vision)), depth=text.num_hidden_layers)
    dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    out |= dict(root=out["all"] - out["layers"] - out["vision"])
    out |= dict(kv=4 * text.num_hidden_layers * text.num_key_value_heads * dim)  # two of two bytes each
    projectors = len(vlm.family.projectors(base))
    out |= dict(patch=2 * projectors * vlm.family.patch_width(base), deeper=projectors - 1)
    out |= dict(hidden=text.hidden_size, wide=text.intermediate_size, words=text.vocab_size)
    eyes = vlm.hf.config.vision_config
    return out | dict(vision_hidden=eyes.hidden_size, vision_wide=eyes.intermediate_size)


def shards(gpus: int) -> int:
    """The GPUs over which weights are sharded: those of a node (8 unless torchrun says otherwise)."""
    return min(gpus, int(os.environ.get("LOCAL_WORLD_SIZE", 8)))


def width(cfg) -> int:
    """Bytes of a number that passes compute with."""
    return 2 if cfg.dtype == "bf16" else 4


@dataclass
class Work:
    """Bytes of a step on one GPU that are the same for full training and for --lora."""

    keys_values: float  # of the rows that decode together
    prefill: float  # of one layer over the prompts that decode together, or of one of the vision tower
    active: float  # of one training forward and backward pass
    judge: float  # what judging needs besides a local judge's weights
    patches: float  # of the step's pictures, each seen once

    @classmethod
    def of(cls, cfg, gpus: int) -> "Work":
        """For one micro-batch of one question (`active`)."""
        m, judge = sizes(cfg.student), judge_parameters(cfg.judge)
        prompt = (cfg.image_tokens or 256) + PROMPT_TEXT
        row = prompt + 2 * cfg.group_size * cfg.max_new_tokens
        mine = -(-cfg.questions_per_step // gpus)
        rows = min(cfg.rollout_rows, cfg.group_size * mine)
        active = 2 * row * m["hidden"] * (m["depth"] + m["deeper"])  # the checkpointed input of every layer
        active += row * (8 * m["wide"] + 40 * m["hidden"])  # one layer again, and its keys and values once a response
        active += 12 * 2 * cfg.group_size * (prompt + cfg.max_new_tokens) * m["hidden"]
        active += 12 * 1024 * m["words"]  # a chunk of logits: bf16, fp32, softmax, gradient
        prefill = max(
            prompt * (6 * m["wide"] + 12 * m["hidden"]),
            4 * (prompt - PROMPT_TEXT) * (6 * m["vision_wide"] + 12 * m["vision_hidden"]),
        )
        keys_values, judging = rows * (prompt + cfg.max_new_tokens) * m["kv"], (4e9 + 0.06 * judge) * (judge > 0)
        patches, wider = mine * (prompt - PROMPT_TEXT) * m["patch"], width(cfg) / 2  # all of it is counted in bf16
        parts = keys_values, rows // cfg.group_size * prefill, active
        return cls(*(wider * x for x in parts), judging, wider * patches)


def phases(cfg, gpus: int, offload: str) -> dict[str, float]:
    """GB (1e9) per GPU in each phase of a step, and of the host for all ranks of a node.

    With --offload none keys and values count in every phase, since nothing frees them within a step. The host holds
    what is offloaded, a checkpoint that is being written, and the best student while rank 0 writes it.
    """
    bytes_of = phases_of_adapters if cfg.lora else phases_of_shards
    work = Work.of(cfg, gpus)
    out, host = bytes_of(cfg, gpus, offload, work)
    host += checkpoint_bytes(cfg) + 4 * sizes(cfg.student)["all"]
    return {name: (CONTEXT + work.patches + x) / 1e9 for name, x in out.items()} | {"host": host / 1e9}


def phases_of_adapters(cfg, gpus: int, offload: str, work: Work) -> tuple[dict, float]:
    """(bytes per GPU in each phase, bytes of the host) with --lora: one base in --dtype, adapters whole on every GPU.

    A pass has A and B in bf16, and a backward pass their gradient in bf16 and fp32 before it is added up. Merging for a
    validation leaves the base's own weights on the host.
    """
    m, of, node = sizes(cfg.student), training_state(cfg), shards(gpus)
    judge = 2 * judge_parameters(cfg.judge) / node
    state = {who: of[who] + of[f"{who}_adam"] for who in ("student", "D")}
    gradient = {who: of[f"{who}_gradient"] for who in ("student", "D")}
    host = node * width(cfg) * m["layers"]
    if cfg.optimizer_offload:
        host += node * sum([*state.values(), *gradient.values()])
        state = dict.fromkeys(state, 0.0)
        gradient = {who: 0.5 * x for who, x in gradient.items()}  # on its way to the host in bf16
    stays = width(cfg) * m["all"] + sum(state.values()) + judge
    update = {who: work.active + 2 * gradient[who] + of[f"{who}_gradient"] for who in ("student", "D")}
    rollout = work.keys_values + work.prefill + of["student"] / 2
    out = dict(rollout=rollout, discriminator=update["D"] * (of["D"] > 0))
    out |= dict(judge=work.judge, student=update["student"])
    return {name: stays + x for name, x in out.items()}, host


def phases_of_shards(cfg, gpus: int, offload: str, work: Work) -> tuple[dict, float]:
    """(bytes per GPU in each phase, bytes of the host) of full training: shards, and a whole replica.

    With --optimizer-offload masters, gradients and AdamW's state are on the host; what a layer's gathering takes from
    there lies on the GPU in fp32 for a moment.
    """
    m, judge, W, of = sizes(cfg.student), judge_parameters(cfg.judge), shards(gpus), training_state(cfg)
    wide = width(cfg)
    taken_over = wide * of["student_adam"] / 8  # the replica's copy of what is trained
    replica = taken_over + work.keys_values
    # two gathered layers, gradients, reduction buffers; the root twice
    transient = (8 + 3 * wide) * m["layer"] + 2 * wide * m["root"]
    judging = 2 * judge / W + work.judge
    student, d, reference = of["student_adam"] / W, (of["D"] + of["D_adam"]) / W, wide * m["all"] / W
    stays, host = of["student"] / W + wide * m["all"] - taken_over, 0.0
    gradients = {who: of[f"{who}_gradient"] / W for who in ("student", "D")}
    if cfg.optimizer_offload:
        host = sum(of.values())
        stays, student, d, gradients = stays - of["student"] / W, 0.0, 0.0, dict.fromkeys(gradients, 0.0)
        transient += 4 * (2 * m["layer"] + m["root"]) / W
    updates = dict(
        discriminator=(gradients["D"] + transient - 2 * wide * m["head"] + work.active) * (of["D"] > 0),
        student=gradients["student"] + transient + work.active,
    )
    if offload == "phase":
        out = dict(rollout=replica + work.prefill, discriminator=d + updates["discriminator"], judge=judging)
        out["student"] = student + reference + updates["student"]
        host += of["student_adam"] + (d + reference) * W + 2 * judge
    else:
        stays += student + d + reference + replica + 2 * judge / W
        out = dict(rollout=work.prefill, **updates) | dict(judge=judging - 2 * judge / W)
    return {name: stays + x for name, x in out.items()}, host


def best_offload(cfg) -> str:
    """--offload, or what auto stands for here: phase where none does not fit the GPU and phase moves anything."""
    if cfg.offload != "auto":
        return cfg.offload
    if cfg.lora or cfg.optimizer_offload or not torch.cuda.is_available():
        return "none"
    memory = torch.cuda.get_device_properties(0).total_memory / 1e9
    return "none" if most_gb(cfg, int(os.environ.get("WORLD_SIZE", 1)), "none") < 0.93 * memory else "phase"


def most_gb(cfg, gpus: int, offload: str) -> float:
    """GB per GPU in the largest phase of a step."""
    return max(gb for name, gb in phases(cfg, gpus, offload).items() if name != "host")


# ------------------------------------------------------------------------------------------------ when it runs out
def out_of_memory(cfg, error: Exception) -> str:
    """What helps where the GPU's memory ran out: in sampling or in a forward or backward pass."""
    in_rollout = any(frame.name == "rollout" for frame in traceback.extract_tb(error.__traceback__))
    where, rows, batch = "rollout" if in_rollout else "update", cfg.rollout_rows // 2, cfg.micro_batch // 2
    helps = [f"--rollout-rows {rows}"] * (in_rollout and rows > 0)
    helps += [f"--micro-batch {batch}"] * (not in_rollout and batch > 0)
    helps += ["--offload phase"] * (cfg.offload != "phase") + ["more GPUs"]
    return f"out of GPU memory in {where}: try {' or '.join(helps)}; the command then goes on from the last checkpoint"


def fitting(ask, student, rows: int) -> tuple:
    """(ask(rows), rows): where a GPU's memory does not hold so many rows side by side, with half as many, and again.

    Not for a sharded student: the other ranks would wait, each for the forward that failed here.
    """
    while True:
        try:
            return ask(rows), rows
        except torch.OutOfMemoryError:
            if rows < 2 or isinstance(student, FSDPModule):
                raise
        torch.cuda.empty_cache()  # here, because the error holds tensors
        rows //= 2
        print(f"  out of GPU memory in an evaluation: it goes on with {rows} rows (--rollout-rows)")
