"""Durations, sizes, times and truth values: what is read, what is refused, and what is printed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from litevfs.errors import OptionError
from litevfs.units import (
    format_bytes,
    format_timestamp,
    parse_bool,
    parse_duration_s,
    parse_moment_ms,
    parse_size_bytes,
    parse_timestamp_ms,
)

NOW_MS = 1_800_000_000_000


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1),
        ("250ms", 0.25),
        ("1h30m", 5400),
        ("1.5m", 90),
        (".5s", 0.5),
        ("2d", 172800),
        ("7us", 7e-6),
        ("7µs", 7e-6),
        ("9ns", 9e-9),
        ("0", 0),
        ("12", 12),
        ("0.25", 0.25),
        (" 3s ", 3),
        (3, 3),
        (0.5, 0.5),
    ],
)
def test_durations_are_read_in_go_notation_and_in_seconds(text, seconds):
    assert parse_duration_s(text) == pytest.approx(seconds)


@pytest.mark.plan("K01")
@pytest.mark.parametrize(
    "bad",
    [
        "",
        "s",
        "1x",
        "-1s",
        -1,
        "1s!",
        "1 s x",
        "1e3s",
        "nan",
        "inf",
        float("nan"),
        True,
        None,
        [],
        "36501d",
        1e300,
        10**400,
    ],
)
def test_what_is_no_duration_is_refused(bad):
    with pytest.raises(OptionError, match="not a duration"):
        parse_duration_s(bad)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("10MB", 10_000_000),
        ("64KiB", 65536),
        ("1kb", 1000),
        ("1.5 GiB", 1610612736),
        ("1G", 2**30),
        ("7", 7),
        ("7B", 7),
        (0, 0),
        (5, 5),
    ],
)
def test_sizes_are_read_in_decimal_and_binary_units(text, size):
    assert parse_size_bytes(text) == size


@pytest.mark.plan("K01")
@pytest.mark.parametrize("bad", ["", "MB", "-1", -1, "1XB", "1e3", 1.5, True, None, "9" * 400, "9" * 400 + "MB"])
def test_what_is_no_size_is_refused(bad):
    with pytest.raises(OptionError, match="not a size"):
        parse_size_bytes(bad)


@pytest.mark.parametrize("word", ["1", "t", "TRUE", "yes", "On", True])
def test_words_for_true(word):
    assert parse_bool(word) is True


@pytest.mark.parametrize("word", ["0", "f", "False", "NO", "off", False])
def test_words_for_false(word):
    assert parse_bool(word) is False


@pytest.mark.parametrize("bad", ["", "maybe", "2", None])
def test_other_words_are_no_truth_value(bad):
    with pytest.raises(OptionError, match="not a truth value"):
        parse_bool(bad)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-01-31T12:00:00Z", datetime(2026, 1, 31, 12, tzinfo=UTC)),
        ("2026-01-31t12:00:00z", datetime(2026, 1, 31, 12, tzinfo=UTC)),  # RFC 3339, 5.6
        ("2026-01-31T12:00:00.250Z", datetime(2026, 1, 31, 12, 0, 0, 250000, tzinfo=UTC)),
        ("2026-01-31T14:00:00+02:00", datetime(2026, 1, 31, 12, tzinfo=UTC)),
        ("2026-01-31 12:00:00", datetime(2026, 1, 31, 12, tzinfo=UTC)),
        (datetime(2026, 1, 31, 12), datetime(2026, 1, 31, 12, tzinfo=UTC)),
        (datetime(2026, 1, 31, 7, tzinfo=timezone(timedelta(hours=-5))), datetime(2026, 1, 31, 12, tzinfo=UTC)),
    ],
)
def test_times_without_a_zone_are_utc(text, moment):
    assert (
        Fraction(parse_timestamp_ms(text), 1000)
        == Fraction((moment - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(milliseconds=1)) / 1000
    )


def test_a_time_that_counts_from_now_is_no_option_and_says_where_it_is_one():
    with pytest.raises(OptionError, match="for PRAGMA litestream_time and the commands"):
        parse_timestamp_ms("5 minutes ago")


@given(st.integers(-62135596800_000, 253402300799_999))
def test_a_time_that_was_printed_is_read_as_the_same_millisecond(timestamp_ms):
    assert parse_timestamp_ms(format_timestamp(timestamp_ms)) == timestamp_ms


@given(st.integers(-(2**63), 2**63 - 1))
def test_any_timestamp_an_ltx_header_can_hold_can_be_printed(timestamp_ms):
    assert format_timestamp(timestamp_ms).endswith("Z")


@pytest.mark.parametrize(
    ("words", "moment_ms"),
    [
        ("now", NOW_MS),
        ("5 minutes ago", NOW_MS - 300_000),
        ("1 minute ago", NOW_MS - 60_000),
        ("90 Seconds ago", NOW_MS - 90_000),
        ("1.5 hours ago", NOW_MS - 5_400_000),
        ("2 days ago", NOW_MS - 172_800_000),
        ("1 week ago", NOW_MS - 604_800_000),
        ("250 ms ago", NOW_MS - 250),
        ("-5m", NOW_MS - 300_000),
        ("yesterday", NOW_MS - 86_400_000),
        ("1970-01-01T00:00:02Z", 2000),
    ],
)
def test_words_for_a_time(words, moment_ms):
    assert parse_moment_ms(words, NOW_MS) == moment_ms


@pytest.mark.parametrize("words", ["", "soon", "5 parsecs ago", "5 months ago", "minutes ago", "-5", "latest-ish"])
def test_other_words_are_refused(words):
    with pytest.raises(OptionError):
        parse_moment_ms(words, NOW_MS)


def test_sizes_are_written_in_powers_of_1000() -> None:
    assert [format_bytes(n) for n in (0, 999, 1000, 999_999, 1_500_000, 2e9, 3e12, 4e15)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "1.0 MB",
        "1.5 MB",
        "2.0 GB",
        "3.0 TB",
        "4000.0 TB",
    ]
