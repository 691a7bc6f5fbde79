"""The `lightning` script: `run RECIPE` is v1lit's, all else goes to lightning-sdk, or to `fabric` without it.

The name is shared: whichever of v1lit and lightning-sdk was installed last owns the file. `v1lit doctor`
tells which it is; `v1lit run` is the same command under a name that nobody else has.
"""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, PackageNotFoundError, distribution

OTHERS = (("lightning-sdk", "lightning"), ("lightning", "fabric"))
"""Who gets what is not ours, in order: distribution and console script."""


def main() -> int | str | None:
    """Run the process's own arguments; returns what whoever took them gives to `sys.exit`."""
    if sys.argv[1:2] == ["run"]:
        from v1lit.cli.main import main as v1lit

        return v1lit(sys.argv[1:])
    for owner, script in OTHERS:
        point = console_script(owner, script)
        if point is not None:
            code: int | str | None = point.load()()
            return code
    sys.stderr.write(
        "error: neither lightning-sdk nor fabric is installed; v1lit's own part is: lightning run RECIPE\n"
    )
    return 2


def console_script(owner: str, script: str) -> EntryPoint | None:
    """The console script of that name in an installed distribution, if there is one."""
    try:
        points = distribution(owner).entry_points.select(group="console_scripts", name=script)
    except PackageNotFoundError:
        return None
    return next(iter(points), None)


if __name__ == "__main__":
    sys.exit(main())
