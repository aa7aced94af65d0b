"""tools.pilot: its page, and how near a tie greedy texts part."""

import json
import re

import pytest
import torch

import config
import rollout as ro
import tiny.world as tiny_world
import tools.pilot as pilot
import train
from engine.command import UserError
from tests.helpers import STUDENTS, own_questions, speaking, stock_inputs


@pytest.mark.parametrize("name", STUDENTS)
def test_the_pilot_says_how_near_a_tie_greedy_texts_part(name):
    vlm, question = speaking(name), tiny_world.world_questions("train", 1)[0]
    vlm.hf.generation_config.repetition_penalty = 5.0  # of the folder: not for the comparison
    prompt = vlm.encoder.encode_question(question)
    ((mine,),) = ro.rollout(vlm, [prompt], ["q"], 1, 12, ro.GREEDY)
    assert pilot.stock_greedy(vlm, prompt, 12) == mine.ids and len(mine.ids) > 4
    logits = vlm.hf(**stock_inputs(vlm, prompt, torch.cat([prompt.ids, torch.tensor(mine.ids[:3])]))).logits[0, -1]
    (first, second), (top, next_) = (x.tolist() for x in (logits + vlm.banned).topk(2))
    assert top == mine.ids[3]
    said = pilot.parting(vlm, prompt, mine.ids, [*mine.ids[:3], next_, 1])
    assert said.startswith(f"token 4 is {top} here and {next_} in stock") and said.endswith("no tie")
    assert float(re.search(r"(\S+) apart", said)[1]) == pytest.approx(first - second, rel=0.06)
    assert "is None here" not in said and "and None in stock" in pilot.parting(vlm, prompt, mine.ids, mine.ids[:3])
    with torch.no_grad():  # two ids with one row of the head are a tie
        vlm.hf.lm_head.weight[next_] = vlm.hf.lm_head.weight[top]
    assert pilot.parting(vlm, prompt, mine.ids, [*mine.ids[:3], next_]).endswith("a tie of rounding")


def test_the_pilot_writes_its_page(tmp_path, monkeypatch):
    few = "--sft-steps 20 --questions-per-step 4 --group-size 4 --d-steps 2 --eval-draws 1 ".split()
    monkeypatch.chdir(tmp_path)
    pilot.main(["--name", "p", *few])
    page = (tmp_path / "runs/p-pilot/pilot.md").read_text()
    command_line = json.loads((tmp_path / "runs/p-pilot/config.json").read_text())["command"]
    assert command_line.startswith("python -m tools.pilot --name p ")
    assert "8 of 8 prompts, token for token" in page and "planned" in page and "tiny-qwen-teacher:" in page
    gap = float(re.search(r"largest difference (\S+)", page).group(1))
    assert gap < 1e-4
    mine = config.Config(data=str(tmp_path / own_questions(tmp_path, 90)), pool=20, test_questions=5)
    assert len(train.split(mine)["train"]) > 60  # all of yours, but in a pilot only that many
    few = train.split(train.replace(mine, pilot=True))
    assert [len(few[part]) for part in ("train", "test")] == [20, 5]


def test_random_weights_are_for_published_names():
    with pytest.raises(UserError, match="--random-weights is for published names: qwen2.5-vl-3b.*; others have"):
        pilot.main(["--random-weights"])
