#!/usr/bin/env python3
"""Runs pgbench against `shoal dev` and against PostgreSQL, in turn, and prints the ratios of their rates.

    benches/pgbench.py [--scale 10] [--seconds 10] [--rounds 2] [--clients 1,8,32] [--modes simple,extended,prepared]
                       [--shoal PATH] [--shoal-args "--nodes 3 ..."] [--script select-only]

Both servers are started for the run with their defaults, on data directories of their own, loaded by
`pgbench -i -I dtpgv`, and measured A B A B .. so that a noisy machine hurts both alike. A ratio is the median of
Shoal's rates over the median of PostgreSQL's. Without a PostgreSQL (Debian's package) Shoal runs alone.
"""

import argparse
import os
import pathlib
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
DEBIAN = pathlib.Path("/usr/lib/postgresql/15/bin")


def find(program):
    found = shutil.which(program)
    if not found and (DEBIAN / program).exists():
        found = str(DEBIAN / program)
    return found


class Postgres:
    """A PostgreSQL with its own data directory, on a port that is free."""

    name = "postgresql"

    def __init__(self, folder, options=""):
        self.folder = folder
        self.user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        if self.user:
            shutil.chown(folder, "postgres")
        data = folder / "data"
        self.run("initdb", "--locale=C.UTF-8", "--encoding=UTF8", "--username=shoal", "--auth=trust", "-D", data)
        port = free_port()
        self.connection = ["-h", "127.0.0.1", "-p", str(port), "-U", "shoal"]
        self.start(data, port, options)
        subprocess.run([find("createdb"), *self.connection, "shoal"], check=True)

    def start(self, data, port, options=""):
        addresses = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={self.folder}"
        log = data.with_suffix(".log")
        self.run("pg_ctl", "-D", data, "-l", log, "-w", "-o", f"{addresses} {options}", "start")

    def run(self, program, *arguments):
        command = [*self.user, find(program), *map(str, arguments)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/")

    def stop(self):
        self.run("pg_ctl", "-D", self.folder / "data", "-m", "fast", "stop")


class Shoal:
    """A `shoal dev` with its own data directory."""

    name = "shoal"

    def __init__(self, folder, binary, arguments):
        command = [binary, "dev", "--data-dir", str(folder / "data"), "--listen", "127.0.0.1:0", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        for line in self.process.stdout:
            found = re.search(r"psql -h (\S+) -p (\d+)", line)
            if found:
                self.connection = ["-h", found[1], "-p", found[2], "-U", "shoal"]
                return
        raise SystemExit("shoal dev ended before it was ready")

    def stop(self):
        self.process.send_signal(signal.SIGINT)
        self.process.wait(30)


def free_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def pgbench(server, *arguments):
    command = [find("pgbench"), *server.connection, *arguments, "shoal"]
    done = subprocess.run(command, text=True, capture_output=True)
    if done.returncode or "error" in done.stderr:
        raise SystemExit(f"{' '.join(command)} failed on {server.name}:\n{done.stdout}{done.stderr}")
    return done.stdout


def rate(server, script, mode, clients, seconds):
    jobs = str(min(int(clients), 2))
    report = pgbench(server, "-n", "-b", script, "-M", mode, "-c", clients, "-j", jobs, "-T", str(seconds))
    return float(re.search(r"tps = ([\d.]+)", report)[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", default="10")
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--clients", default="1,8,32")
    parser.add_argument("--modes", default="simple,extended,prepared")
    parser.add_argument("--script", default="select-only")
    parser.add_argument("--shoal", default=str(ROOT / "target/release/shoal"))
    parser.add_argument("--shoal-args", default="")
    options = parser.parse_args()
    if not find("pgbench"):
        raise SystemExit("pgbench is not installed")
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        servers = [Shoal(pathlib.Path(first), options.shoal, options.shoal_args.split())]
        try:
            if find("initdb"):
                servers.append(Postgres(pathlib.Path(second)))
            else:
                print("no PostgreSQL here: Shoal alone", file=sys.stderr)
            for server in servers:
                pgbench(server, "-i", "-I", "dtpgv", "-s", options.scale, "-q")
            print(f"{options.script}, scale {options.scale}, median of {options.rounds} rounds of {options.seconds} s")
            print(f"{'mode':10} {'clients':>7} {'shoal':>10} {'postgresql':>10} {'ratio':>6}")
            for mode in options.modes.split(","):
                for clients in options.clients.split(","):
                    rates = [[] for _ in servers]
                    for _ in range(options.rounds):
                        for server, found in zip(servers, rates):
                            found.append(rate(server, options.script, mode, clients, options.seconds))
                    medians = [statistics.median(found) for found in rates]
                    ratio = f"{medians[0] / medians[1]:.2f}" if len(medians) > 1 else "-"
                    other = f"{medians[1]:.0f}" if len(medians) > 1 else "-"
                    print(f"{mode:10} {clients:>7} {medians[0]:>10.0f} {other:>10} {ratio:>6}", flush=True)
        finally:
            for server in servers:
                server.stop()


if __name__ == "__main__":
    main()
