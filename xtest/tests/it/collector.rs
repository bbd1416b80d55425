//! A collector of traces (OTLP over HTTP): it keeps what it is sent, as it is.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use parking_lot::Mutex;

/// The messages so far.
pub type Collected = Arc<Mutex<Vec<Vec<u8>>>>;

/// A collector, and where it listens.
pub fn collector() -> (Collected, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let collected = Collected::default();
    let into = Arc::clone(&collected);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let into = Arc::clone(&into);
            std::thread::spawn(move || collect(stream.unwrap(), &into));
        }
    });
    (collected, url)
}

fn collect(mut stream: TcpStream, into: &Collected) {
    let mut seen = Vec::new();
    let mut chunk = [0u8; 65_536];
    while let Ok(n) = stream.read(&mut chunk) {
        if n == 0 {
            return;
        }
        seen.extend_from_slice(&chunk[..n]);
        while let Some((message, end)) = whole(&seen) {
            into.lock().push(message.to_vec());
            seen.drain(..end);
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                .unwrap();
        }
    }
}

/// The body of a request that is all there, and where it ends.
fn whole(seen: &[u8]) -> Option<(&[u8], usize)> {
    let head = seen.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(&seen[..head]).to_lowercase();
    assert!(text.starts_with("post /v1/traces "), "{text}");
    let length = text.split("content-length: ").nth(1)?.lines().next()?;
    let end = head + length.trim().parse::<usize>().ok()?;
    Some((seen.get(head..end)?, end))
}
