"""Six queries of a social network on cold connections over S3, at 4 and 25 ms a request, in pages of 64 KiB and 4 KiB.

Users, posts, likes and friendships, 100,000 posts, or 1,000,000 with `--full`. Each query starts with a connection that
has cached nothing but what opening it reads; opening is not counted. A plain parallel download of the replica's file is
measured in the same run. Rows are compared with SQLite's own answers on the file; times are never asserted.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import apsw
from _chart import bars
from _competitors import assert_equal
from _databases import OneFile, cached_folder
from _results import Result, Samples, argument_parser, ratio, report, seconds
from _s3_replica import S3Replica, running_replica

DELAYS_S = (0.004, 0.025)
PAGE_SIZES = (1 << 16, 1 << 12)
GOAL_DELAY_S = 0.025
"""The goals are for this delay, POSTS posts, and either page size."""
POSTS, SMALL_POSTS, FULL_POSTS = 100_000, 5000, 1_000_000
DOWNLOAD = "(plain parallel download)"
_CONTENT_VERSION = 2  # part of the cache folder's name: raise it when the content changes

_SCHEMA = """
    CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT, city TEXT, joined INTEGER, about TEXT);
    CREATE TABLE posts (id INTEGER PRIMARY KEY, user_id INTEGER, created INTEGER, body TEXT);
    CREATE TABLE likes (user_id INTEGER, post_id INTEGER, created INTEGER, PRIMARY KEY (user_id, post_id))
        WITHOUT ROWID;
    CREATE TABLE friendships (user_a INTEGER, user_b INTEGER, since INTEGER, PRIMARY KEY (user_a, user_b)) WITHOUT ROWID
"""
_INDEXES = """
    CREATE INDEX posts_by_user ON posts (user_id, created);
    CREATE INDEX likes_by_post ON likes (post_id);
    CREATE INDEX friendships_by_b ON friendships (user_b, user_a);
    CREATE INDEX users_by_city ON users (city)
