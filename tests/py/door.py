"""One face for the SQLite modules a test may choose: the standard library's, pysqlite3 and apsw.

A connection here runs one statement at a time, in autocommit mode unless the SQL says BEGIN, and
answers with a list of rows. Whatever the module, a failure is a `Failure` with SQLite's result
code.
"""

import importlib
import sys


class Failure(Exception):
    """An error from SQLite: its text and its (extended) result code, 0 if the module hides it."""

    def __init__(self, error, code):
        super().__init__(str(error))
        self.code = code


class Door:
    """One SQLite module, imported from `folder` if one is given, and the extension to load."""

    def __init__(self, name="sqlite3", folder=None, extension=None):
        if folder:
            sys.path.insert(0, folder)
        self.module = importlib.import_module(name)
        self.apsw = name == "apsw"
        self.extension = extension

    def version(self):
        return self.module.sqlitelibversion() if self.apsw else self.module.sqlite_version

    def open(self, path, timeout=5.0, extension=True):
        load = self.extension if extension else None
        kind = Apsw if self.apsw else Standard
        return kind(self.module, path, timeout, load)


class Standard:
    """A connection of `sqlite3` or `pysqlite3`."""

    def __init__(self, module, path, timeout, extension):
        self.error = (module.Error, module.Warning)
        try:
            self.db = module.connect(
                path, timeout=timeout, isolation_level=None, check_same_thread=False,
                uri=path.startswith("file:"), cached_statements=0)
            if extension:
                self.load(extension)
        except self.error as error:
            raise Failure(error, getattr(error, "sqlite_errorcode", 0)) from error

    def load(self, extension):
        self.db.enable_load_extension(True)
        self.db.load_extension(extension)

    def run(self, sql, values=()):
        try:
            cursor = self.db.execute(sql, values)
            try:
                return cursor.fetchall()
            finally:
                cursor.close()
        except (*self.error, ValueError, UnicodeError) as error:
            raise Failure(error, getattr(error, "sqlite_errorcode", 0)) from error

    def script(self, sql):
        try:
            self.db.executescript(sql).close()
        except self.error as error:
            raise Failure(error, getattr(error, "sqlite_errorcode", 0)) from error

    def interrupt(self):
        self.db.interrupt()

    def close(self):
        self.db.close()


class Apsw:
    """A connection of `apsw`, whose older releases spell some names differently."""

    def __init__(self, module, path, timeout, extension):
        self.error = module.Error
        flags = module.SQLITE_OPEN_READWRITE | module.SQLITE_OPEN_CREATE | module.SQLITE_OPEN_URI
        try:
            self.db = module.Connection(path, flags)
            self._any("set_busy_timeout", "setbusytimeout")(int(timeout * 1000))
            if extension:
                self.load(extension)
        except self.error as error:
            raise Failure(error, getattr(error, "extendedresult", 0)) from error

    def load(self, extension):
        self._any("enable_load_extension", "enableloadextension")(True)
        self._any("load_extension", "loadextension")(extension)

    def _any(self, *names):
        return next(getattr(self.db, name) for name in names if hasattr(self.db, name))

    def run(self, sql, values=()):
        try:
            return list(self.db.cursor().execute(sql, values))
        except (self.error, ValueError, UnicodeError) as error:
            raise Failure(error, getattr(error, "extendedresult", 0)) from error

    script = run

    def interrupt(self):
        self.db.interrupt()

    def close(self):
        self.db.close()
