#!/usr/bin/env python3
"""Records what PostgreSQL 15 makes of each name in resolution.txt for arguments of all types, in place.

usage: record.py [psql's options]

A line `? kind name count` asks. Below stand the answers: kind, name, argument types and the result's type, or `!` and
an SQLSTATE. What isn't listed is 42883. Three arguments are tried over a few types only.
"""
import itertools
import pathlib
import subprocess
import sys

TYPES = [
    "bool", "int2", "int4", "int8", "float4", "float8", "numeric", "text", "varchar", "bpchar", '"char"', "name",
    "bytea", "date", "timestamp", "timestamptz", "uuid", "oid", "unknown",
]
FEW = ["int4", "int8", "text", "bytea", "unknown", "numeric", "timestamptz", "float8"]

TRY = """
create function pg_temp.try(e text) returns text language plpgsql as $$
declare r text;
begin
  execute 'select pg_typeof(x)::text from (select ' || e || ' as x) q' into r; return r;
exception when others then return '!' || sqlstate;
end $$;
"""


def null(ty):
    return "null" if ty == "unknown" else f"null::{ty}"


path = pathlib.Path(__file__).parent / "resolution.txt"
questions = [line for line in path.read_text().splitlines() if line.startswith("?")]
script = [TRY, "create temp table c(n serial, kind text, name text, args text, e text);",
          "copy c(kind, name, args, e) from stdin;"]
for question in questions:
    _, kind, name, count = question.split()
    for types in itertools.product(TYPES if int(count) < 3 else FEW, repeat=int(count)):
        args = [null(ty) for ty in types]
        if kind == "operator":
            call = f"{args[0]} {name} {args[1]}" if len(args) == 2 else f"{name} {args[0]}"
        else:
            call = f'"{name}"({", ".join(args)})'
        script.append("\t".join([kind, name, ",".join(types), call]))
script += ["\\.", "select kind, name, args, a from (select *, pg_temp.try(e) a from c) t where a <> '!42883' order by n;"]
run = subprocess.run(
    ["psql", "-X", "-q", "-A", "-t", "-F", "\t", *sys.argv[1:]],
    input="\n".join(script), text=True, stdout=subprocess.PIPE, check=True,
)
path.write_text("\n".join(questions) + "\n" + run.stdout)
