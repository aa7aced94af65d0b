"""All that differs between model families, and the published names.

A family is one entry of FAMILIES: the stock classes, where vision tower and projector lie, how many image tokens a
picture has and how they are written, the rotary positions. A published name is one line of FULL (students, teachers)
or JUDGES; its sizes stand in configs/NAME.json.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoConfig,
    InternVLForConditionalGeneration,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLModel,
    Qwen3VLForConditionalGeneration,
    Qwen3VLModel,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from engine.attention import use_own_attention
from tiny.models import tiny_internvl, tiny_qwen, tiny_qwen3


# ------------------------------------------------------------------------------------------------ what a family is
@dataclass(frozen=True)
class Family:
    """All that differs between model families. `base` is the stock model without its head (`hf.model`)."""

    model: type  # the stock transformers class
    image_processor: type  # its PIL image processor (the fast ones need torchvision)
    vision: str  # where the vision tower lies below base
    vision_blocks: str  # where its layers lie below base
    projector: str  # where the part that maps patches to the language model's width lies below base
    patch_width: Callable  # base -> numbers per image token before a projector
    tensors: tuple[str, ...]  # what of the image processor's output the vision tower takes
    picture_tokens: Callable  # (config, one picture's tensors) -> image tokens
    picture_sign: str  # what the chat template writes for a picture
    picture_text: Callable  # number of image tokens -> the text that takes the sign's place
    positions: Callable  # (config, ids (P,), pixels or None) -> rotary positions (3, P)
    as_called: Callable  # image processor -> None: sets what the stock processor sets when it is called
    limit: Callable  # (image processor, config, most image tokens of a picture) -> None: sets it
    tiny: Callable  # (width, layers) -> (config, tokenizer, image processor) of a tiny model of the real classes
    windows: bool  # does the vision tower attend inside sequences of patches (windows, pictures)?
    published_pictures: dict  # what the image processor of the published models says beside its defaults
    deepstack: str = ""  # where further projectors lie, whose pictures are added behind the first decoder layers

    @property
    def projector_paths(self) -> tuple[str, ...]:
        """Where the projectors lie below base."""
        return tuple(filter(None, (self.projector, self.deepstack)))

    def in_projector(self, path: str) -> bool:
        """Does a module's path lie in a projector?"""
        return any(f".{x}." in path for x in self.projector_paths)

    def projectors(self, base: nn.Module) -> list[nn.Module]:
        """The projector, and behind it those of deepstack: one for each of the first decoder layers."""
        return [base.get_submodule(self.projector), *(base.get_submodule(self.deepstack) if self.deepstack else ())]

    def encode_pixels(self, base: nn.Module, pixels: dict) -> torch.Tensor:
        """The stock vision tower without its projectors: pixels -> patches (image tokens, patch_width each)."""
        projectors, width = self.projectors(base), self.patch_width(base)
        for projector in projectors:
            projector.forward = lambda patches: patches.reshape(-1, width)
        try:
            out = base.get_image_features(**pixels)
        finally:
            for projector in projectors:
                del projector.forward  # the one of its class again
        parts = [out.pooler_output, *(out.deepstack_features if self.deepstack else ())]
        parts = [torch.cat(x) if isinstance(x, list | tuple) else x for x in parts]  # some are cut into pictures
        return torch.cat([x.reshape(-1, width) for x in parts], -1)

    def project(self, base: nn.Module, patches: torch.Tensor | None) -> list[torch.Tensor]:
        """Patches -> what each projector makes of its part, (image tokens, H); None: of one patch of zeros.

        A projector's first layer is a norm over its part of a patch, or over equal pieces of it. Patches may come from
        a model that computes in another dtype.
        """
        projectors = self.projectors(base)
        if patches is None:
            some = next(projectors[0].parameters())
            patches = some.new_zeros(1, len(projectors) * self.patch_width(base))
        parts = zip(projectors, patches.chunk(len(projectors), -1), strict=True)
        first = [next(projector.parameters()) for projector in projectors]
        return [projector(x.reshape(-1, len(w)).to(w.dtype)) for (projector, x), w in zip(parts, first, strict=True)]

    def language_states(
        self, base: nn.Module, embedded, positions, cache=None, pattern=None, deeper: Sequence = ()
    ) -> torch.Tensor:
        """The stock language model on embedded tokens (B, T, H): -> its last hidden states; positions are (3, B, T).

        pattern: who attends to whom (engine/attention.py), causal without one. It reaches our attention as a keyword;
        a mask of four axes keeps stock code from making one. deeper: what is added to the hidden states (B, T, H)
        behind each of the first layers.
        """
        axes = (getattr(base.config.get_text_config(), "rope_parameters", None) or {}).get("mrope_section")
        rows = torch.arange(len(embedded), device=embedded.device)  # stock code indexes with them: all rows, whole
        out = base.language_model(
            inputs_embeds=embedded,
            attention_mask=None if pattern is None else rows.view(-1, 1, 1, 1),
            position_ids=positions if axes else positions[0],  # three rotary axes, or one
            past_key_values=cache,
            use_cache=cache is not None,
            pattern=pattern,
            **(dict(visual_pos_masks=rows, deepstack_visual_embeds=deeper) if deeper else {}),
        )
        return out.last_hidden_state

    def use_own_attention(self, base: nn.Module) -> None:
        """Let this stock model attend by engine/attention.py.

        The rotary tables of a "dynamic" rope are those of the default up to max_position_embeddings, but looking for
        longer rows makes the CPU wait in every forward pass, and a captured graph cannot look.
        """
        rotary = base.language_model.rotary_emb
        rotary.rope_type = "default" if rotary.rope_type == "dynamic" else rotary.rope_type
        use_own_attention(base.language_model, base.get_submodule(self.vision) if self.windows else None)


