"""One engine's process: scans the table so many times and prints seconds and sums as JSON. Run by `scan_out.py`.

python _scan_engine.py ENGINE REPLICA ROUNDS
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import closing

from scan_out import COLUMNS, PIECES, WORKERS

import litevfs

Sums = tuple[int, int, int]
"""(rows, sum of amounts, bytes of all notes)."""


def one_process(replica: str, measure: Callable[[Callable[[], Sums]], None]) -> None:
    import pyarrow.compute as pc

    def scan() -> Sums:
        with closing(litevfs.connect(replica)) as connection:
            table = litevfs.arrow(connection, f"SELECT {', '.join(COLUMNS)} FROM orders").reader().read_all()
        return table.num_rows, pc.sum(table["amount"]).as_py(), pc.sum(pc.binary_length(table["note"])).as_py()

    measure(scan)


def dask(replica: str, measure: Callable[[Callable[[], Sums]], None]) -> None:
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    import dask

    from litevfs.integrations.dask import read_table

    def scan() -> Sums:
        frame = read_table(replica, "orders", npartitions=PIECES, columns=COLUMNS)
        sums = dask.compute(frame.amount.count(), frame.amount.sum(), frame.note.str.len().sum())
        return tuple(map(int, sums))  # type: ignore[return-value]

    with (
        ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool,
        dask.config.set(scheduler="processes", pool=pool),
    ):
        measure(scan)


def ray(replica: str, measure: Callable[[Callable[[], Sums]], None]) -> None:
    import ray
    import ray.data

    from litevfs.integrations.ray import read_table

    def of_piece(batch: object) -> dict[str, list[int]]:
        import pyarrow.compute as pc

        notes = pc.sum(pc.binary_length(batch["note"])).as_py()  # type: ignore[index]
        amounts = pc.sum(batch["amount"]).as_py()  # type: ignore[index]
        return {"rows": [batch.num_rows], "amounts": [amounts], "notes": [notes]}  # type: ignore[attr-defined]

    def scan() -> Sums:
        pieces = read_table(replica, "orders", parallelism=PIECES, columns=COLUMNS)
        sums = pieces.map_batches(of_piece, batch_format="pyarrow", batch_size=None).to_pandas().sum()
        return int(sums["rows"]), int(sums["amounts"]), int(sums["notes"])

    options = {"include_dashboard": False, "log_to_driver": False, "configure_logging": False}
    ray.init(num_cpus=WORKERS, object_store_memory=5 * 10**8, **options)
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        measure(scan)
    finally:
        ray.shutdown()


def spark(replica: str, measure: Callable[[Callable[[], Sums]], None]) -> None:
    from pyspark.sql import SparkSession
    from pyspark.sql import functions as f

    from litevfs.integrations.spark import register

    session = SparkSession.builder.master(f"local[{WORKERS}]").config("spark.ui.enabled", "false").getOrCreate()
    session.sparkContext.setLogLevel("OFF")
    register(session)

    def scan() -> Sums:
        options = {"url": replica, "table": "orders", "columns": ",".join(COLUMNS), "numPartitions": str(PIECES)}
        frame = session.read.format("litevfs").options(**options).load()
        row = frame.agg(f.count("id"), f.sum("amount"), f.sum(f.octet_length("note"))).collect()[0]
        return int(row[0]), int(row[1]), int(row[2])

    try:
        measure(scan)
    finally:
        session.stop()


def main() -> None:
    engine, replica, rounds = sys.argv[1:]
    times: list[float] = []
    answers: list[Sums] = []

    def measure(scan: Callable[[], Sums]) -> None:
        for _ in range(1 + int(rounds)):
            began = time.perf_counter()
            answers.append(scan())
            times.append(time.perf_counter() - began)
        if int(rounds):
            del times[0]  # the workers started, and loaded what they need

    engines = {"one process": one_process, "Dask": dask, "Ray": ray, "Spark": spark}
    engines[engine](replica, measure)
    assert len(set(answers)) == 1, answers
    print(json.dumps({"seconds": times, "answer": answers[0]}))


if __name__ == "__main__":
    main()
