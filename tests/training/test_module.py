"""Training: it learns, resumes exactly, stops at what is not a number, and logs what it should."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from lightning.pytorch.strategies import DDPStrategy

from v1lit.backbones.config import BackboneConfig
from v1lit.data.config import EncodingConfig, PackingConfig
from v1lit.data.encode.batch import Batch
from v1lit.pointer.config import PointerConfig
from v1lit.revisit.config import RevisitConfig
from v1lit.training.config import OptimizerConfig
from v1lit.training.logged import names_in_training, names_in_validation
from v1lit.training.module import NonFiniteLossError, V1Module
from v1lit.training.run import trainer_defaults
from v1lit.training.steps import total_steps

pytestmark = pytest.mark.dependencies


class Seen(Callback):
    """Notes the examples of every training batch."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, ...]] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Batch, batch_idx: int) -> None:
        self.batches.append(batch.ids)


def weights(module: V1Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.model.named_parameters()}


@pytest.mark.slow
def test_the_loss_falls(make_data: Any, make_module: Any, make_trainer: Any) -> None:
    module, data = make_module(), make_data()
    losses: list[float] = []

    class Note(Callback):
        def on_train_batch_end(
            self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            losses.append(outputs["loss"].item())

    make_trainer(max_epochs=5, callbacks=[Note()]).fit(module, datamodule=data)
    assert len(losses) == 30
    assert sum(losses[-6:]) < 0.9 * sum(losses[:6])


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_example_once_per_epoch_in_an_order_of_seed_and_epoch(
    make_data: Any, make_module: Any, make_trainer: Any, num_workers: int
) -> None:
    found = []
    for _ in range(2):
        seen = Seen()
        make_trainer(max_epochs=2, callbacks=[seen], limit_val_batches=0).fit(
            make_module(), datamodule=make_data(num_workers=num_workers)
        )
        found.append(seen.batches)
    assert found[0] == found[1]
    epochs = [sorted(sum(found[0][:6], ())), sorted(sum(found[0][6:], ()))]
    assert len(set(epochs[0])) == 24
    assert epochs[0] == epochs[1]
    assert found[0][:6] != found[0][6:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "optimizer"),
    [
        ({}, OptimizerConfig(lr=1e-3)),
        ({"num_workers": 1, "group_by_length": 3}, OptimizerConfig(name="muon", lr=1e-3)),
    ],
    ids=["plain", "as the tiny recipes: a worker, grouped, Muon"],
)
@pytest.mark.parametrize("stop", [4, 6, 8], ids=["inside the first epoch", "at its end", "inside the second"])
def test_resumed_weights_equal_those_of_a_run_that_never_stopped(
    make_data: Any, make_trainer: Any, tmp_path: Path, stop: int, data: Any, optimizer: Any
) -> None:
    def start() -> V1Module:
        return V1Module(BackboneConfig("qwen2_5_vl"), optimizer=optimizer)

    whole = start()
    seen = Seen()
    make_trainer(max_steps=10, max_epochs=-1, callbacks=[seen]).fit(whole, datamodule=make_data(**data))

    class StopAt(Callback):
        """Ends the first part while the schedule still counts on 10 steps."""

        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step == stop:
                trainer.save_checkpoint(tmp_path / "part.ckpt")
                trainer.should_stop = True

    first, second = Seen(), Seen()
    make_trainer(max_steps=10, max_epochs=-1, callbacks=[first, StopAt()]).fit(
        start(), datamodule=make_data(**data)
    )
    resumed = start()
    make_trainer(max_steps=10, max_epochs=-1, callbacks=[second]).fit(
        resumed, datamodule=make_data(**data), ckpt_path=tmp_path / "part.ckpt", weights_only=True
    )
    assert first.batches + second.batches == seen.batches
    expected = weights(whole)
    for name, value in weights(resumed).items():
        assert torch.equal(value, expected[name]), name


