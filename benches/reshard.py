#!/usr/bin/env python3
"""Measures how fast new shards are built, and what writers notice of it, and prints the ratios.

    benches/reshard.py copy [--rows 1000000] [--rounds 3] [--clients 8] [--usual 15] [--copying 15] [--shoal PATH]

A node of its own has one shard, with rows of about 100 bytes and one index. It is split in two, as far as the new shards' files are
copied, and that is cancelled.

First nobody writes. `sqlite3 f .dump | sqlite3 g`, of a copy of the shard's database, and a split take turns, so that a noisy machine
hurts both alike. The ratio is that of their rates: how often a shard is copied while it is dumped and read once.

Then pgbench updates single rows by key. For some seconds nothing else happens, then a split copies: with a rate that has it take about as long
as those (`--rate`), or as fast as it likes, held back only by how long writers wait. Printed are the 99th percentiles of the updates' latencies
in both times, and their ratio, for each kind the median of the rounds.
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


class Node:
    """A cluster of one `shoal node`, with one shard."""

    name = "shoal"

    def __init__(self, folder, binary):
        self.binary, self.data = binary, folder / "data"
        command = [binary, "node", "--data-dir", str(self.data), "--listen", "127.0.0.1:0", "--pg-listen", "127.0.0.1:0"]
        self.log = open(folder / "log", "w")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True)
        self.admin = self.connection = None
        for line in self.process.stdout:
            if found := re.match(r"admin: (\S+)", line):
                self.admin = found[1]
            if found := re.search(r"psql -h (\S+) -p (\d+)", line):
                self.connection = ["-h", found[1], "-p", found[2], "-U", "shoal"]
            if self.admin and self.connection:
                break
        else:
            raise SystemExit("shoal node ended before it was ready")
        self.shoal("init", "--replicas", "1", "--shards", "1")

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

    def cancel(self, number):
        self.shoal("reshard", "cancel", number)

    def stop(self):
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)
        self.log.close()


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


def seconds_of_split(node):
    begun = time.monotonic()
    number = node.split()
    node.wait_until_copied(number)
    took = time.monotonic() - begun
    node.cancel(number)
    return took


def build(node, folder, options):
    image = folder / "image.sqlite"
    subprocess.run(["sqlite3", str(node.database()), f".backup {image}"], check=True)
    size = image.stat().st_size / 2**20
    dumps, splits = [], []
    for _ in range(options.rounds):
        dumps.append(seconds_of_dump(image, folder))
        splits.append(seconds_of_split(node))
    dump, split = statistics.median(dumps), statistics.median(splits)
    print(f"building, {options.rows} rows, {size:.0f} MiB, nobody writes, median of {options.rounds} rounds")
    print(f"{'':>12} {'s':>7} {'MiB/s':>7} {'ratio':>6}")
    print(f"{'.dump':>12} {dump:>7.2f} {size / dump:>7.1f}")
    print(f"{'split':>12} {split:>7.2f} {size / split:>7.1f} {dump / split:>6.2f}", flush=True)
    return size


def percentile(latencies, share):
    return sorted(latencies)[min(len(latencies) - 1, int(len(latencies) * share))] / 1000


def writing(node, folder, options, arguments, kind):
    """The 99th percentiles of updates, in ms: usually, and while a split copies; and how long that took."""
    script, log = folder / "update.sql", folder / "updates"
    script.write_text(UPDATE.format(kind=kind))
    seconds = options.usual + 3 * options.copying
    command = [find("pgbench"), *node.connection, "-n", "-M", "prepared", "-c", options.clients, "-j", "1", "-T", str(seconds),
               "-D", f"rows={options.rows}", "-f", str(script), "-l", f"--log-prefix={log}", "--max-tries=100", "shoal"]
    writers = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    first = time.time()
    time.sleep(options.usual)
    begun = time.time()
    number = node.split(*arguments)
    node.wait_until_copied(number)
    ended = time.time()
    said = writers.communicate()[0]
    if writers.returncode or "error" in said:
        raise SystemExit(f"pgbench failed:\n{said}")
    node.cancel(number)
    usual, copying = [], []
    for path in folder.glob("updates.*"):
        for line in path.read_text().splitlines():
            words = line.split()
            if not words[2].isdigit():
                continue
            at = int(words[4]) + int(words[5]) / 1e6
            # The first seconds are those of connections.
            if first + 2 < at < begun:
                usual.append(int(words[2]))
            elif begun <= at < ended:
                copying.append(int(words[2]))
        path.unlink()
    return percentile(usual, 0.99), percentile(copying, 0.99), ended - begun


def latencies(node, folder, size, options):
    rate = max(1, int(size / options.copying * 1024))
    print(f"updates, {options.clients} clients, medians of {options.rounds} rounds, 99th percentiles")
    print(f"{'':>12} {'usual ms':>8} {'copying':>8} {'ratio':>6} {'lowest':>7} {'highest':>7} {'took s':>7}")
    kinds = {"by rate": ["--rate", f"{rate}KiB"], "as it likes": []}
    found = {kind: [] for kind in kinds}
    for _ in range(options.rounds):
        for kind, arguments in kinds.items():
            found[kind].append(writing(node, folder, options, arguments, kind.replace(" ", "-")))
    for kind, rounds in found.items():
        ratios = [copying / usual for usual, copying, _ in rounds]
        usual, copying, took = [statistics.median(column) for column in zip(*rounds)]
        print(f"{kind:>12} {usual:>8.2f} {copying:>8.2f} {statistics.median(ratios):>6.2f} {min(ratios):>7.2f} {max(ratios):>7.2f}"
              f" {took:>7.1f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["copy"])
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
        node = Node(folder, options.shoal)
        try:
            node.fill(options.rows)
            size = build(node, folder, options)
            latencies(node, folder, size, options)
        finally:
            node.stop()


if __name__ == "__main__":
    main()
