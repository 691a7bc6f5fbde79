"""Whether this installation trains, saves, generates and packs as it should: tiny models of every family.

Every check computes the same thing in two ways, so that a library that changed shows.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.fabric.plugins.environments import LightningEnvironment
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from v1lit.backbones.attention import choose_attention
from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.processor import Processor
from v1lit.data.config import EncodingConfig, SourceConfig, StreamConfig
from v1lit.data.datamodule import V1DataModule
from v1lit.data.encode.batch import Batch, collate, flatten
from v1lit.data.encode.encoding import Encoded, encode
from v1lit.data.encode.prompt import encode_prompt
from v1lit.data.example import Example
from v1lit.data.images import decode_image
from v1lit.data.loading.dataset import ShardDataset
from v1lit.data.synthetic import synthesize
from v1lit.inference.loading import load
from v1lit.inference.predictor import Predictor
from v1lit.pointer.model import PointAndCopyModel
from v1lit.training.captured_output import CapturedOutput
from v1lit.training.config import OptimizerConfig
from v1lit.training.module import V1Module
from v1lit.training.packing_check import check_packing
from v1lit.training.quiet import no_weights_bar, quiet
from v1lit.training.results import export

SCENES = 4
TRAINED_STEPS = 3
NEW_TOKENS = 12
POINT_AT = range(3, 7)
"""Generated tokens that are made pointers: a model of three steps need not point by itself."""
ENCODING = EncodingConfig(coordinates=False)
FAMILY_CHECKS = ("train", "save", "cache", "beams", "packing", "loss")
"""Methods of `Family`, in this order; each returns what it compared and the largest relative difference."""
ROUNDING = 1e-4
"""Largest relative difference that another order of adding explains, in float32."""


@dataclass(frozen=True)
class Check:
    """One thing that was computed in two ways."""

    family: str
    name: str
    compared: str
    """What was compared; of a failed check the reason, in one line."""
    difference: float | None
    """The largest relative difference, where numbers were compared."""
    error: Exception | None = None

    @property
    def passed(self) -> bool:
        """Whether the two ways agree."""
        return self.error is None


class SelfTestError(AssertionError):
    """The two ways do not agree; the message says in what."""


def self_test(device: torch.device, captured: CapturedOutput, families: Sequence[str]) -> Iterator[Check]:
    """Every check of every family, as soon as it is done; after a failed one the others are still made.

    What libraries print meanwhile goes to `captured`; files are written to a temporary folder only.
    """
    with scenes_to_try() as scenes:
        for name in families:
            family = Family(name, scenes, device)
            for check in FAMILY_CHECKS:
                with captured.capture():
                    result = run_check(name, check, getattr(family, check))
                yield result


@contextmanager
def scenes_to_try() -> Iterator[Path]:
    """A temporary folder with a few synthetic scenes; meanwhile libraries are quiet, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more do not help tiny models, and wait for each other on a busy machine
    try:
        with tempfile.TemporaryDirectory(prefix="v1lit-self-test-") as folder, quiet(), no_weights_bar():
            scenes = Path(folder) / "scenes"
            synthesize(scenes / "train", examples=SCENES, image_size=(112, 112), workers=1, progress=False)
            yield scenes
    finally:
        torch.set_num_threads(threads)


def run_check(family: str, name: str, check: Callable[[], str | tuple[str, float | None]]) -> Check:
    """The outcome of a check, which returns what it compared, and a difference where it compared numbers."""
    try:
        outcome = check()
    except Exception as error:
        lines = str(error).strip().splitlines() or ["no message"]
        kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
        return Check(family, name, f"{kind}{lines[0]}", None, error)
    compared, difference = (outcome, None) if isinstance(outcome, str) else outcome
    return Check(family, name, compared, difference)


