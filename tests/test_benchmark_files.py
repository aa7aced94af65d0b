"""Benchmark files as people have them: what is wrong is named by file and row and counted, and the rest is scored."""

import base64
import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image

import tools.benchmarks as bm
import tools.compare as comparison
from engine.command import UserError

SETTINGS = dict(weights="0", prompt="kit", suffix="")


def picture(shade: int = 0) -> str:
    Image.new("RGB", (4, 4), (shade, 0, 0)).save(file := io.BytesIO(), "PNG")
    return base64.b64encode(file.getvalue()).decode()


def row(index, image: str = "", **more) -> dict:
    return dict(index=index, image=image or picture(int(index) if str(index).isdigit() else 0), question="what?") | (
        dict(answer="A", A="red", B="blue") | more
    )


def write_tsv(path: Path, rows: list[dict]) -> Path:
    lines = ["\t".join(rows[0]), *("\t".join(map(str, r.values())) for r in rows)]
    path.write_bytes(("\n".join(lines) + "\n").encode("utf-8", "surrogateescape"))
    return path


def score(data: Path, into: Path, name: str, said: str = "A", *flags: str) -> dict:
    """tools.benchmarks scores answers that are there already, `said` to every row whose picture can be read."""
    table, title = bm.read_table(data), bm.FILES[data.stem][0]
    into.mkdir(exist_ok=True)
    (into / "settings.json").write_text(json.dumps(SETTINGS))
    lines = []
    for r in table.rows:
        answer = dict(index=r["index"], text=said, tokens=1, finished=True)
        try:
            table.pictures(r["index"])
        except UserError as error:
            answer = dict(index=r["index"], error=str(error))
        lines.append(json.dumps(answer) + "\n")
    (into / f"preds.{data.stem}.{bm.run_key(SETTINGS, table.md5)}.0.jsonl").write_text("".join(lines))
    run = ["--into", str(into), "--data", str(data.parent), "--benchmarks", title, "--score-only", *flags]
    bm.main(run)
    return json.loads((into / name).read_text())["benchmarks"][title]


ODD = {  # what is wrong with a row -> (the row's cells, what is said of it, is it read but without its picture)
    "index": (dict(index="7b"), "row 4: index 7b is no number", False),
    "no index": (dict(index=""), "row 4: index '' is neither a number nor a name", False),
    "carriage return": (dict(question="what\ris it?"), "row 4: new-line character seen in unquoted field", False),
    "not UTF-8": (dict(question="caf\udce9?"), "row 4: not UTF-8; save the file as UTF-8", False),
    "not UTF-8 picture": (dict(image="\udcff\udcd8\udcff"), "row 4: not UTF-8; save the file as UTF-8", False),
    "no base64": (dict(image="no picture"), "row 4 (index 2): its picture is no base64; repair or remove it", True),
    "no picture": (dict(image="QUJDRA=="), "row 4 (index 2): its picture cannot be read as a picture", True),
    "cut off": (dict(image=picture()[:60]), "row 4 (index 2): its picture cannot be read as a picture", True),
    "dangling": (dict(image="99"), "row 4 (index 2): its picture is that of index 99, which has none", False),
    "refers to itself": (dict(image="2"), "row 4 (index 2): its picture is that of index 2, which has none", False),
}


@pytest.mark.parametrize("what", ODD)
def test_an_odd_row_is_named_and_counted_and_the_rest_is_scored(what, tmp_path, capsys):
    cells, says, unreadable = ODD[what]
    rows = [row(0), row(1), row(2) | cells, row(3), row(4, image="1")]
    data = write_tsv(tmp_path / "MMBench_DEV_EN.tsv", rows)
    found = score(data, tmp_path / "out", "results.json")
    file, said = found["files"]["MMBench_DEV_EN"], capsys.readouterr().out
    assert found["score"] == 100 and found["n"] == 4
    assert (file["rows"], file["torn"], file["unreadable"]) == (5, not unreadable, unreadable)
    assert f"warning: {data}: {says}" in said and not re.search("0x[0-9a-f]{6}|Traceback", said)
    assert (tmp_path / "out/results.md").read_text().count(says) == 1


