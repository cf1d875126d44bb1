#!/usr/bin/env python3
"""Measures point reads at the levels `strong` and `session` over three `shoal node`s, in turn, and prints the ratio of their rates.

    benches/reads.py [--clients 32] [--seconds 10] [--rounds 3] [--scale 10] [--mode prepared] [--shards 1] [--shoal PATH]

pgbench's select-only script runs against all three routers at once, the clients spread evenly over them (one pgbench for each
router), and then with all clients on the router of the node that leads most shards. The levels run A B A B .., told to the session by `options`, so
that a noisy machine hurts both alike. Printed are the rate, the share of reads that leaders answered (from
`shoal_reads_total`), and where the time goes: processor time per read of each node's process, and of the pgbenches.
"""

import argparse
import json
import os
import pathlib
import re
import resource
import signal
import statistics
import subprocess
import tempfile
import time
import urllib.request

from idle import cpu_seconds
from pgbench import ROOT, find, pgbench

LEVELS = ["strong", "session"]
NODES = 3


class Node:
    """A `shoal node` with its own data directory, on ports that the system picks."""

    def __init__(self, folder, binary, join):
        self.name, self.binary = folder.name, binary
        listen = ["--listen", "127.0.0.1:0", "--pg-listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]
        command = [binary, "node", "--data-dir", str(folder), *listen, *(["--join", join] if join else [])]
        self.log = open(folder.with_suffix(".log"), "w")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True)
        for line in self.process.stdout:
            if found := re.search(r"psql -h (\S+) -p (\d+)", line):
                self.connection = ["-h", found[1], "-p", found[2], "-U", "shoal"]
            elif found := re.match(r"admin: (\S+)", line):
                self.admin = found[1]
            elif found := re.match(r"metrics: (\S+)", line):
                self.metrics = found[1]
                return
        raise SystemExit(f"{self.name} ended before it was ready: see {self.log.name}")

    def figures(self, name):
        """The figures of this name: their labels and values."""
        with urllib.request.urlopen(self.metrics) as answer:
            found = re.findall(rf"^{name}(?:{{(.*)}})? (\S+)$", answer.read().decode(), re.M)
        return [(labels, float(value)) for labels, value in found]

    def leads(self):
        """How many shards of the keyspace `main` it leads."""
        status = json.loads(self.shoal("status", "--json").stdout)
        own = [node["node"] for node in status["nodes"] if node["address"] == self.admin]
        return sum(shard["keyspace"] == "main" and shard["leader"] in own for shard in status["shards"])

    def shoal(self, *arguments):
        command = [self.binary, *arguments, "--host", self.admin]
        return subprocess.run(command, text=True, capture_output=True)

    def stop(self):
        self.process.send_signal(signal.SIGINT)
        self.process.wait(30)


def launch(nodes, folder, options):
    for number in range(NODES):
        nodes.append(Node(folder / f"node-{number}", options.shoal, nodes[0].admin if nodes else None))
    arguments = ["init", "--shards", str(options.shards), "--replicas", str(NODES)]
    end = time.monotonic() + 60
    while f"there are {NODES}" not in nodes[0].shoal("init", "--coordinators", "5").stderr:
        if time.monotonic() > end:
            raise SystemExit("the nodes don't meet")
        time.sleep(0.2)
    done = nodes[0].shoal(*arguments)
    if done.returncode:
        raise SystemExit(done.stderr)


def by_leaders(nodes, level):
    """How many reads were answered at a level, and how many of them by leaders."""
    reads = [figure for node in nodes for figure in node.figures("shoal_reads_total") if f'level="{level}"' in figure[0]]
    return sum(value for _, value in reads), sum(value for labels, value in reads if 'by="leader"' in labels)


def children():
    """Processor seconds of the children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(nodes, routers, level, options):
    """Reads per second, the leaders' share, and microseconds of processor time per read: of each node, and of pgbench."""
    environment = {**os.environ, "PGOPTIONS": f"-c shoal.read_consistency={level}"}
    clients = [options.clients // len(routers) + (number < options.clients % len(routers)) for number in range(len(routers))]
    answered, cpu, own = by_leaders(nodes, level), [cpu_seconds(node.process.pid) for node in nodes], children()
    runs = []
    for node, count in zip(routers, clients):
        command = [find("pgbench"), *node.connection, "-n", "-b", "select-only", "-M", options.mode, "-c", str(count)]
        command += ["-j", "1", "-T", str(options.seconds), "shoal"]
        runs.append(subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    rate = 0
    for run in runs:
        out, error = run.communicate()
        if run.returncode or "error" in error:
            raise SystemExit(f"pgbench failed:\n{out}{error}")
        rate += float(re.search(r"tps = ([\d.]+)", out)[1])
    reads, led = [after - before for before, after in zip(answered, by_leaders(nodes, level))]
    spent = [cpu_seconds(node.process.pid) - before for node, before in zip(nodes, cpu)] + [children() - own]
    return [rate, 100 * led / max(reads, 1), *(1e6 * seconds / max(reads, 1) for seconds in spent)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", default="10")
    parser.add_argument("--mode", default="prepared", choices=["simple", "extended", "prepared"])
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--shoal", default=str(ROOT / "target/release/shoal"))
    options = parser.parse_args()
    if not find("pgbench"):
        raise SystemExit("pgbench is not installed")
    with tempfile.TemporaryDirectory() as folder:
        nodes = []
        try:
            launch(nodes, pathlib.Path(folder), options)
            pgbench(nodes[0], "-i", "-I", "dtpgv", "-s", options.scale, "-q")
            leader = max(nodes, key=Node.leads)
            print(f"point reads, {options.mode}, {options.clients} clients, {options.shards} shard(s) on {NODES} nodes,"
                  f" scale {options.scale}, median of {options.rounds} rounds of {options.seconds} s")
            header = [f"{node.name}{' (leads)' if node is leader else ''}" for node in nodes]
            print(f"{'clients on':14} {'level':8} {'reads/s':>8} {'by leaders':>10}  us of processor per read: {', '.join(header)}, pgbench")
            for place, routers in [("all routers", nodes), ("leader's", [leader])]:
                found = {level: [] for level in LEVELS}
                for _ in range(options.rounds):
                    for level in LEVELS:
                        found[level].append(measure(nodes, routers, level, options))
                medians = {level: [statistics.median(column) for column in zip(*runs)] for level, runs in found.items()}
                for level, (rate, share, *spent) in medians.items():
                    spent = ", ".join(f"{each:.1f}" for each in spent)
                    print(f"{place:14} {level:8} {rate:>8.0f} {share:>8.0f} %  {spent}", flush=True)
                print(f"{place:14} session/strong {medians['session'][0] / medians['strong'][0]:.2f}", flush=True)
        finally:
            for node in nodes:
                node.stop()


if __name__ == "__main__":
    main()
