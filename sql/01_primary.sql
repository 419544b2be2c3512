-- shell: primary
-- Serve a database to live replicas. In a shell on it (sqlite3 app.db):  .read sql/01_primary.sql
-- As a server:  sqlite3 app.db '.read sql/01_primary.sql' 'SELECT litestream_run()'
-- Without a token it answers this machine only. For others, on every interface:
--   SELECT litestream_serve(':9090', json_object('token', 'a long secret'));

.load ./liblitestream
SELECT litestream_serve(':9090');
