"""Tiny models of the real classes, with real tokenizers of a few hundred tokens."""

from dataclasses import dataclass

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import InternVLConfig, PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen3VLConfig
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tiny.world import WORDS

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


def tiny_qwen(width: int, layers: int) -> tuple:
    """0.5 M (width 96) or 0.8 M (width 128) parameters; 7-pixel patches: a cell of a board is one image token."""
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


def tiny_qwen3(width: int, layers: int) -> tuple:
    """Sizes, tokenizer and pictures of the tiny Qwen; both vision layers also reach a decoder layer (deepstack)."""
    config, tok, pictures = tiny_qwen(width, layers)
    rope = dict(mrope_section=config.text_config.rope_parameters["mrope_section"], mrope_interleaved=True)
    vision = dict(depth=2, hidden_size=64, intermediate_size=128, num_heads=4, patch_size=7, spatial_merge_size=2)
    vision |= dict(temporal_patch_size=2, out_hidden_size=width, num_position_embeddings=64, initializer_range=0.1)
    ids = [f"{name}_token_id" for name in ("image", "video", "vision_start", "vision_end")]
    config = Qwen3VLConfig(
        text_config=tiny_text(tok, width, layers, **rope) | dict(head_dim=width // 4),
        vision_config=vision | dict(deepstack_visual_indexes=[0, 1]),
        tie_word_embeddings=True,
        **{name: getattr(config, name) for name in ids},
    )
    return config, tok, pictures


# ---- InternVL: pictures become one tile or several of one fixed size
def tiny_internvl(width: int, layers: int) -> tuple:
    """The same sizes as the tiny Qwen: 42 x 42 tiles of 7-pixel patches, nine image tokens a tile.

    Its tokenizer cuts words into pieces of five characters, so that text, not tokens, crosses between the families.
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


@dataclass(frozen=True)
class Tiny:
    """A tiny model of a real class. A teacher has a voice: the way of speaking (world.py) that it is trained in."""

    family: str
    width: int
    layers: int = 3
    voice: str = ""


TINY = {
    "tiny-qwen": Tiny("qwen2_5_vl", 96),
    "tiny-qwen-teacher": Tiny("qwen2_5_vl", 128, voice="a"),
    "tiny-qwen-3m": Tiny("qwen2_5_vl", 192, 6),  # for tools.bench
    "tiny-qwen-20m": Tiny("qwen2_5_vl", 384, 11),
    "tiny-qwen3": Tiny("qwen3_vl", 96),
    "tiny-internvl": Tiny("internvl", 96),
    "tiny-internvl-teacher": Tiny("internvl", 128, voice="b"),
}
