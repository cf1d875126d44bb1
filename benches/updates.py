#!/usr/bin/env python3
"""Measures durable single-row UPDATEs by key against PostgreSQL, in turn, and prints the ratios of their rates.

    benches/updates.py [--replicas 1,3] [--clients 1,8,32,128] [--seconds 10] [--rounds 3] [--mode simple]
                       [--scale 10] [--shoal PATH] [--shoal-args "--shards 2 ..."] [--no-fsync-share]

With 1 replica, `shoal dev --nodes 1` meets a PostgreSQL with its defaults (fsync on, but room for 200 clients). With 3, `shoal dev --nodes 3`
(three nodes in one process, each with a log and fsyncs of its own) meets a PostgreSQL with
`synchronous_standby_names = 'ANY 1 (a, b)'` and two streaming standbys on the same machine. Both servers are up during
the whole run and measured A B A B .., so that a noisy machine hurts both alike. A ratio is the median of Shoal's rates
over the median of PostgreSQL's; beside it stands the lowest and the highest ratio of two neighbours.

After each point one shorter round is run under `perf trace` (where it works: as root, with tracefs mounted), which
counts fsyncs. Printed are how many of them one transaction took, over all nodes, how long one took, and which share of
the round at least one thread spent in one: of Shoal's nodes the busiest one's log thread, of PostgreSQL the primary's
processes, whose fsyncs can overlap, so more than 100 % is possible.
"""

import argparse
import os
import pathlib
import re
import signal
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from pgbench import ROOT, Postgres, Shoal, find, free_port, pgbench

SCRIPT = """\\set aid random(1, 100000 * :scale)
\\set delta random(-5000, 5000)
UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :aid;
"""
STANDBYS = ["a", "b"]
# The default is 100, fewer than 128 clients need.
CONNECTIONS = "-c max_connections=200"


class Replicated(Postgres):
    """A PostgreSQL whose commits wait for one of two standbys."""

    def __init__(self, folder):
        super().__init__(folder, CONNECTIONS)
        self.members = [folder / "data"]
        for name in STANDBYS:
            data, port = folder / name, free_port()
            address = f"host=127.0.0.1 port={self.connection[3]} user=shoal application_name={name}"
            self.run("pg_basebackup", "-D", data, "-R", "-X", "stream", "-c", "fast", "-d", address)
            self.start(data, port, CONNECTIONS)
            self.members.append(data)
        self.ask("ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (a, b)'")
        self.ask("SELECT pg_reload_conf()")
        following = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'quorum'"
        for _ in range(60):
            if self.ask(following) == str(len(STANDBYS)):
                return
            time.sleep(0.5)
        raise SystemExit("the standbys don't follow")

    def ask(self, sql):
        command = [find("psql"), *self.connection, "-Atqc", sql, "shoal"]
        return subprocess.run(command, check=True, text=True, capture_output=True).stdout.strip()

    def stop(self):
        for data in reversed(self.members):
            self.run("pg_ctl", "-D", data, "-m", "fast", "stop")


def processes(server):
    """The ids of a server's processes: those of the one that clients meet, and those of its replicas."""
    if isinstance(server, Shoal):
        return [server.process.pid], []
    data = getattr(server, "members", [server.folder / "data"])
    families = []
    for member in data:
        postmaster = (member / "postmaster.pid").read_text().split()[0]
        found = subprocess.run(["pgrep", "-P", postmaster], text=True, capture_output=True).stdout.split()
        families.append([int(pid) for pid in [postmaster, *found]])
    return families[0], [pid for family in families[1:] for pid in family]


