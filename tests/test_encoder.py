"""The Encoder needs no weights, and what a batch without pictures leaves in vision tower and projector."""

import pytest
import torch

import data
import engine.loading as loading
import model
from tiny.world import world_questions

torch.set_num_threads(1)
STUDENTS = ("tiny-qwen", "tiny-internvl", "tiny-qwen3")


@pytest.fixture(params=STUDENTS)
def vlm(request) -> model.VLM:
    return loading.load(request.param, seed=1)


@pytest.mark.parametrize("name", ["tiny-qwen", "tiny-qwen3"])
def test_positions_without_weights_are_those_of_the_whole_stock_model(name):
    vlm = loading.load(name)
    picture = world_questions("train", 1)[0].images[0]
    for pictures in ([picture.resize((84, 42))], [picture, picture.resize((42, 84))]):
        prompt = vlm.encoder.encode(pictures, "what is this?")
        kinds = (prompt.ids == vlm.hf.config.image_token_id).int()[None]
        want, _ = vlm.base.get_rope_index(prompt.ids[None], kinds, image_grid_thw=prompt.pixels["image_grid_thw"])
        assert torch.equal(prompt.positions, want[:, 0]) and len(prompt.positions.unique(dim=0)) > 1


def test_an_encoder_is_no_part_of_the_weights_and_encodes_on_the_meta_device(tmp_path, vlm):
    loading.save(vlm, tmp_path / "student")
    empty = loading.meta_model(tmp_path / "student")
    assert {x.device.type for x in empty.tensors().values()} == {"meta"}
    assert list(empty.state_dict()) == list(vlm.state_dict()) and not isinstance(empty.encoder, torch.nn.Module)
    question = world_questions("train", 1)[0]
    one, other = (x.encoder.encode_question(question) for x in (vlm, empty))
    assert torch.equal(one.ids, other.ids) and torch.equal(one.positions, other.positions)
    assert torch.equal(one.pixels["pixel_values"], other.pixels["pixel_values"])


@pytest.mark.parametrize("with_blank", [False, True])
def test_without_pictures_the_projector_and_with_a_blank_one_the_tower_get_gradients_of_zeros(vlm, with_blank):
    prompts = [vlm.encoder.encode_question(data.Question(str(i), (), "how many?" + " red" * i, "3")) for i in range(2)]
    rows = [[vlm.encoder.reply_ids(x) for x in ("3", "the answer is red")]] * 2
    batch = model.pack(prompts, rows, blank=vlm.encoder.blank_picture() if with_blank else None)
    vlm.freeze(*(() if with_blank else ("vision",)))
    logps = vlm(batch)
    logps.sum().backward()
    for prompt, two, found in zip(prompts, rows, logps.split(2), strict=True):  # and the text is scored as stock does
        for ids, logp in zip(two, found, strict=True):
            whole = torch.cat([prompt.ids, torch.tensor(ids)])
            want = (vlm.hf(input_ids=whole[None]).logits[0] + vlm.banned).log_softmax(-1)[len(prompt.ids) - 1 : -1]
            assert torch.allclose(logp[: len(ids)], want.gather(1, torch.tensor(ids)[:, None])[:, 0], atol=1e-5)
    tower = set(vlm.base.get_submodule(vlm.family.vision).parameters())
    projectors = {p for projector in vlm.family.projectors(vlm.base) for p in projector.parameters()}
    for p in projectors | (tower if with_blank else set()):
        assert p.grad is not None and not p.grad.any()
    assert with_blank or all(p.grad is None for p in tower - projectors)


def test_a_picture_token_in_a_response_takes_no_patch(vlm):
    """It cannot be sampled; where a text spells it all the same, the patches of the picture stay where they belong."""
    prompt = vlm.encoder.encode_question(world_questions("train", 1)[0])
    reply = vlm.encoder.reply_ids("red")
    odd = [vlm.hf.config.image_token_id, *reply]
    with torch.no_grad():
        both, alone = vlm(model.pack([prompt], [[odd, reply]])), vlm(model.pack([prompt], [[reply]]))
    assert both[0, 0] == -torch.inf and torch.allclose(both[1, : len(reply)], alone[0], atol=1e-5)
