//! The messages of OTLP that we send, as protobuf (opentelemetry-proto 1.x, `trace/v1`).
//!
//! **Choice.** Written by hand: six messages, whose fields are stable, against a second SDK in the
//! process. What is written here are the three wire types that they use: varint, eight bytes, and
//! bytes with their length before them.

/// A message as it grows.
#[derive(Debug, Default)]
pub struct Message(Vec<u8>);

const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;

impl Message {
    /// The bytes.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// A number; nought is not written, as proto3 has it.
    #[must_use]
    pub fn number(mut self, field: u64, number: u64) -> Self {
        if number != 0 {
            self.key(field, VARINT);
            self.varint(number);
        }
        self
    }

    /// A time.
    #[must_use]
    pub fn fixed64(mut self, field: u64, number: u64) -> Self {
        self.key(field, FIXED64);
        self.0.extend_from_slice(&number.to_le_bytes());
        self
    }

    /// Bytes; none are not written.
    #[must_use]
    pub fn bytes(mut self, field: u64, bytes: &[u8]) -> Self {
        if !bytes.is_empty() {
            self.sized(field, bytes);
        }
        self
    }

    /// Text.
    #[must_use]
    pub fn text(self, field: u64, text: &str) -> Self {
        self.bytes(field, text.as_bytes())
    }

    /// A message within this one, empty or not.
    #[must_use]
    pub fn message(mut self, field: u64, message: &Self) -> Self {
        self.sized(field, &message.0);
        self
    }

    /// Several of them.
    #[must_use]
    pub fn messages(self, field: u64, messages: impl IntoIterator<Item = Self>) -> Self {
        let add = |all: Self, one: Self| all.message(field, &one);
        messages.into_iter().fold(self, add)
    }

    fn sized(&mut self, field: u64, bytes: &[u8]) {
        self.key(field, BYTES);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn key(&mut self, field: u64, kind: u64) {
        self.varint(field << 3 | kind);
    }

    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push((number & 0x7f) as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }
}

/// `KeyValue` with a string.
pub fn text(name: &str, value: &str) -> Message {
    // An empty string is a value as well.
    let mut any = Message::default();
    any.sized(1, value.as_bytes());
    attribute(name, &any)
}

/// `KeyValue` with an integer.
pub fn number(name: &str, value: u64) -> Message {
    attribute(name, &Message::default().number(3, value))
}

fn attribute(name: &str, any: &Message) -> Message {
    Message::default().text(1, name).message(2, any)
}
