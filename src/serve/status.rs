//! `GET /status`, for programs, and `GET /`, for people: the same rows.
//!
//! ```text
//! {"version": "v0.1.0", "databases": [{...}], "followers": [{...}], "replicas": [{...}]}
//! ```
//!
//! The rows are those of `litestream_databases`, `litestream_followers` and `litestream_replicas`,
//! with the names of their columns; but only of the databases this server serves: another one in
//! the process may have another token. Column order is kept. The page has no script and asks for
//! nothing else, and says so to the browser.

use std::fmt::Write;

use serde_json::Value;

use super::reply::Reply;
use super::served::FollowerRow;
use super::{Row, Shared};
use crate::info::shown_time;

/// Names of the tables, and their rows.
type Tables = [(&'static str, Vec<Row>); 3];

const VERSION: &str = concat!("v", env!("CARGO_PKG_VERSION"));

/// How the page looks; no more than it takes to read it.
const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2em}\
                     table{border-collapse:collapse}\
                     td,th{border:1px solid #ccc;padding:.2em .6em;text-align:left}";

/// For programs.
pub(super) fn json(shared: &Shared) -> Reply {
    let mut out = format!("{{\"version\":{}", Value::from(VERSION));
    for (name, rows) in tables(shared) {
        let rows: Vec<String> = rows.iter().map(object).collect();
        // Writing to a String cannot fail.
        let _ = write!(out, ",\"{name}\":[{}]", rows.join(","));
    }
    out.push_str("}\n");
    harmless(Reply::new(200, "application/json", out))
}

/// For people.
pub(super) fn page(shared: &Shared) -> Reply {
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Litestream</title>\
         <style>{STYLE}</style></head><body>\n<h1>Litestream {VERSION}</h1>\n"
    );
    for (name, rows) in tables(shared) {
        let _ = writeln!(out, "<h2>{name}</h2>");
        let Some(first) = rows.first() else {
            out.push_str("<p>none</p>\n");
            continue;
        };
        let names: String = first.iter().map(|(name, _)| format!("<th>{name}</th>")).collect();
        let _ = writeln!(out, "<table><tr>{names}</tr>");
        for row in &rows {
            let cells: String = row.iter().map(|(_, value)| cell(value)).collect();
            let _ = writeln!(out, "<tr>{cells}</tr>");
        }
        out.push_str("</table>\n");
    }
    out.push_str(
        "<p><a href=\"/status\">/status</a> is this as JSON, <a href=\"/metrics\">/metrics</a> has \
         numbers, <a href=\"/healthz\">/healthz</a> says whether all is well.</p>\n\
         </body></html>\n",
    );
    harmless(Reply::new(200, "text/html; charset=utf-8", out))
}

fn harmless(reply: Reply) -> Reply {
    let policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; \
                  form-action 'none'; frame-ancestors 'none'";
    let reply = reply.with("X-Content-Type-Options", "nosniff").with("Cache-Control", "no-store");
    reply.with("Content-Security-Policy", policy)
}

fn tables(shared: &Shared) -> Tables {
    let (mut databases, mut followers, mut replicas) = (Vec::new(), Vec::new(), Vec::new());
    for served in shared.databases() {
        let status = served.status();
        databases.push(status.database);
        replicas.extend(status.replicas);
        followers.extend(served.followers().into_iter().map(of_follower));
    }
    [("databases", databases), ("followers", followers), ("replicas", replicas)]
}

fn of_follower(row: FollowerRow) -> Row {
    vec![
        ("database", row.database.to_string_lossy().into_owned().into()),
        ("remote", row.remote.into()),
        ("sent_pos", row.sent_pos.to_string().into()),
        ("applied_pos", row.applied_pos.map(|pos| pos.to_string()).into()),
        ("lag", row.lag.into()),
        ("bytes", row.bytes.into()),
        ("since", shown_time(row.since).into()),
    ]
}

fn object(row: &Row) -> String {
    let fields: Vec<String> =
        row.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
    format!("{{{}}}", fields.join(","))
}

fn cell(value: &Value) -> String {
    let text = match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let mut out = String::from("<td>");
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out + "</td>"
}
