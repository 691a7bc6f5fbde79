"""Lengths: what `measure` says is what `encode` makes, and tables of them survive everything but damage."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import textwrap
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.pictures import encoded
from helpers.v1g_cases import import_v1g
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from v1lit.backbones import list_backbones
from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.processor import Processor, load_processor
from v1lit.data.config import EncodingConfig
from v1lit.data.encode.encoding import EncodingError, encode
from v1lit.data.errors import ShardError
from v1lit.data.example import Example, Message
from v1lit.data.images import EncodedImage, ImageError, read_header
from v1lit.data.lengths import fingerprint as marks
from v1lit.data.lengths import length as lengths
from v1lit.data.lengths.fingerprint import fingerprint
from v1lit.data.lengths.length import Length, LengthOptions, measure
from v1lit.data.lengths.measuring import measure_lengths
from v1lit.data.lengths.table import COLUMNS, LengthTable
from v1lit.data.shards import Shard, ShardWriter, index_shards
from v1lit.data.shards.catalog import Catalog
from v1lit.grounding.region import Region

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "qwen2_5_vl": [{}, {"max_side": 90}, {"min_pixels": 28 * 28, "max_pixels": 100 * 100}],
    "qwen2_vl": [{}, {"max_side": 150}],
    "qwen3_vl": [{}, {"max_side": 150}],
    "qwen3_5": [{}, {"max_side": 150}],
    "llava": [{}, {"do_pad": True}],
    "internvl": [{}, {"max_patches": 4}, {"crop_to_patches": False}],
    "gemma3": [{}, {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 20}],
}


def options(family: str) -> list[dict[str, Any]]:
    return OPTIONS.get(family, [{}, {"max_side": 90}])


@lru_cache
def processor(family: str, option: int = 0, views: str = "all") -> Processor:
    image = options(family)[option]
    return load_processor(BackboneConfig(family, image=image, views=views))  # type: ignore[arg-type]


def example(
    id: str = "one", size: tuple[int, int] = (168, 112), text: str = "There: <|region_1|>."
) -> Example:
    regions = (
        {"<|region_1|>": Region.from_box((2, 3, size[0] / 2, size[1] / 2))} if "<|region" in text else {}
    )
    messages = (Message("user", "<image>\nWhere?"), Message("assistant", text))
    return Example(id=id, images=(read_header(encoded(size)),), messages=messages, regions=regions)


def encoded_length(whole: Example, processor: Processor, encoding: EncodingConfig) -> Length:
    encoded = encode(whole, processor, encoding)
    return Length(len(encoded.input_ids), sum(map(len, encoded.patch_maps)), len(encoded.patch_maps))


# --- measure ---

TEXTS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
    | st.sampled_from(
        ["<|im_end|>", "</s>", "<region>", "</region>", " ", "\n", "<img>", "It is left of it."]
    ),
    max_size=4,
).map(lambda parts: re.sub(r"<image>|<\|region_", "", "".join(parts)))
SIDES = st.integers(1, 250)
SHAPES = [(400, 60), (56, 56), (500, 375), (60, 400), (199, 1), (84, 112), (300, 1)]  # The last: too narrow.
SIZES = st.tuples(SIDES, SIDES) | st.sampled_from(SHAPES)
NAMES = ["<|region_1|>", "<|region_11|>", "<|region_a|>"]


@st.composite
def regions(draw: st.DrawFn, sizes: list[tuple[int, int]]) -> Region:
    image = draw(st.integers(0, len(sizes) - 1))
    width, height = sizes[image]
    kind = draw(st.sampled_from(["box", "corner", "boxes", "polygon", "mask"]))
    x1, y1 = draw(st.floats(0, 0.8)) * width, draw(st.floats(0, 0.8)) * height
    x2, y2 = x1 + draw(st.floats(0.05, 0.2)) * width, y1 + draw(st.floats(0.05, 0.2)) * height
    if kind == "corner":  # Outside of LLaVA's cut, where the image is wide or high.
        return Region.from_box((0, 0, width / 50, height / 50), image)
    if kind == "boxes":
        return Region.from_boxes([(x1, y1, x2, y2), (0, 0, width / 2, height / 2)], image)
    if kind == "polygon":
        return Region.from_polygon([(x1, y1), (x2, y1), (x1, y2)], image)
    if kind == "mask":
        mask = np.zeros((height, width), bool)
        mask[int(y1), int(x1)] = True
        return Region.from_mask(mask, image)
    return Region.from_box((x1, y1, x2, y2), image)


@st.composite
def examples(draw: st.DrawFn) -> Example:
    sizes = draw(st.lists(SIZES, max_size=3))
    names = draw(st.lists(st.sampled_from(NAMES), unique=True)) if sizes else []
    pieces = ["<image>"] * len(sizes) + names * draw(st.integers(1, 2))
    turns = draw(st.integers(1, 2))
    contents = [draw(TEXTS) for _ in range(2 * turns)]
    for piece in draw(st.permutations(pieces)):
        contents[draw(st.integers(0, len(contents) - 1))] += piece + draw(TEXTS)
    messages = [
        Message(("user", "assistant")[n % 2], text if text.strip() else "so")
        for n, text in enumerate(contents)
    ]
    if draw(st.booleans()):
        messages.insert(0, Message("system", draw(TEXTS)))
    kinds = [draw(st.sampled_from(["PNG", "JPEG"])) for _ in sizes]
    return Example(
        id="drawn",
        images=tuple(read_header(encoded(size, kind=kind)) for size, kind in zip(sizes, kinds, strict=True)),
        messages=tuple(messages),
        regions={name: draw(regions(sizes)) for name in names},
    )


@st.composite
def encodings(draw: st.DrawFn, whole: Example, of: Processor) -> EncodingConfig:
    """Any, most with a limit a little below the whole length: at that many tokens something is cut."""
    encoding = EncodingConfig(
        supervise=draw(st.sampled_from(["assistant", "all"])), coordinates=draw(st.booleans())
    )
    try:
        tokens = encoded_length(whole, of, encoding).tokens
    except EncodingError:
        return encoding
    below = draw(st.none() | st.integers(-1, 60) | st.integers(0, tokens))
    return encoding if below is None else dataclasses.replace(encoding, max_tokens=max(8, tokens - below))


@pytest.mark.slow
@pytest.mark.parametrize("family", list_backbones())
@settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_the_measured_length_is_the_encoded_length_and_errors_are_the_same(
    family: str, data: st.DataObject
) -> None:
    whole = data.draw(examples())
    option = data.draw(st.integers(0, len(options(family)) - 1))
    views = data.draw(st.sampled_from(["all", "tiles", "overview"]))
    of = processor(family, option, views)
    encoding = data.draw(encodings(whole, of))
    try:
        expected = encoded_length(whole, of, encoding)
    except EncodingError as error:
        with pytest.raises(EncodingError, match=f"^{re.escape(str(error))}$"):
            measure(whole, of, encoding)
        return
    assert measure(whole, of, encoding) == expected


@pytest.mark.parametrize("family", list_backbones())
def test_real_rows_are_as_long_as_measured(family: str, shared: Path, tmp_path: Path) -> None:
    source = shared / "data/v1g_real/val-00000-of-00001.parquet"
    import_v1g(source, tmp_path / "out", workers=1, progress=False)
    with Shard(tmp_path / "out/shard-000000.tar") as shard:
        for number in range(0, len(shard), 7):
            whole = shard.example(number)
            for encoding in (EncodingConfig(), EncodingConfig(max_tokens=500, coordinates=False)):
                assert measure(whole, processor(family), encoding) == encoded_length(
                    whole, processor(family), encoding
                )


def test_pixels_are_not_decoded() -> None:
    whole = example()
    image = whole.images[0]
    cut = dataclasses.replace(whole, images=(EncodedImage(image.data[:60], image.format, image.size),))
    with pytest.raises(ImageError):
        encode(cut, processor("llava"), EncodingConfig())
    assert measure(cut, processor("llava"), EncodingConfig()) == measure(
        whole, processor("llava"), EncodingConfig()
    )


# --- fingerprint ---


def test_the_fingerdigitschanges_with_all_that_changes_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    base = processor("qwen2_5_vl")
    more = load_processor(BackboneConfig("qwen2_5_vl"))
    more.tokenizer.add_tokens(["There"])
    encoding = EncodingConfig()
    prints = [
        fingerprint(base, encoding),
        fingerprint(processor("qwen2_5_vl", 1), encoding),
        fingerprint(processor("qwen2_5_vl", 2), encoding),
        fingerprint(processor("qwen2_5_vl", 0, "tiles"), encoding),
        fingerprint(processor("qwen2_vl"), encoding),
        fingerprint(more, encoding),
        *(
            fingerprint(base, dataclasses.replace(encoding, **change))
            for change in ({"max_tokens": 8191}, {"coordinates": False}, {"supervise": "all"})
        ),
    ]
    monkeypatch.setattr(marks, "VERSION", marks.VERSION + 1)
    prints.append(fingerprint(base, encoding))
    assert len(set(prints)) == len(prints)
    assert all(re.fullmatch("[0-9a-f]{32}", digits) for digits in prints)


@pytest.mark.parametrize("family", list_backbones())
def test_the_fingerdigitsis_the_same_after_use_saved_and_read_again(family: str, tmp_path: Path) -> None:
    fresh = load_processor(BackboneConfig(family))
    before = fingerprint(fresh, EncodingConfig())
    fresh.save_pretrained(tmp_path)
    assert fingerprint(Processor.from_pretrained(tmp_path), EncodingConfig()) == before
    measure(example(), fresh, EncodingConfig())
    assert fingerprint(fresh, EncodingConfig()) == before
    fresh.tokenizer("some text", truncation=True, max_length=2, padding="max_length")
    assert fingerprint(fresh, EncodingConfig()) == before
    assert fingerprint(pickle.loads(pickle.dumps(fresh)), EncodingConfig()) == before


@pytest.mark.slow
def test_the_fingerdigitsis_the_same_in_another_process() -> None:
    code = """
        from v1lit.backbones.config import BackboneConfig
        from v1lit.backbones.processor import load_processor
        from v1lit.data.config import EncodingConfig
        from v1lit.data.lengths.fingerprint import fingerprint
        print(fingerprint(load_processor(BackboneConfig("internvl")), EncodingConfig()))
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == fingerprint(processor("internvl"), EncodingConfig())


