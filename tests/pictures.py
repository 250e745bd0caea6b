"""Images for the tests, and the forms that they are sent in."""

from __future__ import annotations

import base64
from io import BytesIO
from typing import Any

import torch
from PIL import Image


def picture(seed: int, size: tuple[int, int] = (20, 12), mode: str = "RGB") -> Image.Image:
    """An image of random colours."""
    shape = (size[1], size[0], len(mode))
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Image.frombytes(mode, size, pixels.numpy().tobytes())


def file_of(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    data = BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def url_of(image: Image.Image, kind: str = "PNG", **options: Any) -> str:
    return f"data:image/{kind.lower()};base64,{base64_of(file_of(image, kind, **options))}"


def part_of(image: Image.Image, kind: str = "PNG", **options: Any) -> dict[str, Any]:
    """As OpenAI's chat completions have it."""
    return {"type": "image_url", "image_url": {"url": url_of(image, kind, **options)}}


def chat(*parts: Any) -> list[dict[str, Any]]:
    """A message of texts and images."""
    said = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return [{"role": "user", "content": said}]


FIRST, SECOND = picture(1), picture(2)
