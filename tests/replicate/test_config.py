"""Litestream's configuration file: what each key means here, what is named as not done, and how mistakes are told."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

pytest.importorskip("yaml", reason="needs the extra `config` (pip install 'litevfs[config]')")

from litevfs.errors import OptionError
from litevfs.replicate.config.model import Config
from litevfs.replicate.config.reading import read_config

_PACKAGES = {"gs": ("google.auth", "gs"), "sftp": ("paramiko", "sftp"), "nats": ("nats", "nats")}


def config_of(folder: Path, text: str, **options: bool) -> Config:
    path = folder / "litestream.yml"
    path.write_text(textwrap.dedent(text))
    return read_config(path, **options)


def mistakes(folder: Path, text: str) -> list[str]:
    """The mistakes of a file, without its folder."""
    with pytest.raises(OptionError) as caught:
        config_of(folder, text)
    return str(caught.value).replace(f"{folder}/litestream.yml:", "").split("; ")


def test_a_file_with_all_that_is_done_means_what_it_says(tmp_path: Path):
    config = config_of(
        tmp_path,
        """\
        addr: ":9090"
        exec: "python app.py"
        logging: {level: warn, type: text, stderr: true}
        shutdown-timeout: 25s
        access-key-id: KEY
        secret-access-key: SECRET
        l0-retention: 10m
        levels:
          - interval: 10s
          - interval: 1m
        snapshot:
          interval: 12h
          retention: 48h
        retention: {enabled: false}
        dbs:
          - path: /data/app.db
            monitor-interval: 250ms
            min-checkpoint-page-count: 500
            truncate-page-n: 0
            restore-if-db-not-exists: true
            replica:
              type: s3
              bucket: backups
              path: app
              region: eu-central-1
              endpoint: http://localhost:9000
              storage-class: STANDARD_IA
          - dir: /data/tenants
            pattern: "*.db"
            recursive: true
            watch: true
            replica:
              url: s3://backups/tenants
              sync-interval: 5s
        """,
    )
    assert config.warnings == ()
    assert (config.metrics_addr, config.exec, config.log_level) == (":9090", "python app.py", "warn")
    assert config.shutdown_timeout_s == 25.0
    app, tenants = config.entries
    assert (app.path, app.pattern, app.restore_if_missing) == (Path("/data/app.db"), None, True)
    client = app.places[0].open()
    assert client.url == (
        "s3://backups/app?endpoint=http://localhost:9000&region=eu-central-1&storageClass=STANDARD_IA"
    )
    client.close()
    assert (app.places[0].access_key_id, app.places[0].secret_access_key) == ("KEY", "SECRET")
    assert "SECRET" not in repr(config)
    maintenance = app.options["maintenance"]
    assert maintenance.levels == {1: 10.0, 2: 60.0}
    assert (maintenance.snapshot_interval_s, maintenance.snapshot_retention_s) == (43_200.0, 172_800.0)
    assert (maintenance.level_0_retention_s, maintenance.delete_files) == (600.0, False)
    assert app.options["sync_interval_s"] == 0.25
    assert (app.options["checkpoint_pages"], app.options["truncate_pages"]) == (500, None)
    assert (tenants.path, tenants.pattern, tenants.recursive, tenants.watch) == (
        Path("/data/tenants"),
        "*.db",
        True,
        True,
    )
    assert tenants.options["sync_interval_s"] == 5.0


@pytest.mark.parametrize(
    ("replica", "url"),
    [
        ("{path: /backup/app}", "/backup/app"),
        ("{url: 'file:///backup/app'}", "file:///backup/app"),
        ("{type: gs, bucket: backups, path: app}", "gs://backups/app"),
        ("{type: abs, bucket: container, path: app, account-name: account}", "abs://account@container/app"),
        (
            "{type: sftp, host: 'example.com:22', user: me, path: /srv/app, key-path: /k}",
            "sftp://me@example.com:22/srv/app?keyPath=%2Fk&absolute=true",
        ),
        (
            "{type: webdav, webdav-url: 'https://example.com/dav', webdav-username: me, path: /app}",
            "webdavs://me@example.com/dav/app",
        ),
        ("{url: 'nats://example.com/bucket', creds: /etc/creds}", "nats://example.com/bucket?creds=%2Fetc%2Fcreds"),
        (
            "{url: 's3://backups/app?region=x', region: y, force-path-style: true}",
            "s3://backups/app?region=x&forcePathStyle=true",
        ),
    ],
)
def test_each_kind_of_replica_becomes_a_url(tmp_path: Path, monkeypatch, replica: str, url: str):
    monkeypatch.setenv("LITESTREAM_AZURE_ACCOUNT_KEY", "a2V5")
    package, extra = _PACKAGES.get(url.partition(":")[0], ("yaml", "config"))
    pytest.importorskip(package, reason=f"needs the extra `{extra}` (pip install 'litevfs[{extra}]')")
    config = config_of(tmp_path, f"dbs:\n  - path: app.db\n    replica: {replica}\n")
    assert [place.url for place in config.entries[0].places] == [url]


def test_a_list_of_replicas_is_one_place_for_each(tmp_path: Path):
    config = config_of(tmp_path, "dbs:\n  - path: a.db\n    replicas:\n      - path: /one\n")
    assert [place.url for place in config.entries[0].places] == ["/one"]
    text = "dbs:\n  - path: a.db\n    replicas:\n      - path: /one\n      - url: s3://two/a\n"
    config = config_of(tmp_path, text)
    assert [place.url for place in config.entries[0].places] == ["/one", "s3://two/a"]
    assert config.warnings == ()
    twice = mistakes(tmp_path, text.replace("url: s3://two/a", "path: /one"))
    assert twice == ["3: dbs[0].replicas: /one is there twice"]


def test_variables_are_replaced_as_litestream_does_unless_told_not_to(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TENANT", "acme")
    text = (
        "# $NOTHING here\ndbs:\n  - path: /data/${TENANT}.db\n    replica:\n      path: /backup/$TENANT/$MISSING-$/x\n"
    )
    config = config_of(tmp_path, text)
    assert config.entries[0].path == Path("/data/acme.db")
    assert config.entries[0].places[0].url == "/backup/acme/-$/x"
    assert config.warnings == (
        f"{tmp_path}/litestream.yml:5: $MISSING: there is no such environment variable, so nothing takes its place",
    )
    assert config_of(tmp_path, text, expand=False).entries[0].path == Path("/data/${TENANT}.db")


def test_keys_can_be_shared_by_anchors(tmp_path: Path):
    text = """\
    dbs:
      - &base
        path: a.db
        monitor-interval: 3s
        replica: {path: /a}
      - <<: *base
        path: b.db
    """
    assert [(entry.path.name, entry.options["sync_interval_s"]) for entry in config_of(tmp_path, text).entries] == [
        ("a.db", 3.0),
        ("b.db", 3.0),
    ]


def test_what_is_not_done_is_named_with_its_line(tmp_path: Path):
    text = """\
    mcp-addr: ":3001"
    heartbeat-url: http://localhost/beat
    socket: {enabled: true}
    validation: {interval: 1h}
    dbs:
      - path: a.db
        meta-path: /elsewhere
        checkpoint-interval: 1m
        monitor-interval: 2s
        replica:
          path: /a
          name: old
          sync-interval: 4s
          part-size: 5MB
    """
    warnings = [text.partition("litestream.yml:")[2].split(": ")[:2] for text in config_of(tmp_path, text).warnings]
    assert sorted(warnings) == sorted(
        [
            ["1", "mcp-addr"],
            ["2", "heartbeat-url"],
            ["3", "socket.enabled"],
            ["4", "validation.interval"],
            ["7", "dbs[0].meta-path"],
            ["8", "dbs[0].checkpoint-interval"],
            ["9", "dbs[0].monitor-interval"],
            ["12", "dbs[0].replica.name"],
            ["14", "dbs[0].replica.part-size"],
        ]
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("dbs:\n  - path: a.db\n    replica:\n      pth: /a\n      url: /a\n", "4: dbs[0].replica.pth: no such key"),
        ("dbs:\n  - path: a.db\n    replica:\n      bukcet: a\n      url: /a\n", "did you mean bucket?"),
        (
            "dbs:\n  - path: a.db\n    replica: {url: 'ftp://x'}\n",
            "3: dbs[0].replica.url: no such kind of replica: 'ftp'",
        ),
        ("dbs:\n  - path: a.db\n    replica: {url: 's3://b/x?regoin=y'}\n", "3: dbs[0].replica.url: "),
        ("dbs:\n  - path: a.db\n    replica: {path: 's3://b/x'}\n", "3: dbs[0].replica.path: this is a URL"),
        ("dbs:\n  - path: a.db\n    replica: {type: s3, path: x}\n", "3: dbs[0].replica.bucket: a replica of type s3"),
        ("dbs:\n  - path: a.db\n    replica: {url: /a, sync-interval: 5}\n", "a duration without a unit: 5"),
        ("dbs:\n  - path: a.db\n", "2: dbs[0].replica: the entry says no replica"),
        ("dbs:\n  - replica: {url: /a}\n", "2: dbs[0].path: an entry has either path or dir"),
        ("dbs:\n  - path: a.db\n    dir: d\n    pattern: x\n    replica: {url: /a}\n", "3: dbs[0].dir: an entry has"),
        ("dbs:\n  - dir: d\n    replica: {url: /a}\n", "2: dbs[0].pattern: dir needs a pattern"),
        ("dbs:\n  - path: d\n    watch: true\n    replica: {url: /a}\n", "3: dbs[0].watch: belongs to dir"),
        ("dbs:\n  - path: d\n    path: e\n    replica: {url: /a}\n", "3: dbs[0].path: given twice, first in line 2"),
        ("dbs:\n  - path: d\n    replica: {url: /a, age: {recipients: [x]}}\n", "3: dbs[0].replica.age: not done"),
        ("dbs:\n  - path: d\n    replica: {url: 's3://a', access-key-id: x}\n", "belong together"),
        ("dbs:\n  - path: d\n    replica: {url: /a}\n  - path: ./d\n    replica: {url: /b}\n", "d is there twice"),
        ("l0-retention: soon\ndbs:\n  - path: d\n    replica: {url: /a}\n", "1: l0-retention: not a duration"),
        ("snapshot: 24h\ndbs:\n  - path: d\n    replica: {url: /a}\n", "1: snapshot: not a table of keys"),
        ("levels: [{interval: 1m}, {interval: 1s}]\ndbs:\n  - path: d\n    replica: {url: /a}\n", "more often than"),
        ("dbs: app.db\n", "1: dbs: not a list"),
        ("adr: ':9090'\n", "1: adr: no such key"),
        ("- a\n", "1: the file: not a table of keys"),
        ("logging: {level: loud}\ndbs: []\n", "1: logging.level: not one of debug, info, warn, error"),
    ],
)
def test_mistakes_are_told_with_line_and_key(tmp_path: Path, text: str, told: str):
    assert told in "; ".join(mistakes(tmp_path, text))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"dbs: [\n", ":2: this is not YAML"),
        (b"a: b: c\n", ":1: this is not YAML"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"", "is empty"),
        (b"a: \x00\n", "this is not YAML"),
    ],
)
def test_a_file_that_is_no_yaml_is_named(tmp_path: Path, content: bytes, told: str):
    path = tmp_path / "litestream.yml"
    path.write_bytes(content)
    with pytest.raises(OptionError) as caught:
        read_config(path)
    assert told in str(caught.value)
    assert str(path) in str(caught.value)


def test_all_mistakes_are_told_at_once_in_the_order_of_their_lines(tmp_path: Path):
    text = "dbs:\n  - path: a.db\n    replica: {pth: /a}\n  - dir: d\n    replica: {url: /b}\nadr: x\n"
    lines = [int(told.partition(":")[0]) for told in mistakes(tmp_path, text) if told[0].isdecimal()]
    assert lines == sorted(lines)
    assert len(lines) >= 4
