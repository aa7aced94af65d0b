"""The promises of the method, each named by the fact that it protects. No network, no sleeping, nothing skipped.

Engine, tools and the tiny world are tested in tests/, a file per concept.

make test                                        # all, from a fresh machine
.venv/bin/python -m pytest -x -q -k packed       # some
"""

import copy
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import config
import data
import discriminator as disc
import engine.loading as loading
import engine.report as report
import engine.sharding as sharding
import eval as ev
import grpo
import judge as jd
import model
import rollout as ro
import tiny.world as tiny_world
import train
from engine.command import UserError
from tests.helpers import (
    HOME,
    SMALL,
    STUDENTS,
    command,
    metrics,
    own_questions,
    questions_of_all_shapes,
    sampled,
    stock_inputs,
    switched,
    torchrun,
)


# ------------------------------------------------------------------------------------------------ data.py
def test_order_of_questions_reads_each_epoch_once_and_depends_on_the_step_alone():
    questions = [data.Question(str(i), (), "q", "a") for i in range(7)]
    visits = [(q.id, epoch) for step in range(7) for q, epoch in data.questions_at(questions, step, 3, seed=5)]
    read = [name for name, _ in visits]
    assert len(set(visits)) == 21 and [epoch for _, epoch in visits] == [0] * 7 + [1] * 7 + [2] * 7
    assert [sorted(read[i : i + 7]) for i in (0, 7, 14)] == [sorted(map(str, range(7)))] * 3
    assert read[:7] != read[7:14]
    assert read[12:15] == [q.id for q, _ in data.questions_at(questions, 4, 3, seed=5)]


def test_a_question_that_meets_itself_in_one_step_is_answered_anew(speaker):
    q = questions_of_all_shapes()[0]
    prompts = [speaker.encoder.encode_question(q)] * 2
    one, two = ro.rollout(speaker, prompts, [(q.id, 0), (q.id, 1)], 4, 16, ro.PURE, (0,))
    assert [r.ids for r in one] != [r.ids for r in two]


def test_your_questions_are_split_by_picture_the_same_in_every_process(tmp_path):
    lines = []
    for i in range(30):
        (tmp_path / f"d{i % 10}").mkdir(exist_ok=True)
        Image.new("RGB", (20, 20), (i % 10,) * 3).save(tmp_path / f"d{i % 10}/img.png")
        lines.append(json.dumps(dict(id=f"q{i}", image=f"d{i % 10}/img.png", question="q", answer="a")))
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    code = "import data, sys; parts = data.split_questions(data.load_questions(sys.argv[1]))\n"
    code += "print({k: [q.id for q in v] for k, v in parts.items()})"
    found = set()
    for seed in "012":
        env = dict(os.environ, PYTHONHASHSEED=seed, PYTHONPATH=str(HOME))
        argv = [sys.executable, "-c", code, str(tmp_path / "mine.jsonl")]
        found.add(subprocess.run(argv, env=env, capture_output=True, text=True, check=True).stdout)
    assert len(found) == 1
    parts = data.split_questions(data.load_questions(tmp_path / "mine.jsonl"))
    assert [len(parts[k]) for k in ("train", "valid", "test")] == [24, 3, 3]
    assert not {q.images for q in parts["train"]} & {q.images for q in parts["test"]}


# ------------------------------------------------------------------------------------------------ grpo.py
def test_advantages_equal_a_slow_loop():
    reward = torch.randint(0, 3, (5, 8), generator=torch.Generator().manual_seed(0)).float()
    for std in (False, True):
        got = grpo.advantages(reward, "grpo" if std else "dr_grpo")
        for q in range(5):
            row = reward[q].tolist()
            mean = sum(row) / 8
            sd = (sum((r - mean) ** 2 for r in row) / 7) ** 0.5
            want = [(r - mean) / (sd + 1e-4 if std else 1) for r in row]
            assert torch.allclose(got[q], torch.tensor(want), atol=1e-5)


def random_tokens(seed: int = 0, rows: int = 6, length: int = 5):
    g = torch.Generator().manual_seed(seed)
    logp, old, ref = (-3 * torch.rand(rows, length, generator=g, dtype=torch.double) for _ in range(3))
    mask = torch.arange(length)[None] < torch.randint(1, length + 1, (rows,), generator=g)[:, None]
    return logp, old, ref, torch.randn(rows, generator=g, dtype=torch.double), mask


@pytest.mark.parametrize("kind", ["k3", "k2"])
@pytest.mark.parametrize("length_mean", [False, True])
def test_policy_loss_equals_a_slow_loop(kind, length_mean):
    logp, old, ref, advantage, mask = random_tokens()
    total = 0.0
    for i in range(len(logp)):
        terms = []
        for t in range(int(mask[i].sum())):
            rho = float(np.exp(logp[i, t] - old[i, t]))
            a, d = float(advantage[i]), float(ref[i, t] - logp[i, t])
            penalty = np.exp(d) - d - 1 if kind == "k3" else d * d / 2
            terms.append(min(rho * a, max(0.8, min(1.2, rho)) * a) - 0.3 * penalty)
        total += sum(terms) / (len(terms) if length_mean else 7)
    objective = grpo.Objective(responses=6, max_length=7, beta=0.3, kl=kind, length_mean=length_mean)
    got = grpo.policy_loss(logp, old, ref, advantage, mask, None, objective)
    assert abs(got.item() + total / 6) < 1e-9


def test_policy_loss_does_not_depend_on_micro_batching():
    logp, old, ref, advantage, mask = random_tokens(1)
    whole = None, grpo.Objective(responses=6, max_length=5)
    one = grpo.policy_loss(logp, old, ref, advantage, mask, *whole)
    parts = sum(
        grpo.policy_loss(logp[s], old[s], ref[s], advantage[s], mask[s], *whole) for s in (slice(0, 1), slice(1, 6))
    )
    assert abs(one.item() - parts.item()) < 1e-12


def test_mean_gradient_of_the_kl_estimators():
    g = torch.Generator().manual_seed(0)
    theta, ref = torch.randn(6, generator=g, dtype=torch.double), torch.randn(6, generator=g, dtype=torch.double)
    ref_logp = ref.log_softmax(0)

    def gradient(f):
        x = theta.clone().requires_grad_()
        f(x.log_softmax(0)).backward()
        return x.grad

    p = theta.softmax(0)  # the mean over samples of the policy, exactly
    k3 = gradient(lambda logp: (p * grpo.kl(logp, ref_logp, "k3")).sum())
    k2 = gradient(lambda logp: (p * grpo.kl(logp, ref_logp, "k2")).sum())
    kl_ref_policy = gradient(lambda logp: (ref_logp.exp() * (ref_logp - logp)).sum())
    kl_policy_ref = gradient(lambda logp: (logp.exp() * (logp - ref_logp)).sum())
    assert (k3 - kl_ref_policy).abs().max() < 1e-6 and (k2 - kl_policy_ref).abs().max() < 1e-6
    assert (k3 - k2).abs().max() > 1e-2


