"""What must never change by accident: bytes of files, the order of examples, and what checkpoints hold.

The digests were taken when the formats were first held by a test. A change that alters one breaks the shards,
tables or checkpoints that others have: it needs a new version of the format, and a way to read the old one.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from safetensors.numpy import load_file

from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.processor import load_processor
from v1lit.backbones.registry import get_backbone
from v1lit.data.config import EncodingConfig, PackingConfig, SourceConfig
from v1lit.data.datamodule import V1DataModule
from v1lit.data.example import Example, ExampleRef, Message
from v1lit.data.images import read_header
from v1lit.data.lengths.fingerprint import fingerprint
from v1lit.data.lengths.length import Length, LengthOptions
from v1lit.data.lengths.store import write_lengths
from v1lit.data.loading.state import progress_to_dict
from v1lit.data.sampling.epoch import MakeRows, Progress, StepLayout, rank_rows
from v1lit.data.sampling.mixture import GlobalSequence, draws_per_epoch
from v1lit.data.sampling.rows import MicroBatchPlan, counted_rows, filled_rows, similar_rows
from v1lit.data.sampling.shuffle import Shuffle, SourceOrder
from v1lit.data.shards import ShardWriter, index_shards, write_index
from v1lit.data.streams.reader_state import FileStart, RankState, ReaderState
from v1lit.data.streams.state import StreamLayout, StreamProgress, stream_to_dict
from v1lit.data.tools.reshard import ReshardOptions, reshard
from v1lit.grounding.region import Region
from v1lit.revisit.registry import make_strategy
from v1lit.training.config import RunConfig
from v1lit.training.module import V1Module
from v1lit.training.run import run_training, trainer_defaults

pytestmark = pytest.mark.dependencies

# --- what is digested ---


def digest(content: object) -> str:
    """The first 16 digits of the SHA-256 of bytes, or of what JSON says of anything else."""
    data = content if isinstance(content, bytes) else json.dumps(content, default=plain).encode()
    return hashlib.sha256(data).hexdigest()[:16]


def plain(value: Any) -> Any:
    """Arrays and tensors with their types; numbers of NumPy as numbers."""
    if isinstance(value, np.integer):
        return int(value)
    return [str(value.dtype), value.tolist()]


def readable(content: object) -> Any:
    return json.loads(json.dumps(content, default=plain))


def digests(folder: Path, pattern: str) -> list[str]:
    return [digest(path.read_bytes()) for path in sorted(folder.glob(pattern))]


def bitmap(width: int, height: int, shade: int) -> bytes:
    """A BMP file, which nothing compresses: no library decides its bytes."""
    pixels = bytes([shade]) * (-(-width * 3 // 4) * 4 * height)
    head = struct.pack("<2sIHHI", b"BM", 54 + len(pixels), 0, 0, 54)
    return head + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 2835, 2835, 0, 0) + pixels


def region(number: int, width: int, height: int) -> Region:
    if number % 4 == 0:
        return Region.from_box((1, 2.5, width / 3, height))
    if number % 4 == 1:
        return Region.from_boxes([(0, 0, 5, 6), (7, 8, 20, 20.25)])
    if number % 4 == 2:
        return Region.from_polygon([(1, 1), (width - 1, 2), (3, height - 2)])
    mask = np.zeros((height, width), bool)
    mask[3:9, 5:11] = True
    return Region.from_mask(mask)


def example(number: int) -> Example:
    width, height = 30 + 4 * number, 60 - 3 * number
    images = number % 3  # none, one or two
    return Example(
        id=f"e.{number:02}/ä",
        images=tuple(read_header(bitmap(width, height, 40 * image)) for image in range(images)),
        messages=(
            Message("user", "<image>\n" * images + "Where is it?" * (1 + number % 4)),
            Message("assistant", "There: <|region_1|>." if images else "Nowhere. " * (number + 1)),
        ),
        regions={"<|region_1|>": region(number, width, height)} if images else {},
        answer="yes" if number % 2 else None,
        source="drawn",
    )


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("formats") / "shards"
    with ShardWriter(folder, max_examples=5) as writer:
        for number in range(12):
            writer.write(example(number))
    write_index(folder, writer.shards)
    return folder


# --- files ---


def test_shards_their_index_and_their_sidecars(shards: Path, tmp_path: Path) -> None:
    assert digests(shards, "*.tar") == ["7e4decf5e40fe1d4", "6cc4abf38eb4abc6", "450f122cd61abd52"]
    assert digests(shards, "index.json") == ["9f24484c70416bb1"]
    sidecars = [load_file(path) for path in sorted(shards.glob("*.index.safetensors"))]
    assert digest([dict(sorted(sidecar.items())) for sidecar in sidecars]) == "b24fd24c7898d0b1"
    index_shards(str(shards), str(tmp_path / "index"), workers=1)
    again = json.loads((tmp_path / "index/index.json").read_text().replace(f"{shards}/", ""))
    del again["location"]
    assert again == json.loads((shards / "index.json").read_text())


def test_shards_that_were_shuffled_anew(shards: Path, tmp_path: Path) -> None:
    options = ReshardOptions(shuffle=3, examples_per_shard=7)
    reshard([str(shards)], tmp_path / "out", options, workers=1)
    assert digests(tmp_path / "out", "*.tar") == ["e029b0c546c2fc9c", "d1e55dfc26952c47"]
    index = json.loads((tmp_path / "out/index.json").read_text())
    assert digest(index) == "ee2aaeabe3cc6128"


def test_a_table_of_lengths_by_name_and_by_content(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a fingerprint that no library has a part in."""
    monkeypatch.setattr(LengthOptions, "fingerprint", "0123456789abcdef" * 2)
    options = LengthOptions(load_processor(BackboneConfig("llava")), EncodingConfig(max_tokens=300))
    path = write_lengths(shards, options, workers=1)
    assert path.name == "lengths-5e497263b0d409ed-0123456789abcdef.safetensors"
    assert load_file(path)["tokens"].tolist() == [50, 108, 171, 74, 110, 146, 82, 112, 147, 90, 131, 147]
    assert digest(path.read_bytes()) == "2680e8edffff0268"


