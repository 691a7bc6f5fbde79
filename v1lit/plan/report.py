"""A plan as plain data: what the tables and the JSON of `v1lit plan` show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from v1lit.errors import OptionError, first_of
from v1lit.plan.planner import Planner
from v1lit.plan.rows import Rows
from v1lit.plan.setting import Setting
from v1lit.plan.speed import Cluster, Speed, speed_of
from v1lit.plan.units import Size


def make_report(
    setting: Setting, cluster: Cluster, limit: float, steps: int | None, rows: Rows | None, why: str
) -> dict[str, Any]:
    """Everything that is known of a setting; bytes, seconds.

    Args:
        setting: what is planned.
        cluster: the GPUs and their links.
        limit: bytes of a GPU that may be held.
        steps: of the whole run, where known.
        rows: of the data, by which a step takes its time; None where they are not known.
        why: why they are not known.
    """
    planner = Planner()
    sizes = planner.sizes(setting)
    memory = planner.memory(setting)
    largest = planner.largest(setting, limit)
    shape = planner.shape(setting)
    report: dict[str, Any] = {
        "backbone": setting.backbone.weights if setting.backbone.weights != "tiny" else setting.backbone.name,
        "strategy": setting.strategy,
        "tensor": setting.tensor,
        "context": setting.context,
        "precision": setting.precision,
        "nodes": setting.nodes,
        "gpus_per_node": setting.gpus,
        "micro_batch": {
            "examples": setting.examples,
            "tokens": shape.total,
            "image_tokens": shape.examples * shape.image_tokens,
            "accumulate": setting.accumulate,
        },
        "parameters": {part: size._asdict() for part, size in sizes.items()},
        "parts": _by_part(setting, sizes),
        "memory": asdict(memory) | {"total": memory.total, "limit": limit},
        "checkpointing": list(setting.backbone.gradient_checkpointing),
        "activations": {
            "without": planner.activations(setting),
            "with": planner.activations(setting, "language", "vision"),
        },
        "fits": memory.total <= limit,
        "largest": largest and {"examples": largest[0], "tokens": largest[0] * setting.tokens,
                                "total": largest[1].total},
        "changes": [],
        "lengths": lengths_told(setting, rows, why),
        "assumed": assumptions(setting, cluster),
    }  # fmt: skip
    if not report["fits"]:
        report["changes"] = [
            {"what": change.what, "total": change.memory.total} for change in planner.changes(setting, limit)
        ]
    speed = _speed(planner, setting, cluster, rows)
    report["speed"] = _told(speed, steps, cluster)
    return report


def assumptions(setting: Setting, cluster: Cluster) -> dict[str, Any]:
    """What a plan takes for granted."""
    return {
        "tokens_of_an_example": setting.tokens,
        "image": list(setting.image) if setting.image else None,
        "mfu": cluster.mfu,
        "peak_tflops": cluster.peak / 1e12,
        "link_inside": cluster.inside,
        "link_between": cluster.between,
    }


def lengths_told(setting: Setting, rows: Rows | None, why: str) -> dict[str, Any]:
    """Where the tokens of a step are from, and what is known of the data's rows."""
    if rows is None:
        return {"from": "assumption", "why": why}
    return {
        "from": "tables",
        "examples_per_step": rows.examples * setting.micro_batches,
        "tokens_of_an_example": rows.tokens / rows.examples,
        "image_tokens_of_an_example": rows.image_tokens / rows.examples,
        "tokens_of_a_micro_batch": rows.tokens,
        "fill": rows.fill,
        "examples_of_an_epoch": rows.of_epoch,
        "steps_of_an_epoch": rows.steps,
        "steps_counted": rows.exact,
    }


def scaled(
    setting: Setting, cluster: Cluster, worlds: Sequence[int], data: Rows | None
) -> list[dict[str, Any]]:
    """The same micro-batches on other numbers of GPUs, in nodes like those of the setting.

    Raises OptionError where some of the numbers are not of whole nodes.
    """
    planner = Planner()
    rows = []
    if any(world % setting.gpus for world in worlds):
        why = f"--scale counts {first_of([str(world) for world in worlds])} GPUs; give a divisor of these"
        raise OptionError("--gpus-per-node", setting.gpus, why)
    for world in worlds:
        changed = replace(setting, nodes=world // setting.gpus)
        speed = _speed(planner, changed, cluster, data)
        memory = planner.memory(changed)
        rows.append(
            {
                "gpus": world,
                "nodes": changed.nodes,
                "memory": memory.total,
                "examples_per_step": round(changed.micro_batches * (data or changed).examples),
                **_told(speed, None, cluster),
            }
        )
    for row in rows:
        one = rows[0]["tokens_per_second"] / rows[0]["gpus"]
        row["efficiency"] = row["tokens_per_second"] / row["gpus"] / one
    return rows


def _by_part(setting: Setting, sizes: dict[str, Size]) -> dict[str, dict[str, float]]:
    """Bytes on a GPU of what a part keeps: a share where the model is divided."""
    kept, placement = setting.learned.itemsize, setting.placement(0)
    share = kept / setting.shards
    moments = {"adamw": 2.0, "adamw8bit": 2.0 / kept, "muon": 1.0}[setting.optimizer.name]
    moments += setting.optimizer.ema_decay is not None
    return {
        part: {
            "weights": placement.kept(size) / setting.shards,
            "gradients": size.learned * share,
            "moments": size.learned * share * moments,
        }
        for part, size in sizes.items()
    }


def _speed(planner: Planner, setting: Setting, cluster: Cluster, rows: Rows | None) -> Speed:
    size = planner.size(setting)
    return speed_of(setting, planner.model(setting), planner.shape(setting), size, cluster, rows)


def _told(speed: Speed, steps: int | None, cluster: Cluster) -> dict[str, Any]:
    hours = None if steps is None else speed.hours(steps)
    return {
        "tokens_per_step": speed.tokens,
        "flops_per_gpu": speed.flops,
        "computing": speed.computing,
        "sending": speed.sending,
        "step": speed.seconds,
        "tokens_per_second": speed.tokens_per_second,
        "mfu": speed.flops / cluster.peak / speed.seconds,
        "sent_inside": speed.sent.inside,
        "sent_between": speed.sent.between,
        "steps": steps,
        "hours": hours,
        "gpu_hours": None if hours is None else hours * speed.world,
        "hours_of_a_billion_tokens": 1e9 / speed.tokens_per_second / 3600,
    }
