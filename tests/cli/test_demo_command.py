"""`v1lit demo`: what it opens, for whom, and how it says what is missing. The page itself: tests/demo."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from helpers.asked import save_model

from v1lit.cli import demo
from v1lit.cli.errors import UserError
from v1lit.cli.main import main


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_model(folder / "first" / "model")
    save_model(folder / "second")
    return folder


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the server would be, had it been run."""
    pytest.importorskip("gradio", reason="gradio is not installed")
    import v1lit.demo.app
    import v1lit.demo.server

    seen: dict[str, Any] = {}

    class Server:
        def run(self) -> None:
            seen["folder"] = Path(os.environ["GRADIO_TEMP_DIR"])
            assert seen["folder"].is_dir()

    def make_app(*given: Any) -> None:
        seen["given"] = given

    def page_server(app: Any, host: str, port: int) -> Server:
        seen["at"] = host, port
        return Server()

    monkeypatch.setattr(v1lit.demo.app, "make_app", make_app)
    monkeypatch.setattr(v1lit.demo.server, "page_server", page_server)
    return seen


def test_one_model_for_this_machine_alone(
    models: Path, opened: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", str(models / "first" / "model"), "--seconds", "20", "--waiting", "3"]) == 0
    assert capsys.readouterr().out == "first at http://127.0.0.1:7860; Ctrl-C ends it\n"
    predictors, limits, samples, hosts = opened["given"]
    assert list(predictors) == ["first"]
    assert (limits.seconds, limits.waiting, len(samples)) == (20, 3, 8)
    assert opened["at"] == ("127.0.0.1", 7860)
    assert hosts == ["127.0.0.1", "localhost", "::1"]
    assert not opened["folder"].exists()
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"


def test_two_models_for_everyone(
    models: Path, opened: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    other = ["--beside", str(models / "second"), "--host", "0.0.0.0", "--port", "81"]
    assert main(["demo", str(models / "first" / "model"), *other]) == 0
    out = capsys.readouterr().out
    assert (
        out == "first and second at http://0.0.0.0:81, to everyone who reaches that address; Ctrl-C ends it\n"
    )
    assert opened["given"][3] == ["*"]


def test_mistakes_are_told_before_a_model_is_loaded(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"v1lit demo needs gradio\npip install 'v1lit\[demo\]'"):
        demo.main([str(models / "second")])
    monkeypatch.setattr(demo, "find_spec", lambda name: True)
    with pytest.raises(UserError, match="is the model itself; name another one"):
        demo.main([str(models / "second"), "--beside", str(models / "second")])
    with pytest.raises(ValueError, match=r"demo\.upload_mb is 0; give 1 or more"):
        demo.main([str(models / "second"), "--upload-mb", "0"])
