"""`v1lit data synth`: drawn scenes to shards."""

from __future__ import annotations

from argparse import BooleanOptionalAction
from collections.abc import Sequence
from typing import Any

from v1lit.cli.errors import Parser, a_path


def main(argv: Sequence[str]) -> int:
    """Run `v1lit data synth` with the arguments behind it; returns the exit code."""
    from v1lit.data.synthetic import LOOKS, QUESTION_KINDS, TASKS, synthesize

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
    parser.add_argument("--look", nargs="+", help=f"one or more of {', '.join(LOOKS)}; shapes by default")
    parser.add_argument(
        "--kinds", nargs="+", help=f"questions: some of {', '.join(QUESTION_KINDS)}; all by default"
    )
    parser.add_argument("--questions-per-scene", type=int, help="1 by default")
    parser.add_argument("--task", nargs="+", help=f"in place of a look: one or more of {', '.join(TASKS)}")
    ends: dict[str, Any] = {"nargs": "+", "type": int, "metavar": "N"}
    parser.add_argument(
        "--steps", **ends, help="arrows of trail, bars that total reads: N, or lowest and highest"
    )
    parser.add_argument(
        "--objects", **ends, help="nodes, objects or bars in a picture: N, or lowest and highest"
    )
    parser.add_argument("--distance", **ends, help="sentences of recall before the attribute is named")
    parser.add_argument(
        "--look-again", action=BooleanOptionalAction, help="whether recall looks again before it answers"
    )
    parser.add_argument(
        "--image-size",
        nargs=2,
        type=int,
        metavar=("WIDTH", "HEIGHT"),
        help="168 168 by default, of tasks 224 224",
    )
    parser.add_work("processes; as many as pay off when not given")
    print(synthesize(**parser.read_keywords(argv)))
    return 0
