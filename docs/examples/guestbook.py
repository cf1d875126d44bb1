#!/usr/bin/env python3
"""A guest book whose visitors always find their own entries, whichever process serves them and whichever replica answers.

    guestbook.py --listen 127.0.0.1:8000 --database "host=127.0.0.1 port=5433 user=shoal dbname=shoal"

Run as many of them as you like, each on a router of its own. What one visitor has seen and written travels in a cookie: the
token that Shoal tells after each commit. docs/consistency.md tells the story.
"""

import argparse
import html
import http.cookies
import http.server
import threading
import urllib.parse

import psycopg2
import psycopg2.pool

CONNECTIONS = 16
TABLE = """CREATE TABLE IF NOT EXISTS entry (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), author text NOT NULL, line text NOT NULL,
    written timestamptz NOT NULL DEFAULT now())"""


class Database:
    """Transactions that go on from a visitor's token, over connections that all visitors share."""

    def __init__(self, address):
        self.pool = psycopg2.pool.ThreadedConnectionPool(1, CONNECTIONS, address)
        self.free = threading.BoundedSemaphore(CONNECTIONS)

    def run(self, token, work):
        """Runs `work(cursor)` as one transaction. Answers with its result and the visitor's new token."""
        with self.free:
            connection = self.pool.getconn()
            try:
                with connection, connection.cursor() as cursor:  # psycopg2 sends BEGIN, and COMMIT at the end
                    cursor.execute("SET LOCAL shoal.read_consistency = 'session'")
                    cursor.execute("SET LOCAL shoal.report_gtid = on")
                    if token:
                        cursor.execute("SET LOCAL shoal.gtid = %s", (token,))
                    result = work(cursor)
                return result, connection.info.parameter_status("shoal.gtid")
            finally:
                self.pool.putconn(connection)

    def run_for(self, token, work):
        """The same for a token that anybody may have written, or that is of before a restore: then without it."""
        try:
            return self.run(token, work)
        except psycopg2.Error as error:
            if not token or error.pgcode not in ("22023", "SH002"):
                raise
            return self.run(None, work)


class Visit(http.server.BaseHTTPRequestHandler):
    """One request."""

    def do_GET(self):
        def latest(cursor):
            cursor.execute("SELECT author, line FROM entry ORDER BY written DESC LIMIT 20")
            return cursor.fetchall()

        entries, token = self.server.database.run_for(self.token(), latest)
        rows = "".join(f"<li><b>{html.escape(author)}</b> {html.escape(line)}</li>\n" for author, line in entries)
        form = '<form method="post"><input name="author"><input name="line"><button>Sign</button></form>'
        self.answer(200, token, f"<!doctype html><title>Guest book</title>{form}<ul>{rows}</ul>")

    def do_POST(self):
        length = int(self.headers.get("Content-Length", 0))
        fields = urllib.parse.parse_qs(self.rfile.read(length).decode())
        entry = [fields.get(name, [""])[0] for name in ("author", "line")]

        def sign(cursor):
            cursor.execute("INSERT INTO entry (author, line) VALUES (%s, %s)", entry)

        _, token = self.server.database.run_for(self.token(), sign)
        self.answer(303, token, "", [("Location", "/")])

    def token(self):
        cookies = http.cookies.SimpleCookie(self.headers.get("Cookie", ""))
        return urllib.parse.unquote(cookies["gtid"].value) if "gtid" in cookies else None

    def answer(self, status, token, page, headers=()):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if token:
            value = urllib.parse.quote(token, safe="/:")  # a cookie may have no comma
            self.send_header("Set-Cookie", f"gtid={value}; Path=/; HttpOnly; SameSite=Lax")
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(page.encode())

    def log_message(self, *_):
        pass


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--listen", default="127.0.0.1:8000")
    parser.add_argument("--database", default="host=127.0.0.1 port=5433 user=shoal dbname=shoal")
    options = parser.parse_args()
    setup = psycopg2.connect(options.database)
    setup.autocommit = True
    setup.cursor().execute(TABLE)
    setup.close()
    host, port = options.listen.rsplit(":", 1)
    server = http.server.ThreadingHTTPServer((host, int(port)), Visit)
    server.database = Database(options.database)
    print("http://%s:%d/" % server.server_address, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
