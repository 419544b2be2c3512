//! What the wal-index had counted where the log's files end: `DB-litestream/change`, a line `POS
//! CHANGE`. The wal-index counts commits ([`crate::walindex`]), so whoever takes over can tell how
//! many were made since. A note that is not about the log's very end, or cannot be read, is none.

use super::Log;
use super::layout::Layout;
use crate::error::{Result, lock};
use crate::files::text_beside;
use crate::pos::Pos;

/// A position, and the wal-index's count of commits there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) pos: Pos,
    pub(super) change: u32,
}

/// What an earlier process noted of `end`.
pub(super) fn read(layout: &Layout, end: Pos) -> Option<Mark> {
    let text = text_beside(&layout.change_file()).ok()?;
    let (pos, change) = text.strip_suffix('\n')?.split_once(' ')?;
    let mark = Mark { pos: pos.parse().ok()?, change: change.parse().ok()? };
    (mark.pos == end).then_some(mark)
}

impl Log {
    /// The wal-index's count at `pos`, if that is the end of what is captured and it is known.
    pub fn change_at(&self, pos: Pos) -> Option<u32> {
        lock(&self.state).mark.filter(|mark| mark.pos == pos).map(|mark| mark.change)
    }

    /// Notes the count, if it is that where the files end. The caller holds `flusher`.
    pub(super) fn note_mark(&self, mark: Option<Mark>) -> Result<()> {
        let is_news = |mark: &Mark| {
            let state = lock(&self.state);
            mark.pos == state.flushed && state.noted != Some(*mark)
        };
        let Some(mark) = mark.filter(is_news) else { return Ok(()) };
        let line = format!("{} {}\n", mark.pos, mark.change);
        self.layout.write_once(&self.layout.change_file(), &[line.as_bytes()], false)?;
        lock(&self.state).noted = Some(mark);
        Ok(())
    }
}
