"""Runs every snippet and command of one Markdown page, in order, in a process of its own.

In the current directory, which is like a checkout with the files that a reader brings along. Python blocks
share one namespace; one that begins with the name of a file is written there instead. A line that ends in
`# => text` claims that `text` is printed. Commands are run by the functions that the scripts call. What is
changed to make it quick is written down here, and nothing else is.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import io
import os
import re
import shlex
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LANGUAGES = ("bash", "json", "python", "text", "toml", "yaml")
"""What may stand behind a fence; the others are for people only."""

SUBSTITUTED = {
    "max_steps=1200": "max_steps=2",
    "val_check_interval=200": "val_check_interval=2",
    "batch_size=32": "batch_size=4",
    '"examples": 4096': '"examples": 16',
    '"val_examples": 256': '"val_examples": 4',
}
"""Text of Python blocks -> what is run instead. A test sees that each is still needed."""

READERS_OWN = {
    "kjunh/v1g": "my_rows",
    "s3://my-bucket/v1g/train/shard-{000000..000099}.tar": "data/small/train/shard-*.tar",
}
"""Words of commands that need the network -> what the reader's directory holds in their place."""

SHORT_RUN = (
    *("--trainer.max_steps=2", "--trainer.val_check_interval=2", "--trainer.log_every_n_steps=1"),
    *("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
    *("--data.batch_size=2", "--data.val_batch_size=2"),
    *(
        "--run.report_examples=2",
        "--run.report_batch_size=2",
        "--run.report_max_new_tokens=4",
        "--run.pictures=1",
    ),
)
"""Added to commands that train, behind all other options."""

LONG_SWEEPS = ("recipes/sweeps/strategies.yaml", "recipes/sweeps/towers.yaml")
"""Of which tests/sweep/test_shipped_sweeps.py tries the dry run."""

FEW_SCENES = ("--data.source.options.examples=8", "--data.source.options.val_examples=4")
"""Added as well where the recipe draws its data."""

ALONE = ("--workers", "1", "--no-progress")
QUICK = {
    "synth": ("--examples", "12", *ALONE),
    "import": ALONE,
    "show": (),
    "index": ALONE,
    "check": ALONE,
    "stats": ALONE,
    "reshard": ALONE,
    "mix": (),
}
"""Added to `v1lit data ...`, behind all other options."""


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the line of the page on which the text begins."""

    language: str
    text: str
    line: int


def blocks(page: str) -> Iterator[Block]:
    """The fenced blocks of a page."""
    for match in re.finditer(r"^```(.*?)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        yield Block(match[1].strip(), match[2], page[: match.start(2)].count("\n") + 1)


def commands(block: Block) -> list[list[str]]:
    """The commands of a bash block, as words."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def yaml_file(block: Block) -> str | None:
    """Where a YAML block belongs: the file that one of its first two lines, a comment, names."""
    match = re.search(r"^# .*?([\w./]+\.yaml)", "\n".join(block.text.splitlines()[:2]), re.MULTILINE)
    return match[1] if match else None


def module_file(block: Block) -> str | None:
    """Where a Python block belongs that is a module: the file that its first line, a comment, names."""
    match = re.match(r"# (\w+\.py)$", block.text, re.MULTILINE)
    return match[1] if match else None


def toml_file(block: Block) -> str | None:
    """Where a TOML block belongs that is a file: the one that its first line, a comment, names."""
    match = re.match(r"# (\w+\.toml)$", block.text, re.MULTILINE)
    return match[1] if match else None


def run_page(page: Path) -> None:
    """Run all blocks of a page; raises what a block raises, with a note that says where it stands."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page.read_text(encoding="utf-8")):
        try:
            module = module_file(block) if block.language == "python" else None
            package = toml_file(block) if block.language == "toml" else None
            if name := module or package:
                Path(name).write_text(block.text, encoding="utf-8")
            elif block.language == "python":
                run_python(block, namespace)
            elif block.language == "yaml":
                keep_yaml(block)
            elif block.language == "bash":
                for words in commands(block):
                    run_command(words)
        except BaseException:
            print(f"{page.name}:{block.line}: this block failed:\n{block.text}", file=sys.stderr)
            raise


def run_python(block: Block, namespace: dict[str, Any]) -> None:
    """Execute a block and compare what it prints with what it claims."""
    text = block.text
    for written, small in SUBSTITUTED.items():
        text = text.replace(written, small)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile("\n" * (block.line - 1) + text, "page", "exec"), namespace)
    lines = iter(printed.getvalue().splitlines())
    for claim in re.findall(r"# => (.*)$", block.text, re.MULTILINE):
        assert claim in lines, f"{claim!r} is claimed, but this is printed:\n{printed.getvalue()}"


def keep_yaml(block: Block) -> None:
    """Write the file that a block shows; a whole recipe is resolved at once."""
    name = yaml_file(block)
    assert name, "a YAML block names its file in a comment on top"
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.text, encoding="utf-8")
    if re.search(r"^axes:", block.text, re.MULTILINE):
        call(["v1lit", "sweep", str(path), "--dry-run", "--elsewhere"])
    elif re.search(r"^(base|model|trainer):", block.text, re.MULTILINE):
        call(["v1lit", "run", str(path), "--print_config"])


def run_command(words: Sequence[str]) -> None:
    """Run a command of v1lit; of any other see that it is possible. Unknown kinds are an error."""
    words = [READERS_OWN.get(word, word) for word in words]
    program, *rest = words
    if program in ("v1lit", "lightning") and rest[0] == "run":
        call([*words, *added_to_run(rest[1:])])
    elif program == "v1lit" and rest[0] == "data":
        call([*words, *QUICK[rest[1]]])
    elif program == "v1lit" and (
        rest[0] in ("list", "plan", "report", "export", "convert", "generate")
        or rest in (["doctor"], ["doctor", "--self-test"])
    ):
        call(words)
    elif words[:2] == ["v1lit", "push"]:  # to a hub that is not here
        from v1lit.backbones.publish import check_folder

        check_folder(Path(words[2]))
    elif words[:3] == ["v1lit", "sweep", "report"] and not Path(words[3]).exists():
        from v1lit.cli.sweep_report import make_parser

        make_parser().read(words[3:])  # of one that takes hours
    elif words[:2] == ["v1lit", "assemble"]:  # of parts that have to be fetched
        from v1lit.backbones.timm_tower import check_tower_name
        from v1lit.cli.assemble import make_parser as assemble_parser

        check_tower_name(assemble_parser().read(words[2:]).tower)
    elif words[:2] == ["v1lit", "sweep"] and rest[1] in LONG_SWEEPS:
        assert Path(rest[1]).is_file()
    elif words[:2] == ["v1lit", "sweep"]:
        call([*words, *(["--dry-run"] if "--executor" in words else [])])
    elif words[:3] == ["v1lit", "doctor", "--packing"]:
        call([*words, *FEW_SCENES])
    elif words[:3] == ["v1lit", "launch", "local"]:
        call([*words, *SHORT_RUN, *FEW_SCENES])
    elif words[:2] == ["v1lit", "launch"]:
        call(words)  # prints a job, for a cluster that is not here
    elif program == "torchrun" and "doctor" in rest:
        on_ranks = [sys.executable, "-m", "torch.distributed.run", *rest]
        subprocess.run(on_ranks, check=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
    elif program == "make":
        rules = re.findall(r"^([\w -]+):(?!=)", Path("Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        targets = {target for rule in rules for target in rule.split()}
        assert set(rest) <= targets, f"the Makefile has no {rest}"
    elif words[:2] == ["v1lit", "serve"]:
        serve(words, "/ready")
    elif words[:2] == ["v1lit", "demo"]:
        from v1lit.cli.demo import make_parser as demo_parser

        demo_parser().read(words[2:])
        if importlib.util.find_spec("gradio"):
            serve(words, "/")
    elif words[:2] == ["ray", "start"]:
        assert "--head" in rest or "--address" in rest  # for a cluster that is not here
    elif words == ["pip", "install", "."]:
        install()
    elif program == "tensorboard":
        assert Path(words[words.index("--logdir") + 1]).is_dir()
    else:
        raise AssertionError(f"no rule here how to test {shlex.join(words)!r}")


def install() -> None:
    """Install the package of this directory beside it, without a network, for this process."""
    offline = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check")
    where = Path("installed").resolve()
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *offline, "--target", str(where), "."],
        check=True,
        timeout=300,
    )
    sys.path.insert(0, str(where))
    importlib.invalidate_caches()


def serve(words: Sequence[str], path: str) -> None:
    """Start a server that lasts as long as the page, and wait until it answers at `path`."""
    server = subprocess.Popen([sys.executable, "-m", "v1lit.cli.main", *words[1:]])
    atexit.register(server.terminate)
    port = words[words.index("--port") + 1]
    while server.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}{path}"):
            return
        time.sleep(0.1)
    raise AssertionError(f"exit code {server.returncode} of {shlex.join(words)}")


def added_to_run(arguments: Sequence[str]) -> tuple[str, ...]:
    """What makes a training run short. One for a cluster is resolved and checked, but not started."""
    if {"--print_config", "--help"} & set(arguments):
        return ()
    from v1lit.cli.recipe import compose

    config = compose(arguments[0], arguments[1:]).config
    if config["trainer"]["accelerator"] == "gpu":
        return ("--print_config",)
    resumed = "run" in config and config["run"].get("resume")
    few = FEW_SCENES if config["data"]["source"]["name"] == "synthetic" else ()
    return (*SHORT_RUN, *few, *(("--trainer.max_steps=4",) if resumed else ()))


def call(words: Sequence[str]) -> None:
    """What the installed script does with these words; its exit code must be 0."""
    from v1lit.cli import lightning
    from v1lit.cli import main as v1lit

    sys.argv = list(words)
    code = lightning.main() if words[0] == "lightning" else v1lit.main()
    assert code == 0, f"exit code {code} of {shlex.join(words)}"
