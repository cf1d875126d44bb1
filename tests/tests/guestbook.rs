//! The worked example of docs/consistency.md: a guest book in Python, two processes of it on two routers, and a visitor whose
//! token travels in a cookie.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tests::http::{self, Answer};
use tests::nodes::Nodes;
use tests::tools::find_psycopg2_or_skip;

/// How often the visitor signs.
const VISITS: usize = 200;

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("docs")
}

fn program() -> PathBuf {
    docs().join("examples/guestbook.py")
}

/// One process of the guest book.
struct Book {
    child: Child,
    address: String,
}

impl Book {
    fn open(python: &Path, router: &str) -> Book {
        let (host, port) = router.rsplit_once(':').unwrap();
        let database = format!("host={host} port={port} user=shoal dbname=shoal connect_timeout=20");
        let mut command = Command::new(python);
        command.arg(program()).args(["--listen", "127.0.0.1:0", "--database", &database]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().trim_start_matches("http://").trim_end_matches('/').to_owned();
        assert!(!address.is_empty(), "the guest book says nothing");
        Book { child, address }
    }

    fn visit(&self, method: &str, cookie: &str, body: &str) -> Answer {
        let cookies: &[_] = if cookie.is_empty() { &[] } else { &[("Cookie", cookie)] };
        http::ask(&self.address, method, "/", cookies, body).unwrap()
    }

    fn page(&self, cookie: &str) -> Answer {
        let answer = self.visit("GET", cookie, "");
        assert!(answer.head.starts_with("HTTP/1.0 200"), "{answer:?}");
        answer
    }
}

impl Drop for Book {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// What a browser would send back.
fn cookie(answer: &Answer) -> String {
    let set = answer.header("Set-Cookie").unwrap_or_else(|| panic!("no cookie in {answer:?}"));
    set.split(';').next().unwrap().to_owned()
}

#[test]
fn visitors_find_their_own_entries() {
    let Some(python) = find_psycopg2_or_skip("visitors_find_their_own_entries") else { return };
    let nodes = Nodes::start_with(3, &["--apply-lag", "0ms..100ms"], &["--shards", "2", "--replicas", "3"]);
    let [one, other] = [0, 1].map(|node| Book::open(&python, nodes.address(node)));
    let mut misses = 0;
    for visit in 0..VISITS {
        let (from, to) = if visit % 2 == 0 { (&one, &other) } else { (&other, &one) };
        let signed = from.visit("POST", "", &format!("author=Ada&line=visit-{visit}-."));
        assert!(signed.head.starts_with("HTTP/1.0 303"), "{signed:?}");
        let entry = format!("<b>Ada</b> visit-{visit}-.");
        misses += usize::from(!to.page("").body.contains(&entry));
        let page = to.page(&cookie(&signed));
        assert!(
            page.body.contains(&entry),
            "visit {visit} isn't in {page:?}, asked with {}",
            cookie(&signed)
        );
        // What a page has shown is shown by the next, by whomever.
        let next = from.page(&cookie(&page));
        assert!(next.body.contains(&entry), "visit {visit} has gone from {next:?}");
    }
    assert!(misses > 0, "without the cookie every entry was found: nothing here lags");

    // A cookie is what somebody sends.
    for written in ["gtid=nonsense", "gtid=main/-80.7:12", "gtid=elsewhere/-80.1:12", "other=1"] {
        one.page(written);
    }
}

#[test]
fn the_page_shows_the_code_that_runs() {
    let (page, code) = (docs().join("consistency.md"), fs::read_to_string(program()).unwrap());
    let page = fs::read_to_string(page).unwrap();
    let shown: Vec<_> =
        page.split("```python\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(!shown.is_empty(), "the page shows no code");
    for part in shown {
        assert!(code.contains(part), "this isn't in guestbook.py:\n{part}");
    }
}
