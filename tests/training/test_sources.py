"""Loss and accuracy of every source of a mixture: exact over packed rows, accumulation and ranks."""

from __future__ import annotations

import csv
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.forked import needs_fork
from helpers.mixed_sources import KINDS, mixture_of
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy

from v1lit.backbones.config import BackboneConfig
from v1lit.data.config import EncodingConfig, MixtureConfig, PackingConfig, SourceConfig
from v1lit.data.datamodule import V1DataModule
from v1lit.data.encode.batch import Batch, blank_batch
from v1lit.data.sources.names import source_names
from v1lit.data.sources.registry import check_source
from v1lit.errors import OptionError
from v1lit.pointer.config import PointerConfig
from v1lit.training.logged import names_in_training, names_in_validation
from v1lit.training.measures import Measures
from v1lit.training.metrics import LossMeans, PointingMetrics
from v1lit.training.module import V1Module

V = 10
SEPARATE = PointerConfig(loss="separate", z_weight=0.0)
TEXT, POINTERS = st.integers(0, V - 1), st.integers(V, V + 5)


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("locations", "names"),
    [
        (["data/charts/train", "data/scenes/train"], ["charts", "scenes"]),
        (["s3://bucket/charts/train/shard-{000..099}.tar", "/x/my set"], ["charts", "my-set"]),
        (["a/charts", "b/charts", "c/charts"], ["charts", "charts-2", "charts-3"]),
        (["train", "*.tar"], ["train", "tar"]),
    ],
)
def test_a_source_is_named_by_its_location(locations: list[str], names: list[str]) -> None:
    assert source_names([MixtureConfig(location) for location in locations]) == names


def test_a_name_that_was_given_is_not_given_again() -> None:
    mixture = [MixtureConfig("a/charts"), MixtureConfig("b/scenes", name="charts")]
    assert source_names(mixture) == ["charts-2", "charts"]


def test_names_and_places_of_validation_that_cannot_be_are_refused() -> None:
    with pytest.raises(OptionError, match=r"data\.source\.mixture\.name is 'a b'; give letters"):
        MixtureConfig("a", name="a b")
    with pytest.raises(OptionError, match=r"data\.source\.mixture is .*two sources are named 'x'"):
        SourceConfig(mixture=[MixtureConfig("a", name="x"), MixtureConfig("b", name="x")])
    with pytest.raises(OptionError, match=r"data\.source\.val is 'c'; sources of the mixture have a `val`"):
        SourceConfig(mixture=[MixtureConfig("a", val="b")], val="c")


def test_a_mixture_of_streams_is_refused_as_a_recipe_has_it() -> None:
    """As plain data, before anything is made of it."""
    with pytest.raises(
        OptionError, match=r"data\.source\.mixture is \['a'\]; it cannot be drawn from streams"
    ):
        check_source(SourceConfig("webdataset", path="x.tar", mixture=[{"shards": "a"}]))  # type: ignore[list-item]


# ---------------------------------------------------------------- sums


@st.composite
def sequences(draw: Any) -> list[tuple[int, list[tuple[int, int]]]]:
    """Source and positions, (target, prediction), of some sequences, each of which ends in text."""
    one = st.tuples(TEXT | POINTERS, TEXT | POINTERS)
    last = st.tuples(TEXT, TEXT | POINTERS)
    each = st.tuples(st.integers(0, 2), st.tuples(st.lists(one, max_size=8), last))
    return [(source, [*more, end]) for source, (more, end) in draw(st.lists(each, max_size=6))]


@settings(max_examples=60, deadline=None)
@given(sequences(), st.integers(0, 6))
def test_the_sums_over_sources_are_those_of_the_whole(rows: Any, cut: int) -> None:
    """Whatever batches the sequences are in; and each source alone gives what it gives among others."""

    def tensors(some: Any) -> tuple[torch.Tensor, ...]:
        pairs = [pair for _, positions in some for pair in positions]
        owners = [source for source, positions in some for _ in positions]
        targets, predictions = torch.tensor(pairs, dtype=torch.long).view(-1, 2).unbind(1)
        return targets, predictions, torch.tensor(owners, dtype=torch.long)

    names = ["a", "b", "c"]
    pointing, losses = PointingMetrics(V, sources=names), LossMeans(0.5, sources=names)
    plain, plain_losses = PointingMetrics(V), LossMeans(0.5)
    alone = [(PointingMetrics(V), LossMeans(0.5)) for _ in names]
    for some in (rows[:cut], rows[cut:]):
        targets, predictions, owners = tensors(some)
        weights = {part: 1.0 + (targets % 3).float() for part in ("joint", "z")}
        values = {"joint": weights["joint"] * targets, "z": weights["z"] * predictions}
        pointing.update(targets, predictions, owners)
        losses.update(values, weights, owners)
        plain.update(targets, predictions)
        plain_losses.update(values, weights)
        for source, (own, own_losses) in enumerate(alone):
            mine = owners == source
            own.update(targets[mine], predictions[mine])
            own_losses.update(*({part: of[part][mine] for part in of} for of in (values, weights)))
    for whole, parts, state in ((plain, pointing, "sums"), (plain_losses, losses, "counts")):
        assert torch.equal(getattr(parts, state).sum(0), getattr(whole, state)[0])
    for found, whole in ((pointing, plain), (losses, plain_losses)):
        found, whole = found.compute(), whole.compute()
        torch.testing.assert_close({n: found[n] for n in whole}, whole, equal_nan=True)
    for source, own in zip(names, alone, strict=True):
        for among, by_itself in zip((pointing, losses), own, strict=True):
            among = {n[:-2]: v for n, v in among.compute().items() if n.endswith(f"/{source}")}
            by_itself = {n: v for n, v in by_itself.compute().items() if not v.isnan()}
            torch.testing.assert_close(among, by_itself, check_dtype=False)


