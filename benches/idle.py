#!/usr/bin/env python3
"""Measures what a `shoal dev` costs that nobody uses: CPU, memory, threads.

    benches/idle.py [--shards 2,64] [--nodes 3] [--seconds 20] [--settle 10] [--scale 1] [--shoal PATH]

Each cluster is measured twice: fresh, and after a use that has touched every shard (`pgbench -i`, then some seconds of
reads and updates; left out where there is no pgbench). CPU is read from the process's own clock, in nanoseconds:
/proc/PID/stat counts by sampling, and may miss what runs for microseconds.
Last comes how long the first statement takes after the cluster has slept, and how long the second.
"""

import argparse
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

from pgbench import ROOT, Shoal, find, pgbench
from updates import SCRIPT


def cpu_seconds(pid):
    # What clock_getcpuclockid(3) gives: the clock of all its threads, those that have ended included.
    return time.clock_gettime(~pid << 3 | 2)


def status(pid, name):
    return int(re.search(rf"{name}:\s+(\d+)", pathlib.Path(f"/proc/{pid}/status").read_text())[1])


def measure(server, what, shards, options):
    pid = server.process.pid
    time.sleep(options.settle)
    before, start = cpu_seconds(pid), time.monotonic()
    time.sleep(options.seconds)
    share = 100 * (cpu_seconds(pid) - before) / (time.monotonic() - start)
    memory, threads = status(pid, "VmRSS") / 1024, status(pid, "Threads")
    print(f"{shards:>6} {what:>10} {share:>8.2f} {memory:>8.0f} {threads:>8}", flush=True)


def use(server, options):
    pgbench(server, "-i", "-I", "dtpgv", "-s", options.scale, "-q")
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        script.write(SCRIPT)
        script.flush()
        for load in [["-b", "select-only"], ["-D", f"scale={options.scale}", "-f", script.name]]:
            pgbench(server, "-n", *load, "-c", "8", "-j", "2", "-T", "5")


def first_statements(server):
    """Milliseconds of three statements in one session, the first of which finds its shard asleep."""
    lookup = "SELECT abalance FROM pgbench_accounts WHERE aid = 4711;\n"
    command = [find("psql"), *server.connection, "-Atq", "shoal"]
    text = "\\timing on\nSELECT 1;\n" + 3 * lookup
    done = subprocess.run(command, input=text, text=True, capture_output=True, check=True)
    return re.findall(r"Time: ([\d.]+) ms", done.stdout)[1:]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", default="2,64")
    parser.add_argument("--nodes", default="3")
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--settle", type=int, default=10)
    parser.add_argument("--scale", default="1")
    parser.add_argument("--shoal", default=str(ROOT / "target/release/shoal"))
    options = parser.parse_args()
    # The servers are stopped on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    print(f"shoal dev --nodes {options.nodes}, idle for {options.seconds} s")
    print(f"{'shards':>6} {'':>10} {'% of CPU':>8} {'RSS MiB':>8} {'threads':>8}")
    for shards in options.shards.split(","):
        with tempfile.TemporaryDirectory() as folder:
            server = Shoal(pathlib.Path(folder), options.shoal, ["--nodes", options.nodes, "--shards", shards])
            try:
                measure(server, "fresh", shards, options)
                if find("pgbench"):
                    use(server, options)
                    measure(server, "after use", shards, options)
                    times = ", ".join(first_statements(server))
                    print(f"{shards:>6} a key's lookup after the sleep, and twice more: {times} ms", flush=True)
            finally:
                server.stop()


if __name__ == "__main__":
    main()