def test_second_pass_has_a_ratio_and_the_clip_acts():
    old = torch.log(torch.tensor([[0.5, 0.5, 0.5]], dtype=torch.double))
    logp = torch.log(torch.tensor([[0.7, 0.55, 0.3]], dtype=torch.double)).requires_grad_()
    up = grpo.surrogate(logp, old, torch.tensor([2.0]), eps=0.2)
    assert torch.allclose(up, torch.tensor([[2.4, 2.2, 1.2]], dtype=torch.double))  # 1.4 clipped to 1.2; 1.1; 0.6
    up.sum().backward()
    assert logp.grad[0, 0] == 0 and logp.grad[0, 1] > 0 and logp.grad[0, 2] > 0  # too far up: no gradient
    down = grpo.surrogate(logp.detach(), old, torch.tensor([-1.0]), eps=0.2)
    assert torch.allclose(down, torch.tensor([[-1.4, -1.1, -0.8]], dtype=torch.double))
    mask = torch.ones(1, 3, dtype=torch.bool)
    ratios, clipped, tokens = report.surrogate_metrics(logp.detach(), old, mask, 0.2)
    assert (clipped, tokens) == (2, 3) and abs(ratios - (1.4 + 1.1 + 0.6)) < 1e-6


def test_likelihood_is_the_case_of_advantage_one():
    logp, old, ref, _, mask = random_tokens(2)
    logp.requires_grad_()
    one = grpo.advantages(torch.rand(6, 1), "one").double().flatten()
    loss = grpo.policy_loss(logp, logp.detach(), None, one, mask, None, grpo.Objective(6, 5, beta=0.0))
    loss.backward()
    assert torch.allclose(logp.grad, -mask.double() / 30)


def test_what_is_done_with_teacher_rows():
    advantage = torch.tensor([[1.0, -1.0, 0.5, -0.5]])
    teacher = torch.tensor([[False, False, True, True]])
    for use, want in {"gradient": [1, -1, 0.5, -0.5], "baseline": [1, -1, 0, 0], "positive": [1, -1, 0.5, 0]}.items():
        assert grpo.teacher_advantages(advantage, teacher, use)[0].tolist() == want, use
    logp = torch.tensor([[0.2], [0.2]]).log().requires_grad_()
    teacher, how = torch.tensor([True, False]), grpo.Objective(2, 1, beta=0.0, teacher_use="denominator-1")
    mask = torch.ones(2, 1, dtype=torch.bool)
    a = torch.tensor([1.0, 1.0])
    plain = grpo.policy_loss(logp, logp.detach(), None, a, mask, teacher, how)
    assert abs(plain.item() + (0.2 + 1) / 2) < 1e-6  # the teacher row has pi itself, the student row its ratio 1


def test_dead_groups_are_counted_and_have_no_advantage():
    reward = torch.tensor([[1.0, 1, 1, 1], [0, 1, 2, 1]])
    teacher = torch.tensor([[False, False, True, True]]).expand(2, -1)
    found = report.group_metrics(reward, reward, reward, teacher, grpo.advantages(reward))
    assert found["dead_groups"] == 0.5 and found["reward"] == 0.75 and found["teacher_answer"] == 1.25
    assert grpo.advantages(reward)[0].abs().sum() == 0


# ------------------------------------------------------------------------------------------------ model.py
def some_rows(vlm) -> tuple[list, list]:
    prompts = [vlm.encoder.encode_question(q) for q in questions_of_all_shapes()]
    texts = ["red", "i see red circle. the answer is 3", "look: none; final 2", "a strange wörd"]
    return prompts, [[vlm.encoder.reply_ids(t) for t in texts[: 2 + i % 3]] for i in range(len(prompts))]


def test_packed_row_equals_separate_rows_in_log_probs_and_gradients(vlm):
    prompts, rows = some_rows(vlm)
    weight = torch.randn(sum(map(len, rows)), generator=torch.Generator().manual_seed(0))

    def gradients(batches):
        vlm.hf.zero_grad()
        out, r = [], 0
        for batch in batches:
            logp = vlm(batch)
            (logp.sum(1) * weight[r : r + len(logp)]).sum().backward()
            out += [x[m].detach() for x, m in zip(logp, batch.mask, strict=True)]
            r += len(logp)
        return torch.cat(out), [p.grad.clone() for p in vlm.hf.parameters()]

    separate = [model.pack([p], [[r]]) for p, rs in zip(prompts, rows, strict=True) for r in rs]
    one, one_grad = gradients([model.pack(prompts, rows)])
    many, many_grad = gradients(separate)
    assert (one - many).abs().max() < 2e-5
    scale = max(g.abs().max() for g in many_grad)
    assert max((a - b).abs().max() for a, b in zip(one_grad, many_grad, strict=True)) < 1e-5 * scale
    assert min(g.abs().max() for g in one_grad) > 0  # the vision tower too
    packed_tokens = int((model.pack(prompts, rows).segment >= 0).sum())
    assert packed_tokens < 0.6 * sum(int((b.segment >= 0).sum()) for b in separate)


def test_log_probs_equal_the_stock_models(vlm):
    prompts, rows = some_rows(vlm)
    for prompt, row in zip(prompts, rows, strict=True):
        got = vlm(model.pack([prompt], [row[-1:]]))[0]
        ids = torch.cat([prompt.ids, torch.tensor(row[-1])])
        logits = vlm.hf(**stock_inputs(vlm, prompt, ids)).logits[0] + vlm.banned
        want = logits.log_softmax(-1)[len(prompt.ids) - 1 : -1].gather(1, ids[len(prompt.ids) :, None])[:, 0]
        assert (got - want).abs().max() < 2e-5


