"""Deepstack: pictures of several vision layers reach the first decoder layers, for student, D, ranks and plan.

What every family has to do is tested beside the others, in test_ril.py, tests/test_slow_step.py (exactly, in double
precision) and tests/test_real_folders.py (laid out as published).
"""

import json
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist

import config
import discriminator as disc
import engine.loading as loading
import engine.memory as memory
import engine.sharding as sharding
import grpo
import model
import tiny.world as tiny_world
from data import Question
from tests.helpers import command

torch.set_num_threads(1)
NAME = "tiny-qwen3"
PICTURED = tiny_world.world_questions("train", 2)
TEXT = [Question("text", (), "how many red circle are in a row?", "3"), Question("more", (), "what is red?", "red")]
REPLIES = ["red", "the answer is red", "i see red circle"]


@pytest.fixture(scope="module")
def vlm() -> model.VLM:
    return loading.load(NAME, 1)


def without_part(prompt: model.Prompt, part: int, parts: int) -> model.Prompt:
    """The prompt with zeros in the place of what one projector reads."""
    patches = list(prompt.patches.chunk(parts, -1))
    patches[part] = torch.zeros_like(patches[part])
    return model.Prompt(prompt.ids, prompt.positions, prompt.picture_tensors, torch.cat(patches, -1))


@pytest.mark.parametrize("reader", ["student", "D"])
def test_every_part_of_a_cached_patch_is_read(vlm, reader):
    parts = len(vlm.family.projectors(vlm.base))
    (prompt,) = vlm.encode_pictures([vlm.encoder.encode_question(PICTURED[0])])
    D, rows = disc.Discriminator(vlm, "picture"), [vlm.encoder.reply_ids(x) for x in REPLIES]

    @torch.no_grad()
    def read(prompt):
        if reader == "D":
            return D(D.pack([REPLIES], [(PICTURED[0].text, prompt)]))
        return vlm(model.pack([prompt], [rows]))

    whole, raw = read(prompt), read(vlm.encoder.encode_question(PICTURED[0]))
    assert parts == 3 and (whole - raw).abs().max() < 1e-5
    for part in range(parts):
        assert (read(without_part(prompt, part, parts)) - whole).abs().max() > 1e-3, part


def test_scores_of_a_discriminator_that_reads_the_picture_are_the_same_packed_and_separate(vlm):
    D = disc.Discriminator(vlm, "picture")
    asked = [(q.text, vlm.encoder.encode_question(q)) for q in (*PICTURED, TEXT[0])]
    vlm.encode_pictures([prompt for _, prompt in asked])
    one = D(D.pack([REPLIES] * 3, asked))
    many = torch.cat([D(D.pack([[text]], [one])) for one in asked for text in REPLIES])
    assert (one - many).abs().max() < 1e-5 and len(set(one.tolist())) == 9
    one.sum().backward()
    for projector in vlm.family.projectors(D.base):
        assert all(p.grad.abs().max() > 0 for p in projector.parameters())
    blind = disc.Discriminator(vlm)
    blind(blind.pack([REPLIES])).sum().backward()
    assert all(p.grad is None for p in blind.base.visual.parameters())


# ------------------------------------------------------------------------------------------------ ranks
def gradients(student: model.VLM, questions: list, frozen: tuple, world: int) -> dict[str, torch.Tensor]:
    """Gradients of a packed loss on these questions; a trained tower sees a blank picture where there is none."""
    prompts = [student.encoder.encode_question(q) for q in questions]
    prompts = student.freeze(*frozen).encode_pictures(prompts) if frozen else prompts
    blank = None if frozen else student.encoder.blank_picture()
    batch = model.pack(prompts, [[student.encoder.reply_ids(x) for x in REPLIES]] * len(prompts), blank=blank)
    (world * grpo.sft_loss(student(batch), batch.mask, 100)).backward()
    named = [(name, p.grad) for name, p in student.named_parameters() if p.grad is not None]
    return {name: sharding.full_tensor(grad).clone() for name, grad in named}


