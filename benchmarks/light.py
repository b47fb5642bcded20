"""Reads over HTTP at 20 ms a request from a server that needs next to no CPU: what litevfs itself takes.

In `s3.py` server and proxy share the cores with the reader, and take more of them than it does. Here nginx serves the
replica's folder; each answer waits in its event loop (`echo_sleep`, of Debian's `libnginx-mod-http-echo`). Each query
starts with a connection that has cached nothing but what opening it reads; rows are compared with SQLite's own answers
on the file; times are never asserted.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from _competitors import Competitor, assert_equal, digest
from _databases import ROWS, dataset
from _results import Result, Samples, parse_arguments, report, seconds
from _s3_replica import DELAY_S, SMALL_ROWS
from s3 import BY_INDEX, cases

from litevfs.testing.server_process import find_program, free_port, running_server

GOAL_S = 0.2
"""For BY_INDEX."""
MODULE = "/usr/lib/nginx/modules/ngx_http_echo_module.so"
CONFIG = """
load_module {module};
daemon off; master_process off; pid {work}/pid; error_log {work}/error.log;
events {{ worker_connections 1024; }}
http {{
    access_log off; keepalive_requests 1000000;
    client_body_temp_path {work}/body; proxy_temp_path {work}/proxy; fastcgi_temp_path {work}/fastcgi;
    uwsgi_temp_path {work}/uwsgi; scgi_temp_path {work}/scgi;
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        root {folder};
        location / {{ echo_sleep {delay_s}; echo_exec @files; }}
        location @files {{ autoindex on; autoindex_format json; }}
        location = /ready {{ return 204; }}
    }}
}}
"""


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(__doc__, argv)
    if not (program := find_program("nginx")) or not Path(MODULE).exists():
        print("light.py needs nginx and its module echo: apt-get install nginx-light libnginx-mod-http-echo")
        return
    data = dataset(SMALL_ROWS if arguments.small else ROWS)
    samples = Samples()
    rounds = 1 if arguments.small else 7
    queries = cases(data, small=arguments.small)
    with running_nginx(program, Path(data.replica_url.removeprefix("file://"))) as url:
        for _ in range(rounds):
            for case in queries:
                with Competitor("litevfs", url) as competitor:
                    competitor.call("open")
                    took, answers = competitor.timed(case.sql, [case.parameters])
                assert_equal(case.name, {"SQLite": digest([data.answer(case.sql, case.parameters)]), "us": answers})
                samples.add(case.name, "seconds", took)
    results = []
    for case in queries:
        times = samples.all[case.name]["seconds"]
        middle = median(times)
        has_goal = case.name == BY_INDEX and not arguments.small
        goal, met = (f"<= {GOAL_S} s", middle <= GOAL_S) if has_goal else ("", None)
        values = {"median": seconds(middle), "best": seconds(min(times))}
        results.append(Result(case.name, values, goal, met, samples.all[case.name]))
    title = f"HTTP (nginx) at {DELAY_S * 1000:.0f} ms a request, {data.ltx_file.stat().st_size / 1e6:.1f} MB of LTX"
    report(f"{title}, {rounds} rounds", results, arguments)


@contextmanager
def running_nginx(program: str, folder: Path) -> Iterator[str]:
    """The URL of an nginx that serves the folder, each answer DELAY_S later."""
    with tempfile.TemporaryDirectory(prefix="litevfs-nginx-") as work:
        port, config = free_port(), Path(work, "nginx.conf")
        config.write_text(CONFIG.format(module=MODULE, work=work, port=port, folder=folder, delay_s=DELAY_S))
        command, url = [program, "-e", f"{work}/error.log", "-c", str(config)], f"http://127.0.0.1:{port}"
        with running_server(command, log=Path(work, "log"), port=port, ready_url=f"{url}/ready"):
            yield url


if __name__ == "__main__":
    main(sys.argv[1:])