def test_sft_loss_equals_the_stock_loss_when_nothing_is_banned(vlm):
    prompts, rows = some_rows(vlm)
    batch = model.pack(prompts[:1], [rows[0][:1]])
    ids = torch.cat([prompts[0].ids, torch.tensor(rows[0][0])])
    labels = ids.clone()
    labels[: len(prompts[0].ids)] = -100
    banned, vlm.banned = vlm.banned, torch.zeros_like(vlm.banned)
    mine = grpo.sft_loss(vlm(batch), batch.mask, int(batch.mask.sum()))
    vlm.banned = banned
    assert abs(mine.item() - vlm.hf(**stock_inputs(vlm, prompts[0], ids), labels=labels[None]).loss.item()) < 1e-5


def test_seen_patches_give_what_raw_pixels_give(vlm):
    prompts, rows = some_rows(vlm)
    raw = vlm(model.pack(prompts, rows))
    seen = model.pack(vlm.encode_pictures(prompts), rows)
    assert seen.pixels is None and seen.patches is not None
    assert (vlm(seen) - raw).abs().max() < 1e-5


def test_frozen_vision_tower_gets_no_gradient_and_its_projector_does(vlm):
    prompts, rows = some_rows(vlm)
    vlm.freeze("vision")
    vlm.hf.zero_grad(set_to_none=True)
    vlm(model.pack(prompts, rows)).sum().backward()  # raw pixels: the tower runs with gradients allowed
    tower = dict(vlm.base.get_submodule(vlm.family.vision).named_parameters())
    projector = {id(p) for projector in vlm.family.projectors(vlm.base) for p in projector.parameters()}
    assert all((p.grad is not None) == (id(p) in projector) for p in tower.values())
    vlm.freeze()


def test_chunked_log_probs_equal_whole_ones(vlm):
    h = torch.randn(50, vlm.hf.lm_head.in_features, requires_grad=True)
    target = torch.randint(260, 300, (50,))
    whole = model.token_logps(h, vlm.hf.lm_head, target, vlm.banned)
    parts = model.token_logps(h, vlm.hf.lm_head, target, vlm.banned, chunk=16)
    assert torch.allclose(whole, parts, atol=1e-6)
    a, b = torch.autograd.grad(whole.sum(), h)[0], torch.autograd.grad(parts.sum(), h)[0]
    assert torch.allclose(a, b, atol=1e-6)


def test_tokenizer_holds_any_text(vlm):
    for text in ["i see red circle. the answer is 3", "Größe: 5 µm, 日本!", "look: none; final nothing", "a\n\n b  c"]:
        assert vlm.encoder.text(vlm.encoder.reply_ids(text)) == text
    assert vlm.encoder.reply_ids("red")[-1] == vlm.encoder.end and vlm.encoder.end not in vlm.encoder.banned_ids


def test_text_crosses_between_the_families_and_tokens_do_not():
    one, other = (loading.load(name, 1) for name in STUDENTS)
    texts = [t for q in tiny_world.world_questions("train", 20) for t in q.meta["replies"].values()] + ["Größe: 5 µm"]
    for text in texts:
        there = other.encoder.reply_ids(one.encoder.text(one.encoder.reply_ids(text)))
        assert (
            other.encoder.text(there) == text
            and one.encoder.text(one.encoder.reply_ids(other.encoder.text(there))) == text
        )
    mine, theirs = (sum(len(v.encoder.reply_ids(t)) for t in texts) for v in (one, other))
    assert theirs > 1.2 * mine
    ids = one.encoder.reply_ids("look: top left yellow triangle")
    assert other.encoder.text(ids) != one.encoder.text(ids)


def test_a_picture_of_several_tiles_has_image_tokens_for_each_and_equals_stock():
    vlm = loading.load("tiny-internvl", 1)
    vlm.encoder.image_processor.crop_to_patches = True
    picture = tiny_world.world_questions("train", 1)[0].images[0]
    prompt = vlm.encoder.encode([picture.resize((84, 42)), picture], "what is this?")
    tiles = len(prompt.pixels["pixel_values"])
    assert tiles == 2 + 1 + 1  # the wide picture: two tiles and the whole; the square one: one tile
    assert int((prompt.ids == vlm.base.config.image_token_id).sum()) == 9 * tiles
    text = vlm.encoder.tokenizer.decode(prompt.ids)
    assert "<img>" + "<IMG_CONTEXT>" * 27 + "</img><img>" + "<IMG_CONTEXT>" * 9 + "</img>" in text
    assert vlm.encode_pictures([prompt])[0].patches.shape == (9 * tiles, 4 * 64)
    row = vlm.encoder.reply_ids("i see red circle")
    ids = torch.cat([prompt.ids, torch.tensor(row)])
    logits = vlm.hf(**stock_inputs(vlm, prompt, ids)).logits[0] + vlm.banned
    want = logits.log_softmax(-1)[len(prompt.ids) - 1 : -1].gather(1, torch.tensor(row)[:, None])[:, 0]
    assert (vlm(model.pack([prompt], [[row]]))[0] - want).abs().max() < 2e-5


def test_a_text_that_holds_the_sign_for_a_picture_is_refused(vlm):
    with pytest.raises(UserError, match="question 'q7': the text holds .* the sign for a picture"):
        vlm.encoder.encode_question(data.Question("q7", (), f"what is {vlm.family.picture_sign}?", "x"))


