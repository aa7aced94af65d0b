"""Models from folders, and folders from models.

`load` builds a model on the meta device, shards it if there is a mesh, and every rank reads its own slices of the
safetensors files. `meta_model` checks everything that the files alone can tell, so that a wrong folder stops with one
line before anything expensive begins. `save` writes a folder that stock `from_pretrained` reads.
"""

import copy
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.core_model_loading import revert_weight_conversion

from engine.command import UserError, one_line
from engine.families import FAMILIES, FULL, JUDGES, published_config
from engine.folders import config_of, family_of, read_json, tensor_headers, weight_files
from engine.lora import ALPHA, Adapter, merged
from engine.sharding import all_gather, device_of_mesh, full_tensor, new_folder, rank_and_world, shard, together
from model import VLM, Encoder
from tiny.models import CHAT, TINY, tiny_tokenizer


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

    With `mesh` the weights are sharded over it and computed with in `compute`; without, they are whole. On the `device`
    "host" the shards live in host memory and come to the mesh's devices when needed. `player` makes another module
    around the model's parts (the discriminator) before they get memory. Raises UserError for an unknown name, and for
    a folder that lacks a tensor, has one too many or a wrong one, or is of a family that FAMILIES does not hold.
    """
    home = "cpu" if device == "host" else device
    sharded = dict(mesh=mesh, compute=compute or dtype, on_host=device == "host")
    if str(name) in TINY:
        tiny = TINY[name]
        family = FAMILIES[tiny.family]
        config, tok, pictures = family.tiny(tiny.width, tiny.layers)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            hf = family.model(config)
        hf.generation_config = GenerationConfig(eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id)
        vlm = VLM(hf.to(dtype), Encoder(config, tok, pictures)).to(home).eval()
        built = shard_player(player(vlm) if player else vlm, **sharded)
    else:
        vlm = (random_meta_model if random_weights else meta_model)(name, dtype)
        built = shard_player(player(vlm) if player else vlm, **sharded)
        with_weights(built, vlm.hf, vlm.encoder.folder, home, seed)
    return buffers_to(device_of_mesh(mesh), built) if device == "host" else built


def with_weights(player, hf: nn.Module, folder: Path | None, device, seed: int = 0):
    """Give a player from the meta device memory on `device` and the folder's weights (None: random ones).

    hf is the stock model that the player is, or is built from.
    """
    player.to_empty(device=device)
    getattr(player, "init_buffers", hf.tie_weights)()
    if folder is None:
        fill(player, seed)
    else:
        read_weights(getattr(player, "tensors", hf.state_dict)(), hf, folder)
    for module in player.modules():  # rotary tables are not in the files; stock code computes them
        if not isinstance(module, VLM) and list(module.buffers(recurse=False)):
            hf._init_weights(module)
    return player.eval()


def meta_language_model(name: str, dtype: torch.dtype, random_weights: bool = False) -> tuple:
    """(stock causal language model without memory, tokenizer, folder) of a name in JUDGES or a folder; with
    `random_weights` at a published model's size without files, spelling in the tiny tokenizer. Raises UserError.
    """
    if random_weights:
        hf = on_meta(AutoModelForCausalLM.from_config, published_config(name), dtype)
        return hf, tiny_tokenizer(CHAT, ""), None
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
    hf, tok, folder = meta_language_model(name, dtype, random_weights)
    if mesh is not None:
        shard(hf, list(hf.model.layers), mesh, dtype)
    return with_weights(hf, hf, folder, device).requires_grad_(False), tok


def cannot_be_loaded(name: str | Path, error: Exception) -> UserError:
    """The error of stock code on a damaged or missing file, as one line."""
    if isinstance(error, UserError):
        return error
    return UserError(f"{name}: cannot be loaded ({one_line(error)}); make the folder anew")


def shard_player(player, mesh: DeviceMesh | None, compute: torch.dtype, on_host: bool):
    """The player, sharded when there is a mesh."""
    if mesh is not None:
        blocks = [*player.base.get_submodule(player.family.vision_blocks), *player.base.language_model.layers]
        shard(player, blocks, mesh, compute, on_host)
    return player


def buffers_to(device: torch.device, player: nn.Module) -> nn.Module:
    """Move what FSDP does not bring along to where a player computes: rotary tables, banned tokens."""
    for module in player.modules():
        for name, x in module.named_buffers(recurse=False):
            setattr(module, name, x.to(device))
    return player


def meta_model(name: str | Path, dtype: torch.dtype = torch.float32) -> VLM:
    """A folder's model on the meta device: without memory, with its Encoder.

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
    encoder = Encoder(config, tok, pictures, hf.generation_config.eos_token_id, folder)
    check_end(encoder)
    return VLM(hf, encoder)


