"""What README and docs say: commands, flags, paths, names, blocks of Python and estimates."""

import importlib
import json
import re
from pathlib import Path

import torch

import config
import data
import engine.families as families
import engine.loading as loading
import grpo
import judge as jd
import model
import rollout as ro
import tiny.models as tiny_models
import tiny.world as tiny_world
import tools.plan as plan
import train
from tests.helpers import HOME, OURS, SMALL, command, metrics, questions_of_all_shapes, stock_inputs

PAGES = sorted([HOME / "README.md", HOME / "results/README.md", *(HOME / "docs").glob("*.md")])
TEXT = {page.relative_to(HOME).as_posix(): page.read_text() for page in PAGES}


def flags_of_commands() -> dict[str, set[str]]:
    """{train.py or -m tools.NAME: its flags}."""
    settings = [name.replace("_", "-") for name in " ".join(config.GROUPS.values()).split()]
    flags = {"train.py": {"--help", *(f"--{name}" for name in settings)}}
    for file in (HOME / "eval.py", *(HOME / "tools").glob("*.py"), *(HOME / "results").glob("*.py")):
        name = file.name if file.parent == HOME else f"-m {file.parent.name}.{file.stem}"
        if "run_command(main)" not in file.read_text():
            continue
        flags[name] = {"--help", *re.findall(r'add_argument\(\s*"(--[a-z-]+)"', file.read_text())}
        if re.search(r"parse\((argv|rest)[,)]", file.read_text()):  # a tool with the flags of train.py besides
            flags[name] |= flags["train.py"]
    return flags


def test_commands_and_flags_that_pages_name_exist():
    flags = flags_of_commands()
    named = set()
    for page, text in TEXT.items():
        for name, line in re.findall(
            r"(?:\bpython|--nproc_per_node \d+(?: --)?) (\w+\.py|-m (?:tools|results)\.\w+)([^\n`]*)", text
        ):
            assert name in flags, (page, name)
            named.add(name)
            for flag in re.findall(r"(--[a-z][a-z-]*)", line.split("#")[0]):
                assert flag in flags[name] or flag.replace("--no-", "--") in flags[name], (page, name, flag)
        for flag in re.findall(r"`(--[a-z][a-z-]*)", text):
            assert any(flag in f or flag.replace("--no-", "--") in f for f in flags.values()), (page, flag)
    assert {name for name in flags if "results" not in name} <= named  # every command is shown somewhere
    targets = set(re.findall(r"^([a-z]+):", (HOME / "Makefile").read_text(), re.M))
    assert set(re.findall(r"^make ([a-z]+)", "".join(TEXT.values()), re.M)) <= targets


def test_links_and_paths_of_pages_exist():
    for page, text in TEXT.items():
        assert not re.search(r"@@[A-Z]+@@|<!-- numbers", text), page  # places that are still to be filled
        for path, part in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", text):
            target = (HOME / page).parent / path if path else HOME / page
            assert target.exists(), (page, path)
            if part:
                heads = re.findall(r"^#+ (.*)$", target.read_text(), re.M)
                assert part in {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in heads}, (page, part)
        for path in re.findall(r"`((?:results|tests|docs|engine|tools|tiny)/[\w./-]+)`", text):
            assert (HOME / path).exists(), (page, path)
    linked = {m for page, text in TEXT.items() for m in re.findall(r"(\w+\.md)[)#]", text)}
    assert {page.name for page in PAGES if page.parent.name == "docs"} <= linked  # none is an orphan


def test_every_file_of_the_engine_and_the_tools_is_on_the_page_of_files():
    files = [x.relative_to(HOME).as_posix() for x in OURS]
    missing = [x for x in files if "/" in x and f"(../{x})" not in TEXT["docs/files.md"]]
    assert not [x for x in missing if not x.endswith("__init__.py")]
    assert all(f"({x})" in TEXT["README.md"] for x in files if "/" not in x)


def test_functions_that_pages_name_exist():
    count = 0
    for page, text in TEXT.items():
        for name in re.findall(r"`((?:engine\.|tiny\.|tools\.)?[a-z_]+\.[A-Za-z_]\w*(?:\.\w+)?)`", text):
            file = next((x for x in OURS if name.startswith(".".join(x.relative_to(HOME).parts)[:-2])), None)
            if file is None:
                continue
            module = ".".join(file.relative_to(HOME).with_suffix("").parts)
            here = importlib.import_module(module)
            for part in name.removeprefix(module + ".").split("."):
                assert hasattr(here, part) or part == "py", (page, name)
                here = getattr(here, part, None)
            count += 1
    assert count > 30


def test_metrics_on_the_page_are_those_that_a_run_logs(straight):
    logged = {name for row in metrics(straight) if row["stage"] == "ril" for name in row} - {"stage", "step"}
    assert logged <= set(re.findall(r"\w+", TEXT["docs/metrics.md"])), logged


def test_the_worked_example_is_what_grpo_computes():
    found = re.findall(
        r"^\| (student|teacher)(, three)?.*\| (\d) \| (\d) \| (\d) \| ([-+.\d]+) \|$", TEXT["README.md"], re.M
    )
    rows = [x[2:] for x in found for _ in range(3 if x[1] else 1)]
    similarity, answer, reward, advantage = (torch.tensor([[float(x[i]) for x in rows]]) for i in range(4))
    assert len(rows) == 8 and torch.equal(grpo.rewards(similarity, answer), reward)
    assert torch.equal(grpo.advantages(reward), advantage)


def python_of(page: str, word: str) -> str:
    """A page's block of Python that holds a word."""
    (block,) = (x for x in re.findall(r"```python\n(.*?)```", TEXT[page], re.S) if word in x)
    return block


def test_the_fourth_family_is_exact_and_trains(tmp_path, monkeypatch):
    monkeypatch.setitem(families.FAMILIES, "qwen2_vl", None)  # taken out again behind the test
    monkeypatch.setitem(tiny_models.TINY, "tiny-qwen2", None)
    exec(python_of("docs/families.md", "FAMILIES["), {})
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


def test_the_lines_of_docs_turn_public_sets_into_our_questions(tmp_path, monkeypatch):
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
    exec(python_of("docs/data.md", "chartqa"), made)
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


def test_what_docs_say_of_gpus_is_what_the_plan_says(tmp_path, monkeypatch, capsys):
    """The block is the command's output, and the lines for torchrun fit on GPUs of 80 GB."""
    text = TEXT["docs/gpus.md"]
    (flags,) = re.findall(r"\(estimates; `python -m tools.plan (--student [^`]*)`\):", text)
    plan.main(flags.split())
    assert f"```\n{capsys.readouterr().out}```" in text
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.jsonl").write_text(json.dumps(dict(id="1", question="?", answer="!")) + "\n")
    (tmp_path / "said.jsonl").write_text(json.dumps(dict(question="1", teacher="a", text="!")) + "\n")
    lines = re.findall(r"^torchrun --nproc_per_node (\d+) (?:-- )?train.py (--[^#\n]*)", "\n".join(TEXT.values()), re.M)
    assert len(lines) >= 4 and {"1", "8"} <= {gpus for gpus, _ in lines}
    for gpus, flags in lines:
        assert plan.fitting(train.replace(config.parse(flags.split()), gpus=int(gpus), gpu_memory=80.0)), flags
