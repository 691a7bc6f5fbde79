"""`data.map`: the user's function between reading and encoding."""

from __future__ import annotations

import pickle
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.shard_cases import make
from helpers.tiny_runs import (
    ENCODING,
    SaveAfter,
    fit,
    make_data,
    names,
    processor,
    tokens,
    without_index,
    written,
)
from lightning import Trainer

from v1lit.data.config import PackingConfig, SourceConfig
from v1lit.data.encode.mapping import ExampleMap, MapError
from v1lit.data.errors import BadDataError
from v1lit.data.example import Example, ExampleRef, Message
from v1lit.data.images import ImageError
from v1lit.data.lengths.fingerprint import fingerprint
from v1lit.data.lengths.length import LEFT_OUT, Length, LengthOptions
from v1lit.data.lengths.store import write_lengths
from v1lit.data.lengths.table import LengthTable
from v1lit.data.sampling.epoch import Progress
from v1lit.data.sampling.mixture import GlobalSequence
from v1lit.data.sampling.remaining import MicroBatchState, Remaining
from v1lit.data.sampling.rows import Substream, similar_rows
from v1lit.data.sampling.shuffle import Shuffle, SourceOrder

REF = ExampleRef(epoch_index=4, source=0, shard=1, index=2, epoch=3)


def longer(example: Example, text: str) -> Example:
    question, reply = example.messages
    return replace(example, messages=(Message("user", question.content + text), reply))


def odd(example: Example) -> Example | None:
    return example if int(example.id[1:]) % 2 else None


def only(example: Example, *, ids: list[str]) -> Example | None:
    return example if example.id in ids else None


class Longer:
    def __init__(self, words: int, word: str = " please") -> None:
        if words < 0:
            raise RuntimeError("too few words")
        self.text = word * words

    def __call__(self, example: Example) -> Example:
        return longer(example, self.text)


class Silent:
    """Cannot be called."""


def noisy(example: Example, random: np.random.Generator) -> Example:
    return replace(example, id=f"{example.id}-{random.integers(10**9)}")


def noisy_length(example: Example, random: np.random.Generator) -> Example | None:
    times = int(random.integers(4))
    return longer(example, " so" * times) if times else None


def broken(example: Example) -> Example:
    return example if example.id != "e003" else replace(example, id="")


def tells(example: Example) -> Any:
    return {"id": example.id}


def sees_damage(example: Example) -> Example:
    raise ImageError("the image data is damaged")


def three(a: int, b: int, c: int) -> None: ...


def name(function: Any) -> str:
    return f"{__name__}.{function.__name__}"


# ------------------------------------------------------------------ finding it


def test_a_function_a_class_and_their_arguments_are_found_by_name() -> None:
    example = make("e001")
    assert ExampleMap(name(odd))(example, "s") is example
    assert ExampleMap(name(odd))(make("e002"), "s") is None
    kept = ExampleMap({"class_path": name(only), "init_args": {"ids": ["e001"]}})
    assert (kept(example, "s"), kept(make("e002"), "s")) == (example, None)
    longer = ExampleMap({"class_path": name(Longer), "init_args": {"words": 2}})
    mapped = longer(example, "s")
    assert mapped is not None
    assert mapped.messages[0].content.endswith("Where? please please")
    assert pickle.loads(pickle.dumps(longer))(example, "s") == mapped


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("odd", "give module.name"),
        ({"class": "x"}, "class_path and init_args"),
        ("no_such_module.odd", "no module 'no_such_module', which is looked for beside the recipe"),
        (f"{__name__}.od", "has no 'od'; did you mean 'odd'"),
        (f"{__name__}.REF", "no function or class but ExampleRef"),
        (name(three), "must take an example, or an example and a random generator"),
        (name(only), "must take an example"),
        (name(Silent), "a class without __call__"),
        ({"class_path": name(Longer), "init_args": {"word": "x"}}, "missing a required argument: 'words'"),
        ({"class_path": name(only), "init_args": {"id": []}}, "unexpected keyword argument 'id'"),
        ({"class_path": name(Longer), "init_args": {"words": -1}}, "RuntimeError: too few words"),
    ],
)
def test_what_cannot_be_a_map_is_refused_by_name(spec: Any, told: str) -> None:
    with pytest.raises(ValueError, match=r"^data\.map") as error:
        ExampleMap(spec)
    assert told in str(error.value)


def test_a_module_that_cannot_be_imported_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad_maps.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"bad_maps cannot be imported: ModuleNotFound.*no_such_package"):
        ExampleMap("bad_maps.f")


# ------------------------------------------------------------------ its mistakes


