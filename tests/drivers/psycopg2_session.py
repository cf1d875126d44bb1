"""What an application does over psycopg2: host and port as arguments; any failure ends it with a traceback."""

import datetime
import decimal
import sys

import psycopg2

host, port = sys.argv[1:]
connection = psycopg2.connect(host=host, port=port, user="shoal", dbname="shoal")
connection.autocommit = True
cursor = connection.cursor()
cursor.execute("CREATE TABLE sale (id serial PRIMARY KEY, item text, price numeric(8,2), at timestamptz, paid bool)")
at = datetime.datetime(2024, 2, 29, 12, 30, tzinfo=datetime.timezone.utc)
for item, price, paid in [("cod", decimal.Decimal("1.50"), True), ("eel", None, False)]:
    cursor.execute("INSERT INTO sale (item, price, at, paid) VALUES (%s, %s, %s, %s) RETURNING id", (item, price, at, paid))
    assert cursor.fetchone()[0] > 0
cursor.execute("SELECT item, price, at, paid FROM sale ORDER BY item")
assert cursor.fetchall() == [("cod", decimal.Decimal("1.50"), at, True), ("eel", None, at, False)]
cursor.execute("SELECT count(*), sum(price) FROM sale WHERE item = ANY(%s)", (["cod", "eel"],))
assert cursor.fetchone() == (2, decimal.Decimal("1.50"))
try:
    cursor.execute("SELECT * FROM nosuch")
    raise AssertionError("an unknown table was read")
except psycopg2.errors.UndefinedTable as error:
    assert "nosuch" in str(error)
connection.autocommit = False
cursor.execute("SELECT count(*) FROM sale")
assert cursor.fetchone() == (2,)
connection.commit()
connection.close()
