//! `/status` and `/`: what there is, for programs and for people.

use litestream::serve::ServeOptions;
use serde_json::Value;

use crate::client::{ask, connect, get};
use crate::fixture::{Primary, unique_address};

fn status(url: &str) -> Value {
    let (code, text) = get(url, "/status");
    assert_eq!(code, 200, "{text}");
    serde_json::from_str(&text).unwrap()
}

#[test]
fn what_there_is_is_told() {
    let mut primary = Primary::new(512, 1);
    let attachment = primary.serve_alone();
    let path = primary.path.to_str().unwrap().to_owned();
    let empty = status(attachment.url());
    assert_eq!(empty["version"], concat!("v", env!("CARGO_PKG_VERSION")));
    assert_eq!(empty["databases"][0]["path"], path.as_str());
    assert_eq!((&empty["followers"], &empty["replicas"]), (&Value::from([0; 0]), &[0; 0].into()));
    let mut follower = connect(attachment.url());
    assert_eq!(follower.get("/stream").status, 200);
    follower.data();
    primary.commit(&[1]);
    follower.data();
    let seen = status(attachment.url());
    let row = &seen["followers"][0];
    let names: Vec<&str> = row.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = ["applied_pos", "bytes", "database", "lag", "remote", "sent_pos", "since"];
    assert_eq!(names, expected);
    assert_eq!(row["database"], path.as_str());
    assert!(row["remote"].as_str().unwrap().starts_with("127."), "{row}");
    assert!(row["bytes"].as_u64().unwrap() > 512, "{row}");
    assert_eq!((&row["applied_pos"], &row["lag"]), (&Value::Null, &Value::Null));
    let page = get(attachment.url(), "/").1;
    assert!(page.contains("<th>sent_pos</th>") && page.contains(&format!("<td>{path}</td>")));
}

#[test]
fn only_what_this_server_serves_is_told() {
    let (here, elsewhere) = (Primary::new(512, 1), Primary::new(512, 1));
    let attachment = here.serve_alone();
    let other = elsewhere.serve_alone();
    let mut follower = connect(other.url());
    assert_eq!(follower.get("/stream").status, 200);
    follower.data();
    let seen = status(attachment.url());
    assert_eq!(seen["databases"].as_array().unwrap().len(), 1, "{seen}");
    assert!(!seen.to_string().contains(elsewhere.path.to_str().unwrap()), "{seen}");
    assert_eq!(seen["followers"], Value::from([0; 0]));
    assert_eq!(status(other.url())["followers"].as_array().unwrap().len(), 1);
}

#[test]
fn a_page_holds_nothing_a_name_could_smuggle_in() {
    let primary = Primary::empty("<script>alert('1')&\".db", None);
    let attachment = primary.serve(&unique_address(), ServeOptions::default());
    let mut client = connect(attachment.url());
    let head = client.get("/");
    assert_eq!(head.get("Content-Type"), Some("text/html; charset=utf-8"));
    let policy = head.get("Content-Security-Policy").unwrap().to_owned();
    assert!(policy.starts_with("default-src 'none'"), "{policy}");
    assert_eq!(head.get("X-Content-Type-Options"), Some("nosniff"));
    let page = client.body(&head);
    assert!(!page.contains("<script"), "{page}");
    assert!(page.contains("&lt;script&gt;alert(&#39;1&#39;)"), "{page}");
    assert!(page.contains("&amp;&quot;.db"), "{page}");
    let told = status(attachment.url());
    assert_eq!(told["databases"][0]["path"], primary.path.to_str().unwrap());
}

#[test]
fn other_methods_are_refused() {
    let primary = Primary::new(512, 1);
    let attachment = primary.serve_alone();
    for target in ["/", "/status"] {
        assert_eq!(ask(attachment.url(), &format!("HEAD {target} HTTP/1.1")).0, 200);
        for method in ["POST", "PUT", "DELETE"] {
            let code = ask(attachment.url(), &format!("{method} {target} HTTP/1.1")).0;
            assert_eq!(code, 405, "{method} {target}");
        }
    }
    assert_eq!(get(attachment.url(), "/status/").0, 404);
}
