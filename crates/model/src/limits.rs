//! Bounds that several services must agree on (spec README, decisions and conventions).

use std::time::Duration;

/// Longest bearer anywhere, in bytes; the STS refuses to mint a longer one.
pub const MAX_BEARER_BYTES: usize = 8 * 1024;
/// Longest path of Delegations, mirrored ones included.
pub const MAX_PATH: usize = 10;
/// Most actors in one mandate, the latest included.
pub const MAX_ACTORS: usize = 4;
/// A Gateway mandate with less life than this is refused, in seconds.
pub const PREFLIGHT_SECONDS: i64 = 35;
/// Tolerance between clocks when times of a token are checked.
pub const LEEWAY: Duration = Duration::from_secs(60);
/// Lifetime of a mandate when none is asked for, in seconds.
pub const DEFAULT_TTL_SECONDS: i64 = 900;
/// Longest lifetime with client credentials, in seconds.
pub const MAX_TTL_SECONDS: i64 = 3600;
/// Longest lifetime with a subject token, in seconds.
pub const MAX_SUBJECT_TTL_SECONDS: i64 = 900;
/// A revoked anchor is remembered this long.
pub const REVOCATION_MEMORY: Duration = Duration::from_secs(24 * 3600);
