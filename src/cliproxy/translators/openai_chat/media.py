"""Pictures, sounds and files: what chat completions call them, and what the hub does."""

from __future__ import annotations

from cliproxy.translators.conversation import Image

MEDIA_TYPE_OF_AUDIO = {"wav": "audio/wav", "mp3": "audio/mpeg", "flac": "audio/flac", "ogg": "audio/ogg", "aac": "audio/aac", "m4a": "audio/mp4"}


def image_of(url: str, *, detail: str = "", at: str = "", cache: bool = False) -> Image | None:
    """Return the picture that `url` is or names, or None if it is neither inline base64 nor on the web."""
    if url.startswith("data:"):
        media_type, data = data_of(url)
        return Image(media_type, data, detail=detail, at=at, cache=cache) if data else None
    return Image(url=url, detail=detail, at=at, cache=cache) if is_on_the_web(url) else None


def data_of(url: str) -> tuple[str, str]:
    """Return media type and base64 of a `data:` URL (RFC 2397); both empty if it has none."""
    head, comma, data = url.removeprefix("data:").partition(",")
    kind, _, encoding = head.rpartition(";")
    if not comma or encoding.lower() != "base64" or "/" not in kind:
        return "", ""
    return kind.partition(";")[0].lower(), data


def is_on_the_web(url: str) -> bool:
    return url[:8].lower().startswith(("http://", "https://"))


def url_of(image: Image) -> str:
    return image.url or f"data:{image.media_type};base64,{image.data}"
