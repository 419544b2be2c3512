//! Where a follower's records come from: a server, an archive, or a server with an archive behind
//! it.
//!
//! ```text
//! server: goes on at the replica's position ------------------------------------> stream
//!    |  does not hold it any more, and there is an archive
//!    +--> archive: what it holds after the position --applied--> server, asked again
//!    |  the archive does not continue there, or made no difference
//!    +--> server: a snapshot -----------------------------------------------------> stream
//! ```
//!
//! A server that cannot be reached is waited for: the archive is behind it, and whoever follows
//! both would have to go back.

use super::archive::{ArchiveSource, Extent, From};
use super::client::Client;
use super::cursor::Point;
use super::intents::UpstreamPos;
use super::replica::Replica;
use super::session::Session;
use super::shared::Shared;
use super::stream::Stream;
use super::url::Resume;
use crate::error::{Error, ErrorKind, Result};
use crate::registry::{self, Level};

/// How often an archive may help before a snapshot is taken after all.
const CATCH_UPS_MAX: u32 = 3;

/// What is followed.
pub enum Source {
    /// A server, and an archive of the same database for catching up.
    Server(Client, Option<ArchiveSource>),
    /// An archive alone.
    Archive(ArchiveSource),
}

impl Source {
    /// Opens a stream that continues where the replica is, if that can be. `parted`: it cannot.
    /// Returns the point it continues at, too.
    pub fn open(
        &self,
        shared: &Shared,
        replica: &mut Replica,
        parted: bool,
    ) -> Result<(Stream, Option<Point>)> {
        let from = |replica: &Replica| if parted { Ok(None) } else { replica.point() };
        let (client, archive) = match self {
            Source::Server(client, archive) => (client, archive),
            Source::Archive(archive) => {
                let from = from(replica)?;
                let place = from.and_then(|from| place(replica, &from));
                return Ok((archive.open(place, Extent::Endless, shared)?, from));
            }
        };
        let mut tries = 0;
        loop {
            let from = from(replica)?;
            let resume = from.map(|point| {
                let UpstreamPos { pos, chain } = point.upstream;
                Resume { pos, checksum: chain.map(|chain| chain.checksum) }
            });
            let stream = client.open(resume.as_ref(), &shared.new_link())?;
            let (Some(archive), Some(from)) = (archive, from) else { return Ok((stream, from)) };
            if !stream.manners().starts_over || tries == CATCH_UPS_MAX {
                return Ok((stream, Some(from)));
            }
            drop(stream);
            tries += 1;
            let outcome = catch_up(shared, replica, archive, from);
            if shared.is_stopping() {
                return Err(Error::new(ErrorKind::Stopped, "stopped"));
            }
            if let Err(error) = outcome {
                let text = format!("follow: cannot catch up from the archive: {error}");
                registry::log(Level::Warn, replica.path(), &text);
            }
            if replica.pos() == Some(from.upstream.pos) {
                tries = CATCH_UPS_MAX;
            }
        }
    }
}

/// Applies what an archive holds after the replica's position.
fn catch_up(
    shared: &Shared,
    replica: &mut Replica,
    archive: &ArchiveSource,
    from: Point,
) -> Result<()> {
    let stream = archive.open(place(replica, &from), Extent::Rest, shared)?;
    let text = format!(
        "follow: the upstream does not hold {} any more; catching up from {}",
        from.upstream.pos,
        archive.url()
    );
    registry::log(Level::Info, replica.path(), &text);
    Session::new(shared, replica, stream, Some(from))?.run().1
}

fn place(replica: &Replica, from: &Point) -> Option<From> {
    let page_size = replica.page_size()?;
    Some(From { upstream: from.upstream, page_size })
}
