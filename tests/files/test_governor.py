"""The bound on what is read ahead in vain holds after any sequence of requests and uses."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from litevfs.files.governor import FREE_BYTES, MAX_CREDIT_BYTES, Governor

_size = st.integers(0, 6_000_000)
_steps = st.lists(st.tuples(st.sampled_from(["ahead", "ahead", "fail", "take", "need"]), _size), max_size=80)


@given(_steps)
def test_what_is_not_used_stays_below_the_free_bytes_and_what_was_used(steps):
    governor = Governor()
    outstanding: list[int] = []
    for step, size in steps:
        if step == "ahead":
            if governor.grant(size):
                outstanding.append(size)
        elif step == "need":
            governor.need(size)
        elif outstanding:
            (governor.take if step == "take" else governor.give_back)(outstanding.pop(size % len(outstanding)))
        assert governor.unused == sum(outstanding)
        assert governor.unused <= FREE_BYTES + governor.used + governor.needed


def test_a_plan_that_is_right_is_never_held_back():
    governor = Governor()
    for _ in range(1000):
        assert governor.grant(4_000_000)
        governor.take(4_000_000)


def test_what_was_used_long_ago_is_no_licence_for_ever():
    governor = Governor()
    governor.need(1 << 40)
    assert sum(governor.grant(1_000_000) for _ in range(100)) == MAX_CREDIT_BYTES // 1_000_000


def test_reading_what_is_needed_brings_the_credit_back():
    governor = Governor()
    while governor.grant(65536):
        pass
    assert not governor.grant(65536)
    governor.need(65536)
    assert governor.grant(65536)
