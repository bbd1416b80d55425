//! Subjects that an issuer vouches for (spec: sts §7). The text of `sub` is taken byte for byte:
//! nothing is trimmed, folded or normalized, so that two users never become one. What a reader could
//! take for another text, or for one of our own names, is refused.

use caracal_model::limits::DEFAULT_TTL_SECONDS;
use caracal_model::{ApplicationId, Refusal, Refused, SubjectType, Timestamp, TokenUse, ZoneId};

use crate::decide::Grant;
use crate::ttl::{self, Bounds};

/// Longest subject, in bytes.
const LONGEST: usize = 512;
/// Names of our own, such as the shared connection of a provider.
const RESERVED: &str = "caracal:";

/// A `sub` that may become the subject of mandates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FederatedSubject<'a>(&'a str);

/// Why a `sub` may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubjectError {
    /// There is none.
    #[error("its sub is empty")]
    Empty,
    /// Over 512 bytes.
    #[error("its sub is longer than 512 bytes")]
    TooLong,
    /// It starts like one of our own names.
    #[error("its sub starts with `caracal:`, which is reserved")]
    Reserved,
    /// It holds what stands for bytes that were no text.
    #[error("its sub is not valid UTF-8")]
    NotText,
    /// It holds control characters, or changes the direction of text.
    #[error("its sub holds control characters")]
    Control,
    /// White space around it.
    #[error("its sub starts or ends with white space")]
    Spaced,
}

impl<'a> FederatedSubject<'a> {
    /// Checks the `sub` of a token that was verified.
    ///
    /// # Errors
    /// [`SubjectError`], the first rule that it breaks.
    pub fn parse(sub: &'a str) -> Result<Self, SubjectError> {
        let turns = |c: char| matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if sub.is_empty() {
            Err(SubjectError::Empty)
        } else if sub.len() > LONGEST {
            Err(SubjectError::TooLong)
        } else if sub.starts_with(RESERVED) {
            Err(SubjectError::Reserved)
        } else if sub.contains(char::REPLACEMENT_CHARACTER) {
            Err(SubjectError::NotText)
        } else if sub.chars().any(|c| c.is_control() || turns(c)) {
            Err(SubjectError::Control)
        } else if sub.trim() != sub {
            Err(SubjectError::Spaced)
        } else {
            Ok(Self(sub))
        }
    }

    /// The text, as the issuer wrote it.
    pub fn as_str(self) -> &'a str {
        self.0
    }
}

/// For whom a user is federated.
#[derive(Clone, Copy, Debug)]
pub struct Federation<'a> {
    /// The zone.
    pub zone: &'a ZoneId,
    /// The application that presented the ID token.
    pub application: &'a ApplicationId,
    /// Lifetime in seconds; 0 when none was sent.
    pub ttl_seconds: i64,
    /// `MAX_GRANT_TTL_SECONDS`.
    pub max_grant_ttl_seconds: i64,
}

impl Federation<'_> {
    /// Whether the lifetime that is asked for is one that may be asked for.
    ///
    /// # Errors
    /// 400.
    pub fn check_ttl(&self) -> Result<i64, Refused> {
        ttl::requested(self.ttl_seconds, false)
    }

    /// A session mandate that says who the user is, and carries no authority: no scope, no
    /// resource, no Session.
    ///
    /// # Errors
    /// 400 for a lifetime that may not be asked for.
    pub fn grant(&self, subject: FederatedSubject<'_>, now: Timestamp) -> Result<Grant, Refused> {
        let bounds = Bounds {
            deployment_seconds: self.max_grant_ttl_seconds.max(1),
            lineage_seconds: None,
            lineage_expires_at: None,
            presented_exp: None,
        };
        let asked = self.check_ttl()?;
        let lifetime = ttl::bounded(asked, bounds, now);
        let (issued_at, expires_at) = lifetime.ok_or_else(|| {
            Refusal::BadRequest.because(format!(
                "ttl_seconds leaves no life: ask for 1 to {DEFAULT_TTL_SECONDS}"
            ))
        })?;
        Ok(Grant {
            token_use: TokenUse::Session,
            targets: Vec::new(),
            subject: subject.as_str().to_owned(),
            subject_type: SubjectType::User,
            scope: String::new(),
            zone: self.zone.clone(),
            client_id: self.application.clone(),
            root_sid: None,
            parent_sid: None,
            issued_at,
            expires_at,
            lineage: None,
            act: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sub_is_taken_byte_for_byte_or_not_at_all() {
        let long = "x".repeat(512);
        for good in [
            "user_123",
            "auth0|5f7c8ec7c33c6c004bbafe82",
            "ä b",
            "Caracal:x",
            "caracal",
            "e\u{301}",
            "\u{feff}a",
            long.as_str(),
        ] {
            assert_eq!(FederatedSubject::parse(good).unwrap().as_str(), good);
        }
        let too_long = "ä".repeat(257);
        for (bad, why) in [
            ("", SubjectError::Empty),
            (too_long.as_str(), SubjectError::TooLong),
            ("caracal:shared", SubjectError::Reserved),
            ("a\u{fffd}", SubjectError::NotText),
            ("a\nb", SubjectError::Control),
            ("a\u{0}", SubjectError::Control),
            ("\u{7f}a", SubjectError::Control),
            ("a\u{85}b", SubjectError::Control),
            ("\u{202e}resu", SubjectError::Control),
            ("a\u{2066}b", SubjectError::Control),
            (" a", SubjectError::Spaced),
            ("a\u{a0}", SubjectError::Spaced),
            ("a\u{3000}", SubjectError::Spaced),
            (" ", SubjectError::Spaced),
        ] {
            assert_eq!(FederatedSubject::parse(bad), Err(why), "{bad:?}");
        }
    }
}