"""


_letters = random.Random(2)
_VOCABULARY = ["".join(_letters.choices("abcdefghijklmnopqrstuvwxyz", k=_letters.randint(3, 9))) for _ in range(3000)]


@dataclass(frozen=True, slots=True)
class Query:
    """A query, and within which time the design wants its rows at GOAL_DELAY_S."""

    name: str
    sql: str
    goal_s: float


QUERIES = (
    Query(
        "post with its author",
        "SELECT p.*, u.name, u.city FROM posts p JOIN users u ON u.id = p.user_id WHERE p.id = :post",
        0.075,
    ),
    Query(
        "profile, five joins",
        "SELECT u.name, p.id, p.body, count(l.user_id), max(liker.name), max(f.since), max(friend.name) FROM users u "
        "JOIN posts p ON p.user_id = u.id LEFT JOIN likes l ON l.post_id = p.id "
        "LEFT JOIN users liker ON liker.id = l.user_id LEFT JOIN friendships f ON f.user_a = u.id AND f.user_b = "
        "l.user_id LEFT JOIN users friend ON friend.id = f.user_b "
        "WHERE u.id = :user GROUP BY p.id ORDER BY p.created DESC LIMIT 10",
        0.4,
    ),
    Query(
        "who liked a post",
        "SELECT u.id, u.name, l.created FROM likes l JOIN users u ON u.id = l.user_id WHERE l.post_id = :post "
        "ORDER BY u.id",
        0.15,
    ),
    Query(
        "mutual friends",
        "SELECT u.id, u.name FROM friendships a JOIN friendships b ON b.user_b = a.user_b AND b.user_a = :other "
        "JOIN users u ON u.id = a.user_b WHERE a.user_a = :user ORDER BY u.id",
        0.05,
    ),
    Query("indexed count", "SELECT count(*) FROM posts WHERE user_id = :user", 0.05),
    Query("full scan with a filter", "SELECT count(*), max(id) FROM posts WHERE body LIKE '%quux%'", 0.4),
)


@dataclass(frozen=True, slots=True)
class Network:
    """A database of so many posts, and its replica."""

    posts: int
    replica: OneFile

    @property
    def parameters(self) -> dict[str, int]:
        """What the queries ask for: a post, and two users who have friends."""
        return {"post": self.posts // 2, "user": self.posts // 100, "other": self.posts // 100 + 3}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--full", action="store_true", help=f"{FULL_POSTS:,} posts instead of {POSTS:,}")
    arguments = parser.parse_args(argv)
    posts = SMALL_POSTS if arguments.small else FULL_POSTS if arguments.full else POSTS
    rounds, delays = (1, DELAYS_S[:1]) if arguments.small else (3, DELAYS_S)
    for page_size in PAGE_SIZES:
        folder = cached_folder(
            f"social-{posts}-{page_size}-v{_CONTENT_VERSION}",
            lambda folder, size=page_size: _make(OneFile(folder), posts, size),
        )
        network = Network(posts, OneFile(folder))
        samples = measure(network, delays, rounds)
        title = f"Social network over S3, {posts:,} posts in pages of {page_size >> 10} KiB, {network.replica.sizes}"
        report(title, results(samples, delays, judged=posts == POSTS), arguments)
        bars(
            arguments,
            f"social-{page_size >> 10}k",
            title,
            {
                query.name: {f"{d * 1000:g} ms": _ms(samples.median(query.name, f"{d:g}")) for d in delays}
                for query in QUERIES
            },
            "ms, cold, by the delay of a request",
        )


def _ms(took_s: float | None) -> float | None:
    return None if took_s is None else took_s * 1000


def measure(network: Network, delays: Sequence[float], rounds: int) -> Samples:
    """Every query at every delay, each on a connection of its own, rounds interleaved; and the download."""
    samples = Samples()
    expected = {query.name: network.replica.answer(query.sql, network.parameters) for query in QUERIES}
    with running_replica(network.replica.ltx_file) as replica:
        for _ in range(rounds):
            for delay_s in delays:
                replica.proxy.delay_s = delay_s
                for query in QUERIES:
                    _ask(network, replica, query, expected[query.name], samples)
                samples.add(DOWNLOAD, f"{delay_s:g}", replica.download())
    return samples


def _ask(network: Network, replica: S3Replica, query: Query, expected: str, samples: Samples) -> None:
    with replica.opened() as competitor:
        answer = competitor.call("run", sql=query.sql, parameters=[network.parameters])
        requests = replica.gets()
    assert_equal(query.name, {"SQLite": expected, "litevfs": answer["digest"]})
    delay = f"{replica.proxy.delay_s:g}"
    samples.add(query.name, delay, answer["seconds"])
    samples.add(query.name, f"{delay} GET", len(requests))


def results(samples: Samples, delays: Sequence[float], *, judged: bool) -> list[Result]:
    """A row for each query: its time and requests at each delay, and the ratio to the download."""
    rows = []
    for query in (*QUERIES, None):
        name = query.name if query else DOWNLOAD
        values = {}
        for delay in delays:
            took = samples.median(name, f"{delay:g}")
            values[f"{delay * 1000:g} ms"] = seconds(took)
            if query:
                values[f"{delay * 1000:g} ms"] += f", {samples.median(name, f'{delay:g} GET'):g} GET"
                values[f"/download at {delay * 1000:g} ms"] = ratio(took, samples.median(DOWNLOAD, f"{delay:g}"))
        took = samples.median(name, f"{GOAL_DELAY_S:g}")
        goal = f"<= {query.goal_s * 1000:g} ms at {GOAL_DELAY_S * 1000:g} ms" if query else ""
        met = took <= query.goal_s if query and judged and took is not None else None
        rows.append(Result(name, values, goal, met, samples.all.get(name)))
    return rows


# --- the database -----------------------------------------------------------------------------------------------------


def _make(replica: OneFile, posts: int, page_size: int) -> None:
    rng, users = random.Random(1), max(posts // 10, 100)

    def fill(connection: apsw.Connection) -> None:
        connection.executemany("INSERT INTO users VALUES (?, ?, ?, ?, ?)", _users(rng, users))
        connection.executemany("INSERT INTO posts VALUES (?, ?, ?, ?)", _posts(rng, posts, users))
        pairs = ((rng.randrange(users), rng.randrange(posts), rng.randrange(10**9)) for _ in range(5 * posts))
        connection.executemany("INSERT OR IGNORE INTO likes VALUES (?, ?, ?)", pairs)
        connection.executemany("INSERT OR IGNORE INTO friendships VALUES (?, ?, ?)", _friendships(rng, users))
        connection.execute(_INDEXES)

    replica.make(_SCHEMA, fill, page_size)


def _words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choices(_VOCABULARY, k=count))


def _users(rng: random.Random, count: int) -> Iterator[tuple[int, str, str, int, str]]:
    for i in range(count):
        yield i, _words(rng, 2), f"city {rng.randrange(200)}", rng.randrange(10**9), _words(rng, 10)


def _posts(rng: random.Random, count: int, users: int) -> Iterator[tuple[int, int, int, str]]:
    for i in range(count):
        yield i, rng.randrange(users), rng.randrange(10**9), _words(rng, 40) + (" quux" if i % 997 == 0 else "")


def _friendships(rng: random.Random, users: int) -> Iterator[tuple[int, int, int]]:
    """Both directions of each; half of them with neighbours, so that two neighbours have friends in common."""
    for a in range(users):
        for i in range(10):
            b, since = (a + rng.randrange(1, 40)) % users if i % 2 else rng.randrange(users), rng.randrange(10**9)
            yield from ((a, b, since), (b, a, since))


if __name__ == "__main__":
    main(sys.argv[1:])
