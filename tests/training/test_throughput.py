"""What is logged about speed: right sums, the right clock, and nothing twice."""

from __future__ import annotations

import gc
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Callback
from lightning.pytorch.profilers import AdvancedProfiler, SimpleProfiler

from v1lit.data.loading.ranks import Ranks
from v1lit.training import throughput
from v1lit.training.throughput import Stopwatch, Throughput


class Clock:
    """A clock that only moves when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Log(Callback):
    """Keeps what was logged at each optimizer step, and the batches; moves the clock during steps."""

    def __init__(self, clock: Clock | None = None, seconds: float = 0.0) -> None:
        self.values: dict[int, dict[str, float]] = {}
        self.batches: list[Any] = []
        self.clock, self.seconds = clock, seconds

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if self.clock is not None:
            self.clock.now += self.seconds

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append(batch)
        speed = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("train/")}
        if "train/tokens_per_second" in speed:
            self.values.setdefault(trainer.global_step, speed)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(throughput, "time", clock)
    return clock


@pytest.fixture
def fit(make_data: Any, make_module: Any, make_trainer: Any) -> Any:
    def fit(*callbacks: Callback, data: dict[str, Any] | None = None, **options: Any) -> Any:
        options = {
            "max_steps": 4,
            "max_epochs": -1,
            "limit_val_batches": 0,
            "log_every_n_steps": 2,
            **options,
        }
        trainer = make_trainer(callbacks=list(callbacks), **options)
        trainer.fit(make_module(), datamodule=make_data(**(data or {})))
        return trainer

    return fit


def test_rates_are_the_sums_of_the_interval_over_its_seconds(fit: Any, clock: Clock) -> None:
    log, logged = Log(clock, seconds=0.5), []

    class Counted(Throughput):
        def _values(self, trainer: Any, *args: Any) -> dict[str, float]:
            logged.append(trainer.global_step)
            return super()._values(trainer, *args)

    fit(Counted(peak_tflops=2.0), log, accumulate_grad_batches=2)
    assert logged == [2, 4]
    batches = log.batches[4:]
    assert len(batches) == 4  # two steps of two
    values = log.values[4]
    assert values["train/examples_per_second"] == pytest.approx(sum(map(len, batches)) / 2)
    assert values["train/tokens_per_second"] == pytest.approx(sum(one.tokens for one in batches) / 2)
    real = sum(int(one.attention_mask.sum()) for one in batches)
    assert values["train/real_tokens_per_second"] == pytest.approx(real / 2)
    assert values["train/images_per_second"] == pytest.approx(sum(one.images for one in batches) / 2)
    assert values["train/seconds_per_step"] == pytest.approx(1.0)
    learned = sum(int((one.labels[:, 1:] != -100).sum()) for one in batches)
    assert values["train/supervised_share"] == pytest.approx(learned / real)
    assert values["train/data_wait_share"] == 0.0


def test_batches_that_two_processes_compute_together_count_once(
    fit: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both would be as fast as this one; the peak is that of two devices."""

    class Two(Ranks):
        def add_up_processes(self, table: torch.Tensor) -> torch.Tensor:
            return 2 * table

    def rates(ranks: Ranks, world_size: int) -> dict[str, float]:
        class Alike(Throughput):
            def _values(self, trainer: Any, *args: Any) -> dict[str, float]:
                told = SimpleNamespace(world_size=world_size, global_step=trainer.global_step)
                return super()._values(told, *args)  # type: ignore[arg-type]

        monkeypatch.setattr(throughput, "Ranks", SimpleNamespace(of=lambda trainer: ranks))
        log = Log(clock, seconds=0.5)
        fit(Alike(peak_tflops=2.0), log)
        return log.values[4]

    alone, together = rates(Ranks(), 1), rates(Two(alike=2), 2)
    assert together.pop("train/mfu") == pytest.approx(alone.pop("train/mfu") / 2)
    for name in throughput.RATES:
        if not name.startswith("train/slowest_rank"):  # of processes, not of what they read
            assert together[name] == pytest.approx(alone[name]), name


def test_mfu_is_the_operations_of_the_interval_over_those_of_the_peak(fit: Any, clock: Clock) -> None:
    log, speed = Log(clock, seconds=0.25), Throughput(peak_tflops=2.0)
    trainer = fit(speed, log)
    model_flops = throughput.ModelFlops(trainer.lightning_module.model)
    work = throughput.WorkSum(model_flops.model)
    for batch in log.batches[2:]:
        work.add(batch)
    operations = model_flops.total(work.sum())
    assert log.values[4]["train/mfu"] == pytest.approx(operations / 0.5 / 2e12)
    assert log.values[4]["train/flops_per_step"] == pytest.approx(operations / 2)


