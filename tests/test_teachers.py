"""Teachers: built, served, from files, and what D's pre-training takes of them."""

import collections
import json
import shutil
import types

import numpy as np
import pytest

import config
import data
import discriminator as disc
import engine.asking as asking
import engine.checks as checks
import engine.loading as loading
import engine.served as clients
import judge as jd
import teachers
import tiny.models as tiny_models
import tiny.world as tiny_world
import tools.build as build
import train
from engine.command import UserError
from tests.helpers import SMALL, STUDENTS, command, echo_anything, metrics, own_questions, stub_server


def test_teacher_building_is_reproducible_byte_for_byte(tmp_path, monkeypatch):
    small = [*SMALL, "--sft-steps", "4", "--teacher-samples", "2"]
    monkeypatch.chdir(tmp_path)
    out = []
    for name in "xy":
        for module in (build, teachers):
            monkeypatch.setattr(module, "FOLDER", tmp_path / name)
        build.main(["teacher", "--name", name, *small])
        folder = tmp_path / name / "tiny-qwen-teacher"
        out.append([(folder / f).read_bytes() for f in ("model.safetensors", "responses.jsonl")])
    assert out[0] == out[1] and len(out[0][1].splitlines()) == 48 * 2


@pytest.mark.parametrize("name", [n for n, tiny in tiny_models.TINY.items() if tiny.voice])
def test_committed_teacher_answers_every_question_of_the_pool(name, tmp_path):
    rows = [json.loads(x) for x in (teachers.FOLDER / name / "responses.jsonl").read_text().splitlines()]
    questions = {q.id: q for q in tiny_world.world_questions("train", config.Config().pool)}
    assert {r["question"] for r in rows} == set(questions) and len(rows) == 8 * len(questions)
    right = np.mean([jd.rule_judge(questions[r["question"]], r["text"]) for r in rows])
    assert 0.6 < right < 0.97  # a real teacher with its natural errors
    run = types.SimpleNamespace(cfg=config.Config(), first=True, device="cpu", mesh=None, path=tmp_path)
    again = teachers.ask_teacher(name, "", list(questions.values())[:6], run)  # the committed weights still say it
    assert [(r.question, r.text, r.finished) for r in again] == [
        (r["question"], r["text"], r["finished"]) for r in rows[:48]
    ]
    opening = questions[rows[0]["question"]].meta["replies"][tiny_models.TINY[name].voice].split()[0]
    assert np.mean([r["text"].startswith(opening) for r in rows]) > 0.95  # in its own voice
    for student in STUDENTS:  # few are lost to either student
        reply_ids = loading.load(student).encoder.reply_ids
        kept = [r["finished"] and len(reply_ids(r["text"])) <= config.Config().max_new_tokens for r in rows]
        assert np.mean(kept) > 0.98