def test_what_a_fingerprint_of_lengths_is_made_of() -> None:
    tokenizer = SimpleNamespace(
        init_kwargs={"add_bos": True, "name": "x"},
        added_tokens_decoder={7: "<image>"},
        save_vocabulary=lambda folder: (Path(folder) / "vocab.txt").write_bytes(b"a\nb\n"),
    )
    processor: Any = SimpleNamespace(
        backbone=get_backbone("llava"),
        image_options={"side": 56},
        views="all",
        tokenizer=tokenizer,
        revisit=make_strategy(),
    )
    assert fingerprint(processor, EncodingConfig()) == "ebe011ec28f6db7dd368352fb35fa2b9"
    map: Any = SimpleNamespace(identity="0123")
    assert fingerprint(processor, EncodingConfig(), map) == "44b863ad48ab23d67b230983ed86740b"


# --- the order of examples ---


def length(ref: ExampleRef) -> Length | None:
    """From 1 to 23 tokens, of which more than 20 fit no row; some are left out by the map."""
    if (ref.index + ref.shard) % 9 == 8:
        return None
    return Length(1 + (7 * ref.shard + 5 * ref.index + 3 * ref.source) % 23, 2, 1)


KINDS: dict[str, MakeRows] = {
    "counted": lambda stream, state: counted_rows(stream, state, 3),
    "filled": lambda stream, state: filled_rows(stream, state, PackingConfig(20, 8), length),
    "similar": lambda stream, state: similar_rows(stream, state, 3, 2, length, 7),
}


