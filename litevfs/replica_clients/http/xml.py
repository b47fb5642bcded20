"""Parses XML from a server, and refuses entities, which could grow in the parser. Knows no storage."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from litevfs.errors import StorageError


def parse_xml(data: bytes, endpoint: str) -> ET.Element:
    """The root of a document. Raises StorageError for a text that is no XML, and for one that defines entities."""
    try:
        if b"<!DOCTYPE" in data[:4096]:
            raise ValueError("a document type")
        return ET.fromstring(data)
    except (ET.ParseError, ValueError) as exc:
        raise StorageError(f"{endpoint} sent no listing: {exc}", hint="is a proxy in between?") from exc
