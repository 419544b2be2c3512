-- shell: primary
-- Stop serving. The log in app.db-litestream/ stays, so replicas can continue where they were when
-- the database is served again.

SELECT litestream_stop('serve') AS stopped;
SELECT litestream_stop() AS stopped;
SELECT count(*) FROM litestream_databases;
SELECT count(*) FROM visits;
