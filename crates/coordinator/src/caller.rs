//! Who asks, and what they may do (spec: coordinator §4).

use caracal_model::{ApplicationId, RecordId, Scopes, ZoneId};
use caracal_trail::Actor;

/// The operator token, in records.
const OPERATOR: &str = "operator";
const ADMIN: &str = "coordinator.admin";

/// An authenticated caller.
#[derive(Clone, Debug)]
pub enum Caller {
    /// The deployment's operator: every zone, some routes.
    Operator,
    /// An application with a lifecycle token of one zone.
    Runtime(Runtime),
}

/// An application with a lifecycle token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runtime {
    /// Its zone.
    pub zone: ZoneId,
    /// `client_id`.
    pub application: ApplicationId,
    /// `sub`.
    pub subject: String,
    /// `sid`; every token of ours has one.
    pub record: Option<RecordId>,
    /// All scopes of the token.
    pub scopes: Scopes,
}

impl Caller {
    /// Whether this is the operator token.
    pub const fn is_operator(&self) -> bool {
        matches!(self, Self::Operator)
    }

    /// Whether it sees and manages the whole zone.
    pub fn is_admin(&self) -> bool {
        self.is_operator() || self.holds(ADMIN)
    }

    /// The application of the token.
    pub const fn application(&self) -> Option<&ApplicationId> {
        match self {
            Self::Operator => None,
            Self::Runtime(runtime) => Some(&runtime.application),
        }
    }

    /// As the admin audit records it (spec: coordinator §13).
    pub fn as_recorded(&self) -> Actor {
        match self {
            Self::Operator => Actor {
                id: Some(OPERATOR.to_owned()),
                name: Some(OPERATOR.to_owned()),
                ..Actor::default()
            },
            Self::Runtime(runtime) => Actor {
                id: Some(runtime.subject.clone()),
                name: Some(runtime.application.to_string()),
                scope: Some(runtime.scopes.to_string()),
                zone: Some(runtime.zone.clone()),
                operator: None,
            },
        }
    }

    /// The authority record of the token.
    pub const fn record(&self) -> Option<&RecordId> {
        match self {
            Self::Operator => None,
            Self::Runtime(runtime) => runtime.record.as_ref(),
        }
    }

    /// Whether the token is this application's own.
    pub fn is(&self, application: &ApplicationId) -> bool {
        self.application() == Some(application)
    }

    /// Whether it may start Sessions for this application.
    pub fn starts_for(&self, application: &ApplicationId) -> bool {
        self.is(application) || self.holds(&format!("coordinator.spawn_for:{application}"))
    }

    /// Whether it may start children under a Session of this application.
    pub fn starts_under(&self, parent: &ApplicationId) -> bool {
        self.is(parent) || self.holds(&format!("coordinator.spawn_under:{parent}"))
    }

    /// Whether it may manage existing Sessions of this application.
    pub fn manages(&self, application: &ApplicationId) -> bool {
        self.is_admin() || self.starts_for(application)
    }

    /// Whether it may delegate in the name of this application.
    pub fn delegates_from(&self, issuer: &ApplicationId) -> bool {
        self.is(issuer) || self.holds(&format!("coordinator.delegate_from:{issuer}"))
    }

    /// Whether it may delegate without naming a resource.
    pub fn delegates_broadly(&self, issuer: &ApplicationId) -> bool {
        self.is_admin()
            || self.holds("coordinator.delegate_broad")
            || self.holds(&format!("coordinator.delegate_broad:{issuer}"))
    }

    /// Whose Sessions and edges it may read; `None` is everybody's.
    pub fn reads_as(&self) -> Option<&ApplicationId> {
        if self.is_admin() {
            None
        } else {
            self.application()
        }
    }

    fn holds(&self, scope: &str) -> bool {
        matches!(self, Self::Runtime(runtime) if runtime.scopes.contains(scope))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(scopes: &str) -> Caller {
        Caller::Runtime(Runtime {
            zone: ZoneId::trusted("z"),
            application: ApplicationId::trusted("a"),
            subject: "a".to_owned(),
            record: Some(RecordId::trusted("r")),
            scopes: Scopes::parse(scopes),
        })
    }

    #[test]
    fn each_scope_opens_one_door() {
        let (own, other) = (ApplicationId::trusted("a"), ApplicationId::trusted("b"));
        let mut table = String::new();
        for scopes in [
            "agent:lifecycle",
            "coordinator.admin",
            "coordinator.spawn_for:b",
            "coordinator.spawn_under:b",
            "coordinator.delegate_from:b",
            "coordinator.delegate_broad",
            "coordinator.delegate_broad:b",
        ] {
            let caller = with(scopes);
            assert!(caller.starts_for(&own) && caller.delegates_from(&own));
            let doors = [
                ("start", caller.starts_for(&other)),
                ("under", caller.starts_under(&other)),
                ("manage", caller.manages(&other)),
                ("delegate", caller.delegates_from(&other)),
                ("broad", caller.delegates_broadly(&other)),
                ("read", caller.reads_as().is_none()),
            ];
            let open: Vec<_> = doors
                .iter()
                .filter(|(_, open)| *open)
                .map(|(door, _)| *door)
                .collect();
            table += &format!("{scopes:<28} | {}\n", open.join(" "));
        }
        insta::assert_snapshot!(table, @r"
        agent:lifecycle              | 
        coordinator.admin            | manage broad read
        coordinator.spawn_for:b      | start manage
        coordinator.spawn_under:b    | under
        coordinator.delegate_from:b  | delegate
        coordinator.delegate_broad   | broad
        coordinator.delegate_broad:b | broad
        ");
    }
}
