"""`v1lit doctor --self-test`: try what v1lit does on this installation and device."""

from __future__ import annotations

import time
import traceback

from v1lit.cli.environment import versions
from v1lit.cli.errors import two_lines
from v1lit.cli.tried_versions import remarks
from v1lit.training.captured_output import CapturedOutput

LONGEST = 160


def run_self_test(device: str, debug: bool = False) -> int:
    """Print a line per family and check, then the versions and a summary; returns the exit code."""
    start = time.perf_counter()
    print(f"v1lit {versions()['v1lit']}: loading", flush=True)
    captured = CapturedOutput()
    try:
        with captured.capture():
            from v1lit.inference.loading import choose_device
            from v1lit.training.self_test import self_test  # with torch and Lightning
    except Exception as error:  # where a library's change shows first
        if debug:
            traceback.print_exception(error)
        told = two_lines(str(error)).partition("\n")[0]
        print(f"import FAILED {type(error).__name__}: {told}\nversions: {_versions()}")
        return 1
    chosen = choose_device(device)
    print(f"every family's tiny version on {chosen}; differences are relative", flush=True)
    failed = count = 0
    for check in self_test(chosen, captured):
        count += 1
        failed += not check.passed
        told = check.compared if len(check.compared) <= LONGEST else f"{check.compared[: LONGEST - 1]}…"
        number = "" if check.difference is None else f": {check.difference:.1e}"
        print(
            f"{check.family:<11} {check.name:<8} {'ok' if check.passed else 'FAILED':<7}{told}{number}",
            flush=True,
        )
        if debug and check.error is not None:
            traceback.print_exception(check.error)
    print(f"versions: {_versions()}")
    if debug:
        print(captured.printed, end="")
        for text, times in captured.warnings.items():
            print(f"{times} x {two_lines(text)}")
    seconds = time.perf_counter() - start
    count_warned, hint = len(captured.warnings), "" if debug else "; --debug shows them"
    warned = f"; {count_warned} warning{'s' * (count_warned > 1)}{hint}" if count_warned else ""
    print(f"{count - failed} of {count} checks passed in {seconds:.0f} s{warned}")
    return 1 if failed else 0


def _versions() -> str:
    different = [f"{name} {number} is {remark}" for name, (number, remark) in remarks().items() if remark]
    if not remarks():
        return "which ones were tested is not recorded"
    return "; ".join(different) or "none is newer or older than tested"
