"""What it costs to note, while generating, how likely everything was: a decoding step with and without it.

Usage: python tools/bench/noting.py [--batch 1] [--repeats 15] [--tokens 24]

Prints the processor time of a step each way, one thread, the two in turn, and the ratio of the medians. The
model is a Qwen2.5-VL of 62 million random parameters, vocabulary 32,000, with 256 image tokens.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from models import Size, make_model

from v1lit.inference.recording import Recording

SIZE = Size(32_000, 512, 8, 8, 2, 1536, 64, 2, 2, 128, (1,), tied=False)
SIDE = 16
"""Image tokens of a side of the image."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("--batch", 1), ("--repeats", 15), ("--tokens", 24)):
        parser.add_argument(name, type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = make_model(SIZE, "cpu", torch.float32).eval()
    image = model.config.image_token_id
    row = [100, model.config.backbone_config.vision_start_token_id, *[image] * SIDE**2, 101, 102, 103]
    ids = torch.tensor([row] * options.batch)
    width = model.get_input_embeddings().weight.shape[1]
    known = {
        "attention_mask": torch.ones_like(ids),
        "image_embeds": torch.randn(options.batch, SIDE**2, width),
        "position_ids": torch.arange(len(row)).expand(3, options.batch, -1),
        "min_new_tokens": options.tokens,
        "max_new_tokens": options.tokens,
        "do_sample": False,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }

    def run(notes: bool) -> float:
        """Milliseconds of the processor for each token."""
        watch = {"watch": Recording(model.config.pointer_start)} if notes else {}
        began = time.process_time()
        out = model.generate(ids, **known, **watch)
        if notes:
            watch["watch"].finish(out[:, ids.shape[1] :], [SIDE**2] * options.batch)
        return (time.process_time() - began) / options.tokens * 1000

    run(True)
    taken: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(options.repeats):
        for notes, times in taken.items():
            times.append(run(notes))
    without, noted = (statistics.median(times) for times in taken.values())
    both = f"{without:.2f} ms a token without, {noted:.2f} ms with"
    print(f"batch {options.batch}: {both}; ratio {noted / without:.3f}")


if __name__ == "__main__":
    main()
