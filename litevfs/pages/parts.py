"""Interior pages of a B-tree without some of their children: so a reader begins where another one has come to. Pure.

Layout: https://www.sqlite.org/fileformat2.html#b_tree_pages. What the cells left out hold stays on the page, unused.
"""

from __future__ import annotations

_COUNT, _RIGHT, _POINTERS = slice(3, 5), slice(8, 12), 12
"""On an interior page: the number of its cells, its last child, and where the pointers to the cells begin."""
_CHILD, _POINTER = 4, 2
"""Bytes of a child's number, with which a cell begins, and of a pointer."""


def from_child_on(page: bytes, position: int) -> bytes:
    """Without the children before that position; a page has two at least, so the last one comes twice if it is left."""
    count = int.from_bytes(page[_COUNT])
    first = min(position, count - 1)
    part = bytearray(page)
    part[_COUNT] = (count - first).to_bytes(2)
    part[_POINTERS : _POINTERS + _POINTER * (count - first)] = page[_place(first) : _place(count)]
    if position > first:
        cell = _cell(page, first)
        part[cell : cell + _CHILD] = page[_RIGHT]
    return bytes(part)


def up_to_child(page: bytes, position: int) -> bytes:
    """Without the children after that position; the first one comes twice if it is left alone."""
    count = int.from_bytes(page[_COUNT])
    if position >= count:
        return page
    cell = _cell(page, position)
    part = bytearray(page)
    part[_COUNT] = max(position, 1).to_bytes(2)
    part[_RIGHT] = page[cell : cell + _CHILD]
    return bytes(part)


def _place(number: int) -> int:
    return _POINTERS + _POINTER * number


def _cell(page: bytes, number: int) -> int:
    return int.from_bytes(page[_place(number) : _place(number + 1)])
