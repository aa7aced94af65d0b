"""What we take from inside transformers and torch still has its name, its arguments and its meaning.

These parts are not promised to stay. When a new version moves one, the test that fails here names it and says what we
use it for; the other tests then fail as a consequence.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest
import torch
import transformers
from packaging.requirements import Requirement
from torch import nn
from transformers import InternVLConfig, Qwen2_5_VLConfig, Qwen2Config, Qwen3VLConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.utils import logging

from tests import published as pub

torch.set_num_threads(1)
logging.disable_progress_bar()
IS_NEW = hasattr(transformers.PreTrainedModel, "activation_checkpointing_enable")  # the old name goes in version 6
CHECKPOINTING = "activation_checkpointing_enable" if IS_NEW else "gradient_checkpointing_enable"
HOME = Path(__file__).resolve().parent.parent
TEXT = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
TEXT |= dict(vocab_size=64, max_position_embeddings=64, bos_token_id=None, eos_token_id=None, pad_token_id=None)


def small(family: str, meta: bool = False) -> nn.Module:
    """A stock model of a few thousand parameters: "qwen", "qwen3", "internvl" or "judge"."""
    with torch.device("meta" if meta else "cpu"):
        if family == "judge":
            return transformers.Qwen2ForCausalLM(Qwen2Config(**TEXT)).eval()
        if family == "qwen":
            rope = dict(rope_parameters=dict(rope_type="default", rope_theta=1e4, mrope_section=[1, 1, 2]))
            vision = dict(depth=1, hidden_size=32, intermediate_size=64, num_heads=2, out_hidden_size=32, patch_size=7)
            config = Qwen2_5_VLConfig(text_config=TEXT | rope, vision_config=vision, image_token_id=60)
            return transformers.Qwen2_5_VLForConditionalGeneration(config).eval()
        if family == "qwen3":
            vision = dict(depth=2, hidden_size=32, intermediate_size=64, num_heads=2, out_hidden_size=32, patch_size=7)
            vision |= dict(deepstack_visual_indexes=[0, 1], num_position_embeddings=16)
            rope = dict(rope_type="default", rope_theta=1e4, mrope_section=[1, 1, 2], mrope_interleaved=True)
            text = TEXT | dict(head_dim=8, rope_parameters=rope)
            config = Qwen3VLConfig(text_config=text, vision_config=vision, image_token_id=60)
            return transformers.Qwen3VLForConditionalGeneration(config).eval()
        vision = dict(num_hidden_layers=1, hidden_size=32, intermediate_size=64, num_attention_heads=2)
        vision |= dict(image_size=[28, 28], patch_size=[7, 7])
        config = InternVLConfig(text_config=TEXT | dict(model_type="qwen2"), vision_config=vision, image_token_id=60)
        return transformers.InternVLForConditionalGeneration(config).eval()


# ------------------------------------------------------------------------------------------------ what each has to do
def file_names(revert_weight_conversion) -> None:
    """Stock names become those of the published files."""
    for family, head in (("qwen", "lm_head.weight"), ("internvl", "language_model.lm_head.weight")):
        hf = small(family, meta=True)
        there = revert_weight_conversion(hf, {name: torch.tensor(0) for name in hf.state_dict()})
        layer = "model.layers.1.mlp.up_proj.weight"
        assert head in there and ("language_model." * (family == "internvl") + layer) in there


def heads_repeated(repeat_kv) -> None:
    """Every KV head n times in a row."""
    x = torch.randn(2, 3, 5, 4)
    assert torch.equal(repeat_kv(x, 2), x.repeat_interleave(2, 1))


def stock_attention(sdpa_attention_forward) -> None:
    """(B, heads, T, dim) under a boolean mask -> (B, T, heads, dim) and no weights."""
    module = nn.Module()
    module.num_key_value_groups, module.is_causal = 2, True
    q, k, v = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8)
    mask = torch.ones(1, 1, 5, 5, dtype=torch.bool).tril()
    out, weights = sdpa_attention_forward(module, q, k, v, mask, scaling=0.5)
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    scores = (q @ k.transpose(2, 3) * 0.5).masked_fill(~mask, -torch.inf)
    assert weights is None and torch.allclose(out, (scores.softmax(-1) @ v).transpose(1, 2), atol=1e-5)


def own_attention(functions) -> None:
    """A registered function is called in every layer, and gets a mask of four axes and our keyword as they are."""
    seen = []

    def ours(module, q, k, v, attention_mask, scaling=None, pattern=None, **more):
        seen.append((attention_mask, pattern, module.num_key_value_groups, scaling))
        return functions["sdpa"](module, q, k, v, None, scaling=scaling, is_causal=True)

    functions.register("test_of_versions", ours)
    ALL_MASK_ATTENTION_FUNCTIONS.register("test_of_versions", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    for family in ("qwen", "qwen3", "internvl"):
        language, mask, pattern = small(family).model.language_model, torch.ones(5, 1, 2, 3), object()
        language.config._attn_implementation = "test_of_versions"
        places = torch.arange(6)[None] if family == "internvl" else torch.arange(6).expand(3, 1, -1)
        given = dict(inputs_embeds=torch.randn(1, 6, 32), position_ids=places, use_cache=False)
        with torch.no_grad():
            out = language(attention_mask=mask, pattern=pattern, **given).last_hidden_state
        assert out.shape == (1, 6, 32) and out.isfinite().all()
        assert len(seen) == 2 and all(m is mask and p is pattern and n == 2 for m, p, n, _ in seen), family
        seen.clear()


def rotary_tables(init_weights) -> None:
    """It computes a module's rotary table again after to_empty."""
    for family in ("qwen", "qwen3", "internvl", "judge"):
        whole, empty = small(family), small(family, meta=True).to_empty(device="cpu")
        for module in empty.modules():
            if list(module.buffers(recurse=False)):
                init_weights(empty, module)
        tables = dict(empty.named_buffers())
        assert tables and all(torch.equal(x, tables[name]) for name, x in whole.named_buffers()), family


