"""A small web application over the ledger, for servers that fork workers: every worker opens the
database for itself, loads the extension and calls litestream_serve with the same arguments.

    POST /     numbers one more row; answers its number
    GET /      the worker's process id and its litestream_log

A worker ends when its standard input does, so a test program that dies leaves none behind.
"""

import json
import os
import select
import threading

import door
import work

threading.Thread(target=lambda: select.select([0], [], []) and os._exit(0), daemon=True).start()
DB = door.Door(extension=os.environ["EXTENSION"]).open(os.environ["DATABASE"], 30.0)
DB.run("PRAGMA synchronous = NORMAL")
DB.run("PRAGMA wal_autocheckpoint = " + os.environ.get("AUTOCHECKPOINT", "1000"))
DB.run("SELECT litestream_serve(?)", (os.environ["ADDRESS"],))


def app(environ, start_response):
    if environ["REQUEST_METHOD"] == "POST":
        answer = work.ledger_add(DB, 500)
    else:
        log = [row[0] for row in DB.run("SELECT message FROM litestream_log")]
        answer = {"pid": os.getpid(), "log": log}
    body = json.dumps(answer).encode()
    start_response("200 OK", [("Content-Type", "application/json"),
                              ("Content-Length", str(len(body)))])
    return [body]
