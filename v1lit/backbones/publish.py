"""An exported folder goes to the Hugging Face hub, as it is."""

from __future__ import annotations

from pathlib import Path

from v1lit.backbones.adapters.folder import adapter_folder
from v1lit.backbones.folder import CONFIG, PUBLISHED, check_exported, refuse_quantized
from v1lit.backbones.hub import looks_local
from v1lit.backbones.weight_files import read_headers, read_json
from v1lit.errors import one_line
from v1lit.paths import expand_path

CARD = "README.md"
LEFT_OUT = (".*", "*.tmp", "**/.*", "**/*.tmp")
"""Files that are unfinished, or of the system."""


class PushError(RuntimeError):
    """The hub did not take a folder; the message says what to do."""


def push_to_hub(
    folder: str | Path,
    repository: str,
    *,
    private: bool | None = None,
    message: str = "Upload a model of v1lit",
    endpoint: str | None = None,
    token: str | None = None,
) -> str:
    """Upload an exported model, an adapter, or a model in the published layout, with its card.

    Args:
        folder: that `v1lit export`, a run or `v1lit convert` wrote.
        repository: `NAME` or `OWNER/NAME`; made if it is not there.
        private: whether a new one can be seen by its owner alone.
        message: of the commit.
        endpoint: of another hub than huggingface.co.
        token: in place of that of `hf auth login`, or of HF_TOKEN.

    Returns the address of what was uploaded. Raises ValueError for a folder of another kind, for one that has
    no card, and for what is no name of a repository; PushError where the hub refuses or is out of reach.
    """
    from huggingface_hub import HfApi, errors

    path = Path(expand_path(folder))
    check_folder(path)
    if looks_local(repository) or not 1 <= len(repository.split("/")) <= 2:
        raise ValueError(f"{repository!r} is no name on the hub; give OWNER/NAME")
    transport: type[Exception] = getattr(errors, "HTTPError", OSError)
    hub = HfApi(endpoint=endpoint, token=token, library_name="v1lit")
    try:
        where = hub.create_repo(repository, private=private, exist_ok=True).repo_id
        done = hub.upload_folder(
            repo_id=where, folder_path=path, commit_message=message, ignore_patterns=list(LEFT_OUT)
        )
    except errors.HFValidationError as error:
        raise ValueError(f"{repository!r} is no name on the hub: {one_line(error)}") from error
    except (errors.HfHubHTTPError, errors.LocalTokenNotFoundError, transport, OSError) as error:
        raise PushError(
            f"{path} could not be uploaded to {repository}: {one_line(error)}\n"
            "log in with `hf auth login`, and see that you may write there"
        ) from error
    return str(done.commit_url)


def check_folder(folder: Path) -> None:
    """Raise ValueError unless a folder has a whole model of ours, or an adapter, and a card."""
    if adapter_folder(folder) is None:
        published = (folder / CONFIG).is_file() and read_json(folder / CONFIG).get("model_type") == PUBLISHED
        if published:
            refuse_quantized(read_json(folder / CONFIG), str(folder))
            read_headers(folder)
        else:
            check_exported(folder)
    if not (folder / CARD).is_file():
        raise ValueError(
            f"{folder} has no {CARD}, which says what the model is made of and under which licence\n"
            "write one, or make the folder with v1lit export"
        )
