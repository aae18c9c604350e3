"""Pictures, sounds and files: what Gemini calls them, and what the hub does. Base64 comes out in the standard alphabet, padded."""

from __future__ import annotations

import base64
from urllib.parse import urlsplit

from cliproxy.translators.conversation import Audio, Document, Image
from cliproxy.translators.gemini_generate.wire import Blob, FileData
from cliproxy.translators.policy_clients import FromGemini, GeminiField
from cliproxy.translators.policy_targets import HubField, ToGemini

# Google's servers fetch public https addresses (Gemini API, "File input methods"). These hosts are something else: files that Google keeps, and videos.
_FILES_OF_GOOGLE = ("generativelanguage.googleapis.com", "storage.googleapis.com", "storage.cloud.google.com")
_VIDEOS = ("youtube.com", "youtu.be")

# Types by the end of an address, for clients that name none. No guess beyond these.
_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
    ".webp": "image/webp",
    ".heic": "image/heic",
    ".heif": "image/heif",
    ".pdf": "application/pdf",
    ".txt": "text/plain",
    ".html": "text/html",
    ".csv": "text/csv",
    ".md": "text/markdown",
    ".json": "application/json",
}
_TO_STANDARD = str.maketrans("-_", "+/")


def standard_base64(data: str) -> str:
    """Return `data` in the alphabet that other vendors take. Google takes and its SDKs send the URL-safe one too (RFC 4648 §5), with or without padding."""
    if "-" in data or "_" in data:
        data = data.translate(_TO_STANDARD)
    return data + "=" * (-len(data) % 4)


def type_of_address(url: str) -> str:
    """Return the media type that the end of the address stands for, empty if it tells none."""
    try:
        path = urlsplit(url).path
    except ValueError:
        return ""
    dot = path.rfind(".")
    return _TYPES.get(path[dot:].lower(), "") if dot >= 0 else ""


def media_of_blob(blob: Blob, at: str) -> Image | Audio | Document:
    """Return the hub's part. Raises `UnsupportedFeature` for what it has no place for (videos)."""
    kind = blob.mime_type.lower()
    data = standard_base64(blob.data)
    if kind.startswith("image/"):
        return Image(media_type=kind, data=data, at=at)
    if kind.startswith("audio/"):
        return Audio(kind, data, at)
    if kind.startswith("text/") or kind in ("application/pdf", "application/json"):
        return Document(media_type=kind, data=data, title=blob.display_name or "", at=at)
    raise FromGemini.refusal(GeminiField.MEDIA_TYPE, at)


def media_of_file(file: FileData, at: str) -> Image | Document:
    """Return the hub's part for an address that anybody can fetch. Raises `UnsupportedFeature` for files that the provider keeps, videos and sounds."""
    try:
        address = urlsplit(file.file_uri)
        host = (address.hostname or "").lower()
    except ValueError:
        raise FromGemini.refusal(GeminiField.ADDRESS, at) from None
    if address.scheme != "https" or any(host == known or host.endswith("." + known) for known in (*_FILES_OF_GOOGLE, *_VIDEOS)):
        raise FromGemini.refusal(GeminiField.ADDRESS, at)
    kind = (file.mime_type or type_of_address(file.file_uri)).lower()
    if kind.startswith("image/"):
        return Image(media_type=kind, url=file.file_uri, at=at)
    if kind.startswith("text/") or kind == "application/pdf":
        return Document(media_type=kind, url=file.file_uri, title=file.display_name or "", at=at)
    raise FromGemini.refusal(GeminiField.MEDIA_TYPE, at)


def blob_of(part: Image | Audio | Document) -> dict[str, object]:
    """Return the part as Gemini's `inlineData` or `fileData`. Raises `UnsupportedFeature` for an address that Google does not fetch."""
    if isinstance(part, Document) and part.text:
        data = base64.b64encode(part.text.encode()).decode()
        return {"inlineData": {"mimeType": part.media_type or "text/plain", "data": data}}
    if part.data:
        default = "image/png" if isinstance(part, Image) else "application/pdf"
        return {"inlineData": {"mimeType": part.media_type or default, "data": part.data}}
    url = "" if isinstance(part, Audio) else part.url
    if not url.startswith("https://"):
        raise ToGemini.refusal(HubField.ADDRESS, part.at)
    kind = part.media_type or type_of_address(url)
    return {"fileData": {"fileUri": url, "mimeType": kind} if kind else {"fileUri": url}}
