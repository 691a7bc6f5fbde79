"""`v1lit export CHECKPOINT OUT`: a folder of safetensors from any checkpoint, weight by weight, on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from v1lit.cli.errors import Parser, UserError, a_path
from v1lit.cli.stage_marks import stage_folders


def main(argv: Sequence[str]) -> int:
    """Run `v1lit export` with the arguments after `export`; returns the exit code."""
    options = _parser().read(argv)
    if options.shard_gb <= 0:
        raise UserError(f"--shard-gb is {options.shard_gb:g}; it must be more than 0")
    path, out = Path(options.checkpoint), Path(options.out)
    if options.merge and options.check == "tensors":
        raise UserError("--check=tensors: a merge makes other tensors\ngive logits, or none")
    if not path.exists():
        raise UserError(f"there is no checkpoint {path}\ngive a file or folder of a run's checkpoints/")
    if stages := stage_folders(path):
        raise UserError(f"{path} holds a run of stages\ngive one of them: {', '.join(map(str, stages))}")
    from v1lit.training.exporting import ExportOptions, export_checkpoint
    from v1lit.training.merging import export_merged
    from v1lit.training.quiet import quiet
    from v1lit.training.saved_run import FOLDER, saved_weights

    with quiet():
        if (path / FOLDER).is_dir():  # the folder of a run
            path = saved_weights(path)[0].load or path
            print(f"from {path}")
        made = (export_merged if options.merge else export_checkpoint)(
            path,
            out,
            ExportOptions(
                layout=options.layout,
                dtype=options.dtype,
                backbone=options.backbone,
                shard_bytes=int(options.shard_gb * 1e9),
                check=options.check,
                remote_code=options.remote_code,
            ),
        )
    files = "1 file" if made.files == 1 else f"{made.files} files"
    print(f"{made.tensors} weights, {made.bytes / 1e9:.3g} GB in {files}: {out}\n{made.check}")
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="v1lit export",
        description="Write the model of a checkpoint, a single file or a folder of a sharded run, as one "
        "folder of safetensors with its processor. No GPU is needed, and little more memory than one of the "
        "files that are written.",
        epilog="The backbone's config and tokenizer are taken from where they were when the run began.",
    )
    add: Any = parser.add_argument
    add(
        "checkpoint",
        metavar="CHECKPOINT",
        type=a_path,
        help="or the folder of a run: its best, else its newest",
    )
    add("out", metavar="OUT", type=a_path, help="a new folder, for v1lit.load")
    add(
        "--layout",
        choices=("v1lit", "published"),
        default="v1lit",
        help="published: that of the published v1-7B",
    )
    add(
        "--merge",
        action="store_true",
        help="put adapters into the weights of their backbone; CHECKPOINT may be an adapter's folder too. "
        "Opens the whole model",
    )
    add(
        "--remote-code",
        action="store_true",
        help="put one file of code into OUT, with which transformers opens it where v1lit is not installed "
        "(trust_remote_code=True); not of timm_lm, crop, replay and controls",
    )
    add(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of the weights; else the checkpoint's own",
    )
    add("--shard-gb", type=float, default=5.0, metavar="GB", help="most bytes of a file, in 10^9; 5 at first")
    add(
        "--backbone", metavar="FOLDER", type=a_path, help="where config and tokenizer of the backbone lie now"
    )
    add(
        "--check",
        choices=("auto", "logits", "tensors", "none"),
        default="auto",
        help="what is compared with the checkpoint: the logits of a prompt, of both models one after the "
        "other, or every tensor; auto: logits where the model fits into memory",
    )
    return parser
