"""What a folder is that somebody named as weights: told apart by its files, before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from v1lit.backbones.weight_files import (
    PLAIN,
    SINGLE,
    TensorInfo,
    WeightsUnavailable,
    download,
    read_headers,
    read_json,
    refuse_lfs_pointer,
)

CONFIG = "config.json"
CHECKPOINT = "complete.json"
"""Written last into a checkpoint that is a folder."""
ADAPTER = "adapter_config.json"
BESIDE = (ADAPTER, "adapter_model.safetensors", "adapter_model.bin", "non_lora_state_dict.bin")
"""Files of weights that belong on top of others and that no loader here adds."""
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
IMAGE_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
QUANTIZED = ("quantization_config", "compression_config")
"""Keys of config.json that say that weights are packed."""
QUANTIZED_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
PACKED = (
    ".qweight",
    ".qzeros",
    ".g_idx",
    ".weight_packed",
    ".weight_scale",
    ".weight_scale_inv",
    ".SCB",
    ".absmax",
    ".quant_map",
)
"""Ends of names of tensors that only a quantized checkpoint has."""
OURS, PUBLISHED = "v1lit", "v1"
"""`model_type` of an exported model, and of a checkpoint in the published layout."""
SEARCHED = 2000
"""Entries that are looked at below a folder that is none itself."""


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a folder. Raises WeightsUnavailable, saying what the folder is instead."""
    if folder.is_file():
        raise WeightsUnavailable(_explain_file(folder))
    path = folder / CONFIG
    if not path.is_file():
        refuse_adapter(folder)
        raise WeightsUnavailable(_explain_no_config(folder))
    return read_json(path)


def check_stock_folder(folder: Path) -> dict[str, Any]:
    """`config.json` of a folder in the transformers layout: not quantized, no adapter beside the weights.

    Raises WeightsUnavailable for what is missing or damaged, ValueError for another kind of folder.
    """
    content = read_config(folder)
    refuse_adapter(folder)
    model_type = content.get("model_type")
    if model_type in (OURS, PUBLISHED):
        raise ValueError(_explain_trained(folder, str(model_type)))
    refuse_quantized(content, str(folder))
    for name in QUANTIZED_FILES:
        if (folder / name).is_file():
            raise ValueError(_explain_quantized(str(folder), f"it has a {name}"))
    return content


def check_weight_files(folder: Path, vocabulary: int) -> None:
    """All weight files of a folder are whole, of plain numbers, and of `vocabulary` rows of embeddings.

    Raises as `read_headers`, and ValueError for quantized weights.
    """
    tensors = read_headers(folder)
    packed = [name for name, info in tensors.items() if _is_packed(name, info)]
    if packed:
        reason = f"{packed[0]} is stored as {tensors[packed[0]].dtype}"
        raise ValueError(_explain_quantized(str(folder), reason))
    for name, info in tensors.items():
        rows = info.shape[0] if info.shape else 0
        if name.endswith(("embed_tokens.weight", "lm_head.weight")) and rows != vocabulary:
            raise ValueError(
                f"{folder}: {name} has {rows} rows, but the config's vocab_size is {vocabulary}\n"
                "config.json and weights are of different models; take both from one place"
            )


def check_tokenizer_files(folder: Path, hub_id: str) -> None:
    """The folder has a tokenizer, whole, without code of its own. Raises WeightsUnavailable."""
    present = [name for name in TOKENIZERS if (folder / name).is_file()]
    if not present:
        files = ("tokenizer.json", "tokenizer_config.json")
        raise WeightsUnavailable(
            f"{folder} has no tokenizer: none of {', '.join(TOKENIZERS)}\n"
            f"copy that of the model it was made from, such as: {download(folder, *files, hub_id=hub_id)}"
        )
    for name in present:
        refuse_lfs_pointer(folder / name)


