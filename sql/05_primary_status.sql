-- shell: primary
-- What the extension is doing on the primary.

.headers on
SELECT path, role, state, pos, page_size, addr, upstream, lag, error FROM litestream_databases;
SELECT database, remote, sent_pos = applied_pos AS has_all, lag < 60 AS fresh, bytes > 0 AS busy
  FROM litestream_followers;
SELECT litestream_sync() = litestream_pos() AS on_disk;
SELECT replica, generation, idx, size > 0 AS stored, created_at, pos FROM litestream_snapshots;
SELECT replica, generation, idx, offset, size > 0 AS stored, created_at, pos
  FROM litestream_wal_segments LIMIT 1;
SELECT replica, generation, current, start, snapshots, segments > 0 AS some, size > 0 AS stored
  FROM litestream_generations;
SELECT level, database, message FROM litestream_log;
.headers off
SELECT json_extract(litestream_checkpoint('TRUNCATE'), '$[0]') AS busy;
SELECT typeof(litestream_snapshot());
