"""Exported folders go to the hub, here one on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.asked import predictor, save_model
from helpers.fake_hub import FakeHub, fake_hub
from huggingface_hub import HfApi, ModelCard, constants
from transformers.utils import hub as hub_of_transformers

from v1lit.backbones.publish import PushError, push_to_hub
from v1lit.cli.main import main

pytestmark = pytest.mark.dependencies

CARD = "---\nlibrary_name: v1lit\n---\n\n# Ours\n"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub that everything here takes for the real one."""
    with fake_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            hub.address + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_nobody")
        monkeypatch.setattr(hub_of_transformers, "_hf_api", HfApi(endpoint=hub.address, token="hf_nobody"))
        yield hub


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_model(tmp_path_factory.mktemp("model"))
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    (folder / ".unfinished.tmp").write_text("no part of it")
    return folder


def test_the_command_uploads_the_folder_with_its_card_as_it_is(
    exported: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(exported), "me/ours", "--private", "--message", "Here"]) == 0
    assert hub.address in capsys.readouterr().out
    (made,) = hub.repositories
    assert (made["name"], made["organization"]) == ("ours", "me")
    assert made.get("private") or made.get("visibility") == "private"
    assert hub.message == "Here"
    written = {path.name: path.read_bytes() for path in exported.iterdir() if path.suffix != ".tmp"}
    assert hub.files == written
    assert ModelCard(hub.files["README.md"].decode()).data.library_name == "v1lit"


def test_push_to_hub_of_transformers_passes_through(hub: FakeHub) -> None:
    predictor().model.push_to_hub("ours")
    assert {"config.json", "model.safetensors", "README.md"} <= set(hub.files)
    assert b'"model_type": "v1lit"' in hub.files["config.json"]


def test_a_hub_that_refuses_is_named_in_two_lines(
    exported: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.refuses = True
    with pytest.raises(PushError, match=r"could not be uploaded to me/ours: .*you may not write here"):
        push_to_hub(exported, "me/ours")
    assert main(["push", str(exported), "me/ours"]) != 0
    assert "hf auth login" in capsys.readouterr().err
    assert not hub.files


def test_other_folders_and_names_are_refused_before_the_hub_is_asked(
    exported: Path, hub: FakeHub, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="it has no config"):
        push_to_hub(tmp_path, "me/ours")
    for name in ("a/b/c", "./here"):
        with pytest.raises(ValueError, match="is no name on the hub; give OWNER/NAME"):
            push_to_hub(exported, name)
    without = save_model(tmp_path / "without")
    with pytest.raises(ValueError, match=r"has no README\.md"):
        push_to_hub(without, "me/ours")
    assert not hub.repositories
