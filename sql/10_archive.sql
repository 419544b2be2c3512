-- shell: notes
-- Archive a database: here to a folder beside it. A bucket is
--   SELECT litestream_replicate('s3://bucket/notes');
-- with the keys in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.

.load ./liblitestream
CREATE TABLE notes(id INTEGER PRIMARY KEY, text TEXT);
CREATE TEMP TABLE beside AS SELECT 'file://' || file || '-archive' AS url
  FROM pragma_database_list WHERE name = 'main';
SELECT litestream_replicate(url) FROM beside;
INSERT INTO notes(text) VALUES ('buy milk'), ('call home');
-- A commit is in the archive a second later; this waits for it.
SELECT litestream_sync() = litestream_pos() AS archived;
.headers on
SELECT database, url, pos = litestream_pos() AS has_all, state, last_sync, error
  FROM litestream_replicas;
SELECT replica, generation, idx, size > 0 AS stored, pos FROM litestream_snapshots
  WHERE replica <> 'local';
SELECT count(*) > 0 AS some FROM litestream_wal_segments WHERE replica LIKE 'file:%';
.headers off
DELETE FROM notes;
SELECT litestream_stop('replicate') AS stopped;
SELECT count(*) FROM litestream_replicas;
