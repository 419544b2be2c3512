#!/bin/sh
# Makes the WALs and wal-indexes beside this file with a real sqlite3 shell, one pair per page size.
# In each, the WAL has been restarted once; one transaction with several frames and many with one
# are committed in it; then come frames of a transaction that spilled and was rolled back, and in
# most, behind them, leftovers from before the restart. Pages of 512 bytes get a second hash table.
set -eu
cd "$(dirname "$0")"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
for size in 512 1024 2048 4096 8192 16384 32768 65536; do
  db="$tmp/$size.db"
  pages=12
  commits=10
  if [ $size = 512 ]; then
    commits=4100
  fi
  {
    echo "PRAGMA page_size=$size; PRAGMA journal_mode=wal; PRAGMA wal_autocheckpoint=0;"
    echo "CREATE TABLE t(id INTEGER PRIMARY KEY, n, x);"
    echo "INSERT INTO t SELECT value, 0, zeroblob($size - 100) FROM generate_series(1, $pages);"
    echo "UPDATE t SET n = 1; UPDATE t SET n = 2; UPDATE t SET n = 3;"
    echo "PRAGMA wal_checkpoint(RESTART);"
    echo "UPDATE t SET n = 4 WHERE id % 3 = 0;"
    i=0
    while [ $i -lt $commits ]; do
      echo "UPDATE t SET n = 100 + $i WHERE id = 1 + $i % $pages;"
      i=$((i + 1))
    done
    echo "PRAGMA cache_size=2; BEGIN; UPDATE t SET n = -1; ROLLBACK;"
    echo ".shell cp $db-wal $size.wal; cp $db-shm $size.shm"
  } | sqlite3 "$db" >/dev/null
  gzip -9nf "$size.wal" "$size.shm"
done