def test_a_mistake_in_it_is_told_with_file_line_example_and_shard() -> None:
    line = broken.__code__.co_firstlineno + 1
    where = rf"data\.map {name(broken)}: {__file__}, line {line}: ExampleError: .*the id is empty"
    with pytest.raises(MapError, match=where + r" \(example 'e003', shard x\.tar\)$"):
        ExampleMap(name(broken))(make("e003"), "x.tar")


def test_what_it_gives_must_be_an_example() -> None:
    with pytest.raises(MapError, match=r"it returned dict instead of an Example.*'e003', shard x"):
        ExampleMap(name(tells))(make("e003"), "x.tar")


def test_a_damaged_image_is_not_its_mistake() -> None:
    with pytest.raises(ImageError):
        ExampleMap(name(sees_damage))(make("e003"), "x.tar")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mistake_stops_the_run(tmp_path: Path, workers: int) -> None:
    written(tmp_path / "train", 6)
    data = make_data(tmp_path, tmp_path, map=name(broken), num_workers=workers)
    with pytest.raises(MapError, match=r"'e003', shard .*train"):
        fit(data, tmp_path)


# ------------------------------------------------------------------ randomness


def test_a_generator_is_a_function_of_seed_epoch_and_place() -> None:
    def drawn(seed: int = 0, **changes: int) -> Example | None:
        return ExampleMap(name(noisy), seed)(make("a"), "s", replace(REF, **changes))

    assert drawn() == drawn()
    assert drawn() != drawn(seed=1)
    assert all(drawn() != drawn(**{field: 9}) for field in ("epoch_index", "shard", "index", "epoch"))
    assert not ExampleMap(name(odd)).random


def ids_of(batches: list[tuple[str, ...]]) -> list[str]:
    return [id for batch in batches for id in batch]


@pytest.mark.slow
@pytest.mark.parametrize("packing", [None, PackingConfig(length=240)])
def test_a_random_map_draws_the_same_in_a_resumed_run_and_with_workers(
    tmp_path: Path, packing: PackingConfig | None
) -> None:
    written(tmp_path / "train", 16)
    options: dict[str, Any] = {"map": name(noisy if packing is None else noisy_length), "packing": packing}
    whole = fit(make_data(tmp_path, tmp_path, **options), tmp_path / "a", max_epochs=2)
    assert packing is not None or len(set(ids_of(whole.batches))) == 32
    checkpoint = tmp_path / "some.ckpt"
    data = make_data(tmp_path, tmp_path, **options)
    first = fit(data, tmp_path / "b", SaveAfter(3, checkpoint, stop=True), max_epochs=2)
    data = make_data(tmp_path, tmp_path, num_workers=2, **options)
    rest = fit(data, tmp_path / "c", resume=checkpoint, max_epochs=2)
    assert first.batches[:3] + rest.batches == whole.batches