def check_end(encoder: Encoder) -> None:
    """An end token must close an answer in the chat template. Raises UserError: else no text would ever end."""
    chat = [dict(role="user", content="question"), dict(role="assistant", content="answer says")]
    closing = encoder.tokenizer.apply_chat_template(chat, tokenize=False).rpartition("answer says")[2]
    if not any(token in closing for token in encoder.tokenizer.convert_ids_to_tokens(encoder.ends)):
        raise UserError(
            f"{encoder.folder}: no end token: its chat template closes an answer with {closing!r}; set eos_token_id in "
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


def random_meta_model(name: str, dtype: torch.dtype = torch.float32) -> VLM:
    """A published model at full size on the meta device, without its files; it uses the tiny tokenizer."""
    config = published_config(name)
    family = FAMILIES[config.model_type]
    tiny, tok, _ = family.tiny(96, 1)
    for token in ("image_token_id", "video_token_id", "vision_start_token_id"):
        if hasattr(tiny, token):
            setattr(config, token, getattr(tiny, token))
    hf = on_meta(family.model, config, dtype)
    hf.generation_config = GenerationConfig(eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id)
    return VLM(hf, Encoder(config, tok, family.image_processor(**family.published_pictures)))


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


TOKENIZERS: dict[str, object] = {}  # by the contents of their files
TOKENIZER_FILES = ("tokenizer", "vocab", "merges", "added_tokens", "special_tokens_map", "chat_template")  # .*


def tokenizer_of(folder: Path):
    """The folder's tokenizer. Folders with the same files share one: a real one takes three seconds to read."""
    files = [file for file in sorted(folder.iterdir()) if file.name.startswith(TOKENIZER_FILES)]
    key = hashlib.sha256(b"".join(file.name.encode() + file.read_bytes() for file in files)).hexdigest()
    if key not in TOKENIZERS:
        TOKENIZERS[key] = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return TOKENIZERS[key]


def tie_as_in_files(config, headers: dict) -> None:
    """Tie embeddings and head if the files hold no head, whatever the configuration says."""
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
    """The fault of a chat template, "" for none: it must show the texts and, with `sign`, the picture."""
    user = [{"type": "image"}, {"type": "text", "text": "user says"}]
    chats = [[dict(role="system", content="system says"), dict(role="user", content="user says")]]
    chats += [[dict(role="user", content=user)], [chats[0][0], dict(role="user", content=user)]] if sign else []
    for chat in chats:
        try:
            text = tok.apply_chat_template(chat, chat_template=template, tokenize=False, add_generation_prompt=True)
        except Exception as error:
            return f"fails ({one_line(error)})"
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
            raise UserError(f"{file}: cannot be read ({one_line(error)}); copy it anew") from None


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

    The first process of each node looks and downloads while the others wait, however long. An interrupted download
    is continued. A collective: all ranks call it.
    """
    if str(name) not in FULL | JUDGES:
        return Path(name)
    first = int(os.environ.get("LOCAL_RANK", 0)) == 0
    for wrong in filter(None, all_gather(together(lambda: download(name) if first else ""))):
        raise UserError(wrong)
    return cached_folder((FULL | JUDGES)[name])


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
    """Download a published model into the hub's cache unless it is there; -> the error, "" for none."""
    from huggingface_hub import snapshot_download

    hub = (FULL | JUDGES)[name]
    if cached_folder(hub):
        return ""
    try:
        snapshot_download(hub, ignore_patterns=["*.bin", "*.pth", "original/*"])
    except Exception as error:
        return (
            f"{name}: the weights of {hub} are neither whole in the hub cache nor to be had ({one_line(error)}); "
            "download them, or try --student tiny-qwen, or tools.pilot --random-weights for a look at speed and memory"
        )
    return "" if cached_folder(hub) else f"{name}: the download of {hub} lacks weights; remove it and try again"


def save(vlm: VLM, path: str | Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """A Hugging Face folder that stock `from_pretrained` reloads: weights in `dtype`, and all the other files of the
    folder that the model came from, as they are. All ranks together; rank 0 writes. A tied head is stored once. An
    adapter is merged into the weights, and kept in adapter/.
    """
    weights, encoder = {}, vlm.encoder
    with merged(vlm), new_folder(path) as part:
        for name, x in vlm.tensors().items():
            x = full_tensor(x.detach().to(dtype)).cpu().contiguous()
            if rank_and_world()[0] == 0 and not (is_tied(vlm.hf) and name == "lm_head.weight"):
                weights[name] = x
        if rank_and_world()[0]:
            return
        config = copy.deepcopy(encoder.config)
        set_dtype(config, dtype)
        with torch.device("meta"):
            model = encoder.family.model(config)
        if encoder.folder is None:
            model.generation_config = vlm.hf.generation_config
        model.save_pretrained(part, state_dict=weights, max_shard_size="5GB")
        if encoder.folder is None:
            encoder.tokenizer.save_pretrained(part)
            encoder.image_processor.save_pretrained(part)
        else:
            copy_other_files(encoder, part, dtype, is_tied(vlm.hf))
        if vlm.adapter is not None:
            save_adapter(vlm.adapter, part / "adapter", vlm.base.switch.name)


WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".ot", ".index.json")


def copy_other_files(encoder: Encoder, part: Path, dtype: torch.dtype, tied: bool) -> None:
    """Copy all that is not weights from the folder that `encoder` came from, with its published keys.

    config.json keeps all but the dtype, set at every level, and a head's tie that its class would read otherwise.
    """
    (part / "generation_config.json").unlink(missing_ok=True)
    for file in sorted(encoder.folder.iterdir()):
        if file.is_file() and not file.name.endswith(WEIGHTS):
            shutil.copyfile(file, part / file.name)
    config, word = config_of(encoder.folder), str(dtype).removeprefix("torch.")
    key = "torch_dtype" if "torch_dtype" in config else "dtype"
    for level in (config, *(config[x] for x in encoder.config.sub_configs if isinstance(config.get(x), dict))):
        level.pop("dtype", None)
        level.pop("torch_dtype", None)
        level[key] = word
    if encoder.config.__class__.from_pretrained(encoder.folder).tie_word_embeddings != tied:
        config["tie_word_embeddings"] = tied
    (part / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8", newline="\n")


# ------------------------------------------------------------------------------------------------ PEFT's adapter files
def save_adapter(adapter: Adapter, folder: Path, base: str) -> None:
    """The adapter as PEFT writes it, to be put on `base`, a folder or a name on the hub."""
    folder.mkdir()
    paths = sorted({re.sub(r"layers\\\.\d+", r"layers\\.\\d+", re.escape(path)) for path in adapter.shapes})
    how = dict(peft_type="LORA", r=adapter.rank, lora_alpha=ALPHA, bias="none", base_model_name_or_path=base)
    how |= dict(target_modules="|".join(paths))  # full paths; a list of suffixes would reach into vision towers
    (folder / "adapter_config.json").write_text(json.dumps(how, indent=2) + "\n", encoding="utf-8", newline="\n")
    tensors = {}
    for path, both in adapter.pairs("cpu", torch.float32).items():
        for letter, x in zip("AB", both, strict=True):
            tensors[f"base_model.model.{path}.lora_{letter}.weight"] = x.detach().clone()
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})


@torch.no_grad()
def load_adapter(adapter: Adapter, folder: Path) -> None:
    """Fill an adapter from a folder that `save_adapter` wrote for the same base and rank."""
    tensors = load_file(folder / "adapter_model.safetensors")
    for path, both in adapter.pairs(adapter.flat.device, adapter.flat.dtype).items():
        for letter, x in zip("AB", both, strict=True):
            x.copy_(tensors[f"base_model.model.{path}.lora_{letter}.weight"])
