//! One credential for one variable of a launched command (spec: sts §12). [`release`] is the order.

use std::collections::BTreeSet;

use caracal_authority::decide::Asked;
use caracal_authority::{Injection, Requirement};
use caracal_ledger::{Event, Metadata};
use caracal_model::policy::PolicyResult;
use caracal_model::{Refusal, Refused, Timestamp};
use caracal_store::approvals::Approval;
use caracal_store::workloads::Binding;
use caracal_view::{Provider, Resource, ZoneView};
use serde_json::{Value, json};

use super::form::RunRequest;
use super::launcher::Launcher;
use super::record::Attempt;
use crate::approval::{
    self, Ask, POLICY_CHANGED, Presented, Refusing, WAITING, consume, covers, gate,
};
use crate::credential::{Credential, without_user};
use crate::events::put_asked;
use crate::exchange::{find, record};
use crate::patience::Patience;

/// Kinds that have nothing that a process could be given.
const NOTHING_TO_RELEASE: [&str; 3] = ["none", "caracal_mandate", "http_basic"];

/// Why there is no credential.
struct Denied {
    /// `evaluation_status` of its evidence.
    status: &'static str,
    /// What the caller is told.
    refused: Refused,
    /// What policy was asked and answered, when it was.
    policy: Option<Box<Policy>>,
}

/// What policy was asked, and its answer.
#[derive(Clone)]
struct Policy {
    asked: Asked,
    answer: PolicyResult,
}

impl Denied {
    fn new(status: &'static str, refused: Refused) -> Self {
        Self {
            status,
            refused,
            policy: None,
        }
    }

    fn because(self, policy: Policy) -> Self {
        Self {
            policy: Some(Box::new(policy)),
            ..self
        }
    }
}

impl From<Refusing> for Denied {
    /// 409 where the policy is another by now: whoever asks again is asked for anew.
    fn from(refusing: Refusing) -> Self {
        if refusing.status == POLICY_CHANGED {
            let why = "the policy changed since it was approved: launch again";
            return Self::new(POLICY_CHANGED, Refusal::ApprovalConflict.because(why));
        }
        Self::new(refusing.status, refusing.why)
    }
}

/// What a command may be given, once its approval is spent.
struct Ready<'a> {
    credential: Credential,
    /// What policy answered.
    policy: Policy,
    /// What was approved, and is to be spent.
    hold: Option<(Ask<'a>, Approval)>,
}

/// The credential of the binding that the request names; its evidence is written. `None` when
/// launcher or zone changed while it was obtained: nothing was spent, and nothing is on record.
///
/// # Errors
/// What the caller is told; its evidence is written.
pub async fn release(
    launcher: &Launcher,
    request: &RunRequest,
    attempt: Attempt<'_>,
    patience: Patience,
) -> Result<Option<Value>, Refused> {
    let mut bindings = launcher.workload.bindings.iter();
    let binding = bindings.find(|binding| binding.env == request.env);
    let wish = Wish {
        launcher,
        request,
        binding,
        attempt,
        patience,
    };
    match wish.released().await {
        Ok(None) => Ok(None),
        Ok(Some((credential, policy))) => {
            let event = wish.event("allow", "complete", Some(&policy), None);
            record(attempt.sts, vec![event]).await?;
            let mut answer = json!({"env": request.env, "credential": credential.token.expose()});
            if let (Some(at), Some(members)) = (credential.expires_at, answer.as_object_mut()) {
                members.insert("expires_at".to_owned(), Timestamp::unix_seconds(at).into());
            }
            Ok(Some(answer))
        }
        Err(denied) => {
            let why = Some(&denied.refused);
            let event = wish.event("deny", denied.status, denied.policy.as_deref(), why);
            record(attempt.sts, vec![event]).await?;
            Err(denied.refused)
        }
    }
}

/// A credential that a launcher asks for.
#[derive(Clone, Copy)]
struct Wish<'a> {
    launcher: &'a Launcher,
    request: &'a RunRequest,
    binding: Option<&'a Binding>,
    attempt: Attempt<'a>,
    patience: Patience,
}