def recomputed_layers(enable) -> None:
    """Every decoder layer is computed again in the backward pass, and the gradient is the same."""
    hf = small("judge").train()
    ids = torch.arange(6)[None]

    def gradient():
        hf.zero_grad()
        hf(input_ids=ids, labels=ids).loss.backward()
        return hf.model.layers[0].mlp.up_proj.weight.grad.clone()

    plain, calls = gradient(), []
    enable(hf.model, dict(use_reentrant=False))
    hf.model.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    assert torch.allclose(gradient(), plain, atol=1e-7)
    assert len(calls) == 2, f"a layer ran {len(calls)} times"


def one_tensor(tie_weights) -> None:
    """Head and embeddings become one tensor where the configuration says so."""
    config = Qwen2Config(**TEXT, tie_word_embeddings=True)
    hf = transformers.Qwen2ForCausalLM(config)
    hf.lm_head.weight = nn.Parameter(torch.zeros(64, 32))
    tie_weights(hf)
    assert hf.lm_head.weight is hf.model.embed_tokens.weight


def tiles(processor_class) -> None:
    """2400 x 1500 pixels become six tiles and a thumbnail when tiling is asked for, else one."""
    processor = processor_class(size=dict(height=448, width=448))
    for on, count in ((True, 7), (False, 1)):
        made = processor([pub.picture(2400, 1500)], crop_to_patches=on, max_patches=12, return_tensors="pt")
        assert made["pixel_values"].shape == (count, 3, 448, 448)


def grid(processor_class) -> None:
    """640 x 480 pixels become 34 x 46 patches, within the limits of `size`."""
    processor = processor_class()
    processor.size = dict(shortest_edge=3136, longest_edge=12845056)
    made = processor([pub.picture(640, 480)], return_tensors="pt")
    assert made["image_grid_thw"].tolist() == [[1, 34, 46]] and made["pixel_values"].shape == (34 * 46, 3 * 2 * 14 * 14)


