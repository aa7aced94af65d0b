"""A run: its folder, its questions and players, its log, its checkpoints; the same for one process and for many.

Rank 0 writes and speaks; everything is written to a temporary name and renamed, logs are appended. What a stage does
stands in train.py; here is what every stage needs.
"""

import contextlib
import copy
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import platform
import re
import resource
import shlex
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import transformers
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from config import is_real
from data import UserError, as_jsonl, load_questions, questions_at, read_jsonl, seed_of, split_questions, write
from engine.families import FULL, JUDGES
from engine.loading import load
from engine.memory import everything_fits
from engine.sharding import all_gather, barrier, copy_trained, deal, full_tensor, rank_and_world, start_ranks
from judge import Judge
from model import VLM, recompute_activations
from tiny.world import world_questions

HOME = Path(__file__).resolve().parent.parent


def device_of(cfg) -> str:
    """cpu, or this process's GPU."""
    kind = cfg.device if cfg.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    return kind if kind == "cpu" else f"cuda:{int(os.environ.get('LOCAL_RANK', 0))}"


def compute_dtype(cfg) -> torch.dtype:
    """What forward and backward passes compute in."""
    return torch.bfloat16 if cfg.dtype == "bf16" else torch.float32


@functools.lru_cache(maxsize=2)
def questions_in(file: str, _changed: int) -> list:
    """The questions of a file, read and checked once."""
    return load_questions(file)


def split(cfg) -> dict[str, list]:
    """The run's questions: {"train", "valid", "test"}. The test part is read by the evaluate stage only."""
    sizes = {"train": cfg.pool, "valid": cfg.valid_questions, "test": cfg.test_questions}
    if cfg.data:
        parts = split_questions(questions_in(cfg.data, Path(cfg.data).stat().st_mtime_ns))
        parts["valid"] = sorted(parts["valid"], key=lambda q: seed_of("valid", q.id))[: cfg.valid_questions]
        return {name: part[: sizes[name]] for name, part in parts.items()} if cfg.pilot else parts
    cell = 112 if is_real(cfg.student) else 14  # pixels of a cell: 336 x 336 for a real student
    return {name: world_questions(name, size, cell=cell) for name, size in sizes.items()}


