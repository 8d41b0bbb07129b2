//! What guests say, and what a QEMU might that a guest has broken into.

use forrest_vm::lines::{BoundedLines, Line};
use forrest_vm::outcome::Outcome;
use forrest_vm::protocol::{Answer, Request};
use forrest_vm::qmp::{self, Qmp, QmpEvent};
use forrest_vm::shim::guest_port::{self, GuestLine};
use forrest_vm::spec::RunSpec;
use futures::FutureExt;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

use crate::Cut;
use crate::terminal::guard::Guard;
use crate::terminal::neutral::{self, Console};

thread_local! {
    static RUNTIME: Runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
}

/// What QEMU sends; an even first byte has it greet properly before.
pub(crate) fn qmp(data: &[u8]) {
    let mut cut = Cut::new(data);
    let greets = cut.byte().is_multiple_of(2);
    let said = cut.rest();
    let exchange = async {
        let (ours, mut theirs) = UnixStream::pair().expect("a socket pair");
        if greets {
            let greeting = b"{\"QMP\":{}}\n{\"return\":{},\"id\":1}\n";
            theirs.write_all(greeting).await.expect("room in the socket");
        }
        // It fits into the socket's buffer, and the end of it ends everything.
        theirs.write_all(said).await.expect("room in the socket");
        theirs.shutdown().await.expect("shut down");
        let Ok((qmp, mut events)) = Qmp::handshake(ours).await else { return };
        let (answer, ()) =
            tokio::join!(qmp.execute("query-status", serde_json::Value::Null), async {
                while let Some(event) = events.recv().await {
                    bounded(&event);
                }
            });
        if let Err(error) = answer {
            assert!(error.to_string().len() <= 2 * qmp::LINE_LEN_MAX);
        }
    };
    RUNTIME.with(|runtime| runtime.block_on(exchange));
}

fn bounded(event: &QmpEvent) {
    match event {
        QmpEvent::Shutdown { reason: text }
        | QmpEvent::BlockIoError { device: text, .. }
        | QmpEvent::Migration { status: text } => assert!(text.len() <= qmp::LINE_LEN_MAX),
        QmpEvent::GuestPanicked | QmpEvent::Stop | QmpEvent::Resume => {}
    }
}

/// Lines on the virtio-serial port, read as many bytes at a time as the first byte says.
pub(crate) fn guest_port(data: &[u8]) {
    let mut cut = Cut::new(data);
    let buffer_len = usize::from(cut.byte() % 64) + 1;
    let said = cut.rest();
    let mut lines = BoundedLines::new(said, guest_port::LINE_LEN_MAX, buffer_len);
    let mut heard = 0;
    while let Some(line) =
        lines.next().now_or_never().expect("memory does not wait").expect("reads")
    {
        heard += 1;
        let Line::Text(line) = line else { continue };
        assert!(line.len() <= guest_port::LINE_LEN_MAX && !line.contains(&b'\n'));
        if let GuestLine::Error { text } = GuestLine::parse(&line) {
            assert!(text.chars().count() <= guest_port::ERROR_LEN_MAX);
            assert!(!text.chars().any(neutral::is_harmful), "{text:?}");
        }
    }
    assert_eq!(heard, said.iter().filter(|byte| **byte == b'\n').count(), "lines are lost");
}

/// What is understood is understood the same when it is written and read again.
fn stable<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(line: &[u8]) {
    let Ok(value) = serde_json::from_slice::<T>(line) else { return };
    let written = serde_json::to_vec(&value).expect("it came from JSON");
    let again: T = serde_json::from_slice(&written).expect("it was just written");
    assert_eq!(value, again);
}

/// Lines of either side, `run.json`, `outcome.json`.
pub(crate) fn shim(data: &[u8]) {
    for line in data.split(|byte| *byte == b'\n').take(64) {
        stable::<Request>(line);
        stable::<Answer>(line);
    }
    stable::<RunSpec>(data);
    stable::<Outcome>(data);
}

/// Console output, in two pieces that meet where the first byte says.
pub(crate) fn console(data: &[u8]) {
    let mut cut = Cut::new(data);
    let at = usize::from(cut.byte());
    let said = cut.rest();
    let shown = |pieces: &[&[u8]]| {
        let mut console = Console::default();
        let mut text = String::new();
        pieces.iter().for_each(|piece| console.feed(piece, &mut text));
        console.finish(&mut text);
        text
    };
    let text = shown(&[said]);
    let harmless = |c: char| matches!(c, '\n' | '\t') || !neutral::is_harmful(c);
    assert!(text.chars().all(harmless), "{text:?}");
    assert!(text.len() <= 3 * said.len() + 3, "{} of {} bytes", text.len(), said.len());
    let (one, two) = said.split_at(at.min(said.len()));
    assert_eq!(shown(&[one, two]), text);
    assert_eq!(shown(&[text.as_bytes()]), text, "what is harmless is changed");
    let name = String::from_utf8_lossy(said);
    assert!(!neutral::one_line(&name).chars().any(neutral::is_harmful));
    assert!(neutral::lines(&name).chars().all(|c| c == '\n' || !neutral::is_harmful(c)));
}

/// What a shell in a guest prints.
pub(crate) fn shell(data: &[u8]) {
    let passed = |bytes: &[u8]| {
        let mut guard = Guard::default();
        let mut out = Vec::new();
        guard.feed(bytes, &mut out);
        out
    };
    let out = passed(data);
    assert!(!out.contains(&0x05), "it may make the terminal type its answerback message");
    // ESC ] and its like begin what reaches beyond the screen.
    let strings = out
        .windows(2)
        .any(|two| two[0] == 0x1b && matches!(two[1], b']' | b'P' | b'X' | b'^' | b'_'));
    assert!(!strings, "a control string passed: {out:?}");
    assert_eq!(passed(&out), out, "what passed once does not pass again");
}
