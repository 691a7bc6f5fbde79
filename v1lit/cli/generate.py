"""`v1lit generate MODEL IMAGE QUESTION`, and the same for every row of a file or of shards."""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from v1lit.cli.errors import Parser, UserError, a_path
from v1lit.cli.steering_flags import add_flags, steering
from v1lit.errors import FAILURE, first_of
from v1lit.files import aside, write_atomically

if TYPE_CHECKING:
    from v1lit.inference.bulk import BulkReport
    from v1lit.inference.prediction import Prediction
    from v1lit.inference.predictor import Predictor
    from v1lit.steering.options import Steering

SINGLE = ("draw", "html", "json", "stream", "region")
BULK = ("out", "retry_failed")
"""Options of one question, and of many."""
MOST_FAILED = 20
"""Rows without an answer that are named at the end."""


def main(argv: Sequence[str]) -> int:
    """Run `v1lit generate` with the arguments after `generate`; returns the exit code."""
    options = _parser().read(argv)
    bulk = len(options.what) == 1
    _check(options, bulk)
    steer = steering(options)
    from v1lit.training.quiet import no_weights_bar, quiet

    with quiet(), no_weights_bar():
        if bulk:
            return _answer_rows(options, steer)
        *images, question = options.what
        return _answer(options, [a_path(image) for image in images], question, steer)


def _check(options: Namespace, bulk: bool) -> None:
    """Raise UserError for options that do not belong together, before a model is loaded."""
    for name in SINGLE if bulk else BULK:
        if getattr(options, name):
            what = "one question" if bulk else "rows: a .jsonl file, a folder of shards, a tar file"
            raise UserError(f"--{name.replace('_', '-')} is for {what}\nsee v1lit generate --help")
    if bulk and not options.out:
        raise UserError(
            f"an image and a question, or rows and --out FILE; given: {options.what[0]}\n"
            "see v1lit generate --help"
        )
    if options.draw:
        _format_of(options.draw)


def _format_of(path: str) -> str:
    """What Pillow calls the format of that suffix. Raises UserError."""
    from PIL import Image

    suffix, known = Path(path).suffix.lower(), Image.registered_extensions()
    if known.get(suffix) not in Image.SAVE:
        raise UserError(f"--draw {path}: pictures end in .png, .jpg, .webp, not in {suffix or 'nothing'!r}")
    return known[suffix]


def _answer(options: Namespace, images: Sequence[str], words: str, steer: Steering | None) -> int:
    from v1lit.inference.prompt import AboutRegions

    predictor = _load(options)
    question = AboutRegions(words, options.region or (), options.region_coordinates)
    generate = {"max_new_tokens": options.max_new_tokens, "steer": steer, **_generation(options)}
    _seed(options)
    if options.stream:
        prediction = None
        for part in predictor.stream(images, question, **generate):
            if not options.json:
                print(part.new, end="", flush=True)
            prediction = part.prediction or prediction
        assert prediction is not None
    else:
        prediction = predictor(images, question, **generate)
    if options.json:
        print(json.dumps(prediction.to_json(), ensure_ascii=False, indent=2))
    else:
        _tell(prediction, with_text=not options.stream)
    if options.html:
        write_atomically(Path(options.html), prediction.to_html())
    if options.draw:
        _draw(prediction, Path(options.draw))
    return 0


def _tell(prediction: Prediction, with_text: bool) -> None:
    """Text, looks and answer, for people to read."""
    print(prediction.text if with_text else "")
    for look in prediction.looks:
        boxes = ", ".join(
            f"image {region.image + 1} [{', '.join(f'{edge:g}' for edge in region.box)}]"
            for region in look.regions
        )
        sure = f", probability {sum(look.probabilities) / len(look.tokens):.3f}" if look.probabilities else ""
        print(f"look {look.number}: {look.name or look.query or 'a region'}: {boxes or 'nowhere'}{sure}")
    print(f"answer: {'none' if prediction.answer is None else prediction.answer}")


def _draw(prediction: Prediction, path: Path) -> None:
    """A picture of every image: `out.png`, `out-2.png`, ..."""
    for image in range(len(prediction.pictures)):
        with aside(path.with_stem(f"{path.stem}-{image + 1}") if image else path) as unfinished:
            prediction.draw(image).save(unfinished, _format_of(str(path)))


def _answer_rows(options: Namespace, steer: Steering | None) -> int:
    from v1lit.inference.bulk import BulkOptions, Share, answer_rows
    from v1lit.inference.rows import open_rows

    rows = open_rows(a_path(options.what[0]), options.region_coordinates)
    share = Share.from_environment()
    how = BulkOptions(options.batch_size, options.max_new_tokens, options.seed, _generation(options), steer)
    report = answer_rows(
        _load(options),
        rows,
        Path(options.out),
        how,
        made_with=_made_with(options),
        share=share,
        retry_failed=options.retry_failed,
        progress=options.progress,
    )
    return _tell_rows(report, options.out)


