"""tools.bench: our way and the stock way do the same work."""

import json

import torch

import engine.loading as loading
import model
import tools.bench as bench


def awkward(*args, **more) -> model.VLM:
    """A random student whose last 60 ids may not be sampled, and whose folder tells stock `generate` how to sample."""
    vlm = loading.load(*args, **more)
    vlm.encoder.banned_ids = sorted(
        {*vlm.encoder.banned_ids, *range(len(vlm.encoder.tokenizer) - 60, len(vlm.encoder.tokenizer))}
        - {*vlm.encoder.ends}
    )
    vlm.init_buffers()
    vlm.hf.generation_config.repetition_penalty = 5.0
    return vlm


def test_the_bench_runs_both_ways_on_the_same_work(tmp_path, monkeypatch):
    """No timing: the phases are there, greedy answers and log-probs of the two ways agree."""
    monkeypatch.setattr(bench, "load", awkward)
    small = ["--questions", "2", "--group-size", "2", "--response-tokens", "3", "--repeats", "1"]
    out = bench.main([*small, "--threads", str(torch.get_num_threads()), "--out", str(tmp_path / "speed.json")])
    assert out == json.loads((tmp_path / "speed.json").read_text()) and out["greedy_answers_equal"]
    for name in ("rollout", "discriminator", "reference", "update", "step"):
        assert {"seconds", "limit_seconds", "tokens_per_second", "stock_seconds", "ratio"} <= set(out[name])
    assert out["largest_difference"] < 1e-4 and "ratio" in out["doubling_group_size"]
    ids = bench.sampled_ids(vlm := awkward("tiny-qwen"), 7, 9)
    assert ids.shape == (7, 9) and torch.isfinite(vlm.banned[ids]).all() and len(ids.unique()) > 20
    assert not {*ids.flatten().tolist()} & {*vlm.encoder.ends, *vlm.encoder.tokenizer.added_tokens_decoder}
