#!/usr/bin/env python3
"""Measures how fast new shards are built, and what writers notice of it, and prints the ratios.

    benches/reshard.py copy [--replicas 1] [--rows 1000000] [--rounds 3] [--clients 8] [--usual 15] [--copying 15] [--shoal PATH]

A cluster of its own, of as many nodes as replicas, has one shard, with rows of about 100 bytes and one index. It is split in two, as far
as it could switch, and that is cancelled. What counts as its copying ends with the new shards' files; "ready" is told beside it.

First nobody writes. `sqlite3 f .dump | sqlite3 g`, of a copy of the shard's database, and a split take turns, so that a noisy machine
hurts both alike. The ratio is that of their rates: how often a shard is copied while it is dumped and read once.

Then pgbench updates single rows by key. For some seconds nothing else happens, then a split copies: with a rate that has it take about as long
as those (`--rate`), or as fast as it likes, held back only by how long writers wait. Printed are the 99th percentiles of the updates' latencies
in both times, and their ratio, for each kind the median of the rounds; beside them those of the time from then on until the new shards
have caught up.
"""

import argparse
import json
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time

from pgbench import ROOT, find

SETUP = """CREATE TABLE thing (id bigint PRIMARY KEY, kind int NOT NULL, note text NOT NULL) PARTITION BY HASH (id);
CREATE INDEX ON thing (kind);
"""
UPDATE = """\\set id random(1, :rows)
UPDATE thing SET note = 'note of {kind} number ' || :id WHERE id = :id;
"""
# Before the files of the new shards are complete.
BEFORE = {"planned", "placing", "imaging", "copying"}
BATCH = 100_000


