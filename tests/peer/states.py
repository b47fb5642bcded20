"""Situations in which a reader may see a wrong state, or none."""

from __future__ import annotations

import time

from tests.peer.adapters import ReaderError
from tests.peer.situation import situation
from tests.peer.world import ALL, INTERVAL_S, NUMBERS, Outcome, World, failed
from tests.support import wait_until

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
    world.primary.run("PRAGMA incremental_vacuum")
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


# --- replicas that are empty, or become others ------------------------------------------------------------------------


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
    # A reader may have looked while the new one was written.
    states = [old.rows(ALL), *(world.primary.rows(ALL, txid) for txid in range(1, world.primary.txid + 1))]
    while not (outcome := world.judge()) and time.monotonic() < deadline:
        if outcome.verdict == "wrong" and world.rows(ALL) not in states:
            return Outcome("wrong", "rows of neither database")
    if outcome or outcome.verdict != "wrong":
        return outcome
    return Outcome("wrong", f"still the rows of the old database after {_polls(world)} polls")