# ---------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> SourceConfig:
    return mixture_of(tmp_path_factory.mktemp("sources"))


def make_data(mixture: SourceConfig, **options: Any) -> V1DataModule:
    defaults: dict[str, Any] = {"batch_size": 3, "encoding": EncodingConfig(coordinates=False)}
    return V1DataModule(BackboneConfig(), source=mixture, **{**defaults, **options})


class Seen(Callback):
    def __init__(self) -> None:
        self.batches: list[Batch] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Batch, batch_idx: int) -> None:
        self.batches.append(batch)


def alone_in(source: MixtureConfig) -> SourceConfig:
    return SourceConfig(folder=str(Path(source.shards).parent))


def make_module(pointer: PointerConfig | None = None) -> V1Module:
    return V1Module(BackboneConfig(), pointer=pointer)


def trainer_in(folder: Path, **options: Any) -> Trainer:
    torch.manual_seed(0)
    defaults: dict[str, Any] = {
        "accelerator": "cpu", "devices": 1, "enable_progress_bar": False, "enable_model_summary": False,
        "enable_checkpointing": False, "num_sanity_val_steps": 0, "log_every_n_steps": 1,
        "default_root_dir": str(folder), "logger": CSVLogger(folder, name="", version="csv"),
    }  # fmt: skip
    return Trainer(**{**defaults, **options})


def logged_in(folder: Path) -> list[dict[str, float]]:
    with (folder / "csv" / "metrics.csv").open() as file:
        return [{n: float(v) for n, v in row.items() if v} for row in csv.DictReader(file)]


def expected(module: V1Module, data: V1DataModule, batches: list[Batch]) -> dict[str, float]:
    """The measures of every source, of batches whose examples are taken one source at a time."""
    found = {}
    for source, name in enumerate(data.source_names("train")):
        measures = Measures(
            module.model.config.pointer_start, False, module.pointer_config.z_weight, [], True
        )
        for batch in batches:
            with torch.no_grad():
                out = module.model(**batch.model_inputs)
            ends = torch.tensor(out.positions).cumsum(0).tolist()
            for at, own in enumerate(batch.sources):
                some = slice(ends[at] - out.positions[at], ends[at])
                if own == source:
                    measures.pointing.update(out.targets[some], out.terms.predictions[some])
                    parts = ({n: of[n][some] for n in of} for of in (out.terms.values, out.terms.weights))
                    measures.losses.update(*parts)
        losses, pointing = measures.compute()
        found |= {f"{n}/{name}": float(v) for n, v in (losses | pointing).items() if not v.isnan()}
    return found


@pytest.mark.parametrize("pointer", [None, SEPARATE], ids=["joint", "separate"])
@pytest.mark.parametrize("packs", [False, True], ids=["counted", "packed"])
def test_a_step_logs_what_its_examples_give_source_by_source(
    mixture: SourceConfig, tmp_path: Path, pointer: PointerConfig | None, packs: bool
) -> None:
    """Three batches are accumulated; all weights are those from the beginning."""
    options: dict[str, Any] = {}
    if packs:
        options = {
            "packing": PackingConfig(length=160),
            "encoding": EncodingConfig(max_tokens=160, coordinates=False),
        }
    data, seen, fresh = make_data(mixture, **options), Seen(), make_module(pointer)
    fresh.configure_model()
    trainer = trainer_in(
        tmp_path, max_steps=1, accumulate_grad_batches=3, limit_val_batches=0, callbacks=[seen]
    )
    trainer.fit(make_module(pointer), data)
    assert len({source for batch in seen.batches for source in batch.sources}) > 2
    true = expected(fresh, data, seen.batches)
    row = next(row for row in logged_in(tmp_path) if "train/loss" in row)
    of_sources = {name.removeprefix("train/"): value for name, value in row.items() if name.count("/") > 1}
    assert of_sources == pytest.approx(true, rel=1e-4, abs=1e-6)
    assert "loss/words" in true
    assert "pointer_accuracy/words" not in true
    assert ("loss_text/words" in true) is (pointer is SEPARATE)


