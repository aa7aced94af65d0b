"""Speed of a step's phases beside stock transformers and beside what this machine could do; plan and pilot.

    python bench.py                         # the tiny student, one thread, seconds
    python bench.py --student tiny-qwen-20m --cell 80 --questions 8 --response-tokens 64 --micro-batch 1 --repeats 3
    python bench.py --student internvl3-1b --random-weights --device cuda --dtype bf16    # a published one, full size
    python bench.py --student runs/NAME/student --out speed.json             # your own
    python train.py --student qwen2.5-vl-7b --plan --gpus 8 --gpu-memory 80  # `print_plan` below
    python train.py --student tiny-qwen --pilot                              # `pilot` below

A step is run in two ways on the same weights; it has the phases of train.py but for the judge, one update each of D and
student. Ours: `rollout`, packed rows, pictures encoded once a step (in the rollout phase). The stock way: `generate` on
all questions at once, and the stock model on one right-padded row per response with its own copy of picture and
question. Both decode --response-tokens for every response, score response tokens only and share losses, optimizers and
attention (sdpa). The limit of a phase is its bytes at this machine's copy rate or its flops at the rate of a matrix
product, both measured here; the flops are those of 2 x parameters x tokens and of the attention that the tree mask lets
through, three times for an update. Evaluation answers 4 x --questions greedily: ours in one batch, stock one by one, as
public evaluators do. Absolute times mean little on a shared CPU; ratios of one run do.
"""

import functools
import inspect
import itertools
import json
import math
import os
import platform
import resource
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

# read when torch is imported (train.py says why)
os.environ.setdefault("PYTORCH_ALLOC_CONF", os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True"))

import torch
import torch.nn.functional as F
from transformers import GenerationConfig

from data import Flags, UserError, read_jsonl, run_command, slices, world_questions
from discriminator import Discriminator, discriminator_loss
from grpo import advantages, policy_loss
from judge import is_url
from model import FULL, JUDGES, TINY, language_shell, load, pack, random_shell, ranks, shell, token_logps, trunk
from rollout import GREEDY, rollout
from run import frozen_parts
from teachers import pretraining_samples


# ------------------------------------------------------------------------------------------------ speed beside peers
def seconds_of(work: dict, repeats: int) -> tuple[dict, dict]:
    """Seconds of each job in each round, and its peak memory in the first; the jobs take turns, so that a change of the
    machine's speed meets all. On a CPU they are this thread's own seconds, without those in which other programs ran,
    and the memory is the most that the process held so far.
    """
    times, peak, cuda = {name: [] for name in work}, {}, torch.cuda.is_initialized()
    clock = time.perf_counter if cuda else time.thread_time
    for i in range(repeats):
        for name, job in work.items():
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            begin = clock()
            job()
            if cuda:
                torch.cuda.synchronize()
            times[name].append(clock() - begin)
            if i == 0:
                process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
                peak[name] = (torch.cuda.max_memory_allocated() if cuda else process) / 1e9
    return times, peak


def with_kinds(student, inputs: dict) -> dict:
    """The stock processor of some families also says which tokens are a picture's: added where the model asks."""
    if "mm_token_type_ids" in inspect.signature(student.hf.forward).parameters:
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == student.base.config.image_token_id).int()
    return inputs