def rank(rank: int, folder: str) -> None:
    """One of two processes: the first has all pictures, the second none."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(minutes=5))
    mesh = sharding.start_ranks("cpu")
    for frozen in (("vision",), ()):
        student = loading.load(f"{folder}/weights", mesh=mesh)
        found = gradients(student, (PICTURED, TEXT)[rank], frozen, 2)
        if rank == 0:
            torch.save(found, f"{folder}/{len(frozen)}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_two_ranks_of_which_one_has_no_pictures_have_the_gradients_of_one_process(vlm, tmp_path):
    loading.save(vlm, tmp_path / "weights", torch.float32)
    torch.multiprocessing.spawn(rank, (str(tmp_path),), nprocs=2)
    for frozen in (("vision",), ()):
        one = gradients(loading.load(tmp_path / "weights"), [*PICTURED, *TEXT], frozen, 1)
        two = torch.load(tmp_path / f"{len(frozen)}.pt")
        mergers = [name for name in one if "merger" in name]
        assert one.keys() == two.keys() and len(mergers) == 3 * 6
        assert ("hf.model.visual.pos_embed.weight" in one) == (not frozen)
        scale = max(x.abs().max() for x in one.values())
        assert scale > 1e-3 and all((one[n] - two[n]).abs().max() < 1e-5 * scale for n in one)
        assert all(two[name].abs().max() > 0 for name in mergers)


# ------------------------------------------------------------------------------------------------ the run, the plan
def test_a_whole_small_run_trains_the_mergers_and_leaves_stock_folders(tmp_path):
    flags = ["--name", "a", "--student", NAME, "--teachers", "tiny-qwen-teacher", "--d-input", "picture"]
    flags += "--sft-steps 4 --d-steps 2 --eval-every 0 --eval-draws 1".split()
    flags += "--pool 12 --valid-questions 4 --test-questions 4 --questions-per-step 2 --group-size 2 --steps 2".split()
    command(tmp_path, *flags)
    run = tmp_path / "runs" / "a"
    rows = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [r for r in rows if r["stage"] == "ril" and "loss" in r]
    assert len(steps) == 2 and all(np.isfinite(r["loss"]) and r["sampler_gap"] < 1e-4 for r in steps)
    before, after = (loading.load(run / name).hf for name in ("sft", "checkpoints/last"))
    moved = {name for name, p in before.named_parameters() if not torch.equal(p, after.get_parameter(name))}
    tower = {name for name, _ in before.named_parameters() if "visual" in name and "merger" not in name}
    mergers = {name for name, _ in before.named_parameters() if "merger" in name}
    assert not moved & tower and mergers <= moved and len(mergers) == 3 * 6
    stock, told = type(before).from_pretrained(run / "last", dtype=torch.bfloat16, output_loading_info=True)
    assert not any(told.values()), told
    assert all(torch.equal(p, after.get_parameter(name).bfloat16()) for name, p in stock.named_parameters())


def test_the_plan_counts_the_patches_that_all_mergers_read(vlm, monkeypatch):
    (prompt,) = vlm.encode_pictures([vlm.encoder.encode_question(PICTURED[0])])
    assert memory.sizes(NAME)["patch"] == 2 * prompt.patches.shape[1] == 3 * memory.sizes("tiny-qwen")["patch"]
    cfg = config.parse("--student qwen3-vl-8b --image-tokens 1280 --questions-per-step 40".split())
    gb, real = memory.phases(cfg, 8, "phase"), memory.sizes(cfg.student)
    monkeypatch.setattr(memory, "sizes", lambda name: real | dict(patch=0))
    patches = 5 * 1280 * 2 * (1 + 3) * 4 * 1152 / 1e9  # questions of a GPU, image tokens, bytes, mergers, four patches
    without = memory.phases(cfg, 8, "phase")
    assert all(gb[x] - without[x] == pytest.approx(patches * (x != "host")) for x in gb) and patches > 0.2
