//! How the Gateway asks the STS. In one process that is a function call (the STS implements
//! [`Exchange`] itself), across processes it is [`RemoteExchange`].

mod directive;
mod exchange;
mod remote;

pub use caracal_net::breaker::Circuit;
pub use directive::{AuthLocation, AuthMode, Directive};
pub use exchange::{Exchange, ExchangeRefused, GatewayExchange, GatewayGrant};
pub use remote::{BaseUrlError, RemoteExchange};
