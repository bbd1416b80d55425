//! No body makes the token form parser panic, and what it accepts keeps its promises.
#![no_main]

use caracal_sts::form::TokenRequest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    if let Ok(request) = TokenRequest::parse(body) {
        assert!(request.resources.is_sorted());
        assert!(request.resources.iter().all(|r| !r.trim().is_empty()));
        assert!(request.ttl_seconds.is_none_or(|ttl| ttl > 0));
    }
});
