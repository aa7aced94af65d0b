"""Speed of a step's phases beside stock transformers and beside what this machine could do.

    python -m tools.bench                         # the tiny student, one thread, seconds
    python -m tools.bench --student tiny-qwen-20m --cell 80 --questions 8 --response-tokens 64 --micro-batch 1
    python -m tools.bench --student internvl3-1b --random-weights --device cuda --dtype bf16    # published, full size
    python -m tools.bench --student runs/NAME/student --out speed.json             # your own
    python -m tools.bench --student tiny-qwen-20m --lora 16                        # full training beside --lora
    python -m tools.bench --against trl --student tiny-qwen-3m --questions 2 --group-size 4 --response-tokens 48
                                                  # only this: beside a step of TRL's GRPO (tools/against.py)
    python -m tools.bench --loop-steps 300        # only this: does train.py's loop hold more and more memory? minutes

A step is run in two ways on the same weights; it has the phases of train.py but for the judge, one update each of D and
student. Ours: `rollout`, packed rows, pictures encoded once a step (in the rollout phase). The stock way: `generate` on
all questions at once, and the stock model on one right-padded row per response with its own copy of picture and
question. Both decode --response-tokens for every response, score response tokens only and share losses, optimizers and
attention (sdpa). The limit of a phase is its bytes at this machine's copy rate or its flops at the rate of a matrix
product, both measured here; the flops are those of 2 x parameters x tokens and of the attention that the tree mask lets
through, three times for an update. Evaluation answers 4 x --questions greedily: ours in one batch, stock one by one, as
public evaluators do. Absolute times mean little on a shared CPU; ratios of one run do.
"""

import argparse
import copy
import inspect
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

