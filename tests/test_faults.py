"""At least 300 broken inputs, from a seed: each ends in one line that names it, exit code 2, and nothing left behind.

Every input goes through the real command in this process, and a good run under the same name works afterwards; twenty
of them also run as real processes.
"""

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from PIL import Image

import engine.loading as loading
import engine.served as served
import train
from engine.command import run_command
from tests.helpers import HOME

GOOD = "--name x --data d.jsonl --teachers T --teachers-file said.jsonl --stage teachers".split()
Fault = tuple[str, list[str], str]  # what is broken, the flags, what the line has to say (a regular expression)


def good_folder(folder: Path) -> None:
    """Twelve questions with pictures, and four responses to each."""
    rows = [dict(id=f"q{i}", image=f"{i}.png", question="what color is it?", answer="red") for i in range(12)]
    said = [dict(question=r["id"], teacher="T", text="it is red") for r in rows for _ in range(4)]
    for i, row in enumerate(rows):
        Image.new("RGB", (42, 42), (i, 10 * i, 99)).save(folder / row["image"])
    for file, lines in (("d.jsonl", rows), ("said.jsonl", said)):
        (folder / file).write_text("".join(json.dumps(line) + "\n" for line in lines))


def changed(file: str, line: int, change: Callable[[dict], object]) -> None:
    """Replace one line by what `change` makes of its object: bytes, a text, or a value as JSON."""
    lines = Path(file).read_bytes().splitlines(keepends=True)
    new = change(json.loads(lines[line]))
    new = new if isinstance(new, bytes) else new.encode() if isinstance(new, str) else json.dumps(new).encode()
    Path(file).write_bytes(b"".join([*lines[:line], new + b"\n", *lines[line + 1 :]]))


WRONG = [None, True, [], {}, ["a"], {"a": 1}, "", " \t ", float("nan"), float("inf"), "half \ud83d"]
TORN = ["{", "[1, 2]", '"text"', "7", "null", "{'id': 1}", '{"id": "a",}', "id,question,answer", "[" * 20_000, "\0"]
TORN += [
    '{"id": "a"} {"id": "b"}',
    "9" * 5000,
    '{"id": ' + "9" * 5000 + "}",
    '{"n": ' * 3000,
    "<html></html>",
    "\ufeff{",
]


def lines(rng: random.Random) -> Iterator[Fault]:
    """Lines of --data: fields of other types, missing or doubled ones, and text that is no JSON object."""
    for field in ("id", "question", "answer"):
        for value in WRONG:
            at = rng.randrange(12)
            changed("d.jsonl", at, lambda row, f=field, v=value: row | {f: v})
            yield f"{field} = {value!r}", GOOD, rf"d\.jsonl:{at + 1}: "
        at = rng.randrange(12)
        changed("d.jsonl", at, lambda row, f=field: {k: v for k, v in row.items() if k != f})
        yield f"no {field}", GOOD, rf"d\.jsonl:{at + 1}: field '{field}' is missing"
    for text in TORN:
        at = rng.randrange(12)
        changed("d.jsonl", at, lambda row, t=text: t)
        yield f"line {text[:20]!r}", GOOD, rf"d\.jsonl:{at + 1}: "
    changed("d.jsonl", 11, lambda row: row | dict(id="q3"))
    yield "a doubled id", GOOD, r"d\.jsonl:12: id 'q3' stands already at d\.jsonl:4"
    changed("d.jsonl", 2, lambda row: row | dict(images=["1.png"]))
    yield "image and images", GOOD, r"d\.jsonl:3: both"


