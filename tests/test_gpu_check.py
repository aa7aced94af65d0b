"""tools.gpu_check at tiny size on a CPU: every part runs, a part that fails is reported, and the rest goes on."""

import json
import math

import pytest

import tools.gpu_check as check
import tools.plan as plan
from engine.command import UserError


def test_every_part_runs_at_tiny_size_and_finds_everything_right(tmp_path, capsys):
    parts = [x for x in check.PARTS if x not in ("internvl3-2b", "qwen2.5-vl-7b")]  # at tiny size one is like the other
    check.main(["--out", str(tmp_path / "c.json"), "--device", "cpu", "--tiny", "--only", ",".join(parts)])
    found = json.loads((tmp_path / "c.json").read_text())
    assert list(dict.fromkeys(row["part"] for row in found["rows"])) == parts
    right = [row["name"] for row in found["rows"] if row["ok"]]
    assert len(right) == 12 and not [row for row in found["rows"] if row["ok"] is False]
    assert any("killed in step 2 and resumed" in name for name in right)
    assert sorted(found["plan"]) == sorted(plan.MEASURED)
    assert all(x > 0 and math.isfinite(x) for x in found["plan"].values())
    assert "12 checks right, 0 wrong or failed" in capsys.readouterr().out and found["commit"] and found["versions"]


def here(tmp_path, part: str) -> check.Here:
    (tmp_path / "c.json").write_text(json.dumps(dict(rows=[], facts={}, plan={})))
    return check.Here(part, "cpu", True, tmp_path / "c.json", tmp_path)


def test_a_part_that_fails_leaves_a_row_that_says_why(tmp_path, monkeypatch, capsys):
    def breaks(_):
        raise RuntimeError("no kernel image is available")

    monkeypatch.setitem(check.PARTS, "most", (breaks, 5))
    with pytest.raises(SystemExit):
        check.one_part(here(tmp_path, "most"))
    (row,) = json.loads((tmp_path / "c.json").read_text())["rows"]
    assert row["ok"] is False and row["measured"] == "FAILED: RuntimeError: no kernel image is available"


@pytest.mark.parametrize("argv, said", [(["--no-such-flag"], "exit code 2"), (["--help"], None)])
def test_a_part_that_dies_without_a_row_gets_one(tmp_path, argv, said):
    place = here(tmp_path, "most")
    check.run_part(place, [*argv, "--out", str(place.out), "--device", "cpu", "--work", str(tmp_path)], 60)
    rows = place.read()["rows"]
    assert [row["measured"] for row in rows] == ([f"FAILED: {said}"] if said else [])
    assert place.read()["facts"]["seconds of most"] > 0


def test_what_cannot_run_is_said_in_one_line(tmp_path, capsys):
    with pytest.raises(UserError, match="no GPU here: add --device cpu --tiny"):
        check.main(["--out", str(tmp_path / "c.json")])
    with pytest.raises(UserError, match="--only heat: the parts are most, graph"):
        check.main(["--out", str(tmp_path / "c.json"), "--device", "cpu", "--tiny", "--only", "heat"])
    with pytest.raises(SystemExit):  # nothing was found wrong, but nothing was found
        check.main(["--out", str(tmp_path / "c.json"), "--device", "cpu", "--tiny", "--only", "most", "--budget", "1"])
    assert "left out: the 1 s are over" in capsys.readouterr().out
