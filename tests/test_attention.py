"""Attention without large masks and decoding without launch cost: every form gives the numbers of the plain one.

The variable-length kernel and CUDA graphs need a GPU. Here its plain form takes the kernel's place, on the same
sequences, and a stand-in takes the graph's place; tools.gpu_check runs the real ones.
"""

import contextlib
from types import SimpleNamespace

import pytest
import torch

import config
import engine.attention as attention
import engine.keys_values as keys_values
import engine.loading as loading
import grpo
import model
import rollout as ro
from data import Question
from engine.command import UserError
from tests.helpers import FAMILIES, questions_of_all_shapes, sampled
from tests.published import picture

torch.set_num_threads(1)


def packed_rows() -> model.Batch:
    """Three rows of different prompts and responses; the second has no response, the third one of one token."""
    prompts = [model.Prompt(torch.arange(n), torch.arange(n).expand(3, -1), []) for n in (7, 3, 5)]
    return model.pack(prompts, [[[1] * 4, [2] * 9, [3] * 2], [], [[4] * 6, [5]]])


def plain(batch: model.Batch, q, k, v, scale: float) -> torch.Tensor:
    """Attention under the dense tree mask, heads repeated, in the plainest words; zero on padding."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = (q @ k.transpose(2, 3) * scale).masked_fill(~batch.tree, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2) * (batch.segment >= 0)[..., None, None]


@pytest.mark.parametrize("way", ["padded", "in_one_call"])
def test_packed_rows_attend_as_under_the_dense_mask_with_their_gradients(way):
    batch, generator = packed_rows(), torch.Generator().manual_seed(0)
    shape = dict(dtype=torch.double, generator=generator)
    q, k, v = (torch.randn(3, n, batch.ids.shape[1], 8, **shape).requires_grad_() for n in (6, 2, 2))
    live = (batch.segment >= 0)[..., None, None]
    weight = torch.randn(3, batch.ids.shape[1], 6, 8, **shape) * live
    want = plain(batch, q, k, v, 0.3)
    got = getattr(attention.Branches(batch), way)(q, k, v, 0.3)
    assert ((got - want) * live).abs().max() < 1e-14
    wanted, found = (torch.autograd.grad((x * weight).sum(), (q, k, v)) for x in (want, got))
    assert all((x - y).abs().max() < 1e-13 and x.abs().max() > 0.1 for x, y in zip(wanted, found, strict=True))


def test_sequences_of_a_packed_row_are_prompts_then_responses_behind_their_prompt():
    q_at, k_at, at = attention.Branches(packed_rows()).sequences
    assert at.q_ends.diff().tolist() == [7, 3, 5, 4, 9, 2, 6, 1] and at.q_ends.dtype == torch.int32
    assert at.k_ends.diff().tolist() == [7, 3, 5, 11, 16, 9, 11, 6]
    assert max(at.q_ends.diff()) <= at.longest_q and max(at.k_ends.diff()) <= at.longest_k
    width, a, b = packed_rows().ids.shape[1], at.k_ends[4], at.k_ends[5]
    assert k_at[a:b].tolist() == [*range(7), *range(11, 20)] and q_at[-1] == 2 * width + 11


# ------------------------------------------------------------------------------------------------ whole models
@contextlib.contextmanager
def as_on_a_gpu(patch: pytest.MonkeyPatch):
    """Packed rows and decoding take the path of the kernel, whose plain form computes."""
    with patch.context() as here:
        for module in (attention, keys_values):
            here.setattr(module, "has_kernel", lambda x: True)
        here.setattr(ro, "LOOK_EVERY", dict(cpu=16))
        here.setattr(ro, "SHRINK_AT", dict(cpu=0.5))
        here.setattr(ro, "SHRINK_ABOVE", dict(cpu=2))
        here.setattr(keys_values.Decoder, "captures", staticmethod(lambda vlm: True))
        here.setattr(keys_values.Decoder, "capture", stand_in)
        yield here


def stand_in(decoder) -> tuple:
    """In place of a captured graph, after the step that warms up: replaying runs the step again into its logits."""
    logits = decoder.step()

    class Graph:
        def replay(self):
            logits.copy_(decoder.step())

    return Graph(), logits


def test_a_model_on_the_kernels_path_has_the_same_log_probs_and_gradients(speaker, monkeypatch):
    prompts, groups = sampled(speaker)
    batch = model.pack(prompts, [[r.ids for r in g] for g in groups])

    def gradients():
        speaker.zero_grad()
        logp = speaker(batch)
        grpo.sft_loss(logp, batch.mask, int(batch.mask.sum())).backward()
        return logp.detach(), {name: p.grad.clone() for name, p in speaker.named_parameters() if p.grad is not None}

    logp, gradient = gradients()
    with as_on_a_gpu(monkeypatch):
        again, found = gradients()
    assert (again - logp).abs().max() < 1e-4 and not torch.equal(again, logp)  # it was another path
    scale = max(x.abs().max() for x in gradient.values())
    assert all((gradient[name] - found[name]).abs().max() < 1e-5 * scale for name in gradient)


@pytest.mark.parametrize("how", [ro.GREEDY, ro.PURE, ro.PAPER], ids=["greedy", "pure", "paper"])
def test_looking_every_16_tokens_over_a_fixed_block_leaves_every_text_as_it_is(speaker, monkeypatch, how):
    _, want = sampled(speaker, how, length=40)
    steps, compactions, graphs = [], [], []
    step, keep = keys_values.Decoder.step, keys_values.KeysValues.keep
    with as_on_a_gpu(monkeypatch) as patch:
        patch.setattr(keys_values.Decoder, "step", lambda d: (steps.append(d.kv.in_one_call), step(d))[1])
        patch.setattr(keys_values.KeysValues, "keep", lambda kv, rows: (compactions.append(len(rows)), keep(kv, rows)))
        patch.setattr(keys_values.Decoder, "capture", lambda d: (graphs.append(d.kv.rows), stand_in(d))[1])
        _, got = sampled(speaker, how, length=40)
        _, alone = sampled(speaker, how, questions=questions_of_all_shapes()[2:3], length=40)
    assert [[r.ids for r in g] for g in got] == [[r.ids for r in g] for g in want]
    assert [r.ids for r in alone[0]] == [r.ids for r in want[2]]
    assert all(steps) and len(set(graphs)) == len(compactions) + 2 - (4 in compactions) and graphs[0] == 24
    assert {r.finished for g in want for r in g} == {True, False} or how is ro.GREEDY


class Refused:
    """A graph or a stream of a GPU that refuses to capture."""

    def capture_begin(self):
        pass

    def wait_stream(self, _):
        pass


@pytest.mark.parametrize("error, said", [(RuntimeError, UserError), (torch.OutOfMemoryError, torch.OutOfMemoryError)])
def test_a_capture_that_the_gpu_refuses_ends_in_one_line_with_its_fix(speaker, monkeypatch, error, said):
    """Not in decoding without graphs: what such a capture leaves makes later work unsafe."""

    def refuses(_):
        raise error("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(Refused, "capture_begin", refuses)
    for name in ("CUDAGraph", "Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, Refused)
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(keys_values.Decoder, "side", None)
    monkeypatch.setattr(keys_values.Decoder, "captures", staticmethod(lambda vlm: True))
    with pytest.raises(said, match="not permitted when stream is capturing") as caught:
        sampled(speaker)
    if said is UserError:
        assert "set graphs to False in config.py" in str(caught.value) and "\n" not in str(caught.value)


def test_graphs_are_for_gpus_and_can_be_switched_off(speaker, monkeypatch):
    on_gpu = SimpleNamespace(device=torch.device("cuda"))
    assert keys_values.Decoder.captures(on_gpu) and not keys_values.Decoder.captures(speaker)
    monkeypatch.setattr(config.Config, "graphs", False)
    assert not keys_values.Decoder.captures(on_gpu)


# ------------------------------------------------------------------------------------------------ the vision tower
@pytest.mark.parametrize("name", ["qwen-untied", "qwen3"])
def test_windows_of_several_pictures_are_read_as_by_the_stock_tower(published, name):
    vlm = loading.load(published / name)
    stock = vlm.family.model.from_pretrained(published / name, dtype=torch.float32).eval()
    asked = [
        Question(str(i), (picture(*size),), "what?", "x") for i, size in enumerate(((640, 480), (500, 90), (64, 64)))
    ]
    pixels = model.join_pixels([vlm.encoder.encode_question(q) for q in asked])
    towers = {who: base.get_submodule(vlm.family.vision) for who, base in (("ours", vlm.base), ("stock", stock.model))}
    assert towers["ours"].config._attn_implementation == "windows_flash"
    assert vlm.hf.config.vision_config._attn_implementation == "sdpa"  # what a stock model is built from
    found = {}
    for who, tower in towers.items():
        states = tower(pixels["pixel_values"], pixels["image_grid_thw"]).last_hidden_state
        states.square().mean().backward()
        found[who] = [states.detach(), *(p.grad for p in tower.parameters() if p.grad is not None)]
    assert len(found["ours"]) == len(found["stock"]) > 10
    for ours, theirs in zip(found["ours"], found["stock"], strict=True):
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_dynamic_rope_has_the_default_tables_and_never_looks_at_the_longest_row(name):
    made, vlm = loading.load(name, 1), loading.load(name, 1)
    rotary = vlm.base.language_model.rotary_emb
    rotary.rope_type = "dynamic"
    vlm.family.use_own_attention(vlm.base)
    assert rotary.rope_type == "default"
    (want,), (got,) = (
        [model.pack([x.encoder.encode([], "what")], [[x.encoder.reply_ids("red")]])] for x in (made, vlm)
    )
    assert torch.equal(made(want), vlm(got))
