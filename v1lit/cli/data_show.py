"""`v1lit data show`: examples as a page or a picture."""

from __future__ import annotations

from collections.abc import Sequence

from v1lit.cli.errors import Parser, a_path


def main(argv: Sequence[str]) -> int:
    """Run `v1lit data show` with the arguments behind it; returns the exit code."""
    from v1lit.backbones.registry import list_backbones

    parser = Parser(
        prog="v1lit data show", description="Some examples: image, regions, trace, tokens of the loss."
    )
    parser.add_argument(
        "folder", type=a_path, help="a folder of shards, or one shard; train/ of a folder with splits"
    )
    parser.add_argument("--out", type=a_path, default="examples.html", help="a .html page or a .png picture")
    parser.add_argument("--n", type=int, default=8, help="how many examples")
    parser.add_argument("--seed", type=int, default=0, help="chooses the examples")
    backbones = ", ".join(list_backbones())
    parser.add_argument(
        "--backbone", default="qwen2_5_vl", help=f"whose tokens to show: {backbones}, or none"
    )
    parser.add_argument(
        "--weights", type=a_path, default="tiny", help="hub id or folder to take the tokenizer from"
    )
    options = parser.read(argv)

    from v1lit.data.tools.show import show

    processor = None
    if options.backbone != "none":
        from v1lit.backbones.config import BackboneConfig
        from v1lit.backbones.processor import load_processor

        processor = load_processor(BackboneConfig(name=options.backbone, weights=options.weights))
    print(show(options.folder, options.out, n=options.n, processor=processor, seed=options.seed))
    return 0
