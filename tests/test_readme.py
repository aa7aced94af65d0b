"""What the README says: its commands, paths, blocks of Python and estimates."""

import json
import re
from pathlib import Path

import torch

import config
import data
import engine.families as families
import engine.loading as loading
import judge as jd
import model
import rollout as ro
import tiny.models as tiny_models
import tiny.world as tiny_world
import tools.plan as plan
import train
from tests.helpers import HOME, SMALL, command, metrics, questions_of_all_shapes, stock_inputs


def test_the_readmes_commands_and_paths_exist():
    text = (HOME / "README.md").read_text()
    assert "@@" not in text
    settings = [name.replace("_", "-") for name in " ".join(config.GROUPS.values()).split()]
    flags = {"train.py": {"--help", *(f"--{name}" for name in settings)}}
    for file in (HOME / "eval.py", *(HOME / "tools").glob("*.py")):
        name = file.name if file.parent == HOME else f"-m tools.{file.stem}"
        if "run_command(main)" not in file.read_text():
            continue
        flags[name] = {"--help", *re.findall(r'add_argument\("(--[a-z-]+)"', file.read_text())}
        if re.search(r"parse\((argv|rest)[,)]", file.read_text()):  # a tool with the flags of train.py besides
            flags[name] |= flags["train.py"]
    found = re.findall(r"(?:\bpython|--nproc_per_node \d+(?: --)?) (\w+\.py|-m tools\.\w+)([^\n`]*)", text)
    assert len(found) > 12 and {name for name, _ in found} == flags.keys()
    for name, line in found:
        for flag in re.findall(r"(--[a-z][a-z-]*)", line.split("#")[0]):
            assert flag in flags[name] or flag.replace("--no-", "--") in flags[name], (name, flag)
    for flag in re.findall(r"`(--[a-z][a-z-]*)", text):
        assert any(flag in f or flag.replace("--no-", "--") in f for f in flags.values()), flag
    targets = set(re.findall(r"^([a-z]+):", (HOME / "Makefile").read_text(), re.M))
    assert set(re.findall(r"^make ([a-z]+)", text, re.M)) <= targets
    for path in re.findall(r"\]\((?!http)([^)#]+)\)", text) + re.findall(r"`(results/[\w./-]+)`", text):
        assert (HOME / path).exists(), path
    for path in re.findall(r"\]\((?!http)([^)#]+)\)", (HOME / "results/README.md").read_text()):
        assert (HOME / "results" / path).exists(), path


def python_of_readme(word: str) -> str:
    """The README's block of Python that holds a word."""
    (block,) = (x for x in re.findall(r"```python\n(.*?)```", (HOME / "README.md").read_text(), re.S) if word in x)
    return block


def test_the_readmes_third_family_is_exact_and_trains(tmp_path, monkeypatch):
    monkeypatch.setitem(families.FAMILIES, "qwen2_vl", None)  # taken out again behind the test
    monkeypatch.setitem(tiny_models.TINY, "tiny-qwen2", None)
    exec(python_of_readme("FAMILIES["), {})
    vlm, questions = loading.load("tiny-qwen2", 3), questions_of_all_shapes()[:4]
    assert type(vlm.hf).__name__ == "Qwen2VLForConditionalGeneration"
    prompts = vlm.encode_pictures([vlm.encoder.encode_question(q) for q in questions])
    rows = [[vlm.encoder.reply_ids("red"), vlm.encoder.reply_ids("the answer is blue")]] * len(prompts)
    with torch.no_grad():
        together = vlm(model.pack(prompts, rows))
        alone = [vlm(model.pack([p], [[r]]))[0] for p, rs in zip(prompts, rows, strict=True) for r in rs]
    assert all(torch.allclose(t[: len(a)], a, atol=1e-5) for t, a in zip(together, alone, strict=True))
    for p, (r,) in zip(prompts, ro.rollout(vlm, prompts, [q.id for q in questions], 1, 12, ro.GREEDY), strict=True):
        how = dict(max_new_tokens=12, do_sample=False, suppress_tokens=vlm.encoder.banned_ids)
        stock = vlm.hf.generate(**stock_inputs(vlm, p, p.ids), **how)
        assert stock[0, len(p.ids) :].tolist() == r.ids
    loading.save(vlm, tmp_path / "student", torch.float32)
    few = ["--name", "t", "--student", str(tmp_path / "student"), *SMALL, "--steps", "1", "--d-steps", "1"]
    command(tmp_path, *few)
    assert metrics(tmp_path / "runs/t")[-1]["stage"] == "ril" and (tmp_path / "runs/t/student/config.json").is_file()


def test_the_readmes_lines_turn_public_sets_into_our_questions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture = tiny_world.world_questions("train", 1)[0].images[0]
    for file in ("png/two_col_1.png", "images/0.png", "train/7/img_diagram.png"):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        picture.save(file)
    Path("questions").mkdir()
    kept = dict(answerTexts=["ears", "nose", "mouth", "face"], correctAnswer=3, questionId="0.png-0", abcLabel=True)
    Path("questions/0.png.json").write_text(json.dumps({"imageName": "0.png", "questions": {"What is A?": kept}}))
    Path("train_human.json").write_text(json.dumps([dict(imgname="two_col_1.png", query="How many?", label="14")]))
    x = dict(problem_text="Find x.", choices=["1.0", "2.0", "3.0", "4.0"], answer="B", id=7)
    Path("train/7/data.json").write_text(json.dumps(x))
    made: dict = {}
    exec(python_of_readme("chartqa"), made)
    found = []
    for name in ("chartqa", "ai2d", "geometry3k"):
        made["write"](made[name]())
        (q,) = data.load_questions("mine.jsonl")
        found.append((q.text, q.answer))
    assert found == [
        ("How many?", "14"),
        ("What is A? (A) ears (B) nose (C) mouth (D) face", "D"),
        ("Find x. (A) 1.0 (B) 2.0 (C) 3.0 (D) 4.0", "B"),
    ]
    assert jd.rule_judge(data.Question("", (), *found[1]), "the answer is face") == 1


def test_what_the_readme_says_of_gpus_is_what_the_plan_says(tmp_path, monkeypatch, capsys):
    """Its block is the command's output, and its lines for torchrun fit on GPUs of 80 GB."""
    text = (HOME / "README.md").read_text()
    (flags,) = re.findall(r"\(estimates; `python -m tools.plan (--student [^`]*)`\):", text)
    plan.main(flags.split())
    assert f"```\n{capsys.readouterr().out}```" in text
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.jsonl").write_text(json.dumps(dict(id="1", question="?", answer="!")) + "\n")
    (tmp_path / "said.jsonl").write_text(json.dumps(dict(question="1", teacher="a", text="!")) + "\n")
    lines = re.findall(r"^torchrun --nproc_per_node (\d+) (?:-- )?train.py (--[^#\n]*)", text, re.M)
    assert len(lines) >= 4 and {"1", "8"} <= {gpus for gpus, _ in lines}
    for gpus, flags in lines:
        assert plan.fitting(train.replace(config.parse(flags.split()), gpus=int(gpus), gpu_memory=80.0)), flags
