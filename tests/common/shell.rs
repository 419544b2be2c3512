//! The real `sqlite3` shell, as a person uses it.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};

use super::{DEADLINE, library, until};

/// A `sqlite3` shell with the extension loaded.
pub struct Shell {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    asked: u32,
}

impl Shell {
    /// Starts it on a database and loads the extension as a user does.
    pub fn start(path: &Path) -> Shell {
        // One pipe for both streams, so that errors come where they happened.
        let mut child = Command::new("sh")
            .args(["-c", "exec \"${SQLITE3:-sqlite3}\" -batch \"$1\" 2>&1", "sh"])
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            out.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        let mut shell = Shell { stdin: child.stdin.take(), child, lines, asked: 0 };
        let library = library().with_extension("");
        assert_eq!(shell.ask(&format!(".load {}", library.display())), "");
        shell
    }

    /// Types a line; nothing is waited for.
    pub fn say(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().unwrap();
        writeln!(stdin, "{line}").unwrap();
        stdin.flush().unwrap();
    }

    /// Types a line and returns what the shell prints for it, errors included.
    pub fn ask(&mut self, line: &str) -> String {
        self.asked += 1;
        let mark = format!("--- {} ---", self.asked);
        self.say(line);
        self.say(&format!(".print '{mark}'"));
        let mut said = Vec::new();
        loop {
            let next = self.lines.recv_timeout(DEADLINE);
            let next = next.unwrap_or_else(|why| panic!("{line}: {why} after {said:?}"));
            if next == mark {
                return said.join("\n");
            }
            said.push(next);
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How often its first thread went to sleep, in all.
    pub fn turns(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line =
            status.lines().find(|line| line.starts_with("voluntary_ctxt_switches:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// `.quit`; fails the test if it hangs.
    pub fn quit(mut self) -> ExitStatus {
        self.say(".quit");
        self.end()
    }

    /// Control-D; fails the test if it hangs.
    pub fn end_of_input(mut self) -> ExitStatus {
        self.stdin.take();
        self.end()
    }

    /// Waits until the shell ends by itself; what it said since it was last asked.
    pub fn wait(&mut self) -> String {
        self.end();
        self.lines.iter().collect::<Vec<_>>().join("\n")
    }

    fn end(&mut self) -> ExitStatus {
        until("the shell to exit", || self.child.try_wait().unwrap())
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _ = self.child.wait();
    }
}