class Family:
    """The tiny version of one family, with the examples that it is tried on."""

    def __init__(self, name: str, scenes: Path, device: torch.device) -> None:
        self.backbone = BackboneConfig(name)
        self.scenes = scenes
        self.device = device
        optimizer = OptimizerConfig(lr=1e-3, schedule="constant", warmup=0.0)
        self.module = V1Module(self.backbone, optimizer=optimizer)
        self.data = V1DataModule(
            self.backbone,
            source=SourceConfig("shards", str(scenes)),
            encoding=ENCODING,
            batch_size=SCENES,
            stream=StreamConfig(cache=str(scenes.parent / "cache")),
        )

    # ------------------------------------------------------------------ the checks

    def train(self) -> tuple[str, None]:
        """Three steps in Lightning's hands lower the loss of the examples that they are taken on."""
        before = self._losses(self.model, self.examples).mean().item()
        trainer = Trainer(
            accelerator=self.device.type,
            devices=1,
            max_steps=TRAINED_STEPS,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=str(self.scenes.parent),
            plugins=[LightningEnvironment()],  # on its own, also inside a job of a cluster
        )
        self.module.train()
        trainer.fit(self.module, datamodule=self.data)
        after = self._losses(self.model, self.examples).mean().item()
        steps = trainer.global_step
        told = f"loss of {SCENES} examples {before:.3f}, after {steps} steps on them {after:.3f}"
        if steps != TRAINED_STEPS or not after < before:
            raise SelfTestError(told)
        return told, None

    def save(self) -> tuple[str, float]:
        """Model and processor, saved and opened again, return the same losses."""
        folder = self.scenes.parent / self.backbone.name
        export(Predictor(self.model, self.processor), folder)
        opened = load(folder, device=str(self.device))
        again = [encode(example, opened.processor, ENCODING) for example in self._stored()]
        what = "losses before saving and after opening"
        losses = self._losses(self.model, self.examples), self._losses(opened.model, again)
        return what, assert_parity(what, *losses)

    def cache(self) -> tuple[str, float]:
        """Greedy generation, in which the model points as well."""
        kept, whole = (self._generate(use_cache=cache, output_logits=True) for cache in (True, False))
        steps = _equal_steps(kept.sequences[:, -NEW_TOKENS:], whole.sequences[:, -NEW_TOKENS:])
        ours, theirs = (torch.stack(run.logits, dim=1)[steps] for run in (kept, whole))
        possible = torch.isfinite(theirs)  # not pointers to images that a row does not have
        if not torch.equal(possible, torch.isfinite(ours)):
            raise SelfTestError("with the cache the model may point elsewhere than without")
        what = f"logits of {NEW_TOKENS} tokens generated with and without cache"
        return what, assert_parity(what, ours[possible], theirs[possible])

    def beams(self) -> tuple[str, float]:
        """Beam search, in which rows are expanded and reordered."""
        options = {"num_beams": 2, "num_return_sequences": 2, "output_scores": True}
        kept, whole = (self._generate(use_cache=cache, **options) for cache in (True, False))
        what = "scores of beams with and without cache"
        return what, assert_parity(what, kept.sequences_scores, whole.sequences_scores)

    def packing(self) -> tuple[str, float | None]:
        """Examples in one row, and each alone: losses, gradients, and what leaks from one into another."""
        if not self.processor.backbone.packs:
            return "nothing: this backbone does not pack, its rows are padded", None
        worst = 0.0
        # A GPU trains in half precision, through other kernels.
        for dtype in (torch.float32, torch.bfloat16) if self.device.type == "cuda" else (torch.float32,):
            causal = self.model.is_causal
            kernel = choose_attention(self.backbone.attention, self.device, dtype, causal).name
            self.model.use_attention(kernel)
            with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
                check = check_packing(self.model, self.examples, self.processor.pad_token_id, dtype)
            differences = [check.gradient, *(example.difference for example in check.examples)]
            leak = max(example.leak for example in check.examples)
            if not check.passed:
                raise SelfTestError(
                    f"packed differs from alone by {max(differences):.1e} through {kernel}, allowed "
                    f"{check.tolerance:.0e}; {leak:.1e} leaks from other examples, allowed 0"
                )
            worst = max(worst, *differences) if dtype == torch.float32 else worst
        return f"losses and gradients, {SCENES} examples packed and alone; no leak", worst

    def loss(self) -> tuple[str, float]:
        """The loss and its gradients as a run computes them, and as the readable reference does."""
        self.model.verify_loss = True  # raises LossMismatchError
        try:
            verified = self.model(**self._batch(self.examples).model_inputs).verified
        finally:
            self.model.verify_loss = False
        assert verified is not None
        return "loss and gradients, as a run and as the reference computes them", verified

    # ------------------------------------------------------------------ what they are made of

    @cached_property
    def processor(self) -> Processor:
        return self.data.processor

    @property
    def model(self) -> PointAndCopyModel:
        """The module's model, on the device."""
        self.module.configure_model()
        self.module.to(self.device)
        return self.module.model

    @cached_property
    def examples(self) -> list[Encoded]:
        return [encode(example, self.processor, ENCODING) for example in self._stored()]

    def _stored(self) -> list[Example]:
        readable = ShardDataset(self.scenes / "train", shuffle=False, rank=0, world_size=1)
        return list(islice(readable, SCENES))

    def _batch(self, examples: Sequence[Encoded]) -> Batch:
        packs = self.processor.backbone.packs
        batch = flatten(examples) if packs else collate(examples, self.processor.pad_token_id)
        return batch.to(self.device)

    def _losses(self, model: PointAndCopyModel, examples: Sequence[Encoded]) -> Tensor:
        with torch.no_grad():
            losses: Tensor = model.eval()(**self._batch(examples).model_inputs, reduction="none").loss
        return losses

    def _generate(self, **options: Any) -> Any:
        prompts = [
            encode_prompt(
                example.id,
                example.messages[:1],
                [decode_image(image.data) for image in example.images],
                self.processor,
                ENCODING,
            )
            for example in self._stored()[:2]
        ]
        batch = collate(prompts, self.processor.pad_token_id, side="left").to(self.device)
        points = Pointing(self.processor.pointer_start, batch.input_ids.shape[1])
        return self.model.eval().generate(
            batch.input_ids,
            attention_mask=batch.attention_mask,
            **batch.image_inputs,
            logits_processor=LogitsProcessorList([points]),
            encode_text=self.processor.encode_text,
            do_sample=False,
            min_new_tokens=NEW_TOKENS,
            max_new_tokens=NEW_TOKENS,
            eos_token_id=self.processor.stop_token_id,
            pad_token_id=self.processor.pad_token_id,
            return_dict_in_generate=True,
            **options,
        )


