"""Makes this folder a run of SQLAlchemy's own suite for dialects; `test_sqlalchemy_suite.py` starts it in a process.

SQLAlchemy's plugin takes over pytest, so nothing of the other tests' conftest may load beside it.
"""

import pytest
from sqlalchemy.dialects import registry

for name in ("litevfs_through", "litevfs_through.litevfs"):
    registry.register(name, "through", "ThroughDialect")
pytest.register_assert_rewrite("sqlalchemy.testing.assertions")

from sqlalchemy.testing.plugin.pytestplugin import *  # noqa: E402, F403
