//! `/metrics`, as Prometheus asks for it.
//!
//! In come requests over HTTP; out goes what the process's nodes count and measure, each figure labelled with its node.
//! It answers that one path, and nobody for long. It must never know what a figure means.

use parking_lot::Mutex;
use prometheus::TextEncoder;
use prometheus::proto::{LabelPair, MetricFamily};
use proto::NodeId;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// A request's first line and headers aren't longer.
const MOST_BYTES: usize = 8 << 10;
/// How long a request and its answer may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Whoever comes while so many are being answered is let go.
const MOST_REQUESTS: usize = 16;
/// How long to wait after a connection that couldn't be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Something that has figures, once it is part of a node.
type Source = Box<dyn Fn() -> Option<(NodeId, Vec<MetricFamily>)> + Send + Sync>;

/// Everything in the process that has figures.
#[derive(Default)]
pub struct Sources(Mutex<Vec<Source>>);

impl Sources {
    /// Adds one.
    pub fn add(&self, source: impl Fn() -> Option<(NodeId, Vec<MetricFamily>)> + Send + Sync + 'static) {
        self.0.lock().push(Box::new(source));
    }

    /// All figures in Prometheus' text form.
    fn text(&self) -> prometheus::Result<String> {
        // What several nodes tell under one name stands together.
        let mut families: BTreeMap<String, MetricFamily> = BTreeMap::new();
        for (node, told) in self.0.lock().iter().filter_map(|source| source()) {
            for mut family in told {
                for metric in family.mut_metric().iter_mut() {
                    let mut label = LabelPair::default();
                    label.set_name("node".to_owned());
                    label.set_value(node.to_string());
                    metric.mut_label().push(label);
                }
                match families.get_mut(family.get_name()) {
                    Some(known) => known.mut_metric().extend(family.take_metric()),
                    None => _ = families.insert(family.get_name().to_owned(), family),
                }
            }
        }
        let families: Vec<MetricFamily> =
            families.into_values().filter(|family| !family.get_metric().is_empty()).collect();
        TextEncoder::new().encode_to_string(&families)
    }
}

/// Answers until it is dropped.
pub async fn serve(listener: TcpListener, sources: Arc<Sources>) {
    let places = Arc::new(Semaphore::new(MOST_REQUESTS));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "can't accept a connection for metrics");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let sources = sources.clone();
        tokio::spawn(async move {
            // Who is too slow, or goes away, asks again.
            drop(tokio::time::timeout(TIMEOUT, answer(stream, &sources)).await);
            drop(place);
        });
    }
}

async fn answer(mut stream: TcpStream, sources: &Sources) -> std::io::Result<()> {
    let (status, body) = match target(&mut stream).await? {
        Some(Target::Metrics) => match sources.text() {
            Ok(text) => ("200 OK", text),
            Err(error) => ("500 Internal Server Error", format!("{error}\n")),
        },
        Some(Target::Other) => ("404 Not Found", "There is /metrics alone.\n".to_owned()),
        Some(Target::Change) => ("405 Method Not Allowed", "There is GET alone.\n".to_owned()),
        None => ("400 Bad Request", "This isn't HTTP.\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        prometheus::TEXT_FORMAT,
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

/// What is asked for.
#[derive(Debug, PartialEq)]
enum Target {
    Metrics,
    Other,
    /// Something other than to be told.
    Change,
}

/// Reads a request. `None`: it is none.
async fn target(stream: &mut TcpStream) -> std::io::Result<Option<Target>> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if head.len() >= MOST_BYTES || stream.read_buf(&mut head).await? == 0 {
            return Ok(None);
        }
    }
    Ok(parse(&head))
}

fn parse(head: &[u8]) -> Option<Target> {
    let line = std::str::from_utf8(head.split(|byte| *byte == b'\r').next()?).ok()?;
    let mut words = line.split(' ');
    let (method, path, version) = (words.next()?, words.next()?, words.next()?);
    if !version.starts_with("HTTP/1.") {
        return None;
    }
    let path = path.split('?').next().unwrap_or_default();
    Some(match (method, path) {
        ("GET", "/metrics") => Target::Metrics,
        ("GET", _) => Target::Other,
        _ => Target::Change,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus::{IntGauge, Registry};

    #[test]
    fn a_request_is_read_by_its_first_line() {
        assert_eq!(parse(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"), Some(Target::Metrics));
        assert_eq!(parse(b"GET /metrics?x=1 HTTP/1.0\r\n\r\n"), Some(Target::Metrics));
        assert_eq!(parse(b"GET / HTTP/1.1\r\n\r\n"), Some(Target::Other));
        assert_eq!(parse(b"POST /metrics HTTP/1.1\r\n\r\n"), Some(Target::Change));
        assert_eq!(parse(b"\x16\x03\x01\r\n\r\n"), None);
        assert_eq!(parse(b"GET /metrics\r\n\r\n"), None);
    }

    #[test]
    fn nodes_of_one_process_are_told_apart() {
        let sources = Sources::default();
        for node in [1, 2] {
            let registry = Registry::new();
            let gauge = IntGauge::new("g", "help").unwrap();
            gauge.set(10 * node);
            registry.register(Box::new(gauge)).unwrap();
            sources.add(move || Some((NodeId(node as u64), registry.gather())));
        }
        sources.add(|| None);
        let text = sources.text().unwrap();
        assert_eq!(text, "# HELP g help\n# TYPE g gauge\ng{node=\"1\"} 10\ng{node=\"2\"} 20\n");
    }
}
