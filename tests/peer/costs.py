"""Situations in which a reader may ask for more than it needs, or again and again."""

from __future__ import annotations

import time
from urllib.parse import parse_qs

from tests.peer.adapters import ReaderError
from tests.peer.situation import situation
from tests.peer.world import ALL, INTERVAL_S, Outcome, World, failed, kind_of
from tests.support import wait_until


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
    intervals = (time.monotonic() - start) / INTERVAL_S
    listings, asked = world.requests()["LIST"] / intervals, world.requests()["GET"] / intervals
    world.proxy.clear()
    world.rows("PRAGMA cache_size=1", connection=1)
    world.rows(ALL, connection=1)  # which has read nothing of it before
    gets = world.reads()
    polls = f"{round(listings)} LIST" + (f" + {round(asked)} GET" if round(asked) else "")
    answer = f"{polls} per interval; {gets} GET for what another connection has read"
    return Outcome("right" if listings + asked < 1.5 and not gets else "costly", answer)


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
        if kind_of(request) != "LIST":
            continue  # of a file by its name
        query = {name: values[0] for name, values in parse_qs(request.query).items()}
        names.append(len(world.list_names(query["prefix"], query.get("start-after", ""))))
    most = max(names, default=0)
    listed = "names" if most != 1 else "name"
    return Outcome("right" if most <= 1 else "costly", f"{most} {listed} of level 0 at each poll")


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
        world.start(new=True)
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
    most = 7 + 2 + 3  # a search among 64; what decides is confirmed; the snapshot and two files
    return Outcome("right" if requests["HEAD"] + requests["GET"] <= most + 2 else "costly", answer)


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
