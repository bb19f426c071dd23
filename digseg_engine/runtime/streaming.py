"""Pictures from a source that may be endless, block or refill one buffer: read ahead in a thread, left at any moment.

What is handed on outlives the source's next step, so arrays are copied as they are taken. The thread is a daemon: a source
that never gives another picture (a camera, a socket) keeps neither the caller nor the end of the program waiting.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from threading import Semaphore, Thread

from PIL import Image

from digseg_engine.errors import DigsegError, UsageError
from digseg_engine.images import Picture, as_picture
from digseg_engine.runtime.encoding import Encoding

Taken = Picture | Encoding | DigsegError
ON_ERROR = ("raise", "return")


def take(image: object, name: str = "image") -> Picture | Encoding:
    """`as_picture`, with pixels that nobody else can change later: arrays and tensors are copied. What was encoded stays."""
    if isinstance(image, Encoding):
        return image
    picture = as_picture(image, name)
    fresh = picture is image or isinstance(image, (str, Path, Image.Image))
    return picture if fresh else replace(picture, pixels=picture.pixels.copy())


def take_all(images: Iterable[object], first: int = 0) -> list[Taken]:
    """Every picture, or why it cannot be used; they are called `picture first`, `picture first + 1` and so on.
    Raises UsageError for a path in place of a list of them."""
    check_several(images)
    pictures: list[Taken] = []
    for number, image in enumerate(images, first):
        try:
            pictures.append(take(image, f"picture {number}"))
        except DigsegError as error:
            pictures.append(error)
    return pictures


def check_several(images: object) -> None:
    """Raises UsageError for one path where several pictures are expected: its letters would be taken for names."""
    if isinstance(images, (str, bytes, Path)):
        raise UsageError(f"several pictures are expected, got one path ({images!r}); put it in a list")


def check_on_error(on_error: str) -> None:
    """Raises UsageError for a word that is neither `raise` nor `return`."""
    if on_error not in ON_ERROR:
        raise UsageError(f"unknown on_error {on_error!r}; expected one of {', '.join(ON_ERROR)}")


def batches(images: Iterable[object], size: int) -> Generator[list[Taken], None, None]:
    """Lists of `size` pictures (the last may be shorter), the next one read while the caller works on this one.

    An exception of the source is raised here, after everything that came before it.
    """
    requests, done = Semaphore(1), False
    handed: SimpleQueue[list[Taken] | BaseException | None] = SimpleQueue()

    def read() -> None:
        source, number = iter(images), 0
        while requests.acquire() and not done:
            found: list[Taken] = []
            try:
                for image in islice(source, size):
                    found += take_all([image], number + len(found))
            except BaseException as error:
                if found:
                    handed.put(found)
                handed.put(error)
                return
            number += len(found)
            handed.put(found or None)
            if not found:
                return

    try:
        Thread(target=read, name="digseg-read", daemon=True).start()
        while True:
            item = handed.get()
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            requests.release()
            yield item
    finally:  # also when the caller goes away: the thread ends as soon as the source lets it
        done = True
        requests.release()
