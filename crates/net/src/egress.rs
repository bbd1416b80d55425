//! Going out: which addresses may be dialled, and the client that dials only those.
//!
//! **Forces.** URLs of upstreams and of token endpoints come from tenants. A name that resolves to
//! an inside address, now or at the second lookup, would turn us into a way in. **Choice.** Names
//! are resolved once, every answer is judged, one bad answer refuses them all, and only judged
//! addresses are dialled. Literal addresses are judged without a lookup; no proxy is asked and no
//! redirect followed, because either would choose an address that nobody judged.

mod connector;
mod fetch;
mod forwarder;
mod guard;
mod presentable;
mod resolve;
mod secure;
mod tls;

pub use connector::GuardedConnector;
pub use fetch::{Bounds, FetchError, Fetcher};
pub use forwarder::{ForwardBody, ForwardError, Forwarder, PoolSettings};
pub use guard::{AddressGuard, Blocked};
pub use presentable::presentable;
pub use resolve::{Addresses, Egress, EgressError, Resolver, SystemResolver};
pub use secure::{Secure, Trust, trusted_pem};
pub use tls::{TlsError, client_config, expiry, server_config};
