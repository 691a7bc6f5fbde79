"""The libraries that adapters come from, which are extras."""

from __future__ import annotations

from importlib.util import find_spec

from v1lit.backbones.adapters.config import QLORA, AdapterConfig
from v1lit.errors import OptionError


def check_libraries(adapter: AdapterConfig, packed: bool = True) -> None:
    """Raise OptionError, with the line that installs it, for a library that is not there.

    packed: whether weights shall be kept in 4 bits, where the kind asks for it.
    """
    wanted = {"peft": "v1lit[adapters]"} if adapter else {}
    if adapter.kind == QLORA and packed:
        wanted["bitsandbytes"] = "v1lit[adapters,adamw8bit]"
    for library, extra in wanted.items():
        if find_spec(library) is None:
            why = f"it needs {library}, which is not installed\ninstall it with: pip install '{extra}'"
            raise OptionError("kind", adapter.kind, why, f"model.{AdapterConfig.GROUP}")
