"""A host application under remote control: JSON lines in on stdin, JSON lines out on stdout.

    request   {"id": 7, "op": "run", "db": "a", "sql": "SELECT ?", "values": [1]}
    answer    {"id": 7, "rows": [[1]]}  or  {"id": 7, "error": "...", "code": 5}

Each connection ("db") has a thread of its own, so a statement that blocks holds up nobody else;
each piece of work (see work.py) has one too. Values that JSON lacks are objects: {"hex": "00ff"}
is a blob,
{"repeat": ["x", 1000]} a text too long to send. End of input ends the process at once, so a test
program that dies leaves nothing behind.
"""

import ctypes
import json
import os
import queue
import select
import sys
import threading
import time

import door
import work

OUT = threading.Lock()


def answer(number, **fields):
    line = json.dumps({"id": number, **fields})
    with OUT:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def decode(value):
    if not isinstance(value, dict):
        return value
    if "hex" in value:
        return bytes.fromhex(value["hex"])
    text, count = value["repeat"]
    return text * count


def encode(value):
    return {"hex": value.hex()} if isinstance(value, (bytes, memoryview)) else value


class Worker(threading.Thread):
    """Runs the requests of one connection, in order."""

    def __init__(self, entrance):
        super().__init__(daemon=True)
        self.entrance = entrance
        self.requests = queue.Queue()
        self.db = None
        self.start()

    def run(self):
        while True:
            request = self.requests.get()
            try:
                answer(request["id"], **self.handle(request))
            except door.Failure as failure:
                answer(request["id"], error=str(failure), code=failure.code)
            except Exception as error:  # a defect of the test; the answer must say so
                answer(request["id"], error=f"{type(error).__name__}: {error}", code=-1)

    def handle(self, request):
        what = request["op"]
        if what == "open":
            self.db = self.entrance.open(
                request["path"], request.get("timeout", 5.0), request.get("extension", True))
        elif what == "load":
            self.db.load(self.entrance.extension)
        elif what == "run":
            values = [decode(value) for value in request.get("values", [])]
            rows = self.db.run(request["sql"], values)
            return {"rows": [[encode(value) for value in row] for row in rows]}
        elif what == "script":
            self.db.script(request["sql"])
        elif what == "hash":
            return {"rows": [[work.content(self.db)]]}
        elif what == "fork":
            return in_a_child(self.entrance, request)
        elif what == "child":
            return {"rows": [[a_child(request["how"])]]}
        elif what == "close":
            self.db.close()
            self.db = None
        return {"rows": []}


def in_a_child(entrance, request):
    """Opens the database in a forked child, runs one statement there, brings its outcome back."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            db = entrance.open(request["path"])
            rows = db.run(request["sql"])
            fields = {"rows": [[encode(value) for value in row] for row in rows]}
        except BaseException as error:
            fields = {"error": str(error), "code": getattr(error, "code", -1)}
        os.write(writer, json.dumps(fields).encode())
        os._exit(0)
    os.close(writer)
    try:
        ready, _, _ = select.select([reader], [], [], request.get("wait", 10.0))
        text = os.read(reader, 1 << 16) if ready else b""
    finally:
        os.close(reader)
        if not ready:
            os.kill(child, 9)
        os.waitpid(child, 0)
    return json.loads(text) if text else {"error": "the forked child hangs", "code": -1}


def a_child(how):
    """Forks a child that has nothing to do with databases; its process id if it stays, and how it
    ended if it does not."""
    child = os.fork()
    if child == 0:
        for descriptor in range(3):
            os.close(descriptor)
        if how == "stay":
            while True:
                time.sleep(3600)
        # Out of main(): exit handlers run, open connections are closed.
        os._exit(0) if how == "at once" else ctypes.CDLL(None).exit(0)
    return child if how == "stay" else os.waitpid(child, 0)[1]


def main():
    setting = json.loads(sys.argv[1])
    entrance = door.Door(setting["module"], setting.get("folder"), setting.get("extension"))
    answer(0, rows=[[entrance.version()]])
    workers, works = {}, {}
    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        number, what, name = request["id"], request["op"], request.get("db")
        if what == "work":
            works[name] = work.Work(entrance, request["kind"], request["arguments"])
            answer(number, rows=[])
        elif what == "count":
            answer(number, rows=[[works[name].count]])
        elif what == "finish":
            one = works.pop(name)
            one.stop.set()
            finish = lambda one=one, number=number: answer(number, report=one.report())
            threading.Thread(target=finish, daemon=True).start()
        elif what == "interrupt":
            workers[name].db.interrupt()
            answer(number, rows=[])
        elif what == "exit":
            sys.exit(0)
        else:
            if name not in workers:
                workers[name] = Worker(entrance)
            workers[name].requests.put(request)
    os._exit(0)


main()
