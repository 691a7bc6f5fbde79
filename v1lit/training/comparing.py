"""Whether an exported folder says what its model said: logits of a prompt, or all weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from v1lit.backbones.adapters.folder import adapter_folder
from v1lit.backbones.processor import Processor
from v1lit.data.config import EncodingConfig
from v1lit.data.encode.batch import collate
from v1lit.data.encode.prompt import encode_prompt
from v1lit.data.example import Message
from v1lit.inference.predictor import Predictor
from v1lit.parallel.weight_stream import exported_names
from v1lit.pointer.adapted import computing, read_adapter
from v1lit.pointer.borrow import borrowed
from v1lit.pointer.model import PointAndCopyModel
from v1lit.training.quiet import no_weights_bar

Layout = Literal["v1lit", "published"]
NOTHING = "nothing was compared"
LOGITS = "logits of"
"""Begins what is said where logits were compared."""
ROUNDING = {torch.float32: 1e-4, torch.float16: 0.01, torch.bfloat16: 0.05}
"""What rounding to a type may change of logits, as a share of the largest: a dozen steps of a half type."""
SPARE = 1.25
"""Memory that comparing logits needs, as a multiple of the weights."""


class ExportMismatchError(RuntimeError):
    """What was written is not what the checkpoint holds."""


class Source(Protocol):
    """Where a model's weights come from, and what it is compared with."""

    path: Path
    dtype: torch.dtype | None
    """In which they are written, if not in their own."""

    def read(self, name: str) -> Tensor:
        """A weight by the model's name."""

    def whole_model(self, as_written: bool = True) -> PointAndCopyModel:
        """The model with its weights, of the types in which they are written, or of their own."""

    def processor(self, model: PointAndCopyModel) -> Processor:
        """The model's."""


def compare_logits(before: Tensor, after: Tensor, *types: torch.dtype, than: str, when: str = "") -> str:
    """How far logits `[1, tokens, classes]` lie apart, in words.

    Args:
        before: of the model.
        after: of what was written.
        *types: in which the two were computed.
        than: what the first ones are of, for the message.
        when: the two are, for what is returned.

    Raises ExportMismatchError where rounding to the coarser type does not explain it.
    """
    largest, difference = float(before.abs().max()), float((after - before).abs().max())
    allowed = max(ROUNDING[kind] for kind in types) * max(1.0, largest)
    if not difference <= allowed:
        raise ExportMismatchError(
            f"the model that was written has other logits than {than}: they differ by {difference:.3g}, and "
            f"the largest is {largest:.3g}\nrounding explains {allowed:.1g}; what was written is removed"
        )
    return f"{LOGITS} {after.shape[1]} tokens{when} differ by {difference:.1g} at most, of {largest:.3g}"


def compare_files(folder: Path, names: Mapping[str, str], read: Callable[[str], Tensor], whose: str) -> str:
    """All tensors in the files of a folder are those that `read` gives, bit for bit; says so in words.

    Args:
        folder: has files of safetensors.
        names: the model's own name for every name in the files.
        read: gives a weight by the model's name.
        whose: the weights are.

    Raises ExportMismatchError, naming the first that is not.
    """
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as written:
            for name in written.keys():  # noqa: SIM118  it is no mapping
                tensor = written.get_tensor(name)
                if not same(tensor, read(names[name]).to(tensor.dtype).cpu()):
                    raise ExportMismatchError(f"{name} was not written as {whose} holds it")
    return f"all {len(names)} tensors are equal to {whose}'s, bit for bit"


def compare_export(asked: Predictor, folder: Path) -> str:
    """Compare a folder with the model in memory that was written to it; says what was compared, in words.

    Logits where a second model fits beside it, else every weight. Raises ExportMismatchError.
    """
    model, found = asked.model, adapter_folder(folder)
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    free = memory_beside(model)
    if free is not None and free < SPARE * size:
        if found is None:
            words = compare_files(folder, exported_names(model), model.state_dict().__getitem__, "the model")
        else:
            words = compare_adapter(folder, model.state_dict().__getitem__, model)
        return f"{words}; {too_little(SPARE * size, free)}"
    with borrowed(model):
        before = logits(model, asked.processor)
        opened: Any = open_export(folder, "v1lit")
        after = logits(opened.to(model.device), asked.processor)
    return compare_logits(before, after, model.dtype, than="that in memory")


def compare_adapter(folder: Path, read: Callable[[str], Tensor], model: PointAndCopyModel) -> str:
    """As `compare_files`, of an adapter's folder and the model with adapters that it belongs to."""
    found = adapter_folder(folder)
    assert found is not None
    written = read_adapter(model, found)
    for name, tensor in written.items():
        if not same(tensor.cpu(), read(name).to(tensor.dtype).cpu()):
            raise ExportMismatchError(f"{name} was not written as the checkpoint holds it")
    return f"all {len(written)} tensors are equal to the checkpoint's, bit for bit"


def open_export(folder: Path, layout: Layout) -> PointAndCopyModel:
    """The model of a folder in this layout, in the types in which it was written."""
    with no_weights_bar():
        if layout == "published":
            return PointAndCopyModel.from_published(folder)
        opened: PointAndCopyModel
        if (found := adapter_folder(folder)) is not None:
            opened = PointAndCopyModel.from_adapter(found, alike=False)
        else:
            opened = PointAndCopyModel.from_pretrained(folder, dtype="auto")
        return opened


@torch.no_grad()
def logits(model: Any, processor: Processor) -> Tensor:
    """`[1, tokens, vocabulary + pointers]`: what a model says to a picture and a question.

    It is a `PointAndCopyModel`, or that of `v1lit.pointer.remote`.
    """
    picture = Image.linear_gradient("L").resize((120, 90)).convert("RGB")
    messages = [Message("user", "<image>\nWhere is it bright?")]
    prompt = encode_prompt("the prompt", messages, [picture], processor, EncodingConfig(max_tokens=32768))
    batch = collate([prompt], processor.pad_token_id, side="left").to(model.device)
    inputs = {"attention_mask": batch.attention_mask, **batch.image_inputs}
    with computing(model) if isinstance(model, PointAndCopyModel) else nullcontext():
        found: Tensor = model.eval()(batch.input_ids, **inputs).logits
    # Of places that cannot be pointed at, logits are minus infinity.
    return found.float().nan_to_num(neginf=0.0).cpu()


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal bit for bit."""
    if one.shape != other.shape:
        return False
    return bool(torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8)))


def memory_beside(model: PointAndCopyModel) -> int | None:
    """Bytes that are free where a model is, None where nobody says."""
    return torch.cuda.mem_get_info(model.device)[0] if model.device.type == "cuda" else available_memory()


def available_memory() -> int | None:
    """Bytes that a process may take without others being swapped out; None where nobody says."""
    with suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) * 1024
    return None


def too_little(needed: float, free: float) -> str:
    """Why logits were not compared."""
    return f"logits need {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free"