class Cluster:
    """A cluster of `shoal node`s, with one shard."""

    name = "shoal"

    def __init__(self, folder, binary, nodes):
        self.binary, self.nodes, self.data = binary, [], folder / "data"
        self.admin = self.connection = None
        for number in range(nodes):
            self.start(folder, number)
        self.shoal("init", "--replicas", str(nodes), "--shards", "1")

    def start(self, folder, number):
        command = [self.binary, "node", "--data-dir", str(self.data / str(number)), "--listen", "127.0.0.1:0", "--pg-listen", "127.0.0.1:0"]
        if self.admin:
            command += ["--join", self.admin]
        log = open(folder / f"log-{number}", "w")
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        self.nodes.append((process, log))
        admin = connection = None
        for line in process.stdout:
            if found := re.match(r"admin: (\S+)", line):
                admin = found[1]
            if found := re.search(r"psql -h (\S+) -p (\d+)", line):
                connection = ["-h", found[1], "-p", found[2], "-U", "shoal"]
            if admin and connection:
                break
        else:
            raise SystemExit("shoal node ended before it was ready")
        self.admin, self.connection = self.admin or admin, self.connection or connection

    def shoal(self, *arguments):
        command = [self.binary, *arguments, "--host", self.admin]
        done = subprocess.run(command, text=True, capture_output=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
        return done.stdout

    def psql(self, sql, text=None):
        command = [find("psql"), *self.connection, "-v", "ON_ERROR_STOP=1", "-Atqc", sql, "shoal"]
        return subprocess.run(command, check=True, text=True, input=text, capture_output=True).stdout

    def fill(self, rows):
        for statement in SETUP.strip().splitlines():
            self.psql(statement)
        for first in range(1, rows + 1, BATCH):
            batch = range(first, min(first + BATCH, rows + 1))
            lines = (f"{number}\t{number * 7919 % 10007}\t{'x' * 80}\n" for number in batch)
            self.psql("COPY thing FROM STDIN", "".join(lines))

    def database(self):
        """The shard's, which is the biggest."""
        files = [path for path in self.data.rglob("*.sqlite") if "builds" not in path.parts]
        return max(files, key=lambda path: path.stat().st_size)

    def split(self, *options):
        """Begins; gives the reshard's number."""
        planned = self.shoal("reshard", "split", "main/-", "--into", "2", "--no-verify", "--wait", "no", "--json", *options)
        return str(json.loads(planned.splitlines()[0])["reshard"])

    def status(self, number):
        status = json.loads(self.shoal("reshard", "status", number, "--json").splitlines()[0])
        if status["failed"] or status["paused"]:
            raise SystemExit(f"the split has come to {status}")
        return status

    def wait_until_copied(self, number):
        while self.status(number)["phase"] in BEFORE:
            time.sleep(0.05)

    def wait_until_ready(self, number):
        while self.status(number)["phase"] != "ready":
            time.sleep(0.05)

    def cancel(self, number):
        self.shoal("reshard", "cancel", number)

    def stop(self):
        for process, _ in self.nodes:
            process.send_signal(signal.SIGINT)
        for process, log in self.nodes:
            process.wait(60)
            log.close()


def seconds_of_dump(database, folder):
    made = folder / "dumped.sqlite"
    made.unlink(missing_ok=True)
    begun = time.monotonic()
    dump = subprocess.Popen(["sqlite3", str(database), ".dump"], stdout=subprocess.PIPE)
    subprocess.run(["sqlite3", str(made)], stdin=dump.stdout, check=True)
    dump.stdout.close()
    if dump.wait():
        raise SystemExit("sqlite3 .dump failed")
    return time.monotonic() - begun


def seconds_of_split(cluster):
    begun = time.monotonic()
    number = cluster.split()
    cluster.wait_until_copied(number)
    copied = time.monotonic() - begun
    cluster.wait_until_ready(number)
    ready = time.monotonic() - begun
    cluster.cancel(number)
    return copied, ready


def build(cluster, folder, options):
    image = folder / "image.sqlite"
    subprocess.run(["sqlite3", str(cluster.database()), f".backup {image}"], check=True)
    size = image.stat().st_size / 2**20
    dumps, splits = [], []
    for _ in range(options.rounds):
        dumps.append(seconds_of_dump(image, folder))
        splits.append(seconds_of_split(cluster))
    dump = statistics.median(dumps)
    print(f"building, {options.rows} rows, {size:.0f} MiB, {options.replicas} replicas, nobody writes, median of {options.rounds} rounds")
    print(f"{'':>12} {'s':>7} {'MiB/s':>7} {'ratio':>6}")
    for name, took in zip([".dump", "copied", "ready"], [dump, *map(statistics.median, zip(*splits))]):
        print(f"{name:>12} {took:>7.2f} {size / took:>7.1f} {dump / took:>6.2f}", flush=True)
    return size


def percentile(latencies, share):
    return sorted(latencies)[min(len(latencies) - 1, int(len(latencies) * share))] / 1000


def writing(cluster, folder, options, arguments, kind):
    """The 99th percentiles of updates, in ms: usually, while a split copies, and while it catches up; and how long it copied."""
    script, log = folder / "update.sql", folder / "updates"
    script.write_text(UPDATE.format(kind=kind))
    command = [find("pgbench"), *cluster.connection, "-n", "-M", "prepared", "-c", options.clients, "-j", "1", "-T", "3600",
               "-D", f"rows={options.rows}", "-f", str(script), "-l", f"--log-prefix={log}", "--max-tries=100", "shoal"]
    writers = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    first = time.time()
    time.sleep(options.usual)
    begun = time.time()
    number = cluster.split(*arguments)
    cluster.wait_until_copied(number)
    copied = time.time()
    cluster.wait_until_ready(number)
    ready = time.time()
    writers.send_signal(signal.SIGINT)
    said = writers.communicate()[0]
    if "error" in said:
        raise SystemExit(f"pgbench failed:\n{said}")
    cluster.cancel(number)
    # The first seconds are those of connections.
    times = [(first + 2, begun), (begun, copied), (copied, ready)]
    found = [[] for _ in times]
    for path in folder.glob("updates.*"):
        for line in path.read_text().splitlines():
            words = line.split()
            if len(words) < 6 or not words[2].isdigit():
                continue
            at = int(words[4]) + int(words[5]) / 1e6
            for latencies, (begin, end) in zip(found, times):
                if begin <= at < end:
                    latencies.append(int(words[2]))
        path.unlink()
    return *[percentile(latencies, 0.99) for latencies in found], copied - begun


def latencies(cluster, folder, size, options):
    rate = max(1, int(size / options.copying * 1024))
    print(f"updates, {options.clients} clients, medians of {options.rounds} rounds, 99th percentiles in ms")
    print(f"{'':>12} {'usual':>8} {'copying':>8} {'ratio':>6} {'lowest':>7} {'highest':>7} {'took s':>7} {'catching up':>12}")
    kinds = {"by rate": ["--rate", f"{rate}KiB"], "as it likes": []}
    found = {kind: [] for kind in kinds}
    for _ in range(options.rounds):
        for kind, arguments in kinds.items():
            found[kind].append(writing(cluster, folder, options, arguments, kind.replace(" ", "-")))
    for kind, rounds in found.items():
        ratios = [copying / usual for usual, copying, *_ in rounds]
        usual, copying, catching, took = [statistics.median(column) for column in zip(*rounds)]
        print(f"{kind:>12} {usual:>8.2f} {copying:>8.2f} {statistics.median(ratios):>6.2f} {min(ratios):>7.2f} {max(ratios):>7.2f}"
              f" {took:>7.1f} {catching:>12.2f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["copy"])
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", default="8")
    parser.add_argument("--usual", type=int, default=15)
    parser.add_argument("--copying", type=int, default=15)
    parser.add_argument("--shoal", default=str(ROOT / "target/release/shoal"))
    options = parser.parse_args()
    for program in ["pgbench", "psql", "sqlite3"]:
        if not find(program):
            raise SystemExit(f"{program} is not installed")
    # The server is stopped on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        cluster = Cluster(folder, options.shoal, options.replicas)
        try:
            cluster.fill(options.rows)
            size = build(cluster, folder, options)
            latencies(cluster, folder, size, options)
        finally:
            cluster.stop()


if __name__ == "__main__":
    main()
