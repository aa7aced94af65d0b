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
import json
import os
import platform
import resource
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from data import Flags, UserError, read_jsonl, run_command, slices, world_questions
from discriminator import Discriminator, discriminator_loss
from grpo import advantages, policy_loss
from judge import is_url
from model import FULL, JUDGES, TINY, language_shell, load, pack, random_shell, ranks, shell, token_logps
from rollout import GREEDY, rollout


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
TFLOPS, BANDWIDTH, GATHER = 400e12, 2.0e12, 0.3e12  # what the plan assumes of a GPU; GATHER: bytes/s from the others
TEACHER_TOKENS = 5000.0  # tokens a second of a served teacher
PROMPT_TEXT, MEAN_RESPONSE = 200, 0.6  # tokens of a question; a response's mean length as a share of the longest


@functools.lru_cache
def sizes(name: str) -> dict[str, float]:
    """`count_of` a model by its name or folder, without memory."""
    return count_of(load(name) if name in TINY else (random_shell if name in FULL else shell)(name)[0])


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

    12 bytes a parameter for master and optimiser, 4 for the gradient; keys and values are counted in every phase, since
    nothing frees them within a step; 3 GB for context, NCCL and fragmentation.
    """
    m, judge, W = sizes(cfg.student), judge_parameters(cfg.judge), shards(gpus)
    D = (m["all"] - m["head"]) * (cfg.discriminator != "none")
    prompt = (cfg.image_tokens or 256) + PROMPT_TEXT
    row = prompt + 2 * cfg.group_size * cfg.max_new_tokens
    rows = min(cfg.rollout_rows, cfg.group_size * -(-cfg.questions_per_step // gpus))
    replica = 2 * m["all"] + rows * (prompt + cfg.max_new_tokens) * m["kv"]
    transient = 14 * m["layer"] + 4 * m["root"]  # two gathered layers, gradients, reduction buffers; the root twice
    active = 2 * row * m["hidden"] * m["depth"]  # the checkpointed input of every layer
    active += row * (8 * m["wide"] + 40 * m["hidden"])  # one layer again, and its keys and values once a response
    active += 12 * 2 * cfg.group_size * (prompt + cfg.max_new_tokens) * m["hidden"]
    active += 12 * 1024 * m["words"]  # a chunk of logits: bf16, fp32, softmax, gradient
    student, d, reference = 12 * m["all"] / W, 12 * D / W, 2 * m["all"] / W
    judging = 2 * judge / W + (4e9 + 0.06 * judge) * (judge > 0)
    updates = dict(discriminator=4 * D / W + transient + active, student=4 * m["all"] / W + transient + active)
    if offload == "phase":
        stays = 3e9 + 4 * m["all"] / W  # the student's master
        out = dict(rollout=replica, discriminator=d + updates["discriminator"], judge=judging)
        out["student"] = student + reference + updates["student"] - 4 * m["all"] / W
        host = (student + d + reference) * W + 2 * judge
    else:
        stays, host = 3e9 + student + d + reference + replica + 2 * judge / W, 0.0
        out = dict(rollout=0.0, **updates) | dict(judge=judging - 2 * judge / W)
    host += (student + d) * W  # a checkpoint on its way to the disk
    return {name: (stays + x) / 1e9 for name, x in out.items()} | {"host": host / 1e9}


def answering(cfg, name: str, rows: float, gathered: bool = True) -> float:
    """Seconds for one GPU to sample `rows` responses from a model; not `gathered`: layers come from other GPUs."""
    m, mean, prompt = sizes(name), MEAN_RESPONSE * cfg.max_new_tokens, (cfg.image_tokens or 256) + PROMPT_TEXT
    side_by_side = min(cfg.rollout_rows, rows)
    weights = 2 * (m["all"] - m["vision"]) / (BANDWIDTH if gathered else GATHER)
    token = weights + 0.65 * side_by_side * (prompt + mean) * m["kv"] / BANDWIDTH
    return max(1.0, rows / side_by_side) * cfg.max_new_tokens * token + rows * 2 * m["all"] * prompt / 8 / TFLOPS


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
    gb = phases(cfg, int(os.environ.get("WORLD_SIZE", 1)), "none")
    return max(x for name, x in gb.items() if name != "host") < 0.93 * memory


def hours_and_disk(cfg, gpus: int) -> dict[str, tuple[float, float]]:
    """Stage -> (hours, GB on disk) at the speeds above. A trained pass counts four forwards: it is recomputed."""
    m, G, mine = sizes(cfg.student), cfg.group_size, -(-cfg.questions_per_step // gpus)
    mean, prompt = MEAN_RESPONSE * cfg.max_new_tokens, (cfg.image_tokens or 256) + PROMPT_TEXT
    row, texts = prompt + 2 * G * mean, (100 + 2 * G * (mean + 10)) * (cfg.discriminator != "none")
    judge = 2 * judge_parameters(cfg.judge) * (400 + G * (mean + 30))
    body = 2 * m["layers"] * (prompt + (4 * cfg.mu + 1) * (row + texts)) + 2 * m["vision"] * 4 * prompt
    flops = body + 2 * m["hidden"] * m["words"] * (4 * cfg.mu + 1) * 2 * G * mean + judge
    step = mine * flops / TFLOPS + answering(cfg, cfg.student, G * mine)
    questions = 0.8 * len(read_jsonl(cfg.data)) if cfg.data else cfg.pool  # the training part
    samples, here = questions * cfg.teacher_samples, asked_here(cfg)
    tokens = samples * mean * len(cfg.teachers.split(","))
    teaching = (len(cfg.teachers.split(",")) - len(here)) * samples * mean / TEACHER_TOKENS
    teaching += sum(answering(cfg, name, samples / gpus, teacher_phase(cfg, name)[1]) for name in here)
    once = (1 + cfg.eval_draws) / gpus  # responses a question of a validation
    validations = 1 + cfg.steps / (cfg.eval_every or cfg.steps)
    validating = validations * answering(cfg, cfg.student, cfg.valid_questions * once)
    D = m["all"] - m["head"]
    return {
        "teachers": (teaching / 3600, tokens * 5 / 1e9),
        "discriminator": (cfg.d_steps * step / 3600, 4 * D / 1e9),
        "ril": ((cfg.steps * step + validating) / 3600, (12 * (m["all"] + D) * cfg.keep + 8 * m["all"]) / 1e9),
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
    verdict = "does not fit: take more or larger GPUs, a smaller student, or a served judge"
    teaching = [teacher_phase(cfg, name)[0] for name in asked_here(cfg)]
    for name, gb in zip(asked_here(cfg), teaching, strict=True):
        print(f"GB per GPU, teacher {name}: {gb:.0f}  {'fits' if gb < 0.93 * cfg.gpu_memory else 'too much: serve it'}")
    for offload in ("phase", "none"):
        gb = phases(cfg, cfg.gpus, offload)
        host, worst = gb.pop("host"), max(gb.values())
        fits = max([worst, *teaching]) < 0.93 * cfg.gpu_memory
        verdict = f"fits with --offload {offload}" if fits else verdict
        of = "  ".join(f"{name} {x:.0f}" for name, x in gb.items())
        print(f"GB per GPU, --offload {offload}: {of}  (host {host:.0f} a node)  {'fits' if fits else 'too much'}")
    for stage, (hours, disk) in hours_and_disk(cfg, cfg.gpus).items():
        print(f"{stage}: {hours:.1f} hours, {disk:.1f} GB on disk")
    print(
        f"assumed: {TFLOPS / 1e12:.0f} TFLOP/s and {BANDWIDTH / 1e12:.1f} TB/s a GPU (40 and 60 % of an H100's peaks), "
        f"{GATHER / 1e12:.1f} TB/s between them,"
    )
    served = f"served teachers at {TEACHER_TOKENS:.0f} tokens/s"
    print(f"{served}, {cfg.teacher_samples} responses a question and teacher (the paper: 16).")
    print("--pilot measures instead.")
    print(f"{cfg.student} on {cfg.gpus} GPUs of {cfg.gpu_memory:.0f} GB: {verdict}")


# ------------------------------------------------------------------------------------------------ the pilot's page
def pilot(run, questions: list) -> None:
    """The page runs/NAME/pilot.md: what the first person with GPUs wants to know before a night's run. All ranks."""
    cfg, lines = run.cfg, []
    replica, student = run.whole(run.path / "sft"), run.sharded(run.path / "sft").eval()
    prompts, length, same = [replica.encode_question(q) for q in questions], min(32, cfg.max_new_tokens), 0
    ours = rollout(replica, prompts, [q.id for q in questions], 1, length, GREEDY)
    for prompt, (mine,) in zip(prompts, ours, strict=True):
        stock = dict(input_ids=prompt.ids[None], attention_mask=torch.ones_like(prompt.ids)[None])
        stock = {k: x.to(run.device) for k, x in with_kinds(replica, stock | (prompt.pixels or {})).items()}
        how = dict(max_new_tokens=length, do_sample=False, suppress_tokens=replica.banned_ids, repetition_penalty=1.0)
        same += replica.hf.generate(**stock, **how)[0, len(prompt.ids) :].tolist() == mine.ids
    lines.append(f"own rollout = stock generate, greedy: {same} of {len(prompts)} prompts, token for token")
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
    gb = max(x for name, x in phases(cfg, ranks()[1], cfg.offload).items() if name != "host")
    planned = hours_and_disk(cfg, ranks()[1])["ril"][0] * 3600 / cfg.steps
    lines.append(f"memory: {peak / 1e9:.1f} GB at most on rank 0, {gb:.1f} GB planned (for a GPU)")
    lines.append(f"a step: {step:.2f} s (median of {cfg.steps}), {planned:.2f} s planned (for GPUs)")
    lines.append(f"a loop of 1,000 such steps: {step / 3.6:.1f} hours")
    page = "\n".join(["# pilot", "", *(f"- {x}" for x in lines)]) + "\n"
    run.write("pilot.md", page)
    print(page)


# ------------------------------------------------------------------------------------------------ the bench
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
    student.freeze("vision")
    D = Discriminator(student)
    optimizers = {who: torch.optim.AdamW(x.parameters(), lr=0.0) for who, x in (("student", student), ("D", D))}
    for optimizer in optimizers.values():  # their first step makes their state: not part of a step
        for p in (p for group in optimizer.param_groups for p in group["params"] if p.requires_grad):
            p.grad = torch.zeros_like(p)
        optimizer.step()
        optimizer.zero_grad()
    prompts = [student.encode_question(q) for q in world_questions("train", Q, cell=cell)]
    word = len(student.tokenizer) - 60
    twice = torch.randint(word, word + 60, (Q, 4 * G, T), generator=torch.Generator().manual_seed(0)).tolist()
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
