/* An application with threads, none of which knows of the others: each opens connections of its
 * own, loads the library (also twice), serves, follows, writes, reads, stops and closes, in an order
 * that its seed decides.
 *
 *     host join|exit LIBRARY PRIMARY REPLICA ADDRESS THREADS ROUNDS SEED
 *
 * When all threads have done their rounds it prints a line "THREAD ROWS" for each, the rows it
 * committed and that must be there; then, `exit`: main returns while they go on; `join`: they end,
 * one connection serves, it prints "serves", and ends in order when its input does.
 *
 * Whatever SQLite and the library say must be expected, or it says what was not and ends with 3. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Of sqlite3.h, which a machine with SQLite need not have. */
typedef struct sqlite3 sqlite3;
typedef struct sqlite3_stmt sqlite3_stmt;
enum { OK = 0, ROW = 100, DONE = 101, READWRITE = 2, CREATE = 4, NOMUTEX = 0x8000 };
enum { ENABLE_LOAD_EXTENSION = 1005 };
int sqlite3_open_v2(const char *, sqlite3 **, int, const char *);
int sqlite3_close_v2(sqlite3 *);
int sqlite3_busy_timeout(sqlite3 *, int);
int sqlite3_db_config(sqlite3 *, int, ...);
int sqlite3_load_extension(sqlite3 *, const char *, const char *, char **);
int sqlite3_prepare_v2(sqlite3 *, const char *, int, sqlite3_stmt **, const char **);
int sqlite3_step(sqlite3_stmt *);
int sqlite3_finalize(sqlite3_stmt *);
const char *sqlite3_errmsg(sqlite3 *);

enum { THREADS_MAX = 64 };
static const char *library, *primary, *replica, *address;
static int rounds;
static unsigned long long seed;
static atomic_int done, stopping;
static atomic_long committed[THREADS_MAX];

static void unexpected(const char *what, const char *why) {
    printf("unexpected: %s: %s\n", what, why);
    fflush(stdout);
    _exit(3);
}

static unsigned random_below(unsigned long long *state, unsigned end) {
    *state = *state * 6364136223846793005ULL + 1442695040888963407ULL;
    return (unsigned)(*state >> 33) % end;
}

static void load(sqlite3 *db) {
    char *why = NULL;
    if (sqlite3_load_extension(db, library, NULL, &why) != OK) unexpected("load", why);
}

static sqlite3 *open_database(const char *path) {
    sqlite3 *db;
    if (sqlite3_open_v2(path, &db, READWRITE | CREATE | NOMUTEX, NULL) != OK)
        unexpected(path, sqlite3_errmsg(db));
    sqlite3_busy_timeout(db, 60000);
    sqlite3_db_config(db, ENABLE_LOAD_EXTENSION, 1, NULL);
    return db;
}

/* Runs a statement to its end; 0 if it ended with an error, which may then only be the library's:
 * others stop what this thread has just started. */
static int run(sqlite3 *db, int may_fail, const char *format, ...) {
    char sql[1000];
    va_list values;
    va_start(values, format);
    vsnprintf(sql, sizeof sql, format, values);
    va_end(values);
    sqlite3_stmt *statement = NULL;
    int code = sqlite3_prepare_v2(db, sql, -1, &statement, NULL);
    while (code == OK || code == ROW) code = sqlite3_step(statement);
    if (code != DONE) {
        const char *why = sqlite3_errmsg(db);
        if (!may_fail || strncmp(why, "litestream_", 11) != 0) unexpected(sql, why);
    }
    sqlite3_finalize(statement);
    return code == DONE;
}

static void write_rows(sqlite3 *db, long thread, unsigned count) {
    for (unsigned i = 0; i < count; i++) {
        long n = atomic_load(&committed[thread]) + 1;
        run(db, 0, "INSERT INTO t VALUES (%ld, %ld, randomblob(%u))", thread, n, 100 + 50 * i);
        atomic_store(&committed[thread], n);
    }
}

