//! What is looked at after the play, and after a kill.

use std::path::Path;

use super::Round;
use crate::cast::Side;
use crate::common::*;

impl Round<'_> {
    /// What did not begin because something failed, begins now.
    pub(super) fn mend(&mut self, side: Side) {
        let before = self.said.entry(side).or_default().len();
        until(&format!("{side:?} to recover"), || {
            match side {
                Side::Primary => self.begin_primary(),
                _ => self.follow(),
            }
            let said = self.said.entry(side).or_default();
            let fine = said.len() == before;
            said.truncate(before);
            fine.then_some(())
        });
    }

    /// After a kill the archive restores to no less than was synced, and the database has all.
    pub(super) fn check_synced(&mut self) {
        let rows = self.dbs[&Side::Primary].int("SELECT n FROM ledger");
        let last = self.rows + i64::from(std::mem::take(&mut self.commits));
        assert!((self.rows..=last).contains(&rows), "{rows} of {}", self.rows);
        self.rows = rows;
        let path = self.file("synced.db");
        let restore = self.restore_to(&path);
        match self.dbs[&Side::Restorer].run(&restore) {
            Ok(_) => {
                let rows = self.rows_of(&path);
                assert!((self.synced..=self.rows).contains(&rows), "{rows} of {}", self.synced);
                std::fs::remove_file(path).unwrap();
            }
            Err(error) => assert_eq!(self.synced, 0, "{error}"),
        }
    }

    pub(super) fn rows_of(&self, path: &Path) -> i64 {
        let db = self.stage.plain.open(path);
        let rows = db.run("SELECT n FROM ledger").map_or(0, |rows| rows[0][0].as_i64().unwrap());
        assert_eq!(db.text("PRAGMA integrity_check"), "ok");
        db.close();
        rows
    }

    pub(super) fn compare(&mut self) {
        self.add(100);
        assert_eq!(self.dbs[&Side::Primary].int("SELECT n FROM ledger"), self.rows);
        let (primary, replica) = (&self.dbs[&Side::Primary], &self.dbs[&Side::Follower]);
        assert_same(primary, replica);
        let pos = primary.text("SELECT litestream_sync()");
        let archives = read_archive(&self.archive_folder());
        let current = archives.iter().find(|it| it.generation == generation(&pos)).unwrap();
        current.assert_whole();
        let path = self.file("restored.db");
        let restorer = &self.dbs[&Side::Restorer];
        restorer.text(&self.restore_to(&path));
        let copy = self.stage.plain.open(&path);
        assert_eq!(copy.content(), primary.content(), "the restored copy differs");
        copy.close();
        self.stop_reading();
    }
}
