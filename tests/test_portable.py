"""Windows and macOS, simulated on Linux: run-time code does without what only POSIX has, and names its encodings."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import HOME, OURS, own_questions

RESULTS = sorted((HOME / "results").glob("*.py"))
BAD = set('<>:"\\|?*')  # what no name of a file may have on Windows


# ------------------------------------------------------------------------------------------------ encodings
def unnamed(source: str) -> list[int]:
    """Lines that open a text without encoding="utf-8", or that write one without newline="\\n"."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        named = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
        texts = [x.value for x in node.args if isinstance(x, ast.Constant) and isinstance(x.value, str)]
        if name == "open":
            mode = named.get("mode", next((x for x in texts if set(x) <= set("rwax+bt")), "r"))
            owner = getattr(getattr(node.func, "value", None), "id", "")
            if "b" in mode or owner in ("os", "Image", "self"):  # self.open of engine/served.py is urllib's
                continue
        elif name in ("read_text", "write_text"):
            mode = name[0]
        else:
            continue
        wrong = not named.get("encoding", "").startswith("utf-8")
        if wrong or (set(mode) & set("wax+") and named.get("newline") != "\n"):
            found.append(node.lineno)
    return found


def test_text_files_are_utf_8_with_plain_line_ends_on_every_system():
    assert unnamed("open(p)\np.open('a', encoding='utf-8')\np.read_text()\np.write_text('é', newline='\\n')") == [
        1,
        2,
        3,
        4,
    ]
    assert unnamed("open(p, 'rb')\np.read_text(encoding='utf-8')\nopen(p, 'w', encoding='utf-8', newline='\\n')") == []
    files = [*OURS, *RESULTS, HOME / "docs/figures.py"]
    assert len(files) > 50 and {f.name: x for f in files if (x := unnamed(f.read_text(encoding="utf-8")))} == {}


def test_a_console_without_a_letter_shows_its_number():
    code = "from engine.command import run_command\nrun_command(lambda: print('a € 日'))"
    env = dict(os.environ, PYTHONIOENCODING="cp1252", PYTHONUTF8="0")
    done = subprocess.run([sys.executable, "-c", code], cwd=HOME, env=env, capture_output=True, check=True)
    assert done.stdout.decode("cp1252").strip() == r"a € \u65e5"


# ------------------------------------------------------------------------------------------------ without POSIX
WINDOWS = r"""
import builtins, fcntl, os, shutil, signal, sys, types
import torch.distributed as dist
home = sys.argv.pop(1)
sys.path.insert(0, home)

def locking(file, mode, count):
    assert mode == 2 and count == 1 and os.lseek(file, 0, os.SEEK_CUR) >= 2**30, "a byte that nobody reads"
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise PermissionError(13, "Permission denied") from None

real_import = builtins.__import__
def without(name, where=None, *more, **named):
    "Our files cannot import these; torch and transformers, built for Linux, still do."
    folder = os.path.dirname((where or {}).get("__file__") or "")
    if folder in [home, *(os.path.join(home, x) for x in ("engine", "tiny", "tools", "results"))]:
        if name in "fcntl resource pwd grp termios tty pty syslog posix".split():
            raise ModuleNotFoundError(f"No module named '{name}'")
        if name == "msvcrt":
            return types.SimpleNamespace(LK_NBLCK=2, locking=locking)
    return real_import(name, where, *more, **named)
builtins.__import__ = without

import train, eval
from engine.command import UserError, run_command
from engine.guard import locked

POSIX = "fork forkpty killpg kill setsid setpgid getuid geteuid getgid getpgid statvfs fstatvfs sysconf chown mkfifo "
POSIX += "sched_getaffinity getloadavg nice wait3 wait4 uname sync O_NONBLOCK pread pwrite fchmod"
for name in POSIX.split():
    delattr(os, name)
for name in "SIGKILL SIGHUP SIGALRM SIGUSR1 SIGUSR2 SIGCHLD SIGPIPE SIGQUIT alarm setitimer pthread_kill pause".split():
    delattr(signal, name)
del dist.HashStore  # torch/distributed/__init__.py leaves it out there

def in_use(path):
    "Is a file, or one below a folder, open or mapped? Then Windows neither deletes, renames nor replaces it."
    path = os.path.realpath(path)
    held = [line.split(maxsplit=5)[-1].strip() for line in open("/proc/self/maps")]
    for one in os.listdir("/proc/self/fd"):
        try:
            held.append(os.readlink(f"/proc/self/fd/{one}"))
        except OSError:
            pass
    return any(x == path or x.startswith(path + os.sep) for x in held)

def guarded(real, new):
    def call(path, *more, **named):
        if more and new and os.path.exists(more[0]):
            raise FileExistsError(17, "Cannot create a file when that file already exists", str(more[0]))
        for x in (path, *more[:1]):
            if in_use(x):
                raise PermissionError(13, "The process cannot access the file because it is being used", str(x))
        return real(path, *more, **named)
    return call

shutil._use_fd_functions = False  # rmtree by names, as there
for name in ("rename", "replace", "unlink", "remove", "rmdir"):
    setattr(os, name, guarded(getattr(os, name), name == "rename"))
def symlink(*_, **__):
    raise OSError(22, "A required privilege is not held by the client")
os.symlink = symlink
"""


