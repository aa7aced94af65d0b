"""--lora: one frozen base, a small adapter for each role, and the same loop as ever."""

import copy
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint import FileSystemReader

import config
import data
import engine.loading as loading
import engine.lora as lora
import engine.memory as memory
import engine.players as players
import engine.sharding as sharding
import model
import rollout as ro
import tests.test_slow_step as slow_step
import tiny.world as tiny_world
import tools.bench as bench
import tools.plan as plan
import train
from discriminator import Discriminator
from engine.command import UserError
from tests import published as pub
from tests.helpers import FAMILIES, HOME, STUDENTS, command, own_questions, stock_inputs, torchrun
from tests.test_slow_step import double  # noqa: F401 (a fixture)

torch.set_num_threads(1)
SMALL = "--pool 12 --valid-questions 4 --test-questions 4 --questions-per-step 3 --group-size 2 --steps 4 --d-steps 2 "
SMALL += "--eval-every 2 --eval-draws 1 --checkpoint-every 2 --micro-batch 2 --lora 4 --lr 5e-3 --d-lr 5e-3"
SMALL = SMALL.split()


def run_of(folder: Path, *flags: str) -> Path:
    """train.py with these flags in `folder`; -> the run, which the second flag names."""
    command(folder, *flags)
    return folder / "runs" / flags[1]


@torch.no_grad()
def trio(name, dtype=torch.float32, recompute: bool = False) -> SimpleNamespace:
    """A base with student, reference and D on it; the adapters are as after some training."""
    base = loading.load(name, 1, dtype=dtype)
    lora.make_adaptable(base.hf, base.family.projector_paths, "base")
    adapters = [lora.Adapter(base.base.switch.layers, 4) for _ in range(2)]
    for i, adapter in enumerate(adapters):
        adapter.flat.copy_(0.05 * torch.randn(len(adapter.flat), generator=torch.Generator().manual_seed(i)))
    if recompute:
        players.recompute_activations(base.base, context_fn=partial(lora.recompute_in_role, base.base.switch))
    student = model.VLM(base.hf, base.encoder, adapters[0])
    D = Discriminator(base, adapter=adapters[1])
    return SimpleNamespace(base=base, student=student, reference=model.VLM(base.hf, base.encoder).eval(), D=D)


def packed(vlm: model.VLM, texts=("red", "the answer is blue")) -> model.Batch:
    """Three questions of the tiny world, packed with two responses each."""
    prompts = [vlm.encoder.encode_question(q) for q in tiny_world.world_questions("train", 3)]
    rows = [[vlm.encoder.reply_ids(text) for text in texts]] * len(prompts)
    return model.pack(vlm.encode_pictures(prompts), rows)


def merged_copy(vlm: model.VLM) -> nn.Module:
    """The stock model with W + scale * B A as its weights, written down here once more; the base as it was loaded."""
    hf = copy.deepcopy(vlm.hf)
    for path, (A, B) in vlm.adapter.pairs("cpu", torch.float32).items():
        layer = hf.get_submodule(path)
        layer.__class__ = nn.Linear
        layer.weight.data += 32 / vlm.adapter.rank * (B.detach() @ A.detach())
    return hf


# ------------------------------------------------------------------------------------------------ the mathematics
@pytest.mark.parametrize("name", FAMILIES)
def test_every_linear_layer_of_language_model_and_projector_is_adapted_and_no_other(name):
    t = trio(name)
    linear = {path for path, x in loading.load(name).hf.named_modules() if isinstance(x, nn.Linear)}
    adapted = set(t.student.adapter.shapes)
    assert len(adapted) == 3 * 7 + 2 * len(t.base.family.projectors(t.base.base)) and adapted < linear
    assert all(re.search(r"visual\.(blocks|patch)|vision_tower|lm_head", path) for path in linear - adapted)
    assert list(t.base.tensors()) == list(loading.load(name).tensors())  # stock names


@pytest.mark.parametrize("name", STUDENTS)
def test_a_new_adapter_changes_nothing_and_a_trained_one_is_its_merged_weight(name):
    t = trio(name)
    batch = packed(t.base)
    new = model.VLM(t.base.hf, t.base.encoder, lora.Adapter(t.base.base.switch.layers, 4))
    again = lora.Adapter(t.base.base.switch.layers, 4)
    with torch.no_grad():
        before, after = t.reference(batch), t.student(batch)
        assert torch.equal(new(batch), before) and new.adapter.flat.abs().sum() > 0
        stock = model.VLM(merged_copy(t.student), t.base.encoder)(batch)
    assert torch.equal(again.flat, new.adapter.flat)  # of its layers' names, not of a generator's history
    assert (after - stock).abs().max() < 1e-4 < 0.1 < (after - before).abs().max()


