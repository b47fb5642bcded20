"""Times as storages keep them beside a file: RFC 3339 with fractions, as Go writes them."""

from __future__ import annotations

from datetime import UTC, datetime


def rfc3339(timestamp_ms: int) -> str:
    """A time in milliseconds since the Unix epoch as Go's time.RFC3339Nano writes it: UTC, no zeros at the end."""
    seconds, millis = divmod(timestamp_ms, 1000)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return text + f".{millis:03d}".rstrip("0").rstrip(".") + "Z"


def iso_ms(text: str, default: int = 0) -> int:
    """Such a time in milliseconds since the Unix epoch; `default` for a text that is no time."""
    try:
        return int(datetime.fromisoformat(text).timestamp() * 1000)
    except ValueError:
        return default
