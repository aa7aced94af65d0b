"""What a Hugging Face folder's files say, before any weight is read."""

import json
from pathlib import Path

from safetensors import safe_open

from engine.command import UserError, one_line
from engine.families import FAMILIES, FULL, Family
from tiny.models import TINY


# ------------------------------------------------------------------------------------------------ a folder's files
def read_json(path: Path) -> dict:
    """A JSON object from a file. Raises UserError that names it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({one_line(error)}); make the folder anew") from None
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
            raise UserError(f"{file}: damaged ({one_line(error)}); copy it anew") from None
    return found


def family_of(folder: str | Path) -> Family:
    """The family of a Hugging Face folder, from its config alone. Raises UserError when it cannot be one of ours."""
    folder = Path(folder)
    kind = config_of(folder)["model_type"]
    if kind not in FAMILIES:
        raise UserError(f"{folder}: model type {kind!r} is unknown; engine/families.py holds {', '.join(FAMILIES)}")
    if not (folder / "tokenizer_config.json").is_file():
        raise UserError(f"{folder}: tokenizer_config.json is missing; the folder is damaged, make it anew")
    if not any((folder / x).is_file() for x in ("preprocessor_config.json", "processor_config.json")):
        raise UserError(f"{folder}: preprocessor_config.json is missing; the folder is damaged, make it anew")
    return FAMILIES[kind]
