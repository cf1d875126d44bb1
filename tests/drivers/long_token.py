"""A commit on many shards through a pooler: the pooler's folder and port, and how many shards there are, as arguments."""

import sys

import psycopg2

folder, port, shards = sys.argv[1:]


def connect():
    return psycopg2.connect(host=folder, port=port, user="shoal", dbname="write", connect_timeout=20)


connection, others = connect(), [connect(), connect()]
with connection, connection.cursor() as cursor:
    cursor.execute("CREATE TABLE t (id int PRIMARY KEY)")
with connection, connection.cursor() as cursor:
    cursor.execute("SET LOCAL shoal.report_gtid = on")
    cursor.execute("INSERT INTO t VALUES " + ", ".join(f"({row})" for row in range(20 * int(shards))))
token = connection.info.parameter_status("shoal.gtid")
assert token and token.count("main/") == int(shards), token
with connection, connection.cursor() as cursor:
    cursor.execute("SET LOCAL shoal.read_consistency = 'session'")
    cursor.execute("SET LOCAL shoal.gtid = %s", (token,))
    cursor.execute("SELECT count(*) FROM t")
    assert cursor.fetchone() == (20 * int(shards),)
# Other clients of the pooler's only connection are told as well, though the second one changes nothing of what it has seen.
for other in others:
    with other, other.cursor() as cursor:
        cursor.execute("SET LOCAL shoal.report_gtid = on")
        cursor.execute("SELECT count(*) FROM t")
    assert other.info.parameter_status("shoal.gtid"), "who reads isn't told"
print(len(token))
