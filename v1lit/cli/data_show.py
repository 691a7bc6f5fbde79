"""`v1lit data show`: examples as a page or a picture."""

from __future__ import annotations

from collections.abc import Sequence

from v1lit.cli.errors import Parser, a_path
from v1lit.cli.foreign_rows import add_row_options, pop_boxes


def main(argv: Sequence[str]) -> int:
    """Run `v1lit data show` with the arguments behind it; returns the exit code."""
    from v1lit.backbones.registry import list_backbones
    from v1lit.data.formats.registry import FORMATS

    parser = Parser(
        prog="v1lit data show", description="Some examples: image, regions, trace, tokens of the loss."
    )
    parser.add_argument(
        "folder",
        type=a_path,
        help="a folder of shards, one shard, train/ of a folder with splits; or, with --format, rows",
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
    parser.add_argument(
        "--format", help=f"show rows before their import: {', '.join(FORMATS)}, or a .yaml file of columns"
    )
    add_row_options(parser)
    options = parser.read(argv)

    from v1lit.data.tools.show import show, show_rows

    processor = None
    if options.backbone != "none":
        from v1lit.backbones.config import BackboneConfig
        from v1lit.backbones.processor import load_processor

        processor = load_processor(BackboneConfig(name=options.backbone, weights=options.weights))
    if options.format is None:
        print(show(options.folder, options.out, n=options.n, processor=processor, seed=options.seed))
        return 0
    from v1lit.data.formats.registry import get_format
    from v1lit.data.importing.preview import preview

    form = get_format(options.format)
    boxes = pop_boxes(form, vars(options))
    rows = preview(form, options.folder, options.n, images=options.images, boxes=boxes)
    print(show_rows(rows, options.out, title=options.folder, processor=processor))
    return 0
