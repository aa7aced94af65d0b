"""A vision-language model to train: loading, encoding pictures and chat, the packed row, token log-probs, export.

The packed row is the heart. All responses to one question lie in ONE row behind one copy of picture and question:

    token      picture + question | response 1 | response 2 | ... | response N | padding
    segment    0 0 0 0 0 0 0 0 0 0| 1 1 1 1 1 1| 2 2 2 2    |     | N N N N N  | -1
    position   0 1 2 ........ P-1 | P P+1 ...  | P P+1 ...  |     | P P+1 ...

A token sees the earlier tokens of its own response and of the question, nothing else (a tree mask), and the positions
of every response go on where the question ends. So each response gets exactly the numbers that it would get alone, at
the price of one prompt instead of N (tested: log-probs, gradients, discriminator scores).

A picture is encoded by the vision tower once (`see`); student, reference and rollout replica share its patches while
the tower is frozen, and each applies its own projector. What is special to a model family stands in FAMILIES, nowhere
else.

Training is sharded over the ranks (FSDP2), one process being the smallest case: `load` builds a model without memory,
shards it, and every rank reads its own slices of the safetensors files into fp32 masters. The rollout replica is whole
on every rank.

Left out on purpose: video, attention kernels of our own, quantisation, tensor parallelism.
"""

import atexit
import contextlib
import copy
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as futures_wait
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    InternVLConfig,
    InternVLForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers import logging as transformers_logging
from transformers.core_model_loading import revert_weight_conversion
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from data import WORDS, Question, UserError

transformers_logging.disable_progress_bar()


# ------------------------------------------------------------------------------------------------ what a family is
@dataclass(frozen=True)
class Family:
    """All that differs between model families. `base` below is the stock model without its language head
    (`hf.model`).
    """

    model: type  # the stock transformers class
    image_processor: type  # its PIL image processor (the fast ones need torchvision)
    vision: str  # where the vision tower lies below base
    vision_blocks: str  # where its layers lie below base
    projector: str  # where the part that maps patches to the language model's width lies below base
    patch_width: Callable  # base -> numbers per image token before the projector
    tensors: tuple[str, ...]  # what of the image processor's output the vision tower takes
    picture_tokens: Callable  # (base config, one picture's tensors) -> image tokens
    picture_sign: str  # what the chat template writes for a picture
    picture_text: Callable  # number of image tokens -> the text that takes the sign's place
    positions: Callable  # (base, ids (P,), pixels or None) -> rotary positions (3, P); families with one axis repeat it
    as_called: Callable  # image processor -> None: sets what the stock processor sets when it is called
    limit: Callable  # (image processor, base config, most image tokens of a picture) -> None: sets it
    tiny: Callable  # (width, layers) -> (config, tokenizer, image processor) of a tiny model of the real classes
    full: Callable  # (the tiny config, text sizes, vision sizes) -> (config, image processor) of a published model


CHAT = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]  # the control tokens of every tiny model


def tiny_tokenizer(special: list[str], picture: str, cut: int | None = None) -> PreTrainedTokenizerFast:
    """A real tokenizer with a small vocabulary: the words of the tiny world, single bytes for any other text.

    special holds the control tokens, `picture` is what the chat template writes for a picture. A word is one token, or
    with `cut` one token for every `cut` characters of it, the leading blank included.
    """
    tags = ["<response>", "</response>"]  # of the discriminator's template
    words = [w if w in ".?:;," else "\u0120" + w for w in WORDS]  # \u0120 is the byte-level sign for a leading blank
    pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    if cut:
        words = sorted({w[i : i + cut] for w in words for i in range(0, len(w), cut)})
        chunks = pre_tokenizers.Split(Regex(f".{{1,{cut}}}"), "isolated")
        pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizer, chunks])
    vocabulary = special + tags + sorted(pre_tokenizers.ByteLevel.alphabet()) + words
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(vocabulary))}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))  # a known word is one token
    backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    backend.add_tokens([AddedToken(t, special=False, normalized=False) for t in tags])
    tok = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tok.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}{% if m.content is string %} {{ m.content }}"
        "{% else %}{% for c in m.content %}{% if c.type == 'image' %}" + picture + "{% else %} {{ c.text }}"
        "{% endif %}{% endfor %}{% endif %}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
    )
    return tok


def tiny_text(tok, width: int, layers: int, **rope) -> dict:
    """The language model of a tiny configuration; `rope` is what the family adds to its rotary settings."""
    text = dict(hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers, vocab_size=len(tok))
    text |= dict(num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024, bos_token_id=None)
    text |= dict(eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id, tie_word_embeddings=True)
    text |= dict(rope_parameters=dict(rope_type="default", rope_theta=1000.0, **rope))
    return text | dict(initializer_range=0.1)  # 0.02 learns several times slower at this size


def plain_positions(base, ids: torch.Tensor, pixels: dict | None) -> torch.Tensor:
    """Rotary positions of a model with one axis: the place in the prompt."""
    return torch.arange(len(ids)).expand(3, -1)


# ---- Qwen2.5-VL: pictures of any size, three rotary axes
def qwen_positions(base, ids: torch.Tensor, pixels: dict | None) -> torch.Tensor:
    """Rotary positions of a prompt, by the stock function: time, row and column inside a picture, equal in text."""
    if pixels is None:
        return plain_positions(base, ids, pixels)
    is_picture = (ids == base.config.image_token_id).int()[None]
    return base.get_rope_index(ids[None], is_picture, image_grid_thw=pixels["image_grid_thw"])[0][:, 0]


