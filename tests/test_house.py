"""The layout: which file may import which, and that importing a file changes nothing in the process."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import engine.loading as loading
import model
import rollout as ro
import tiny.world as tiny_world
from tests.helpers import FAMILIES, HOME, OURS

LEVELS = """
    engine.ahead engine.command engine.files engine.answers engine.pictures engine.plain engine.words
    engine.marks data grpo
    engine.attention
    config engine.families engine.contradictions engine.served engine.rule engine.tracker tiny.world tiny.models
    model engine.sharding engine.guard engine.folders engine.loading engine.keys_values engine.lora
    discriminator judge rollout engine.alarms engine.run engine.memory engine.players engine.local engine.asking
    teachers eval tiny.lessons engine.report engine.checks engine.groups engine.unseen
    train
"""  # the lowest first; tools, results and docs stand above them all
LEVEL = {name: i for i, line in enumerate(LEVELS.strip().splitlines()) for name in line.split()}


def level_of(name: str) -> int:
    """A module's level; KeyError for one that LEVELS does not know."""
    return len(LEVELS.splitlines()) if name.split(".")[0] in ("tools", "results", "docs") else LEVEL[name]


def modules() -> dict[str, Path]:
    """Every module of ours by name, without the tests."""
    files = [f for f in HOME.glob("*.py") if f.name != "test_ril.py"]
    files += [f for folder in ("engine", "tiny", "tools", "results", "docs") for f in (HOME / folder).glob("*.py")]
    return {".".join(f.relative_to(HOME).with_suffix("").parts): f for f in files}


def imports_of(source: str, ours) -> set[str]:
    """Our modules that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "an import says where from"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found & set(ours)


def arrows_up(graph: dict[str, set[str]]) -> list[str]:
    return [f"{a} -> {b}" for a in graph for b in sorted(graph[a]) if level_of(b) > level_of(a)]


def circle(graph: dict[str, set[str]]) -> list[str]:
    """What is left when modules that import nothing that is left, or that nothing left imports, are taken away."""
    left = dict(graph)

    def is_end(name: str) -> bool:
        return not left[name] & left.keys() or not any(name in to for to in left.values())

    while ends := [name for name in left if is_end(name)]:
        for name in ends:
            del left[name]
    return sorted(left)


def test_imports_run_down_and_in_no_circle():
    ours = modules()
    graph = {name: imports_of(file.read_text(), ours) for name, file in ours.items()}
    assert len(graph) > 25 and sum(map(len, graph.values())) > 80  # it was really drawn
    assert arrows_up(graph) == [] and circle(graph) == []
    up = graph | {"grpo": imports_of("def f():\n    from engine.run import Run", ours)}
    assert arrows_up(up) == ["grpo -> engine.run"]  # one would be seen, and so would a circle
    assert circle(graph | {"model": {"engine.loading"}}) == ["engine.loading", "model"]


def by_name(source: str) -> list[str]:
    """What a file uses to import something by its name at run time."""
    names = [n.id for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Name)]
    found = {x for x in names if x == "__import__"}
    return sorted(found | imports_of(source, ("importlib", "importlib.import_module", "runpy")))


def test_nothing_is_imported_by_name_at_run_time():
    assert by_name("import importlib\n__import__('run')") == ["__import__", "importlib"]
    for name, file in modules().items():
        assert by_name(file.read_text()) == [], name


def test_our_files_do_not_need_what_only_the_tests_install():
    for file in OURS:
        assert not re.search(r"(device_map|tp_plan) ?=|import (openai|fastapi|accelerate)", file.read_text()), file


def test_names_of_families_stand_in_two_files_only():
    for file in OURS:
        if file not in (HOME / "engine/families.py", HOME / "tiny/models.py"):
            assert not re.search(r"(?<!tiny-)(qwen(?!2\.5-)|internvl(?!3-))", file.read_text(), re.I), file.name


PROCESS = """
import os, sys, torch, transformers, torch.distributed.checkpoint, torch.distributed.fsdp
from transformers import AutoModelForCausalLM, AutoTokenizer, InternVLForConditionalGeneration
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

def process():
    cuda = torch.backends.cuda
    return dict(
        attention=dict(ALL_ATTENTION_FUNCTIONS), masks=dict(ALL_MASK_ATTENTION_FUNCTIONS), environment=dict(os.environ),
        dtype=torch.get_default_dtype(), device=torch.get_default_device(), seed=torch.initial_seed(),
        threads=torch.get_num_threads(), deterministic=torch.are_deterministic_algorithms_enabled(),
        sdp=[cuda.cudnn_sdp_enabled(), cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled()],
        tf32=[cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()],
        ranks=torch.distributed.is_initialized(), said=transformers.logging.get_verbosity(),
        bars=transformers.logging.is_progress_bar_enabled(), output=(sys.stdout, sys.stderr),
    )

before = process()
assert before["attention"]["sdpa"].__module__ == "transformers.integrations.sdpa_attention"
"""


LANGUAGE = "transformers.Qwen2ForCausalLM(transformers.Qwen2Config(num_hidden_layers=1, vocab_size=8))"


def imported(code: str) -> subprocess.CompletedProcess:
    """A fresh process that runs `code` and then compares itself with what it was."""
    code = f"{PROCESS}\n{code}\nprint([name for name, x in process().items() if x != before[name]])"
    env = dict(os.environ, PYTHONPATH=str(HOME), OMP_NUM_THREADS="1")
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)


def test_importing_every_file_changes_nothing_in_the_process():
    assert imported("\n".join(f"import {name}" for name in modules())).stdout == "[]\n"
    said = imported(f"import engine.attention as a\na.use_own_attention({LANGUAGE})").stdout
    assert said == "['attention', 'masks']\n"  # a change would be seen


@pytest.mark.parametrize("name", FAMILIES)
def test_a_stock_model_beside_ours_keeps_stock_attention(name, tmp_path, published):
    ours = loading.load(name, 1)
    loading.save(ours, tmp_path / "w")
    prompts = [ours.encoder.encode_question(q) for q in tiny_world.world_questions("train", 2)]
    ro.rollout(ours, prompts, ["a", "b"], 2, 4)
    ours(
        model.pack(ours.encode_pictures(prompts), [[ours.encoder.reply_ids("red"), ours.encoder.reply_ids("blue")]] * 2)
    )
    assert ours.base.language_model.config._attn_implementation == "tree"
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is sdpa_attention_forward
    made = ours.family.model(ours.family.model.config_class.from_pretrained(tmp_path / "w"))
    stock = [made, ours.family.model.from_pretrained(tmp_path / "w")]
    stock += [AutoModelForCausalLM.from_pretrained(published / "judge")]
    for hf in stock:
        assert {x._attn_implementation for x in loading.levels(hf.config)} == {"sdpa"}, type(hf)
        seen = [x.config._attn_implementation for x in hf.modules() if type(x).__name__.endswith("Attention")]
        assert len(seen) > 1 and set(seen) == {"sdpa"}
    assert "attn" not in (tmp_path / "w" / "config.json").read_text()