def encodings(rng: random.Random) -> Iterator[Fault]:
    """Files of both kinds in other encodings than UTF-8, or no text at all."""
    for file in ("d.jsonl", "said.jsonl"):
        for name in ("latin-1", "cp1252", "shift-jis", "gb18030", "euc-kr", "koi8-r", "utf-16", "utf-16-le", "utf-32"):
            at = rng.randrange(12)
            letter = {"shift-jis": "\u8d64", "gb18030": "\u7ea2", "euc-kr": "\ube68", "koi8-r": "\u0431"}.get(
                name, "\u00e9"
            )
            changed(file, at, lambda row, c=letter: json.dumps(row | dict(question=f"q{c}"), ensure_ascii=False))
            Path(file).write_bytes(Path(file).read_bytes().decode().encode(name))
            yield f"{file} in {name}", GOOD, rf"{re.escape(file)}(:\d+)?: "
        for name, raw in (
            ("gzip", b"\x1f\x8b\x08\0\0\0\0\0"),
            ("zip", b"PK\x03\x04"),
            ("nothing", b""),
            ("zeros", b"\0" * 99),
        ):
            Path(file).write_bytes(raw)
            yield f"{file} is {name}", GOOD, rf"{re.escape(file)}(:\d+)?: "


def pictures(rng: random.Random) -> Iterator[Fault]:
    """What is no picture, or cannot be read as one."""
    png = Path("0.png").read_bytes()
    Image.new("RGB", (64, 64)).save("big.jpg")
    Image.radial_gradient("L").save("big.png")
    size = (1 << 16).to_bytes(4, "big") * 2
    files = {
        "empty": b"", "half": Path("big.png").read_bytes()[:900], "jpeg": Path("big.jpg").read_bytes()[:200],
        "text": b"not a picture", "html": b"<!DOCTYPE html><html></html>",
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "pdf": b"%PDF-1.7\n", "heic": b"\0\0\0\x18ftypheic" + b"\0" * 16, "zip": b"PK\x03\x04" + b"\0" * 40,
        "json": b"{}", "noise": rng.randbytes(500), "gif": b"GIF89a\0\0\0\0", "bmp": b"BM" + b"\0" * 20,
        "bomb": png[:16] + size + png[24:], "tiff": b"II*\0" + b"\xff" * 8, "webp": b"RIFF\x24\0\0\0WEBPVP8 ",
    }  # fmt: skip
    for name, raw in files.items():
        at = rng.randrange(12)
        Path(f"{at}.png").write_bytes(raw)
        yield f"picture {name}", GOOD, rf"d\.jsonl:{at + 1}: {at}\.png"
    for name, make in {
        "a folder": os.mkdir, "a pipe": os.mkfifo, "a loop": lambda p: os.symlink(p, p),
        "a dangling link": lambda p: os.symlink("nowhere.png", p), "a device": lambda p: os.symlink("/dev/zero", p),
        "missing": lambda p: None,
    }.items():  # fmt: skip
        at = rng.randrange(12)
        os.remove(f"{at}.png")
        make(f"{at}.png")
        yield f"picture is {name}", GOOD, rf"d\.jsonl:{at + 1}: {at}\.png"
    for name in ("no.png", "a\0b.png", "x" * 300 + ".png", "http://host/a.png", "~/a.png", "", 3, {"bytes": "iVBOR"}):
        at = rng.randrange(12)
        changed("d.jsonl", at, lambda row, n=name: row | dict(image=n))
        yield f"image = {str(name)[:20]!r}", GOOD, rf"d\.jsonl:{at + 1}: "


def teachers_files(rng: random.Random) -> Iterator[Fault]:
    """Lines of --teachers-file: fields of other types, other teachers, other questions."""
    for field in ("question", "teacher", "text"):
        for value in WRONG if field != "text" else [x for x in WRONG if not isinstance(x, str)] + ["half \ud83d"]:
            at = rng.randrange(48)
            changed("said.jsonl", at, lambda row, f=field, v=value: row | {f: v})
            yield f"{field} = {value!r}", GOOD, rf"said\.jsonl:{at + 1}: "
        at = rng.randrange(48)
        changed("said.jsonl", at, lambda row, f=field: {k: v for k, v in row.items() if k != f})
        yield f"no {field}", GOOD, rf"said\.jsonl:{at + 1}: field '{field}' is missing"
    for value in ("false", 0, 1, None, [], "yes"):
        at = rng.randrange(48)
        changed("said.jsonl", at, lambda row, v=value: row | dict(finished=v))
        yield f"finished = {value!r}", GOOD, rf"said\.jsonl:{at + 1}: field 'finished'"
    for text in TORN:
        at = rng.randrange(48)
        changed("said.jsonl", at, lambda row, t=text: t)
        yield f"line {text[:20]!r}", GOOD, rf"said\.jsonl:{at + 1}: "
    for field, value in (("teacher", "U"), ("question", "z")):
        for at in range(48):
            changed("said.jsonl", at, lambda row, f=field, v=value: row | {f: v})
        yield f"every {field} is {value}", GOOD, r"said\.jsonl: no response of 'T' to any training question"
    yield "a file that is missing", [*GOOD[:-3], "no.jsonl", *GOOD[-2:]], r"no\.jsonl: no such file"
    yield "a folder", [*GOOD[:-3], ".", *GOOD[-2:]], r"\.: a folder"


