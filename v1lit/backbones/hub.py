"""What goes wrong when a checkpoint is fetched from the hub or opened in a folder, in two lines."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from v1lit.backbones.weight_files import WeightsUnavailable
from v1lit.errors import one_line

ELSEWHERE = (
    "Name a local folder with --model.backbone.weights=/path/to/folder, or take the recipe "
    "tiny_qwen, which needs no download."
)
"""What to do where a recipe's weights are out of reach."""


@contextmanager
def hub_errors(weights: str, instead: str = ELSEWHERE) -> Iterator[None]:
    """Turn the many errors of a checkpoint that is out of reach into WeightsUnavailable of two lines.

    The second says what to do `instead`.
    """
    from huggingface_hub import errors
    from safetensors import SafetensorError

    # The hub's client has changed its HTTP library before; its own module names the one in use.
    transport: type[Exception] = getattr(errors, "HTTPError", OSError)
    try:
        if not Path(weights).exists():
            if looks_local(weights):
                raise FileNotFoundError("there is no such folder")
            _reach_hub(weights)
        yield
    except SafetensorError as error:
        raise WeightsUnavailable(
            f"the weights {weights} are damaged: {one_line(error)}\ndelete them and get them again"
        ) from error
    except (OSError, transport, errors.HfHubHTTPError, errors.HFValidationError) as error:
        raise WeightsUnavailable(
            f"cannot get the weights {weights}: {_reason(weights, error)}.\n{instead}"
        ) from error


def local_folder(weights: str) -> Path:
    """The folder of a checkpoint; of a hub id that in the cache, into which what is missing is fetched.

    Pickled weights are not fetched.
    """
    from huggingface_hub import snapshot_download

    if Path(weights).is_dir():
        return Path(weights)
    return Path(snapshot_download(weights, allow_patterns=["*.json", "*.txt", "*.safetensors"]))


def _reach_hub(weights: str) -> None:
    """Ask the hub once for a checkpoint that is not cached: downloads would retry for half a minute."""
    import huggingface_hub

    if huggingface_hub.try_to_load_from_cache(weights, "config.json") is None:
        huggingface_hub.model_info(weights, timeout=10)


def looks_local(weights: str) -> bool:
    """Whether a name can only be a path: a hub id is one or two plain names."""
    return weights.startswith((".", "/", "~", os.sep)) or weights.count("/") > 1 or Path(weights).is_dir()


def _reason(weights: str, error: BaseException) -> str:
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    if looks_local(weights):
        return str(error).strip().splitlines()[0].rstrip(".")
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return "access is restricted; accept the licence on its hub page and log in with `hf auth login`"
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        return "the hub has no such repository, or it is private"
    if any(isinstance(cause, HFValidationError) for cause in causes):
        return "this is neither a folder nor a name on the hub"
    return "the hub cannot be reached and they are not in the local cache"
