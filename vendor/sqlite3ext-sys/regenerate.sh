#!/bin/sh
# Makes src/bindings.rs from SQLite's public-domain header. Only needed to move to a newer header;
# a normal build never runs it. Needs libsqlite3-dev, libclang and `cargo install bindgen-cli`.
set -eu
cd "$(dirname "$0")"
bindgen "${1:-/usr/include/sqlite3ext.h}" --no-layout-tests --no-doc-comments \
    --blocklist-function '.*' --blocklist-var 'sqlite3_(version|temp_directory|data_directory)' \
    --allowlist-item '(sqlite3|SQLITE|Fts5|fts5).*' \
    --rust-target 1.85 --rust-edition 2024 -o src/bindings.rs
