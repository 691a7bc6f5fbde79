"""`v1lit assemble`: one checkpoint folder of a vision tower of timm and a language model of transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from v1lit.cli.errors import Parser, UserError, a_path
from v1lit.errors import OptionError


def main(argv: Sequence[str]) -> int:
    """Run `v1lit assemble` with the arguments after `assemble`; returns the exit code."""
    given = make_parser().read_keywords(argv)
    out, seed = Path(given.pop("out")), given.pop("seed")
    given["tower_arguments"] = _arguments(given["tower_arguments"])
    from v1lit.backbones.timm_tower import import_timm
    from v1lit.training.quiet import no_weights_bar, quiet

    import_timm()
    import torch

    from v1lit.backbones.timm_assemble import Parts, assemble

    torch.manual_seed(seed)
    try:
        with quiet(), no_weights_bar():
            made = assemble(Parts(**given), out)
    except OptionError as error:
        raise UserError(f"--{error.field.replace('_', '-')}: {error.given!r}; {error.why}") from error
    except FileExistsError as error:
        raise UserError(str(error)) from error
    counts = ", ".join(f"{part} {count:,}" for part, count in made.parameters.items())
    print(f"parameters: {counts}\nan image becomes {made.grid}")
    for what, names in (("left out of the tower", made.left_out), ("added to the tokenizer", made.added)):
        if names:
            print(f"{what}: {', '.join(names)}")
    print(f"train it with --model.backbone.name={given['family']} --model.backbone.weights={out}")
    return 0


def _arguments(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"--tower-arguments is {text!r}, no JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f'--tower-arguments is {text!r}; give a mapping such as {{"img_size": 384}}')
    return value


def make_parser() -> Parser:
    """The options of the command."""
    parser = Parser(
        prog="v1lit assemble",
        description="Join a pretrained vision tower of timm and a pretrained language model of transformers "
        "by a fresh projector, and write them as one folder: weights for the backbone timm_lm.",
        epilog="How images are resized and normalised is taken from timm's data config of the tower.",
    )
    add: Any = parser.add_argument
    add("--tower", required=True, metavar="NAME|FILE", help="in timm; or a safetensors file or its folder")
    add("--architecture", metavar="NAME", help="of a tower given as a file, where no config.json says it")
    add("--tower-arguments", metavar="JSON", default="{}", help='of timm.create_model: {"img_size": 384}')
    add("--feature-layers", metavar="N", type=int, nargs="+", default=[-1], help="-1, the last, at first")
    add("--language", required=True, metavar="FOLDER|ID", type=a_path, help="a causal language model")
    add("--projector", default="mlp", metavar="KIND", help="linear, mlp, pixel_shuffle, ...; mlp at first")
    add("--projector-scale", type=int, default=2, metavar="N", help="patches on each side of a token; 2")
    add("--projector-tokens", type=int, default=64, metavar="N", help="of an image, for a resampler; 64")
    add("--family", default="timm_lm", metavar="NAME", help="timm_lm, or a subclass with another chat")
    add(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="auto: the language model's",
    )
    add("--seed", type=int, default=0, help="of the projector's weights; 0")
    add("--out", required=True, metavar="FOLDER", type=a_path, help="a new folder")
    return parser
