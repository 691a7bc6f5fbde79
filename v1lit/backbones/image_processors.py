"""Image processors that were saved: by others in a checkpoint, or by `Processor`.

They are read from the file that counts, and every setting in it is checked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from v1lit.backbones.classes import named_class
from v1lit.backbones.contract import Backbone
from v1lit.backbones.folder import IMAGE_PROCESSORS, check_image_processor_files
from v1lit.backbones.hub import hub_errors
from v1lit.backbones.image_options import ImageProcessor
from v1lit.backbones.image_settings import check_settings, json_word
from v1lit.backbones.load import checkpoint_config
from v1lit.backbones.weight_files import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

PROCESSOR_FILE = "v1lit_processor.json"
"""Written by `Processor.save_pretrained`, with the image options in force."""


def checkpoint_image_processor(
    backbone: Backbone, weights: str, config: PreTrainedConfig | None = None, **options: Any
) -> ImageProcessor:
    """The image processor of a checkpoint, a folder or hub id, with these options in place of its own.

    `config` is the model's where it does not stand there in the layout of transformers.
    Raises ValueError for unknown options, and as `Backbone.check_fit` for what the checkpoint says.
    """
    backbone.check_image_options(options)
    config = config or checkpoint_config(backbone, weights)
    processor, own = _checkpoint_options(backbone, weights, config)
    return backbone.with_options(processor, {**own, **options})


def saved_image_processor(backbone: Backbone, folder: str, options: Mapping[str, Any]) -> ImageProcessor:
    """The image processor saved in a folder, with the complete options that were saved beside it."""
    processor, _ = _read_image_processor(backbone, folder)
    return backbone.with_options(processor, backbone.check_image_options(options))


def _read_image_processor(backbone: Backbone, source: str) -> tuple[Any, dict[str, Any]]:
    """The image processor of a checkpoint, once its settings have been checked, and the settings as saved.

    Raises ValueError for a setting that the family's patch maps do not know, WeightsUnavailable if there is
    no image processor.
    """
    cls = named_class(backbone.processor_class)
    with hub_errors(source):
        if Path(source).is_dir():
            check_image_processor_files(Path(source), backbone.hub_id)
        saved, _ = cls.get_image_processor_dict(source)
    with _about(Path(source)):
        processor = cls.from_dict(saved)
        check_settings(backbone, processor, saved)
        _refuse_two(processor, Path(source))
    return processor, saved


def _checkpoint_options(
    backbone: Backbone, source: str, config: PreTrainedConfig
) -> tuple[Any, dict[str, Any]]:
    """The image processor of a checkpoint and the family's image options that it stands for.

    Those of a `Processor` that was saved in the same folder come first: `max_side` stands nowhere else.
    """
    processor, saved = _read_image_processor(backbone, source)
    with _about(Path(source)):
        options = backbone.checkpoint_image_options(processor, config)
        for key in set(saved) & set(options) - set(type(processor).valid_kwargs.__annotations__):
            if saved[key] not in (None, options[key]):
                raise ValueError(
                    f"{key} is {json_word(saved[key])}, but the model's config says {options[key]}"
                )
        beside = Path(source) / PROCESSOR_FILE
        if beside.is_file():
            ours = read_json(beside).get("image") or {}
            options |= backbone.check_image_options({k: v for k, v in ours.items() if v is not None})
        backbone.complete(options)
    return processor, options


@contextmanager
def _about(source: Path) -> Iterator[None]:
    """Say in which file the settings of a checkpoint's image processor stand that are wrong."""
    paths = (source / name for name in reversed(IMAGE_PROCESSORS))
    place = next((path for path in paths if path.is_file() and _holds_settings(path)), None)
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        text = str(error) if isinstance(error, ValueError) else f"cannot be read: {error}"
        raise ValueError(f"{place or f'image processor of {source}'}: {text}") from error


def _holds_settings(path: Path) -> bool:
    """Whether these are the settings: processor_config.json may hold them, and then comes first."""
    return path.name == IMAGE_PROCESSORS[0] or "image_processor" in read_json(path)


def _refuse_two(processor: Any, folder: Path) -> None:
    """One folder may hold the settings twice, of which only those in processor_config.json are read."""
    paths = [folder / name for name in IMAGE_PROCESSORS]
    if not all(path.is_file() and _holds_settings(path) for path in paths):
        return
    cls = type(processor)
    one, other = processor.to_dict(), cls.from_dict(read_json(paths[0])).to_dict()
    wrong = [key for key in cls.valid_kwargs.__annotations__ if one.get(key) != other.get(key)]
    if wrong:
        raise ValueError(
            f"{paths[0].name} and {paths[1].name} do not agree on {', '.join(wrong)}\n"
            "only the second is read; make them the same or move the first away"
        )
