"""tools.compare: two runs on the same questions."""

import json
from pathlib import Path

import numpy as np
import pytest

import eval as ev
import tools.compare as comparison
from engine.command import UserError


def fake_run(folder: Path, scores: dict[str, list[float]], **same) -> str:
    """A folder as tools.benchmarks leaves it, with these scores."""
    folder.mkdir()
    files = {n: dict(files={n: dict(md5=same.get("md5", "0"))}) for n in scores}
    settings = dict(prompt=same.get("prompt", "kit"), suffix="")
    out = dict(settings=settings, rules=same.get("rules", "2025-10"), judge=same.get("judge"), benchmarks=files)
    (folder / "results.json").write_text(json.dumps(out))
    rows = [
        dict(benchmark=n, unit=str(i), cluster=str(i), score=x, weight=1 / len(xs))
        for n, xs in scores.items()
        for i, x in enumerate(xs)
    ]
    (folder / "items.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


def test_eval_comparison_equals_values_by_hand(tmp_path):
    assert abs(comparison.mcnemar(10, 2) - 0.03857421875) < 1e-12 and comparison.mcnemar(0, 0) == 1
    assert comparison.holm({"a": 0.04, "b": 0.01, "c": 0.03}) == {"b": 0.03, "c": 0.06, "a": 0.06}
    base = [0.0] * 30 + [1.0] * 70
    a = fake_run(tmp_path / "a", {"x": base, "y": [0.5] * 40})
    b = fake_run(tmp_path / "b", {"x": [1.0] * 12 + [0.0] * 18 + [1.0] * 68 + [0.0] * 2, "y": [0.5] * 20 + [0.9] * 20})
    same, found = comparison.compare([a], [a]), comparison.compare([a], [b])
    assert all(r["difference"] == 0 and r["interval"] == [0, 0] for r in same.values())
    assert all(same[n]["p"] == same[n]["holm"] == 1 for n in "xy")
    x = found["x"]
    assert (x["won"], x["lost"], x["n"]) == (12, 2, 100) and abs(x["difference"] - 10) < 1e-9
    assert x["p"] == comparison.mcnemar(12, 2) and x["holm"] == x["p"] and found["y"]["p"] < 0.001
    assert abs(x["visible"] - 280 * (0.14 / 100) ** 0.5) < 1e-9 and 0 < x["interval"][0] < 10 < x["interval"][1] < 20
    assert abs(found["mean"]["difference"] - 15) < 1e-9
    c = fake_run(tmp_path / "c", {"x": [1.0] * 20 + [0.0] * 10 + [1.0] * 70, "y": [0.5] * 40})
    seeds = comparison.compare([a, a], [b, c])["x"]
    assert (
        abs(seeds["difference"] - 15) < 1e-9 and np.allclose(seeds["b"]["values"], [80, 90]) and seeds["a"]["half"] == 0
    )
    assert abs(seeds["b"]["half"] - 12.7062047 * 7.0710678 / 2**0.5) < 1e-4


@pytest.mark.parametrize("what", [dict(md5="1"), dict(prompt="bare"), dict(rules="head"), dict(judge="http://j")])
def test_eval_refuses_to_compare_what_differs(tmp_path, what):
    a, b = fake_run(tmp_path / "a", {"x": [1.0]}), fake_run(tmp_path / "b", {"x": [1.0]}, **what)
    with pytest.raises(UserError, match=next(iter(what)).replace("md5", "data")):
        comparison.compare([a], [b])
    with pytest.raises(UserError, match="same questions"):
        comparison.compare([a], [fake_run(tmp_path / "c", {"x": [1.0, 0.0]})])


def test_eval_compares_runs_on_the_tiny_worlds_questions_and_refuses_another_judge(straight, tmp_path):
    found = comparison.compare([straight], [straight])["questions"]
    assert found["difference"] == 0 and found["p"] == 1 and found["n"] == 24
    flags = ["--student", straight / "student", "--questions", "24", "--draws", "0", "--into", tmp_path / "alone"]
    ev.main(list(map(str, flags)))
    assert comparison.compare([straight], [tmp_path / "alone"])["questions"]["difference"] == 0
    written = json.loads((tmp_path / "alone/config.json").read_text())
    written["settings"]["judge"] = "qwen2.5-32b"
    (tmp_path / "alone/config.json").write_text(json.dumps(written))
    with pytest.raises(UserError, match="alone: judge differs from that of"):
        comparison.compare([straight], [tmp_path / "alone"])