def test_a_tokenizer_written_in_python_has_a_fingerdigitsof_its_content(tmp_path: Path) -> None:
    from transformers import CTRLTokenizer

    def content(merges: str, **options: Any) -> dict[str, Any]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        (folder / "vocab.json").write_text(json.dumps({"a@@": 0, "b": 1, "<unk>": 2, "ab": 3}))
        (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
        tokenizer = CTRLTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), **options)
        return marks._tokenizer_content(tokenizer)

    assert content("a b</w>") == content("a b</w>")
    assert content("a b</w>") != content("b a</w>")


# --- tables ---


def table(examples: int = 5, name: str = "f" * 32) -> LengthTable:
    rng = np.random.default_rng(examples)
    return LengthTable(
        tokens=rng.integers(0, 2**32, examples, dtype=np.uint32),
        image_tokens=rng.integers(0, 2**32, examples, dtype=np.uint32),
        images=rng.integers(0, 2**16, examples, dtype=np.uint16),
        fingerprint=name,
    )


def same(a: LengthTable, b: LengthTable) -> bool:
    pairs = [(getattr(a, name), getattr(b, name)) for name in COLUMNS]
    return a.fingerprint == b.fingerprint and all(
        x.dtype == y.dtype and np.array_equal(x, y) for x, y in pairs
    )


