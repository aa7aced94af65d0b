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

Left out on purpose: video, attention kernels of our own, quantisation.
"""

import contextlib
import copy
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import torch
import torch.nn.functional as F
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    InternVLConfig,
    InternVLForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers import logging as transformers_logging
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
    projector: str  # where the part that maps patches to the language model's width lies below base
    patch_width: Callable  # base -> numbers per image token before the projector
    tensors: tuple[str, ...]  # what of the image processor's output the vision tower takes
    picture_tokens: Callable  # (base config, one picture's tensors) -> image tokens
    picture_sign: str  # what the chat template writes for a picture
    picture_text: Callable  # number of image tokens -> the text that takes the sign's place
    positions: Callable  # (base, ids (P,), pixels or None) -> rotary positions (3, P); families with one axis repeat it
    tiny: Callable  # (width, layers) -> (config, tokenizer, image processor) of a tiny model of the real classes


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
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
    tok = tiny_tokenizer([*special, "<|video_pad|>"], "<|vision_start|><|image_pad|><|vision_end|>")
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


# ---- InternVL: pictures become one tile or several of one fixed size
def tiny_internvl(width: int, layers: int) -> tuple:
    """The same sizes as the tiny Qwen: 42 x 42 tiles of 7-pixel patches, nine image tokens a tile. Its tokenizer cuts
    words into pieces of five characters, so that text, not tokens, has to cross between the families.
    """
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>"]
    tok = tiny_tokenizer(special, "<IMG_CONTEXT>", cut=5)
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
    size = dict(size={"height": 42, "width": 42}, crop_to_patches=False)
    return config, tok, GotOcr2ImageProcessorPil(image_mean=[0.5] * 3, image_std=[0.5] * 3, **size)


FAMILIES = {
    "qwen2_5_vl": Family(
        model=Qwen2_5_VLForConditionalGeneration,
        image_processor=Qwen2VLImageProcessorPil,
        vision="visual",
        projector="visual.merger",
        patch_width=lambda base: base.visual.merger.hidden_size,
        tensors=("pixel_values", "image_grid_thw"),
        picture_tokens=lambda c, x: int(x["image_grid_thw"].prod()) // c.vision_config.spatial_merge_size**2,
        picture_sign="<|image_pad|>",
        picture_text=lambda count: "<|image_pad|>" * count,
        positions=qwen_positions,
        tiny=tiny_qwen,
    ),
    "internvl": Family(
        model=InternVLForConditionalGeneration,
        image_processor=GotOcr2ImageProcessorPil,
        vision="vision_tower",
        projector="multi_modal_projector",
        patch_width=lambda base: base.multi_modal_projector.layer_norm.normalized_shape[0],
        tensors=("pixel_values",),
        picture_tokens=lambda c, x: len(x["pixel_values"]) * c.image_seq_length,
        picture_sign="<IMG_CONTEXT>",
        picture_text=lambda count: "<img>" + "<IMG_CONTEXT>" * count + "</img>",
        positions=plain_positions,
        tiny=tiny_internvl,
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
    "tiny-internvl": Tiny("internvl", 96),
    "tiny-internvl-teacher": Tiny("internvl", 128, voice="b"),
}


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
        return {k: torch.cat([x[k] for x in self.looked]) for k in self.looked[0]} if self.looked else None


@dataclass
class Batch:
    """B packed rows that hold R responses; the module docstring shows one row.

    ids, segment (B, T); positions (3, B, T); patches (image tokens, width) or pixels; and per response, padded to the
    longest: source, target (R, L): the flat place (in B * T) of the state that predicts a token, and that token;
    mask (R, L): which of them count; last (R,): the flat place of the response's last token.
    """

    ids: torch.Tensor
    segment: torch.Tensor
    positions: torch.Tensor
    source: torch.Tensor
    target: torch.Tensor
    mask: torch.Tensor
    last: torch.Tensor
    pixels: dict | None = None
    patches: torch.Tensor | None = None

    @property
    def tree(self) -> torch.Tensor:
        """(B, 1, T, T) boolean attention mask: causal, and only within the own segment or to the prompt (segment 0)."""
        s = self.segment
        causal = torch.ones(s.shape[1], s.shape[1], dtype=torch.bool, device=s.device).tril()
        return (causal & ((s[:, None, :] == 0) | (s[:, :, None] == s[:, None, :])))[:, None]


def pack(
    prompts: list[Prompt], rows: list[list[list[int]]], skip: list[list[int]] | None = None, device="cpu"
) -> Batch:
    """One packed row per prompt: rows[b] are the token lists behind prompts[b]; R = sum of their number, in that order.

    skip[b][i] leading tokens of a row are context, not targets (0 without `skip`). Rows must not be empty. The length T
    is padded to a multiple of 128 on a GPU (cuDNN attention with a mask gave NaN gradients at 64 mod 128, pytorch
    #196678).

    Rows may be absent (rows[b] == []): then the batch holds bare prompts.

    Example: a prompt of 3 tokens and rows [7, 8], [9]: ids 3 + 2 + 1, positions 0 1 2 | 3 4 | 3; sources 2 3 | 2.
    """
    align = 128 if torch.device(device).type == "cuda" else 8
    length = max(len(p.ids) + sum(map(len, r)) for p, r in zip(prompts, rows, strict=True))
    width = -(-length // align) * align
    count = sum(map(len, rows))
    longest = max((len(x) for r in rows for x in r), default=0)
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    segment, positions = torch.full_like(ids, -1), torch.zeros(3, *ids.shape, dtype=torch.long)
    source, target = (torch.zeros(count, longest, dtype=torch.long) for _ in range(2))
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
            last[r] = at + n - 1 + b * width
            at, r = at + n, r + 1
    batch = Batch(ids, segment, positions, source, target, mask, last)
    if any(p.looked for p in prompts):
        if all(p.patches is not None for p in prompts if p.looked):
            batch.patches = torch.cat([p.patches for p in prompts if p.looked])
        else:
            batch.pixels = join_pixels(prompts)
    for name, value in vars(batch).items():
        if isinstance(value, torch.Tensor):
            setattr(batch, name, value.to(device))
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
    if patches is not None:
        projector = base.get_submodule(family.projector)
        parts = next(projector.parameters()).shape[0]  # the first layer is a norm over one part of a grouped patch
        pictures = projector(patches.reshape(-1, parts)).to(embedded.dtype)
        embedded = embedded.masked_scatter((batch.ids == base.config.image_token_id)[..., None], pictures)
    out = base.language_model(
        inputs_embeds=embedded,
        attention_mask={"full_attention": batch.tree if len(batch.last) else None},
        position_ids=language_positions(base, batch.positions),
        past_key_values=cache,
        use_cache=cache is not None,
    )
    return out.last_hidden_state.flatten(0, 1)


def language_positions(base: nn.Module, positions: torch.Tensor) -> torch.Tensor:
    """(3, B, T) for language models with three rotary axes, (B, T) for those with one."""
    axes = (getattr(base.config.get_text_config(), "rope_parameters", None) or {}).get("mrope_section")
    return positions if axes else positions[0]


def token_logps(hidden, head, target, banned, temperature: float = 1.0, chunk: int = 1024) -> torch.Tensor:
    """log pi(target) in fp32: hidden (N, H), target (N,) -> (N,), in chunks of tokens.

    With a vocabulary of 152k the logits are the largest tensor of a step: a chunk's are recomputed in the backward
    pass. `banned` (V,) is 0 or -inf: what cannot be sampled has no probability when scored either.
    """

    def part(h, t):
        logits = head(h).float() / temperature + banned
        return -F.cross_entropy(logits, t, reduction="none")

    pieces = zip(hidden.split(chunk), target.split(chunk), strict=True)
    if len(target) > chunk and torch.is_grad_enabled():
        return torch.cat([checkpoint(part, h, t, use_reentrant=False) for h, t in pieces])
    return torch.cat([part(h, t) for h, t in pieces])


class VLM(nn.Module):
    """A stock transformers model with its tokenizer and image processor; calling it gives token log-probs of packed
    rows.
    """

    def __init__(self, hf: nn.Module, tokenizer, image_processor):
        super().__init__()
        self.hf, self.tokenizer, self.image_processor = hf, tokenizer, image_processor
        self.family = FAMILIES[hf.config.model_type]
        ends = hf.generation_config.eos_token_id
        self.ends = [ends] if isinstance(ends, int) else list(ends)  # any of them ends a response
        self.end = tokenizer.eos_token_id  # the one that teacher texts get
        special = {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        self.control = [tokenizer.added_tokens_decoder[i].content for i in sorted(special)]
        size = hf.config.get_text_config().vocab_size
        self.banned_ids = sorted((special | set(range(len(tokenizer), size))) - set(self.ends))
        banned = torch.zeros(size)
        banned[self.banned_ids] = -torch.inf
        self.register_buffer("banned", banned, persistent=False)

    @property
    def base(self) -> nn.Module:
        """The stock model without its language head."""
        return self.hf.model

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.banned.device

    def forward(self, batch: Batch, temperature: float = 1.0) -> torch.Tensor:
        """Log-probs of the packed responses: (R, L), zero outside batch.mask."""
        hidden = trunk(self.base, self.family, batch)
        logps = token_logps(
            hidden[batch.source[batch.mask]], self.hf.lm_head, batch.target[batch.mask], self.banned, temperature
        )
        return logps.new_zeros(batch.mask.shape).index_put((batch.mask,), logps)

    # ---- text and pictures in, text out
    def look(self, pictures: list) -> list[dict]:
        """The stock image processor's tensors that the vision tower takes, one dict a picture."""
        made = [self.image_processor([p], return_tensors="pt") for p in pictures]
        return [{name: x[name] for name in self.family.tensors} for x in made]

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

    @torch.no_grad()
    def see(self, prompts: list[Prompt]) -> list[Prompt]:
        """Encode the pictures of these prompts once, without gradient (the tower is frozen in RIL); sets their
        patches.
        """
        todo = [p for p in prompts if p.looked and p.patches is None]
        if todo:
            pixels = {name: x.to(self.device) for name, x in join_pixels(todo).items()}
            patches = encode_pictures(self.base, self.family, pixels)
            counts = [int((p.ids == self.base.config.image_token_id).sum()) for p in todo]
            for prompt, part in zip(todo, patches.split(counts), strict=True):
                prompt.patches = part
        return prompts

    def reply_ids(self, text: str) -> list[int]:
        """A reply's tokens with the end token, as the student would have to write it."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] + [self.end]

    def clean(self, text: str) -> str:
        """Text from elsewhere without anything that the tokenizer would take for a control token."""
        for token in self.control:
            text = text.replace(token, "")
        return text.strip()

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

    def twin(self) -> "VLM":
        """A frozen copy: the reference, or the rollout replica (pi_old)."""
        return copy.deepcopy(self).requires_grad_(False).eval()

    @torch.no_grad()
    def copy_from(self, other: "VLM") -> None:
        """Take over another model's weights: the replica becomes the student of now."""
        for mine, theirs in zip(self.hf.parameters(), other.hf.parameters(), strict=True):
            mine.copy_(theirs)


def load(name: str | Path, seed: int = 0, device="cpu") -> VLM:
    """A tiny name (fresh random weights from `seed`) or a Hugging Face folder, in fp32.

    Raises UserError for an unknown name, and for a folder that lacks a tensor, has one too many, or is of a family that
    FAMILIES does not hold.
    """
    if str(name) in TINY:
        tiny = TINY[name]
        family = FAMILIES[tiny.family]
        config, tok, pictures = family.tiny(tiny.width, tiny.layers)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            hf = family.model(config)
        hf.generation_config = GenerationConfig(eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id)
        return VLM(hf, tok, pictures).to(device).eval()
    family = family_of(name)
    try:
        hf, info = family.model.from_pretrained(
            name, dtype=torch.float32, output_loading_info=True, local_files_only=True
        )
        pictures = family.image_processor.from_pretrained(name, local_files_only=True)
        tok = AutoTokenizer.from_pretrained(name, local_files_only=True)
    except Exception as error:  # whatever stock code says of a torn or missing file, as one line
        raise UserError(
            f"{name}: cannot be loaded ({str(error).splitlines()[0][:160]}); make the folder anew"
        ) from None
    wrong = {k: sorted(v) for k, v in info.items() if k in ("missing_keys", "unexpected_keys", "mismatched_keys") and v}
    for kind, names in wrong.items():
        some = ", ".join(map(str, names[:3]))
        raise UserError(f"{name}: {kind.replace('_', ' ')}: {some}; the folder is damaged, make it anew")
    return VLM(hf, tok, pictures).to(device).eval()


def family_of(folder: str | Path) -> Family:
    """The family of a Hugging Face folder, from its config alone. Raises UserError when it cannot be one of ours."""
    if not (Path(folder) / "config.json").is_file():
        raise UserError(f"{folder}: neither a folder with config.json nor one of {', '.join(TINY)}; correct the name")
    try:
        kind = json.loads((Path(folder) / "config.json").read_text())["model_type"]
    except (ValueError, KeyError):
        raise UserError(f"{folder}/config.json: not a model's configuration; make the folder anew") from None
    if kind not in FAMILIES:
        raise UserError(f"{folder}: model type {kind!r} is unknown; FAMILIES in model.py holds {', '.join(FAMILIES)}")
    for needed in ("*.safetensors", "tokenizer_config.json", "preprocessor_config.json"):
        if not list(Path(folder).glob(needed)):
            raise UserError(f"{folder}: {needed} is missing; the folder is damaged, make it anew")
    return FAMILIES[kind]


@contextlib.contextmanager
def new_folder(path: str | Path):
    """A folder that is either absent or whole: yields a temporary name beside `path`, renames it at the end."""
    path = Path(path)
    part = path.with_name(path.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    yield part
    shutil.rmtree(path, ignore_errors=True)
    part.rename(path)


def save(vlm: VLM, path: str | Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """A Hugging Face folder that stock `from_pretrained` reloads: weights in `dtype`, tokenizer, image processor,
    config.
    """
    weights = {name: x.detach().to(dtype).contiguous() for name, x in vlm.hf.state_dict().items()}
    if vlm.hf.lm_head.weight is vlm.base.get_input_embeddings().weight:
        del weights["lm_head.weight"]  # tied: stored once
    shell = copy.copy(vlm.hf.config)
    shell.dtype = dtype
    with new_folder(path) as part, torch.device("meta"):
        model = vlm.family.model(shell)
        model.generation_config = vlm.hf.generation_config
        model.save_pretrained(part, state_dict=weights)
        vlm.tokenizer.save_pretrained(part)
        vlm.image_processor.save_pretrained(part)
