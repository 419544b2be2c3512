//! Where an archive is, in everybody's words.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::common::Folder;
use crate::common::servers::{ACCESS_KEY, BUCKET, S3Server, SECRET_KEY};
use crate::stock::Release;

/// A folder or a prefix of a bucket, and perhaps keys.
#[derive(Clone)]
pub struct Place {
    url: String,
    /// As 0.3 and 0.5 are told.
    lines: Vec<String>,
    /// As we are told.
    options: Value,
    /// An age secret key and the public key to it.
    age: Option<(String, String)>,
}

impl Place {
    pub fn folder(folder: &Folder, name: &str) -> Place {
        let path = folder.file(name);
        let lines = vec!["type: file".to_owned(), format!("path: {}", path.display())];
        let options = json!({});
        Place { url: format!("file://{}", path.display()), lines, options, age: None }
    }

    pub fn bucket(server: &S3Server, name: &str) -> Place {
        let lines = [
            "type: s3".to_owned(),
            format!("bucket: {BUCKET}"),
            format!("path: {name}"),
            format!("endpoint: {}", server.endpoint()),
            "region: us-east-1".to_owned(),
            "force-path-style: true".to_owned(),
            format!("access-key-id: {ACCESS_KEY}"),
            format!("secret-access-key: {SECRET_KEY}"),
        ];
        Place { url: server.url(name), lines: lines.into(), options: server.options(), age: None }
    }

    /// The same place, encrypted.
    pub fn encrypted(mut self, secret: &str, public: &str) -> Place {
        self.age = Some((secret.to_owned(), public.to_owned()));
        self
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// The archive's options, and `more`.
    pub fn options(&self, more: &Value) -> Value {
        let mut options = self.options.clone();
        if let Some((secret, public)) = &self.age {
            options["age_identities"] = json!([secret]);
            options["age_recipients"] = json!([public]);
        }
        for (key, value) in more.as_object().unwrap() {
            options[key] = value.clone();
        }
        options
    }

    /// The replica's part of a release's configuration.
    pub fn config(&self, release: Release) -> String {
        let mut lines = self.lines.clone();
        lines.push("sync-interval: 100ms".to_owned());
        if release == Release::Three {
            lines.push("snapshot-interval: 3s".to_owned());
            lines.push("retention: 1h".to_owned());
        }
        if let Some((secret, public)) = &self.age {
            let age = ["age:", "  identities:", "  recipients:"];
            lines.extend(age[..2].iter().map(|line| (*line).to_owned()));
            lines.push(format!("    - {secret}"));
            lines.push(age[2].to_owned());
            lines.push(format!("    - {public}"));
        }
        let (head, first, others) = match release {
            Release::Three => ("    replicas:\n", "      - ", "        "),
            Release::Five => ("    replica:\n", "      ", "      "),
        };
        let mut text = head.to_owned();
        for (number, line) in lines.iter().enumerate() {
            text.push_str(if number == 0 { first } else { others });
            text.push_str(line);
            text.push('\n');
        }
        text
    }

    /// Of a folder: its path.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(self.url.strip_prefix("file://").unwrap())
    }
}
