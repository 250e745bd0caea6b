"""Images in conversations: found, read from what a request carries, and opened as an expert that sees takes them.

Nothing is fetched for them: an address in a request would have this machine ask whatever its sender names.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

from .prompts_ir3de import Message, Prompt, Unanswerable, is_image

if TYPE_CHECKING:
    from PIL.Image import Image

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
_HOLDERS = ("image_url", "image", "source", "url")  # keys of a part that may hold its image
_DATA = re.compile(r"data:(?:[\w.+/-]+)?(?:;[\w.=+/-]+)*;base64,", re.ASCII | re.IGNORECASE)
_LONGEST_HEAD = 200  # characters of a `data:` URL before its data
_GOES = "an image goes as a `data:` URL in base64, of PNG, JPEG, WebP or GIF"


class BadImage(Unanswerable):
    """
    An image that cannot be read, or one more than goes.

    Args:
        place (`str`): where it is in the conversation.
        why (`str`): what is wrong, and what to do.
        elsewhere (`bool`): whether others may take it: an address, or what is too much here.
    """

    def __init__(self, place: str, why: str, elsewhere: bool = False) -> None:
        super().__init__(f"The image at {place} {why}.")
        self.place = place
        self.elsewhere = elsewhere


class Picture:
    """
    An image of a conversation. It is kept as the file that it came as, which is small, and decoded when it is opened.

    Args:
        file (`bytes` or `PIL.Image.Image`): the file, or an image of Pillow.
        place (`str`): where it is in the conversation, for messages.
    """

    def __init__(self, file: bytes | Image, place: str) -> None:
        self._file = file
        self.place = place

    @property
    def pixels(self) -> int:
        """How many it has, as the head of the file says.

        Raises:
            BadImage: that is not the head of an image, or Pillow is missing.
        """
        width, height = self._read().size
        return int(width * height)

    def opened(self) -> Image:
        """The image upright, in colours without transparency, as processors take it; of several frames the first.

        Raises:
            BadImage: it is broken.
        """
        image = self._read()
        from PIL import ImageOps

        try:
            return ImageOps.exif_transpose(image).convert("RGB")
        except Exception as error:  # of whichever kind its decoder raises
            raise BadImage(self.place, f"is broken ({type(error).__name__}): send it anew") from None

    def _read(self) -> Image:
        """The image before its pixels are decoded."""
        try:
            from PIL import Image
        except ImportError:
            raise BadImage(self.place, 'needs the package Pillow here: `pip install "ir3de[images]"`') from None
        if not isinstance(self._file, bytes):
            return self._file
        try:
            return Image.open(BytesIO(self._file), formats=_FORMATS)
        except Image.DecompressionBombError:
            raise BadImage(self.place, "has more pixels than are decoded: make it smaller", True) from None
        except Exception:
            raise BadImage(self.place, f"is none that can be read: {_GOES}") from None


def picture_of(part: Message, place: str) -> Picture:
    """The image of a part of a message: OpenAI's `image_url` or `input_image`, Anthropic's `image`, or that of
    transformers, whose `image` is one of Pillow.

    Args:
        part (`dict`): that [`is_image`] takes for an image.
        place (`str`): where it is in the conversation, for messages.

    Raises:
        BadImage: the image is not in it, or not in base64.
    """
    given = next((part[key] for key in _HOLDERS if part.get(key) is not None), None)
    if isinstance(given, dict):
        if given.get("type") == "base64":  # Anthropic's
            return Picture(_decoded(given.get("data"), place), place)
        given = given.get("url")
    if isinstance(given, Picture):
        return given
    if given is not None and hasattr(given, "getexif"):
        return Picture(given, place)
    head = _DATA.match(given[:_LONGEST_HEAD]) if isinstance(given, str) else None
    if head is None or not isinstance(given, str):
        named = isinstance(given, str) and "://" in given[:_LONGEST_HEAD]
        why = "is an address, and none is fetched here: send the image itself" if named else "is missing"
        raise BadImage(place, f"{why}; {_GOES}", elsewhere=named)
    return Picture(_decoded(given[head.end() :], place), place)


def _decoded(text: Any, place: str) -> bytes:
    try:
        # Lines, as the command `base64` makes them, go; anything else that is no base64 does not.
        return base64.b64decode("".join(text.split()), validate=True)
    except (AttributeError, binascii.Error, ValueError):
        raise BadImage(place, f"is not in base64: {_GOES}") from None


def with_pictures(prompt: Prompt, name: str = "messages") -> Prompt:
    """A prompt whose images are all read: each is a part `{"type": "image", "image": Picture}`.

    Args:
        prompt (`str | list[dict]`): text or chat.
        name (`str`): of its messages, for the places of images.

    Raises:
        BadImage: one of them is not there, or not in base64.
    """
    if isinstance(prompt, str) or not has_images(prompt):
        return prompt
    return [
        {**message, "content": _read(message["content"], f"{name}[{index}].content")}
        for index, message in enumerate(prompt)
    ]


def _read(content: Any, name: str) -> Any:
    if not isinstance(content, (list, tuple)):
        return content
    return [
        image_part(picture_of(part, f"{name}[{index}]")) if is_image(part) else part
        for index, part in enumerate(content)
    ]


def image_part(image: Picture | Image) -> Message:
    """The part of a message that an image is. It holds nothing else: of an `url` or a `path` a processor would read."""
    return {"type": "image", "image": image}


def has_images(prompt: Prompt) -> bool:
    """Whether there is something to see in a prompt."""
    return not isinstance(prompt, str) and next(_parts(prompt), None) is not None


def pictures_in(prompt: Prompt) -> list[Picture]:
    """The images of a prompt, which are all read."""
    return [] if isinstance(prompt, str) else [part["image"] for part in _parts(prompt)]


def with_pictures_opened(chat: Sequence[Message]) -> list[Message]:
    """A chat whose images, which are all read, are Pillow's, as a processor takes them."""
    return [{**message, "content": _opened(message["content"])} for message in chat]


def _opened(content: Any) -> Any:
    if not isinstance(content, list):
        return content
    return [image_part(part["image"].opened()) if is_image(part) else part for part in content]


def check_pictures(pictures: Sequence[Picture], most: int | None = None, pixels: int | None = None) -> None:
    """Checks that the images of a conversation are not too many or too large, then that each can be decoded.

    Args:
        pictures (`Sequence[Picture]`): of one conversation.
        most (`int`, *optional*): how many go.
        pixels (`int`, *optional*): of all together; of one never more than Pillow finds safe.

    Raises:
        BadImage: the first that is too many, too large or broken.
    """
    if most is not None and len(pictures) > most:
        raise BadImage(pictures[most].place, f"is one too many: at most {most} go", elsewhere=True)
    total = 0
    for picture in pictures:
        own = picture.pixels
        total += own
        if pixels is not None and total > pixels:
            why = f"makes it {total:,} pixels in all; at most {pixels:,} go: make it smaller"
            raise BadImage(picture.place, why, elsewhere=True)
        if own > _most_pixels():
            why = f"has {own:,} pixels, too many to decode: make it smaller"
            raise BadImage(picture.place, why, elsewhere=True)
    for picture in pictures:
        picture.opened()


def _most_pixels() -> float:
    """Of one image: what Pillow warns of is an error here."""
    from PIL import Image

    return Image.MAX_IMAGE_PIXELS or math.inf


def _parts(prompt: Sequence[Message]) -> Iterator[Message]:
    """The parts of a chat's messages that are images."""
    for message in prompt:
        content = message["content"]
        if isinstance(content, (list, tuple)):
            yield from (part for part in content if is_image(part))
