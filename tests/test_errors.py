"""Errors about options carry facts: which option, what it was, what is allowed."""

from __future__ import annotations

import dataclasses
import pickle
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import pytest

from v1lit.backbones.config import BackboneConfig
from v1lit.data import config as of_data
from v1lit.errors import OptionError, check_choices, check_least, did_you_mean, name_allowed, named
from v1lit.pointer.config import PointerConfig
from v1lit.training.config import OptimizerConfig, RunConfig
from v1lit.training.module import V1Module

OPTIONS: list[Any] = [
    BackboneConfig,
    PointerConfig,
    OptimizerConfig,
    RunConfig,
    *(kind for kind in vars(of_data).values() if dataclasses.is_dataclass(kind) and hasattr(kind, "GROUP")),
]


def test_an_option_error_is_told_with_its_key_and_its_origin() -> None:
    error = OptionError("width", 0, "give 1 or more", "pointer")
    assert str(error) == "pointer.width is 0; give 1 or more"
    assert error.told("r.yaml") == "pointer.width is 0 (r.yaml); give 1 or more"
    assert (
        str(OptionError("seed", 1.5, "a whole number is needed")) == "seed is 1.5; a whole number is needed"
    )


def test_it_comes_from_another_process_as_it_was() -> None:
    error = pickle.loads(pickle.dumps(OptionError("width", 0, "give 1 or more", "pointer")))
    assert (error.field, error.given, error.why, error.group) == ("width", 0, "give 1 or more", "pointer")


def test_a_name_put_before_it_is_the_group_of_its_option() -> None:
    with pytest.raises(OptionError) as caught, named("data.source.options"):
        raise OptionError("seed", 1.5, "a whole number is needed")
    assert caught.value.key == "data.source.options.seed"
    with pytest.raises(ValueError, match=r"^weights: no such file$"), named("weights"):
        raise ValueError("no such file")


def test_every_group_of_options_refuses_a_word_that_its_annotation_does_not_name() -> None:
    checked = 0
    for kind in OPTIONS:
        required = {"shards": "x"} if kind is of_data.MixtureConfig else {}
        for one in dataclasses.fields(kind):
            if "Literal" in str(one.type) or one.name in ("attention", "freeze", "compile", "views"):
                wrong = ["no such"] if str(one.type).startswith("list") else "no such"
                with pytest.raises(OptionError, match=r"allowed: \w+") as caught:
                    kind(**required, **{one.name: wrong})
                assert caught.value.key == f"{kind.GROUP}.{one.name}"
                checked += 1
    assert checked > 10


@dataclass
class Options:
    GROUP: ClassVar = "x"
    look: Literal["plain", "fancy"] = "plain"
    parts: list[Literal["head", "tail"]] = field(default_factory=list)
    number: int | None = None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"look": "plane"}, "x.look is 'plane'; did you mean 'plain'? allowed: plain, fancy"),
        ({"parts": ["head", "body"]}, "x.parts is ['head', 'body']; no 'body'; allowed: head, tail"),
    ],
)
def test_choices_are_read_from_the_annotations(given: dict[str, Any], message: str) -> None:
    check_choices(Options(parts=["tail"]))
    with pytest.raises(OptionError) as caught:
        check_choices(Options(**given))
    assert str(caught.value) == message


@pytest.mark.parametrize("wrong", [{"on_nonfinite": "halt"}, {"verify_loss": -1}])
def test_the_module_refuses_its_own_options(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError) as caught:
        V1Module(BackboneConfig(), **wrong)
    assert caught.value.key == f"model.{next(iter(wrong))}"


def test_a_subclass_with_a_constructor_of_its_own_has_the_same_options() -> None:
    class Mine(V1Module):
        def __init__(self, mode: Literal["a", "b"], **options: Any) -> None:
            super().__init__(BackboneConfig(), **options)
            self.mode = mode

    assert Mine("a").on_nonfinite == "stop"
    with pytest.raises(OptionError, match=r"^model\.on_nonfinite is 'halt'"):
        Mine("a", on_nonfinite="halt")


def test_none_is_no_number_that_is_too_small() -> None:
    check_least(Options(), 1, "number")
    check_least(Options(number=1), 1, "number")
    with pytest.raises(OptionError, match=r"^x\.number is 0; give 1 or more$"):
        check_least(Options(number=0), 1, "number")


def test_the_nearest_name_is_suggested_where_one_is_near() -> None:
    assert did_you_mean("tial", ["head", "tail"]) == "; did you mean 'tail'?"
    assert did_you_mean("tial", ["head", "tail"], "parts.") == "; did you mean 'parts.tail'?"
    assert did_you_mean("xyz", ["head", "tail"]) == ""


def test_of_many_names_some_are_listed() -> None:
    assert name_allowed("x", []) == "allowed: none"
    assert name_allowed("", map(str, range(100))).endswith("18, 19 and 80 more")
