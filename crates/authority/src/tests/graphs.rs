//! Random graphs of Delegations, grown as the Coordinator grows them: Sessions of several
//! applications, inheritance, wishes that ask for too much.

use std::collections::BTreeSet;
use std::sync::Arc;

use caracal_model::{DelegationId, RequestId, Scopes, SessionId, ZoneId};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::world::*;
use crate::{
    Constraints, EdgeFacts, EdgeStatus, NamedResource, SessionFacts, Wish, inheritable, mirror,
    narrow, select_parent,
};

/// Few scopes, so that generated sets overlap and near misses are common.
pub const SCOPES: [&str; 3] = ["desk:read", "desk:write", "mail:send"];
pub const RESOURCES: usize = 3;
pub const APPLICATIONS: usize = 3;

/// One thing that somebody tries. Numbers pick among what exists, modulo its count.
#[derive(Clone, Debug)]
pub enum Step {
    Start {
        application: usize,
        parent: Option<usize>,
        inherit: bool,
    },
    Delegate {
        source: usize,
        target: usize,
        parent: Option<usize>,
        wish: RawWish,
    },
}

/// A wish before its resources are resolved.
#[derive(Clone, Debug)]
pub struct RawWish {
    resource: Option<usize>,
    constrained: Option<Vec<usize>>,
    scopes: Vec<&'static str>,
    max_hops: Option<u32>,
    budget: Option<u32>,
    ttl_seconds: Option<u32>,
    expires_in: u64,
    constraint_in: Option<u64>,
}

pub fn scopes() -> impl Strategy<Value = Vec<&'static str>> {
    subsequence(SCOPES.to_vec(), 0..=SCOPES.len())
}

fn wish() -> impl Strategy<Value = RawWish> {
    (
        option::of(0..RESOURCES),
        option::weighted(
            0.3,
            subsequence((0..RESOURCES).collect::<Vec<_>>(), 1..=RESOURCES),
        ),
        scopes(),
        option::weighted(0.8, 1u32..6),
        option::weighted(0.2, 1u32..4),
        option::weighted(0.3, select(vec![30u32, 60, 600])),
        select(vec![40u64, 100, 400, 2000]),
        option::weighted(0.2, select(vec![20u64, 50, 500])),
    )
        .prop_map(
            |(resource, constrained, scopes, max_hops, budget, ttl_seconds, expires_in, at)| {
                RawWish {
                    resource,
                    constrained,
                    scopes,
                    max_hops,
                    budget,
                    ttl_seconds,
                    expires_in,
                    constraint_in: at,
                }
            },
        )
}

fn step() -> impl Strategy<Value = Step> {
    let start = (
        0..APPLICATIONS,
        option::weighted(0.7, any::<usize>()),
        any::<bool>(),
    )
        .prop_map(|(application, parent, inherit)| Step::Start {
            application,
            parent,
            inherit,
        });
    let delegate = (
        any::<usize>(),
        any::<usize>(),
        option::weighted(0.3, any::<usize>()),
        wish(),
    )
        .prop_map(|(source, target, parent, wish)| Step::Delegate {
            source,
            target,
            parent,
            wish,
        });
    prop_oneof![2 => start, 3 => delegate]
}

pub fn graph() -> impl Strategy<Value = Graph> {
    vec(step(), 4..40).prop_map(|steps| {
        let mut graph = Graph::default();
        for application in 0..APPLICATIONS {
            graph.start(application, None, false);
        }
        for step in &steps {
            graph.take(step);
        }
        graph
    })
}

#[derive(Clone, Debug, Default)]
pub struct Graph {
    pub sessions: Vec<SessionFacts>,
    pub edges: Vec<EdgeFacts>,
}

impl Graph {
    fn take(&mut self, step: &Step) {
        match step {
            Step::Start {
                application,
                parent,
                inherit,
            } => {
                self.start(*application, *parent, *inherit);
            }
            Step::Delegate {
                source,
                target,
                parent,
                wish,
            } => {
                self.delegate(*source, *target, *parent, wish);
            }
        }
    }

    fn start(&mut self, application: usize, parent: Option<usize>, inherit: bool) {
        let mut made = session(self.sessions.len(), application);
        let parent = parent.map(|at| self.sessions[at % self.sessions.len()].id.clone());
        made.parent_id.clone_from(&parent);
        if let Some(parent) = parent.filter(|_| inherit) {
            let heir = &made.application_id;
            let Ok(found) = inheritable(&self.edges, &parent, heir, None, NOW) else {
                return;
            };
            let copied = found.map(|held| mirror(held, edge_id(self.edges.len()), made.id.clone()));
            self.edges.extend(copied);
        }
        self.sessions.push(made);
    }

