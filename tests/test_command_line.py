"""What train.py and the other commands make of their flags, and of a user's mistakes."""

import dataclasses
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import config
import engine.checks as checks
import eval as ev
import tiny.world as tiny_world
import tools.calibrate as calibration
import tools.compare as comparison
import tools.plan as plan
import tools.select as selection
from engine.command import UserError
from tests.helpers import HOME, OURS, base64_picture, command, write_tsv


@pytest.mark.parametrize(
    "lines, says",
    [
        (['{"id": "a", "question": "q", "answer": "x"}', "{nonsense"], "file.jsonl:2: not JSON"),
        (['{"id": "a", "question": "q", "answer": " "}'], "file.jsonl:1: field 'answer' is empty"),
        (['{"id": "a", "question": "q"}'], "file.jsonl:1: field 'answer' is missing"),
        (['{"id": "a", "question": "q", "answer": "x"}'] * 2, "file.jsonl:2: id 'a' stands already at"),
        (['{"id": "a", "image": "no.png", "question": "q", "answer": "x"}'], "no.png: no such file"),
        (['{"id": "a", "image": "torn.png", "question": "q", "answer": "x"}'], "torn.png: cannot be read as a picture"),
        (["[1]"], "file.jsonl:1: not a JSON object"),
        ([], "the file is empty"),
    ],
)
def test_bad_questions_are_refused_in_one_line_before_anything_is_written(tmp_path, lines, says):
    (tmp_path / "file.jsonl").write_text("\n".join(lines))
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)).save(tmp_path / "torn.png")
    whole = (tmp_path / "torn.png").read_bytes()
    (tmp_path / "torn.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        command(tmp_path, "--data", "file.jsonl", "--name", "bad")
    assert "\n" not in str(caught.value) and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--stpes", "3"], "--stpes"),
        (["--similarity", "k1"], "--similarity"),
        (["--stage", "rill"], "rill"),
        (["--student", "tiny-qwne"], "tiny-qwne"),
        (["--teachers", "nobody"], "nobody"),
        (["--group-size", "0"], "--group-size 0: must be above 0"),
        (["--lr", "nan"], "--lr nan"),
        (["--data", "nothing.jsonl"], "nothing.jsonl: no such file"),
        (["--name", "../x"], "--name"),
        (["--no-resume", "--stage", "ril"], "--no-resume"),
        (["--stage", "ril"], "run --stage sft first"),
        (["--algo", "ril", "--teacher-use", "none"], "needs teachers"),
        (["--algo", "dr_grpo", "--d-input", "question"], "--d-input question needs a --similarity of D"),
        (["--algo", "dr_grpo", "--similarity", "binary"], "D reads teacher text: --teacher-use"),
        (["--teachers", "tiny-qwen-teacher,reference", "--group-size", "3"], "cannot be split over 2 teachers"),
        (["--judged", "0", "--similarity", "none"], "no reward: --judged 0"),
        (["--algo", "distill", "--similarity", "binary"], "nothing for D to tell apart"),
        (["--algo", "dr_grpo", "--similarity", "constant"], "marks teacher rows"),
        (["--d-lr", "0", "--d-steps", "0"], "has learned nothing"),
        (["--judged", "1.5"], "between 0 and 1"),
        (["--teacher-use", "discriminator", "--similarity", "none"], "needs a --similarity of D"),
        (["--algo", "distill", "--mu", "2"], "has no ratio"),
        (["--algo", "grpo", "--group-size", "1"], "a group of one"),
        (["--frozen", "vision,eyes"], "--frozen eyes: unknown"),
        (["--preset", "paper", "--data", "mine.jsonl"], "name the --teachers: served ones"),
        (["--sft-data", "mine.jsonl", "--sft-steps", "2"], "counted in epochs"),
        (["--reward", "mine.py", "--judge", "rule"], "leave --judge out"),
        (["--judge", "mine.py"], "is given as --reward mine.py"),
    ],
)
def test_wrong_flags_are_refused_in_one_line_before_anything_is_written(tmp_path, flags, says):
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        command(tmp_path, *flags)
    assert "\n" not in str(caught.value) and not (tmp_path / "runs").exists()


