"""Fixtures of test_ril.py and of tests/. pyproject.toml loads this file as a plugin, so that both have them."""

import os
import tempfile

import pytest
import torch
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

import engine.loading as loading
import tiny.models as tiny_models
from tests.helpers import FAMILIES, SMALL, STUDENTS, command, made_once, speaking
from tests.published import make_all

os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="nanoril-tests-")  # hashes of pictures stay out of the user's


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """The folder with those of tests/published.NAMES in it; tests take `copied` from tests/published.py."""
    return made_once(tmp_path_factory, "published", make_all)


@pytest.fixture(scope="module", params=FAMILIES)
def vlm(request):
    return loading.load(request.param, 1)


@pytest.fixture(scope="module", params=FAMILIES)
def speaker(request):
    return speaking(request.param, 8 if request.param == "tiny-qwen3" else 1)  # with 1 none of its texts ends


@pytest.fixture(scope="session")
def straight(tmp_path_factory):
    """One whole small run of the real command from a shipped warm start, never interrupted."""
    return made_once(tmp_path_factory, "straight", lambda x: command(x, "--name", "a", *SMALL)) / "runs" / "a"


@pytest.fixture(scope="module", params=STUDENTS)
def whole(request, straight, tmp_path_factory):
    """(a whole small run, its flags), of either family."""
    if request.param == "tiny-qwen":
        return straight, SMALL
    flags = [*SMALL, "--student", request.param, "--teachers", f"{request.param}-teacher"]
    folder = made_once(tmp_path_factory, request.param, lambda x: command(x, "--name", "a", *flags))
    return folder / "runs" / "a", flags


def small_judge(folder):
    """A random text-only model of ours as a stock folder."""
    tok = tiny_models.tiny_tokenizer(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "")
    tok.chat_template = (  # laid out as that of the real models, which the server's parser knows
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    torch.manual_seed(0)
    wide = dict(max_position_embeddings=4096, initializer_range=0.3)  # so that verdicts differ from text to text
    hf = Qwen2ForCausalLM(Qwen2Config(**tiny_models.tiny_text(tok, 96, 2) | wide))
    hf.generation_config = GenerationConfig(eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id)
    hf.save_pretrained(folder)
    tok.save_pretrained(folder)


@pytest.fixture(scope="session")
def judge_folder(tmp_path_factory):
    return made_once(tmp_path_factory, "judge", small_judge)
