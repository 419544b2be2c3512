"""What applications do to a database while it is replicated, and the laws that readers hold
them to.

Two data sets, each with laws that every transaction keeps, so that one look at a state tells
whether some whole transaction made it:

    bank    accounts whose balances always add up to the same sum (by table scan and by index), a
            tick that grows by one per transfer, and a list of the last moves that ends at the tick
    ledger  a counter, the rows it numbered (the last `keep` of them, without a gap), and their
            bytes in total

Work runs in a thread until told to stop. It never raises: `errors` are SQLite's, `wrong` are broken
laws.
"""

import hashlib
import random
import threading
import time

import door

ACCOUNTS = 100
FORTUNE = 1000
MOVES_KEPT = 300
REPORTED_MAX = 20


class Work:
    """A piece of work in a thread of its own."""

    def __init__(self, entrance, kind, arguments):
        self.entrance = entrance
        self.stop = threading.Event()
        self.count = 0
        self.errors = []
        self.wrong = []
        self.facts = {}
        self.random = random.Random(arguments.get("seed", 1))
        body = KINDS[kind]
        self.thread = threading.Thread(target=self.body, args=(body, arguments), daemon=True)
        self.thread.start()

    def body(self, body, arguments):
        try:
            body(self, **{key: value for key, value in arguments.items() if key != "seed"})
        except door.Failure as failure:
            self.fail(failure)
        except Exception as error:
            self.wrong.append(f"{type(error).__name__}: {error}")

    def fail(self, failure):
        if len(self.errors) < REPORTED_MAX:
            self.errors.append(f"{failure} ({failure.code})")

    def check(self, law, *seen):
        if not law and len(self.wrong) < REPORTED_MAX:
            self.wrong.append(" ".join(str(value) for value in seen))

    def report(self):
        self.thread.join()
        return {"count": self.count, "errors": self.errors, "wrong": self.wrong, **self.facts}


def content(db):
    """A digest of all a database says: its schema, every row with its rowid, and its settings."""
    digest = hashlib.sha256()
    db.run("BEGIN")
    try:
        for pragma in ("user_version", "application_id", "page_size", "page_count", "encoding"):
            digest.update(repr(db.run(f"PRAGMA {pragma}")).encode())
        schema = db.run("SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY type, name")
        digest.update(repr(schema).encode())
        for kind, name, _, sql in schema:
            if kind != "table" or sql is None:
                continue
            quoted = '"' + name.replace('"', '""') + '"'
            if "WITHOUT ROWID" in sql or "VIRTUAL TABLE" in sql.upper():
                rows = db.run(f"SELECT * FROM {quoted}")
            else:
                rows = db.run(f"SELECT rowid, * FROM {quoted} ORDER BY rowid")
            digest.update(repr(rows).encode())
    finally:
        db.run("COMMIT")
    return digest.hexdigest()


# --- the bank -------------------------------------------------------------------------------------

def bank_create(db):
    db.script(f"""
        BEGIN;
        CREATE TABLE accounts(id INTEGER PRIMARY KEY, balance INTEGER NOT NULL, pad BLOB);
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ACCOUNTS})
        INSERT INTO accounts SELECT i, {FORTUNE}, zeroblob(400) FROM n;
        CREATE INDEX accounts_balance ON accounts(balance);
        CREATE TABLE moves(id INTEGER PRIMARY KEY, source, target, amount, pad BLOB);
        CREATE TABLE tick(n INTEGER NOT NULL);
        INSERT INTO tick VALUES (0);
        COMMIT""")


def transfer(db, rng, keep):
    source, target = rng.sample(range(1, ACCOUNTS + 1), 2)
    amount = rng.randint(1, 50)
    db.run("BEGIN IMMEDIATE")
    db.run("UPDATE accounts SET balance = balance - ? WHERE id = ?", (amount, source))
    db.run("UPDATE accounts SET balance = balance + ? WHERE id = ?", (amount, target))
    db.run("UPDATE tick SET n = n + 1")
    db.run("INSERT INTO moves(id, source, target, amount, pad) "
           "SELECT n, ?, ?, ?, zeroblob(?) FROM tick",
            (source, target, amount, rng.choice((10, 300, 9000))))
    db.run("DELETE FROM moves WHERE id <= (SELECT n FROM tick) - ?", (MOVES_KEPT,))
    db.run("COMMIT" if keep else "ROLLBACK")