def rotary_places(get_rope_index) -> None:
    """Two texts around a picture of 2 x 3 image tokens."""
    ids = torch.tensor([[1, 60, 60, 60, 60, 60, 60, 2]])
    grid = torch.tensor([[1, 4, 6]])
    places, _ = get_rope_index(small("qwen").model, ids, (ids == 60).int(), image_grid_thw=grid)
    time, row, column = places[:, 0].tolist()
    assert time == [0, 1, 1, 1, 1, 1, 1, 4]
    assert row == [0, 1, 1, 1, 2, 2, 2, 4] and column == [0, 1, 2, 3, 1, 2, 3, 4]


def keys_in_layers(cache_class) -> None:
    """A cache made from a configuration holds keys and values layer by layer, (B, KV heads, T, dim)."""
    hf = small("judge")
    cache = cache_class(config=hf.config)
    hf.model(input_ids=torch.arange(6)[None], past_key_values=cache, use_cache=True)
    assert len(cache.layers) == 2 and cache.layers[1].keys.shape == cache.layers[1].values.shape == (1, 2, 6, 8)


def qwen_patches(get_image_features) -> None:
    """One row of patches for every image token, under pooler_output."""
    base, grid = small("qwen").model, torch.tensor([[1, 4, 6]])
    out = get_image_features(base, pixel_values=torch.randn(24, 3 * 2 * 7 * 7), image_grid_thw=grid).pooler_output
    assert [x.shape for x in out] == [(6, 32)]


def deepstack_patches(get_image_features) -> None:
    """Beside that the same for every merger of deepstack: a picture each, or all of them in one (transformers 5.17)."""
    base, grid = small("qwen3").model, torch.tensor([[1, 4, 6]])
    out = get_image_features(base, pixel_values=torch.randn(24, 3 * 2 * 7 * 7), image_grid_thw=grid)
    parts = (out.pooler_output, *out.deepstack_features)
    assert [(torch.cat(x) if isinstance(x, list | tuple) else x).shape for x in parts] == [(6, 32)] * 3


def added_pictures(forward) -> None:
    """Behind layer i what is given for it is added to the rows of hidden states that the places name."""
    language, rows, seen = small("qwen3").model.language_model, torch.arange(2), []
    for layer in language.layers:
        layer.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    given = dict(inputs_embeds=torch.randn(2, 6, 32), position_ids=torch.arange(6).expand(3, 2, -1), use_cache=False)
    added = torch.randn(2, 6, 32)
    with torch.no_grad():
        forward(language, visual_pos_masks=rows, deepstack_visual_embeds=[added], **given)
    assert torch.equal(seen[1][0], seen[0][1] + added)


def internvl_patches(get_image_features) -> None:
    """A quarter of the patches of every tile, under pooler_output."""
    out = get_image_features(small("internvl").model, pixel_values=torch.randn(2, 3, 28, 28)).pooler_output
    assert out.flatten(0, -2).shape == (2 * 4, 32)


def some_logits(forward) -> None:
    """The head is applied at the given places only; a four-dimensional mask is taken as it is."""
    ids, mask = torch.arange(6)[None], torch.ones(1, 1, 6, 6, dtype=torch.bool).tril()
    hf, places = small("judge"), torch.tensor([1, 4])
    few = forward(hf, input_ids=ids, attention_mask=mask, logits_to_keep=places, use_cache=False).logits
    assert torch.allclose(few, forward(hf, input_ids=ids, use_cache=False).logits[:, places], atol=1e-6)


def empty_process_group(store_class) -> None:
    """A store that needs no port, for one process."""
    store_class().set("a", "b")


@dataclass(frozen=True)
class Used:
    """Something that we reach into: where it is, which arguments we give it, what for, and what it has to do."""

    where: str  # module:attribute.attribute
    takes: str  # names of the arguments that we pass, or nothing
    what_for: str
    works: Callable | None = None


