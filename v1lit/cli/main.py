"""The `v1lit` script: hands over to one of its commands, which is imported only then."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module

from v1lit import __version__
from v1lit.cli.errors import UserError, guard
from v1lit.cli.importing import importing, is_script
from v1lit.errors import did_you_mean

COMMANDS = {
    "run": ("v1lit.cli.run", "train as a recipe says; `lightning run` is the same"),
    "export": ("v1lit.cli.export", "a model folder from any checkpoint, without a GPU"),
    "push": ("v1lit.cli.push", "an exported model to the Hugging Face hub, with its card"),
    "convert": ("v1lit.cli.convert", "a model in the published layout, or back from it"),
    "assemble": ("v1lit.cli.assemble", "a checkpoint of a vision tower and a language model"),
    "report": ("v1lit.cli.report", "export, report and pictures of a run again, without training"),
    "generate": ("v1lit.cli.generate", "ask a trained model about an image, or about many"),
    "serve": ("v1lit.cli.serve", "a server that OpenAI's clients can ask"),
    "demo": ("v1lit.cli.demo", "a page to ask a trained model on, in a browser"),
    "launch": ("v1lit.cli.launch", "job files for clusters, or several nodes on this machine"),
    "data": ("v1lit.cli.data", "import, draw and look at data"),
    "doctor": ("v1lit.cli.doctor", "versions, devices, which `lightning` comes first, missing extras"),
    "plan": ("v1lit.cli.plan", "whether a recipe fits into given GPUs, and how long it takes"),
    "sweep": ("v1lit.cli.sweep", "many runs of a recipe that differ in a few keys, and how they compare"),
    "list": ("v1lit.cli.list", "backbones and recipes"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `v1lit` with `argv`, default the process's own; returns the exit code."""
    if argv is None:
        is_script()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: v1lit COMMAND ...\n")
        print("\n".join(f"  {name:<8}{text}" for name, (_, text) in COMMANDS.items()))
        print("\nv1lit COMMAND --help says more; v1lit --version")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        return guard(partial(print, __version__))
    return dispatch("v1lit", {name: module for name, (module, _) in COMMANDS.items()}, arguments)


def dispatch(prog: str, commands: dict[str, str], arguments: Sequence[str]) -> int:
    """Call `main` of the module that `commands` has for the first argument with the rest of them.

    Mistakes and failures end in one or two lines; returns the exit code.
    """
    name, *rest = arguments

    def command() -> int:
        if name not in commands:
            hint = did_you_mean(name, commands)
            raise UserError(f"{prog} has no command {name!r}{hint}\nallowed: {', '.join(commands)}")
        with importing():
            module = import_module(commands[name])
        code: int = module.main(rest)
        return code

    return guard(command, debug="--debug" in rest)


if __name__ == "__main__":
    sys.exit(main())