class Load:
    """What pgbench is asked to do."""

    def __init__(self, options, script):
        self.options = options
        self.script = script

    def run(self, server, clients, seconds):
        jobs = str(min(int(clients), 2))
        arguments = ["-n", "-M", self.options.mode, "-c", clients, "-j", jobs, "-T", str(seconds)]
        report = pgbench(server, *arguments, "-D", f"scale={self.options.scale}", "-f", self.script)
        return float(re.search(r"tps = ([\d.]+)", report)[1]), float(re.search(r"latency average = ([\d.]+)", report)[1])

    def fsyncs(self, server, clients, seconds=4):
        """Fsyncs of one transaction, microseconds of one fsync, and the share of the time that they take."""
        jobs = str(min(int(clients), 2))
        command = [find("pgbench"), *server.connection, "-n", "-M", self.options.mode, "-c", clients, "-j", jobs]
        command += ["-T", str(seconds + 2), "-D", f"scale={self.options.scale}", "-f", self.script, "shoal"]
        bench = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            time.sleep(1)
            first, others = processes(server)
            pids = ",".join(map(str, [*first, *others]))
            trace = ["perf", "trace", "-s", "-e", "fsync,fdatasync", "-p", pids, "--", "sleep", str(seconds)]
            found = subprocess.run(trace, text=True, capture_output=True)
        finally:
            report, _ = bench.communicate()
        rate = float(re.search(r"tps = ([\d.]+)", report)[1])
        threads, count, spent = {}, 0, 0.0
        for line in (found.stdout + found.stderr).splitlines():
            named = re.match(r"\s*(\S.*) \((\d+)\), \d+ events", line)
            if named:
                thread = int(named[2])
            called = re.match(r"\s+(?:fsync|fdatasync)\s+(\d+)\s+\d+\s+([\d.]+)", line)
            if called:
                count += int(called[1])
                spent += float(called[2])
                threads[thread] = threads.get(thread, 0) + float(called[2])
        if not count:
            return "no perf trace"
        mine = [ms for thread, ms in threads.items() if isinstance(server, Shoal) or thread in first]
        busy = max(mine, default=0) if isinstance(server, Shoal) else sum(mine)
        each = count / seconds / rate
        return f"{each:.2f} of {1000 * spent / count:.0f} us, {busy / seconds / 10:.0f} %"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", default="1,3")
    parser.add_argument("--clients", default="1,8,32,128")
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mode", default="simple", choices=["simple", "extended", "prepared"])
    parser.add_argument("--scale", default="10")
    parser.add_argument("--shoal", default=str(ROOT / "target/release/shoal"))
    parser.add_argument("--shoal-args", default="")
    parser.add_argument("--no-fsync-share", action="store_true")
    options = parser.parse_args()
    # The servers are stopped on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    for program in ["pgbench", "initdb", "pg_basebackup", "pgrep"]:
        if not find(program):
            raise SystemExit(f"{program} is not installed")
    for replicas in options.replicas.split(","):
        with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
            compare(options, int(replicas), pathlib.Path(first), pathlib.Path(second))


def compare(options, replicas, first, second):
    os.chmod(second, 0o755)
    script = second / "update.sql"
    script.write_text(SCRIPT)
    load = Load(options, str(script))
    arguments = ["--nodes", str(replicas), "--replicas", str(replicas), *options.shoal_args.split()]
    servers = [Shoal(first, options.shoal, arguments)]
    try:
        folder = second / "postgresql"
        folder.mkdir()
        servers.append(Postgres(folder, CONNECTIONS) if replicas == 1 else Replicated(folder))
        for server in servers:
            pgbench(server, "-i", "-I", "dtpgv", "-s", options.scale, "-q")
        other = "PostgreSQL" if replicas == 1 else "PostgreSQL with two standbys, ANY 1"
        print(f"UPDATE by key, {replicas} replicas against {other}; {options.mode}, scale {options.scale}, "
              f"median of {options.rounds} rounds of {options.seconds} s")
        print(f"{'clients':>7} {'shoal':>8} {'ms':>7} {'postgres':>8} {'ms':>7} {'ratio':>6} {'(from - to)':>13}"
              "   fsyncs of a transaction and their share")
        for clients in options.clients.split(","):
            found = [[], []]
            for _ in range(options.rounds):
                for server, rates in zip(servers, found):
                    rates.append(load.run(server, clients, options.seconds))
            (ours, our_ms), (theirs, their_ms) = [
                [statistics.median(column) for column in zip(*rates)] for rates in found
            ]
            pairs = [a[0] / b[0] for a, b in zip(*found)]
            line = (f"{clients:>7} {ours:>8.0f} {our_ms:>7.2f} {theirs:>8.0f} {their_ms:>7.2f} {ours / theirs:>6.2f} "
                    f"({min(pairs):.2f} - {max(pairs):.2f})")
            if not options.no_fsync_share and shutil.which("perf"):
                shares = [load.fsyncs(server, clients) for server in servers]
                line += f"   shoal {shares[0]}; postgresql {shares[1]}"
            print(line, flush=True)
    finally:
        for server in servers:
            server.stop()


if __name__ == "__main__":
    main()