    fn delegate(&mut self, source: usize, target: usize, parent: Option<usize>, raw: &RawWish) {
        let source = &self.sessions[source % self.sessions.len()];
        let target = &self.sessions[target % self.sessions.len()];
        if self.leads_to(&target.id, &source.id) {
            return;
        }
        let named = parent.filter(|_| !self.edges.is_empty());
        let named = named.map(|at| self.edges[at % self.edges.len()].id.clone());
        let Ok(parent) = select_parent(source, &self.edges, named.as_ref(), NOW) else {
            return;
        };
        let Ok(made) = narrow(parent, &resolve(raw), NOW) else {
            return;
        };
        let made = EdgeFacts {
            id: edge_id(self.edges.len()),
            source_session_id: source.id.clone(),
            target_session_id: target.id.clone(),
            issuer_application_id: source.application_id.clone(),
            receiver_application_id: target.application_id.clone(),
            parent_edge_id: made.parent_edge_id,
            mirrored: false,
            resource_id: made.resource_id,
            scopes: made.scopes,
            constraints_json: made.constraints.to_json(),
            constraints: made.constraints,
            status: EdgeStatus::Active,
            expires_at: made.expires_at,
        };
        // As stored and read again.
        assert_eq!(
            Constraints::parse(&made.constraints_json).as_ref(),
            Ok(&made.constraints)
        );
        self.edges.push(made);
    }

    /// The store's part: no circles.
    fn leads_to(&self, from: &SessionId, to: &SessionId) -> bool {
        let mut reached = BTreeSet::from([from]);
        loop {
            let before = reached.len();
            for edge in &self.edges {
                if reached.contains(&edge.source_session_id) {
                    reached.insert(&edge.target_session_id);
                }
            }
            if reached.contains(to) {
                return true;
            }
            if reached.len() == before {
                return false;
            }
        }
    }

    pub fn edge(&self, id: &DelegationId) -> &EdgeFacts {
        self.edges.iter().find(|edge| edge.id == *id).unwrap()
    }

    /// From the edge to its root, by following parents and nothing else.
    pub fn ancestry(&self, leaf: &EdgeFacts) -> Vec<EdgeFacts> {
        let mut path = vec![leaf.clone()];
        while let Some(parent) = path.last().and_then(|edge| edge.parent_edge_id.clone()) {
            path.push(self.edge(&parent).clone());
        }
        path
    }

    /// A world in which the holder of `leaf` asks for these scopes on every resource.
    pub fn world(&self, leaf: &EdgeFacts, wanted: &Scopes) -> World {
        let lineage = self
            .ancestry(leaf)
            .into_iter()
            .rev()
            .map(Arc::new)
            .collect();
        World {
            zone: ZoneId::trusted("zone-1"),
            request_id: RequestId::trusted("req-1"),
            caller: leaf.receiver_application_id.clone(),
            sessions: self.sessions.iter().cloned().map(Arc::new).collect(),
            records: Vec::new(),
            lineage,
            actor: None,
            resources: (0..RESOURCES)
                .map(|at| resource(at, declared(at)))
                .collect(),
            requested: (0..RESOURCES)
                .map(|at| format!("resource://r{at}"))
                .collect(),
            rate_limited: None,
            scope: wanted.to_string(),
            ttl_seconds: 0,
            now: NOW,
        }
    }
}

fn declared(at: usize) -> &'static str {
    [
        "desk:read desk:write mail:send",
        "desk:read mail:send",
        "desk:read",
    ][at]
}

fn resolve(raw: &RawWish) -> Wish {
    let named = |at: usize| {
        let found = resource(at, declared(at));
        NamedResource {
            id: found.id,
            identifier: found.identifier,
            scopes: found.scopes,
        }
    };
    let constrained: Vec<NamedResource> = raw
        .constrained
        .iter()
        .flatten()
        .map(|at| named(*at))
        .collect();
    let identifiers = constrained
        .iter()
        .map(|resource| resource.identifier.clone())
        .collect();
    Wish {
        resource: raw.resource.map(named),
        scopes: raw.scopes.iter().collect(),
        constraints: Constraints {
            resources: (!constrained.is_empty()).then_some(identifiers),
            max_hops: raw.max_hops,
            budget: raw.budget,
            ttl_seconds: raw.ttl_seconds,
            expires_at: raw.constraint_in.map(after),
            policy_approved: None,
            broad_reason: None,
        },
        constrained,
        expires_at: Some(after(raw.expires_in)),
    }
}
