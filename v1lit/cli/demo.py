"""`v1lit demo MODEL`: a page to ask a model on, and to see where it looks, in a browser."""

from __future__ import annotations

import os
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from v1lit.cli.errors import Parser, UserError, a_path
from v1lit.cli.serve import LOOPBACK, allowed_hosts

if TYPE_CHECKING:
    from v1lit.inference.predictor import Predictor

GRADIO = {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_RUN_HISTORY": "False"}
"""In the environment: gradio sends nothing to anybody, and keeps nothing."""


def main(argv: Sequence[str]) -> int:
    """Run `v1lit demo` with the arguments after `demo`; returns the exit code."""
    options = make_parser().read(argv)
    if find_spec("gradio") is None:
        raise UserError("v1lit demo needs gradio\npip install 'v1lit[demo]'")
    os.environ.update(GRADIO)
    from v1lit.demo.examples import drawn, from_rows
    from v1lit.demo.limits import DemoLimits

    limits = DemoLimits(
        upload_mb=options.upload_mb,
        new_tokens=options.max_new_tokens,
        seconds=options.seconds,
        waiting=options.waiting,
    )
    samples = drawn() if options.examples is None else from_rows(options.examples)
    predictors = _load(options)
    hosts = allowed_hosts(options.host, options.allow_host)
    with tempfile.TemporaryDirectory(prefix="v1lit-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # what is uploaded and made is gone at the end
        from v1lit.demo.app import make_app
        from v1lit.demo.server import page_server

        app = make_app(predictors, limits, samples, hosts)
        open_to = "" if options.host in LOOPBACK else ", to everyone who reaches that address"
        print(
            f"{' and '.join(predictors)} at http://{options.host}:{options.port}{open_to}; Ctrl-C ends it",
            flush=True,
        )
        page_server(app, options.host, options.port).run()
    return 0


def _load(options: Namespace) -> dict[str, Predictor]:
    """The models by the names of their folders, or by their paths where those are the same."""
    from v1lit.inference.loading import load
    from v1lit.training.quiet import no_weights_bar, quiet

    places = [options.model, *([options.beside] if options.beside else [])]
    if len(set(places)) < len(places):
        raise UserError(f"--beside {options.beside} is the model itself; name another one")
    loaded = {}
    with quiet(), no_weights_bar():
        for place in places:
            predictor = load(place, options.dtype, options.device, bits=options.bits)
            predictor.model.eval()
            loaded[place] = predictor
    names = [_name(place) for place in places]
    return dict(zip(names if len(set(names)) == len(names) else places, loaded.values(), strict=True))


def _name(place: str) -> str:
    """What readers know a model by: of `runs/first/model` that is `first`."""
    path = Path(place).resolve()
    return path.parent.name if path.name == "model" else path.name


def make_parser() -> Parser:
    """The parser of its arguments."""
    parser = Parser(
        prog="v1lit demo",
        description="A page to ask a trained model on: the trace while it is written, regions and words that "
        "light up together, and where every token would have pointed. Nothing is loaded from elsewhere.",
    )
    add: Any = parser.add_argument
    add("model", metavar="MODEL", type=a_path, help="folder of an exported model, or hub id")
    add("--beside", metavar="OTHER", type=a_path, help="another model, asked the same beside it")
    add("--examples", metavar="ROWS", type=a_path, help="a .jsonl file or shards; drawn scenes at first")
    add("--host", default="127.0.0.1", help="address to listen at; this machine alone at first")
    add("--port", type=int, default=7860, help="7860 at first")
    add("--allow-host", action="append", default=[], metavar="NAME", help="a further name of this server")
    add("--waiting", type=int, default=16, help="questions that may wait; 16 at first")
    add("--max-new-tokens", type=int, default=1024, help="of an answer at most; 1024 at first")
    add("--seconds", type=float, default=300.0, help="of an answer at most; 300 at first")
    add("--upload-mb", type=int, default=20, help="of a picture's file at most, in 2^20 bytes; 20 at first")
    add("--dtype", default="auto", help="of the weights, such as bfloat16; as they are stored at first")
    add("--device", default="auto", help="cuda, mps or cpu; the fastest there is at first")
    add("--bits", type=int, choices=(8, 4), help="pack the decoder's weights (bitsandbytes)")
    return parser
