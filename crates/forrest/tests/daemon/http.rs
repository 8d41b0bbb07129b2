//! HTTP as a stranger might speak it: written by hand, so that every mistake can be made.

use std::time::Duration;

use forrest_testbed::{Testbed, WEBHOOK_SECRET};
use github_sim::webhooks::sign;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;

/// How long an answer may take: a bit more than the endpoint gives a slow body.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection to the webhook endpoint.
pub async fn connect(testbed: &Testbed) -> UnixStream {
    let socket = testbed.plan().base_dir().join("webhook.sock");
    UnixStream::connect(&socket).await.expect("the endpoint listens")
}

/// Sends bytes and returns the answer's status; `None` where the connection ends without one.
pub async fn exchange(stream: impl AsyncRead + AsyncWrite + Unpin, request: &[u8]) -> Option<u16> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    // It may answer and close before it has read everything.
    let _ = writer.write_all(request).await;
    answer(&mut reader).await
}

/// Reads an answer's status.
pub async fn answer(reader: &mut (impl AsyncRead + Unpin)) -> Option<u16> {
    let mut head = [0; "HTTP/1.1 200".len()];
    let read = tokio::time::timeout(ANSWER_TIMEOUT, reader.read_exact(&mut head)).await;
    read.expect("the endpoint answers in time").ok()?;
    std::str::from_utf8(&head).ok()?.split(' ').nth(1)?.parse().ok()
}

/// A webhook, signed as the testbed's App would.
pub fn webhook(event: &str, body: &[u8]) -> Vec<u8> {
    let signature = sign(WEBHOOK_SECRET, body);
    post(&[("X-GitHub-Event", event), ("X-Hub-Signature-256", &signature)], body)
}

/// A POST request with these headers.
pub fn post(headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut request = head("POST", body.len(), headers);
    request.extend_from_slice(body);
    request
}

/// The head of a request.
pub fn head(method: &str, length: usize, headers: &[(&str, &str)]) -> Vec<u8> {
    let mut text = format!(
        "{method} / HTTP/1.1\r\nHost: forrest\r\nContent-Type: application/json\r\n\
         X-GitHub-Delivery: 0b989ba4-242f-11e5-81e1-c7b6966d2516\r\nContent-Length: {length}\r\n"
    );
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    text.into_bytes()
}

/// Posts a signed webhook to the unix socket.
pub async fn deliver(testbed: &Testbed, event: &str, body: &[u8]) -> Option<u16> {
    exchange(connect(testbed).await, &webhook(event, body)).await
}
