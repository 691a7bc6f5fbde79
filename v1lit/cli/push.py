"""`v1lit push FOLDER REPOSITORY`: an exported folder goes to the hub, with its card."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from v1lit.cli.errors import Parser, UserError, a_path


def main(argv: Sequence[str]) -> int:
    """Run `v1lit push` with the arguments after `push`; returns the exit code."""
    parser = Parser(
        prog="v1lit push",
        description="Upload an exported model or adapter to the Hugging Face hub, as it is, with its model "
        "card. Log in before with `hf auth login`.",
        epilog="Look at README.md of the folder first: all of its recipe is in it, paths included.",
    )
    add: Any = parser.add_argument
    add("folder", metavar="FOLDER", type=a_path, help="that v1lit export or a run wrote")
    add("repository", metavar="REPOSITORY", help="NAME or OWNER/NAME; made if it is not there")
    add("--private", action="store_true", help="a new one is seen by its owner alone")
    add("--message", default="Upload a model of v1lit", help="of the commit")
    options = parser.read(argv)
    from v1lit.backbones.publish import PushError, push_to_hub

    try:
        address = push_to_hub(
            options.folder, options.repository, private=options.private or None, message=options.message
        )
    except PushError as error:
        raise UserError(str(error)) from error
    print(address)
    return 0
