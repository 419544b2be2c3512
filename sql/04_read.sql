-- shell: replica
-- A replica reads like any database, and refuses writes. litestream_lag() is how many seconds it is
-- behind its upstream.

SELECT * FROM visits;
INSERT INTO visits(page) VALUES ('mine');
SELECT litestream_lag() < 60 AS fresh;
SELECT litestream_wait(litestream_pos()) AS there;

-- Every page of it is the primary's.
SELECT litestream_verify();
