"""Joins of 5,000 rows, each with a row of a table that the cache holds a part of, over S3 at 20 ms a request.

Rows of the second table are looked up by rowid, by an index, and in the order of another index, and 3,000 rows of a
table in that table itself, each on a connection that has cached nothing but what opening it reads. A plain parallel
download of the replica's file is measured in the same run. Rows are compared with SQLite's own answers on the file;
times are never asserted.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from statistics import median

import apsw
from _competitors import assert_equal
from _databases import PAGE_SIZE, OneFile, cached_folder
from _results import Result, parse_arguments, ratio, report, seconds
from _s3_replica import DELAY_S, S3Replica, bytes_of, running_replica

USERS, SMALL_USERS = 200_000, 10_000
ORDERS_PER_USER = 40  # of USERS: one order for so many users
CACHES = ("10 MB", "16 MB", "64 MB")
"""The first is what a connection has if nothing else is said."""
_CONTENT_VERSION = 2  # part of the cache folder's name: raise it when the content changes
_SUM = "SELECT count(*), sum(length(bio)), min(u.name)"
QUERIES = {
    "by rowid": f"{_SUM} FROM orders o JOIN users u ON u.id = o.user_id",
    "by an index": f"{_SUM} FROM orders o CROSS JOIN users u ON u.name = o.user_name",
    "from an index on": f"{_SUM} FROM orders o INDEXED BY orders_by_amount JOIN users u ON u.id = o.user_id "
    "WHERE amount >= 0",
    "with itself": "SELECT count(*), sum(length(b.bio)), min(b.name) FROM users a CROSS JOIN users b "
    f"ON b.id = a.id * 7919 % {USERS} WHERE a.id < 3000",
}


_SCHEMA = """
    CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT, bio TEXT);
    CREATE TABLE orders (id INTEGER PRIMARY KEY, user_id INTEGER, user_name TEXT, amount INTEGER, note TEXT)
"""


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(__doc__, argv)
    users = SMALL_USERS if arguments.small else USERS
    shop = OneFile(cached_folder(f"shop-{users}-v{_CONTENT_VERSION}", lambda folder: _make(OneFile(folder), users)))
    rounds = 1 if arguments.small else 3
    with running_replica(shop.ltx_file, DELAY_S) as replica:
        download = replica.download(2)
        results = [measure(name, shop, replica, cache, rounds, download) for name in QUERIES for cache in CACHES]
    rows, delay = users // ORDERS_PER_USER, f"{DELAY_S * 1000:.0f} ms"
    title = f"Joins of {rows:,} rows over S3 ({replica.server.kind}) at {delay}, {shop.sizes}"
    report(title, results, arguments)


def measure(name: str, shop: OneFile, replica: S3Replica, cache: str, rounds: int, download: float) -> Result:
    """One row of the table."""
    sql = QUERIES[name]
    samples: dict[str, list[float]] = {"seconds": [], "GET": [], "bytes": []}
    for _ in range(rounds):
        with replica.opened({"LITEVFS_CACHE_SIZE": cache.replace(" ", "")}) as competitor:
            took, answer = competitor.timed(sql)
            gets = replica.gets()
        assert_equal(name, {"SQLite": shop.answer(sql), "litevfs": answer})
        samples["seconds"].append(took)
        samples["GET"].append(len(gets))
        samples["bytes"].append(bytes_of(gets))
    middle = {unit: median(values) for unit, values in samples.items()}
    values = {
        "time": seconds(middle["seconds"]),
        "/download": ratio(middle["seconds"], download),
        "requests": f"{middle['GET']:g} GET",
        "bytes": f"{middle['bytes'] / 1e6:.1f} MB",
    }
    return Result(f"{name}, cache of {cache}", values, "", None, samples)


def _make(shop: OneFile, users: int) -> None:
    rng = random.Random(1)

    def fill(connection: apsw.Connection) -> None:
        rows = ((i, f"user {i}", rng.randbytes(60).hex()) for i in range(users))
        connection.executemany("INSERT INTO users VALUES (?, ?, ?)", rows)
        chosen = (rng.randrange(users) for _ in range(users // ORDERS_PER_USER))
        orders = ((n, i, f"user {i}", rng.randrange(1000), rng.randbytes(20).hex()) for n, i in enumerate(chosen))
        connection.executemany("INSERT INTO orders VALUES (?, ?, ?, ?, ?)", orders)
        connection.execute("CREATE INDEX users_by_name ON users (name)")
        connection.execute("CREATE INDEX orders_by_amount ON orders (amount, user_id)")

    shop.make(_SCHEMA, fill, PAGE_SIZE)


if __name__ == "__main__":
    main(sys.argv[1:])