def test_exported_folder_is_what_stock_from_pretrained_reads(vlm, tmp_path):
    loading.save(vlm, tmp_path / "out")
    stock, info = vlm.family.model.from_pretrained(tmp_path / "out", dtype=torch.bfloat16, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    for (name, a), b in zip(vlm.hf.named_parameters(), stock.parameters(), strict=True):
        assert torch.equal(a.bfloat16(), b), name
    from safetensors import safe_open

    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as f:
        assert "lm_head.weight" not in f.keys()  # noqa: SIM118  (tied weights are stored once)
    again = loading.load(tmp_path / "out")
    assert again.encoder.banned_ids == vlm.encoder.banned_ids and again.encoder.ends == vlm.encoder.ends
    q = questions_of_all_shapes()[-1]
    assert torch.equal(again.encoder.encode_question(q).ids, vlm.encoder.encode_question(q).ids)


# ------------------------------------------------------------------------------------------------ rollout.py
def test_greedy_rollout_equals_stock_generate_token_for_token(speaker):
    questions = questions_of_all_shapes()
    prompts, names = [speaker.encoder.encode_question(q) for q in questions], [q.id for q in questions]
    got = ro.rollout(speaker, prompts, names, 3, 24, ro.GREEDY)
    lengths = set()
    for prompt, group in zip(prompts, got, strict=True):
        inputs = stock_inputs(speaker, prompt, prompt.ids)
        want = speaker.hf.generate(
            **inputs, max_new_tokens=24, do_sample=False, suppress_tokens=speaker.encoder.banned_ids
        )
        want = want[0, len(prompt.ids) :].tolist()
        assert all(r.ids == want for r in group)
        lengths.add(len(want))
    assert len(lengths) > 1  # some end by themselves, so that rows leave the batch


def test_the_samplers_log_probs_are_the_scorers(speaker):
    prompts, groups = sampled(speaker)
    batch = model.pack(prompts, [[r.ids for r in g] for g in groups])
    logp = speaker(batch)
    for i, r in enumerate(r for g in groups for r in g):
        assert (logp[i][batch.mask[i]] - torch.tensor(r.logps)).abs().max() < 1e-4


def test_a_finished_row_has_its_end_token_in_the_loss_and_a_truncated_one_has_none(speaker):
    prompts, groups = sampled(speaker)
    batch = model.pack(prompts, [[r.ids for r in g] for g in groups])
    flat = [r for g in groups for r in g]
    assert {r.finished for r in flat} == {True, False}
    for r, target, mask in zip(flat, batch.target, batch.mask, strict=True):
        assert (speaker.encoder.end in target[mask].tolist()) == r.finished
        assert int(mask.sum()) == len(r.ids) and (r.finished or len(r.ids) == 16)
        assert speaker.encoder.end not in r.ids[:-1]


def test_control_and_vision_tokens_are_never_sampled_and_have_no_probability(vlm):
    picture = vlm.base.config.image_token_id
    assert picture in vlm.encoder.banned_ids and set(vlm.encoder.tokenizer.all_special_ids) - set(
        vlm.encoder.ends
    ) <= set(vlm.encoder.banned_ids)
    loud = copy.deepcopy(vlm)
    loud.hf.lm_head.weight = torch.nn.Parameter(loud.hf.lm_head.weight.detach().clone())
    loud.hf.lm_head.weight.data[vlm.encoder.banned_ids] *= 50
    _, groups = sampled(loud)
    assert not {t for g in groups for r in g for t in r.ids} & set(vlm.encoder.banned_ids)
    assert loud(model.pack([loud.encoder.encode([], "what")], [[[picture]]]))[0, 0] == -torch.inf


def test_a_response_does_not_depend_on_its_company(speaker):
    _, together = sampled(speaker)
    _, alone = sampled(speaker, questions=questions_of_all_shapes()[2:3])
    _, chunked = sampled(speaker, max_rows=8)
    assert [r.ids for r in alone[0]] == [r.ids for r in together[2]]
    assert [[r.ids for r in g] for g in chunked] == [[r.ids for r in g] for g in together]
    assert len({tuple(r.ids) for r in together[2]}) == 4


def test_inverse_sampling_follows_the_distribution():
    logits = torch.tensor([0.5, 0.2, 0.0, 0.3]).log()
    u = (torch.arange(1000, dtype=torch.double) + 0.5) / 1000
    tokens, logps = ro.draw(logits.expand(1000, -1), u, ro.PURE)
    assert torch.bincount(tokens, minlength=4).tolist() == [500, 200, 0, 300]
    assert torch.allclose(logps, logits[tokens], atol=1e-6)
    cut, _ = ro.draw(logits.expand(1000, -1), u, ro.Sampling(top_p=0.6))
    assert set(cut.tolist()) == {0, 3}  # 0.5 is below 0.6, so the next one still belongs
    top, _ = ro.draw(logits.expand(1000, -1), u, ro.Sampling(top_k=1))
    assert set(top.tolist()) == {0}
    seen = torch.zeros(1000, 4, dtype=torch.bool)
    seen[:, 0] = True
    less, _ = ro.draw(logits.expand(1000, -1), u, ro.Sampling(repetition_penalty=2.0), seen)
    assert (less == 0).sum() < 350


def test_the_gap_between_sampler_and_scorer_is_told_in_full_whatever_the_micro_batching(speaker):
    prompts, groups = sampled(speaker, ro.PAPER)
    teacher = torch.zeros(len(groups), 4, dtype=torch.bool)

    def told(size: int, how=ro.PAPER) -> dict:
        cut = data.slices(len(groups), size)
        packed = [model.pack(prompts[s], [[r.ids for r in g] for g in groups[s]]) for s in cut]
        with torch.no_grad():
            old = [speaker(b) for b in packed]
        return report.token_metrics(groups, packed, old, [None] * len(cut), teacher, cut, "k3", how)

    gaps, ratios = [], []
    for prompt, r in ((p, r) for p, g in zip(prompts, groups, strict=True) for r in g):
        with torch.no_grad():
            scored = speaker(model.pack([prompt], [[r.ids]]))[0].tolist()
        gaps += [abs(a - b) for a, b in zip(scored, r.logps, strict=True)]
        ratios.append(sum(scored) - sum(r.logps))
    for size in (1, 2, len(groups)):
        row = told(size)
        assert row["sampler_gap"] == pytest.approx(max(gaps), abs=1e-5) and max(gaps) > 0.01
        assert row["sampler_gap_mean"] == pytest.approx(np.mean(gaps), abs=1e-5)
        assert row["sampler_log_ratio_sd"] == pytest.approx(np.std(ratios), abs=1e-4) and np.std(ratios) > 0.01
    assert set(told(2)) - set(told(2, ro.PURE)) == {"sampler_gap_mean", "sampler_log_ratio_sd"}


# ------------------------------------------------------------------------------------------------ discriminator.py
TEXTS = [["red", "i see red circle. the answer is red", "red"], ["3", "look: none; final 0"]]


def test_packed_discriminator_scores_equal_separate_ones(vlm):
    D = disc.Discriminator(vlm)
    one = D(D.pack(TEXTS))
    many = torch.cat([D(D.pack([[t]])) for texts in TEXTS for t in texts])
    assert (one - many).abs().max() < 1e-5 and (one[0] - one[1]).abs() > 1e-6


def test_same_text_gets_the_same_score_from_either_source(vlm):
    D = disc.Discriminator(vlm)
    finished, cut = vlm.encoder.reply_ids("i see red circle"), vlm.encoder.reply_ids("i see red circle")[:-1]
    odd = vlm.encoder.tokenizer.convert_tokens_to_ids(list(" i see red circle".replace(" ", "\u0120")))  # byte by byte
    assert odd != cut
    sources = [
        vlm.encoder.text(finished),
        vlm.encoder.text(cut),
        "i see red circle",
        " i see red circle\n<|im_end|>",
        vlm.encoder.text(odd),
    ]
    scores = D(D.pack([sources[:1] + sources[2:3], *[[s] for s in sources]]))
    assert (scores - scores[0]).abs().max() < 1e-5


def test_the_discriminator_starts_as_the_student(vlm):
    D = disc.Discriminator(vlm)
    for (name, a), b in zip(D.base.named_parameters(), vlm.base.parameters(), strict=True):
        assert torch.equal(a, b) and a is not b, name
    assert D(D.pack(TEXTS)).abs().max() < 1.5 and D.head.bias is None


def test_discriminator_loss_is_equation_1_and_adds_up_over_parts():
    logit = torch.tensor([2.0, -1.0, 0.5, -3.0])
    student = torch.tensor([True, True, False, False])
    p = 1 / (1 + np.exp(-logit.numpy()))
    want = -0.5 * (np.log(p[:2]).mean() + np.log(1 - p[2:]).mean())
    assert abs(disc.discriminator_loss(logit, student, 2, 2).item() - want) < 1e-6
    parts = sum(disc.discriminator_loss(logit[s], student[s], 2, 2) for s in (slice(0, 1), slice(1, 4)))
    assert abs(parts.item() - want) < 1e-6
    assert disc.similarity_reward(logit).tolist() == [0, 1, 0, 1]  # below 0 reads like a teacher
    found = report.discriminator_accuracy(logit, student)
    assert found == {"d_accuracy": 0.5, "d_on_student": 0.5, "d_on_teacher": 0.5}


def test_pretrained_discriminator_tells_most_texts_apart(whole):
    straight, _ = whole
    student = loading.load(straight / "sft")
    D = disc.Discriminator(student)
    lacks = D.load_state_dict(load_file(straight / "discriminator" / "model.safetensors"), strict=False)
    assert not lacks.unexpected_keys and not {n for n, p in D.named_parameters() if p.requires_grad} & {
        *lacks.missing_keys
    }
    questions = tiny_world.world_questions("train", 48)
    prompts, names = [student.encoder.encode_question(q) for q in questions], [q.id for q in questions]
    groups = ro.rollout(student, prompts, names, 4, 32, ro.PURE, (99,))
    mine = disc.similarity_reward(D(D.pack([[r.text for r in g] for g in groups])))
    theirs = [json.loads(x) for x in (straight / "teachers.jsonl").read_text().splitlines()]
    theirs = disc.similarity_reward(D(D.pack([[r["text"] for r in theirs if r["question"] == n] for n in names])))
    assert theirs.mean() > 0.8 and mine.mean() < 0.35


# ------------------------------------------------------------------------------------------------ judge.py
@pytest.mark.parametrize(
    "answer, response, right",
    [
        ("3", "3", 1),
        ("3", "i see a b c. the answer is 3", 1),
        ("3", "3.0", 1),
        ("3", "the answer is 3 things", 1),
        ("3", "13", 0),
        ("red", "Look: top left red square; final Red.", 1),
        ("red", "red or green", 0),
        ("red", "the answer is green. no, the answer is red", 1),
        ("red", "", 0),
        ("red", "the answer is", 0),
        ("-0.5", "-.50", 1),
        ("1234567", "1234568", 0),
        ("1234567", "1,234,567", 1),
        ("1/2", "12", 0),
        ("3:30", "330", 0),
        ("green", "red or green", 0),
        ("red", "finally, it is red", 1),
        ("+", "+", 1),
        ("5 cm", "the answer is 5 centimetres", 1),
        ("5 cm", "5", 1),
        ("5 cm", "5 m", 0),
        ("5", "5 cm", 0),  # nobody asked for centimetres
        ("45%", "45 percent", 1),
        ("30°C", "-30°C", 0),
        ("1/2", "0.5", 1),
        ("B", "(B) red", 1),
        ("B", "the answer is b.", 1),
        ("B", "(A) (B)", 0),
        ("(B) red", "red", 1),
        ("(B) red", "(B) green", 0),
        ("A", "a red circle", 0),
        ("red, white, blue", "- red\n- white\n- blue", 1),
        ("red, white, blue", "blue; white and red", 1),
        ("red, white, blue", "red, white", 0),
        ("1, 2, 3", "1,2,3", 1),
        ("red", "it is not red", 0),
        ("3", "there are three", 1),
        ("no", "no", 1),
    ],
)
def test_rule_judge(answer, response, right):
    assert jd.rule_judge(data.Question("q", (), "?", answer), response) == right


def test_the_rule_reads_options_from_the_question():
    question = data.Question("q", (), "Is it red? (A) yes (B) no", "(B) no")
    said = ["B", "(B) no", "no", "The answer is b.", "(B) yes", "A", "not B", "A or B"]
    assert [jd.rule_judge(question, r) for r in said] == [1, 1, 1, 1, 0, 0, 0, 0]


def test_ids_come_back_paired_whatever_the_order():
    questions = [data.Question(str(i), (), "?", str(i)) for i in range(5)]
    order = [3, 1, 1, 4, 0, 2]
    responses = [ro.Response(str(i), k, "student", [], str(i if k % 2 else 0)) for k, i in enumerate(order)]
    assert jd.Judge("rule").verdicts(questions[::-1], responses) == [0, 1, 0, 1, 1, 1]


# ------------------------------------------------------------------------------------------------ train.py: the run
def bytes_of(run: Path) -> dict[str, bytes]:
    """What has to be equal between two runs: the logs without times, the weights, the answers."""
    names = ["metrics.jsonl", "samples.jsonl", "teachers.jsonl", "samples.md", "sft/model.safetensors"]
    names += ["discriminator/model.safetensors", "student/model.safetensors", "last/model.safetensors"]
    out = {n: (run / n).read_bytes() for n in names}
    summary = json.loads((run / "summary.json").read_text())
    return out | {"summary": {k: v for k, v in summary.items() if k not in ("name", "seconds", "peak_memory_mb")}}


def same(a: Path, b: Path) -> bool:
    one, two = bytes_of(a), bytes_of(b)
    wrong = [n for n in one if one[n] != two[n]]
    assert not wrong, wrong
    return True


def test_a_run_leaves_every_artefact(straight):
    for name in ("config.json", "curves.png", "samples.md", "summary.json", "samples/0-0.png", "timing.jsonl"):
        assert (straight / name).stat().st_size > 0, name
    summary = json.loads((straight / "summary.json").read_text())
    for key in (
        "greedy_before",
        "greedy_after",
        "sampled_interval_before",
        "sampled_after",
        "greedy_teacher",
        "tokens_after",
    ):
        assert key in summary, key
    assert set(summary["seconds"]) == set(config.STAGES) and summary["peak_memory_mb"] > 100
    rows = [json.loads(x) for x in (straight / "metrics.jsonl").read_text().splitlines()]
    steps = [r for r in rows if r["stage"] == "ril" and "loss" in r]
    assert [r["step"] for r in steps] == list(range(6))
    assert all(r["sampler_gap"] < 1e-4 and abs(r["ratio"] - 1) < 1e-6 for r in steps)
    assert not list(straight.rglob("*.part"))


def test_two_runs_of_one_command_give_identical_bytes(whole, tmp_path):
    straight, flags = whole
    command(tmp_path, "--name", "b", *flags)
    assert same(straight, tmp_path / "runs" / "b")


def test_a_run_stopped_after_each_stage_ends_with_the_same_bytes(straight, tmp_path):
    for stage in config.STAGES:
        command(tmp_path, "--name", "c", "--stage", stage, *SMALL)
    assert same(straight, tmp_path / "runs/c")


def kill_and_resume(cwd: Path, flags: list[str], stage: str, step: int, mark: str) -> None:
    """Run k, killed hard once `step` is logged and checkpoint `mark` is there; then the same command to its end."""
    code = (
        "import os, signal, sys, train\n"
        "real = train.Run.log\n"
        "def log(self, name, **row):\n"
        "    real(self, name, **row)\n"
        f"    if name == 'metrics.jsonl' and (row['stage'], row['step']) == ({stage!r}, {step}):\n"
        f"        while not os.path.isdir('runs/k/checkpoints/{mark}'): pass  # saved in the background\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "train.Run.log = log\n"
        "train.main(sys.argv[1:])\n"
    )
    how = dict(cwd=cwd, capture_output=True, text=True)
    env, flags = dict(os.environ, PYTHONPATH=str(HOME)), ["--name", "k", *flags]
    killed = subprocess.run([sys.executable, "-c", code, *flags], env=env, **how)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (cwd / "runs/k" / train.STAGE_OF[stage][1]).exists()
    resumed = subprocess.run([sys.executable, str(HOME / "train.py"), *flags], **how)
    assert resumed.returncode == 0, resumed.stderr
    assert f"goes on from runs/k/checkpoints/{mark}" in resumed.stdout


@pytest.mark.parametrize("student", STUDENTS)
def test_a_killed_warm_start_goes_on_from_its_checkpoint_and_ends_with_the_same_bytes(student, tmp_path):
    flags = [*SMALL, "--student", student, "--stage", "sft", "--sft-steps", "55"]
    command(tmp_path, "--name", "w", *flags)
    kill_and_resume(tmp_path, flags, "sft", 49, "sft-step40")
    for file in ("metrics.jsonl", "sft/model.safetensors"):
        assert (tmp_path / "runs/w" / file).read_bytes() == (tmp_path / "runs/k" / file).read_bytes(), file


def test_a_killed_run_goes_on_from_its_checkpoint_and_ends_with_the_same_bytes(whole, tmp_path):
    straight, flags = whole
    run = tmp_path / "runs/k"
    shutil.copytree(straight, run)
    for name in ("summary.json", "student", "last", "checkpoints", "seconds.json", "samples.md"):
        shutil.rmtree(run / name, ignore_errors=True)
        (run / name).unlink(missing_ok=True)
    for name in ("metrics.jsonl", "samples.jsonl", "timing.jsonl"):
        lines = [x for x in (run / name).read_text().splitlines() if json.loads(x)["stage"] == "discriminator"]
        (run / name).write_text("".join(x + "\n" for x in lines))
    kill_and_resume(tmp_path, flags, "ril", 4, "ril-step4")
    assert same(straight, run)


@pytest.mark.parametrize("stage", ["discriminator", "evaluate"])
def test_a_run_killed_inside_a_short_stage_leaves_no_half_of_it(straight, tmp_path, stage, monkeypatch):
    shutil.copytree(straight, tmp_path / "runs/h")
    run = tmp_path / "runs/h"
    for name in config.STAGES[config.STAGES.index(stage) :]:
        (run / train.STAGE_OF[name][1]).unlink(missing_ok=True)
    if stage == "discriminator":
        for name in ("discriminator", "checkpoints", "student", "last"):
            shutil.rmtree(run / name)
        for name in ("metrics.jsonl", "samples.jsonl", "timing.jsonl"):
            (run / name).unlink()
    real, calls = train.Run.log, []

    def log(self, *args, **row):
        real(self, *args, **row)
        calls.append(1)
        if stage == "discriminator" and len(calls) == 2:
            (run / "metrics.jsonl").open("a").write('{"stage": "discri')  # a torn line
            raise KeyboardInterrupt

    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train.Run, "log", log)
        patch.setattr(report, "draw_curves", stop)
        with pytest.raises(KeyboardInterrupt):
            command(tmp_path, "--name", "h", *SMALL)
    command(tmp_path, "--name", "h", *SMALL)
    assert same(straight, run)


