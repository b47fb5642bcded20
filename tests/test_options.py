"""Options: parsing, precedence, refusals, and that a value written into a URI means the same when it is read."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import litevfs
from litevfs import options
from litevfs.errors import OptionError
from litevfs.options import OPTION_NAMES, SPECS, Options, first_of_equals, to_uri_text
from litevfs.texts import parse_queries, parse_replica_url, parse_text
from litevfs.units import parse_bool, parse_duration_s, parse_size_bytes


def collect(uri=None, keywords=None, environ=None) -> Options:
    return Options.collect(uri or {}, keywords or {}, environ or {})


# --- where values come from -------------------------------------------------------------------------------------------


@pytest.mark.plan("K01")
def test_the_defaults_are_those_of_the_documentation():
    options = collect()
    assert (options.poll_interval_s, options.cache_size_bytes) == (1.0, 10_000_000)
    assert (options.open_timeout_s, options.read_timeout_s, options.prefetch) == (10.0, 30.0, True)
    assert (options.verify, collect(uri={"verify": "true"}).verify) == (False, True)
    assert options.is_polling
    assert not options.is_fixed


def test_an_unknown_variable_of_the_environment_is_a_warning_once(caplog):
    known = dict.fromkeys(("LITEVFS_SFTP_PASSWORD", "LITEVFS_TEST_S3_SERVER", "LITEVFS_KEEP_OPEN", "OTHER"), "1")
    for _ in range(2):
        collect(environ=known | {"LITEVFS_CACHE_SIZ": "secret", "LITEVFS_QQQ": ""})
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert "LITEVFS_CACHE_SIZ is unknown, so it has no effect; hint: did you mean LITEVFS_CACHE_SIZE?" in caplog.text
    assert "LITEVFS_QQQ is unknown, so it has no effect; hint: known: LITEVFS_REPLICA_URL, " in caplog.text
    assert "secret" not in caplog.text


def test_the_variables_of_passwords_are_known():
    sources = " ".join(path.read_text() for path in Path(litevfs.__file__).parent.rglob("*.py"))
    named = set(re.findall(r"\bLITEVFS_[A-Z_]+[A-Z]\b", sources)) - {"LITEVFS_CI_CACHE"}
    assert named <= {*options._VARIABLES}


def test_uri_wins_over_keyword_over_environment_over_default():
    sources = [
        ({"poll_interval": "1ms"}, {"poll_interval": "2ms"}, {"LITEVFS_POLL_INTERVAL": "3ms"}, 0.001),
        ({}, {"poll_interval": "2ms"}, {"LITEVFS_POLL_INTERVAL": "3ms"}, 0.002),
        ({}, {}, {"LITEVFS_POLL_INTERVAL": "3ms"}, 0.003),
        ({}, {"poll_interval": None}, {"LITEVFS_POLL_INTERVAL": ""}, 1.0),
    ]
    assert [collect(*source[:3]).poll_interval_s for source in sources] == [pytest.approx(s[3]) for s in sources]


def test_litestreams_own_environment_variables_count_after_ours():
    assert collect(environ={"LITESTREAM_REPLICA_URL": "memory://a"}).replica_url == "memory://a"
    both = {"LITESTREAM_REPLICA_URL": "memory://a", "LITEVFS_REPLICA_URL": "memory://b"}
    assert collect(environ=both).replica_url == "memory://b"


@pytest.mark.plan("K01")
@pytest.mark.parametrize("name", ["mode", "cache", "immutable", "nolock", "psow", "modeof", "vfs"])
def test_parameters_of_sqlite_itself_are_passed_over(name):
    assert collect({name: "whatever"}) == collect()


@pytest.mark.plan("K01")
@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("poll_intervall", "poll_interval"),
        ("cachesize", "cache_size"),
        ("tx_id", "txid"),
        ("TXID", "txid"),
        ("REPLICA-URL", "replica_url"),
        ("Mode", "mode"),
        ("pol", "poll_interval"),  # what it begins counts more than what it is like
        ("CACHE_S", "cache_size"),
    ],
)
def test_an_unknown_uri_parameter_is_refused_with_the_nearest_name(wrong, near):
    with pytest.raises(OptionError) as caught:
        collect({wrong: "1"})
    assert f"did you mean {near}?" in str(caught.value)
    assert repr(wrong) in str(caught.value)


@pytest.mark.parametrize("name", ["region", "endpoint", "replica"])
def test_what_a_replica_url_lost_at_its_ampersand_says_how_to_write_it(name):
    with pytest.raises(OptionError, match=rf"unknown URI parameter '{name}'.* encode a replica URL .*quote\(url"):
        collect({"replica_url": "s3://bucket/app?forcePathStyle=true", name: "x"})


@pytest.mark.parametrize("name", OPTION_NAMES)
def test_an_option_that_a_uri_names_twice_is_refused(name):
    with pytest.raises(OptionError, match=f"{name} is given more than once"):
        first_of_equals([(name, "1"), ("mode", "ro"), (name, "1")])


def test_of_sqlites_own_parameters_the_first_counts_as_for_sqlite():
    assert first_of_equals([("mode", "ro"), ("txid", "5"), ("mode", "rw")]) == {"mode": "ro", "txid": "5"}


@pytest.mark.plan("K01")
def test_an_unknown_option_unlike_any_other_is_refused_with_all_names():
    with pytest.raises(OptionError) as caught:
        collect(keywords={"zzzzzz": 1})
    assert all(name in str(caught.value) for name in OPTION_NAMES)


@pytest.mark.plan("K01")
@pytest.mark.parametrize(
    ("uri", "keywords", "environ", "source"),
    [
        ({"cache_size": "lots"}, {}, {}, "URI parameter cache_size"),
        ({}, {"cache_size": "lots"}, {}, "option cache_size"),
        ({}, {}, {"LITEVFS_CACHE_SIZE": "lots"}, "environment variable LITEVFS_CACHE_SIZE"),
    ],
)
def test_a_bad_value_says_where_it_was_given(uri, keywords, environ, source):
    with pytest.raises(OptionError) as caught:
        collect(uri, keywords, environ)
    assert str(caught.value).startswith(source)
    assert "hint" in str(caught.value)


@pytest.mark.plan("K01")
@pytest.mark.parametrize("bad", ["", "0", "xyz", "1" * 17, 0, 2**64, -1, True, 1.5, b"1", []])
def test_what_is_no_txid_is_refused(bad):
    with pytest.raises(OptionError):
        collect(keywords={"txid": bad})


def test_a_txid_in_text_is_hexadecimal_and_a_number_is_itself():
    assert collect(keywords={"txid": "10"}).txid == 16
    assert collect(keywords={"txid": 10}).txid == 10
    assert collect({"txid": "00000000000000fF"}).txid == 255


@pytest.mark.plan("K01")
def test_txid_and_timestamp_together_make_no_sense():
    with pytest.raises(OptionError, match="both txid and timestamp"):
        collect({"txid": "1", "timestamp": "2026-01-01T00:00:00Z"})


@pytest.mark.parametrize("fixed", [{"txid": "1"}, {"timestamp": "2026-01-01T00:00:00Z"}])
def test_a_fixed_view_does_not_poll(fixed):
    assert collect(fixed).is_fixed
    assert not collect(fixed).is_polling


@pytest.mark.parametrize("value", ["0", -1, "nan", "inf", "many", True])
def test_a_rate_is_a_number_above_0(value):
    with pytest.raises(OptionError, match="max_requests_per_s: not a number above 0"):
        collect(keywords={"max_requests_per_s": value})


def test_an_interval_of_zero_is_not_polling():
    assert not collect({"poll_interval": "0"}).is_polling


# --- round trip -------------------------------------------------------------------------------------------------------

_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)
_VALUES = {
    "replica_url": _TEXT.filter(bool),
    "hydration_path": _TEXT,
    "cache_dir": _TEXT,
    "max_requests_per_s": st.floats(0.001, 1e6) | st.integers(1, 10**6),
    "warm": st.lists(st.sampled_from(["SELECT 1", "SELECT ';' -- a;b", 'SELECT "x;" /* ; */', "SELECT `a;b`, [c;d]"])),
    "txid": st.integers(1, 2**64 - 1),
    "timestamp": st.integers(0, 253402300799_999).map(
        lambda ms: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)
    ),
}


def _values_of(spec):
    if spec.name in _VALUES:
        return _VALUES[spec.name]
    if spec.parse is parse_duration_s:
        return st.floats(0, 1e9).map(lambda s: round(s, 6)) | st.integers(0, 10**6)
    if spec.parse is parse_size_bytes:
        return st.integers(0, 2**50)
    if spec.parse is parse_bool:
        return st.booleans()
    raise AssertionError(f"no strategy for {spec.name}")


@given(st.data())
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
@pytest.mark.slow
def test_a_value_written_into_a_uri_is_read_as_the_same_value(spec, data):
    value = data.draw(_values_of(spec))
    expected = getattr(collect(keywords={spec.name: value}), spec.field_name)
    read = getattr(collect({spec.name: to_uri_text(spec.name, value)}), spec.field_name)
    if spec.parse is parse_duration_s:
        assert read == pytest.approx(expected, abs=1e-9)
        assert (read == 0) == (expected == 0)  # 0 is a switch
    else:
        assert read == expected


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
@pytest.mark.parametrize(
    "bad", ["a\0b", "\udcff", b"1", object(), "x" * 100_000], ids=["NUL", "bytes", "b", "o", "long"]
)
def test_a_value_of_no_kind_is_refused_in_few_words(spec, bad):
    if spec.parse in (parse_text, parse_replica_url, parse_queries) and bad == "x" * 100_000:
        bad = [bad.encode()]  # a long text is one
    with pytest.raises(OptionError) as caught:
        collect(keywords={spec.name: bad})
    assert str(caught.value).startswith(f"option {spec.name}: ")
    assert len(str(caught.value)) < 500


def test_blank_queries_are_none():
    assert [collect(keywords={"warm": text}).warm for text in ("", " ", "\n", ";", [" ", ";"])] == [""] * 5


@given(st.floats(0, 1e9, exclude_min=True))
def test_no_positive_duration_becomes_zero_in_a_uri(seconds):
    assert parse_duration_s(to_uri_text("poll_interval", seconds)) > 0


def test_every_option_is_described_and_reachable_from_the_environment():
    for spec in SPECS:
        assert spec.help
        assert f"LITEVFS_{spec.name.upper()}" in spec.environment


@pytest.mark.plan("K09")
def test_the_options_do_not_show_the_key_in_a_replica_url():
    options = collect({"replica_url": "s3://bucket/path?sseCustomerKey=c2VjcmV0LWtleQ%3D%3D"})
    assert "c2VjcmV0" not in repr(options)
    assert "c2VjcmV0" not in str(options)


@pytest.mark.plan("K01")
@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"poll_intervall": 1}, "poll_interval"),
        ({"cache_size": "many"}, "not a size"),
    ],
)
def test_connect_refuses_bad_options_before_it_touches_the_storage(options, text, tmp_path):
    with pytest.raises((OptionError, TypeError), match=text):
        litevfs.connect(str(tmp_path / "nowhere"), **options)
    with pytest.raises(OptionError):
        litevfs.register("litestream", nonsense=1)


@pytest.mark.parametrize(
    ("uri", "keywords", "environ", "expected"),
    [
        ({"txid": "1"}, {"timestamp": "2026-01-01"}, {"LITEVFS_TIMESTAMP": "2026-01-01"}, 1),
        ({}, {"txid": 2, "timestamp": None}, {"LITEVFS_TIMESTAMP": "2026-01-01"}, 2),
        ({"timestamp": "2026-01-01"}, {"txid": 2}, {"LITEVFS_TXID": "3"}, None),
        ({}, {"txid": None}, {"LITEVFS_TXID": "3"}, 3),
    ],
)
def test_a_state_is_fixed_by_the_first_source_that_names_one_in_either_form(uri, keywords, environ, expected):
    options = Options.collect(uri, keywords, environ)
    assert options.txid == expected
    assert (options.timestamp_ms is None) == (expected is not None)


@pytest.mark.parametrize(
    "options",
    [
        {"replica_url": "memory://b"},
        {"poll_interval_s": 0.0},
        {"hydration_enabled": True},
        {"cache_dir": "/x"},
        {"read_timeout_s": 1.0},
        {"prefetch": False},
        {"verify": True},
    ],
)
def test_connections_that_differ_in_what_makes_a_replica_have_one_of_their_own(options):
    assert Options(**options).of_replica() != Options().of_replica()


@pytest.mark.parametrize(
    "options",
    [
        {"poll_interval_s": 0.1},
        {"cache_size_bytes": 1},
        {"cache_dir_size_bytes": 1},  # there is no folder
        {"hydration_path": "/x"},  # nor a hydrated file
        {"txid": 7},
        {"timestamp_ms": 7},
        {"open_timeout_s": 1.0},
        {"max_staleness_s": 1.0},
        {"warm": "SELECT 1"},
    ],
)
def test_connections_that_differ_in_what_is_their_own_share_a_replica(options):
    assert Options(**options).of_replica() == Options().of_replica()


def test_a_part_of_a_replica_counts_where_there_is_that_part():
    hydrated = Options(hydration_enabled=True)
    assert replace(hydrated, hydration_path="/x").of_replica() != hydrated.of_replica()
    kept = Options(cache_dir="/x")
    assert replace(kept, cache_dir_size_bytes=1).of_replica() != kept.of_replica()
