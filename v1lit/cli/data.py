"""`v1lit data COMMAND`: hands over to one of its commands, which is imported only then."""

from __future__ import annotations

from collections.abc import Sequence

from v1lit.cli.main import dispatch

USAGE = """usage: v1lit data COMMAND ...

  import v1g SOURCE --out FOLDER   rows in the published format (parquet file, folder or hub id) to shards
  synth --out FOLDER               drawn scenes with exact regions to shards
  show FOLDER                      some examples as one HTML page or PNG
  index LOCATION                   where examples lie, and checksums, for shards from elsewhere
  check LOCATION ...               every checksum, every example, every image: is anything wrong?
  check RECIPE                     the same of its shards, and what a run would trip over
  stats SOURCE                     how much of what there is, as tables and as a page with histograms
  reshard LOCATION ... --out FOLDER   merge, split or shuffle shards
  mix RECIPE                       what a mixture of sources will draw

v1lit data COMMAND --help says more"""

COMMANDS = ("import", "synth", "show", "index", "check", "stats", "reshard", "mix")
"""Each is `main` of the module `v1lit.cli.data_<command>`."""


def main(argv: Sequence[str]) -> int:
    """Run `v1lit data` with the arguments after `data`; returns the exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if argv else 2
    return dispatch("v1lit data", {name: f"v1lit.cli.data_{name}" for name in COMMANDS}, argv)
