//! What a key has signed lately, told by hash.
//!
//! INVARIANT (only ours): an entry is made by signing alone, and covers every byte of header, payload
//! and signature, so that who finds a token here has what the private key made, as a verification
//! would show.

use std::collections::{HashSet, VecDeque};

use parking_lot::Mutex;

use crate::digest::sha256_of;

/// Tokens that are remembered: a fifth of a second of minting at the rate that one process reaches.
const REMEMBERED: usize = 1_024;

#[derive(Default)]
pub struct Signed(Mutex<Held>);

#[derive(Default)]
struct Held {
    known: HashSet<[u8; 32]>,
    order: VecDeque<[u8; 32]>,
}

impl Signed {
    pub fn remember(&self, text: &str, signature: &[u8]) {
        let digest = digest(text, signature);
        let mut held = self.0.lock();
        if held.order.len() >= REMEMBERED
            && let Some(oldest) = held.order.pop_front()
        {
            held.known.remove(&oldest);
        }
        if held.known.insert(digest) {
            held.order.push_back(digest);
        }
    }

    pub fn knows(&self, text: &str, signature: &[u8]) -> bool {
        let digest = digest(text, signature);
        self.0.lock().known.contains(&digest)
    }
}

/// The signature has one length, so no two pairs give the same bytes.
fn digest(text: &str, signature: &[u8]) -> [u8; 32] {
    sha256_of(&[signature, text.as_bytes()])
}