def test_another_configuration_is_refused_with_the_fields_that_differ(straight, tmp_path):
    with pytest.raises(UserError, match=r"seed 0 -> 1.*beta 0.01 -> 0.5|beta 0.01 -> 0.5.*seed 0 -> 1"):
        command(straight.parent.parent, "--name", "a", *SMALL, "--seed", "1", "--beta", "0.5")


def test_the_loop_runs_on_packed_rows(straight, tmp_path, monkeypatch):
    """Counts the tokens that pass a language model in one step: each prompt once, each response once per pass."""
    for name in ("sft", "discriminator"):
        shutil.copytree(straight / name, tmp_path / "runs/t" / name)
    shutil.copy(straight / "teachers.jsonl", tmp_path / "runs/t")
    passes = {"policy": [], "rollout": [], "discriminator": []}
    real = model.trunk

    def counting(who):
        def trunk(base, family, batch, cache=None):
            passes["rollout" if cache is not None else who].append(batch)
            return real(base, family, batch, cache)

        return trunk

    for module, who in ((model, "policy"), (disc, "discriminator")):
        monkeypatch.setattr(module, "trunk", counting(who))
    monkeypatch.setattr(train, "validate", lambda *a: None)
    total = {"whole": 0, "decode": 0}

    def count(module, args, kwargs, output):
        if type(module).__name__ in ("Qwen2_5_VLTextModel", "Qwen2Model"):
            rows, length = kwargs["inputs_embeds"].shape[:2]
            total["decode" if length == 1 else "whole"] += rows * length

    handle = torch.nn.modules.module.register_module_forward_hook(count, with_kwargs=True)
    command(tmp_path, "--name", "t", *SMALL, "--steps", "1", "--stage", "ril", "--micro-batch", "1")
    handle.remove()
    row = json.loads((tmp_path / "runs/t/metrics.jsonl").read_text().splitlines()[0])
    tokens = {who: [int((b.segment >= 0).sum()) for b in batches] for who, batches in passes.items()}
    assert [len(tokens[w]) for w in ("policy", "rollout", "discriminator")] == [
        2 * 4,
        1,
        2 * 4,
    ]  # 4 questions, one row each
    assert sum(tokens["policy"]) == 2 * row["packed_tokens"]  # the student's update and the reference
    assert all(len(b.last) == 8 for b in passes["policy"] + passes["discriminator"])
    assert total["whole"] == sum(b.ids.numel() for batches in passes.values() for b in batches)  # and nothing else
    assert total["whole"] <= sum(map(sum, tokens.values())) + 8 * 16 + 4 * 16  # padding: less than 8 a row
    prompts = [int((b.segment == 0).sum()) for b in passes["policy"]]
    separate = sum(tokens["policy"]) + 7 * sum(prompts)
    assert sum(tokens["policy"]) < 0.6 * separate
    assert total["decode"] <= 4 * 4 * 39 and row["tokens"] < 39


