"""Everything that v1lit claims of a family, checked on its tiny version."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from v1lit.errors import explain_unknown
from v1lit.testing import image_checks, model_checks, text_checks
from v1lit.training.self_test import FAMILY_CHECKS, Check, Family, run_check, scenes_to_try

Outcome = str | tuple[str, float | None]
"""What was compared, and the largest relative difference where numbers were."""
OWN: dict[str, Callable[[str], Outcome]] = {
    "parts": model_checks.parts,
    "marks": text_checks.marks,
    "conversation": text_checks.conversation,
    "lengths": text_checks.lengths,
    "image_options": image_checks.image_options,
    "patch_map": image_checks.patch_map,
    "images": image_checks.images,
    "blank_image": image_checks.blank_image,
    "stock": model_checks.stock,
    "causal": model_checks.causal,
    "pointers": model_checks.pointers,
    "gradients": model_checks.gradients,
    "batches": model_checks.batches,
    "generation": model_checks.generation,
    "checkpoint": model_checks.checkpoint,
    "work": model_checks.work,
}
BACKBONE_CHECKS = (*OWN, *FAMILY_CHECKS)
"""Names of all checks, for `pytest.mark.parametrize`; `v1lit doctor --self-test` makes the last ones too."""


class BackboneError(AssertionError):
    """A family does not do what v1lit claims; the message lists every check and its reason."""

    def __init__(self, name: str, checks: list[Check]) -> None:
        failed = sum(not check.passed for check in checks)
        lines = [f"{failed} of {len(checks)} checks of {name} failed"]
        lines += [f"  {'ok' if one.passed else 'FAILED':6} {one.name}: {one.compared}" for one in checks]
        super().__init__("\n".join(lines))
        self.checks = checks


def check_backbone(name: str, *checks: str) -> list[Check]:
    """All checks of a registered family, or those of these names; takes some seconds on a CPU.

    Raises BackboneError, which lists all of them, where one failed, ValueError for a name that is unknown.
    """
    for check in checks:
        if check not in BACKBONE_CHECKS:
            raise ValueError(explain_unknown("check of a backbone", check, BACKBONE_CHECKS))
    done = list(_run(name, checks or BACKBONE_CHECKS))
    if not all(check.passed for check in done):
        raise BackboneError(name, done)
    return done


def _run(name: str, checks: tuple[str, ...]) -> Iterator[Check]:
    with scenes_to_try() as scenes:
        family = Family(name, scenes, torch.device("cpu"))
        for check in checks:
            work = partial(OWN[check], name) if check in OWN else getattr(family, check)
            yield run_check(name, check, work)
