"""What an example costs is what `encode` makes of it, and what is refused is what a run refuses."""

from __future__ import annotations

import re
from functools import lru_cache

import pytest
from helpers.pictures import encoded
from helpers.shard_cases import jpeg, make
from helpers.tiny_runs import processor

from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.processor import Processor, load_processor
from v1lit.data.config import EncodingConfig, PackingConfig
from v1lit.data.encode.encoding import EncodingError, encode
from v1lit.data.encode.mapping import ExampleMap
from v1lit.data.example import Example, Message
from v1lit.data.images import decode_image, read_header
from v1lit.data.lengths.length import LengthOptions
from v1lit.data.tools.cost import Cost, Rules
from v1lit.grounding.region import Region
from v1lit.labels import IGNORE

OUTSIDE = "outside of the middle square"


@lru_cache
def llava() -> Processor:
    return load_processor(BackboneConfig("llava"))


def rules(max_tokens: int = 512, of: Processor | None = None, **options: object) -> Rules:
    encoding = EncodingConfig(max_tokens=max_tokens, coordinates=False)
    map = options.pop("map", None)
    return Rules(LengthOptions(of or processor(), encoding, map), **options)  # type: ignore[arg-type]


def wide() -> Example:
    """A picture five times as wide as high: LLaVA sees its middle fifth, and not its left edge."""
    return Example(
        id="wide",
        images=(read_header(encoded((300, 60))),),
        messages=(Message("user", "<image>Where?"), Message("assistant", "<|region_1|> and <|region_2|>.")),
        regions={
            "<|region_1|>": Region.from_box((0, 0, 20, 60)),
            "<|region_2|>": Region.from_box((140, 0, 160, 60)),
        },
    )


@pytest.mark.parametrize("max_tokens", [512, 44, 40])
@pytest.mark.parametrize("example", [make("a"), make("two", images=2), wide()], ids=lambda one: one.id)
def test_a_cost_is_that_of_the_encoded_example(example: Example, max_tokens: int) -> None:
    for one in (processor(), llava()):
        cost, refused = rules(max_tokens, one).cost(example)
        encoding = EncodingConfig(max_tokens=max_tokens, coordinates=False)
        if refused is not None:
            assert refused.kind == "length"
            with pytest.raises(EncodingError, match=re.escape(refused.reason)):
                encode(example, one, encoding)
            continue
        is_so = encode(example, one, encoding)
        assert cost == Cost(
            tokens=len(is_so.input_ids),
            whole=len(is_so.input_ids) + is_so.cut,
            image_tokens=sum(map(len, is_so.patch_maps)),
            learned=int((is_so.labels[1:] != IGNORE).sum()),
            unseen=is_so.unseen,
            cut_regions=len(example.regions) - len(is_so.regions) - len(is_so.unseen),
        )


def test_the_numbers_of_a_small_example_are_known() -> None:
    # 40 x 32 pixels are 6 image tokens; of 45 tokens the call and the end of the turn are learned.
    cost, _ = rules().cost(make("a"))
    assert cost == Cost(tokens=45, whole=45, image_tokens=6, learned=14)
    cost, _ = rules(40).cost(make("a"))
    assert cost == Cost(tokens=34, whole=45, image_tokens=6, learned=4, cut_regions=1)


def test_a_region_outside_of_what_is_seen_is_named() -> None:
    cost, _ = rules(of=llava()).cost(wide())
    assert cost is not None
    assert cost.unseen == ("<|region_1|>",), OUTSIDE
    cost, _ = rules().cost(wide())
    assert cost is not None
    assert cost.unseen == ()


def test_what_fits_no_row_is_refused_as_a_run_refuses_it() -> None:
    packing = PackingConfig(length=600, max_image_tokens=5)
    cost, refused = rules(packing=packing).cost(make("a"))
    assert cost is None
    assert refused is not None
    assert refused.kind == "length"
    assert "it has 6 image tokens, more than the 5 of data.packing.max_image_tokens" in refused.reason
    assert rules(packing=PackingConfig()).cost(make("a"))[1] is None


def test_an_image_without_room_is_refused_by_name() -> None:
    cost, refused = rules(9).cost(make("a"))
    assert cost is None
    assert refused is not None
    assert "image 0 of example 'a' needs tokens 14 to 22 of a sequence that may hold 9" in refused.reason


def only_b(example: Example) -> Example | None:
    return example if example.id == "b" else None


def looks(example: Example) -> Example:
    decode_image(example.images[0])
    return example


def draws(example: Example, random) -> Example:  # type: ignore[no-untyped-def]
    return make(f"{example.id}{random.random()}")


def test_the_map_of_a_recipe_comes_first() -> None:
    chosen = rules(map=ExampleMap(f"{__name__}.only_b"))
    assert chosen.mapped(make("a"), "s.tar", 0) == (None, None)
    assert chosen.mapped(make("b"), "s.tar", 0) == (make("b"), None)
    damaged = Example(
        id="x",
        images=(read_header(jpeg(0)[:-30]),),
        messages=(*make("x").messages[:1], Message("assistant", "no")),
    )
    assert rules(map=ExampleMap(f"{__name__}.looks")).mapped(damaged, "s.tar", 0)[1] is not None
    random = rules(map=ExampleMap(f"{__name__}.draws"))
    one, other = (random.mapped(make("a"), "s.tar", index)[0] for index in (0, 1))
    assert one is not None
    assert other is not None
    assert one.id != other.id
    assert one == random.mapped(make("a"), "s.tar", 0)[0]
