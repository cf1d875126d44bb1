#!/usr/bin/env python3
"""Records what PostgreSQL 15 answers to each expression of expressions.txt, in place.

usage: record.py [psql's options]   (a server with C.UTF-8 and time zone UTC)

A line is an expression, a tab, and the answer: the result's type, a tab and its text; or `!` and an SQLSTATE. What
Shoal refuses though PostgreSQL has it is marked by hand with a third form, which recording keeps: `refused`.
"""
import pathlib
import subprocess
import sys

path = pathlib.Path(__file__).parent / "expressions.txt"
lines = [line.split("\t") for line in path.read_text().splitlines()]
script = ["\\set VERBOSITY sqlstate", "SET timezone = 'UTC';"]
for fields in lines:
    if fields[0] and not fields[0].startswith("#"):
        script.append("\\echo @@")
        script.append(f"SELECT pg_typeof(x), x FROM (SELECT {fields[0]} AS x) q;")
run = subprocess.run(
    ["psql", "-X", "-q", "-A", "-t", "-F", "\t", "-P", "null=NULL", *sys.argv[1:]],
    input="\n".join(script), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True,
)
answers = iter(run.stdout.split("@@\n")[1:])
out = []
for fields in lines:
    if not fields[0] or fields[0].startswith("#"):
        out.append(fields[0])
        continue
    answer = next(answers).removesuffix("\n")
    if "ERROR:  " in answer:
        answer = "!" + answer.split("ERROR:  ")[1][:5]
    out.append(f"{fields[0]}\t{'refused' if fields[1:] == ['refused'] else answer}")
path.write_text("\n".join(out) + "\n")
