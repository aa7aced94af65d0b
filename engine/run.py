"""A run's folder: its settings, log and checkpoints, for one process and for many.

Rank 0 writes. Files get a temporary name and are then renamed; logs are appended. The stages are in train.py.
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import mmap
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import transformers
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

try:
    import resource
except ImportError:  # Windows
    resource = None

from config import is_real
from data import load_questions, questions_at, seed_of, split_questions
from engine.command import UserError, one_line
from engine.files import as_jsonl, read_jsonl, write
from engine.guard import Stopped, locked, stop, stoppable, watched
from engine.memory import out_of_memory
from engine.pictures import hash_pictures
from engine.sharding import all_gather, barrier, deal, gather_dealt, has_bf16, here, rank_and_world, start_ranks
from engine.tracker import open_tracker
from tiny.world import world_questions

HOME = Path(__file__).resolve().parent.parent


def device_of(cfg) -> str:
    """cpu, or this process's GPU."""
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    return kind if kind == "cpu" else f"cuda:{int(os.environ.get('LOCAL_RANK', 0))}"


def peak_memory_mb() -> float:
    """The largest resident memory of this process so far, in MiB; 0 on Windows, where Python does not say it."""
    if not resource:
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)


def memory_mb() -> float:
    """The resident memory of this process now, in MiB; where there is no /proc, the largest so far."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * mmap.PAGESIZE / 1024**2
    except OSError:
        return peak_memory_mb()


def set_up(cfg) -> None:
    """The process: its threads, determinism, its rank; fp32 in `cfg` where a GPU has no bf16. Rank 0 prints for all."""
    warnings.filterwarnings("ignore", message=".*(torch.distributed is disabled|TypedStorage|_get_pg_default_device).*")
    warnings.filterwarnings("ignore", message=".*past_key_values. is deprecated.*")  # transformers 5.24
    torch.set_num_threads(cfg.threads)
    if cfg.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    torch.use_deterministic_algorithms(cfg.deterministic or device_of(cfg) == "cpu")
    start_ranks(device_of(cfg).partition(":")[0])
    if rank_and_world()[0] and getattr(sys.stdout, "name", "") != os.devnull:
        sys.stdout = open(os.devnull, "w", encoding="utf-8", newline="\n")  # noqa: SIM115
    transformers.utils.logging.disable_progress_bar()
    if cfg.dtype == "bf16" and device_of(cfg) != "cpu" and not all(all_gather(has_bf16(device_of(cfg)))):
        cfg.dtype = "fp32"  # what config.json then says
        print("this GPU has no bf16: all is computed in fp32, in twice the memory")


def commit_of() -> str:
    """The commit of this code, with -dirty where a program differs from it (results that were written do not count)."""

    def git(*argv: str) -> str:
        try:
            return subprocess.run(["git", *argv], cwd=HOME, capture_output=True, text=True).stdout.strip()
        except OSError:  # no git on this machine
            return ""

    commit = git("rev-parse", "--short", "HEAD") or "unknown"
    return commit + "-dirty" * bool(git("status", "--porcelain", "--untracked-files=no", "--", "*.py", "*.sh"))


# ------------------------------------------------------------------------------------------------ questions
@functools.lru_cache(maxsize=2)
def questions_of(file: str, _folder: str, _state: tuple | None) -> list:
    """`load_questions`, once for a file in one state and working folder. Each rank decodes a share of the pictures."""
    return load_questions(file, hash_dealt)


def hash_dealt(pictures: list) -> list[str]:
    """hash_pictures, dealt to the ranks. A collective: all ranks stop together at a picture that cannot be read."""
    mine, wrong = [], ""
    try:
        mine = hash_pictures(deal(pictures))
    except UserError as error:
        wrong = str(error)
    for message in filter(None, all_gather(wrong)):
        raise UserError(message)
    return gather_dealt(mine)


@functools.lru_cache(maxsize=2)
def parts_of(*state: tuple) -> dict[str, list]:
    """The questions of a file, split once."""
    return split_questions(questions_of(*state))


def state_of(file: str) -> tuple:
    """What the questions of a file depend on, as arguments of `questions_of`."""
    found = os.stat(file) if Path(file).is_file() else None
    return file, os.getcwd(), found and (found.st_ino, found.st_size, found.st_mtime_ns)


def questions_in(file: str) -> list:
    """The questions of a file, read and checked once. A collective."""
    return questions_of(*state_of(file))


def whole_split(cfg) -> dict[str, list]:
    """All questions of --data: {"train", "valid", "test"}. A collective."""
    return dict(parts_of(*state_of(cfg.data)))


def split(cfg) -> dict[str, list]:
    """The run's questions: {"train", "valid", "test"}. The test part is read by the evaluate stage only."""
    sizes = {"train": cfg.pool, "valid": cfg.valid_questions, "test": cfg.test_questions}
    if cfg.data:
        parts = whole_split(cfg)
        parts["valid"] = sorted(parts["valid"], key=lambda q: seed_of("valid", q.id))[: cfg.valid_questions]
        return {name: part[: sizes[name]] for name, part in parts.items()} if cfg.pilot else parts
    cell = 112 if is_real(cfg.student) else 14  # pixels of a cell: 336 x 336 for a real student
    return {name: world_questions(name, size, cell=cell) for name, size in sizes.items()}


