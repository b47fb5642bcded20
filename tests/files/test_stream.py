"""Whole files read ahead: what becomes of it when the process ends. What is read: see `restore`."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_a_storage_that_hangs_does_not_keep_the_process_from_ending():
    """As while a replica is compacted: the application that replicates may end at any time."""
    program = """
        import threading
        from litevfs.files.stream import FileStreamer
        from litevfs.replica_clients.memory import MemoryReplicaClient, MemoryStore
        from litevfs.testing.faulty import Fault, Faults, FaultyReplicaClient

        faults = Faults("faulty://hangs", block_size=1 << 16)  # as one whose requests cost a round trip
        faults.add(Fault("stuck", operations=("list",)))

        def list_two_levels():
            with FileStreamer(FaultyReplicaClient(MemoryReplicaClient(MemoryStore()), faults)) as streamer:
                streamer.list_levels([0, 1])

        threading.Thread(target=list_two_levels, daemon=True).start()
        faults.wait_until_waiting(timeout_s=20)
        print("the end")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "the end\n", "")