def sequence_of(*sizes: list[int], lanes: int, draws: list[int], window: int = 6) -> GlobalSequence:
    shuffle = Shuffle(5, True, window)
    orders = [SourceOrder(counts, shuffle, lanes=lanes, salt=salt) for salt, counts in enumerate(sizes)]
    return GlobalSequence(orders, draws, 5)


def spelled(row: MicroBatchPlan) -> list[Any]:
    refs = [list(vars(ref).values()) for ref in row.refs]
    refused = [list(vars(refusal.ref).values()) for refusal in row.refused]
    return [refs, list(row.after), refused, row.left_out]


def rows_of(
    sequence: GlobalSequence, progress: Progress, make_rows: MakeRows, ranks: int
) -> Iterator[list[MicroBatchPlan]]:
    """The rows of every rank."""
    for rank in range(ranks):
        yield list(rank_rows(sequence, progress, make_rows, rank=rank, ranks=ranks))


def after_two_steps(sequence: GlobalSequence, progress: Progress, make_rows: MakeRows) -> Progress:
    """Of four micro-batches on two ranks."""
    first, second = (rows[2:4] for rows in rows_of(sequence, progress, make_rows, 2))
    states = [row.after for pair in zip(first, second, strict=True) for row in pair]
    return progress.advanced(states).advanced(states)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("counted", "ef39c91f0621efb4"), ("filled", "ebee5b31148240d3"), ("similar", "87aecbaa547abae3")],
)
def test_the_order_of_two_epochs_and_of_one_that_is_divided_anew(kind: str, expected: str) -> None:
    """A mixture with lanes, of which one source is read more than once in an epoch."""
    sequence = sequence_of([7, 0, 12, 9], [10, 4], lanes=2, draws=[20, 30])
    everything: list[Any] = []
    for epoch in range(2):
        progress = Progress(epoch, layout=StepLayout(4, "four"))
        everything += [[spelled(row) for row in rows] for rows in rows_of(sequence, progress, KINDS[kind], 2)]
    progress = after_two_steps(sequence, progress, KINDS[kind])
    progress = progress.divided(StepLayout(3, "three"), sequence.length)
    everything += [[spelled(row) for row in rows] for rows in rows_of(sequence, progress, KINDS[kind], 1)]
    assert digest(everything) == expected


def test_the_order_of_a_mixture_of_many_blocks_and_of_shards_that_are_not_counted() -> None:
    sizes = [500, 0, 900], [40] * 30, [7] * 3
    draws = draws_per_epoch([1400, 1200, 21], [2.0, 1.0, 0.5], [None, None, 300])
    sequence = sequence_of(*sizes, lanes=3, draws=draws, window=100)
    assert sequence.length is not None
    for epoch, expected in enumerate(["cfca62abceb66c05", "362e30821f755d10"]):
        refs = sequence.find(epoch, np.arange(sequence.length + 5))
        assert digest([column.tolist() for column in vars(refs).values()]) == expected
    counts = [5, 9, 0, 8]
    order = SourceOrder([None] * 4, Shuffle(5, True, 6), discover=counts.__getitem__)
    refs = GlobalSequence([order], [None], 5).find(1, np.arange(22))
    assert digest([column.tolist() for column in vars(refs).values()]) == "b1e835ed6b8a8698"


# --- checkpoints ---


def test_how_far_an_epoch_has_come() -> None:
    sequence = sequence_of([7, 0, 12, 9], [10, 4], lanes=2, draws=[20, 30])
    progress = after_two_steps(sequence, Progress(1, layout=StepLayout(4, "four")), KINDS["filled"])
    assert digest(progress_to_dict(progress)) == "f968157647868d02"
    divided = progress.divided(StepLayout(3, "three"), sequence.length)
    assert digest(progress_to_dict(divided)) == "044bbda97b9c753c"
    assert readable(progress_to_dict(Progress(2))) == {
        "epoch": 2,
        "steps": 0,
        "since": 0,
        "layout": [],
        "slots": ["torch.int64", []],
        "head": [],
        "tail": 0,
    }


