"""tools.select: questions that the teacher knows and the student does not."""

import json

import torch

import data
import engine.loading as loading
import teachers
import tools.select as selection
from tests.helpers import SMALL, own_questions, stock_inputs


def test_selection_keeps_what_the_teacher_knows_and_the_student_does_not_and_resumes(
    straight, tmp_path, monkeypatch, capsys
):
    file = own_questions(tmp_path)
    lines = (tmp_path / file).read_text().splitlines()
    long = json.loads(lines[0]) | dict(id="long", answer="red " * 60)
    (tmp_path / file).write_text("\n".join([*lines, json.dumps(long)]) + "\n")
    monkeypatch.chdir(tmp_path)
    flags = ["--name", "q", *SMALL, "--data", file, "--student", str(straight / "sft"), "--keep", "10"]
    selection.main(flags)
    run = tmp_path / "runs/q"
    scores = {r["question"]: r["score"] for r in map(json.loads, (run / "scores.jsonl").read_text().splitlines())}
    kept = {q.id for q in data.load_questions(run / "selected.jsonl")}
    assert scores["long"] is None and len(kept) == 10 and len(scores) == 41
    assert min(scores[i] for i in kept) >= max(x for i, x in scores.items() if x is not None and i not in kept)
    teacher, student = loading.load(teachers.FOLDER / "tiny-qwen-teacher"), loading.load(straight / "sft")
    q = next(q for q in data.load_questions(tmp_path / file) if q.id in kept)

    def alone(vlm):
        ids = torch.tensor(vlm.encoder.reply_ids(q.answer))
        prompt = vlm.encoder.encode_question(q)
        with torch.no_grad():
            logits = vlm.hf(**stock_inputs(vlm, prompt, torch.cat([prompt.ids, ids]))).logits[0] + vlm.banned
        return logits.log_softmax(-1)[len(prompt.ids) - 1 : -1].gather(1, ids[:, None]).mean().item()

    assert abs(scores[q.id] - (alone(teacher) - alone(student))) < 1e-4
    whole = (run / "scores.jsonl").read_text()
    (run / "scores.jsonl").write_text("\n".join(whole.splitlines()[:20]) + '\n{"question": "to')  # killed in the middle
    selection.main(flags)
    again = {r["question"]: r["score"] for r in map(json.loads, (run / "scores.jsonl").read_text().splitlines())}
    assert all(again[k] == scores[k] if scores[k] is None else abs(again[k] - scores[k]) < 1e-5 for k in scores)
    assert "#" in capsys.readouterr().out
    flags[flags.index("q")] = "p"
    selection.main([*flags, "--score", "pass-rate", "--teacher-samples", "4"])
    rates = [json.loads(x) for x in (tmp_path / "runs/p/scores.jsonl").read_text().splitlines()]
    kept = {q.id for q in data.load_questions(tmp_path / "runs/p/selected.jsonl")}
    assert kept == set([r["question"] for r in rates if r["score"] is not None and 0 < r["score"] < 1][:10])
