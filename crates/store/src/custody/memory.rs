//! A backend for tests: it fails when told to, and tells what it was asked.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use parking_lot::Mutex;

use super::{BackendError, SecretBackend};

/// Envelopes in the memory of a test.
#[derive(Debug, Default)]
pub struct MemoryBackend {
    held: Mutex<BTreeMap<String, Vec<u8>>>,
    asked: Mutex<Vec<String>>,
    deaf: AtomicBool,
    late: AtomicBool,
    read_only: AtomicBool,
    refused: Mutex<Option<String>>,
}

impl MemoryBackend {
    /// From now on every request fails, or none does.
    pub fn is_out(&self, out: bool) {
        self.deaf.store(out, Ordering::SeqCst);
    }

    /// From now on nobody gets an answer, or everybody does.
    pub fn is_late(&self, late: bool) {
        self.late.store(late, Ordering::SeqCst);
    }

    /// From now on every change is refused, or none is.
    pub fn is_read_only(&self, read_only: bool) {
        self.read_only.store(read_only, Ordering::SeqCst);
    }

    /// From now on nothing is changed under this reference.
    pub fn refuses(&self, at: &str) {
        *self.refused.lock() = Some(at.to_owned());
    }

    /// What is held under this reference.
    pub fn held(&self, at: &str) -> Option<Vec<u8>> {
        self.held.lock().get(at).cloned()
    }

    /// How many references are held.
    pub fn count(&self) -> usize {
        self.held.lock().len()
    }

    /// As somebody else may do it.
    pub fn tamper(&self, at: &str, envelope: Option<Vec<u8>>) {
        let mut held = self.held.lock();
        match envelope {
            Some(envelope) => held.insert(at.to_owned(), envelope),
            None => held.remove(at),
        };
    }

    /// What was asked since this was last called: `get REF`, `put REF`, `delete REF`.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock())
    }

    fn ask(&self, what: &str, at: &str) -> Result<(), BackendError> {
        self.asked.lock().push(format!("{what} {at}"));
        let locked = self.refused.lock().as_deref() == Some(at);
        let refused = what != "get" && (locked || self.read_only.load(Ordering::SeqCst));
        if refused || self.deaf.load(Ordering::SeqCst) {
            return Err(BackendError {
                backend: "vault",
                why: if refused { "read only" } else { "out" }.to_owned(),
            });
        }
        Ok(())
    }
}

#[async_trait]
impl SecretBackend for MemoryBackend {
    fn name(&self) -> &'static str {
        "vault"
    }

    async fn get(&self, at: &str) -> Result<Option<Vec<u8>>, BackendError> {
        self.ask("get", at)?;
        if self.late.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        Ok(self.held(at))
    }

    async fn put(&self, at: &str, envelope: &[u8]) -> Result<(), BackendError> {
        self.ask("put", at)?;
        self.tamper(at, Some(envelope.to_vec()));
        Ok(())
    }

    async fn delete(&self, at: &str) -> Result<(), BackendError> {
        self.ask("delete", at)?;
        self.tamper(at, None);
        Ok(())
    }
}