def tiny_qwen(width: int, layers: int) -> tuple:
    """0.5 M (width 96) or 0.8 M (width 128) parameters; 7-pixel patches, so a cell of the tiny world is one image
    token.
    """
    special = [*CHAT, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tok = tiny_tokenizer(special, "<|vision_start|><|image_pad|><|vision_end|>")
    head = width // 4
    axis = head // 6
    vision = dict(depth=2, hidden_size=64, intermediate_size=128, num_heads=4, patch_size=7, spatial_merge_size=2)
    vision |= dict(temporal_patch_size=2, window_size=56, out_hidden_size=width, fullatt_block_indexes=[0, 1])
    config = Qwen2_5_VLConfig(
        text_config=tiny_text(tok, width, layers, mrope_section=[head // 2 - 2 * axis, axis, axis]),
        vision_config=vision | dict(initializer_range=0.1),
        image_token_id=tok.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tok.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tok.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tok.convert_tokens_to_ids("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    size = dict(patch_size=7, merge_size=2, temporal_patch_size=2)
    size |= dict(size={"shortest_edge": 42 * 42, "longest_edge": 56 * 56})
    return config, tok, Qwen2VLImageProcessorPil(image_mean=[0.5] * 3, image_std=[0.5] * 3, **size)


def qwen_limit(processor, config, tokens: int) -> None:
    """At most `tokens` image tokens a picture (28 x 28 pixels each at real size)."""
    side = processor.patch_size * processor.merge_size
    processor.size = {"shortest_edge": 4 * side**2, "longest_edge": tokens * side**2}


def full_qwen(tiny, text: dict, vision: dict):
    """Configuration and image processor of a published Qwen2.5-VL; special ids as in the tiny one."""
    text |= dict(rope_parameters=dict(rope_type="default", rope_theta=1e6, mrope_section=[16, 24, 24]))
    vision |= dict(out_hidden_size=text["hidden_size"], patch_size=14, window_size=112)
    vision |= dict(spatial_merge_size=2, temporal_patch_size=2)
    names = ("image_token_id", "video_token_id", "vision_start_token_id")
    ids = {name: getattr(tiny, name) for name in names}
    more = dict(tie_word_embeddings=text["tie_word_embeddings"], **ids)
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, **more), Qwen2VLImageProcessorPil()


# ---- InternVL: pictures become one tile or several of one fixed size
def tiny_internvl(width: int, layers: int) -> tuple:
    """The same sizes as the tiny Qwen: 42 x 42 tiles of 7-pixel patches, nine image tokens a tile. Its tokenizer cuts
    words into pieces of five characters, so that text, not tokens, has to cross between the families.
    """
    tok = tiny_tokenizer([*CHAT, "<img>", "</img>", "<IMG_CONTEXT>"], "<IMG_CONTEXT>", cut=5)
    vision = dict(num_hidden_layers=2, hidden_size=64, intermediate_size=128, num_attention_heads=4)
    vision |= dict(image_size=[42, 42], patch_size=[7, 7], use_qk_norm=True, norm_type="rms_norm")
    config = InternVLConfig(
        text_config=tiny_text(tok, width, layers) | dict(model_type="qwen2"),
        vision_config=vision | dict(layer_scale_init_value=1.0, initializer_range=0.1),
        image_token_id=tok.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=9,
        downsample_ratio=0.5,
        tie_word_embeddings=True,
    )
    size = dict(size={"height": 42, "width": 42}, crop_to_patches=True)
    return config, tok, GotOcr2ImageProcessorPil(image_mean=[0.5] * 3, image_std=[0.5] * 3, **size)


def internvl_tiles(processor) -> None:
    """Cut large pictures into tiles: the folder's file says no, and the stock processor says yes at every call."""
    processor.crop_to_patches = True


def internvl_limit(processor, config, tokens: int) -> None:
    """At most `tokens` image tokens a picture: 256 a tile at real size; several tiles have a thumbnail besides."""
    processor.max_patches = max(1, tokens // config.image_seq_length - 1)


def full_internvl(tiny, text: dict, vision: dict):
    """Configuration and image processor of a published InternVL3; special ids as in the tiny one."""
    text |= dict(rope_parameters=dict(rope_type="default", rope_theta=1e6))
    vision |= dict(image_size=[448, 448], patch_size=[14, 14])
    more = dict(image_token_id=tiny.image_token_id, tie_word_embeddings=text["tie_word_embeddings"])
    more |= dict(text_config=text, vision_config=vision, image_seq_length=256, downsample_ratio=0.5)
    pictures = GotOcr2ImageProcessorPil(size={"height": 448, "width": 448}, crop_to_patches=True)
    return InternVLConfig(**more), pictures


FAMILIES = {
    "qwen2_5_vl": Family(
        model=Qwen2_5_VLForConditionalGeneration,
        image_processor=Qwen2VLImageProcessorPil,
        vision="visual",
        vision_blocks="visual.blocks",
        projector="visual.merger",
        patch_width=lambda base: base.visual.merger.hidden_size,
        tensors=("pixel_values", "image_grid_thw"),
        picture_tokens=lambda c, x: int(x["image_grid_thw"].prod()) // c.vision_config.spatial_merge_size**2,
        picture_sign="<|image_pad|>",
        picture_text=lambda count: "<|image_pad|>" * count,
        positions=qwen_positions,
        as_called=lambda processor: None,
        limit=qwen_limit,
        tiny=tiny_qwen,
        full=full_qwen,
    ),
    "internvl": Family(
        model=InternVLForConditionalGeneration,
        image_processor=GotOcr2ImageProcessorPil,
        vision="vision_tower",
        vision_blocks="vision_tower.encoder.layer",
        projector="multi_modal_projector",
        patch_width=lambda base: base.multi_modal_projector.layer_norm.normalized_shape[0],
        tensors=("pixel_values",),
        picture_tokens=lambda c, x: len(x["pixel_values"]) * c.image_seq_length,
        picture_sign="<IMG_CONTEXT>",
        picture_text=lambda count: "<img>" + "<IMG_CONTEXT>" * count + "</img>",
        positions=plain_positions,
        as_called=internvl_tiles,
        limit=internvl_limit,
        tiny=tiny_internvl,
        full=full_internvl,
    ),
}


@dataclass(frozen=True)
class Tiny:
    """A tiny model of a real class. A teacher has a voice: the way of speaking (data.py) that it is trained in."""

    family: str
    width: int
    layers: int = 3
    voice: str = ""


TINY = {
    "tiny-qwen": Tiny("qwen2_5_vl", 96),
    "tiny-qwen-teacher": Tiny("qwen2_5_vl", 128, voice="a"),
    "tiny-qwen-20m": Tiny("qwen2_5_vl", 384, 11),  # for bench.py
    "tiny-internvl": Tiny("internvl", 96),
    "tiny-internvl-teacher": Tiny("internvl", 128, voice="b"),
}


@dataclass(frozen=True)
class Full:
    """A published checkpoint: its place on the hub, and the sizes that --plan and --random-weights need offline."""

    family: str
    hub: str
    text: tuple  # hidden, intermediate, layers, heads, KV heads, vocabulary
    vision: dict | None = None  # None: a language model alone
    tied: bool = False
    language: str = "qwen2"  # the stock type of InternVL's language model: qwen2, or qwen3 with heads of 128


QWEN_VIT = dict(depth=32, hidden_size=1280, num_heads=16, fullatt_block_indexes=[7, 15, 23, 31])
QWEN_VIT, QWEN_VIT_72B = (QWEN_VIT | dict(intermediate_size=x) for x in (3420, 3456))
VIT_300M = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16)
VIT_300M |= dict(norm_type="layer_norm", use_qk_norm=False, attention_bias=True)
VIT_6B = dict(hidden_size=3200, intermediate_size=12800, num_hidden_layers=45, num_attention_heads=25)
VIT_6B |= dict(norm_type="rms_norm", use_qk_norm=True, attention_bias=False)
FULL = {
    "qwen2.5-vl-3b": Full(
        "qwen2_5_vl", "Qwen/Qwen2.5-VL-3B-Instruct", (2048, 11008, 36, 16, 2, 151936), QWEN_VIT, tied=True
    ),
    "qwen2.5-vl-7b": Full("qwen2_5_vl", "Qwen/Qwen2.5-VL-7B-Instruct", (3584, 18944, 28, 28, 4, 152064), QWEN_VIT),
    "internvl3-1b": Full("internvl", "OpenGVLab/InternVL3-1B-hf", (896, 4864, 24, 14, 2, 151674), VIT_300M),
    "internvl3-2b": Full("internvl", "OpenGVLab/InternVL3-2B-hf", (1536, 8960, 28, 12, 2, 151674), VIT_300M),
    "internvl3-8b": Full("internvl", "OpenGVLab/InternVL3-8B-hf", (3584, 18944, 28, 28, 4, 151674), VIT_300M),
    "internvl3.5-1b": Full(
        "internvl", "OpenGVLab/InternVL3_5-1B-HF", (1024, 3072, 28, 16, 8, 151936), VIT_300M, language="qwen3"
    ),
    "internvl3.5-2b": Full(
        "internvl", "OpenGVLab/InternVL3_5-2B-HF", (2048, 6144, 28, 16, 8, 151936), VIT_300M, language="qwen3"
    ),
    "internvl3.5-4b": Full(
        "internvl", "OpenGVLab/InternVL3_5-4B-HF", (2560, 9728, 36, 32, 8, 151936), VIT_300M, language="qwen3"
    ),
    "internvl3.5-8b": Full(
        "internvl", "OpenGVLab/InternVL3_5-8B-HF", (4096, 12288, 36, 32, 8, 151936), VIT_300M, language="qwen3"
    ),
    "qwen2.5-vl-72b": Full(
        "qwen2_5_vl", "Qwen/Qwen2.5-VL-72B-Instruct", (8192, 29568, 80, 64, 8, 152064), QWEN_VIT_72B
    ),
    "internvl3-78b": Full("internvl", "OpenGVLab/InternVL3-78B-hf", (8192, 29568, 80, 64, 8, 151674), VIT_6B),
}

JUDGES = {  # text-only language models that --judge can name
    "qwen2.5-32b": Full("qwen2", "Qwen/Qwen2.5-32B-Instruct", (5120, 27648, 64, 40, 8, 152064)),
    "qwen2.5-7b": Full("qwen2", "Qwen/Qwen2.5-7B-Instruct", (3584, 18944, 28, 28, 4, 152064)),
    "qwen2.5-1.5b": Full("qwen2", "Qwen/Qwen2.5-1.5B-Instruct", (1536, 8960, 28, 12, 2, 151936), tied=True),
}


def text_sizes(full: Full) -> dict:
    """A published model's language part as keyword arguments of its stock configuration."""
    names = "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads vocab_size"
    sizes = dict(zip(names.split(), full.text, strict=True), tie_word_embeddings=full.tied)
    if full.family == "internvl":
        sizes |= dict(model_type=full.language)
    if full.language == "qwen3":
        sizes |= dict(head_dim=128)
    return sizes | dict(max_position_embeddings=32768)


# ------------------------------------------------------------------------------------------------ prompts, packed rows
@dataclass
class Prompt:
    """An encoded prompt: ids (P,), rotary positions (3, P), the tensors of each picture, and their patches once
    seen.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    looked: list[dict]
    patches: torch.Tensor | None = None

    @property
    def pixels(self) -> dict | None:
        """The tensors of all its pictures, joined along the first axis; None without a picture."""
        return join_pixels([self]) if self.looked else None


@dataclass
class Batch:
    """B packed rows that hold R responses; the module docstring shows one row.

    ids, segment (B, T); positions (3, B, T); patches (image tokens, width) or pixels; and per response, padded to the
    longest: source, target (R, L): the flat place (in B * T) of the state that predicts a token, and that token;
    mask (R, L): which of them count; last (R,): the flat place of the response's last token; place (R, L): that of each
    token of a response, -1 behind the last; prompt: tokens of the longest prompt.
    """

    ids: torch.Tensor
    segment: torch.Tensor
    positions: torch.Tensor
    source: torch.Tensor
    target: torch.Tensor
    mask: torch.Tensor
    last: torch.Tensor
    place: torch.Tensor
    prompt: int
    pixels: dict | None = None
    patches: torch.Tensor | None = None
    blank: bool = False  # the pixels are a blank picture's, to which no token belongs

    @property
    def tree(self) -> torch.Tensor:
        """(B, 1, T, T) boolean attention mask: causal, and only within the own segment or to the prompt (segment 0).

        For models that take a plain mask only (the judge); ours get `Branches`, which says the same in less.
        """
        s = self.segment
        causal = torch.ones(s.shape[1], s.shape[1], dtype=torch.bool, device=s.device).tril()
        return (causal & ((s[:, None, :] == 0) | (s[:, :, None] == s[:, None, :])))[:, None]


def pack(
    prompts: list[Prompt],
    rows: list[list[list[int]]],
    skip: list[list[int]] | None = None,
    device="cpu",
    blank: dict | None = None,
) -> Batch:
    """One packed row per prompt: rows[b] are the token lists behind prompts[b]; R = sum of their number, in that order.

    skip[b][i] leading tokens of a row are context, not targets (0 without `skip`). Rows must not be empty. The length T
    is padded to a multiple of 8 (64 on a GPU).

    Rows may be absent (rows[b] == []): then the batch holds bare prompts. Where the vision tower is trained, `blank`
    (a blank picture's tensors) stands in for a batch without pictures: ranks with pictures wait for this one's tower.

    Example: a prompt of 3 tokens and rows [7, 8], [9]: ids 3 + 2 + 1, positions 0 1 2 | 3 4 | 3; sources 2 3 | 2.
    """
    align = 64 if torch.device(device).type == "cuda" else 8
    length = max(len(p.ids) + sum(map(len, r)) for p, r in zip(prompts, rows, strict=True))
    width = -(-length // align) * align
    count = sum(map(len, rows))
    longest = max((len(x) for r in rows for x in r), default=0)
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    segment, positions = torch.full_like(ids, -1), torch.zeros(3, *ids.shape, dtype=torch.long)
    source, target, place = (torch.full((count, longest), x, dtype=torch.long) for x in (0, 0, -1))
    mask, last = torch.zeros(count, longest, dtype=torch.bool), torch.zeros(count, dtype=torch.long)
    r = 0
    for b, (prompt, responses) in enumerate(zip(prompts, rows, strict=True)):
        at, begin = len(prompt.ids), int(prompt.positions.max()) + 1
        ids[b, :at], segment[b, :at], positions[:, b, :at] = prompt.ids, 0, prompt.positions
        for i, tokens in enumerate(responses):
            n = len(tokens)
            here = torch.arange(n)
            ids[b, at : at + n], segment[b, at : at + n] = torch.tensor(tokens), i + 1
            positions[:, b, at : at + n] = begin + here
            source[r, 0], source[r, 1:n] = len(prompt.ids) - 1 + b * width, at + b * width + here[:-1]
            target[r, :n] = ids[b, at : at + n]
            mask[r, (skip[b][i] if skip else 0) : n] = True
            place[r, :n], last[r] = at + b * width + here, at + n - 1 + b * width
            at, r = at + n, r + 1
    prompt = max(len(p.ids) for p in prompts)
    batch = Batch(ids, segment, positions, source, target, mask, last, place, prompt)
    if any(p.looked for p in prompts):
        if all(p.patches is not None for p in prompts if p.looked):
            batch.patches = torch.cat([p.patches for p in prompts if p.looked])
        else:
            batch.pixels = join_pixels(prompts)
    elif blank is not None:
        batch.pixels, batch.blank = blank, True
    for name, value in vars(batch).items():
        if isinstance(value, torch.Tensor):
            setattr(batch, name, value.to(device))
    if batch.pixels:
        batch.pixels = {name: x.to(device) for name, x in batch.pixels.items()}
    return batch


def shared_prefix(rows: list[list[int]]) -> int:
    """How many leading tokens all rows share, at most all but the last token of the shortest: [1 2 3], [1 2] -> 1."""
    limit = min(map(len, rows)) - 1
    return next((i for i in range(limit) if any(r[i] != rows[0][i] for r in rows)), limit)


def join_pixels(prompts: list[Prompt]) -> dict:
    """The picture tensors of several prompts in one dict: stock processors lay pictures along the first axis."""
    looked = [x for p in prompts for x in p.looked]
    return {name: torch.cat([x[name] for x in looked]) for name in looked[0]}


# ------------------------------------------------------------------------------------------------ the model
PARTS = ("vision", "embeddings", "attention", "mlp", "head")  # what --frozen can name


class Regroup(nn.Module):
    """Stands in the projector's place while pictures are encoded, so that the patches come out before the
    projection.
    """

    def __init__(self, width: int):
        super().__init__()
        self.width = width

    def forward(self, patches):
        return patches.reshape(-1, self.width)


def encode_pictures(base: nn.Module, family: Family, pixels: dict) -> torch.Tensor:
    """Stock vision tower without its projector: picture tensors -> patches (image tokens, patch width)."""
    parent, name = base.get_submodule(family.projector.rpartition(".")[0]), family.projector.rpartition(".")[2]
    projector = getattr(parent, name)
    setattr(parent, name, Regroup(family.patch_width(base)))
    try:
        out = base.get_image_features(**pixels).pooler_output
    finally:
        setattr(parent, name, projector)
    return torch.cat([x.flatten(0, -2) for x in out]) if isinstance(out, list | tuple) else out.flatten(0, -2)


def trunk(base: nn.Module, family: Family, batch: Batch, cache=None) -> torch.Tensor:
    """Packed rows through the stock language model: -> last hidden states, flat (B * T, H).

    Patches (already seen) are projected here; raw pixels go through the vision tower first, with its gradient. `cache`
    takes the keys and values; a batch of bare prompts (no responses) needs no mask, since nobody looks at the padding
    behind.
    """
    embedded = base.get_input_embeddings()(batch.ids)
    patches = batch.patches if batch.pixels is None else encode_pictures(base, family, batch.pixels)
    projector = base.get_submodule(family.projector)
    trained = torch.is_grad_enabled() and any(p.requires_grad for p in projector.parameters())
    if patches is None and trained:  # every rank has to give the projector a gradient, if only of zeros
        patches = embedded.new_zeros(1, family.patch_width(base))
        pictures = project(projector, patches)
        embedded = embedded + 0 * pictures.sum()
    elif patches is not None:
        pictures = project(projector, patches).to(embedded.dtype)
        if batch.blank:
            embedded = embedded + 0 * pictures.sum()
        else:
            embedded = embedded.masked_scatter((batch.ids == base.config.image_token_id)[..., None], pictures)
    out = base.language_model(
        inputs_embeds=embedded,
        attention_mask={"full_attention": Branches(batch) if len(batch.last) else None},
        position_ids=language_positions(base, batch.positions),
        past_key_values=cache,
        use_cache=cache is not None,
    )
    return out.last_hidden_state.flatten(0, 1)


class Branches:
    """The tree mask for `tree_attention`: stock code hands it from layer to layer in the mask's place."""

    def __init__(self, batch: Batch):
        self.prompt, own = batch.prompt, batch.place >= 0
        self.place, self.row = batch.place.clamp(min=0), batch.place[:, 0] // batch.ids.shape[1]
        self.live = own.flatten().nonzero()[:, 0]  # found once: in every layer it would wait for the GPU
        self.there = batch.place.flatten()[self.live]
        length = (batch.segment == 0).sum(1)[self.row]  # of each response's prompt
        before = torch.arange(self.prompt, device=length.device) < length[:, None]
        causal = own.new_ones(own.shape[1], own.shape[1]).tril() & own[:, None]
        self.mask = torch.cat([before[:, None].expand(-1, causal.shape[1], -1), causal], 2)[:, None]  # (R, 1, L, P + L)


def tree_attention(module, q, k, v, attention_mask, scaling=None, **more):
    """Stock sdpa, and under a tree mask the same numbers without the masked part, which grows with the square of a row:
    prompts see themselves, then each response sees its prompt and itself. q, k, v (B, heads, T, dim).
    """
    if not isinstance(tree := attention_mask, Branches):
        return sdpa_attention_forward(module, q, k, v, attention_mask, scaling=scaling, **more)
    k, v = (repeat_kv(x, module.num_key_value_groups) for x in (k, v))
    B, H, T, dim = q.shape
    of_prompts = [x[:, :, : tree.prompt] for x in (q, k, v)]
    out = F.scaled_dot_product_attention(*of_prompts, is_causal=True, scale=scaling).transpose(1, 2)
    out = F.pad(out, (0, 0, 0, 0, 0, T - tree.prompt)).flatten(0, 1)
    own = [x.transpose(1, 2).flatten(0, 1)[tree.place].transpose(1, 2) for x in (q, k, v)]  # (R, heads, L, dim)
    seen = [torch.cat([x[tree.row], y], 2) for x, y in zip(of_prompts[1:], own[1:], strict=True)]
    found = F.scaled_dot_product_attention(own[0], *seen, attn_mask=tree.mask, scale=scaling).transpose(1, 2)
    return out.index_copy(0, tree.there, found.flatten(0, 1)[tree.live]).view(B, T, H, dim), None


ALL_ATTENTION_FUNCTIONS.register("sdpa", tree_attention)  # under the stock name: exported configurations stay stock
torch.backends.cuda.enable_cudnn_sdp(False)  # NaN gradients under a mask at lengths of 64 mod 128 (pytorch #196678)


def project(projector: nn.Module, patches: torch.Tensor) -> torch.Tensor:
    """Patches -> what the language model reads; its first layer is a norm over one part of a grouped patch."""
    return projector(patches.reshape(-1, next(projector.parameters()).shape[0]))


def recompute_activations(base: nn.Module) -> None:
    """Keep each layer's input only and recompute the rest in the backward pass. Before transformers 5.23 the function
    has another name.
    """
    name = "activation" if hasattr(base, "activation_checkpointing_enable") else "gradient"
    getattr(base, f"{name}_checkpointing_enable")(dict(use_reentrant=False))


def language_positions(base: nn.Module, positions: torch.Tensor) -> torch.Tensor:
    """(3, B, T) for language models with three rotary axes, (B, T) for those with one."""
    axes = (getattr(base.config.get_text_config(), "rope_parameters", None) or {}).get("mrope_section")
    return positions if axes else positions[0]


class Fp32Product(torch.autograd.Function):
    """hidden (N, H) times weight (V, H), both bf16 -> (N, V) accumulated and kept in fp32.

    A bf16 result would move the log-prob of a token by about 0.03 nats at a vocabulary of 152k. The gradients are those
    of the bf16 product.
    """

    @staticmethod
    def forward(ctx, hidden, weight):
        ctx.save_for_backward(hidden, weight)
        if hidden.is_cuda:
            return torch.mm(hidden, weight.t(), out_dtype=torch.float32)
        return hidden.float() @ weight.t().float()  # there is no such kernel for a CPU

    @staticmethod
    def backward(ctx, gradient):
        hidden, weight = ctx.saved_tensors
        gradient = gradient.to(hidden.dtype)
        return gradient @ weight, gradient.t() @ hidden


def head_product(head: nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
    """The product of a head without bias, at least in fp32 whatever its weights are in: (N, H) -> (N, V)."""
    if head.weight.dtype.itemsize >= 4:
        return head(hidden)
    return Fp32Product.apply(hidden.to(head.weight.dtype), head.weight)


def token_logps(hidden, head, target, banned, chunk: int = 1024) -> torch.Tensor:
    """log pi(target) in fp32: hidden (N, H), target (N,) -> (N,), in chunks of tokens.

    With a vocabulary of 152k the logits are the largest tensor of a step: a chunk's are recomputed in the backward
    pass. `banned` (V,) is 0 or -inf: what cannot be sampled has no probability when scored either.
    """

    def part(h, t):
        return -F.cross_entropy(head_product(head, h) + banned, t, reduction="none")

    pieces = zip(hidden.split(chunk), target.split(chunk), strict=True)
    if len(target) > chunk and torch.is_grad_enabled():
        return torch.cat([checkpoint(part, h, t, use_reentrant=False) for h, t in pieces])
    return torch.cat([part(h, t) for h, t in pieces])


class VLM(nn.Module):
    """A stock transformers model with its tokenizer and image processor; calling it gives token log-probs of packed
    rows.
    """

    def __init__(self, hf: nn.Module, tokenizer, image_processor, folder: Path | None = None):
        super().__init__()
        self.hf, self.tokenizer, self.image_processor = hf, tokenizer, image_processor
        self.family, self.folder = FAMILIES[hf.config.model_type], folder  # what is not weights is exported from there
        ends = hf.generation_config.eos_token_id or tokenizer.eos_token_id or []
        self.ends = [ends] if isinstance(ends, int) else list(ends)  # any of them ends a response
        self.end = (
            tokenizer.eos_token_id if tokenizer.eos_token_id in self.ends else (self.ends or [0])[0]
        )  # of teachers
        special = {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        self.control = [tokenizer.added_tokens_decoder[i].content for i in sorted(special)]
        size = hf.config.get_text_config().vocab_size
        self.banned_ids = sorted((special | set(range(len(tokenizer), size))) - set(self.ends))
        self.register_buffer("banned", torch.zeros(size), persistent=False)
        self.settle()

    def settle(self) -> None:
        """What follows once there is memory. Control tokens and ids without a token are banned: never sampled, no
        probability when scored.
        """
        self.hf.tie_weights()
        self.banned.zero_()[self.banned_ids] = -torch.inf

    @property
    def base(self) -> nn.Module:
        """The stock model without its language head."""
        return self.hf.model

    def limit_pictures(self, tokens: int) -> None:
        """At most so many image tokens a picture (0: as the folder says)."""
        if tokens:
            self.family.limit(self.image_processor, self.hf.config, tokens)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.banned.device

    def forward(self, batch: Batch) -> torch.Tensor:
        """Log-probs of the packed responses: (R, L), zero outside batch.mask."""
        hidden = trunk(self.base, self.family, batch)
        logps = token_logps(hidden[batch.source[batch.mask]], self.hf.lm_head, batch.target[batch.mask], self.banned)
        return logps.new_zeros(batch.mask.shape).index_put((batch.mask,), logps)

    # ---- text and pictures in, text out
    def look(self, pictures: list) -> list[dict]:
        """The stock image processor's tensors that the vision tower takes, one dict a picture."""
        made = [self.image_processor([p], return_tensors="pt") for p in pictures]
        return [{name: x[name] for name in self.family.tensors} for x in made]

    def blank(self) -> dict:
        """The tensors of a blank picture, which stands in where a rank has none: vision towers wait for each other."""
        return self.look([Image.new("RGB", (56, 56))])[0]

    def chat_text(self, looked: list[dict], text: str | list[str], system: str = "") -> str:
        """The chat up to where the answer begins, with as many placeholders as each picture has image tokens.

        Pictures stand before the text; a list of texts, one more than pictures, has them in between.
        """
        texts = text if isinstance(text, list) else [""] * len(looked) + [text]
        text, content = "".join(texts), [{"type": "text", "text": texts[0]}]
        for piece in texts[1:]:
            content += [{"type": "image"}, {"type": "text", "text": piece}]
        content = [part for part in content if part.get("text") != ""]
        chat = [{"role": "system", "content": system}] if system else []
        chat.append({"role": "user", "content": content if looked else text})
        text = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        sign = self.family.picture_sign
        pieces = text.split(sign)
        if len(pieces) != len(looked) + 1:
            raise ValueError(f"the text holds {sign!r}, the sign for a picture")
        for i, one in enumerate(looked):
            pieces[i] += self.family.picture_text(self.family.picture_tokens(self.base.config, one))
        return "".join(pieces)

    def chat_ids(self, looked: list[dict], text: str | list[str], system: str = "") -> list[int]:
        """The chat's tokens up to where the answer begins."""
        return self.tokenizer(self.chat_text(looked, text, system), add_special_tokens=False)["input_ids"]

    def encode(self, pictures: list, text: str | list[str], system: str = "") -> Prompt:
        """Pictures and text as the model's chat, up to where the answer begins."""
        looked = self.look(pictures)
        return self.prompt(self.chat_ids(looked, text, system), looked)

    def prompt(self, ids: list[int], looked: list[dict]) -> Prompt:
        """Tokens and picture tensors as a Prompt, with the family's positions."""
        prompt = Prompt(torch.tensor(ids), torch.empty(0), looked)
        prompt.positions = self.family.positions(self.base, prompt.ids, prompt.pixels)
        return prompt

    def encode_question(self, question: Question) -> Prompt:
        """A question as a prompt. Raises UserError naming it when it cannot be encoded or does not fit the
        positions.
        """
        try:
            prompt = self.encode(question.pictures(), question.text)
        except ValueError as error:
            raise UserError(f"question {question.id!r}: {error}; change its picture or text") from None
        limit = self.hf.config.get_text_config().max_position_embeddings
        if len(prompt.ids) >= limit:
            raise UserError(
                f"question {question.id!r}: {len(prompt.ids)} prompt tokens, the model takes {limit}; shorten it"
            )
        return prompt

    # ---- sampling (rollout.py); like forward these gather the weights of a sharded model: all ranks together
    @torch.no_grad()
    def see(self, prompts: list[Prompt]) -> list[Prompt]:
        """Encode the pictures of these prompts once, without gradient (the tower is frozen in RIL); sets their
        patches.
        """
        todo = [p for p in prompts if p.looked and p.patches is None]
        if not todo and isinstance(self, FSDPModule):  # other ranks may have pictures, and their tower waits for ours
            encode_pictures(self.base, self.family, {k: x.to(self.device) for k, x in self.blank().items()})
        if todo:
            pixels = {name: x.to(self.device) for name, x in join_pixels(todo).items()}
            patches = encode_pictures(self.base, self.family, pixels)
            counts = [int((p.ids == self.base.config.image_token_id).sum()) for p in todo]
            for prompt, part in zip(todo, patches.split(counts), strict=True):
                prompt.patches = part
        return prompts

    def prefill(self, batch: Batch, ends: torch.Tensor, cache) -> torch.Tensor:
        """Bare prompts into the cache; ends (B,) are the flat places of their last tokens -> logits there, (B, V)."""
        return self.logits(trunk(self.base, self.family, batch, cache)[ends])

    def decode(self, tokens: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor, cache) -> torch.Tensor:
        """One more token (n,) for n rows: positions (3, n, 1), mask (n, window) over the cache -> logits (n, V)."""
        hidden = self.base.language_model(
            inputs_embeds=self.base.get_input_embeddings()(tokens[:, None]),
            attention_mask={"full_attention": mask[:, None, None]},
            position_ids=language_positions(self.base, positions),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return self.logits(hidden[:, 0])

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Last hidden states (n, H) -> logits (n, V), fp32; what may not be said has -inf."""
        return head_product(self.hf.lm_head, hidden) + self.banned

    # ---- text
    def reply_ids(self, text: str) -> list[int]:
        """A reply's tokens with the end token, as the student would have to write it."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] + [self.end]

    def clean(self, text: str) -> str:
        """Text from elsewhere without anything that the tokenizer would take for a control token."""
        for token in self.control:
            text = text.replace(token, "")
        return text.strip() if not any(token in text for token in self.control) else self.clean(text)

    def text(self, ids: list[int]) -> str:
        """Tokens as text, control tokens and surrounding white space removed."""
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    # ---- weights
    def freeze(self, *parts: str) -> "VLM":
        """Train everything but these of PARTS. The projector counts as language, as in the paper's "all language
        modules".

        Where embeddings and head are tied, freezing one freezes both.
        """
        self.hf.requires_grad_(True)
        layers = self.base.language_model.layers
        modules = {
            "vision": [self.base.get_submodule(self.family.vision)],
            "embeddings": [self.base.get_input_embeddings()],
            "attention": [layer.self_attn for layer in layers],
            "mlp": [layer.mlp for layer in layers],
            "head": [self.hf.lm_head],
        }
        for module in (m for part in parts for m in modules[part]):
            module.requires_grad_(False)
        self.base.get_submodule(self.family.projector).requires_grad_(True)
        return self

    def tensors(self) -> dict[str, torch.Tensor]:
        """The weights under the names that the stock class gives them; shards where it is sharded."""
        return {name.removeprefix("hf."): x for name, x in self.state_dict().items()}

    @property
    def tied(self) -> bool:
        """Are embeddings and head one tensor?"""
        return is_tied(self.hf)

    @torch.no_grad()
    def copy_from(self, other: "VLM") -> None:
        """Take over what another model trains; a whole replica gathers a sharded student. All ranks together."""
        mine = self.tensors()
        trained = {name.removeprefix("hf.") for name, p in other.named_parameters() if p.requires_grad}
        for name, theirs in other.tensors().items():
            if name in trained:
                mine[name].copy_(whole(theirs.to(mine[name].dtype)))


# ------------------------------------------------------------------------------------------------ ranks
def start_ranks(device: str) -> DeviceMesh:
    """Join torchrun's processes, or be the only one; -> the mesh to shard over: (nodes, GPUs) or (GPUs,).

    Over several nodes the shards lie inside a node and only gradients cross (HSDP).
    """
    if not dist.is_initialized():
        backend, local = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", int(os.environ.get("LOCAL_RANK", 0))
        if device == "cuda" and local >= torch.cuda.device_count():
            raise UserError(
                f"{os.environ['LOCAL_WORLD_SIZE']} processes, but this machine shows {torch.cuda.device_count()} GPUs; "
                f"take --nproc_per_node {torch.cuda.device_count()}"
            )
        if device == "cuda":
            torch.cuda.set_device(local)
        alone = {} if "RANK" in os.environ else dict(store=dist.HashStore(), rank=0, world_size=1)
        try:
            dist.init_process_group(backend, timeout=timedelta(hours=1), **alone)
        except (dist.DistError, RuntimeError, ValueError) as error:
            where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            raise UserError(
                f"the processes cannot meet at {where} ({str(error).splitlines()[0][:120]}); if the port is in use, "
                "give torchrun another --master_port, or --standalone"
            ) from None
        atexit.register(lambda: dist.is_initialized() and dist.destroy_process_group())
    world = dist.get_world_size()
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    if world > here:
        return init_device_mesh(device, (world // here, here), mesh_dim_names=("node", "gpu"))
    return init_device_mesh(device, (world,))


def ranks() -> tuple[int, int]:
    """(rank, number of ranks); (0, 1) where no process group was started."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def deal(items: list) -> list:
    """This rank's share, dealt round robin: [a b c d e] of two ranks -> [a c e] and [b d]."""
    rank, world = ranks()
    return list(items)[rank::world]


def dealt(items: list) -> tuple[list, int]:
    """This rank's share, as long as every other rank's, and how many of it count.

    Every rank has to make the same number of forward passes: where the items do not divide, a rank that is one short
    gets the first item besides, which adds to no result.
    """
    mine = deal(items)
    return mine + list(items[:1]) * (-(-len(items) // ranks()[1]) - len(mine)), len(mine)


def everyone_of(x) -> list:
    """What every rank has under this name, by rank (all ranks together)."""
    parts: list = [None] * ranks()[1]
    if len(parts) == 1:
        return [x]
    dist.all_gather_object(parts, x)
    return parts


def everyone(mine: list) -> list:
    """The results of all ranks in the order in which `deal` dealt; every rank gets them (lengths may differ by one)."""
    parts = everyone_of(mine)
    return [parts[i % len(parts)][i // len(parts)] for i in range(sum(map(len, parts)))]


MEETING = 30.0  # seconds between two meetings of ranks of which one is still at work


def together(work: Callable):
    """Do this rank's work(), however long; the ranks meet meanwhile, so that no collective times out.

    All ranks together; `work` itself must not contain a collective. -> what it returns.
    """
    if ranks()[1] == 1:
        return work()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        while not all(everyone_of(not futures_wait([future], timeout=MEETING).not_done)):
            pass
    return future.result()


def wait() -> None:
    """Until every rank is here: what rank 0 wrote is there now."""
    if dist.is_initialized():
        dist.barrier()


def whole(x: torch.Tensor) -> torch.Tensor:
    """The full tensor of a sharded one (all ranks together)."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def shard(player: nn.Module, blocks: list[nn.Module], mesh: DeviceMesh, compute: torch.dtype) -> None:
    """FSDP2 over `blocks` (decoder layers, vision blocks) and the rest; computes in `compute`, reduces in fp32.

    Embeddings, head, projector and norms stay one group: tied weights may not be split, and every rank must gather
    equally often. Inputs are not cast, so that a bf16 forward is that of a whole bf16 replica, bit for bit.
    """
    param = None if compute == torch.float32 else compute
    policy = MixedPrecisionPolicy(param, torch.float32, cast_forward_inputs=False)
    for part in (*blocks, player):
        fully_shard(part, mesh=mesh, mp_policy=policy)
    for method in ("see", "prefill", "decode") if isinstance(player, VLM) else ():
        register_fsdp_forward_method(player, method)


# ------------------------------------------------------------------------------------------------ loading
def load(
    name: str | Path,
    seed: int = 0,
    device="cpu",
    dtype: torch.dtype = torch.float32,
    mesh: DeviceMesh | None = None,
    compute: torch.dtype | None = None,
    player: Callable | None = None,
    random_weights: bool = False,
):
    """A tiny name (fresh weights from `seed`), a published name or a Hugging Face folder, in `dtype`.

    With `mesh` the weights are sharded over it and computed with in `compute`; without, they are whole. `player` makes
    another module around the model's parts (the discriminator) before they get memory. Raises UserError for an unknown
    name, and for a folder that lacks a tensor, has one too many or a wrong one, or is of a family that FAMILIES does
    not hold.
    """
    if str(name) in TINY:
        tiny = TINY[name]
        family = FAMILIES[tiny.family]
        config, tok, pictures = family.tiny(tiny.width, tiny.layers)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            hf = family.model(config)
        hf.generation_config = GenerationConfig(eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id)
        vlm = VLM(hf.to(dtype), tok, pictures).to(device).eval()
        return placed(player(vlm) if player else vlm, vlm, mesh, compute or dtype)
    vlm, folder = (random_shell if random_weights else shell)(name, dtype)
    it = placed(player(vlm) if player else vlm, vlm, mesh, compute or dtype)
    return with_weights(it, vlm.hf, folder, device, seed)


def with_weights(player, hf: nn.Module, folder: Path | None, device, seed: int = 0):
    """A player that was built without memory, with the folder's weights (None: random ones) on `device`, to be asked.

    hf is the stock model that it is or is made of.
    """
    player.to_empty(device=device)
    getattr(player, "settle", hf.tie_weights)()
    if folder is None:
        fill(player, seed)
    else:
        read_weights(getattr(player, "tensors", hf.state_dict)(), hf, folder)
    for module in player.modules():  # rotary tables are in no file; stock code computes them
        if not isinstance(module, VLM) and list(module.buffers(recurse=False)):
            hf._init_weights(module)
    return player.eval()


def language_shell(name: str, dtype: torch.dtype, random_weights: bool = False) -> tuple:
    """(stock causal language model without memory, tokenizer, folder) of a name in JUDGES or a folder; with
    `random_weights` at a published model's size without files, spelling in the tiny tokenizer. Raises UserError.
    """
    if random_weights:
        config = AutoConfig.for_model(JUDGES[name].family, **text_sizes(JUDGES[name]))
        return on_meta(AutoModelForCausalLM.from_config, config, dtype), tiny_tokenizer(CHAT, ""), None
    folder = find_folder(name)
    config_of(folder)
    headers = tensor_headers(folder)
    try:
        tok = tokenizer_of(folder)
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        tie_as_in_files(config, headers)
        hf = on_meta(AutoModelForCausalLM.from_config, config, dtype)
    except Exception as error:
        raise cannot_be_loaded(name, error) from None
    check_tensors(hf, folder, headers)
    check_vocabulary(folder, tok, config)
    return hf, tok, folder


def load_language_model(name: str, device, dtype, mesh: DeviceMesh | None = None, random_weights: bool = False):
    """(stock causal language model, tokenizer), frozen and in memory; sharded where there is a mesh."""
    hf, tok, folder = language_shell(name, dtype, random_weights)
    if mesh is not None:
        shard(hf, list(hf.model.layers), mesh, dtype)
    return with_weights(hf, hf, folder, device).requires_grad_(False), tok


def cannot_be_loaded(name: str | Path, error: Exception) -> UserError:
    """Whatever stock code says of a torn or missing file, as one line."""
    if isinstance(error, UserError):
        return error
    said = (str(error).strip() or repr(error)).splitlines()[0][:160]
    return UserError(f"{name}: cannot be loaded ({said}); make the folder anew")


def placed(player, vlm: VLM, mesh: DeviceMesh | None, compute: torch.dtype):
    """The player, sharded when there is a mesh."""
    if mesh is not None:
        blocks = [*player.base.get_submodule(vlm.family.vision_blocks), *player.base.language_model.layers]
        shard(player, blocks, mesh, compute)
    return player


def shell(name: str | Path, dtype: torch.dtype = torch.float32) -> tuple[VLM, Path]:
    """A model without memory, made from a folder's files; -> it and the folder.

    Everything that can be known without reading weights is checked: raises UserError that names the file.
    """
    folder = find_folder(name)
    family = family_of(folder)
    headers = tensor_headers(folder)
    try:
        config = family.model.config_class.from_pretrained(folder, local_files_only=True)
        tie_as_in_files(config, headers)
        pictures = family.image_processor.from_pretrained(folder, local_files_only=True)
        family.as_called(pictures)
        tok = tokenizer_of(folder)
        hf = on_meta(family.model, config, dtype)
        if (folder / "generation_config.json").is_file():
            hf.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise cannot_be_loaded(name, error) from None
    check_tensors(hf, folder, headers)
    check_vocabulary(folder, tok, config)
    tok.chat_template = picture_template(folder, tok, family.picture_sign)
    vlm = VLM(hf, tok, pictures, folder)
    check_end(vlm)
    return vlm, folder


def check_end(vlm: VLM) -> None:
    """One of the end tokens has to close an answer in the chat template. Raises UserError: texts would never end."""
    chat = [dict(role="user", content="question"), dict(role="assistant", content="answer says")]
    closing = vlm.tokenizer.apply_chat_template(chat, tokenize=False).rpartition("answer says")[2]
    if not any(token in closing for token in vlm.tokenizer.convert_ids_to_tokens(vlm.ends)):
        raise UserError(
            f"{vlm.folder}: no end token: its chat template closes an answer with {closing!r}; set eos_token_id in "
            "generation_config.json to that token"
        )


def on_meta(make: Callable, config, dtype: torch.dtype) -> nn.Module:
    """The stock model of a configuration, without memory.

    All parameters are in `dtype`, whatever the configuration says at any level (stock sub-models are made in the dtype
    of their own configuration); rotary tables stay in fp32 (`.to(dtype)` would round them).
    """
    set_dtype(config, dtype)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            hf = make(config)
    finally:
        torch.set_default_dtype(before)
    hf.tie_weights()
    return hf


def levels(config) -> list:
    """A stock configuration and those inside it: text, vision."""
    return [config, *(x for name in config.sub_configs for x in levels(getattr(config, name)))]


def set_dtype(config, dtype: torch.dtype) -> None:
    """Make a stock configuration say this dtype at every level."""
    for level in levels(config):
        level.dtype = dtype


def random_shell(name: str, dtype: torch.dtype = torch.float32) -> tuple[VLM, None]:
    """The same of a published model at full size, without any file; it spells in the tiny tokenizer."""
    full = FULL[name]
    family = FAMILIES[full.family]
    tiny, tok, _ = family.tiny(96, 1)
    config, pictures = family.full(tiny, text_sizes(full), dict(full.vision))
    hf = on_meta(family.model, config, dtype)
    hf.generation_config = GenerationConfig(eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id)
    return VLM(hf, tok, pictures), None


@torch.no_grad()
def fill(player: nn.Module, seed: int) -> None:
    """Random weights in place, shard by shard: matrices normal, norms 1, biases 0."""
    torch.manual_seed(seed)
    for name, p in player.named_parameters():
        local = p.to_local() if isinstance(p, DTensor) else p
        local.normal_(std=0.02) if p.ndim > 1 else local.fill_(float(name.endswith("weight")))


def is_tied(hf: nn.Module) -> bool:
    """Are embeddings and head one tensor?"""
    return hf.lm_head.weight is hf.get_input_embeddings().weight


def hub_names(hf: nn.Module) -> dict[str, str]:
    """The stock class's tensor names -> those in the published files, which hold a tied head once."""
    names = list(hf.state_dict())
    mark = {name: torch.tensor(i) for i, name in enumerate(names)}
    hub = {names[int(i)]: there for there, i in revert_weight_conversion(hf, mark).items()}
    return {name: there for name, there in hub.items() if not (is_tied(hf) and name == "lm_head.weight")}


# ------------------------------------------------------------------------------------------------ a folder's files
def read_json(path: Path) -> dict:
    """A JSON object from a file. Raises UserError that names it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({str(error)[:100]}); make the folder anew") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds no JSON object; make the folder anew")
    return found


def config_of(folder: Path) -> dict:
    """config.json of a folder as it stands there. Raises UserError: missing, torn, or of quantised weights."""
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise adapter_only(folder)
        known = ", ".join([*TINY, *FULL])
        raise UserError(f"{folder}: neither a folder with config.json nor one of {known}; correct the name")
    config = read_json(folder / "config.json")
    if not isinstance(config.get("model_type"), str):
        raise UserError(f"{folder}/config.json: not a model's configuration (no model_type); make the folder anew")
    if config.get("quantization_config"):
        kind = config["quantization_config"]
        kind = kind.get("quant_method", "") if isinstance(kind, dict) else ""
        raise UserError(f"{folder}: its weights are quantised ({kind or 'quantization_config'}); give the bf16 folder")
    return config


TOKENIZERS: dict[str, object] = {}  # by the contents of their files


def tokenizer_of(folder: Path):
    """The folder's tokenizer. Folders with the same files share one: a real one takes three seconds to read."""
    names = (
        "tokenizer.json tokenizer_config.json vocab.json merges.txt added_tokens.json special_tokens_map.json".split()
    )
    names += "special_tokens_map.json tokenizer.model chat_template.jinja chat_template.json".split()
    parts = [(folder / name).read_bytes() if (folder / name).is_file() else b"-" for name in names]
    key = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
    if key not in TOKENIZERS:
        TOKENIZERS[key] = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return TOKENIZERS[key]


def adapter_only(folder: Path) -> UserError:
    """A folder that holds an adapter without its base."""
    base = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    return UserError(f"{folder}: an adapter of {base} without its base; merge the two and give the merged folder")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files with a model's weights, as stock transformers finds them. Raises UserError for others."""
    if (index := folder / "model.safetensors.index.json").is_file():
        names = read_json(index).get("weight_map")
        if not isinstance(names, dict) or not names or not all(isinstance(x, str) for x in names.values()):
            raise UserError(f"{index}: holds no weight_map; make the folder anew")
        files = [folder / name for name in sorted(set(names.values()))]
    else:
        files = [folder / "model.safetensors"]
    missing = [file.name for file in files if not file.is_file()]
    if not missing:
        return files
    if index.is_file():
        raise UserError(f"{folder}: {missing[0]} is missing ({len(missing)} of {len(files)} files); finish the copy")
    if (folder / "adapter_config.json").is_file():
        raise adapter_only(folder)
    if list(folder.glob("*.bin")):
        raise UserError(f"{folder}: weights as .bin only; load and save_pretrained them with stock transformers")
    if list(folder.glob("model-*-of-*.safetensors")):
        raise UserError(f"{folder}: several weight files without {index.name}; finish the copy")
    raise UserError(f"{folder}: model.safetensors is missing; the folder is damaged, make it anew")


def tensor_headers(folder: Path) -> dict[str, tuple[Path, str, tuple]]:
    """Tensor name -> (its file, its dtype there, its shape), from the headers alone.

    Raises UserError for a missing file, and for one that is not as long as its header says.
    """
    found = {}
    for file in weight_files(folder):
        try:
            with safe_open(file, "pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (not a dict)
                    there = tensors.get_slice(name)
                    found[name] = (file, there.get_dtype(), tuple(there.get_shape()))
        except Exception as error:  # safetensors has an error of its own, a direct child of Exception
            raise UserError(f"{file}: damaged ({str(error)[:120]}); copy it anew") from None
    return found


def tie_as_in_files(config, headers: dict) -> None:
    """Embeddings and head are one tensor if the files hold no head, whatever the configuration says."""
    tied = not any(name.endswith("lm_head.weight") for name in headers)
    for level in levels(config):
        if hasattr(level, "tie_word_embeddings"):
            level.tie_word_embeddings = tied


def check_tensors(hf: nn.Module, folder: Path, headers: dict) -> None:
    """The files have to hold exactly the model's tensors, in its shapes; else a UserError names the first wrong one."""
    hub = hub_names(hf)
    shapes = {hub[name]: tuple(x.shape) for name, x in hf.state_dict().items() if name in hub}
    for name, (file, dtype, shape) in headers.items():
        if shapes.get(name) != shape:
            wanted = f"has to be {list(shapes[name])}" if name in shapes else "is none of the model's"
            raise UserError(f"{file}: tensor {name} {list(shape)} {wanted}; is config.json of the same model?")
        if dtype not in ("BF16", "F16", "F32", "F64"):
            raise UserError(f"{file}: tensor {name} is quantised ({dtype}); give the bf16 folder")
    missing = sorted(set(shapes) - set(headers))
    if missing:
        raise UserError(f"{folder}: tensor {missing[0]} is missing ({len(missing)} in all); make the folder anew")


def check_vocabulary(folder: Path, tok, config) -> None:
    """Every token needs a row of the embeddings; more rows than tokens are padding. Raises UserError."""
    rows = config.get_text_config().vocab_size
    if len(tok) > rows:
        raise UserError(
            f"{folder}: the tokenizer has {len(tok)} tokens, the embeddings {rows} rows; resize_token_embeddings or "
            "take the tokenizer that belongs to the weights"
        )


def picture_template(folder: Path, tok, sign: str) -> str:
    """The folder's chat template that shows pictures: chat_template.jinja, chat_template.json (where AutoTokenizer does
    not look), or tokenizer_config.json. Raises UserError that says why none of them can be used.
    """
    places, wrong = {}, []
    if (folder / "chat_template.jinja").is_file():
        places["chat_template.jinja"] = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    for file in ("chat_template.json", "tokenizer_config.json"):
        found = read_json(folder / file).get("chat_template") if (folder / file).is_file() else None
        if isinstance(found, list):  # several, by name
            found = {x["name"]: x["template"] for x in found if isinstance(x, dict)}.get("default")
        places |= {file: found} if isinstance(found, str) else {}
    for place, template in places.items():
        if not (reason := fault_of_template(tok, template, sign)):
            return template
        wrong.append(f"that of {place} {reason}")
    said = "; ".join(wrong) or "there is none in " + ", ".join(("chat_template.jinja, .json", "tokenizer_config.json"))
    raise UserError(f"{folder}: no chat template can be used: {said}; copy the model's own")


def fault_of_template(tok, template: str, sign: str = "") -> str:
    """What is wrong with a chat template, "" for nothing: it has to show the texts and, with `sign`, the picture."""
    user = [{"type": "image"}, {"type": "text", "text": "user says"}]
    chats = [[dict(role="system", content="system says"), dict(role="user", content="user says")]]
    chats += [[dict(role="user", content=user)], [chats[0][0], dict(role="user", content=user)]] if sign else []
    for chat in chats:
        try:
            text = tok.apply_chat_template(chat, chat_template=template, tokenize=False, add_generation_prompt=True)
        except Exception as error:
            return f"fails ({(str(error).strip() or repr(error)).splitlines()[0][:100]})"
        if "user says" not in text or (len(chat) > 1) != ("system says" in text):
            return "drops a message"
        if sign and text.count(sign) != isinstance(chat[-1]["content"], list):
            return "drops the picture"
    return ""


@torch.no_grad()
def read_weights(targets: dict[str, torch.Tensor], hf: nn.Module, folder: Path) -> None:
    """Fill `targets` (stock names) from the folder's safetensors files, each rank its own slices, in their dtype."""
    hub, headers = hub_names(hf), tensor_headers(folder)
    check_tensors(hf, folder, headers)
    of = {hub[name]: x for name, x in targets.items() if name in hub}
    for file in weight_files(folder):
        try:
            with safe_open(file, "pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (not a dict)
                    if name in of:
                        copy_slice(of[name], tensors.get_slice(name))
        except Exception as error:
            raise UserError(f"{file}: cannot be read ({str(error)[:120]}); copy it anew") from None


def copy_slice(target: torch.Tensor, there) -> None:
    """One tensor of a file, or this rank's rows of it (FSDP2 cuts the first axis into equal chunks)."""
    if not isinstance(target, DTensor):
        target.copy_(there[:] if target.ndim else there[...])
        return
    mine, axis = target.to_local(), target.device_mesh.ndim - 1
    size = -(-target.shape[0] // target.device_mesh.size(axis))
    begin = min(target.device_mesh.get_local_rank(axis) * size, target.shape[0])
    if len(mine):
        mine.copy_(there[begin : begin + len(mine)])


def find_folder(name: str | Path) -> Path:
    """A folder as it is; a published name from the hub's cache or, with a network, from the hub.

    Of each node the first process looks and downloads while the others wait, however long. A download that was
    interrupted goes on. All ranks together.
    """
    if str(name) not in (*FULL, *JUDGES):
        return Path(name)
    first = int(os.environ.get("LOCAL_RANK", 0)) == 0
    if first:
        wrong = "".join(filter(None, everyone_of(together(lambda: download(name)))))
    else:
        wrong = "".join(filter(None, everyone_of(together(lambda: ""))))
    if wrong:
        raise UserError(wrong)
    return cached_folder(FULL[name].hub if name in FULL else JUDGES[name].hub)


def cached_folder(hub: str) -> Path | None:
    """The folder of a published model in the hub's cache; None unless all files of its index are there."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(hub, local_files_only=True))
        weight_files(folder)
    except Exception:
        return None
    return folder if (folder / "config.json").is_file() else None


def download(name: str) -> str:
    """Bring a published model into the hub's cache unless it is there; -> what went wrong, "" for nothing."""
    from huggingface_hub import snapshot_download

    hub = (FULL | JUDGES)[name].hub
    if cached_folder(hub):
        return ""
    try:
        snapshot_download(hub, ignore_patterns=["*.bin", "*.pth", "original/*"])
    except Exception as error:
        short = (str(error).strip() or repr(error)).splitlines()[0][:100]
        return (
            f"{name}: the weights of {hub} are neither whole in the hub cache nor to be had ({short}); download them, "
            "or try --student tiny-qwen, or --random-weights for a look at speed and memory"
        )
    return "" if cached_folder(hub) else f"{name}: the download of {hub} lacks weights; remove it and try again"


def family_of(folder: str | Path) -> Family:
    """The family of a Hugging Face folder, from its config alone. Raises UserError when it cannot be one of ours."""
    folder = Path(folder)
    kind = config_of(folder)["model_type"]
    if kind not in FAMILIES:
        raise UserError(f"{folder}: model type {kind!r} is unknown; FAMILIES in model.py holds {', '.join(FAMILIES)}")
    if not (folder / "tokenizer_config.json").is_file():
        raise UserError(f"{folder}: tokenizer_config.json is missing; the folder is damaged, make it anew")
    if not any((folder / x).is_file() for x in ("preprocessor_config.json", "processor_config.json")):
        raise UserError(f"{folder}: preprocessor_config.json is missing; the folder is damaged, make it anew")
    return FAMILIES[kind]


@contextlib.contextmanager
def new_folder(path: str | Path):
    """A folder that is either absent or whole: yields a temporary name beside `path`; rank 0 renames it at the end."""
    path = Path(path)
    part = path.with_name(path.name + ".part")
    if ranks()[0] == 0:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    wait()
    yield part
    wait()
    if ranks()[0] == 0:
        shutil.rmtree(path, ignore_errors=True)
        part.rename(path)
    wait()


def save(vlm: VLM, path: str | Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """A Hugging Face folder that stock `from_pretrained` reloads: weights in `dtype`, and all the other files of the
    folder that the model came from, as they are. All ranks together; rank 0 writes. A tied head is stored once.
    """
    weights = {}
    for name, x in vlm.tensors().items():
        x = whole(x.detach().to(dtype)).cpu().contiguous()
        if ranks()[0] == 0 and not (vlm.tied and name == "lm_head.weight"):
            weights[name] = x
    with new_folder(path) as part:
        if ranks()[0]:
            return
        config = copy.deepcopy(vlm.hf.config)
        set_dtype(config, dtype)
        with torch.device("meta"):
            model = vlm.family.model(config)
        if vlm.folder is None:
            model.generation_config = vlm.hf.generation_config
        model.save_pretrained(part, state_dict=weights, max_shard_size="5GB")
        if vlm.folder is None:
            vlm.tokenizer.save_pretrained(part)
            vlm.image_processor.save_pretrained(part)
        else:
            copy_other_files(vlm, part, dtype)


WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".ot", ".index.json")


def copy_other_files(vlm: VLM, part: Path, dtype: torch.dtype) -> None:
    """All that is not weights from the folder that `vlm` came from, with its published keys. config.json keeps all but
    the dtype, which it says at every level, and a head's tie that its class would read otherwise.
    """
    (part / "generation_config.json").unlink(missing_ok=True)
    for file in sorted(vlm.folder.iterdir()):
        if file.is_file() and not file.name.endswith(WEIGHTS):
            shutil.copyfile(file, part / file.name)
    config, word = config_of(vlm.folder), str(dtype).removeprefix("torch.")
    key = "torch_dtype" if "torch_dtype" in config else "dtype"
    for level in (config, *(config[x] for x in vlm.hf.config.sub_configs if isinstance(config.get(x), dict))):
        level.pop("dtype", None)
        level.pop("torch_dtype", None)
        level[key] = word
    if vlm.hf.config.__class__.from_pretrained(vlm.folder).tie_word_embeddings != vlm.tied:
        config["tie_word_embeddings"] = vlm.tied
    (part / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