def pretraining_questions(cfg, questions: list, usable: Iterable | None = None) -> tuple[list, list[list]]:
    """(held-out questions, those of each step) of D's pre-training; both empty where there is none.

    The order is that of ALL training questions, so it is known before a teacher is asked. `usable`: the ids of those
    with a response (None: all); the others are passed over, which moves nobody else.
    """
    if cfg.discriminator == "none" or not (cfg.d_pretrain and cfg.d_steps):
        return [], []
    usable = {q.id for q in questions} if usable is None else set(usable)
    here = [q for q in questions if q.id in usable]
    held = here[: max(1, min(32, len(here) // 8))]
    train = questions[max(1, min(32, len(questions) // 8)) :]
    visited = usable - {q.id for q in held}
    if not any(q.id in visited for q in train):  # too few to hold one out
        train, visited = here, usable
    epochs = (questions_at(train, i, len(train), seed_of(cfg.seed, "d")) for i in itertools.count())
    stream = (q for epoch in epochs for q, _ in epoch if q.id in visited)
    return held, [list(itertools.islice(stream, cfg.questions_per_step)) for _ in range(cfg.d_steps)]


def without_host(value):
    """A setting without the hosts in it: a served model may move; #MODEL and the names before = stay."""
    return re.sub(r"https?://[^,#]*", "http://", value) if isinstance(value, str) else value


class Run:
    """runs/NAME: its configuration, its files, its log, its times."""

    def __init__(self, cfg, argv: list[str]):
        self.cfg, self.path, self.first = cfg, Path("runs") / cfg.run, rank_and_world()[0] == 0
        if cfg.offload == "auto":
            fits = device_of(cfg) == "cpu" or everything_fits(cfg)
            cfg.offload = "none" if fits else "phase"
        self.known_judge = None
        self.device, self.mesh = device_of(cfg), start_ranks(device_of(cfg).partition(":")[0])
        if self.first and not cfg.resume:
            shutil.rmtree(self.path, ignore_errors=True)
        barrier()
        mine = dataclasses.asdict(cfg)
        for name in ("data", "teachers_file", "sft_data"):
            file = getattr(cfg, name)
            mine[f"{name}_hash"] = hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16] if file else ""
        self.path.mkdir(parents=True, exist_ok=True)
        if (self.path / "config.json").exists():
            theirs = json.loads((self.path / "config.json").read_text())["settings"]
            theirs = {f.name: f.default for f in dataclasses.fields(cfg)} | theirs  # made before a setting existed
            free = "stage resume run keep checkpoint_every threads device offload gpus gpu_memory".split()
            differ = [k for k in mine if k not in free and without_host(mine[k]) != without_host(theirs.get(k))]
            if differ:
                change = ", ".join(f"{k} {theirs.get(k)!r} -> {mine[k]!r}" for k in differ)
                raise UserError(
                    f"{self.path} holds a run of another configuration: {change}; "
                    "choose --run NAME, or --no-resume, which deletes it"
                )
        else:
            commit = subprocess.run(
                ["git", "describe", "--always", "--dirty"], cwd=HOME, capture_output=True, text=True
            )
            made = dict(command=shlex.join(["python", "train.py", *argv]), commit=commit.stdout.strip() or "unknown")
            versions = dict(
                python=platform.python_version(), torch=torch.__version__, transformers=transformers.__version__
            )
            self.write("config.json", dict(made, settings=mine, versions=versions))
        barrier()

    def judge(self, weak: bool = False) -> Judge:
        """The judge, loaded once. `weak`: as --judged and --judge-wrong make it for the loop; not for evaluation."""
        if self.known_judge is None:
            more = dict(cache=self.path / "verdicts.jsonl", random=self.cfg.random_weights and self.cfg.judge in JUDGES)
            self.known_judge = Judge(self.cfg.judge, device=self.device, mesh=self.mesh, **more)
            self.known_judge.away = self.cfg.offload == "phase"
        it = copy.copy(self.known_judge)
        if weak:
            it.judged, it.wrong = self.cfg.judged, self.cfg.judge_wrong
        return it

    def sharded(self, name: str | Path, **more):
        """A model to train: fp32 shards over all ranks, computing in --dtype."""
        return self.load(name, mesh=self.mesh, compute=compute_dtype(self.cfg), **more)

    def load_replica(self, name: str | Path):
        """A model to sample from: whole on every rank, in --dtype."""
        return self.load(name, dtype=compute_dtype(self.cfg))

    def load(self, name: str | Path, **more):
        """A model on this rank's device, with the run's limit on pictures."""
        random = self.cfg.random_weights and name == self.cfg.student and name in FULL
        it = load(name, self.cfg.seed, self.device, random_weights=random, **more)
        if isinstance(it, VLM):
            it.limit_pictures(self.cfg.image_tokens)
        if self.cfg.recompute and "mesh" in more:
            recompute_activations(it.base)
        return it

    def write(self, name: str, content) -> None:
        """Rank 0 writes a file of the run, whole or not at all: a text, bytes, or a value as JSON."""
        if self.first:
            is_raw = isinstance(content, str | bytes)
            write(self.path / name, content if is_raw else json.dumps(content, indent=1) + "\n")

    def log(self, name: str, **row) -> None:
        """Append one line to metrics.jsonl, samples.jsonl or timing.jsonl. Rank 0 does."""
        if not self.first:
            return
        with (self.path / name).open("a") as file:
            file.write(json.dumps(row) + "\n")

    def rows(self, name: str, stage: str = "") -> list[dict]:
        """The lines of a log, of one stage or of all; a line that a kill tore is left out."""
        lines = read_jsonl(self.path / name, ("stage",), torn=[])
        return [row for _, row in lines if stage in ("", row["stage"])]

    def rewind(self, stage: str, step: int) -> None:
        """Forget what a killed process logged of `stage` behind its last checkpoint: it will be logged again."""
        for name in ("metrics.jsonl", "samples.jsonl", "timing.jsonl"):
            rows = [r for r in self.rows(name) if r["stage"] != stage or 0 < step > r["step"]]
            self.write(name, as_jsonl(rows))


class Checkpoints:
    """Resumable state of one stage: weights and optimisers of `parts`, and `progress` (plain numbers).

    Written in the background, on a process group of its own (its threads talk while training does). A checkpoint counts
    once it has its final name, which it gets with a list of its files' sizes and checksums.
    """

    def __init__(self, run: Run, stage: str, parts: dict[str, tuple], every: int):
        self.run, self.stage, self.parts, self.every = run, stage, parts, every
        self.folder, self.group = run.path / "checkpoints", dist.new_group(backend="gloo")
        self.saving, self.seal = None, None  # the save on its way, and how rank 0's thread names it
        self.thread = ThreadPoolExecutor(1)

    def found(self) -> list[Path]:
        """Whole checkpoints of this stage, oldest first."""
        named = [p for p in self.folder.glob(f"{self.stage}-step*") if p.name.rpartition("step")[2].isdigit()]
        return sorted(named, key=lambda p: int(p.name.rpartition("step")[2]))

    def state(self, progress: dict) -> dict:
        """Everything that is saved; also the mould that a checkpoint is loaded into."""
        out = {"progress": progress}
        for name, (module, optimizer) in self.parts.items():
            out[name], out[f"{name}_optimizer"] = get_state_dict(module, optimizer)
        return out

    def save(self, step: int, progress: dict, now: bool = False) -> None:
        """Begin to save after `step` steps when it is time; the training goes on meanwhile."""
        if step % self.every and not now:
            return
        self.finish()
        part = self.folder / f"{self.stage}-step{step}.part"
        if self.run.first:
            shutil.rmtree(part, ignore_errors=True)
            self.folder.mkdir(exist_ok=True)
        barrier()
        state = self.state(dict(progress))
        self.saving = dcp.async_save(state, checkpoint_id=part, process_group=self.group)
        if self.run.first:
            self.seal = self.thread.submit(self.name, self.saving, part)

    def name(self, saving, part: Path) -> None:
        """Rank 0, when all ranks have written: checksums, the final name, and the oldest goes."""
        saving.result()
        (part / "sums.json").write_text(json.dumps({p.name: checksum(p) for p in sorted(part.iterdir())}))
        shutil.rmtree(part.with_suffix(""), ignore_errors=True)
        part.rename(part.with_suffix(""))
        for old in self.found()[: -self.run.cfg.keep]:
            shutil.rmtree(old)

    def finish(self) -> None:
        """Wait for the save on its way."""
        try:
            for going_on in filter(None, (self.saving, self.seal)):
                going_on.result()
        except (Exception, CheckpointException) as error:
            said = (str(error).strip() or repr(error)).splitlines()[-1][:120]
            raise UserError(
                f"{self.folder}: a checkpoint cannot be written ({said}); if the disk is full, make room: the same "
                "command goes on from the checkpoint before it"
            ) from None
        self.saving = self.seal = None
        barrier()

    def is_intact(self, path: Path) -> bool:
        """Are all files of a checkpoint what was written?"""
        try:
            sums = json.loads((path / "sums.json").read_text())
            mine = [checksum(path / name) == sums[name] for name in deal(sorted(sums))]
        except (OSError, ValueError):
            mine = [False]
        return all(all_gather(all(mine)))

    def resume(self, progress: dict) -> int:
        """Load the newest whole checkpoint into parts and `progress`; -> the number of steps done (0 without one).

        A damaged one is named and left out; the one before it is used.
        """
        step = 0
        for path in reversed(self.found()):
            if not self.is_intact(path):
                print(f"  {path} is damaged and left out")
                continue
            state = self.state(progress)
            dcp.load(state, checkpoint_id=path)
            progress |= state["progress"]
            for name, (module, optimizer) in self.parts.items():
                got = dict(model_state_dict=state[name], optim_state_dict=state[f"{name}_optimizer"])
                set_state_dict(module, optimizer, **got)
            print(f"  goes on from {path}")
            step = int(path.name.rpartition("step")[2])
            break
        self.run.rewind(self.stage, step)
        return step


def checksum(path: Path) -> list[int]:
    """[size, crc32] of a file."""
    crc, size = 0, 0
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            crc, size = zlib.crc32(block, crc), size + len(block)
    return [size, crc]


def adamw(module: torch.nn.Module, lr: float) -> torch.optim.Optimizer:
    """AdamW over what is trained, without weight decay."""
    trained = [p for p in module.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, lr=lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)


def update(
    optimizer: torch.optim.Optimizer, clip: float, loss: float, run: Run, stage: str, step: int, ids: list
) -> float:
    """One optimiser step on the gathered gradients; -> gradient norm. Stops the run BEFORE the step if anything is not
    finite.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for p in parameters:  # a batch without pictures gives the projector none: zeros keep the optimiser state whole
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    norm = full_tensor(torch.nn.utils.clip_grad_norm_(parameters, clip)).item()
    if not np.isfinite(norm) or not np.isfinite(loss):
        run.write(
            "not-finite.json", dict(stage=stage, step=step, loss=str(loss), gradient_norm=str(norm), questions=ids)
        )
        raise UserError(
            f"{stage} step {step}: loss {loss}, gradient norm {norm}; questions are in {run.path}/not-finite.json"
        )
    optimizer.step()
    optimizer.zero_grad()
    return norm


def total(x: float) -> float:
    """The sum over all ranks, added up in their order: the same number on each."""
    return float(sum(all_gather(x)))


def move(run: Run, device: str, *players) -> None:
    """With --offload phase these modules and optimisers go to `device`; else they stay where they are."""
    for x in players if run.cfg.offload == "phase" else ():
        if isinstance(x, torch.nn.Module):
            x.to(device)
        elif x is not None:
            for state in x.state.values():
                state |= {k: v.to(device) for k, v in state.items() if isinstance(v, torch.Tensor)}


def hold_memory(run: Run, replica: VLM, student: VLM, held: bool) -> None:
    """With --offload phase the weights that `replica` takes over from `student` get memory, or become empty tensors.

    `copy_trained` writes all of them before they are read again, so none is copied to the host. What the student does
    not train (the vision tower) stays on the GPU: `copy_trained` would not bring it back.
    """
    for name, theirs in student.named_parameters() if run.cfg.offload == "phase" else ():
        if theirs.requires_grad:
            mine = replica.get_parameter(name)
            mine.data = mine.new_empty(theirs.shape if held else 0)


@contextlib.contextmanager
def refreshed(run: Run, replica: VLM, student: VLM):
    """Inside the block `replica` has the student's present weights; with --offload phase it has them there only."""
    hold_memory(run, replica, student, True)
    copy_trained(replica, student)
    yield
    hold_memory(run, replica, student, False)


@contextlib.contextmanager
def on_gpu(run: Run, *players):
    """With --offload phase these modules and optimisers are on the GPU inside the block only."""
    move(run, run.device, *players)
    yield
    move(run, "cpu", *players)


def peak_memory_mb() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)