def test_a_users_mistake_ends_with_exit_code_2_and_no_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, str(HOME / "train.py"), "--stpes", "3"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "tool, flags, says",
    [
        (ev, ["--student", "tiny-qwen", "--data", "."], "--data .: a folder; a JSONL file is needed"),
        (ev, [], "--student is missing"),
        (comparison, ["x", "y"], "x: neither results.json"),
        (calibration, ["no.jsonl"], "no.jsonl: no such file"),
        (selection, ["--score", "pass-rate"], "--data is missing"),
        (selection, ["--score", "rate"], "argument --score: invalid choice"),
        (plan, ["--gpus", "x"], "argument --gpus: invalid int value: 'x'"),
        (plan, ["--stpes", "3"], "--stpes 3"),
    ],
)
def test_mistakes_in_the_other_commands_end_in_one_line(tmp_path, monkeypatch, tool, flags, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        tool.main(flags)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_every_setting_is_read_somewhere():
    texts = {file: file.read_text() for file in OURS}
    texts[HOME / "config.py"] = texts[HOME / "config.py"].partition("\ndef parse(")[0]  # to check it is not to read it
    del texts[HOME / "engine/contradictions.py"]
    source = "".join(texts.values())
    for f in dataclasses.fields(config.Config):
        assert re.search(rf"(cfg|self)\.{f.name}\b", source) or f.name == "preset", f.name


def test_the_paper_preset_takes_the_papers_values_and_flags_win():
    cfg = config.parse(["--preset", "paper", "--lr", "5e-6"])
    assert (cfg.group_size, cfg.d_lr, cfg.sampling, cfg.max_new_tokens, cfg.lr) == (4, 1e-6, "paper", 512, 5e-6)
    assert (cfg.d_samples, cfg.teacher_samples, cfg.d_steps, cfg.judge) == (16, 4, 100, "rule")  # no --data
    tiny = config.parse([])
    assert (tiny.d_samples, tiny.d_steps, tiny.judge, checks.unlike_the_paper(tiny)) == (0, 12, "rule", [])


def test_with_questions_of_yours_the_paper_preset_has_the_papers_judge_and_wants_teachers_named():
    real = ["--student", "qwen2.5-vl-7b", "--data", "mine.jsonl"]
    with pytest.raises(UserError, match="name the --teachers.*http.*qwen2.5-vl-72b.*--teachers-file"):
        config.parse(real)
    cfg = config.parse([*real, "--teachers", "big=http://127.0.0.1:9/v1"])
    assert cfg.judge == "qwen2.5-32b" and checks.unlike_the_paper(cfg) == []
    assert config.parse([*real, "--teachers", "qwen2.5-vl-72b", "--judge", "rule"]).judge == "rule"
    for algo in ("dr_grpo", "sft"):  # no teachers, and the answers for teachers
        assert config.parse([*real, "--algo", algo]).algo == algo
    said = checks.unlike_the_paper(config.parse(real[:2]))
    assert all(word in " ".join(said) for word in ("336 x 336", "exact rule", "tiny-qwen-teacher")) and len(said) == 3


ON_GPUS = ["train", "eval", *(f"tools.{name}" for name in ("bench", "benchmarks", "calibrate", "pilot", "select"))]


@pytest.mark.parametrize("name", ON_GPUS)
@pytest.mark.parametrize("theirs", ["", "max_split_size_mb:128"])
def test_torch_is_told_of_expandable_segments_before_it_is_imported(name, theirs, tmp_path):
    (tmp_path / "torch.py").write_text("import os\nraise SystemExit(os.environ['PYTORCH_ALLOC_CONF'])\n")
    env = {k: x for k, x in os.environ.items() if not k.endswith("ALLOC_CONF")}
    env |= dict(PYTHONPATH=f"{tmp_path}:{HOME}") | ({"PYTORCH_CUDA_ALLOC_CONF": theirs} if theirs else {})
    code = f"import runpy, sys; sys.argv = [{name!r}, *sys.argv[1:]]; runpy.run_module({name!r}, run_name='__main__')"
    flags = {
        "eval": ["--student", "tiny-qwen"],
        "tools.calibrate": [str(HOME / "results/judge_cases.jsonl"), "--judge", "qwen2.5-32b"],
    }
    flags["tools.benchmarks"] = ["--student", "tiny-qwen", "--benchmarks", "mmstar", "--data", str(tmp_path)]
    row = dict(index=1, image=base64_picture(tiny_world.world_questions("test", 1)[0]), question="?", answer="A", A="x")
    write_tsv(tmp_path / "MMStar.tsv", [row])
    argv = [sys.executable, "-c", code, *flags.get(name, [])]
    ran = subprocess.run(argv, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert ran.stderr.strip() == (theirs or "expandable_segments:True")
