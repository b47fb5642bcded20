"""The situations in which Litestream's own VFS is known or suspected to err, and three of a conformance suite.

Each one makes real LTX files, drives a reader of either kind through the same steps, and says what came out. Which kind
it is matters to none of them, but for options that only litevfs has.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import parse_qs

from tests.peer.adapters import ReaderError
from tests.peer.world import ALL, INTERVAL_S, NUMBERS, Outcome, World, failed
from tests.support import wait_until

Storage = Literal["file", "s3"]


@dataclass(frozen=True, slots=True)
class Situation:
    """One row of the table."""

    key: str  # a letter, or an ID of the test plan
    title: str
    promise: str  # what litevfs does, as a test's name says it
    run: Callable[[World], Outcome]
    storage: Storage
    primary: dict[str, Any] = field(default_factory=dict)  # options of the primary


SITUATIONS: list[Situation] = []
"""In the order of the table."""


def situation(key: str, title: str, promise: str, storage: Storage = "file", **primary: Any) -> Any:
    """Enter a function into the table."""

    def enter(run: Callable[[World], Outcome]) -> Callable[[World], Outcome]:
        SITUATIONS.append(Situation(key, title, promise, run, storage, primary))
        return run

    return enter


# --- what compaction and vacuum do to the page map --------------------------------------------------------------------


def _follow_six(world: World, *, growing: bool = False) -> None:
    """A reader that opened at TXID 1 and has followed level 0 to TXID 6; 5 and 6 may have grown the database."""
    world.create()
    world.primary.compact(1, 1, 1)
    world.open()
    for txid in range(2, 7):
        if growing and txid >= 5:
            world.primary.commit(
                NUMBERS.format(200) + f"INSERT INTO t SELECT {txid * 1000} + i, 5, printf('%0100d', i) FROM n"
            )
        else:
            world.update()
    assert world.catch_up(6) == 6
    assert world.judge()


@situation(
    "a",
    "a level-1 file arrives that ends before what was already read from level 0",
    "a compaction that arrives late never brings old rows back",
)
def late_compaction(world: World) -> Outcome:
    _follow_six(world)
    world.primary.compact(1, 2, 4)
    txid = world.mark()  # the poll that finds it has found the compacted file too
    world.catch_up(txid)
    return world.judge()


@situation(
    "a'",
    "the same, and the database has grown since that file",
    "a compaction that arrives late never shrinks a database that has grown",
)
def late_compaction_of_a_smaller_database(world: World) -> Outcome:
    _follow_six(world, growing=True)
    world.primary.compact(1, 2, 4)
    world.catch_up(world.mark())
    return world.judge()


@situation(
    "b",
    "the database shrinks by an incremental vacuum",
    "a database that shrinks keeps its other pages",
    auto_vacuum=2,
)
def incremental_vacuum(world: World) -> Outcome:
    world.create(600)
    world.open()
    world.catch_up(world.primary.commit("DELETE FROM t WHERE id BETWEEN 100 AND 500"))
    _vacuum(world)
    world.catch_up(world.primary.upload())
    return world.judge()


@situation(
    "b'",
    "the same, seen by one poll together with the transaction before it",
    "a transaction before one that shrinks the database is not lost",
    auto_vacuum=2,
)
def incremental_vacuum_and_more(world: World) -> Outcome:
    world.create(600)
    world.open()
    assert world.judge()
    world.primary.run("DELETE FROM t WHERE id BETWEEN 100 AND 500")
    _vacuum(world)
    files = [(txid, world.primary.file_bytes(txid, txid)) for txid in (2, 3)]
    for txid, data in files:  # well within one poll interval
        world.client.write(0, txid, txid, data, world.primary.timestamp_ms(txid))
    world.catch_up(3)
    return world.judge()


def _vacuum(world: World) -> None:
    size = len(world.primary.images[world.primary.txid])
    world.primary.con.execute("PRAGMA incremental_vacuum").fetchall()
    world.primary.record(world.primary.con.serialize("main"))
    assert len(world.primary.images[world.primary.txid]) < size


# --- one transaction, one state ---------------------------------------------------------------------------------------


@situation(
    "c",
    "new transactions while a reader of a hydrated replica is in a read transaction",
    "a read transaction on a hydrated replica sees one state",
)
def hydration(world: World) -> Outcome:
    world.create()
    world.open(hydration_enabled="true")
    wait_until(lambda: float(world.rows("PRAGMA litestream_hydration_progress")[0][0]) >= 100, "hydration")
    world.rows("PRAGMA cache_size=1")  # SQLite has to read again what it reads again
    world.rows("BEGIN")
    before = world.judge(ALL, txid=1)
    if not before:
        return before
    for _ in range(3):
        world.update()
    world.catch_up(4)
    during = world.judge(ALL, txid=1)
    world.rows("ROLLBACK")
    if not during:
        return Outcome(during.verdict, f"{during.answer}, in a transaction that began at TXID 1")
    return world.judge()


@situation(
    "d",
    "the database grows while a read transaction is open: what size has it there?",
    "the size of the database is that of the pinned state",
    storage="s3",
    page_size=512,
)
def file_size(world: World) -> Outcome:
    world.create(200)
    reader = world.start()
    reader.call("file_open", options=world.options())
    reader.call("file_lock")
    before = reader.call("file_size")["bytes"]
    world.primary.commit(NUMBERS.format(80_000) + "INSERT INTO t SELECT 1000 + i, 0, printf('%0100d', i) FROM n")
    world.wait_for_polls(3)
    during = reader.call("file_size")["bytes"]
    reader.call("file_unlock")
    reader.call("file_lock")
    after = reader.call("file_size", calls=20)
    pages = len(world.primary.images[2]) // 512
    cost = f"{after['microseconds']:.1f} µs to say so at {pages:,} pages"
    if (before, after["bytes"]) != (len(world.primary.images[1]), len(world.primary.images[2])):
        return Outcome("wrong", f"{before} and {after['bytes']} bytes before and after")
    if during != before:
        return Outcome("wrong", f"{before // 512} pages become {during // 512} within the transaction; {cost}")
    return Outcome("right", f"the size of its own state; {cost}")


@situation(
    "e",
    "the same query again, and nothing has changed",
    "SQLite's page cache stays warm while the replica does not change, and reads of page 1 agree",
)
def change_counter(world: World) -> Outcome:
    world.create(2000)
    world.open()
    for _ in range(2):
        if not (outcome := world.judge()):
            return outcome
    before = world.reader.call("cache_misses")["pages"]
    world.rows(ALL)
    again = world.reader.call("cache_misses")["pages"] - before
    world.reader.call("file_open", options=world.options())
    world.reader.call("file_lock")
    page = world.reader.call("file_read", amount=4096, offset=0)["hex"]
    seen = {page[48:56], world.reader.call("file_read", amount=16, offset=24)["hex"][:8]}
    agree = "reads of the change counter agree" if len(seen) == 1 else "each read of the change counter is another"
    answer = f"SQLite asks for {again} pages again; {agree}"
    return Outcome("right" if not again and len(seen) == 1 else "costly", answer)


# --- what connections cost --------------------------------------------------------------------------------------------

CONNECTIONS = 6


@situation(
    "f",
    f"{CONNECTIONS} connections to one replica",
    "connections share one poller and one cache",
    storage="s3",
)
def connections(world: World) -> Outcome:
    world.create(2000)
    world.open(count=CONNECTIONS)
    world.rows(ALL, connection=0)
    assert world.rows(ALL, connection=CONNECTIONS - 1) == world.primary.rows(ALL)
    world.proxy.clear()
    start = time.monotonic()
    wait_until(lambda: time.monotonic() - start > 10 * INTERVAL_S, "the end of ten intervals")
    listings = world.requests()["LIST"] / ((time.monotonic() - start) / INTERVAL_S)
    world.proxy.clear()
    world.rows("PRAGMA cache_size=1", connection=1)
    world.rows(ALL, connection=1)  # which has read nothing of it before
    gets = world.requests()["GET"]
    answer = f"{round(listings)} LIST per interval; {gets} GET for what another connection has read"
    return Outcome("right" if listings < 1.5 and not gets else "costly", answer)


# --- files that vanish, and holes -------------------------------------------------------------------------------------


@situation(
    "g",
    "retention deletes the files that a state was read from; level 1 has their pages",
    "pages are found elsewhere when retention has deleted their file",
)
def retention(world: World) -> Outcome:
    world.create()
    for _ in range(5):
        world.update()
    world.open()
    assert world.rows("SELECT count(*) FROM marker") == [(0,)]  # nothing of the other table
    world.primary.compact(1, 1, 6)
    world.primary.delete(0)
    first = world.judge()
    world.catch_up(world.mark())
    later = world.judge()
    if not first and not later:
        return Outcome(later.verdict, f"{later.answer}; and again after the next transaction")
    return first if not first else later


@situation(
    "h",
    "a level-1 file straddles the last seen TXID, and the level-0 files are gone",
    "a reader goes on through a compacted file that overlaps what it has",
)
def straddling_compaction(world: World) -> Outcome:
    world.create()
    for _ in range(4):
        world.update()
    world.open()
    assert world.judge()
    for _ in range(2):
        world.primary.run("UPDATE t SET v = v + 1")
    world.primary.compact(1, 1, 3)
    world.primary.compact(1, 4, 7)
    world.primary.delete(0)
    return _gets_to(world, world.update())


@situation(
    "h'",
    "a reader was away for so long that only a snapshot leads on",
    "a reader that was away for longer than retention starts from a snapshot again",
)
def long_absence(world: World) -> Outcome:
    world.create()
    for _ in range(4):
        world.update()
    world.open()
    assert world.judge()
    for _ in range(10):
        world.primary.run("UPDATE t SET v = v + 1")
    world.primary.compact(9, 1, 12)
    world.primary.compact(1, 13, 15)
    world.primary.delete(0)
    return _gets_to(world, world.update())


def _gets_to(world: World, txid: int) -> Outcome:
    reached = world.catch_up(txid)
    if reached == txid:
        return world.judge()
    outcome = world.judge(txid=reached)
    lag = world.rows("PRAGMA litestream_lag")[0][0]
    answer = f"stays at TXID {reached} while the replica is at {txid}, after {_polls(world)} polls; its lag says {lag}"
    return Outcome("wrong", answer if outcome else f"{answer}; {outcome.answer}")


def _polls(world: World) -> int:
    return round(world.catch_up_s / INTERVAL_S)


# --- what requests cost -----------------------------------------------------------------------------------------------


@situation(
    "i",
    "a poll, after 40 transactions on level 0",
    "a poll lists what is new, not the history",
    storage="s3",
    page_size=512,
)
def listing(world: World) -> Outcome:
    world.primary.commit("CREATE TABLE t (id INTEGER PRIMARY KEY, v, pad)")
    for _ in range(39):
        world.primary.commit("INSERT INTO t (v) VALUES (1)")
    world.open()
    world.wait_for_polls(3)
    if not (outcome := world.judge()):
        return outcome
    names = []
    for request in world.polls():
        query = {name: values[0] for name, values in parse_qs(request.query).items()}
        names.append(len(world.list_names(query["prefix"], query.get("start-after", ""))))
    listed = "names" if max(names) != 1 else "name"
    return Outcome("right" if max(names) <= 1 else "costly", f"{max(names)} {listed} of level 0 at each poll")


@situation("j", "an empty replica is opened", "opening an empty replica ends with a clear error")
def empty_replica(world: World) -> Outcome:
    world.start()
    options = world.options(**({"open_timeout": "500ms"} if world.kind == "litevfs" else {}))
    start = time.monotonic()
    try:
        world.reader.call("open", 4.0, options=options)
    except ReaderError as error:
        text = str(error)
        is_clear = "no LTX files" in text and time.monotonic() - start < 3
        kind = text.partition(":")[0]
        return Outcome("right", f"{kind} after `open_timeout`") if is_clear else failed(error)
    except Exception as error:  # noqa: BLE001 (the outcome)
        return failed(error)
    return Outcome("wrong", "opened")


FILES = 20


@situation(
    "k",
    f"a replica of {FILES} small files is opened",
    "opening reads each small file once, in parallel",
    storage="s3",
)
def opening(world: World) -> Outcome:
    world.create()
    for _ in range(FILES - 1):
        world.mark()
    seconds = []
    for delay_s in (0.02, 0.12):
        world.proxy.delay_s = delay_s
        world.start()
        world.proxy.clear()
        seconds.append(world.reader.call("open", 30, options={"poll_interval": "1h"})["seconds"])
    world.proxy.delay_s = 0.0
    requests = world.requests()
    outcome = world.judge()
    if not outcome:
        return outcome
    trips = round((seconds[1] - seconds[0]) / 0.1)
    answer = f"{requests['LIST']} LIST + {requests['GET']} GET, in about {trips} round trips"
    return Outcome("right" if requests["GET"] <= FILES and requests["LIST"] <= 10 else "costly", answer)


TRANSACTIONS = 64


@situation(
    "l",
    f"time travel in a history of {TRANSACTIONS} files",
    "time travel reads a handful of headers, however long the history",
    storage="s3",
)
def time_travel(world: World) -> Outcome:
    world.create()
    for _ in range(TRANSACTIONS - 1):
        world.update()
    world.primary.compact(9, 1, 30)
    world.open()
    world.proxy.clear()
    try:
        world.rows("PRAGMA litestream_time = '2026-01-01T00:00:32.500Z'")  # transaction n is n seconds later
    except ReaderError as error:
        return failed(error)
    requests = world.requests()
    outcome = world.judge(txid=32)
    answer = f"{requests['HEAD']} HEAD + {requests['GET']} GET"
    if not outcome:
        return Outcome(outcome.verdict, f"{outcome.answer}; {answer}")
    return Outcome("right" if requests["HEAD"] + requests["GET"] <= 12 else "costly", answer)


# --- conformance ------------------------------------------------------------------------------------------------------


@situation(
    "E01",
    "listings hide the newest files for a while",
    "a stale listing neither takes a reader back nor makes it loop",
    storage="s3",
)
def stale_listings(world: World) -> Outcome:
    world.create()
    for _ in range(5):
        world.update()
    world.open()
    if not (outcome := world.judge()):
        return outcome
    hidden = {file: world.client.read(file) for file in world.client.list_files(0, 5)}
    world.client.delete(hidden)
    txids, made = set(), 0
    for _ in range(4):
        made += world.wait_for_polls(1)
        txids.add(world.reader.call("published")["txid"])
    for file, data in hidden.items():
        world.client.write(0, file.min_txid, file.max_txid, data, world.primary.timestamp_ms(file.max_txid))
    if txids != {6}:
        return Outcome("wrong", f"goes back to TXID {min(txids)}")
    world.catch_up(world.update())
    outcome = world.judge()
    answer = f"{outcome.answer}; {round(made / 4)} requests a poll meanwhile"
    return Outcome(outcome.verdict if made <= 4 * 12 else "costly", answer)


@situation(
    "E02",
    "the newest file stays damaged for a while",
    "a request that fails is not repeated without a pause",
    storage="s3",
)
def damaged_file(world: World) -> Outcome:
    world.create()
    world.open()
    world.primary.run("UPDATE t SET v = v + 1")
    whole = world.primary.file_bytes(2, 2)
    world.client.write(0, 2, 2, whole[: len(whole) // 2], world.primary.timestamp_ms(2))
    world.wait_for_polls(1)
    made = world.wait_for_polls(3)
    during = world.judge(txid=1)
    world.primary.upload()
    world.catch_up(2, timeout_s=world.catch_up_s + 25)  # after failures a poller may take its time
    outcome = world.judge() if during else during
    answer = f"{outcome.answer}; {round(made / 3)} requests a poll meanwhile"
    return Outcome(outcome.verdict if made <= 3 * 12 else "costly", answer)


@situation(
    "E03",
    "the replica is replaced by another one, whose TXIDs begin again",
    "a replaced replica is noticed and never mixed with the old one",
)
def replaced_replica(world: World) -> Outcome:
    world.create()
    for _ in range(5):
        world.update()
    world.open()
    if not (outcome := world.judge()):
        return outcome
    old = world.primary
    old.delete_all()
    world.primary = world.new_primary()
    world.primary.start_ms = old.start_ms + 3_600_000
    world.create(100)
    world.primary.commit("UPDATE t SET v = -1")
    deadline = time.monotonic() + world.catch_up_s
    while not (outcome := world.judge()) and time.monotonic() < deadline:
        if outcome.verdict == "wrong" and world.rows(ALL) not in (old.rows(ALL), world.primary.rows(ALL)):
            return Outcome("wrong", "rows of neither database")
    if outcome or outcome.verdict != "wrong":
        return outcome
    return Outcome("wrong", f"still the rows of the old database after {_polls(world)} polls")
