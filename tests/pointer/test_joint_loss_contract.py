"""What the joint loss promises beside numbers: memory, no waiting, choices that are said, helpful errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.loss_cases import SHAPES, Shape, make_rows
from torch.utils._python_dispatch import TorchDispatchMode

from v1lit.pointer.joint_loss import (
    LossMismatchError,
    LossOptions,
    choice,
    choose_loss,
    pointer_cross_entropy,
    verify_pointer_loss,
)
from v1lit.pointer.joint_loss.chunked import _adds_in_place
from v1lit.pointer.joint_loss.rows import LogitRows, RowTerms, torch_rows

CPU, GPU = torch.device("cpu"), torch.device("cuda")
TALL = Shape(positions=(120, 136), image_tokens=(6, 4), start=500, vocabulary=500)


class Watch(TorchDispatchMode):
    """Notes the largest tensor that an operator makes, and the operators' names."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.names.add(str(func.overloadpacket).removeprefix("aten."))
        for one in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(one, torch.Tensor):
                self.largest = max(self.largest, one.numel())
        return made


def watched(shape: Shape, **options: Any) -> Watch:
    rows = make_rows(shape, torch.float32, gate=True)
    with Watch() as watch:
        rows.loss(**options).loss.sum().backward()
    return watch


@pytest.mark.parametrize("options", [{}, {"z_weight": 0.1, "z_top_k": 4}, {"separate": True}], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_positions_times_vocabulary_is_never_held(reduction: str, options: dict[str, Any]) -> None:
    """With 16 of 256 positions at a time; the reference shows that the watch would see it."""
    everything = 256 * 500
    ours = watched(TALL, chunk=16, reduction=reduction, **options)
    assert ours.largest <= 16 * (500 + 6)
    assert watched(TALL, implementation="reference", reduction=reduction, **options).largest >= everything


def test_no_operator_waits_for_the_device() -> None:
    waits = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique_dim"}
    for options in ({"z_weight": 0.1, "label_smoothing": 0.1}, {"separate": True}, {"reduction": "none"}):
        assert not watched(TALL, chunk=100, **options).names & waits
    with Watch() as watch:
        torch.ones(()).item()
    assert watch.names & waits


def test_a_good_number_of_positions_per_chunk_is_alike_in_all() -> None:
    from v1lit.pointer.joint_loss.chunked import BUFFER, SweepPlan

    plan = SweepPlan((152_064), (4096,), (1000,), 1.0, LossOptions(), torch_rows, torch.float32, (True,) * 4)
    chunk = plan.rows_per_chunk(CPU)
    assert chunk % 16 == 0
    assert BUFFER["cpu"] // 2 < chunk * plan.width(CPU) * 4 <= BUFFER["cpu"] * 1.1
    assert replace(plan, positions=(3,)).rows_per_chunk(CPU) == 3
    assert replace(plan, positions=()).rows_per_chunk(CPU) == 1
    assert replace(plan, options=LossOptions(chunk=7)).rows_per_chunk(CPU) == 7
    assert plan.width(GPU) % 64 == 0 <= plan.width(GPU) - plan.width(CPU) < 64


# ---------------------------------------------------------------------- choices


def test_auto_says_what_it_took_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    name, line = choose_loss("auto", CPU, torch.bfloat16)
    assert name == "chunked"
    assert "triton" in line
    pytest.importorskip("triton", reason="triton is not installed")
    monkeypatch.setattr(choice, "_trial", lambda device, dtype: None)
    assert choose_loss("auto", GPU, torch.bfloat16).name == "triton"
    assert choose_loss("auto", GPU, torch.float32) == (
        "chunked",
        "loss: chunked; not triton: it gains nothing in float32",
    )
    name, line = choose_loss("auto", GPU, torch.bfloat16, z_top_k=40)
    assert name == "chunked"
    assert "z_top_k" in line


def test_a_choice_that_cannot_work_is_refused() -> None:
    with pytest.raises(ValueError, match="allowed: auto, reference, chunked, triton"):
        choose_loss("liger", CPU, torch.float32)
    with pytest.raises(ValueError, match=r"triton.*z_top_k"):
        choose_loss("triton", GPU, torch.bfloat16, z_top_k=40)
    with pytest.raises(ValueError, match=r"triton.*float64"):
        choose_loss("triton", GPU, torch.float64)


def test_a_kernel_for_gpus_is_refused_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="needs a GPU, and the model is on cpu"):
        choose_loss("triton", CPU, torch.bfloat16)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], None]]:
    """Puts another function in place of the kernel, as if on a GPU."""
    module = pytest.importorskip("v1lit.pointer.joint_loss.triton_rows", reason="triton is not installed")
    monkeypatch.setenv("TRITON_INTERPRET", "1")

    def put(rows: Any) -> None:
        choice._trial.cache_clear()
        monkeypatch.setattr(module, "triton_rows", rows)

    yield put
    choice._trial.cache_clear()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_a_kernel_that_does_what_plain_torch_does_is_taken(kernel: Any, dtype: torch.dtype) -> None:
    calls = []

    def noting_rows(rows: LogitRows) -> RowTerms:
        calls.append(1)
        return torch_rows(rows)

    kernel(noting_rows)
    for _ in range(2):
        assert choose_loss("triton", CPU, dtype) == ("triton", "loss: triton, as asked for")
        assert choose_loss("auto", CPU, dtype).name == ("chunked" if dtype == torch.float32 else "triton")
    assert len(calls) == 1