def _made_with(options: Namespace) -> dict[str, Any]:
    """Which model answers: its folder, and what its weights are, by sizes and when they were written."""
    weights = sorted(Path(options.model).glob("*.safetensors"))
    return {
        "model": options.model,
        "weights": [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in weights],
        "dtype": options.dtype,
        "bits": options.bits,
        **({"region_coordinates": True} if options.region_coordinates else {}),
        **({"compiled": True} if options.compiled else {}),
    }


def _tell_rows(report: BulkReport, out: str) -> int:
    """Say what came of it, naming rows without an answer; returns the exit code.

    Where other processes still have rows, theirs is the last word: a launcher ends all when one fails.
    """
    named = [f"{line['row']} ({line['id']}): {line['error']}" for line in report.failed]
    if named:
        sys.stderr.write(f"no answer, {len(named)} rows:\n")
        sys.stderr.writelines(f"  row {one}\n" for one in named[:MOST_FAILED])
        sys.stderr.write(f"  and {len(named) - MOST_FAILED} more\n" if len(named) > MOST_FAILED else "")
    if not report.complete:
        print(f"{report.answered} rows answered; other processes have rows left")
        return 0
    print(f"{report.rows - len(named)} of {report.rows} rows have an answer: {out}")
    if named:
        sys.stderr.write("mend them, then: the same command with --retry-failed\n")
    return FAILURE if named else 0


def _load(options: Namespace) -> Predictor:
    from v1lit.inference.loading import load

    device, local = options.device, os.environ.get("LOCAL_RANK")
    if device == "auto" and local is not None and options.device_map is None:
        import torch

        device = f"cuda:{local}" if torch.cuda.is_available() else device
    return load(
        options.model,
        options.dtype,
        device,
        bits=options.bits,
        device_map=options.device_map,
        static_cache=options.static_cache,
        compiled=options.compiled,
    )


def _seed(options: Namespace) -> None:
    import torch

    torch.manual_seed(options.seed)


def _generation(options: Namespace) -> dict[str, Any]:
    """Options of `Predictor.batch` that were given, as plain data."""
    given = {
        "num_beams": options.beams,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "best_of": options.best_of,
        "choose_by": options.choose_by,
        "repetition_penalty": options.repetition_penalty,
    }
    if options.sample or options.temperature is not None or options.top_p is not None:
        given["do_sample"] = True
    return {name: value for name, value in given.items() if value is not None}


def _parser() -> Parser:
    parser = Parser(
        prog="v1lit generate",
        usage="v1lit generate MODEL IMAGE [IMAGE ...] QUESTION [options]\n"
        "       v1lit generate MODEL ROWS --out FILE [options]",
        description="Ask a trained model about one or several images, or answer every row of a .jsonl file "
        '({"image": "a.jpg", "question": "..."}) or of shards. Rows are answered in batches of similar '
        "length; the same command resumes after any interruption, and processes of torchrun share the work.",
    )
    add: Any = parser.add_argument
    add("model", metavar="MODEL", type=a_path, help="folder of an exported model, or hub id")
    add("what", metavar="IMAGE ... QUESTION, or ROWS", nargs="+", help=f"{first_of(BULK)} are for rows")
    add("--draw", metavar="FILE", type=a_path, help="a picture with all regions and their numbers")
    add("--html", metavar="FILE", type=a_path, help="a page on which text and patches light up together")
    add("--json", action="store_true", help="print the whole prediction as JSON")
    add("--stream", action="store_true", help="print the answer while it is written")
    add("--out", metavar="FILE", type=a_path, help="of rows: one JSON object per line")
    add("--batch-size", type=int, default=8, help="rows that are answered together; 8 at first")
    add("--retry-failed", action="store_true", help="ask rows again that had no answer")
    add("--no-progress", dest="progress", action="store_false", help="no progress bar")
    add("--max-new-tokens", type=int, default=512, help="of an answer; 512 at first")
    add("--beams", type=int, help="search with that many beams")
    add("--sample", action="store_true", help="draw tokens by their probability, instead of the likeliest")
    add("--temperature", type=float, help="of samples")
    add("--top-p", type=float, help="draw from the likeliest tokens that have this probability together")
    add("--best-of", type=int, metavar="N", help="sample N answers and take the best")
    add("--choose-by", choices=("likelihood", "agreement"), help="which of them that is")
    add("--repetition-penalty", type=float, help="on words; pointers and images are spared")
    add("--seed", type=int, default=0, help="of samples")
    add_flags(parser)
    add("--dtype", default="auto", help="of the weights, such as bfloat16; as they are stored at first")
    add("--device", default="auto", help="cuda, mps or cpu; the fastest there is at first")
    add("--bits", type=int, choices=(8, 4), help="pack the decoder's weights (bitsandbytes)")
    add("--static-cache", action="store_true", help="a KV cache of the final size from the start")
    add("--compiled", action="store_true", help="steps compiled by torch, with a static cache; for many rows")
    add("--device-map", help="auto: spread the weights over all GPUs (accelerate)")
    return parser