def assert_parity(what: str, ours: Tensor, theirs: Tensor, rounding: float = ROUNDING) -> float:
    """The largest difference of two tensors, relative to the largest number in `theirs`.

    Raises SelfTestError, saying `what`, for other shapes, for numbers that are not finite, and for a
    difference above `rounding`.
    """
    if ours.shape != theirs.shape:
        raise SelfTestError(f"{what}: {tuple(ours.shape)} and {tuple(theirs.shape)} numbers")
    if not theirs.numel():
        return 0.0
    size = theirs.abs().max().item()
    difference = (ours - theirs).abs().max().item() / max(size, 1e-12)
    if not difference <= rounding or not math.isfinite(size):
        raise SelfTestError(f"{what} differ by {difference:.1e}, allowed {rounding:.0e}")
    return difference


class Pointing(LogitsProcessor):
    """Makes some of the generated tokens pointers."""

    def __init__(self, pointer_start: int, prompt: int) -> None:
        self.pointer_start, self.prompt = pointer_start, prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if input_ids.shape[1] - self.prompt in POINT_AT:
            scores = scores.clone()
            scores[:, : self.pointer_start] = -torch.inf
        return scores


def _equal_steps(ours: Tensor, theirs: Tensor) -> Tensor:
    """`[rows, steps]`, true where the input was the same: after a tie, rows go different ways."""
    same = (ours == theirs).cumprod(dim=1).bool()
    return torch.cat([torch.ones_like(same[:, :1]), same[:, :-1]], dim=1)