impl<'a> Wish<'a> {
    /// Decides, sees that what it was decided on stands, then spends what was approved: nothing
    /// after that may refuse.
    async fn released(&self) -> Result<Option<(Credential, Policy)>, Denied> {
        let binding = self.binding.ok_or_else(|| no_binding(&self.request.env))?;
        let zone: &'a ZoneView = &self.launcher.zone;
        let named = &binding.resource;
        if zone.resources.is_orphan(named) {
            return Err(withheld(format!(
                "the provider of {named} is gone: give it another"
            )));
        }
        let resource = find(zone, named).ok_or_else(|| no_resource(named))?;
        may_be_released(&resource.provider)?;
        let ready = self.ready(binding, &resource).await?;
        let stands = self.launcher.stands(self.attempt.sts).await;
        if !stands
            .map_err(|why| Denied::new("exchange_denied", why).because(ready.policy.clone()))?
        {
            return Ok(None);
        }
        if let Some((ask, hold)) = &ready.hold {
            let spent = consume(self.attempt.sts, ask, hold, None).await;
            spent.map_err(|refusing| Denied::from(refusing).because(ready.policy.clone()))?;
        }
        Ok(Some((ready.credential, ready.policy)))
    }

    async fn ready<'r>(
        &self,
        binding: &'r Binding,
        resource: &'r Resource,
    ) -> Result<Ready<'r>, Denied>
    where
        'a: 'r,
    {
        let sts = self.attempt.sts;
        let ask = self.ask(binding, resource);
        let presented = self.presented(&ask).await?;
        let policy = self.answer(binding, resource, presented.is_some())?;
        let gates: Vec<Value> = policy.answer.step_up().cloned().into_iter().collect();
        let requirement = Requirement::of(&gates).map_err(|error| {
            Denied::new(error.status(), error.refused()).because(policy.clone())
        })?;
        let (policy, hold) = match (presented, requirement) {
            (Some(hold), requirement) => {
                let covered = covers(&ask, requirement.as_ref(), &hold);
                covered.map_err(|refusing| Denied::from(refusing).because(policy.clone()))?;
                (policy, Some(hold))
            }
            (None, None) => (policy, None),
            (None, Some(requirement)) => match gate(sts, &ask, &requirement).await {
                // What was approved is decided again, as approved.
                Ok(hold) => (self.answer(binding, resource, true)?, Some(hold)),
                Err(refusing) => return Err(Denied::from(refusing).because(policy)),
            },
        };
        let zone = &self.launcher.zone;
        match without_user(sts, zone, &resource.provider, self.patience).await {
            Ok(credential) => Ok(Ready {
                credential,
                policy,
                hold: hold.map(|hold| (ask, hold)),
            }),
            Err(refused) => {
                Err(Denied::new("provider_credential_unavailable", refused).because(policy))
            }
        }
    }

    /// What a human would approve. A workload stands on no record, Session, Delegation or
    /// application, so no user can decide.
    fn ask<'r>(&self, binding: &'r Binding, resource: &'r Resource) -> Ask<'r>
    where
        'a: 'r,
    {
        let Self {
            launcher, attempt, ..
        } = *self;
        let mut about = attempt.metadata();
        about.insert("env".to_owned(), binding.env.as_str().into());
        Ask {
            zone: &launcher.zone,
            request_id: attempt.request_id,
            principal: launcher.workload.id.as_str(),
            application: None,
            record: None,
            actors: Vec::new(),
            session: None,
            delegation: None,
            resources: vec![&*resource.facts.identifier],
            scopes: binding.scopes.iter().map(String::as_str).collect(),
            labels: &[],
            subject_anchor: None,
            own_records: BTreeSet::new(),
            about,
        }
    }

    /// The approval that the request names, if it names one; nothing is released twice for one.
    async fn presented(&self, ask: &Ask<'_>) -> Result<Option<Approval>, Denied> {
        let Some(id) = &self.request.approval_id else {
            return Ok(None);
        };
        let found = approval::presented(self.attempt.sts, ask, id).await;
        match found.and_then(Presented::unspent) {
            Ok(hold) => Ok(Some(hold)),
            // Policy was not asked, so nothing is complete.
            Err(refusing) if refusing.status == WAITING => {
                Err(Denied::new("credential_injection_denied", refusing.why))
            }
            Err(refusing) => Err(refusing.into()),
        }
    }

    /// What policy says; only an allow comes back.
    fn answer(
        &self,
        binding: &Binding,
        resource: &Resource,
        challenge_resolved: bool,
    ) -> Result<Policy, Denied> {
        let zone = &self.launcher.zone;
        let question = Injection {
            zone: &zone.id,
            request_id: self.attempt.request_id,
            workload: &self.launcher.workload.id,
            resource: &resource.facts,
            scopes: &binding.scopes,
            challenge_resolved,
        }
        .question();
        let answered = zone.policy.contract.evaluate(&question);
        let asked = Asked::answered(question.into(), &answered);
        let answer = match answered {
            Ok(answer) => answer,
            Err(fault) => {
                let refused = Refusal::PolicyEvalFailed.because("policy evaluation failed");
                let answer = PolicyResult {
                    allow: false,
                    determining: Vec::new(),
                    diagnostics: vec![json!({"error": fault.0})],
                };
                let denied = Denied::new("policy_eval_failed", refused);
                return Err(denied.because(Policy { asked, answer }));
            }
        };
        if answer.allow {
            return Ok(Policy { asked, answer });
        }
        let reason = answer.reason().unwrap_or("no_rule_matched").to_owned();
        Err(denied_for(&reason).because(Policy { asked, answer }))
    }

    fn event(
        &self,
        decision: &'static str,
        status: &'static str,
        asked: Option<&Policy>,
        why: Option<&Refused>,
    ) -> Event {
        let mut metadata = Metadata::from(self.attempt.metadata());
        metadata.put("env", self.request.env.as_str());
        let (resource, scopes) = self.binding.map_or(("", &[][..]), |binding| {
            (&*binding.resource, &*binding.scopes)
        });
        metadata.put("resource", resource);
        metadata.put("requested_scopes", scopes);
        if let Some(refused) = why {
            metadata.put("reason", &*refused.description);
        }
        if let Some(asked) = asked {
            put_asked(&mut metadata, &asked.asked);
        }
        let event = self.attempt.event("token_exchange", decision, status);
        let event = event.metadata(metadata);
        let Some(Policy { answer, .. }) = asked else {
            return event;
        };
        let policy = &self.launcher.zone.policy;
        let event = event
            .policy(
                policy.version_id.clone(),
                Some(policy.manifest_sha256.clone()),
            )
            .diagnostics(answer.diagnostics.clone());
        // Nothing determined what policy allowed and something else denied.
        if decision == "allow" {
            event.determined_by(&answer.determining)
        } else {
            event
        }
    }
}

