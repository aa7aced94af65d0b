"""What several files of tests use. Fixtures are in tests/fixtures.py."""

import base64
import contextlib
import csv
import dataclasses
import inspect
import io
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from filelock import FileLock

import config
import data
import engine.loading as loading
import model
import rollout as ro
import tiny.world as tiny_world
import train

torch.set_num_threads(1)

HOME = Path(__file__).resolve().parent.parent
OURS = sorted(
    x for folder in (".", "engine", "tiny", "tools") for x in (HOME / folder).glob("*.py") if x != HOME / "test_ril.py"
)
STUDENTS = ["tiny-qwen", "tiny-internvl"]  # those with a teacher and a shipped warm start
FAMILIES = [*STUDENTS, "tiny-qwen3"]  # one of each
SMALL = "--pool 48 --valid-questions 24 --test-questions 24 --questions-per-step 4 --group-size 4".split()
SMALL += "--steps 6 --d-steps 8 --eval-every 3 --eval-draws 2 --checkpoint-every 2 --micro-batch 3 ".split()


def made_once(tmp_path_factory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder that `make(folder)` fills: made once, shared by pytest-xdist's workers. Tests must not change it."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with FileLock(f"{root}.lock"):
        if not root.is_dir():
            part = root.with_suffix(".part")
            part.mkdir()
            make(part)
            part.rename(root)
    return root


def command(cwd: Path, *flags: str) -> None:
    """train.py with these flags in this process, in folder `cwd`; name=VALUE sets a constant that is no flag."""
    before, names = os.getcwd(), {f.name: f.type for f in dataclasses.fields(config.Config)}
    is_constant = [x.partition("=")[0] in names and "=" in x for x in flags]
    constants = dict(x.split("=") for x, constant in zip(flags, is_constant, strict=True) if constant)
    flags = [x for x, constant in zip(flags, is_constant, strict=True) if not constant]
    os.chdir(cwd)
    try:
        cfg = dataclasses.replace(config.parse(flags), **{k: names[k](x) for k, x in constants.items()})
        train.run_all(cfg, ["train.py", *flags])
    finally:
        os.chdir(before)


def switched(straight: Path, tmp_path: Path, name: str, *flags: str, steps: int = 2) -> list[dict]:
    """Metrics of two RIL steps with these flags, from the straight run's warm start, teachers and discriminator."""
    run = tmp_path / "runs" / name
    shutil.copytree(straight / "sft", run / "sft")
    if list(flags) != ["--d-steps", "0"]:
        shutil.copytree(straight / "discriminator", run / "discriminator")
    if not {"--teachers", "--judged", "--judge-wrong"} & set(flags):
        shutil.copy(straight / "teachers.jsonl", run)
    argv = ["--name", name, *SMALL, "--steps", str(steps), "--eval-every", "0", "--valid-questions", "4", *flags]
    for stage in ("teachers", "discriminator", "ril"):
        if stage in train.stages_of(config.parse(argv)):
            command(tmp_path, *argv, "--stage", stage)
    lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    return [r for r in lines if r["stage"] == "ril" and "loss" in r]


def metrics(run: Path) -> list[dict]:
    return [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]


def torchrun(cwd: Path, ranks: int, script: Path, *flags: str) -> subprocess.CompletedProcess:
    """`script` in so many gloo processes; -- keeps torchrun from taking --name for one of its own flags."""
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks), "--"]
    argv += [str(script), *flags]
    env = dict(os.environ, PYTHONPATH=str(HOME), OMP_NUM_THREADS="1")
    return subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, timeout=600)


def questions_of_all_shapes() -> list[data.Question]:
    """Text-only, one picture of two sizes, two pictures: what may lie side by side in a batch."""
    world = tiny_world.world_questions("train", 3)
    wide = tiny_world.world_questions("train", 1, cell=14)[0].images[0].resize((56, 42))
    return [
        *world,
        data.Question("text", (), "how many red circle are in a row?", "3"),
        data.Question("wide", (wide,), "what color is at top left?", "red"),
        data.Question("two", (world[0].images[0], wide), "what shape is at top left?", "circle"),
    ]


