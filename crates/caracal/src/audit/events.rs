//! Server-sent events, as the stream of the ledger sends them.

use anyhow::{Context as _, bail};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

/// Longest event; one of the ledger is far shorter.
const MOST: usize = 16 * 1024 * 1024;

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// `audit`, `ready`, `end`; empty when only the id moved on.
    pub kind: String,
    /// Where to go on after it.
    pub id: Option<String>,
    /// JSON.
    pub data: String,
}

/// The events of an answer.
#[derive(Debug)]
pub struct Events {
    body: Incoming,
    buffer: Buffer,
}

impl Events {
    pub fn of(body: Incoming) -> Self {
        Self {
            body,
            buffer: Buffer::default(),
        }
    }

    /// The next one; `None` when the answer ended.
    pub async fn next(&mut self) -> anyhow::Result<Option<Frame>> {
        loop {
            if let Some(frame) = self.buffer.take() {
                return Ok(Some(frame));
            }
            let Some(chunk) = self.body.frame().await else {
                return Ok(None);
            };
            let chunk = chunk.context("the stream broke")?;
            if let Ok(data) = chunk.into_data() {
                self.buffer.push(&data)?;
            }
        }
    }
}

#[derive(Debug, Default)]
struct Buffer(Vec<u8>);

impl Buffer {
    fn push(&mut self, data: &[u8]) -> anyhow::Result<()> {
        self.0.extend_from_slice(data);
        if self.0.len() > MOST {
            bail!("an event of the stream is too long");
        }
        Ok(())
    }

    /// The first whole event. Our server ends lines with a line feed alone.
    fn take(&mut self) -> Option<Frame> {
        let end = self.0.windows(2).position(|pair| pair == b"\n\n")?;
        let rest = self.0.split_off(end + 2);
        let text = std::mem::replace(&mut self.0, rest);
        let text = String::from_utf8_lossy(&text);
        let mut frame = Frame::default();
        for line in text.lines() {
            let Some((name, value)) = line.split_once(':') else {
                continue;
            };
            let value = value.strip_prefix(' ').unwrap_or(value);
            match name {
                "event" => value.clone_into(&mut frame.kind),
                "id" => frame.id = Some(value.to_owned()),
                "data" => frame.data.push_str(value),
                _ => {}
            }
        }
        Some(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_any_pieces() {
        let mut buffer = Buffer::default();
        let wire = "retry: 2000\nid: a\nevent: ready\ndata: {}\n\n: still here\nid: b\n\nid: c\nevent: audit\ndata: {\"x\":\"y: z\"}\n\n";
        let mut frames = Vec::new();
        for byte in wire.as_bytes() {
            buffer.push(&[*byte]).unwrap();
            frames.extend(buffer.take());
        }
        let frame = |kind: &str, id: &str, data: &str| Frame {
            kind: kind.to_owned(),
            id: Some(id.to_owned()),
            data: data.to_owned(),
        };
        assert_eq!(
            frames,
            [
                frame("ready", "a", "{}"),
                frame("", "b", ""),
                frame("audit", "c", r#"{"x":"y: z"}"#)
            ]
        );
    }
}