def test_without_a_formula_or_a_peak_one_line_says_why_and_the_rest_is_logged(
    fit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def refuse(*_: Any) -> None:
        raise RuntimeError("this device multiplies nothing")

    monkeypatch.setattr(throughput, "find_peak", refuse)
    monkeypatch.setattr(throughput, "rank_zero_info", said.append)
    log = Log()
    fit(Throughput(), log)
    assert said == ["train/mfu is not logged: this device multiplies nothing"]
    assert "train/mfu" not in log.values[4]
    assert log.values[4]["train/flops_per_step"] > 0
    assert log.values[4]["train/tokens_per_second"] > 0


def test_waiting_for_data_is_measured_where_lightning_waits(
    fit: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two thirds of this run are spent in the loader."""
    from v1lit.data.datamodule import V1DataModule

    original = V1DataModule.train_dataloader

    class Slow:
        def __init__(self, loader: Any) -> None:
            self.loader = loader

        def __len__(self) -> int:
            return len(self.loader)

        def __iter__(self) -> Any:
            for batch in self.loader:
                clock.now += 2.0
                yield batch

    monkeypatch.setattr(V1DataModule, "train_dataloader", lambda self: Slow(original(self)))
    log = Log(clock, seconds=1.0)
    fit(Throughput(), log)
    assert log.values[4]["train/data_wait_share"] == pytest.approx(2 / 3)


class Away(Callback):
    """Validation and checkpoints that take ten seconds each."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_validation_batch_end(self, *_: Any, **__: Any) -> None:
        self.clock.now += 10.0

    def on_save_checkpoint(self, *_: Any) -> None:
        self.clock.now += 10.0


def test_validation_and_checkpoints_are_not_training_time(fit: Any, clock: Clock, tmp_path: Any) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint

    log = Log(clock, seconds=0.5)
    saves = ModelCheckpoint(tmp_path / "every", every_n_train_steps=1, save_top_k=-1)
    fit(
        Throughput(),
        log,
        Away(clock),
        saves,
        limit_val_batches=1,
        val_check_interval=1,
        check_val_every_n_epoch=None,
        enable_checkpointing=True,
    )
    assert clock.now > 60
    assert log.values[4]["train/seconds_per_step"] == pytest.approx(0.5)
    assert log.values[4]["train/data_wait_share"] == 0.0


def test_the_profiler_of_the_trainer_still_hears_everything(fit: Any) -> None:
    profiler = SimpleProfiler()
    trainer = fit(Throughput(), profiler=profiler)
    assert trainer.profiler is profiler
    assert any(action.endswith("train_dataloader_next") for action in profiler.recorded_durations)


def test_the_peak_of_a_device_is_given_published_or_measured() -> None:
    from v1lit.training.peak import find_peak, measured_peak, product_kind, published_tflops

    cpu = torch.device("cpu")
    assert find_peak(cpu, "float32", 1.5).flops == 1.5e12
    start = time.perf_counter()
    measured = find_peak(cpu, "float32")
    assert time.perf_counter() - start < 60
    assert measured.flops == measured_peak("cpu", "float32") > 1e9
    assert "measured" in measured.source
    assert published_tflops("NVIDIA A100-SXM4-80GB", "bfloat16") == 312
    assert published_tflops("NVIDIA A100 80GB PCIe", "tf32") == 156
    assert published_tflops("NVIDIA H100 80GB HBM3", "bfloat16") == 989
    assert published_tflops("NVIDIA H200", "float32") == 67
    assert published_tflops("NVIDIA L40S", "bfloat16") == 362
    assert published_tflops("NVIDIA GeForce RTX 4090", "float16") == 165.2
    assert published_tflops("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bfloat16") is None
    assert published_tflops("NVIDIA A10G", "bfloat16") is None
    assert published_tflops("Tesla T4", "bfloat16") is None
    assert product_kind("bf16-mixed", torch.float32, cpu) == "bfloat16"
    assert product_kind("16-true", torch.float16, cpu) == "float16"
    assert product_kind("32-true", torch.bfloat16, cpu) == "bfloat16"
    assert product_kind("32-true", torch.float32, cpu) == "float32"


def test_a_run_shorter_than_the_interval_is_logged_at_its_end(
    make_data: Any, make_module: Any, make_trainer: Any
) -> None:
    trainer = make_trainer(
        max_steps=3, log_every_n_steps=50, limit_val_batches=0, callbacks=[Throughput(peak_tflops=1.0)]
    )
    trainer.fit(make_module(), datamodule=make_data())
    for name in ("real_tokens_per_second", "images_per_second", "data_wait_share", "mfu", "gradient_norm"):
        assert f"train/{name}" in trainer.logged_metrics


def test_a_profiler_behind_the_stopwatch_keeps_what_it_has_recorded() -> None:
    inner = AdvancedProfiler()
    watch = Stopwatch(inner)
    with watch.profile("run_training_batch"):
        pass
    del watch  # as when the run ends, before Lightning asks for the report
    gc.collect()
    assert "run_training_batch" in inner.summary()
