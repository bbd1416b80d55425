//! The authenticated caller.

use caracal_model::{Timestamp, ZoneId};
use caracal_store::admin_tokens::AdminToken;
use caracal_store::zones::Author;

use crate::failure::Failure;

/// `created_by` of the token that the deployment was started with.
pub const BOOTSTRAP: &str = "env-bootstrap";
/// Prefix of `created_by` of the tokens that the console derives from it.
pub const DERIVED: &str = "env-derived";

/// Where a token may act.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everywhere.
    Global,
    /// In this zone.
    Zone(ZoneId),
}

/// What a token may do there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// Look.
    Read,
    /// Look and change.
    Write,
    /// Look and decide approvals.
    Approve,
}

impl Capability {
    /// The names on the wire.
    pub const NAMES: [&'static str; 3] = ["read", "write", "approve"];

    fn parse(name: &str) -> Option<Self> {
        match name {
            "read" => Some(Self::Read),
            "write" => Some(Self::Write),
            "approve" => Some(Self::Approve),
            _ => None,
        }
    }
}

/// An admin token that was presented and is live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    /// Id of the token.
    pub id: String,
    /// Its name, for people.
    pub token_name: String,
    /// Where it may act.
    pub scope: Scope,
    /// What it may do.
    pub capability: Capability,
    created_by: String,
    account: Option<String>,
}

impl Actor {
    /// The actor of a stored token; `None` when the row makes no sense, which denies.
    pub fn of(token: AdminToken) -> Option<Self> {
        let scope = match (token.scope.as_str(), token.zone_id) {
            ("global", None) => Scope::Global,
            ("zone", Some(zone)) => Scope::Zone(zone),
            _ => return None,
        };
        Some(Self {
            id: token.id,
            token_name: token.name,
            scope,
            capability: Capability::parse(&token.capability)?,
            created_by: token.created_by,
            account: None,
        })
    }

    /// Whether this is the token that the deployment was started with: break-glass.
    pub fn is_bootstrap(&self) -> bool {
        self.created_by == BOOTSTRAP
    }

    /// Whether the console derived this token.
    pub fn is_derived(&self) -> bool {
        self.created_by.starts_with(DERIVED)
    }

    /// Whether it may act everywhere.
    pub fn is_global(&self) -> bool {
        self.scope == Scope::Global
    }

    /// The console account that it acts for.
    pub fn account(&self) -> Option<&str> {
        self.account.as_deref()
    }

    /// The same, acting for a console account.
    #[must_use]
    pub fn for_account(&self, account: String) -> Self {
        Self {
            account: Some(account),
            ..self.clone()
        }
    }

    /// As recorded with what it makes. Attribution headers do not count: anybody could write them
    /// (spec: admin-api §19, security 2).
    pub fn name(&self) -> String {
        self.account
            .clone()
            .unwrap_or_else(|| format!("admin:{}", self.id))
    }

    /// As the admin audit records it (spec: audit-and-streams §12).
    pub fn as_recorded(&self) -> caracal_trail::Actor {
        let (scope, zone) = match &self.scope {
            Scope::Global => ("global", None),
            Scope::Zone(zone) => ("zone", Some(zone.clone())),
        };
        caracal_trail::Actor {
            id: Some(self.id.clone()),
            name: Some(self.token_name.clone()),
            scope: Some(scope.to_owned()),
            zone,
            operator: self.account.clone(),
        }
    }

    /// This actor, changing something now.
    pub fn author(&self, at: Timestamp) -> Author {
        Author {
            name: self.name(),
            via_operator: false,
            at,
        }
    }

    /// Secrets are for those who could replace them (spec: admin-api §20, 9).
    ///
    /// # Errors
    /// 403 with the code of what the token is limited to.
    pub fn may_reveal(&self, console_may: bool) -> Result<(), Failure> {
        let (code, can) = match self.capability {
            Capability::Write => return Ok(()),
            Capability::Read if console_may && self.account.is_some() => return Ok(()),
            Capability::Read => ("admin_token_read_only", "only read"),
            Capability::Approve => ("admin_token_approve_only", "only read and decide approvals"),
        };
        let why = format!("this token can {can}; a secret is shown to tokens of capability write");
        Err(Failure::forbidden(code, why))
    }

    /// An actor for tests.
    #[cfg(test)]
    pub fn for_tests(zone: Option<&str>, capability: Capability, created_by: &str) -> Self {
        Self {
            id: "t1".into(),
            token_name: "t".into(),
            scope: zone.map_or(Scope::Global, |zone| Scope::Zone(ZoneId::trusted(zone))),
            capability,
            created_by: created_by.into(),
            account: None,
        }
    }
}