def student_folders(rng: random.Random) -> Iterator[Fault]:
    """Folders of a student that are damaged, of another kind, or none."""

    def spoil(file: str, change: Callable[[bytes], bytes | None]) -> Fault:
        new = change(Path("student", file).read_bytes())
        Path("student", file).unlink()
        if new is not None:
            Path("student", file).write_bytes(new)
        return f"{file} spoilt", [*GOOD, "--student", "student"], "student"

    loading.save(loading.load("tiny-qwen", 1), "student")
    shutil.copytree("student", "whole")
    config = json.loads(Path("student/config.json").read_text())
    parts = ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
    for file in (*parts, *(p.name for p in Path("student").glob("*processor_config.json"))):
        for change in (
            lambda raw: None,
            lambda raw: raw[: len(raw) // 2],
            lambda raw: b"",
            lambda raw: rng.randbytes(64),
            lambda raw: b"[]",
        ):
            yield spoil(file, change)
            shutil.rmtree("student", ignore_errors=True)
            shutil.copytree("whole", "student")
    for more in (dict(model_type="gpt9"), dict(model_type=None), dict(quantization_config=dict(quant_method="awq"))):
        yield spoil("config.json", lambda raw, m=more: json.dumps(config | m).encode())
        shutil.rmtree("student")
        shutil.copytree("whole", "student")
    for name in ("nowhere", "0.png", "d.jsonl", ".", "", "tiny-qwne", "student/config.json", "student.zip"):
        yield f"--student {name!r}", [*GOOD, "--student", name], re.escape(name)


NUMBERS = (
    "--steps --questions-per-step --group-size --lr --d-lr --beta --max-new-tokens --micro-batch --seed --mu".split()
)


def flags(rng: random.Random) -> Iterator[Fault]:
    """Unknown flags, values that are none, and settings that do not go together."""
    for flag in NUMBERS:
        for value in rng.sample(["-1", "nan", "inf", "many", "1,5", "", "1e", "0x10", "--", "1 2", "½"], 6):
            yield f"{flag} {value}", [*GOOD, flag, value], flag
    for flag in ("--stpes", "--nmae", "--student-", "-x", "--teachers-files", "--config", "--learning-rate"):
        yield flag, [*GOOD, flag, "1"], flag
    for flag in ("--stage", "--algo", "--similarity", "--sampling", "--dtype", "--offload", "--teacher-use"):
        yield f"{flag} other", [*GOOD, flag, rng.choice(["other", "None", "RIL", "fp64"])], flag
    for name in ("", ".", "..", "a/b", "/tmp/x", "../x"):
        yield f"--name {name!r}", [*GOOD, "--name", name], "--name"
    for more in (
        "--judged 0 --similarity none", "--judged 2", "--judge-wrong 1.5", "--frozen hair", "--algo sft --mu 2",
        "--group-size 1 --algo dr_grpo", "--d-lr 0 --d-steps 0", "--no-resume --stage ril", "--similarity oracle",
        "--reward r.py --judge rule", "--algo gail --teacher-use none", "--teachers T,T",
        "--teacher-use discriminator --similarity none",
        "--teachers T,", "--d-input picture --similarity none", "--judge nobody", "--data no.jsonl",
    ):  # fmt: skip
        yield more, [*GOOD, *more.split()], ""


REPLIES = [
    b"",
    b"{",
    b"null",
    b"[]",
    b'{"data": null}',
    b'{"data": [{}]}',
    b'{"data": [1]}',
    b"<html>",
    b"\xff\xfe",
    b'"x"',
]
REPLIES += [b'{"error": {"message": "no such key"}}', b'{"detail": "Not Found"}', b"[" * 20_000, b"9" * 5000]
CODES = [400, 401, 403, 404, 405, 410, 422, 429, 500, 502, 503]


def server_replies(rng: random.Random) -> Iterator[Fault]:
    """A server that lists its models in another form, refuses, or is no server at all."""
    answer = {}

    class Broken(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(answer["code"])
            self.send_header("Content-Length", str(len(answer["body"])))
            self.end_headers()
            self.wfile.write(answer["body"])

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Broken)
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        for code, body in [(200, body) for body in REPLIES] + [(code, rng.choice(REPLIES)) for code in CODES]:
            answer |= dict(code=code, body=body)
            yield f"{code} {body[:20]!r}", [*GOOD, "--judge", url], re.escape(url)
    finally:
        server.shutdown()
        server.server_close()
    yield "nobody listens", [*GOOD, "--judge", url], re.escape(url)
    for wrong in ("http://", "http://host:99999999/v1", "http://ho st/v1", "https://?"):
        yield wrong, [*GOOD, "--judge", wrong], re.escape(wrong)


KINDS = [lines, encodings, pictures, teachers_files, student_folders, flags, server_replies]


def clean() -> None:
    """Make the current folder good again."""
    for path in Path().iterdir():
        if path.name not in ("student", "whole"):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    good_folder(Path())


def faults_of(kind: Callable) -> Iterator[Fault]:
    """The faults of a kind, each in the current folder, which is made good again after each."""
    for fault in kind(random.Random(kind.__name__)):
        yield fault
        clean()


def ended(argv: list[str], capsys) -> tuple[int, str]:
    """(exit code, standard error) of the command in this process."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        run_command(lambda: train.main(argv))
    return end.value.code, capsys.readouterr().err


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A good folder as the current one, with a cache of pictures; servers are asked twice, without a pause."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.parent / f"{tmp_path.name}-cache"))
    init = served.Server.__init__
    monkeypatch.setattr(
        served.Server, "__init__", lambda self, *a, **m: init(self, *a, **m | dict(tries=2, sleep=print))
    )
    good_folder(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_broken_input_is_one_line_and_leaves_nothing(kind, here, capsys):
    wrong, count = [], 0
    for what, argv, says in faults_of(kind):
        code, error = ended(argv, capsys)
        *_, last = error.splitlines() or [""]
        good = code == 2 and last.startswith("error: ") and re.search(says, last) and "Traceback" not in error
        if not good or len(last) > 600 or Path("runs").exists():
            wrong.append((what, code, error[-300:], Path("runs").exists()))
        count += 1
    assert not wrong, "\n".join(map(str, wrong))
    assert count >= 24
    train.main(GOOD)  # nothing of all that is in the way
    assert len(Path("runs/x/teachers.jsonl").read_text().splitlines()) > 0


def test_there_are_at_least_300(here):
    counts = [sum(1 for _ in faults_of(kind)) for kind in KINDS]
    assert sum(counts) >= 300 and min(counts) >= 12, counts


@pytest.mark.parametrize("part", range(4))
def test_real_processes_end_in_the_same_line(part, here):
    kinds = [kind for kind in KINDS if kind is not server_replies]  # whose pauses a process would really make
    for i in range(5 * part, 5 * part + 5):
        faults = faults_of(kinds[i % len(kinds)])
        for _ in range(random.Random(i).randrange(12)):
            next(faults)
        what, argv, says = next(faults)
        env = dict(os.environ, OMP_NUM_THREADS="1")
        ran = subprocess.run([sys.executable, HOME / "train.py", *argv], env=env, capture_output=True, text=True)
        assert ran.returncode == 2 and "Traceback" not in ran.stderr, (what, ran.stderr)
        assert re.search(says, ran.stderr.splitlines()[-1]) and not Path("runs").exists(), (what, ran.stderr)
        faults.close()
        clean()