@pytest.mark.parametrize("wrong", ["raises", "loss", "gradient", "predictions"])
def test_a_kernel_that_fails_on_this_device_is_not_taken(kernel: Any, wrong: str) -> None:
    def failing_rows(rows: LogitRows) -> RowTerms:
        if wrong == "raises":
            raise RuntimeError("PTX is of a newer version\nthan the driver")
        terms = torch_rows(rows)
        if wrong == "gradient":
            rows.logits.mul_(1.05)
        if wrong == "loss":
            terms = terms._replace(cross_entropy=terms.cross_entropy * 1.05)
        if wrong == "predictions":
            terms = terms._replace(predictions=terms.predictions + 1)
        return terms

    kernel(failing_rows)
    found = {"raises": "RuntimeError: PTX is of a newer version"}.get(wrong, "its results are not those of")
    name, line = choose_loss("auto", CPU, torch.bfloat16)
    assert name == "chunked"
    assert line.startswith(f"loss: chunked; not triton: it fails here: {found}")
    with pytest.raises(ValueError, match=f"is 'triton'; it fails here: {found}"):
        choose_loss("triton", CPU, torch.bfloat16)
    assert choose_loss("chunked", CPU, torch.bfloat16).name == "chunked"


def added(*arguments: Any, **options: Any) -> torch.Tensor:
    out = options["out"]
    product = arguments[1].float() @ arguments[2].float()
    return out.copy_(arguments[0] + options["alpha"] * product)


def too_little(*arguments: Any, **options: Any) -> torch.Tensor:
    return options["out"]


def unknown(*arguments: Any, **options: Any) -> torch.Tensor:
    raise TypeError("addmm() got an unexpected keyword argument 'out_dtype'")


@pytest.mark.parametrize(("addmm", "found"), [(added, True), (too_little, False), (unknown, False)])
def test_only_a_torch_that_adds_rightly_in_place_is_let_do_so(
    addmm: Any, found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "addmm", addmm)
    assert _adds_in_place.__wrapped__(CPU, torch.bfloat16) is found


def test_sequences_without_an_image_take_no_products() -> None:
    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "mm" in str(func):
                sizes.extend(x.numel() for x in args if isinstance(x, torch.Tensor))
            return func(*args, **(kwargs or {}))

    sizes: list[int] = []
    with Products():
        make_rows(SHAPES["packed, some without"], torch.float32).loss(chunk=5).loss.backward()
    assert sizes
    assert 0 not in sizes


