-- shell: replica
-- What the extension is doing on the replica.

.headers on
SELECT path, role, state, generation, page_size, addr, upstream, lag < 60 AS fresh, error
  FROM litestream_databases;
SELECT count(*) FROM litestream_followers;
SELECT count(*) FROM litestream_snapshots;
.headers off
