"""What each strategy writes for a region, and what of it is learned."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import pytest

from v1lit import plugins
from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.processor import load_processor
from v1lit.data.config import EncodingConfig
from v1lit.data.encode.encoding import Encoded, encode
from v1lit.data.example import Example, Message
from v1lit.data.images.encoded_image import EncodedImage, read_header
from v1lit.data.lengths.fingerprint import fingerprint
from v1lit.errors import OptionError
from v1lit.grounding.region import Region
from v1lit.labels import IGNORE
from v1lit.revisit.config import RevisitConfig
from v1lit.revisit.coordinates import Coordinates
from v1lit.revisit.point_and_copy import PointAndCopy
from v1lit.revisit.registry import list_strategies, make_strategy
from v1lit.revisit.strategy import RegionWriter, Strategy
from v1lit.testing.models import noise

BOX = (28.0, 0.0, 84.0, 56.0)
"""Of an image of 112 x 56 pixels, 4 x 2 patches."""


def picture() -> EncodedImage:
    png = io.BytesIO()
    noise((112, 56)).save(png, format="png")
    return read_header(png.getvalue())


def written(
    config: RevisitConfig, coordinates: bool = True, box: Any = BOX, supervise: Any = "assistant"
) -> tuple[str, Encoded]:
    """The text of the answer, `A <obj1><|region_1|> B`, as it is written, and the whole example."""
    processor = load_processor(BackboneConfig("qwen2_5_vl"), revisit=make_strategy(config))
    example = Example(
        id="e",
        images=(picture(),),
        messages=(Message("user", "<image>\nq"), Message("assistant", "A <obj1><|region_1|> B")),
        regions={"<|region_1|>": Region.from_box(box)},
    )
    encoded = encode(example, processor, EncodingConfig(coordinates=coordinates, supervise=supervise))
    learned = encoded.input_ids[encoded.labels != IGNORE].tolist()
    return processor.decode(learned).removesuffix("<|im_end|>"), encoded


POINTERS = "<|copy_1|><|copy_2|><|copy_5|><|copy_6|>"


@pytest.mark.parametrize(
    ("config", "coordinates", "text"),
    [
        (RevisitConfig(), True, f"<region>[0.25, 0.00, 0.75, 1.00]{POINTERS}</region>"),
        (RevisitConfig("point_only"), False, f"<region>{POINTERS}</region>"),
        (RevisitConfig("point_and_copy", {"max_copies": 1}), False, "<region><|copy_1|></region>"),
        (RevisitConfig(options={"end": "pointer"}), False, f"<region>{POINTERS}<|copy_8|></region>"),
        (
            RevisitConfig("point_only", {"end": "pointer", "max_copies": 2, "order": "nearest"}),
            False,
            "<region><|copy_1|><|copy_2|><|copy_8|></region>",
        ),
        (RevisitConfig("coordinates"), False, "<region>[0.25, 0.00, 0.75, 1.00]</region>"),
        (RevisitConfig("coordinates", {"format": "pixels"}), True, "<region>[28, 0, 84, 56]</region>"),
        (
            RevisitConfig("coordinates", {"format": "bins", "bins": 100}),
            True,
            "<region>[25, 0, 75, 99]</region>",
        ),
        (RevisitConfig("text_only"), True, ""),
    ],
)
def test_a_region_is_written_as_the_strategy_says(
    config: RevisitConfig, coordinates: bool, text: str
) -> None:
    found, encoded = written(config, coordinates)
    assert found == f"A <obj1>{text} B"
    assert len(encoded.regions) == ("copy" in text)


def boxes_of(order: str, box: tuple[float, float, float, float]) -> list[int]:
    """Patches of a 4 x 2 grid in the order in which they are pointed at."""

    @dataclass
    class Writer:
        patch_maps: Any
        tokens: Any = ()
        coordinates: bool = False

        def add_text(self, text: str, learn: bool) -> None:
            """Nothing."""

        def add_pointers(self, name: str, region: Region, tokens: Any, learn: bool) -> None:
            self.tokens = list(tokens)

    processor = load_processor(BackboneConfig("qwen2_5_vl"))
    writer = Writer([processor.patch_map((112, 56))])
    PointAndCopy(order=order).write_region(writer, "r", Region.from_box(box), True)  # type: ignore[arg-type]
    return list(writer.tokens)


def test_patches_are_pointed_at_in_the_order_that_is_asked_for() -> None:
    box = (28.0, 0.0, 100.0, 40.0)  # its centre lies in patch 2, and patch 7 is covered least
    assert boxes_of("scan", box) == [1, 2, 3, 5, 6, 7]
    assert boxes_of("nearest", box)[0] == 2
    assert boxes_of("overlap", box) == [1, 2, 3, 5, 6, 7]
    assert boxes_of("overlap", (40.0, 10.0, 112.0, 56.0))[:2] == [6, 7]


@pytest.mark.parametrize("bins", [2, 10, 1000])
def test_bins_are_from_0_to_the_last(bins: int) -> None:
    text = Coordinates(format="bins", bins=bins).text((0, 0, 112, 56), (112, 56))
    assert text == f"[0, 0, {bins - 1}, {bins - 1}]"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "point_and_cop"}, r"revisit\.name is 'point_and_cop'; did you mean 'point_and_copy'\?"),
        (
            {"options": {"ordre": "scan"}},
            r"revisit\.options\.ordre is 'scan'; point_and_copy has no",
        ),
        ({"options": {"order": "random"}}, r"revisit\.options\.order is 'random'; allowed: scan, nearest"),
        ({"options": {"max_copies": 0}}, r"revisit\.options\.max_copies is 0; give 1 or more"),
        ({"name": "coordinates", "options": {"bins": 1}}, r"revisit\.options\.bins is 1; give 2 or more"),
        ({"control": "nois"}, r"revisit\.control is 'nois'; did you mean"),
        ({"control_when": "never"}, r"revisit\.control_when is 'never'; allowed: training, decoding, both"),
        ({"options": ["detach"]}, r"revisit\.options is \['detach'\]; it is a mapping"),
    ],
)
def test_a_mistake_names_the_option_and_what_is_allowed(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        make_strategy(RevisitConfig(**options))


@dataclass(frozen=True)
class Middle(Strategy):
    """One pointer for a region."""

    def write_region(self, sequence: RegionWriter, name: str, region: Region, learn: bool) -> None:
        sequence.add_pointers(name, region, [3], learn)


class Point:
    """An entry point."""

    name, value = "middle", "elsewhere:Middle"

    def load(self) -> Any:
        return Middle


def test_a_strategy_of_another_package_is_found_by_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        plugins, "_declared", lambda group, path: [Point()] if group == "v1lit.revisit" else []
    )
    assert "middle" in list_strategies()
    assert written(RevisitConfig("middle"))[0] == "A <obj1><|copy_3|> B"
    monkeypatch.setattr(Point, "name", "point_and_copy")
    with pytest.raises(OptionError, match="several packages claim that name"):
        make_strategy()
    monkeypatch.setattr(Point, "name", "none")
    monkeypatch.setattr(Point, "load", lambda self: dict)
    with pytest.raises(OptionError, match=r"not a subclass of v1lit\.revisit\.strategy\.Strategy"):
        make_strategy(RevisitConfig("none"))


def test_lengths_are_measured_again_under_another_strategy() -> None:
    prints = {
        fingerprint(load_processor(BackboneConfig("llava"), revisit=make_strategy(config)), EncodingConfig())
        for config in (RevisitConfig(), RevisitConfig("text_only"), RevisitConfig(options={"max_copies": 2}))
    }
    assert len(prints) == 3


def test_of_multi_patch_the_first_pointer_alone_is_a_label_and_the_others_follow_row_by_row() -> None:
    config = RevisitConfig("multi_patch", {"order": "overlap"})
    for box, first, others in ((BOX, 1, [2, 5, 6]), ((10.0, 0.0, 56.0, 56.0), 1, [0, 4, 5])):
        assert pointers_of(config, box) == ([first, *others], [first])


def test_so_it_is_where_everything_is_supervised() -> None:
    config = RevisitConfig("multi_patch")
    assert pointers_of(config, BOX, "all") == ([1, 2, 5, 6], [1])


def pointers_of(
    config: RevisitConfig, box: tuple[float, ...], supervise: str = "assistant"
) -> tuple[list[int], list[int]]:
    """The patches that are pointed at, and those of them that are labels."""
    _, encoded = written(config, box=box, supervise=supervise)
    (span,) = encoded.regions
    start = load_processor(BackboneConfig("qwen2_5_vl")).pointer_start
    ids, labels = (each[span.start : span.stop] for each in (encoded.input_ids, encoded.labels))
    return (ids - start).tolist(), (labels[labels != IGNORE] - start).tolist()
