"""Cutting the frames of a page block apart; what is in a frame is tested with the decoder."""

from __future__ import annotations

from pathlib import Path

import pytest

from litevfs.errors import LTXFormatError
from litevfs.ltx import decode_file
from litevfs.ltx.format import HEADER_SIZE
from litevfs.ltx.frame import read_frames

FILES = [
    *sorted((Path(__file__).parents[1] / "fixtures/orders/replica/ltx/0").glob("*.ltx")),
    Path(__file__).parent / "written_by_go" / "v0.5.1.ltx",  # LZ4 frames, which have no size in front
]


@pytest.mark.parametrize("at_once", [1, 11, 100, 4096, 1 << 18])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_frames_are_those_of_the_page_index_however_much_is_read_at_once(path, at_once):
    data = path.read_bytes()
    file = decode_file(data)
    frames = read_frames(lambda offset, size: data[offset : offset + size], HEADER_SIZE, at_once)
    assert list(frames) == [
        (pgno, data[offset : offset + size])
        for pgno, offset, size in zip(file.index.pgnos, file.index.offsets, file.index.sizes, strict=True)
    ]


@pytest.mark.parametrize("missing", [1, 6, 7, 40])
def test_a_page_block_without_its_end_is_an_error(missing):
    data = FILES[0].read_bytes()
    file = decode_file(data)
    end = HEADER_SIZE + int(file.index.sizes.sum()) + 6
    with pytest.raises(LTXFormatError):
        list(read_frames(lambda offset, size: data[: end - missing][offset : offset + size], HEADER_SIZE))
