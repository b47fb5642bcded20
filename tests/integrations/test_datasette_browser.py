"""Datasette's pages of a replica in a real browser, where one is installed."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import wait_until

pytestmark = pytest.mark.slow

ORDERS = Path(__file__).parents[1] / "fixtures" / "orders" / "replica"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytest.importorskip("datasette", reason="needs the extra `integrations` (pip install 'litevfs[integrations]')")


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Datasette as a program, configured by a file, with one replica."""
    from datasette.app import Datasette

    option = "--config" if "config" in Datasette.__init__.__code__.co_varnames else "--metadata"  # before 1.0
    config = tmp_path / "datasette.json"
    config.write_text(json.dumps({"plugins": {"litevfs": {"databases": {"orders": str(ORDERS)}}}}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "datasette", "serve", option, str(config), "--port", str(port), "--memory"]
    with (tmp_path / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            wait_until(lambda: process.poll() is not None or answers(url), "an answer", timeout_s=60)
            assert process.poll() is None, (tmp_path / "log").read_text()
            yield url
        finally:
            process.terminate()


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url}/-/versions.json", timeout=5).close()
    except OSError:
        return False
    return True


def shown(url: str, profile: Path) -> str:
    """The document as the browser has it after its scripts ran."""
    assert BROWSER is not None
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={profile}")
    command = [BROWSER, *flags, "--virtual-time-budget=3000", "--dump-dom", url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(BROWSER is None, reason="needs a browser: apt-get install chromium")
def test_a_browser_shows_tables_rows_and_in_the_footer_the_state(address: str, tmp_path: Path) -> None:
    database = shown(f"{address}/orders", tmp_path / "profile")
    assert 'href="/orders/orders"' in database
    table = shown(f"{address}/orders/orders?_size=20", tmp_path / "profile")
    assert len(re.findall(r'<td class="col-total_cents', table)) == 20
    assert "2,667 rows" in table
    footer = table[table.index("Powered by") :]
    assert "TXID 000000000000000c, up to date" in re.sub(r"<[^>]+>", "", footer)
    assert re.search(r"class=\"dropdown-menu-icon\"", table), "the page's scripts did not run"
    before = shown(f"{address}/orders/orders?_txid=8&_size=1", tmp_path / "profile")
    assert "TXID 8, a fixed state" in re.sub(r"<[^>]+>", "", before)
