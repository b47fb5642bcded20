from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open descriptors are seen in /proc only")

PRELUDE = """
    import os, threading
    import pytest

    stop = threading.Event()

    @pytest.fixture(scope="session", autouse=True)
    def end_threads():
        yield
        stop.set()

    def start(name, daemon=False):
        threading.Thread(target=stop.wait, name=name, daemon=daemon).start()
"""


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    """Runs tests given as text under the leak check, in a process of their own."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makeconftest('pytest_plugins = ["tests.leak_check"]')

    def run(text: str, *, grace_s: float = 10) -> pytest.RunResult:
        pytester.makeini(f"[pytest]\naddopts = --strict-markers\nfilterwarnings = error\nleak_grace_s = {grace_s}")
        pytester.makepyfile(test_suite=PRELUDE + text)
        return pytester.runpytest_subprocess()

    return run


def test_thread_left_behind_fails_its_test(run):
    result = run(
        """
    def test_leaves_a_thread(): start("stray")
    def test_after_it(): pass
    """,
        grace_s=0.1,
    )
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_leaves_a_thread*", "left behind: thread 'stray' is alive"])


def test_daemon_of_the_package_left_behind_fails_and_a_foreign_daemon_does_not(run):
    result = run(
        """
    def test_leaves_a_poller(): start("litevfs-poller", daemon=True)
    def test_leaves_a_foreign_daemon(): start("foreign", daemon=True)
    """,
        grace_s=0.1,
    )
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["left behind: thread 'litevfs-poller' is alive"])


@needs_proc
def test_descriptor_left_behind_fails_its_test_and_is_named(run):
    result = run(
        """
    def test_leaves_a_file(tmp_path): os.open(tmp_path / "stray.txt", os.O_CREAT | os.O_RDWR)
    def test_after_it(): pass
    """,
        grace_s=0.1,
    )
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["left behind: descriptor * is open: */stray.txt"])


@needs_proc
def test_fixture_that_does_not_clean_up_fails_its_test(run):
    result = run(
        """
    @pytest.fixture
    def pipe(): return os.pipe()

    def test_uses_it(pipe): pass
    """,
        grace_s=0.1,
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["left behind: descriptor * is open: pipe:*; descriptor * is open: pipe:*"])


def test_what_a_wider_fixture_opens_is_not_held_against_a_test(run):
    result = run(
        """
    @pytest.fixture(scope="session")
    def server():
        start("litevfs-server")
        ends = os.pipe()
        yield
        for end in ends: os.close(end)

    @pytest.fixture(scope="module")
    def client(server):
        start("litevfs-client")

    @pytest.fixture(scope="session")
    def late():
        start("litevfs-late")

    def test_starts_both(client): pass
    def test_leaves_its_own_beside_them(client): start("litevfs-own")
    def test_starts_late(request): request.getfixturevalue("late")
    def test_after_it(): pass
    """,
        grace_s=0.1,
    )
    result.assert_outcomes(passed=4, errors=1)
    result.stdout.fnmatch_lines(["left behind: thread 'litevfs-own' is alive"])


def test_thread_that_ends_within_the_grace_time_is_no_leak(run):
    result = run("""
    def test_ends_a_little_later(): threading.Timer(0.1, lambda: None).start()
    """)
    result.assert_outcomes(passed=1)


@needs_proc
def test_file_that_only_a_cycle_holds_is_collected_before_it_counts(run):
    result = run("""
    class Holder:
        def __init__(self):
            self.me, self.fd = self, os.open("/dev/null", os.O_RDONLY)
        def __del__(self):
            os.close(self.fd)

    def test_forgets_it(): Holder()
    """)
    result.assert_outcomes(passed=1)


def test_marked_test_may_leak(run):
    result = run("""
    @pytest.mark.may_leak("it shows the marker")
    def test_leaves_a_thread(): start("stray")
    """)
    result.assert_outcomes(passed=1)