def plain_positions(config, ids: torch.Tensor, pixels: dict | None) -> torch.Tensor:
    """Rotary positions of a model with one axis, three times: the place in the prompt."""
    return torch.arange(len(ids)).expand(3, -1)


# ---- Qwen2.5-VL: pictures of any size, three rotary axes
def qwen_positions(config, ids: torch.Tensor, pixels: dict | None, stock: type = Qwen2_5_VLModel) -> torch.Tensor:
    """Rotary positions of a prompt, by the stock method: time, row and column inside a picture, equal in text."""
    if pixels is None:
        return plain_positions(config, ids, pixels)
    model = stock.__new__(stock)  # without layers: the method reads the configuration only
    nn.Module.__init__(model)
    model.config = config
    is_picture = (ids == config.image_token_id).int()[None]
    return model.get_rope_index(ids[None], is_picture, image_grid_thw=pixels["image_grid_thw"])[0][:, 0]


def qwen_limit(processor, config, tokens: int) -> None:
    """At most `tokens` image tokens a picture (28 x 28 pixels each at real size; 32 x 32 in Qwen3-VL)."""
    side = processor.patch_size * processor.merge_size
    processor.size = {"shortest_edge": 4 * side**2, "longest_edge": tokens * side**2}


# ---- InternVL: pictures become one tile or several of one fixed size
def internvl_tiles(processor) -> None:
    """Cut large pictures into tiles: the folder's file says no, and the stock processor says yes at every call."""
    processor.crop_to_patches = True


def internvl_limit(processor, config, tokens: int) -> None:
    """At most `tokens` image tokens a picture: 256 a tile at real size; several tiles have a thumbnail besides."""
    processor.max_patches = max(1, tokens // config.image_seq_length - 1)


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
        windows=True,
        published_pictures={},
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
        windows=False,
        published_pictures=dict(size={"height": 448, "width": 448}, crop_to_patches=True),
    ),
}
FAMILIES["qwen3_vl"] = replace(  # as Qwen2.5-VL; beside it: deepstack, no windows, 32 x 32 pixels an image token
    FAMILIES["qwen2_5_vl"],
    model=Qwen3VLForConditionalGeneration,
    positions=partial(qwen_positions, stock=Qwen3VLModel),
    deepstack="visual.deepstack_merger_list",
    tiny=tiny_qwen3,
    published_pictures=dict(
        patch_size=16,
        size={"shortest_edge": 256**2, "longest_edge": 4096**2},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    ),
)


# ------------------------------------------------------------------------------------------------ published names
CONFIGS = Path(__file__).parent / "configs"  # NAME.json: sizes and token ids, as the stock class reads config.json

PARTS = ("vision", "embeddings", "attention", "mlp", "head")  # of a student, as --frozen names them
FULL = {  # students and teachers: name -> its place on the hub
    "qwen2.5-vl-3b": "Qwen/Qwen2.5-VL-3B-Instruct",
    "qwen2.5-vl-7b": "Qwen/Qwen2.5-VL-7B-Instruct",
    "qwen3-vl-2b": "Qwen/Qwen3-VL-2B-Instruct",
    "qwen3-vl-4b": "Qwen/Qwen3-VL-4B-Instruct",
    "qwen3-vl-8b": "Qwen/Qwen3-VL-8B-Instruct",
    "internvl3-1b": "OpenGVLab/InternVL3-1B-hf",
    "internvl3-2b": "OpenGVLab/InternVL3-2B-hf",
    "internvl3-8b": "OpenGVLab/InternVL3-8B-hf",
    "internvl3.5-1b": "OpenGVLab/InternVL3_5-1B-HF",
    "internvl3.5-2b": "OpenGVLab/InternVL3_5-2B-HF",
    "internvl3.5-4b": "OpenGVLab/InternVL3_5-4B-HF",
    "internvl3.5-8b": "OpenGVLab/InternVL3_5-8B-HF",
    "qwen2.5-vl-72b": "Qwen/Qwen2.5-VL-72B-Instruct",
    "internvl3-78b": "OpenGVLab/InternVL3-78B-hf",
}

JUDGES = {  # text-only language models that --judge can name
    "qwen2.5-32b": "Qwen/Qwen2.5-32B-Instruct",
    "qwen2.5-7b": "Qwen/Qwen2.5-7B-Instruct",
    "qwen2.5-1.5b": "Qwen/Qwen2.5-1.5B-Instruct",
}


def published_config(name: str):
    """The stock configuration of a published model, known without its files."""
    return AutoConfig.from_pretrained(CONFIGS / f"{name}.json")
