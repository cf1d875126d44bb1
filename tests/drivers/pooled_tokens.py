"""Clients of a pooler that carry their tokens in their transactions: the pooler's folder and port as arguments.

Each writes over the pooler's database `write` and reads over `read`, first without a token and then with it. Any failure ends it with
a traceback; else it prints how many of the reads without a token were stale.
"""

import sys
import threading

import psycopg2

folder, port = sys.argv[1:]
CLIENTS, PAIRS, ROWS = 32, 8, 4
stale, failures, lock = 0, [], threading.Lock()


def connect(database):
    return psycopg2.connect(host=folder, port=port, user="shoal", dbname=database, connect_timeout=20)


def positions(token):
    return {log: int(index) for log, index in (part.rsplit(":", 1) for part in token.split(","))}


def see(reader, rows, token):
    with reader, reader.cursor() as cursor:
        cursor.execute("SET LOCAL shoal.read_consistency = 'session'")
        if token:
            cursor.execute("SET LOCAL shoal.gtid = %s", (token,))
        cursor.execute("SELECT min(n) FROM counter WHERE id = ANY(%s)", (rows,))
        return cursor.fetchone()[0]


def client(number):
    global stale
    writer, reader, token = connect("write"), connect("read"), None
    rows = list(range(number * ROWS, number * ROWS + ROWS))
    for n in range(1, PAIRS + 1):
        with writer, writer.cursor() as cursor:
            cursor.execute("SET LOCAL shoal.report_gtid = on")
            if token:
                cursor.execute("SET LOCAL shoal.gtid = %s", (token,))
            # One row, on one shard, or all.
            changed = rows if n % 2 else rows[:1]
            cursor.execute("UPDATE counter SET n = %s WHERE id = ANY(%s)", (n, changed))
            assert cursor.rowcount == len(changed), cursor.rowcount
        before, token = token, writer.info.parameter_status("shoal.gtid")
        assert token, "no token was told"
        for log, index in positions(before or token).items():
            assert positions(token)[log] >= index, (before, token)
        # A replica may not even have the rows yet: then there is no minimum.
        if (see(reader, changed, None) or 0) < n:
            with lock:
                stale += 1
        seen = see(reader, changed, token)
        assert seen == n, f"{seen} instead of {n}, asked with {token}"
    writer.close()
    reader.close()


def run(number):
    try:
        client(number)
    except BaseException as failure:
        with lock:
            failures.append(failure)
        raise


setup = connect("write")
setup.autocommit = True
cursor = setup.cursor()
cursor.execute("CREATE TABLE counter (id int PRIMARY KEY, n int NOT NULL)")
rows = ", ".join(f"({row}, 0)" for row in range(CLIENTS * ROWS))
cursor.execute(f"INSERT INTO counter VALUES {rows}")
threads = [threading.Thread(target=run, args=(number,)) for number in range(CLIENTS)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
if failures:
    sys.exit(f"{len(failures)} clients failed")
print(stale)