if __name__ == "__main__":  # read when torch is imported (train.py says why)
    os.environ.setdefault("PYTORCH_ALLOC_CONF", os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True"))

import torch
import torch.nn.functional as F
from transformers import GenerationConfig

from data import slices
from discriminator import Discriminator, discriminator_loss
from engine.ahead import Ahead
from engine.command import Flags, UserError, run_command
from engine.families import FULL
from engine.files import write
from engine.loading import load
from engine.lora import Adapter, make_adaptable
from engine.memory import count_of
from engine.players import adamw
from engine.run import peak_memory_mb
from grpo import Objective, advantages, policy_loss
from model import VLM, pack, token_logps
from rollout import GREEDY, rollout
from tiny.models import TINY
from tiny.world import world_questions
from tools.against import trl_steps, trl_version


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
                process = peak_memory_mb() * 2**20
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
        torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
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
            loss = policy_loss(logp, logp.detach(), ref, a, torch.ones_like(logp), None, Objective(count, T))
            loss.backward()
        step(optimizers["student"])

    return dict(rollout=sample, discriminator=discriminator, reference=score, update=update)


def own_step(student, D, prompts: list, groups: list, *more) -> dict:
    """The phases as train.py runs them: prompts prefilled once, one packed row per question."""
    texts, G, T = [[student.encoder.text(r) for r in g] for g in groups], len(groups[0]) // 2, len(groups[0][0])

    def sample():
        for p in prompts:
            p.patches = None  # every step encodes its pictures anew, once
        rollout(student, prompts, [str(i) for i in range(len(prompts))], G, T)

    def logps(s):
        return student(pack(student.encode_pictures(prompts[s]), groups[s], device=student.device))

    def student_logit(s):
        return D(D.pack(texts[s], device=student.device))

    return phases_of_step(sample, logps, student_logit, groups, *more)


def stock_step(student, D, prompts: list, groups: list, *more) -> dict:
    """The phases as a trainer on stock transformers runs them: one right-padded row per response."""
    texts, G, T = [[student.encoder.text(r) for r in g] for g in groups], len(groups[0]) // 2, len(groups[0][0])
    width, unseen = max(len(p.ids) for p in prompts), [replace(p, patches=None) for p in prompts]
    left = dict(  # generate takes the questions as one left-padded batch
        input_ids=torch.stack([F.pad(p.ids, (width - len(p.ids), 0)) for p in prompts]),
        attention_mask=torch.stack([(torch.arange(width) >= width - len(p.ids)).long() for p in prompts]),
        **{k: torch.cat([p.pixels[k] for p in prompts]) for k in prompts[0].pixels},
    )
    left = {k: x.to(student.device) for k, x in with_kinds(student, left).items()}
    how = dict(do_sample=True, top_k=0, top_p=1.0, temperature=1.0, suppress_tokens=student.encoder.banned_ids)
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
        packed = D.pack(texts[s])
        template = D.encoder.prompt(packed.ids[0, : packed.prompt].tolist(), [])
        responses = [[x[live].tolist()] for x, live in zip(packed.target, packed.mask, strict=True)]
        rows = pack([template] * len(responses), responses)
        return D.head(states(D.base, rows, {})[rows.last]).float().sum(-1)

    def sample():
        student.hf.generate(**left, **how)

    return phases_of_step(sample, logps, student_logit, groups, *more)


def pictures_ahead(encode, train, repeats: int) -> dict:
    """Wall seconds of encoding a step's questions and training on it: one after the other, and beside it in a thread.

    train.py does the second. It needs a core that training leaves free.
    """
    ahead, times = Ahead(lambda step: encode(), repeats), dict(encode=[], after_each_other=[], in_a_thread=[])
    for i in range(repeats):
        begin = time.perf_counter()
        encode()
        encoded = time.perf_counter()
        train()
        trained = time.perf_counter()
        ahead.begin(i)
        train()
        ahead(i)
        times["in_a_thread"].append(time.perf_counter() - trained)
        times["encode"].append(encoded - begin)
        times["after_each_other"].append(trained - begin)
    gain = ratio(times["after_each_other"], times["in_a_thread"])
    return {f"{name}_seconds": round(statistics.median(x), 4) for name, x in times.items()} | gain


# ------------------------------------------------------------------------------------------------ memory
def memory_of_loop(steps: int) -> dict:
    """Resident MiB of train.py on the tiny world, after 50 steps of its loop and at its end (medians of ten steps)."""
    flags = "--pool 48 --valid-questions 24 --test-questions 8 --questions-per-step 4 --group-size 4 --d-steps 8"
    flags = f"--steps {steps} {flags} --eval-every 50 --eval-draws 1 --checkpoint-every 20".split()
    with tempfile.TemporaryDirectory() as folder:
        argv = [sys.executable, str(Path(__file__).resolve().parent.parent / "train.py"), "--name", "loop", *flags]
        subprocess.run(argv, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        lines = (Path(folder) / "runs/loop/timing.jsonl").read_text(encoding="utf-8").splitlines()
    mb = [json.loads(line)["memory_mb"] for line in lines]
    early, late = statistics.median(mb[50:60]), statistics.median(mb[-10:])
    return dict(
        loop=shlex.join(["train.py", *flags]), mb_after_50_steps=early, mb_at_the_end=late, growth_mb=late - early
    )


# ------------------------------------------------------------------------------------------------ the bench
def sampled_ids(student, *shape: int) -> torch.Tensor:
    """Random ids of `shape` from the last 60 of the vocabulary that may be sampled and are ordinary text."""
    unusual = {*student.encoder.banned_ids, *student.encoder.ends, *student.encoder.tokenizer.added_tokens_decoder}
    words = torch.tensor([i for i in range(len(student.encoder.tokenizer)) if i not in unusual][-60:])
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


def settings(argv: list) -> argparse.Namespace:
    """The command line."""
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
    parser.add_argument("--lora", type=int, default=0, help="compare training with adapters of this rank, nothing else")
    parser.add_argument("--against", default="", choices=("trl",), help="a step of TRL's GRPO beside ours, only")
    parser.add_argument("--random-weights", action="store_true", help="a published student at full size, no download")
    parser.add_argument("--loop-steps", type=int, default=0, help="at least 60: memory of so many steps of the loop")
    parser.add_argument("--out", default="", help="write the numbers to this file too")
    args = parser.parse_args(argv)
    if args.random_weights and args.student not in FULL:
        raise UserError(f"--random-weights is for published names: {', '.join(FULL)}")
    if args.loop_steps and args.loop_steps < 60:
        raise UserError(f"--loop-steps {args.loop_steps}: at least 60, since memory settles in the first 50")
    if args.against and args.device != "cpu":
        raise UserError(f"--against {args.against} compares on one thread of a CPU: leave --device out")
    args.cell = args.cell or (14 if args.student in TINY else 112)
    args.torch_dtype = getattr(torch, dict(fp32="float32", bf16="bfloat16")[args.dtype])
    return args


def players(args, rank: int = 0) -> tuple:
    """Student, D and their optimisers, whose state is already made: it is not part of a step. `rank`: of adapters."""
    student = load(args.student, device=args.device, dtype=args.torch_dtype, random_weights=args.random_weights)
    student.encoder.limit_pictures(1280)
    student.encoder.ends = [-1]  # nobody stops early: both sides write T tokens for every response
    student.hf.generation_config = GenerationConfig()  # stock generate takes from it whatever it is not given
    adapters = [None, None]
    if rank:
        make_adaptable(student.hf, student.family.projector_paths, args.student)
        adapters = [Adapter(student.base.switch.layers, rank, args.device) for _ in adapters]
        student = VLM(student.hf, student.encoder, adapters[0])
    student.freeze("vision")
    D = Discriminator(student, adapter=adapters[1])
    optimizers = {who: adamw(x, 0.0) for who, x in (("student", student), ("D", D))}
    for optimizer in optimizers.values():
        for p in optimizer.param_groups[0]["params"]:
            p.grad = torch.zeros_like(p)
        optimizer.step()
        optimizer.zero_grad()
    return student, D, optimizers


def evaluations(student, asked: list, T: int, answers: dict) -> dict:
    """The two ways to answer questions greedily; `answers` keeps the tokens."""
    greedy = dict(do_sample=False, suppress_tokens=student.encoder.banned_ids, pad_token_id=0, eos_token_id=None)
    greedy |= dict(min_new_tokens=T, max_new_tokens=T)

    def own():
        encoded = [student.encoder.encode_question(q) for q in asked]
        answers["own"] = [r.ids for (r,) in rollout(student, encoded, [q.id for q in asked], 1, T, GREEDY)]

    def stock():
        answers["stock"] = out = []
        for q in asked:
            p = student.encoder.encode_question(q)
            one = dict(input_ids=p.ids[None], attention_mask=torch.ones_like(p.ids)[None], **p.pixels)
            one = {k: x.to(student.device) for k, x in with_kinds(student, one).items()}
            out.append(student.hf.generate(**one, **greedy)[0, len(p.ids) :].tolist())

    return {("own", "evaluation"): own, ("stock", "evaluation"): stock}


def ceilings(args) -> tuple[float, float]:
    """What this machine does at most, measured: FLOP/s of a matrix product, bytes/s of a copy (read and written)."""
    n = 8192 if args.device == "cuda" else 2048
    a, b = (torch.randn(n, n, device=args.device, dtype=args.torch_dtype) for _ in range(2))
    big, there = (torch.zeros(1 << 28, device=args.device, dtype=torch.uint8) for _ in range(2))
    times, _ = seconds_of(dict(matmul=lambda: a @ b, copy=lambda: there.copy_(big)), 6)
    return 2 * n**3 / statistics.median(times["matmul"]), 2 * len(big) / statistics.median(times["copy"])


def limits(student, D, prompts: list, asked: list, groups: list, flops: float, bandwidth: float) -> dict[str, float]:
    """The seconds that each phase needs at least, by the machine's ceilings."""
    of, texts = count_of(student), [[student.encoder.text(r) for r in g] for g in groups]
    G, T = len(groups[0]) // 2, len(groups[0][0])
    policy = forward_flops(of, pack(prompts, groups), of["hidden"] * of["words"]) / flops
    out = dict(rollout=rollout_limit(student, prompts, G, T, flops, bandwidth), reference=policy, update=3 * policy)
    out["discriminator"] = 4 * forward_flops(of, D.pack(texts), 0) / flops  # forward, backward, and once to score
    out["step"] = sum(out.values())
    encoded = [student.encoder.encode_question(q) for q in asked]
    return out | dict(evaluation=rollout_limit(student, encoded, 1, T, flops, bandwidth))


def ratio(slow: list, fast: list) -> dict:
    """Median and range of the ratios, repeat by repeat."""
    each = [x / y for x, y in zip(slow, fast, strict=True)]
    return dict(ratio=round(statistics.median(each), 2), ratio_range=[round(min(each), 2), round(max(each), 2)])


def compared(times: dict, peak: dict, limit: dict, tokens: dict) -> dict[str, dict]:
    """Phase -> its seconds, limit, tokens per second and memory, ours beside stock's; `tokens`: written by each."""
    out = {}
    for name, seconds in limit.items():
        own, stock = (statistics.median(times[who, name]) for who in ("own", "stock"))
        out[name] = dict(seconds=round(own, 4), limit_seconds=round(seconds, 4), limit_share=round(seconds / own, 2))
        out[name] |= dict(tokens_per_second=round(tokens[name] / own), stock_seconds=round(stock, 4))
        out[name] |= ratio(times["stock", name], times["own", name])
        out[name] |= {f"{who}_peak_gb": round(peak[who, name], 2) for who in ("own", "stock") if (who, name) in peak}
    return out


# ------------------------------------------------------------------------------------------------ full and --lora
def training_jobs(args, rank: int) -> tuple[dict, list]:
    """(the jobs of a training step with adapters of this rank, 0: full; the models that are in memory for it).

    Full training has two more copies in memory, reference and replica.
    """
    student, D, optimizers = players(args, rank)
    prompts = [student.encoder.encode_question(q) for q in world_questions("train", args.questions, cell=args.cell)]
    groups = sampled_ids(student, args.questions, 2 * args.group_size, args.response_tokens).tolist()
    more = prompts, groups, args.micro_batch, optimizers, []
    jobs, models = own_step(student, D, *more), [student, D]
    if rank:
        jobs["reference"] = own_step(VLM(student.hf, student.encoder).eval(), D, *more)["reference"]
    else:
        models += [copy.deepcopy(student).requires_grad_(False) for _ in range(2)]
    student.encode_pictures(prompts)
    return {name: jobs[name] for name in ("reference", "discriminator", "update")}, models


def peak_of_training(args, rank: int) -> float:
    """The most memory in GB that a process of its own needs for a training step."""
    torch.set_num_threads(args.threads)
    jobs, _models = training_jobs(args, rank)
    return max(seconds_of(jobs, 1)[1].values())


def full_and_lora(args) -> dict:
    """A training step full and with adapters: seconds, taking turns, and peak memory, each in a process of its own."""
    out = dict(full={}, lora={})
    kinds = dict(full=0, lora=args.lora)
    for who, rank in kinds.items():
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            out[who]["peak_gb"] = round(pool.submit(peak_of_training, args, rank).result(), 3)
    torch.set_num_threads(args.threads)
    made = {who: training_jobs(args, rank) for who, rank in kinds.items()}
    times, _ = seconds_of({(w, n): job for w, (jobs, _) in made.items() for n, job in jobs.items()}, args.repeats)
    for who, (jobs, models) in made.items():
        out[who] |= dict(trained=sum(p.numel() for x in models for p in x.parameters() if p.requires_grad))
        out[who] |= {name: round(statistics.median(times[who, name]), 4) for name in jobs}
        times[who, "step"] = [sum(x) for x in zip(*(times[who, name] for name in jobs), strict=True)]
        out[who] |= dict(step=round(statistics.median(times[who, "step"]), 4))
    memory = round(out["lora"]["peak_gb"] / out["full"]["peak_gb"], 2)
    return out | dict(lora_over_full=ratio(times["lora", "step"], times["full", "step"]) | dict(peak_gb=memory))


# ------------------------------------------------------------------------------------------------ beside a trainer
def beside_trl(args) -> dict:
    """Seconds of a step of TRL's GRPO and of ours, taking turns: without D on as many rows, and whole."""
    version = trl_version()
    torch.set_num_threads(args.threads)
    Q, G, T = args.questions, args.group_size, args.response_tokens
    student, D, optimizers = players(args)
    questions = world_questions("train", Q, cell=args.cell)
    prompts = [student.encoder.encode_question(q) for q in questions]
    groups = sampled_ids(student, Q, 2 * G, T).tolist()
    whole, same_rows = (
        own_step(student, D, prompts, rows, args.micro_batch, optimizers, [])
        for rows in (groups, [g[:G] for g in groups])
    )
    encode = dict(questions=lambda: [student.encoder.encode_question(q) for q in questions])  # TRL's step does it too
    phases = dict(
        without_d=encode | dict(rollout=whole["rollout"], reference=same_rows["reference"], update=same_rows["update"]),
        with_d=encode | whole,
    )
    work = {(who, name): job for who, jobs in phases.items() for name, job in jobs.items()}
    times = {key: [] for key in work}

    def ours():
        for key, (seconds,) in seconds_of(work, 1)[0].items():
            times[key].append(seconds)

    of_trl = trl_steps(student, questions, G, T, 1 + args.repeats, Objective.beta, ours)[1:]  # the first warms up
    size, length = count_of(student)["all"] / 1e6, max(len(p.ids) for p in prompts)
    of = f"{args.student}, {size:.1f} M parameters, {Q} questions, G {G}, {T} tokens a response, prompts of {length}"
    machine = f"{platform.machine()}, {args.threads} thread(s), torch {torch.__version__}, TRL {version}"
    out = dict(machine=machine, setting=f"{of}, beta {Objective.beta}, medians of {args.repeats} steps")
    out["trl"] = dict(seconds=round(statistics.median(of_trl), 3))
    for who, jobs in phases.items():
        steps = [sum(x) for x in zip(*(times[who, name][1:] for name in jobs), strict=True)]
        out[who] = dict(seconds=round(statistics.median(steps), 3)) | ratio(of_trl, steps)
        out[who] |= {name: round(statistics.median(times[who, name][1:]), 4) for name in jobs}
    return out


def main(argv: list | None = None) -> dict:
    """The command line; prints a table and returns (and writes) its numbers."""
    argv = sys.argv[1:] if argv is None else argv
    args = settings(argv)
    if args.loop_steps:
        return told(args, memory_of_loop(args.loop_steps))
    if args.against:
        return told(args, {"command": " ".join(["python -m tools.bench", *argv])} | beside_trl(args))
    if args.lora:
        return told(args, {"command": " ".join(["python -m tools.bench", *argv])} | full_and_lora(args))
    return told(args, speed(args, argv))


def told(args, result: dict) -> dict:
    """Print and write a result; -> it."""
    for key, value in result.items():
        print(f"{key}: {value}")
    if args.out:
        write(Path(args.out), json.dumps(result, indent=1) + "\n")
    return result


def speed(args, argv: list) -> dict:
    """The phases of both ways, beside each other and beside this machine's limits."""
    torch.set_num_threads(args.threads)
    if cuda := args.device == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)  # as in training (engine/sharding.py says why)
    Q, G, T = args.questions, args.group_size, args.response_tokens
    student, D, optimizers = players(args)
    prompts = [student.encoder.encode_question(q) for q in world_questions("train", Q, cell=args.cell)]
    twice = sampled_ids(student, Q, 4 * G, T).tolist()
    groups, asked = [g[: 2 * G] for g in twice], world_questions("test", 4 * Q, cell=args.cell)
    logps, answers = dict(own=[], stock=[], double=[]), {}  # those of the reference phase
    jobs = {
        who: step(student, D, prompts, rows, args.micro_batch, optimizers, logps[who])
        for who, step, rows in (("own", own_step, groups), ("stock", stock_step, groups), ("double", own_step, twice))
    }

    configs = {
        id(x.config): x.config for base in (student.base, D.base) for x in base.modules() if hasattr(x, "config")
    }
    configs = list(configs.values())
    own = [x._attn_implementation for x in configs]

    def as_stock(job):
        """The job with stock attention, as a stock model has it."""
        for config in configs:
            config._attn_implementation = "sdpa"
        job()
        for config, name in zip(configs, own, strict=True):
            config._attn_implementation = name

    work = {(who, name): job for who, phases in jobs.items() for name, job in phases.items()}
    work |= evaluations(student, asked, T, answers)
    work = {(who, name): partial(as_stock, job) if who == "stock" else job for (who, name), job in work.items()}
    times, peak = seconds_of(work, args.repeats)
    for who, phases in jobs.items():
        times[who, "step"] = [sum(x) for x in zip(*(times[who, name] for name in phases), strict=True)]

    encoder, asked_again = copy.deepcopy(student.encoder), world_questions("train", Q, cell=args.cell)

    def encode():
        for q in asked_again:
            encoder.encode_question(q)

    flops, bandwidth = ceilings(args)
    limit = limits(student, D, prompts, asked, groups, flops, bandwidth)
    tokens = {name: T * Q * 2 * G for name in limit} | dict(evaluation=T * 4 * Q, rollout=T * Q * G)
    card = torch.cuda.get_device_name() if cuda else platform.machine()
    return {
        "machine": f"{card}, {args.threads} thread(s), torch {torch.__version__}, {args.dtype}",
        "measured": f"matrix product {flops / 1e9:.0f} GFLOP/s, copy {bandwidth / 1e9:.1f} GB/s, read and write",
        "setting": f"{args.student}, {count_of(student)['all'] / 1e6:.1f} M parameters, {Q} questions, G {G} + {G}, "
        f"{T} tokens a response, prompts of {max(len(p.ids) for p in prompts)} tokens, medians of {args.repeats}",
        "command": " ".join(["python -m tools.bench", *argv]),
        "greedy_answers_equal": answers["own"] == answers["stock"],
        "largest_difference": (torch.cat(logps["own"]) - torch.cat(logps["stock"])).abs().max().item(),
        "peak_memory_of": "the tensors" if cuda else "the process until then (ours runs first)",
        "pictures_ahead": pictures_ahead(encode, jobs["own"]["update"], args.repeats),
        "doubling_group_size": ratio(times["double", "step"], times["own", "step"]),
    } | compared(times, peak, limit, tokens)


if __name__ == "__main__":
    run_command(main)