@pytest.mark.parametrize("examples", [0, 1, 2, 3, 1000])
def test_a_table_is_read_as_it_was_written(examples: int, tmp_path: Path) -> None:
    path = tmp_path / "lengths.safetensors"
    table(7).save(path)
    table(examples).save(path)  # Replaces what was there.
    read = LengthTable.load(path, "f" * 32, examples)
    assert same(read, table(examples))
    assert len(read) == examples
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    content = path.read_bytes()
    read.save(path)
    assert path.read_bytes() == content


def test_a_loaded_table_is_mapped_and_pickled_as_its_path(tmp_path: Path) -> None:
    path = tmp_path / "lengths.safetensors"
    table(100_000).save(path)
    read = LengthTable.load(path, "f" * 32)
    for name in COLUMNS:
        assert not getattr(read, name).flags.writeable
        assert not getattr(read, name).flags.owndata
    sent = pickle.dumps(read)
    assert len(sent) < 1000
    assert same(pickle.loads(sent), read)
    assert same(pickle.loads(pickle.dumps(table())), table())
    table(100_001).save(path)
    assert same(read, table(100_000)), "an open table stays what it was when its file is replaced"
    with pytest.raises(ValueError, match=r"lengths\.safetensors was replaced"):
        pickle.loads(sent)


