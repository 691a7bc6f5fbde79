"""transformers' `Auto` classes and its pipeline open our folders as `v1lit.load` does."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.asked import predictor, save_model
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, pipeline
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import v1lit
from v1lit import autos
from v1lit.backbones.processor import Processor
from v1lit.backbones.registry import BUILTIN
from v1lit.inference.autos import PointAndCopyProcessor
from v1lit.inference.generating import settle
from v1lit.pointer.model import PointAndCopyModel
from v1lit.pointer.model_config import PointAndCopyConfig
from v1lit.testing.models import noise

pytestmark = pytest.mark.dependencies

PICTURE = noise((112, 84))
QUESTION = "Where is <image>, and </s> or <|im_end|>?"
"""With words that are marks elsewhere."""
CHAT = [
    {
        "role": "user",
        "content": [{"type": "image", "image": PICTURE}, {"type": "text", "text": QUESTION}],
    }
]


@pytest.mark.parametrize("family", sorted(BUILTIN))
def test_auto_classes_have_the_logits_and_the_tokens_of_load(family: str, tmp_path: Path) -> None:
    save_model(tmp_path, family)
    asked = v1lit.load(tmp_path, device="cpu")
    expected = asked(PICTURE, QUESTION, max_new_tokens=8)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), PointAndCopyConfig)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    processor = AutoProcessor.from_pretrained(tmp_path)
    inputs = processor.apply_chat_template(CHAT, add_generation_prompt=True, return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, asked.model(**inputs).logits)
    made = model.generate(**inputs, max_new_tokens=8)[:, inputs["input_ids"].shape[1] :]
    assert processor.decode(made[0], skip_special_tokens=True) == expected.text
    assert processor.batch_decode(made) == [asked.processor.decode(made[0].tolist())]
    assert inputs["input_ids"].shape[1] == expected.counts.prompt
    start = model.config.pointer_start
    pointed = [token - start for token in made[0].tolist() if token >= start]
    assert pointed == [token for run in expected.pointers for token in run] != []


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava"])
def test_the_pipeline_answers_as_load_does(
    family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_model(tmp_path, family)
    expected = v1lit.load(tmp_path, device="cpu")(PICTURE, QUESTION, max_new_tokens=6)
    ask = pipeline("image-text-to-text", model=str(tmp_path), device="cpu")
    chat = ask(CHAT, max_new_tokens=6, return_full_text=False)
    assert chat[0]["generated_text"] == expected.text
    assert ask(CHAT, max_new_tokens=6)[0]["generated_text"][-1]["content"] == expected.text
    plain = ask(images=PICTURE, text=QUESTION, max_new_tokens=6, return_full_text=False)
    assert plain[0]["generated_text"] == expected.text
    assert "not supported" not in caplog.text


def test_rows_of_different_length_are_padded_and_answered_alike(tmp_path: Path) -> None:
    save_model(tmp_path)
    asked = v1lit.load(tmp_path, device="cpu")
    other = noise((56, 168), 1)
    expected = asked.batch([([PICTURE], "Where?"), ([other, PICTURE], "Which of the two?")], max_new_tokens=6)
    processor = AutoProcessor.from_pretrained(tmp_path)
    inputs = processor(images=[[PICTURE], [other, PICTURE]], text=["Where?", "Which of the two?"])
    made = asked.model.generate(**inputs, max_new_tokens=6)[:, inputs["input_ids"].shape[1] :]
    assert processor.post_process_image_text_to_text(made) == [one.text for one in expected]


def test_settings_of_an_export_are_those_of_a_predictor() -> None:
    asked = predictor()
    settings = asked.model.generation_config
    settings.update(do_sample=True, temperature=0.3, top_k=5, eos_token_id=[7, 8], repetition_penalty=50.0)
    expected = asked(PICTURE, "Where?", max_new_tokens=8)
    settle(asked.model, asked.processor)
    inputs = PointAndCopyProcessor(asked.processor)(images=PICTURE, text="Where?")
    made = asked.model.generate(**inputs, max_new_tokens=8)[0, inputs["input_ids"].shape[1] :]
    assert asked.processor.decode(made.tolist(), skip_special=True) == expected.text
    assert expected.pointers, "a penalty that is one of words"


def test_a_processor_is_saved_and_opened(tmp_path: Path) -> None:
    PointAndCopyProcessor(predictor().processor).save_pretrained(tmp_path)
    assert Processor.from_pretrained(tmp_path).backbone.name == "qwen2_5_vl"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"continue_final_message": True}, r"continue_final_message=True: v1lit's processor takes"),
        ({"tools": ["a"]}, r"tools=\['a'\]"),
        ({"return_tensors": "np"}, "return_tensors='np'"),
    ],
)
def test_options_that_would_be_left_out_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PointAndCopyProcessor(predictor().processor).apply_chat_template(CHAT, **change)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([{"type": "video", "video": "a.mp4"}], "a part of type 'video'"),
        ([{"type": "image", "url": "https://somewhere/a.png"}], "fetches no pictures"),
        ([{"type": "image"}], "has no image"),
    ],
)
def test_parts_of_a_chat_that_cannot_be_read_are_named(content: list[dict[str, str]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PointAndCopyProcessor(predictor().processor).apply_chat_template(
            [{"role": "user", "content": content}]
        )
    with pytest.raises(ValueError, match="ends with the user's turn"):
        PointAndCopyProcessor(predictor().processor).apply_chat_template(
            [{"role": "assistant", "content": "So"}]
        )


# ------------------------------------------------------------------ the hook


def test_the_registry_of_this_process_has_the_stand_in() -> None:
    assert CONFIG_MAPPING["v1lit"] is autos.LazyConfig
    assert isinstance(AutoConfig.for_model("v1lit"), PointAndCopyConfig)
    assert PointAndCopyModel.config_class is PointAndCopyConfig


REGISTRY = """
class AutoConfig:
    known = {}

    @classmethod
    def register(cls, name, config, exist_ok):
        cls.known[name] = config
"""


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module that is like transformers' registry, and not imported yet."""
    (tmp_path / "its_package").mkdir()
    (tmp_path / "its_package/__init__.py").write_text("")
    (tmp_path / "its_package/registry.py").write_text(REGISTRY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(autos, "REGISTRY", "its_package.registry")
    finders = list(sys.meta_path)
    yield "its_package.registry"
    sys.meta_path[:] = finders
    for name in ("its_package.registry", "its_package"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("first", ["v1lit", "transformers"])
def test_whichever_is_imported_first(first: str, registry: str) -> None:
    finders = list(sys.meta_path)
    if first == "transformers":
        importlib.import_module(registry)
    autos.register_lazily()
    autos.register_lazily()  # of a module that is reloaded
    if first == "v1lit":
        assert registry not in sys.modules
        assert len(sys.meta_path) == len(finders) + 1
    module = importlib.import_module(registry)
    assert module.AutoConfig.known == {"v1lit": autos.LazyConfig}
    assert sys.meta_path == finders
    assert importlib.reload(module).AutoConfig is not None
