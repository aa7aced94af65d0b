"""Is it right on this GPU, and how fast? One command for the first hour on a card: under 9 minutes, no downloads.

    python -m tools.gpu_check --out check.json                  # everything: one table, one JSON
    python -m tools.gpu_check --out check.json --only graph     # one part
    python -m tools.gpu_check --out check.json --device cpu --tiny      # the same program at tiny size: its test
    python -m tools.plan --measured check.json --student qwen2.5-vl-7b  # hours at the speeds of this card

It measures the card's peak speeds; checks in bf16 that sampling, packed rows, captured graphs and attention give
the numbers of the plain way, and that a whole run trains, is killed and goes on; and times the phases of a step at full
size with random weights, beside their limits and beside the plan. Every part is a process with a time limit: one that
fails is reported, and the rest goes on. The students are folders laid out as the published ones (tests/published.py),
small, with a vocabulary of the real size.
"""

import argparse
import json
import math
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

if __name__ == "__main__":  # read when torch is imported (train.py says why)
    os.environ.setdefault("PYTORCH_ALLOC_CONF", os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True"))

import torch
import transformers

import engine.attention as attention
from data import Question
from engine.command import Flags, UserError, run_command
from engine.files import write
from engine.keys_values import Decoder
from engine.loading import load
from engine.memory import count_of
from engine.run import commit_of
from model import Prompt, join_pixels, pack
from rollout import GREEDY, PURE, prefill, rollout
from tests import published
from tools import plan
from tools.bench import ceilings, forward_flops
from tools.pilot import parting, stock_greedy

HOME = Path(__file__).resolve().parent.parent
FOLDERS = published.TWO_FAMILIES


# ------------------------------------------------------------------------------------------------ what a part has
@dataclass
class Here:
    """A part's surroundings: the device, the JSON that all parts write to, and a folder for what they make."""

    part: str
    device: str
    tiny: bool
    out: Path
    work: Path

    @property
    def dtype(self) -> torch.dtype:
        """What models compute in: bf16 on a GPU; a CPU has no kernels for the check's sizes in it."""
        return torch.bfloat16 if self.device == "cuda" else torch.float32

    def read(self) -> dict:
        """What all parts have found so far."""
        return json.loads(self.out.read_text(encoding="utf-8"))

    def keep(self, **more) -> None:
        """Add numbers for later parts and for the plan (those of plan.MEASURED)."""
        found = self.read()
        for name, x in more.items():
            found["plan" if name in plan.MEASURED else "facts"][name] = x
        write(self.out, json.dumps(found, indent=1) + "\n")

    def row(self, name: str, measured, limit=None, planned=None, ok: bool | None = None) -> None:
        """A line of the table, written at once: a later crash does not lose it."""
        found = self.read()
        found["rows"].append(dict(part=self.part, name=name, measured=measured, limit=limit, planned=planned, ok=ok))
        write(self.out, json.dumps(found, indent=1) + "\n")
        print("   ", line_of(found["rows"][-1]), flush=True)

    def folder(self, name: str) -> Path:
        """One of the small folders in the published layout, whose texts end; made at its first use."""
        there = self.work / "folders" / name
        if not there.exists():
            published.speaking(published.MAKERS[name](self.work / "raw" / name), there)
        return there

    def student(self, name: str):
        """(a student of those folders, prompts about pictures of three sizes)."""
        vlm = load(self.folder(name), device=self.device, dtype=self.dtype).eval()
        vlm.encoder.limit_pictures(64 if self.tiny else 1280)
        sizes = ((640, 480), (500, 90), (480, 640))
        asked = [
            Question(f"q{i}", (published.picture(*x, seed=i),), "How many blocks?", "") for i, x in enumerate(sizes)
        ]
        return vlm, [vlm.encoder.encode_question(q) for q in asked]

    def seconds(self, job, repeats: int = 5) -> float:
        """Median wall seconds of a job, after one that warms up."""
        job()
        times = []
        for _ in range(repeats):
            self.wait()
            begin = time.perf_counter()
            job()
            self.wait()
            times.append(time.perf_counter() - begin)
        return statistics.median(times)

    def wait(self) -> None:
        """Until the GPU has done all that it was given."""
        if self.device == "cuda":
            torch.cuda.synchronize()


# ------------------------------------------------------------------------------------------------ parts: is it right
def greedy(here: Here) -> None:
    """Own rollout against stock generate, token for token; where they part, how near a tie it is."""
    for name in FOLDERS:
        vlm, prompts = here.student(name)
        length, said = 16 if here.tiny else 96, []
        ours = rollout(vlm, prompts, [str(i) for i in range(len(prompts))], 2, length, GREEDY)
        for prompt, (mine, *_) in zip(prompts, ours, strict=True):
            if (theirs := stock_greedy(vlm, prompt, length)) != mine.ids:
                said.append(parting(vlm, prompt, mine.ids, theirs))
        equal = f"{len(prompts) - len(said)} of {len(prompts)} texts equal"
        here.row(
            f"{name}: greedy rollout = stock generate",
            "; ".join([equal, *said]),
            ok=not any("no tie" in x for x in said),
        )


@torch.no_grad()
def packed(here: Here) -> None:
    """Log-probs of packed rows against those of separate rows; the measure is what rounding does to the latter."""
    for name in FOLDERS:
        vlm, prompts = here.student(name)
        groups = rollout(vlm, prompts, [str(i) for i in range(len(prompts))], 3, 24, PURE)
        seen, texts = vlm.encode_pictures(prompts), [[r.ids for r in g] for g in groups]

        def separate(vlm, seen=seen, texts=texts):
            alone = [vlm(pack([p], [[x]], device=here.device))[0] for p, g in zip(seen, texts, strict=True) for x in g]
            return torch.cat([x.cpu() for x in alone])

        batch = pack(seen, texts, device=here.device)
        together, alone = vlm(batch).cpu()[batch.mask.cpu()], separate(vlm)
        rounding = (alone - separate(vlm.float())).abs().max().item()
        gap = (together - alone).abs().max().item()
        here.row(
            f"{name}: packed = separate log-probs",
            f"gap {gap:.1e}",
            f"rounding {rounding:.1e}",
            ok=gap <= 2 * rounding + 1e-4,
        )


def eagerly(decoder: Decoder) -> tuple:
    """In place of Decoder.capture: the same step over the same block, launched kernel by kernel."""
    logits = decoder.step()
    return SimpleNamespace(replay=lambda: logits.copy_(decoder.step())), logits


def graph(here: Here) -> None:
    """Texts of captured decoding against those of the same steps launched one by one; enough rows that some leave."""
    for name in FOLDERS:
        vlm, prompts = here.student(name)

        def texts(vlm=vlm, prompts=prompts):
            names, rows = [str(i) for i in range(len(prompts))], 4 if here.tiny else 32
            return [r.ids for g in rollout(vlm, prompts, names, rows, 64, PURE, (0, "graph")) for r in g]

        captured = texts()
        with patch.object(Decoder, "capture", eagerly):
            same = sum(a == b for a, b in zip(captured, texts(), strict=True))
        how = "" if Decoder.captures(vlm) else ", not captured: a CPU"
        here.row(f"{name}: captured = eager texts", f"{same} of {len(captured)} equal{how}", ok=same == len(captured))


def tower(here: Here) -> None:
    """The vision tower, windows in one call, against the stock tower."""
    for name in FOLDERS:
        vlm, prompts = here.student(name)
        pixels = {k: x.to(here.device) for k, x in join_pixels(prompts).items()}
        stock = vlm.family.model.from_pretrained(here.folder(name), dtype=here.dtype).to(here.device).eval()
        with torch.no_grad():
            ours, theirs = (vlm.family.encode_pixels(base, pixels) for base in (vlm.base, stock.model))
        gap = ((ours - theirs).abs().max() / theirs.abs().max()).item()
        here.row(
            f"{name}: vision tower = stock tower", f"relative gap {gap:.1e}", ok=gap < 4 * torch.finfo(here.dtype).eps
        )


def attention_forms(here: Here) -> None:
    """Packed rows in one variable-length call against two padded calls, forward and gradients, at the 7B's heads."""
    P, R, H, KV, dim = (30, 3, 4, 2, 8) if here.tiny else (1300, 8, 28, 4, 128)
    for L in (5, 8) if here.tiny else (64, 127, 512):
        lengths = [L - (i * L) // (2 * R) for i in range(R)]
        prompt = Prompt(torch.arange(P), torch.arange(P).expand(3, -1), [])
        batch = pack([prompt], [[[1] * n for n in lengths]], device=here.device)
        random = torch.Generator(here.device).manual_seed(0)
        q, k, v, weight = (
            torch.randn(1, n, batch.ids.shape[1], dim, generator=random, device=here.device) for n in (H, KV, KV, H)
        )
        weight = weight.transpose(1, 2) * (batch.segment >= 0)[..., None, None]
        found, seconds = {}, {}
        for way, dtype in (("padded", torch.float32), ("padded", here.dtype), ("in_one_call", here.dtype)):
            inputs = [x.to(dtype).requires_grad_() for x in (q, k, v)]
            branches = attention.Branches(batch)

            def job(way=way, inputs=inputs, branches=branches, weight=weight):
                out = getattr(branches, way)(*inputs, dim**-0.5)
                return out, *torch.autograd.grad((out.float() * weight).sum(), inputs)

            name = "exact" if dtype is torch.float32 and not found else way
            live = (batch.segment >= 0)[..., None, None]
            out, *gradients = job()
            found[name] = [(out * live).float(), *(x.float() for x in gradients)]
            seconds[name] = here.seconds(job)
        gaps = {  # of outputs and gradients, each by its own largest number
            way: max(
                (a - b).abs().max().item() / b.abs().max().item()
                for a, b in zip(found[way], found["exact"], strict=True)
            )
            for way in ("padded", "in_one_call")
        }
        finite = all(x.isfinite().all() for x in found["in_one_call"])
        measured = f"gap {gaps['in_one_call']:.1e}, {1e3 * seconds['in_one_call']:.2f} ms"
        limit = f"padded: gap {gaps['padded']:.1e}, {1e3 * seconds['padded']:.2f} ms"
        ok = finite and gaps["in_one_call"] <= 2 * gaps["padded"] + 1e-6
        here.row(f"attention R {R}, P {P}, L {L}, forward and backward", measured, limit, ok=ok)


# ------------------------------------------------------------------------------------------------ parts: does it train
RUN = """import dataclasses, sys
import config, train
from engine.command import run_command

def main():
    cfg = dataclasses.replace(config.parse(sys.argv[1:]), recompute=True, {constants})
    train.run_all(cfg, ["train.py", *sys.argv[1:]])

run_command(main)
"""  # train.py with constants of config.py that are no flags


def command_of(here: Here, name: str, run: str, *flags: str, **constants) -> list[str]:
    """torchrun of a whole small run on a published-layout folder, with a teacher of the other family."""
    other = FOLDERS[1 - FOLDERS.index(name)]
    if not (here.work / "mine.jsonl").exists():
        published.questions(here.work, 12)
    constants |= dict(dtype="bf16" if here.device == "cuda" else "fp32")
    script = here.work / f"{run}.py"
    write(script, RUN.replace("{constants}", ", ".join(f"{k}={v!r}" for k, v in constants.items())))
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1", "--", str(script)]
    argv += ["--name", run, "--data", str(here.work / "mine.jsonl"), "--student", str(here.folder(name)), *flags]
    argv += ["--teachers", str(here.folder(other)), "--image-tokens", "64", "--similarity", "continuous"]
    argv += "--questions-per-step 2 --group-size 2 --teacher-samples 2 --steps 4 --d-steps 2 --eval-every 0".split()
    argv += ["--max-new-tokens", "12" if here.tiny else "40", "--checkpoint-every", "1", "--evaluated", "after"]
    return [*argv, "--valid-questions", "2", "--test-questions", "2"]


def start(here: Here, argv: list[str], log: Path) -> subprocess.Popen:
    """Start a command in the part's folder; what it says goes to `log`."""
    env = dict(os.environ, PYTHONPATH=str(HOME))
    with log.open("w", encoding="utf-8", newline="\n") as file:
        return subprocess.Popen(argv, cwd=here.work, env=env, stdout=file, stderr=file, start_new_session=True)


def losses_of(here: Here, argv: list[str]) -> list[float]:
    """Run the command to its end -> the loss of each step. Raises RuntimeError with the run's own last words."""
    run = here.work / "runs" / argv[argv.index("--name") + 1]
    log = here.work / f"{run.name}.log"
    if code := start(here, argv, log).wait():
        said = log.read_text(encoding="utf-8")
        lines = [x for x in said.splitlines() if "rror" in x and "ChildFailed" not in x]
        raise RuntimeError(f"{run.name}: exit code {code}: {lines[0] if lines else said[-300:]}")
    rows = [json.loads(x) for x in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [x["loss"] for x in rows if x["stage"] == "ril" and "loss" in x]


def training(here: Here) -> None:
    """Whole runs, activations recomputed: one as it is; two that must be equal, of which one is killed and resumed."""
    argv = command_of(here, FOLDERS[1], "plain")
    losses = losses_of(here, argv)
    here.row(f"{FOLDERS[1]}: a whole run", f"{len(losses)} steps", ok=all(map(math.isfinite, losses)) and any(losses))
    straight = losses_of(here, command_of(here, FOLDERS[0], "straight", "--offload", "none", deterministic=True))
    argv = command_of(here, FOLDERS[0], "killed", "--offload", "phase", deterministic=True)
    killed = kill_in_step_2(here, argv)
    gap = max(abs(a - b) for a, b in zip(straight, losses_of(here, argv), strict=True))
    how = "--offload phase, killed in step 2 and resumed" if killed else "NOT KILLED: it had ended before"
    name = f"{FOLDERS[0]}: deterministic, straight = {how}"
    here.row(name, f"losses differ by {gap:.1e}", ok=killed and gap < 1e-6 and any(straight))


def kill_in_step_2(here: Here, argv: list[str]) -> bool:
    """Start a run and kill its process hard as soon as its first checkpoint is there; was it killed?"""
    run = here.work / "runs" / argv[argv.index("--name") + 1]
    child = start(here, argv, here.work / "killed-first.log")
    while child.poll() is None and not (run / "checkpoints" / "ril-step1").is_dir():
        time.sleep(0.02)
    killed = child.poll() is None
    if killed:  # the run's own process, which its lock names: torchrun's would leave it alive
        os.kill(int(re.search(r"process (\d+)", (run / "lock").read_text(encoding="utf-8"))[1]), signal.SIGKILL)
    child.wait()
    return killed


# ------------------------------------------------------------------------------------------------ parts: how fast
def most(here: Here) -> None:
    """What the machine does at most: matrix products, copies in its memory, copies from the host."""
    flops, bandwidth = ceilings(SimpleNamespace(device=here.device, torch_dtype=here.dtype))
    here.row("matrix product", f"{flops / 1e12:.1f} TFLOP/s", planned=f"{plan.TFLOPS / 1e12:.0f} in passes")
    here.row(
        "copy in memory, read and written",
        f"{bandwidth / 1e9:.0f} GB/s",
        planned=f"{plan.BANDWIDTH / 1e9:.0f} in decoding",
    )
    big = torch.zeros(1 << (24 if here.tiny else 30), dtype=torch.uint8)
    host = len(big) / here.seconds(lambda: big.to(here.device, copy=True), 3)
    here.row("copy from the host, pageable", f"{host / 1e9:.1f} GB/s", planned=f"{plan.HOST / 1e9:.0f}")
    here.keep(flops=flops, bandwidth=bandwidth, HOST=host)


@torch.no_grad()
def token_seconds(here: Here, vlm, prompts: list, group: int, captured: bool, count: int = 24) -> float:
    """Seconds of a decoded token of all rows, captured (where this is a GPU) or launched kernel by kernel."""
    captured = captured and Decoder.captures(vlm)
    with patch.object(Decoder, "captures", staticmethod(lambda _: captured)):
        _, kv = prefill(vlm, prompts, group, count + 1)
        decode, tokens = Decoder(vlm, kv), torch.zeros(kv.rows, dtype=torch.long, device=here.device)
        decode(tokens)
        here.wait()
        begin = time.perf_counter()
        for _ in range(count):
            decode(tokens)
        here.wait()
    return (time.perf_counter() - begin) / count


def speed(here: Here, name: str) -> None:
    """The phases of a step at full size with random weights: 5 questions, G 4 + 4, about 1,200 image tokens."""
    facts, small = here.read()["facts"], here.tiny
    Q, G, L = (2, 2, 8) if small else (5, 4, 300)
    vlm = load("tiny-qwen" if small else name, device=here.device, dtype=here.dtype, random_weights=not small).eval()
    vlm.encoder.limit_pictures(1280)
    vlm.encoder.ends = [-1]  # nobody stops early
    size = (42, 42) if small else (1120, 840)
    for i in range(Q):
        published.picture(*size, seed=i).save(here.work / f"{i}.jpg")
    asked = [Question(str(i), (here.work / f"{i}.jpg",), "How many blocks?", "") for i in range(Q)]
    begin = time.perf_counter()
    prompts = [vlm.encoder.encode_question(q) for q in asked]
    encoding = time.perf_counter() - begin
    of, longest = count_of(vlm), max(len(p.ids) for p in prompts)
    pictures = sum((p.ids == vlm.base.config.image_token_id).sum().item() for p in prompts)
    work = 2 * of["vision"] * 4 * pictures
    pixels = {k: x.to(here.device) for k, x in join_pixels(prompts).items()}

    @torch.no_grad()
    def look():
        vlm.family.encode_pixels(vlm.base, pixels)

    def times(what: str, seconds: float, limit: float, planned: float) -> None:
        here.row(f"{name}: {what}", f"{1e3 * seconds:.2f} ms", f"{1e3 * limit:.2f} ms", f"{1e3 * planned:.2f} ms")

    here.row(f"{name}: decode and resize {Q} pictures, one thread", f"{1e3 * encoding:.0f} ms, in the background")
    times(f"vision tower, {Q} pictures", here.seconds(look, 3), work / facts["flops"], work / plan.TFLOPS)
    rows, found = Q * G, {}
    moved = here.dtype.itemsize * (of["layers"] + of["hidden"] * of["words"] + rows * longest * of["kv"] / 2)
    for way, kernel in (("eager", plan.LAUNCH), ("captured", plan.GRAPH_LAUNCH)):
        found[way] = token_seconds(here, vlm, prompts, G, way == "captured")
        planned = plan.token_seconds(of, rows, longest, plan.BANDWIDTH, kernel)
        times(f"a token of {rows} rows, {way}", found[way], moved / facts["bandwidth"], planned)
    groups = torch.randint(10, 100, (1, 2 * G, L), generator=torch.Generator().manual_seed(0)).tolist()
    batch = pack(vlm.encode_pictures(prompts[:1]), groups, device=here.device)
    work = forward_flops(of, batch, of["hidden"] * of["words"])

    def score():
        with torch.no_grad():
            vlm(batch)

    seconds = here.seconds(score, 3)
    times(f"reference pass of a question, {2 * G} x {L} tokens", seconds, work / facts["flops"], work / plan.TFLOPS)
    if of["all"] < 4e9:
        vlm.freeze("vision").train()
        trained = here.seconds(lambda: vlm(batch).sum().backward(), 3)
        times("forward and backward of a question", trained, 3 * work / facts["flops"], 3 * work / plan.TFLOPS)
    if name == LARGEST or small:  # its tokens cost bytes
        here.keep(BANDWIDTH=moved / found["captured"], TFLOPS=work / seconds)
    if name == SMALLEST or small:  # its tokens cost launches
        kernels = of["depth"] * plan.KERNELS
        here.keep(LAUNCH=found["eager"] / kernels, GRAPH_LAUNCH=found["captured"] / kernels)


SMALLEST, LARGEST = "internvl3-1b", "qwen2.5-vl-7b"
PARTS = {  # name -> (what it runs, seconds that it may take); what the plan needs and what is least certain comes first
    "most": (most, 40),
    "graph": (graph, 50),
    LARGEST: (lambda here: speed(here, LARGEST), 110),
    SMALLEST: (lambda here: speed(here, SMALLEST), 60),
    "attention": (attention_forms, 50),
    "greedy": (greedy, 60),
    "packed": (packed, 40),
    "tower": (tower, 40),
    "training": (training, 170),
    "internvl3-2b": (lambda here: speed(here, "internvl3-2b"), 60),
}


# ------------------------------------------------------------------------------------------------ the whole check
def line_of(row: dict) -> str:
    """A row of the table as text."""
    verdict = {True: "right", False: "WRONG", None: ""}[row["ok"]]
    beside = [f"{name} {row[name]}" for name in ("limit", "planned") if row[name] is not None]
    return " | ".join([row["name"], row["measured"], *beside, *([verdict] if verdict else [])])


def one_part(here: Here) -> None:
    """Run a part in this process; what goes wrong becomes a row, and exit code 1."""
    torch.set_num_threads(1)
    if here.device == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)  # as in training (engine/sharding.py says why)
    try:
        PARTS[here.part][0](here)
    except Exception as error:
        traceback.print_exc()
        here.row(here.part, f"FAILED: {type(error).__name__}: {str(error).strip()[:300]}", ok=False)
        sys.exit(1)


def run_part(here: Here, argv: list[str], limit: float) -> None:
    """A part as a process of its own; one that dies or takes too long leaves a row that says so."""
    begin, before = time.monotonic(), len(here.read()["rows"])
    child = subprocess.Popen([sys.executable, "-m", "tools.gpu_check", *argv], cwd=HOME, start_new_session=True)
    try:
        code = child.wait(limit)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGTERM)  # torchrun, if it runs, ends its own processes
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        code = f"stopped after {limit:.0f} s"
    failed = any(row["ok"] is False for row in here.read()["rows"][before:])
    if code and not failed:
        here.row(here.part, f"FAILED: {code if isinstance(code, str) else f'exit code {code}'}", ok=False)
    here.keep(**{f"seconds of {here.part}": round(time.monotonic() - begin, 1)})


def main(argv: list[str] | None = None) -> None:
    """The command line. Exit code 1 where a part failed or found something wrong."""
    argv = sys.argv[1:] if argv is None else argv
    parser = Flags(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="every part at tiny size")
    parser.add_argument("--only", default="", help=f"some parts: {','.join(PARTS)}")
    parser.add_argument("--budget", type=float, default=520.0, help="seconds for all parts [520]")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.part:
        return one_part(Here(args.part, args.device, args.tiny, args.out, args.work))
    if os.name == "nt":
        raise UserError("tools.gpu_check ends whole groups of processes, which Windows has not: run it under WSL")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("no GPU here: add --device cpu --tiny to try the program itself")
    chosen = args.only.split(",") if args.only else list(PARTS)
    if unknown := [x for x in chosen if x not in PARTS]:
        raise UserError(f"--only {unknown[0]}: the parts are {', '.join(PARTS)}")
    begin, out = time.monotonic(), args.out.resolve()
    card = torch.cuda.get_device_name() if args.device == "cuda" else f"{platform.machine()} CPU"
    versions = dict(python=platform.python_version(), torch=torch.__version__, transformers=transformers.__version__)
    head = dict(
        card=card, versions=versions, commit=commit_of(), command=" ".join(["python -m tools.gpu_check", *argv])
    )
    write(out, json.dumps(head | dict(rows=[], facts={}, plan={}), indent=1) + "\n")
    with tempfile.TemporaryDirectory() as work:
        for part in chosen:
            left = args.budget - (time.monotonic() - begin)
            here = Here(part, args.device, args.tiny, out, Path(work))
            limit = min(PARTS[part][1] * (4 if args.device == "cpu" else 1), left)
            if limit < 5:
                here.row(part, f"left out: the {args.budget:.0f} s are over (--only {part} runs it alone)", ok=False)
                continue
            print(f"{part}, at most {limit:.0f} s", flush=True)
            more = ["--tiny"] * args.tiny
            run_part(here, ["--part", part, "--out", str(out), "--device", args.device, "--work", work, *more], limit)
    found = json.loads(out.read_text(encoding="utf-8")) | dict(seconds=round(time.monotonic() - begin))
    write(out, json.dumps(found, indent=1) + "\n")
    wrong = [row for row in found["rows"] if row["ok"] is False]
    print("\n".join(["", *map(line_of, found["rows"]), ""]))
    print(
        f"{card}: {sum(row['ok'] is True for row in found['rows'])} checks right, {len(wrong)} wrong or failed; {out}"
    )
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    run_command(main)