def on_windows(cwd: Path, code: str, *flags: str) -> subprocess.CompletedProcess:
    """`code` after that prelude; files that name no encoding are ASCII, and the console has cp1252."""
    env = dict(os.environ, OMP_NUM_THREADS="1", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    env |= dict(PYTHONIOENCODING="cp1252", XDG_CACHE_HOME=str(cwd / "cache"))
    argv = [sys.executable, "-c", WINDOWS + code, str(HOME), *flags]
    return subprocess.run(argv, cwd=cwd, env=env, capture_output=True, timeout=600)


RUN = "--pool 16 --valid-questions 8 --test-questions 8 --questions-per-step 2 --group-size 2 --teacher-samples 2 "
RUN += "--d-steps 1 --steps 3 --eval-every 1 --eval-draws 1 --checkpoint-every 1 --max-new-tokens 30 --data mine.jsonl"


TWICE = """
from pathlib import Path
flags = sys.argv[1:]
train.main(flags)
shutil.rmtree("runs/demo/last")
train.main(flags)  # from here on
eval.main("--student runs/demo/student --into again --questions 2 --draws 1".split())
with locked(Path("runs/demo")):
    held = Path("runs/demo/lock").read_text(encoding="utf-8")
    try:
        with locked(Path("runs/demo")):
            print("two at once")
    except UserError as error:
        print(error)
print(held.startswith(f"process {os.getpid()} on "), len(held) < 200, Path("runs/demo/lock").stat().st_size)
"""


@pytest.fixture(scope="module")
def windows(tmp_path_factory) -> tuple[Path, list[str]]:
    """(a folder with a whole run, what was said): a student's folder, a teacher on a drive, non-ASCII questions."""
    cwd = tmp_path_factory.mktemp("windows")
    lines = (cwd / own_questions(cwd, 24)).read_text(encoding="utf-8").replace("what", "日本 what")
    (cwd / "mine.jsonl").write_text(lines, encoding="utf-8")
    shutil.copytree(HOME / "results/students/tiny-qwen-seed0", cwd / "student")
    shutil.copytree(HOME / "results/teachers/tiny-qwen-teacher", cwd / "C:\\models\\teacher")
    done = on_windows(cwd, TWICE, *RUN.split(), "--student", "student", "--teachers", "C:\\models\\teacher")
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-3000:]
    return cwd, done.stdout.decode("cp1252").splitlines()


def test_a_whole_run_does_without_posix(windows):
    cwd, said = windows
    run = cwd / "runs/demo"
    assert {"summary.json", "samples.md", "curves.png", "student", "last"} <= {x.name for x in run.iterdir()}
    assert (cwd / "again/summary.json").is_file() and "warm start: skipped, runs/demo/sft/config.json is there" in said
    assert (run / "sft/model.safetensors").is_file() and not (run / "sft").is_symlink()  # links need a right there
    assert "日本" in (run / "samples.md").read_text(encoding="utf-8")
    assert len(list((run / "checkpoints").glob("ril-step*"))) == 2  # the oldest could be deleted


def test_no_file_of_a_run_has_a_name_that_windows_refuses(windows):
    names = [x.name for x in (windows[0] / "runs").rglob("*")]
    assert "teachers-C--models-teacher.part.jsonl" in names and not [x for x in names if BAD & set(x)]


def test_a_run_has_its_folder_alone_without_flock(windows):
    first, last = windows[1][-2:]
    assert first.startswith("runs/demo: in use by process") and last == "True True 0"


def test_shipped_files_keep_their_bytes_when_git_checks_them_out_on_windows():
    asked = ["git", "check-attr", "eol", "train.py", "results/teachers/tiny-qwen-teacher/responses.jsonl"]
    said = subprocess.run(asked, cwd=HOME, capture_output=True, text=True, check=True).stdout
    assert said.count("eol: lf") == 2
