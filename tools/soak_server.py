"""Ask `v1lit serve` thousands of questions of every kind, and see whether its memory stays flat.

`--requests 2000`. The server is the command itself, in a process of its own, on a tiny random model. A few
clients at a time send plain questions, questions with images, steered and sampled ones, several answers at
once, streams that are read to the end or left in the middle, clients that hang up while they wait, and
requests that are refused: no JSON, images that are none, fields that do not exist. In between the resident
memory of the server is read from /proc (Linux). The first requests warm it up; behind them a line is laid
through what was read, and its slope may be `--most-bytes` per request at most.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

EVERY = 100
"""Requests between two looks at the memory."""
KINDS = (
    *("text", "image", "image", "two images", "steered", "sampled", "several", "stream", "stream", "left"),
    *("hung up", "no request", "no image", "no field"),
)
"""Of requests; each is as likely as it is often named."""
REFUSED = (b"", b"{", b"[" * 50_000, b"null", b'{"model": "tiny"}', b'{"model": "tiny", "messages": 3}')
"""Bodies that are no requests."""


def main() -> int:
    """Run the soak; returns the exit code."""
    given = _arguments()
    with tempfile.TemporaryDirectory(prefix="v1lit-soak-") as place:
        model = given.model or tiny_model(Path(place) / "tiny")
        server, port = start(model)
        try:
            return soak(given, server.pid, port)
        finally:
            server.send_signal(signal.SIGTERM)
            print(f"the server ended with {server.wait(timeout=120)}")


def tiny_model(folder: Path) -> Path:
    """A random model of Qwen2.5-VL's architecture that points as often as it writes."""
    from v1lit.testing.models import prefers_pointing, processor

    prefers_pointing("qwen2_5_vl").save_pretrained(folder)
    processor("qwen2_5_vl").save_pretrained(folder)
    return folder