def check_image_processor_files(folder: Path, hub_id: str) -> None:
    """The folder has an image processor's settings, readable ones. Raises WeightsUnavailable."""
    paths = [folder / name for name in IMAGE_PROCESSORS if (folder / name).is_file()]
    for path in paths:
        read_json(path)
    if not paths:
        raise WeightsUnavailable(
            f"{folder} has no image processor: neither {' nor '.join(IMAGE_PROCESSORS)}\n"
            "copy that of the model it was made from, such as: "
            f"{download(folder, IMAGE_PROCESSORS[0], hub_id=hub_id)}"
        )


def refuse_quantized(config: Mapping[str, Any], source: str) -> None:
    """Raise ValueError if a config says that its weights are quantized."""
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for key in QUANTIZED:
            if part.get(key):
                method = part[key].get("quant_method") if isinstance(part[key], dict) else None
                how = f"{key} with quant_method {method!r}" if method else key
                raise ValueError(_explain_quantized(source, f"its config.json has a {how}"))


def refuse_adapter(folder: Path) -> None:
    """Raise ValueError for an adapter, alone or beside weights."""
    files = [name for name in BESIDE if (folder / name).is_file()]
    if not files:
        return
    content = read_json(folder / ADAPTER) if ADAPTER in files else {}
    base = str(content.get("base_model_name_or_path") or "BASE")
    if (folder / CONFIG).is_file():
        raise ValueError(
            f"{folder} has an adapter ({', '.join(files)}) beside its config.json, which would be left out\n"
            "if the weights have it already, move these files away; if not, give NEW after: "
            + merge_command(base, folder)
        )
    raise ValueError(
        f"{folder} holds an adapter of {base} ({', '.join(files)}), not a whole model\n"
        f"give NEW, with the tokenizer and processor files of {base}, after: " + merge_command(base, folder)
    )


def merge_command(base: str, adapter: Path | str) -> str:
    """What puts an adapter into its base's weights, and writes them to a folder NEW."""
    return (
        'python -c "from transformers import AutoModelForImageTextToText as M; '
        f"from peft import PeftModel as P; P.from_pretrained(M.from_pretrained('{base}'), '{adapter}')"
        ".merge_and_unload().save_pretrained('NEW')\""
    )


def check_exported(folder: Path) -> None:
    """Raise ValueError unless a folder is a model that v1lit exported, with its weight files whole."""
    if not (folder / CONFIG).is_file():
        raise ValueError(_explain_not_exported(folder))
    config = read_json(folder / CONFIG)
    if config.get("model_type") != OURS:
        raise ValueError(_explain_not_trained(folder, config.get("model_type")))
    refuse_adapter(folder)
    refuse_quantized(config, str(folder))
    read_headers(folder)


def _explain_not_exported(folder: Path) -> str:
    """What stands at a path that is no folder with a config; it may be anything, also missing."""
    if not folder.exists():
        return f"there is no folder {folder}\ngive the `model` folder of a run"
    if (folder / CHECKPOINT).is_file() or (folder.is_file() and folder.suffix == ".ckpt"):
        return f"{folder} is a checkpoint of a run, not an exported model\n{_export(folder)}"
    if folder.is_file():
        return f"{folder} is a file, not an exported model\ngive the `model` folder of its run"
    if (folder / "model" / CONFIG).is_file():
        return f"{folder} is not an exported model: it has no config.json\ngive its folder {folder / 'model'}"
    kind = "an adapter" if any((folder / name).is_file() for name in BESIDE) else "not an exported model"
    return f"{folder} is {kind}: it has no config.json\ngive the `model` folder of a run"


def _explain_not_trained(folder: Path, model_type: object) -> str:
    if model_type == PUBLISHED:
        return (
            f"{folder} is a checkpoint in the published layout, not an exported model\n"
            f"open it with v1lit.PointAndCopyModel.from_published('{folder}'), or make one of it: "
            f"v1lit convert {folder} --to v1lit --output NEW"
        )
    return (
        f"{folder} is a {model_type} checkpoint without a pointer head, not an exported model\n"
        f"train it (lightning run RECIPE --model.backbone.weights={folder}) and give the run's `model` folder"
    )


