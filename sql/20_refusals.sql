-- shell: alone
-- What is refused, and in which words.

.load ./liblitestream
SELECT litestream_version();

-- Arguments.
SELECT litestream_serve();
SELECT litestream_serve(NULL);
SELECT litestream_serve(9090);
SELECT litestream_serve(':9090', 1);
SELECT litestream_serve('9090');
SELECT litestream_serve(':http');
SELECT litestream_serve(':70000');
SELECT litestream_serve('[::1');
SELECT litestream_serve('[1.2.3.4]:9090');
SELECT litestream_serve('a b:9090');
SELECT litestream_serve('unix:');
SELECT litestream_follow(NULL);
SELECT litestream_follow('127.0.0.1:9090');
SELECT litestream_follow('ftp://127.0.0.1');
SELECT litestream_follow('http://127.0.0.1:0');
SELECT litestream_follow('http://me:secret@127.0.0.1:9090');
SELECT litestream_follow('http://127.0.0.1:9090/app.db');
SELECT litestream_follow('unix:app.sock');
SELECT litestream_follow('file:store');
SELECT litestream_follow('s3://bucket/app', '{"archive": "s3://bucket/app"}');
SELECT litestream_follow('http://127.0.0.1:9090', '{"archive": "http://127.0.0.1:9090"}');
SELECT litestream_follow('s3://bucket/app', '{"poll_interval": "10ms"}');
SELECT litestream_follow('s3://bucket/app', '{"path": "app.db"}');
SELECT litestream_follow('file:///store', '{"token": "x"}');
SELECT litestream_follow('http://127.0.0.1:9090', '{"poll_interval": "1s"}');
SELECT litestream_follow('http://127.0.0.1:9090', '{"age_identities": "AGE-SECRET-KEY-1X"}');
SELECT litestream_replicate('file:///store', '{"retention": "101years"}');
SELECT litestream_restore('file:///store', '');
SELECT litestream_restore('file:///store', ':memory:');
SELECT litestream_restore('file:///store', 'file:app.db?mode=rw');
SELECT litestream_wait(NULL);
SELECT litestream_wait('yesterday');
SELECT litestream_wait('0123456789abcdef/0000000000000000:0000000000000000', -1);
SELECT litestream_wait('0123456789abcdef/0000000000000000:0000000000000000', 'soon');
SELECT litestream_stop('everything');
SELECT litestream_checkpoint('QUICK');

-- Options.
SELECT litestream_serve(':9090', '');
SELECT litestream_serve(':9090', 'token=x');
SELECT litestream_serve(':9090', '["token"]');
SELECT litestream_serve(':9090', '{"tokn": "x"}');
SELECT litestream_serve(':9090', '{"token": 1}');
SELECT litestream_serve(':9090', '{"tls_cert": "cert.pem"}');
SELECT litestream_serve(':9090', '{"tls_key": "key.pem"}');
SELECT litestream_serve(':9090', '{"token": "a b"}');
SELECT litestream_serve(':9090', '{"token": "a", "token": "b"}');
SELECT litestream_serve(':9090', '{"allow_anonymous": "yes"}');
SELECT litestream_serve(':9090', '{"wait_ms": -1}');
SELECT litestream_serve(':9090', '{"log_bytes": 1000}');
SELECT litestream_serve(':9090', '{"schema": "aux"}');
SELECT litestream_stop('{"schema": "aux"}');
SELECT litestream_pos('main');
SELECT litestream_sync(1000, '{"scheme": "main"}');
SELECT litestream_promote('{"schema": 1}');
SELECT litestream_follow('http://127.0.0.1:9090', '{"token": "x", "upstream": "y"}');
SELECT litestream_follow('http://127.0.0.1:9090', '{"overwrite": 2}');

-- Tables that reach beyond the database.
SELECT count(*) FROM litestream_snapshots(NULL);
SELECT count(*) FROM litestream_snapshots(7);
SELECT count(*) FROM litestream_snapshots('s3://bucket', 7);
SELECT count(*) FROM litestream_snapshots('s3://bucket', '{"bucket": "x"}');
SELECT count(*) FROM litestream_generations WHERE options = '{}';
CREATE VIEW spy AS SELECT * FROM litestream_wal_segments('s3://bucket');
SELECT * FROM spy;
DROP VIEW spy;

-- A database nobody serves and that follows nothing.
CREATE TABLE mine(x);
SELECT litestream_sync();
SELECT litestream_snapshot();
SELECT litestream_checkpoint();
SELECT litestream_wait_followers(1);
SELECT litestream_promote();
SELECT litestream_pos() IS NULL, litestream_lag() IS NULL, litestream_stop();
SELECT litestream_wait('0123456789abcdef/0000000000000000:0000000000000000', 0);

-- Databases that cannot be replicated, and moments when one cannot be.
BEGIN;
SELECT litestream_serve('127.0.0.1:0');
ROLLBACK;
SELECT litestream_follow('http://127.0.0.1:9090', '{"wait_ms": 0}');
ATTACH ':memory:' AS memory;
SELECT litestream_serve('127.0.0.1:0', '{"schema": "memory"}');
PRAGMA locking_mode = EXCLUSIVE;
SELECT litestream_serve('127.0.0.1:0');
PRAGMA locking_mode = NORMAL;

-- What follows nothing and is in no archive cannot be compared with anything.
SELECT litestream_verify();
SELECT litestream_verify('{"repair": "yes"}');
SELECT litestream_verify('{"timeout_ms": 0}');

-- Functions that act cannot be called by a schema, only by the application.
CREATE VIEW trap AS SELECT litestream_serve('127.0.0.1:0');
SELECT * FROM trap;
SELECT name FROM pragma_table_info('litestream_databases');
DELETE FROM litestream_log;

-- Comparing positions.
SELECT litestream_pos_compare('0123456789abcdef/0000000000000000:0000000000001000',
  '0123456789abcdef/0000000000000001:0000000000000000');
SELECT litestream_pos_compare('0123456789abcdef/0000000000000000:0000000000000000',
  '0000000000000001/0000000000000000:0000000000000000');
SELECT litestream_pos_compare('0123456789abcdef', NULL);
SELECT litestream_pos_compare('0123456789ABCDEF/0000000000000000:0000000000000000', '');
