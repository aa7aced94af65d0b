"""Published names and folders given by path: from the hub, with random weights, damaged."""

import json

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import config
import engine.families as families
import engine.loading as loading
from engine.command import UserError
from tests.helpers import command, metrics

SMALL_VISION = {  # a published tower's sizes, made small
    "internvl3-1b": dict(num_hidden_layers=2, hidden_size=64, intermediate_size=64, num_attention_heads=4),
    "qwen2.5-vl-3b": dict(depth=2, hidden_size=64, intermediate_size=64, num_heads=4, fullatt_block_indexes=[1]),
}

SMALL_TEXT = dict(hidden_size=256, intermediate_size=64, num_hidden_layers=2, vocab_size=3000)
SMALL_TEXT |= dict(num_attention_heads=2, num_key_value_heads=1)


@pytest.mark.parametrize("name", SMALL_VISION)
def test_random_weights_take_a_published_name_through_the_whole_loop(name, tmp_path, monkeypatch, capsys):
    """The path of a real student, with its sizes made small: bf16, large pictures, a judge of random weights too."""
    sizes, judge = (json.loads((families.CONFIGS / f"{x}.json").read_text()) for x in (name, "qwen2.5-32b"))
    sizes["text_config"] |= SMALL_TEXT
    sizes["vision_config"] |= SMALL_VISION[name]
    if "out_hidden_size" in sizes["vision_config"]:
        sizes["vision_config"]["out_hidden_size"] = 256
    judge |= SMALL_TEXT | dict(hidden_size=64, num_attention_heads=4)
    for who, config_json in ((name, sizes), ("qwen2.5-32b", judge)):
        (tmp_path / f"{who}.json").write_text(json.dumps(config_json))
    monkeypatch.setattr(families, "CONFIGS", tmp_path)
    few = "--steps 1 --questions-per-step 2 --group-size 2 --max-new-tokens 40 --pool 16 --valid-questions 2"
    few += " --test-questions 2 --d-steps 1 --eval-draws 1 --image-tokens 300 --judge qwen2.5-32b "
    command(tmp_path, "--name", "r", "--student", name, "random_weights=True", *few.split())
    row = next(r for r in metrics(tmp_path / "runs/r") if r["stage"] == "ril" and "loss" in r)
    assert np.isfinite(row["loss"]) and row["tokens"] > 1 and row["packed_tokens"] > 2 * 144
    verdicts = [json.loads(x)["verdict"] for x in (tmp_path / "runs/r/verdicts.jsonl").read_text().splitlines()]
    assert set(verdicts) <= {0, 1} and len(verdicts) > 30
    assert json.loads((tmp_path / "runs/r/config.json").read_text())["settings"]["dtype"] == "bf16"
    assert "336 x 336" in capsys.readouterr().out
    assert loading.load(tmp_path / "runs/r/student").hf.config.get_text_config().hidden_size == 256


def test_a_published_name_comes_from_the_hub_and_without_it_one_line_says_what_works(tmp_path, monkeypatch):
    import huggingface_hub

    loading.save(loading.load("tiny-qwen", 3), tmp_path / "w")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(tmp_path / "w"))
    assert loading.load("qwen2.5-vl-7b").encoder.end == loading.load("tiny-qwen").encoder.end
    assert config.parse(["--student", "qwen2.5-vl-7b"]).lr == 1e-6  # a real student takes the paper's settings

    def offline(name, **_):
        raise OSError("no network here")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    says = r"Qwen/Qwen2.5-VL-7B-Instruct.*no network.*tiny-qwen.*--random-weights"
    with pytest.raises(UserError, match=says):
        command(tmp_path, "--student", "qwen2.5-vl-7b", "--name", "real")
    assert not (tmp_path / "runs").exists()  # the next command is not refused for a run that never began


def test_damaged_or_unknown_folders_are_refused_by_name(vlm, tmp_path):
    loading.save(vlm, tmp_path / "out")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    gone = sorted(weights)[3]
    kept = weights.pop(gone)
    for weights_there, says in (
        (weights, f"{gone} is missing"),
        (weights | {gone: kept[..., :1].contiguous()}, f"{gone}.*has to be"),
        (weights | {gone: kept, "more": kept.clone()}, "more.*none of the model's"),
    ):
        save_file(weights_there, tmp_path / "out" / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UserError, match=says):
            loading.load(tmp_path / "out")
    whole = (tmp_path / "out" / "model.safetensors").read_bytes()
    (tmp_path / "out" / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"model.safetensors: damaged .*copy it anew"):
        loading.load(tmp_path / "out")
    with pytest.raises(UserError, match="neither a folder"):
        loading.load("tiny-qwne")