@pytest.mark.parametrize("name", FAMILIES)
def test_packed_rows_with_an_adapter_are_separate_rows_and_sampling_is_stock_generate(name):
    t = trio(name)
    questions = tiny_world.world_questions("train", 3)
    prompts = t.base.encode_pictures([t.base.encoder.encode_question(q) for q in questions])
    replies = [t.base.encoder.reply_ids(text) for text in ("red", "the answer is blue")]
    with torch.no_grad():
        together = t.student(model.pack(prompts, [replies] * 3)).view(3, 2, -1)
        for p, rows in zip(prompts, together, strict=True):
            for reply, logps in zip(replies, rows, strict=True):
                alone = t.student(model.pack([p], [[reply]]))[0]
                assert torch.allclose(alone, logps[: len(reply)], atol=1e-5)
    hf, how = merged_copy(t.student), dict(max_new_tokens=12, do_sample=False, pad_token_id=0)
    ours = ro.rollout(t.student, prompts, [q.id for q in questions], 1, 12, ro.GREEDY)
    for p, (r,) in zip(prompts, ours, strict=True):
        stock = hf.generate(**stock_inputs(t.base, p, p.ids), **how, suppress_tokens=t.base.encoder.banned_ids)
        assert stock[0, len(p.ids) :].tolist() == r.ids


# ------------------------------------------------------------------------------------------------ roles
@pytest.mark.parametrize("name", STUDENTS)
def test_a_role_survives_recomputation_while_the_other_roles_take_turns(name):
    """Student and D forward, the reference between them and a rollout that says eval(); only then both backward."""
    grads, calls = [], Counter()
    for recompute in (False, True):
        t = trio(name, recompute=recompute)
        forward = lora.Adapted.forward

        def counting(layer, x, recompute=recompute, forward=forward):
            calls[recompute] += 1
            return forward(layer, x)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lora.Adapted, "forward", counting)
            batch, texts = packed(t.base), t.D.pack([["red", "blue circle"]])
            question = t.base.encoder.encode_question(tiny_world.world_questions("train", 1)[0])
            ro.rollout(t.reference, [question], ["q"], 1, 2)
            loss = t.student(batch).sum()
            logit = t.D(texts).sum()
            with torch.no_grad():
                t.reference(batch)
            loss.backward()
            logit.backward()
        grads.append([t.student.adapter.flat.grad, t.D.adapter.flat.grad, t.D.head.weight.grad])
        assert all(p.grad is None for p in t.base.hf.parameters())
    assert calls[True] - calls[False] == 2 * 3 * 7  # every layer of student and D ran once more
    for one, two in zip(*grads, strict=True):
        assert one.abs().max() > 1e-3 and (one - two).abs().max() < 1e-5 * one.abs().max()


def test_the_base_gets_its_bytes_back_after_merging_and_merged_is_what_an_export_holds(tmp_path):
    loading.save(loading.load("tiny-qwen", 1), tmp_path / "base")
    t = trio(tmp_path / "base", torch.bfloat16)
    before, batch = {k: x.clone() for k, x in t.base.tensors().items()}, packed(t.base)
    with torch.no_grad(), lora.merged(t.student):
        inside = t.student(batch)
    assert all(torch.equal(x, before[k]) for k, x in t.base.tensors().items())
    loading.save(t.student, tmp_path / "s")
    assert all(torch.equal(x, before[k]) for k, x in t.base.tensors().items())
    with torch.no_grad():
        assert torch.equal(loading.load(tmp_path / "s", dtype=torch.bfloat16)(batch), inside)
        assert not torch.equal(t.student(batch), inside)  # merging rounds
    stock = t.base.family.model.from_pretrained(tmp_path / "s").state_dict()
    assert any(not torch.equal(x, before[k]) for k, x in stock.items())