def test_without_triton_a_gpu_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("v1lit.pointer.joint_loss.choice.find_spec", lambda name: None)
    assert (
        choose_loss("auto", GPU, torch.bfloat16).line == "loss: chunked; not triton: triton is not installed"
    )


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reduction": "max"}, "allowed: mean, sum, none"),
        ({"reduction": "sum", "normalizer": 3.0}, "a normalizer divides a mean"),
        ({"normalizer": torch.ones(2)}, r"joint loss has shape \[\]; this has \[2\]"),
        ({"normalizer": 3.0, "separate": True}, r"separate losses has shape \[2\]"),
        ({"z_weight": 0.1, "separate": True}, "no z-loss"),
        ({"chunk": 0}, "chunk is 0"),
    ],
)
def test_options_that_exclude_each_other_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_rows(SHAPES["two sequences"]).loss(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: {"labels": rows.labels[1:]}, r"hidden has shape \[16, 16\]; the others ask for \[15"),
        (lambda rows: {"weights": rows.weights[:, None]}, r"weights has shape \[16, 1\]"),
        (lambda rows: {"gate": rows.weights}, r"gate has shape \[16\]; the others ask for \[16, 1\]"),
        (lambda rows: {"start": 65}, "pointer_start is 65"),
        (lambda rows: {"pointers": replace(rows.pointers, positions=(9, 6))}, "counts 15 in 2 sequences"),
        (lambda rows: {"pointers": replace(rows.pointers, image_tokens=(6, 5))}, r"keys has shape \[10, 8\]"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(change: Callable[[Any], Any], message: str) -> None:
    rows = replace(make_rows(SHAPES["two sequences"]), pointers=make_rows(SHAPES["two sequences"]).pointers)
    broken = replace(rows, **change(rows))
    if broken.labels.shape != rows.labels.shape:
        broken = replace(broken, pointers=None)
    with pytest.raises(ValueError, match=message):
        broken.loss()


# ---------------------------------------------------------------------- verification on live batches


def verify(rows: Any, limit: int = 256, **options: Any) -> dict[str, float]:
    return verify_pointer_loss(
        rows.hidden, rows.head, rows.labels, rows.start, rows.pointers, LossOptions(**options),
        gate=rows.gate, weights=rows.weights, limit=limit,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("options", [{"z_weight": 1e-2}, {"separate": True, "label_smoothing": 0.1}], ids=str)
def test_a_good_implementation_passes_and_the_model_is_left_alone(
    options: dict[str, Any], dtype: torch.dtype
) -> None:
    for seed in range(5):
        rows = make_rows(SHAPES["packed, some without"], dtype, seed, gate=True)
        found = verify(rows, **options)
        assert set(found) == {
            "the loss",
            *(f"the gradient of {n}" for n in ("hidden", "head", "queries", "keys")),
        }
        assert all(leaf.grad is None for leaf in rows.leaves().values())


@pytest.mark.parametrize("wrong", ["loss", "gradient"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_wrong_implementation_is_named_with_its_error(
    wrong: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows_with_an_error(rows: LogitRows) -> RowTerms:
        terms = torch_rows(rows)
        if wrong == "gradient":
            rows.logits.mul_(1.05)
            return terms
        return terms._replace(cross_entropy=terms.cross_entropy * 1.05)

    monkeypatch.setattr("v1lit.pointer.joint_loss.choice.torch_rows", rows_with_an_error)
    message = "of the loss" if wrong == "loss" else "of the gradient of hidden"
    with pytest.raises(LossMismatchError, match=rf"'chunked'.*relative error 0.0[45]\d* {message}, allowed"):
        verify(make_rows(SHAPES["two sequences"], dtype), implementation="chunked")


def test_verification_takes_few_positions_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def noting_rows(rows: LogitRows) -> RowTerms:
        seen.append(len(rows.logits))
        return torch_rows(rows)

    monkeypatch.setattr("v1lit.pointer.joint_loss.choice.torch_rows", noting_rows)
    verify(make_rows(TALL, torch.float32), limit=100, implementation="chunked")
    assert seen == [86, 86]  # every third of 256; once for losses, once for gradients


def test_labels_that_are_no_ids_are_refused() -> None:
    with pytest.raises(ValueError, match=r"labels are ids, not torch.float32"):
        pointer_cross_entropy(torch.zeros(2, 3), torch.zeros(7, 3), torch.tensor([1.0, 2.0]), 7)


def test_a_smoothing_beyond_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"label_smoothing is 2.0"):
        LossOptions(label_smoothing=2.0)
