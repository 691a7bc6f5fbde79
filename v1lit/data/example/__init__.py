"""What a sample is: its text, images and regions, and the reference by which it is found again."""

from v1lit.data.example.example import Example, ExampleError, Message, key_of
from v1lit.data.example.reference import ExampleRef

__all__ = ["Example", "ExampleError", "ExampleRef", "Message", "key_of"]
