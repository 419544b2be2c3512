-- shell: replica
-- Make a new database a live, read-only replica (sqlite3 replica.db):  .read sql/02_replica.sql
-- As a daemon:  sqlite3 replica.db '.read sql/02_replica.sql' 'SELECT litestream_run()'
-- Any SQLite may read the file meanwhile, with or without the extension.

.load ./liblitestream
SELECT litestream_follow('http://127.0.0.1:9090');
