//! The same in a network of the kernel's: two namespaces and a link between them, so that packets
//! really vanish. Not part of `cargo test`: it needs root and iproute2 (`make test-netns`), and
//! fails without them.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

#[path = "../common/mod.rs"]
mod common;

use std::process::Command;

use common::*;

/// What the replica calls its upstream; where that is says a hosts file.
const NAME: &str = "primary.test";

/// Two namespaces, `a` and `b`, with an end of a link in each; gone with the value.
struct Net {
    a: String,
    b: String,
}

fn ip(words: &str) -> bool {
    Command::new("ip").args(words.split(' ')).status().is_ok_and(|status| status.success())
}

impl Net {
    fn new() -> Net {
        let name = |end: char| format!("ls{}{end}", std::process::id());
        let net = Net { a: name('a'), b: name('b') };
        let (a, b) = (&net.a, &net.b);
        let made = ip(&format!("netns add {a}")) && ip(&format!("netns add {b}"));
        assert!(made, "no leave to make network namespaces: root and iproute2 are needed");
        assert!(ip(&format!("link add v{a} netns {a} type veth peer name v{b} netns {b}")));
        for (end, address) in [(a, "10.77.0.1/24"), (b, "10.77.0.9/24")] {
            assert!(ip(&format!("-n {end} addr add {address} dev v{end}")));
            assert!(ip(&format!("-n {end} link set v{end} up")));
            assert!(ip(&format!("-n {end} link set lo up")));
        }
        std::fs::create_dir_all(net.hosts().parent().unwrap()).unwrap();
        net.name("10.77.0.1");
        net
    }

    /// `ip netns exec` lays it over /etc/hosts.
    fn hosts(&self) -> std::path::PathBuf {
        format!("/etc/netns/{}/hosts", self.b).into()
    }

    fn name(&self, address: &str) {
        // The same file with other content: whoever has it mounted sees that.
        std::fs::write(self.hosts(), format!("127.0.0.1 localhost\n{address} {NAME}\n")).unwrap();
    }

    fn host(&self, end: &str) -> Host {
        Host::under(&["ip", "netns", "exec", end])
    }

    fn shape(&self, end: &str, what: &str) -> bool {
        let _there_may_be_none = ip(&format!("netns exec {end} tc qdisc del dev v{end} root"));
        ip(&format!("netns exec {end} tc qdisc add dev v{end} root {what}"))
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for end in [&self.a, &self.b] {
            ip(&format!("netns del {end}"));
        }
        let _never_made = std::fs::remove_dir_all(self.hosts().parent().unwrap());
    }
}

#[test]
fn a_replica_lives_through_a_bad_link() {
    let folder = Folder::new("netns");
    let net = Net::new();
    let (here, there) = (net.host(&net.a), net.host(&net.b));
    let path = folder.file("p.db");
    let db = here.open(&path);
    make_ledger(&db);
    db.text("SELECT litestream_serve('0.0.0.0:9090', '{\"allow_anonymous\": true}')");
    let replica = there.open(folder.file("r.db"));
    replica.text(&format!("SELECT litestream_follow('http://{NAME}:9090')"));
    let writer = here.work("ledger_writer", json!({"path": path, "pause": 0.01}));
    let error = "SELECT ifnull(error, '') FROM litestream_databases";
    let followers = "SELECT count(*) FROM litestream_followers";
    let arrives = || {
        writer.advance(20);
        catch_up(&db, &replica);
    };
    arrives();
    for _ in 0..scaled(1, 20) {
        // Nobody is told that the link is down: packets vanish.
        assert!(ip(&format!("-n {} link set v{} down", net.b, net.b)));
        until("the replica to notice", || (!replica.text(error).is_empty()).then_some(()));
        until("the primary to notice", || (db.int(followers) == 0).then_some(()));
        assert!(ip(&format!("-n {} link set v{} up", net.b, net.b)));
        arrives();
        // The primary moves to another address of the same name.
        let (old, new) = ("10.77.0.1", "10.77.0.2");
        for (from, to) in [(old, new), (new, old)] {
            assert!(ip(&format!("-n {} addr del {from}/24 dev v{}", net.a, net.a)));
            assert!(ip(&format!("-n {} addr add {to}/24 dev v{}", net.a, net.a)));
            net.name(to);
            arrives();
        }
        assert!(net.shape(&net.a, "tbf rate 1mbit burst 16kb latency 400ms"), "tc has no tbf");
        arrives();
        if std::env::var_os("NETEM").is_none_or(|value| value != "no") {
            let done = net.shape(&net.a, "netem delay 100ms loss 5%");
            assert!(done, "this kernel has no netem: NETEM=no leaves delay and loss out");
            arrives();
        }
        assert!(net.shape(&net.a, "pfifo limit 1000"));
    }
    writer.finish();
    assert_same(&db, &replica);
    assert_eq!(snapshots_received(&replica), 1);
}