def _is_packed(name: str, info: TensorInfo) -> bool:
    return name.endswith(PACKED) or (name.endswith(".weight") and info.dtype not in PLAIN)


def _explain_quantized(source: str, reason: str) -> str:
    return (
        f"{source} is quantized ({reason}); v1lit takes plain float32, float16 or bfloat16 weights\n"
        "give the checkpoint it was made from, before quantization"
    )


def _explain_trained(folder: Path, model_type: str) -> str:
    if model_type == OURS:
        what = "a model that v1lit exported, pointer head included (to train it on: --run.resume=CHECKPOINT)"
        reader, rest = "from_pretrained", ""
        files = (
            "; from v1lit.backbones.processor import Processor as P; "
            f"P.from_pretrained('{folder}').save_pretrained('NEW')"
        )
    else:
        what = "a checkpoint in the published layout, pointer heads included"
        reader, files, rest = "from_published", "", ", with tokenizer and processor files of its backbone"
    return (
        f"{folder} is {what}, not a backbone\nto start anew from its backbone, give NEW{rest}, after: "
        f'python -c "from v1lit import PointAndCopyModel as M; '
        f"M.{reader}('{folder}').backbone.save_pretrained('NEW'){files}\""
    )


def _explain_file(path: Path) -> str:
    if path.suffix == ".ckpt":
        return _explain_checkpoint(path)
    if path.suffix == ".gguf":
        return f"{path} is a GGUF file, which v1lit does not read\ngive the checkpoint it was made from"
    if path.suffix in (".safetensors", ".json"):
        return f"{path} is one file of a checkpoint\ngive its folder: {path.parent}"
    return f"{path} is a file, not a checkpoint's folder"


def _explain_checkpoint(path: Path) -> str:
    return (
        f"{path} is a checkpoint of a run, not a backbone's folder\n"
        f"to train on from it: lightning run RECIPE --run.resume={path}"
    )


def _export(checkpoint: Path) -> str:
    return f"make one of it with: v1lit export {checkpoint} OUT"


def _explain_no_config(folder: Path) -> str:
    if (folder / CHECKPOINT).is_file():
        return _explain_checkpoint(folder)
    if (folder / "recipe.yaml").is_file() and (folder / "checkpoints").is_dir():
        return (
            f"{folder} is the folder of a run, not a backbone: it has no config.json\n"
            f"to train it on: lightning run {folder / 'recipe.yaml'} "
            f"--run.resume={folder / 'checkpoints/last.ckpt'}"
        )
    inside = sorted(_checkpoints_below(folder))
    if inside:
        more = f" (and {len(inside) - 1} more below it)" if len(inside) > 1 else ""
        return f"{folder} has no config.json itself, but a folder inside has\ngive {inside[0]}{more}"
    names = [entry.name for entry in os.scandir(folder)]
    gguf = [name for name in names if name.endswith(".gguf")]
    if gguf:
        return (
            f"{folder} has no config.json, only weights for inference such as {gguf[0]}\n"
            "give the checkpoint they were made from, in the transformers layout"
        )
    if (folder / SINGLE).is_file() or any(name.endswith((".safetensors", ".bin", ".pth")) for name in names):
        return (
            f"{folder} has weights, but no config.json to say what they are\n"
            f"get the other files of the checkpoint as well: {download(folder)}"
        )
    return (
        f"{folder} has no config.json\ngive a folder in the transformers layout, such as: {download(folder)}"
    )


def _checkpoints_below(folder: Path) -> Iterator[str]:
    """Folders with a config.json at most three levels down; a hub cache keeps them in snapshots."""
    left = SEARCHED
    waiting = [(folder, 0)]
    while waiting:
        parent, depth = waiting.pop(0)
        for entry in os.scandir(parent):
            left -= 1
            if left < 0:
                return
            if entry.name == CONFIG and depth > 0:
                yield str(parent)
            elif depth < 3 and entry.is_dir(follow_symlinks=False):
                waiting.append((Path(entry.path), depth + 1))
