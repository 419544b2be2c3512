-- One process that does everything once: what valgrind and the sanitizers watch (scripts/memory).
-- @FOLDER@ is an empty folder, @LIBRARY@ the extension. It prints `all done` at its end.
.bail on
.open @FOLDER@/primary.db
.load @LIBRARY@
PRAGMA journal_mode = WAL;
CREATE TABLE t(n INTEGER PRIMARY KEY, x BLOB);
WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 300)
INSERT INTO t SELECT n, randomblob(900) FROM c;
SELECT 'serve', litestream_serve('unix:@FOLDER@/socket');
SELECT 'replicate', litestream_replicate('file://@FOLDER@/archive') <> '';
WITH RECURSIVE c(n) AS (SELECT 1000 UNION ALL SELECT n + 1 FROM c WHERE n < 1300)
INSERT INTO t SELECT n, zeroblob(n * 7) FROM c;
SELECT 'sync', litestream_sync() <> '';
.connection 1
.open @FOLDER@/replica.db
.load @LIBRARY@
SELECT 'follow', litestream_follow('unix:@FOLDER@/socket') <> '';
.connection 0
UPDATE t SET x = randomblob(100) WHERE n % 3 = 0;
DELETE FROM t WHERE n % 5 = 0;
SELECT 'checkpoint', litestream_checkpoint('PASSIVE') IS NOT NULL;
SELECT 'snapshot', litestream_snapshot() <> '';
UPDATE t SET x = randomblob(5000) WHERE n % 50 = 1;
VACUUM;
SELECT 'sync', litestream_sync() <> '';
.connection 1
SELECT 'wait', litestream_wait(
    (SELECT pos FROM litestream_databases WHERE role = 'primary'), 60000);
SELECT 'rows', count(*), sum(length(x)) > 0 FROM t;
SELECT 'verify', litestream_verify() IS NOT NULL;
SELECT 'lag', litestream_lag() < 60;
SELECT 'check', integrity_check FROM pragma_integrity_check;
SELECT 'restore',
    litestream_restore('file://@FOLDER@/archive', '@FOLDER@/restored.db') <> '';
-- Every kind of argument through the host layer.
SELECT 'compare', litestream_pos_compare(litestream_pos(), litestream_pos()),
    litestream_version() <> '';
SELECT 'text', quote(litestream_debug()) <> '';
SELECT 'tables', (SELECT count(*) FROM litestream_followers),
    (SELECT count(*) FROM litestream_replicas), (SELECT count(*) > 0 FROM litestream_log);
SELECT 'archive', count(*) > 0 FROM litestream_snapshots('file://@FOLDER@/archive');
SELECT 'archive', count(*) > 0 FROM litestream_wal_segments('file://@FOLDER@/archive');
SELECT 'promote', litestream_promote() <> '';
INSERT INTO t VALUES (0, 'mine');
SELECT 'stop', litestream_stop() IS NOT NULL;
.connection 0
SELECT 'stop', litestream_stop() IS NOT NULL;
.open @FOLDER@/restored.db
SELECT 'restored', count(*) FROM t;
SELECT 'check', integrity_check FROM pragma_integrity_check;
-- Refusals, four of them.
.bail off
.connection 1
.open @FOLDER@/replica.db
.load @LIBRARY@
SELECT litestream_pos_compare('a', x'00ff');
SELECT litestream_restore('file://@FOLDER@/archive', '@FOLDER@/restored.db');
SELECT litestream_wait(x'00', 'soon');
SELECT litestream_follow('nothing', '{"token":5}');
SELECT 'all done';
