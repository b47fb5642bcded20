"""SQLAlchemy's suite, all of it but what writes in ways that a replica does not know."""

from sqlalchemy.testing.suite import *  # noqa: F403
