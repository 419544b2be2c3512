-- shell: anywhere
-- Bring a database back: needs no server, and no database either.

.load ./liblitestream
-- As it was at a moment: {"timestamp": "2026-11-22T14:03:07Z"}; at a position: {"pos": ...}.
SELECT typeof(litestream_restore('file://' || replace(file, 'anywhere.db', 'notes.db-archive'),
                                 'restored.db', '{"integrity_check": true}'))
  FROM pragma_database_list;
ATTACH 'restored.db' AS restored;
SELECT count(*) FROM restored.notes;
-- What a restore would read, and how far it would come.
SELECT json_extract(litestream_restore(
    'file://' || replace(file, 'anywhere.db', 'notes.db-archive'),
    'again.db', '{"dry_run": true}'), '$.segments.count') > 0
  FROM pragma_database_list WHERE name = 'main';
-- It overwrites nothing.
SELECT litestream_restore('file:///archive', 'restored.db');
