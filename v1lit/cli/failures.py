"""What an exception means to the person who ran the command: whose it is, and what to do, in two lines."""

from __future__ import annotations

import errno
import re
import site
import sysconfig
import traceback
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from v1lit.errors import FAILURE, MISTAKE


class Told(NamedTuple):
    """An exception in words."""

    code: int
    message: str


FULL = "free some space, or write elsewhere: --run.folder=FOLDER"
SMALLER = (
    "lower data.batch_size or data.packing.length and raise trainer.accumulate_grad_batches; "
    "model.backbone.gradient_checkpointing=[language, vision] saves more"
)
WITHOUT_SERVER = (
    "look after network and login, or do without: --trainer.logger=null, or WANDB_MODE=offline for wandb"
)
WORKERS = "lower data.num_workers or data.batch_size, or ask for more memory"
LOST_OTHERS = "the processes of the run lost each other"
OTHERS = "look at what the other processes of the run said, and whether they are still there"
OF_SYSTEM = {
    errno.ENOSPC: ("the disk is full", FULL),
    errno.EDQUOT: ("your share of the disk is used up", FULL),
    errno.EFBIG: ("the file is larger than is allowed here", "see ulimit -f"),
    errno.EROFS: ("the disk cannot be written to", "write elsewhere: --run.folder=FOLDER"),
    errno.EIO: ("the disk does not answer as it should", "the system's log knows more"),
    errno.ENOMEM: ("no memory is left", WORKERS),
    errno.EMFILE: ("too many files are open", "raise the limit, ulimit -n, or lower data.num_workers"),
}
"""Numbers of an OSError: what they say, and what to do."""
OF_WORDS = (
    (r"No space left on device|os error 28\b", "the disk is full", FULL),
    (r"Disk quota exceeded|os error 122\b", "your share of the disk is used up", FULL),
    (r"enforce fail at inline_container|PytorchStreamWriter failed|iostream error",
     "a checkpoint could not be written; the disk may be full", FULL),
    (r"^(CUDA|HIP|XPU|MPS) out of memory|MPS backend out of memory|CUDA error: out of memory",
     "the memory of the device is full", SMALLER),
    (r"CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED", "the memory of the device is full", SMALLER),
    (r"DefaultCPUAllocator|not enough memory: you tried to allocate", "the memory is full", SMALLER),
    (r"DataLoader worker .*(Bus error|shared memory)|unable to (open|mmap|allocate) shared memory|"
     r"unable to mmap \d+ bytes",
     "the shared memory, /dev/shm, is full", "give the container more of it, --shm-size=8g, or lower "
     "data.num_workers"),
    (r"DataLoader worker .*(exited unexpectedly|is killed by signal)",
     "a process that reads data was ended from outside, as the system does when memory is used up", WORKERS),
    (r"EADDRINUSE|[Aa]ddress already in use", "the port of the run is taken", "set another MASTER_PORT"),
    (r"(CUDA|HIP) error|CUDA driver|CUBLAS_STATUS|CUDNN_STATUS", "the GPU failed",
     "CUDA_LAUNCH_BLOCKING=1 with --debug shows in which operation; nvidia-smi whether the GPU is well"),
    (r"NCCL (error|WARN|operation|communicator)|ncclRemoteError|ncclSystemError|ncclInternalError|"
     r"gloo|Connection (closed|reset) by peer|Socket Timeout|[Cc]ollective operation timeout|"
     r"waiting for clients|client socket has timed out|wait timeout after|TCPStore",
     LOST_OTHERS, OTHERS),
)  # fmt: skip
"""In messages of torch, safetensors and others: what they say, and what to do; the first that fits counts."""
OF_SERVERS = ("wandb", "mlflow", "neptune", "comet_ml", "clearml", "requests", "urllib3", "httpx", "aiohttp")
"""Packages that talk to a server."""
LIBRARIES = ("lightning", "lightning_fabric", "pytorch_lightning", "lightning_utilities", "jsonargparse")
"""Packages that check what they were told."""
MISTAKES = (ValueError, TypeError, RuntimeError, NotImplementedError, ImportError)


