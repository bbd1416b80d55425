# The decision contract: what the six data roots of a zone allow.
#
# The native contract answers the same questions without an evaluator; this text is what it is
# compared with, and what answers for zones whose documents read `input`. Every shape is checked
# before it is used, so that malformed data denies and never allows.
package caracal.authz

import rego.v1

result := {
	"decision": decision,
	"evaluation_status": "complete",
	"determining_policies": [{"policy": name} | some name in determining],
	"diagnostics": diagnostics,
} if {
	roots_agree
}

# Two documents that give one root different values are an error, whether or not this question
# touches that root.
roots_agree if {
	count([1 | _ = data.caracal.authz.app_ids]) >= 0
	count([1 | _ = data.caracal.authz.grants]) >= 0
	count([1 | _ = data.caracal.authz.confinement]) >= 0
	count([1 | _ = data.caracal.authz.restrict]) >= 0
	count([1 | _ = data.caracal.authz.risk]) >= 0
	count([1 | _ = data.caracal.authz.approval_tiers]) >= 0
}

# --- What is asked ---------------------------------------------------------------------------

requested := {scope | some scope in input.context.requested_scopes}

labels := {label | some label in object.get(input.principal, "labels", [])}

has_subject if {
	claims := input.context.subject_claims
	claims != null
	claims != {}
}

has_edge if _ = input.delegation_edge

has_edge if object.get(input.context, "delegation_edge_id", "") != ""

has_session if object.get(input.principal, "agent_session_id", "") != ""

has_session if object.get(input.context, "agent_session_id", "") != ""

asks_for_lifecycle if requested == {"agent:lifecycle"}

bootstrap if {
	asks_for_lifecycle
	not has_subject
	not has_edge
	not has_session
}

mint_request if {
	input.delegation_edge.id != ""
	object.get(input.principal, "agent_session_id", "") != ""
	not has_subject
	count(requested) > 0
	not "agent:lifecycle" in requested
}

workload if {
	input.principal.type == "Workload"
	input.action.id == "CredentialInjection"
	not has_subject
	not has_edge
	not has_session
}

presented_scopes := {scope |
	is_object(input.context.subject_claims)
	text := input.context.subject_claims.scope
	is_string(text)
	text != ""
	some scope in split(text, " ")
}

presented if {
	is_object(input.context.subject_claims)
	edge := input.context.subject_claims.delegation_edge_id
	is_string(edge)
	edge != ""
	count(requested) == 0
	count(presented_scopes) > 0
}

targeted if {
	targets := input.context.subject_claims.target
	is_array(targets)
	input.resource.identifier in targets
}

# --- What the documents say ------------------------------------------------------------------

is_list(value) if is_array(value)

is_list(value) if is_set(value)

restricted if {
	value := data.caracal.authz.restrict
	is_list(value)
	count(value) > 0
}

restricted if {
	value := data.caracal.authz.restrict
	is_object(value)
	count(value) > 0
}

grant := found if {
	all := data.caracal.authz.grants
	is_object(all)
	found := all[input.resource.identifier]
	is_object(found)
}

application := name if {
	name := grant.application
	is_string(name)
}

owns if {
	ids := data.caracal.authz.app_ids
	is_object(ids)
	ids[application] == input.principal.id
}

role_covers(scopes) if {
	is_object(grant.roles)
	some label in labels
	granted := grant.roles[label]
	is_list(granted)
	every scope in scopes {
		scope in granted
	}
}

narrowed if {
	carried := object.get(input.delegation_edge, "scopes", [])
	every scope in requested {
		scope in carried
	}
}

has_confinement if _ = data.caracal.authz.confinement

confined if not has_confinement

confined if {
	rules := data.caracal.authz.confinement
	is_list(rules)
	every rule in rules {
		confinement_holds(rule)
	}
}

confined if {
	rules := data.caracal.authz.confinement
	is_object(rules)
	every rule in rules {
		confinement_holds(rule)
	}
}

confinement_holds(rule) if {
	is_confinement(rule)
	not applies(rule)
}

