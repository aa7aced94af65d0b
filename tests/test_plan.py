"""tools.plan and engine/memory.py: parameters, memory, disk, hours."""

import json
import re

import pytest
from torch.distributed.checkpoint import FileSystemReader

import config
import discriminator as disc
import engine.families as families
import engine.loading as loading
import engine.memory as memory
import tools.plan as plan
from engine.command import UserError
from tests.helpers import SMALL

PUBLISHED = {  # parameters of the published checkpoints
    "qwen2.5-vl-3b": 3_754_622_976,
    "qwen2.5-vl-7b": 8_292_166_656,
    "qwen2.5-vl-72b": 73_410_777_344,
    "qwen3-vl-2b": 2_127_532_032,
    "qwen3-vl-4b": 4_437_815_808,
    "qwen3-vl-8b": 8_767_123_696,
    "internvl3-1b": 938_193_024,
    "internvl3-2b": 2_088_957_440,
    "internvl3-8b": 7_944_373_760,
    "internvl3-78b": 78_408_318_336,
    "internvl3.5-1b": 1_060_897_792,
    "internvl3.5-2b": 2_348_347_392,
    "internvl3.5-4b": 4_732_489_216,
    "internvl3.5-8b": 8_528_318_464,
}


@pytest.mark.parametrize("name", families.FULL)
def test_the_plan_counts_the_parameters_of_the_real_classes(name):
    of = memory.sizes(name)
    assert of["all"] == PUBLISHED[name] == sum(p.numel() for p in loading.random_meta_model(name).hf.parameters())
    assert of["layer"] * of["depth"] == of["layers"] and of["layers"] + of["vision"] + of["root"] == of["all"]


@pytest.mark.parametrize("name", ["qwen2.5-vl-7b", "internvl3-1b"])
@pytest.mark.parametrize("flags", ["", "--d-input picture", "--frozen none", "--frozen vision,embeddings,mlp"])
def test_the_plan_counts_adam_and_gradients_of_trained_parameters_only(name, flags):
    cfg = config.parse(["--student", name, *flags.split()])
    student = loading.random_meta_model(name).freeze(*cfg.frozen_parts)
    players = dict(student=student, D=disc.Discriminator(student, cfg.d_input))
    for who, player in players.items():
        sizes = [(p.numel(), p.requires_grad) for p in player.parameters()]
        of = memory.training_state(cfg)
        assert of[who] == 4 * sum(n for n, _ in sizes)
        assert of[f"{who}_adam"] == 2 * of[f"{who}_gradient"] == 8 * sum(n for n, grads in sizes if grads)
    everything = sum(memory.training_state(cfg).values()) + 2 * 2 * memory.sizes(name)["all"]  # reference and replica
    assert memory.most_gb(cfg, 1, "none") * 1e9 > everything - of["D_gradient"]
    without = config.parse(["--student", name, "--algo", "dr_grpo"])
    assert {x for who, x in memory.training_state(without).items() if who.startswith("D")} == {0}


def test_the_plan_knows_the_size_of_a_checkpoint_and_that_three_exist_at_once(straight):
    cfg = config.parse(SMALL)
    found = FileSystemReader(straight / "checkpoints/ril-step6").read_metadata().state_dict_metadata
    tensors = {name: x for name, x in found.items() if hasattr(x, "size") and not name.endswith(".step")}
    real = sum(x.size.numel() * x.properties.dtype.itemsize for x in tensors.values())
    assert memory.checkpoint_bytes(cfg) == real
    students = sum((straight / "checkpoints" / x / "model.safetensors").stat().st_size for x in ("best", "last"))
    disk = plan.hours_and_disk(cfg, 1, "none")["ril"][1] * 1e9
    assert disk == pytest.approx(3 * real + students, rel=0.01)
    real = config.parse(["--student", "qwen2.5-vl-7b"])
    for offload in ("none", "phase"):  # the checkpoint on its way, and the best student
        assert memory.phases(real, 8, offload)["host"] > (memory.checkpoint_bytes(real) + 4 * 8.292e9) / 1e9


