"""Texts that a shell, SLURM or Kubernetes would take for more than a text."""

from __future__ import annotations

NASTY = [
    "two words",
    "it's",
    'a "quote"',
    "$HOME ${HOME} $(touch made) `touch made`",
    "$$ $(JOB_COMPLETION_INDEX) ${local_rank}",
    "line\nline\n#SBATCH --nodes=9\ntouch made",
    "; touch made #",
    "--nodes=9",
    "-n",
    "back\\slash",
    "ü",
    "",
]