def test_how_far_a_stream_has_come() -> None:
    readers = (ReaderState(1, 5, 12, 17, (13, 15)), ReaderState())
    progress = StreamProgress(
        3,
        7,
        StreamLayout(1, 2, "4 examples"),
        (FileStart(2), FileStart(0, 9)),
        (RankState(1, readers),),
        before=11,
    )
    assert readable(stream_to_dict(progress)) == {
        "epoch": 3,
        "steps": 7,
        "layout": [1, 2, "4 examples"],
        "files": ["torch.int64", [[2, 0], [0, 9]]],
        "readers": ["torch.int64", [1, 1, 5, 12, 17, 2, 13, 15, 0, 0, 0, 0, 0]],
        "before": 11,
    }
    assert readable(stream_to_dict(StreamProgress())) == {
        "epoch": 0,
        "steps": 0,
        "layout": [],
        "files": ["torch.int64", []],
        "readers": ["torch.int64", []],
        "before": 0,
    }


def keys(value: object, prefix: str = "") -> Iterator[str]:
    """Paths to all that is no mapping."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from keys(inner, f"{prefix}/{name}" if prefix else str(name))
    else:
        yield prefix


def test_what_a_checkpoint_holds(shards: Path, tmp_path: Path) -> None:
    """As far as v1lit decides it: the names of a backbone's weights and Lightning's counters are others'."""
    folder, backbone = tmp_path / "data", BackboneConfig("llava")
    for split in ("train", "val"):
        (folder / split).parent.mkdir(exist_ok=True)
        (folder / split).symlink_to(shards)
    data = V1DataModule(backbone, source=SourceConfig("shards", str(folder)), batch_size=2)
    trainer = Trainer(
        **trainer_defaults(tmp_path / "run"),
        accelerator="cpu",
        max_steps=1,
        limit_val_batches=1,
    )
    run_training(
        V1Module(backbone), data, trainer, RunConfig(report_examples=0, export=False), tmp_path / "run"
    )
    checkpoint = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert sorted(checkpoint) == [
        "V1DataModule",
        "callbacks",
        "epoch",
        "global_step",
        "hyper_parameters",
        "loops",
        "lr_schedulers",
        "optimizer_states",
        "pytorch-lightning_version",
        "state_dict",
        "v1lit",
        "v1lit_validated",
    ]
    assert sorted(keys(checkpoint["V1DataModule"])) == [
        "data/NumPy's random order",
        "data/data.seed",
        "data/data.stream.lanes",
        "data/data.stream.shuffle_window",
        "data/examples of each per epoch",
        "data/the sources",
        "epoch",
        "examples_read",
        "head",
        "layout",
        "left_out",
        "since",
        "skipped",
        "slots",
        "steps",
        "tail",
    ]
    assert sorted(name.partition("{")[0] for name in checkpoint["callbacks"]) == [
        "ModelCheckpoint",
        "ValidateAtEnd",
    ]
    assert sorted(name for name in checkpoint["state_dict"] if "backbone" not in name) == [
        "model.pointer_head.key.bias",
        "model.pointer_head.key.weight",
        "model.pointer_head.query.bias",
        "model.pointer_head.query.weight",
    ]
    assert {name: sorted(values) for name, values in checkpoint["v1lit"].items()} == {
        "model": [
            "adapter",
            "backbone",
            "begin_from",
            "freeze",
            "init_seed",
            "max_nonfinite",
            "on_nonfinite",
            "optimizer",
            "pointer",
            "revisit",
            "verify_loss",
        ],
        "data": [
            "backbone",
            "batch_size",
            "encoding",
            "group_by_length",
            "map",
            "map_validation",
            "max_val_examples",
            "num_workers",
            "packing",
            "revisit",
            "seed",
            "source",
            "stream",
            "val_batch_size",
        ],
        "around": ["the validation shards", "trainer.limit_val_batches"],
    }
