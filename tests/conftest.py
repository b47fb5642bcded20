"""Plugins and fixtures of every test."""

from __future__ import annotations

from litevfs.testing.fixtures import s3_client, s3_server, s3_url

__all__ = ["s3_client", "s3_server", "s3_url"]

pytest_plugins = ["tests.plan_plugin", "tests.leak_check", "pytester"]
