"""What surrounds a run: one process per folder, an end at a signal, and an end when ranks hang."""

import contextlib
import json
import os
import platform
import signal
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import torch.distributed as dist

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

    fcntl = None

from engine.command import UserError
from engine.sharding import all_gather, barrier, here, rank_and_world

HOME = Path(__file__).resolve().parent.parent
OURS = (HOME, HOME / "engine", HOME / "tiny", HOME / "tools")
FRESH = 120  # seconds: a lock of another machine that was touched since then is in use


@contextlib.contextmanager
def in_background(work):
    """Inside, a thread runs work(ended); `ended` is set when the block ends."""
    ended = threading.Event()
    thread = threading.Thread(target=work, args=(ended,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(15)  # one that is inside torch when Python ends would abort the process


# ------------------------------------------------------------------------------------------------ one process a folder
def lock(file) -> None:
    """Lock an open file until its process ends. Raises BlockingIOError or PermissionError where another has it."""
    if fcntl:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        file.seek(2**30)  # Windows keeps others from reading what is locked: a byte far behind the text
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)


def take_lock(file) -> str:
    """Lock an open file and write into it who has it; -> "", or who has it already.

    The system frees the lock when its process ends, also by SIGKILL. Some file systems lock on one machine only, so
    the holder also touches the file every 30 seconds.
    """
    who, age = file.read(), time.time() - os.fstat(file.fileno()).st_mtime
    try:
        lock(file)
    except (BlockingIOError, PermissionError):
        return f"in use by {who or 'another process'}; wait for it, stop it, or choose another --name"
    except OSError as error:
        print(f"WARNING: {file.name}: no locks here ({error.strerror}): do not start two runs under one --name")
    if who and f" on {platform.node()}, " not in who and age < FRESH:
        return (
            f"in use {age:.0f} s ago by {who}; that machine cannot be asked from here: if the process is dead, "
            f"wait {FRESH} s or delete {file.name}"
        )
    if who:
        print(f"{file.name}: taken over from {who}, which is dead")
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}, started {time.strftime('%Y-%m-%d %H:%M:%S')}")
    file.flush()
    return ""


@contextlib.contextmanager
def locked(folder: Path):
    """Inside, no other process runs in `folder`, which is made if need be. Rank 0 holds the lock, folder/lock.

    Raises UserError on all ranks when the folder is in use or cannot be written.
    """
    wrong, file = "", None
    if rank_and_world()[0] == 0:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = (folder / "lock").open("a+", encoding="utf-8", newline="\n")
            file.seek(0)
            wrong = take_lock(file)
        except OSError as error:
            wrong = f"cannot be written ({error.strerror}); choose another --name, or run in another folder"

    def touch(ended):
        while not ended.wait(FRESH / 4):
            with contextlib.suppress(OSError):
                os.utime(folder / "lock")

    with file or contextlib.nullcontext():
        for reason in filter(None, all_gather(wrong)):
            raise UserError(f"{folder}: {reason}")
        if not file:
            yield
            return
        try:
            with in_background(touch):
                yield
        finally:
            file.truncate(0)


# ------------------------------------------------------------------------------------------------ signals
class Stopped(KeyboardInterrupt):
    """SIGTERM or Ctrl-C, by its number, and where the work stopped; the exit code is 128 + the number."""

    def __init__(self, number: int, where: str = ""):
        super().__init__(f"stopped {where}".strip())
        self.code = 128 + number


stop = SimpleNamespace(signal=0, in_steps=False)  # the signal that asked to stop; do steps end with a look at it?


@contextlib.contextmanager
def stoppable():
    """Inside, SIGTERM and Ctrl-C raise Stopped at once; while `stop.in_steps` they set `stop.signal` instead.

    A second Ctrl-C ends the process at once. A second SIGTERM changes nothing: a scheduler and torchrun may both send
    one. In a thread other than the main one (some notebooks) Python allows no handlers, and nothing changes.
    """
    stop.signal, stop.in_steps = 0, False
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def asked(number, _frame):
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if not stop.in_steps:
            raise Stopped(number)
        stop.signal = number
        if rank_and_world()[0] == 0:  # not by print, which may be what the signal interrupts
            os.write(2, b"\nstopping at the end of this step; Ctrl-C again stops at once\n")

    before = {number: signal.signal(number, asked) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        stop.in_steps = False
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


# ------------------------------------------------------------------------------------------------ ranks that hang
def place_of(thread: int) -> tuple[int, list[int], str]:
    """Where a thread is: collectives entered, its line in each of our functions that is under way, and that in words.

    Ranks run the same lines in the same order: the one with the smaller place is behind.
    """
    lines, frame = [], sys._current_frames().get(thread)
    while frame:
        file = Path(frame.f_code.co_filename).resolve()
        if file.parent in OURS:
            lines.append((frame.f_lineno, f"{file.name}:{frame.f_lineno} {frame.f_code.co_name}"))
        frame = frame.f_back
    return here.meetings, [n for n, _ in lines[::-1]], f"{here.step}, in {' < '.join(said for _, said in lines[:4])}"


def watch(store, timeout: float, thread: int, ended: threading.Event) -> None:
    """End this process when no rank has moved for `timeout` seconds. The first of the furthest ranks says who hangs."""
    (rank, world), pause, places, still = rank_and_world(), min(5.0, timeout / 4), [], 0.0
    while still < timeout:
        if ended.wait(pause):
            return
        before = places
        with contextlib.suppress(RuntimeError):  # a store that does not answer shows no movement
            store.set(f"place {rank}", json.dumps(place_of(thread)))
            places = [json.loads(store.get(f"place {r}")) for r in range(world)]
        still = still + pause if places == before else 0.0  # counted: while a job is suspended, no time passes
    furthest = max(place[:2] for place in places)
    behind = [r for r in range(world) if places[r][:2] != furthest]
    first = next(r for r in range(world) if r not in behind)
    missing = f"rank {', '.join(map(str, behind))} ({places[behind[0]][2]})" if behind else "the network: all are there"
    if rank == first or ended.wait(10):  # the others give it time to say so
        print(
            f"error: nothing moved for {timeout:g} s: rank {first} ({places[first][2]}) waits for {missing}; "
            "the same command goes on from the last checkpoint; `timeout` is in config.py",
            file=sys.stderr,
            flush=True,
        )
    os._exit(1)


@contextlib.contextmanager
def watched(timeout: float):
    """Inside, a job of several ranks ends when no rank moves for `timeout` seconds, and says where each hangs.

    A rank moves when it enters a collective of ours or another line of our code. So a download, a slow server, or one
    rank's long phase ends nothing. The ranks tell each other their places through torch's store.
    """
    rank, world = rank_and_world()
    if world == 1:
        yield
        return
    where, me = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), threading.get_ident()
    store = dist.TCPStore(*where, is_master=False, timeout=timedelta(seconds=10))
    store.set(f"place {rank}", json.dumps(place_of(me)))
    barrier()  # now each has one
    with in_background(lambda ended: watch(store, timeout, me, ended)):
        yield