def explain(error: BaseException) -> Told | None:
    """`error` in words; None for a bug of v1lit's, which keeps its traceback."""
    if package_of(type(error).__module__) == "v1lit":
        code = MISTAKE if isinstance(error, ValueError) else FAILURE
        return Told(getattr(error, "exit_code", code), _message(error))
    raiser = package_of(_raised_in(error))
    if isinstance(error, (ValueError, FileNotFoundError, NotADirectoryError)) and raiser == "v1lit":
        return Told(MISTAKE, _message(error))
    for cause in _with_causes(error):
        if (failure := _of_machine(cause)) is not None:
            return Told(FAILURE, failure)
    if (own := in_own_code(error)) is not None:
        return Told(FAILURE, own)
    if isinstance(error, ConnectionError) or package_of(type(error).__module__) in OF_SERVERS:
        return Told(FAILURE, f"no answer from a server, or a refusal: {_named(error)}\n{WITHOUT_SERVER}")
    if isinstance(error, OSError) and error.filename is not None:
        return Told(FAILURE, _message(error))
    if isinstance(error, ModuleNotFoundError) and package_of(error.name or "") not in ("", "v1lit"):
        return Told(MISTAKE, f"{_message(error)}\ninstall the package that has it")
    misconfigured = type(error).__name__ == "MisconfigurationException"
    if misconfigured or (isinstance(error, MISTAKES) and raiser in LIBRARIES):
        return Told(MISTAKE, _message(error))
    return None


def in_own_code(error: BaseException) -> str | None:
    """File and exception, where that or what it follows from was raised in or below the user's own file.

    That is a file which belongs neither to v1lit nor to a library.
    """
    for cause in _with_causes(error):
        frames = traceback.extract_tb(cause.__traceback__)
        places = [(frame.filename, frame.lineno, frame.name) for frame in frames]
        places += re.findall(r'File "([^"]+)", line (\d+), in (\S+)', str(cause))  # from a worker
        if own := [place for place in places if _is_own(place[0])]:
            file, line, name = own[-1]
            return f"{file}, line {line}, in {name}: {_named(cause)}\n--debug shows the whole traceback"
    return None


def package_of(module: str) -> str:
    """The top-level package of a module's name."""
    return module.partition(".")[0]


def _of_machine(error: BaseException) -> str | None:
    """Of a failure that is nobody's mistake: what happened, what was said, what to do."""
    text = _message(error)
    said = text.strip().splitlines()[0].strip()
    if isinstance(error, MemoryError):
        return f"the memory is full\n{SMALLER}"
    if isinstance(error, OSError) and error.errno in OF_SYSTEM:
        what, remedy = OF_SYSTEM[error.errno]
        return f"{what}: {said}\n{remedy}"
    kind = type(error)
    may_fit = issubclass(kind, (RuntimeError, OSError)) or package_of(kind.__module__) == "safetensors"
    for pattern, what, remedy in OF_WORDS if may_fit else ():
        if re.search(pattern, text):
            return f"{what}: {said}\n{remedy}"
    return None


def _is_own(file: str) -> bool:
    if file.startswith("<"):
        return False
    path = Path(file).resolve()
    return path.is_file() and not any(path.is_relative_to(place) for place in _places_of_libraries())


@cache
def _places_of_libraries() -> tuple[Path, ...]:
    """Folders of v1lit, of installed packages and scripts, and of Python itself."""
    names = ("stdlib", "platstdlib", "purelib", "platlib", "scripts")
    places = [sysconfig.get_path(name) for name in names]
    places += [*site.getsitepackages(), site.getusersitepackages(), str(Path(__file__).parents[1])]
    return tuple(Path(place).resolve() for place in places if place)


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    """The exception, and those that led to it."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


def _raised_in(error: BaseException) -> str:
    """Name of the module that raised `error`."""
    last = list(traceback.walk_tb(error.__traceback__))[-1:]
    return str(last[0][0].f_globals.get("__name__", "")) if last else ""


def _message(error: BaseException) -> str:
    text = str(error).strip()
    if text.startswith("Caught ") and "Traceback" in text:  # from a data loader's worker: what was said there
        lines = text.splitlines()
        last = max(number for number, line in enumerate(lines) if line.startswith("  "))
        text = "\n".join(lines[last + 1 :]).partition(": ")[2] or text
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    return text or type(error).__name__


def _named(error: BaseException) -> str:
    text, name = _message(error), type(error).__name__
    return text if text == name else f"{name}: {text}"