def taught_count(cfg, questions: int) -> int:
    """--taught as a number, of so many training questions."""
    return min(questions, max(1, round(cfg.taught * questions)) if cfg.taught <= 1 else int(cfg.taught))


def taught_questions(cfg, questions: list) -> list:
    """Those of all training questions that may have teacher text, in their order.

    Drawn by seed and id, so the 8 of --taught 8 are among the 32 of --taught 32, on any number of ranks.
    """
    drawn = sorted(questions, key=lambda q: seed_of(cfg.seed, "taught", q.id))
    taught = {q.id for q in drawn[: taught_count(cfg, len(questions))]}
    return [q for q in questions if q.id in taught]


def pretraining_questions(cfg, questions: list, usable: Iterable | None = None) -> tuple[list, list[list]]:
    """(held-out questions, those of each step) of D's pre-training; both empty where there is none.

    The order is that of ALL taught questions, so it is known before a teacher is asked. `usable` holds the ids of
    questions with a response (None: all); the others are skipped, and the order of the rest does not change. Of few
    taught questions a quarter is held out, else an eighth.
    """
    if cfg.discriminator == "none" or not cfg.d_steps:
        return [], []
    part, questions = 8 if cfg.taught == 1 else 4, taught_questions(cfg, questions)
    usable = {q.id for q in questions} if usable is None else set(usable)
    here = [q for q in questions if q.id in usable]
    held = here[: max(1, min(32, len(here) // part))]
    train = questions[max(1, min(32, len(questions) // part)) :]
    visited = usable - {q.id for q in held}
    if not any(q.id in visited for q in train):  # too few to hold one out
        train, visited = here, usable
    epochs = (questions_at(train, i, len(train), seed_of(cfg.seed, "d")) for i in itertools.count())
    stream = (q for epoch in epochs for q, _ in epoch if q.id in visited)
    return held, [list(itertools.islice(stream, cfg.questions_per_step)) for _ in range(cfg.d_steps)]


# ------------------------------------------------------------------------------------------------ settings
FREE = "stage resume name keep checkpoint_every tracker threads timeout gpus gpu_memory "  # may change on resume
FREE = (FREE + "offload optimizer_offload micro_batch rollout_rows recompute").split()  # help where memory runs out


def settings_of(cfg) -> dict:
    """Every setting of a run, a hash of each file that one of them names, and a hash of the split of --data."""
    out = dataclasses.asdict(cfg)
    for name in ("data", "teachers_file", "sft_data", "reward"):
        file = getattr(cfg, name)
        out[f"{name}_hash"] = hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16] if file else ""
    if cfg.data:  # the split goes by the pictures, which data_hash does not cover
        out["split_hash"] = f"{seed_of([(name, q.id) for name, part in whole_split(cfg).items() for q in part]):016x}"
    return out


def check_settings(folder: Path, cfg) -> None:
    """Compare these settings with the run in `folder`. Raises UserError that names those that differ."""
    try:
        file, ours = (folder / "config.json").read_text(encoding="utf-8"), settings_of(cfg)
        theirs = dict(json.loads(file)["settings"])
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{folder}/config.json is damaged and cannot be made anew: if this very command made the run, delete that "
            "file; else choose --name NAME, or --no-resume, which deletes the run"
        ) from None
    theirs = {f.name: f.default for f in dataclasses.fields(cfg)} | theirs  # a run older than a setting has its default
    differ = [k for k in ours if k not in FREE and without_host(ours[k]) != without_host(theirs.get(k))]
    if differ:
        change = ", ".join(f"{k} {theirs.get(k)!r} -> {ours[k]!r}" for k in differ)
        raise UserError(
            f"{folder} holds a run of another configuration: {change}; "
            "choose --name NAME, or --no-resume, which deletes it"
        )


def without_host(value):
    """A setting without the hosts in it: a served model may move; #MODEL and the names before = stay."""
    return re.sub(r"https?://[^,#]*", "http://", value) if isinstance(value, str) else value


# ------------------------------------------------------------------------------------------------ folder and log
class Run:
    """runs/NAME: its settings, files and log, and where its models are (device, mesh).

    command: what python was called with, for config.json.
    """

    def __init__(self, cfg, command: list[str]):
        self.cfg, self.path, self.first = cfg, Path("runs") / cfg.name, rank_and_world()[0] == 0
        self.device, self.mesh = device_of(cfg), start_ranks(device_of(cfg).partition(":")[0])
        self.known_judge = self.base = None  # engine/players.py
        self.trackers = {}  # engine/tracker.py
        self.path.mkdir(parents=True, exist_ok=True)
        for old in self.path.iterdir() if self.first else ():
            if not cfg.resume and old.name != "lock":
                shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
            elif old.name in ("summary.json", "seconds.json") and not self.read(old.name):
                print(f"{old} is damaged: it is made anew")
                old.unlink()
        barrier()
        if (self.path / "config.json").exists():
            check_settings(self.path, cfg)
        else:
            made = dict(command=shlex.join(["python", *command]), commit=commit_of(), settings=settings_of(cfg))
            versions = dict(python=platform.python_version(), torch=torch.__version__)
            self.write("config.json", made | dict(versions=versions | dict(transformers=transformers.__version__)))
        barrier()

    def write(self, name: str, content) -> None:
        """Rank 0 writes a file of the run, whole or not at all: a text, bytes, or a value as JSON."""
        if self.first:
            is_raw = isinstance(content, str | bytes)
            write(self.path / name, content if is_raw else json.dumps(content, indent=1) + "\n")

    def read(self, name: str) -> dict:
        """A JSON object of the run that can be made anew; {} where it is missing or damaged."""
        try:
            found = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = {}
        return found if isinstance(found, dict) else {}

    def log(self, name: str, **row) -> None:
        """Append one line to metrics.jsonl, samples.jsonl or timing.jsonl. Rank 0 does."""
        here.step = f"{row['stage']}, {row['step'] + 1} steps done"
        if not self.first:
            return
        with (self.path / name).open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(row) + "\n")
        if name == "metrics.jsonl" and self.cfg.tracker != "none":
            self.track(row["stage"], row)

    def track(self, stage: str, row: dict) -> None:
        """Give a row of metrics.jsonl to --tracker; at the beginning of a stage, all of its rows."""
        rows = [row] if stage in self.trackers else self.rows("metrics.jsonl", stage)
        put = self.trackers[stage] = self.trackers.get(stage) or open_tracker(self.cfg.tracker, self.path, stage)
        for r in rows:
            put(r["step"] + 1, {k: x for k, x in r.items() if k not in ("stage", "step")})

    def rows(self, name: str, stage: str = "") -> list[dict]:
        """The lines of a log, of one stage or of all; a line that a kill tore is left out."""
        lines = read_jsonl(self.path / name, ("stage", "step"), torn=[])
        return [row for _, row in lines if stage in ("", row["stage"])]

    def rewind(self, stage: str, step: int) -> None:
        """Remove the log lines of `stage` after its last checkpoint: the resumed run logs these steps again."""
        for name in ("metrics.jsonl", "samples.jsonl", "timing.jsonl"):
            rows = [r for r in self.rows(name) if r["stage"] != stage or 0 < step > r["step"]]
            self.write(name, as_jsonl(rows))


@contextlib.contextmanager
def open_run(cfg, command: list[str]):
    """A Run that is guarded: no other process has it, a signal ends it well, and so do ranks that hang."""
    with locked(Path("runs") / cfg.name), stoppable(), watched(cfg.timeout):
        try:
            yield Run(cfg, command)
        except torch.OutOfMemoryError as error:
            raise UserError(f"runs/{cfg.name}: {out_of_memory(cfg, error)}") from None


# ------------------------------------------------------------------------------------------------ checkpoints
class Checkpoints:
    """Resumable state of one stage: trained weights and optimisers of `parts`, and `progress` (plain numbers).

    Saved in the background, on a process group of its own, because training uses the other one at the same time. A
    checkpoint gets its final name when all ranks have written; only then is it used.
    """

    def __init__(self, run: Run, stage: str, parts: dict[str, tuple], every: int):
        self.run, self.stage, self.parts, self.every = run, stage, parts, every
        self.folder, self.group = run.path / "checkpoints", dist.new_group(backend="gloo")
        self.writing = []  # futures to wait for: the save, and rank 0's thread that renames the folder
        self.thread = ThreadPoolExecutor(1)

    def found(self) -> list[Path]:
        """The checkpoints of this stage, oldest first."""
        named = [p for p in self.folder.glob(f"{self.stage}-step*") if p.name.rpartition("step")[2].isdigit()]
        return sorted(named, key=lambda p: int(p.name.rpartition("step")[2]))

    def state(self, progress: dict) -> dict:
        """What is saved; also the state dict that a checkpoint is loaded into."""
        out = {"progress": progress}
        for name, (module, optimizer) in self.parts.items():
            weights, out[f"{name}_optimizer"] = get_state_dict(module, optimizer)
            trained = {k for k, p in module.named_parameters(remove_duplicate=False) if p.requires_grad}
            out[name] = {k: x for k, x in weights.items() if k in trained}  # what is frozen, the folders have
        return out

    def save(self, step: int, progress: dict) -> None:
        """Start a save every `every` steps; training continues while it is written.

        After a signal save at this step, wait until it is written, and raise Stopped, on all ranks together.
        """
        here.step = f"{self.stage}, {step} steps done"
        signal = max(all_gather(stop.signal))
        if step % self.every and not signal:
            return
        self.wait()
        part = self.folder / f"{self.stage}-step{step}.part"
        if self.run.first:
            shutil.rmtree(part, ignore_errors=True)
            self.folder.mkdir(exist_ok=True)
        barrier()
        saving = dcp.async_save(self.state(dict(progress)), checkpoint_id=part, process_group=self.group)
        self.writing = [saving, self.thread.submit(self.name, saving, part)] if self.run.first else [saving]
        if signal:
            self.wait()
            raise Stopped(signal, f"after step {step} of {self.stage}")

    def name(self, saving, part: Path) -> None:
        """Rank 0, when all ranks have written: note the sizes, rename the folder, delete the oldest checkpoint."""
        saving.result()
        write(part / "sizes.json", json.dumps({p.name: p.stat().st_size for p in sorted(part.iterdir())}))
        shutil.rmtree(part.with_suffix(""), ignore_errors=True)
        part.rename(part.with_suffix(""))
        for old in self.found()[: -self.run.cfg.keep]:
            shutil.rmtree(old)

    def finish(self) -> None:
        """After the last step: from now on signals stop at once."""
        self.wait()
        stop.in_steps = False
        if signal := max(all_gather(stop.signal)):
            raise Stopped(signal, f"after the last step of {self.stage}")

    def wait(self) -> None:
        """Wait for the save that is being written. Raises UserError when it failed."""
        try:
            for going_on in self.writing:
                going_on.result()
        except (Exception, CheckpointException) as error:
            raise UserError(
                f"{self.folder}: a checkpoint cannot be written ({one_line(error, -1)}); if the disk is full, make "
                "room: the same command goes on from the checkpoint before it"
            ) from None
        self.writing = []
        barrier()

    def is_intact(self, path: Path) -> bool:
        """Has every file of a checkpoint the size that was written?"""
        try:
            sizes = json.loads((path / "sizes.json").read_text(encoding="utf-8"))
            here = all((path / name).stat().st_size == size for name, size in sizes.items())
        except (OSError, ValueError):
            here = False
        return all(all_gather(here))

    def resume(self, progress: dict) -> int:
        """Load the newest intact checkpoint into parts and `progress`; -> the number of steps done (0 without one).

        A damaged one is named and skipped; the one before it is used.
        """
        step = 0
        for path in reversed(self.found()):
            if not self.is_intact(path):
                print(f"  {path} is damaged and left out")
                continue
            state = self.state(progress)
            try:
                dcp.load(state, checkpoint_id=path)
            except (Exception, CheckpointException) as error:
                raise UserError(
                    f"{path}: cannot be loaded ({one_line(error, -1)}); delete it, and the same command goes on from "
                    "the checkpoint before it"
                ) from None
            progress |= state["progress"]
            for name, (module, optimizer) in self.parts.items():
                got = dict(model_state_dict=state[name], optim_state_dict=state[f"{name}_optimizer"])
                set_state_dict(module, optimizer, **got, options=StateDictOptions(strict=False))
            print(f"  goes on from {path}")
            step = int(path.name.rpartition("step")[2])
            break
        self.run.rewind(self.stage, step)
        here.step, stop.in_steps = f"{self.stage}, {step} steps done", True
        return step
