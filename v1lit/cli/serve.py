"""`v1lit serve MODEL`: a server that OpenAI's clients can ask, and told where the model looked."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from v1lit.cli.errors import Parser, UserError, a_path

KEY = "V1LIT_KEY"
"""In the environment: the key that requests have to bring."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def main(argv: Sequence[str]) -> int:
    """Run `v1lit serve` with the arguments after `serve`; returns the exit code."""
    options = _parser().read(argv)
    if missing := [name for name in ("starlette", "uvicorn") if find_spec(name) is None]:
        raise UserError(f"v1lit serve needs {' and '.join(missing)}\npip install 'v1lit[serve]'")
    key = _key(options)
    import uvicorn

    from v1lit.inference.loading import load
    from v1lit.serving.app import make_app
    from v1lit.serving.engine import Engine, EngineLimits
    from v1lit.serving.limits import ServerLimits
    from v1lit.training.quiet import no_weights_bar, quiet

    engine_limits = EngineLimits(options.rows, options.waiting, options.tokens)
    limits = ServerLimits(
        body_bytes=options.body_mb * 2**20,
        new_tokens=options.max_new_tokens,
        seconds=options.seconds,
        remote_images=options.remote_images,
    )
    with quiet(), no_weights_bar():
        predictor = load(options.model, options.dtype, options.device, bits=options.bits)
    predictor.model.eval()
    engine = Engine(predictor.model, predictor.processor, engine_limits)
    name = options.name or Path(options.model).resolve().name
    hosts = allowed_hosts(options.host, options.allow_host)
    app = make_app(engine, name, limits, key, hosts, options.closing_seconds)
    print(f"serving {name} at http://{options.host}:{options.port}/v1, {'with' if key else 'without'} a key")
    uvicorn.run(
        app,
        host=options.host,
        port=options.port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=int(options.closing_seconds) + 5,
        h11_max_incomplete_event_size=64 * 1024,
    )
    return 0


def allowed_hosts(host: str, further: Sequence[str]) -> list[str]:
    """Names under which a server that listens at `host` may be addressed; `*` stands for any."""
    return [*LOOPBACK, *further] if host in LOOPBACK else [*further] or ["*"]


def _key(options: Namespace) -> str | None:
    """The key. Raises UserError where the server would be open to a network without one."""
    key = os.environ.get(KEY) or None
    if key is None and options.host not in LOOPBACK and not options.without_key:
        raise UserError(
            f"--host {options.host} is reached from other machines, and there is no key: set {KEY}\n"
            "or let everyone in with --without-key"
        )
    return key


def _parser() -> Parser:
    parser = Parser(
        prog="v1lit serve",
        description="Serve a trained model: POST /v1/chat/completions as OpenAI's clients send it, with "
        "images as data URLs. Requests in flight share a running batch, each answered as if it were alone.",
        epilog=f"The key that requests have to bring is read from {KEY}.",
    )
    add: Any = parser.add_argument
    add("model", metavar="MODEL", type=a_path, help="folder of an exported model, or hub id")
    add("--host", default="127.0.0.1", help="address to listen at; this machine alone at first")
    add("--port", type=int, default=8000, help="8000 at first")
    add("--name", help="under which requests name the model; the folder's at first")
    add("--allow-host", action="append", default=[], metavar="NAME", help="a further name of this server")
    add("--without-key", action="store_true", help="serve other machines without a key")
    add("--rows", type=int, default=32, help="requests answered at once; 32 at first")
    add("--waiting", type=int, default=256, help="requests that may wait; 256 at first")
    add("--tokens", type=int, default=65536, help="tokens of all rows together; 65536 at first")
    add("--max-new-tokens", type=int, default=4096, help="of an answer at most; 4096 at first")
    add("--seconds", type=float, default=300.0, help="of an answer at most, waiting included; 300 at first")
    add("--closing-seconds", type=float, default=30.0, help="that answers have at the end; 30 at first")
    add("--body-mb", type=int, default=32, help="of a request at most, in 2^20 bytes; 32 at first")
    add("--remote-images", action="store_true", help="fetch images from public http(s) addresses")
    add("--dtype", default="auto", help="of the weights, such as bfloat16; as they are stored at first")
    add("--device", default="auto", help="cuda, mps or cpu; the fastest there is at first")
    add("--bits", type=int, choices=(8, 4), help="pack the decoder's weights (bitsandbytes)")
    return parser
