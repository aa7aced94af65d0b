"""All that differs between model families, and the published names.

A family is one entry of FAMILIES: the stock classes, where vision tower and projector lie, how many image tokens a
picture has and how they are written, the rotary positions. A published name is one line of FULL (students, teachers)
or JUDGES.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tiny.models import tiny_internvl, tiny_qwen


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
class Full:
    """A published checkpoint: its place on the hub, and the sizes that tools.plan and --random-weights need offline."""

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