def test_the_plan_counts_launches_of_decoding_and_the_traffic_between_gpus(monkeypatch):
    cfg = config.parse(["--student", "qwen2.5-vl-7b"])
    eager = plan.answering(cfg, cfg.student, 20, whole=False) / cfg.max_new_tokens
    captured = plan.answering(cfg, cfg.student, 20) / cfg.max_new_tokens
    assert 0.012 < eager < 0.018 and 0.007 < captured < 0.01  # 1,036 kernels; 14.1 GB and the rows' keys and values
    monkeypatch.setattr(plan, "GRAPH_LAUNCH", 20e-6)
    assert plan.answering(cfg, cfg.student, 20) / cfg.max_new_tokens > 0.02
    assert plan.traffic(cfg, 1) == 0
    m, of = memory.sizes(cfg.student), memory.training_state(cfg)
    layers, root = m["layers"], m["root"]
    student = 2 * (layers + root) + 2 * layers + of["student_gradient"] + 2 * (layers + root)  # and the reference
    D = 2 * (2 * (layers + root - m["head"])) + 2 * layers + of["D_gradient"]
    refresh = of["student_gradient"] / 2
    assert plan.traffic(cfg, 8) == pytest.approx(7 / 8 * (5 * (student + D) + refresh))
    alone = config.parse(["--student", "qwen2.5-vl-7b", "--algo", "dr_grpo", "--beta", "0"])
    student -= 2 * (layers + root)
    assert plan.traffic(alone, 8) == pytest.approx(7 / 8 * (5 * student + refresh))
    seconds = {x: plan.step_seconds(cfg, 8, x) for x in ("none", "phase")}
    assert (
        seconds["none"]["gathers and reductions"] > 1 and seconds["none"]["offload"] == 0 < seconds["phase"]["offload"]
    )


@pytest.mark.parametrize(
    "student, gpus, memory, says",
    [
        ("qwen2.5-vl-7b", 8, 80, "fits with --offload none"),
        ("internvl3-1b", 1, 24, "fits with --offload phase"),
        ("qwen2.5-vl-7b", 4, 80, "fits with --offload phase"),
        ("qwen2.5-vl-7b", 1, 80, "fits with --lora 64"),
        ("qwen2.5-vl-7b", 1, 24, "does not fit"),
        ("internvl3-1b", 1, 80, "fits with --offload none"),
    ],
)
def test_the_plan_says_what_fits_without_weights(student, gpus, memory, says, capsys):
    plan.main(["--student", student, "--gpus", str(gpus), "--gpu-memory", str(memory)])
    out = capsys.readouterr().out
    assert says in out.splitlines()[-1] and "hours" in out and "host" in out


def test_the_plan_cuts_weights_over_the_gpus_of_a_node_only(monkeypatch):
    cfg, gb = config.parse(["--student", "qwen2.5-vl-7b", "--questions-per-step", "128"]), {}
    for gpus, of_a_node in ((8, 8), (16, 8), (8, 4)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(of_a_node))
        gb[gpus, of_a_node] = memory.phases(cfg, gpus, "none")["student"]
    assert gb[16, 8] == pytest.approx(gb[8, 8], rel=0.1) and gb[8, 4] > gb[8, 8] + 20


def test_measured_speeds_take_the_place_of_assumed_ones(tmp_path, monkeypatch, capsys):
    for name in plan.MEASURED:
        monkeypatch.setattr(plan, name, getattr(plan, name))  # so that they come back
    found = dict(card="a card", plan=dict(BANDWIDTH=1e12, GRAPH_LAUNCH=1e-6))
    (tmp_path / "check.json").write_text(json.dumps(found))
    flags = ["--student", "qwen2.5-vl-7b"]
    plan.main(flags)
    assumed = capsys.readouterr().out
    plan.main([*flags, "--measured", str(tmp_path / "check.json")])
    measured = capsys.readouterr().out
    some = "measured on a card (BANDWIDTH, GRAPH_LAUNCH only, the others assumed)"
    assert f"{some}: 400 TFLOP/s and 1.0 TB/s a GPU" in measured and "assumed (40 and 60 %" in assumed
    seconds = [float(re.search(r"a step: .*rollout (\S+),", out)[1]) for out in (assumed, measured)]
    assert seconds[1] == pytest.approx(2 * seconds[0], rel=0.1)  # bytes decide, and they come half as fast
    for wrong in ("{}", "no JSON", json.dumps(found | dict(plan={})), json.dumps(found | dict(plan=dict(HOST=0)))):
        (tmp_path / "wrong.json").write_text(wrong)
        with pytest.raises(UserError, match="gpu_check"):
            plan.main([*flags, "--measured", str(tmp_path / "wrong.json")])
    assert plan.BANDWIDTH == 1e12
