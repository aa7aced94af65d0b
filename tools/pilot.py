"""Three steps of every stage, then a page of checks: before a night's run.

torchrun --nproc_per_node 8 -m tools.pilot --student qwen2.5-vl-7b        # and any other flag of train.py
python -m tools.pilot --student internvl3-1b --random-weights              # speed and memory without a download
"""

import itertools
import os
import statistics
import sys
from dataclasses import replace

if __name__ == "__main__":  # read when torch is imported (train.py says why)
    os.environ.setdefault("PYTORCH_ALLOC_CONF", os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True"))

import torch
from transformers import GenerationConfig

from config import parse
from engine.command import Flags, UserError, run_command
from engine.families import FULL, JUDGES
from engine.loading import is_tied
from engine.memory import CONTEXT, most_gb
from engine.players import load_replica, load_sharded
from engine.run import peak_memory_mb, split
from engine.sharding import rank_and_world
from model import pack, trunk
from rollout import GREEDY, rollout
from tools.bench import with_kinds
from tools.plan import asked_here, step_seconds, teacher_phase
from train import run_all


# ------------------------------------------------------------------------------------------------ the pilot's page
def stock_greedy(replica, prompt, length: int) -> list[int]:
    """What stock `generate` answers to one prompt, without the sampling settings of the model's folder."""
    replica.hf.generation_config = GenerationConfig()  # generate takes from it whatever it is not given
    inputs = dict(input_ids=prompt.ids[None], attention_mask=torch.ones_like(prompt.ids)[None])
    inputs = {k: x.to(replica.device) for k, x in with_kinds(replica, inputs | (prompt.pixels or {})).items()}
    how = dict(max_new_tokens=length, do_sample=False, suppress_tokens=replica.encoder.banned_ids)
    how |= dict(eos_token_id=replica.encoder.ends, pad_token_id=0)
    return replica.hf.generate(**inputs, **how)[0, len(prompt.ids) :].tolist()


@torch.no_grad()
def parting(replica, prompt, mine: list[int], theirs: list[int]) -> str:
    """Where two greedy texts part, and how far apart the two largest logits are there: rounding can turn a tie round.

    `eps` is the step between two neighbouring numbers of the computed dtype at the largest logit.
    """
    pairs = itertools.zip_longest(mine, theirs)
    at, (here, there) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
    batch = pack(replica.encode_pictures([prompt]), [[mine[:at] + [replica.encoder.end]]], device=replica.device)
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
    replica = load_replica(run, run.path / "sft")
    student = replica if cfg.lora else load_sharded(run, run.path / "sft").eval()  # --lora: it is not sharded
    prompts, length = [replica.encoder.encode_question(q) for q in questions], min(32, cfg.max_new_tokens)
    ours = rollout(replica, prompts, [q.id for q in questions], 1, length, GREEDY)
    stock = [stock_greedy(replica, prompt, length) for prompt in prompts]
    same = sum(mine.ids == theirs for (mine,), theirs in zip(ours, stock, strict=True))
    lines.append(f"own rollout = stock generate, greedy: {same} of {len(prompts)} prompts, token for token")
    for prompt, (mine,), theirs in zip(prompts, ours, stock, strict=True):
        if mine.ids != theirs:
            lines.append(f"question {mine.question}: {parting(replica, prompt, mine.ids, theirs)}")
    seen, texts = replica.encode_pictures(prompts), [[r.ids, replica.encoder.reply_ids("yes")] for (r,) in ours]
    with torch.no_grad():
        together = student(pack(seen, texts, device=run.device))
        alone = [student(pack([p], [[x]], device=run.device)) for p, two in zip(seen, texts, strict=True) for x in two]
    gap = max((t[: a.shape[1]] - a[0]).abs().max().item() for t, a in zip(together, alone, strict=True))
    lines.append(f"packed = separate log-probs: largest difference {gap:.1e} ({cfg.dtype})")
    lines.append(
        f"{len(replica.tensors())} tensors loaded, none missing, none unused; tied head: {is_tied(replica.hf)}"
    )
    lines.append(f"chat: {replica.encoder.tokenizer.decode(prompts[0].ids)[:400]!r}")
    ends = replica.encoder.tokenizer.convert_ids_to_tokens(replica.encoder.ends)
    lines.append(
        f"ends a response: {replica.encoder.ends} {ends}; {len(replica.encoder.banned_ids)} ids are never sampled"
    )
    for row in run.rows("samples.jsonl", "ril")[-1:]:
        lines.append(f"question {row['question']}: {row['text']!r}, reference {row['reference']!r}")
        for r in row["responses"]:
            lines.append(f"{r['source']}: {r['text']!r}, similarity {r['similarity']}, answer {r['answer']}")
    step = statistics.median(r["total"] for r in run.rows("timing.jsonl", "ril"))
    cuda = run.device != "cpu"
    peak = torch.cuda.max_memory_allocated() if cuda else peak_memory_mb() * 2**20
    gb = max(
        [most_gb(cfg, rank_and_world()[1], cfg.offload), *(teacher_phase(cfg, name)[0] for name in asked_here(cfg))]
    )
    planned = sum(step_seconds(cfg, rank_and_world()[1], cfg.offload).values())
    gb -= CONTEXT / 1e9  # it is not among the tensors that torch counts
    lines.append(f"memory: {peak / 1e9:.1f} GB at most on rank 0, {gb:.1f} GB planned (tensors on a GPU)")
    lines.append(f"a step: {step:.2f} s (median of {cfg.steps}), {planned:.2f} s planned (for GPUs)")
    lines.append(f"a loop of 1,000 such steps: {step / 3.6:.1f} hours")
    page = "\n".join(["# pilot", "", *(f"- {x}" for x in lines)]) + "\n"
    run.write("pilot.md", page)
    print(page)


def main(argv: list[str] | None = None) -> None:
    """The command line: the flags of train.py. The run is named NAME-pilot."""
    argv = sys.argv[1:] if argv is None else argv
    own = Flags(__doc__)
    own.add_argument("--random-weights", action="store_true", help="published names at full size, no download")
    args, rest = own.parse_known_args(argv)
    cfg = replace(parse(rest), random_weights=args.random_weights)
    if args.random_weights and cfg.student not in FULL and cfg.judge not in JUDGES:
        raise UserError(f"--random-weights is for published names: {', '.join([*FULL, *JUDGES])}; others have weights")
    few = dict(pool=64, valid_questions=16, test_questions=16, steps=3, eval_every=0, pilot=True)
    few |= dict(d_steps=min(3, cfg.d_steps), sft_steps=min(30, cfg.sft_steps))
    run = run_all(replace(cfg, name=f"{cfg.name}-pilot", **few), ["-m", "tools.pilot", *argv])
    pilot(run, split(run.cfg)["train"][:8])


if __name__ == "__main__":
    run_command(main)
