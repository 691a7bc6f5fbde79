"""What an engine has done, in Prometheus' text format."""

from __future__ import annotations

from v1lit.serving.engine import Engine


def render_metrics(engine: Engine) -> str:
    """One line or more for every measurement, with its kind and meaning."""
    counts = engine.counts
    kept = engine.batch.kept
    lines: list[str] = []

    def add(name: str, kind: str, meaning: str, value: float, labels: str = "") -> None:
        if not labels or not any(line.startswith(f"# TYPE v1lit_{name} ") for line in lines):
            lines.extend([f"# HELP v1lit_{name} {meaning}", f"# TYPE v1lit_{name} {kind}"])
        lines.append(f"v1lit_{name}{labels} {value:g}")

    add("requests_running", "gauge", "Requests that are being answered.", engine.running)
    add("requests_waiting", "gauge", "Requests in the queue.", engine.waiting)
    for reason in ("stop", "length", "cancelled", "timeout", "error"):
        meaning = "Requests that have ended, by reason."
        add("requests_ended_total", "counter", meaning, counts.ended.get(reason, 0), f'{{reason="{reason}"}}')
    add("requests_refused_total", "counter", "Requests for which there was no room.", counts.refused)
    add("tokens_generated_total", "counter", "Tokens generated.", counts.tokens)
    add("prompt_tokens_total", "counter", "Tokens prefilled.", counts.prompt_tokens)
    add("steps_total", "counter", "Decoding steps of the batch.", counts.steps)
    add("step_seconds_total", "counter", "Time of decoding steps.", counts.step_seconds)
    meaning = "Time from a request to its first token, summed over requests."
    add("first_token_seconds_total", "counter", meaning, counts.first_token_seconds)
    add("cache_bytes", "gauge", "Bytes of caches and pointer memories.", 0 if kept is None else kept.bytes)
    return "\n".join(lines) + "\n"
