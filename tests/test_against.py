"""tools.bench --against trl, without TRL: a stand-in takes the place of its steps."""

import sys
from types import SimpleNamespace

import pytest
import torch

import tools.against as against
import tools.bench as bench
from engine.command import UserError
from tiny.world import world_questions

SMALL = "--against trl --questions 2 --group-size 2 --response-tokens 3 --repeats 2".split()


def test_our_steps_take_turns_with_those_of_trl(monkeypatch):
    """Without D on as many rows as TRL, whole on twice as many; TRL's first step warms up and counts for nothing."""
    widths, rollout = {}, bench.rollout
    step = bench.phases_of_step

    def counted(sample, logps, student_logit, groups, *more):
        def scored(s):
            widths[len(groups[0])] = len(out := logps(s))
            return out

        return step(sample, scored, student_logit, groups, *more)

    def sampled(vlm, prompts, names, group, length):
        widths["rollout"] = (group, length)
        return rollout(vlm, prompts, names, group, length)

    def stand_in(student, questions, G, T, steps, beta, between):
        assert (len(questions), G, T, steps, beta) == (2, 2, 3, 3, bench.Objective.beta)
        for _ in range(steps):
            between()
        return [1e9, 10.0, 20.0]

    monkeypatch.setattr(bench, "trl_version", lambda: "1.16.0")
    monkeypatch.setattr(bench, "trl_steps", stand_in)
    monkeypatch.setattr(bench, "rollout", sampled)
    monkeypatch.setattr(bench, "phases_of_step", counted)
    out = bench.main([*SMALL, "--threads", str(torch.get_num_threads())])
    assert out["trl"]["seconds"] == 15.0 and "TRL 1.16.0" in out["machine"]
    phases = ["questions", "rollout", "reference", "update"]
    for who, names in (("without_d", phases), ("with_d", [*phases, "discriminator"])):
        assert out[who]["seconds"] > 0 and {*names} == {*out[who]} - {"seconds", "ratio", "ratio_range"}
        low, high = out[who]["ratio_range"]
        assert low <= out[who]["ratio"] <= high
    assert widths == {"rollout": (2, 3), 2: 4, 4: 8}


@pytest.mark.parametrize(("version", "says"), [(None, "not installed"), ("1.15.2", "1.15.2 is too old")])
def test_a_missing_or_old_trl_is_one_line_with_the_fix(monkeypatch, version, says):
    monkeypatch.setitem(sys.modules, "trl", version and SimpleNamespace(__version__=version))  # None: no such module
    with pytest.raises(UserError, match=f"{says}; give `pip install 'trl>=1.16'`") as error:
        bench.main(SMALL)
    assert "\n" not in str(error.value)


def test_newer_versions_of_trl_are_taken(monkeypatch):
    for version in ("1.16.0", "1.16rc1", "1.17.0.dev0", "2.0"):
        monkeypatch.setitem(sys.modules, "trl", SimpleNamespace(__version__=version))
        assert against.trl_version() == version


def test_what_trl_gets_is_our_prompt():
    """Its chats become our encoder's ids, padded on the left where they say what is a picture."""
    student = bench.load("tiny-qwen")
    questions = [*world_questions("train", 2)]
    chats = [
        [dict(role="user", content=[dict(type="image", image=q.pictures()[0]), dict(type="text", text=q.text)])]
        for q in questions
    ]
    processor = against.Processor(student.encoder)
    got, prompts = (
        processor.apply_chat_template(chats, tokenize=True),
        [*map(student.encoder.encode_question, questions)],
    )
    assert got["input_ids"] == [p.ids.tolist() for p in prompts]
    assert len(got["pixel_values"]) == sum(len(p.pixels["pixel_values"]) for p in prompts)
    for kinds, p in zip(got["mm_token_type_ids"], prompts, strict=True):
        assert torch.equal(kinds[-len(p.ids) :] == 1, p.ids == student.encoder.config.image_token_id)
    texts = [processor.apply_chat_template(chat) for chat in chats]
    again = processor([q.pictures() for q in questions], texts)
    assert torch.equal(again["pixel_values"], got["pixel_values"]) and texts == [q.text for q in questions]
