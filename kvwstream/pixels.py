"""Pictures are decoded and scaled once for each group of questions that follow each other."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from kvwstream.examples import Example
from kvwstream.images import load_image

if TYPE_CHECKING:
    from PIL.Image import Image

KEPT = 8
"""Decoded pictures, and pictures in what was scaled last, which is kept however many it holds."""


class Pictures:
    """The decoded images of the last examples, by content."""

    def __init__(self) -> None:
        self._images: OrderedDict[str, Image] = OrderedDict()

    def of(self, example: Example) -> list[Image]:
        """RGB images, the same objects while they are remembered.

        `DataError` naming the example if one cannot be read.
        """
        if not example.images:
            return []
        found = []
        for source, digest in zip(example.images, example.image_digests, strict=True):
            if digest not in self._images:
                self._images[digest] = load_image(source, example.id)
            self._images.move_to_end(digest)
            found.append(self._images[digest])
        while len(self._images) > KEPT:
            self._images.popitem(last=False)
        return found


class RememberedPixels:
    """An image processor that answers at once where it is asked for the same images again."""

    def __init__(self, image_processor: Any) -> None:
        self._inner = image_processor
        self._answers: OrderedDict[Any, tuple[Any, Any]] = OrderedDict()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __call__(self, images: Any, *args: Any, **options: Any) -> Any:
        """What the image processor makes of `images`."""
        key = (_identities(images), args, repr(sorted(options.items())))
        if key not in self._answers:
            # With the images, since an identity is one only while its object lives.
            self._answers[key] = images, self._inner(images, *args, **options)
            while len(self._answers) > 1 and sum(_count(key[0]) for key in self._answers) > KEPT:
                self._answers.popitem(last=False)
        answer = self._answers[key][1]
        return type(answer)(dict(answer))  # processors take entries out of it


def _count(identities: Any) -> int:
    """How many there are."""
    return sum(map(_count, identities)) if isinstance(identities, tuple) else 1


def _identities(images: Any) -> Any:
    return tuple(map(_identities, images)) if isinstance(images, list | tuple) else id(images)
