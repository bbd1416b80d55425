//! A caller that sees every byte.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

pub const PATIENCE: Duration = Duration::from_secs(10);

/// A connection and what has come over it.
pub struct Wire {
    stream: TcpStream,
    seen: Vec<u8>,
}

/// A response, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// Lower-case names, in order.
    pub headers: Vec<(String, String)>,
    /// Everything after the head, chunk framing included.
    pub rest: String,
    /// Whether the connection was reset rather than closed.
    pub reset: bool,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut named = self.headers.iter().filter(|(n, _)| n == name);
        let value = named.next().map(|(_, value)| value.as_str());
        assert!(named.next().is_none(), "{name} stands twice");
        value
    }

    /// Whether the body came to its declared or chunked end.
    pub fn is_complete(&self) -> bool {
        match self.header("content-length") {
            Some(length) => self.rest.len() == length.parse::<usize>().unwrap(),
            None => self.rest.ends_with("0\r\n\r\n") || self.rest.contains("\r\n0\r\n"),
        }
    }
}

impl Wire {
    pub async fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        Self {
            stream,
            seen: Vec::new(),
        }
    }

    pub async fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
    }

    /// Waits until this text has come.
    pub async fn sees(&mut self, text: &str) {
        while !String::from_utf8_lossy(&self.seen).contains(text) {
            let more = tokio::time::timeout(PATIENCE, self.more()).await;
            assert!(
                more.unwrap_or(false),
                "waited for {text:?}, saw {:?}",
                String::from_utf8_lossy(&self.seen)
            );
        }
    }

    /// One read; false at the end of the connection.
    async fn more(&mut self) -> bool {
        let mut part = vec![0u8; 16 * 1024];
        match self.stream.read(&mut part).await {
            Ok(read) => {
                self.seen.extend_from_slice(&part[..read]);
                read > 0
            }
            Err(_) => false,
        }
    }

    /// Everything until the connection ends.
    pub async fn answer(mut self) -> Answer {
        let read = tokio::time::timeout(PATIENCE, self.stream.read_to_end(&mut self.seen)).await;
        let reset = read.expect("the connection did not end").is_err();
        let text = String::from_utf8_lossy(&self.seen).into_owned();
        let Some((head, rest)) = text.split_once("\r\n\r\n") else {
            panic!("no head in {text:?}");
        };
        let mut lines = head.lines();
        let status = lines
            .next()
            .unwrap()
            .split(' ')
            .nth(1)
            .unwrap()
            .parse()
            .unwrap();
        let headers = lines.map(|line| {
            let (name, value) = line.split_once(": ").unwrap_or((line, ""));
            (name.to_ascii_lowercase(), value.to_owned())
        });
        Answer {
            status,
            headers: headers.collect(),
            rest: rest.to_owned(),
            reset,
        }
    }
}
