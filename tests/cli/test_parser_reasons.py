"""Why a class and its arguments are not taken: the parser's reason stands in the message."""

from __future__ import annotations

from pathlib import Path

import pytest

from v1lit.cli.errors import UserError
from v1lit.cli.recipe import compose
from v1lit.cli.schema import check_keys

LIGHTNING = "lightning.pytorch"


@pytest.mark.parametrize(
    ("key", "given", "words"),
    [
        ("callbacks", "[{class_path: mycallbacks.Mine}]", ["No module named 'mycallbacks'", "PYTHONPATH"]),
        ("callbacks", "[{class_path: broken.Mine}]", ["broken.Mine: No module named 'nowhere_to_be_found'"]),
        (
            "callbacks",
            f"[{{class_path: {LIGHTNING}.callbacks.EarlyStoping, init_args: {{monitor: val/loss}}}}]",
            ["has no attribute 'EarlyStoping'", "did you mean 'EarlyStopping'"],
        ),
        ("callbacks", "[{class_path: EarlyStoping}]", ["did you mean 'EarlyStopping'", "module.Class"]),
        ("callbacks", "[{class_path: EarlyStopping}]", ["EarlyStopping: the following", "required: monitor"]),
        (
            "callbacks",
            "[{class_path: EarlyStopping, init_args: {monitor: val/loss, patience: many}}]",
            ["patience: Expected a <class 'int'>. Got value: many"],
        ),
        (
            "callbacks",
            "[{class_path: EarlyStopping, init_args: {monitr: val/loss}}]",
            ["'monitr' is not accepted", "did you mean 'monitor'"],
        ),
        ("callbacks", "[{class_path: os.path.join}]", ["does not correspond to a subclass of Callback"]),
        ("logger", "{class_path: WandbLoger}", ["did you mean 'WandbLogger'"]),
        ("logger", f"[{{class_path: {LIGHTNING}.loggers.CSVLogger}}]", ["are required: save_dir"]),
        ("strategy", f"{{class_path: {LIGHTNING}.strategies.DDPStrategi}}", ["did you mean 'DDPStrategy'"]),
        ("plugins", f"[{{class_path: {LIGHTNING}.plugins.Foo}}]", ["has no attribute 'Foo'"]),
        ("profiler", f"{{class_path: {LIGHTNING}.profilers.Simple}}", ["did you mean 'SimpleProfiler'"]),
    ],
)  # fmt: skip
def test_the_reason_is_in_the_message(
    key: str, given: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.py").write_text("import nowhere_to_be_found\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    recipe = compose("tiny_qwen", [f"--trainer.{key}={given}"])
    with pytest.raises(UserError) as caught:
        check_keys(recipe)
    message = str(caught.value)
    assert message.startswith(f"trainer.{key} is ")
    assert all(word in message.split("\n")[0] for word in words), message
    assert len(message.split("\n")) == 2