# ------------------------------------------------------------------ what is left out


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("indexed", [True, False])
def test_what_it_leaves_out_leaves_a_gap_and_is_counted(
    tmp_path: Path, workers: int, indexed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    written(tmp_path / "train", 16)
    if not indexed:
        without_index(tmp_path / "train")
    plain = fit(make_data(tmp_path, tmp_path, num_workers=workers), tmp_path)
    data = make_data(tmp_path, tmp_path, num_workers=workers, map=name(odd))
    kept = fit(data, tmp_path)
    assert kept.batches == [tuple(id for id in batch if int(id[1:]) % 2) for batch in plain.batches]
    assert (data._skips.left_out, data._skips.read, data._skips.count) == (8, 8, 0)


def test_packed_rows_stay_full_and_the_epoch_is_planned_without_what_is_left_out(tmp_path: Path) -> None:
    written(tmp_path / "train", 40)
    packing = PackingConfig(length=3 * tokens())
    data = make_data(
        tmp_path, tmp_path, map={"class_path": name(only), "init_args": {"ids": names(6)}}, packing=packing,
        encoding=replace(ENCODING, max_tokens=3 * tokens()),
    )  # fmt: skip
    data.prepare_data()
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", barebones=True)
    data.trainer = trainer
    data.setup("fit")
    loader = data.train_dataloader()
    assert loader.steps.planned(Progress(0, layout=loader.steps.layout), 3) == 6
    done = fit(data, tmp_path)
    assert [len(batch) for batch in done.batches] == [3, 3]
    assert sorted(ids_of(done.batches)) == names(6)
    assert data._skips.left_out == 34


def test_what_is_left_out_behind_the_last_row_is_counted_and_makes_no_step(tmp_path: Path) -> None:
    written(tmp_path / "train", 20)
    few = {"class_path": name(only), "init_args": {"ids": names(3)}}
    data = make_data(tmp_path, tmp_path, map=few, packing=PackingConfig(120, look_ahead=1))
    done = fit(data, tmp_path)
    assert [len(batch) for batch in done.batches] == [1, 1, 1]
    assert data._skips.left_out == 17


def test_in_batches_of_similar_length_what_is_left_out_is_spread() -> None:
    """A batch of nothing else would be a step for nothing."""
    sequence = GlobalSequence([SourceOrder([24], Shuffle(0, False, 24))], [24], seed=0)
    stream = Substream(sequence, 0, Remaining(), 0, 1)

    def measure(ref: ExampleRef) -> Length | None:
        return None if ref.index % 2 else Length(10 + ref.index, 0, 0)

    rows = [
        [ref.index for ref in row.refs]
        for row in similar_rows(stream, MicroBatchState(), 4, 6, measure, seed=1)
    ]
    assert sorted(number for row in rows for number in row) == list(range(24))
    assert all(any(number % 2 == 0 for number in row) for row in rows)
    assert all(any(number % 2 for number in row) for row in rows)


def test_without_a_table_the_same_rows_are_filled(tmp_path: Path) -> None:
    written(tmp_path / "train", 12)
    packing = PackingConfig(length=240)
    known = fit(make_data(tmp_path, tmp_path, map=name(odd), packing=packing), tmp_path)
    without_index(tmp_path / "train")
    measured = fit(make_data(tmp_path, tmp_path, map=name(odd), packing=packing), tmp_path)
    assert sorted(ids_of(known.batches)) == sorted(ids_of(measured.batches)) == names(12)[1::2]
    assert len(known.batches) == len(measured.batches)


def test_a_length_table_belongs_to_the_map_and_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "own_maps.py"
    monkeypatch.syspath_prepend(tmp_path)
    marks = []
    for text in ("def f(example):\n    return example\n", "def f(example):\n    return None\n"):
        module.write_text(text)
        sys.modules.pop("own_maps", None)
        marks.append(fingerprint(processor(), ENCODING, ExampleMap("own_maps.f")))
    longer_maps = [
        ExampleMap({"class_path": name(Longer), "init_args": {"words": words}}) for words in (1, 2)
    ]
    marks += [fingerprint(processor(), ENCODING, map) for map in (None, *longer_maps)]
    assert len(set(marks)) == 5


def test_lengths_are_those_of_mapped_examples(tmp_path: Path) -> None:
    written(tmp_path / "d", 4)
    longer_map = ExampleMap({"class_path": name(Longer), "init_args": {"words": 3}})
    tables = []
    for map in (longer_map, ExampleMap(name(odd))):
        path = write_lengths(tmp_path / "d", LengthOptions(processor(), ENCODING, map), workers=1)
        tables.append(LengthTable.load(path, fingerprint(processor(), ENCODING, map)).tokens.tolist())
    assert tables[0] == [tokens() + len(processor().encode_text(" please" * 3))] * 4
    assert tables[1] == [LEFT_OUT, tokens()] * 2
    with pytest.raises(ValueError, match="is random, so an example has another length each time"):
        write_lengths(
            tmp_path / "d", LengthOptions(processor(), ENCODING, ExampleMap(name(noisy))), workers=1
        )


def test_a_map_that_leaves_out_everything_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path / "train", 6)
    nothing = {"class_path": name(only), "init_args": {"ids": []}}
    with pytest.raises(ValueError, match=r"data\.map leaves out all 6 training examples"):
        fit(make_data(tmp_path, tmp_path, map=nothing), tmp_path)
    monkeypatch.setattr("v1lit.data.loading.skips.AT_FIRST", 4)
    with pytest.raises(BadDataError, match="leaves out every example so far, 4 of them"):
        fit(make_data(tmp_path, tmp_path, map=nothing), tmp_path)


# ------------------------------------------------------------------ validation


@pytest.fixture
def with_val(tmp_path: Path) -> Path:
    written(tmp_path / "train", 4)
    written(tmp_path / "val", 6)
    return tmp_path


@pytest.mark.parametrize("mapped", [True, False])
def test_validation_goes_through_it_where_it_is_to(with_val: Path, mapped: bool) -> None:
    data = make_data(with_val, with_val, map=name(odd), map_validation=mapped)
    expected = names(6)[1::2] if mapped else names(6)
    assert ids_of(fit(data, with_val).val_batches) == expected
    assert [example.id for example in data.examples("val")] == expected
    assert [example.id for example in data.examples("train")] == names(4)[1::2]


def test_the_seed_of_the_data_is_that_of_the_map(tmp_path: Path) -> None:
    written(tmp_path / "train", 2)
    first, second = (
        make_data(tmp_path, tmp_path, map=name(noisy), seed=seed, source=SourceConfig(folder=str(tmp_path)))
        for seed in (1, 2)
    )
    assert [example.id for example in first.examples("train")] != [
        example.id for example in second.examples("train")
    ]