def test_the_vectors_that_a_strategy_learns_are_resumed(
    make_data: Any, make_module: Any, make_trainer: Any, tmp_path: Path
) -> None:
    """The input of all pointers and the end of a run, with what the optimizer remembers of them."""
    revisit = RevisitConfig("point_only", {"end": "pointer"})

    class Save(Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step == 2:
                trainer.save_checkpoint(tmp_path / "2.ckpt")

    whole, resumed = make_module(revisit=revisit), make_module(revisit=revisit)
    make_trainer(max_steps=4, callbacks=[Save()]).fit(whole, datamodule=make_data(revisit=revisit))
    make_trainer(max_steps=4).fit(
        resumed, datamodule=make_data(revisit=revisit), ckpt_path=tmp_path / "2.ckpt", weights_only=True
    )
    saved = torch.load(tmp_path / "2.ckpt", weights_only=True)["state_dict"]
    expected = weights(whole)
    for name, value in weights(resumed).items():
        assert torch.equal(value, expected[name]), name
    for name in ("look.weight", "pointer_head.end_key.weight", "pointer_head.end_input.weight"):
        assert not torch.equal(expected[name], saved["model." + name]), name


def test_a_checkpoint_opens_without_running_code(
    make_data: Any, make_module: Any, make_trainer: Any, tmp_path: Path
) -> None:
    trainer = make_trainer(max_steps=1)
    trainer.fit(make_module(), datamodule=make_data())
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    assert "state_dict" in torch.load(tmp_path / "one.ckpt", weights_only=True)


def test_a_loss_that_is_not_a_number_stops_the_run_and_names_the_examples(
    make_data: Any, make_module: Any, make_trainer: Any, spoil: Any
) -> None:
    seen = Seen()
    with pytest.raises(NonFiniteLossError) as error:
        make_trainer(max_steps=6, callbacks=[seen]).fit(spoil(make_module(), {2}), datamodule=make_data())
    assert len(seen.batches) == 3
    assert all(example in str(error.value) for example in seen.batches[2])
    assert "the loss is nan at step 2" in str(error.value)


def test_or_it_is_skipped_and_counted_up_to_a_limit(
    make_data: Any, make_module: Any, make_trainer: Any, spoil: Any
) -> None:
    module = spoil(make_module(on_nonfinite="skip", max_nonfinite=2), {1, 3})
    trainer = make_trainer(max_epochs=1)
    trainer.fit(module, datamodule=make_data())
    assert module.nonfinite == 2
    # Lightning counts a skipped batch as a step of the schedule, but the optimizer saw four gradients.
    assert {int(state["step"]) for state in trainer.optimizers[0].state.values()} == {4}
    assert all(torch.isfinite(value).all() for value in weights(module).values())
    with pytest.raises(NonFiniteLossError, match="max_nonfinite=2"):
        make_trainer(max_epochs=1).fit(
            spoil(make_module(on_nonfinite="skip", max_nonfinite=2), {1, 2, 3}), datamodule=make_data()
        )


def test_a_loss_of_regions_is_logged_where_the_strategy_has_one(
    make_data: Any, make_module: Any, make_trainer: Any, tmp_path: Path
) -> None:
    options = trainer_defaults(tmp_path)
    options["callbacks"] = options["callbacks"][:-1]  # no progress bar
    revisit = RevisitConfig("multi_patch")
    make_trainer(
        max_epochs=1, log_every_n_steps=2, gradient_clip_val=1.0, enable_checkpointing=True, **options
    ).fit(make_module(revisit=revisit), datamodule=make_data(revisit=revisit))
    with (tmp_path / "csv" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    logged = {name for row in rows for name, value in row.items() if value}
    listed = {
        *names_in_training(PointerConfig(), regions=True),
        *names_in_validation(PointerConfig(), regions=True),
    }
    assert {"train/loss_regions", "val/loss_regions"} <= logged
    assert {name for name in listed if name.startswith(("train/", "val/"))} <= logged
    for split in ("train", "val"):
        parts = [f"{split}/loss_{part}" for part in ("joint", "z", "regions")]
        for row in rows:
            if row.get(f"{split}/loss"):
                assert float(row[f"{split}/loss"]) == pytest.approx(sum(float(row[part]) for part in parts))


def test_how_well_ends_are_predicted_is_logged_where_they_are_a_choice(
    make_data: Any, make_module: Any, make_trainer: Any, tmp_path: Path
) -> None:
    options = trainer_defaults(tmp_path)
    options["callbacks"] = options["callbacks"][:-1]  # no progress bar
    revisit = RevisitConfig(options={"end": "pointer"})
    make_trainer(
        max_epochs=1, log_every_n_steps=2, gradient_clip_val=1.0, enable_checkpointing=True, **options
    ).fit(make_module(revisit=revisit), datamodule=make_data(revisit=revisit))
    with (tmp_path / "csv" / "metrics.csv").open() as file:
        logged = {name for row in csv.DictReader(file) for name, value in row.items() if value}
    listed = {
        *names_in_training(PointerConfig(), ends=True),
        *names_in_validation(PointerConfig(), ends=True),
    }
    assert {"train/end_accuracy", "val/forced_end_accuracy"} <= logged
    assert logged - listed == {"epoch", "step"}


def test_everything_promised_is_logged(
    make_data: Any, make_module: Any, make_trainer: Any, tmp_path: Path
) -> None:
    options = trainer_defaults(tmp_path)
    options["callbacks"] = options["callbacks"][:-1]  # no progress bar
    make_trainer(
        max_epochs=1, log_every_n_steps=2, gradient_clip_val=1.0, enable_checkpointing=True, **options
    ).fit(make_module(), datamodule=make_data())
    with (tmp_path / "csv" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    logged = {name for row in rows for name, value in row.items() if value}
    assert logged >= {
        "train/loss", "train/loss_joint", "train/loss_z", "train/learning_rate", "train/gradient_norm",
        "train/pointer_accuracy", "train/pointer_first_accuracy", "train/pointer_first_in_region",
        "train/region_iou", "train/text_accuracy", "train/tokens_per_second", "train/examples_per_second",
        "train/padding_share", "val/loss", "val/forced_pointer_accuracy", "val/forced_pointer_first_accuracy",
        "val/forced_pointer_first_in_region", "val/forced_region_iou", "val/forced_text_accuracy",
    }  # fmt: skip
    listed = {*names_in_training(PointerConfig()), *names_in_validation(PointerConfig())}
    assert logged - listed == {"epoch", "step"}
    assert {name for name in listed if name.startswith(("train/", "val/"))} <= logged
    assert list((tmp_path / "tensorboard").glob("events.*"))
    shares = [float(row["train/padding_share"]) for row in rows if row.get("train/padding_share")]
    assert all(0 <= share < 0.6 for share in shares)


def test_the_validation_loss_is_the_mean_over_all_positions(
    make_data: Any, make_module: Any, make_trainer: Any
) -> None:
    """Batches of 4 and 2 examples: not the mean of two means."""
    found = []
    for size in (4, 6):
        module = make_module()
        trainer = make_trainer()
        trainer.validate(module, datamodule=make_data(val_batch_size=size), verbose=False)
        found.append(trainer.callback_metrics["val/loss"].item())
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_the_same_seed_gives_the_same_weights(make_module: Any) -> None:
    first, second, other = make_module(), make_module(), make_module(init_seed=1)
    torch.manual_seed(1)
    first.configure_model()
    torch.manual_seed(2)
    for module in (second, other):
        module.configure_model()
    a, b, c = weights(first), weights(second), weights(other)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


def test_separate_losses_train_as_well(make_data: Any, make_module: Any, make_trainer: Any) -> None:
    module = make_module(pointer=PointerConfig(loss="separate", z_weight=0.0))
    trainer = make_trainer(max_steps=2)
    trainer.fit(module, datamodule=make_data())
    assert {"train/loss_text", "train/loss_pointer"} <= set(trainer.logged_metrics)


def test_a_schedule_without_an_end_is_refused(make_data: Any, make_module: Any, make_trainer: Any) -> None:
    with pytest.raises(ValueError, match=r"needs to know its end; set trainer.max_steps"):
        make_trainer(max_epochs=-1).fit(make_module(), datamodule=make_data())


def test_verify_loss_stops_at_a_wrong_loss(
    make_data: Any, make_module: Any, make_trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compared every second step: the loss goes wrong after the first, unseen at the second."""
    from v1lit.pointer.joint_loss import LossMismatchError, choice

    original = choice.torch_rows
    steps: list[int] = []

    def wrong(rows: Any) -> Any:
        terms = original(rows)
        if steps:
            rows.logits.mul_(1.01)
        return terms

    class Count(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            steps.append(1)

    monkeypatch.setattr(choice, "torch_rows", wrong)
    trainer = make_trainer(max_steps=6, callbacks=[Count()], limit_val_batches=0)
    with pytest.raises(LossMismatchError, match="gradient"):
        trainer.fit(make_module(verify_loss=2), datamodule=make_data())
    assert len(steps) == 2


def test_verify_loss_is_content_with_a_right_one(make_data: Any, make_module: Any, make_trainer: Any) -> None:
    trainer = make_trainer(max_steps=2, val_check_interval=1)  # validation has no gradients to compare
    trainer.fit(make_module(verify_loss=1), datamodule=make_data())
    assert trainer.global_step == 2
    assert 0 < trainer.logged_metrics["train/loss_error"] < 1e-4


def test_the_log_says_which_kernels_were_chosen(
    make_data: Any, make_module: Any, make_trainer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        make_trainer(max_steps=1, limit_val_batches=0).fit(make_module(), datamodule=make_data())
    assert "attention: sdpa (flash_attention_2: needs a CUDA GPU" in caplog.text
    assert "loss: chunked; not triton" in caplog.text


def test_a_schedule_knows_the_end_of_packed_epochs_where_lengths_are_known(
    make_data: Any, make_module: Any, make_trainer: Any
) -> None:
    packed = {"packing": PackingConfig(length=512), "encoding": EncodingConfig(max_tokens=512)}
    trainer = make_trainer(max_epochs=2, accumulate_grad_batches=2, limit_val_batches=0)
    trainer.fit(make_module(), datamodule=make_data(**packed))
    assert total_steps(trainer) == trainer.global_step > 2


def test_or_has_to_be_told_it(
    make_data: Any, make_module: Any, make_trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("v1lit.data.loading.planning.measured_table", lambda *_: None)
    packed = {"packing": PackingConfig(length=1024), "encoding": EncodingConfig(max_tokens=1024)}
    with pytest.raises(ValueError, match=r"set trainer\.max_steps \(the length of an epoch"):
        make_trainer(max_epochs=1).fit(make_module(), datamodule=make_data(**packed))
    unending = V1Module(BackboneConfig("qwen2_5_vl"), optimizer=OptimizerConfig(schedule="constant"))
    with pytest.raises(ValueError, match=r"model\.optimizer\.warmup=0"):
        make_trainer(max_epochs=1).fit(unending, datamodule=make_data(**packed))
    constant = OptimizerConfig(schedule="constant", warmup=0.0)
    trainer = make_trainer(max_epochs=1, limit_val_batches=0)
    trainer.fit(V1Module(BackboneConfig("qwen2_5_vl"), optimizer=constant), datamodule=make_data(**packed))
    assert trainer.global_step > 0


def test_weights_that_a_forked_process_trained_come_back(
    make_data: Any, make_module: Any, make_trainer: Any
) -> None:
    module, untrained = make_module(), make_module()
    ddp = DDPStrategy(start_method="fork", process_group_backend="gloo")
    make_trainer(max_steps=1, devices=1, strategy=ddp).fit(module, datamodule=make_data())
    untrained.configure_model()
    before, after = weights(untrained), weights(module)
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