def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_the_questions(straight, tmp_path):
    shutil.copytree(straight, tmp_path / "runs/n")
    shutil.rmtree(tmp_path / "runs/n/checkpoints")
    weights = load_file(tmp_path / "runs/n/sft/model.safetensors")
    last = next(name for name in weights if name.endswith("model.norm.weight"))
    weights[last] = weights[last] * float("nan")
    save_file(weights, tmp_path / "runs/n/sft/model.safetensors", metadata={"format": "pt"})
    (tmp_path / "runs/n/metrics.jsonl").unlink()
    with pytest.raises(UserError, match="ril step 0: loss nan"):
        command(tmp_path, "--name", "n", "--stage", "ril", *SMALL)
    dump = json.loads((tmp_path / "runs/n/not-finite.json").read_text())
    assert len(dump["questions"]) == 4 and '"loss"' not in (tmp_path / "runs/n/metrics.jsonl").read_text()


def test_another_file_of_questions_under_the_same_name_is_another_run(tmp_path):
    file = tmp_path / own_questions(tmp_path)
    flags = ["--name", "mine", "--data", file.name, *SMALL, "--stage", "sft"]
    command(tmp_path, *flags)
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match="data_hash"):
        command(tmp_path, *flags)


def test_ril_improves_a_student_on_held_out_questions(tmp_path):
    """From a shipped warm start; the accuracy is that of four sampled answers to each of 200 test questions."""
    flags = "--name r --steps 24 --valid-questions 4 --eval-every 0 ".split()
    for stage in ("sft", "teachers", "discriminator", "ril"):
        command(tmp_path, "--stage", stage, *flags)
    questions, shares = tiny_world.world_questions("test", 200), []
    for folder in ("sft", "checkpoints/last"):
        found = ev.evaluate(loading.load(tmp_path / "runs/r" / folder), questions, jd.Judge(), 40, draws=4)
        shares.append([answer["sampled"] for answer in found["answers"]])
    rises = np.subtract(shares[1], shares[0])
    standard_error = rises.std(ddof=1) / len(rises) ** 0.5  # paired: the draws of one question count as one
    # the sharper policy of a loop with negated advantages gains 0.05 here: that much does not count
    assert rises.mean() > 0.05 + 2 * standard_error, (rises.mean(), standard_error)
    loop = report.start_and_end(report.loop_rows(tmp_path / "runs/r"))  # means of five steps
    assert loop["similarity_end"] > loop["similarity_start"] + 0.2, loop
    assert loop["d_accuracy_end"] < loop["d_accuracy_start"] - 0.1, loop


