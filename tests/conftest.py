"""Plugins and fixtures of every test."""

from __future__ import annotations

import importlib.util

pytest_plugins = ["tests.plan_plugin", "tests.leak_check", "pytester"]

if importlib.util.find_spec("litevfs.testing.fixtures"):
    from litevfs.testing.fixtures import s3_client, s3_server, s3_url  # noqa: F401
