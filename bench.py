"""Speed beside the peers: rollout and evaluation against stock `generate`, update against separate rows, whole step.

    python bench.py                         # the tiny student, one thread, ratios from one run (medians of --repeats)
    python bench.py --group-size 16         # more responses per question
    python bench.py --out results/bench.json
    python bench.py --student internvl3-1b --random-weights --device cuda    # a published student at full size
    python train.py --student qwen2.5-vl-7b --plan --gpus 8 --gpu-memory 80  # `print_plan` below
    python train.py --student tiny-qwen --pilot                              # `pilot` below

The peers do the same work on the same weights: stock `generate(num_return_sequences=G)` with sdpa attention samples the
same number of tokens (every row decodes --response-tokens), and stock forward and backward over 2G right-padded rows a
question stands for an update without packing. Evaluation encodes and greedily answers 4 x --questions questions, ours
in one batch, stock `generate` one by one, as public evaluators do. Absolute times mean little on a shared CPU; ratios
of one run do.
"""

import functools
import inspect
import json
import os
import platform
import resource
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from data import Flags, UserError, run_command, world_questions
from discriminator import Discriminator, discriminator_loss
from grpo import advantages, policy_loss
from judge import is_url
from model import FULL, JUDGES, TINY, language_shell, load, pack, random_shell, ranks, shell
from rollout import GREEDY, rollout


# ------------------------------------------------------------------------------------------------ speed beside peers
def median_seconds(work: dict, repeats: int) -> dict[str, float]:
    """Median seconds of each job; the jobs take turns, so that a change of the machine's speed meets all of them."""
    times = {name: [] for name in work}
    for i in range(repeats + 1):
        for name, job in work.items():
            begin = time.perf_counter()
            job()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if i:  # the first round warms up
                times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(t) for name, t in times.items()}


def with_kinds(student, inputs: dict) -> dict:
    """The stock processor of some families also says which tokens are a picture's: added where the model asks."""
    if "mm_token_type_ids" in inspect.signature(student.hf.forward).parameters:
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == student.base.config.image_token_id).int()
    return inputs


