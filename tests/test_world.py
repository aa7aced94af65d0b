"""The tiny world: boards, questions, voices, and the words of its tokenizers."""

import pytest

import data
import engine.loading as loading
import judge as jd
import tiny.world as tiny_world


def test_boards_of_the_splits_never_meet():
    boards = {}
    for split in ("train", "valid", "test"):
        rng = __import__("random").Random(7)
        scenes = [tiny_world.draw_scene(rng) for _ in range(4000)]
        boards[split] = {str(s) for s in scenes if tiny_world.scene_split(s) == split}
    assert all(len(b) > 200 for b in boards.values())
    assert not boards["train"] & boards["test"] and not boards["train"] & boards["valid"]
    assert not boards["valid"] & boards["test"]


def test_lessons_show_training_boards_only(monkeypatch):
    seen = []
    real = tiny_world.paint
    monkeypatch.setattr(tiny_world, "paint", lambda scene, *a: seen.append(scene) or real(scene, *a))
    tiny_world.world_lessons(0, 0, 40, 1)
    tiny_world.world_questions("test", 5)
    assert {tiny_world.scene_split(s) for s in seen[:40]} == {"train"} and {
        tiny_world.scene_split(s) for s in seen[40:]
    } == {"test"}


def test_world_answers_are_right_by_counting():
    rng = __import__("random").Random(3)
    for _ in range(200):
        scene = tiny_world.draw_scene(rng)
        q = tiny_world.ask(scene, rng, "count")
        word = q["text"].removeprefix("how many ").removesuffix("?").removesuffix(" things")
        single = {v: k for k, v in tiny_world.SHAPES.items()}.get(word, word)
        assert q["answer"] == str(sum(single in (t.color, t.shape) for t in scene))
        assert all(jd.rule_judge(data.Question("x", (), q["text"], q["answer"]), r) for r in q["replies"].values())


def test_a_right_look_says_what_a_perfect_look_says():
    q = next(q for q in tiny_world.world_questions("train", 200) if q.meta["kind"] == "count" and q.answer == "3")
    said = q.meta["replies"]["a"]
    assert tiny_world.look(q, said) is True and tiny_world.look(q, q.meta["replies"]["b"]) is True
    words = said.split(". the answer")[0].removeprefix("i see ").split()
    turned = "i see " + " ".join(words[2:] + words[:2]) + ". the answer is 3"
    assert tiny_world.look(q, turned) is True and tiny_world.look(q, "3") is None  # counted things come in any order
    assert tiny_world.look(q, said.replace(words[1], "circle" if words[1] != "circle" else "square", 1)) is False


@pytest.mark.parametrize("name, tokens", [("tiny-qwen", 5), ("tiny-internvl", 7)])
def test_a_world_word_is_one_token_or_one_for_every_five_characters(name, tokens):
    tok = loading.load(name).encoder.tokenizer
    assert len(tok("how many yellow things?")["input_ids"]) == tokens
