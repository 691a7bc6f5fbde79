"""`v1lit data import|synth|show`: arguments in, one library function called."""

from __future__ import annotations

from collections.abc import Sequence

from v1lit.cli.errors import Parser, UserError, guard, nearest

USAGE = """usage: v1lit data COMMAND ...

  import v1g SOURCE --out FOLDER   rows in the published format (parquet file, folder or hub id) to shards
  synth --out FOLDER               drawn scenes with exact regions to shards
  show FOLDER                      some examples as one HTML page or PNG

v1lit data COMMAND --help says more"""


def main(argv: Sequence[str]) -> int:
    """Run `v1lit data` with the arguments after `data`; returns the exit code."""
    return guard(lambda: _data(list(argv)), debug="--debug" in argv)


def _data(argv: list[str]) -> int:
    commands = {"import": _import, "synth": _synth, "show": _show}
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if argv else 2
    if argv[0] not in commands:
        hint = nearest(argv[0], commands)
        raise UserError(f"v1lit data has no command {argv[0]!r}{hint}\nallowed: {', '.join(commands)}")
    return commands[argv[0]](argv[1:])


def _import(argv: list[str]) -> int:
    from v1lit.data.importers import IMPORTERS, get_importer

    parser = Parser(prog="v1lit data import", description="Rows in another format to WebDataset shards.")
    parser.add_argument("format", help=f"format of the rows: {', '.join(IMPORTERS)}")
    parser.add_argument("source", help="a parquet file, a folder of them, or a hub id (owner/name)")
    parser.add_argument("--out", required=True, help="folder for the shards, one below it per split")
    parser.add_argument("--split", help="import this split only")
    parser.add_argument("--workers", type=int, help="processes; one per core when not given")
    parser.add_argument("--overwrite", action="store_true", help="replace an import that the folder holds")
    parser.add_argument("--max-examples-per-shard", type=int, default=1000)
    parser.add_argument("--no-progress", dest="progress", action="store_false", help="no progress bar")
    given = parser.read(argv)
    get_importer(given.format)(
        given.source,
        given.out,
        split=given.split,
        workers=given.workers,
        overwrite=given.overwrite,
        max_examples_per_shard=given.max_examples_per_shard,
        progress=given.progress,
    )
    return 0


def _synth(argv: list[str]) -> int:
    from v1lit.data.synthetic import KINDS, LOOKS, synthesize

    parser = Parser(
        prog="v1lit data synth", description="Drawn scenes with exact regions and traces, as shards."
    )
    parser.add_argument(
        "--out", required=True, help="folder for the shards; data.source.folder wants train/ and val/"
    )
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="other seeds share no scene")
    parser.add_argument("--look", nargs="+", default=["shapes"], help=f"one or more of {', '.join(LOOKS)}")
    parser.add_argument(
        "--kinds", nargs="+", default=list(KINDS), help=f"questions: some of {', '.join(KINDS)}"
    )
    parser.add_argument("--image-size", nargs=2, type=int, default=[168, 168], metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--questions-per-scene", type=int, default=1)
    parser.add_argument("--workers", type=int, help="processes; as many as pay off when not given")
    parser.add_argument("--no-progress", dest="progress", action="store_false", help="no progress bar")
    given = parser.read(argv)
    folder = synthesize(
        given.out,
        examples=given.examples,
        seed=given.seed,
        look=given.look,
        kinds=given.kinds,
        image_size=given.image_size,
        questions_per_scene=given.questions_per_scene,
        workers=given.workers,
        progress=given.progress,
    )
    print(folder)
    return 0


def _show(argv: list[str]) -> int:
    from v1lit.backbones.registry import list_backbones

    parser = Parser(
        prog="v1lit data show", description="Some examples: image, regions, trace, tokens of the loss."
    )
    parser.add_argument("folder", help="a folder of shards, or one shard; train/ of a folder with splits")
    parser.add_argument("--out", default="examples.html", help="a .html page or a .png picture")
    parser.add_argument("--n", type=int, default=8, help="how many examples")
    parser.add_argument("--seed", type=int, default=0, help="chooses the examples")
    backbones = ", ".join(list_backbones())
    parser.add_argument(
        "--backbone", default="qwen2_5_vl", help=f"whose tokens to show: {backbones}, or none"
    )
    parser.add_argument("--weights", default="tiny", help="hub id or folder to take the tokenizer from")
    given = parser.read(argv)

    from v1lit.data.show import show

    processor = None
    if given.backbone != "none":
        from v1lit.backbones.config import BackboneConfig
        from v1lit.backbones.processor import load_processor

        processor = load_processor(BackboneConfig(name=given.backbone, weights=given.weights))
    print(show(given.folder, given.out, n=given.n, processor=processor, seed=given.seed))
    return 0