def phases_of_step(sample, logps, student_logit, groups: list, micro: int, optimizers: dict, reference: list) -> dict:
    """Name -> job for the phases of a step without judge; logps(slice) and student_logit(slice) score some questions.

    The learning rate is 0: the work of a step, the same weights after it. `reference` keeps the phase's log-probs.
    """
    Q, N, T = len(groups), len(groups[0]), len(groups[0][0])
    cut, count = slices(Q, micro), Q * N
    reward = torch.randint(0, 3, (Q, N), generator=torch.Generator().manual_seed(0))
    advantage, is_student = advantages(reward.float()), (torch.arange(N) < N // 2).expand(Q, -1)

    def step(optimizer):
        optimizer.step()
        optimizer.zero_grad()

    def discriminator():
        for s in cut:
            logit = student_logit(s)
            of_student = is_student[s].flatten().to(logit.device)
            discriminator_loss(logit, of_student, count // 2, count // 2).backward()
        step(optimizers["D"])
        with torch.no_grad():  # the rewards come from the updated D
            for s in cut:
                student_logit(s)

    def score():
        with torch.no_grad():
            reference[:] = [logps(s) for s in cut]

    def update():
        for s, ref in zip(cut, reference, strict=True):
            logp = logps(s)
            a = advantage[s].flatten().to(logp.device)
            loss = policy_loss(logp, logp.detach(), ref, a, torch.ones_like(logp), responses=count, max_length=T)
            loss.backward()
        step(optimizers["student"])

    return dict(rollout=sample, discriminator=discriminator, reference=score, update=update)


def own_step(student, D, prompts: list, groups: list, *more) -> dict:
    """The phases as train.py runs them: prompts prefilled once, one packed row per question."""
    texts, G, T = [[student.text(r) for r in g] for g in groups], len(groups[0]) // 2, len(groups[0][0])

    def sample():
        for p in prompts:
            p.patches = None  # every step encodes its pictures anew, once
        rollout(student, prompts, [str(i) for i in range(len(prompts))], G, T)

    def logps(s):
        return student(pack(student.see(prompts[s]), groups[s], device=student.device))

    def student_logit(s):
        return D(D.pack(texts[s], device=student.device))

    return phases_of_step(sample, logps, student_logit, groups, *more)


def stock_step(student, D, prompts: list, groups: list, *more) -> dict:
    """The phases as a trainer on stock transformers runs them: one right-padded row per response."""
    texts, G, T = [[student.text(r) for r in g] for g in groups], len(groups[0]) // 2, len(groups[0][0])
    width, unseen = max(len(p.ids) for p in prompts), [replace(p, patches=None) for p in prompts]
    left = dict(  # generate takes the questions as one left-padded batch
        input_ids=torch.stack([F.pad(p.ids, (width - len(p.ids), 0)) for p in prompts]),
        attention_mask=torch.stack([(torch.arange(width) >= width - len(p.ids)).long() for p in prompts]),
        **{k: torch.cat([p.pixels[k] for p in prompts]) for k in prompts[0].pixels},
    )
    left = {k: x.to(student.device) for k, x in with_kinds(student, left).items()}
    how = dict(do_sample=True, top_k=0, top_p=1.0, temperature=1.0, suppress_tokens=student.banned_ids)
    how |= dict(num_return_sequences=G, min_new_tokens=T, max_new_tokens=T, eos_token_id=None, pad_token_id=0)

    def states(base, rows, inputs):
        """Last hidden states of the stock model on `rows` of one response each, flat."""
        inputs |= dict(input_ids=rows.ids, attention_mask=(rows.segment >= 0).long())
        inputs = {k: x.to(student.device) for k, x in inputs.items()}
        return base(**inputs, use_cache=False).last_hidden_state.flatten(0, 1)

    def logps(s):
        copies = [p for p in unseen[s] for _ in range(2 * G)]
        rows = pack(copies, [[r] for g in groups[s] for r in g])
        inputs = with_kinds(student, dict(input_ids=rows.ids, **rows.pixels))
        hidden, target = states(student.base, rows, inputs)[rows.source.flatten()], rows.target.to(student.device)
        return token_logps(hidden, student.hf.lm_head, target.flatten(), student.banned).view(rows.target.shape)

    def student_logit(s):
        rows = D.pack([[text] for g in texts[s] for text in g])
        return D.head(states(D.base, rows, {})[rows.last]).float().sum(-1)

    def sample():
        student.hf.generate(**left, **how)

    return phases_of_step(sample, logps, student_logit, groups, *more)


# ------------------------------------------------------------------------------------------------ the plan
# What the plan assumes of a GPU; every number is an estimate that --pilot replaces by a measured one.
TFLOPS, BANDWIDTH = 400e12, 2.0e12  # matrix products; bytes/s of its own memory
GATHER, HOST = 0.3e12, 0.02e12  # bytes/s from the other GPUs, and from or to the host's pageable memory
KERNELS, LAUNCH = 37, 15e-6  # kernels of a decoder layer at one decoded token; seconds until an eager one is launched
CONTEXT = 3e9  # bytes for the CUDA context, NCCL and fragmentation
TEACHER_TOKENS = 5000.0  # tokens a second of a served teacher
PROMPT_TEXT, MEAN_RESPONSE = 200, 0.6  # tokens of a question; a response's mean length as a share of the longest


def without_memory(name: str):
    """A model by its name or folder; the real classes, without memory (a tiny one has some)."""
    return load(name) if name in TINY else (random_shell if name in FULL else shell)(name)[0]


@functools.lru_cache
def sizes(name: str) -> dict[str, float]:
    """`count_of` a model by its name or folder, without memory."""
    return count_of(without_memory(name))


@functools.lru_cache
def trained(name: str, frozen: tuple, reads: str) -> tuple[int, int]:
    """How many parameters the loop trains: of the student, and of a D that reads `reads`."""
    student = without_memory(name).freeze(*frozen)
    players = (student, Discriminator(student, reads))
    student, D = (sum(p.numel() for p in x.parameters() if p.requires_grad) for x in players)
    return student, D


def training_state(cfg) -> dict[str, float]:
    """Bytes over all GPUs: fp32 masters of all parameters, Adam's moments and gradients of the trained ones only."""
    m, has_d = sizes(cfg.student), cfg.discriminator != "none"
    student, D = trained(cfg.student, tuple(frozen_parts(cfg)), cfg.d_input)
    out = dict(student=4 * m["all"], student_adam=8 * student, student_gradient=4 * student)
    D_all = m["all"] - m["head"] + m["hidden"]  # a head to one number in the language head's place
    return out | dict(D=4 * D_all * has_d, D_adam=8 * D * has_d, D_gradient=4 * D * has_d)


def checkpoint_bytes(cfg) -> float:
    """A checkpoint of the loop: masters and Adam's moments of student and D; a tied head is written twice."""
    m = sizes(cfg.student)
    twice = 4 * m["hidden"] * m["words"] * (m["head"] == 0)
    return twice + sum(x for name, x in training_state(cfg).items() if not name.endswith("gradient"))


@functools.lru_cache
def judge_parameters(name: str) -> int:
    """Parameters of a judge that is loaded here; 0 for the rule and for a served one."""
    if name == "rule" or is_url(name):
        return 0
    return sum(p.numel() for p in language_shell(name, torch.bfloat16, name in JUDGES)[0].parameters())


def count_of(vlm) -> dict[str, float]:
    """Parameters of a model of the real classes by part; kv: bytes that a token leaves in a bf16 cache."""
    text, base = vlm.hf.config.get_text_config(), vlm.base

    def count(module):
        return sum(p.numel() for p in module.parameters())

    out = dict(all=count(vlm.hf), head=0 if vlm.tied else count(vlm.hf.lm_head))
    out |= dict(layers=count(base.language_model.layers), layer=count(base.language_model.layers[0]))
    out |= dict(vision=count(base.get_submodule(vlm.family.vision)), depth=text.num_hidden_layers)
    dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    out |= dict(root=out["all"] - out["layers"] - out["vision"])
    out |= dict(kv=4 * text.num_hidden_layers * text.num_key_value_heads * dim)  # two of two bytes each
    return out | dict(hidden=text.hidden_size, wide=text.intermediate_size, words=text.vocab_size)


def shards(gpus: int) -> int:
    """The GPUs over which weights are cut: those of a node (8 where torchrun does not say)."""
    return min(gpus, int(os.environ.get("LOCAL_WORLD_SIZE", 8)))


def phases(cfg, gpus: int, offload: str) -> dict[str, float]:
    """GB (1e9) per GPU in each phase of a step, and of the host for all ranks of a node.

    Keys and values are counted in every phase of --offload none, since nothing frees them within a step. The host holds
    what is away from the GPUs, a checkpoint on its way to the disk, and the best student while rank 0 writes it.
    """
    m, judge, W, of = sizes(cfg.student), judge_parameters(cfg.judge), shards(gpus), training_state(cfg)
    prompt = (cfg.image_tokens or 256) + PROMPT_TEXT
    row = prompt + 2 * cfg.group_size * cfg.max_new_tokens
    rows = min(cfg.rollout_rows, cfg.group_size * -(-cfg.questions_per_step // gpus))
    taken_over = of["student_adam"] / 4  # the replica's bf16 copy of what is trained
    replica = taken_over + rows * (prompt + cfg.max_new_tokens) * m["kv"]
    transient = 14 * m["layer"] + 4 * m["root"]  # two gathered layers, gradients, reduction buffers; the root twice
    active = 2 * row * m["hidden"] * m["depth"]  # the checkpointed input of every layer
    active += row * (8 * m["wide"] + 40 * m["hidden"])  # one layer again, and its keys and values once a response
    active += 12 * 2 * cfg.group_size * (prompt + cfg.max_new_tokens) * m["hidden"]
    active += 12 * 1024 * m["words"]  # a chunk of logits: bf16, fp32, softmax, gradient
    d, reference = (of["D"] + of["D_adam"]) / W, 2 * m["all"] / W
    judging = 2 * judge / W + (4e9 + 0.06 * judge) * (judge > 0)
    stays = CONTEXT + of["student"] / W + 2 * m["all"] - taken_over
    updates = dict(
        discriminator=(of["D_gradient"] / W + transient - 4 * m["head"] + active) * (of["D"] > 0),
        student=of["student_gradient"] / W + transient + active,
    )
    if offload == "phase":
        out = dict(rollout=replica, discriminator=d + updates["discriminator"], judge=judging)
        out["student"] = of["student_adam"] / W + reference + updates["student"]
        host = of["student_adam"] + (d + reference) * W + 2 * judge
    else:
        stays, host = stays + of["student_adam"] / W + d + reference + replica + 2 * judge / W, 0.0
        out = dict(rollout=0.0, **updates) | dict(judge=judging - 2 * judge / W)
    host += checkpoint_bytes(cfg) + 4 * m["all"]
    return {name: (stays + x) / 1e9 for name, x in out.items()} | {"host": host / 1e9}


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
    tower = m["vision"] * ("vision" not in frozen_parts(cfg))
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


def everything_fits(cfg) -> bool:
    """Does --offload none fit on this machine's GPUs?"""
    memory = torch.cuda.get_device_properties(0).total_memory / 1e9
    return most_gb(cfg, int(os.environ.get("WORLD_SIZE", 1)), "none") < 0.93 * memory


def most_gb(cfg, gpus: int, offload: str) -> float:
    """GB per GPU in the largest phase of a step."""
    return max(gb for name, gb in phases(cfg, gpus, offload).items() if name != "host")


def fitting(cfg) -> str:
    """The --offload with which everything fits on --gpus of --gpu-memory, none before phase; "" where nothing does."""
    teaching = [teacher_phase(cfg, name)[0] for name in asked_here(cfg)]
    return next(
        (x for x in ("none", "phase") if max([most_gb(cfg, cfg.gpus, x), *teaching]) < 0.93 * cfg.gpu_memory), ""
    )


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

    While a checkpoint is written, the --keep ones before it are still there; beside them lie the best and the last
    student in fp32 (4 bytes a parameter each).
    """
    m, step = sizes(cfg.student), sum(step_seconds(cfg, gpus, offload).values())
    mean = MEAN_RESPONSE * cfg.max_new_tokens
    questions = 0.8 * len(read_jsonl(cfg.data)) if cfg.data else cfg.pool  # the training part
    samples, here = questions * cfg.teacher_samples, asked_here(cfg)
    visited, more = min(questions, 32 + cfg.d_steps * cfg.questions_per_step), pretraining_samples(cfg)
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
    print("--pilot measures instead.")
    verdict = "does not fit: take more or larger GPUs, a smaller student, or a served judge"
    verdict = f"fits with --offload {offload}" if offload else verdict
    print(f"{cfg.student} on {cfg.gpus} GPUs of {cfg.gpu_memory:.0f} GB: {verdict}")


# ------------------------------------------------------------------------------------------------ the pilot's page
def stock_greedy(replica, prompt, length: int) -> list[int]:
    """What stock `generate` answers to one prompt, without the sampling settings of the model's folder."""
    replica.hf.generation_config = GenerationConfig()  # generate takes from it whatever it is not given
    inputs = dict(input_ids=prompt.ids[None], attention_mask=torch.ones_like(prompt.ids)[None])
    inputs = {k: x.to(replica.device) for k, x in with_kinds(replica, inputs | (prompt.pixels or {})).items()}
    how = dict(max_new_tokens=length, do_sample=False, suppress_tokens=replica.banned_ids)
    how |= dict(eos_token_id=replica.ends, pad_token_id=0)
    return replica.hf.generate(**inputs, **how)[0, len(prompt.ids) :].tolist()


@torch.no_grad()
def parting(replica, prompt, mine: list[int], theirs: list[int]) -> str:
    """Where two greedy texts part, and how far apart the two largest logits are there: rounding can turn a tie round.

    `eps` is the step between two neighbouring numbers of the computed dtype at the largest logit.
    """
    pairs = itertools.zip_longest(mine, theirs)
    at, (here, there) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
    batch = pack(replica.see([prompt]), [[mine[:at] + [replica.end]]], device=replica.device)
    hidden = trunk(replica.base, replica.family, batch)[batch.source[:, at]]
    top = replica.logits(hidden)[0].topk(2)
    gap, eps = (top.values[0] - top.values[1]).item(), torch.finfo(hidden.dtype).eps * top.values[0].abs().item()
    kind = "a tie of rounding" if gap <= 2 * eps and {here, there} == set(top.indices.tolist()) else "no tie"
    return (
        f"token {at + 1} is {here} here and {there} in stock; the two largest logits there are those of "
        f"{top.indices.tolist()}, {gap:.2g} apart ({eps:.2g} is one step of the dtype): {kind}"
    )


def pilot(run, questions: list) -> None:
    """The page runs/NAME/pilot.md: what the first person with GPUs wants to know before a night's run. All ranks."""
    cfg, lines = run.cfg, []
    replica, student = run.whole(run.path / "sft"), run.sharded(run.path / "sft").eval()
    prompts, length = [replica.encode_question(q) for q in questions], min(32, cfg.max_new_tokens)
    ours = rollout(replica, prompts, [q.id for q in questions], 1, length, GREEDY)
    stock = [stock_greedy(replica, prompt, length) for prompt in prompts]
    same = sum(mine.ids == theirs for (mine,), theirs in zip(ours, stock, strict=True))
    lines.append(f"own rollout = stock generate, greedy: {same} of {len(prompts)} prompts, token for token")
    for prompt, (mine,), theirs in zip(prompts, ours, stock, strict=True):
        if mine.ids != theirs:
            lines.append(f"question {mine.question}: {parting(replica, prompt, mine.ids, theirs)}")
    seen, texts = replica.see(prompts), [[r.ids, replica.reply_ids("yes")] for (r,) in ours]
    with torch.no_grad():
        together = student(pack(seen, texts, device=run.device))
        alone = [student(pack([p], [[x]], device=run.device)) for p, two in zip(seen, texts, strict=True) for x in two]
    gap = max((t[: a.shape[1]] - a[0]).abs().max().item() for t, a in zip(together, alone, strict=True))
    lines.append(f"packed = separate log-probs: largest difference {gap:.1e} ({cfg.dtype})")
    lines.append(f"{len(replica.tensors())} tensors loaded, none missing, none unused; tied head: {replica.tied}")
    lines.append(f"chat: {replica.tokenizer.decode(prompts[0].ids)[:400]!r}")
    ends = replica.tokenizer.convert_ids_to_tokens(replica.ends)
    lines.append(f"ends a response: {replica.ends} {ends}; {len(replica.banned_ids)} ids are never sampled")
    for row in run.rows("samples.jsonl", "ril")[-1:]:
        lines.append(f"question {row['question']}: {row['text']!r}, reference {row['reference']!r}")
        for r in row["responses"]:
            lines.append(f"{r['source']}: {r['text']!r}, similarity {r['similarity']}, answer {r['answer']}")
    step = statistics.median(r["total"] for r in run.rows("timing.jsonl", "ril"))
    cuda = run.device != "cpu"
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    gb = max([most_gb(cfg, ranks()[1], cfg.offload), *(teacher_phase(cfg, name)[0] for name in asked_here(cfg))])
    planned = sum(step_seconds(cfg, ranks()[1], cfg.offload).values())
    gb -= CONTEXT / 1e9  # it is not among the tensors that torch counts
    lines.append(f"memory: {peak / 1e9:.1f} GB at most on rank 0, {gb:.1f} GB planned (tensors on a GPU)")
    lines.append(f"a step: {step:.2f} s (median of {cfg.steps}), {planned:.2f} s planned (for GPUs)")
    lines.append(f"a loop of 1,000 such steps: {step / 3.6:.1f} hours")
    page = "\n".join(["# pilot", "", *(f"- {x}" for x in lines)]) + "\n"
    run.write("pilot.md", page)
    print(page)


# ------------------------------------------------------------------------------------------------ the bench
def sampled_ids(student, *shape: int) -> torch.Tensor:
    """Random ids of `shape` from the last 60 of the vocabulary that may be sampled and are ordinary text."""
    unusual = {*student.banned_ids, *student.ends, *student.tokenizer.added_tokens_decoder}
    words = torch.tensor([i for i in range(len(student.tokenizer)) if i not in unusual][-60:])
    return words[torch.randint(len(words), shape, generator=torch.Generator().manual_seed(0))]


def forward_flops(of: dict, batch, head: float) -> float:
    """Of one packed forward pass: 2 x parameters x tokens (`head`: parameters behind the layers) and live attention."""
    live = batch.segment >= 0
    pairs = (batch.tree[:, 0] & live[..., None]).sum().item()  # padding attends to itself: not counted
    tokens = of["layers"] * live.sum().item() + head * batch.mask.sum().item()
    return 2 * tokens + 4 * of["depth"] * of["hidden"] * pairs


def rollout_limit(student, prompts: list, group: int, length: int, flops: float, bandwidth: float) -> float:
    """Seconds: prefill once a prompt by its flops, each token of all rows by what is slower of its flops and bytes."""
    of, rows, kinds = count_of(student), len(prompts) * group, torch.finfo(student.hf.dtype).bits // 8
    head, context = of["hidden"] * of["words"], max(len(p.ids) for p in prompts) + length / 2
    pictures = sum((p.ids == student.base.config.image_token_id).sum().item() for p in prompts)
    prefill = forward_flops(of, pack(prompts, [[]] * len(prompts)), 0)
    prefill += 2 * of["vision"] * 4 * pictures  # four patches make an image token
    work = rows * (2 * (of["layers"] + head) + 4 * of["depth"] * of["hidden"] * context)
    moved = kinds * (of["layers"] + head + rows * context * of["kv"] / 2)
    return prefill / flops + (length - 1) * max(work / flops, moved / bandwidth)


def main(argv: list | None = None) -> dict:
    """The command line; prints a table and returns (and writes) its numbers."""
    parser = Flags(__doc__)
    parser.add_argument("--student", default="tiny-qwen", help="a name or a folder")
    parser.add_argument("--questions", type=int, default=12)
    parser.add_argument("--cell", type=int, default=0, help="pixels; a picture has 3 x 3 cells [14, not tiny: 112]")
    parser.add_argument("--group-size", type=int, default=8, help="G: student responses; as many teacher responses")
    parser.add_argument("--response-tokens", type=int, default=14, help="tokens per response, the end token included")
    parser.add_argument("--micro-batch", type=int, default=12, help="questions per forward pass, on both sides")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu or cuda [cpu]")
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16"), help="of the weights here [fp32]")
    parser.add_argument("--random-weights", action="store_true", help="a published student at full size, no download")
    parser.add_argument("--out", default="", help="write the numbers to this file too")
    args = parser.parse_args(argv)
    if args.random_weights and args.student not in FULL:
        raise UserError(f"--random-weights is for published names: {', '.join(FULL)}")
    torch.set_num_threads(args.threads)
    Q, G, T, cuda = args.questions, args.group_size, args.response_tokens, args.device == "cuda"
    dtype, cell = getattr(torch, dict(fp32="float32", bf16="bfloat16")[args.dtype]), args.cell
    cell = cell or (14 if args.student in TINY else 112)
    student = load(args.student, device=args.device, dtype=dtype, random_weights=args.random_weights)
    student.limit_pictures(1280)
    student.ends = [-1]  # nobody stops early: both sides write T tokens for every response
    student.hf.generation_config = GenerationConfig()  # stock generate takes from it whatever it is not given
    student.freeze("vision")
    D = Discriminator(student)
    optimizers = {who: torch.optim.AdamW(x.parameters(), lr=0.0) for who, x in (("student", student), ("D", D))}
    for optimizer in optimizers.values():  # their first step makes their state: not part of a step
        for p in (p for group in optimizer.param_groups for p in group["params"] if p.requires_grad):
            p.grad = torch.zeros_like(p)
        optimizer.step()
        optimizer.zero_grad()
    prompts = [student.encode_question(q) for q in world_questions("train", Q, cell=cell)]
    twice = sampled_ids(student, Q, 4 * G, T).tolist()
    groups = [g[: 2 * G] for g in twice]
    logps = dict(own=[], stock=[], double=[])  # those of the reference phase
    jobs = {
        who: step(student, D, prompts, rows, args.micro_batch, optimizers, logps[who])
        for who, step, rows in (("own", own_step, groups), ("stock", stock_step, groups), ("double", own_step, twice))
    }

    asked = world_questions("test", 4 * Q, cell=cell)
    greedy = dict(do_sample=False, suppress_tokens=student.banned_ids, pad_token_id=0, eos_token_id=None)
    greedy |= dict(min_new_tokens=T, max_new_tokens=T)

    answers = {}

    def own_evaluation():
        encoded = [student.encode_question(q) for q in asked]
        answers["own"] = [r.ids for (r,) in rollout(student, encoded, [q.id for q in asked], 1, T, GREEDY)]

    def stock_evaluation():
        answers["stock"] = out = []
        for q in asked:
            p = student.encode_question(q)
            one = dict(input_ids=p.ids[None], attention_mask=torch.ones_like(p.ids)[None], **p.pixels)
            one = {k: x.to(args.device) for k, x in with_kinds(student, one).items()}
            out.append(student.hf.generate(**one, **greedy)[0, len(p.ids) :].tolist())

    work = {(who, name): job for who, phases in jobs.items() for name, job in phases.items()}
    work |= {("own", "evaluation"): own_evaluation, ("stock", "evaluation"): stock_evaluation}
    times, peak = seconds_of(work, args.repeats)
    for who, phases in jobs.items():
        times[who, "step"] = [sum(x) for x in zip(*(times[who, name] for name in phases), strict=True)]

    n = 8192 if cuda else 2048
    a, b = (torch.randn(n, n, device=args.device, dtype=dtype) for _ in range(2))
    big, there = (torch.zeros(1 << 28, device=args.device, dtype=torch.uint8) for _ in range(2))
    machine, _ = seconds_of(dict(matmul=lambda: a @ b, copy=lambda: there.copy_(big)), 6)
    machine = {name: statistics.median(x) for name, x in machine.items()}
    flops, bandwidth = 2 * n**3 / machine["matmul"], 2 * len(big) / machine["copy"]

    of, texts = count_of(student), [[student.text(r) for r in g] for g in groups]
    policy = forward_flops(of, pack(prompts, groups), of["hidden"] * of["words"]) / flops
    limit = dict(rollout=rollout_limit(student, prompts, G, T, flops, bandwidth), reference=policy, update=3 * policy)
    limit["discriminator"] = 4 * forward_flops(of, D.pack(texts), 0) / flops  # forward, backward, and once to score
    limit["step"] = sum(limit.values())
    limit["evaluation"] = rollout_limit(student, [student.encode_question(q) for q in asked], 1, T, flops, bandwidth)

    def ratio(slow: list, fast: list) -> dict:
        each = [x / y for x, y in zip(slow, fast, strict=True)]
        return dict(ratio=round(statistics.median(each), 2), ratio_range=[round(min(each), 2), round(max(each), 2)])

    card = torch.cuda.get_device_name() if cuda else platform.machine()
    result = {
        "machine": f"{card}, {args.threads} thread(s), torch {torch.__version__}, {args.dtype}",
        "measured": f"matrix product {flops / 1e9:.0f} GFLOP/s, copy {bandwidth / 1e9:.1f} GB/s, read and write",
        "setting": f"{args.student}, {of['all'] / 1e6:.1f} M parameters, {Q} questions, G {G} + {G}, {T} tokens a "
        f"response, prompts of {max(len(p.ids) for p in prompts)} tokens, medians of {args.repeats}",
        "command": " ".join(["python bench.py", *(sys.argv[1:] if argv is None else argv)]),
        "greedy_answers_equal": answers["own"] == answers["stock"],
        "largest_difference": (torch.cat(logps["own"]) - torch.cat(logps["stock"])).abs().max().item(),
        "peak_memory_of": "the tensors" if cuda else "the process until then (ours runs first)",
        "doubling_group_size": ratio(times["double", "step"], times["own", "step"]),
    }
    for name, seconds in limit.items():
        own, stock = (statistics.median(times[who, name]) for who in ("own", "stock"))
        tokens = T * (4 * Q if name == "evaluation" else Q * G if name == "rollout" else Q * 2 * G)
        result[name] = dict(seconds=round(own, 4), limit_seconds=round(seconds, 4), limit_share=round(seconds / own, 2))
        result[name] |= dict(tokens_per_second=round(tokens / own), stock_seconds=round(stock, 4))
        result[name] |= ratio(times["stock", name], times["own", name])
        result[name] |= {f"{who}_peak_gb": round(peak[who, name], 2) for who in ("own", "stock") if (who, name) in peak}
    for key, value in result.items():
        print(f"{key}: {value}")
    if args.out:
        Path(args.out).write_text(json.dumps(result, indent=1) + "\n")
    return result


if __name__ == "__main__":
    run_command(main)
