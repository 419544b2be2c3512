//! Connections that break at every kind of place.

use super::common::proxy::Cut;
use super::common::stream_parts::{PARTS, Part};
use super::common::*;
use super::wire::Wired;

/// Every part of a stream, at its first byte, within, and at the byte that would be its last.
#[test]
fn a_stream_is_resumed_wherever_it_broke() {
    let mut wired = Wired::new("net-cuts");
    let outside = Host::plain();
    let readers = wired.readers(&outside);
    let mut rng = Rng::new();
    for round in 0..scaled(4, 20) {
        for part in PARTS {
            // No part of its kind is shorter. An LZ4 frame's own header has 7 or 15 bytes.
            let length = match part {
                Part::Head => 200,
                Part::ChunkLine => 4,
                Part::RecordHeader => 40,
                Part::Payload => 32,
                Part::ChunkEnd => 2,
            };
            let nth = if part == Part::Head { 0 } else { u32::try_from(rng.below(6)).unwrap() };
            let at = if round == 0 { 0 } else { rng.below(length) };
            cut(&wired, Cut::In { part, nth, at }, rng.below(2) == 0);
        }
    }
    // Deep in a record, wherever that is.
    for _ in 0..scaled(3, 20) {
        cut(&wired, Cut::After(1000 + rng.below(60_000)), true);
    }
    // And in what it sends itself: the head of its request, its acknowledgements.
    for at in [0, 1, 20, 200] {
        cut(&wired, Cut::Sent(at), false);
    }
    wired.assert_recovers(readers);
}

/// Has the next connections break there, and waits for one that did.
fn cut(wired: &Wired, place: Cut, reset: bool) {
    let before = wired.proxy.counts().cut;
    wired.proxy.change(|rules| (rules.cut, rules.reset) = (Some(place), reset));
    wired.proxy.break_all(true);
    until(&format!("a cut at {place:?}"), || (wired.proxy.counts().cut > before).then_some(()));
}
