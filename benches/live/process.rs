//! A child process: this program once more, in a role. JSON lines in and out.
//!
//! `{"call": "beat", "with": {..}}` is answered by one line, or, where the child says so, by
//! several. A child ends at the end of its input, so it cannot outlive its parent.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

/// Set in a child: what it is to do.
pub const ROLE: &str = "LIVE_BENCH_ROLE";

pub struct Process {
    role: &'static str,
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Process {
    pub fn start(role: &'static str) -> Process {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .env(ROLE, role)
            .env_remove("LITESTREAM_TOKEN")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().unwrap());
        Process { role, child, input, output }
    }

    /// The number of the process.
    #[allow(dead_code, reason = "not every bench sends signals")]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn say(&mut self, call: &str, with: &Value) {
        let input = self.input.as_mut().unwrap();
        writeln!(input, "{}", json!({"call": call, "with": with})).unwrap();
    }

    pub fn answer(&mut self) -> Value {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|why| panic!("{}: {why}: {line}", self.role))
    }

    pub fn call(&mut self, call: &str, with: &Value) -> Value {
        self.say(call, with);
        self.answer()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.child.wait();
    }
}