# ------------------------------------------------------------------------------------------------ train.py: switches
SWITCHES = {  # what the slow step (tests/test_slow_step.py) takes from the real run as given; it covers all others
    "D without pre-training": "--d-steps 0",
    "half the questions judged": "--judged 0.5",
    "judge wrong": "--judge-wrong 0.5",
    "right responses only": "--teacher-use right",
    "paper sampling": "--sampling paper",
}


@pytest.fixture(scope="module")
def default_rows(straight, tmp_path_factory):
    return switched(straight, tmp_path_factory.mktemp("default"), "default")


@pytest.mark.parametrize("name", SWITCHES)
def test_switches_of_texts_and_verdicts_reach_the_loop(straight, default_rows, tmp_path, name):
    rows = switched(straight, tmp_path, "s", *SWITCHES[name].split())
    assert len(rows) == 2 and all(np.isfinite(v) for r in rows for v in r.values() if isinstance(v, float))
    assert [k for k in default_rows[1] if k not in ("stage", "step") and rows[1].get(k) != default_rows[1][k]]
    assert name != "right responses only" or all(r["teacher_answer"] == 1 for r in rows)


# ------------------------------------------------------------------------------------------------ train.py: ranks
def test_two_ranks_log_what_one_process_logs(whole, tmp_path):
    """Text-only questions beside pictures, more questions than fit evenly, answers of different lengths."""
    straight, flags = whole
    mine = own_questions(tmp_path, without=3)
    frozen = "vision" if straight.parts[-1] == "a" and "tiny-internvl" not in flags else "none"
    more = ["--data", mine, "--student", str(straight / "sft"), "--lr", "1e-5", "--d-lr", "1e-5"]
    more += ["--questions-per-step", "5", "--micro-batch", "2", "--steps", "3", "--frozen", frozen, "--mu", "2"]
    flags = [*flags, *more, "--seed", "1"]  # with seed 0 one draw lies within 5e-7 of the border between two tokens
    command(tmp_path, "--name", "one", *flags)
    ran = torchrun(tmp_path, 2, HOME / "train.py", "--name", "two", *flags)
    assert ran.returncode == 0, ran.stderr[-3000:]
    one, two = metrics(tmp_path / "runs/one"), metrics(tmp_path / "runs/two")
    assert len([r for r in one if "loss" in r and r["stage"] == "ril"]) == 3
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        wrong = {k: (a[k], b[k]) for k in a if k != "stage" and abs(a[k] - b[k]) > 1e-4 * (1 + abs(a[k]))}
        assert not wrong, (a["stage"], a["step"], wrong)
    dealt = [json.loads(x)["tokens_per_rank"] for x in (tmp_path / "runs/two/timing.jsonl").read_text().splitlines()]
    packed = [r["packed_tokens"] for r in two if "packed_tokens" in r]
    for here, whole_step in zip(dealt, packed, strict=True):
        assert len(here) == 2 and sum(here) >= whole_step and max(here) < 0.8 * sum(here)  # each passes its part
    lines = [json.loads(x) for x in (tmp_path / "runs/two/answers.jsonl").read_text().splitlines()]
    assert lines == [json.loads(x) for x in (tmp_path / "runs/one/answers.jsonl").read_text().splitlines()]