@needs_fork
@pytest.mark.slow
@pytest.mark.timeout(120)
def test_ranks_log_what_one_rank_would(mixture: SourceConfig, tmp_path: Path) -> None:
    """Of one source the step has two examples only, so that batches of both ranks are without it."""
    few = SourceConfig(
        mixture=[MixtureConfig(s.shards, limit=2 if i else 4) for i, s in enumerate(mixture.mixture)]
    )
    rows = []
    for ranks, accumulated in ((1, 4), (2, 2)):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        options: dict[str, Any] = {}
        if ranks > 1:
            limit = timedelta(seconds=60)
            options["strategy"] = DDPStrategy(
                start_method="fork", process_group_backend="gloo", timeout=limit
            )
        data = make_data(few, batch_size=1)
        trainer = trainer_in(
            folder,
            max_steps=2,
            accumulate_grad_batches=accumulated,
            devices=ranks,
            limit_val_batches=0,
            **options,
        )
        trainer.fit(make_module(), data)
        rows.append([row for row in logged_in(folder) if "train/loss" in row])
    of_sources = [[{n: v for n, v in row.items() if n.count("/") > 1} for row in run] for run in rows]
    assert len(of_sources[0]) == 2
    for one, two in zip(*of_sources, strict=True):
        assert one == pytest.approx(two, rel=1e-4, abs=1e-6)
    assert of_sources[0][0].keys() != of_sources[0][1].keys()


def test_validation_measures_every_source(mixture: SourceConfig, tmp_path: Path) -> None:
    """As each alone; and all that is logged is listed."""
    trainer, module = trainer_in(tmp_path), make_module()
    trainer.validate(module, datamodule=make_data(mixture), verbose=False)
    together = {name: float(value) for name, value in trainer.callback_metrics.items()}
    for source, name in zip(mixture.mixture, KINDS, strict=True):
        trainer.validate(module, datamodule=make_data(alone_in(source)), verbose=False)
        alone = {
            f"{n}/{name}": float(v) for n, v in trainer.callback_metrics.items() if "val/" in n and v == v
        }
        assert {n: v for n, v in together.items() if n.endswith(f"/{name}")} == pytest.approx(alone, rel=1e-4)
    listed = set(names_in_validation(PointerConfig(), sources=KINDS))
    assert set(together) <= listed
    missing = {name.rpartition("/")[2] for name in listed - set(together)}
    assert missing <= {"words", "described"}


def test_what_is_logged_of_training_is_listed_and_counted_only_then(
    mixture: SourceConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    module, count = make_module(), Measures.count

    def noted(measures: Measures) -> None:
        counted.append(len(measures.noted))
        count(measures)

    monkeypatch.setattr(Measures, "count", noted)
    trainer = trainer_in(tmp_path, max_steps=4, log_every_n_steps=2, limit_val_batches=0)
    trainer.fit(module, make_data(mixture, batch_size=6))
    assert counted == [2, 2]
    names = {name for row in logged_in(tmp_path) for name in row if name.startswith("train/")}
    assert names <= set(names_in_training(PointerConfig(), sources=KINDS))
    assert {f"train/loss/{kind}" for kind in KINDS} <= names
    assert module.train_measures.noted == []


def test_a_blank_batch_belongs_to_no_source(mixture: SourceConfig) -> None:
    module = make_module()
    module.configure_model()
    measures = Measures(module.model.config.pointer_start, False, 0.0, ["a", "b"], True)
    for flat in (True, False):
        batch = blank_batch(1, flat)
        measures.note(module.model(**batch.model_inputs), batch)
    measures.count()
    losses, pointing = measures.compute()
    assert losses == {}
    assert not [name for name in pointing if "/" in name]


def test_without_a_mixture_nothing_is_logged_of_sources(mixture: SourceConfig, tmp_path: Path) -> None:
    one = SourceConfig(mixture=mixture.mixture[:1])
    trainer_in(tmp_path, max_steps=2, val_check_interval=2).fit(make_module(), make_data(one))
    names = {name for row in logged_in(tmp_path) for name in row}
    assert {"train/loss", "val/loss"} <= names
    assert not [name for name in names if name.count("/") > 1]


def test_what_is_held_out_comes_from_every_source_in_turn(mixture: SourceConfig) -> None:
    data = make_data(mixture)
    ids = [example.id for example in data.examples("val")]
    assert ids == [f"{kind}-val-{number}" for number in range(2) for kind in KINDS]
    limited = make_data(mixture, max_val_examples=1)
    assert sorted(len(batch) for batch in limited.val_dataloader()) == [1, 3]
    assert data.val_content != make_data(SourceConfig(mixture=mixture.mixture[::-1])).val_content
