//! Claims: what an archive does not have yet is kept, up to a bound.
//!
//! A lease is a follower's, and short; a claim is there as long as somebody archives, through its
//! pauses and retries. It names the oldest index still wanted. `Log::trim` leaves that and
//! everything after it alone until their files exceed the claim's bound: then the claim gives way,
//! which is said at once, and the archive will have a hole.
//!
//! Claims are changed while holding `Log::claims`, which is taken before `state`.

use std::sync::Arc;

use super::{Log, Stored};
use crate::error::lock;
use crate::pos::{Generation, Index};
use crate::registry::{self, Level};

/// One claim.
#[derive(Debug)]
pub(super) struct Wanted {
    /// Whose, for messages.
    name: String,
    /// Bytes of segment files kept for it at most.
    bytes_max: u64,
    /// The oldest index wanted; none, and of any other generation: everything.
    from: Option<(Generation, Index)>,
}

impl Wanted {
    fn index(&self, generation: Option<Generation>) -> Index {
        let same = self.from.filter(|(of, _)| Some(*of) == generation);
        same.map_or(Index::default(), |(_, index)| index)
    }
}

/// Keeps segments from being trimmed. Dropping it ends that.
pub struct Claim {
    log: Arc<Log>,
    number: u64,
}

impl Log {
    /// Claims everything held, and what comes, up to `bytes_max` of segment files.
    pub fn claim(self: &Arc<Self>, name: &str, bytes_max: u64) -> Claim {
        let mut claims = lock(&self.claims);
        let number = claims.keys().next_back().map_or(0, |last| last + 1);
        claims.insert(number, Wanted { name: name.to_owned(), bytes_max, from: None });
        Claim { log: Arc::clone(self), number }
    }

    /// Whether an index that should go must stay. Claims too large to honour give way.
    pub(super) fn is_claimed(&self, index: Index) -> bool {
        let mut claims = lock(&self.claims);
        if claims.is_empty() {
            return false;
        }
        let generation = self.generation();
        let held = |from: Index| -> u64 {
            let state = lock(&self.state);
            let stored = state.disk.range(from..).flat_map(|(_, stored)| stored);
            stored.map(|stored: &Stored| stored.size).sum()
        };
        let (mut claimed, mut gave_way) = (false, Vec::new());
        for wanted in claims.values_mut() {
            let from = wanted.index(generation);
            if from > index {
                continue;
            }
            let bytes = held(from);
            if bytes <= wanted.bytes_max {
                claimed = true;
                continue;
            }
            let why = format!(
                "{} is too far behind: {bytes} bytes wait for it and \"backlog_bytes\" is {}; \
                 history from index {from} on may be missing there",
                wanted.name, wanted.bytes_max
            );
            gave_way.push(why);
            wanted.from = generation.map(|generation| (generation, index.next()));
        }
        drop(claims);
        for why in gave_way {
            registry::log(Level::Error, self.layout.database(), &why);
        }
        claimed
    }
}

impl Claim {
    /// Gives up what is before an index.
    pub fn advance(&self, generation: Generation, index: Index) {
        if let Some(wanted) = lock(&self.log.claims).get_mut(&self.number) {
            wanted.from = Some((generation, index));
        }
    }

    /// Bytes of segment files from the oldest index wanted on.
    pub fn bytes(&self) -> u64 {
        let generation = self.log.generation();
        let from = lock(&self.log.claims).get(&self.number).map(|wanted| wanted.index(generation));
        let Some(from) = from else { return 0 };
        let state = lock(&self.log.state);
        state.disk.range(from..).flat_map(|(_, stored)| stored).map(|stored| stored.size).sum()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        lock(&self.log.claims).remove(&self.number);
    }
}
