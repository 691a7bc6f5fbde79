"""Stand-ins for the commands of SLURM, which run jobs on this machine at once."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from helpers.launched_runs import environment

COMMON = """#!{python}
import fcntl, json, os, signal, subprocess, sys
from pathlib import Path
place = Path({place!r})
words = sys.argv[1:]
with (place / "calls").open("a") as file:
    file.write(json.dumps([Path(sys.argv[0]).name, *words]) + "\\n")
jobs = place / "queue"

def alive(number):
    leader = int((jobs / number).read_text())
    try:
        os.kill(leader, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{{leader}}/stat").read_text().rpartition(")")[2].split()[0] != "Z"

def start(number, options, script):
    output = open(options["--output"], "ab")
    env = {{**os.environ, "SLURM_JOB_ID": number, "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "x",
           "SLURM_PROCID": "0", "SLURM_JOB_NODELIST": "n1"}}
    job = subprocess.Popen(["bash", script], cwd=options["--chdir"], env=env, stdin=subprocess.DEVNULL,
                           stdout=output, stderr=output, start_new_session=True)
    (jobs / number).write_text(str(job.pid))

def begin(number):
    options, script = json.loads((place / f"{{number}}.json").read_text())
    start(number, options, script)
"""
COMMANDS = {
    "sbatch": """
options = dict(word.split("=", 1) for word in words if "=" in word and word.startswith("--"))
if (place / "refuses").exists():
    sys.exit("sbatch: error: Batch job submission failed: QOSMaxSubmitJobPerUserLimit")
with (place / "last").open("a+") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    file.seek(0)
    number = str(len(file.read()) + 1)
    file.write("x")
(place / f"{number}.json").write_text(json.dumps([options, words[-1]]))
if (place / "waits").exists():
    (jobs / number).write_text("pending")
else:
    begin(number)
print(f"{number};cluster")
""",
    "squeue": """
if (place / "silent").exists():
    sys.exit("slurm_load_jobs error: Unable to contact slurm controller")
for file in sorted(jobs.iterdir()):
    if file.read_text() == "pending" or alive(file.name):
        print(file.name)
    else:
        file.unlink()
""",
    "scancel": """
numbers = [word for word in words if word.isdigit()]
for number in numbers:
    file = jobs / number
    pending = file.exists() and file.read_text() == "pending"
    if pending and "--state=RUNNING" not in words:
        file.unlink()
    elif file.exists() and not pending and "--state=PENDING" not in words:
        if "--signal=TERM" in words:  # the tasks of srun alone
            task = place / f"{number}.task"
            os.kill(int(task.read_text()), signal.SIGTERM) if task.exists() else None
        else:
            os.killpg(int(file.read_text()), signal.SIGKILL)
""",
    "srun": """
number = os.environ["SLURM_JOB_ID"]
command = words[next(at for at, word in enumerate(words) if not word.startswith("--")):]
(place / f"{number}.task").write_text(str(os.getpid()))
os.execvp(command[0], command)
""",
    "scontrol": """
assert words[0] == "requeue"
begin(words[1])
""",
}


def fake_slurm(folder: Path) -> dict[str, str]:
    """Put stand-ins into a folder; returns the environment in which they are found.

    Files in it say how they behave: `waits`, that jobs stay in the queue; `refuses`, that none is taken;
    `silent`, that squeue has no answer.
    """
    (folder / "queue").mkdir(parents=True)
    for name, text in COMMANDS.items():
        (folder / name).write_text(COMMON.format(python=sys.executable, place=str(folder)) + text)
        (folder / name).chmod(0o755)
    return environment(PATH=f"{folder}{os.pathsep}{os.environ['PATH']}")
