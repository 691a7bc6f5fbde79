"""What is checked of a family's text: marks, conversations, and lengths that are known without pixels."""

from __future__ import annotations

import io
import tempfile
from dataclasses import replace

from PIL import Image

from v1lit.backbones.config import BackboneConfig
from v1lit.backbones.processor import Processor, load_processor
from v1lit.data.config import EncodingConfig
from v1lit.data.encode.encoding import encode
from v1lit.data.example import Example, Message
from v1lit.data.images import read_header
from v1lit.data.lengths.fingerprint import fingerprint
from v1lit.data.lengths.length import Length, measure
from v1lit.grounding.region import Region
from v1lit.labels import IGNORE
from v1lit.testing.models import noise, processor

TEXTS = ("Where is it?", " a  b\n", "œ 😀 <region>", "it's <|im_end|></s><image> there")
"""Texts that must come back as they are, spaces and marks included."""
ENCODINGS = (EncodingConfig(), EncodingConfig(coordinates=False, supervise="all", max_tokens=400))


def example(images: int = 1, answer: str = "There: <|region_1|>.") -> Example:
    """A question about that many images of different sizes; the answer names a region of the first."""
    pictures = [noise((168 - 40 * n, 112), n) for n in range(images)]
    text = answer if images else "Nowhere."
    return Example(
        id=f"example-{images}",
        images=tuple(read_header(_png(picture)) for picture in pictures),
        messages=(Message("user", "<image>\n" * images + "Where?"), Message("assistant", text)),
        regions={"<|region_1|>": Region.from_box((70, 40, 130, 90))} if "<|region_1|>" in text else {},
    )


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def marks(name: str) -> str:
    """Marks are single tokens that no word makes, text survives, pointers begin after the embedding table."""
    of = processor(name)
    chat, ids = of.backbone.chat, {}
    for mark in (chat.image_token, chat.stop, *chat.tokens):
        encoded = of.encode_text(mark)
        assert len(encoded) == 1, f"the mark {mark!r} is {len(encoded)} tokens"
        ids[encoded[0]] = mark
        words = of.encode_text(f"a {mark} b", special=False)
        assert encoded[0] not in words, f"the mark {mark!r} can be written by a user"
    assert chat.assistant[1].startswith(chat.stop), f"an answer does not end in {chat.stop!r}"
    for text in TEXTS:
        for special in (True, False):
            again = of.decode(of.encode_text(text, special=special))
            assert again == text, f"the text {text!r} comes back as {again!r}"
    rows = of.backbone.tiny_config(of.tokenizer).get_text_config().vocab_size
    assert of.pointer_start == rows, f"pointers begin at {of.pointer_start}, the table has {rows} rows"
    return f"{len(ids)} marks and {len(TEXTS)} texts, encoded and decoded"


def conversation(name: str) -> str:
    """Every image token of the patch maps has its place, a region its pointers, and the answer its end."""
    of = processor(name)
    for images in (0, 1, 2):
        encoded = encode(example(images), of, ENCODINGS[0])
        ids, tokens = encoded.input_ids, sum(map(len, encoded.patch_maps))
        places = int((ids == of.image_token_id).sum())
        assert places == tokens, f"{images} images have {tokens} image tokens and {places} places in the text"
        learned = encoded.labels[encoded.labels != IGNORE].tolist()
        assert of.stop_token_id in learned, "the end of an answer is not learned"
        assert of.image_token_id not in learned, "image tokens are learned"
        assert len(encoded.regions) == bool(images), "a region in the middle of an image has no pointer"
        for span in encoded.regions:
            run = ids[span.start : span.stop] - of.pointer_start
            assert len(run), "a region in the middle of an image has no pointer"
            assert 0 <= run.min() <= run.max() < tokens, f"pointers to {run.tolist()} of {tokens} tokens"
    return "conversations with no image, one and two"


def lengths(name: str) -> str:
    """A measured length is the encoded one, and a fingerprint changes with what decides lengths alone."""
    fresh = load_processor(BackboneConfig(name))
    before = fingerprint(fresh, ENCODINGS[0])
    for encoding in ENCODINGS:
        for images in (0, 1, 2):
            encoded = encode(example(images), fresh, encoding)
            maps = encoded.patch_maps
            known = Length(len(encoded.input_ids), sum(map(len, maps)), len(maps))
            measured = measure(example(images), fresh, encoding)
            assert measured == known, f"measured as {measured}, encoded as {known}"
    fresh.tokenizer("some text", truncation=True, max_length=2, padding="max_length")
    assert fingerprint(fresh, ENCODINGS[0]) == before, "the fingerprint is another after use"
    with tempfile.TemporaryDirectory(prefix="v1lit-testing-") as folder:
        fresh.save_pretrained(folder)
        again = Processor.from_pretrained(folder)
    assert fingerprint(again, ENCODINGS[0]) == before, "the fingerprint is another after saving and loading"
    others = [
        fingerprint(load_processor(BackboneConfig(name, image={"max_side": 90})), ENCODINGS[0]),
        fingerprint(fresh, replace(ENCODINGS[0], max_tokens=8191)),
    ]
    assert before not in others, "the fingerprint does not change with image options and encoding"
    return "lengths measured and encoded; fingerprints"
