"""`v1lit data synth`: drawn scenes to shards."""

from __future__ import annotations

from collections.abc import Sequence

from v1lit.cli.errors import Parser, a_path


def main(argv: Sequence[str]) -> int:
    """Run `v1lit data synth` with the arguments behind it; returns the exit code."""
    from v1lit.data.synthetic import LOOKS, QUESTION_KINDS, synthesize

    parser = Parser(
        prog="v1lit data synth", description="Drawn scenes with exact regions and traces, as shards."
    )
    parser.add_argument(
        "--out",
        type=a_path,
        required=True,
        help="folder for the shards; data.source.folder wants train/ and val/",
    )
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="other seeds share no scene")
    parser.add_argument("--look", nargs="+", default=["shapes"], help=f"one or more of {', '.join(LOOKS)}")
    parser.add_argument(
        "--kinds",
        nargs="+",
        default=list(QUESTION_KINDS),
        help=f"questions: some of {', '.join(QUESTION_KINDS)}",
    )
    parser.add_argument("--image-size", nargs=2, type=int, default=[168, 168], metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--questions-per-scene", type=int, default=1)
    parser.add_work("processes; as many as pay off when not given")
    print(synthesize(**parser.read_keywords(argv)))
    return 0