def test_tables_of_something_else_are_refused_by_name(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "lengths.safetensors"
    with pytest.raises(ValueError, match=r"lengths\.safetensors is not a usable table .*FileNotFound"):
        LengthTable.load(path, "f" * 32)
    table().save(path)
    with pytest.raises(ValueError, match=r"lengths\.safetensors .* [(]fingerprint f{32}, needed e{32}"):
        LengthTable.load(path, "e" * 32)
    with pytest.raises(ValueError, match=r"lengths\.safetensors holds the lengths of 5 .* source has 6"):
        LengthTable.load(path, "f" * 32, 6)
    good = {name: getattr(table(), name) for name in COLUMNS}
    about = {"fingerprint": "f" * 32, "examples": 5, "crc32": 0}
    for columns, metadata in (
        (good, None),
        (good, {"other": "{}"}),
        (good, {"v1lit_lengths": "[]"}),
        (good, {"v1lit_lengths": json.dumps({**about, "examples": "many"})}),
        (good, {"v1lit_lengths": json.dumps({**about, "examples": -5})}),
        ({**good, "images": good["images"][:4]}, {"v1lit_lengths": json.dumps(about)}),
        ({**good, "images": good["tokens"]}, {"v1lit_lengths": json.dumps(about)}),
        ({"tokens": good["tokens"]}, {"v1lit_lengths": json.dumps(about)}),
    ):
        save_file(columns, path, metadata)
        with pytest.raises(ValueError, match=r"lengths\.safetensors is not a usable table"):
            LengthTable.load(path, "f" * 32)


@given(data=st.data())
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_table_is_refused_or_the_same(data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "lengths.safetensors"
    table().save(path)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        read = LengthTable.load(path, "f" * 32, 5)
    except ValueError as error:
        assert "lengths.safetensors" in str(error)  # noqa: PT017  both outcomes are right
        return
    assert same(read, table()), "a change that loses nothing, such as another space in the header"


# --- shards ---


def write_shards(folder: Path, examples: int = 12) -> Path:
    """Shards of four examples each, without an index; of the third one the text is no valid example."""
    with ShardWriter(folder, max_examples=4) as writer:
        for number in range(examples):
            text = "No." * (number + 1) if number % 2 else "There: <|region_1|>."
            writer.write(example(f"e{number:02}", (60 + 20 * number, 90), text))
    paths = sorted(folder.glob("*.tar"))
    content = paths[0].read_bytes()
    assert content.count(b'"id": "e02"') == 1
    paths[0].write_bytes(content.replace(b'"id": "e02"', b'"id": "e99"'))
    return folder


def options_of(family: str, **encoding: Any) -> LengthOptions:
    return LengthOptions(processor(family), EncodingConfig(**encoding))


class LoudCatalog(Catalog):
    """Notes which shards are opened, and cannot open those that are `missing`."""

    def __init__(self, location: Path) -> None:
        super().__init__(location)
        self.opened: list[int] = []
        self.missing: set[int] = set()

    def open(self, shard: int) -> Shard:
        self.opened.append(shard)
        if shard in self.missing:
            raise ShardError(self.files[shard], None, "cannot be fetched")
        return super().open(shard)


class DeadlyCatalog(Catalog):
    def open(self, shard: int) -> Shard:
        os._exit(9)


def test_a_source_is_measured_in_place_order_and_what_cannot_be_used_has_no_length(tmp_path: Path) -> None:
    catalog = Catalog(write_shards(tmp_path))
    of, encoding = processor("qwen2_5_vl"), EncodingConfig(max_tokens=45)
    table = measure_lengths(catalog, LengthOptions(of, encoding), workers=1)
    assert len(table) == 12
    assert table.fingerprint == fingerprint(of, encoding)
    kinds = set()
    for place in range(12):
        with catalog.open(place // 4) as shard:
            try:
                expected = encoded_length(shard.example(place % 4), of, encoding)
                kinds.add("measured")
            except (ShardError, EncodingError) as error:
                expected = Length(0, 0, 0)
                kinds.add(type(error).__name__)
        assert Length(*(int(getattr(table, name)[place]) for name in COLUMNS)) == expected, place
    assert kinds == {"measured", "ShardError", "EncodingError"}


def test_with_an_index_even_a_cut_off_shard_keeps_its_places(tmp_path: Path) -> None:
    options, bare = options_of("llava"), Catalog(write_shards(tmp_path / "shards"))
    index_shards(bare.location, str(tmp_path / "index"), workers=1)
    indexed = Catalog(tmp_path / "index")
    whole = measure_lengths(bare, options, workers=1)
    assert same(whole, measure_lengths(indexed, options, workers=1))
    index = indexed.index(1)
    assert index is not None
    os.truncate(indexed.files[1], int(index.offsets[2]) + 100)
    cut = measure_lengths(indexed, options, workers=1)
    assert cut.tokens.tolist() == [*whole.tokens[:6].tolist(), 0, 0, *whole.tokens[8:].tolist()]
    with pytest.raises(ShardError, match="cut off"):
        measure_lengths(bare, options, workers=1)


def test_what_cannot_be_reached_is_never_taken_for_unusable(tmp_path: Path, monkeypatch: Any) -> None:
    def vanish(*_: Any) -> None:
        raise ShardError("shard", "key", "cannot be read", "unreachable")

    catalog, partial = Catalog(write_shards(tmp_path)), tmp_path / "partial"
    monkeypatch.setattr(Shard, "example", vanish)
    with pytest.raises(ShardError, match="cannot be read"):
        measure_lengths(catalog, options_of("llava"), workers=1, partial=partial)
    assert not list(partial.iterdir())


def test_more_images_than_a_table_can_count_have_no_length(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(lengths, "measure", lambda *_: Length(2**17, 2**17, 2**16))
    catalog = Catalog(write_shards(tmp_path))
    assert not measure_lengths(catalog, options_of("llava"), workers=1).tokens.any()


@pytest.mark.slow
def test_many_processes_give_what_one_gives(tmp_path: Path) -> None:
    catalog, options = Catalog(write_shards(tmp_path)), options_of("internvl")
    serial = measure_lengths(catalog, options, workers=1)
    parallel = measure_lengths(catalog, options, workers=2, partial=tmp_path / "partial")
    assert same(serial, parallel)


def test_a_run_that_was_stopped_resumes_with_what_is_missing(tmp_path: Path) -> None:
    catalog, partial = LoudCatalog(write_shards(tmp_path)), tmp_path / "partial"
    whole = measure_lengths(Catalog(tmp_path), options_of("llava"), workers=1)

    def resumed(**encoding: Any) -> LengthTable:
        catalog.opened.clear()
        return measure_lengths(catalog, options_of("llava", **encoding), workers=1, partial=partial)

    catalog.missing = {1}
    with pytest.raises(ShardError, match="cannot be fetched"):
        resumed()
    catalog.missing = set()
    assert catalog.opened == [0, 1]
    assert same(resumed(), whole)
    assert catalog.opened == [1, 2], "the first shard was finished"
    assert same(resumed(), whole)
    assert catalog.opened == []
    resumed(max_tokens=50)
    assert catalog.opened == [0, 1, 2], "results for other options are not taken"
    assert same(resumed(), whole)
    assert catalog.opened == [0, 1, 2]
    for path in partial.iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    assert same(resumed(), whole)
    assert catalog.opened == [0, 1, 2], "damaged results are not taken"
    catalog.counts[0] = 5
    resumed()
    assert catalog.opened == [0], "a result for another number of examples is not taken"


def test_what_an_earlier_version_left_of_a_table_is_measured_anew(tmp_path: Path) -> None:
    """It named the tables of single shards by digests of their numbers."""
    catalog, options, partial = LoudCatalog(write_shards(tmp_path)), options_of("llava"), tmp_path / "partial"
    whole = measure_lengths(catalog, options, workers=1, partial=partial)
    for shard, path in enumerate(sorted(partial.iterdir())):
        path.rename(partial / f"{hashlib.sha256(str(shard).encode()).hexdigest()[:32]}.safetensors")
    assert same(measure_lengths(catalog, options, workers=1, partial=partial), whole)
    assert catalog.opened == [0, 1, 2] * 2


@pytest.mark.slow
def test_a_worker_that_is_killed_is_reported(tmp_path: Path) -> None:
    catalog = DeadlyCatalog(write_shards(tmp_path))
    with pytest.raises(RuntimeError, match="killed for memory"):
        measure_lengths(catalog, options_of("llava"), workers=2)


SCRIPT = """
    import os, sys, time
    from pathlib import Path
    from v1lit.backbones.config import BackboneConfig
    from v1lit.backbones.processor import load_processor
    from v1lit.data.config import EncodingConfig
    from v1lit.data.lengths.length import LengthOptions
    from v1lit.data.lengths.measuring import measure_lengths
    from v1lit.data.shards.catalog import Catalog

    class SlowCatalog(Catalog):
        def open(self, shard):
            Path(f"{self.files[shard]}.{os.getpid()}.begun").touch()
            if shard > 0:
                time.sleep(1000)
            return super().open(shard)

    if __name__ == "__main__":
        processor, partial = load_processor(BackboneConfig("llava")), Path(sys.argv[2])
        options = {"workers": 2, "partial": partial, "progress": True}
        measure_lengths(SlowCatalog(sys.argv[1]), LengthOptions(processor, EncodingConfig()), **options)
"""


def wait_until(condition: Any) -> None:
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("waited for two minutes")


@pytest.mark.slow
def test_ctrl_c_ends_all_processes_at_once_and_keeps_what_is_finished(tmp_path: Path) -> None:
    write_shards(tmp_path)
    script, partial = tmp_path / "script.py", tmp_path / "partial"
    script.write_text(textwrap.dedent(SCRIPT))
    run = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path), str(partial)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_until(lambda: len(list(tmp_path.glob("*.begun"))) == 3 and list(partial.glob("*.safetensors")))
        os.killpg(run.pid, signal.SIGINT)
        _, said = run.communicate(timeout=120)
    finally:
        run.kill()
    assert run.returncode != 0
    assert said.count("Traceback") == 1, said  # That of the main process: workers are silent.
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert "examples/s" in said
    assert len(list(partial.glob("*"))) == 1
    workers = {int(path.name.split(".")[-2]) for path in tmp_path.glob("*.begun")}
    wait_until(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in workers))
