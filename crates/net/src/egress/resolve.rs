//! Names to judged addresses, once.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use caracal_model::{Clock, Ticks};
use parking_lot::Mutex;

use super::guard::AddressGuard;

/// Judged addresses of one host, pinned for the dial.
pub type Addresses = Arc<[IpAddr]>;

/// How long judged addresses are used again.
const MEMORY: Duration = Duration::from_secs(5);
/// Hosts that are remembered at one time.
const HOSTS: usize = 1024;

/// Turns a name into addresses.
pub trait Resolver: Send + Sync {
    /// Every address of that host.
    fn resolve<'a>(
        &'a self,
        host: &'a str,
    ) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send + 'a>>;
}

/// The resolver of the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemResolver;

impl Resolver for SystemResolver {
    fn resolve<'a>(
        &'a self,
        host: &'a str,
    ) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send + 'a>> {
        Box::pin(async move {
            let found = tokio::net::lookup_host((host, 0)).await?;
            Ok(found.map(|address| address.ip()).collect())
        })
    }
}

/// Why a host is not dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EgressError {
    /// One of its addresses is not permitted.
    #[error("the host is not permitted")]
    Blocked,
    /// It has no address.
    #[error("the host has no address")]
    Unresolved,
}

/// The way out: a guard, a resolver and a short memory.
#[derive(Clone)]
pub struct Egress(Arc<Inner>);

struct Inner {
    guard: AddressGuard,
    resolver: Arc<dyn Resolver>,
    clock: Arc<dyn Clock>,
    judged: Mutex<HashMap<Box<str>, (Ticks, Addresses)>>,
}

impl std::fmt::Debug for Egress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Egress({:?})", self.0.guard)
    }
}

impl Egress {
    /// A way out under these rules.
    pub fn new(guard: AddressGuard, resolver: Arc<dyn Resolver>, clock: Arc<dyn Clock>) -> Self {
        Self(Arc::new(Inner {
            guard,
            resolver,
            clock,
            judged: Mutex::default(),
        }))
    }

    /// The addresses of a host, all of them judged.
    ///
    /// # Errors
    /// [`EgressError::Blocked`] when any address is not permitted, [`EgressError::Unresolved`].
    pub async fn vet(&self, host: &str) -> Result<Addresses, EgressError> {
        let bare = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        if let Ok(literal) = bare.parse::<IpAddr>() {
            self.0
                .guard
                .judge(host, literal)
                .map_err(|_| EgressError::Blocked)?;
            return Ok(Arc::new([literal]));
        }
        let now = self.0.clock.ticks();
        if let Some(addresses) = self.remembered(host, now) {
            return Ok(addresses);
        }
        let found = self
            .0
            .resolver
            .resolve(host)
            .await
            .map_err(|_| EgressError::Unresolved)?;
        if found.is_empty() {
            return Err(EgressError::Unresolved);
        }
        for address in &found {
            self.0
                .guard
                .judge(host, *address)
                .map_err(|_| EgressError::Blocked)?;
        }
        let addresses: Addresses = found.into();
        self.remember(host, now, addresses.clone());
        Ok(addresses)
    }

    fn remembered(&self, host: &str, now: Ticks) -> Option<Addresses> {
        let judged = self.0.judged.lock();
        let (at, addresses) = judged.get(host)?;
        (now.since(*at) < MEMORY).then(|| addresses.clone())
    }

    fn remember(&self, host: &str, now: Ticks, addresses: Addresses) {
        let mut judged = self.0.judged.lock();
        if judged.len() >= HOSTS {
            judged.retain(|_, (at, _)| now.since(*at) < MEMORY);
            if judged.len() >= HOSTS {
                judged.clear();
            }
        }
        judged.insert(host.into(), (now, addresses));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use caracal_model::TestClock;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Answers with the next of its lists at each call.
    struct Script(Vec<Vec<&'static str>>, AtomicUsize);

    impl Resolver for Script {
        fn resolve<'a>(
            &'a self,
            _: &'a str,
        ) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send + 'a>> {
            let at = self.1.fetch_add(1, Ordering::SeqCst);
            let list = self.0.get(at).cloned().unwrap_or_default();
            Box::pin(async move { Ok(list.iter().map(|text| text.parse().unwrap()).collect()) })
        }
    }

    fn egress(lists: Vec<Vec<&'static str>>) -> (Arc<TestClock>, Arc<Script>, Egress) {
        let clock = Arc::new(TestClock::default());
        let script = Arc::new(Script(lists, AtomicUsize::new(0)));
        let egress = Egress::new(AddressGuard::upstream(), script.clone(), clock.clone());
        (clock, script, egress)
    }

    #[tokio::test]
    async fn one_bad_answer_refuses_them_all() {
        let (.., egress) = egress(vec![vec!["93.184.216.34", "169.254.169.254"], vec![]]);
        assert_eq!(egress.vet("a.example").await, Err(EgressError::Blocked));
        assert_eq!(egress.vet("a.example").await, Err(EgressError::Unresolved));
    }

    #[tokio::test]
    async fn a_name_is_resolved_once_within_the_memory_and_judged_again_after() {
        let (clock, script, egress) = egress(vec![vec!["93.184.216.34"], vec!["169.254.169.254"]]);
        for _ in 0..3 {
            assert!(egress.vet("a.example").await.is_ok());
        }
        assert_eq!(script.1.load(Ordering::SeqCst), 1);
        clock.advance(MEMORY);
        assert_eq!(egress.vet("a.example").await, Err(EgressError::Blocked));
    }

    #[tokio::test]
    async fn literal_addresses_are_judged_without_a_lookup() {
        let (_, script, egress) = egress(vec![]);
        assert!(egress.vet("127.0.0.1").await.is_ok());
        assert!(egress.vet("[::1]").await.is_ok());
        for host in ["169.254.169.254", "[fe80::1]", "[::ffff:169.254.169.254]"] {
            assert_eq!(egress.vet(host).await, Err(EgressError::Blocked), "{host}");
        }
        assert_eq!(script.1.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn odd_spellings_of_an_address_do_not_slip_past_the_guard() {
        let clock = Arc::new(TestClock::default());
        let egress = Egress::new(AddressGuard::strict([]), Arc::new(SystemResolver), clock);
        for host in [
            "127.1",
            "0x7f.0.0.1",
            "2130706433",
            "0177.0.0.1",
            "localhost",
        ] {
            assert!(egress.vet(host).await.is_err(), "{host}");
        }
    }
}