def separate_batch(student, prompts: list, groups: list[list[list[int]]]) -> dict:
    """What a trainer without packing feeds: one right-padded row per response, its own copy of picture and question."""
    rows = [(p, r) for p, rs in zip(prompts, groups, strict=True) for r in rs]
    width = max(len(p.ids) + len(r) for p, r in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    attend, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for i, (p, r) in enumerate(rows):
        ids[i, : len(p.ids) + len(r)] = torch.cat([p.ids, torch.tensor(r)])
        attend[i, : len(p.ids) + len(r)] = 1
        labels[i, len(p.ids) : len(p.ids) + len(r)] = torch.tensor(r)
    pixels = {k: torch.cat([p.pixels[k] for p, _ in rows]) for k in prompts[0].pixels}
    return with_kinds(student, dict(input_ids=ids, attention_mask=attend, labels=labels, **pixels))


# ------------------------------------------------------------------------------------------------ the plan
TFLOPS, BANDWIDTH, GATHER = (
    400e12,
    2.0e12,
    0.3e12,
)  # what the plan assumes of a GPU; bytes a second gathered from others
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


def phases(cfg, gpus: int, offload: str) -> dict[str, float]:
    """GB (1e9) per GPU in each phase of a step, and of the host for all ranks together.

    12 bytes a parameter for master and optimiser, 4 for the gradient; keys and values are counted in every phase, since
    nothing frees them within a step; 3 GB for context, NCCL and fragmentation.
    """
    m, judge, W = sizes(cfg.student), judge_parameters(cfg.judge), gpus
    D = (m["all"] - m["head"]) * (cfg.discriminator != "none")
    prompt = (cfg.image_tokens or 256) + PROMPT_TEXT
    row = prompt + 2 * cfg.group_size * cfg.max_new_tokens
    rows = min(cfg.rollout_rows, cfg.group_size * -(-cfg.questions_per_step // gpus))
    replica = 2 * m["all"] + rows * (prompt + cfg.max_new_tokens) * m["kv"]
    transient = 14 * m["layer"] + 4 * m["root"]  # two gathered layers, gradients, reduction buffers; the root twice
    active = 2 * row * m["hidden"] * m["depth"]  # the checkpointed input of every layer
    active += row * (8 * m["wide"] + 40 * m["hidden"]) + 3 * row**2  # one layer again, with its mask
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
    stays = 2 * t["all"] < 0.6e9 * cfg.gpu_memory
    weights = 2 * t["all"] / cfg.gpus + (2 * t["all"] if stays else 4 * t["layer"] + 2 * t["root"])
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
    questions = cfg.steps * cfg.questions_per_step if cfg.data else cfg.pool
    samples, here = questions * cfg.teacher_samples, asked_here(cfg)
    tokens = samples * mean * len(cfg.teachers.split(","))
    teaching = (len(cfg.teachers.split(",")) - len(here)) * samples * mean / TEACHER_TOKENS
    teaching += sum(answering(cfg, name, samples / gpus, teacher_phase(cfg, name)[1]) for name in here)
    once = (1 + cfg.eval_draws) / gpus  # responses a question of a validation
    validating = answering(cfg, cfg.student, cfg.valid_questions * once) * (
        1 + cfg.steps / (cfg.eval_every or cfg.steps)
    )
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
        print(f"GB per GPU, --offload {offload}: {of}  (host {host:.0f}, all ranks)  {'fits' if fits else 'too much'}")
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


def main() -> None:
    """The command line; prints key: value lines."""
    parser = Flags(__doc__)
    parser.add_argument("--student", default="tiny-qwen", help="a name or a folder")
    parser.add_argument("--questions", type=int, default=12)
    parser.add_argument("--group-size", type=int, default=8, help="G: student responses; as many teacher responses")
    parser.add_argument("--response-tokens", type=int, default=14, help="tokens per response, the end token included")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu or cuda [cpu]")
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16"), help="of the weights here [fp32]")
    parser.add_argument("--random-weights", action="store_true", help="a published student at full size, no download")
    parser.add_argument("--out", default="", help="write the numbers to this file too")
    args = parser.parse_args()
    if args.random_weights and args.student not in FULL:
        raise UserError(f"--random-weights is for published names: {', '.join(FULL)}")
    torch.set_num_threads(args.threads)
    Q, G, T, real = args.questions, args.group_size, args.response_tokens, args.student in FULL
    dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32
    student = load(args.student, device=args.device, dtype=dtype, random_weights=args.random_weights)
    if real:
        student.family.limit(student.image_processor, 1280)
    student.ends = [-1]  # nobody stops early: both sides write T tokens for every response
    D = Discriminator(student)
    questions = world_questions("train", Q, cell=112 if real else 14)
    prompts, names = [student.encode_question(q) for q in questions], [q.id for q in questions]
    generator = torch.Generator().manual_seed(0)
    word = len(student.tokenizer) - 60
    groups = [torch.randint(word, word + 60, (2 * G, T), generator=generator).tolist() for _ in range(Q)]
    advantage = advantages(torch.randint(0, 3, (Q, 2 * G), generator=generator).float()).to(args.device)
    is_student = (torch.arange(2 * G) < G).repeat(Q).to(args.device)
    stock, width = student.hf, max(len(p.ids) for p in prompts)
    left = dict(  # stock generate takes the questions as one left-padded batch
        input_ids=torch.stack([F.pad(p.ids, (width - len(p.ids), 0)) for p in prompts]),
        attention_mask=torch.stack([(torch.arange(width) >= width - len(p.ids)).long() for p in prompts]),
        **{k: torch.cat([p.pixels[k] for p in prompts]) for k in prompts[0].pixels},
    )
    left = {k: x.to(args.device) for k, x in with_kinds(student, left).items()}
    how = dict(do_sample=True, top_k=0, top_p=1.0, temperature=1.0, suppress_tokens=student.banned_ids)
    how |= dict(num_return_sequences=G, min_new_tokens=T, max_new_tokens=T, eos_token_id=None, pad_token_id=0)

    def forget():
        for p in prompts:
            p.patches = None  # every measurement encodes its pictures anew

    def own_rollout():
        forget()
        return rollout(student, prompts, names, G, T)

    student_optimizer = torch.optim.AdamW(
        student.parameters(), lr=0.0
    )  # lr 0: the work of a step, the same weights after
    d_optimizer = torch.optim.AdamW(D.parameters(), lr=0.0)

    def packed_update():
        forget()
        student.freeze("vision").train()
        batch = pack(student.see(prompts), groups, device=args.device)
        logp = student(batch)
        old = logp.detach()
        loss = policy_loss(logp, old, old, advantage.flatten(), batch.mask, responses=Q * 2 * G, max_length=T)
        loss.backward()
        student.zero_grad()

    def separate_update():
        stock.train()
        student.freeze("vision")
        rows = separate_batch(student, prompts, groups)
        stock(**{k: x.to(args.device) for k, x in rows.items()}).loss.backward()
        stock.zero_grad()

    def whole_step():
        """What train.py does in a step, but for the judge: rollout, D, rewards, reference, student."""
        own_rollout()
        student.freeze("vision").train()
        packed = D.pack([[student.text(r) for r in g] for g in groups], device=args.device)
        discriminator_loss(D(packed), is_student, Q * G, Q * G).backward()
        d_optimizer.step()
        d_optimizer.zero_grad()
        batch = pack(student.see(prompts), groups, device=args.device)
        with torch.no_grad():
            D(packed)
            ref = student(batch)
        logp = student(batch)
        old = logp.detach()
        policy_loss(logp, old, ref, advantage.flatten(), batch.mask, responses=Q * 2 * G, max_length=T).backward()
        student_optimizer.step()
        student_optimizer.zero_grad()

    def stock_rollout():
        stock.eval()
        stock.generate(**left, **how)

    asked = world_questions("test", 4 * Q, cell=112 if real else 14)
    greedy = dict(do_sample=False, suppress_tokens=student.banned_ids, pad_token_id=0, eos_token_id=None)
    greedy |= dict(min_new_tokens=T, max_new_tokens=T)

    def own_eval():
        encoded = [student.encode_question(q) for q in asked]
        return [r.ids for (r,) in rollout(student, encoded, [q.id for q in asked], 1, T, GREEDY)]

    def stock_eval():
        stock.eval()
        out = []
        for q in asked:
            p = student.encode_question(q)
            one = with_kinds(
                student, dict(input_ids=p.ids[None], attention_mask=torch.ones_like(p.ids)[None], **p.pixels)
            )
            one = {k: x.to(args.device) for k, x in one.items()}
            out.append(stock.generate(**one, **greedy)[0, len(p.ids) :].tolist())
        return out

    if own_eval() != stock_eval():
        print("warning: batched and single greedy answers differ")
    jobs = dict(own_rollout=own_rollout, stock_rollout=stock_rollout, own_eval=own_eval, stock_eval=stock_eval)
    jobs |= dict(packed_update=packed_update, separate_update=separate_update, whole_step=whole_step)
    a, b = (torch.randn(2048, 2048, device=args.device, dtype=dtype) for _ in range(2))
    big = torch.zeros(64 << 20, device=args.device, dtype=torch.uint8)
    limits = median_seconds(dict(matmul=lambda: a @ b, copy=lambda: big.clone()), 5)  # what this machine can do
    flops, bandwidth = 2 * 2048**3 / limits["matmul"], 2 * len(big) / limits["copy"]
    seconds = median_seconds(jobs, args.repeats)
    of, kinds = count_of(student), torch.finfo(dtype).bits // 8
    tokens = Q * (width + 2 * G * T)
    work = 6 * (of["layers"] * tokens + of["hidden"] * of["words"] * Q * 2 * G * T)
    moved = T * kinds * (of["all"] - of["vision"] + Q * G * (width + T / 2) * of["kv"] / 2)
    card = torch.cuda.get_device_name() if args.device == "cuda" else platform.machine()
    result = {
        "machine": f"{card}, {args.threads} thread(s), torch {torch.__version__}, {args.dtype}",
        "update_share_of_this_machines_matmul_rate": round(work / flops / seconds["packed_update"], 3),
        "rollout_share_of_this_machines_copy_rate": round(moved / bandwidth / seconds["own_rollout"], 3),
        "setting": f"{args.student}, {Q} questions, G {G} + {G}, {T} tokens a response, prompts of {width} tokens",
        **{f"{name}_seconds": round(s, 4) for name, s in seconds.items()},
        "rollout_speedup": round(seconds["stock_rollout"] / seconds["own_rollout"], 2),
        "update_speedup": round(seconds["separate_update"] / seconds["packed_update"], 2),
        "eval_speedup": round(seconds["stock_eval"] / seconds["own_eval"], 2),
        "eval_questions_per_second": round(4 * Q / seconds["own_eval"], 1),
        "stock_eval_questions_per_second": round(4 * Q / seconds["stock_eval"], 1),
        "rollout_tokens_per_second": round(Q * G * T / seconds["own_rollout"]),
    }
    for key, value in result.items():
        print(f"{key}: {value}")
    if args.out:
        Path(args.out).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    run_command(main)
