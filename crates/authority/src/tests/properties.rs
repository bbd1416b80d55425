//! What we promise, whatever the graph: authority only narrows, and one dead link ends it.

use caracal_model::policy::PolicyInput;
use caracal_model::{ApplicationId, Mandate, RecordId, Scopes, SubjectType, Timestamp};
use proptest::collection::vec;
use proptest::prelude::*;

use super::graphs::{Graph, SCOPES, graph, scopes};
use super::world::*;
use crate::decide;
use crate::decide::{Class, Decision, Outcome, Standing};
use crate::facts::{EdgeFacts, EdgeStatus, Enforcement, SessionStatus};

/// A mandate against each Delegation of its ancestry, said as plainly as it can be said.
fn is_within(mandate: &Mandate, edge: &EdgeFacts, world: &World) -> Result<(), TestCaseError> {
    let carried = Scopes::parse(&mandate.scope);
    prop_assert!(
        carried.is_within(&edge.scopes),
        "{carried} is wider than {edge:?}"
    );
    prop_assert!(mandate.exp <= edge.expires_at.unix_seconds());
    let latest = edge
        .constraints
        .expires_at
        .map_or(i64::MAX, Timestamp::unix_seconds);
    prop_assert!(mandate.exp <= latest);
    let longest = edge.constraints.ttl_seconds.map_or(i64::MAX, i64::from);
    prop_assert!(mandate.exp - mandate.iat <= longest);
    for target in &mandate.target {
        let found = world
            .resources
            .iter()
            .find(|r| *r.identifier == **target)
            .unwrap();
        prop_assert!(carried.is_within(&found.scopes));
        prop_assert!(
            edge.resource_id
                .as_ref()
                .is_none_or(|only| *only == found.id)
        );
        let named = &edge.constraints.resources;
        prop_assert!(
            named
                .as_ref()
                .is_none_or(|only| only.contains(&found.identifier))
        );
    }
    Ok(())
}

fn mandate_of(decision: &Decision) -> Option<Mandate> {
    matches!(decision.outcome, Outcome::Grant(_)).then(|| granted(decision))
}

/// Mints under an edge and uses what was minted, with a policy that allows everything.
fn check_edge(graph: &Graph, leaf: &EdgeFacts, wanted: &Scopes) -> Result<(), TestCaseError> {
    let mut world = graph.world(leaf, wanted);
    for resource in &mut world.resources {
        resource.enforcement = Enforcement::TransportUniform;
    }
    let says = Says::allow();
    let Some(minted) = mandate_of(&world.decide(Class::Delegated, says.clone())) else {
        return Ok(());
    };
    prop_assert_eq!(Scopes::parse(&minted.scope), wanted.clone());
    for edge in graph.ancestry(leaf) {
        is_within(&minted, &edge, &world)?;
    }
    for question in says.questions() {
        let own = format!("label-of-{}", leaf.target_session_id);
        prop_assert_eq!(
            question.principal.labels,
            [own],
            "labels are the Session's own"
        );
    }
    let used = mandate_of(&world.decide(gateway(&minted, "GET", "/"), Says::allow()));
    let used = used.expect("what was minted a moment ago can be used");
    for edge in graph.ancestry(leaf) {
        is_within(&used, &edge, &world)?;
    }
    prop_assert!(used.exp <= minted.exp);
    prop_assert!(
        used.target
            .iter()
            .all(|target| minted.target.contains(target))
    );
    prop_assert_eq!(used.delegation_path, minted.delegation_path);
    Ok(())
}

/// `max_hops` of every edge is at least one more than the Delegations that follow it.
fn has_hops(path: &[(u32, bool)]) -> bool {
    path.iter().enumerate().all(|(at, (max_hops, _))| {
        let following = path[at + 1..]
            .iter()
            .filter(|(_, mirrored)| !mirrored)
            .count();
        *max_hops as usize > following
    })
}

/// One Session for each end of the path, of any application, mirrored edges within one.
fn path() -> impl Strategy<Value = (Vec<usize>, Vec<(u32, bool)>)> {
    (0usize..3, vec((1u32..7, any::<bool>(), 0usize..3), 1..12)).prop_map(|(first, links)| {
        let mut applications = vec![first];
        let mut edges = Vec::new();
        for (at, (max_hops, mirrored, next)) in links.into_iter().enumerate() {
            let mirrored = mirrored && at > 0;
            applications.push(if mirrored { applications[at] } else { next });
            edges.push((max_hops, mirrored));
        }
        (applications, edges)
    })
}

