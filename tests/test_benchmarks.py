"""tools.benchmarks: the fourteen benchmarks as the public toolkit asks and scores them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import engine.loading as loading
import tiny.world as tiny_world
import tools.benchmarks as bm
from engine.command import UserError
from tests.helpers import HOME, base64_picture, stub_server, write_tsv


class Grader:
    """A judge server for tests: grades by what the answer is called, extracts what stands behind "it is"."""

    def __init__(self):
        self.calls = 0

    def ask(self, chats, max_tokens, temperature=0.0):
        self.calls += len(chats)
        grades = {"p0": "0.5", "p1": " 1.0\n", "p2": "0.7 because", "p3": "1.2"}
        said = [re.findall(r"(?:Answer|Response): (.*) \| ", c[-1]["content"])[-1] for c in chats]
        return [grades.get(x, x.rpartition("it is ")[2]) for x in said]


CASES = [json.loads(line) for line in (HOME / "results/eval_cases.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("rules", bm.RULES)
def test_eval_scores_each_item_as_the_public_toolkit_does(rules):
    items = [c for c in CASES if "row" in c]
    wrong = []
    for c in items:
        found, expected = bm.score_item(c["benchmark"], c["row"], c["prediction"], rules), c.get(rules, c["head"])
        if {k: (found[k], type(found[k])) for k in expected} != {k: (v, type(v)) for k, v in expected.items()}:
            wrong.append((c["id"], found, expected))
    assert len(items) == 220 and not wrong


@pytest.mark.parametrize("rules", bm.RULES)
def test_eval_scores_each_file_as_the_public_toolkit_does(rules):
    files = [c for c in CASES if "rows" in c]
    for c in files:
        judge = Grader() if c["benchmark"] == "MMVet" else None
        found = bm.score_rows(c["benchmark"], c["rows"], c["predictions"], rules, judge)
        assert found == c.get(rules, c["head"]), c["id"]
        assert judge is None or judge.calls == 12  # two replies are no grade: each is asked for five times
    assert len(files) == 23 and {bm.kind_of(c["benchmark"]) for c in CASES} == {
        kind for _, kind, *_ in bm.FILES.values()
    }


def test_eval_traps_of_the_rules():
    abc = {"A": "sun", "B": "grass", "C": "frog", "answer": "B", "index": 1}

    def score(text, rules="2025-10", name="MMStar", **row):
        return bm.score_item(name, abc | row, text, rules)["extracted"]

    assert score("B a b c d") is False and score("B a b c") == "B" and score("Z") == "Z" and score("Z B") == "B"
    assert score("Failed to obtain answer via API, the answer is B", "head") is False
    assert score("the answer is a frog", "head") == "A" and score("the answer is a frog") == "C"
    cot = "MMMU_Pro_V_COT"
    assert score("Answer: the second", name=cot) == "A" and score("Answer: the second", "head", cot) is False
    assert score("Answer: B\nAnswer: C", "head", cot) == "C" and score("x", D="x", E="") == "D"
    blink = [abc | {"category": c, "index": i} for i, c in enumerate(["Counting", "Relative_Reflectance"])]
    whole, without = bm.score_rows("BLINK", blink, ["B", "C"])
    assert (whole["Overall"], without["Overall"], without["split"]) == (0.5, 1.0, "without Relative_Reflectance")
    math = dict(question_type="free_form", answer_type="integer", answer="9", question="how many?", index=1)
    assert bm.score_rows("MathVista_MINI", [math] * 2, ["so it is 9", "it is ten"], judge=Grader())[0]["Overall"] == 0.5
    assert (
        bm.score_item("MMVet", math, "p0")["score"] is None and bm.score_rows("MMVet", [math], ["p0"])[0]["acc"] is None
    )
    with pytest.raises(UserError, match="no-such"):
        bm.score_item("no-such", abc, "B")


def test_eval_scoring_needs_the_standard_library_and_numpy_alone():
    block = "import sys\nfor m in ('torch', 'transformers', 'PIL', 'tqdm', 'safetensors'): sys.modules[m] = None\n"
    done = subprocess.run(
        [sys.executable, "-c", block + "import tools.benchmarks as bm, tools.compare; print(bm.RULES)"],
        cwd=HOME,
        capture_output=True,
    )
    assert done.returncode == 0 and b"2025-10" in done.stdout, done.stderr


@pytest.fixture(scope="module")
def benchmark_folder(tmp_path_factory):
    """Small files of every kind: options, circular questions, charts, math, grades, interleaved and listed pictures."""
    folder = tmp_path_factory.mktemp("benchmarks")
    questions = tiny_world.world_questions("test", 8)
    pictures = [base64_picture(q) for q in questions]
    rows = [dict(index=i, image=pictures[i], question=q.text, answer="ABCD"[i % 4]) for i, q in enumerate(questions)]
    rows = [r | dict(zip("ABCD", tiny_world.COLORS, strict=True)) | dict(category="xy"[r["index"] % 2]) for r in rows]
    rows[3]["image"] = "0"
    turned = [r | dict(index=r["index"] + k * 10**6, hint="look") for r in rows[:3] for k in range(2)]
    listing = [r | dict(image=str([pictures[0], r["image"]])) for r in rows[:3]]
    named = [r | dict(question=f"<image 2> and <image 1>: {r['question']}", split="validation") for r in listing]
    named[0]["split"] = "dev"
    free = dict(question_type="free_form", answer_type="integer", answer_option="", choices="", category="rec")
    for name in (
        "AI2D_TEST",
        "MMStar",
        "SEEDBench_IMG",
        "SEEDBench2_Plus",
        "RealWorldQA",
        "MMMU_Pro_10c",
        "MMMU_Pro_V",
    ):
        write_tsv(folder / f"{name}.tsv", rows)
    for name, its in {
        "MMBench_DEV_EN": turned,
        "MMBench_DEV_CN": turned,
        "BLINK": listing,
        "MMMU_DEV_VAL": named,
    }.items():
        write_tsv(folder / f"{name}.tsv", its)
    write_tsv(
        folder / "ChartQA_TEST.tsv",
        [r | dict(split=f"test_{'human' if r['index'] % 2 else 'augmented'}") for r in rows],
    )
    write_tsv(folder / "MathVista_MINI.tsv", [r | free | dict(answer=9) for r in rows])
    lines = [json.dumps({k: v for k, v in (r | free).items()}) for r in rows[:3]]
    (folder / "MMVet.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "mm-vet-v2" / "images").mkdir(parents=True)
    questions[0].images[0].save(folder / "mm-vet-v2" / "images" / "v2_0.png")
    whole = {"v2_0": dict(question="see <IMG>v2_0.png<IMG> how many?", answer="3", capability=["rec"], added_in="v2")}
    (folder / "mm-vet-v2" / "mm-vet-v2.json").write_text(json.dumps(whole))
    return folder


def measure(cwd: Path, *flags: str, judge=None) -> dict:
    """tools.benchmarks with these flags in this process; -> results.json."""
    bm.main(["--into", str(cwd), "--check", "2", "--max-new-tokens", "6", "--batch", "3", *flags], judge)
    return json.loads((cwd / "results.json").read_text()) if (cwd / "results.json").exists() else {}


def asked(folder: Path) -> dict:
    """{(file, index): text} of all predictions in a folder."""
    lines = [
        (p.name.split(".")[1], json.loads(x)) for p in folder.glob("preds.*") for x in p.read_text().splitlines() if x
    ]
    assert len({(n, r["index"]) for n, r in lines}) == len(lines)
    return {(n, r["index"]): r["text"] for n, r in lines}


def test_eval_reads_pictures_of_every_form_and_finds_none_an_option(tmp_path):
    q, other = tiny_world.world_questions("test", 2)
    pictures = [base64_picture(x) for x in (q, other)]
    other.images[0].save(tmp_path / "p.png")
    forms = [
        pictures[0],
        "1",
        str(pictures),
        "p.png",
        str(["p.png", pictures[0]]),
        "data:image/png;base64," + pictures[1],
    ]
    rows = [dict(index=i + 1, image=x, question='what\t"is"\nit?', answer="A", A="None") for i, x in enumerate(forms)]
    write_tsv(tmp_path / "a.tsv", rows)
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(r | {"index": str(r["index"])}) + "\n" for r in rows))
    first, second = (np.asarray(x.images[0]) for x in (q, other))
    for name in ("a.tsv", "b.jsonl"):
        table = bm.read_table(tmp_path / name)
        found = [[np.asarray(x) for x in table.pictures(r["index"])] for r in table.rows]
        expected = [[first], [first], [first, second], [second], [second, first], [second]]
        assert all(
            np.array_equal(x, y) for a, b in zip(found, expected, strict=True) for x, y in zip(a, b, strict=True)
        )
        assert table.rows[0]["question"] == rows[0]["question"] and bm.options_of(table.rows[0]) == {"A": "None"}
        assert table.twin["2"] == "1" and not table.wrong
    write_tsv(tmp_path / "c.tsv", [dict(index=1, image_path="['p.png']", question="?", answer="A")])
    assert np.array_equal(np.asarray(bm.read_table(tmp_path / "c.tsv").pictures("1")[0]), second)
    assert bm.listed("['red', 3]") == ["red", 3] and bm.listed("[open]") is bm.listed("+".join("ab" * 10**5)) is None


def test_eval_a_big_file_is_read_in_seconds_and_little_memory(tmp_path):
    import tracemalloc

    rows = [dict(index=i, image=f"{i:03d}" + "Q" * 400_000, question="?", answer="A") for i in range(100)]
    write_tsv(tmp_path / "big.tsv", rows)
    tracemalloc.start()
    table = bm.read_table(tmp_path / "big.tsv")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(table.rows) == 100 and peak < 8e6 and table.cell("77") == rows[77]["image"]


def test_eval_bad_files_are_named_and_counted_and_never_a_zero(tmp_path, capsys):
    q = tiny_world.world_questions("test", 1)[0]
    rows = [dict(index=i, image=base64_picture(q), question="?", answer="A", A="red", B="blue") for i in range(8)]
    rows[2]["image"], rows[3]["image"], rows[4]["image"], rows[5]["index"] = "no picture", rows[3]["image"][:90], "", 1
    write_tsv(tmp_path / "MMStar.tsv", rows)
    with (tmp_path / "MMStar.tsv").open("a") as file:
        file.write("8\tQUJD")  # cut off in its picture
    run = ["--student", "tiny-qwen", "--data", str(tmp_path), "--benchmarks", "mmstar"]
    out = measure(tmp_path / "out", *run)
    found, said = out["benchmarks"]["mmstar"], capsys.readouterr().out
    counts = {k: found["files"]["MMStar"][k] for k in ("rows", "torn", "unreadable", "missing")}
    assert counts == dict(rows=9, torn=3, unreadable=2, missing=0) and found["n"] == 4
    for words in (
        "row 10: torn, 2 of 6",
        "index 4 has no picture",
        "index 1 stands twice",
        "row 4 (index 2): its picture",
        "e1ecd214",
    ):
        assert words in said, words
    path = next((tmp_path / "out").glob("preds.MMStar.*"))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:-2], lines[-2][:9]]))  # killed while it wrote, one answer lost, one torn
    (tmp_path / "out" / "preds.MMStar.0123456789ab.0.jsonl").write_text(lines[-1] + "\n")
    assert measure(tmp_path / "out", *run, "--score-only")["benchmarks"]["mmstar"]["n"] < 4
    said = capsys.readouterr().out
    assert "half-written line" in said and "1 predictions of another run key" in said and "rows have no answer" in said
    (tmp_path / "out" / path.name.replace(".0.jsonl", ".9.jsonl")).write_text(
        '{"index": "0", "error": "unreadable then"}\n'
    )
    again = measure(tmp_path / "out", *run)["benchmarks"]["mmstar"]
    assert {k: again[k] for k in ("score", "n", "tokens")} == {k: found[k] for k in ("score", "n", "tokens")}
    assert {k: again["files"]["MMStar"][k] for k in counts} == counts
    with pytest.raises(UserError, match="holds .* predictions of another run key .*prompt kit -> bare"):
        measure(tmp_path / "out", *run, "--prompt", "bare")
    write_tsv(tmp_path / "MMStar.tsv", [{k: v for k, v in r.items() if k != "answer"} for r in rows])
    with pytest.raises(UserError, match="column 'answer' is missing"):
        measure(tmp_path / "out", *run)


def test_eval_prompts_are_the_toolkits(benchmark_folder):
    row = dict(index=1, question="Why?", hint="Look.", A="sun", B="", C="frog", answer="A")
    end = "Please select the correct answer from the options above. \n"
    assert bm.prompt_of("MMStar", row, 1) == (
        [0],
        ["", f"Hint: Look.\nQuestion: Why?\nOptions:\nA. sun\nC. frog\n{end}"],
    )
    direct = "Look.\nWhy?\nA. sun\nC. frog\nAnswer with the option's letter from the given choices directly."
    assert bm.prompt_of("MMStar", row, 1, "direct") == ([0], ["", direct])
    assert bm.prompt_of("MMStar", row, 2, "direct")[1] == ["Image-1: ", "\nImage-2: ", "\n" + direct]
    assert bm.prompt_of("MMStar", row | {"question": "为什么？"}, 1, "direct")[1][1].endswith("请直接回答选项字母。")
    named = row | {"question": "<image 2> or <image 1> or <image 2>?"}
    shown, texts = bm.prompt_of("MMMU_DEV_VAL", named, 3)
    assert shown == [1, 0, 1] and texts[1:3] == [" or ", " or "] and texts[0] == "Hint: Look.\nQuestion: "
    assert bm.prompt_of("ChartQA_TEST", row, 1)[1][1] == "Why?\nAnswer the question using a single word or phrase."
    assert (
        "Why" not in bm.prompt_of("MMMU_Pro_V", row, 1)[1][1]
        and bm.prompt_of("MMVet", row, 1, "kit", "!")[1][1] == "Why?!"
    )
    student = loading.load("tiny-qwen")
    table = bm.read_table(benchmark_folder / "MMMU_DEV_VAL.tsv")
    row = table.rows[1]
    shown, texts = bm.prompt_of("MMMU_DEV_VAL", row, 2)
    picture = f"<|vision_start|>{'<|image_pad|>' * 9}<|vision_end|>"
    chat = student.encoder.chat_text(student.encoder.preprocess([table.pictures("1")[k] for k in shown]), texts)
    assert shown == [1, 0] and f"Question: {picture} {texts[1]}{picture} {texts[2]}" in chat


def test_eval_measures_all_fourteen_and_says_over_how_many(benchmark_folder, tmp_path):
    run = ["--student", "tiny-qwen", "--data", str(benchmark_folder), "--benchmarks", "all"]
    out = measure(tmp_path, *run)
    assert list(out["benchmarks"]) == list(bm.BENCHMARKS) and out["mean"]["count"] == 11
    assert [n for n, r in out["benchmarks"].items() if r["score"] is None] == ["mathvista", "mmvet", "mmvet2"]
    assert out["run"]["batch_check"] == dict(items=2, batch=3, different=0)
    assert out["benchmarks"]["mmb"]["n"] == 3 and out["benchmarks"]["mmmu"]["n"] == 2  # questions; validation rows
    assert out["benchmarks"]["mmmu-pro"]["n"] == 16 and out["benchmarks"]["ai2d"]["cut_off"] > 0.5
    text = (tmp_path / "results.md").read_text()
    assert "| mean of 11 |" in text and "reported elsewhere" in text and "Question: what" in text
    judge = Grader()
    judge.ask = lambda chats, max_tokens, temperature=0.0: [
        ("0.5" if "Grade" in c[0]["content"] else "9") for c in chats
    ]
    judged = measure(tmp_path, *run, "--score-only", judge=judge)
    assert judged["mean"]["count"] == 14 and judged["benchmarks"]["mathvista"]["score"] == 100
    assert judged["benchmarks"]["mmvet"]["score"] == 50 and judged["benchmarks"]["mmvet2"]["score"] == 50
    judge.ask = None  # all replies are remembered
    assert measure(tmp_path, *run, "--score-only", judge=judge)["benchmarks"] == judged["benchmarks"]
    for path in tmp_path.glob("preds.MMMU_Pro_10c.*"):  # one of the two files all right: half the score
        rows = [json.loads(x) for x in path.read_text().splitlines()]
        lines = [json.dumps(r | dict(text=f"It is {'ABCD'[int(r['index']) % 4]}.")) for r in rows]
        path.write_text("\n".join(lines) + "\n")
    found = measure(tmp_path, *run, "--score-only")["benchmarks"]["mmmu-pro"]
    assert abs(found["score"] - 50) < 1e-9 and found["files"]["MMMU_Pro_10c"]["records"][0]["Overall"] == 1
    small = measure(tmp_path / "small", *run[:-1], "mmb,mmmu-pro", "--limit", "2")["benchmarks"]
    assert small["mmb"]["n"] == 2 and small["mmmu-pro"]["n"] == 4 and len(asked(tmp_path / "small")) == 8


def test_eval_asks_a_served_judge_and_names_it(benchmark_folder, tmp_path):
    run = ["--student", "tiny-qwen", "--data", str(benchmark_folder), "--benchmarks", "mmvet"]
    with stub_server(lambda handler, body: handler.say("0.25")) as (url, got):
        found = measure(tmp_path, *run, "--judge", url, "--judge-model", "grader")
    assert found["benchmarks"]["mmvet"]["score"] == 25 and found["judge"] == f"{url} grader"
    assert got and all(b["model"] == "grader" and b["temperature"] == 0 for _, _, b in got)


def test_eval_any_number_of_ranks_and_a_kill_give_the_same_answers(benchmark_folder, tmp_path, monkeypatch):
    run = ["--student", "tiny-qwen", "--data", str(benchmark_folder), "--benchmarks", "ai2d,mmb,blink"]
    out = measure(tmp_path / "one", *run)
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in "20":
        monkeypatch.setenv("RANK", rank)
        assert not measure(tmp_path / "many", *run)  # the others are still at work
    path = next((tmp_path / "many").glob("preds.AI2D_TEST.*.0.jsonl"))
    path.write_bytes(path.read_bytes()[:-20])
    monkeypatch.setenv("WORLD_SIZE", "2")
    measure(tmp_path / "many", *run)
    monkeypatch.setenv("RANK", "1")
    many = measure(tmp_path / "many", *run)
    for name, r in many["benchmarks"].items():
        for file in r["files"].values():
            assert not [
                w for w in file.pop("wrong") if "md5" not in w and "rows, the" not in w and "half-written" not in w
            ]
        assert all(file.pop("wrong") for file in out["benchmarks"][name]["files"].values())
    assert many["benchmarks"] == out["benchmarks"]


def test_eval_limits_other_than_in_training_are_a_warning_and_act(benchmark_folder, tmp_path, capsys):
    run = ["--data", str(benchmark_folder), "--benchmarks", "ai2d", "--limit", "1"]
    measure(tmp_path / "a", "--student", "tiny-qwen", *run, "--min-pixels", "7056", "--max-pixels", "7056")
    assert "warning: --max-pixels 7056, but the student was trained with 3136" in capsys.readouterr().out
    assert "<|image_pad|>*36" in (tmp_path / "a" / "run.json").read_text()
    measure(tmp_path / "b", "--student", "tiny-internvl", *run, "--max-tiles", "4", "--suffix", " now")
    assert "warning: --max-tiles 4, but the student was trained with 1" in capsys.readouterr().out
    with pytest.raises(UserError, match="--max-pixels: this student has no such limit"):
        measure(tmp_path / "c", "--student", "tiny-internvl", *run, "--max-pixels", "4")


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--benchmarks", "ai3d"], "--benchmarks ai3d: unknown"),
        (["--benchmarks", "ai2d", "--data", "nowhere"], "--data nowhere: give the folder"),
        (["--benchmarks", "ai2d", "--data", "."], "AI2D_TEST.tsv: no such file"),
        (["--benchmarks", "all", "--data", "."], "AI2D_TEST.tsv: no such file"),
        (["--benchmarks", "ai2d", "--rules", "2024"], "--rules"),
        (["--batch", "0"], "at least 1"),
    ],
)
def test_eval_mistakes_end_in_one_line(tmp_path, monkeypatch, flags, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        measure(tmp_path / "out", "--student", "tiny-qwen", *flags)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