def bank_writer(work, path, pause=0.0, create=False, spill=False, limit=0):
    """Transfers money until stopped. Some transfers are rolled back, after their pages were written
    to the WAL when `spill` leaves no room for them in the cache."""
    db = work.entrance.open(path, 30.0, False)
    if create:
        db.run("PRAGMA journal_mode = WAL")
        bank_create(db)
    db.run("PRAGMA synchronous = NORMAL")
    if spill:
        db.run("PRAGMA cache_size = 3")
    while not work.stop.is_set() and not (limit and work.count >= limit):
        keep = work.random.random() > 0.05
        transfer(db, work.random, keep)
        work.count += keep
        if pause:
            time.sleep(pause * work.random.random() * 2)
    work.facts["tick"] = db.run("SELECT n FROM tick")[0][0]
    db.close()


def bank_look(work, db, last):
    """Checks every law in the transaction `db` is in. Returns the tick."""
    tick = db.run("SELECT n FROM tick")[0][0]
    sums = db.run("""SELECT (SELECT sum(balance) FROM accounts NOT INDEXED), count(*),
                     (SELECT sum(balance) FROM accounts INDEXED BY accounts_balance
                       WHERE balance > -1e9)
                     FROM accounts""")[0]
    wanted = (ACCOUNTS * FORTUNE, ACCOUNTS, ACCOUNTS * FORTUNE)
    work.check(tuple(sums) == wanted, "sums", sums, "at tick", tick)
    first, end, count = db.run(
        "SELECT ifnull(min(id), 1), ifnull(max(id), 0), count(*) FROM moves")[0]
    whole = end == tick and count == end - first + 1 == min(tick, MOVES_KEPT)
    work.check(whole, "moves", first, end, count, "at tick", tick)
    work.check(tick >= last, "the past: tick", tick, "after", last)
    return tick


def bank_reader(work, path, mode="tight", integrity=50, hold=0.3):
    """Reads until stopped: "tight" on one connection, "reopen" with a new connection for each
    transaction, "long" with transactions held for a while and looked at again before their end,
    "mapped" with the file mapped into memory."""
    last, db, slowest, versions = 0, None, 0.0, set()
    while not work.stop.is_set():
        began = time.monotonic()
        db = db or work.entrance.open(path, 5.0, False)
        try:
            if mode == "mapped" and work.count % 100 == 0:
                db.run("PRAGMA mmap_size = 268435456")
            db.run("BEGIN")
            tick = bank_look(work, db, last)
            if work.count % integrity == 0:
                found = db.run("PRAGMA integrity_check")
                work.check([tuple(row) for row in found] == [("ok",)], "integrity_check", found[:3])
            slowest = max(slowest, time.monotonic() - began)
            if mode == "long":
                time.sleep(hold * work.random.random())
                again = bank_look(work, db, tick)
                work.check(again == tick, "a transaction moved from tick", tick, "to", again)
            db.run("COMMIT")
            versions.add(tick)
            last = tick
        except door.Failure as failure:
            work.fail(failure)
            work.check(len(work.errors) < REPORTED_MAX, "too many errors")
            db.close()
            db = None
            if len(work.errors) >= REPORTED_MAX:
                break
        if mode == "reopen" and db:
            db.close()
            db = None
        work.count += 1
    if db:
        db.close()
    work.facts.update(tick=last, states=len(versions), slowest=slowest)


# --- the ledger -----------------------------------------------------------------------------------

def ledger_create(db, keep=500):
    db.script(f"""
        BEGIN;
        CREATE TABLE ledger(n INTEGER NOT NULL, bytes INTEGER NOT NULL, keep INTEGER NOT NULL);
        INSERT INTO ledger VALUES (0, 0, {keep});
        CREATE TABLE entry(n INTEGER PRIMARY KEY, pad BLOB NOT NULL);
        COMMIT""")


