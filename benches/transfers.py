#!/usr/bin/env python3
"""Measures transfers between two shards against transfers within one, in turn, and prints the ratios.

    benches/transfers.py [--clients 1,8,32] [--seconds 10] [--rounds 3] [--mode prepared] [--shoal PATH]
                         [--shoal-args "--nodes 3 --shards 2"]

A transfer is BEGIN, two UPDATEs by key, COMMIT, sent by pgbench. Accounts live in groups, and a group on one shard. The two kinds
differ in nothing but the shard of the second account: the first is of a group on one shard, the second of another
group there, or of one on the other shard. They run A B A B .. on the same cluster, so that a noisy machine hurts both alike. For each kind are
printed the rate, the median latency of a transaction, and how many log entries one costs over all groups.
"""

import argparse
import pathlib
import re
import statistics
import subprocess
import tempfile
import urllib.request

from pgbench import ROOT, Shoal, find, free_port, pgbench

GROUPS = 16  # on each shard
ACCOUNTS = 1000  # in each group


def ask(server, sql):
    command = [find("psql"), *server.connection, "-Atqc", sql, "shoal"]
    return subprocess.run(command, check=True, text=True, capture_output=True).stdout


def groups_by_shard(server):
    """Group numbers by the shard that EXPLAIN says they are on, as many for each of two."""
    shards = {}
    for group in range(1000):
        explained = ask(server, f"EXPLAIN SELECT 1 FROM account WHERE grp = {group}")
        shard = re.search(r"Route: One\((.*)\)", explained)[1]
        shards.setdefault(shard, []).append(group)
        full = [groups for groups in shards.values() if len(groups) >= GROUPS]
        if len(full) == 2:
            return [groups[:GROUPS] for groups in full]
    raise SystemExit("the groups aren't spread over two shards")


def script(folder, name, pairs):
    """One file for each pair of groups; pgbench picks one at random for each transaction."""
    files = []
    for number, (first, second) in enumerate(pairs):
        path = folder / f"{name}-{number}.sql"
        path.write_text(f"""\\set a random(1, {ACCOUNTS})
\\set b random(1, {ACCOUNTS})
BEGIN;
UPDATE account SET balance = balance - 1 WHERE grp = {first} AND id = :a;
UPDATE account SET balance = balance + 1 WHERE grp = {second} AND id = :b;
COMMIT;
""")
        files += ["-f", str(path)]
    return files


def entries(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        return sum(float(n) for n in re.findall(r"^shoal_proposals_total(?:{.*})? (\S+)$", answer.read().decode(), re.M))


def measure(server, port, folder, options, clients, files):
    log = folder / "log"
    before = entries(port)
    jobs = str(min(int(clients), 2))
    report = pgbench(server, "-n", "-M", options.mode, "-c", clients, "-j", jobs, "-T", str(options.seconds), *files,
                     "-l", f"--log-prefix={log}", "--max-tries=100")
    spent = entries(port) - before
    latencies = []
    for path in folder.glob("log.*"):
        latencies += [int(line.split()[2]) for line in path.read_text().splitlines() if line.split()[2].isdigit()]
        path.unlink()
    count = int(re.search(r"actually processed: (\d+)", report)[1])
    rate = float(re.search(r"tps = ([\d.]+)", report)[1])
    return rate, statistics.median(latencies) / 1000, spent / count


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", default="1,8,32")
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mode", default="prepared", choices=["simple", "extended", "prepared"])
    parser.add_argument("--shoal", default=str(ROOT / "target/release/shoal"))
    parser.add_argument("--shoal-args", default="--nodes 3 --shards 2")
    options = parser.parse_args()
    for program in ["pgbench", "psql"]:
        if not find(program):
            raise SystemExit(f"{program} is not installed")
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        port = free_port()
        arguments = [*options.shoal_args.split(), "--metrics-listen", f"127.0.0.1:{port}"]
        server = Shoal(folder, options.shoal, arguments)
        try:
            ask(server, "CREATE TABLE account (grp int, id int, balance bigint, PRIMARY KEY (grp, id)) PARTITION BY HASH (grp)")
            here, there = groups_by_shard(server)
            for group in here + there:
                rows = ", ".join(f"({group}, {number}, 0)" for number in range(1, ACCOUNTS + 1))
                ask(server, f"INSERT INTO account VALUES {rows}")
            kinds = [
                script(folder, "within", list(zip(here, here[1:] + here[:1]))),
                script(folder, "across", list(zip(here, there))),
            ]
            print(f"transfers, {options.shoal_args}, {options.mode}, median of {options.rounds} rounds of {options.seconds} s")
            print(f"{'clients':>7} {'one shard':>10} {'ms':>6} {'entries':>7} {'two shards':>10} {'ms':>6} {'entries':>7}"
                  f" {'rate':>5} {'latency':>7}")
            for clients in options.clients.split(","):
                found = [[], []]
                for _ in range(options.rounds):
                    for files, runs in zip(kinds, found):
                        runs.append(measure(server, port, folder, options, clients, files))
                one, two = [[statistics.median(column) for column in zip(*runs)] for runs in found]
                print(f"{clients:>7} {one[0]:>10.0f} {one[1]:>6.2f} {one[2]:>7.2f} {two[0]:>10.0f} {two[1]:>6.2f} {two[2]:>7.2f}"
                      f" {two[0] / one[0]:>5.2f} {two[1] / one[1]:>7.2f}", flush=True)
        finally:
            server.stop()


if __name__ == "__main__":
    main()