USED = [
    Used("transformers.core_model_loading:revert_weight_conversion", "", "tensor names in files", file_names),
    Used("transformers.integrations.sdpa_attention:repeat_kv", "", "padded attention on a GPU", heads_repeated),
    Used(
        "transformers.integrations.sdpa_attention:sdpa_attention_forward",
        "scaling",
        "attention without a pattern",
        stock_attention,
    ),
    Used("transformers.modeling_utils:ALL_ATTENTION_FUNCTIONS", "", "tree and decode attention", own_attention),
    Used("transformers:PreTrainedModel._init_weights", "module", "rotary tables after loading", rotary_tables),
    Used(f"transformers:PreTrainedModel.{CHECKPOINTING}", "", "recompute in config.py", recomputed_layers),
    Used("transformers:PreTrainedModel.tie_weights", "", "tied heads", one_tensor),
    Used("transformers:PreTrainedConfig._attn_implementation", "", "naming our attention"),
    Used(
        "transformers.models.got_ocr2.image_processing_pil_got_ocr2:GotOcr2ImageProcessorPil",
        "",
        "InternVL's tiles without torchvision",
        tiles,
    ),
    Used(
        "transformers.models.qwen2_vl.image_processing_pil_qwen2_vl:Qwen2VLImageProcessorPil",
        "",
        "Qwen's patches without torchvision",
        grid,
    ),
    Used("transformers:Qwen2_5_VLModel.get_rope_index", "image_grid_thw", "rotary places", rotary_places),
    Used("transformers:Qwen2_5_VLModel.get_image_features", "pixel_values image_grid_thw", "patches", qwen_patches),
    Used("transformers:Qwen3VLModel.get_rope_index", "image_grid_thw", "rotary places", rotary_places),
    Used("transformers:Qwen3VLModel.get_image_features", "pixel_values image_grid_thw", "patches", deepstack_patches),
    Used("transformers:Qwen3VLTextModel.forward", "", "pictures in the first layers", added_pictures),
    Used("transformers:InternVLModel.get_image_features", "pixel_values", "patches", internvl_patches),
    Used("transformers:DynamicCache", "config", "prefill", keys_in_layers),
    Used("transformers:Qwen2ForCausalLM.forward", "logits_to_keep", "the judge in packed rows", some_logits),
    Used("torch.distributed:HashStore", "", "a process group of one process", empty_process_group),
    Used("torch.distributed.fsdp:MixedPrecisionPolicy", "cast_forward_inputs", "bf16 computation of fp32 masters"),
    Used("torch.distributed.fsdp:register_fsdp_forward_method", "", "prefill and decode of a sharded model"),
    Used("torch.distributed.checkpoint.api:CheckpointException", "", "damaged checkpoints are named"),
    Used("torch.distributed.checkpoint.state_dict:get_state_dict", "model optimizers", "resume"),
    Used("torch.nn.attention.varlen:varlen_attn", "cu_seq_q cu_seq_k max_q max_k", "attention on a GPU"),
    Used("torch.backends.cuda:enable_cudnn_sdp", "", "NaN gradients under a mask"),
]


@pytest.mark.parametrize("used", USED, ids=lambda used: used.where.partition(":")[2])
def test_what_we_take_from_inside_the_libraries(used):
    module, _, name = used.where.partition(":")
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    try:
        thing = import_module(module)
        for part in name.split("."):
            thing = getattr(thing, part)
        arguments = inspect.signature(thing).parameters if used.takes else {}
        missing = [argument for argument in used.takes.split() if argument not in arguments]
        assert not missing, f"it does not take {', '.join(missing)}"
        if used.works:
            used.works(thing)
    except Exception as error:
        short = f"{type(error).__name__}: {error}".splitlines()[0]
        raise AssertionError(f"{used.where} broke in {versions}; we use it for {used.what_for} ({short})") from error


def requirements(*files: str) -> dict[str, Requirement]:
    """The requirements of these files by name."""
    lines = [line for file in files for line in (HOME / file).read_text().splitlines()]
    found = [Requirement(line) for line in lines if line and line[0] not in "#-"]
    return {one.name.lower(): one for one in found}


def test_every_requirement_has_an_exact_version_in_its_range():
    pinned = requirements("constraints.txt")
    for name, wanted in requirements("requirements.txt", "requirements-dev.txt").items():
        (exact,) = pinned[name].specifier
        assert exact.operator == "==" and wanted.specifier.contains(exact.version), f"{wanted}: pinned is {exact}"