/// A path that is accepted.
fn good_path() -> impl Strategy<Value = (Vec<usize>, Vec<(u32, bool)>)> {
    path().prop_map(|(mut applications, mut edges)| {
        edges.truncate(10);
        applications.truncate(edges.len() + 1);
        for at in 0..edges.len() {
            edges[at].0 = u32::try_from(edges.len() - at).unwrap();
        }
        (applications, edges)
    })
}

/// One way in which a link of the path can be dead or not fit.
#[derive(Clone, Copy, Debug)]
enum Break {
    Revoked,
    Expired,
    EdgeOver,
    Suspended,
    Terminated,
    SessionExpired,
    SessionOver,
    SessionGone,
    OtherOwner,
    UserGone,
    LinkCut,
}

const BREAKS: [Break; 11] = [
    Break::Revoked,
    Break::Expired,
    Break::EdgeOver,
    Break::Suspended,
    Break::Terminated,
    Break::SessionExpired,
    Break::SessionOver,
    Break::SessionGone,
    Break::OtherOwner,
    Break::UserGone,
    Break::LinkCut,
];

fn break_at(world: &mut World, what: Break, at: usize) {
    let edge = at % world.lineage.len();
    let session = at % world.sessions.len();
    match what {
        Break::Revoked => world.edge(edge).status = EdgeStatus::Revoked,
        Break::Expired => world.edge(edge).status = EdgeStatus::Expired,
        Break::EdgeOver => world.edge(edge).expires_at = NOW,
        Break::Suspended => world.session(session).status = SessionStatus::Suspended,
        Break::Terminated => world.session(session).status = SessionStatus::Terminated,
        Break::SessionExpired => world.session(session).status = SessionStatus::Expired,
        Break::SessionOver => world.session(session).ends_at = Some(NOW),
        Break::SessionGone => drop(world.sessions.remove(session)),
        Break::OtherOwner => {
            world.session(session).application_id = ApplicationId::trusted("stranger");
        }
        Break::UserGone => {
            let user = world.session(session);
            user.subject_type = SubjectType::User;
            user.subject_record_id = RecordId::trusted("nobody");
        }
        Break::LinkCut => world.edge(edge).parent_edge_id = Some(edge_id(99)),
    }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn no_path_grants_what_an_ancestor_did_not_hold(graph in graph(), wanted in scopes()) {
        let wanted: Scopes = wanted.iter().collect();
        for leaf in &graph.edges {
            check_edge(&graph, leaf, &wanted)?;
        }
    }

    #[test]
    fn what_the_coordinator_accepts_the_sts_mints(graph in graph()) {
        for leaf in graph.edges.iter().filter(|edge| !edge.scopes.is_empty()) {
            if graph.ancestry(leaf).len() > 10 {
                continue;
            }
            let world = graph.world(leaf, &leaf.scopes);
            let minted = world.decide(Class::Delegated, Says::allow());
            let refused_as_a_whole = minted.verdicts.iter().all(|verdict| {
                verdict.evaluation_status == "exchange_denied"
            });
            prop_assert!(!refused_as_a_whole, "{leaf:?}: {:?}", minted.outcome);
        }
    }

    #[test]
    fn nothing_outside_request_resource_and_lineage_is_granted(
        wanted in scopes(), declared in scopes(), edges in vec(scopes(), 1..4),
    ) {
        let mut world = World::chain(&vec![0; edges.len() + 1], &vec![(9, false); edges.len()]);
        world.scope = wanted.join(" ");
        world.resources[0].scopes = declared.iter().collect();
        for (at, carried) in edges.iter().enumerate() {
            world.edge(at).scopes = carried.iter().collect();
        }
        let possible = wanted.iter().all(|scope| {
            declared.contains(scope) && edges.iter().all(|edge| edge.contains(scope))
        });
        let minted = mandate_of(&world.decide(Class::Delegated, Says::allow()));
        prop_assert_eq!(minted.is_some(), possible);
        let Some(minted) = minted else { return Ok(()) };
        for foreign in SCOPES.iter().filter(|scope| !wanted.contains(scope)) {
            prop_assert!(!Scopes::parse(&minted.scope).contains(foreign));
        }
    }

    #[test]
    fn hops_are_what_remains_and_mirrors_use_none((applications, edges) in path()) {
        let world = World::chain(&applications, &edges);
        let granted = mandate_of(&world.decide(Class::Delegated, Says::allow()));
        prop_assert_eq!(granted.is_some(), has_hops(&edges) && edges.len() <= 10);
        if let Some(mandate) = granted {
            prop_assert_eq!(mandate.hop_count, u32::try_from(edges.len()).ok());
            prop_assert_eq!(mandate.delegation_chain.len(), edges.len() + 1);
        }
    }

    #[test]
    fn one_dead_link_anywhere_ends_it(
        (applications, edges) in good_path(), at in any::<usize>(), what in 0..BREAKS.len(),
    ) {
        let what = BREAKS[what];
        let mut world = World::chain(&applications, &edges);
        let presented = world.mandate();
        break_at(&mut world, what, at);
        let minted = world.decide(Class::Delegated, Says::allow());
        prop_assert!(mandate_of(&minted).is_none(), "minted in spite of {what:?}");
        let call = gateway(&presented, "GET", "/tickets");
        let used = world.decide(call, Says::allow());
        prop_assert!(mandate_of(&used).is_none(), "used in spite of {what:?}");
        for decision in [minted, used] {
            let evidence = decision.verdicts;
            prop_assert_eq!(evidence.len(), 1);
            prop_assert!(!evidence[0].allowed);
        }
    }

    #[test]
    fn another_session_or_application_cannot_use_the_path((applications, edges) in good_path()) {
        let mut world = World::chain(&applications, &edges);
        world.caller = app(7);
        prop_assert!(mandate_of(&world.decide(Class::Delegated, Says::allow())).is_none());
        let mut world = World::chain(&applications, &edges);
        let mut presented = world.mandate();
        presented.agent_session_id = Some(session_id(0));
        let decision = world.decide(gateway(&presented, "GET", "/tickets"), Says::allow());
        prop_assert!(mandate_of(&decision).is_none());
        world.now = after(600);
        prop_assert!(mandate_of(&world.decide(Class::Delegated, Says::allow())).is_none());
    }

    /// Until a human approves, nothing is granted; then nothing that the same request would not have
    /// got without a gate. What policy denies stays denied.
    #[test]
    fn an_approval_adds_nothing(
        graph in graph(), wanted in scopes(), gated in vec(any::<bool>(), 3), denied in vec(any::<bool>(), 3),
        asked in -10i64..4000,
    ) {
        let wanted: Scopes = wanted.iter().collect();
        for leaf in &graph.edges {
            let mut world = graph.world(leaf, &wanted);
            world.ttl_seconds = asked;
            let place = |input: &PolicyInput| {
                let digits = input.resource.identifier.trim_start_matches("resource://r");
                digits.parse::<usize>().expect("a resource of ours")
            };
            let (refuses, holds) = (denied.clone(), gated.clone());
            let without = Says::answers({
                let refuses = refuses.clone();
                move |input| Ok(if refuses[place(input)] { super::world::denied("no") } else { allowed(&[]) })
            });
            let with = Says::answers(move |input| {
                let tiers = serde_json::json!([{"tier": "high"}]);
                let gate = serde_json::json!({"step_up_required": {"type": "human_approval", "tiers": tiers}});
                Ok(match (refuses[place(input)], holds[place(input)]) {
                    (true, _) => super::world::denied("no"),
                    (false, true) => allowed(&[gate]),
                    (false, false) => allowed(&[]),
                })
            });
            let free = mandate_of(&world.decide(Class::Delegated, without));
            let policy = policy(with.clone());
            let (before, approved) = world.ask(Class::Delegated, &world.requested(), |request, facts| {
                let before = decide(request, facts, &policy, world.now);
                let standing = Standing::establish(request, facts, world.now);
                (before, standing.map(|standing| standing.resolved().decide(&policy)))
            });
            let questions = with.questions();
            let gates = questions.iter().any(|input| !denied[place(input)] && gated[place(input)]);
            match mandate_of(&before) {
                Some(minted) => {
                    prop_assert!(!gates, "granted though a human was to be asked");
                    prop_assert_eq!(Some(&minted), free.as_ref());
                }
                None => prop_assert!(gates || free.is_none()),
            }
            let approved = approved.ok().and_then(|decision| mandate_of(&decision));
            prop_assert_eq!(approved, free);
        }
    }
}
