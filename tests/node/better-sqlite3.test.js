// Node.js as host, with better-sqlite3 and the SQLite that carries: `make test-node`.
'use strict';

const assert = require('node:assert');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { spawn } = require('node:child_process');
const { once } = require('node:events');
const { Worker, isMainThread, parentPort, workerData } = require('node:worker_threads');
const Database = require('better-sqlite3');

function open(file, options) {
  const db = new Database(file, options);
  return db.loadExtension(process.env.EXTENSION);
}

const one = (db, sql, ...values) => db.prepare(sql).pluck().get(...values);

function insert(db, count) {
  const add = db.prepare('INSERT INTO t(by, pad) VALUES (?, randomblob(500))');
  for (let i = 0; i < count; i++) add.run(process.pid);
}

if (!isMainThread) {
  // A thread with connections of its own: it serves what is served already, writes, and reads.
  const { file, replica, address, rows } = workerData;
  const db = open(file);
  one(db, 'SELECT litestream_serve(?)', address);
  const copy = open(replica);
  let last = 0;
  for (let i = 0; i < rows; i++) {
    insert(db, 1);
    const seen = one(copy, 'SELECT count(*) FROM t');
    if (seen < last) throw new Error(`the past: ${seen} after ${last}`);
    last = seen;
  }
  const pos = one(db, 'SELECT litestream_pos()');
  const waited = one(copy, 'SELECT litestream_wait(?, 30000)', pos);
  parentPort.postMessage({ waited, own: one(copy, 'SELECT count(*) FROM t') });
  copy.close();
  db.close();
} else if (process.argv[2] === 'exit') {
  // A process that ends in the middle of it.
  const [, , , file, replica] = process.argv;
  const db = open(file);
  const url = one(db, "SELECT litestream_serve('127.0.0.1:0')");
  one(open(replica), 'SELECT litestream_follow(?)', url);
  setInterval(() => insert(db, 1), 1);
  setTimeout(() => process.exit(0), 300);
} else {
  const { test } = require('node:test');

  const folder = (t) => {
    const made = fs.mkdtempSync(path.join(os.tmpdir(), 'litestream-node-'));
    t.after(() => fs.rmSync(made, { recursive: true }));
    return (name) => path.join(made, name);
  };

  const primary = (file) => {
    const db = open(file);
    db.pragma('journal_mode = WAL');
    db.exec('CREATE TABLE IF NOT EXISTS t(n INTEGER PRIMARY KEY, by, pad)');
    return db;
  };

  const rows = (db) => db.prepare('SELECT * FROM t ORDER BY n').all();

  const assertSame = (db, replica) => {
    const pos = one(db, 'SELECT litestream_pos()');
    assert.strictEqual(one(replica, 'SELECT litestream_wait(?, 30000)', pos), 1);
    assert.deepStrictEqual(rows(replica), rows(db));
    assert.strictEqual(one(replica, 'PRAGMA integrity_check'), 'ok');
  };

  test('serve, follow, archive, restore, close', (t) => {
    const at = folder(t);
    const db = primary(at('p.db'));
    t.diagnostic(`SQLite ${one(db, 'SELECT sqlite_version()')}, Node.js ${process.version}`);
    const url = one(db, "SELECT litestream_serve('127.0.0.1:0')");
    const replica = open(at('r.db'), { timeout: 100 }); // of a write it is refused
    assert.ok(one(replica, 'SELECT litestream_follow(?)', url).includes('/'));
    insert(db, 500);
    assertSame(db, replica);
    assert.throws(() => replica.exec('DELETE FROM t'), { code: 'SQLITE_BUSY' });
    const archive = `file://${at('archive')}`;
    one(db, 'SELECT litestream_replicate(?)', archive);
    const pos = one(db, 'SELECT litestream_sync()');
    assert.strictEqual(one(db, 'SELECT litestream_restore(?, ?)', archive, at('x.db')), pos);
    const restored = new Database(at('x.db'));
    assert.deepStrictEqual(rows(restored), rows(db));
    restored.close();
    // The work goes on when the connections that began it are closed.
    db.close();
    replica.close();
    const again = primary(at('p.db'));
    const reader = open(at('r.db'), { readonly: true });
    insert(again, 10);
    assertSame(again, reader);
    assert.strictEqual(one(again, 'SELECT litestream_stop()'), 2);
    const writable = open(at('r.db'));
    one(writable, 'SELECT litestream_promote()');
    insert(writable, 1);
    for (const open of [again, reader, writable]) open.close();
  });

  test('worker threads, and readers while it changes', async (t) => {
    const at = folder(t);
    const db = primary(at('p.db'));
    const url = one(db, "SELECT litestream_serve('127.0.0.1:0')");
    const replica = open(at('r.db'));
    one(replica, 'SELECT litestream_follow(?)', url);
    const [file, copy, address] = [at('p.db'), at('r.db'), '127.0.0.1:0'];
    const data = { file, replica: copy, address, rows: 200 };
    const workers = [0, 1, 2].map(() => new Worker(__filename, { workerData: data }));
    const answers = await Promise.all(workers.map(async (worker) => {
      const exited = once(worker, 'exit');
      const [answer] = await once(worker, 'message');
      assert.deepStrictEqual(await exited, [0]);
      return answer;
    }));
    for (const { waited, own } of answers) assert.ok(waited === 1 && own >= 200, `${own} rows`);
    assert.strictEqual(one(db, 'SELECT count(*) FROM t'), 600);
    assertSame(db, replica);
    one(db, 'SELECT litestream_stop()');
    one(replica, 'SELECT litestream_stop()');
    db.close();
    replica.close();
  });

  test('the process ends with work in flight', async (t) => {
    const at = folder(t);
    primary(at('p.db')).close();
    for (let round = 0; round < 3; round++) {
      const child = spawn(process.execPath, [__filename, 'exit', at('p.db'), at('r.db')],
        { stdio: ['ignore', 'pipe', 'pipe'] });
      let said = '';
      for (const stream of [child.stdout, child.stderr]) stream.on('data', (text) => said += text);
      assert.deepStrictEqual(await once(child, 'exit'), [0, null]);
      assert.strictEqual(said, '');
    }
    const db = primary(at('p.db'));
    assert.strictEqual(one(db, 'PRAGMA integrity_check'), 'ok');
    const replica = open(at('r.db'));
    const url = one(db, "SELECT litestream_serve('127.0.0.1:0')");
    one(replica, 'SELECT litestream_follow(?)', url);
    assertSame(db, replica);
    assert.ok(one(db, 'SELECT count(*) FROM t') > 0);
    one(db, 'SELECT litestream_stop()');
    one(replica, 'SELECT litestream_stop()');
    db.close();
    replica.close();
  });
}
