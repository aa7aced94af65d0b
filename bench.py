"""Speed beside the peers: rollout and evaluation against stock `generate`, update against separate rows, whole step.

    python bench.py                         # the tiny student, one thread, ratios from one run (medians of --repeats)
    python bench.py --group-size 16         # more responses per question
    python bench.py --out results/bench.json

The peers do the same work on the same weights: stock `generate(num_return_sequences=G)` with sdpa attention samples the
same number of tokens (every row decodes --response-tokens), and stock forward and backward over 2G right-padded rows a
question stands for an update without packing. Evaluation encodes and greedily answers 4 x --questions questions, ours
in one batch, stock `generate` one by one, as public evaluators do. Absolute times mean little on a shared CPU; ratios
of one run do.
"""

import inspect
import json
import platform
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from data import Flags, run_command, world_questions
from discriminator import Discriminator, discriminator_loss
from grpo import advantages, policy_loss
from model import load, pack
from rollout import GREEDY, rollout


def median_seconds(work: dict, repeats: int) -> dict[str, float]:
    """Median seconds of each job; the jobs take turns, so that a change of the machine's speed meets all of them."""
    times = {name: [] for name in work}
    for i in range(repeats + 1):
        for name, job in work.items():
            begin = time.perf_counter()
            job()
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


def main() -> None:
    """The command line; prints key: value lines."""
    parser = Flags(__doc__)
    parser.add_argument("--student", default="tiny-qwen", help="a name or a folder")
    parser.add_argument("--questions", type=int, default=12)
    parser.add_argument("--group-size", type=int, default=8, help="G: student responses; as many teacher responses")
    parser.add_argument("--response-tokens", type=int, default=14, help="tokens per response, the end token included")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", default="", help="write the numbers to this file too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    Q, G, T = args.questions, args.group_size, args.response_tokens
    student = load(args.student)
    student.ends = [-1]  # nobody stops early: both sides write T tokens for every response
    D = Discriminator(student)
    questions = world_questions("train", Q)
    prompts, names = [student.encode_question(q) for q in questions], [q.id for q in questions]
    generator = torch.Generator().manual_seed(0)
    word = len(student.tokenizer) - 60
    groups = [torch.randint(word, word + 60, (2 * G, T), generator=generator).tolist() for _ in range(Q)]
    advantage = advantages(torch.randint(0, 3, (Q, 2 * G), generator=generator).float())
    is_student = (torch.arange(2 * G) < G).repeat(Q)
    stock, width = student.hf, max(len(p.ids) for p in prompts)
    left = dict(  # stock generate takes the questions as one left-padded batch
        input_ids=torch.stack([F.pad(p.ids, (width - len(p.ids), 0)) for p in prompts]),
        attention_mask=torch.stack([(torch.arange(width) >= width - len(p.ids)).long() for p in prompts]),
        **{k: torch.cat([p.pixels[k] for p in prompts]) for k in prompts[0].pixels},
    )
    left = with_kinds(student, left)
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
        batch = pack(student.see(prompts), groups)
        logp = student(batch)
        old = logp.detach()
        loss = policy_loss(logp, old, old, advantage.flatten(), batch.mask, responses=Q * 2 * G, max_length=T)
        loss.backward()
        student.zero_grad()

    def separate_update():
        stock.train()
        student.freeze("vision")
        stock(**separate_batch(student, prompts, groups)).loss.backward()
        stock.zero_grad()

    def whole_step():
        """What train.py does in a step, but for the judge: rollout, D, rewards, reference, student."""
        own_rollout()
        student.freeze("vision").train()
        packed = D.pack([[student.text(r) for r in g] for g in groups])
        discriminator_loss(D(packed), is_student, Q * G, Q * G).backward()
        d_optimizer.step()
        d_optimizer.zero_grad()
        batch = pack(student.see(prompts), groups)
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

    asked = world_questions("test", 4 * Q)
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
            out.append(stock.generate(**one, **greedy)[0, len(p.ids) :].tolist())
        return out

    if own_eval() != stock_eval():
        print("warning: batched and single greedy answers differ")
    jobs = dict(own_rollout=own_rollout, stock_rollout=stock_rollout, own_eval=own_eval, stock_eval=stock_eval)
    jobs |= dict(packed_update=packed_update, separate_update=separate_update, whole_step=whole_step)
    seconds = median_seconds(jobs, args.repeats)
    result = {
        "machine": f"{platform.machine()}, {args.threads} thread(s), torch {torch.__version__}",
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