def own_questions(folder: Path, count: int = 40, without: int = 0) -> str:
    """A JSONL file of tiny-world questions with their pictures; every `without`-th has none."""
    lines = []
    for i, q in enumerate(tiny_world.world_questions("train", count, seed=5)):
        q.images[0].save(folder / f"{i}.png")
        picture = {} if without and i % without == 0 else dict(image=f"{i}.png")
        lines.append(json.dumps(dict(id=q.id, question=q.text, answer=q.answer, **picture)))
    (folder / "mine.jsonl").write_text("\n".join(lines) + "\n")
    return "mine.jsonl"


def speaking(name: str, seed: int = 1) -> model.VLM:
    """A random student whose texts vary and end: the head's rows are scaled, the end token is made likely."""
    vlm = loading.load(name, seed)
    vlm.hf.lm_head.weight = torch.nn.Parameter(vlm.hf.lm_head.weight.detach().clone())
    with torch.no_grad():
        vlm.hf.lm_head.weight.mul_(4)
        vlm.hf.lm_head.weight[vlm.encoder.end] *= 1.5
    return vlm


def stock_inputs(vlm: model.VLM, prompt: model.Prompt, ids: torch.Tensor) -> dict:
    """Keyword arguments for the stock model, as its own processor would give them."""
    out = dict(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None])
    if prompt.pixels:
        out |= prompt.pixels
    if "mm_token_type_ids" in inspect.signature(vlm.hf.forward).parameters:
        out["mm_token_type_ids"] = (ids == vlm.base.config.image_token_id).int()[None]
    return out


def sampled(vlm, how=ro.PURE, questions=None, length=16, max_rows=512):
    questions = questions or questions_of_all_shapes()
    prompts, names = [vlm.encoder.encode_question(q) for q in questions], [q.id for q in questions]
    return prompts, ro.rollout(vlm, prompts, names, 4, length, how, (0, 2), max_rows)


def base64_picture(q: data.Question) -> str:
    file = io.BytesIO()
    q.images[0].save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def write_tsv(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.DictWriter(file, list(dict.fromkeys(k for r in rows for k in r)), delimiter="\t")
        out.writeheader()
        out.writerows(rows)


class Stub(BaseHTTPRequestHandler):
    """A server that answers as `self.server.answer(self, body)` says and keeps every request."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.reply(200, {"data": [{"id": name} for name in self.server.models]})

    def do_POST(self):
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            self.server.got.append((self.path, dict(self.headers), json.loads(raw)))
        self.server.answer(self, json.loads(raw))

    def reply(self, code: int, body, *headers, promise: int = 0):
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        for name, value in (("Content-Length", str(len(raw) + promise)), *headers):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)

    def say(self, *texts: str, reason: str = "stop"):
        self.reply(200, {"choices": [{"message": {"content": t}, "finish_reason": reason} for t in texts]})

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def stub_server(answer, models=("m",)):
    """A stub on loopback: yields (its URL, the requests it got)."""
    kind = type("Server", (ThreadingHTTPServer,), {"request_queue_size": 128, "daemon_threads": True})
    server = kind(("127.0.0.1", 0), Stub)
    server.lock = threading.Lock()
    server.answer, server.models, server.got = answer, models, []
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", server.got
    finally:
        server.shutdown()
        server.server_close()


def echo_anything(handler, body):
    whole = {"id": "x", "object": "chat.completion", "created": 0, "model": "m"}
    message = {"role": "assistant", "content": "red"}
    whole["choices"] = [{"index": 0, "message": message, "finish_reason": "stop"}]
    handler.reply(200, whole, ("Content-Type", "application/json"))