def test_teacher_texts_lose_the_control_tokens_that_they_spell(straight, tmp_path):
    student, question = loading.load(straight / "sft"), tiny_world.world_questions("train", 1)[0]
    texts = ["red", "red <|im_end|>", f"a {student.family.picture_sign}", "<|im_end|>"]
    rows = [dict(question=question.id, teacher="tiny-qwen-teacher", text=t, verdict=1) for t in texts]
    (tmp_path / "teachers.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    run = type("Run", (), dict(path=tmp_path, cfg=config.Config()))
    (found,) = train.TeacherCache(run, student.encoder, [question]).of.values()
    responses = [r for r, _ in found["tiny-qwen-teacher"]]
    assert [r.text for r in responses] == ["red", "red", "a"]  # nothing is left of the last one
    assert not {i for r in responses for i in r.ids[:-1]} & {*student.encoder.banned_ids, *student.encoder.ends}
    rows[0]["teacher"] = "somebody"
    (tmp_path / "teachers.jsonl").write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(UserError, match="somebody"):
        train.TeacherCache(run, student.encoder, [question])


def test_a_served_teacher_is_asked_for_what_is_missing_and_an_unreadable_picture_is_named(tmp_path):
    questions = tiny_world.world_questions("train", 3)
    with stub_server(echo_anything) as (url, got):
        missing = [(q, i) for q in questions for i in range(4)][1:]
        first = list(asking.served_answers(clients.Server(url), missing, config.Config()))
        assert sorted((r["question"], r["index"]) for r in first) == [(q.id, i) for q, i in missing]
        assert {(r["text"], r["finished"]) for r in first} == {("red", True)}
        assert len({b["seed"] for _, _, b in got}) == 11 and all(0 <= b["seed"] < 2**31 for _, _, b in got)
        broken = data.Question("broken", (str(tmp_path / "no.png"),), "what?", "red")
        rows = []
        with pytest.raises(UserError, match="broken.*no.png"):
            missing = [(q, 0) for q in (questions[0], broken, questions[1])]
            rows.extend(asking.served_answers(clients.Server(url), missing, config.Config()))
        assert rows == [] or rows == [dict(question=questions[0].id, index=0, text="red", finished=True)]


def test_a_served_teachers_answers_survive_a_dead_server_without_loss_or_doubles(straight, tmp_path, monkeypatch):
    """The server dies after 50 requests; the same command later asks for the rest only, and the loop trains on it."""
    monkeypatch.setattr(teachers, "Server", lambda url: clients.Server(url, tries=2, in_flight=4, sleep=lambda s: None))
    file, served, dying = own_questions(tmp_path), [], [True]

    def answer(handler, body):
        if len(served) >= 50 and dying:
            return handler.reply(503, {})
        served.append((body["messages"][0]["content"][-1]["text"], body["seed"]))
        text = "i see red\u2028circle. the answer is red <|im_end|>"  # with what str.splitlines takes for a line's end
        handler.say(text, reason="length" if len(served) == 3 else "stop")

    with stub_server(answer) as (url, _):
        flags = ["--name", "t", *SMALL, "--data", file, "--student", str(straight / "sft"), "--steps", "1"]
        flags += ["--teachers", f"big={url}", "--teacher-samples", "2"]
        with pytest.raises(UserError, match="tries without a usable answer"):
            command(tmp_path, *flags, "--stage", "sft")
            command(tmp_path, *flags, "--stage", "teachers")
        part = tmp_path / "runs/t/teachers-big.part.jsonl"
        before = part.read_text().splitlines()
        assert 40 <= len(before) <= 50
        part.write_text(part.read_text() + '{"question": "tor')
        dying.clear()
        command(tmp_path, *flags)
    rows = [json.loads(x) for x in (tmp_path / "runs/t/teachers.jsonl").read_text().split("\n")[:-1]]
    train_part = data.split_questions(data.load_questions(tmp_path / file))["train"]
    assert sorted(r["question"] for r in rows) == sorted(2 * [q.id for q in train_part])
    assert len(set(served)) == len(served)  # no sample was asked for twice
    assert [x for x in part.read_text().splitlines()][: len(before)] == before
    assert sum(not r["finished"] for r in rows) == 1 and all(r["verdict"] in (0, 1) for r in rows)
    summary = json.loads((tmp_path / "runs/t/summary.json").read_text())
    assert "sampled_after" in summary and "sampled_teacher" not in summary


def test_responses_from_a_file_fill_in_for_a_teacher_that_has_too_few(straight, tmp_path, capsys):
    questions = tiny_world.world_questions("train", 48)
    lines = [dict(question=q.id, teacher="a", text=f"the answer is {q.answer}") for q in questions for _ in range(4)]
    lines += [dict(question=q.id, teacher="b", text="final red") for q in questions[10:] for _ in range(4)]
    (tmp_path / "said.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    flags = [
        "--name",
        "f",
        *SMALL,
        "--steps",
        "1",
        "--teachers",
        "a,b",
        "--teachers-file",
        str(tmp_path / "said.jsonl"),
    ]
    command(tmp_path, *flags, "--student", str(straight / "sft"))
    out = capsys.readouterr().out
    assert "20 responses stand in" in out  # ten questions without b, two of its rows in each group
    (tmp_path / "said.jsonl").write_text(
        "".join(json.dumps(x) + "\n" for x in lines if x["question"] != questions[3].id)
    )
    shutil.rmtree(tmp_path / "runs")
    command(tmp_path, *flags, "--student", str(straight / "sft"))
    assert (
        f"1 questions have the student's rows alone, no teacher has a whole response to them: '{questions[3].id}'"
        in (capsys.readouterr().out)
    )
    flags[flags.index("a,b")] = "a,c"
    with pytest.raises(UserError, match="said.jsonl: no response of 'c' to any training question"):
        command(tmp_path, *flags, "--student", str(straight / "sft"), "--no-resume")
    assert (tmp_path / "runs/f/summary.json").exists()  # found before --no-resume deletes the run
    (tmp_path / "said.jsonl").write_text(json.dumps(lines[0] | dict(teacher="c")) + "\n" + json.dumps(lines[0])[:-9])
    with pytest.raises(UserError, match="said.jsonl:2: not JSON"):
        checks.check_players(config.parse(flags))


def test_the_discriminators_questions_are_known_before_a_teacher_is_asked_and_keep_their_order():
    questions = [data.Question(str(i), (), "what?", "red") for i in range(48)]
    cfg = config.Config(d_steps=3, questions_per_step=4)
    held, steps = teachers.pretraining_questions(cfg, questions)
    assert held == questions[:6] and [len(s) for s in steps] == [4, 4, 4]
    order = [q for q, _ in data.questions_at(questions[6:], 0, 42, data.seed_of(0, "d"))]
    assert [q for s in steps for q in s] == order[:12]
    gone = {questions[0].id, order[1].id, order[7].id}  # without any response, as it turns out later
    left = [q.id for q in questions if q.id not in gone]
    held, steps = teachers.pretraining_questions(cfg, questions, left)
    kept = [q for q in order if q.id not in gone and q not in held]
    assert held == questions[1:6] and [q for s in steps for q in s] == kept[:12]
    held, steps = teachers.pretraining_questions(cfg, questions, ["40"])
    assert {q.id for s in (held, *steps) for q in s} == {"40"} and [len(s) for s in steps] == [4, 4, 4]
    for off in (dict(d_steps=0), dict(similarity="none")):
        assert teachers.pretraining_questions(train.replace(cfg, **off), questions) == ([], [])


def test_teachers_are_asked_for_more_where_the_discriminators_pre_training_comes_by(straight, tmp_path, monkeypatch):
    """A served teacher and one asked here: d_samples for what pre-training visits, --teacher-samples for the rest."""
    file, drawn = own_questions(tmp_path, 60), {}
    flags = ["--name", "t", *SMALL, "--data", file, "--student", str(straight / "sft")]
    flags += ["--teacher-samples", "1", "d_samples=3", "--d-steps", "2"]
    with stub_server(lambda handler, body: handler.say("red")) as (url, asked):
        command(tmp_path, *flags, "--teachers", f"big={url},tiny-qwen-teacher", "--stage", "sft")
        command(tmp_path, *flags, "--teachers", f"big={url},tiny-qwen-teacher", "--stage", "teachers")
        requests = len(asked)
    part = data.split_questions(data.load_questions(tmp_path / file))["train"]
    hold = len(part) // 8
    visits = [data.questions_at(part[hold:], step, 4, data.seed_of(0, "d")) for step in (0, 1)]
    visited = {q.id for q in part[:hold]} | {q.id for step in visits for q, _ in step}
    rows = [json.loads(x) for x in (tmp_path / "runs/t/teachers.jsonl").read_text().splitlines()]
    found = collections.Counter((r["question"], r["teacher"]) for r in rows)
    names = ("big", "tiny-qwen-teacher")
    assert found == {(q.id, name): 3 if q.id in visited else 1 for q in part for name in names}
    assert len(visited) == hold + 8 < len(part) and requests == 3 * len(visited) + len(part) - len(visited)
    draw = teachers.TeacherCache.draw

    def noted(self, question, *purpose, count=0):
        drawn[question] = [r.index for r in draw(self, question, *purpose, count=count)[0] if r.source == "big"]
        return draw(self, question, *purpose, count=count)

    monkeypatch.setattr(teachers.TeacherCache, "draw", noted)
    command(tmp_path, *flags, "--teachers", "big=http://127.0.0.1:9/v1,tiny-qwen-teacher", "--stage", "discriminator")
    assert set(drawn) == visited and all(sorted(x) == [0, 1, 2] for x in drawn.values())  # nothing is repeated


def test_pre_training_uses_what_a_cache_has_and_warns_where_d_learned_nothing(straight, tmp_path, monkeypatch, capsys):
    texts, pack, out = [], disc.Discriminator.pack, {}

    def noted(self, groups, *more):
        texts.extend(map(len, groups))
        return pack(self, groups, *more)

    monkeypatch.setattr(disc.Discriminator, "pack", noted)
    learning_nothing = ["d_samples=9", "--d-steps", "1", "d_pretrain_lr=1e-9"]
    for name, flags in {
        "rows of 8": ["--group-size", "4", *learning_nothing],
        "rows of 18": ["--group-size", "9", *learning_nothing],
        "learning": [],
    }.items():
        texts.clear()
        run = tmp_path / "runs" / name
        shutil.copytree(straight / "sft", run / "sft")
        shutil.copy(straight / "teachers.jsonl", run)
        command(tmp_path, "--name", name, *SMALL, *flags, "--stage", "discriminator")
        out[name] = (metrics(run)[-1], list(texts), capsys.readouterr().out)
    row, sizes, said = out["rows of 8"]
    assert sizes == [8, 8, 2] * 10  # 6 held-out questions and 4 of the step, 9 + 9 texts each
    assert "10 of 10 questions have fewer than 9 cached responses" in said
    assert row["d_accuracy"] < 0.6 and "WARNING: D ends at 0." in said
    assert out["rows of 18"][1] == [18] * 10 and out["rows of 18"][0]["loss"] == pytest.approx(row["loss"], abs=1e-6)
    row, _, said = out["learning"]
    assert row["d_accuracy"] > 0.6 and "WARNING" not in said
