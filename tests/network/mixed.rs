//! Everything a network does, in any order, under a primary that writes and readers that read.

use std::time::{Duration, Instant};

use super::common::proxy::{Cut, Door};
use super::common::stream_parts::PARTS;
use super::common::*;
use super::wire::Wired;

#[test]
fn a_replica_lives_through_a_bad_network() {
    let mut wired = Wired::new("net-mixed");
    let outside = Host::plain();
    let readers = wired.readers(&outside);
    let mut rng = Rng::new();
    let began = Instant::now();
    let mut rounds = 0;
    while began.elapsed() < Duration::from_secs(scaled(8, 420)) {
        misbehave(&mut wired, &mut rng);
        std::thread::sleep(Duration::from_millis(rng.below(400)));
        // Now and then it is good for a while, so that there is something to spoil.
        if rng.below(3) == 0 {
            wired.proxy.relent();
            catch_up(&wired.primary().db, &wired.replica);
        }
        rounds += 1;
    }
    println!("{rounds} rounds, {:?}", wired.proxy.counts());
    wired.assert_recovers(readers);
}

fn misbehave(wired: &mut Wired, rng: &mut Rng) {
    let ms = |rng: &mut Rng, most| Duration::from_millis(rng.below(most));
    let kind = rng.below(16);
    let number = rng.number();
    let proxy = &wired.proxy;
    match kind {
        0 => proxy.break_all(number.is_multiple_of(2)),
        1 => proxy.change(|rules| rules.cut = Some(Cut::After(number % 100_000))),
        2 => proxy.change(|rules| rules.cut = Some(Cut::Sent(number % 1000))),
        3 | 4 => {
            let part = PARTS[rng.index(PARTS.len())];
            let (nth, at) = (u32::try_from(rng.below(10)).unwrap(), rng.below(60));
            proxy.change(|rules| rules.cut = Some(Cut::In { part, nth, at }));
        }
        5 => proxy.change(|rules| rules.reset = !rules.reset),
        6 => {
            let (delay, jitter) = (ms(rng, 150), ms(rng, 50));
            proxy.change(|rules| (rules.delay, rules.jitter) = (delay, jitter));
        }
        7 => proxy.change(|rules| rules.down.rate = 1000 + number % 1_000_000),
        8 => proxy.change(|rules| rules.up.rate = 100 + number % 10_000),
        9 => proxy.change(|rules| rules.down.rate = 1),
        10 => proxy.change(|rules| rules.up.rate = 1),
        11 => proxy.change(|rules| rules.down.stopped = true),
        12 => proxy.change(|rules| rules.up.stopped = true),
        13 => {
            let door = if number.is_multiple_of(2) { Door::Shut } else { Door::Mute };
            proxy.change(|rules| rules.door = door);
            proxy.break_all(number.is_multiple_of(3));
            std::thread::sleep(ms(rng, 500));
            // Whoever waits at a mute door is not kept there.
            proxy.change(|rules| rules.door = Door::Open);
            proxy.break_all(true);
        }
        14 => wired.move_server(),
        _ if rng.below(3) == 0 => wired.restart_primary(),
        _ => proxy.relent(),
    }
}
