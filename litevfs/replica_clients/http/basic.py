"""Basic authentication with a password from an environment variable, which may change while the process runs."""

from __future__ import annotations

import os

import urllib3


class BasicAuth:
    """The header of one user; none without a user."""

    def __init__(self, user: str, variable: str) -> None:
        self._user, self._variable = user, variable
        self.headers = self._now()

    def renew(self, refused: str, deadline: float | None) -> bool:
        """Take what the variable holds now, as the server refused the password; returns whether that is another one."""
        found = self._now()
        if found == self.headers:
            return False
        self.headers = found
        return True

    def _now(self) -> dict[str, str]:
        password = os.environ.get(self._variable, "")
        return dict(urllib3.make_headers(basic_auth=f"{self._user}:{password}")) if self._user else {}