def start(model: Path) -> tuple[subprocess.Popen[bytes], int]:
    """The server, once it takes requests, and its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    command = [sys.executable, "-m", "v1lit.cli.main", "serve", str(model), "--port", str(port)]
    server = subprocess.Popen([*command, "--name", "tiny", "--rows", "8", "--waiting", "64"])
    while server.poll() is None:
        try:
            if Client(port, 5).get("/ready") == 200:
                return server, port
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"the server did not start: exit code {server.returncode}")


class Client:
    """Sends one request, each over a connection of its own."""

    def __init__(self, port: int, timeout: float = 120) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)

    def get(self, path: str) -> int:
        """The status of a page."""
        self.connection.request("GET", path)
        status = self.connection.getresponse().status
        self.connection.close()
        return status

    def ask(self, body: bytes, leave_after: int | None = None) -> int:
        """The status of an answer that is read to the end, or left after so many bytes."""
        self.connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
        if leave_after == 0:
            self.connection.close()
            return 0
        answer = self.connection.getresponse()
        answer.read(leave_after)
        answer.close()
        self.connection.close()
        return answer.status


def body_of(draw: random.Random, kinds: Sequence[str]) -> tuple[str, bytes, int | None]:
    """Kind, body and where it is left, of the next request."""
    kind = draw.choice(kinds)
    if kind == "no request":
        return kind, draw.choice(REFUSED), None
    images = {"text": 0, "two images": 2}.get(kind, 1)
    parts: list[dict[str, Any]] = [image_part(draw, broken=kind == "no image") for _ in range(images)]
    parts.append({"type": "text", "text": " ".join(["Where is it?"] * draw.randint(1, 8))})
    ask: dict[str, Any] = {
        "model": "tiny",
        "messages": [{"role": "user", "content": parts}],
        "max_tokens": 400 if kind in ("left", "hung up") else draw.randint(1, 32),
        "stream": kind in ("stream", "left"),
    }
    more: dict[str, dict[str, Any]] = {
        "steered": {"steer": {"inside": [[0, 0, 40, 40]], "max_looks": 2}},
        "sampled": {"temperature": 1.2, "top_p": 0.9, "seed": draw.randrange(1000)},
        "several": {"temperature": 1.0, "n": 3},
        "no field": {"temprature": 1.0},
        "left": {"steer": {"points": False}},
        "hung up": {"steer": {"points": False}},
    }
    ask |= more.get(kind, {})
    leave = {"left": draw.randint(200, 2000), "hung up": 0}.get(kind)
    return kind, json.dumps(ask).encode(), leave


def image_part(draw: random.Random, broken: bool) -> dict[str, Any]:
    """An image of noise of some size, as a part of a message."""
    width, height = draw.randint(40, 260), draw.randint(40, 260)
    pixels = np.random.default_rng(draw.randrange(10**6)).integers(0, 256, (height, width, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    data = out.getvalue()[: 60 if broken else None]
    return {
        "type": "image_url",
        "image_url": {"url": f"data:image/png;base64,{base64.b64encode(data).decode()}"},
    }


def resident(process: int) -> int:
    """Bytes of a process in memory."""
    with open(f"/proc/{process}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def soak(given: argparse.Namespace, process: int, port: int) -> int:
    """Send the requests, and say what the memory did. Returns 1 where it grows."""
    seen: list[tuple[int, int]] = []
    counts: Counter[str] = Counter()
    draw, lock = random.Random(given.seed), threading.Lock()
    begun = time.monotonic()

    def work() -> None:
        while True:
            with lock:
                number = sum(counts.values())
                if number >= given.requests:
                    return
                kind, body, leave = body_of(draw, given.kinds)
                counts[kind] += 1
                if number % EVERY == 0:
                    seen.append((number, resident(process)))
                    print(f"{number:>6} requests: {seen[-1][1] / 2**20:8.1f} MiB", flush=True)
            status = Client(port).ask(body, leave)
            expected = {"no request": 400, "no image": 400, "no field": 400, "hung up": 0}.get(kind, 200)
            if status != expected:
                failed.append(f"{kind}: {status}")

    failed: list[str] = []
    threads = [threading.Thread(target=work) for _ in range(given.clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    settle(port)
    seen.append((given.requests, resident(process)))
    slope = slope_of(seen, given.warm_up)
    print(f"{given.requests} requests in {time.monotonic() - begun:.0f} s: {dict(sorted(counts.items()))}")
    print(f"slope after {given.warm_up}: {slope:.0f} bytes per request, at most {given.most_bytes}")
    for line in failed[:10]:
        print(f"answered otherwise than expected: {line}")
    return int(bool(failed) or slope > given.most_bytes)


def settle(port: int, tries: int = 600) -> None:
    """Wait until nothing runs or waits any more. Raises RuntimeError where something is never let go."""
    for _ in range(tries):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        kept = ("v1lit_requests_running", "v1lit_requests_waiting", "v1lit_cache_bytes")
        if all(float(values[name]) == 0 for name in kept):
            return
        time.sleep(0.1)
    raise RuntimeError("requests are never let go")


def slope_of(seen: Sequence[tuple[int, int]], warm_up: int) -> float:
    """How memory grows behind the warm-up, in bytes per request."""
    later = np.array([pair for pair in seen if pair[0] >= warm_up], dtype=float)
    print(f"{int(later[-1, 0]):>6} requests: {later[-1, 1] / 2**20:8.1f} MiB at the end")
    return float(np.polyfit(later[:, 0], later[:, 1], 1)[0])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="See whether the memory of `v1lit serve` stays flat.")
    parser.add_argument("--requests", type=int, default=2000, help="2000 at first")
    parser.add_argument("--clients", type=int, default=6, help="at a time; 6 at first")
    parser.add_argument("--warm-up", type=int, default=200, help="requests that do not count; 200 at first")
    parser.add_argument("--most-bytes", type=int, default=8192, help="growth per request; 8192 at first")
    parser.add_argument("--kinds", nargs="+", choices=sorted({*KINDS}), default=KINDS, help="all at first")
    parser.add_argument("--seed", type=int, default=0, help="of the requests; 0 at first")
    parser.add_argument("--model", type=Path, help="an exported model; a tiny random one at first")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