fn denied_for(reason: &str) -> Denied {
    let why = format!("policy denied ({reason})");
    Denied::new("complete", Refusal::AccessDenied.because(why))
}

fn no_binding(env: &str) -> Denied {
    let why = format!("the workload binds nothing to {env}; see its bindings");
    Denied::new(
        "credential_injection_denied",
        Refusal::NotFound.because(why),
    )
}

fn no_resource(identifier: &str) -> Denied {
    let why = format!("there is no resource {identifier} in the workload's zone");
    Denied::new("resource_not_found", Refusal::NotFound.because(why))
}

/// Whether a process may be given the credential of this provider at all.
fn may_be_released(provider: &Provider) -> Result<(), Denied> {
    let permitted = provider.config.get("allow_runtime_injection") == Some(&Value::Bool(true));
    let why = match &*provider.kind {
        kind if NOTHING_TO_RELEASE.contains(&kind) => {
            format!("credentials of a provider of kind {kind} are not released to processes")
        }
        _ if !permitted => {
            "the provider does not permit it: set allow_runtime_injection in its config".to_owned()
        }
        "oauth2_authorization_code" => {
            "the credential belongs to a user, not to a workload".to_owned()
        }
        _ => return Ok(()),
    };
    Err(withheld(why))
}

fn withheld(why: String) -> Denied {
    Denied::new(
        "credential_injection_denied",
        Refusal::AccessDenied.because(why),
    )
}
