#!/usr/bin/env python3
"""Measures how long 100,000 rows take in one transaction, against the same rows in many.

    benches/rows.py [--rows 100000] [--batch 100] [--rounds 3] [--shoal PATH] [--shoal-args "--nodes 3 --shards 4"]

psql sends the same single-row INSERTs each time: as one transaction of so many messages, as one transaction of strings of
`batch` INSERTs, and as strings that are transactions of their own (autocommitted batches). What is last is one INSERT of all
rows in a transaction. They run in turn, each into a table of its own. PostgreSQL 15 does the same if it is there.
"""

import argparse
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from pgbench import ROOT, Postgres, Shoal, find

KINDS = ["messages", "strings", "autocommit", "one statement"]


def script(path, kind, rows, batch):
    """What psql is to run. `\\;` keeps statements in one string."""
    values = [f"({number}, {number % 100}, 'row {number}')" for number in range(rows)]
    inserts = [f"INSERT INTO many VALUES {value}" for value in values]
    if kind == "messages":
        body = [f"{insert};" for insert in inserts]
    elif kind == "one statement":
        body = ["INSERT INTO many VALUES " + ",\n".join(values) + ";"]
    else:
        body = [" \\;\n".join(inserts[at : at + batch]) + ";" for at in range(0, rows, batch)]
    if kind != "autocommit":
        body = ["BEGIN;", *body, "COMMIT;"]
    path.write_text("\n".join(body))


def psql(server, *arguments):
    command = [find("psql"), *server.connection, "-Xqv", "ON_ERROR_STOP=1", *arguments, "shoal"]
    return subprocess.run(command, check=True, text=True, capture_output=True).stdout


def measure(server, path, rows):
    psql(server, "-c", "DROP TABLE IF EXISTS many")
    psql(server, "-c", "CREATE TABLE many (id int PRIMARY KEY, of int, name text)")
    begun = time.monotonic()
    psql(server, "-f", str(path))
    took = time.monotonic() - begun
    count = int(psql(server, "-Atc", "SELECT count(*) FROM many"))
    if count != rows:
        raise SystemExit(f"{server.name} has {count} of {rows} rows")
    return took


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shoal", default=str(ROOT / "target/release/shoal"))
    parser.add_argument("--shoal-args", default="--nodes 3 --shards 4")
    options = parser.parse_args()
    if not find("psql"):
        raise SystemExit("psql is not installed")
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second, tempfile.TemporaryDirectory() as own:
        servers = [Shoal(pathlib.Path(first), options.shoal, options.shoal_args.split())]
        try:
            if find("initdb"):
                servers.append(Postgres(pathlib.Path(second)))
            else:
                print("no PostgreSQL here: Shoal alone", file=sys.stderr)
            paths = {kind: pathlib.Path(own) / f"{number}.sql" for number, kind in enumerate(KINDS)}
            for kind, path in paths.items():
                script(path, kind, options.rows, options.batch)
            found = {(server.name, kind): [] for server in servers for kind in KINDS}
            for _ in range(options.rounds):
                for kind, path in paths.items():
                    for server in servers:
                        found[server.name, kind].append(measure(server, path, options.rows))
            print(f"{options.rows} rows, batches of {options.batch}, {options.shoal_args}, median of {options.rounds} rounds")
            print(f"{'':12} {'kind':14} {'seconds':>8} {'to autocommit':>14}")
            for server in servers:
                base = statistics.median(found[server.name, "autocommit"])
                for kind in KINDS:
                    took = statistics.median(found[server.name, kind])
                    print(f"{server.name:12} {kind:14} {took:>8.2f} {took / base:>14.2f}")
        finally:
            for server in servers:
                server.stop()


if __name__ == "__main__":
    main()