confinement_holds(rule) if {
	is_confinement(rule)
	every scope in requested {
		scope in rule.scopes
	}
}

is_confinement(rule) if {
	is_object(rule)
	is_string(rule.label_prefix)
	is_list(rule.scopes)
	every scope in rule.scopes {
		is_string(scope)
	}
}

applies(rule) if {
	some label in labels
	startswith(label, rule.label_prefix)
}

names(value, member) if {
	is_string(value[member])
	value[member] != ""
}

has_risk if _ = data.caracal.authz.risk

risk_ok if not has_risk

risk_ok if {
	entries := data.caracal.authz.risk
	is_array(entries)
	every entry in entries {
		is_object(entry)
		names(entry, "scope")
		names(entry, "tier")
	}
}

has_tiers if _ = data.caracal.authz.approval_tiers

tiers_ok if not has_tiers

tiers_ok if {
	declarations := data.caracal.authz.approval_tiers
	is_array(declarations)
	every declaration in declarations {
		is_declaration(declaration)
	}
}

is_declaration(value) if {
	is_object(value)
	names(value, "tier")
	object.get(value, "approver", "operator") in {"operator", "subject", "any"}
	object.get(value, "privacy", "identified") in {"identified", "pseudonymous", "anonymous"}
	lasts(object.get(value, "ttl_seconds", 1))
}

lasts(seconds) if {
	is_number(seconds)
	seconds > 0
	floor(seconds) == seconds
}

# One scope in two tiers is an error: an object has one value for a key.
tier_of := {entry.scope: entry.tier |
	some entry in data.caracal.authz.risk
	entry.scope in requested
}

# --- The answer ------------------------------------------------------------------------------

bootstrap_allowed if {
	bootstrap
	owns
}

mint_allowed if {
	mint_request
	narrowed
	confined
	owns
	role_covers(requested)
	risk_ok
	tiers_ok
}

workload_allowed if {
	workload
	not bootstrap_allowed
	risk_ok
	tiers_ok
}

use_allowed if {
	presented
	targeted
	owns
	role_covers(presented_scopes)
}

gated if mint_allowed

gated if workload_allowed

determining := [] if {
	restricted
} else := ["caracal-bootstrap"] if {
	bootstrap_allowed
} else := [concat("", ["caracal-", application, "-mint"])] if {
	mint_allowed
} else := ["caracal-workload-mint"] if {
	workload_allowed
} else := [concat("", ["caracal-", application, "-use"])] if {
	use_allowed
} else := []

decision := "allow" if {
	count(determining) > 0
} else := "deny"

diagnostics := [{"reason": reason}] if {
	decision == "deny"
} else := array.concat(step_up, risks) if {
	gated
} else := []

matched := {declaration |
	some declaration in data.caracal.authz.approval_tiers
	some tier in tier_of
	declaration.tier == tier
}

step_up := [{"step_up_required": {
	"type": "human_approval",
	"tiers": [declaration | some declaration in matched],
}}] if {
	count(matched) > 0
} else := []

risks := [{"risk": [{"scope": scope, "tier": tier} | some scope, tier in tier_of]}] if {
	count(tier_of) > 0
} else := []

is_checked if mint_request

is_checked if {
	workload
	not bootstrap
}

reason := "restriction_active" if {
	restricted
} else := "malformed_risk_data" if {
	is_checked
	not risk_ok
} else := "malformed_approval_data" if {
	is_checked
	not tiers_ok
} else := "resource_not_granted" if {
	mint_request
	not owns
} else := "delegation_scope_exceeded" if {
	mint_request
	not narrowed
} else := "confinement_violation" if {
	mint_request
	not confined
} else := "role_scope_mismatch" if {
	mint_request
	not role_covers(requested)
} else := "mandate_target_mismatch" if {
	presented
	not targeted
} else := "resource_not_granted" if {
	presented
	not owns
} else := "role_scope_mismatch" if {
	presented
	not role_covers(presented_scopes)
} else := "no_rule_matched"