def test_two_nodes_of_one_rank_log_what_one_process_logs(straight, tmp_path):
    """HSDP: the shards lie in a node, only gradients cross. One question per step leaves the second node without."""
    more = ["--student", str(straight / "sft"), "--steps", "2", "--stage", "ril", "--questions-per-step", "1"]
    flags = [*SMALL, *more, "--micro-batch", "2", "--eval-draws", "1"]
    for name in ("one", "nodes"):
        for part in ("sft", "discriminator"):
            shutil.copytree(straight / part, tmp_path / "runs" / name / part)
        shutil.copy(straight / "teachers.jsonl", tmp_path / "runs" / name)
    command(tmp_path, "--name", "one", *flags)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free.getsockname()[1]), WORLD_SIZE="2")
    where |= dict(LOCAL_WORLD_SIZE="1", LOCAL_RANK="0", GLOO_SOCKET_IFNAME="lo", OMP_NUM_THREADS="1")
    argv = [sys.executable, str(HOME / "train.py"), "--name", "nodes", *flags]
    nodes = [
        subprocess.Popen(argv, cwd=tmp_path, env=os.environ | where | dict(RANK=str(r)), stderr=-1) for r in (0, 1)
    ]
    said = [node.communicate(timeout=300) for node in nodes]
    assert all(node.returncode == 0 for node in nodes), said
    one, two = metrics(tmp_path / "runs/one"), metrics(tmp_path / "runs/nodes")
    assert len([r for r in one if "loss" in r]) == 2
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        assert all(k == "stage" or abs(a[k] - b[k]) <= 1e-4 * (1 + abs(a[k])) for k in a), (a, b)


def rank_gradients(rank: int, world: int, folder: str, family: str) -> None:
    """One of `world` processes: packed policy gradients of its share, gathered; rank 0 writes them."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store{world}", world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    mesh = sharding.start_ranks("cpu")
    student = loading.load(f"{folder}/weights", mesh=mesh).freeze("vision")
    questions = questions_of_all_shapes()
    replies = ["red", "the answer is red", "blue square", "i see red circle"]
    prompts = [student.encoder.encode_question(q) for q in questions]
    loading.load(f"{folder}/weights").encode_pictures(prompts)
    rows = [[student.encoder.reply_ids(x) for x in replies[: 2 + i % 3]] for i in range(len(questions))]
    batch = model.pack(sharding.deal(prompts), sharding.deal(rows))
    loss = grpo.sft_loss(student(batch), batch.mask, 100)
    (world * loss).backward()
    grads = {n: sharding.full_tensor(p.grad).clone() for n, p in student.named_parameters() if p.grad is not None}
    if rank == 0:
        torch.save(grads, f"{folder}/{world}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("family", STUDENTS)
def test_gradients_of_two_ranks_are_those_of_one_process(family, tmp_path):
    loading.save(loading.load(family, 1), tmp_path / "weights", torch.float32)
    for world in (1, 2):
        torch.multiprocessing.spawn(rank_gradients, (world, str(tmp_path), family), nprocs=world)
    one, two = (torch.load(tmp_path / f"{world}.pt") for world in (1, 2))
    assert one.keys() == two.keys() and len(one) > 20
    scale = max(x.abs().max() for x in one.values())
    assert scale > 1e-3 and all((one[n] - two[n]).abs().max() < 1e-5 * scale for n in one)


def test_two_ranks_killed_and_resumed_end_with_the_same_bytes_and_one_goes_on_from_their_checkpoint(straight, tmp_path):
    flags = [*SMALL, "--student", str(straight / "sft"), "--valid-questions", "8", "--test-questions", "8"]
    whole = torchrun(tmp_path, 2, HOME / "train.py", "--name", "w", *flags)
    assert whole.returncode == 0, whole.stderr[-3000:]
    mark = "runs/k/checkpoints/ril-step4"
    (tmp_path / "killed.py").write_text(
        "import os, signal, sys, train\n"
        "real = train.Run.log\n"
        "def log(self, name, **row):\n"
        "    real(self, name, **row)\n"
        "    if self.first and row['stage'] == 'ril' and row['step'] == 4 and name == 'timing.jsonl':\n"
        f"        while not os.path.isdir({mark!r}): pass\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "train.Run.log = log\n"
        "train.main(sys.argv[1:])\n"
    )
    killed = torchrun(tmp_path, 2, tmp_path / "killed.py", "--name", "k", *flags)
    assert killed.returncode != 0 and not (tmp_path / "runs/k/last").exists()
    shutil.copytree(tmp_path / "runs/k", tmp_path / "runs/one", symlinks=True)
    shutil.copytree(tmp_path / "runs/k", tmp_path / "runs/torn", symlinks=True)
    resumed = torchrun(tmp_path, 2, HOME / "train.py", "--name", "k", *flags)
    assert resumed.returncode == 0 and f"goes on from {mark}" in resumed.stdout, resumed.stderr[-3000:]
    assert same(tmp_path / "runs/w", tmp_path / "runs/k")
    command(tmp_path, "--name", "one", *flags)  # one process goes on where two stopped
    two, one = metrics(tmp_path / "runs/w"), metrics(tmp_path / "runs/one")
    assert len(two) == len(one) and two[:-4] == one[: len(two) - 4]
    torn = next((tmp_path / "runs/torn/checkpoints/ril-step4").glob("__1_*.distcp"))
    torn.write_bytes(torn.read_bytes()[:-1])
    ran = torchrun(tmp_path, 1, HOME / "train.py", "--name", "torn", "--stage", "ril", *flags)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert "ril-step4 is damaged and left out" in ran.stdout and "ril-step2" in ran.stdout
    assert len(metrics(tmp_path / "runs/torn")) == len(two)
