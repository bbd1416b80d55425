//! How long a mandate lives (spec: sts §2.7; README, decision 23). All arithmetic is in whole Unix
//! seconds and rounds down, because that is what the claims say.

use caracal_model::limits::{DEFAULT_TTL_SECONDS, MAX_SUBJECT_TTL_SECONDS, MAX_TTL_SECONDS};
use caracal_model::{Refusal, Refused, Timestamp};

/// The lifetime that a request asks for, in seconds; 0 asks for the default.
///
/// # Errors
/// 400 when it is negative or over the cap, which is lower with a subject token.
pub fn requested(ttl_seconds: i64, with_subject_token: bool) -> Result<i64, Refused> {
    let cap = if with_subject_token {
        MAX_SUBJECT_TTL_SECONDS
    } else {
        MAX_TTL_SECONDS
    };
    match ttl_seconds {
        0 => Ok(DEFAULT_TTL_SECONDS),
        asked if asked < 0 => Err(Refusal::BadRequest.because("ttl_seconds must be positive")),
        asked if asked > cap => {
            Err(Refusal::BadRequest.because(format!("ttl_seconds must not exceed {cap}")))
        }
        asked => Ok(asked),
    }
}

/// What a lifetime may not exceed; `None` does not bound.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// `MAX_GRANT_TTL_SECONDS` of the deployment.
    pub deployment_seconds: i64,
    /// The shortest `ttl_seconds` of the lineage.
    pub lineage_seconds: Option<u32>,
    /// The earliest expiry of the lineage.
    pub lineage_expires_at: Option<Timestamp>,
    /// `exp` of the presented mandate, Unix seconds.
    pub presented_exp: Option<i64>,
}

/// `iat` and `exp` of a mandate that is issued at `now` for `asked` seconds; `None` when less than
/// one second would be left.
pub fn bounded(asked: i64, bounds: Bounds, now: Timestamp) -> Option<(i64, i64)> {
    let Bounds {
        deployment_seconds,
        lineage_seconds,
        lineage_expires_at,
        presented_exp,
    } = bounds;
    let issued_at = now.unix_seconds();
    let longest = lineage_seconds
        .map_or(i64::MAX, i64::from)
        .min(deployment_seconds);
    let expires_at = issued_at
        .saturating_add(asked.min(longest))
        .min(lineage_expires_at.map_or(i64::MAX, Timestamp::unix_seconds))
        .min(presented_exp.unwrap_or(i64::MAX));
    (expires_at > issued_at).then_some((issued_at, expires_at))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FREE: Bounds = Bounds {
        deployment_seconds: 3600,
        lineage_seconds: None,
        lineage_expires_at: None,
        presented_exp: None,
    };

    fn life(asked: i64, bounds: Bounds) -> Option<i64> {
        let now = Timestamp::from_unix_micros(1_000_900_000);
        bounded(asked, bounds, now).map(|(iat, exp)| exp - iat)
    }

    #[test]
    fn a_request_may_ask_up_to_its_cap() {
        assert_eq!(requested(0, false), Ok(900));
        assert_eq!(requested(3600, false), Ok(3600));
        assert_eq!(requested(900, true), Ok(900));
        for (asked, with_token) in [(-1, false), (3601, false), (901, true), (i64::MIN, true)] {
            let refused = requested(asked, with_token).unwrap_err();
            assert_eq!(refused.refusal, Refusal::BadRequest, "{asked}");
        }
    }

    #[test]
    fn the_tightest_bound_wins() {
        let at = Timestamp::from_unix_micros;
        assert_eq!(life(900, FREE), Some(900));
        assert_eq!(
            life(
                900,
                Bounds {
                    deployment_seconds: 60,
                    ..FREE
                }
            ),
            Some(60)
        );
        assert_eq!(
            life(
                900,
                Bounds {
                    lineage_seconds: Some(30),
                    ..FREE
                }
            ),
            Some(30)
        );
        let expiring = Bounds {
            lineage_expires_at: Some(at(1_010_999_999)),
            ..FREE
        };
        assert_eq!(life(900, expiring), Some(10));
        assert_eq!(
            life(
                900,
                Bounds {
                    presented_exp: Some(1_005),
                    ..FREE
                }
            ),
            Some(5)
        );
    }

    #[test]
    fn less_than_a_second_is_nothing() {
        let at = Timestamp::from_unix_micros;
        let ending = Bounds {
            lineage_expires_at: Some(at(1_000_999_999)),
            ..FREE
        };
        assert_eq!(life(900, ending), None);
        assert_eq!(
            life(
                900,
                Bounds {
                    presented_exp: Some(i64::MIN),
                    ..FREE
                }
            ),
            None
        );
        assert_eq!(
            life(
                900,
                Bounds {
                    deployment_seconds: 0,
                    ..FREE
                }
            ),
            None
        );
    }
}