static void follow(unsigned long long *state) {
    sqlite3 *db = open_database(replica);
    load(db);
    unsigned wait = random_below(state, 2) * 200;
    run(db, 1, "SELECT litestream_follow('http://%s', '{\"wait_ms\": %u}')", address, wait);
    run(db, 1, "SELECT litestream_pos(), litestream_lag()");
    run(db, 0, "SELECT count(*) FROM sqlite_schema");
    if (random_below(state, 3) == 0) run(db, 1, "SELECT litestream_stop('follow')");
    sqlite3_close_v2(db);
}

/* One of what there is to do; 0 if the connection is to be closed as it is. */
static int work(sqlite3 *db, long thread, unsigned long long *state) {
    switch (random_below(state, 8)) {
    case 0: run(db, 1, "SELECT litestream_stop('serve')"); break;
    case 1: run(db, 1, "SELECT litestream_stop()"); break;
    case 2: run(db, 1, "SELECT litestream_pos()"); break;
    case 3: run(db, 1, "SELECT litestream_sync(2000)"); break;
    case 4: run(db, 1, "SELECT litestream_checkpoint('PASSIVE')"); break;
    case 5:
        run(db, 1, "SELECT * FROM litestream_databases");
        run(db, 1, "SELECT * FROM litestream_followers, litestream_log");
        run(db, 1, "SELECT count(*) FROM litestream_wal_segments");
        break;
    case 6:
        run(db, 0, "BEGIN IMMEDIATE");
        run(db, 0, "INSERT INTO t VALUES (-1, 0, 'never committed')");
        return 0;
    default: write_rows(db, thread, 3);
    }
    return 1;
}

static void *live(void *argument) {
    long thread = (long)argument;
    unsigned long long state = seed + 977 * (unsigned long long)thread;
    for (int round = 0; !atomic_load(&stopping); round++) {
        if (round == rounds) atomic_fetch_add(&done, 1);
        if (random_below(&state, 4) == 0) {
            follow(&state);
            continue;
        }
        sqlite3 *db = open_database(primary);
        int early = random_below(&state, 2) == 0;
        if (early) load(db);
        write_rows(db, thread, random_below(&state, 4));
        if (!early || random_below(&state, 2) == 0) load(db);
        if (random_below(&state, 2) == 0) run(db, 1, "SELECT litestream_serve('%s')", address);
        for (unsigned more = random_below(&state, 3); more > 0; more--) {
            write_rows(db, thread, random_below(&state, 3));
            if (!work(db, thread, &state)) break;
        }
        sqlite3_close_v2(db);
    }
    return NULL;
}

int main(int count, char **arguments) {
    if (count != 9) return 2;
    library = arguments[2], primary = arguments[3], replica = arguments[4], address = arguments[5];
    long threads = atol(arguments[6]);
    rounds = atoi(arguments[7]);
    seed = strtoull(arguments[8], NULL, 10);
    if (threads < 1 || threads > THREADS_MAX) return 2;
    alarm(300);
    sqlite3 *db = open_database(primary);
    run(db, 0, "PRAGMA journal_mode = WAL");
    run(db, 0, "CREATE TABLE t(thread INTEGER, n INTEGER, pad BLOB)");
    sqlite3_close_v2(db);
    pthread_t ids[THREADS_MAX];
    for (long thread = 0; thread < threads; thread++)
        if (pthread_create(&ids[thread], NULL, live, (void *)thread) != 0) return 2;
    while (atomic_load(&done) < threads) usleep(1000);
    int join = strcmp(arguments[1], "join") == 0;
    if (join) {
        atomic_store(&stopping, 1);
        for (long thread = 0; thread < threads; thread++) pthread_join(ids[thread], NULL);
    }
    for (long thread = 0; thread < threads; thread++)
        printf("%ld %ld\n", thread, atomic_load(&committed[thread]));
    fflush(stdout);
    if (!join) return 0;
    db = open_database(primary);
    load(db);
    run(db, 0, "SELECT litestream_serve('%s')", address);
    puts("serves");
    fflush(stdout);
    while (getchar() != EOF) {}
    run(db, 0, "SELECT litestream_stop()");
    if (sqlite3_close_v2(db) != OK) unexpected("close", "not OK");
    return 0;
}