# ------------------------------------------------------------------------------------------------ PEFT
def check_peft(vlm: model.VLM, folder: Path, base: Path) -> None:
    """Stock PEFT puts the written adapter on the stock model in `base`: the same layers, the same logits."""
    loading.save_adapter(vlm.adapter, folder, str(base))
    stock = vlm.family.model.from_pretrained(base, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(stock, folder)
    prompt = vlm.encoder.encode_question(data.Question("q", (pub.picture(84, 84),), "what is it?", "red"))
    reply = vlm.encoder.reply_ids("red blue")
    batch = model.pack(vlm.encode_pictures([prompt]), [[reply]])
    inputs = stock_inputs(vlm, prompt, torch.cat([prompt.ids, torch.tensor(reply)]))
    with torch.no_grad():
        logits = theirs(**inputs).logits[0, -len(reply) - 1 : -1] + vlm.banned
        with theirs.disable_adapter():
            plain = theirs(**inputs).logits[0, -len(reply) - 1 : -1] + vlm.banned
        want, without = (x.log_softmax(-1)[range(len(reply)), reply] for x in (logits, plain))
        ours = vlm(batch)[0]
    assert (ours - want).abs().max() < 5e-5 < 1e-2 < (ours - without).abs().max()
    touched = {n.removeprefix("base_model.model.") for n, x in theirs.named_modules() if hasattr(x, "lora_A")}
    assert touched == set(vlm.adapter.shapes)


@pytest.mark.parametrize("name", STUDENTS)
def test_stock_peft_loads_the_adapter_of_a_tiny_student(name, tmp_path):
    t = trio(name)
    loading.save(t.base, tmp_path / "base", torch.float32)
    check_peft(t.student, tmp_path / "adapter", tmp_path / "base")


@pytest.mark.parametrize("name", ["qwen-untied", "qwen-tied", "internvl"])
def test_stock_peft_loads_the_adapter_of_a_published_folder(name, published, tmp_path):
    check_peft(trio(published / name).student, tmp_path / "adapter", published / name)


# ------------------------------------------------------------------------------------------------ the slow step
class LowRank(nn.Module):
    """A parametrization: W -> W + scale * B A, with A and B trained."""

    def __init__(self, A: torch.Tensor, B: torch.Tensor):
        super().__init__()
        self.A, self.B, self.scale = nn.Parameter(A.clone()), nn.Parameter(B.clone()), 32 / len(A)

    def forward(self, W):
        return W + self.scale * self.B @ self.A


def adapt(slow: slow_step.Slow, who: str, below: str, pairs: dict) -> None:
    """Replace full training of a slow player by low-rank weights; `below`: what stands before a path in its names."""
    player, lr = slow.optimizers[who][0].requires_grad_(False), dict(student=slow.c.lr, D=slow.c.d_lr)[who]
    for path, both in pairs.items():
        layer = player.get_submodule(below + path.removeprefix("model."))
        nn.utils.parametrize.register_parametrization(layer, "weight", LowRank(*(x.detach() for x in both)))
    if who == "D":
        player.head.requires_grad_(True)
    trained = [p for p in player.parameters() if p.requires_grad]
    slow.optimizers[who] = player, torch.optim.AdamW(trained, lr, betas=(0.9, 0.95), weight_decay=0.0)


def as_vectors(who: str, below: str, named: dict, paths) -> list[torch.Tensor]:
    """The slow player's A and B in one vector, as an Adapter holds them, and D's head."""
    names = [f"{below}{path.removeprefix('model.')}.parametrizations.weight.0.{x}" for path in paths for x in "AB"]
    flat = torch.cat([named[name].flatten() for name in names])
    return [flat, *([named["head.weight"]] if who == "D" else [])]


@pytest.mark.parametrize("family", STUDENTS)
def test_the_loop_with_adapters_equals_the_slow_step(tmp_path, monkeypatch, double, family):  # noqa: F811
    """As tests/test_slow_step.py, two steps of two updates, with recomputation."""
    student = loading.load(slow_step.TEACHERS / f"{family}-teacher")
    with torch.no_grad():
        student.base.language_model.norm.weight.mul_(0.55)  # less sure of itself: samples differ
    loading.save(student, tmp_path / "student", torch.float32)
    flags = ["--name", "b", *slow_step.BASE, "--student", "student", "--teachers", "tiny-qwen-teacher"]
    flags += "--lora 4 --mu 2 --steps 2 --lr 1e-2 --d-lr 1e-2 recompute=True".split()
    for stage in ("sft", "teachers"):
        slow_step.command(tmp_path, *flags, "--stage", stage)
    base = loading.load(tmp_path / "runs/b/sft")
    layers = lora.adapted_layers(base.hf, base.family.projector_paths)
    adapters = dict(student=lora.Adapter(layers, 4))
    adapters["D"] = lora.Adapter({k: x for k, x in layers.items() if base.family.projector not in k}, 4)
    with torch.no_grad():
        adapters["D"].flat.add_(0.05 * torch.randn(len(adapters["D"].flat)))
    width = base.encoder.config.get_text_config().hidden_size
    (tmp_path / "runs/b/discriminator").mkdir()
    D = {"adapter.flat": adapters["D"].flat.detach(), "head.weight": 0.1 * torch.randn(1, width)}
    save_file(D, tmp_path / "runs/b/discriminator/model.safetensors")

    trace, sampled, drawn = [], [], []
    update, rollout, draw = train.update, train.rollout, train.TeacherCache.draw

    def keep_update(optimizer, *args):
        parameters = optimizer.param_groups[0]["params"]
        grads = [p.grad.clone() for p in parameters]
        norm = update(optimizer, *args)
        trace.append((grads, [p.detach().clone() for p in parameters]))
        return norm

    monkeypatch.setattr(train, "validate", lambda *_: None)
    monkeypatch.setattr(train, "update", keep_update)
    monkeypatch.setattr(train, "rollout", lambda *args: sampled.append(rollout(*args)) or sampled[-1])
    monkeypatch.setattr(train.TeacherCache, "draw", lambda *args: drawn.append(draw(*args)) or drawn[-1])
    slow_step.command(tmp_path, *flags, "--stage", "ril")

    slow = slow_step.Slow(tmp_path / "runs/b")
    for who, below in (("student", "model."), ("D", "base.")):
        adapt(slow, who, below, adapters[who].pairs("cpu", torch.float64))
    before = {who: [adapters["student"].flat] if who == "student" else list(D.values()) for who in adapters}
    questions, log = tiny_world.world_questions("train", slow.c.pool), rows_of(tmp_path / "runs/b")
    for step in range(2):
        asked = [q for q, _ in data.questions_at(questions, step, 2, slow.c.seed)]
        texts = [[r.text for r in found] for found, _ in drawn[2 * step : 2 * step + 2]]
        want = slow.step(asked, [[r.ids for r in group] for group in sampled[step]], texts, iter(()))
        assert {name: log[step][name] for name in want} == pytest.approx(want, rel=1e-6, abs=1e-7), step
    assert [who for who, *_ in slow.trace] == 2 * ["D", "D", "student", "student"] and len(trace) == 8
    for (who, *named), ours in zip(slow.trace, trace, strict=True):
        below = "base." if who == "D" else "model."
        theirs = [as_vectors(who, below, x, adapters[who].shapes) for x in named]
        for mine, slow_one in zip(ours, theirs, strict=True):  # gradients, parameters
            for x, y in zip(mine, slow_one, strict=True):
                assert (x - y).norm() <= 1e-8 * y.norm(), who
        assert all((x - y).norm() > 1e-3 for x, y in zip(ours[1], before[who], strict=True))  # it moved
        before[who] = ours[1]


# ------------------------------------------------------------------------------------------------ a run
def rows_of(run: Path, stage: str = "ril") -> list[dict]:
    rows = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    return [r for r in rows if r["stage"] == stage and "loss" in r]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> SimpleNamespace:
    """A small whole run; of every stage: the models that were loaded, and the base's bytes where it was let go."""
    out = SimpleNamespace(loads=Counter(), bases=[], flags=[*SMALL, "--student", "tiny-qwen"])
    load, share, stage = players.load, players.make_adaptable, []
    run_stage = train.run_stage

    def counting(*args, **more):
        out.loads[stage[-1]] += 1
        return load(*args, **more)

    def keep(hf, *args):
        out.bases.append((stage[-1], hf, {name: x.clone() for name, x in hf.state_dict().items()}))
        share(hf, *args)

    def staged(run, name):
        stage.append(name)
        run_stage(run, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(players, "load", counting)
        patch.setattr(players, "make_adaptable", keep)
        patch.setattr(train, "run_stage", staged)
        out.run = run_of(tmp_path_factory.mktemp("made"), "--name", "a", *out.flags, "recompute=True")
    return out


def test_a_stage_loads_one_base_and_leaves_its_bytes_as_they_were(made):
    assert made.loads["discriminator"] == made.loads["ril"] == 1  # four players in the loop, one copy
    assert [stage for stage, *_ in made.bases] == ["discriminator", "ril", "evaluate"]
    for stage, hf, before in made.bases:
        assert all(torch.equal(x, before[name]) for name, x in hf.state_dict().items()), stage
    assert {p.requires_grad for _, hf, _ in made.bases for p in hf.parameters()} == {False}
    assert len(rows_of(made.run)) == 4 and all(r["sampler_gap"] < 1e-4 for r in rows_of(made.run))


def test_checkpoints_and_the_discriminators_file_hold_adapters_and_no_base(made):
    found = FileSystemReader(made.run / "checkpoints/ril-step4").read_metadata().state_dict_metadata
    sizes = {name: x.size.numel() for name, x in found.items() if hasattr(x, "size") and not name.endswith(".step")}
    D = load_file(made.run / "discriminator/model.safetensors")
    adapter = load_file(made.run / "adapter/adapter_model.safetensors")
    student = sum(x.numel() for x in adapter.values())
    assert set(D) == {"adapter.flat", "head.weight"} and 0 < len(D["adapter.flat"]) < student
    assert sum(sizes.values()) == 3 * (student + sum(x.numel() for x in D.values())), sizes


def test_the_export_is_a_plain_folder_and_its_adapter_on_the_start_gives_the_same_weights(made):
    """In bf16, by stock PEFT's own merge; with its name as --student the adapter is one line."""
    before, after = (load_file(made.run / x / "model.safetensors") for x in ("sft", "student"))
    assert before.keys() == after.keys() and {x.dtype for x in after.values()} == {torch.bfloat16}
    vlm = loading.load(made.run / "last")
    shutil.rmtree(made.run / "merged", ignore_errors=True)
    stock = vlm.family.model.from_pretrained(made.run / "sft", dtype=torch.float32)
    theirs = PeftModel.from_pretrained(stock, made.run / "checkpoints/last/adapter").merge_and_unload().state_dict()
    last = vlm.family.model.from_pretrained(made.run / "last", dtype=torch.float32).state_dict()
    moved = 0
    for name, x in last.items():
        assert torch.allclose(x, theirs[name], rtol=0.01, atol=1e-6), name  # one bf16 rounding
        moved += not torch.equal(x, stock.state_dict()[name].bfloat16().float()) if "proj" in name else 0
    with pytest.raises(UserError, match=re.escape(f"an adapter of {(made.run / 'sft').resolve()} without its base")):
        run_of(made.run, "--student", str(made.run / "adapter"), "--lora", "4")


def test_validation_reads_the_weights_that_are_exported(made, monkeypatch, tmp_path):
    seen = []

    def evaluate(replica, *_):
        seen.append({name: x.clone() for name, x in replica.tensors().items()})
        assert replica.base.switch.now[1] == {}  # and no adapter on top of them
        return dict(greedy=0.0, sampled=len(seen))

    shutil.copytree(made.run, tmp_path / "runs/a", symlinks=True)
    shutil.rmtree(tmp_path / "runs/a/checkpoints")
    monkeypatch.setattr(train, "evaluate", evaluate)
    run = run_of(tmp_path, "--name", "a", *made.flags, "--stage", "ril")
    exported = loading.load(run / "checkpoints/best").tensors()  # the last one
    assert len(seen) == 3 and all(torch.equal(x, seen[-1][name]) for name, x in exported.items())
    moved = [name for name, x in exported.items() if not torch.equal(x, seen[0][name])]
    assert len(moved) == 3 * 7 + 2 and all(torch.equal(exported[x].bfloat16().float(), exported[x]) for x in moved)


def test_a_killed_run_with_adapters_ends_with_the_same_bytes(made, tmp_path):
    code = (
        "import os, signal, sys, train\n"
        "real = train.Run.log\n"
        "def log(self, name, **row):\n"
        "    real(self, name, **row)\n"
        "    if name == 'timing.jsonl' and (row['stage'], row['step']) == ('ril', 2):\n"
        "        while not os.path.isdir('runs/a/checkpoints/ril-step2'): pass\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "train.Run.log = log\n"
        "train.main(sys.argv[1:])\n"
    )
    flags = ["--name", "a", *made.flags, "--stage", "ril"]
    shutil.copytree(made.run, tmp_path / "runs/a", symlinks=True)
    shutil.rmtree(tmp_path / "runs/a/checkpoints")
    env = dict(os.environ, PYTHONPATH=str(HOME), OMP_NUM_THREADS="1")
    killed = subprocess.run([sys.executable, "-c", code, *flags], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    run = run_of(tmp_path, *flags)
    names = ["metrics.jsonl", "checkpoints/last/model.safetensors", "checkpoints/best/model.safetensors"]
    for name in [*names, "checkpoints/last/adapter/adapter_model.safetensors"]:
        assert (run / name).read_bytes() == (made.run / name).read_bytes(), name


def test_two_ranks_with_adapters_log_what_one_process_logs(made, tmp_path):
    flags = [*made.flags, "--questions-per-step", "3", "--mu", "2", "--lr", "1e-5", "--d-lr", "1e-5", "--steps", "2"]
    for name in ("one", "two"):
        for part in ("sft", "discriminator"):
            shutil.copytree(made.run / part, tmp_path / "runs" / name / part)
        shutil.copy(made.run / "teachers.jsonl", tmp_path / "runs" / name)
    run_of(tmp_path, "--name", "one", *flags, "--stage", "ril")
    ran = torchrun(tmp_path, 2, HOME / "train.py", "--name", "two", *flags, "--stage", "ril")
    assert ran.returncode == 0, ran.stderr[-3000:]
    one, two = rows_of(tmp_path / "runs/one"), rows_of(tmp_path / "runs/two")
    assert len(one) == 2
    for a, b in zip(one, two, strict=True):
        wrong = {k: (a[k], b[k]) for k in a if k != "stage" and abs(a[k] - b[k]) > 1e-4 * (1 + abs(a[k]))}
        assert not wrong and a.keys() == b.keys(), wrong
    here, there = (
        load_file(tmp_path / "runs" / x / "checkpoints/last/adapter/adapter_model.safetensors") for x in ("one", "two")
    )
    assert all(torch.allclose(x, there[name], atol=1e-6) for name, x in here.items())


def test_a_warm_start_on_sft_data_is_an_adapter_and_the_reference_keeps_it(made, tmp_path, monkeypatch):
    own_questions(tmp_path, 8)
    shutil.copytree(made.run / "sft", tmp_path / "mine")
    flags = [*made.flags[:-2], "--student", "mine", "--sft-data", "mine.jsonl", "--steps", "2"]
    taken, load_players = [], train.load_players
    monkeypatch.setattr(train, "load_players", lambda run: taken.append(load_players(run)) or taken[-1])
    for stage in ("sft", "teachers", "discriminator", "ril"):
        run = run_of(tmp_path, "--name", "w", *flags, "--stage", stage, "sft_pictures=4", "sft_lr=1e-2", "sft_epochs=4")
    warm = load_file(run / "sft/adapter/adapter_model.safetensors")
    found = loading_pairs(taken[0].reference.adapter)
    assert (
        all(torch.equal(x, found[name]) for name, x in warm.items())
        and not taken[0].reference.adapter.flat.requires_grad
    )
    assert sum(x.abs().sum() for name, x in warm.items() if "lora_B" in name) > 0
    here, start = taken[0].student.hf.state_dict(), loading.load(tmp_path / "mine").hf.state_dict()
    assert all(torch.equal(x, start[name]) for name, x in here.items())  # the base is the student's own folder
    name = json.loads((run / "checkpoints/last/adapter/adapter_config.json").read_text())["base_model_name_or_path"]
    assert name == str((tmp_path / "mine").resolve())
    assert rows_of(run)[0]["kl"] == pytest.approx(0, abs=1e-6) and rows_of(run)[1]["kl"] > 0  # it starts there
    begun = loading.load(run / "sft").hf.state_dict()
    assert any(not torch.equal(x, start[name]) for name, x in begun.items())


def loading_pairs(adapter: lora.Adapter) -> dict[str, torch.Tensor]:
    """The adapter's tensors under the names that its file has."""
    pairs = adapter.pairs("cpu", torch.float32).items()
    return {f"base_model.model.{p}.lora_{x}.weight": y for p, both in pairs for x, y in zip("AB", both, strict=True)}


@pytest.mark.parametrize(
    "flags, says",
    [
        ("--lora 4 --frozen vision,head", "--lora freezes the base"),
        ("--lora 4 --frozen none", "--lora freezes the base"),
        ("--lora 4 --offload phase", "--offload phase has nothing to move"),
        ("--optimizer-offload --offload phase", "take one of them"),
        ("--lora -1", "--lora -1: must be at least 0"),
        ("--lora big", "invalid int value"),
    ],
)
def test_flags_that_contradict_lora_are_one_line(flags, says):
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        config.parse(flags.split())
    assert "\n" not in str(caught.value)


def test_lora_has_learning_rates_of_its_own_and_given_ones_win():
    full, adapted = config.parse([]), config.parse(["--lora", "8"])
    rates = ("lr", "d_lr", "d_pretrain_lr")
    assert all(getattr(adapted, x) == pytest.approx(config.LORA_TIMES * getattr(full, x)) for x in rates)
    assert adapted.sft_lr == full.sft_lr  # a tiny warm start trains everything, from nothing
    real = config.parse("--preset paper --lora 8 --student qwen2.5-vl-7b --lr 3e-5 --sft-data x.jsonl".split())
    assert (real.lr, real.d_lr, real.sft_lr) == pytest.approx(
        (3e-5, 1e-6 * config.LORA_TIMES, 1e-5 * config.LORA_TIMES)
    )
    assert config.parse(["--lora", "8", "--d-lr", "0"]).discriminator == "frozen"


# ------------------------------------------------------------------------------------------------ --optimizer-offload
def test_with_optimizer_offload_adapters_live_on_the_host_and_compute_on_the_device(made):
    """The meta device stands for a GPU; without the flag the adapter is there. AdamW's state is with its parameter."""
    base = loading.load(made.run / "sft")
    lora.make_adaptable(base.hf, base.family.projector_paths, "base")
    base.hf.to("meta")
    for flag, home in ((True, "cpu"), (False, "meta")):
        cfg = config.Config(lora=4, optimizer_offload=flag)
        adapter = players.new_adapter(SimpleNamespace(cfg=cfg, device="meta", path=made.run, base=base))
        assert adapter.flat.device.type == home
        seen = []

        def forward(layer, x, seen=seen, real=lora.Adapted.forward):
            seen.extend(x.device.type for x in layer.switch.now[1][layer.path])
            return real(layer, x)

        with pytest.MonkeyPatch.context() as patch, lora.in_role(model.VLM(base.hf, base.encoder, adapter)):
            patch.setattr(lora.Adapted, "forward", forward)
            base.base.language_model.layers[0].mlp(torch.zeros(1, 2, 96, device="meta"))
        assert seen == ["meta"] * 6
        if flag:
            optimizer = players.adamw(adapter, 0.1)
            adapter.flat.grad = torch.zeros_like(adapter.flat)
            optimizer.step()
            assert {x.device.type for x in optimizer.state[adapter.flat].values()} == {"cpu"}


def test_with_optimizer_offload_full_training_has_masters_on_the_host_and_buffers_on_the_device(tmp_path, monkeypatch):
    """The meta device stands for the mesh's GPU. Reference and replica stay on it; student and D leave."""
    loading.save(loading.load("tiny-qwen", 1), tmp_path / "sft", torch.float32)
    mesh, policies, homes = sharding.start_ranks("cpu"), [], []
    fully_shard, load = sharding.fully_shard, players.load

    def sharded(part, **more):
        policies.append(type(more["offload_policy"]).__name__)
        return fully_shard(part, **more)

    monkeypatch.setattr(sharding, "fully_shard", sharded)
    monkeypatch.setattr(loading, "device_of_mesh", lambda mesh: torch.device("meta"))
    for name in ("tiny-qwen", tmp_path / "sft"):
        vlm = loading.load(name, device="host", mesh=mesh)
        assert {p.device.type for p in vlm.parameters()} == {"cpu"} and vlm.device.type == "meta"
        assert {x.device.type for x in vlm.buffers()} == {"meta"} and set(policies) == {"CPUOffloadPolicy"}

    def counting(name, seed, device, **more):
        homes.append(device)
        return load(name, seed, "cpu", **more)

    monkeypatch.setattr(players, "load", counting)
    for flag, home in ((True, "host"), (False, "gpu")):
        cfg = config.Config(optimizer_offload=flag, offload="none")
        run = SimpleNamespace(cfg=cfg, device="gpu", path=tmp_path, mesh=mesh, base=None)
        players.load_trained(run, tmp_path / "sft")
        players.make_discriminator(run, trained=False)
        players.load_start(run)
        assert homes == [home, home, "gpu"]
        homes.clear()


def test_a_step_with_optimizer_offload_has_equal_numbers(made, tmp_path):
    """Full training and --lora, one step: the files are the same, and the flag may change on resume."""
    for rank in ("0", "4"):
        flags = [*made.flags, "--lora", rank, "--steps", "2"]
        for name, more in (("a", []), ("b", ["--optimizer-offload"])):
            for stage in ("sft", "teachers", "discriminator", "ril"):
                run_of(tmp_path, "--name", name + rank, *flags, *more, "--stage", stage)
        files = ["metrics.jsonl", "checkpoints/last/model.safetensors", "discriminator/model.safetensors"]
        one, two = (tmp_path / "runs" / (name + rank) for name in "ab")
        assert all((one / x).read_bytes() == (two / x).read_bytes() for x in files)


# ------------------------------------------------------------------------------------------------ the plan
def test_the_plan_counts_base_and_adapters_as_the_meta_device_does():
    """7 B: what lies on a GPU beside activations, of all players together."""
    cfg = config.parse("--student qwen2.5-vl-7b --lora 16".split())
    base = loading.random_meta_model(cfg.student, torch.bfloat16)
    with torch.device("meta"):
        lora.make_adaptable(base.hf, base.family.projector_paths, "base")
        layers = base.base.switch.layers
        student = model.VLM(base.hf, base.encoder, lora.Adapter(layers, 16, "meta"))
        reading = {k: x for k, x in layers.items() if base.family.projector not in k}
        D = Discriminator(base, adapter=lora.Adapter(reading, 16, "meta"))
    trained = [p for x in (student, D) for p in x.parameters() if p.requires_grad]
    counted = sum(p.numel() * p.element_size() for p in base.hf.parameters()) + 3 * 4 * sum(p.numel() for p in trained)
    beside = memory.CONTEXT + memory.Work.of(cfg, 1).patches  # of the step's pictures
    planned = memory.phases(cfg, 1, "none")["judge"] * 1e9 - beside  # nothing else is there in this phase
    assert planned == pytest.approx(counted, rel=0.01) and 16e9 < counted < 18e9
    assert memory.checkpoint_bytes(cfg) == 3 * 4 * sum(p.numel() for p in trained)
    offloaded = memory.phases(dataclasses.replace(cfg, optimizer_offload=True), 1, "none")
    assert offloaded["judge"] * 1e9 - beside == pytest.approx(2 * memory.sizes(cfg.student)["all"], rel=1e-9)


def test_the_plan_names_what_fits_a_small_machine(capsys):
    """The aims of --lora at 1,280 image tokens, and what one line says where nothing fits."""
    for name, gb in (("internvl3-1b", 24), ("internvl3-2b", 24), ("qwen2.5-vl-3b", 24), ("qwen2.5-vl-7b", 80)):
        cfg = dataclasses.replace(config.parse(["--student", name]), gpus=1, gpu_memory=float(gb), lora=64)
        assert cfg.image_tokens == 1280 and plan.fitting(cfg) == "none", name
    plan.main("--student qwen2.5-vl-7b --gpus 1 --gpu-memory 80".split())
    assert capsys.readouterr().out.endswith("qwen2.5-vl-7b on 1 GPUs of 80 GB: fits with --lora 64\n")
    plan.main("--student qwen2.5-vl-7b --gpus 1 --gpu-memory 24".split())
    assert "the largest student that fits is qwen2.5-vl-3b with --lora 64\n" in capsys.readouterr().out


def test_the_plan_counts_what_optimizer_offload_and_adapters_cost_in_time():
    cfg = config.parse(["--student", "qwen2.5-vl-7b"])
    adapted, hosted = (dataclasses.replace(cfg, **x) for x in (dict(lora=64), dict(optimizer_offload=True)))
    full, lora_step, host_step = (plan.step_seconds(x, 1, "none") for x in (cfg, adapted, hosted))
    assert lora_step["matrix products"] < 0.9 * full["matrix products"]
    small = config.parse(["--student", "internvl3-1b"])  # its tokens cost launches, those of the 7B bytes
    whole, more = (plan.step_seconds(x, 1, "none")["rollout"] for x in (small, dataclasses.replace(small, lora=64)))
    assert more > 1.2 * whole and lora_step["rollout"] == full["rollout"]  # two more products a layer and token
    assert host_step["offload"] > 100 and host_step["AdamW on the host"] > 1 and full["AdamW on the host"] == 0
    assert plan.traffic(adapted, 8) < 0.1 * plan.traffic(cfg, 8) and plan.traffic(adapted, 1) == 0


def test_the_readmes_table_is_what_the_plan_prints():
    table = "\n".join(plan.table(config.parse(["--preset", "paper"])))
    assert f"{table}\n" in (HOME / "docs/gpus.md").read_text()


def test_the_bench_compares_a_step_with_full_training(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "ProcessPoolExecutor", ThreadPoolExecutor)  # the peak is then that of this process
    flags = "--questions 2 --group-size 2 --response-tokens 3 --repeats 1 --lora 4".split()
    out = bench.main([*flags, "--out", str(tmp_path / "speed.json")])
    assert out == json.loads((tmp_path / "speed.json").read_text())
    assert out["lora"]["trained"] < 0.2 * out["full"]["trained"] and out["lora"]["peak_gb"] > 0.1
    assert {"reference", "discriminator", "update", "step"} <= out["full"].keys() and "ratio" in out["lora_over_full"]
