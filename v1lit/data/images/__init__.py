"""Images as they lie in shards: looked at without decoding them, and decoded."""

from v1lit.data.images.encoded_image import EXTENSIONS, EncodedImage, ImageError, decode_image, read_header

__all__ = ["EXTENSIONS", "EncodedImage", "ImageError", "decode_image", "read_header"]
