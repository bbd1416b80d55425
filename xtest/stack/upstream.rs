//! The upstream of a resource.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// An upstream that answers `{"ok":true}` and counts.
pub(crate) async fn echo(reached: Arc<AtomicU64>, heads: Arc<Mutex<Vec<String>>>) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, Arc::clone(&reached), Arc::clone(&heads)));
        }
    });
    url
}

async fn serve(
    mut stream: tokio::net::TcpStream,
    reached: Arc<AtomicU64>,
    heads: Arc<Mutex<Vec<String>>>,
) {
    let mut seen = Vec::new();
    let mut chunk = [0u8; 4096];
    while let Ok(n) = stream.read(&mut chunk).await {
        if n == 0 {
            return;
        }
        seen.extend_from_slice(&chunk[..n]);
        while let Some(end) = seen.windows(4).position(|window| window == b"\r\n\r\n") {
            let head: Vec<u8> = seen.drain(..end + 4).collect();
            keep(&mut heads.lock(), &head);
            reached.fetch_add(1, Ordering::SeqCst);
            let answer = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\
                          content-length: 11\r\n\r\n{\"ok\":true}";
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    }
}

/// Some thousands at most: a probe of hours sends more than memory holds.
fn keep(heads: &mut Vec<String>, head: &[u8]) {
    heads.push(String::from_utf8_lossy(head).into_owned());
    if heads.len() > 10_000 {
        heads.drain(..5_000);
    }
}