def test_several_odd_rows_are_all_named_and_references_find_their_picture_on_either_side(tmp_path):
    rows = [row(0, image="3"), row(1, image="0"), row("x"), row(3), row(4, question="a\rb"), row(5, image="3"), row(6)]
    table = bm.read_table(write_tsv(tmp_path / "MMBench_DEV_CN.tsv", rows))
    assert [r["index"] for r in table.rows] == ["0", "3", "5", "6"] and table.count == 7
    assert {re.search(r"row (\d+)", x)[1] for x in table.wrong} == {"3", "4", "6"}  # 1: a reference to a reference
    assert table.twin["0"] == table.twin["5"] == "3" and table.number["5"] == 7
    assert table.pictures("0")[0].getpixel((0, 0)) == (3, 0, 0)


def test_json_lines_have_the_same_rows(tmp_path):
    lines = [json.dumps(row(0)), "[1, 2]", "7", json.dumps(row(None)), json.dumps(row(True)), "", json.dumps(row("a"))]
    (tmp_path / "MMStar.jsonl").write_bytes("\n".join(lines).encode() + b'\n{"index": "\xe9"}\n')
    table = bm.read_table(tmp_path / "MMStar.jsonl")
    assert [table.number[r["index"]] for r in table.rows] == [1, 7] and table.count == 7  # elsewhere a name will do
    said = [x.partition(": ")[2] for x in table.wrong]
    assert [x[:24] for x in said[:2]] == ["row 2: not a JSON object", "row 3: not a JSON object"]
    assert [x.partition(":")[0] for x in said[2:]] == ["row 4", "row 5", "row 8"] and "not UTF-8" in said[-1]


@pytest.mark.parametrize("encoding", ["utf-16", "gbk", "mac"])
def test_a_whole_file_in_another_encoding_is_one_line(encoding, tmp_path):
    text = "\n".join(
        ["\t".join(row(0)), *("\t".join(map(str, row(k, question="这是什么").values())) for k in range(3))]
    )
    file = tmp_path / "MMBench_DEV_CN.tsv"
    file.write_bytes(text.replace("\n", "\r").encode() if encoding == "mac" else text.encode(encoding))
    with pytest.raises(UserError, match="MMBench_DEV_CN.tsv: (no rows; .*not UTF-8|not a benchmark file)") as caught:
        bm.read_table(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["tsv", "jsonl"])
def test_words_for_nothing_stay_options(form, tmp_path):
    words = dict(A="NA", B="null", C="nan", D="None", E="N/A", F="")
    data = tmp_path / f"MMStar.{form}"
    if form == "tsv":
        write_tsv(data, [row(0, **words)])
    else:
        data.write_text(json.dumps(row(0, **words, G=None, H=float("nan"))) + "\n")
    (only,) = bm.read_table(data).rows
    assert bm.options_of(only) == {k: v for k, v in words.items() if v}
    assert bm.score_item("MMStar", only | dict(answer="B"), "it is null")["score"] == 1
    assert "C. nan\nD. None" in bm.prompt_of("MMStar", only, 1)[1][1]


def test_results_of_other_rules_lie_in_files_of_their_own(tmp_path, capsys):
    data = write_tsv(tmp_path / "MMStar.tsv", [row(k, B="a sun") for k in range(6)])
    said = "the answer is A or what else could be meant here by this one"
    outs = [tmp_path / "a", tmp_path / "b"]
    for out in outs:
        old, new = (
            score(data, out, "results.json", said),
            score(data, out, "results.head.json", said, "--rules", "head"),
        )
        assert (old["score"], round(new["score"], 9)) == (0, 100)
        assert json.loads((out / "results.json").read_text())["benchmarks"]["mmstar"]["score"] == 0
        assert {x.name for x in out.glob("*.head.*")} == {"results.head.json", "results.head.md", "items.head.jsonl"}
    capsys.readouterr()
    for flags, mean in (([], "0.00"), (["--rules", "head"], "100.00")):
        comparison.main([*map(str, outs), *flags])
        assert f"{mean} -> {mean}" in capsys.readouterr().out
    (outs[0] / "results.head.json").unlink()
    with pytest.raises(UserError, match="a: neither results.head.json with items.head.jsonl"):
        comparison.main([*map(str, outs), "--rules", "head"])
