"""Ranks, nodes, offload, replicas, disks and ports."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
import types

import numpy as np
import pytest
import torch

import config
import engine.asking as asking
import engine.loading as loading
import engine.players as players
import engine.sharding as sharding
import model
import rollout as ro
import teachers
import tiny.world as tiny_world
from engine.command import UserError
from tests.helpers import (
    HOME,
    SMALL,
    command,
    metrics,
    own_questions,
    questions_of_all_shapes,
    sampled,
    switched,
    torchrun,
)


def test_a_sharded_teacher_says_on_two_ranks_what_it_says_on_one_and_goes_on_after_a_kill(tmp_path, monkeypatch):
    """Every rank gathers its layers as often as the other: uneven questions, texts without pictures, early ends."""
    flags = ["--data", own_questions(tmp_path, 90, without=3), "--teachers", str(teachers.FOLDER / "tiny-qwen-teacher")]
    flags += [
        "--teacher-samples",
        "2",
        "--stage",
        "teachers",
    ]
    command(tmp_path, "--name", "one", *flags)
    ran = torchrun(tmp_path, 2, HOME / "train.py", "--name", "two", *flags)
    assert ran.returncode == 0, ran.stderr[-3000:]
    one, two = ((tmp_path / "runs" / name / "teachers.jsonl").read_bytes() for name in ("one", "two"))
    rows = [json.loads(x) for x in one.splitlines()]
    assert one == two and len(rows) == 2 * len({r["question"] for r in rows}) > 128
    assert len({r["text"] for r in rows}) > 20 and np.mean([r["finished"] for r in rows]) > 0.9
    real, calls = ro.rollout, []

    def dies(*args, **more):
        calls.append(len(args[1]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **more)

    monkeypatch.setattr(asking, "rollout", dies)
    with pytest.raises(KeyboardInterrupt):
        command(tmp_path, "--name", "killed", *flags)
    (part,) = (tmp_path / "runs/killed").glob("teachers-*.part.jsonl")
    assert len(part.read_text().splitlines()) == 2 * 64
    with part.open("r+b") as file:  # and the last line torn, inside a character of several bytes
        file.truncate(part.stat().st_size - 9)
        file.seek(0, 2)
        file.write(b"\xc3")
    command(tmp_path, "--name", "killed", *flags)
    assert (tmp_path / "runs/killed/teachers.jsonl").read_bytes() == one and calls[2:] == [len(rows) // 2 - 63]


def test_more_processes_than_gpus_and_a_port_in_use_are_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    with pytest.raises(UserError, match="8 processes, but this machine shows 2 GPUs; take --nproc_per_node 2"):
        sharding.start_ranks("cuda")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        where = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(taken.getsockname()[1]), WORLD_SIZE="2", RANK="0")
        argv = [sys.executable, str(HOME / "train.py"), "--name", "x"]
        ran = subprocess.run(argv, cwd=tmp_path, env=os.environ | where, capture_output=True, text=True, timeout=100)
    assert ran.returncode == 2 and ran.stderr.startswith("error: the processes cannot meet at 127.0.0.1:")
    assert "port is in use" in ran.stderr and not (tmp_path / "runs").exists()


def test_a_bf16_student_says_what_its_bf16_replica_says_bit_for_bit(vlm, tmp_path):
    loading.save(vlm, tmp_path / "w", torch.float32)
    mesh = sharding.start_ranks("cpu")
    student = loading.load(tmp_path / "w", mesh=mesh, compute=torch.bfloat16)
    replica = loading.load(tmp_path / "w", dtype=torch.bfloat16)
    with torch.no_grad():
        for p in student.parameters():
            p.add_(0.01)
    sharding.copy_trained(replica, student)
    questions = questions_of_all_shapes()
    prompts = replica.encode_pictures([replica.encoder.encode_question(q) for q in questions])
    batch = model.pack(
        prompts, [[student.encoder.reply_ids("red"), student.encoder.reply_ids("the answer is blue")]] * len(questions)
    )
    ours, theirs = student(batch), replica(batch)
    assert torch.equal(ours, theirs) and ours.dtype == torch.float32
    for p in prompts:
        p.patches = None  # and through the vision tower, whose rotary tables must not be rounded
    raw = model.pack(prompts, [[student.encoder.reply_ids("red")]] * len(questions))
    assert torch.equal(student(raw), replica(raw))
    assert all(x.dtype == torch.float32 for x in student.tensors().values())  # masters
    inv = [x for name, x in replica.named_buffers() if "inv_freq" in name]
    assert inv and all(x.dtype == torch.float32 for x in inv)  # rounded tables would turn late positions


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_full_disk_during_a_save_is_one_line_and_the_checkpoint_before_it_stays(straight, tmp_path, ranks):
    flags = [*SMALL, "--student", str(straight / "sft"), "--valid-questions", "8", "--test-questions", "8"]
    (tmp_path / "full.py").write_text(
        "import os, resource, sys, train\n"
        "real = train.Checkpoints.save\n"
        "def save(self, step, progress):\n"
        "    if self.stage == 'ril' and step == 4:\n"
        "        self.finish()\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))\n"
        "    real(self, step, progress)\n"
        "train.Checkpoints.save = save\n"
        "train.run_command(train.main)\n"
    )
    argv = [sys.executable, str(tmp_path / "full.py"), "--name", "f", *flags]
    env = os.environ | dict(PYTHONPATH=str(HOME))
    if ranks == 1:
        ran = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
        assert ran.returncode == 2 and "\nerror: runs/f/checkpoints: a checkpoint cannot be" in "\n" + ran.stderr, ran
    else:
        ran = torchrun(tmp_path, 2, tmp_path / "full.py", "--name", "f", *flags)
        assert ran.returncode != 0 and "error: runs/f/checkpoints: a checkpoint cannot be" in ran.stderr, ran.stderr
    assert [p.name for p in sorted((tmp_path / "runs/f/checkpoints").glob("ril-step?"))] == ["ril-step2"]
    command(tmp_path, "--name", "f", *flags)
    assert [r["step"] for r in metrics(tmp_path / "runs/f") if r["stage"] == "ril" and "loss" in r] == list(range(6))


def test_offload_and_recomputation_change_no_number(straight, tmp_path, monkeypatch):
    rows, moved, stock = {}, [], torch.nn.Module.to

    def to(self, *args, **more):
        moved.append((type(self).__name__, args))
        return stock(self, *args, **more)

    monkeypatch.setattr(torch.nn.Module, "to", to)
    parse = config.parse
    for name, flags in {"plain": [], "recompute": [], "offload": ["--offload", "phase"]}.items():
        recompute = name == "recompute"
        monkeypatch.setattr(config, "parse", lambda argv, x=recompute: dataclasses.replace(parse(argv), recompute=x))
        moved.clear()
        rows[name] = switched(straight, tmp_path, name, *flags)
    assert rows["plain"] == rows["offload"] == rows["recompute"]
    left = {kind for kind, args in moved if args == ("cpu",)}
    assert {"FSDPVLM", "FSDPDiscriminator"} <= left  # the reference and D leave the GPU
    assert "VLM" not in left  # the replica does not: it is written anew at every step


def test_a_replica_has_no_memory_between_its_phases_but_for_what_the_student_does_not_train():
    student, replica = loading.load("tiny-qwen", 1).freeze("vision"), loading.load("tiny-qwen", 2)
    trained = {name for name, p in student.named_parameters() if p.requires_grad}
    tower = {name: p.detach().clone() for name, p in replica.named_parameters() if name not in trained}
    run = types.SimpleNamespace(cfg=types.SimpleNamespace(offload="phase"))

    def held() -> dict[str, int]:
        return {name: p.untyped_storage().nbytes() for name, p in replica.named_parameters()}

    before, question = held(), tiny_world.world_questions("train", 1)
    for _ in range(2):
        with players.refreshed(run, replica, student):
            assert held() == before
            assert all(torch.equal(replica.get_parameter(x), student.get_parameter(x)) for x in trained)
            said = sampled(replica, questions=question)
        assert held() == {name: 0 if name in trained else size for name, size in before.items()}
        assert all(torch.equal(replica.get_parameter(name), x) for name, x in tower.items()) and tower
    assert said[1][0][0].ids
    run.cfg.offload = "none"
    with players.refreshed(run, other := loading.load("tiny-qwen", 2), student):
        pass
    assert torch.equal(other.hf.lm_head.weight, student.hf.lm_head.weight)
