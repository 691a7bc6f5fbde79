"""`v1lit convert SOURCE --to LAYOUT --output FOLDER`: the published layout from ours, or ours from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from v1lit.cli.errors import Parser, UserError, a_path


def main(argv: Sequence[str]) -> int:
    """Run `v1lit convert` with the arguments after `convert`; returns the exit code."""
    options = _parser().read(argv)
    if options.shard_gb <= 0:
        raise UserError(f"--shard-gb is {options.shard_gb:g}; it must be more than 0")
    source, out = Path(options.source), Path(options.output)
    if not source.exists():
        raise UserError(f"there is no folder {source}\ngive an exported model, or a published checkpoint")
    from v1lit.training.converting import convert_folder
    from v1lit.training.quiet import quiet

    with quiet():
        made = convert_folder(source, options.to, out, options.backbone, int(options.shard_gb * 1e9))
    written = made.files
    files = "1 file" if written.files == 1 else f"{written.files} files"
    print(f"{written.tensors} weights, {written.bytes / 1e9:.3g} GB in {files}: {out}\n{written.check}")
    if made.left_out:
        told = ", ".join(f"{name} {value}" for name, value in made.left_out.items())
        print(f"left out, for the layout has no place for these options of training: {told}")
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="v1lit convert",
        description="Write a model's folder in the other layout: that of the published v1-7B, which its own "
        "code opens, or that of v1lit. Weights keep every bit; tokenizer, image processor and the settings "
        "of generation come along.",
        epilog="A checkpoint of a run is exported instead: v1lit export CHECKPOINT OUT --layout published.",
    )
    add: Any = parser.add_argument
    add("source", metavar="SOURCE", type=a_path, help="folder of an exported model, or of a published one")
    add("--to", choices=("published", "v1lit"), required=True, help="the layout to write")
    add("--output", metavar="FOLDER", type=a_path, required=True, help="a new folder")
    add(
        "--backbone",
        metavar="FOLDER",
        help="folder or hub id whose tokenizer and image processor are taken, where SOURCE has none",
    )
    add("--shard-gb", type=float, default=5.0, metavar="GB", help="most bytes of a file, in 10^9; 5 at first")
    return parser