def ledger_add(db, size):
    """Numbers one more row; its number."""
    db.run("BEGIN IMMEDIATE")
    gone = db.run("SELECT ifnull(sum(length(pad)), 0) FROM entry "
                  "WHERE n <= (SELECT n + 1 - keep FROM ledger)")[0][0]
    db.run("UPDATE ledger SET n = n + 1, bytes = bytes + ?", (size - gone,))
    db.run("INSERT INTO entry SELECT n, randomblob(?) FROM ledger", (size,))
    db.run("DELETE FROM entry WHERE n <= (SELECT n - keep FROM ledger)")
    number = db.run("SELECT n FROM ledger")[0][0]
    db.run("COMMIT")
    return number


def ledger_writer(work, path, pause=0.0, size=2000, own=False, limit=0):
    """Numbers rows until stopped. `own` uses a connection that loads the extension."""
    db = work.entrance.open(path, 30.0, own)
    db.run("PRAGMA synchronous = NORMAL")
    while not work.stop.is_set() and not (limit and work.count >= limit):
        ledger_add(db, work.random.randint(1, size))
        work.count += 1
        if pause:
            time.sleep(pause * work.random.random() * 2)
    work.facts["n"] = db.run("SELECT n FROM ledger")[0][0]
    db.close()


def ledger_look(work, db, last):
    n, size, keep = db.run("SELECT n, bytes, keep FROM ledger")[0]
    first, end, count, total = db.run(
        "SELECT ifnull(min(n), 1), ifnull(max(n), 0), count(*), ifnull(sum(length(pad)), 0)"
        " FROM entry")[0]
    whole = end == n and count == end - first + 1 == min(n, keep) and total == size
    work.check(whole, "ledger", n, size, "entries", first, end, count, total)
    work.check(n >= last, "the past:", n, "after", last)
    return n


def ledger_reader(work, path, pause=0.0):
    """Looks until stopped, from one connection after another, through restarts of the follower: the
    laws hold and the counter never goes back."""
    last, db = 0, None
    while not work.stop.is_set():
        db = db or work.entrance.open(path, 5.0, False)
        try:
            db.run("BEGIN")
            last = ledger_look(work, db, last)
            db.run("COMMIT")
        except door.Failure as failure:
            work.fail(failure)
            if len(work.errors) >= REPORTED_MAX:
                break
            db.close()
            db = None
        work.count += 1
        if work.count % 100 == 0 and db:
            db.close()
            db = None
        if pause:
            time.sleep(pause)
    if db:
        db.close()
    work.facts["n"] = last


# --- nuisances ------------------------------------------------------------------------------------

def checkpointer(work, path, pause=0.01):
    """The application's own checkpoints, of every mode, and the pragma that sets their trigger."""
    db = work.entrance.open(path, 0.05, False)
    done = 0
    while not work.stop.is_set():
        mode = work.random.choice(("PASSIVE", "FULL", "RESTART", "TRUNCATE"))
        try:
            if work.random.random() < 0.2:
                db.run(f"PRAGMA wal_autocheckpoint = {work.random.choice((1, 10, 1000))}")
            if work.random.random() < 0.2:
                db.close()
                db = work.entrance.open(path, 0.05, False)
            busy = db.run(f"PRAGMA wal_checkpoint({mode})")[0][0]
            work.count += 1
            done += busy == 0
        except door.Failure as failure:
            if "locked" not in str(failure):
                work.fail(failure)
        time.sleep(pause * work.random.random())
    work.facts["done"] = done
    db.close()


def steerer(work, path, pause=0.05):
    """What an operator may call while all this goes on, at random."""
    db = work.entrance.open(path, 5.0, True)
    calls = ["litestream_snapshot()", "litestream_sync()", "litestream_pos()"]
    modes = ("PASSIVE", "FULL", "RESTART", "TRUNCATE")
    calls += [f"litestream_checkpoint('{mode}')" for mode in modes]
    while not work.stop.is_set():
        try:
            db.run("SELECT " + work.random.choice(calls))
            work.count += 1
        except door.Failure as failure:
            # Between two attempts of capture; the calls say so.
            if "capture" not in str(failure) and "another checkpoint" not in str(failure):
                work.fail(failure)
        time.sleep(pause * work.random.random())
    db.close()


KINDS = {work.__name__: work for work in (
    bank_writer, bank_reader, ledger_writer, ledger_reader, checkpointer, steerer)}
