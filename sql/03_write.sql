-- shell: primary
-- What the primary commits, replicas have within a millisecond or two. litestream_wait_followers(n)
-- returns when n of them have applied everything committed so far (here at most 30 s).

CREATE TABLE visits(id INTEGER PRIMARY KEY, page TEXT);
INSERT INTO visits(page) VALUES ('home'), ('about');
SELECT litestream_wait_followers(1, 30000);
