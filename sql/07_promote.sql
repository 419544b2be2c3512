-- shell: replica
-- Stop following for good: the file becomes an ordinary database. Make sure that nobody writes to
-- the old primary any more; nothing here can see that.

SELECT litestream_promote() IS NOT NULL AS promoted;
INSERT INTO visits(page) VALUES ('mine');
SELECT * FROM visits;
